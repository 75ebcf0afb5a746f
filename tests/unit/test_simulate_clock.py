"""``keystone simulate``: which time its devices think it is."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import orjson
import pytest

from keystone.cli import main
from keystone.log.url import EmbeddedUrl, open_embedded


def sent(folder: Path, *more: str) -> list[tuple[int, str]]:
    """(ts, session) of all events of a run."""
    url = EmbeddedUrl(folder)
    with closing(open_embedded(url, is_made=True)) as log:
        partitions = log.partitions
    with pytest.raises(SystemExit) as ended:
        main(["simulate", "--log", str(url), "--eps", "500", "--seconds", "1", *more])
    assert ended.value.code == 0
    found = []
    with closing(open_embedded(url, is_made=False)) as log:
        for partition in range(partitions):
            reader = log.reader(partition)
            while len(records := reader.poll(bytes_max=1 << 20, wait_ms=0)):
                for start, end in zip(records.starts.tolist(), records.ends.tolist(), strict=True):
                    found += [(event["ts"], event["session_id"]) for event in map(orjson.loads, records.text[start:end].tobytes().splitlines())]
    assert len(found) == 500
    return sorted(found)


@pytest.mark.slow
def test_it_is_now_unless_bytes_are_to_repeat(tmp_path: Path) -> None:
    before_ms = time.time() * 1_000
    now = sent(tmp_path / "now")
    assert before_ms - 10_000 <= now[0][0] <= now[-1][0] <= time.time() * 1_000 + 10_000
    seeded = sent(tmp_path / "seeded", "--seed", "1")
    assert seeded == sent(tmp_path / "again", "--seed", "1")
    assert seeded[0][0] < 1_790_000_100_000
    chosen = sent(tmp_path / "chosen", "--epoch-ms", "1700000000000")
    assert [(ts - chosen[0][0], session) for ts, session in chosen] == [(ts - now[0][0], session) for ts, session in now]
    assert 1_699_999_900_000 < chosen[0][0] < 1_700_000_100_000
