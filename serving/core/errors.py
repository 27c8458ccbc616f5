"""All errors of the server, named by what was refused.

    TidegateError
    ├── TimestepRefused        one timestep; the stream stays usable and keeps its state
    │   ├── WrongWidth           not one value for each feature
    │   ├── NotFinite            a value is infinite, or is NaN and the model does not handle missing values
    │   ├── StepGap              timesteps are missing before this one
    │   ├── ValuesDiffer         its number was applied with other values
    │   ├── NoStepLeft           the stream has used the last possible number
    │   ├── Overloaded           the queue is full
    │   ├── StepsLimited         the tenant sends more timesteps a second than it may
    │   ├── StoreBehind          the store has not saved state for too long
    │   ├── ParkedAgain          its stream was parked before it could run
    │   └── ModelFailed          the model raised, or produced a state that is not finite
    │       └── RunEnded           its run took too long
    ├── StreamRefused          an open, or a request about a stream or a model
    │   ├── InvalidField         a field of the request is out of range
    │   ├── WrongOrder           a timestep before open, a second open
    │   ├── ModelNotFound
    │   ├── ModelNotNamed        several are served and the open names none
    │   ├── DefaultNotChanged    the default version of a model cannot be written
    │   ├── ModelMismatch        the stream runs under another model or version
    │   ├── StreamNotFound
    │   ├── StreamExists
    │   ├── StreamExpired        it was silent for too long and its state was deleted
    │   ├── TooManyStreams
    │   ├── OpensLimited         the tenant opens more streams a second than it may
    │   └── StateLost            the stored state is older than what the server acknowledged
    ├── LeaseEnded             a call no longer holds its stream
    │   ├── TakenOver            another call has opened it
    │   └── Stopping             the server stops
    ├── CheckpointBroken       a stored state is damaged, foreign or of a newer format; nothing of it is used
    ├── StoreUnavailable       the store cannot be read or written
    │   └── StoreGone            the store was removed or replaced; only a restart of the server helps
    ├── Unauthenticated        the token is missing or unknown
    ├── PermissionDenied       the token does not allow the call
    └── ContractBroken         a model file cannot be served; raised when it is loaded

Attributes carry the values. `tidegate.rpc.status` maps each error to a gRPC status.
"""

import math
from collections.abc import Sequence

# People read error messages, so long lists and long names are cut.
NAMES_MAX = 8
NAME_CHARACTERS_MAX = 64


class TidegateError(Exception):
    """The base class of all errors of the server."""


class TimestepRefused(TidegateError):
    """One timestep was refused. The stream stays usable and keeps its state."""


class WrongWidth(TimestepRefused):
    """A timestep does not have one float32 for each feature."""

    def __init__(self, got_bytes: int, expected_features: Sequence[str]) -> None:
        self.got_bytes = got_bytes
        self.expected_features = tuple(expected_features)
        count = len(self.expected_features)
        got = f"{got_bytes} bytes" if got_bytes % 4 else f"{got_bytes // 4} numbers in {got_bytes} bytes"
        super().__init__(
            f"values: got {got}, expected {4 * count}: one little-endian float32 for each of {count} features "
            f"({join_names(self.expected_features)})"
        )


class NotFinite(TimestepRefused):
    """A timestep holds an infinite value, or NaN for a model that does not handle missing values.

    `field` is the field of the request: "values", or "inputs" for an input that is sent by name.
    """

    def __init__(self, feature: str, value: float, model: str, *, field: str = "values") -> None:
        self.feature = feature
        self.value = value
        self.field = field
        expected = "a finite number"
        if not math.isnan(value):
            expected += ", or NaN where it is missing"
        else:
            expected += f"; model {model} does not handle missing values"
        what = "feature" if field == "values" else "input"
        super().__init__(f"{field}: {what} '{_shorten(feature)}' is {value}, expected {expected}")


