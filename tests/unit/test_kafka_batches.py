"""Record batches: what others encode we read, what we encode others read, and damage is never read as records."""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from kafka.record.memory_records import MemoryRecords

from keystone.events import LF, PADDING
from keystone.log.kafka import batches
from keystone.log.kafka.batches import CODECS, BadBatch, Batch, BatchBuilder, Columns, Unreadable, batches_of, end_offset, varint
from tests.kafka_batches import resealed

NOW_MS = 1_790_000_000_000
Record = tuple[bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]
VALUES, KEYS = st.one_of(st.none(), st.binary(max_size=200)), st.one_of(st.none(), st.binary(max_size=30))
HEADERS = st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=3).map(tuple)
RECORDS = st.lists(st.tuples(VALUES, KEYS, HEADERS), min_size=1, max_size=40)


def encoded(records: list[Record], codec: str, *, base_offset: int = 0) -> bytes:
    builder = BatchBuilder()
    for value, key, headers in records:
        builder.add(value, key, headers)
    wire = builder.encode(codec, now_ms=NOW_MS, producer_id=7, producer_epoch=1, sequence=3)
    wire[:8] = struct.pack(">q", base_offset)  # as brokers do
    return bytes(wire)


def values_of(columns: Columns) -> list[bytes]:
    starts, ends, _, _ = columns.places
    text = columns.text
    assert (text[ends] == LF).all()
    assert not len(ends) or text.size >= ends[-1] + PADDING
    return [text[start:end].tobytes() for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]


def read(chunk: bytes, *, wanted: int = 0, limit: int = 1 << 40) -> Columns:
    columns = Columns()
    for batch in batches_of(memoryview(chunk), wanted, limit):
        assert isinstance(batch, Batch), batch
        columns.take(batch, wanted)
    return columns


@given(records=RECORDS, codec=st.sampled_from(CODECS), base=st.integers(0, 1 << 40))
def test_what_we_encode_we_and_kafka_python_read(records: list[Record], codec: str, base: int) -> None:
    wire = encoded(records, codec, base_offset=base)
    columns = read(wire, limit=1 << 50)
    assert values_of(columns) == [value or b"" for value, _, _ in records]
    assert columns.places[2].tolist() == list(range(base, base + len(records)))
    assert columns.places[3].tolist() == [NOW_MS] * len(records)
    theirs = MemoryRecords(wire).next_batch()
    assert theirs.validate_crc()
    assert (theirs.producer_id, theirs.producer_epoch, theirs.base_sequence) == (7, 1, 3)
    assert [(r.value, r.key, tuple(r.headers)) for r in theirs] == records


@given(records=RECORDS, codec=st.sampled_from([0, 1, 2, 3, 4]), start=st.integers(0, 50))
def test_what_kafka_python_encodes_we_read(records: list[Record], codec: int, start: int) -> None:
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=codec, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 30
    )  # fmt: skip
    for i, (value, key, headers) in enumerate(records):
        builder.append(i, timestamp=NOW_MS + 5 * i, key=key, value=value, headers=list(headers))
    start = min(start, len(records) - 1)
    columns = read(bytes(builder.build()), wanted=start)
    assert values_of(columns) == [value or b"" for value, _, _ in records[start:]]
    assert columns.places[3].tolist() == [NOW_MS + 5 * i for i in range(start, len(records))]
    assert DefaultRecordBatch.CODEC_MASK == batches.CODEC_BITS


def test_append_times_of_the_broker_count_for_the_whole_batch() -> None:
    wire = bytearray(encoded([(b"a", None, ()), (b"b", None, ())], "none"))
    wire[21:23] = struct.pack(">h", batches.APPEND_TIME_BIT)
    wire[35:43] = struct.pack(">q", NOW_MS + 77)  # the batch's latest time: the broker's
    assert read(resealed(wire)).places[3].tolist() == [NOW_MS + 77] * 2


