"""Reads requests: which sequence they belong to, and the row of values they hold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from tidegate.core.errors import InvalidField
from tidegate.core.spec import STEP_MAX
from tidegate.rpc.kserve.messages import ModelInferRequest
from tidegate.rpc.kserve.tensors import Tensor

# A message class that is built at run time has no type.
Request = Any

DURABILITIES = {"sync": True, "background": False}
SHARED_MEMORY = "shared_memory_region"
UINT64_VALUES = 1 << 64


class SequenceFlags(NamedTuple):
    """What the parameters of a request say.

    `stream_id` is empty when the request belongs to no sequence, `step` is 0 when the server numbers the timestep.
    `sync` tells whether the answer waits until it is durable; None when the client leaves that to the server. `answered`
    is the last timestep whose answer the client has; None when it does not say.
    """

    stream_id: str
    start: bool
    end: bool
    step: int
    sync: bool | None
    answered: int | None


def decode_message(message: bytes) -> Request:
    """A request; InvalidField when the bytes are none."""
    try:
        return ModelInferRequest.FromString(message)
    except DecodeError as error:
        raise InvalidField("request", "got bytes that are not a ModelInferRequest") from error


def read_flags(request: Request) -> SequenceFlags:
    """The parameters of a request. Those that the server does not know are ignored.

    A sequence id that is a number is the stream id in decimal digits, without a sign.

    Raises:
        InvalidField: a parameter has a wrong type or value.

    """
    stream_id, start, end, step, sync, answered = "", False, False, 0, None, None
    for name, parameter in request.parameters.items():
        if name == "sequence_id":
            stream_id = _read_sequence_id(parameter)
        elif name == "sequence_start":
            start = _read_bool(name, parameter)
        elif name == "sequence_end":
            end = _read_bool(name, parameter)
        elif name == "step":
            step = _read_step(name, parameter)
        elif name == "answered":
            answered = _read_step(name, parameter)
        elif name == "durability":
            sync = _read_durability(parameter)
    return SequenceFlags(stream_id, start, end, step, sync, answered)


def decode_tensor(request: Request, expected: Tensor) -> bytes | None:
    """The packed values of the only tensor of a request; None when it has not exactly this one.

    Raises InvalidField as `decode_tensors` does.
    """
    tensors, raw = request.inputs, request.raw_input_contents
    if len(tensors) != 1 or len(raw) > 1 or tensors[0].name != expected.name:
        return None
    return _read_tensor(tensors[0], expected, raw[0] if raw else None)


def decode_tensors(request: Request, required: Sequence[Tensor], optional: Sequence[Tensor] = ()) -> dict[str, bytes]:
    """The packed values of each input that a request has, by name.

    Raises:
        InvalidField: an input is missing, is unknown or comes twice, or has not its type, its shape and all of its
            values.

    """
    tensors = request.inputs
    raw = request.raw_input_contents
    if len(raw) not in (0, len(tensors)):
        raise InvalidField("raw_input_contents", f"got {len(raw)} for {len(tensors)} inputs, expected one for each")
    names = [tensor.name for tensor in tensors]
    known = {tensor.name: tensor for tensor in (*required, *optional)}
    missing = [tensor.name for tensor in required if tensor.name not in names]
    if missing or not known.keys() >= set(names) or len(set(names)) < len(names):
        may = f", and {_quote([tensor.name for tensor in optional])} if it is sent" if optional else ""
        wanted = _quote([tensor.name for tensor in required])
        raise InvalidField("inputs", f"got {_quote(names)}, expected {wanted}{may}, each once")
    return {
        name: _read_tensor(tensor, known[name], raw[position] if raw else None)
        for position, (name, tensor) in enumerate(zip(names, tensors, strict=True))
    }


def _read_tensor(got: Any, expected: Tensor, raw: bytes | None) -> bytes:
    """The packed values of one tensor; `raw` is None when they are not in `raw_input_contents`."""
    data_type = expected.data_type
    if got.datatype != data_type.name:
        _refuse(expected, f"has datatype '{got.datatype[:16]}'", f"{data_type.name}")
    if got.shape != expected.request_shape:
        shape = list(got.shape[:8])
        _refuse(expected, f"has shape {shape}", f"{expected.request_shape}: one timestep of one sequence a request")
    if got.parameters and SHARED_MEMORY in got.parameters:
        _refuse(expected, "is in shared memory", "its values in the request; shared memory is not supported")
    if raw is None:
        return _read_contents(got, expected)
    if got.HasField("contents"):
        _refuse(expected, "has contents and raw_input_contents", "one of the two")
    if len(raw) != expected.nbytes:
        _refuse(expected, f"has {len(raw)} bytes in raw_input_contents", f"{expected.nbytes}")
    if expected.dtype == np.bool_ and np.frombuffer(raw, np.uint8).max(initial=0) > 1:
        _refuse(expected, "has a byte that is neither 0 nor 1", "booleans of one byte each")
    return raw


def _read_contents(got: Any, expected: Tensor) -> bytes:
    """The packed values of a tensor that are given as numbers."""
    name = expected.data_type.contents
    if not name:
        _refuse(expected, "is not in raw_input_contents", f"it there: {expected.data_type.name} has no typed contents")
    filled = [field.name for field, _ in got.contents.ListFields()]
    if filled != [name]:
        _refuse(expected, f"has {_quote(filled)} and no raw_input_contents", f"values in contents.{name}, or raw ones")
    numbers = np.asarray(getattr(got.contents, name))
    values = numbers.astype(expected.dtype)
    if values.nbytes != expected.nbytes:
        _refuse(expected, f"has {len(numbers)} numbers", f"{expected.nbytes // expected.dtype.itemsize}")
    if expected.dtype.kind in "iu" and not np.array_equal(values, numbers):
        _refuse(expected, "has numbers out of range", f"numbers that {expected.data_type.name} can hold")
    return values.tobytes()


def _refuse(tensor: Tensor, got: str, expected: str) -> None:
    raise InvalidField("inputs", f"'{tensor.name}' {got}, expected {expected}")


def _quote(names: Sequence[str]) -> str:
    return ", ".join(f"'{name[:64]}'" for name in names[:8]) or "nothing"


def _read_sequence_id(parameter: Any) -> str:
    kind = parameter.WhichOneof("parameter_choice")
    if kind == "int64_param":
        number = parameter.int64_param
        # C++ clients have unsigned ids and send their bits.
        return str(number % UINT64_VALUES) if number else ""
    if kind == "string_param":
        return str(parameter.string_param)
    if kind == "uint64_param":
        return str(parameter.uint64_param or "")
    raise InvalidField("sequence_id", f"got {kind}, expected int64_param, uint64_param or string_param")


def _read_bool(name: str, parameter: Any) -> bool:
    kind = parameter.WhichOneof("parameter_choice")
    if kind != "bool_param":
        raise InvalidField(name, f"got {kind}, expected bool_param")
    return bool(parameter.bool_param)


def _read_step(name: str, parameter: Any) -> int:
    kind = parameter.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidField(name, f"got {kind}, expected int64_param: the number of the timestep, from 1")
    step: int = getattr(parameter, kind)
    if not 0 <= step <= STEP_MAX:
        raise InvalidField(name, f"got {step}, expected 0 to {STEP_MAX}")
    return step


def _read_durability(parameter: Any) -> bool:
    got = parameter.string_param
    if got not in DURABILITIES:
        raise InvalidField("durability", f"got '{got[:64]}', expected one of {', '.join(DURABILITIES)}")
    return DURABILITIES[got]
