"""An asynchronous client. `tidegate.blocking` offers the same to programs without an event loop.

    async with Client("localhost:50051") as client:
        async with client.open("pump-7") as stream:
            prediction = await stream.step([21.5, 40.2, 3.0])
            print(prediction["forecast"])

A stream survives disconnects, crashes of the server and moves to another one: each timestep is applied once, and each prediction
comes once, in order. A gateway has thousands of streams on one call, and uses arrays with one row per stream:

        async with client.block([f"pump-{number}" for number in range(1000)]) as block:
            answer = await block.step(x)  # (1000, features)
            print(answer["forecast"].shape, answer.errors)

A program that keeps no call open sends one timestep at a time, with its number:

        prediction = await client.predict_one("pump-7", [21.5, 40.2, 3.0], step=17)

A model with other inputs than one vector of float32 takes them by name, with each timestep or once for a stream:

        async with client.open("talk-1", inputs={"speaker": vector}) as stream:
            prediction = await stream.step({"x": samples, "rate": 16000})

A client belongs to the process that made it. A forked process makes its own; `multiprocessing` forks by default on Linux before
Python 3.14. Using the parent's client raises `WrongProcess`.

`tidegate.client.errors` lists all errors.
"""

import os

# With gRPC's fork handlers, one in five children of a process with an asynchronous channel crashes, even when it does not use gRPC.
# The variable is read while grpc is loaded. A program that needs the handlers can set it.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tidegate.client.block import Block
from tidegate.client.client import Client, Existence
from tidegate.client.errors import (
    AnswerLost,
    ClientError,
    DataLost,
    Diverged,
    InvalidArgument,
    InvalidTimestep,
    ModelFailed,
    ModelMismatch,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    ServerUnavailable,
    StepGap,
    StoreUnavailable,
    StreamExists,
    StreamExpired,
    StreamLost,
    StreamNotFound,
    StreamRefused,
    TakenOver,
    TimestepRefused,
    TooManyStreams,
    Unauthenticated,
    ValuesDiffer,
    WrongOrder,
    WrongProcess,
)
from tidegate.client.inputs import Some, Timesteps, Values
from tidegate.client.retry import Backoff
from tidegate.client.stream import Stream
from tidegate.client.types import DefaultChange, Model, ModelChange, Prediction, Predictions, StreamInfo, Version

__all__ = [
    "AnswerLost",
    "Backoff",
    "Block",
    "Client",
    "ClientError",
    "DataLost",
    "DefaultChange",
    "Diverged",
    "Existence",
    "InvalidArgument",
    "InvalidTimestep",
    "Model",
    "ModelChange",
    "ModelFailed",
    "ModelMismatch",
    "ModelNotFound",
    "Overloaded",
    "PermissionDenied",
    "Prediction",
    "Predictions",
    "ServerUnavailable",
    "Some",
    "StepGap",
    "StoreUnavailable",
    "Stream",
    "StreamExists",
    "StreamExpired",
    "StreamInfo",
    "StreamLost",
    "StreamNotFound",
    "StreamRefused",
    "TakenOver",
    "TimestepRefused",
    "Timesteps",
    "TooManyStreams",
    "Unauthenticated",
    "Values",
    "ValuesDiffer",
    "Version",
    "WrongOrder",
    "WrongProcess",
]
