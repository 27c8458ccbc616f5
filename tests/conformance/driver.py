"""Tidegate's own client as a program for the conformance server.

python -m tests.conformance.driver [one] ADDRESS STREAM_ID: streams over one call, or with `one` calls PredictOne.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np

from tidegate.client import AnswerLost, Client, ClientError, Prediction, StepGap, Stream, TimestepRefused


async def lines() -> AsyncIterator[list[float]]:
    """Yields the timesteps on stdin."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield [float(word) for word in line.split(",")]


def show(outcome: Prediction | TimestepRefused | AnswerLost) -> None:
    """Prints the outcome of a timestep."""
    if isinstance(outcome, Prediction):
        packed = b"".join(np.ascontiguousarray(part).tobytes() for part in outcome.values())
        print(outcome.step, packed.hex(), flush=True)
    else:
        print("refused", outcome.reason, flush=True)


async def main(address: str, stream_id: str) -> None:
    """Sends all timesteps, some of them ahead, and prints the outcomes in order."""
    async with Client(address) as client, client.open(stream_id) as stream:
        waiting: asyncio.Queue[asyncio.Task[Prediction] | None] = asyncio.Queue(2 * stream.window)

        async def send(to: Stream) -> None:
            async for row in lines():
                await waiting.put(asyncio.create_task(to.step(row)))
            await waiting.put(None)

        sending = asyncio.create_task(send(stream))
        while (step := await waiting.get()) is not None:
            try:
                show(await step)
            except (TimestepRefused, AnswerLost) as error:
                show(error)
        await sending


async def main_one(address: str, stream_id: str) -> None:
    """Sends one timestep after another. The number of a refused one is used for the next."""
    step = 1
    async with Client(address) as client:
        async for row in lines():
            try:
                show(await client.predict_one(stream_id, row, step=step))
                step += 1
            except StepGap:
                raise  # the server has lost timesteps: the number cannot be used again
            except TimestepRefused as error:
                show(error)


def run(arguments: list[str]) -> None:
    """Runs what the arguments ask for."""
    try:
        asyncio.run(main_one(*arguments[1:]) if arguments[0] == "one" else main(*arguments))
    except ClientError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(sys.argv[1:])
