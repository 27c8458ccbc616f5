"""Calls of the KServe protocol without a client library: any bytes can be sent, and each answer is seen as it comes."""

import asyncio
from typing import Any

import grpc
import numpy as np

from tests.calls import Ending, ending_of, read_ending
from tests.timeouts import TIMEOUT_S
from tidegate.rpc.kserve import messages
from tidegate.rpc.kserve.messages import message_class

STREAM_INFER = f"/{messages.SERVICE_NAME}/ModelStreamInfer"


def infer_request(
    sequence: int | str,
    *values: float,
    start: bool = False,
    end: bool = False,
    request_id: str = "",
    model: str = "toy",
    version: str = "",
    outputs: tuple[str, ...] = (),
    **parameters: Any,
) -> Any:
    """A request as the client of Triton makes it. `parameters` are more of them."""
    request = messages.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    if sequence not in (0, ""):
        _set(request, "sequence_id", sequence)
        _set(request, "sequence_start", start)
        _set(request, "sequence_end", end)
    for name, value in parameters.items():
        _set(request, name, value)
    request.inputs.add(name="x", datatype="FP32", shape=[1, len(values)])
    request.raw_input_contents.append(np.array(values, "<f4").tobytes())
    for output in outputs:
        request.outputs.add(name=output)
    return request


def _set(request: Any, name: str, value: Any) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(request.parameters[name], kinds[type(value)], value)


def parameters_of(response: Any) -> dict[str, Any]:
    """The parameters of an answer."""
    return {
        name: getattr(parameter, parameter.WhichOneof("parameter_choice"))
        for name, parameter in response.parameters.items()
    }


def raw_outputs(response: Any) -> dict[str, bytes]:
    """The packed values of each output of an answer."""
    names = [output.name for output in response.outputs]
    return dict(zip(names, response.raw_output_contents, strict=True))


class StreamInfer:
    """A call of `ModelStreamInfer`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        read = messages.ModelStreamInferResponse.FromString
        self.call = channel.stream_stream(STREAM_INFER, response_deserializer=read)(metadata=metadata)

    async def send(self, *requests: Any) -> None:
        """Sends requests, or any other bytes."""
        async with asyncio.timeout(TIMEOUT_S):
            for request in requests:
                await self.call.write(request if isinstance(request, bytes) else request.SerializeToString())

    async def read(self) -> Any:
        """The next response."""
        async with asyncio.timeout(TIMEOUT_S):
            response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.ending()
        return response

    async def ask(self, request: Any) -> Any:
        """Sends a request and reads its answer; an error fails the test."""
        await self.send(request)
        response = await self.read()
        assert not response.error_message, response.error_message
        return response.infer_response

    async def step(self, sequence: int | str, *values: float, **more: Any) -> Any:
        """Sends a timestep and reads its answer."""
        return await self.ask(infer_request(sequence, *values, **more))

    async def refused(self, request: Any) -> Any:
        """Sends a request and reads the response with its error."""
        await self.send(request)
        response = await self.read()
        assert response.error_message
        return response

    async def rest(self) -> list[Any]:
        """The responses until the end of the call."""
        responses = []
        async with asyncio.timeout(TIMEOUT_S):
            try:
                while (response := await self.call.read()) is not grpc.aio.EOF:
                    responses.append(response)
            except grpc.aio.AioRpcError:
                pass  # `ending` has the status
        return responses

    async def ending(self) -> Ending:
        """Reads until the end of the call."""
        return await ending_of(self.call)

    async def finish(self) -> Ending:
        """Half-closes, and reads until the end."""
        await self.call.done_writing()
        return await self.ending()


async def ask(
    channel: grpc.aio.Channel,
    method: str,
    request: Any = None,
    metadata: tuple[tuple[str, str], ...] = (),
    **fields: Any,
) -> Any:
    """A unary call."""
    descriptor = messages.POOL.FindServiceByName(messages.SERVICE_NAME).FindMethodByName(method)
    if request is None:
        request = message_class(descriptor.input_type.name)(**fields)
    call = channel.unary_unary(
        f"/{messages.SERVICE_NAME}/{method}",
        request_serializer=lambda message: message if isinstance(message, bytes) else message.SerializeToString(),
        response_deserializer=message_class(descriptor.output_type.name).FromString,
    )
    async with asyncio.timeout(TIMEOUT_S):
        return await call(request, metadata=metadata)


async def infer(channel: grpc.aio.Channel, sequence: int | str, *values: float, **more: Any) -> Any:
    """One timestep by `ModelInfer`."""
    return await ask(channel, "ModelInfer", infer_request(sequence, *values, **more))


async def refusal(call: Any) -> Ending:
    """How a unary call was refused."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return read_ending(error.code(), error.details(), error.trailing_metadata())
    raise AssertionError("it was answered")
