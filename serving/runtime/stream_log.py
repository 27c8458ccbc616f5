"""One line of the log for each event in the life of a stream, and none for a timestep.

The lines are for programs that search for a stream's id: with JSON they are always there, as text only with
`--log-level debug`. Unlike other lines, they are never summed up.
"""

import logging

from tidegate.core.spec import Key, Spec
from tidegate.runtime.log_format import FIELDS

log = logging.getLogger("tidegate.life")


def log_event(event: str, key: Key, spec: Spec | None = None, **fields: str | int) -> None:
    """Logs an event, such as "opened", with the stream, its model and what else there is to know."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    known: dict[str, str | int] = {"event": event, "tenant": key.tenant, "stream": key.stream_id}
    if spec is not None:
        known |= {"model": spec.name, "version": spec.version}
    known |= fields
    more = ", ".join(f"{name} {value}" for name, value in known.items() if name not in ("event", "stream"))
    log.debug("stream %s %s: %s", key.stream_id, event, more, extra={FIELDS: known})
