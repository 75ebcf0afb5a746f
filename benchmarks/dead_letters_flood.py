"""What a flood of lines that cannot be used costs: the pipeline of a partition and its files of dead letters, at 0 % and 30 % rubbish.

    python -m benchmarks.dead_letters_flood [--events 600000] [--json benchmarks/results/dead_letters_flood.json]

The rubbish is what a bad app version sends: the simulator's own events with a field renamed. Rows: without it; with it and all letters kept; and
with it when ``dead_letters.bytes_max`` is reached, as it is for most of a long flood. ``ratio``: the cost of a line over that without rubbish.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from io import BytesIO
from pathlib import Path

from benchmarks.measure import cpu_seconds, report
from keystone.actors.outputs import Letters
from keystone.config import Config
from keystone.decode import Decoder
from keystone.events import Records
from keystone.kernels import warm
from keystone.pipeline import PartitionPipeline
from keystone.sim.write import file_plan, write_events
from keystone.sinks.letters_limit import LettersLimit

FRAME_LINES = 600  # of a record
POLL_RECORDS = 10
SHARE = 0.3
ROOM = 1 << 40
TURNS = 5


def polls(lines: list[bytes]) -> list[Records]:
    """As a reader gives them: some records of many lines each."""
    frames: list[bytes | None] = [b"\n".join(lines[at : at + FRAME_LINES]) for at in range(0, len(lines), FRAME_LINES)]
    return [Records.of(frames[at : at + POLL_RECORDS], first_offset=at, append_ts_ms=1_790_000_000_000) for at in range(0, len(frames), POLL_RECORDS)]


class Flood:
    """One way through, again and again; ``letters kept`` are of the last."""

    def __init__(self, lines: list[bytes], bytes_max: int) -> None:
        self._polls, self._bytes_max = polls(lines), bytes_max
        self.dead = self.file_bytes = 0

    def run(self) -> None:
        with tempfile.TemporaryDirectory(prefix="keystone-") as folder:
            letters = Letters(Path(folder), "0f-", LettersLimit(self._bytes_max))
            letters.own(0, 1)
            pipeline, self.dead = PartitionPipeline(0, Decoder(), Config()), 0
            for records in self._polls:
                found = pipeline.step(records).dead_letters
                self.dead += len(found)
                if found:
                    letters.write(0, found)
            letters.close()
            self.file_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=600_000)
    parser.add_argument("--json")
    args = parser.parse_args()
    warm()
    out = BytesIO()
    write_events(out, file_plan(args.events, seed=1))
    good = out.getvalue().splitlines()
    rng = random.Random(1)
    mixed = [line.replace(b'"ts"', b'"timestamp"', 1) if rng.random() < SHARE else line for line in good]
    ways = [
        ("no rubbish", Flood(good, ROOM)),
        (f"{SHARE:.0%} rubbish, all kept", Flood(mixed, ROOM)),
        (f"{SHARE:.0%} rubbish, past the limit", Flood(mixed, 1 << 20)),
    ]
    turns = [[cpu_seconds(flood.run, 1) for _, flood in ways] for _ in range(1 + TURNS)]  # turn about: all meet the same machine
    costs = [min(seconds) / len(good) * 1e6 for seconds in zip(*turns[1:], strict=True)]
    rows = [
        {"what": what, "CPU us a line": cost, "ratio": cost / costs[0], "dead letters": flood.dead, "MB of files": flood.file_bytes / 1e6}
        for (what, flood), cost in zip(ways, costs, strict=True)
    ]
    report("dead_letters_flood", rows, args.json, lines=len(good), bytes_per_line=sum(map(len, good)) / len(good))


if __name__ == "__main__":
    main()
