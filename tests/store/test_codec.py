import struct
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_128_digest

from tests.store.support import MODEL, checkpoint
from tidegate.core.errors import CheckpointBroken
from tidegate.core.spec import STEP_MAX, Checkpoint, Checkpoints, Key, ModelId
from tidegate.store import Record, StreamMetadata, decode, encode
from tidegate.store.codec import decode_record, encode_all

texts = st.text(max_size=40)
checkpoints = st.builds(
    Checkpoint,
    key=st.builds(Key, texts, texts),
    epoch=st.integers(0, STEP_MAX),
    step=st.integers(0, STEP_MAX),
    model=st.builds(ModelId, texts, texts, texts),
    answers=st.integers(0, 2**31 - 1),
    payload=st.binary(max_size=5000),
)


# Records of this checkpoint in older formats, byte by byte.
OLD = Checkpoint(Key("default", "sensor"), 3, 41, ModelId("démo", "2", "f" * 8), 2, b"state" + bytes(range(16)))
OF_FORMAT_2 = bytes.fromhex(
    "5447434b0200070006000500010008001500000000000000030000000000000029000000000000000200000064656661756c7473656e736f72"
    "64c3a96d6f3266666666666666667374617465000102030405060708090a0b0c0d0e0f32ba23800613cf4a984f1331095d793a"
)
OF_FORMAT_1 = bytes.fromhex(
    "5447434b0100070006000500010008000500000000000000030000000000000029000000000000000200000064656661756c7473656e736f72"
    "64c3a96d6f3266666666666666667374617465cca25fa00f839b80135dd895e4779a40"
)


def sealed(content: bytes) -> bytes:
    """Content with its checksum."""
    return content + xxh3_128_digest(content)


@given(checkpoints)
def test_a_checkpoint_comes_back_as_it_was(original: Checkpoint) -> None:
    """Decode returns what was encoded."""
    assert decode(encode(original), "here") == original


@st.composite
def columns(draw: st.DrawFn) -> Checkpoints:
    """Some checkpoints of one model and one size."""
    keys = draw(st.lists(st.builds(Key, texts, texts), min_size=1, max_size=8, unique=True))
    numbers = st.lists(st.integers(0, STEP_MAX), min_size=len(keys), max_size=len(keys))
    width = draw(st.integers(1, 40))
    payloads = np.frombuffer(draw(st.binary(min_size=width * len(keys), max_size=width * len(keys))), np.uint8)
    model, answers = draw(st.builds(ModelId, texts, texts, texts)), draw(st.integers(0, 2**31 - 1))
    steps = np.array(draw(numbers), np.int64)
    return Checkpoints(keys, draw(numbers), steps, model, answers, payloads.reshape(-1, width))


@given(columns())
def test_many_at_once_are_the_records_of_each(run_concurrently: Checkpoints) -> None:
    """The records have the same bytes as those that are encoded one by one, whatever the lengths of the names."""
    assert list(encode_all(run_concurrently)) == [encode(each) for each in run_concurrently]


@given(st.lists(checkpoints, max_size=5))
def test_many_that_are_not_in_columns_are_the_records_of_each(run_concurrently: list[Checkpoint]) -> None:
    """Of different models and sizes, or none."""
    assert list(encode_all(run_concurrently)) == [encode(each) for each in run_concurrently]


@given(columns(), st.data())
def test_a_part_of_columns_is_the_checkpoints_of_that_part(run_concurrently: Checkpoints, data: st.DataObject) -> None:
    """Slices are those of a list."""
    first, last = data.draw(st.integers(0, len(run_concurrently))), data.draw(st.integers(0, len(run_concurrently)))
    assert list(run_concurrently[first:last]) == list(run_concurrently)[first:last]


@given(st.data())
def test_every_truncation_is_refused(data: st.DataObject) -> None:
    """A record that is cut anywhere is refused as truncated."""
    record = encode(data.draw(checkpoints))
    kept = data.draw(st.integers(0, len(record) - 1))
    with pytest.raises(CheckpointBroken, match=rf"here: record: truncated: got {kept} bytes, expected at least \d+"):
        decode(record[:kept], "here")


@pytest.mark.parametrize(
    "record",
    [encode(checkpoint("sensor")), encode(checkpoint("sensor", payload=bytes(3000))), OF_FORMAT_2, OF_FORMAT_1],
    ids=["short", "long", "of format 2", "of format 1"],
)
def test_every_flipped_bit_is_refused(record: bytes) -> None:
    """A record with any one flipped bit is refused, also when its format then looks older."""
    for bit in range(8 * len(record)):
        broken = bytearray(record)
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CheckpointBroken):
            decode(bytes(broken), "here")


