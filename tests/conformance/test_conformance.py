"""`tidegate conformance`: correct clients violate no rule, and each broken client violates the expected one."""

import asyncio
import re
import sys
from collections.abc import Sequence
from itertools import product

import grpc
import pytest

from tests.calls import timestep
from tests.clients.programs import CLIENTS, LANGUAGES, LEVELS, command, node
from tests.forked_programs import forked
from tests.root import ROOT
from tests.servers import run_command
from tests.timeouts import TIMEOUT_S
from tidegate.conformance import runner, scenario_run, scenarios
from tidegate.conformance.rules import RULES
from tidegate.conformance.runner import check_program, select_scenarios, serve_scenarios
from tidegate.conformance.scenarios import SCENARIOS
from tidegate.v1 import tidegate_pb2 as pb

__all__ = ["node"]

DRIVER = ("-m", "tests.conformance.driver")
SHOWN = (str(CLIENTS / "python" / "full.py"),)
# These wait for the limit of 10 s on an open. Once for each kind of call is enough.
SLOW = {"silent-open", "move-without-end"}


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit ends a correct client that is slow: what it must do comes."""
    for name in ("START_SECONDS", "NEXT_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(scenario_run, name, TIMEOUT_S)
    for name in ("SECONDS_MAX", "LEAVE_SECONDS"):
        monkeypatch.setattr(runner, name, 3 * TIMEOUT_S)
    for name in ("AGAIN_SECONDS", "LIMIT_SECONDS", "MOVE_SECONDS"):
        monkeypatch.setattr(scenarios, name, TIMEOUT_S)


@pytest.fixture
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broken client that is slow has the time to do what it must not."""
    for name in ("WATCH_SECONDS", "LOST_SECONDS"):
        monkeypatch.setattr(scenario_run, name, 10.0)
    for name in ("UNAVAILABLE_SECONDS", "RETRY_SECONDS"):
        monkeypatch.setattr(scenarios, name, 30.0)


async def judge(program: Sequence[str], level: str, names: Sequence[str]) -> list[str]:
    """Returns the violations of a program, as `scenario: rule: detail`."""
    violations = await check_program(program, names, level, "127.0.0.1:0")
    return [f"{name}: {each.rule}: {each.detail}" for name, found in violations.items() for each in found]


@pytest.mark.parametrize(
    ("program", "level"),
    [
        pytest.param(DRIVER, "full", id="PredictBlocks"),
        pytest.param((*DRIVER, "one"), "one", id="PredictOne"),
        pytest.param(SHOWN, "full", id="Predict"),
    ],
)
async def test_a_correct_client_violates_no_rule(unhurried: None, program: tuple[str, ...], level: str) -> None:
    """Tidegate's own client, and for `Predict` the example client, through every scenario."""
    assert not await judge(forked(*program), level, select_scenarios(level, ""))


# The full one in Python has gone through every scenario above.
@pytest.mark.parametrize(
    ("language", "level"), [pair for pair in product(LANGUAGES, LEVELS) if pair != ("python", "full")]
)
async def test_the_example_clients_violate_no_rule_of_their_level(
    unhurried: None, request: pytest.FixtureRequest, language: str, level: str
) -> None:
    """Those of examples/clients, which people copy."""
    names = [name for name in select_scenarios(level, "") if name not in SLOW]
    assert not await judge(command(request, language, level), level, names)


@pytest.mark.parametrize(
    ("fault", "level", "scenario", "rule"),
    [
        ("new_owner", "full", "call-ends", "owner-kept"),
        ("no_owner", "full", "plain", "owner-kept"),
        ("resume_from_too_high", "full", "crash", "resume-from"),
        ("resumes_from_zero", "full", "call-ends", "resume-from"),
        ("skips_a_number", "full", "plain", "numbers-in-order"),
        ("exceeds_window", "full", "full-window", "window"),
        ("kept_max_too_low", "full", "nothing-is-stored", "kept-bounded"),
        ("delivers_duplicates", "full", "crash", "once-in-order"),
        ("ignores_divergence", "full", "crash-and-other-bits", "diverged"),
        ("resends_dropped", "full", "drop", "same-values"),
        ("ignores_retry_after", "full", "retry", "retry-after"),
        ("reopens_lost_stream", "full", "state-lost", "no-reopen-when-lost"),
        ("retries_without_back_off", "full", "away", "back-off"),
        ("closes_too_early", "full", "plain", "close-when-answered"),
        ("accepts_incomplete_close", "full", "close-before-all-is-stored", "close-until-stored"),
        ("sends_after_move", "full", "move", "move"),
        ("asks_for_async_durability", "simple", "plain", "durability"),
        ("has_no_deadline", "one", "single-plain", "deadline"),
    ],
)
async def test_a_violation_is_found(watchful: None, fault: str, level: str, scenario: str, rule: str) -> None:
    """The violation says what was observed."""
    found = await judge(forked("-m", "tests.conformance.broken", fault), level, [scenario])
    assert any(re.match(f"{scenario}: {rule}: .", violation) for violation in found), found


