"""A naive server: one thread per call, `session.run` for each message, the state in a local variable.

It has none of Tidegate's guarantees: no step numbers, no resume, no limits. `predict.py` runs it with the path of the
model and the number of threads. It prints a ready line, as `server_process.py` expects.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import onnxruntime
from model import FEATURES, HIDDEN

from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc


class Naive(pb_grpc.TidegateServiceServicer):
    """Runs the graph for one message at a time."""

    def __init__(self, path: str) -> None:
        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        # As in Tidegate. With a model this small, more threads only slow each other down.
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options)

    def Predict(self, requests: Iterator[pb.PredictRequest], _: Any) -> Iterator[pb.PredictResponse]:  # noqa: N802 - named by the protocol
        """Runs one stream from zero state."""
        next(requests)
        yield pb.PredictResponse(opened=pb.Opened(next_step=1))
        h = np.zeros((1, 1, HIDDEN), np.float32)
        c = np.zeros((1, 1, HIDDEN), np.float32)
        for request in requests:
            if not request.HasField("timestep"):
                yield pb.PredictResponse(closed=pb.Closed())
                return
            x = np.frombuffer(request.timestep.values, np.float32).reshape(1, FEATURES)
            y, h, c = self._session.run(["y", "h_next", "c_next"], {"x": x, "h": h, "c": c})
            prediction = pb.Prediction(step=request.timestep.step, outputs=(y.tobytes(),))
            yield pb.PredictResponse(prediction=prediction)


def main(path: str, threads: int) -> None:
    """Serves until it is killed."""
    server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(Naive(path), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"ready: grpc=127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
