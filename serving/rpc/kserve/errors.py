"""Errors of this protocol alone. The texts begin with those of Triton, which clients may look for."""

from collections.abc import Sequence

from tidegate.core.errors import InvalidField, StoreBehind


class StartMissing(InvalidField):
    """A request for an unknown sequence does not begin it."""

    def __init__(self, stream_id: str, model: str, hint: str = "") -> None:
        super().__init__("sequence_start", "missing")
        text = (
            f"inference request for sequence {stream_id} to model '{model}' must specify the START flag on the first "
            f"request of the sequence{hint}"
        )
        self.args = (text,)


class SequenceMissing(InvalidField):
    """A request belongs to no sequence."""

    def __init__(self, model: str) -> None:
        super().__init__("sequence_id", "missing")
        text = (
            f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID; "
            "set sequence_id: the model keeps a state for each sequence"
        )
        self.args = (text,)


class NotStored(StoreBehind):
    """A timestep was applied, and the store is too slow to store it."""

    def __init__(self, step: int, error: StoreBehind) -> None:
        super().__init__(0.0, error.retry_after_ms)
        self.step = step
        text = (
            f"step {step} was applied and is not stored yet, because the store is too slow; send it again with the "
            f"parameter step = {step} to get its answer: without a number it would be applied twice"
        )
        self.args = (text,)


class ModelNotLoaded(InvalidField):
    """Versions of a model were refused. Those that were served before are served on."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("model_name", "; ".join(reasons))
