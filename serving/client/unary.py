"""One timestep in a unary call, for callers that keep no call open.

The description of a model is fetched once, and kept.
"""

from tidegate.client.connection import Connection
from tidegate.client.errors import AnswerLost, ClientError, StreamNotFound
from tidegate.client.inputs import Values, has_names, pack
from tidegate.client.results import answer_lost
from tidegate.client.retry import Limits, Retry
from tidegate.client.types import Model, Prediction, decode_model
from tidegate.v1 import tidegate_pb2 as pb

# A server has some models with some versions each. Beyond this many the oldest description is dropped.
CACHED_MODELS_MAX = 64


class UnaryPredictor:
    """Runs single timesteps over a connection."""

    def __init__(self, connection: Connection, limits: Limits) -> None:
        self._connection = connection
        self._limits = limits
        self._models: dict[tuple[str, str], Model] = {}  # by name and version

    async def predict(self, request: pb.PredictOneRequest, values: Values) -> Prediction:
        """Sends the request with these values; see `tidegate.client.Client.predict_one`."""
        features = (await self._stream_model(request)).features if has_names(values) else None
        request.values = pack(values, features)
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

    async def _stream_model(self, request: pb.PredictOneRequest) -> Model:
        """The model of the stream, or the one that it will begin under."""
        try:
            asked = pb.DescribeStreamRequest(stream_id=request.stream_id)
            known = (await self._connection.call_unary("DescribeStream", asked)).stream
        except StreamNotFound:
            named = pb.DescribeModelRequest(name=request.model, version=request.version)
            return decode_model((await self._connection.call_unary("DescribeModel", named)).model)
        return await self._served_model(known.model, known.version)

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
