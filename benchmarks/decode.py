"""Decode alone: ours against one-thread polars, pyarrow and orjson, on several spellings of the same events.

    python -m benchmarks.decode [FILE.ndjson] [--json benchmarks/results/decode.json]

Without FILE, events of the simulator. One unit (u) is one-thread ``polars.read_ndjson`` on the same bytes in this run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

os.environ["POLARS_MAX_THREADS"] = "1"

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.json as pj

from benchmarks.measure import cpu_seconds, report
from keystone.decode import Decoder
from keystone.events import PADDING, Records

EVENTS = 200_000


def spelled(lines: list[bytes], spelling: str) -> bytes:
    """The same events, spelled otherwise."""
    if spelling == "as they are":
        return b"\n".join(lines) + b"\n"
    rng = random.Random(1)
    out = []
    for i, line in enumerate(lines):
        items = list(json.loads(line).items())
        spaced = spelling == "spaces" or (spelling == "mixed producers" and i % 3 == 1)
        if spelling == "keys sorted" or (spelling == "mixed producers" and i % 3 == 2):
            items.sort()
        if spelling == "every event shuffled":
            rng.shuffle(items)
        out.append(json.dumps(dict(items), separators=(", ", ": ") if spaced else (",", ":")).encode())
    return b"\n".join(out) + b"\n"


def ours(text: bytes) -> tuple[float, int]:
    """(CPU seconds, events accepted) of decoding the whole text; the decoder has seen it before, as in a long run."""
    array = np.frombuffer(text + b"\n" * PADDING, np.uint8)
    one = np.zeros(1, np.int64)
    records = Records(0, array, one, one + len(text), one, one, 1)
    decoder = Decoder(seed=1)
    rows = sum(decoded.batch.rows for decoded in decoder.decode(records, per_line=True))
    return cpu_seconds(lambda: sum(decoded.batch.rows for decoded in decoder.decode(records, per_line=True))), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.file:
        lines = Path(args.file).read_bytes().split(b"\n")[:EVENTS]
    else:
        from keystone.sim.write import sample

        lines = sample(EVENTS).splitlines()
    lines = [line for line in lines if line.strip()]
    pa.set_cpu_count(1)
    rows = []
    for spelling in ("as they are", "spaces", "keys sorted", "mixed producers", "every event shuffled"):
        text = spelled(lines, spelling)
        seconds, accepted = ours(text)
        polars = cpu_seconds(lambda text=text: pl.read_ndjson(text))
        options = pj.ReadOptions(use_threads=False)
        arrow = cpu_seconds(lambda text=text, options=options: pj.read_json(pa.BufferReader(text), read_options=options))
        orj = cpu_seconds(lambda text=text: [orjson.loads(line) for line in text.splitlines()])
        n = len(lines)
        row = {"spelling": spelling, "bytes/event": len(text) / n, "accepted": accepted, "M events/s": n / seconds / 1e6, "u": polars / seconds}
        rivals = {"polars M/s (1 u)": n / polars / 1e6, "pyarrow M/s": n / arrow / 1e6, "orjson M/s": n / orj / 1e6}
        rows.append(row | rivals | {"ns/event": seconds / n * 1e9})
    report("decode", rows, args.json)


if __name__ == "__main__":
    main()
