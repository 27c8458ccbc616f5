"""Whether the payload of a checkpoint fits the slots of a model, and how it is put there."""

from tidegate.core.errors import CheckpointBroken
from tidegate.core.slots import Slots
from tidegate.core.spec import Checkpoint


def check_payload_size(checkpoint: Checkpoint, slots: Slots) -> None:
    """Raises CheckpointBroken when the size of a checkpoint is not that of this model's rows."""
    got, expected = len(checkpoint.payload), slots.row_bytes(checkpoint.answers)
    if not slots.fits(checkpoint.payload, checkpoint.answers):
        where = f"stream '{checkpoint.key.stream_id}'"
        raise CheckpointBroken(where, f"its state has {got} bytes, expected {expected} under {slots.spec.title}")


def unpack_checkpoint(checkpoint: Checkpoint, slots: Slots, slot: int) -> None:
    """Fills a slot. Raises CheckpointBroken, and changes nothing, when the checkpoint does not fit."""
    check_payload_size(checkpoint, slots)
    slots.unpack(slot, checkpoint.step, checkpoint.answers, checkpoint.payload)
