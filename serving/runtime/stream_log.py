"""Tells of each event in the life of a stream, and of no timestep: one line of the log, and the attributes of a span.

The lines are for programs that search for a stream's id: with JSON they are always there, as text only with
`--log-level debug`. Unlike other lines, they are never summed up.
"""

import logging

from tidegate.core.spec import Key, Spec
from tidegate.runtime.log_format import FIELDS
from tidegate.runtime.span import NO_SPAN, Span

log = logging.getLogger("tidegate.life")


def log_event(event: str, key: Key, spec: Spec | None = None, span: Span = NO_SPAN, **fields: str | int) -> None:
    """Logs an event, such as "opened", with the stream, its model and what else there is to know.

    `span` is that of the operation which has led to it; it gets the same as attributes.
    """
    logged = log.isEnabledFor(logging.DEBUG)
    if not logged and span is NO_SPAN:
        return
    known: dict[str, str | int] = {"event": event, "tenant": key.tenant, "stream": key.stream_id}
    if spec is not None:
        known |= {"model": spec.name, "version": spec.version}
    known |= fields
    span.describe(known)
    if logged:
        more = ", ".join(f"{name} {value}" for name, value in known.items() if name not in ("event", "stream"))
        log.debug("stream %s %s: %s", key.stream_id, event, more, extra={FIELDS: known})
