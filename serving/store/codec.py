"""A checkpoint as bytes: what stores keep, and what an exported stream is.

A record says everything about itself, so that it can be moved between stores and servers. All numbers are little-endian:

    4 bytes   b"TGCK"
    uint16    format
    uint16    bytes of each of these five texts (UTF-8): tenant, stream id, model name, model version, fingerprint
    uint64    bytes of the payload
    uint64    epoch
    uint64    step
    uint32    answers
    ...       the five texts, then the payload
    16 bytes  BLAKE2b of everything before

What stands before `format` and what it means stays as it is in every later format, so that a server can always say that a
record is too new for it.
"""

import struct
from functools import lru_cache
from hashlib import blake2b

from serving.core.errors import CheckpointBroken
from serving.core.spec import STEP_MAX, Checkpoint, Key, ModelId
from serving.store.store import Head, Record

MAGIC = b"TGCK"
FORMAT = 2
# The payload ends with a hash of 8 bytes for each answer. In the first format it did not: 0 says that one is not known.
FORMAT_WITHOUT_HASHES = 1
HASH_BYTES = 8

_TAG = struct.Struct("<4sH")
_HEADER = struct.Struct("<4sH5HQQQI")
# 128 bits: no flip, tear or mix-up passes by chance. Faster checksums of 32 bits would pass one tear in four billion.
_DIGEST_BYTES = 16
# From 2,048 bytes on hashlib gives the GIL away around the hash. The thread that encodes a thousand records beside a busy
# event loop would then queue for the GIL a thousand times; in pieces below that size it keeps it.
_PIECE_BYTES = 2047


def encode(checkpoint: Checkpoint) -> bytes:
    """The record of a checkpoint."""
    key, model, payload = checkpoint.key, checkpoint.model, checkpoint.payload
    tenant, stream_id = key.tenant.encode(), key.stream_id.encode()
    name, version, fingerprint = _texts(model)
    content = b"".join(
        (
            _HEADER.pack(
                MAGIC,
                FORMAT,
                len(tenant),
                len(stream_id),
                len(name),
                len(version),
                len(fingerprint),
                len(payload),
                checkpoint.epoch,
                checkpoint.step,
                checkpoint.answers,
            ),
            tenant,
            stream_id,
            name,
            version,
            fingerprint,
            payload,
        )
    )
    return content + _digest(content)


def decode(record: bytes, where: str) -> Checkpoint:
    """The checkpoint in a record; `where` names the record in errors.

    Raises:
        CheckpointBroken: the record is truncated, foreign, of another format or damaged. Nothing of it is used.

    """
    form = _check_tag(record, where)
    if len(record) < _HEADER.size:
        raise _truncated(where, len(record), _HEADER.size + _DIGEST_BYTES)
    _, _, *sizes, payload_bytes, epoch, step, answers = _HEADER.unpack_from(record)
    end = _HEADER.size + sum(sizes) + payload_bytes
    if len(record) < end + _DIGEST_BYTES:
        raise _truncated(where, len(record), end + _DIGEST_BYTES)
    if len(record) > end + _DIGEST_BYTES:
        raise CheckpointBroken(
            where, f"record: got {len(record)} bytes, expected {end + _DIGEST_BYTES} by the lengths it states"
        )
    if _digest(record[:end]) != record[end:]:
        raise CheckpointBroken(where, "record: checksum mismatch; it was damaged since it was written")
    texts = []
    offset = _HEADER.size
    for size in sizes:
        texts.append(_text(record[offset : offset + size], where))
        offset += size
    tenant, stream_id, name, version, fingerprint = texts
    if max(step, epoch) > STEP_MAX:
        raise CheckpointBroken(
            where, f"its step {step} or epoch {epoch} is above {STEP_MAX}, which no stream can reach"
        )
    payload = record[offset:end]
    if form == FORMAT_WITHOUT_HASHES and answers <= len(payload):  # or it lies, and is no reason to take memory
        payload += bytes(HASH_BYTES * answers)
    return Checkpoint(Key(tenant, stream_id), epoch, step, ModelId(name, version, fingerprint), answers, payload)


def read(head: Head, record: bytes | None, where: str) -> Record:
    """What a store holds of a stream, from its head and its record, if it has one.

    Raises:
        CheckpointBroken: as `decode`, or the record is not the one that the head speaks of.

    """
    if record is None:
        return Record(head, None)
    checkpoint = decode(record, where)
    if checkpoint.key != head.key:
        raise CheckpointBroken(where, f"record: holds stream '{checkpoint.key.stream_id}', not this one")
    if checkpoint.step != head.step or checkpoint.epoch > head.epoch:
        raise CheckpointBroken(
            where,
            f"record: holds step {checkpoint.step} of epoch {checkpoint.epoch}, "
            f"but the store knows step {head.step} of epoch {head.epoch}",
        )
    return Record(head, checkpoint)


def _check_tag(record: bytes, where: str) -> int:
    """The format of a record; refuses what is not a record, or of a format that is not known."""
    if record[: len(MAGIC)] != MAGIC[: len(record)]:
        raise CheckpointBroken(where, f"record: begins with {record[: len(MAGIC)]!r}, not {MAGIC!r}: not Tidegate's")
    if len(record) < _TAG.size:
        raise _truncated(where, len(record), _HEADER.size + _DIGEST_BYTES)
    _, form = _TAG.unpack_from(record)
    if form > FORMAT:
        raise CheckpointBroken(
            where, f"record: format {form} is newer than {FORMAT}, the newest that this server reads; update the server"
        )
    if form < FORMAT_WITHOUT_HASHES:
        raise CheckpointBroken(where, f"record: got format {form}, expected {FORMAT_WITHOUT_HASHES} to {FORMAT}")
    return int(form)


def _truncated(where: str, got: int, expected: int) -> CheckpointBroken:
    return CheckpointBroken(where, f"record: truncated: got {got} bytes, expected at least {expected}")


def _text(encoded: bytes, where: str) -> str:
    try:
        return encoded.decode()
    except UnicodeDecodeError:
        raise CheckpointBroken(where, f"record: {encoded[:32]!r} is not UTF-8") from None


def _digest(content: bytes) -> bytes:
    if len(content) <= _PIECE_BYTES:
        return blake2b(content, digest_size=_DIGEST_BYTES).digest()
    whole = memoryview(content)
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for start in range(0, len(content), _PIECE_BYTES):
        digest.update(whole[start : start + _PIECE_BYTES])
    return digest.digest()


@lru_cache(maxsize=64)  # models that are served at once
def _texts(model: ModelId) -> tuple[bytes, bytes, bytes]:
    return model.name.encode(), model.version.encode(), model.fingerprint.encode()
