"""Our own client as a program that the conformance server can judge.

python -m tests.conformance.driver [one] ADDRESS STREAM_ID: over one call, or with `one` a question for each timestep.
"""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np

from serving.client import AnswerLost, Client, ClientError, Prediction, StepGap, Stream, TimestepRefused


async def lines() -> AsyncIterator[list[float]]:
    """The timesteps on stdin."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield [float(word) for word in line.split(",")]


def show(told: Prediction | TimestepRefused | AnswerLost) -> None:
    """Writes what became of a timestep."""
    if isinstance(told, Prediction):
        packed = b"".join(np.ascontiguousarray(part).tobytes() for part in told.values())
        print(told.step, packed.hex(), flush=True)
    else:
        print("refused", told.reason, flush=True)


async def main(address: str, stream_id: str) -> None:
    """Sends all that comes, some of it ahead, and writes what comes back, in order."""
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
    """Asks for one timestep after the other; the number of one that was refused goes to the next."""
    step = 1
    async with Client(address) as client:
        async for row in lines():
            try:
                show(await client.predict_one(stream_id, row, step=step))
                step += 1
            except StepGap:
                raise  # the server has lost timesteps: no other can take the number
            except TimestepRefused as error:
                show(error)


def run(arguments: list[str]) -> None:
    """Runs what the command line asks for."""
    try:
        asyncio.run(main_one(*arguments[1:]) if arguments[0] == "one" else main(*arguments))
    except ClientError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(sys.argv[1:])
