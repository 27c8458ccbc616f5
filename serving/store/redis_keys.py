"""The names of keys and members in Redis."""

from tidegate.core.spec import Key

PREFIX = "tidegate"
STREAM = f"{PREFIX}:stream:"
AGES = f"{PREFIX}:ages"
TOMBSTONES = f"{PREFIX}:tombstones"
DELETED = f"{PREFIX}:deleted"
NOTICES = f"{PREFIX}:notices"
HIGHEST_EPOCH = f"{PREFIX}:highest-epoch"  # of streams that are gone without a tombstone


def member_of(key: Key) -> str:
    """The member of sorted sets for a stream. The length marks the end of the tenant."""
    return f"{len(key.tenant.encode())}:{key.tenant}:{key.stream_id}"


def stream_key(key: Key) -> str:
    """The key of the hash of a stream."""
    return STREAM + member_of(key)


def ids_key(tenant: str) -> str:
    """The sorted set of a tenant's stream ids. All have score 0, so they are in the order of their bytes."""
    return f"{PREFIX}:ids:{tenant}"


def key_of_member(member: str) -> Key:
    """The stream of a member of sorted sets."""
    length, _, rest = member.partition(":")
    tenant = rest.encode()[: int(length)].decode()
    return Key(tenant, rest[len(tenant) + 1 :])


def writer_key(writer: int | str) -> str:
    """The key that exists for as long as a writer is alive."""
    return f"{PREFIX}:writer:{writer}"
