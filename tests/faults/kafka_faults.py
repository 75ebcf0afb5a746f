"""A run and a simulation on brokers that a test breaks: start both, wait until alerts flow, break and heal, then score what is left.

Three judges, none of which believes the program. *Truth*: what the devices say must be alerted. *Ledger*: what was acknowledged
against what the topic holds, what was received and what lies in the lake. *Law*: the slow reference over the topic as librdkafka
reads it, with the append times that its records have; alerts and sessions must be the reference's, whatever happened in between.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import orjson
import polars as pl
import psutil
from confluent_kafka import Consumer, ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from keystone.bench.latency import ALERT_KEY, score
from tests.kafka_server import KafkaCluster
from tests.lakes import rows_of, session_rows
from tests.rdkafka import CONSUMING, WAIT_S_MAX, leaders
from tests.reference import DIMENSIONS, INTS, STRINGS, LogRecord, ReferenceSessions, partition_of
from tests.services.runs import ALERT_COLUMNS, Command, Rows, log_of, wait_until

PARTITIONS = 4
TELEMETRY, ACTIONS, DEAD_LETTERS = "keystone-telemetry", "keystone-actions", "keystone-dead-letters"
FLOWING = 5  # alerts of each partition
FLOWING_AGAIN = 20
OPEN_STALL_MS = 10_000
IDLE_S = "5"  # and then until stalls that are left open are alerted
SECONDS_MAX = "240"  # of the devices' schedule: a test ends it
LIFT_MS_MAX = 500
DELIVERY_MS_MAX = 3_000  # up to here the devices' truth is sure also of stalls: none of theirs is as near to OPEN_STALL_MS
_ABSENT: dict[str, Any] = dict.fromkeys((*STRINGS, *DIMENSIONS, *INTS, "fatal"))
_PLACE = ("partition", "offset", "line", "append_ts", "duplicate")
_GAP = re.compile(r"partition (\d+), offsets (\d+) to (\d+): (\w+)")
_SENT = re.compile(r"intended ([\d,]+) = acknowledged ([\d,]+) \+ failed ([\d,]+) \+ unknown ([\d,]+)")
Log = dict[int, list[LogRecord]]
Placed = tuple[int, int, int, int, dict[str, Any]]  # partition, offset, line, append time, event


@dataclass
class Fault:
    """``partitions``: of the telemetry, that it stands still. Times: wall clock, ms."""

    name: str
    partitions: frozenset[int]
    began_ms: float
    healed_ms: float = 0.0
    next_alert_ms: float = float("nan")  # from the fault to the next alert of these partitions: when its action was appended


class FaultRun:
    """``keystone run`` and ``keystone simulate`` on ``kafka``. A context manager; ``end`` waits for both and gives what is to be scored.

    ``actions``: brokers of their own for what the run says. ``options``: more words for ``run``.
    """

    def __init__(
        self,
        kafka: KafkaCluster,
        folder: Path,
        *,
        eps: int = 2_000,
        actors: int = 1,
        standbys: int = 1,
        actions: KafkaCluster | None = None,
        options: Sequence[str] = (),
    ) -> None:
        self.kafka, self.actions, self.folder = kafka, actions or kafka, folder
        self.faults: list[Fault] = []
        self.url = url_of(kafka)
        self._actors = actors + standbys
        paths = ["--lake", str(folder / "lake"), "--report", str(folder / "report.json")]
        places = ["--log", self.url, "--actions", f"{url_of(self.actions)}/{ACTIONS}"]
        self._run = ["run", *places, *paths, "--until-idle", IDLE_S, "--session-actors", str(actors), "--set", f"checkpoint.standbys={standbys}", *options]
        rates = ["--eps", str(eps), "--seconds", SECONDS_MAX, "--bad-paths", "0.5"]
        self._simulate = ["simulate", "--log", self.url, *rates, "--truth", str(folder / "truth.parquet")]
        self._held = ExitStack()
        self._processes: list[psutil.Process] = []

    def __enter__(self) -> Self:
        with self._held:
            for url in {self.url, url_of(self.actions)}:
                create_topics(url)
            self._ends = self._held.enter_context(_ends_of(self.kafka.servers))
            self._ends_of_actions = self._held.enter_context(_ends_of(self.actions.servers))
            self.simulate = self._held.enter_context(Command(*self._simulate))
            wait_until(lambda: sum(self.ends().values()) > 0, "the devices do not begin")
            self.run = self._held.enter_context(Command(*self._run))
            self.run.wait_for("reading kafka://")
            wait_until(lambda: len(self.session_actors()) == self._actors, "those that stand by are not there")
            self._processes = self.session_actors()
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if any(error):
            for command in (self.simulate, self.run):
                _say(f"--- {command.process.args}\n{command.out}\n{command.err}")
        self._held.close()

    # --- while it runs --------------------------------------------------------------------------------------------------
    def session_actors(self) -> list[psutil.Process]:
        """The processes that own partitions."""
        return self.run.session_actors()

    def alerts(self) -> dict[int, int]:
        """Actions in each partition of the topic: that of the telemetry that caused them, for both have as many. Waits for a broker that is away."""
        found: dict[int, int] = self._ends_of_actions(ACTIONS)
        return found

    def ends(self) -> dict[int, int]:
        """End offsets of the telemetry's partitions."""
        found: dict[int, int] = self._ends(TELEMETRY)
        return found

    def wait_flowing(self, more: int = FLOWING) -> None:
        """Until each partition has ``more`` alerts than now; the devices still send then."""
        before = self.alerts()
        wait_until(lambda: all(count >= before[partition] + more for partition, count in self.alerts().items()), f"no {more} alerts more")
        assert self.simulate.process.poll() is None, self.simulate.err

    @contextmanager
    def fault(self, name: str, partitions: Iterable[int] = range(PARTITIONS)) -> Iterator[Fault]:
        """Something is broken already; the block heals it."""
        found = Fault(name, frozenset(partitions), time.time() * 1_000)
        self.faults.append(found)
        yield found
        found.healed_ms = time.time() * 1_000

    def spent_s(self) -> float:
        """CPU time of all processes that read and write, so far."""
        family = [*self._processes, psutil.Process(self.simulate.process.pid)]
        return sum(sum(process.cpu_times()[:2]) for process in family)

    def led_by(self, broker: int) -> set[int]:
        """Telemetry partitions."""
        return {partition for partition, leader in leaders(self.kafka.servers, TELEMETRY).items() if leader == broker}

    # --- the end ----------------------------------------------------------------------------------------------------------
    def end(self) -> Outcome:
        """Once alerts flow again, the devices are told to end; the run ends by itself. Both in the processes they began in."""
        self.wait_flowing(FLOWING_AGAIN)
        self.simulate.interrupt()
        sent = self.simulate.end()
        assert self.session_actors() == self._processes, "an actor was started anew"
        status = self.run.end()
        return Outcome(self, sent, status)


