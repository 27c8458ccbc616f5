"""Level 2: a simple stream. Timesteps are numbered and stored before they are answered. One is in flight at a time.

python simple.py ADDRESS STREAM_ID [MODEL]
"""

import sys
import threading
import time
import uuid
from contextlib import suppress
from queue import SimpleQueue

import grpc
from common import (
    CALL_S,
    CHANNEL,
    ENVELOPE_BYTES,
    Ending,
    Refused,
    Retry,
    StreamLost,
    ending_of,
    ending_of_timestep,
    pack,
    pb,
    pb_grpc,
    show,
)


class SimpleStream:
    """An open stream; `next_step` is the number of the next timestep."""

    def __init__(self, address: str, stream_id: str, model: str = "") -> None:
        self._stub = pb_grpc.TidegateServiceStub(grpc.insecure_channel(address, CHANNEL))
        self._open_request = pb.Open(
            stream_id=stream_id, model=model, durability=pb.DURABILITY_SYNC, owner=uuid.uuid4().hex, resume_from=0
        )
        self._fingerprint = ""
        self._bytes_max = 4 << 20  # the largest request; the server may report another limit
        self._call = None  # an iterator over responses, while a call is open
        self._requests: SimpleQueue[pb.PredictRequest | None] = SimpleQueue()
        self._retry = Retry()
        self.next_step = 0  # set by the first open
        self._request(None, "opened")

    def step(self, values: bytes) -> pb.Prediction:
        """The prediction for the next timestep. Raises Refused when it was not applied, StreamLost when a person must decide."""
        if len(values) > self._bytes_max - ENVELOPE_BYTES:
            raise Refused("TOO_LARGE", f"{len(values)} bytes; the server reads {self._bytes_max}")
        timestep = pb.Timestep(step=self.next_step, values=values)
        prediction = self._request(pb.PredictRequest(timestep=timestep), "prediction").prediction
        if not prediction.outputs:
            raise StreamLost(
                "ANSWER_LOST", f"timestep {self.next_step} was applied, but the server no longer has its answer"
            )
        self.next_step += 1
        self._open_request.resume_from = self.next_step  # earlier timesteps are stored
        return prediction

    def close(self) -> None:
        """Closes the stream. It can be opened again."""
        self._request(pb.PredictRequest(close=pb.Close()), "closed")
        self._requests.put(None)  # half-close
        with suppress(grpc.RpcError):  # the stream is closed, no matter how the call ends
            for _ in self._call:
                pass
        # A call takes its lock when it is deleted. Python must not delete it during exit: a gRPC thread that was stopped while it
        # held the lock never releases it.
        self._call = None

    def _request(self, request: pb.PredictRequest | None, kind: str) -> pb.PredictResponse:
        """The response to a request, which is sent again on a new call after a disconnect. Without a request it only opens the stream."""
        self._retry.progress()
        while True:
            try:
                response = self._open_call() if self._call is None else None
                if request is not None:
                    self._requests.put(request)
                    response = self._read_answer(kind)
                if response.HasField(kind):
                    return response
                ending, ended = ending_of_timestep(response.error), False
            except grpc.RpcError as error:
                # The error is the call. Its traceback would keep the call and this stream alive.
                ending, ended = ending_of(error.with_traceback(None)), True
            except StopIteration:
                ending, ended = Ending("OK", "REOPEN", "the server ended the call"), True
            if ending.action == "DROP":
                raise Refused(ending.reason, ending.message)
            if ended or ending.action != "RETRY":
                self._end_call()
            time.sleep(self._retry.delay(ending))

    def _open_call(self) -> pb.PredictResponse:
        """Opens the stream on a new call. Sends nothing else before the answer."""
        self._requests = SimpleQueue()
        self._call = self._stub.Predict(iter(self._requests.get, None))
        self._requests.put(pb.PredictRequest(open=self._open_request))
        timer = threading.Timer(CALL_S, self._call.cancel)
        timer.start()
        try:
            response = self._read_answer("opened")
        finally:
            timer.cancel()
            timer.join()  # it holds the call
        opened = response.opened
        if self._fingerprint not in ("", opened.model.fingerprint):
            self._end_call()
            raise StreamLost("MODEL_MISMATCH", "the weights differ from those under which the stream began")
        if not self._fingerprint:
            self.next_step = self._open_request.resume_from = opened.next_step
            self._open_request.stream_id, self._fingerprint = opened.stream_id, opened.model.fingerprint
            self._open_request.model, self._open_request.version = opened.model.name, opened.model.version
        self._bytes_max = opened.message_bytes_max or self._bytes_max
        self._retry.opened()
        return response

    def _end_call(self) -> None:
        """Ends the call. The next request opens another one."""
        self._requests.put(None)
        self._call.cancel()
        self._call = None

    def _read_answer(self, kind: str) -> pb.PredictResponse:
        """The next answer. This level ignores the notifications of the server."""
        while True:
            response = next(self._call)
            if response.WhichOneof("kind") in (kind, "error"):
                return response


def main() -> None:
    """Sends each line of stdin as the next timestep."""
    stream = SimpleStream(*sys.argv[1:4])
    for line in sys.stdin:
        try:
            show(stream.step(pack(line)))
        except Refused as error:
            print("refused", error.reason, flush=True)
    stream.close()


if __name__ == "__main__":
    try:
        main()
    except StreamLost as error:
        sys.exit(str(error))
