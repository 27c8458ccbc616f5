from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    FLOAT32: _ClassVar[DataType]
    FLOAT64: _ClassVar[DataType]
    INT32: _ClassVar[DataType]
    INT64: _ClassVar[DataType]
    BOOL: _ClassVar[DataType]
DATA_TYPE_UNSPECIFIED: DataType
FLOAT32: DataType
FLOAT64: DataType
INT32: DataType
INT64: DataType
BOOL: DataType

class PredictRequest(_message.Message):
    __slots__ = ("timestep", "open", "close")
    TIMESTEP_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    timestep: Timestep
    open: Open
    close: Close
    def __init__(self, timestep: _Optional[_Union[Timestep, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., close: _Optional[_Union[Close, _Mapping]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("prediction", "opened", "error", "durable", "move", "closed")
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    prediction: Prediction
    opened: Opened
    error: Error
    durable: Durable
    move: Move
    closed: Closed
    def __init__(self, prediction: _Optional[_Union[Prediction, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., durable: _Optional[_Union[Durable, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("stream_id", "model", "version", "existence", "durability", "acknowledged_step", "kept_max")
    class Existence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        EXISTENCE_UNSPECIFIED: _ClassVar[Open.Existence]
        MUST_EXIST: _ClassVar[Open.Existence]
        MUST_BE_NEW: _ClassVar[Open.Existence]
    EXISTENCE_UNSPECIFIED: Open.Existence
    MUST_EXIST: Open.Existence
    MUST_BE_NEW: Open.Existence
    class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DURABILITY_UNSPECIFIED: _ClassVar[Open.Durability]
        SYNC: _ClassVar[Open.Durability]
    DURABILITY_UNSPECIFIED: Open.Durability
    SYNC: Open.Durability
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXISTENCE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEP_FIELD_NUMBER: _ClassVar[int]
    KEPT_MAX_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    model: str
    version: str
    existence: Open.Existence
    durability: Open.Durability
    acknowledged_step: int
    kept_max: int
    def __init__(self, stream_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., existence: _Optional[_Union[Open.Existence, str]] = ..., durability: _Optional[_Union[Open.Durability, str]] = ..., acknowledged_step: _Optional[int] = ..., kept_max: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("stream_id", "kind", "next_step", "epoch", "durable_step", "answers_remembered", "model")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Opened.Kind]
        NEW: _ClassVar[Opened.Kind]
        RESUMED: _ClassVar[Opened.Kind]
        TAKEN_OVER: _ClassVar[Opened.Kind]
    KIND_UNSPECIFIED: Opened.Kind
    NEW: Opened.Kind
    RESUMED: Opened.Kind
    TAKEN_OVER: Opened.Kind
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    kind: Opened.Kind
    next_step: int
    epoch: int
    durable_step: int
    answers_remembered: int
    model: Model
    def __init__(self, stream_id: _Optional[str] = ..., kind: _Optional[_Union[Opened.Kind, str]] = ..., next_step: _Optional[int] = ..., epoch: _Optional[int] = ..., durable_step: _Optional[int] = ..., answers_remembered: _Optional[int] = ..., model: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class Timestep(_message.Message):
    __slots__ = ("step", "values")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    step: int
    values: bytes
    def __init__(self, step: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("step", "outputs", "durable_step", "duplicate")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    step: int
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    durable_step: int
    duplicate: bool
    def __init__(self, step: _Optional[int] = ..., outputs: _Optional[_Iterable[bytes]] = ..., durable_step: _Optional[int] = ..., duplicate: _Optional[bool] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("forget",)
    FORGET_FIELD_NUMBER: _ClassVar[int]
    forget: bool
    def __init__(self, forget: _Optional[bool] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("step", "durable_step")
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    step: int
    durable_step: int
    def __init__(self, step: _Optional[int] = ..., durable_step: _Optional[int] = ...) -> None: ...

class Durable(_message.Message):
    __slots__ = ("durable_step",)
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    durable_step: int
    def __init__(self, durable_step: _Optional[int] = ...) -> None: ...

class Move(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("step", "reason", "message", "field", "next_step", "retry_after_ms")
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Error.Reason]
        WRONG_WIDTH: _ClassVar[Error.Reason]
        NOT_FINITE: _ClassVar[Error.Reason]
        INVALID_FIELD: _ClassVar[Error.Reason]
        STEP_GAP: _ClassVar[Error.Reason]
        OVERLOADED: _ClassVar[Error.Reason]
        MODEL_FAILED: _ClassVar[Error.Reason]
        WRONG_ORDER: _ClassVar[Error.Reason]
        MODEL_NOT_FOUND: _ClassVar[Error.Reason]
        STREAM_NOT_FOUND: _ClassVar[Error.Reason]
        STREAM_EXISTS: _ClassVar[Error.Reason]
        MODEL_MISMATCH: _ClassVar[Error.Reason]
        TOO_MANY_STREAMS: _ClassVar[Error.Reason]
        TAKEN_OVER: _ClassVar[Error.Reason]
        STOPPING: _ClassVar[Error.Reason]
        STREAM_EXPIRED: _ClassVar[Error.Reason]
        STATE_LOST: _ClassVar[Error.Reason]
        STORE_UNAVAILABLE: _ClassVar[Error.Reason]
        UNAUTHENTICATED: _ClassVar[Error.Reason]
        STATE_UNREADABLE: _ClassVar[Error.Reason]
    REASON_UNSPECIFIED: Error.Reason
    WRONG_WIDTH: Error.Reason
    NOT_FINITE: Error.Reason
    INVALID_FIELD: Error.Reason
    STEP_GAP: Error.Reason
    OVERLOADED: Error.Reason
    MODEL_FAILED: Error.Reason
    WRONG_ORDER: Error.Reason
    MODEL_NOT_FOUND: Error.Reason
    STREAM_NOT_FOUND: Error.Reason
    STREAM_EXISTS: Error.Reason
    MODEL_MISMATCH: Error.Reason
    TOO_MANY_STREAMS: Error.Reason
    TAKEN_OVER: Error.Reason
    STOPPING: Error.Reason
    STREAM_EXPIRED: Error.Reason
    STATE_LOST: Error.Reason
    STORE_UNAVAILABLE: Error.Reason
    UNAUTHENTICATED: Error.Reason
    STATE_UNREADABLE: Error.Reason
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    step: int
    reason: Error.Reason
    message: str
    field: str
    next_step: int
    retry_after_ms: int
    def __init__(self, step: _Optional[int] = ..., reason: _Optional[_Union[Error.Reason, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., next_step: _Optional[int] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class BlockRequest(_message.Message):
    __slots__ = ("block", "open", "close")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    block: Block
    open: OpenStreams
    close: CloseStreams
    def __init__(self, block: _Optional[_Union[Block, _Mapping]] = ..., open: _Optional[_Union[OpenStreams, _Mapping]] = ..., close: _Optional[_Union[CloseStreams, _Mapping]] = ...) -> None: ...

class BlockResponse(_message.Message):
    __slots__ = ("block", "opened", "closed", "durable", "ended", "move")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    block: PredictedBlock
    opened: OpenedStreams
    closed: ClosedStreams
    durable: DurableStreams
    ended: EndedStreams
    move: Move
    def __init__(self, block: _Optional[_Union[PredictedBlock, _Mapping]] = ..., opened: _Optional[_Union[OpenedStreams, _Mapping]] = ..., closed: _Optional[_Union[ClosedStreams, _Mapping]] = ..., durable: _Optional[_Union[DurableStreams, _Mapping]] = ..., ended: _Optional[_Union[EndedStreams, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ...) -> None: ...

class OpenStreams(_message.Message):
    __slots__ = ("stream_ids", "model", "version", "existence", "durability", "acknowledged_steps")
    STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXISTENCE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_STEPS_FIELD_NUMBER: _ClassVar[int]
    stream_ids: _containers.RepeatedScalarFieldContainer[str]
    model: str
    version: str
    existence: Open.Existence
    durability: Open.Durability
    acknowledged_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stream_ids: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., existence: _Optional[_Union[Open.Existence, str]] = ..., durability: _Optional[_Union[Open.Durability, str]] = ..., acknowledged_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenedStreams(_message.Message):
    __slots__ = ("stream_ids", "handles", "kinds", "next_steps", "epochs", "durable_steps", "answers_remembered", "model", "errors")
    STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    stream_ids: _containers.RepeatedScalarFieldContainer[str]
    handles: _containers.RepeatedScalarFieldContainer[int]
    kinds: _containers.RepeatedScalarFieldContainer[Opened.Kind]
    next_steps: _containers.RepeatedScalarFieldContainer[int]
    epochs: _containers.RepeatedScalarFieldContainer[int]
    durable_steps: _containers.RepeatedScalarFieldContainer[int]
    answers_remembered: int
    model: Model
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    def __init__(self, stream_ids: _Optional[_Iterable[str]] = ..., handles: _Optional[_Iterable[int]] = ..., kinds: _Optional[_Iterable[_Union[Opened.Kind, str]]] = ..., next_steps: _Optional[_Iterable[int]] = ..., epochs: _Optional[_Iterable[int]] = ..., durable_steps: _Optional[_Iterable[int]] = ..., answers_remembered: _Optional[int] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("block", "handles", "steps", "values")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    block: int
    handles: bytes
    steps: bytes
    values: bytes
    def __init__(self, block: _Optional[int] = ..., handles: _Optional[bytes] = ..., steps: _Optional[bytes] = ..., values: _Optional[bytes] = ...) -> None: ...

class PredictedBlock(_message.Message):
    __slots__ = ("block", "steps", "outputs", "durable_steps", "duplicate_rows", "forgotten_rows", "errors", "refused")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_ROWS_FIELD_NUMBER: _ClassVar[int]
    FORGOTTEN_ROWS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    block: int
    steps: bytes
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    durable_steps: bytes
    duplicate_rows: _containers.RepeatedScalarFieldContainer[int]
    forgotten_rows: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    refused: Error
    def __init__(self, block: _Optional[int] = ..., steps: _Optional[bytes] = ..., outputs: _Optional[_Iterable[bytes]] = ..., durable_steps: _Optional[bytes] = ..., duplicate_rows: _Optional[_Iterable[int]] = ..., forgotten_rows: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., refused: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class RowError(_message.Message):
    __slots__ = ("row", "error")
    ROW_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    row: int
    error: Error
    def __init__(self, row: _Optional[int] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class CloseStreams(_message.Message):
    __slots__ = ("handles", "forget")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    forget: bool
    def __init__(self, handles: _Optional[_Iterable[int]] = ..., forget: _Optional[bool] = ...) -> None: ...

class ClosedStreams(_message.Message):
    __slots__ = ("steps", "durable_steps", "errors")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedScalarFieldContainer[int]
    durable_steps: _containers.RepeatedScalarFieldContainer[int]
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    def __init__(self, steps: _Optional[_Iterable[int]] = ..., durable_steps: _Optional[_Iterable[int]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ...) -> None: ...

class DurableStreams(_message.Message):
    __slots__ = ("handles", "durable_steps")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    handles: bytes
    durable_steps: bytes
    def __init__(self, handles: _Optional[bytes] = ..., durable_steps: _Optional[bytes] = ...) -> None: ...

class EndedStreams(_message.Message):
    __slots__ = ("handles", "error")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    error: Error
    def __init__(self, handles: _Optional[_Iterable[int]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "task", "period_seconds", "features", "outputs", "state", "batch_invariant", "handles_missing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    HANDLES_MISSING_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    fingerprint: str
    task: str
    period_seconds: float
    features: _containers.RepeatedCompositeFieldContainer[Feature]
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    state: _containers.RepeatedCompositeFieldContainer[StateTensor]
    batch_invariant: bool
    handles_missing: bool
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., task: _Optional[str] = ..., period_seconds: _Optional[float] = ..., features: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[StateTensor, _Mapping]]] = ..., batch_invariant: _Optional[bool] = ..., handles_missing: _Optional[bool] = ...) -> None: ...

class Feature(_message.Message):
    __slots__ = ("name", "unit", "low", "high")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    low: float
    high: float
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("name", "data_type", "shape", "targets", "units", "horizons", "quantiles")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    UNITS_FIELD_NUMBER: _ClassVar[int]
    HORIZONS_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    targets: _containers.RepeatedScalarFieldContainer[str]
    units: _containers.RepeatedScalarFieldContainer[str]
    horizons: _containers.RepeatedScalarFieldContainer[int]
    quantiles: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., targets: _Optional[_Iterable[str]] = ..., units: _Optional[_Iterable[str]] = ..., horizons: _Optional[_Iterable[int]] = ..., quantiles: _Optional[_Iterable[float]] = ...) -> None: ...

class StateTensor(_message.Message):
    __slots__ = ("name", "data_type", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class DescribeModelResponse(_message.Message):
    __slots__ = ("model", "card_json")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CARD_JSON_FIELD_NUMBER: _ClassVar[int]
    model: Model
    card_json: str
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., card_json: _Optional[str] = ...) -> None: ...

class Stream(_message.Message):
    __slots__ = ("stream_id", "state", "model", "version", "fingerprint", "step", "durable_step", "epoch", "created_unix_nano", "updated_unix_nano", "state_bytes")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Stream.State]
        LIVE: _ClassVar[Stream.State]
        PARKED: _ClassVar[Stream.State]
        EXPIRED: _ClassVar[Stream.State]
    STATE_UNSPECIFIED: Stream.State
    LIVE: Stream.State
    PARKED: Stream.State
    EXPIRED: Stream.State
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    UPDATED_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    state: Stream.State
    model: str
    version: str
    fingerprint: str
    step: int
    durable_step: int
    epoch: int
    created_unix_nano: int
    updated_unix_nano: int
    state_bytes: int
    def __init__(self, stream_id: _Optional[str] = ..., state: _Optional[_Union[Stream.State, str]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., epoch: _Optional[int] = ..., created_unix_nano: _Optional[int] = ..., updated_unix_nano: _Optional[int] = ..., state_bytes: _Optional[int] = ...) -> None: ...

class ListStreamsRequest(_message.Message):
    __slots__ = ("prefix", "state", "page_size", "page_token")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    state: Stream.State
    page_size: int
    page_token: str
    def __init__(self, prefix: _Optional[str] = ..., state: _Optional[_Union[Stream.State, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListStreamsResponse(_message.Message):
    __slots__ = ("streams", "next_page_token")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[Stream]
    next_page_token: str
    def __init__(self, streams: _Optional[_Iterable[_Union[Stream, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DescribeStreamRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class DescribeStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class DeleteStreamRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class DeleteStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class ExportStreamRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class ExportStreamResponse(_message.Message):
    __slots__ = ("checkpoint", "stream")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    stream: Stream
    def __init__(self, checkpoint: _Optional[bytes] = ..., stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class ImportStreamRequest(_message.Message):
    __slots__ = ("checkpoint", "stream_id")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    checkpoint: bytes
    stream_id: str
    def __init__(self, checkpoint: _Optional[bytes] = ..., stream_id: _Optional[str] = ...) -> None: ...

class ImportStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class ForkStreamRequest(_message.Message):
    __slots__ = ("stream_id", "new_stream_id")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    NEW_STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    new_stream_id: str
    def __init__(self, stream_id: _Optional[str] = ..., new_stream_id: _Optional[str] = ...) -> None: ...

class ForkStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...