def test_batches_follow_each_other_and_one_cut_off_is_left_out() -> None:
    parts = [encoded([(b"%d" % (10 * i + j), None, ()) for j in range(10)], CODECS[i % 5], base_offset=10 * i) for i in range(5)]
    whole = b"".join(parts)
    assert values_of(read(whole)) == [b"%d" % i for i in range(50)]
    assert end_offset(memoryview(whole), 0, 50) == 50
    assert values_of(read(whole[:-1])) == [b"%d" % i for i in range(40)]
    assert end_offset(memoryview(whole[:-1]), 0, 50) == 40
    assert end_offset(memoryview(parts[0][:-1]), 0, 50) is None
    assert values_of(read(whole, wanted=33)) == [b"%d" % i for i in range(33, 50)]


def test_a_damaged_batch_is_told_with_its_offsets_and_its_neighbours_are_read() -> None:
    parts = [encoded([(b"%d" % (10 * i + j), None, ()) for j in range(10)], "lz4", base_offset=10 * i) for i in range(3)]
    for at in range(21, len(parts[1])):
        damaged = bytearray(parts[1])
        damaged[at] ^= 0x41
        found = list(batches_of(memoryview(parts[0] + bytes(damaged) + parts[2]), 0, 30))
        assert [type(batch) for batch in found] == [Batch, Unreadable, Batch], at
        assert found[1][:2] == (10, 19)


@pytest.mark.slow
def test_nothing_in_the_bytes_makes_reading_fail_otherwise() -> None:
    """Thousands of damaged batches whose checksum fits: what the kernel and the codecs see is not what was sealed."""
    rng = random.Random(4)
    made = [encoded([(rng.randbytes(rng.randrange(60)), rng.randbytes(3), (("h", b"v"),)) for _ in range(12)], codec) for codec in CODECS]
    refused = 0
    for turn in range(6_000):
        wire = bytearray(made[turn % len(made)])
        for _ in range(rng.randrange(1, 4)):
            wire[rng.randrange(23, len(wire))] = rng.randrange(256)
        columns = Columns()
        for batch in batches_of(memoryview(resealed(wire)), 0, 1 << 40):
            if isinstance(batch, Unreadable):
                refused += 1
                continue
            try:
                columns.take(batch, 0)
            except BadBatch:
                refused += 1
        starts, ends, offsets, _ = columns.places
        assert (starts <= ends).all()
        assert columns.count == 0 or ends.max() + PADDING <= columns.text.size
        assert len(offsets) <= 12
    assert refused > 1_000


