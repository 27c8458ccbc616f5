"""A checkpoint as bytes: what stores keep, and what an exported stream is.

A record says everything about itself, so that it can be moved between stores and servers. All numbers are little-endian:

    4 bytes   b"TGCK"
    uint16    format
    uint16    bytes of each of these five texts (UTF-8): tenant, stream id, model name, model version, fingerprint
    uint64    bytes of the payload
    uint64    epoch
    uint64    step
    uint32    answers
    ...       the payload, then the five texts
    16 bytes  XXH3-128 of everything before

What stands before `format` and what it means stays as it is in every later format, so that a server can always say that a
record is too new for it. Up to format 2 the texts stood before the payload, and the last bytes were BLAKE2b.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import accumulate, chain, repeat
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_128_digest

from serving.core.errors import CheckpointBroken
from serving.core.spec import STEP_MAX, Checkpoint, Checkpoints, Key, ModelId
from serving.store.store import Head, Record

MAGIC = b"TGCK"
FORMAT = 3
# Up to here the texts stood before the payload, under another checksum.
FORMAT_WITH_BLAKE2B = 2
# The payload ends with a hash of 8 bytes for each answer. In the first format it did not: 0 says that one is not known.
FORMAT_WITHOUT_HASHES = 1
HASH_BYTES = 8

_TAG = struct.Struct("<4sH")
_HEADER = struct.Struct("<4sH5HQQQI")
# The same, for many records at once.
_HEADERS = np.dtype(
    [
        ("magic", "S4"),
        ("format", "<u2"),
        *((text, "<u2") for text in ("tenant", "stream_id", "name", "version", "fingerprint")),
        *((number, "<u8") for number in ("payload", "epoch", "step")),
        ("answers", "<u4"),
    ]
)
# 128 bits: no flip, tear or mix-up passes by chance. Checksums of 32 bits would pass one tear in four billion. XXH3 keeps nobody out
# who can write to the store, nor did BLAKE2b without a key; it takes 0.05 us a KB where that took 1.3, all of it with the
# interpreter in hand beside a busy event loop.
_DIGEST_BYTES = 16


def encode(checkpoint: Checkpoint) -> bytes:
    """The record of a checkpoint."""
    model, payload = checkpoint.model, checkpoint.payload
    texts = (*(text.encode() for text in checkpoint.key), *_texts(model))
    numbers = (len(payload), checkpoint.epoch, checkpoint.step, checkpoint.answers)
    content = b"".join((_HEADER.pack(MAGIC, FORMAT, *map(len, texts), *numbers), payload, *texts))
    return content + xxh3_128_digest(content)


class Records(NamedTuple):
    """Many records in one piece: record r is `content[begins[r] : begins[r] + sizes[r]]`."""

    content: bytearray
    begins: Sequence[int]
    sizes: Sequence[int]

    def __iter__(self) -> Iterator[bytes]:
        """Each record by itself."""
        whole = memoryview(self.content)
        return (bytes(whole[begin : begin + size]) for begin, size in zip(self.begins, self.sizes, strict=True))


def encode_all(checkpoints: Sequence[Checkpoint]) -> Records:
    """The record of each; a fifth of the work for those that are in columns."""
    if not isinstance(checkpoints, Checkpoints):
        records = [encode(checkpoint) for checkpoint in checkpoints]
        sizes = [len(record) for record in records]
        return Records(bytearray().join(records), _begins(sizes), sizes)
    headers, payloads = _cut(_headers(checkpoints)), _cut(checkpoints.payloads)
    texts = [f"{tenant}{stream_id}".encode() for tenant, stream_id in checkpoints.keys]
    ending = b"".join(_texts(checkpoints.model)) + bytes(_DIGEST_BYTES)
    content = bytearray().join(chain.from_iterable(zip(headers, payloads, texts, repeat(ending))))
    fixed = _HEADER.size + checkpoints.payloads.shape[1] + len(ending)
    sizes = [fixed + len(text) for text in texts]
    begins = _begins(sizes)
    whole = memoryview(content)
    for begin, size in zip(begins, sizes, strict=True):
        end = begin + size - _DIGEST_BYTES
        whole[end : end + _DIGEST_BYTES] = xxh3_128_digest(whole[begin:end])
    return Records(content, begins, sizes)


def _cut(rows: npt.NDArray[Any]) -> list[memoryview]:
    """Each row of a contiguous array, not copied."""
    packed = memoryview(np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data)
    width = len(packed) // len(rows)
    return [packed[begin : begin + width] for begin in range(0, len(packed), width)]


def _headers(checkpoints: Checkpoints) -> npt.NDArray[np.void]:
    """What their records begin with."""
    count, width = checkpoints.payloads.shape
    header = np.empty(count, _HEADERS)
    header["magic"], header["format"] = MAGIC, FORMAT
    header["tenant"] = [len(key.tenant.encode()) for key in checkpoints.keys]
    header["stream_id"] = [len(key.stream_id.encode()) for key in checkpoints.keys]
    header["name"], header["version"], header["fingerprint"] = map(len, _texts(checkpoints.model))
    header["payload"], header["answers"] = width, checkpoints.answers
    header["epoch"], header["step"] = checkpoints.epochs, checkpoints.steps
    return header


def _begins(sizes: Sequence[int]) -> list[int]:
    """Where pieces of these sizes begin that stand one after another."""
    return [*accumulate(sizes, initial=0)][:-1]


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
    if _digest(form, record[:end]) != record[end:]:
        raise CheckpointBroken(where, "record: checksum mismatch; it was damaged since it was written")
    texts_first = form <= FORMAT_WITH_BLAKE2B
    texts = []
    offset = _HEADER.size if texts_first else _HEADER.size + payload_bytes
    for size in sizes:
        texts.append(record[offset : offset + size])
        offset += size
    try:
        key, model = Key(texts[0].decode(), texts[1].decode()), _model(*texts[2:])
    except UnicodeDecodeError as error:
        raise CheckpointBroken(where, f"record: {error.object[:32]!r} is not UTF-8") from None
    if max(step, epoch) > STEP_MAX:
        raise CheckpointBroken(
            where, f"its step {step} or epoch {epoch} is above {STEP_MAX}, which no stream can reach"
        )
    payload_begin = offset if texts_first else _HEADER.size
    payload = record[payload_begin : payload_begin + payload_bytes]
    if form == FORMAT_WITHOUT_HASHES and answers <= len(payload):  # or it lies, and is no reason to take memory
        payload += bytes(HASH_BYTES * answers)
    return Checkpoint(key, epoch, step, model, answers, payload)


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


def _digest(form: int, content: bytes) -> bytes:
    if form <= FORMAT_WITH_BLAKE2B:
        return blake2b(content, digest_size=_DIGEST_BYTES).digest()
    return xxh3_128_digest(content)


@lru_cache(maxsize=64)  # models that are served at once
def _texts(model: ModelId) -> tuple[bytes, bytes, bytes]:
    return model.name.encode(), model.version.encode(), model.fingerprint.encode()


@lru_cache(maxsize=64)
def _model(name: bytes, version: bytes, fingerprint: bytes) -> ModelId:
    return ModelId(name.decode(), version.decode(), fingerprint.decode())
