"""Reads the requests and writes the answers of one model.

Answers are written as bytes: protobuf objects for them cost several times as much. The bytes are those of a
`ModelInferResponse`. Whatever is the same in every answer is prepared once.
"""

import struct
from typing import Any

import numpy as np

from tidegate.core.errors import InvalidField, ModelMismatch
from tidegate.core.input_layout import InputLayout
from tidegate.core.named_inputs import Named
from tidegate.core.spec import Prediction, Spec
from tidegate.core.swap_policy import Moved
from tidegate.rpc.kserve.decode import SHARED_MEMORY, Request, decode_tensor, decode_tensors
from tidegate.rpc.kserve.messages import InferParameter, ModelInferResponse
from tidegate.rpc.kserve.tensors import output_tensors, stream_tensors, timestep_tensors
from tidegate.rpc.varint import field, varint

# Numbers of the fields of a ModelInferResponse, and of an entry of its parameters.
ID, PARAMETERS, OUTPUTS, RAW = 3, 4, 5, 6
KEY, VALUE = 1, 2
# How many selections of outputs are kept: a client that tries all orders of many outputs does not fill the memory.
SELECTIONS_MAX = 64
# The output that also travels as a parameter, when it is one number.
SCORE = "score"
SCORE_FORMATS = {np.dtype(np.float32): "<f", np.dtype(np.float64): "<d"}


class Selection:
    """The outputs of an answer, in order: their positions in a prediction, and the bytes that describe them."""

    __slots__ = ("described", "positions", "raw_heads")

    def __init__(self, spec: Spec, positions: tuple[int, ...]) -> None:
        tensors = output_tensors(spec)
        self.positions = positions
        self.described = b""
        self.raw_heads = []  # the tag and the length of the values
        for position in positions:
            tensor = tensors[position]
            output = ModelInferResponse.InferOutputTensor(
                name=tensor.name, datatype=tensor.data_type.name, shape=tensor.request_shape
            )
            self.described += field(OUTPUTS, output.SerializeToString())
            self.raw_heads.append(varint(RAW << 3 | 2) + varint(tensor.nbytes))


