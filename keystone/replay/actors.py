"""A replay in several processes, under Ray. Each reads the files for itself: no event crosses a Ray call."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from keystone.actors.loop import FINISHED, LoopActor
from keystone.actors.runtime import RayRuntime
from keystone.actors.supervisor import Supervisor
from keystone.errors import KeystoneError
from keystone.replay.cohorts import add_up
from keystone.replay.engine import Replay, ReplaySpec, ReplayTotals
from keystone.replay.opening import open_replay

POLL_EVERY_S = 0.25
WORK_DIR = ".work"


class ReplayActor(LoopActor):
    """One share of a replay."""

    def __init__(self, spec: ReplaySpec) -> None:
        super().__init__(f"replay-{spec.share}", str(Path(spec.out_dir) / WORK_DIR))
        self._spec = spec
        self._replay: Replay
        self._is_done = False
        self._seen = ReplayTotals()

    def _build(self) -> None:
        self._replay = open_replay(self._spec)
        self._seen = self._replay.totals

    def _turn(self) -> float:
        self._is_done = self._finish_asked.is_set() or not self._replay.step()
        return 1e-6 if self._is_done else 0.0

    def _is_over(self) -> bool:
        return self._is_done

    def _close(self) -> ReplayTotals:
        return self._replay.close()

    def _counters(self) -> dict[str, Any]:
        return asdict(self._seen)


def replay_with_actors(spec: ReplaySpec, actors: int, is_stopped: Callable[[], bool], show: Callable[[ReplayTotals], None]) -> list[ReplayTotals]:
    """Run ``actors`` shares and join their outputs. Raises ``KeystoneError`` with the first fault of an actor."""
    out = Path(spec.out_dir)
    (out / WORK_DIR).mkdir(exist_ok=True)
    shares = [replace(spec, share=share, shares=actors) for share in range(actors)]
    with RayRuntime():
        supervisor = Supervisor(out / WORK_DIR)
        for share in shares:
            supervisor.add("replay", f"replay-{share.share}", f"partitions {', '.join(map(str, share.owned))}", ReplayActor, share)
        is_ending = False
        while not all(ward.state == FINISHED for ward in supervisor.wards):
            supervisor.poll()
            if faults := supervisor.faults():
                raise KeystoneError(faults[0])
            if is_stopped() and not is_ending:
                is_ending = True
                supervisor.order("replay", "finish")
            statuses = [ward.status for ward in supervisor.wards if "lines" in ward.status]
            if statuses:
                of = sum if spec.log else min  # every process reads all of the files, and its own share of a log
                least = {name: of(s[name] for s in statuses) for name in ("lines", "bytes")}
                show(ReplayTotals(**least, alerts=sum(s["alerts"] for s in statuses)))
            time.sleep(POLL_EVERY_S)
        totals: list[ReplayTotals] = supervisor.results("replay")
        supervisor.stop()
    _join(shares, out)
    return totals


def _join(shares: list[ReplaySpec], out: Path) -> None:
    """One file of each kind out of the shares'; the only one has written in place."""
    if len(shares) == 1:
        return
    with (out / "alerts.ndjson").open("wb") as joined:
        for share in shares:
            joined.write(share.path("alerts.ndjson").read_bytes())
            share.path("alerts.ndjson").unlink()
    with (out / "dead_letters.ndjson").open("wb") as joined:
        for share in shares if shares[0].log else shares[:1]:
            joined.write(share.path("dead_letters.ndjson").read_bytes())
            share.path("dead_letters.ndjson").unlink()
    for name in ("sessions.parquet", "alerts.parquet") if shares[0].log else ("sessions.parquet",):
        _join_rows([share.path(name) for share in shares], out / name)
    cohorts = shares[0].config.cohorts
    if cohorts.enabled:
        add_up(out, cohorts.dimensions)


def _join_rows(files: list[Path], joined: Path) -> None:
    with pq.ParquetWriter(joined, pq.read_schema(files[0]), compression="zstd", compression_level=1) as writer:
        for file in files:
            for group in pq.ParquetFile(file).iter_batches():
                writer.write_batch(group)
            file.unlink()
