"""The encoding of requests, compared with protobuf."""

import numpy as np
import pytest

from tidegate.bench.encoding import APPLIED, PredictBlocksEncoding, PredictEncoding, UnexpectedResponse, encode_rows
from tidegate.bench.http2 import length_prefixed
from tidegate.bench.send_queue import Answer, Refusal
from tidegate.v1 import tidegate_pb2 as pb


def opened(next_step: int = 1) -> bytes:
    """Returns the answer of a server to an open."""
    return pb.PredictResponse(opened=pb.Opened(next_step=next_step, answers_remembered=32)).SerializeToString()


@pytest.mark.parametrize("features", [1, 8, 30, 40, 5000])
@pytest.mark.parametrize("step", [1, 127, 128, 2**21, 2**40])
def test_a_timestep_is_encoded_as_by_protobuf(step: int, features: int) -> None:
    """Byte for byte, for step numbers and values of any length."""
    values = np.arange(2 * features, dtype=np.float32).reshape(2, features)
    encoding = PredictEncoding(pb.Open(), encode_rows(values))
    encoding.decode_opened(opened(step))
    timestep = pb.Timestep(step=step, values=values[1].tobytes())
    assert encoding.request(1, {}) == length_prefixed(pb.PredictRequest(timestep=timestep).SerializeToString())


def test_a_known_stream_continues_with_its_number() -> None:
    """Messages count from 1, timesteps from the state of the stream."""
    encoding = PredictEncoding(pb.Open(), encode_rows(np.zeros((3, 1), np.float32)))
    encoding.decode_opened(opened(41))
    assert pb.PredictRequest.FromString(encoding.request(2, {})[5:]).timestep.step == 42
    answer = pb.PredictResponse(prediction=pb.Prediction(step=42))
    assert encoding.decode_answer(answer.SerializeToString(), 2) is APPLIED
    with pytest.raises(UnexpectedResponse, match="timestep 42, expected one to timestep 43"):
        encoding.decode_answer(answer.SerializeToString(), 3)


def test_a_duplicate_is_unexpected() -> None:
    """A duplicate costs the server nothing and must not be counted."""
    encoding = PredictEncoding(pb.Open(), encode_rows(np.zeros((1, 1), np.float32)))
    encoding.decode_opened(opened())
    answer = pb.PredictResponse(prediction=pb.Prediction(step=1, duplicate=True)).SerializeToString()
    with pytest.raises(UnexpectedResponse, match="duplicate"):
        encoding.decode_answer(answer, 1)


def test_each_row_of_a_block_has_its_own_number() -> None:
    """From the state of the stream, less what the row is behind. Refused streams are left out."""
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    encoding = PredictBlocksEncoding(pb.OpenStreams(stream_ids=["a", "b", "c"]), values)
    errors = [pb.RowError(row=1, error=pb.Error(reason=pb.Error.REASON_TOO_MANY_STREAMS))]
    answer = pb.OpenedStreams(handles=[7, 0, 9], next_steps=[1, 0, 100], answers_remembered=8, errors=errors)
    assert encoding.decode_opened(pb.PredictBlocksResponse(opened=answer).SerializeToString()) == {
        "TOO_MANY_STREAMS": 1
    }
    block = pb.PredictBlocksRequest.FromString(encoding.request(3, {1: 2})[5:]).block
    assert np.frombuffer(block.handles, "<u4").tolist() == [7, 9]
    assert np.frombuffer(block.steps, "<u8").tolist() == [3, 100]
    assert np.frombuffer(block.values, "<f4").reshape(2, 2).tolist() == values[[3, 4]].tolist()
    refused = pb.PredictedBlock(block=3, steps=bytes(16), errors=[pb.RowError(row=1, error=errors[0].error)])
    answer = encoding.decode_answer(pb.PredictBlocksResponse(block=refused).SerializeToString(), 3)
    assert answer == Answer(rows={1: Refusal("TOO_MANY_STREAMS")})
