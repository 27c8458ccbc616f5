"""Asks a server to load and unload versions of its models."""

from collections.abc import Mapping

from tidegate.client import arguments
from tidegate.client.connection import Connection
from tidegate.client.types import ModelChange, decode_change
from tidegate.v1 import tidegate_pb2 as pb

# The calls that change which models are served.
MODEL_CALLS: Mapping[str, tuple[str, type[pb.LoadModelRequest | pb.UnloadModelRequest | pb.ReloadModelsRequest]]] = {
    "load": ("LoadModel", pb.LoadModelRequest),
    "unload": ("UnloadModel", pb.UnloadModelRequest),
    "reload": ("ReloadModels", pb.ReloadModelsRequest),
}


async def change_models(connection: Connection, action: str, model: str, version: str) -> list[ModelChange]:
    """Does what `Client.change_models` says."""
    call, request_type = arguments.choice("action", action, MODEL_CALLS)
    request = request_type()
    if not isinstance(request, pb.ReloadModelsRequest):
        request.name = arguments.text("model", model, minimum=1)
        request.version = arguments.text("version", version)
    return [decode_change(each) for each in (await connection.call_unary(call, request)).changes]
