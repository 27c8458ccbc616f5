"""`tidegate conformance`: good clients keep all rules, and each broken one is caught by the rule that it breaks."""

import asyncio
import re
import sys
from collections.abc import Sequence

import grpc
import pytest

from protos.tidegate.v1 import tidegate_pb2 as pb
from serving.conformance import run, stage
from serving.conformance.rules import RULES
from serving.conformance.run import Verdicts, chosen, judge_callers, judge_program, sentences
from serving.conformance.scenarios import SCENARIOS
from serving.conformance.stage import START_SECONDS
from tests.clients.programs import CLIENTS, LANGUAGES, LEVELS, command, node
from tests.support import ROOT, TIMEOUT_S, run_command, timestep

__all__ = ["node"]

DRIVER = [sys.executable, "-m", "tests.conformance.driver"]
SHOWN = [sys.executable, str(CLIENTS / "python" / "full.py")]
# It waits for the limit of 10 s on an open, for each client; once for each call is enough.
SLOW = {"silent-open", "move-without-end"}


async def judge(program: Sequence[str], level: str, names: Sequence[str]) -> Verdicts:
    """What a program does wrong."""
    return await judge_program(program, names, level, "127.0.0.1:0", lambda *_: None)


@pytest.mark.parametrize(
    ("program", "level"),
    [
        pytest.param(DRIVER, "full", id="PredictBlocks"),
        pytest.param([*DRIVER, "one"], "one", id="PredictOne"),
        pytest.param(SHOWN, "full", id="Predict"),
    ],
)
async def test_a_right_client_keeps_all_rules_of_the_call_that_it_speaks(program: list[str], level: str) -> None:
    """Our own client and, for `Predict`, which it does not speak, the one that is shown, through every scenario."""
    assert not sentences(await judge(program, level, chosen(level, "")))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_the_clients_that_are_shown_keep_the_rules_of_their_level(
    request: pytest.FixtureRequest, language: str, level: str
) -> None:
    """Those of examples/clients, which people copy."""
    names = [name for name in chosen(level, "") if name not in SLOW]
    assert not sentences(await judge(command(request, language, level), level, names))


@pytest.mark.parametrize(
    ("fault", "level", "scenario", "rule"),
    [
        ("new_owner", "full", "call-ends", "owner-kept"),
        ("no_owner", "full", "plain", "owner-kept"),
        ("forgets_too_much", "full", "crash", "resume-from"),
        ("begins_anew", "full", "call-ends", "resume-from"),
        ("skips_a_number", "full", "plain", "numbers-in-order"),
        ("sends_too_far_ahead", "full", "full-window", "window"),
        ("keeps_more_than_it_says", "full", "nothing-is-stored", "kept-bounded"),
        ("delivers_replays", "full", "crash", "once-in-order"),
        ("does_not_compare", "full", "crash-and-other-bits", "diverged"),
        ("keeps_what_is_dropped", "full", "drop", "same-values"),
        ("does_not_wait", "full", "retry", "retry-after"),
        ("never_gives_up", "full", "state-lost", "no-reopen-when-lost"),
        ("runs_the_server_over", "full", "away", "back-off"),
        ("closes_too_early", "full", "plain", "close-when-answered"),
        ("is_content_with_less", "full", "close-before-all-is-stored", "close-until-stored"),
        ("talks_after_move", "full", "move", "move"),
        ("is_not_durable", "simple", "plain", "durability"),
        ("has_no_deadline", "one", "single-plain", "deadline"),
    ],
)
async def test_a_client_that_breaks_a_rule_is_caught_by_it(fault: str, level: str, scenario: str, rule: str) -> None:
    """With a sentence that says what was seen."""
    broken = (await judge([sys.executable, "-m", "tests.conformance.broken", fault], level, [scenario]))[scenario]
    found = {one.rule: one.seen for one in broken}
    assert rule in found, found
    assert found[rule]


@pytest.mark.parametrize(
    ("fault", "scenario", "rule"),
    [
        ("new_owner", "call-ends", "owner-kept"),
        ("forgets_too_much", "crash", "resume-from"),
        ("begins_behind", "lost-answer", "numbers-in-order"),
        ("sends_too_far_ahead", "full-window", "window"),
        ("keeps_what_is_dropped", "drop", "same-values"),
        ("opens_what_has_ended", "taken-over", "no-reopen-when-lost"),
        ("opens_what_is_refused", "state-lost", "no-reopen-when-lost"),
        ("closes_too_early", "plain", "close-when-answered"),
        ("talks_after_move", "move", "move"),
        ("is_content_with_less", "close-before-all-is-stored", "close-until-stored"),
    ],
)
async def test_a_client_of_predict_blocks_that_breaks_a_rule_is_caught_by_it(
    fault: str, scenario: str, rule: str
) -> None:
    """By the same rules as one of `Predict`, and with a sentence that says what was seen."""
    program = [sys.executable, "-m", "tests.conformance.broken_blocks", fault]
    found = {one.rule: one.seen for one in (await judge(program, "full", [scenario]))[scenario]}
    assert rule in found, found
    assert found[rule]


async def test_a_program_that_ends_is_not_waited_for() -> None:
    """What it has not done it will never do: the verdict does not wait for the limit of its next step."""
    async with asyncio.timeout(START_SECONDS / 2):
        found = await judge([sys.executable, "-c", "pass"], "full", ["plain"])
    assert sentences(found) == ["plain: finish: the client ended before the scenario did"]


async def test_a_program_that_hangs_is_judged_by_the_limit_of_its_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdict comes with that limit, and the program is ended."""
    monkeypatch.setattr(stage, "START_SECONDS", 0.5)
    monkeypatch.setattr(run, "END_SECONDS", 0.5)
    async with asyncio.timeout(TIMEOUT_S):
        found = await judge([sys.executable, "-c", "import time; time.sleep(600)"], "full", ["plain"])
    assert sentences(found) == ["plain: finish: no open came within 0.5 s"]


async def test_callers_without_a_program_are_judged_by_the_wire() -> None:
    """A client that opens the stream of a scenario's name plays it, again and again if it likes."""
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    verdicts: asyncio.Queue[tuple[str, list[str]]] = asyncio.Queue()
    serving = asyncio.create_task(
        judge_callers(
            ["plain"],
            "full",
            "127.0.0.1:0",
            ready.set_result,
            lambda name, broken: verdicts.put_nowait((name, [one.rule for one in broken])),
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
            assert await verdicts.get() == ("plain", expected)
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


def test_the_command_says_what_is_wrong() -> None:
    """A table, a sentence, and exit status 1; a client that is not there, or a scenario, is bad usage."""
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
    """With a sentence for each."""
    listed = run_command("conformance", "--list").stdout
    assert all(name in listed for name in [*chosen("full", ""), *RULES])
    assert all(scenario.sentence for scenario in SCENARIOS.values())


def test_the_page_has_every_rule() -> None:
    """docs/conformance.md says the same as the code, rule by rule."""
    page = (ROOT / "docs" / "conformance.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| ([^|]*) \| ([^|]*) \|$", page, re.MULTILINE)
    assert [(name, where, sentence) for name, where, sentence in rows] == [
        (name, rule.written, rule.sentence) for name, rule in RULES.items()
    ]
