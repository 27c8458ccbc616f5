"""Workers die, hang, stop and restart behind one port: streams, counters and the scrape survive it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.calls import RawCall, timestep
from tests.fleet import Fleet, ServerProcess, rows_of
from tests.graphs import running_sum, write_model
from tests.oracle import replay, same_bits
from tests.root import ROOT
from tests.timeouts import TIMEOUT_S
from tidegate.client import Client

Counters = dict[tuple[str, frozenset[tuple[str, str]]], float]


def counters(text: str) -> Counters:
    """Every sample that must not fall: of counters, and the buckets, counts and sums of histograms."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        if family.type in ("counter", "histogram")
        for sample in family.samples
    }


@contextlib.asynccontextmanager
async def scraped(site: ServerProcess) -> AsyncIterator[list[Counters]]:
    """Scrapes again and again. At the end no sample has fallen or vanished from one scrape to the next."""
    seen: list[Counters] = []

    async def scrape() -> None:
        while True:
            seen.append(counters(await asyncio.to_thread(site.scrape)))
            await asyncio.sleep(0.05)  # to read the text costs more than the load

    scraping = asyncio.create_task(scrape())
    try:
        yield seen
    finally:
        scraping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await scraping
    assert len(seen) > 3
    for before, after in pairwise(seen):
        fallen = {key: (value, after.get(key)) for key, value in before.items() if not after.get(key, -1.0) >= value}
        assert not fallen


async def until_up(site: ServerProcess, workers: int, restarts: int) -> None:
    """Waits until so many workers are up, after so many restarts."""
    while True:
        metrics = await asyncio.to_thread(site.metrics)
        if (metrics["tidegate_worker_up"], metrics["tidegate_worker_restarts_total"]) == (workers, restarts):
            return
        await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs, and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(*pids: int) -> None:
    """Waits until none of these runs any more."""
    while any(alive(pid) for pid in pids):
        await asyncio.sleep(0.02)


async def test_a_killed_worker_loses_neither_streams_nor_counts(
    site: Callable[..., ServerProcess], graph: bytes
) -> None:
    """`kill -9` of either worker under load: every prediction once and bit-equal, /metrics answers, no counter falls."""
    one = site("--workers", "2")
    await one.start()
    fleet = Fleet([one.address], streams=60, steps=60, pause_s=0.02)
    async with asyncio.timeout(3 * TIMEOUT_S), scraped(one) as seen:
        running = asyncio.create_task(fleet.run(clients=8))
        await fleet.reached(750)
        first = one.workers()
        os.kill(first[0], signal.SIGKILL)
        await until_up(one, 2, 1)
        await fleet.reached(2250)
        os.kill(one.workers()[1], signal.SIGKILL)
        await running
        await until_up(one, 2, 2)
    assert fleet.problems(graph) == []
    assert not set(first.values()) & set(one.workers().values())
    metrics = one.metrics()
    assert metrics["tidegate_state_lost_total"] == 0
    # Each prediction that a client has was counted, whatever happened to the worker that made it.
    assert metrics['tidegate_steps_total{model="toy",outcome="ok",version="1"}'] >= fleet.answered
    ups = [
        sum(value for (name, _), value in scrape.items() if name == "tidegate_worker_restarts_total") for scrape in seen
    ]
    assert ups[-1] == 2
    assert await one.stop() == 0


async def test_a_frozen_worker_delays_no_scrape(site: Callable[..., ServerProcess]) -> None:
    """Its counters are read from shared memory; it need not respond."""
    one = site("--workers", "2")
    await one.start()
    async with asyncio.timeout(3 * TIMEOUT_S):
        async with Client(one.address) as client, client.open("a") as stream:
            for row in rows_of(0, 5):
                await stream.step(row)
        frozen = one.workers()
        for pid in frozen.values():
            os.kill(pid, signal.SIGSTOP)
        metrics = one.metrics()  # to wait for a frozen worker would take for ever
        for pid in frozen.values():
            os.kill(pid, signal.SIGCONT)
    assert metrics['tidegate_steps_total{model="toy",outcome="ok",version="1"}'] == 5
    assert metrics["tidegate_worker_up"] == 2


@pytest.mark.parametrize(("number", "whom"), [(signal.SIGTERM, "the supervisor"), (signal.SIGINT, "all")])
async def test_a_signal_has_all_workers_drain(
    site: Callable[..., ServerProcess], graph: bytes, number: signal.Signals, whom: str
) -> None:
    """Calls are told to move, everything is stored, exit code 0; also when the workers get the signal too."""
    one = site("--workers", "2", "--checkpoint-every", "30s")
    await one.start()
    rows, truth = rows_of(0, 4), replay(graph, rows_of(0, 4))
    async with asyncio.timeout(3 * TIMEOUT_S):
        clients = [Client(one.address) for _ in range(6)]
        for name, client in enumerate(clients):
            stream = await client.open(str(name)).__aenter__()
            await stream.step(rows[0])
        workers = one.workers()
        if whom == "all":  # as Ctrl-C in a terminal does, and systemd with SIGTERM
            for pid in workers.values():
                os.kill(pid, number)
        one.send(number)
        assert await one.ended() == 0
        assert not any(map(alive, workers.values()))
        for client in clients:
            await client.close()
        await one.start()
        async with Client(one.address) as client:
            for name in range(6):
                async with client.open(str(name)) as stream:
                    assert stream.next_step == 2
                    assert same_bits(await stream.step(rows[1]), truth[1])


