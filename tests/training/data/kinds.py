"""Files of the kinds that loggers, spreadsheets and historians write: the rows of the tables in docs/data.md.

Each is a small file and what must be read of it: by default the series of `TIMES` and `WANTED`.
"""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.feather as pf
import pyarrow.parquet as pq

# Times of a clock, without a zone.
STARTS = [datetime(2024, 3, 1) + timedelta(minutes=10 * row) for row in range(5)]  # noqa: DTZ001
EXCEL_START = datetime(1899, 12, 30)  # noqa: DTZ001
TIMES = np.array(STARTS, "datetime64[ns]")
TEMP, PUMP = ["20.5", "", "21.5", "1022.25", "19"], ["1", "2", "3", "5", "4"]
WANTED = np.array([[20.5, 1], [np.nan, 2], [21.5, 3], [1022.25, 5], [19, 4]], np.float32)
NAN = float("nan")


@dataclass(frozen=True)
class Kind:
    """A file, how it is read, and what must come out."""

    content: bytes | Callable[[Path], None]
    name: str = "table.csv"
    options: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ("temp", "pump")
    values: Any = field(default_factory=lambda: WANTED)
    times: Any = field(default_factory=lambda: TIMES)
    units: tuple[str, ...] = ("", "")
    note: str = ""  # what a note must say


def stamped(pattern: str = "%Y-%m-%d %H:%M:%S") -> list[str]:
    """The times in a notation."""
    return [start.strftime(pattern) for start in STARTS]


def text(
    times: list[str] | None = None,
    between: str = ",",
    head: str | None = "time,temp,pump",
    temp: list[str] = TEMP,
    pump: list[str] = PUMP,
    tail: str = "",
) -> str:
    """A text file of the series."""
    lines = [] if head is None else [head.replace(",", between)]
    rows = zip(times or stamped(), temp, pump, strict=True)
    return "\n".join([*lines, *(between.join(row) + tail for row in rows)]) + "\n"


def timed(cells: list[str], /, **more: Any) -> Kind:
    """A file whose times are in some notation, between semicolons."""
    wanted = {
        key: more.pop(key) for key in ("options", "columns", "times", "values", "names", "units", "note") if key in more
    }
    return Kind(text(cells, between=";", **more).encode(), **wanted)


def valued(cells: list[str], values: list[float], pump: list[str] = PUMP, **more: Any) -> Kind:
    """A file with these cells in the column `temp`."""
    other = WANTED[:, 1:] if pump is PUMP else np.zeros((5, 0), np.float32)
    names = ("temp", "pump") if pump is PUMP else ("temp",)
    given = {"names": names, "units": ("",) * len(names), **more}
    return Kind(
        text(temp=cells, pump=pump).encode(), values=np.column_stack([np.array(values, np.float32), other]), **given
    )


