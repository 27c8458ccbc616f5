"""The load of `PredictBlocks`: gateways in a closed loop, some blocks of each under way. See `load.py` for how a window goes."""

import asyncio
import json
import sys
import time
from dataclasses import replace

import uvloop
from gateway import Gateway, channel
from load import Load, Window
from side import Side


class BlockLoad(Load):
    """The client process of a run.

    Args:
        calls: how many calls at a time, each on a connection of its own, with streams of its own.
        ahead: how many blocks of a call are under way.

    """

    def __init__(self, calls: int = 1, ahead: int = 2) -> None:
        super().__init__(1, calls, 0.0)
        self._ahead = ahead

    def command(self) -> list[str]:
        """What the process runs."""
        return [__file__, str(self._ahead)]

    def run(self, side: Side, rows: int, warmup_seconds: float, seconds: float) -> Window:
        """Sends blocks of so many rows, each the next timestep of as many streams; latencies are those of blocks."""
        window = super().run(side, rows, warmup_seconds, seconds)
        return replace(window, steps=window.steps * rows)


# What follows runs in the client process.


async def run_gateway(gateway: Gateway, ahead: int, begin: float, end: float) -> list[float]:
    """Sends blocks until `end`; gives the latencies of those answered from `begin` on."""
    latencies_us = []
    under_way = 0
    while under_way < ahead:
        await gateway.send()
        under_way += 1
    while under_way:
        sent = await gateway.receive()
        under_way -= 1
        now = time.monotonic()
        if now < end:
            if now >= begin:
                latencies_us.append(round((now - sent) * 1e6, 1))
            await gateway.send()
            under_way += 1
    return latencies_us


async def run_window(address: str, rows: int, calls: int, ahead: int) -> list[float]:
    """Runs one window; gives the latencies of the blocks that were answered within it."""
    channels = [channel(address) for _ in range(calls)]
    try:
        gateways = await asyncio.gather(*(Gateway.open(one, [""] * rows) for one in channels))
        print("{}", flush=True)
        told = json.loads(await asyncio.to_thread(sys.stdin.readline))
        latencies = await asyncio.gather(
            *(run_gateway(gateway, ahead, told["begin"], told["end"]) for gateway in gateways)
        )
        await asyncio.gather(*(gateway.forget() for gateway in gateways))
    finally:
        for one in channels:
            await one.close()
    return [latency for some in latencies for latency in some]


async def serve_parent(ahead: int) -> None:
    """Runs windows as told on stdin, until it is closed."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        ask = json.loads(line)
        latencies_us = await run_window(ask["address"], ask["streams"], ask["connections"], ahead)
        print(json.dumps({"latencies_us": latencies_us}), flush=True)


if __name__ == "__main__":
    uvloop.run(serve_parent(int(sys.argv[1])))