def _say(text: str) -> None:
    """Into the test's captured output."""
    sys.stdout.write(f"{text}\n")


def url_of(kafka: KafkaCluster) -> str:
    return "kafka://" + ",".join(kafka.servers)


def create_topics(url: str) -> None:
    """Those of the three that are not there."""
    with Command("topics", "create", "--log", url, "--partitions", str(PARTITIONS)) as made:
        assert made.end() == 0, made.err


@contextmanager
def _ends_of(servers: Sequence[str]) -> Iterator[Any]:
    reader = Consumer({"bootstrap.servers": ",".join(servers), "group.id": "independent", "log_level": "0", "reconnect.backoff.max.ms": "500", **CONSUMING})

    def ends(topic: str) -> dict[int, int]:
        until = time.monotonic() + WAIT_S_MAX
        while True:
            try:
                return {p: reader.get_watermark_offsets(TopicPartition(topic, p), timeout=2.0, cached=False)[1] for p in range(PARTITIONS)}
            except KafkaException:
                assert time.monotonic() < until, f"the ends of {topic} are not told"
                with suppress(KafkaException):
                    reader.list_topics(topic, timeout=2.0)  # who leads now: it does not ask by itself

    yield ends
    reader.close()


# --- scoring ----------------------------------------------------------------------------------------------------------------
@dataclass
class Outcome:
    """Everything that is left when both programs have ended, read by others than them."""

    ended: FaultRun
    simulate_status: int
    run_status: int
    sent: dict[str, int] = field(init=False)  # intended acknowledged failed unknown, events
    report: dict[str, Any] = field(init=False)
    truth: pl.DataFrame = field(init=False)
    log: Log = field(init=False)  # the telemetry at the end
    actions: Rows = field(init=False)  # with ``visible_ms``
    lake: pl.DataFrame = field(init=False)
    sessions: Rows = field(init=False)

    def __post_init__(self) -> None:
        folder, servers, actions_servers = self.ended.folder, self.ended.kafka.servers, self.ended.actions.servers
        found = _SENT.search(self.ended.simulate.out)
        assert found is not None, self.ended.simulate.out + self.ended.simulate.err
        self.sent = dict(zip(("intended", "acknowledged", "failed", "unknown"), (int(n.replace(",", "")) for n in found.groups()), strict=True))
        self.report = json.loads((folder / "report.json").read_bytes())
        self.truth = pl.read_parquet(folder / "truth.parquet")
        self.log = log_of(servers, TELEMETRY)
        actions = [record for records in log_of(actions_servers, ACTIONS).values() for record in records]
        self.actions = [json.loads(record.value or b"") | {"visible_ms": record.append_ts} for record in actions]
        self.dead_letters = sum(map(len, log_of(servers, DEAD_LETTERS).values()))
        self.lake, self.sessions = rows_of(folder / "lake"), session_rows(folder / "lake")
        self._note_next_alerts()

    def _note_next_alerts(self) -> None:
        """Of loops whose last event was appended after the fault: what was on its way already tells nothing."""
        stalls = self.lake.filter(pl.col("event") == "Buffer").select("device_id", "session_id", "seq", "append_ts").iter_rows()
        appended_ms = {tuple(identity): append_ts for *identity, append_ts in stalls}
        for fault in self.ended.faults:
            later = [
                action["visible_ms"] - fault.began_ms
                for action in self.actions
                if partition_of(action["device_id"], PARTITIONS) in fault.partitions
                and action["kind"] == "buffering_loop"
                and appended_ms[action["device_id"], action["session_id"], action["seq"]] > fault.began_ms
            ]
            fault.next_alert_ms = min(later, default=float("nan"))

    def tell(self, record_property: Any) -> None:
        """Times from fault to the next alert, into the test's output and report; each has to have one."""
        for fault in self.ended.faults:
            lasted_s = (fault.healed_ms - fault.began_ms) / 1_000
            told = {"fault": fault.name, "lasted_s": round(lasted_s, 2), "next_alert_s": round(fault.next_alert_ms / 1_000, 2)}
            record_property("fault", json.dumps(told))
            _say(json.dumps(told))
            assert fault.next_alert_ms < WAIT_S_MAX * 1_000, f"no alert after the fault: {told}"

    # --- judges -----------------------------------------------------------------------------------------------------------
    def assert_well(self, record_property: Any) -> None:
        """A fault that may delay, and nothing else: everything acknowledged is there once, everything alerted once, exit status 0."""
        self.tell(record_property)
        assert (self.simulate_status, self.run_status) == (0, 0), self.ended.run.err
        assert self.sent["acknowledged"] == self.sent["intended"]
        assert (self.report["gaps"], self.report["failures"]) == ({}, [])
        self.assert_ledger_and_law(self.log)
        assert self.sent["acknowledged"] <= self.report["ledger"]["received"] <= self.sent["acknowledged"] + self.sent["unknown"]
        self.assert_truth()

    def assert_gaps(self, record_property: Any, reason: str) -> dict[int, range]:
        """A fault that takes acknowledged records away: nothing else is wrong, and each partition has one gap, which is told. The gaps' offsets."""
        self.tell(record_property)
        assert (self.simulate_status, self.run_status) == (0, 1), self.ended.run.err
        assert self.sent["acknowledged"] == self.sent["intended"]
        found = [_GAP.fullmatch(gap) for gap in self.report["gap_list"]]
        gaps = {int(gap[1]): range(int(gap[2]), int(gap[3]) + 1) for gap in found if gap is not None and gap[4] == reason}
        assert (sorted(gaps), len(found)) == (list(range(PARTITIONS)), PARTITIONS), self.report["gap_list"]
        assert self.report["gaps"] == {reason: sum(map(len, gaps.values()))}
        told = "records were passed over: " + "; ".join(self.report["gap_list"][:3])
        assert self.report["failures"] == [told]
        assert f"FAILED: {told}\n" in self.ended.run.err
        return gaps

    def assert_ledger_and_law(self, log: Log, *, since_ms: float = 0.0) -> None:
        """Of a run that read exactly ``log``, appended from ``since_ms`` on: sums, alerts, sessions and lake rows are those of the reference.

        What was appended before is taken from the lake: of a topic that is no more.
        """
        ledger = self.report["ledger"]
        alerts, sessions, places = law_of(self._as_taken(log, since_ms), self.read_before(since_ms))
        assert self.sent["acknowledged"] + self.sent["failed"] + self.sent["unknown"] == self.sent["intended"]
        assert self.report["restarts"] == 0
        assert self.dead_letters == ledger["dead_lettered"] == ledger["empty_records"] == 0
        assert len(places) == ledger["received"] == ledger["accepted"] == ledger["applied"] + ledger["duplicates"] == ledger["lake_rows"] == self.lake.height
        assert_same(self.lake.select(_PLACE).to_dicts(), [dict(zip(_PLACE, place, strict=True)) for place in places], _PLACE, "lake rows")
        assert_same(self.actions, alerts, ALERT_COLUMNS, "alerts")
        assert_same(self.sessions, sessions, tuple(sessions[0]), "sessions")

    def _as_taken(self, log: Log, since_ms: float) -> Log:
        """The records with the append times that the run took them for.

        Those of the topic; but a busy broker may take longer for an append than log time is held back by. Then the run lifts the record
        to where log time is, and counts it. Never far: a broker that keeps records back for long must not have log time run ahead.
        """
        rows = self.lake.filter(pl.col("append_ts") >= since_ms).select("partition", "offset", "append_ts").iter_rows()
        taken_ms = {(partition, offset): append_ts for partition, offset, append_ts in rows}
        found: Log = {}
        lifts_ms = [0]
        for partition, records in log.items():
            found[partition] = [replace(record, append_ts=taken_ms.get((partition, record.offset), record.append_ts)) for record in records]
            lifts_ms += [ours.append_ts - theirs.append_ts for ours, theirs in zip(found[partition], records, strict=True)]
        late = sum(metrics["late_appends"] for metrics in self.report["log_metrics"].values())
        _say(json.dumps({"late_appends": late, "lifted_ms_max": max(lifts_ms)}))
        assert 0 <= min(lifts_ms) <= max(lifts_ms) <= (LIFT_MS_MAX if late else 0)
        return found

    def assert_truth(self) -> None:
        """None missed, none false, none doubled.

        Where an append was late by more than DELIVERY_MS_MAX, log time holds other silences than the devices meant: then a stall may
        alert before its loop is complete, or not at all; which ones is the law's matter, but each change has to be of this kind.
        """
        alerts = pl.DataFrame([{name: action[name] for name in ALERT_KEY} for action in self.actions], schema=self.truth.select(ALERT_KEY).schema)
        scored = score(self.truth, alerts)
        late_ms = self.late_ms()
        _say(json.dumps({"late_ms_max": round(late_ms), **scored.as_dict()}))
        assert scored.duplicate == 0
        assert scored.expected > 20
        if late_ms < DELIVERY_MS_MAX:
            assert (scored.missed, scored.false) == (0, 0)
        missed = self.truth.join(alerts, on=ALERT_KEY, how="anti", nulls_equal=True)
        false = alerts.join(self.truth, on=ALERT_KEY, how="anti", nulls_equal=True)
        for lost, instead in ((missed, false), (false, missed)):
            loops, stalls = lost.filter(pl.col("kind") == "buffering_loop"), instead.filter(pl.col("kind") == "open_stall")
            assert loops.join(stalls, on=["device_id", "session_id"], how="anti").is_empty(), loops

    def late_ms(self) -> float:
        """From a device's clock to the append, at most. The devices' clock is as far from ours as the truth's two times are."""
        loops = self.truth.filter(pl.col("kind") == "buffering_loop")
        ahead_ms = loops.select((pl.col("intended_ms") - pl.col("event_ts")).median()).item()
        return float(self.lake.select((pl.col("append_ts") - pl.col("ts")).max()).item() - ahead_ms)

    def read_before(self, before_ms: float) -> list[Placed]:
        """Rows appended before, as events."""
        rows = self.lake.filter(pl.col("append_ts") < before_ms).sort("partition", "offset", "line").to_dicts()
        return [(row["partition"], row["offset"], row["line"], row["append_ts"], row) for row in rows]


