"""An asynchronous client. `serving.blocking` offers the same to programs without an event loop.

    async with Client("localhost:50051") as client:
        async with client.open("pump-7") as stream:
            prediction = await stream.step([21.5, 40.2, 3.0])
            print(prediction["forecast"])

A stream survives broken connections, crashes of the server and its moves: each timestep is applied once and each
prediction comes once, in order. What can go wrong nevertheless is drawn in `serving.client.errors`.
"""

from serving.client.backoff import Backoff
from serving.client.client import Client, Existence
from serving.client.errors import (
    AnswerLost,
    ClientError,
    DataLost,
    Diverged,
    InvalidTimestep,
    ModelFailed,
    ModelMismatch,
    ModelNotFound,
    Overloaded,
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
)
from serving.client.nouns import Model, Prediction, StreamInfo
from serving.client.stream import Stream, Values

__all__ = [
    "AnswerLost",
    "Backoff",
    "Client",
    "ClientError",
    "DataLost",
    "Diverged",
    "Existence",
    "InvalidTimestep",
    "Model",
    "ModelFailed",
    "ModelMismatch",
    "ModelNotFound",
    "Overloaded",
    "Prediction",
    "ServerUnavailable",
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
    "TooManyStreams",
    "Unauthenticated",
    "Values",
]
