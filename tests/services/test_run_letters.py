"""Dead letters of a whole run: mended and put back once, and a flood that fills nothing past its limit."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from keystone.log.embedded import EmbeddedLog
from keystone.partition import partition_of
from tests.lakes import rows_of
from tests.services import runs

pytestmark = [pytest.mark.ray, pytest.mark.slow]

PARTITIONS = 2
TS = 1_790_000_000_000
MEND = ".ts = tonumber(.timestamp) | del(.timestamp)"
PYTHON = """
def mend(line, letter):
    return line.replace(b"'", b'"')
"""


class Place:
    """A log of two partitions, a lake, and where the letters are."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.lake, self.letters = folder, folder / "log", folder / "lake", folder / "letters"
        EmbeddedLog.create(self.log, partitions=PARTITIONS, segment_bytes=1 << 20, retention_bytes=8 << 20).close()

    def append(self, lines: list[tuple[str, bytes]]) -> None:
        """(device, line), each a record."""
        with closing(EmbeddedLog.open(self.log)) as log:
            writers = [log.writer(partition) for partition in range(PARTITIONS)]
            for device, line in lines:
                writers[partition_of(device, PARTITIONS)].append(line)

    def run(self, *more: str) -> tuple[dict[str, Any], str]:
        words = ("--log", f"embedded:{self.log}", "--lake", str(self.lake), "--dead-letters", str(self.letters), "--report", str(self.folder / "report.json"))
        done = runs.command("run", *words, "--no-story", "--until-idle", "2", *more)
        assert done.status == 0, done.err
        return json.loads((self.folder / "report.json").read_bytes()), done.err

    def audit(self) -> tuple[int, dict[str, Any]]:
        done = runs.command("audit", "--log", f"embedded:{self.log}", "--lake", str(self.lake), "--dead-letters", str(self.letters), "--json")
        return done.status, json.loads(done.out)

    def replay(self, *words: str) -> str:
        return runs.command("dead-letters", "replay", "--from", str(self.letters), "--log", f"embedded:{self.log}", *words).out

    def sessions(self) -> Counter[tuple[str, str]]:
        return Counter(rows_of(self.lake).select("device_id", "session_id").iter_rows())


def good(n: int, kind: str = "Start") -> bytes:
    return json.dumps({"event": kind, "ts": TS + n, "device_id": f"d-{n}", "session_id": "s", "seq": 0}).encode()


def test_letters_are_mended_put_back_and_accepted_once(tmp_path: Path) -> None:
    place = Place(tmp_path)
    renamed = [(f"d-{n}", good(n).replace(b'"ts": ', b'"timestamp": ')) for n in range(40)]
    quoted = [(f"d-{n}", good(n).replace(b'"', b"'")) for n in range(40, 50)]
    place.append([*renamed, *quoted, *((f"d-{n}", good(n)) for n in range(50, 100))])
    report, _ = place.run()
    assert (report["dead_letters"], report["lake_rows"]) == ({"missing_field": 40, "invalid_json": 10}, 50)
    assert place.audit()[0] == 0

    (tmp_path / "mend.py").write_text(PYTHON, "utf-8")
    assert place.replay("--expr", MEND, "--reason", "missing_field").startswith("40 sent (")
    assert place.replay("--python", str(tmp_path / "mend.py"), "--reason", "invalid_json").startswith("10 sent (")
    assert "40 sent before" in place.replay("--expr", MEND, "--reason", "missing_field")
    report, _ = place.run()
    assert (report["ledger"]["received"], report["ledger"]["accepted"], report["dead_letters"]) == (50, 50, {})
    assert place.sessions() == Counter((f"d-{n}", "s") for n in range(100)), "each of them once"
    status, found = place.audit()
    assert (status, found["clean"], found["differences"]) == (0, True, [])
    shown = runs.command("dead-letters", "count", "--from", str(place.letters)).out
    assert re.search(r"\b50\b", shown), "what was put back is still told of"


def test_a_flood_fills_nothing_past_its_limit(tmp_path: Path) -> None:
    place = Place(tmp_path)
    limit = 20_000
    lines = [(f"d-{n}", good(n) if n % 3 else good(n).replace(b'"ts": ', b'"timestamp": ')) for n in range(3_000)]
    place.append(lines)
    report, err = place.run("--set", f"dead_letters.bytes_max={limit}")
    ledger = report["ledger"]
    assert (ledger["received"], ledger["accepted"], ledger["dead_lettered"]) == (3_000, 2_000, 1_000)
    assert (report["lake_rows"], report["dead_letters"]) == (2_000, {"missing_field": 1_000})
    assert "dead_letters.bytes_max is reached" in err
    kept = runs.letters_in(place.letters)
    assert sum(path.stat().st_size for path in place.letters.glob("*.ndjson")) <= limit + 1_000  # two markers
    reasons = Counter(letter["reason"] for letter in kept)
    assert 0 < reasons["missing_field"] < 200
    assert 1 <= reasons["not_kept"] <= PARTITIONS
    status, found = place.audit()
    assert (status, found["differences"]) == (0, [])
    counted = sum(int(re.findall(r"([\d,]+) dead letters were counted", note)[0].replace(",", "")) for note in found["notes"] if "counted" in note)
    assert counted == 1_000 - reasons["missing_field"]
    assert place.sessions() == Counter((f"d-{n}", "s") for n in range(3_000) if n % 3)
