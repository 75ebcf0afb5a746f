"""Quality of experience from a lake, asked with DuckDB: the worst places, what viewers waited, and single sessions in time.

Ratios are ratios of sums over session records (rebuffering = stalled / (stalled + played)), so they are of sessions that have *ended*: a bench
leaves millions open. Cohorts (``cohorts.parquet``) count open ones too and are what is alerted by; this is for looking closer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from keystone.errors import UsageError
from keystone.report.figures import BINS_PER_DECADE, HEAT_VALUES_MAX, HEAT_WINDOWS_MAX, window_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

DIMENSIONS: Final = ("region", "country", "device_type", "cdn", "isp", "app_version", "network", "os")
SESSIONS_MIN: Final = 20  # of a value that is ranked: one unlucky viewer makes no bad region
PLAYING, STALLED, WAITING = "playing", "stalled", "waiting"
NO_STALL: Final = ("startup", "seek")  # phases of a Buffer that is no stall
_COLUMNS: Final = 'event, ts, device_id, session_id, seq, phase, fatal, partition, "offset", line, duplicate, late'
#: What a group of sessions is told by; ms and fractions.
_MEASURES: Final = """
    count(*)::bigint as sessions,
    sum(stall_ms)::double / nullif(sum(stall_ms) + sum(playing_ms), 0)::double as rebuffering,
    avg((buffers > 0)::int) as waited,
    quantile_disc(startup_ms, 0.5)::double as startup_ms_p50,
    quantile_disc(startup_ms, 0.95)::double as startup_ms_p95,
    avg((outcome = 'vsf')::int) as start_failures,
    avg((outcome = 'ebvs')::int) as left_before_start,
    avg(mean_bitrate_kbps) as bitrate_kbps,
    sum(alerts)::bigint as alerts
"""


@dataclass(frozen=True, slots=True)
class LakeFiles:
    """Parquet files of a lake's events and sessions, of its newest snapshot where it has any."""

    folder: Path
    events: tuple[str, ...]
    sessions: tuple[str, ...]


def find_lake(folder: str | Path) -> LakeFiles:
    """The lake of a run, bench or replay: the folder itself, or ``lake`` in it. ``UsageError`` where there is none, or no sessions with it."""
    folder = Path(folder)
    for root in (folder, folder / "lake"):
        if (root / "catalog.db").is_file():
            found = _tables(root)
        elif any(root.glob("event_date=*")):
            sessions = next((path for path in (root / "sessions.parquet", root.parent / "sessions.parquet") if path.is_file()), None)
            found = LakeFiles(root, tuple(map(str, sorted(root.glob("event_date=*/*.parquet")))), () if sessions is None else (str(sessions),))
        else:
            continue
        if not found.events or not found.sessions:
            what = "events" if not found.events else "ended sessions"
            raise UsageError(f"the lake {root} holds no {what}: take a run of at least a minute, or a replay")
        return found
    raise UsageError(f"{folder} holds no lake: name the folder of a bench or replay (without --no-lake), or a run's lake on this machine")


def _tables(root: Path) -> LakeFiles:
    from keystone.config import LakeConfig
    from keystone.sinks.iceberg.columns import EVENTS, SESSIONS
    from keystone.sinks.iceberg.tables import LakeTables

    tables = LakeTables.open(root, LakeConfig(), is_made=False)
    try:
        paths = {name: tuple(task.file.file_path.removeprefix("file://") for task in tables.load(name).scan().plan_files()) for name in (EVENTS, SESSIONS)}
    finally:
        tables.close()
    return LakeFiles(root, paths[EVENTS], paths[SESSIONS])


def connect(lake: LakeFiles) -> DuckDBPyConnection:
    """A connection with the views ``events`` and ``sessions``: ask it anything. In memory; the lake is only read."""
    import duckdb

    connection = duckdb.connect()
    for name in ("events", "sessions"):
        connection.read_parquet(list(getattr(lake, name)), union_by_name=True).create_view(name)
    return connection


def overview(connection: DuckDBPyConnection) -> dict[str, Any]:
    """``_MEASURES`` of all ended sessions, and ``events devices first_ms last_ms`` of the events."""
    measures = connection.sql(f"select {_MEASURES} from sessions").pl().row(0, named=True)
    times = connection.sql("select count(*)::bigint as events, min(ts) as first_ms, max(ts) as last_ms from events").pl().row(0, named=True)
    devices = connection.sql("select count(distinct device_id)::bigint as devices from sessions").pl().row(0, named=True)
    return {**times, **devices, **measures}


def worst(connection: DuckDBPyConnection, dimension: str = "region", count: int = HEAT_VALUES_MAX) -> pl.DataFrame:
    """``value`` and ``_MEASURES``, the worst rebuffering first; values of fewer than ``SESSIONS_MIN`` sessions are left out."""
    return _table(
        connection,
        f"""
        select {_known(dimension)} as value, {_MEASURES} from sessions
        group by 1 having count(*) >= {SESSIONS_MIN} order by rebuffering desc nulls last, value limit {int(count)}
    """,
    )


def pairs(connection: DuckDBPyConnection, down: str = "region", across: str = "cdn") -> pl.DataFrame:
    """``down across`` and ``_MEASURES``: what is bad only together."""
    return _table(
        connection,
        f"""
        with top_down as (select {_known(down)} as v from sessions group by 1 order by count(*) desc limit {HEAT_VALUES_MAX}),
             top_across as (select {_known(across)} as v from sessions group by 1 order by count(*) desc limit {HEAT_VALUES_MAX})
        select {_known(down)} as down, {_known(across)} as across, {_MEASURES} from sessions
        where {_known(down)} in (from top_down) and {_known(across)} in (from top_across)
        group by 1, 2 having count(*) >= {SESSIONS_MIN} order by 1, 2
    """,
    )


