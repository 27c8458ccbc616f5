"""The file of an archive -> the Parquet table that `load` reads: typed columns, nulls for missing values, text for groups.

`datasets` calls it with bytes whose checksum is verified. This module knows neither archives nor the cache.
"""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

# Some 250 000 rows of `power` in a block, one row group each: memory beside the file stays below 100 MB.
BLOCK_BYTES = 16 << 20
# The strongest gust measured at the ground (Barrow Island, 1996). One row of `weather` has 1048, a fault of the instrument
# that would raise the standard deviation of the column by half. It is missing in our table.
FASTEST_WIND_MPH = 253.0
# `watch` is sampled at 50 Hz. Its recordings have no date, so their times count from the start of 1970.
WATCH_STEP_MS = 20

Batches = Iterator[Any]  # of pyarrow.RecordBatch, all of one schema


def write(name: str, content: bytes, path: Path) -> None:
    """Write the table of a named data set.

    Args:
        name: a key of `CONVERSIONS`.
        content: the archive's file, unpacked.
        path: where to; an existing file is overwritten.
    """
    batches = CONVERSIONS[name](content)
    first = next(batches)
    with pa.parquet.ParquetWriter(path, first.schema, compression="zstd") as writer:
        writer.write_batch(first)
        for batch in batches:
            writer.write_batch(batch)


def _weather(content: bytes) -> Batches:
    """Airport, hour in UTC, nine sensors; sorted by airport, then by time.

    The columns of local year, month, day and hour are left out: `time_hour` holds the same, and they repeat an hour in
    November.
    """
    sensors = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    types = {"origin": pa.string(), "time_hour": pa.timestamp("us", tz="UTC"), **dict.fromkeys(sensors, pa.float32())}
    for batch in _csv(content, types, missing="NA"):
        speed = batch["wind_speed"]
        believed = pc.if_else(pc.less_equal(speed, FASTEST_WIND_MPH), speed, None)
        yield batch.set_column(batch.schema.get_field_index("wind_speed"), "wind_speed", believed)


def _power(content: bytes) -> Batches:
    """Minute (local, without summer time: no hour is repeated or left out) and seven measurements."""
    sensors = (
        "Global_active_power",
        "Global_reactive_power",
        "Voltage",
        "Global_intensity",
        "Sub_metering_1",
        "Sub_metering_2",
        "Sub_metering_3",
    )
    types = {"Date": pa.timestamp("s"), "Time": pa.time32("s"), **dict.fromkeys(sensors, pa.float32())}
    for batch in _csv(content, types, missing="?", dates="%d/%m/%Y"):
        seconds = pc.add(batch["Date"].cast(pa.int64()), batch["Time"].cast(pa.int32()).cast(pa.int64()))
        time = seconds.cast(pa.timestamp("s")).cast(pa.timestamp("us"))  # Parquet knows no whole seconds
        columns = {"time": time} | {sensor: batch[sensor] for sensor in sensors}
        yield pa.record_batch(list(columns.values()), names=list(columns))


def _watch(content: bytes) -> Batches:
    """Recording, person, exercise, time since the recording's start, six axes; sorted by recording, then by time."""
    packed = _read_pickled(content)
    people, sides, exercises = packed["subject"].tolist(), packed["side"].tolist(), packed["y"].tolist()
    recordings = []
    for person, side, exercise, axes in zip(people, sides, exercises, packed["X"], strict=True):
        hand, label = "right" if side else "left", packed["y_labels"][exercise]
        recordings.append((f"{person:02d}-{hand}-{label}", f"{person:02d}", label, axes))
    for recording, person, label, axes in sorted(recordings, key=lambda one: str(one[0])):
        steps = len(axes)
        times = (np.arange(steps) * WATCH_STEP_MS).astype("datetime64[ms]").astype("datetime64[us]")
        columns = {
            "recording": pa.array([recording] * steps),
            "person": pa.array([person] * steps),
            "exercise": pa.array([label] * steps),
            "time": pa.array(times),
        }
        for index, axis in enumerate(packed["X_labels"]):
            columns[axis] = pa.array(axes[:, index].astype(np.float32))
        yield pa.record_batch(list(columns.values()), names=list(columns))


CONVERSIONS: dict[str, Callable[[bytes], Batches]] = {"power": _power, "watch": _watch, "weather": _weather}


def _csv(content: bytes, types: dict[str, Any], *, missing: str, dates: str | None = None) -> Batches:
    """The named columns, block by block; `missing` and the empty cell are null."""
    return iter(
        pa.csv.open_csv(
            pa.BufferReader(content),
            read_options=pa.csv.ReadOptions(block_size=BLOCK_BYTES),
            convert_options=pa.csv.ConvertOptions(
                column_types=types,
                include_columns=list(types),
                null_values=["", missing],
                timestamp_parsers=[dates] if dates else [pa.csv.ISO8601],
            ),
        )
    )


def _read_pickled(content: bytes) -> Any:
    """The object in a `.npy` file that holds one pickled Python object.

    Raises:
        pickle.UnpicklingError: the pickle asks for something that no array needs.
    """
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    assert version == (1, 0), "the pinned file has this version"
    np.lib.format.read_array_header_1_0(stream)
    return _Unpickler(stream).load().item()


class _Unpickler(pickle.Unpickler):
    """Loads arrays and nothing else: a second safeguard beside the checksum."""

    def find_class(self, module: str, name: str) -> Any:
        """The names that a pickled array of numbers needs.

        Raises:
            pickle.UnpicklingError: the pickle asks for another name.
        """
        known = {
            ("numpy.core.multiarray", "_reconstruct"): _EMPTY_ARRAY,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("_codecs", "encode"): _latin_1,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"got {module}.{name}, expected only what arrays are made of; not loaded")
        return known[module, name]


# numpy has renamed the module of this function; an array always knows it.
_EMPTY_ARRAY = np.empty(0).__reduce__()[0]


def _latin_1(text: str, encoding: str) -> bytes:
    """Decodes the bytes of old pickles. Other codecs of Python, some of which unpack archives, stay out of reach."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"got bytes in the encoding {encoding!r}, expected 'latin1'; not loaded")
    return text.encode("latin-1")
