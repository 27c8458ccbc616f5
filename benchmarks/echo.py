"""The echo: the cost of grpc.aio, uvloop and protobuf alone. It reads each request and answers as many bytes as Tidegate.

`predict.py` runs it. It prints a ready line, as `server_process.py` expects.
"""

from typing import Any

import grpc
import uvloop
from model import OUTPUTS

from tidegate.v1 import tidegate_pb2 as pb
from tidegate.v1 import tidegate_pb2_grpc as pb_grpc

ANSWER = bytes(range(4 * OUTPUTS))


class Echo(pb_grpc.TidegateServiceServicer):
    """Keeps no state and computes nothing."""

    async def Predict(self, _: object, context: Any) -> None:  # noqa: N802 - named by the protocol
        """Answers each timestep with the same bytes."""
        await context.read()
        await context.write(pb.PredictResponse(opened=pb.Opened(next_step=1)))
        while (request := await context.read()) is not grpc.aio.EOF:
            if not request.HasField("timestep"):
                await context.write(pb.PredictResponse(closed=pb.Closed()))
                return
            prediction = pb.Prediction(step=request.timestep.step, outputs=(ANSWER,))
            await context.write(pb.PredictResponse(prediction=prediction))


async def main() -> None:
    """Serves until it is killed."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    pb_grpc.add_TidegateServiceServicer_to_server(Echo(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready: grpc=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(main())
