"""Timesteps for a batcher, and their answers."""

import asyncio
from typing import Any

import numpy as np

from tests.calls import pack
from tests.timeouts import TIMEOUT_S
from tidegate.core.spec import Prediction, Timestep


def t(value: float, step: int = 0) -> Timestep:
    """A timestep for models with one feature."""
    return Timestep(step, pack(value))


def value(prediction: Prediction) -> float:
    """Its first output."""
    return float(np.frombuffer(prediction.outputs[0], np.float32)[0])


async def soon(*futures: "asyncio.Future[Any]") -> list[Any]:
    """The results of futures, including errors. Fails when one never ends."""
    async with asyncio.timeout(TIMEOUT_S):
        return await asyncio.gather(*futures, return_exceptions=True)
