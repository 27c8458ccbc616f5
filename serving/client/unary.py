"""One timestep in a unary call, for callers that keep no call open.

The description of a model is fetched once, and kept. It is needed for values with names, and for models with other inputs
than one vector of float32.
"""

from collections.abc import Mapping

import numpy as np

from tidegate.client.connection import Connection
from tidegate.client.errors import AnswerLost, ClientError, InvalidArgument, StreamNotFound
from tidegate.client.inputs import Packer, Values, has_names, pack
from tidegate.client.results import answer_lost
from tidegate.client.retry import Limits, Retry
from tidegate.client.tensors import BeginInputs, row_packer, stream_inputs
from tidegate.client.types import Model, Prediction, decode_model
from tidegate.client.wire import encode_named, encode_rows
from tidegate.v1 import tidegate_pb2 as pb

# A server has some models with some versions each. Beyond this many the oldest description is dropped.
CACHED_MODELS_MAX = 64
# The streams whose model has other inputs than one vector of float32. Beyond this many the oldest is forgotten.
CACHED_STREAMS_MAX = 4096


class UnaryPredictor:
    """Runs single timesteps over a connection."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._models: dict[tuple[str, str], Model] = {}  # by name and version
        self._by_stream: dict[str, Model] = {}

    async def predict(
        self, request: pb.PredictOneRequest, values: Values, inputs: BeginInputs | None = None
    ) -> Prediction:
        """Sends the request with these values; see `tidegate.client.Client.predict_one`."""
        model = self._by_stream.get(request.stream_id)
        if inputs is not None or isinstance(values, Mapping) or _has_rank(values) or has_names(values):
            model = model or await self.stream_model(request.stream_id, request.model, request.version)
        if inputs is not None:
            assert model is not None
            request.stream_inputs.extend(encode_named(stream_inputs(inputs, model)[0]))
        if model is None:
            request.values = pack(values, None)
            try:
                return await self._predict(request)
            except InvalidArgument as refused:
                model = await self._model_with_other_inputs(request, refused)
        packed = row_packer(model)(values)
        rows = np.frombuffer(packed, model.layout.row_dtype).reshape(1, -1)
        request.values, named = encode_rows(model.layout, rows)
        request.ClearField("inputs")
        request.inputs.extend(named)
        if not model.layout.plain:
            if len(self._by_stream) >= CACHED_STREAMS_MAX:
                del self._by_stream[next(iter(self._by_stream))]
            self._by_stream[request.stream_id] = model
        try:
            return await self._predict(request)
        except ClientError:
            self._by_stream.pop(request.stream_id, None)  # the stream may have begun again under another model
            raise

    async def _model_with_other_inputs(self, request: pb.PredictOneRequest, refused: InvalidArgument) -> Model:
        """The model of the stream, if it may take the values that were refused. Else raises the refusal."""
        if refused.reason == "NOT_FINITE":
            raise refused
        try:
            model = await self.stream_model(request.stream_id, request.model, request.version)
        except ClientError:
            raise refused from None
        if isinstance(row_packer(model), Packer):
            raise refused
        return model

    async def _predict(self, request: pb.PredictOneRequest) -> Prediction:
        """Sends the request, several times if it has a number."""
        retry = Retry(self._limits, self._connection.may_be_reachable)
        response: pb.PredictOneResponse | None = None
        while response is None:
            try:
                response = await self._connection.call_unary("PredictOne", request, of_timestep=True)
            except ClientError as error:
                if not request.step:
                    raise  # without a number, a second request could be a second timestep
                await retry.wait(error, f"timestep {request.step} of stream {request.stream_id}")
        try:
            model = await self._served_model(response.model, response.version)
        except ClientError as error:
            raise AnswerLost(
                f"timestep {response.prediction.step} was applied, but its outputs cannot be read: {error}; ask again with its number",
                "ANSWER_LOST",
            ) from error
        answer = response.prediction
        if not answer.outputs:
            raise answer_lost(answer.step)
        return Prediction(answer.step, model.outputs, answer.outputs, answer.durable_step, answer.duplicate)

    async def stream_model(self, stream_id: str, model: str, version: str) -> Model:
        """The model of a stream, or the one that it will begin under. `stream_id` is empty for a stream without a name yet."""
        if stream_id:
            try:
                asked = pb.DescribeStreamRequest(stream_id=stream_id)
                known = (await self._connection.call_unary("DescribeStream", asked)).stream
            except StreamNotFound:
                pass
            else:
                return await self._served_model(known.model, known.version)
        named = pb.DescribeModelRequest(name=model, version=version)
        return decode_model((await self._connection.call_unary("DescribeModel", named)).model)

    async def _served_model(self, name: str, version: str) -> Model:
        """The description of a served model."""
        key = name, version
        if key not in self._models:
            asked = pb.DescribeModelRequest(name=name, version=version)
            model = decode_model((await self._connection.call_unary("DescribeModel", asked)).model)
            if len(self._models) >= CACHED_MODELS_MAX:
                del self._models[next(iter(self._models))]
            self._models[key] = model
        return self._models[key]


def _has_rank(values: Values) -> bool:
    """Whether values are no vector: an array of another rank, or lists in a list."""
    if isinstance(values, np.ndarray | np.generic):
        return values.ndim != 1 and values.dtype.names is None
    return isinstance(values, list | tuple) and bool(values) and isinstance(values[0], list | tuple | np.ndarray)
