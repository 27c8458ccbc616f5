"""Refuses requests that cannot be decoded, for every service of the server, without a traceback in the log."""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from tidegate.core.errors import InvalidField
from tidegate.rpc.call import Context
from tidegate.rpc.status import abort

# grpc ships no types; this stands for grpc.RpcMethodHandler.
Handler = Any


class MalformedRequestInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc ships no types
    """Ends calls whose request cannot be decoded with INVALID_ARGUMENT. By itself grpc ends them with UNKNOWN."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler] = {}  # by method

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Handler]], details: Any) -> Handler:
        """The handler of a call."""
        if (cached := self._handlers.get(details.method)) is not None:
            return cached
        handler = await continuation(details)
        if handler is None or handler.request_deserializer is None:
            return handler  # there is no such method, or its handler decodes the bytes itself
        self._handlers[details.method] = guarded = _guard(handler, details.method)
        return guarded


def _guard(handler: Handler, method: str) -> Handler:
    """A handler that does the same, and refuses what cannot be decoded."""
    error = InvalidField("request", f"got bytes that are not a request of {method}")
    if handler.request_streaming:
        return _guard_stream(handler, error)

    def read(data: bytes) -> Any:
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            return None  # grpc would log an exception here with a traceback, and end the call without our message

    inner = handler.unary_stream if handler.response_streaming else handler.unary_unary
    assert not inspect.isasyncgenfunction(inner), (
        f"{method} writes by yielding; this interceptor supports those that call write"
    )

    async def answer(request: Any, context: Context) -> Any:
        if request is None:
            await abort(context, error)
        return await inner(request, context)

    make = grpc.unary_stream_rpc_method_handler if handler.response_streaming else grpc.unary_unary_rpc_method_handler
    return make(answer, read, handler.response_serializer)


def _guard_stream(handler: Handler, error: InvalidField) -> Handler:
    inner = handler.stream_stream
    assert inspect.isasyncgenfunction(inner), "reflection has the only such method, and it yields its answers"

    async def answer(requests: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in inner(requests, context):
                yield response
        except DecodeError:
            await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)