@pytest.mark.parametrize("codec", ["gzip", "lz4", "zstd"])
def test_a_batch_that_would_unpack_to_too_much_is_refused(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = batches._PACK[codec](bytearray(2_000_000))
    monkeypatch.setattr(batches, "BATCH_BYTES_MAX", 1_000_000)
    with pytest.raises(BadBatch, match="over 1000000 bytes"):
        batches.unpack(CODECS.index(codec), memoryview(bytes(packed)))


def test_control_batches_are_known_as_such() -> None:
    wire = bytearray(encoded([(b"marker", b"key", ())], "none"))
    wire[21:23] = struct.pack(">h", batches.CONTROL_BIT)
    [batch] = batches_of(memoryview(resealed(wire)), 0, 10)
    assert isinstance(batch, Batch)
    assert batch.is_control


@given(st.integers(-(2**63), 2**63 - 1))
def test_varints(value: int) -> None:
    from kafka.record.util import decode_varint

    assert decode_varint(memoryview(varint(value)), 0)[0] == value


def test_arrays_and_views_are_taken_as_their_bytes() -> None:
    builder = BatchBuilder()
    given_: list[Any] = [np.arange(5, dtype=np.uint8), memoryview(b"abc")[1:], b"", np.zeros(0, np.uint8), bytearray(b"x")]
    for value in given_:
        builder.add(value)
    wire = builder.encode("none", now_ms=1, producer_id=-1, producer_epoch=-1, sequence=-1)
    assert values_of(read(bytes(wire))) == [bytes(value) for value in given_]


# --- what brokers may have made of batches ------------------------------------------------------------------------------
def with_holes(kept: list[int], last: int) -> bytes:
    """A batch of offsets 0 to ``last`` of which compaction has left ``kept``."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 30
    )  # fmt: skip
    for offset in kept:
        builder.append(offset, timestamp=NOW_MS, key=None, value=b"%d" % offset, headers=[])
    wire = bytearray(builder.build())
    wire[23:27] = struct.pack(">i", last)
    return resealed(wire)


def test_what_compaction_left_is_read_at_its_offsets() -> None:
    wire = with_holes([1, 4, 8], 9)
    columns = read(wire)
    assert columns.places[2].tolist() == [1, 4, 8]
    assert values_of(columns) == [b"1", b"4", b"8"]
    assert end_offset(memoryview(wire), 0, 100) == 10
    assert read(wire, wanted=4).places[2].tolist() == [4, 8]


def test_a_batch_that_compaction_emptied_is_passed() -> None:
    wire = bytearray(with_holes([0], 9)[: batches.HEADER_BYTES])
    wire[8:12] = struct.pack(">i", batches.HEADER_BYTES - 12)
    wire[57:61] = struct.pack(">i", 0)
    [batch] = batches_of(memoryview(resealed(wire)), 0, 100)
    assert isinstance(batch, Batch)
    assert batch.last_offset == 9
    columns = Columns()
    columns.take(batch, 0)
    assert columns.count == 0


def test_offsets_that_do_not_rise_are_refused() -> None:
    wire = bytearray(encoded([(b"a", None, ()), (b"b", None, ())], "none"))
    second = wire.rindex(b"\x02\x01\x02b\x00")  # its number, no key, one byte
    wire[second] = 0
    with pytest.raises(BadBatch, match="do not fit"):
        read(resealed(wire))


@given(values=st.lists(st.binary(max_size=150).map(lambda value: value.replace(b"\x00", b"\n")), max_size=30))
def test_events_are_lines(values: list[bytes]) -> None:
    columns = read(encoded([(value, b"\n" * 7, ()) for value in values], "none")) if values else Columns()
    assert columns.events == sum(value.count(b"\n") + (value[-1:] not in {b"", b"\n"}) for value in values)


@given(value=VALUES, key=KEYS, headers=HEADERS, before=st.integers(0, 70_000))
def test_a_record_takes_little_more_than_what_it_holds(value: bytes | None, key: bytes | None, headers: Any, before: int) -> None:
    builder = BatchBuilder()
    builder.count = before
    builder.add(value, key)
    assert len(builder) <= len(value or b"") + len(key or b"") + batches.RECORD_OVERHEAD_BYTES
    wire = builder.encode("none", now_ms=NOW_MS, producer_id=1, producer_epoch=0, sequence=0)
    assert len(wire) == batches.HEADER_BYTES + len(builder)


# --- codecs as others use them ------------------------------------------------------------------------------------------
RAW = b"".join(b'{"event":"Heartbeat","n":%d}\n' % i for i in range(5_000))


def test_snappy_comes_plain_and_in_javas_framing() -> None:
    from kafka.codec import snappy_encode

    for framed in (True, False):
        packed = snappy_encode(RAW, xerial_compatible=framed)
        assert batches.unpack(2, memoryview(packed)) == RAW
    assert batches.unpack(2, memoryview(snappy_encode(b""))) == b""


@pytest.mark.parametrize("length", [-1, -4, -8, 0, -(2**31), 2**31 - 1])
def test_a_snappy_block_of_no_possible_length_is_refused(length: int) -> None:
    packed = b"\x82SNAPPY\x00" + bytes(8) + struct.pack(">i", length) + b"\x05\x10hello"
    with pytest.raises(BadBatch):
        batches.unpack(2, memoryview(packed))


def test_a_snappy_block_that_claims_too_much_is_not_unpacked() -> None:
    for packed in (b"\xff\xff\xff\xff\x7f" + b"x" * 50, b"\x82SNAPPY\x00" + bytes(8) + struct.pack(">i", 55) + b"\xff\xff\xff\xff\x7f" + b"x" * 50):
        with pytest.raises(BadBatch, match="over"):
            batches.unpack(2, memoryview(packed))


def test_lz4_and_zstd_come_with_and_without_their_size_and_in_many_blocks() -> None:
    import lz4.frame
    import zstandard

    for linked in (True, False):
        for size in (True, False):
            packed = lz4.frame.compress(RAW * 30, block_linked=linked, store_size=size, content_checksum=size, block_size=lz4.frame.BLOCKSIZE_MAX64KB)
            assert batches.unpack(3, memoryview(packed)) == RAW * 30
            assert batches.unpack(4, memoryview(zstandard.ZstdCompressor(write_content_size=size).compress(RAW * 30))) == RAW * 30
    with pytest.raises(BadBatch, match="cut off"):
        batches.unpack(3, memoryview(packed[: len(packed) // 2]))


@pytest.mark.parametrize("codec", [5, 6, 7])
def test_codecs_of_the_future_are_refused(codec: int) -> None:
    with pytest.raises(BadBatch, match="unknown"):
        batches.unpack(codec, memoryview(b"x"))


# --- damage where no checksum looks -------------------------------------------------------------------------------------
def three_batches(codec: str = "none") -> list[bytes]:
    return [encoded([(b"value %d" % (10 * i + j), None, ()) for j in range(10)], codec, base_offset=10 * i) for i in range(3)]


def assert_nothing_is_read_wrong(chunk: bytes, parts: list[bytes]) -> None:
    """What is read is what was written there; what is not read is told, or cut off at the end."""
    intact = {10 * i: part[batches.HEADER_BYTES :] for i, part in enumerate(parts)}
    at = 0
    for found in batches_of(memoryview(chunk), 0, 30):
        if isinstance(found, Unreadable) and not found.has_end:
            assert found.first_offset == at
            return
        first, last = found[:2] if isinstance(found, Unreadable) else (found.base_offset, found.last_offset)
        assert first == at
        if isinstance(found, Batch):
            assert bytes(found.payload) == intact[first]
        at = last + 1
    behind = end_offset(memoryview(chunk), 0, 30)
    assert at == 30 or behind is None or behind == at


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_header_damaged_before_its_checksum_is_never_believed(which: int) -> None:
    parts = three_batches()
    for at in range(17):
        for value in range(256):
            damaged = bytearray(parts[which])
            damaged[at] = value
            assert_nothing_is_read_wrong(b"".join([*parts[:which], bytes(damaged), *parts[which + 1 :]]), parts)


@given(which=st.integers(0, 2), codec=st.sampled_from(CODECS), data=st.data())
def test_one_batch_damaged_anywhere_is_never_believed(which: int, codec: str, data: Any) -> None:
    parts = three_batches(codec)
    damaged = bytearray(parts[which])
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    assert_nothing_is_read_wrong(b"".join([*parts[:which], bytes(damaged), *parts[which + 1 :]]), parts)


@pytest.mark.parametrize("codec", CODECS)
def test_a_fetch_may_end_anywhere(codec: str) -> None:
    parts = three_batches(codec)
    whole, sizes = b"".join(parts), [len(part) for part in parts]
    for size in range(len(whole) + 1):
        found = list(batches_of(memoryview(whole[:size]), 0, 30))
        expected = sum(size >= sum(sizes[: i + 1]) for i in range(3))
        assert [batch.base_offset for batch in found if isinstance(batch, Batch)] == [0, 10, 20][:expected]
        assert len(found) == expected
        assert end_offset(memoryview(whole[:size]), 0, 30) == (10 * expected or None)


@given(st.binary(max_size=400))
def test_noise_is_no_batch(noise: bytes) -> None:
    assert not any(isinstance(found, Batch) for found in batches_of(memoryview(noise), 0, 1 << 40))
    end_offset(memoryview(noise), 0, 1 << 40)


@given(records=RECORDS, data=st.data())
def test_records_damaged_under_a_checksum_that_fits_stay_inside_their_batch(records: list[Record], data: Any) -> None:
    wire = bytearray(encoded(records, "none"))
    for _ in range(data.draw(st.integers(1, 5))):
        wire[data.draw(st.integers(57, len(wire) - 1))] = data.draw(st.integers(0, 255))
    columns = Columns()
    for found in batches_of(memoryview(resealed(wire)), 0, 1 << 40):
        if isinstance(found, Batch):
            try:
                columns.take(found, 0)
            except BadBatch:
                assert columns.count == 0
    starts, ends, offsets, _ = columns.places
    assert (starts >= 0).all()
    assert (starts <= ends).all()
    assert (ends < len(wire) - batches.HEADER_BYTES).all()
    assert (np.diff(offsets) > 0).all()
    assert (offsets < len(records)).all()