def stalls_over_time(connection: DuckDBPyConnection, dimension: str = "region") -> pl.DataFrame:
    """``value at_s to_s stalls events share``: Buffers that are stalls, of all events, per window of the time they were appended (replay: of ``ts``)."""
    name, phases = _known(dimension), ", ".join(f"'{phase}'" for phase in NO_STALL)
    span = connection.sql("select min(coalesce(append_ts, ts)) as first_ms, max(coalesce(append_ts, ts)) as last_ms from events").pl().row(0, named=True)
    window_ms = int(window_of((span["last_ms"] - span["first_ms"]) / 1_000, HEAT_WINDOWS_MAX) * 1_000)
    found = _table(
        connection,
        f"""
        with top as (select {name} as v from events group by 1 order by count(*) desc limit {HEAT_VALUES_MAX})
        select {name} as value, ((coalesce(append_ts, ts) - {span["first_ms"]}) // {window_ms}) * {window_ms / 1_000}::double as at_s,
            at_s + {window_ms / 1_000}::double as to_s, count(*)::bigint as events,
            count(*) filter (event = 'Buffer' and (phase is null or phase not in ({phases})))::bigint as stalls from events
        where not duplicate and {name} in (from top) group by 1, 2 order by 1, 2
    """,
    )
    return found.with_columns((pl.col("stalls") / pl.col("events")).alias("share"))


def waiting(connection: DuckDBPyConnection) -> pl.DataFrame:
    """``low_ms high_ms sessions share``: how long viewers waited in stalls, of those sessions that did; logarithmic bins."""
    return _table(
        connection,
        f"""
        with waited as (
            select floor(log10(greatest(stall_ms, 1)) * {BINS_PER_DECADE // 2})::int as bin, count(*)::bigint as sessions from sessions
            where stall_ms > 0 group by 1
        )
        select 10 ** (bin / {BINS_PER_DECADE / 2}::double) as low_ms, 10 ** ((bin + 1) / {BINS_PER_DECADE / 2}::double) as high_ms, sessions,
            sessions::double / sum(sessions) over ()::double as share from waited order by bin
    """,
    )


def worst_sessions(connection: DuckDBPyConnection, count: int = 12) -> pl.DataFrame:
    """Session records with most alerts, then the longest waits; one a device, so that one broken player does not fill the list."""
    return _table(
        connection,
        f"""
        select * from (from sessions qualify row_number() over (partition by device_id order by alerts desc, stall_ms desc, start_ts) = 1)
        where stall_ms > 0 order by alerts desc, stall_ms desc, device_id limit {int(count)}
    """,
    )


def timelines(connection: DuckDBPyConnection, sessions: pl.DataFrame) -> pl.DataFrame:
    """``session state from_ms to_ms`` of these session records, in ms from each one's start: playing, stalled, or waiting for the first picture."""
    keys = sessions.select("device_id", "session_id", "start_ts", "end_ts")
    connection.register("asked", keys.to_arrow())
    try:
        events = connection.sql(f"""
            select {_COLUMNS}, asked.start_ts from events join asked using (device_id, session_id)
            where ts between asked.start_ts and asked.end_ts and not duplicate and not late order by partition, "offset", line
        """).pl()
    finally:
        connection.unregister("asked")
    own = events.partition_by("device_id", "session_id", "start_ts", as_dict=True, maintain_order=True)
    rows = [
        (f"{device} · {session}", state, begin - start_ts, end - start_ts)
        for device, session, start_ts, _ in keys.iter_rows()
        if (device, session, start_ts) in own
        for state, begin, end in spans(own[device, session, start_ts].iter_rows(named=True))
    ]
    return pl.DataFrame(rows, schema={"session": pl.String, "state": pl.String, "from_ms": pl.Int64, "to_ms": pl.Int64}, orient="row")


def spans(events: Iterable[Mapping[str, Any]]) -> list[tuple[str, int, int]]:
    """State, begin and end (device time, ms) of one session from its events in order, neither duplicate nor late; empty spans are left out.

    The rules of a session record: a stall opens with the first Buffer of a run and ends with the next Heartbeat, Start or Stop.
    """
    found: list[tuple[str, int, int]] = []
    state, since, last = WAITING, None, 0
    has_played = False
    for event in events:
        kind, ts = event["event"], int(event["ts"])
        since = ts if since is None else since
        last = max(last, ts)
        following = state
        if kind == "Heartbeat":
            following, has_played = PLAYING, True
        elif kind in ("Start", "Stop") and state == STALLED:
            following = PLAYING if has_played else WAITING
        elif kind == "Buffer" and event["phase"] not in NO_STALL:
            following = STALLED
        if following != state or kind == "Stop":
            if ts > since:
                found.append((state, since, ts))
            state, since = following, ts
        if kind == "Stop":
            return found
    if since is not None and last > since:
        found.append((state, since, last))
    return found


def _table(connection: DuckDBPyConnection, query: str) -> pl.DataFrame:
    found: pl.DataFrame = connection.sql(query).pl()
    return found


def _known(dimension: str) -> str:
    """A dimension as it stands in SQL: only names that are known get there."""
    if dimension not in DIMENSIONS:
        raise UsageError(f"{dimension} is none of {', '.join(DIMENSIONS)}")
    return f"coalesce({dimension}, 'unknown')"
