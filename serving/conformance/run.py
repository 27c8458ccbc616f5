"""Has clients play scenarios, and judges them by what they send and by what their users see."""

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence

import numpy as np

import serving.conformance.single  # noqa: F401 - puts its scenarios on the list
from serving.conformance.scenarios import SCENARIOS
from serving.conformance.server import serve
from serving.conformance.stage import Broken, CallOver, Stage

# Programs side by side: each takes a core while it starts.
TOGETHER_MAX = 4
# For a scenario from the start of its program to its end: two limits of 10 s, and a slow machine.
SECONDS_MAX = 60.0
# For a program to end that has seen its stream end: it has nothing to wait for.
LEAVE_SECONDS = 15.0
# For one that has broken a rule, and for a script whose program has ended: there is nothing more to learn.
END_SECONDS = 5.0

Verdicts = dict[str, list[Broken]]


def chosen(level: str, only: str) -> list[str]:
    """The names of the scenarios of a level, or the one that is named; ValueError when there is none."""
    names = [name for name, scenario in SCENARIOS.items() if level in scenario.levels and only in ("", name)]
    if not names:
        known = ", ".join(name for name, scenario in SCENARIOS.items() if level in scenario.levels)
        raise ValueError(f"only: got '{only}', expected a scenario of level {level}: {known}")
    return names


async def judge_program(
    command: Sequence[str],
    names: Sequence[str],
    level: str,
    address: str,
    on_verdict: Callable[[str, list[Broken]], None],
) -> Verdicts:
    """Has a program play scenarios, each in a process of its own; gives the broken rules of each."""
    stages = {name: Stage(level, SCENARIOS[name].rows) for name in names}
    verdicts: Verdicts = {}
    room = asyncio.Semaphore(TOGETHER_MAX)

    async def one(name: str) -> None:
        async with room:
            await _play(command, name, stages[name], at)
        verdicts[name] = stages[name].broken
        on_verdict(name, verdicts[name])

    async with serve(stages, address) as at, asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(one(name))
    return verdicts


async def judge_callers(
    names: Sequence[str],
    level: str,
    address: str,
    on_ready: Callable[[str], None],
    on_verdict: Callable[[str, list[Broken]], None],
) -> None:
    """Serves scenarios to whoever calls, and tells of each that is over, until cancelled; each may be played again."""
    stages: dict[str, Stage] = {}

    async def again(name: str) -> None:
        while True:
            stage = stages[name] = Stage(level, SCENARIOS[name].rows)
            await stage.begun.wait()
            await _script(name, stage)
            on_verdict(name, stage.broken)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(again(name))
        await asyncio.sleep(0)
        async with serve(stages, address) as at:
            on_ready(at)
            await asyncio.Event().wait()


async def _script(name: str, stage: Stage) -> None:
    """Plays a script to its end."""
    try:
        await SCENARIOS[name].play(stage)
    except CallOver:
        left = "the client ended before the scenario did"
        stage.broke(
            "finish",
            left if stage.left.is_set() else "the client ended its call, or went where the script does not lead",
        )
    finally:
        stage.finish()


async def _play(command: Sequence[str], name: str, stage: Stage, address: str) -> None:
    """Plays one scenario with a program."""
    process = await asyncio.create_subprocess_exec(*command, address, name, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    script = asyncio.create_task(_script(name, stage))
    rows = "".join(f"{value}\n" for value in range(1, stage.rows + 1)).encode()
    told = asyncio.create_task(process.communicate(rows))
    try:
        await asyncio.wait([told, script], return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS_MAX)
        if told.done():
            stage.left.set()  # a script waits no more for what nobody will do
        rest = END_SECONDS if told.done() or stage.broken else LEAVE_SECONDS
        _, late = await asyncio.wait([told, script], timeout=rest)
        if late:
            stage.broke("finish", "the scenario was not played to its end in time")
        else:
            out, err = told.result()
            _judge_user(stage, process, out.decode(errors="replace"), err.decode(errors="replace"))
    finally:
        script.cancel()
        if process.returncode is None:
            process.kill()
        await asyncio.wait([told, script])


def _judge_user(stage: Stage, process: Process, out: str, err: str) -> None:
    """Judges what the user of a program saw."""
    expected = [f"{told[0]} {told[1].hex()}" if told is not None else "refused" for told in stage.delivered]
    seen = [line if not line.startswith("refused") else "refused" for line in out.splitlines()]
    for place, (got, wanted) in enumerate(zip(seen, expected, strict=False)):
        if got != wanted:
            stage.broke(
                "once-in-order", f"line {place + 1} of the program is '{_read(got)}', expected '{_read(wanted)}'"
            )
            break
    if len(seen) != len(expected) and not stage.broken:
        stage.broke("once-in-order", f"the program wrote {len(seen)} lines, expected {len(expected)}")
    if stage.lost and (process.returncode != 1 or f"\n{stage.lost}:" not in f"\n{err}"):  # gRPC may log before that
        said = err.strip().splitlines()[-1] if err.strip() else "nothing"
        stage.broke(
            "no-reopen-when-lost",
            f"the program ended with status {process.returncode} and said '{said}', expected 1 and '{stage.lost}: ...'",
        )
    if not stage.lost and process.returncode != 0 and not stage.broken:
        said = err.strip().splitlines()[-1] if err.strip() else "nothing"
        stage.broke("finish", f"the program ended with status {process.returncode} and said '{said}', expected 0")


def _read(line: str) -> str:
    """A line with its output as a number."""
    step, _, packed = line.partition(" ")
    try:
        return f"{step} {np.frombuffer(bytes.fromhex(packed), '<f4').item():g}"
    except ValueError:
        return line


def sentences(verdicts: Mapping[str, Sequence[Broken]]) -> list[str]:
    """What was wrong, a line each."""
    return [f"{name}: {broken.rule}: {broken.seen}" for name, found in verdicts.items() for broken in found]
