"""A million mutated lines: no crash, no hang, and the line before and after each is read as if nothing had happened."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from keystone.decode import Decoder
from keystone.events import DIMENSIONS, INT_COLUMNS, Records
from tests import corpus
from tests.decoding import decode_lines, expected_lines

LINES = 1_000_000
BLOCK_LINES = 20_000
COMPARED_BLOCKS = 3  # of all blocks, every line of these is compared with the reference too (30 us a line)
JUNK = b'{}[]:,"\\\n\r\t 0123456789.-+eEtrufalsn\x00\x1f\x7f\x80\xbf\xc2\xe2\xed\xf0\xff'


def seeds(rng: random.Random) -> list[bytes]:
    """Plain events in several spellings, and the corpus."""
    found = [line for line in corpus.SMALL if len(line) < 600]
    for i in range(200):
        name = rng.choice(["Start", "Heartbeat", "Buffer", "Stop", "Error", "Ad"])
        event = {"event": name, "ts": 1_790_000_000_000 + i, "device_id": f"d-{i}", "session_id": f"{i:032x}"}
        event |= {name: rng.choice(["a", "us-east-1", "\u00e9", "x" * 40, 5]) for name in rng.sample(DIMENSIONS, rng.randrange(10))}
        event |= {name: rng.randrange(10**9) for name in rng.sample(INT_COLUMNS, rng.randrange(7))}
        event |= {"fatal": True, "nested": {"a": [1, 2, {"b": None}]}} if i % 5 == 0 else {}
        found.append(json.dumps(event, separators=rng.choice([(",", ":"), (", ", ": ")]), ensure_ascii=rng.random() < 0.5).encode())
    return found


def mutated(rng: random.Random, line: bytes, other: bytes) -> bytes:
    """One to four byte edits: overwrite, insert, delete, duplicate a part, splice with another line."""
    out = bytearray(line)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(out) + 1)
        edit = rng.randrange(5)
        if edit == 0 and at < len(out):
            out[at] = rng.choice(JUNK)
        elif edit == 1:
            out.insert(at, rng.choice(JUNK))
        elif edit == 2:
            del out[at : at + rng.randrange(1, 9)]
        elif edit == 3:
            out[at:at] = out[at : at + rng.randrange(1, 20)]
        else:
            out[at:] = other[rng.randrange(len(other) + 1) :]
    return bytes(out).replace(b"\n", b"\v")


@pytest.mark.slow
def test_a_million_mutated_lines_cost_no_neighbour() -> None:
    rng = random.Random(20)
    lines, decoder = seeds(rng), Decoder(seed=1)
    for block in range(2 * LINES // BLOCK_LINES):
        count = BLOCK_LINES // 2
        bad = [mutated(rng, rng.choice(lines), rng.choice(lines)) for _ in range(count)]
        good = [b'{"event":"Heartbeat","ts":%d,"device_id":"n-%d","session_id":"s","seq":%d}' % (block, i, i) for i in range(count)]
        text = b"\n".join(line for pair in zip(bad, good, strict=True) for line in pair)
        if block < COMPARED_BLOCKS:
            assert decode_lines(text, decoder) == expected_lines(text)
        check_neighbours(text, count, block, decoder)


def check_neighbours(text: bytes, count: int, block: int, decoder: Decoder) -> None:
    """Every odd line is accepted with its own values; every even one is accepted, dead or blank, once."""
    seen = np.zeros(2 * count, np.int64)
    for decoded in decoder.decode(Records.of([text]), per_line=True):
        batch, numbers = decoded.batch, decoded.batch.offset
        np.add.at(seen, numbers, 1)
        ours = numbers % 2 == 1
        assert (batch.ts[ours] == block).all()
        assert (batch.int_column("seq")[ours] == numbers[ours] // 2).all()
        assert batch.device_id.value(0) is not None
        rows = np.flatnonzero(ours)
        assert {batch.device_id.value(row) for row in rows[:5]} == {b"n-%d" % (int(numbers[row]) // 2) for row in rows[:5]}
        for letter in decoded.dead_letters:
            seen[letter.offset] += 1
            assert letter.offset % 2 == 0
    assert (seen[1::2] == 1).all()
    assert (seen[0::2] <= 1).all()