class ModelCodec:
    """The codec of one model.

    Attributes:
        spec: the model.
        stream_inputs: the inputs that a sequence begins with.

    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.stream_inputs = stream_tensors(spec)
        self._inputs = timestep_tensors(spec)
        self._layout = InputLayout(spec.inputs)
        # The only input of a request; None when requests may have several.
        self._only = self._inputs[0] if self._layout.plain and not self.stream_inputs else None
        self._names = {output.name: position for position, output in enumerate(spec.outputs)}
        self._head = ModelInferResponse(model_name=spec.name, model_version=spec.version).SerializeToString()
        self._all = Selection(spec, tuple(range(len(spec.outputs))))
        self._selections: dict[tuple[int, ...], Selection] = {}
        self._score = self._find_score()

    def __repr__(self) -> str:
        return f"<ModelCodec of {self.spec.title}>"

    def check_model(self, request: Request, stream_id: str) -> None:
        """Raises ModelMismatch when a request names another model or version than that of the sequence."""
        name, version = request.model_name, request.model_version
        if name not in ("", self.spec.name) or version not in ("", self.spec.version):
            raise ModelMismatch(stream_id, f"{name}/{version}" if version else name, self.spec.title)

    def decode_row(self, request: Request) -> bytes:
        """The packed row of a timestep; raises InvalidField."""
        if self._only is not None and (values := decode_tensor(request, self._only)) is not None:
            return values
        columns = decode_tensors(request, self._inputs, self.stream_inputs)
        return self._layout.pack(columns, 1).tobytes()

    def decode_stream_inputs(self, request: Request, *, start: bool) -> Named:
        """The inputs that a sequence begins with: all of them with a start, later all or none.

        Raises InvalidField.
        """
        names = {tensor.name for tensor in request.inputs}
        if not self.stream_inputs or not (start or any(part.name in names for part in self.stream_inputs)):
            return ()
        columns = decode_tensors(request, (*self._inputs, *self.stream_inputs))
        return [(part.name, columns[part.name]) for part in self.stream_inputs]

    def check_timestep(self, request: Request) -> None:
        """Raises InvalidField when the timestep of a request cannot be applied."""
        self.select(request)
        self.decode_row(request)

    def select(self, request: Request) -> Selection:
        """The outputs that a request asks for; all of them if it names none.

        Raises:
            InvalidField: the model does not have such an output, or cannot write it as asked.

        """
        if not request.outputs:
            return self._all
        positions = []
        for output in request.outputs:
            if output.name not in self._names:
                names = ", ".join(f"'{name}'" for name in self._names)
                raise InvalidField(
                    "outputs",
                    f"unexpected inference output '{output.name[:64]}' for model '{self.spec.name}', it has {names}",
                )
            if SHARED_MEMORY in output.parameters:
                raise InvalidField("outputs", f"'{output.name}' is asked for in shared memory, which is not supported")
            if "classification" in output.parameters:
                raise InvalidField("outputs", f"'{output.name}' is asked for as classes; only its numbers are served")
            positions.append(self._names[output.name])
        wanted = tuple(dict.fromkeys(positions))
        if (selection := self._selections.get(wanted)) is None:
            selection = Selection(self.spec, wanted)
            if len(self._selections) < SELECTIONS_MAX:
                self._selections[wanted] = selection
        return selection

    def encode(
        self,
        request_id: str,
        prediction: Prediction,
        selection: Selection,
        *,
        stream: bytes,
        durable_step: int,
        notes: bytes = b"",
    ) -> bytes:
        """The bytes of a ModelInferResponse.

        `stream` is the encoded parameter `stream_id`, and `notes` has further encoded parameters. An answer to a repeat whose outputs are no longer remembered has
        none.
        """
        step, outputs, duplicate = prediction
        parts = [self._head]
        if request_id:
            parts.append(field(ID, request_id.encode()))
        parts += (stream, _number_parameter(STEP_HEAD, step), _number_parameter(DURABLE_STEP_HEAD, durable_step))
        if duplicate:
            parts.append(DUPLICATE)
        if notes:
            parts.append(notes)
        if outputs:
            if self._score is not None:
                position, number_format = self._score
                parts.append(encode_parameter(SCORE, double_param=struct.unpack(number_format, outputs[position])[0]))
            parts.append(selection.described)
            for position, head in zip(selection.positions, selection.raw_heads, strict=True):
                parts += (head, outputs[position])
        return b"".join(parts)

    def _find_score(self) -> tuple[int, str] | None:
        """The position of the score and how to unpack it; None when the model has none that is one number."""
        for position, tensor in enumerate(output_tensors(self.spec)):
            if tensor.name == SCORE and tensor.dtype in SCORE_FORMATS and tensor.nbytes == tensor.dtype.itemsize:
                return position, SCORE_FORMATS[tensor.dtype]
        return None


def encode_parameter(name: str, **value: Any) -> bytes:
    """The bytes of one parameter of an answer."""
    content = field(KEY, name.encode()) + field(VALUE, InferParameter(**value).SerializeToString())
    return field(PARAMETERS, content)


def _number_head(name: str) -> tuple[bytes, ...]:
    """By the number of bytes of a number, what comes before it in the parameter of that name."""
    whole = [encode_parameter(name, int64_param=(1 << 7 * digits) - 1) for digits in range(1, 10)]
    return (b"", *(parameter[:-digits] for digits, parameter in enumerate(whole, 1)))


STEP_HEAD = _number_head("step")
DURABLE_STEP_HEAD = _number_head("durable_step")
DUPLICATE = encode_parameter("duplicate", bool_param=True)
RESUMED = encode_parameter("resumed", bool_param=True)
MOVED = {
    Moved.NOT: b"",
    Moved.REWARMED: encode_parameter("moved", string_param="rewarmed"),
    Moved.RESET: encode_parameter("moved", string_param="reset"),
}


def _number_parameter(head: tuple[bytes, ...], number: int) -> bytes:
    digits = varint(number)
    return head[len(digits)] + digits
