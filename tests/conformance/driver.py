"""Our own client as a program that the conformance server can judge: python -m tests.conformance.driver ADDRESS STREAM_ID."""

import asyncio
import sys
from collections.abc import AsyncIterator

import numpy as np

from serving.client import AnswerLost, Client, ClientError, Prediction, Stream, TimestepRefused


async def lines() -> AsyncIterator[list[float]]:
    """The timesteps on stdin."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        yield [float(word) for word in line.split(",")]


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
                prediction = await step
            except (TimestepRefused, AnswerLost) as error:
                print("refused", error.reason, flush=True)
            else:
                packed = b"".join(np.ascontiguousarray(part).tobytes() for part in prediction.values())
                print(prediction.step, packed.hex(), flush=True)
        await sending


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ClientError as error:
        print(f"{error.reason}: {error}", file=sys.stderr)
        sys.exit(1)
