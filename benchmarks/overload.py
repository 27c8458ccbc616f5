"""Checks whether overload and clients that do not read harm other clients.

python benchmarks/overload.py [--rounds 5] [--seconds 2] [--quick]

The server's queue holds Q timesteps. Q streams in a closed loop just fill it: this is the load at the limit. Then there
are two and four times as many streams; each refused timestep is sent again after the requested time. Then Q streams again.
Then Q streams beside calls whose clients send and never read, until flow control stops them.

The exit code is 1 when, over the rounds,
- the median p99 of accepted timesteps with twice as many streams is above twice that at the limit (with four times as
  many it is only printed: a refusal costs the server nearly as much as a timestep),
- nothing is refused, or a refusal is not OVERLOADED with a retry time,
- the p99 of Q streams afterwards, or beside the slow readers, is above one and a half times that at the limit,
- the server's memory grows by more than is allowed for the streams and calls.
"""

import asyncio
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import typer
from compare import LoadProcesses, Quick, Rounds, Seconds, Warmup
from machine import describe_machine, load_average
from model import write_model
from sequential_call import SequentialCall, predict_blocks_call, predict_call
from server_process import ServerProcess, serve

from tidegate.bench.http2 import Connection
from tidegate.bench.result import Result

AT_LIMIT, AFTERWARDS, SLOW = "at the limit", "afterwards", "beside slow readers"
QUEUE_MAX = 64
# A batch is half of the queue, so that timesteps wait in the queue at the limit.
BATCH_MAX = 32
OVERLOADS = {"twice": 2, "four times": 4}
ASSERTED = "twice"
P99_RATIO_MAX = 2.0
P99_RATIO_AFTER_MAX = 1.5
# The number of calls that do not read, of each kind.
SLOW_CALLS = 8
SLOW_ROWS = 64
# A message that waits this long is stopped by flow control.
STOPPED_SECONDS = 0.5
# The maximum that one call can send, and that the server can hold for it: some windows of 64 KB.
SENT_BYTES_MAX = 2**20
BYTES_A_CALL = 256 * 1024
# Memory that malloc may keep.
BYTES_BESIDE = 4 * 2**20


def run_load(load: LoadProcesses, side: ServerProcess, streams: int, warmup: float, seconds: float) -> Result:
    """Runs streams in a closed loop against a server."""
    return load.run(side, streams=streams, warmup=warmup, seconds=seconds)


def p99_us(result: Result) -> float:
    """Returns the p99 of accepted timesteps from the last attempt: the waits after refusals are not the server's."""
    assert result.service is not None
    return (result.service.p99 or 0.0) * 1e6


async def stop_reading(side: ServerProcess) -> tuple[Connection, int]:
    """Opens calls of both kinds that send and never read, until flow control stops them.

    Returns the connection and the maximum number of bytes that one call could send.
    """
    connection = await Connection.open(side.address, reads=False)
    calls = [SequentialCall(connection, predict_call()) for _ in range(SLOW_CALLS)]
    calls += [SequentialCall(connection, predict_blocks_call([""] * SLOW_ROWS)) for _ in range(SLOW_CALLS)]
    for call in calls:
        await call.open()
    return connection, max(await asyncio.gather(*map(_send_until_stopped, calls)))


async def _send_until_stopped(call: SequentialCall) -> int:
    sent = 0
    while sent <= SENT_BYTES_MAX:
        sent += call.send()
        await asyncio.sleep(0)
        if call.rpc.blocked:
            await asyncio.sleep(STOPPED_SECONDS)
            if call.rpc.blocked:
                break
    return sent


