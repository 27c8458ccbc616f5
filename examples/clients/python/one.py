"""Level 1: one call a timestep. A timestep is sent with its number until it is answered. OK means that it was applied and stored, once.

python one.py ADDRESS STREAM_ID [MODEL] [--step N]
"""

import argparse
import sys
import time

import grpc
from common import CALL_S, CHANNEL, Refused, Retry, StreamLost, ending_of, pack, pb, pb_grpc, show


class OneCall:
    """Sends single timesteps of one stream. The caller keeps the number of the next one, together with the data."""

    def __init__(self, address: str, stream_id: str, model: str = "") -> None:
        self._stub = pb_grpc.TidegateServiceStub(grpc.insecure_channel(address, CHANNEL))
        self._stream_id = stream_id
        self._model = model
        self._retry = Retry()

    def predict(self, step: int, values: bytes) -> pb.Prediction:
        """The prediction for a timestep. Raises Refused when it was not applied, StreamLost when a person must decide."""
        request = pb.PredictOneRequest(stream_id=self._stream_id, model=self._model, step=step, values=values)
        self._retry.progress()
        while True:
            try:
                prediction = self._stub.PredictOne(request, timeout=CALL_S).prediction
            except grpc.RpcError as error:
                ending = ending_of(error)
                if ending.action == "DROP":
                    raise Refused(ending.reason, ending.message) from None
                time.sleep(self._retry.delay(ending))
                continue
            if not prediction.outputs:
                raise StreamLost(
                    "ANSWER_LOST", f"timestep {step} was applied long ago, and the server no longer has its answer"
                )
            return prediction


def main() -> None:
    """Sends each line of stdin as the next timestep."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("stream_id")
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--step", type=int, default=1)
    options = parser.parse_args()
    client, step = OneCall(options.address, options.stream_id, options.model), options.step
    for line in sys.stdin:
        try:
            show(client.predict(step, pack(line)))
            step += 1
        except Refused as error:  # the next timestep takes its number
            print("refused", error.reason, flush=True)


if __name__ == "__main__":
    try:
        main()
    except StreamLost as error:
        sys.exit(str(error))
