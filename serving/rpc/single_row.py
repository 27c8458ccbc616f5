"""A block with a single row, which a client with one stream sends: decoded from the bytes of its request.

Protobuf objects for each cost as much as the model. A request in any other layout than that of protobuf's encoder, or with
inputs by name, is left to protobuf.
"""

import re
from typing import NamedTuple

from tidegate.core.handle_table import HandleTable
from tidegate.core.spec import STEP_MAX, Timestep
from tidegate.core.streams import Lease
from tidegate.rpc.varint import short_varint_value, varint

# The field `block` of a `PredictBlocksRequest` and its length; in it the fields `block`, `handles`, `steps`, `values`, each
# with its tag. A varint is any number of bytes from 0x80 on, and one last byte below 0x80.
_REQUEST = re.compile(
    rb"\x0a([\x80-\xff]?[\x00-\x7f])(?:\x08([\x80-\xff]{0,3}[\x00-\x7f]))?\x12\x04(.{4})(?:\x1a\x08(.{8}))?"
    rb"\x22([\x80-\xff]?[\x00-\x7f])(.*)",
    re.DOTALL,
)


class SingleRow(NamedTuple):
    """A block of one row whose stream is awake, held by the call, and expects this timestep."""

    number: int
    """That of the block."""
    lease: Lease
    timestep: Timestep


def read_single_row(message: bytes, table: HandleTable) -> SingleRow | None:
    """The row in a request, None for any other request; also when protobuf must decode it, or when it is malformed."""
    found = _REQUEST.fullmatch(message)
    if found is None:
        return None
    length, number, handle, packed_step, width, values = found.groups(b"")
    if width != varint(len(values)) or length != varint(len(message) - 1 - len(length)):
        return None
    step = int.from_bytes(packed_step, "little")
    lease = ready_lease(table, int.from_bytes(handle, "little"), step)
    if lease is None:
        return None
    layout = lease.stream.slots.layout
    if not layout.plain or len(values) != layout.row_bytes:
        return None
    return SingleRow(short_varint_value(int.from_bytes(number, "little")), lease, Timestep(step, values))


def ready_lease(table: HandleTable, handle: int, step: int) -> Lease | None:
    """The lease behind a handle if its stream is awake and expects this timestep, which may be 0."""
    lease = table[handle]
    if lease is None or lease.ended is not None or lease.stream.needs_wake:
        return None
    return lease if step <= STEP_MAX and step in (0, lease.stream.step + 1) else None
