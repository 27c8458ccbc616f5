"""When the clients that docs/protocol.md shows try again, and when they give up: by a clock and dice of the test."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.clients.programs import CLIENTS, LANGUAGES, node
from tests.timeouts import TIMEOUT_S

__all__ = ["node"]

# Both read calls of Retry's methods from stdin, as [seconds from now, method, arguments], and write what each gave, in seconds;
# "lost" where it gave up. Dice show the most.
DRIVERS = {
    "python": """
import json, random, sys, time
sys.path.insert(0, sys.argv[1])
import common
now = 0.0
time.monotonic = lambda: now
random.uniform = lambda low, high: high
retry, given = common.Retry(), []
for later, method, arguments in json.load(sys.stdin):
    now += later
    try:
        given.append(getattr(retry, method)(*(common.Ending(reason="", message="", **some) for some in arguments)))
    except common.StreamLost:
        given.append("lost")
print(json.dumps(given))
""",
    "node": """
const fs = require('node:fs');
const common = require(process.argv[1] + '/common');
let now = 0;
performance.now = () => now;
Math.random = () => 1;
const retry = new common.Retry();
const given = JSON.parse(fs.readFileSync(0)).map(([later, method, [some]]) => {
  now += later * 1000;
  try {
    const waits = retry[method](some && { action: some.action, retryMs: (some.retry_after_s ?? 0) * 1000, message: '' });
    return waits === undefined ? null : waits / 1000;
  } catch (error) {
    if (!(error instanceof common.StreamLost)) throw error;
    return 'lost';
  }
});
console.log(JSON.stringify(given));
""",
}

pytestmark = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture
def play(request: pytest.FixtureRequest, language: str) -> Any:
    """Calls the methods of a Retry in turn; gives what each gave."""
    program = [sys.executable, "-c"] if language == "python" else [str(request.getfixturevalue("node")), "-e"]

    def play_these(*calls: tuple[float, str, list[Any]]) -> list[Any]:
        done = subprocess.run(
            [*program, DRIVERS[language], str(CLIENTS / language)],
            input=json.dumps(calls), stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT_S,
        )  # fmt: skip
        given: list[Any] = json.loads(done.stdout)
        return given

    return play_these


def broken(later: float = 0.0, action: str = "REOPEN", **more: float) -> tuple[float, str, list[Any]]:
    """A call ends so many seconds later."""
    return later, "delay", [{"action": action, **more}]


def test_tries_are_delayed_more_and_more(play: Any) -> None:
    """The first at once, then within a bound that doubles up to 5 s."""
    assert play(*[broken()] * 10) == [0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]


def test_a_wait_that_the_server_asks_for_is_kept(play: Any) -> None:
    """That long, and up to half of it more."""
    assert play(broken(action="RETRY", retry_after_s=2.0)) == [3]


@pytest.mark.parametrize("action", ["STREAM_LOST", "DROP", "UNSPECIFIED", "99", ""])
def test_nothing_is_tried_after_any_other_action(play: Any, action: str) -> None:
    """Also not after one that is not known."""
    assert play(broken(action=action)) == ["lost"]


def test_trying_ends_after_a_minute_without_progress(play: Any) -> None:
    """It runs from the first break on; calls that are opened meanwhile are no progress."""
    assert play(broken(), (59.0, "opened", []), broken(0.9), broken(0.2)) == [0, None, 0.05, "lost"]


def test_an_idle_stream_has_the_full_time_after_a_disconnect(play: Any) -> None:
    """An hour without a disconnect does not count as an hour of failed tries."""
    assert play(broken(), (0.0, "progress", []), broken(3600.0)) == [0, None, 0]


def test_progress_resets_the_backoff(play: Any) -> None:
    """The next try comes at once, and there is another minute."""
    assert play(broken(), broken(50.0), (0.0, "progress", []), broken(50.0), broken(50.0)) == [0, 0.05, None, 0, 0.05]


def test_a_server_that_falls_over_at_once_is_not_run_over(play: Any) -> None:
    """Nothing is waited for, so there is no end to it; but the tries come later and later."""
    fall = [(40.0, "opened", []), (0.0, "idle", []), broken()]
    assert play(*fall * 4) == [None, None, 0, None, None, 0.05, None, None, 0.1, None, None, 0.2]


def test_a_call_that_lived_for_a_while_resets_the_backoff(play: Any) -> None:
    """The end of a long call resets the backoff; that of a short one does not."""
    assert play(broken(), broken(), (0.0, "opened", []), broken(5.0), broken(5.0)) == [0, 0.05, None, 0, 0.05]
    assert play(broken(), broken(), (0.0, "opened", []), broken(4.9)) == [0, 0.05, None, 0.1]
