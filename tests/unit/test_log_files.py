"""NDJSON files as blocks of whole lines."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from keystone.errors import UsageError
from keystone.events import DEAD_LETTER_BYTES_MAX, LF, LINE_BYTES_MAX, PADDING
from keystone.log.files import Block, OversizeLine, _Lines, read_ndjson
from tests.examples import examples


def lines_of(blocks):
    """[(number, line or OversizeLine)] after a look at every promise of a block."""
    lines = []
    for block in blocks:
        if isinstance(block, OversizeLine):
            lines.append((block.line, block))
            continue
        assert block.text.dtype == np.uint8
        assert block.text.flags.c_contiguous
        assert not block.text.flags.writeable
        assert block.text.size >= block.size + PADDING
        assert block.text[block.size - 1] == LF
        found = block.text[: block.size].tobytes().split(b"\n")[:-1]
        assert len(found) == block.lines
        lines += list(enumerate(found, block.first_line))
    assert [number for number, _ in lines] == list(range(len(lines)))
    return lines


def text_lines(paths):
    return [line for _, line in lines_of(read_ndjson(paths))]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a"]),
        (b"a\nb", [b"a", b"b"]),
        (b"\n\n", [b"", b""]),
        (b"a\r\n \t\nb\r", [b"a\r", b" \t", b"b\r"]),
        (b"\x00\xff\n\xfe", [b"\x00\xff", b"\xfe"]),
    ],
)
def test_lines_of_one_file(tmp_path, content, expected):
    (tmp_path / "f").write_bytes(content)
    assert text_lines([tmp_path / "f"]) == expected


def test_numbering_goes_on_through_files_and_lines_never_join_across_them(tmp_path):
    for name, content in (("a", b"1\n2"), ("b", b""), ("c", b"3\n\n4\n"), ("d", b"5")):
        (tmp_path / name).write_bytes(content)
    assert text_lines([tmp_path / n for n in "abcd"]) == [b"1", b"2", b"3", b"", b"4", b"5"]


LINES = b"".join(b'{"n":%d,"pad":"%s"}\n' % (i, b"x" * (i % 300)) for i in range(30_000))


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("plain.ndjson", LINES),
        ("one.gz", gzip.compress(LINES)),
        ("members.gz", gzip.compress(LINES[:100]) + gzip.compress(b"") + gzip.compress(LINES[100:])),
        ("padded.gz", gzip.compress(LINES) + bytes(512)),
        ("one.zst", zstandard.compress(LINES)),
        ("frames.zst", zstandard.compress(LINES[:1000]) + zstandard.compress(LINES[1000:])),
        ("skippable.zst", b"\x50\x2a\x4d\x18\x04\x00\x00\x00note" + zstandard.compress(LINES)),
        ("no-suffix", zstandard.compress(LINES)),
    ],
)
def test_every_packing_gives_the_same_lines(tmp_path, name, packed):
    (tmp_path / name).write_bytes(packed)
    assert b"\n".join(text_lines([tmp_path / name])) + b"\n" == LINES


@settings(deadline=None, max_examples=examples(200))
@given(st.lists(st.binary(max_size=60), max_size=20), st.integers(1, 40), st.booleans(), st.randoms(use_true_random=False))
def test_any_cut_of_any_stream_gives_the_same_lines(pieces, capacity, ends, random):
    """Small buffers, and reads that return as little as they like."""
    content = b"\n".join(pieces) + (b"\n" if ends else b"")

    class Trickle(io.BytesIO):
        def readinto(self, buffer):
            return super().readinto(memoryview(buffer)[: random.randint(1, len(buffer))])

    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    seen = lines_of(_Lines(capacity).of(Trickle(content)))
    assert len(seen) == len(expected)
    for (_, got), line in zip(seen, expected, strict=True):
        if isinstance(got, OversizeLine):
            assert got.length == len(line) >= capacity
            assert line.startswith(got.head)
            assert got.is_blank == (not line.strip(b" \t\r"))
        else:
            assert got == line


@pytest.mark.slow
@pytest.mark.parametrize("ending", [b"", b"\n", b"\nafter", b"\nafter\n\n"])
@pytest.mark.parametrize("fill", [b"x", b" \t\r "])
def test_a_line_of_any_length_costs_one_block_of_memory(tmp_path, ending, fill):
    length = 20 << 20
    (tmp_path / "f.zst").write_bytes(zstandard.compress(b"before\n" + fill * (length // len(fill)) + ending))
    tracemalloc.start()
    seen = lines_of(read_ndjson([tmp_path / "f.zst"], bytes_max=1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert seen[0] == (0, b"before")
    line = seen[1][1]
    assert line == OversizeLine(1, length, (fill * DEAD_LETTER_BYTES_MAX)[:DEAD_LETTER_BYTES_MAX], fill != b"x")
    assert [text for _, text in seen[2:]] == {b"": [], b"\n": [], b"\nafter": [b"after"], b"\nafter\n\n": [b"after", b""]}[ending]


@pytest.mark.parametrize("length", [LINE_BYTES_MAX - 1, LINE_BYTES_MAX, LINE_BYTES_MAX + 1, LINE_BYTES_MAX + 2])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_every_legal_line_comes_whole(tmp_path, length, end):
    (tmp_path / "f").write_bytes(b"a\n" + b"x" * length + end)
    seen = lines_of(read_ndjson([tmp_path / "f"], bytes_max=1))
    assert len(seen) == 2
    if length <= LINE_BYTES_MAX:
        assert seen[1][1] == b"x" * length
    else:
        assert getattr(seen[1][1], "length", None) or len(seen[1][1]) == length


@pytest.mark.slow
def test_standard_input(tmp_path):
    program = "from keystone.log.files import read_ndjson\nprint([(b.text[:b.size].tobytes(), b.first_line) for b in read_ndjson(['-'])])"
    for content in (b"a\nb", gzip.compress(b"a\nb")):
        done = subprocess.run([sys.executable, "-c", program], input=content, capture_output=True, check=True)
        assert done.stdout == b"[(b'a\\nb\\n', 0)]\n"


def test_a_pipe_is_read_to_its_end(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(LINES))
    writer.start()
    assert b"\n".join(text_lines([pipe])) + b"\n" == LINES
    writer.join()


def message(paths):
    with pytest.raises(UsageError) as raised:
        for _ in read_ndjson(paths):
            pass
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_files_that_cannot_be_read_are_named_before_anything_is_read(tmp_path):
    (tmp_path / "good").write_bytes(b"a\n")
    with pytest.raises(UsageError, match="absent: no such file"):
        read_ndjson([tmp_path / "good", tmp_path / "absent"])
    with pytest.raises(UsageError, match="is a directory"):
        read_ndjson([tmp_path / "good", tmp_path])
    with pytest.raises(UsageError, match="cannot be read"):
        read_ndjson([tmp_path / "good" / "below"])


def test_a_file_that_fails_while_it_is_read_is_named():
    assert message(["/proc/self/mem"]).startswith("/proc/self/mem: cannot be read: ")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_cut_off_packed_data_is_named(tmp_path, pack):
    whole = pack(os.urandom(30_000))
    for kept in (5, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut").write_bytes(whole[:kept])
        assert "cut: the packed data is cut off" in message([tmp_path / "cut"])
    (tmp_path / "cut").write_bytes(whole + whole[:20])
    assert "cut: the packed data is cut off" in message([tmp_path / "cut"])


@pytest.mark.slow
@pytest.mark.parametrize("pack", [gzip.compress, lambda d: zstandard.ZstdCompressor(write_checksum=True).compress(d)])
def test_damaged_packed_data_is_named(tmp_path, pack):
    whole = pack(LINES)
    middle = len(whole) // 2
    for damaged in (whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :], whole + b"garbage"):
        (tmp_path / "bad").write_bytes(damaged)
        assert "bad: the packed data is" in message([tmp_path / "bad"])


@pytest.mark.parametrize(("name", "packing"), [("x.gz", "gzip"), ("x.zst", "zstd")])
@pytest.mark.parametrize("content", [b"", b'{"plain":1}\n'])
def test_a_name_that_lies_is_said(tmp_path, name, packing, content):
    (tmp_path / name).write_bytes(content)
    assert f"{name}: is not {packing} data" in message([tmp_path / name])


def test_a_block_stays_the_same_object_of_memory(tmp_path):
    """Blocks are views into one buffer: what is kept must be copied, as the docstring says."""
    (tmp_path / "f").write_bytes(LINES)
    blocks = [block for block in read_ndjson([tmp_path / "f"], bytes_max=1) if isinstance(block, Block)]
    assert len(blocks) > 1
    assert all(block.text is blocks[0].text for block in blocks)
