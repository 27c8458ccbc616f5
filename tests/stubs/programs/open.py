# ruff: noqa: INP001, T201  # a program that prints, and no module
"""Builds a client and the message that opens a stream; prints the message's bytes."""

import grpc

from tidegate.v1 import tidegate_pb2, tidegate_pb2_grpc

channel = grpc.insecure_channel("localhost:50051")
client = tidegate_pb2_grpc.TidegateServiceStub(channel)
request = tidegate_pb2.PredictRequest(
    open=tidegate_pb2.Open(
        stream_id="pump-7", existence=tidegate_pb2.EXISTENCE_MUST_BE_NEW, resume_from=2**63 - 2, kept_max=1000
    )
)
assert callable(client.Predict)
print(request.SerializeToString().hex())
channel.close()
