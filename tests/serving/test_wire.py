"""The bytes of timesteps and predictions, compared with protobuf's own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidegate.core.errors import InvalidField
from tidegate.core.input_layout import InputLayout
from tidegate.core.spec import STEP_MAX, Input, Prediction, Timestep
from tidegate.rpc import wire
from tidegate.rpc.timestep_reader import timestep_reader
from tidegate.v1 import tidegate_pb2 as pb

# Every length of a varint, and both sides of where it grows.
STEPS = st.sampled_from([edge + off for bits in range(0, 63, 7) for edge in [1 << bits] for off in (-1, 0, 1)]) | (
    st.integers(0, 2**64 - 1)
)
# The number of values is checked elsewhere.
ONE_INPUT = InputLayout([Input("x", np.dtype(np.float32), (1,))])
# One byte for the length of the values, two bytes for it, two for that of the message only, three.
FEATURES = st.sampled_from([1, 8, 30, 31, 32, 64, 5000])


def request(step: int, values: bytes) -> bytes:
    """A timestep as protobuf encodes it."""
    return pb.PredictRequest(timestep=pb.Timestep(step=step, values=values)).SerializeToString()


def as_protobuf_reads(message: bytes) -> Timestep | None:
    """The timestep in a message."""
    read = wire.decode_request(message)
    return wire.decode_timestep(read.timestep, ONE_INPUT) if read.HasField("timestep") else None


@given(STEPS, FEATURES)
def test_a_timestep_is_read_as_protobuf_reads_it(step: int, features: int) -> None:
    """Up to 268 million without its help, beyond that with it. The result is the same."""
    values = np.arange(features, dtype="<f4").tobytes()
    message = request(step, values)
    read = timestep_reader(features).read(message)
    assert read == (Timestep(step, values) if step < 2**28 else None)
    assert as_protobuf_reads(message) == Timestep(step, values)


@given(st.integers(0, 2**30), FEATURES, st.lists(st.tuples(st.integers(0, 19), st.integers(0, 255)), max_size=4))
def test_what_was_not_written_by_protobuf_is_not_read_otherwise(
    step: int, features: int, changes: list[tuple[int, int]]
) -> None:
    """For any bytes: a timestep that is decoded without protobuf is the one that protobuf decodes."""
    message = bytearray(request(step, bytes(4 * features)))
    for place, byte in changes:
        message[place % len(message)] = byte
    read = timestep_reader(features).read(bytes(message))
    assert read is None or read == as_protobuf_reads(bytes(message))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        request(7, bytes(12)),
        request(7, bytes(16)) + request(8, bytes(16)),
        b"\x0a\x14\x12\x10" + bytes(16) + b"\x08\x07",  # the values first
        b"\x0a\x15\x08\x87\x00\x12\x10" + bytes(16),  # a varint with a superfluous byte
        pb.PredictRequest(open=pb.Open(stream_id="a")).SerializeToString(),
        pb.PredictRequest(close=pb.Close()).SerializeToString(),
    ],
)
def test_what_looks_otherwise_is_left_to_protobuf(message: bytes) -> None:
    """Other kinds, widths and encodings: none is refused, and none is taken for another."""
    read = timestep_reader(4).read(message)
    assert read is None or read == as_protobuf_reads(message)


def test_bytes_that_are_no_request_are_refused() -> None:
    """The message says what was expected."""
    with pytest.raises(InvalidField, match="request: got bytes that are not a PredictRequest"):
        wire.decode_request(b"\xff")


@given(
    st.integers(0, STEP_MAX),
    st.lists(st.binary(max_size=20) | st.sampled_from([bytes(size) for size in (127, 128, 16383, 16384)]), max_size=3),
    st.integers(0, STEP_MAX),
    st.booleans(),
)
def test_a_prediction_is_written_as_protobuf_writes_it(
    step: int, outputs: list[bytes], durable_step: int, duplicate: bool
) -> None:
    """Byte for byte, whatever it contains."""
    expected = pb.Prediction(step=step, outputs=outputs, durable_step=durable_step, duplicate=duplicate)
    written = wire.encode_prediction(Prediction(step, tuple(outputs), duplicate), durable_step)
    assert written == pb.PredictResponse(prediction=expected).SerializeToString()