class StepGap(TimestepRefused):
    """Timesteps are missing before this one."""

    def __init__(self, got: int, expected: int) -> None:
        self.got = got
        self.expected = expected
        super().__init__(f"step: got {got}, expected {expected}; send the timesteps from {expected} on")


class ValuesDiffer(TimestepRefused):
    """A timestep with this number was applied with other values. Two clients write, or one has lost count."""

    def __init__(self, step: int) -> None:
        self.step = step
        super().__init__(
            f"values: timestep {step} was applied with other values; another client writes to this stream, or this one has lost "
            "count: find out which before you continue"
        )


class NoStepLeft(TimestepRefused):
    """The stream has used the last possible timestep number."""

    def __init__(self, last: int) -> None:
        super().__init__(f"step: the stream is at {last}, the last possible number; begin another stream")


class Overloaded(TimestepRefused):
    """The queue is full."""

    def __init__(self, limit: int, retry_after_ms: int) -> None:
        self.limit = limit
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"the queue of {limit} timesteps is full; send this timestep again in {retry_after_ms} ms or later"
        )


class StepsLimited(TimestepRefused):
    """The tenant sends more timesteps a second than it may."""

    def __init__(self, rate: float, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"the tenant may send {rate:g} timesteps a second; send this again in {retry_after_ms} ms or later"
        )


class StoreBehind(TimestepRefused):
    """The store has been slow or unreachable for too long, and too much state is unsaved."""

    def __init__(self, unsaved_seconds: float, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"the store is {unsaved_seconds:.1f} s behind, so new timesteps are refused; "
            f"send this one again in {retry_after_ms} ms or later"
        )


class ParkedAgain(TimestepRefused):
    """The stream was woken, and parked again before the timestep could run."""

    def __init__(self, stream_id: str, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"stream '{stream_id}' was parked again before its timestep could run; send it again in {retry_after_ms} ms or later"
        )


class ModelFailed(TimestepRefused):
    """The model raised, or produced a state that is not finite. Nothing was written."""


class RunEnded(ModelFailed):
    """A run of the model took too long and was ended."""


class StreamRefused(TidegateError):
    """An open, or a request about a stream or a model, was refused. Nothing has changed."""


class InvalidField(StreamRefused):
    """A field of a request is out of range."""

    def __init__(self, field: str, message: str) -> None:
        self.field = field
        super().__init__(f"{field}: {message}")


class WrongOrder(StreamRefused):
    """A message came at a point where the protocol does not allow it."""


class ModelNotFound(StreamRefused):
    """The model is not served."""

    def __init__(self, name: str, version: str, served: Sequence[str]) -> None:
        self.name = name
        self.version = version
        wanted = f"{name}/{version}" if version else name
        super().__init__(f"model: '{_shorten(wanted)}' is not served; served are {join_names(served)}")


class ModelNotNamed(StreamRefused):
    """Several models are served and the request names none."""

    def __init__(self, served: Sequence[str]) -> None:
        super().__init__(f"model: none was named and several are served: {join_names(served)}; name one of them")


