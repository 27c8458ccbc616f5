import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Existence(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXISTENCE_UNSPECIFIED: _ClassVar[Existence]
    EXISTENCE_MUST_EXIST: _ClassVar[Existence]
    EXISTENCE_MUST_BE_NEW: _ClassVar[Existence]

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_SYNC: _ClassVar[Durability]
    DURABILITY_ASYNC: _ClassVar[Durability]

class OutputFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_FORMAT_UNSPECIFIED: _ClassVar[OutputFormat]
    OUTPUT_FORMAT_PACKED: _ClassVar[OutputFormat]
    OUTPUT_FORMAT_NUMBERS: _ClassVar[OutputFormat]

class NewState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NEW_STATE_UNSPECIFIED: _ClassVar[NewState]
    NEW_STATE_REWARMED: _ClassVar[NewState]
    NEW_STATE_RESET: _ClassVar[NewState]

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_FLOAT64: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_INT16: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_UINT16: _ClassVar[DataType]
    DATA_TYPE_UINT32: _ClassVar[DataType]
    DATA_TYPE_UINT64: _ClassVar[DataType]
EXISTENCE_UNSPECIFIED: Existence
EXISTENCE_MUST_EXIST: Existence
EXISTENCE_MUST_BE_NEW: Existence
DURABILITY_UNSPECIFIED: Durability
DURABILITY_SYNC: Durability
DURABILITY_ASYNC: Durability
OUTPUT_FORMAT_UNSPECIFIED: OutputFormat
OUTPUT_FORMAT_PACKED: OutputFormat
OUTPUT_FORMAT_NUMBERS: OutputFormat
NEW_STATE_UNSPECIFIED: NewState
NEW_STATE_REWARMED: NewState
NEW_STATE_RESET: NewState
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_FLOAT64: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_UINT16: DataType
DATA_TYPE_UINT32: DataType
DATA_TYPE_UINT64: DataType

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
    __slots__ = ("prediction", "opened", "error", "durable", "move", "closed", "moved")
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    prediction: Prediction
    opened: Opened
    error: Error
    durable: Durable
    move: Move
    closed: Closed
    moved: Moved
    def __init__(self, prediction: _Optional[_Union[Prediction, _Mapping]] = ..., opened: _Optional[_Union[Opened, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., durable: _Optional[_Union[Durable, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ..., moved: _Optional[_Union[Moved, _Mapping]] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("stream_id", "model", "version", "existence", "durability", "owner", "resume_from", "kept_max", "output_format", "inputs", "accept_move", "answered")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXISTENCE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    KEPT_MAX_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_MOVE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    model: str
    version: str
    existence: Existence
    durability: Durability
    owner: str
    resume_from: int
    kept_max: int
    output_format: OutputFormat
    inputs: _containers.RepeatedCompositeFieldContainer[InputValues]
    accept_move: bool
    answered: int
    def __init__(self, stream_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., existence: _Optional[_Union[Existence, str]] = ..., durability: _Optional[_Union[Durability, str]] = ..., owner: _Optional[str] = ..., resume_from: _Optional[int] = ..., kept_max: _Optional[int] = ..., output_format: _Optional[_Union[OutputFormat, str]] = ..., inputs: _Optional[_Iterable[_Union[InputValues, _Mapping]]] = ..., accept_move: bool = ..., answered: _Optional[int] = ...) -> None: ...

class Opened(_message.Message):
    __slots__ = ("stream_id", "kind", "next_step", "epoch", "durable_step", "answers_remembered", "model", "owner_changed", "message_bytes_max", "new_state")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Opened.Kind]
        KIND_NEW: _ClassVar[Opened.Kind]
        KIND_RESUMED: _ClassVar[Opened.Kind]
        KIND_TAKEN_OVER: _ClassVar[Opened.Kind]
    KIND_UNSPECIFIED: Opened.Kind
    KIND_NEW: Opened.Kind
    KIND_RESUMED: Opened.Kind
    KIND_TAKEN_OVER: Opened.Kind
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OWNER_CHANGED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    NEW_STATE_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    kind: Opened.Kind
    next_step: int
    epoch: int
    durable_step: int
    answers_remembered: int
    model: Model
    owner_changed: bool
    message_bytes_max: int
    new_state: NewState
    def __init__(self, stream_id: _Optional[str] = ..., kind: _Optional[_Union[Opened.Kind, str]] = ..., next_step: _Optional[int] = ..., epoch: _Optional[int] = ..., durable_step: _Optional[int] = ..., answers_remembered: _Optional[int] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., owner_changed: bool = ..., message_bytes_max: _Optional[int] = ..., new_state: _Optional[_Union[NewState, str]] = ...) -> None: ...

class Moved(_message.Message):
    __slots__ = ("model", "new_state")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NEW_STATE_FIELD_NUMBER: _ClassVar[int]
    model: Model
    new_state: NewState
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., new_state: _Optional[_Union[NewState, str]] = ...) -> None: ...

class Timestep(_message.Message):
    __slots__ = ("step", "values", "numbers", "inputs")
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    step: int
    values: bytes
    numbers: _containers.RepeatedScalarFieldContainer[float]
    inputs: _containers.RepeatedCompositeFieldContainer[InputValues]
    def __init__(self, step: _Optional[int] = ..., values: _Optional[bytes] = ..., numbers: _Optional[_Iterable[float]] = ..., inputs: _Optional[_Iterable[_Union[InputValues, _Mapping]]] = ...) -> None: ...

class InputValues(_message.Message):
    __slots__ = ("name", "values")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: bytes
    def __init__(self, name: _Optional[str] = ..., values: _Optional[bytes] = ...) -> None: ...

class Prediction(_message.Message):
    __slots__ = ("step", "outputs", "durable_step", "duplicate", "output_numbers")
    STEP_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    step: int
    outputs: _containers.RepeatedScalarFieldContainer[bytes]
    durable_step: int
    duplicate: bool
    output_numbers: _containers.RepeatedCompositeFieldContainer[Numbers]
    def __init__(self, step: _Optional[int] = ..., outputs: _Optional[_Iterable[bytes]] = ..., durable_step: _Optional[int] = ..., duplicate: bool = ..., output_numbers: _Optional[_Iterable[_Union[Numbers, _Mapping]]] = ...) -> None: ...

class Numbers(_message.Message):
    __slots__ = ("numbers",)
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, numbers: _Optional[_Iterable[float]] = ...) -> None: ...

class PredictOneRequest(_message.Message):
    __slots__ = ("stream_id", "model", "version", "step", "values", "numbers", "durability", "output_format", "inputs", "stream_inputs")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FORMAT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    STREAM_INPUTS_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    model: str
    version: str
    step: int
    values: bytes
    numbers: _containers.RepeatedScalarFieldContainer[float]
    durability: Durability
    output_format: OutputFormat
    inputs: _containers.RepeatedCompositeFieldContainer[InputValues]
    stream_inputs: _containers.RepeatedCompositeFieldContainer[InputValues]
    def __init__(self, stream_id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., step: _Optional[int] = ..., values: _Optional[bytes] = ..., numbers: _Optional[_Iterable[float]] = ..., durability: _Optional[_Union[Durability, str]] = ..., output_format: _Optional[_Union[OutputFormat, str]] = ..., inputs: _Optional[_Iterable[_Union[InputValues, _Mapping]]] = ..., stream_inputs: _Optional[_Iterable[_Union[InputValues, _Mapping]]] = ...) -> None: ...

class PredictOneResponse(_message.Message):
    __slots__ = ("prediction", "model", "version", "new_state")
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    NEW_STATE_FIELD_NUMBER: _ClassVar[int]
    prediction: Prediction
    model: str
    version: str
    new_state: NewState
    def __init__(self, prediction: _Optional[_Union[Prediction, _Mapping]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., new_state: _Optional[_Union[NewState, str]] = ...) -> None: ...

class Close(_message.Message):
    __slots__ = ("forget",)
    FORGET_FIELD_NUMBER: _ClassVar[int]
    forget: bool
    def __init__(self, forget: bool = ...) -> None: ...

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
    __slots__ = ("step", "reason", "message", "field", "next_step", "retry_after", "action", "code")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[Error.Action]
        ACTION_RETRY: _ClassVar[Error.Action]
        ACTION_DROP: _ClassVar[Error.Action]
        ACTION_REOPEN: _ClassVar[Error.Action]
        ACTION_STREAM_LOST: _ClassVar[Error.Action]
    ACTION_UNSPECIFIED: Error.Action
    ACTION_RETRY: Error.Action
    ACTION_DROP: Error.Action
    ACTION_REOPEN: Error.Action
    ACTION_STREAM_LOST: Error.Action
    class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        REASON_UNSPECIFIED: _ClassVar[Error.Reason]
        REASON_WRONG_WIDTH: _ClassVar[Error.Reason]
        REASON_NOT_FINITE: _ClassVar[Error.Reason]
        REASON_INVALID_FIELD: _ClassVar[Error.Reason]
        REASON_STEP_GAP: _ClassVar[Error.Reason]
        REASON_OVERLOADED: _ClassVar[Error.Reason]
        REASON_MODEL_FAILED: _ClassVar[Error.Reason]
        REASON_WRONG_ORDER: _ClassVar[Error.Reason]
        REASON_MODEL_NOT_FOUND: _ClassVar[Error.Reason]
        REASON_STREAM_NOT_FOUND: _ClassVar[Error.Reason]
        REASON_STREAM_EXISTS: _ClassVar[Error.Reason]
        REASON_MODEL_MISMATCH: _ClassVar[Error.Reason]
        REASON_TOO_MANY_STREAMS: _ClassVar[Error.Reason]
        REASON_TAKEN_OVER: _ClassVar[Error.Reason]
        REASON_STOPPING: _ClassVar[Error.Reason]
        REASON_STREAM_EXPIRED: _ClassVar[Error.Reason]
        REASON_STATE_LOST: _ClassVar[Error.Reason]
        REASON_STORE_UNAVAILABLE: _ClassVar[Error.Reason]
        REASON_UNAUTHENTICATED: _ClassVar[Error.Reason]
        REASON_STATE_UNREADABLE: _ClassVar[Error.Reason]
        REASON_VALUES_DIFFER: _ClassVar[Error.Reason]
        REASON_PERMISSION_DENIED: _ClassVar[Error.Reason]
    REASON_UNSPECIFIED: Error.Reason
    REASON_WRONG_WIDTH: Error.Reason
    REASON_NOT_FINITE: Error.Reason
    REASON_INVALID_FIELD: Error.Reason
    REASON_STEP_GAP: Error.Reason
    REASON_OVERLOADED: Error.Reason
    REASON_MODEL_FAILED: Error.Reason
    REASON_WRONG_ORDER: Error.Reason
    REASON_MODEL_NOT_FOUND: Error.Reason
    REASON_STREAM_NOT_FOUND: Error.Reason
    REASON_STREAM_EXISTS: Error.Reason
    REASON_MODEL_MISMATCH: Error.Reason
    REASON_TOO_MANY_STREAMS: Error.Reason
    REASON_TAKEN_OVER: Error.Reason
    REASON_STOPPING: Error.Reason
    REASON_STREAM_EXPIRED: Error.Reason
    REASON_STATE_LOST: Error.Reason
    REASON_STORE_UNAVAILABLE: Error.Reason
    REASON_UNAUTHENTICATED: Error.Reason
    REASON_STATE_UNREADABLE: Error.Reason
    REASON_VALUES_DIFFER: Error.Reason
    REASON_PERMISSION_DENIED: Error.Reason
    STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEP_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    step: int
    reason: Error.Reason
    message: str
    field: str
    next_step: int
    retry_after: _duration_pb2.Duration
    action: Error.Action
    code: int
    def __init__(self, step: _Optional[int] = ..., reason: _Optional[_Union[Error.Reason, str]] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., next_step: _Optional[int] = ..., retry_after: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., action: _Optional[_Union[Error.Action, str]] = ..., code: _Optional[int] = ...) -> None: ...

class PredictBlocksRequest(_message.Message):
    __slots__ = ("block", "open", "close")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    block: Block
    open: OpenStreams
    close: CloseStreams
    def __init__(self, block: _Optional[_Union[Block, _Mapping]] = ..., open: _Optional[_Union[OpenStreams, _Mapping]] = ..., close: _Optional[_Union[CloseStreams, _Mapping]] = ...) -> None: ...

class PredictBlocksResponse(_message.Message):
    __slots__ = ("block", "opened", "closed", "durable", "ended", "move", "moved")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    DURABLE_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    MOVE_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    block: PredictedBlock
    opened: OpenedStreams
    closed: ClosedStreams
    durable: DurableStreams
    ended: EndedStreams
    move: Move
    moved: MovedStreams
    def __init__(self, block: _Optional[_Union[PredictedBlock, _Mapping]] = ..., opened: _Optional[_Union[OpenedStreams, _Mapping]] = ..., closed: _Optional[_Union[ClosedStreams, _Mapping]] = ..., durable: _Optional[_Union[DurableStreams, _Mapping]] = ..., ended: _Optional[_Union[EndedStreams, _Mapping]] = ..., move: _Optional[_Union[Move, _Mapping]] = ..., moved: _Optional[_Union[MovedStreams, _Mapping]] = ...) -> None: ...

class OpenStreams(_message.Message):
    __slots__ = ("stream_ids", "model", "version", "existence", "durability", "owner", "resume_from", "kept_max", "independent", "inputs", "accept_move", "answered")
    STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXISTENCE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    RESUME_FROM_FIELD_NUMBER: _ClassVar[int]
    KEPT_MAX_FIELD_NUMBER: _ClassVar[int]
    INDEPENDENT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPT_MOVE_FIELD_NUMBER: _ClassVar[int]
    ANSWERED_FIELD_NUMBER: _ClassVar[int]
    stream_ids: _containers.RepeatedScalarFieldContainer[str]
    model: str
    version: str
    existence: Existence
    durability: Durability
    owner: str
    resume_from: _containers.RepeatedScalarFieldContainer[int]
    kept_max: int
    independent: bool
    inputs: _containers.RepeatedCompositeFieldContainer[InputValues]
    accept_move: bool
    answered: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, stream_ids: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., existence: _Optional[_Union[Existence, str]] = ..., durability: _Optional[_Union[Durability, str]] = ..., owner: _Optional[str] = ..., resume_from: _Optional[_Iterable[int]] = ..., kept_max: _Optional[int] = ..., independent: bool = ..., inputs: _Optional[_Iterable[_Union[InputValues, _Mapping]]] = ..., accept_move: bool = ..., answered: _Optional[_Iterable[int]] = ...) -> None: ...

class VersionRows(_message.Message):
    __slots__ = ("model", "rows")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    rows: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., rows: _Optional[_Iterable[int]] = ...) -> None: ...

class OpenedStreams(_message.Message):
    __slots__ = ("stream_ids", "handles", "kinds", "next_steps", "epochs", "durable_steps", "answers_remembered", "model", "errors", "owner_changed_rows", "message_bytes_max", "refused", "versions", "rewarmed_rows", "reset_rows", "may_move")
    STREAM_IDS_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_REMEMBERED_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    OWNER_CHANGED_ROWS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_BYTES_MAX_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    REWARMED_ROWS_FIELD_NUMBER: _ClassVar[int]
    RESET_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAY_MOVE_FIELD_NUMBER: _ClassVar[int]
    stream_ids: _containers.RepeatedScalarFieldContainer[str]
    handles: _containers.RepeatedScalarFieldContainer[int]
    kinds: _containers.RepeatedScalarFieldContainer[Opened.Kind]
    next_steps: _containers.RepeatedScalarFieldContainer[int]
    epochs: _containers.RepeatedScalarFieldContainer[int]
    durable_steps: _containers.RepeatedScalarFieldContainer[int]
    answers_remembered: int
    model: Model
    errors: _containers.RepeatedCompositeFieldContainer[RowError]
    owner_changed_rows: _containers.RepeatedScalarFieldContainer[int]
    message_bytes_max: int
    refused: Error
    versions: _containers.RepeatedCompositeFieldContainer[VersionRows]
    rewarmed_rows: _containers.RepeatedScalarFieldContainer[int]
    reset_rows: _containers.RepeatedScalarFieldContainer[int]
    may_move: bool
    def __init__(self, stream_ids: _Optional[_Iterable[str]] = ..., handles: _Optional[_Iterable[int]] = ..., kinds: _Optional[_Iterable[_Union[Opened.Kind, str]]] = ..., next_steps: _Optional[_Iterable[int]] = ..., epochs: _Optional[_Iterable[int]] = ..., durable_steps: _Optional[_Iterable[int]] = ..., answers_remembered: _Optional[int] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., errors: _Optional[_Iterable[_Union[RowError, _Mapping]]] = ..., owner_changed_rows: _Optional[_Iterable[int]] = ..., message_bytes_max: _Optional[int] = ..., refused: _Optional[_Union[Error, _Mapping]] = ..., versions: _Optional[_Iterable[_Union[VersionRows, _Mapping]]] = ..., rewarmed_rows: _Optional[_Iterable[int]] = ..., reset_rows: _Optional[_Iterable[int]] = ..., may_move: bool = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("block", "handles", "steps", "values", "inputs")
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    block: int
    handles: bytes
    steps: bytes
    values: bytes
    inputs: _containers.RepeatedCompositeFieldContainer[InputValues]
    def __init__(self, block: _Optional[int] = ..., handles: _Optional[bytes] = ..., steps: _Optional[bytes] = ..., values: _Optional[bytes] = ..., inputs: _Optional[_Iterable[_Union[InputValues, _Mapping]]] = ...) -> None: ...

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
    __slots__ = ("handles", "forget", "independent")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    FORGET_FIELD_NUMBER: _ClassVar[int]
    INDEPENDENT_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    forget: bool
    independent: bool
    def __init__(self, handles: _Optional[_Iterable[int]] = ..., forget: bool = ..., independent: bool = ...) -> None: ...

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

class MovedStreams(_message.Message):
    __slots__ = ("handles", "model", "new_state")
    HANDLES_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NEW_STATE_FIELD_NUMBER: _ClassVar[int]
    handles: _containers.RepeatedScalarFieldContainer[int]
    model: Model
    new_state: NewState
    def __init__(self, handles: _Optional[_Iterable[int]] = ..., model: _Optional[_Union[Model, _Mapping]] = ..., new_state: _Optional[_Union[NewState, str]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "version", "fingerprint", "task", "period", "features", "outputs", "state", "batch_invariant", "handles_missing", "inputs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PERIOD_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    HANDLES_MISSING_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    fingerprint: str
    task: str
    period: _duration_pb2.Duration
    features: _containers.RepeatedCompositeFieldContainer[Feature]
    outputs: _containers.RepeatedCompositeFieldContainer[Output]
    state: _containers.RepeatedCompositeFieldContainer[StateTensor]
    batch_invariant: bool
    handles_missing: bool
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., task: _Optional[str] = ..., period: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., features: _Optional[_Iterable[_Union[Feature, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[Output, _Mapping]]] = ..., state: _Optional[_Iterable[_Union[StateTensor, _Mapping]]] = ..., batch_invariant: bool = ..., handles_missing: bool = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "data_type", "shape", "kind")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Input.Kind]
        KIND_VALUES: _ClassVar[Input.Kind]
        KIND_TIMESTEP: _ClassVar[Input.Kind]
        KIND_STREAM: _ClassVar[Input.Kind]
    KIND_UNSPECIFIED: Input.Kind
    KIND_VALUES: Input.Kind
    KIND_TIMESTEP: Input.Kind
    KIND_STREAM: Input.Kind
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    name: str
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    kind: Input.Kind
    def __init__(self, name: _Optional[str] = ..., data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., kind: _Optional[_Union[Input.Kind, str]] = ...) -> None: ...

class Feature(_message.Message):
    __slots__ = ("name", "unit", "low", "high", "categories")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    low: float
    high: float
    categories: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., categories: _Optional[_Iterable[str]] = ...) -> None: ...

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

class ListVersionsRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("model", "version", "fingerprint", "is_default", "is_promoted", "policy", "rewarm_steps", "shadow_share", "live_streams", "parked_streams", "on_demand")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    IS_PROMOTED_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REWARM_STEPS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_SHARE_FIELD_NUMBER: _ClassVar[int]
    LIVE_STREAMS_FIELD_NUMBER: _ClassVar[int]
    PARKED_STREAMS_FIELD_NUMBER: _ClassVar[int]
    ON_DEMAND_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    fingerprint: str
    is_default: bool
    is_promoted: bool
    policy: str
    rewarm_steps: int
    shadow_share: float
    live_streams: int
    parked_streams: int
    on_demand: bool
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., is_default: bool = ..., is_promoted: bool = ..., policy: _Optional[str] = ..., rewarm_steps: _Optional[int] = ..., shadow_share: _Optional[float] = ..., live_streams: _Optional[int] = ..., parked_streams: _Optional[int] = ..., on_demand: bool = ...) -> None: ...

class PromoteModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class PromoteModelResponse(_message.Message):
    __slots__ = ("version", "previous_version")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    previous_version: str
    def __init__(self, version: _Optional[str] = ..., previous_version: _Optional[str] = ...) -> None: ...

class RollbackModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RollbackModelResponse(_message.Message):
    __slots__ = ("version", "previous_version")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_VERSION_FIELD_NUMBER: _ClassVar[int]
    version: str
    previous_version: str
    def __init__(self, version: _Optional[str] = ..., previous_version: _Optional[str] = ...) -> None: ...

class Stream(_message.Message):
    __slots__ = ("stream_id", "state", "model", "version", "fingerprint", "step", "durable_step", "epoch", "create_time", "update_time", "state_bytes")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[Stream.State]
        STATE_LIVE: _ClassVar[Stream.State]
        STATE_PARKED: _ClassVar[Stream.State]
        STATE_EXPIRED: _ClassVar[Stream.State]
    STATE_UNSPECIFIED: Stream.State
    STATE_LIVE: Stream.State
    STATE_PARKED: Stream.State
    STATE_EXPIRED: Stream.State
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DURABLE_STEP_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    state: Stream.State
    model: str
    version: str
    fingerprint: str
    step: int
    durable_step: int
    epoch: int
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    state_bytes: int
    def __init__(self, stream_id: _Optional[str] = ..., state: _Optional[_Union[Stream.State, str]] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., fingerprint: _Optional[str] = ..., step: _Optional[int] = ..., durable_step: _Optional[int] = ..., epoch: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state_bytes: _Optional[int] = ...) -> None: ...

class ListStreamsRequest(_message.Message):
    __slots__ = ("prefix", "state", "page_size", "page_token", "model", "version")
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    prefix: str
    state: Stream.State
    page_size: int
    page_token: str
    model: str
    version: str
    def __init__(self, prefix: _Optional[str] = ..., state: _Optional[_Union[Stream.State, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

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

class LoadModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ModelChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ModelChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ...) -> None: ...

class ReloadModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadModelsResponse(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[ModelChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[ModelChange, _Mapping]]] = ...) -> None: ...

class ModelChange(_message.Message):
    __slots__ = ("name", "version", "outcome", "reason")
    class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OUTCOME_UNSPECIFIED: _ClassVar[ModelChange.Outcome]
        OUTCOME_LOADED: _ClassVar[ModelChange.Outcome]
        OUTCOME_REFUSED: _ClassVar[ModelChange.Outcome]
        OUTCOME_UNLOADING: _ClassVar[ModelChange.Outcome]
    OUTCOME_UNSPECIFIED: ModelChange.Outcome
    OUTCOME_LOADED: ModelChange.Outcome
    OUTCOME_REFUSED: ModelChange.Outcome
    OUTCOME_UNLOADING: ModelChange.Outcome
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    outcome: ModelChange.Outcome
    reason: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., outcome: _Optional[_Union[ModelChange.Outcome, str]] = ..., reason: _Optional[str] = ...) -> None: ...