def events_of(log: Mapping[int, Sequence[LogRecord]]) -> Iterator[Placed]:
    """Every event of clean telemetry, in order."""
    for partition, records in sorted(log.items()):
        for record in records:
            for number, line in enumerate((record.value or b"").split(b"\n")):
                if line:
                    yield partition, record.offset, number, record.append_ts, _ABSENT | orjson.loads(line)


def law_of(log: Log, before: Iterable[Placed] = ()) -> tuple[Rows, Rows, list[tuple[int, int, int, int, bool]]]:
    """Alerts, closed sessions and lake rows (partition, offset, line, append time, duplicate) of ``before`` and then ``log``."""
    tables = {partition: ReferenceSessions(partition=partition, open_stall_ms=OPEN_STALL_MS) for partition in range(PARTITIONS)}
    rows, end_ms = [], 0
    for partition, offset, line, append_ts, event in (*before, *events_of(log)):
        duplicate, _ = tables[partition].apply(event, append_ts)
        rows.append((partition, offset, line, append_ts, duplicate))
        end_ms = max(end_ms, append_ts)
    for table in tables.values():
        table.advance(end_ms + OPEN_STALL_MS)  # the run waits for the stalls that the devices left open
    return [a for t in tables.values() for a in t.alerts], [s for t in tables.values() for s in t.sessions], rows