def measure(rounds: int, warmup: float, seconds: float) -> list[str]:
    """Runs all phases in turn and prints the results. Returns the violations."""
    streams = {AT_LIMIT: QUEUE_MAX, **{name: times * QUEUE_MAX for name, times in OVERLOADS.items()}}
    streams |= {AFTERWARDS: QUEUE_MAX, SLOW: QUEUE_MAX}
    phases: dict[str, list[Result]] = {name: [] for name in streams}
    grown = dict.fromkeys((*OVERLOADS, SLOW), 0)
    sent_max = 0
    with TemporaryDirectory(prefix="tidegate-bench-") as folder, asyncio.Runner() as runner, LoadProcesses() as load:
        write_model(Path(folder))
        options = ["--data-dir", f"{folder}/data", "--queue-max", str(QUEUE_MAX), "--batch-max", str(BATCH_MAX)]
        with ServerProcess("overload", serve(Path(folder), *options)) as side:
            run_load(load, side, max(streams.values()), 0.0, warmup)  # fills the caches of the server
            idle_bytes = side.resident_bytes()
            for _ in range(rounds):
                for name, many in streams.items():
                    slow = None
                    if name == SLOW:  # the event loop stops after this, so the connection is not read
                        slow, sent = runner.run(stop_reading(side))
                        sent_max = max(sent_max, sent)
                    phases[name].append(run_load(load, side, many, warmup, seconds))
                    if name in grown:
                        grown[name] = max(grown[name], side.resident_bytes() - idle_bytes)
                    if slow is not None:
                        runner.get_loop().call_soon(slow.close)
                        runner.run(asyncio.sleep(0))
    p99s_us = {name: median(map(p99_us, results)) for name, results in phases.items()}
    for name, results in phases.items():
        accepted = sum(one.achieved_per_s for one in results) / rounds
        refused = sum(one.timesteps.again for one in results) / (warmup + seconds) / rounds
        print(f"{name}: {streams[name]} streams, {accepted:,.0f} accepted and {refused:,.0f} refused a second, "
              f"p99 {p99s_us[name] / 1000:.2f} ms ({p99s_us[name] / p99s_us[AT_LIMIT]:.2f})")  # fmt: skip
    print(f"{2 * SLOW_CALLS} calls that never read could send {sent_max:,} bytes at most")
    print("memory: " + ", ".join(f"{size / 2**20:+.1f} MB {name}" for name, size in grown.items())
          + f"; load average {load_average():.1f}")  # fmt: skip
    found = find_faults(phases, p99s_us, grown)
    if sent_max > SENT_BYTES_MAX:
        found.append(
            f"{SLOW}: one call sent {sent_max:,} bytes and was not stopped, expected at most {SENT_BYTES_MAX:,}"
        )
    return found


def find_faults(phases: dict[str, list[Result]], p99_us: dict[str, float], grown: dict[str, int]) -> list[str]:
    """Returns what is above its limit."""
    found = []
    before = p99_us[AT_LIMIT]
    for name, ratio_max in ((ASSERTED, P99_RATIO_MAX), (AFTERWARDS, P99_RATIO_AFTER_MAX), (SLOW, P99_RATIO_AFTER_MAX)):
        if p99_us[name] > ratio_max * before:
            found.append(
                f"{name}: p99 is {p99_us[name] / before:.2f} times that at the limit, expected at most {ratio_max}"
            )
    found += [
        f"{name}: nothing was refused"
        for name in OVERLOADS
        if not sum(result.timesteps.again for result in phases[name])
    ]
    for name, results in phases.items():
        reasons = {reason for result in results for reason in (*result.timesteps.again_by, *result.timesteps.refused)}
        found += [f"{name}: refused with {reason}" for reason in sorted(reasons - {"OVERLOADED"})]
    calls = {name: times * QUEUE_MAX for name, times in OVERLOADS.items()} | {SLOW: 2 * SLOW_CALLS}
    for name, growth in grown.items():
        allowed = BYTES_BESIDE + calls[name] * BYTES_A_CALL
        if growth > allowed:
            found.append(f"{name}: memory grew by {growth:,} bytes, expected at most {allowed:,}")
    return found


def main(rounds: Rounds = 5, seconds: Seconds = 2.0, warmup: Warmup = 0.5, quick: Quick = False) -> None:
    """Check whether overload and slow readers harm other clients."""
    if quick:
        rounds, seconds, warmup = 1, 0.3, 0.1
    found = measure(rounds, warmup, seconds)
    print(describe_machine())
    for fault in found:
        print(fault)
    if found and not quick:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