class DefaultNotChanged(StreamRefused):
    """The default version of a model could not be changed."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"model {name}: {problem}; its default version stays as it is")


class ModelMismatch(StreamRefused):
    """The stream runs under another model or version."""

    def __init__(self, stream_id: str, wanted: str, runs_under: str) -> None:
        self.stream_id = stream_id
        self.wanted = wanted
        self.runs_under = runs_under
        super().__init__(
            f"model: stream '{stream_id}' runs under {runs_under}, not {wanted}; its state is not valid for other weights: "
            "open it with its own model, or begin another stream"
        )


class StreamNotFound(StreamRefused):
    """There is no such stream."""

    def __init__(self, stream_id: str, hint: str = "") -> None:
        self.stream_id = stream_id
        super().__init__(f"stream_id: no stream '{stream_id}'" + (f"; {hint}" if hint else ""))


class StreamExists(StreamRefused):
    """There is already a stream with this id."""

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        super().__init__(f"stream_id: stream '{stream_id}' exists; open it without EXISTENCE_MUST_BE_NEW to resume it")


class TooManyStreams(StreamRefused):
    """A limit on streams is reached."""

    def __init__(self, what: str, limit: int, retry_after_ms: int, *, holder: str = "the server") -> None:
        self.limit = limit
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"{holder} has reached its limit of {limit} {what} streams; try again in {retry_after_ms} ms or later"
        )


class StreamExpired(StreamRefused):
    """The stream was silent for too long and its state was deleted. Only its last step number is known."""

    def __init__(self, stream_id: str, step: int) -> None:
        self.stream_id = stream_id
        self.step = step
        super().__init__(
            f"stream_id: stream '{stream_id}' has expired after long silence; its last timestep was {step}. "
            "Open it with EXISTENCE_MUST_BE_NEW to begin again"
        )


class OpensLimited(StreamRefused):
    """The tenant opens more streams a second than it may."""

    def __init__(self, rate: float, retry_after_ms: int) -> None:
        self.retry_after_ms = retry_after_ms
        super().__init__(
            f"the tenant may open {rate:g} streams a second; open it again in {retry_after_ms} ms or later"
        )


class StateLost(StreamRefused):
    """The stored state is older than what was reported to the client. Neither side has the timesteps between."""

    def __init__(self, stream_id: str, kept_step: int, stored_step: int) -> None:
        self.stream_id = stream_id
        self.kept_step = kept_step
        self.stored_step = stored_step
        super().__init__(
            f"stream '{stream_id}' is stored up to timestep {kept_step}, but was reported as stored up to {stored_step}: "
            "the timesteps between are lost; "
            f"open it with resume_from 0 to continue with timestep {kept_step + 1} nevertheless"
        )


class LeaseEnded(TidegateError):
    """A call no longer holds its stream. The answers that it got stay valid."""


class TakenOver(LeaseEnded):
    """Another client has opened the stream."""

    def __init__(self, stream_id: str, epoch: int) -> None:
        self.stream_id = stream_id
        self.epoch = epoch
        super().__init__(
            f"stream '{stream_id}' was opened by another client, which holds it under epoch {epoch}: "
            "find out which before you open it again"
        )


class Stopping(LeaseEnded):
    """The server stops."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; open the stream again at another replica or a little later")


class CheckpointBroken(TidegateError):
    """A stored state is damaged, foreign or of a newer format. Nothing of it is used."""

    def __init__(self, where: str, message: str) -> None:
        self.where = where
        self.message = message
        super().__init__(f"{where}: {message}")


class StoreUnavailable(TidegateError):
    """The store cannot be read or written."""

    retry_after_ms = 1000

    def __init__(self, store: str, message: str) -> None:
        super().__init__(f"store {store}: {message}" if store else message)


class StoreGone(StoreUnavailable):
    """The store was removed or replaced while it was in use. Only a restart of the server helps."""


class Unauthenticated(TidegateError):
    """The token of a call is missing or unknown."""


class PermissionDenied(TidegateError):
    """The token of a call does not allow it."""


class ContractBroken(TidegateError):
    """A model file cannot be served. `mistakes` has every reason that was found."""

    def __init__(self, where: str, *mistakes: str) -> None:
        self.where = where
        self.mistakes = mistakes
        listed = (f"({number}) {mistake}" for number, mistake in enumerate(mistakes, 1))
        super().__init__(
            f"{where}: {mistakes[0]}"
            if len(mistakes) == 1
            else f"{where}: {len(mistakes)} mistakes: {'; '.join(listed)}"
        )


def _shorten(name: str) -> str:
    """A name, cut to a length that fits a message."""
    return name if len(name) <= NAME_CHARACTERS_MAX else f"{name[:NAME_CHARACTERS_MAX]}..."


def join_names(names: Sequence[str]) -> str:
    """A list of names, cut to a length that fits a message."""
    more = len(names) - NAMES_MAX
    listed = ", ".join(map(_shorten, names[:NAMES_MAX])) or "none"
    return f"{listed} and {more} more" if more > 0 else listed
