"""The servicer of `inference.GRPCInferenceService`."""

from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import grpc

from tidegate.core.access import Caller
from tidegate.core.errors import InvalidField, ModelNotFound, TidegateError
from tidegate.core.model_change import ModelAction
from tidegate.rpc.admin import unary
from tidegate.rpc.backend import Access, AdminBackend, StreamBackend
from tidegate.rpc.call import Call, Context
from tidegate.rpc.identify import identify_or_abort
from tidegate.rpc.kserve import messages
from tidegate.rpc.kserve.backend import ServerStatus, ServingLimits
from tidegate.rpc.kserve.describe import extensions, model_config, model_metadata, model_statistics
from tidegate.rpc.kserve.errors import ModelNotLoaded
from tidegate.rpc.kserve.infer import InferHandler
from tidegate.rpc.kserve.sequences import Sequences
from tidegate.rpc.kserve.stream_infer import StreamInferCall
from tidegate.rpc.open_calls import OpenCalls
from tidegate.rpc.status import abort

# A request or response whose class is built at run time.
Message = Any

# A client that sends it wants the first error of a streaming call as the status of the call.
STATUS_ERRORS = ("triton_grpc_error", "true")
# Methods of Triton that are not served, and what to do instead.
SHARED_MEMORY = "shared memory is not supported; send values in the requests"
UNSUPPORTED = {
    "SystemSharedMemoryStatus": SHARED_MEMORY,
    "SystemSharedMemoryRegister": SHARED_MEMORY,
    "SystemSharedMemoryUnregister": SHARED_MEMORY,
    "CudaSharedMemoryStatus": SHARED_MEMORY,
    "CudaSharedMemoryRegister": SHARED_MEMORY,
    "CudaSharedMemoryUnregister": SHARED_MEMORY,
    "TraceSetting": "requests are not traced; metrics tell how long each stage takes",
    "LogSettings": "the log is configured when the server starts",
}


