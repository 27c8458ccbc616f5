"""A client in a process that was forked, and a client whose server is down for long."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.root import ROOT
from tests.servers import address_of, run_server, serve
from tests.timeouts import TIMEOUT_S, eventually
from tidegate.client import Backoff, Client


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_gets_wrong_process(sum_root: Path) -> None:
    """Whatever waits; closing is left to the process that made the client, which goes on. No child dies of the fork alone."""
    with serve(sum_root) as process:
        ended = subprocess.run(
            [sys.executable, "-m", "tests.client.forked", process.address],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            cwd=ROOT,
        )
    results = [line.partition(" ")[::2] for line in ended.stdout.splitlines()]
    assert results.pop(0) == ("nothing", " ".join(["gave None"] * 10))
    assert len(results) == 18
    for what, got in results:
        if what == "sum":
            assert got == "3.0"
        elif what == "close":
            assert got == "gave None"
        else:
            assert got.startswith("WrongProcess: the client was made in process "), (what, got)
            assert "make a client in each process" in got


async def test_failed_tries_are_not_calls(sum_root: Path) -> None:
    """No call is made while the channel cannot connect: gRPC keeps some memory of each call for good, and this may last for weeks."""
    tries = 0

    async def sleep(_: float) -> None:
        nonlocal tries
        tries += 1
        await asyncio.sleep(0.001)

    async with run_server(sum_root) as server:
        client = Client(address_of(server), reconnect_s=None, backoff=Backoff(sleep=sleep))
        opening, many = client.open("a"), client.block(["b", "c"])
        stream = await opening.__aenter__()
        await many.__aenter__()
        await stream.step([1.0])
    calls = 0
    stub = client._connection.stub

    def count(inner: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            return inner(*arguments)

        return counted

    stub.Predict, stub.PredictBlocks = count(stub.Predict), count(stub.PredictBlocks)
    begun = tries
    await eventually(lambda: tries > begun + 300, "trying")
    # One each until the channel has found out, and one each for a try to connect that was under way.
    assert calls <= 8
    async with asyncio.timeout(TIMEOUT_S):
        await client.close()