def assert_same(found: Rows, expected: Rows, names: Sequence[str], what: str) -> None:
    """Equal as multisets of rows; the message shows a few that are not."""
    ours, theirs = (Counter(tuple(row[name] for name in names) for row in rows) for rows in (found, expected))
    surplus, missing = ours - theirs, theirs - ours
    assert not surplus, f"{surplus.total()} of {ours.total()} {what} too many ({missing.total()} missing): {list(surplus)[:3]}; missing: {list(missing)[:3]}"
    assert not missing, f"{missing.total()} of {theirs.total()} {what} are missing: {list(missing)[:3]}"


# --- what administrators do ---------------------------------------------------------------------------------------------------
def delete_topic(servers: Sequence[str], topic: str) -> None:
    """Until brokers know of it no more."""
    admin = AdminClient({"bootstrap.servers": ",".join(servers)})
    admin.delete_topics([topic])[topic].result(WAIT_S_MAX)
    wait_until(lambda: topic not in admin.list_topics(timeout=WAIT_S_MAX).topics, f"{topic} is not gone")


def delete_records(servers: Sequence[str], topic: str, before: Mapping[int, int]) -> None:
    """What retention does, at once: each partition begins at the given offset."""
    admin = AdminClient({"bootstrap.servers": ",".join(servers)})
    for done in admin.delete_records([TopicPartition(topic, partition, offset) for partition, offset in before.items()]).values():
        done.result(WAIT_S_MAX)


def wait_in_sync(servers: Sequence[str], topic: str) -> None:
    """Until every replica is."""
    admin = AdminClient({"bootstrap.servers": ",".join(servers)})

    def is_in_sync() -> bool:
        return all(len(p.isrs) == len(p.replicas) for p in admin.list_topics(topic, timeout=WAIT_S_MAX).topics[topic].partitions.values())

    wait_until(is_in_sync, f"{topic} is not in sync")


def move_leaders_back(servers: Sequence[str], topic: str) -> None:
    """Let the first replica of each partition lead."""
    admin = AdminClient({"bootstrap.servers": ",".join(servers)})
    admin.elect_leaders(ElectionType.PREFERRED, [TopicPartition(topic, partition) for partition in range(PARTITIONS)]).result(WAIT_S_MAX)
