"""Runs clients through scenarios, and checks what they send and what their users see."""

import asyncio
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence

import numpy as np

import tidegate.conformance.predict_one  # noqa: F401 - registers its scenarios
from tidegate.conformance.rules import Violation
from tidegate.conformance.scenario_run import CallEnded, ScenarioRun
from tidegate.conformance.scenarios import SCENARIOS
from tidegate.conformance.server import serve

# The number of programs that run at the same time. Each uses a core while it starts.
PROGRAMS_MAX = 4
# The time limit for a scenario: twice the 10 s that a client may wait, and reserve for a slow machine.
SECONDS_MAX = 60.0
# The time limit for the end of a program after its stream has ended.
LEAVE_SECONDS = 15.0
# The same after a violation, and for a script whose program has ended.
END_SECONDS = 5.0

Violations = dict[str, list[Violation]]


def select_scenarios(level: str, only: str) -> list[str]:
    """Returns the names of the scenarios of a level, or the one that is named. Raises ValueError when there is none."""
    names = [name for name, scenario in SCENARIOS.items() if level in scenario.levels and only in ("", name)]
    if not names:
        known = ", ".join(name for name, scenario in SCENARIOS.items() if level in scenario.levels)
        raise ValueError(f"only: got '{only}', expected a scenario of level {level}: {known}")
    return names


async def check_program(command: Sequence[str], names: Sequence[str], level: str, address: str) -> Violations:
    """Runs a program through scenarios, each in its own process. Returns the violations of each."""
    runs = {name: ScenarioRun(level, SCENARIOS[name].rows) for name in names}
    semaphore = asyncio.Semaphore(PROGRAMS_MAX)

    async def play(name: str) -> None:
        async with semaphore:
            await _play_with_program(command, name, runs[name], actual_address)

    async with serve(runs, address) as actual_address, asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(play(name))
    return {name: run.violations for name, run in runs.items()}


async def serve_scenarios(
    names: Sequence[str],
    level: str,
    address: str,
    on_ready: Callable[[str], None],
    on_result: Callable[[str, list[Violation]], None],
) -> None:
    """Serves scenarios to any client until cancelled, and reports each that has ended. A scenario can be played again."""
    runs: dict[str, ScenarioRun] = {}

    async def play_forever(name: str) -> None:
        while True:
            run = runs[name] = ScenarioRun(level, SCENARIOS[name].rows)
            await run.started.wait()
            await _run_script(name, run)
            on_result(name, run.violations)

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(play_forever(name))
        await asyncio.sleep(0)
        async with serve(runs, address) as actual_address:
            on_ready(actual_address)
            await asyncio.Event().wait()


async def _run_script(name: str, run: ScenarioRun) -> None:
    """Runs a script to its end."""
    try:
        await SCENARIOS[name].play(run)
    except CallEnded:
        detail = "the client ended its call, or did something that the script does not expect"
        if run.client_exited.is_set():
            detail = "the client ended before the scenario did"
        run.add_violation("finish", detail)
    finally:
        run.finish()


async def _play_with_program(command: Sequence[str], name: str, run: ScenarioRun, address: str) -> None:
    """Plays one scenario with a program."""
    process = await asyncio.create_subprocess_exec(*command, address, name, stdin=PIPE, stdout=PIPE, stderr=PIPE)
    script = asyncio.create_task(_run_script(name, run))
    rows = "".join(f"{value}\n" for value in range(1, run.rows + 1)).encode()
    output = asyncio.create_task(process.communicate(rows))
    try:
        await asyncio.wait([output, script], return_when=asyncio.FIRST_COMPLETED, timeout=SECONDS_MAX)
        if output.done():
            run.client_exited.set()  # the script stops waiting
        timeout = END_SECONDS if output.done() or run.violations else LEAVE_SECONDS
        _, pending = await asyncio.wait([output, script], timeout=timeout)
        if pending:
            run.add_violation("finish", "the scenario did not end in time")
        else:
            out, err = output.result()
            _check_user_output(run, process, out.decode(errors="replace"), err.decode(errors="replace"))
    finally:
        script.cancel()
        if process.returncode is None:
            process.kill()
        await asyncio.wait([output, script])


def _check_user_output(run: ScenarioRun, process: Process, out: str, err: str) -> None:
    """Checks what the user of a program saw."""
    expected = [f"{step[0]} {step[1].hex()}" if step is not None else "refused" for step in run.expected_output]
    lines = [line if not line.startswith("refused") else "refused" for line in out.splitlines()]
    for number, (line, wanted) in enumerate(zip(lines, expected, strict=False), start=1):
        if line != wanted:
            detail = f"line {number} of the program is '{_readable(line)}', expected '{_readable(wanted)}'"
            run.add_violation("once-in-order", detail)
            break
    if len(lines) != len(expected) and not run.violations:
        run.add_violation("once-in-order", f"the program wrote {len(lines)} lines, expected {len(expected)}")
    last_line = (err.strip().splitlines() or ["nothing"])[-1]
    ended = f"the program ended with status {process.returncode} and wrote '{last_line}' to stderr"
    if not run.lost_reason:
        if process.returncode != 0 and not run.violations:
            run.add_violation("finish", f"{ended}, expected 0")
    elif process.returncode != 1 or f"\n{run.lost_reason}:" not in f"\n{err}":  # gRPC may log something before it
        run.add_violation("no-reopen-when-lost", f"{ended}, expected 1 and '{run.lost_reason}: ...'")


def _readable(line: str) -> str:
    """Formats a line with its output as a number."""
    step, _, packed = line.partition(" ")
    try:
        return f"{step} {np.frombuffer(bytes.fromhex(packed), '<f4').item():g}"
    except ValueError:
        return line