def zipped(content: bytes) -> bytes:
    """A zip archive with the file in a folder."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("export/table.csv", content)
        archive.writestr("export/readme.md", "none")
    return buffer.getvalue()


def zstandard(content: bytes) -> bytes:
    """Packed by Zstandard."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def sheet(rows: list[list[Any]]) -> bytes:
    """A spreadsheet with an empty sheet and one with these rows; numbers, text, and dates as their days."""

    def cell(value: Any) -> str:
        if isinstance(value, datetime):
            return f'<c s="1"><v>{(value - EXCEL_START) / timedelta(days=1)!r}</v></c>'
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>' if value else "<c/>"
        return f"<c><v>{value!r}</v></c>"

    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    parts = {
        "[Content_Types].xml": '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types"/>',
        "_rels/.rels": f'<Relationships xmlns="{package}"><Relationship Id="r" Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="Notes" sheetId="1" r:id="r1"/><sheet name="Data" sheetId="2" r:id="r2"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}"><Relationship Id="r1" Type="{office}/worksheet" Target="worksheets/sheet1.xml"/><Relationship Id="r2" Type="{office}/worksheet" Target="worksheets/sheet2.xml"/><Relationship Id="s" Type="{office}/styles" Target="styles.xml"/></Relationships>',
        "xl/styles.xml": f'<styleSheet xmlns="{main}"><cellXfs><xf numFmtId="0"/><xf numFmtId="22"/></cellXfs></styleSheet>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData/></worksheet>',
        "xl/worksheets/sheet2.xml": f'<worksheet xmlns="{main}"><sheetData>{body}</sheetData></worksheet>',
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def folder(path: Path) -> None:
    """Two files with a part of the rows each."""
    path.mkdir()
    lines = text().splitlines(keepends=True)
    (path / "a.csv").write_text("".join(lines[:3]), encoding="utf-8")
    (path / "b.csv").write_text("".join([lines[0], *lines[3:]]), encoding="utf-8")


def pattern(path: Path) -> None:
    """The same, beside another file."""
    folder(path.parent)
    (path.parent / "other.txt").write_text("x\n1\n", encoding="utf-8")


def frame() -> pa.Table:
    """The series as an Arrow table."""
    return pa.table({"time": TIMES, "temp": pa.array(WANTED[:, 0], from_pandas=True), "pump": WANTED[:, 1]})


def structured(path: Path) -> None:
    """A structured array."""
    rows = np.empty(5, [("time", "datetime64[s]"), ("temp", "f4"), ("pump", "f4")])
    rows["time"], rows["temp"], rows["pump"] = TIMES, WANTED[:, 0], WANTED[:, 1]
    np.save(path, rows)


RECORDS = [
    {"time": time, "temp": float(temp) if temp else None, "pump": int(pump)}
    for time, temp, pump in zip(stamped(), TEMP, PUMP, strict=True)
]
PLAIN = text().encode()
COMMA = [cell.replace(".", ",") for cell in TEMP]
GROUPED = [*COMMA[:3], "1.022,25", "19"]

FILES: dict[str, Kind] = {
    "`,` between columns": Kind(PLAIN, note="`,` between columns"),
    "`;` between columns": Kind(text(between=";").encode(), note="`;` between columns"),
    "tab between columns": Kind(text(between="\t").encode(), "table.tsv", note="tab between columns"),
    "`\\|` between columns": Kind(text(between="|").encode(), "table.txt", note="`|` between columns"),
    "blanks between columns": Kind(
        text(stamped("%Y-%m-%dT%H:%M"), "   ", temp=["20.5", "NaN", "21.5", "1022.25", "19"]).encode(),
        "table.dat",
        note="blanks between columns",
    ),
    "decimal comma": Kind(text(between=";", temp=COMMA).encode(), note="decimal comma"),
    "thousands: `1.022,25`, `1,022.25`, `1 022,25`, `1'022.25`": Kind(
        text(between=";", temp=GROUPED).encode(), note="decimal comma, `.` between thousands"
    ),
    "byte order mark": Kind(b"\xef\xbb\xbf" + PLAIN),
    "lines that end as on Windows": Kind(PLAIN.replace(b"\n", b"\r\n")),
    "Latin-1 and Windows-1252": Kind(
        text(between=";", head="time,Außen,pump").encode("latin-1"), names=("Außen", "pump"), note="latin-1"
    ),
    "UTF-16, as Excel saves text": Kind(text(between="\t").encode("utf-16"), "table.txt", note="utf-16"),
    "another encoding, by `--encoding`": Kind(
        text(head="time,температура,pump").encode("cp1251"),
        options={"encoding": "cp1251"},
        names=("температура", "pump"),
    ),
    "`.gz`": Kind(gzip.compress(PLAIN), "table.csv.gz"),
    "`.zst`": Kind(zstandard(PLAIN), "table.csv.zst"),
    "`.xz`": Kind(lzma.compress(PLAIN), "table.csv.xz"),
    "`.bz2`": Kind(bz2.compress(PLAIN), "table.csv.bz2"),
    "`.zip`": Kind(zipped(PLAIN), "table.zip"),
    "a folder of files": Kind(folder, "logs", note="2 files"),
    "a pattern of files": Kind(pattern, "logs/*.csv", note="2 files"),
    "`.parquet`": Kind(lambda path: pq.write_table(frame(), path), "table.parquet", note="time stamps"),
    "`.feather`, `.arrow`": Kind(lambda path: pf.write_feather(frame(), path), "table.feather"),
    "`.xlsx`, `.xls`, `.ods`": Kind(
        sheet(
            [
                ["Station 4"],
                ["time", "temp", "pump"],
                ["", "°C", ""],
                *([start, float(t) if t else "", int(p)] for start, t, p in zip(STARTS, TEMP, PUMP, strict=True)),
            ]
        ),
        "table.xlsx",
        units=("°C", ""),
        note="sheet 'Data'",
    ),
    "`.json`: a list of objects": Kind(json.dumps(RECORDS).encode(), "table.json"),
    "`.json`: an object of lists": Kind(
        json.dumps({key: [row[key] for row in RECORDS] for key in RECORDS[0]}).encode(), "table.json"
    ),
    "`.jsonl`: an object in each line": Kind(
        "".join(
            json.dumps({"time": row["time"], "values": {"temp": row["temp"], "pump": row["pump"]}}) + "\n"
            for row in RECORDS
        ).encode(),
        "table.jsonl",
        names=("values.temp", "values.pump"),
    ),
    "`.npy`": Kind(structured, "table.npy"),
    "`.npz`": Kind(
        lambda path: np.savez(path, values=WANTED, times=TIMES, names=np.array(["temp", "pump"])), "table.npz"
    ),
    "comment lines": Kind(
        ("# logger 7\n# v1, 2, 3\n" + text()).replace("2024-03-01 00:20", "# restarted\n2024-03-01 00:20").encode(),
        note="names in line 3",
    ),
    "names in a comment": Kind(b"# made by hand\n# " + PLAIN),
    "a preamble": Kind(b"Logger: U12, v2, x\nSerial;1234\n\nStart: 2024-03-01 00:00\n" + PLAIN, note="names in line 5"),
    "a row of units": Kind(
        text(head="time,temp,pump\n,°C,1/min").encode(), units=("°C", "1/min"), note="units below the names"
    ),
    "units in the names": Kind(
        text(head="time,temp [°C],pump (1/min)").encode(),
        names=("temp [°C]", "pump (1/min)"),
        units=("°C", "1/min"),
    ),
    "units behind the numbers": Kind(
        text(temp=[f"{cell} °C" if cell else "" for cell in TEMP]).encode(), units=("°C", "")
    ),
    "a logger of Campbell Scientific": Kind(
        (
            '"TOA5","CR1000","1","2"\n"TIMESTAMP","temp","pump"\n"TS","Deg C",""\n"","Avg","Smp"\n' + text(head=None)
        ).encode(),
        "table.dat",
        units=("Deg C", ""),
        note="names in line 2",
    ),
    "a delimiter at the end of each row": Kind(text(tail=",").encode(), note="left out: c3 (empty)"),
    "no names in the first line": Kind(text(head=None).encode(), names=("c1", "c2"), note="no names in the first line"),
    "no names, by `--no-header`": Kind(
        text(head=None).encode(), options={"header": False}, names=("c1", "c2"), note="no names in the first line"
    ),
    "spaces around names and cells": Kind(text(head="time , temp,  pump").replace(",", ", ").encode()),
    "names in any script": Kind(text(head="时间,温度,насос").encode(), names=("温度", "насос")),
    "a name with a comma": Kind(text(head='time,"temp, °C",pump').encode(), names=("temp, °C", "pump")),
    "a name that occurs twice": Kind(
        text(head="time,temp,temp").encode(), names=("temp", "temp_2"), note="'temp' is called 'temp_2'"
    ),
    "an index without a name": Kind(text(head=",temp,pump").encode(), note="time = 'c0'"),
    "an index that counts the rows": Kind(
        (
            ",time,temp,pump\n" + "".join(f"{row},{line}\n" for row, line in enumerate(text(head=None).splitlines()))
        ).encode(),
        note="left out: c0 (counts the rows)",
    ),
    "empty rows at the end": Kind(text(between=";").encode() + b";;\n;;\n"),
    "`sep=;` in the first line": Kind(b"sep=;\n" + text(between=";").encode()),
    "exports that were joined": Kind(
        "".join(text().splitlines(keepends=True)[line] for line in (0, 1, 2, 0, 3, 4, 5)).encode(),
        note="1 line between the rows repeats",
    ),
    "annotated CSV of InfluxDB": Kind(
        (
            "#datatype,string,long,dateTime:RFC3339,double\n#group,false,false,false,false\n#default,_result,,,\n"
            ",result,table,_time,_value\n"
            + "".join(f",,0,{time},{pump}\n" for time, pump in zip(stamped("%Y-%m-%dT%H:%M:%SZ"), PUMP, strict=True))
        ).encode(),
        names=("_value",),
        values=WANTED[:, 1:],
        units=("",),
        note="left out",
    ),
    "a sensor of Home Assistant": Kind(
        (
            "entity_id,state,last_changed\n"
            + "".join(
                f"sensor.a,{temp or 'unavailable'},{time}\n"
                for time, temp in zip(stamped("%Y-%m-%dT%H:%M:%S.000Z"), TEMP, strict=True)
            )
        ).encode(),
        names=("state",),
        values=WANTED[:, :1],
        units=("",),
        note="left out: entity_id (text",
    ),
}

UNIX = [int(start.replace(tzinfo=UTC).timestamp()) for start in STARTS]
DAYS = TIMES[0].astype("datetime64[D]") + np.arange(5)
HOURS = TIMES[0].astype("datetime64[h]") + np.arange(5)
LONG = [STARTS[0] + timedelta(hours=8 * row) for row in range(5)]  # over midnight

WAYS_OF_TIMES: dict[str, Kind] = {
    "`2024-03-01 00:10:00`, `2024-03-01T00:10`, `2024/03/01 00:10`": timed(
        stamped("%Y/%m/%d %H:%M"), note="year/month/day"
    ),
    "`2024-03-01T00:10:00+01:00`, `...Z`: times are UTC": timed(
        stamped("%Y-%m-%dT%H:%M:%S+01:00"), times=TIMES - np.timedelta64(1, "h"), note="in UTC"
    ),
    "`01.03.2024 00:10`, `01/03/24`: a day above 12 tells the order": timed(
        [f"{day}.03.2024 00:00" for day in (11, 12, 13, 14, 15)],
        times=DAYS.astype("datetime64[ns]") + np.timedelta64(10, "D"),
        note="day.month.year",
    ),
    "`03/01/2024 00:10`: at midnight the wrong order would jump by a month": timed(
        [start.strftime("%m/%d/%Y %H:%M") for start in LONG],
        times=np.array(LONG, "datetime64[ns]"),
        note="month/day/year",
    ),
    "either order, by `--time-format day-first` or `month-first`": timed(
        stamped("%m/%d/%Y %H:%M"), options={"time_format": "month-first"}, note="month/day/year"
    ),
    "`03/13/2024 12:10 AM`": timed(
        [start.strftime("%m/13/%Y %I:%M:%S %p") for start in STARTS],
        times=TIMES + np.timedelta64(12, "D"),
        note="month/day/year with a 12-hour clock",
    ),
    "`01-Mar-2024 00:10`, `Mar 1, 2024`, `1. Mär 2024`": timed(stamped("%d-%b-%Y %H:%M"), note="day and month by name"),
    "`2024-03-01 24:00`: the end of the day": timed(
        [f"2024-03-01 {hour}:00" for hour in range(20, 25)],
        times=HOURS.astype("datetime64[ns]") + np.timedelta64(20, "h"),
    ),
    "Unix seconds": timed([str(second) for second in UNIX], note="Unix seconds"),
    "Unix milliseconds": timed([str(second * 10**3) for second in UNIX], note="Unix milliseconds"),
    "Unix microseconds": timed([str(second * 10**6) for second in UNIX], note="Unix microseconds"),
    "Unix nanoseconds": timed(
        [str(second * 10**9 + 1) for second in UNIX], times=TIMES + np.timedelta64(1, "ns"), note="Unix nanoseconds"
    ),
    "`20240301`": timed(
        [str(day).replace("-", "") for day in DAYS], times=DAYS.astype("datetime64[ns]"), note="digits of year"
    ),
    "`2024030100`": timed(
        [hour.item().strftime("%Y%m%d%H") for hour in HOURS],
        times=HOURS.astype("datetime64[ns]"),
        note="digits of year",
    ),
    "`20240301001000`": timed(stamped("%Y%m%d%H%M%S"), note="digits of year"),
    "`20240301T001000Z`": timed(stamped("%Y%m%dT%H%M%SZ"), note="in UTC"),
    "`45352.0069`: days of a spreadsheet": timed(
        [f"{45352 + row / 144:.4f}" for row in range(5)], note="days of a spreadsheet"
    ),
    "`45352`: days or seconds, by `--time-format excel`": timed(
        [str(45352 + row) for row in range(5)],
        options={"time_format": "excel"},
        times=DAYS.astype("datetime64[ns]"),
        note="days of a spreadsheet",
    ),
    "date and time of day in two columns": timed(
        stamped("%d.%m.2024;%H:%M".replace("%m", "13").replace("%d.13", "13.03")),
        head="Datum,Zeit,temp,pump",
        times=TIMES + np.timedelta64(12, "D"),
        note="'Datum' and 'Zeit' as day.month.year",
    ),
    "year, month, day and hour, by `--time year,month,day,hour`": timed(
        [hour.item().strftime("%Y;%-m;%-d;%-H") for hour in HOURS],
        head="year,month,day,hour,temp,pump",
        columns={"time": "year,month,day,hour"},
        times=HOURS.astype("datetime64[ns]"),
    ),
    "any other, by `--time-format '%H:%M am %d.%m.%y'`": timed(
        stamped("%H:%M am %d.%m.%y"), options={"time_format": "%H:%M am %d.%m.%y"}, columns={"time": "time"}
    ),
    "local times, by `--timezone Europe/Berlin`": timed(
        stamped(), options={"timezone": "Europe/Berlin"}, times=TIMES - np.timedelta64(1, "h")
    ),
    "the hour that a clock shows twice": timed(
        ["2024-10-27 01:30", "2024-10-27 02:00", "2024-10-27 02:30", "2024-10-27 02:00", "2024-10-27 02:30"],
        options={"timezone": "Europe/Berlin"},
        times=np.datetime64("2024-10-26T23:30", "ns") + np.arange(5) * np.timedelta64(30, "m"),
    ),
    "the hour that a clock leaves out": timed(
        ["2024-03-31 01:00", "2024-03-31 01:30", "2024-03-31 03:00", "2024-03-31 03:30", "2024-03-31 04:00"],
        options={"timezone": "Europe/Berlin"},
        times=np.datetime64("2024-03-31T00:00", "ns") + np.arange(5) * np.timedelta64(30, "m"),
    ),
    "the newest row first": timed(
        stamped()[::-1], temp=TEMP[::-1], pump=PUMP[::-1], note="from the newest to the oldest: sorted"
    ),
    "rows in any order": timed(
        [stamped()[row] for row in (0, 2, 1, 4, 3)],
        temp=[TEMP[row] for row in (0, 2, 1, 4, 3)],
        pump=[PUMP[row] for row in (0, 2, 1, 4, 3)],
        note="not in the order of time (2 went back): sorted",
    ),
    "rows without a time, by `--untimed drop`": timed(
        [*stamped()[:2], "N/A", "", stamped()[4]],
        options={"untimed": "drop"},
        times=TIMES[[0, 1, 4]],
        values=WANTED[[0, 1, 4]],
        note="2 rows had no time: left out",
    ),
    "rows of the same time, by `--duplicates first`": timed(
        [stamped()[row] for row in (0, 0, 1, 2, 3)],
        options={"duplicates": "first"},
        times=TIMES[:4],
        values=WANTED[[0, 2, 3, 4]],
    ),
    "rows of the same time, by `--duplicates last`": timed(
        [stamped()[row] for row in (0, 0, 1, 2, 3)], options={"duplicates": "last"}, times=TIMES[:4], values=WANTED[1:]
    ),
    "rows of the same time, by `--duplicates mean`": timed(
        [stamped()[row] for row in (0, 0, 1, 2, 3)],
        options={"duplicates": "mean"},
        times=TIMES[:4],
        values=np.array([[20.5, 1.5], *WANTED[2:].tolist()], np.float32),
    ),
    "one row for each period, by `--resample 30min --resample-by pump=sum`": timed(
        stamped(),
        options={"resample": "30min", "resample_by": "pump=sum"},
        times=TIMES[[0, 3]],
        values=np.array([[21, 6], [520.625, 9]], np.float32),
        note="2 of 5 rows",
    ),
}

VALUES: dict[str, Kind] = {
    "an empty cell, `NA`, `N/A`, `NaN`, `null`, `None`, `-`, `?`, `#N/A`": valued(
        ["20.5", "null", " NA ", "-", "19"], [20.5, NAN, NAN, NAN, 19]
    ),
    "`unknown`, `unavailable`, `No Data` among numbers": valued(
        ["20.5", "unavailable", "No Data", "?", "19"], [20.5, NAN, NAN, NAN, 19]
    ),
    "other words and numbers, by `--missing-values -999,9999,Bad`": valued(
        ["20.5", "-999.0", "9999", "Bad", "19"], [20.5, NAN, NAN, NAN, 19], options={"missing_values": "-999,9999,Bad"}
    ),
    "for one column, by `--missing-values temp=0`": valued(
        ["20.5", "0", "0.0", "7", "19"], [20.5, NAN, NAN, 7, 19], options={"missing_values": "temp=0"}
    ),
    "`true` and `false`, `yes` and `no`, `on` and `off`": valued(["on", "OFF", "Yes", "no", "TRUE"], [1, 0, 1, 0, 1]),
    "words, by `--categories temp`": valued(
        ["run", "idle", "", "fault", "run"],
        [2, 1, NAN, 0, 2],
        options={"categories": "temp"},
        note="fault = 0, idle = 1, run = 2",
    ),
    "other text": Kind(
        text(temp=["run", "idle", "", "fault", "run"]).encode(),
        names=("pump",),
        values=WANTED[:, 1:],
        units=("",),
        note="left out: temp (text",
    ),
    "a column with always the same value": valued(
        ["20.5", "7", "7", "7", "19"], [20.5, 7, 7, 7, 19], pump=["5"] * 5, note="left out: pump (always 5)"
    ),
    "an empty column": valued(["1", "2", "3", "5", "4"], [1, 2, 3, 5, 4], pump=[""] * 5, note="left out: pump (empty)"),
    "whole numbers that float32 cannot hold, by `--offset temp=123456789`": valued(
        [str(123456789 + row) for row in (0, 1, 3, 4, 9)], [0, 1, 3, 4, 9], options={"offset": "temp=123456789"}
    ),
}
