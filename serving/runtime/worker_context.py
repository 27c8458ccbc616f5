"""The context of a worker: what it has from its supervisor."""

from collections.abc import Sequence
from dataclasses import dataclass

from tidegate.runtime.model_messages import RemoteControl
from tidegate.runtime.shared_counters import SharedCounters


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """The context of a worker with a supervisor: it shares the port, and the supervisor reads its metrics.

    `counters_fd` is the descriptor of an empty file for its metrics, `previous_counters` are those of the worker before
    it with this number. Only the worker with `is_first` logs what concerns all. `control` is the supervisor, which
    decides what is served.
    """

    counters_fd: int
    previous_counters: Sequence[SharedCounters]
    is_first: bool
    control: RemoteControl