@given(st.binary(min_size=1))
def test_foreign_bytes_are_refused(foreign: bytes) -> None:
    """Bytes with another beginning are refused as not Tidegate's."""
    with pytest.raises(CheckpointBroken, match="not Tidegate's"):
        decode(b"\x89" + foreign, "here")


def test_damage_is_named() -> None:
    """A record with changed content is refused by its checksum."""
    record = bytearray(encode(checkpoint("sensor")))
    record[-20] ^= 1
    with pytest.raises(CheckpointBroken, match="checksum mismatch"):
        decode(bytes(record), "here")


def test_a_newer_format_is_refused_by_name() -> None:
    """A record of a newer format is refused with both numbers, even if everything else has changed."""
    with pytest.raises(CheckpointBroken, match=r"format 7 is newer than 3, .*; update the server"):
        decode(b"TGCK" + struct.pack("<H", 7), "here")


def test_a_format_that_never_was_is_refused() -> None:
    """A record of format 0 is refused with both numbers."""
    with pytest.raises(CheckpointBroken, match="got format 0, expected 1 to 3"):
        decode(b"TGCK" + struct.pack("<H", 0), "here")


def test_a_record_of_the_second_format_is_read() -> None:
    """The texts come before the payload, and the checksum is another one."""
    assert decode(OF_FORMAT_2, "here") == OLD


def test_a_record_of_before_there_were_hashes_is_read() -> None:
    """The hashes are 0: the values of its timesteps are not known."""
    assert decode(OF_FORMAT_1, "here") == replace(OLD, payload=b"state" + bytes(16))


def test_an_old_record_takes_no_memory_by_what_it_claims() -> None:
    """Anybody may have written a record, and it may claim room for billions of answers."""
    content = bytearray(OF_FORMAT_1[:-16])
    struct.pack_into("<I", content, 40, 2**31)
    assert decode(bytes(content) + blake2b(content, digest_size=16).digest(), "here").payload == b"state"


def test_bytes_after_the_end_are_refused() -> None:
    """A record that is longer than its lengths say is refused with both sizes."""
    record = encode(checkpoint("sensor"))
    with pytest.raises(CheckpointBroken, match=f"got {len(record) + 3} bytes, expected {len(record)}"):
        decode(record + b"abc", "here")


def test_lengths_that_do_not_add_up_are_refused() -> None:
    """A record with a right checksum that claims more bytes than it has is refused."""
    content = bytearray(encode(checkpoint("sensor"))[:-16])
    struct.pack_into("<Q", content, 16, 1 << 60)  # bytes of the payload
    with pytest.raises(CheckpointBroken, match="truncated"):
        decode(sealed(bytes(content)), "here")


def test_a_text_that_is_none_is_refused() -> None:
    """A record with a right checksum and a stream id that is not UTF-8 is refused with the bytes."""
    content = encode(checkpoint("sensor"))[:-16].replace(b"sensor", b"\xffensor")
    with pytest.raises(CheckpointBroken, match=r"b'\\xffensor' is not UTF-8"):
        decode(sealed(content), "here")


def test_a_record_of_another_stream_is_refused() -> None:
    """A valid record of another stream is not used."""
    kept = checkpoint("mine")
    with pytest.raises(CheckpointBroken, match="here: record: holds stream 'other', not this one"):
        decode_record(head_of(kept), encode(checkpoint("other")), "here")


@pytest.mark.parametrize(
    "stale", [checkpoint("mine", step=4), checkpoint("mine", step=5, epoch=3)], ids=["step", "epoch"]
)
def test_a_record_that_is_not_the_last_is_refused(stale: Checkpoint) -> None:
    """A valid record of another step than the store knows, or of a future epoch, is not used."""
    with pytest.raises(CheckpointBroken, match=r"but the store knows step 5 of epoch 2"):
        decode_record(head_of(checkpoint("mine", step=5, epoch=2)), encode(stale), "here")


def test_a_record_of_an_older_epoch_is_the_last_before_the_claim() -> None:
    """A claim raises the epoch and keeps the record of the epoch before."""
    kept = checkpoint("mine", step=5, epoch=1)
    head = head_of(checkpoint("mine", step=5, epoch=2))
    assert decode_record(head, encode(kept), "here") == Record(head, kept)


def head_of(kept: Checkpoint) -> StreamMetadata:
    """Metadata of a stream with a checkpoint."""
    return StreamMetadata(kept.key, kept.epoch, kept.step, MODEL, 0, 0, len(kept.payload))