async def test_a_second_signal_ends_everything_at_once(site: Callable[..., ServerProcess]) -> None:
    """Although a worker hangs and cannot drain. The exit code is that of the signal."""
    one = site("--workers", "2", "--drain-after", "60s")
    await one.start()
    async with asyncio.timeout(3 * TIMEOUT_S):
        workers = one.workers()
        os.kill(workers[0], signal.SIGSTOP)
        one.send(signal.SIGTERM)
        await until_gone(workers[1])  # it drains, and the hanging worker remains
        one.send(signal.SIGTERM)
        assert await one.ended() == 128 + signal.SIGTERM
        await until_gone(workers[0])


async def test_workers_whose_supervisor_died_drain_and_end(site: Callable[..., ServerProcess], graph: bytes) -> None:
    """`kill -9` of the supervisor leaves no process behind, and nothing unsaved."""
    one = site("--workers", "2", "--checkpoint-every", "30s")
    await one.start()
    rows, truth = rows_of(0, 2), replay(graph, rows_of(0, 2))
    async with asyncio.timeout(3 * TIMEOUT_S):
        workers = one.workers()
        async with Client(one.address) as client:
            stream = await client.open("a").__aenter__()
            await stream.step(rows[0])
            await one.kill()
            try:
                await until_gone(*workers.values())
            finally:  # nobody else would end the others
                for pid in filter(alive, workers.values()):
                    os.kill(pid, signal.SIGKILL)
        await one.start()
        async with Client(one.address) as client, client.open("a") as stream:
            assert stream.next_step == 2
            assert same_bits(await stream.step(rows[1]), truth[1])


async def test_workers_can_be_replaced_one_by_one(
    site: Callable[..., ServerProcess], graph: bytes, models: Path
) -> None:
    """SIGTERM to a worker: it drains, and another one replaces it, with the models of the others and the old counters."""
    one = site("--workers", "2")
    await one.start()
    fleet = Fleet([one.address], streams=40, steps=60, pause_s=0.02)
    async with asyncio.timeout(3 * TIMEOUT_S):
        async with scraped(one) as seen:
            running = asyncio.create_task(fleet.run(clients=8))
            await fleet.reached(200)
            write_model(models, running_sum(), "new")
            for restarts, pid in enumerate(one.workers().values(), 1):
                os.kill(pid, signal.SIGTERM)
                await until_up(one, 2, restarts)
            await running
        assert fleet.problems(graph) == []
        assert not any(("model", "new") in labels for _, labels in seen[0])
        async with Client(one.address) as client:
            await client.change_models("reload")
            async with client.open(model="new") as stream:
                await stream.step([1.0])
        metrics = one.metrics()
        assert metrics['tidegate_steps_total{model="new",outcome="ok",version="1"}'] == 1
        assert metrics['tidegate_steps_total{model="toy",outcome="ok",version="1"}'] >= fleet.answered
        assert await one.stop() == 0


async def test_a_stream_is_where_it_was_whichever_worker_it_comes_to(
    site: Callable[..., ServerProcess], graph: bytes
) -> None:
    """A new connection for each timestep, so that the worker changes at random.

    Each call ends before the next begins.
    """
    one = site("--workers", "2", "--checkpoint-every", "30s")
    await one.start()
    rows = rows_of(3, 40)
    truth = replay(graph, rows)
    async with asyncio.timeout(3 * TIMEOUT_S):
        for number, row in enumerate(rows, 1):
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(one.address, options=options) as channel:
                call = RawCall(channel)
                assert (await call.open("nomad")).next_step == number
                answer = (await call.ask(timestep(*row.tolist(), step=number))).prediction
                assert answer.outputs[0] == truth[number - 1]["forecast"].tobytes()
                await call.call.done_writing()
                assert (await call.ending()).code is grpc.StatusCode.OK
    resumed = {key[1]: value for key, value in counters(one.scrape()).items() if ("kind", "resumed") in key[1]}
    assert sum(resumed.values()) == len(rows) - 1
    assert min(resumed.values()) > 0, "all connections came to one worker"


async def test_workers_run_the_code_that_started_them(
    site: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder `tidegate` in the working directory of the server is not imported."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "tidegate").mkdir(parents=True)
    (elsewhere / "tidegate" / "__init__.py").write_text("raise AssertionError('this is not the server')\n")
    monkeypatch.setattr("tests.fleet.ROOT", elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    one = site("--workers", "2")
    # As the command `tidegate` does: the first folder on the search path is that of the command.
    one._command[1:3] = [
        "-P",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r}); from tidegate.cli import main; main()",
    ]
    await one.start()
    assert await one.stop() == 0


async def test_sums_of_gauges_mean_something(site: Callable[..., ServerProcess]) -> None:
    """Live streams belong to one worker; parked ones, which all share, are reported once."""
    one = site("--workers", "2", "--checkpoint-every", "20ms")
    await one.start()
    async with asyncio.timeout(3 * TIMEOUT_S):
        clients = [Client(one.address) for _ in range(8)]
        for name, client in enumerate(clients):
            stream = await client.open(str(name)).__aenter__()
            await stream.step(np.zeros(8))
        while (await asyncio.to_thread(one.metrics))['tidegate_streams{state="live"}'] != 8:
            await asyncio.sleep(0.05)
        parked = [line for line in one.scrape().splitlines() if line.startswith('tidegate_streams{state="parked"')]
        assert len(parked) == 1
        for client in clients:
            await client.close()
