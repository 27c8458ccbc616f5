"""The rules that a client is judged by, with the place in `docs/protocol.md` where each comes from."""

from collections.abc import Mapping
from typing import NamedTuple


class Rule(NamedTuple):
    """A rule: where it is written, and what it says."""

    source: str
    text: str


RULES: Mapping[str, Rule] = {
    "open-first": Rule("rule 1", "A call begins with an open; nothing follows before it is answered."),
    "owner-kept": Rule("rule 1", "Each open of a stream has the same owner, which is not empty."),
    "resume-from": Rule(
        "rule 1", "An open after a break says which timestep it can go on from: the first that is kept."
    ),
    "same-stream": Rule("rule 1", "An open after a break names the stream, and no existence but EXISTENCE_MUST_EXIST."),
    "numbers-in-order": Rule("rule 3", "Timesteps are numbered without a hole, from where the server goes on."),
    "same-values": Rule("rule 3", "A number has the values of its place, also when it is sent again."),
    "window": Rule("rule 4", "No more timesteps are in flight than the server remembers answers, at level 2 one."),
    "kept-bounded": Rule(
        "rule 4", "No more timesteps are sent than kept_max above the last that was told to be stored."
    ),
    "durability": Rule("level 2", "A client that keeps nothing asks for DURABILITY_SYNC."),
    "once-in-order": Rule("rule 5", "The user gets each prediction once, in order, and what was refused in its place."),
    "diverged": Rule("rule 5", "A replay that is answered otherwise than before ends the stream."),
    "act-on-action": Rule("errors", "The action decides, also of a reason that the client does not know."),
    "no-reopen-when-lost": Rule("errors", "A stream that is lost is not opened again; its user is told the reason."),
    "retry-after": Rule("errors", "What is to be sent again is not sent before the time that the server asks for."),
    "back-off": Rule("wait", "A server that is away is not asked more than some twenty times a second."),
    "open-limit": Rule("state table", "An open that is not answered within 10 s, or some more, is given up."),
    "move": Rule("state table", "After a Move nothing more is sent, and the stream is opened again."),
    "close-when-answered": Rule("rule 8", "Close comes when all is answered."),
    "half-close": Rule(
        "rule 8", "Nothing but the end of the requests follows a close; on PredictBlocks, no timestep of its stream."
    ),
    "close-until-stored": Rule("rule 8", "A stream that was closed before all was stored is opened and closed again."),
    "deadline": Rule("channel settings", "A single call has a deadline."),
    "finish": Rule("all", "The client goes on to the end of the scenario within its time."),
}