class InferenceServicer:
    """Serves the protocol of KServe and Triton.

    Args:
        backend: opens streams and runs timesteps.
        admin: finds and deletes streams.
        status: the state of the server.
        access: says who makes a call.
        calls: the open calls of the server.
        limits: limits that clients can read.

    """

    def __init__(
        self,
        backend: StreamBackend,
        admin: AdminBackend,
        status: ServerStatus,
        access: Access,
        calls: OpenCalls,
        limits: ServingLimits,
    ) -> None:
        self._admin = admin
        self._status = status
        self.access = access
        self._calls = calls
        self._limits = limits
        self._sequences = Sequences(backend, admin, access)
        self._infer = InferHandler(self._sequences)

    async def ServerLive(self, _: Message, __: Context) -> Message:  # noqa: N802 - named by the protocol
        """Answers that the process runs, to anybody."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, _: Message, __: Context) -> Message:  # noqa: N802 - as above
        """Whether the server accepts new streams, to anybody."""
        return messages.ServerReadyResponse(ready=self._is_ready)

    @unary
    async def ModelReady(self, request: Message, _: Caller) -> Message:  # noqa: N802
        """Whether a model accepts new streams."""
        try:
            await self._admin.model(request.name, request.version)
        except ModelNotFound:
            return messages.ModelReadyResponse(ready=False)
        return messages.ModelReadyResponse(ready=self._is_ready)

    @unary
    async def ServerMetadata(self, _: Message, __: Caller) -> Message:  # noqa: N802
        """Names the server and its extensions."""
        return messages.ServerMetadataResponse(
            name="tidegate", version=version("tidegate"), extensions=extensions(self._limits)
        )

    @unary
    async def ModelMetadata(self, request: Message, _: Caller) -> Message:  # noqa: N802
        """The tensors of a model."""
        spec = (await self._admin.model(request.name, request.version)).spec
        versions = [model.spec.version for model in self._admin.models() if model.spec.name == spec.name]
        versions += [number for name, number in self._admin.on_demand() if name == spec.name]
        return model_metadata(spec, sorted(versions, key=int))

    @unary
    async def ModelConfig(self, request: Message, _: Caller) -> Message:  # noqa: N802
        """How a model is served."""
        spec = (await self._admin.model(request.name, request.version)).spec
        return messages.ModelConfigResponse(config=model_config(spec, self._limits))

    @unary
    async def ModelStatistics(self, request: Message, _: Caller) -> Message:  # noqa: N802
        """What one model has done, or all of them."""
        specs = [model.spec for model in self._admin.models()]
        if request.name:
            await self._admin.model(request.name, request.version)  # raises ModelNotFound
            specs = [spec for spec in specs if spec.name == request.name and request.version in ("", spec.version)]
        found = [model_statistics(spec, self._status.counts(spec)) for spec in specs]
        return messages.ModelStatisticsResponse(model_stats=found)

    @unary
    async def RepositoryIndex(self, _: Message, __: Caller) -> Message:  # noqa: N802
        """The models: those that are ready, and those that are loaded when somebody asks for them."""
        response = messages.RepositoryIndexResponse()
        for model in self._admin.models():
            response.models.add(name=model.spec.name, version=model.spec.version, state="READY")
        for name, number in self._admin.on_demand():
            response.models.add(name=name, version=number, state="UNAVAILABLE", reason="loaded on demand")
        return response

    @unary
    async def RepositoryModelLoad(self, request: Message, caller: Caller) -> Message:  # noqa: N802
        """Loads all versions of a model."""
        if request.parameters:
            raise InvalidField("parameters", f"got {len(request.parameters)}, expected none: models are read from disk")
        await self._change(caller, "load", request.model_name)
        return messages.RepositoryModelLoadResponse()

    @unary
    async def RepositoryModelUnload(self, request: Message, caller: Caller) -> Message:  # noqa: N802
        """Unloads all versions of a model."""
        await self._change(caller, "unload", request.model_name)
        return messages.RepositoryModelUnloadResponse()

    async def _change(self, caller: Caller, action: ModelAction, name: str) -> None:
        """Loads or unloads. Raises ModelNotLoaded when a version was refused."""
        self.access.require_admin(caller)
        refused = [
            change for change in await self._admin.change_models(action, name, "") if change.outcome == "refused"
        ]
        if refused:
            raise ModelNotLoaded([f"{change.name}/{change.version}: {change.reason}" for change in refused])

    async def ModelInfer(self, request: Message, context: Context) -> bytes:  # noqa: N802
        """One timestep of a sequence."""
        caller = await identify_or_abort(self.access, context)
        call = Call(context, caller)  # so that `drain` waits for it
        self._calls.add(call)
        try:
            self._calls.check_accepting()
            return await self._infer.infer(request, caller, self._calls.quota(context))
        except TidegateError as error:
            await abort(context, error)
        finally:
            self._calls.remove(call)

    async def ModelStreamInfer(self, _: object, context: Context) -> None:  # noqa: N802
        """Timesteps of many sequences."""
        status_errors = STATUS_ERRORS in (tuple(pair) for pair in context.invocation_metadata() or ())
        caller = await identify_or_abort(self.access, context)
        quota = self._calls.quota(context)
        call = StreamInferCall(self._sequences, context, caller, quota, status_errors=status_errors)
        self._calls.add(call)
        try:
            self._calls.check_accepting()
            await call.serve()
        except TidegateError as error:
            await abort(context, error)
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            pass  # a write failed because the call has ended: the client has disconnected
        finally:
            self._calls.remove(call)

    @property
    def _is_ready(self) -> bool:
        return self._status.is_ready() and not self._calls.stopping


def add_to_server(servicer: InferenceServicer, server: Any) -> None:
    """Registers the servicer with a grpc.aio server."""
    service = messages.POOL.FindServiceByName(messages.SERVICE_NAME)
    handlers = {method.name: _handler(servicer, method) for method in service.methods}
    handlers |= {name: grpc.unary_unary_rpc_method_handler(_refuse(name, why)) for name, why in UNSUPPORTED.items()}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(messages.SERVICE_NAME, handlers)])
    server.add_registered_method_handlers(messages.SERVICE_NAME, handlers)


def _handler(servicer: InferenceServicer, method: Any) -> Any:
    """The handler of a method. What answers bytes needs no serializer; the streaming method also reads bytes."""
    answer = getattr(servicer, method.name)
    if method.name == "ModelStreamInfer":
        return grpc.stream_stream_rpc_method_handler(answer)
    read = messages.message_class(method.input_type.name).FromString
    write = None if method.name == "ModelInfer" else messages.message_class(method.output_type.name).SerializeToString
    return grpc.unary_unary_rpc_method_handler(answer, read, write)


def _refuse(name: str, why: str) -> Callable[[bytes, Context], Awaitable[None]]:
    async def refuse(_: bytes, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{name}: {why}")

    return refuse
