"""A replay's alerts beside those of the live run, as its lake has them."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keystone.config import LakeConfig

if TYPE_CHECKING:
    from keystone.replay.log_range import LogRange
    from keystone.sinks.iceberg.chain import Link

#: What names an alert where its session began before the range, so that its id, which tells of the beginning, is another.
MOMENT: Final = ("partition", "device_id", "session_id", "kind", "event_ts", "seq", "append_ts_ms")
DIFF_FILE: Final = "alerts_diff.ndjson"


@dataclass(slots=True)
class Diff:
    """``same``: by ``alert_id``. ``began_before``: raised by the same event of a session that began before the range, so under another id.

    ``only``: the rest, as rows with ``side`` "live" or "replay".
    """

    same: int
    began_before: int
    only: pl.DataFrame = field(repr=False)

    @property
    def only_live(self) -> int:
        return self.only.filter(pl.col("side") == "live").height

    @property
    def only_replay(self) -> int:
        return self.only.filter(pl.col("side") == "replay").height

    def as_dict(self) -> dict[str, int]:
        return {"same": self.same, "began_before": self.began_before, "only_live": self.only_live, "only_replay": self.only_replay}


def lake_ends(lake: str, config: LakeConfig) -> dict[int, Link]:
    """How far each partition is in the lake. ``UsageError`` where there is none."""
    from keystone.sinks.iceberg.tables import LakeTables

    with closing(LakeTables.open(lake, config, is_made=False)) as tables:
        return tables.committed()


def live_alerts(lake: str, config: LakeConfig, within: LogRange) -> pl.DataFrame:
    """The lake's alerts of the range."""
    from keystone.sinks.iceberg.tables import LakeTables

    with closing(LakeTables.open(lake, config, is_made=False)) as tables:
        found = pl.DataFrame(tables.load("alerts").scan().to_arrow())
    return _within(found, within)


def replayed_alerts(out: Path, within: LogRange) -> pl.DataFrame:
    """What the replay wrote."""
    return _within(pl.read_parquet(out / "alerts.parquet"), within)


def compare(live: pl.DataFrame, replayed: pl.DataFrame) -> Diff:
    """Every alert is in one place of the result, each as often as it is there."""
    same = live.join(replayed, on="alert_id", how="semi").height
    live, replayed = live.join(replayed, on="alert_id", how="anti"), replayed.join(live, on="alert_id", how="anti")
    keys = list(MOMENT)
    moved = live.join(replayed, on=keys, how="semi", nulls_equal=True).height
    rest = [(live, replayed, "live"), (replayed, live, "replay")]
    only = [left.join(right, on=keys, how="anti", nulls_equal=True).insert_column(0, pl.lit(side).alias("side")) for left, right, side in rest]
    return Diff(same, moved, pl.concat(only, how="vertical_relaxed"))


def write(diff: Diff, out: Path) -> None:
    """One line for each alert that one side alone has."""
    diff.only.sort("append_ts_ms", "alert_id").write_ndjson(out / DIFF_FILE)


def _within(alerts: pl.DataFrame, within: LogRange) -> pl.DataFrame:
    of: list[Any] = [span.partition for span in within.spans]
    moment = pl.col("append_ts_ms")
    columns: list[Any] = sorted(alerts.columns)
    return alerts.select(columns).filter(moment >= within.from_ms, moment < within.until_ms, pl.col("partition").is_in(of))
