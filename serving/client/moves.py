"""Streams that the server moves to another version of their model, as a client sees them."""

from collections.abc import Mapping

from tidegate.client.types import Model, decode_model
from tidegate.v1 import tidegate_pb2 as pb

# How a stream came to its state after a move. A state that this client does not know becomes "moved".
NEW_STATES: Mapping[int, str] = {pb.NEW_STATE_REWARMED: "rewarmed", pb.NEW_STATE_RESET: "reset"}
# The move happened while the client was not connected, or it does not know how.
MOVED = "moved"


def same_layout(one: Model, other: Model) -> bool:
    """Whether two are versions of one model whose timesteps and predictions look the same."""
    return (
        one.name == other.name
        and [(feature.name, feature.categories) for feature in one.features]
        == [(feature.name, feature.categories) for feature in other.features]
        and one.inputs == other.inputs
        and [(part.name, part.dtype, part.shape) for part in one.outputs]
        == [(part.name, part.dtype, part.shape) for part in other.outputs]
    )


def models_by_row(message: pb.OpenedStreams) -> list[Model]:
    """The model that runs each stream of an answer."""
    models = [decode_model(message.model)] * len(message.stream_ids)
    for part in message.versions:
        model = decode_model(part.model)
        for row in part.rows:
            models[row] = model
    return models


def states_by_row(message: pb.OpenedStreams) -> dict[int, str]:
    """How streams came to their states, for those that this open has moved."""
    return dict.fromkeys(message.rewarmed_rows, "rewarmed") | dict.fromkeys(message.reset_rows, "reset")
