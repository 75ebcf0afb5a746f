"""What a bench measures: session actors and a committer, as a run has them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from keystone.actors.cohort_sinks import CohortSinks
from keystone.actors.committer import CommitterActor, CommitterSpec
from keystone.actors.nodes import COMMITTER, SESSION
from keystone.actors.outputs import OutputSpec
from keystone.actors.session import SessionActor, SessionSpec
from keystone.actors.supervisor import Supervisor
from keystone.bench.plan import SEGMENTS, BenchPlan
from keystone.config import Config
from keystone.routes import LAKE
from keystone.routes_sources import DEAD_LETTERS
from keystone.sinks.opening import SinksSpec

if TYPE_CHECKING:
    import polars as pl

LAKE_DIR: Final = "lake"
STATE_DIR: Final = "state"  # of checkpoints, in a run's output
WORK_DIR: Final = ".work"  # gone when the run is over
OUTBOX_DIR: Final = "outbox"  # what search servers did not take


class Source(Protocol):
    """Where events come from, and where alerts go."""

    @property
    def url(self) -> str: ...
    @property
    def output(self) -> OutputSpec: ...
    @property
    def start_offsets(self) -> tuple[tuple[int, int], ...]: ...


def add_engine(supervisor: Supervisor, plan: BenchPlan, config: Config, source: Source, out: Path) -> None:
    """Create the actors of a run into ``out``."""
    lake = out / LAKE_DIR if plan.lake else None
    if lake is not None:
        lake.mkdir(parents=True, exist_ok=True)
    add_session_actors(supervisor, range(plan.session_actors), plan, config, source, out)
    if lake is not None:
        committing = CommitterSpec(str(lake), str(out / STATE_DIR), str(out / WORK_DIR), config.lake)
        supervisor.add(COMMITTER, COMMITTER, "the lake's commits", CommitterActor, committing)


def add_session_actors(supervisor: Supervisor, numbers: Iterable[int], plan: BenchPlan, config: Config, source: Source, out: Path) -> None:
    """They own nothing until they are given it."""
    lake = str(out / LAKE_DIR) if plan.lake else None
    for number in numbers:
        spec = SessionSpec(
            session_name(number), (), source.url, str(out / WORK_DIR), str(out / STATE_DIR), lake, config, plan.devices,
            output=source.output, start_offsets=source.start_offsets, checkpoint_bytes=plan.segment_bytes * SEGMENTS // 2,
            partitions_expected=plan.partitions, sinks=sinks_of(plan, source.url, out), tells_cohorts=config.cohorts.enabled,
        )  # fmt: skip
        supervisor.add(SESSION, spec.name, "nothing yet", SessionActor, spec)


def sinks_of(plan: BenchPlan, log: str, out: Path) -> SinksSpec:
    """What routes of a bench may lead to."""
    without = (*(() if plan.lake else (LAKE,)), DEAD_LETTERS)
    return SinksSpec(str(out / OUTBOX_DIR), str(out / OUTBOX_DIR / "refused"), plan.elastic, without=without, log=log)


def open_cohorts(plan: BenchPlan, config: Config, log: str, out: Path, also: Callable[[pl.DataFrame], None] | None = None) -> CohortSinks | None:
    """Who fetches and merges the cohorts of a run."""
    return CohortSinks(config, sinks_of(plan, log, out), range(plan.partitions), also) if config.cohorts.enabled else None


def session_name(number: int) -> str:
    return f"session-{number}"
