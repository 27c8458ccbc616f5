"""The rules for a client, and where `docs/protocol.md` states each of them."""

from collections.abc import Mapping
from typing import NamedTuple


class Rule(NamedTuple):
    """A rule: where it is stated, and its text."""

    source: str
    text: str


class Violation(NamedTuple):
    """A violated rule, and what was observed."""

    rule: str
    detail: str


RULES: Mapping[str, Rule] = {
    "open-first": Rule("rule 1", "A call starts with an open, and the client sends nothing more before the answer."),
    "owner-kept": Rule("rule 1", "All opens of a stream have the same owner, and it is not empty."),
    "resume-from": Rule(
        "rule 1", "An open after a break has in `resume_from` the first timestep that the client keeps."
    ),
    "same-stream": Rule(
        "rule 1", "An open after a break names the same stream, with no existence or EXISTENCE_MUST_EXIST."
    ),
    "numbers-in-order": Rule("rule 3", "Timesteps have consecutive numbers, starting with the server's `next_step`."),
    "same-values": Rule("rule 3", "A timestep always has the same values, also when it is sent again."),
    "window": Rule("rule 4", "At most `answers_remembered` timesteps are in flight, at level 2 only one."),
    "kept-bounded": Rule("rule 4", "The client sends at most `kept_max` timesteps beyond the last durable one."),
    "durability": Rule("level 2", "A client that keeps no timesteps asks for DURABILITY_SYNC."),
    "once-in-order": Rule(
        "rule 5", "The user gets each prediction and each refusal once, in the order of the timesteps."
    ),
    "diverged": Rule("rule 5", "The stream ends when a timestep that is sent again gets another answer."),
    "act-on-action": Rule("errors", "The client obeys the action, also for a reason that it does not know."),
    "no-reopen-when-lost": Rule(
        "errors", "The client does not open a lost stream again, and tells its user the reason."
    ),
    "retry-after": Rule("errors", "The client sends a timestep again only after the time that the server asks for."),
    "back-off": Rule("wait", "The client tries an unavailable server at most about twenty times a second."),
    "open-limit": Rule("state table", "The client gives up an open without an answer after 10 s or slightly more."),
    "move": Rule("state table", "After a Move the client sends nothing more, and opens the stream again."),
    "close-when-answered": Rule("rule 8", "The client sends the close when all timesteps are answered."),
    "half-close": Rule(
        "rule 8", "After a close the client ends the requests; on PredictBlocks it sends no timestep of that stream."
    ),
    "close-until-stored": Rule(
        "rule 8", "The client opens and closes a stream again when not all of it was durable at the close."
    ),
    "deadline": Rule("channel settings", "A call of PredictOne has a deadline."),
    "finish": Rule("all", "The client reaches the end of the scenario in time."),
}
