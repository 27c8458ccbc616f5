"""Level 2: a simple stream. Timesteps are numbered, stored before they are answered, and one is in flight.

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
        self._open = pb.Open(
            stream_id=stream_id, model=model, durability=pb.DURABILITY_SYNC, owner=uuid.uuid4().hex, resume_from=0
        )
        self._fingerprint = ""
        self._bytes_max = 4 << 20  # the largest request that the server reads; it may say otherwise
        self._call = None  # an iterator over responses, while a call is open
        self._requests: SimpleQueue[pb.PredictRequest | None] = SimpleQueue()
        self._retry = Retry()
        self.next_step = 0  # known once it is open
        self._ask(None, "opened")

    def step(self, values: bytes) -> pb.Prediction:
        """The prediction for the next timestep; Refused when it was not applied, StreamLost when somebody has to look."""
        if len(values) > self._bytes_max - ENVELOPE_BYTES:
            raise Refused("TOO_LARGE", f"{len(values)} bytes; the server reads {self._bytes_max}")
        timestep = pb.Timestep(step=self.next_step, values=values)
        prediction = self._ask(pb.PredictRequest(timestep=timestep), "prediction").prediction
        if not prediction.outputs:
            raise StreamLost("ANSWER_LOST", f"timestep {self.next_step} was applied, and its answer is forgotten")
        self.next_step += 1
        self._open.resume_from = self.next_step  # all before is stored
        return prediction

    def close(self) -> None:
        """Ends the stream; it can be opened again."""
        self._ask(pb.PredictRequest(close=pb.Close()), "closed")
        self._requests.put(None)  # half-close: nothing follows
        with suppress(grpc.RpcError):  # the stream is closed, however the call ends
            for _ in self._call:
                pass
        # A call takes its lock when it is deleted. Python must not delete it while it exits: a thread of gRPC that was stopped
        # with the lock in its hands never gives it back.
        self._call = None

    def _ask(self, request: pb.PredictRequest | None, wanted: str) -> pb.PredictResponse:
        """The response to a request, which is sent again on a new call after each break; without one, only opens."""
        self._retry.progress()
        while True:
            try:
                response = self._begin() if self._call is None else None
                if request is not None:
                    self._requests.put(request)
                    response = self._read(wanted)
                if response.HasField(wanted):
                    return response
                ending, over = ending_of_timestep(response.error), False
            except grpc.RpcError as error:
                # The error is the call. Its traceback would keep the call and this stream alive.
                ending, over = ending_of(error.with_traceback(None)), True
            except StopIteration:
                ending, over = Ending("OK", "REOPEN", "the server ended the call"), True
            if ending.action == "DROP":
                raise Refused(ending.reason, ending.message)
            if over or ending.action != "RETRY":
                self._leave()
            time.sleep(self._retry.after(ending))

    def _begin(self) -> pb.PredictResponse:
        """Opens the stream on a new call; nothing else is sent before it is open."""
        self._requests = SimpleQueue()
        self._call = self._stub.Predict(iter(self._requests.get, None))
        self._requests.put(pb.PredictRequest(open=self._open))
        limit = threading.Timer(CALL_S, self._call.cancel)
        limit.start()
        try:
            response = self._read("opened")
        finally:
            limit.cancel()
            limit.join()  # it holds the call
        opened = response.opened
        if self._fingerprint not in ("", opened.model.fingerprint):
            self._leave()
            raise StreamLost("MODEL_MISMATCH", "the server has other weights than the stream began with")
        if not self._fingerprint:
            self.next_step = self._open.resume_from = opened.next_step
            self._open.stream_id, self._fingerprint = opened.stream_id, opened.model.fingerprint
            self._open.model, self._open.version = opened.model.name, opened.model.version
        self._bytes_max = opened.message_bytes_max or self._bytes_max
        self._retry.opened()
        return response

    def _leave(self) -> None:
        """Ends the call; the next request opens another."""
        self._requests.put(None)
        self._call.cancel()
        self._call = None

    def _read(self, wanted: str) -> pb.PredictResponse:
        """The next response that answers something; what the server tells beside that is not for this level."""
        while True:
            response = next(self._call)
            if response.WhichOneof("kind") in (wanted, "error"):
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