@pytest.mark.parametrize(
    ("fault", "scenario", "rule"),
    [
        ("new_owner", "call-ends", "owner-kept"),
        ("resume_from_too_high", "crash", "resume-from"),
        ("skips_unanswered", "lost-answer", "numbers-in-order"),
        ("exceeds_window", "full-window", "window"),
        ("resends_dropped", "drop", "same-values"),
        ("reopens_ended_stream", "taken-over", "no-reopen-when-lost"),
        ("reopens_refused_stream", "state-lost", "no-reopen-when-lost"),
        ("closes_too_early", "plain", "close-when-answered"),
        ("sends_after_move", "move", "move"),
        ("accepts_incomplete_close", "close-before-all-is-stored", "close-until-stored"),
    ],
)
async def test_a_violation_on_predict_blocks_is_found(watchful: None, fault: str, scenario: str, rule: str) -> None:
    """By the same rules as on `Predict`. The violation says what was observed."""
    program = forked("-m", "tests.conformance.broken_blocks", fault)
    found = await judge(program, "full", [scenario])
    assert any(re.match(f"{scenario}: {rule}: .", violation) for violation in found), found


async def test_a_program_that_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result does not wait for a time limit."""
    monkeypatch.setattr(scenario_run, "START_SECONDS", 10 * TIMEOUT_S)
    async with asyncio.timeout(TIMEOUT_S):
        found = await judge([sys.executable, "-c", "pass"], "full", ["plain"])
    assert found == ["plain: finish: the client ended before the scenario did"]


async def test_a_program_that_hangs_ends_with_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The result comes with that limit, and the program is killed."""
    monkeypatch.setattr(scenario_run, "START_SECONDS", 0.5)
    monkeypatch.setattr(runner, "END_SECONDS", 0.5)
    async with asyncio.timeout(TIMEOUT_S):
        found = await judge([sys.executable, "-c", "import time; time.sleep(600)"], "full", ["plain"])
    assert found == ["plain: finish: no open came within 0.5 s"]


async def test_scenarios_are_served_to_any_client() -> None:
    """A client plays a scenario by opening the stream of its name, as often as it likes."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    violations: asyncio.Queue[tuple[str, list[str]]] = asyncio.Queue()
    serving = asyncio.create_task(
        serve_scenarios(
            ["plain"],
            "full",
            "127.0.0.1:0",
            ready.set_result,
            lambda name, broken: violations.put_nowait((name, [one.rule for one in broken])),
        )
    )
    async with asyncio.timeout(3 * TIMEOUT_S), grpc.aio.insecure_channel(await ready) as channel:
        for owner, expected in (("me", []), ("", ["owner-kept"])):
            call = channel.stream_stream(
                "/tidegate.v1.TidegateService/Predict",
                pb.PredictRequest.SerializeToString,
                pb.PredictResponse.FromString,
            )()
            await call.write(pb.PredictRequest(open=pb.Open(stream_id="plain", owner=owner)))
            assert (await call.read()).HasField("opened")
            for step in range(1, SCENARIOS["plain"].rows + 1):
                await call.write(timestep(step, step=step))
                assert (await call.read()).prediction.step == step
            await call.write(pb.PredictRequest(close=pb.Close()))
            await call.done_writing()
            assert (await call.read()).HasField("closed")
            assert await violations.get() == ("plain", expected)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


def test_the_command_prints_the_error() -> None:
    """A table with the violation, and exit code 1. An unknown program or scenario is bad usage."""
    program = [sys.executable, "-m", "tests.conformance.broken", "no_owner"]
    found = run_command("conformance", "--only", "plain", "--", *program, cwd=ROOT)
    assert found.returncode == 1
    assert "owner-kept" in found.stdout
    assert "0 of 1 scenarios" in found.stdout
    for arguments in (["--only", "nothing"], ["--only", "plain", "--", "/no/such/program"]):
        wrong = run_command("conformance", *arguments)
        assert wrong.returncode == 2
        assert len(wrong.stderr.splitlines()) == 1
        assert "expected" in wrong.stderr


def test_the_list_has_every_scenario_and_every_rule() -> None:
    """Each with its text."""
    listed = run_command("conformance", "--list").stdout
    assert all(name in listed for name in [*select_scenarios("full", ""), *RULES])
    assert all(scenario.text for scenario in SCENARIOS.values())


def test_the_page_has_every_rule() -> None:
    """docs/conformance.md and the code have the same rules."""
    page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    assert [(name, where, text) for name, where, text in rows] == [
        (name, rule.source, rule.text) for name, rule in RULES.items()
    ]
