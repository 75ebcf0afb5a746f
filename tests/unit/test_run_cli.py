"""The command line of ``run``, ``simulate``, ``topics`` and ``doctor``: what is chosen, what is refused, in one line, with which status."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keystone.actors.outputs import OutputSpec
from keystone.actors.owned import PartitionTotals
from keystone.actors.session import SessionTotals
from keystone.checkpoint import Checkpoint, Checkpoints, key_of
from keystone.cli import COMMANDS, main
from keystone.clock import ManualClock
from keystone.config import Config
from keystone.decode import Decoder
from keystone.errors import UsageError
from keystone.events import Records
from keystone.log.embedded import EmbeddedLog
from keystone.log.url import EmbeddedUrl
from keystone.metrics import Ledger
from keystone.pipeline import PartitionPipeline
from keystone.run import command, service
from keystone.run.options import setting
from keystone.run.places import EARLIEST, ICEBERG, LATEST, PARQUET, Options, Places, check_lake, resolve
from keystone.run.results import report_of
from keystone.run.service import RunResult, Service, failures
from keystone.run.topics import milliseconds
from keystone.sinks.lake import LakeWriter
from keystone.store import open_store
from tests.kafka_server import free_port


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def make_log(folder: Path, *, partitions: int = 3, events: int = 0) -> str:
    with closing(EmbeddedLog.create(folder, partitions=partitions, segment_bytes=1 << 16, retention_bytes=1 << 18)) as log:
        writer = log.writer(1)
        for _ in range(events):
            writer.append(b"{}")
    return f"embedded:{folder}"


# --- what is refused ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("run", "--log", "nats://x"), "neither embedded: nor kafka://"),
        (("run", "--log", "kafka://user:secret@host"), "holds no user and no password"),
        (("run", "--log", "kafka://127.0.0.1:{port}"), "nothing listens there"),
        (("run", "--log", "{log}", "--actions", "stdout"), "write it as console, none, or kafka://"),
        (("run", "--log", "{log}", "--actions", "kafka://127.0.0.1:{port}/a"), "nothing listens there"),
        (("run", "--log", "{log}", "--dead-letters", "http://x"), "write it as"),
        (("run", "--log", "{log}", "--lake", "{file}/lake"), "name another directory"),
        (("run", "--log", "{log}", "--report", "{tmp}/no/report.json"), "there is no such directory"),
        (("run", "--log", "{log}", "--set", "detection.loop_treshold=2"), "did you mean detection.loop_threshold?"),
        (("run", "--log", "{log}", "--set", "nonsense"), "NAME=VALUE"),
        (("run", "--log", "{log}", "--config", "{tmp}/no.toml"), "no such configuration file"),
        (("simulate", "--log", "{log}", "--eps", "5000", "--devices", "10"), "raise devices to"),
        (("simulate", "--log", "{log}", "--truth", "{tmp}/no/truth.parquet"), "there is no such directory"),
        (("simulate", "--log", "kafka://127.0.0.1:{port}"), "nothing listens there"),
        (("score", "--truth", "{file}", "--actions", "kafka://127.0.0.1:{port}"), "is not what simulate --truth writes"),
        (("demo", "--log", "kafka://127.0.0.1:{port}"), "nothing listens there"),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    log = make_log(tmp_path / "log")
    places = {"log": log, "file": tmp_path / "file", "tmp": tmp_path, "port": free_port()}
    status, out, err = told(capsys, *(word.format(**places) for word in words))
    assert (status, out) == (2, "")
    assert line in err
    assert err.count("\n") == 1
    assert err.startswith("keystone: ")


@pytest.mark.parametrize(
    "words", [("run", "--session-actors", "0"), ("run", "--until-idle", "0"), ("run", "--from", "yesterday"), ("simulate", "--eps", "0"), ("topics", "create")]
)
def test_options_out_of_their_range_are_status_2(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    status, _, err = told(capsys, *words)
    assert status == 2
    assert "Traceback" not in err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "bench"])
def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str], name: str) -> None:
    status, out, _ = told(capsys, name, "--help")
    assert status == 0
    assert out.startswith(f"Usage: keystone {name}")


@pytest.mark.parametrize(("text", "ms"), [("90m", 5_400_000), ("12h", 43_200_000), ("3d", 259_200_000), ("1ms", 1), ("5s", 5_000), ("none", -1), ("0s", 0)])
def test_lengths_of_time(text: str, ms: int) -> None:
    assert milliseconds(text) == ms


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1.5h", "1 h", "1w", "9" * 10 + "d"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(UsageError, match="such as 12h"):
        milliseconds(text)


def test_a_setting_is_cut_at_its_first_equals_sign() -> None:
    assert setting(" logs.levels = {a=b}") == ("logs.levels", "{a=b}")


# --- what is chosen -------------------------------------------------------------------------------------------------------------
def test_an_embedded_log_is_made_where_there_is_none(tmp_path: Path) -> None:
    places = resolve(Options(log=f"embedded:{tmp_path / 'a' / 'log'}"), Config())
    assert places.start_offsets == dict.fromkeys(range(places.partitions), 0)
    assert (places.actions, places.lake_dir, places.state, places.before, places.remarks) == ("console", None, None, {}, ())
    assert (places.output.actions, places.output.dead_letters, places.output.dead_letters_dir) == (None, None, None)
    with closing(EmbeddedLog.open(tmp_path / "a" / "log")) as log:
        assert log.partitions == places.partitions


def test_results_lie_beside_the_lake_and_never_in_it(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log")
    places = resolve(Options(log=log, lake=str(tmp_path / "lake")), Config())
    assert (places.lake_dir, places.state) == (tmp_path / "lake", str(tmp_path / "lake-state"))
    assert places.output.dead_letters_dir == str(tmp_path / "lake-dead-letters")
    again = resolve(Options(log=log, lake=str(tmp_path / "lake")), Config())
    assert again.output.files == places.output.files != "", "runs over one state know each other's dead letters"
    chosen = resolve(Options(log=log, lake=str(tmp_path / "lake"), state=str(tmp_path / "s"), dead_letters=str(tmp_path / "d"), actions="none"), Config())
    assert (chosen.state, chosen.output.dead_letters_dir, chosen.actions) == (str(tmp_path / "s"), str(tmp_path / "d"), "none")
    assert chosen.output.files != places.output.files
    assert resolve(Options(log=log, lake=str(tmp_path / "lake"), dead_letters="none"), Config()).output.dead_letters_dir is None


def test_a_run_begins_at_what_is_retained_or_at_the_end(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", events=9)
    assert resolve(Options(log=log), Config()).start_offsets == {0: 0, 1: 0, 2: 0}
    assert resolve(Options(log=log, begin=LATEST), Config()).start_offsets == {0: 0, 1: 9, 2: 0}


def test_a_run_begins_at_a_time(tmp_path: Path) -> None:
    clock = ManualClock(1_000)
    with closing(EmbeddedLog.create(tmp_path / "log", partitions=2, segment_bytes=1 << 16, retention_bytes=1 << 18, clock=clock)) as log:
        writer = log.writer(1)
        for _ in range(50):
            writer.append(b"x" * 2_000)
            clock.advance(10)
    for text, offset in (
        ("0", 0),
        ("1000", 0),
        ("1001", 1),
        ("1250", 25),
        ("1970-01-01T00:00:01.255Z", 26),
        ("1970-01-01T02:00:01.255+02:00", 26),
        ("9999", 50),
    ):
        assert resolve(Options(log=f"embedded:{tmp_path / 'log'}", begin=text), Config()).start_offsets[1] == offset, text


@pytest.mark.slow
def test_a_lake_that_has_events_from_the_beginning_on_is_refused(tmp_path: Path) -> None:
    with closing(LakeWriter(tmp_path / "lake", Config().lake, partitions=[1])) as lake:
        pipeline = PartitionPipeline(1, Decoder(), Config(), on_batch=lake.append)
        line = b'{"event":"Start","ts":1790000000000,"device_id":"d","session_id":"s"}'
        pipeline.step(Records.of([line] * 5, partition=1, first_offset=10, append_ts_ms=1_790_000_000_000), None)
        lake.end_step(0)
    check_lake(tmp_path / "lake", PARQUET, {0: 0, 1: 15}, has_state=False)
    for start in (0, 14):
        with pytest.raises(UsageError, match=rf"partition 1 up to offset 14, and this run begins at {start}: .*--from latest"):
            check_lake(tmp_path / "lake", PARQUET, {0: 0, 1: start}, has_state=False)
        check_lake(tmp_path / "lake", PARQUET, {0: 0, 1: start}, has_state=True)
    with pytest.raises(UsageError, match="is of the format parquet: say --lake-format parquet"):
        check_lake(tmp_path / "lake", ICEBERG, {0: 0, 1: 15}, has_state=False)
    (tmp_path / "lake" / "event_date=2026-09-21" / "pxxxxx-somebody-elses.parquet").write_bytes(b"")
    check_lake(tmp_path / "lake", PARQUET, {0: 0, 1: 15}, has_state=False)
    check_lake(tmp_path / "new" / "lake", ICEBERG, {0: 0}, has_state=False)
    assert (tmp_path / "new" / "lake").is_dir()


def test_tables_of_a_lake_are_not_written_without_the_state_behind_them(tmp_path: Path) -> None:
    (tmp_path / "catalog.db").touch()
    check_lake(tmp_path, ICEBERG, {0: 0}, has_state=True)
    with pytest.raises(UsageError, match="whose state is not where --state says"):
        check_lake(tmp_path, ICEBERG, {0: 0}, has_state=False)
    with pytest.raises(UsageError, match="say --lake-format iceberg"):
        check_lake(tmp_path, PARQUET, {0: 0}, has_state=True)


def saved(state: Path, log_id: str, offset: int = 7) -> None:
    """What a run leaves of partition 1."""
    checkpoints = Checkpoints(open_store(str(state)))
    epoch = checkpoints.claim(key_of(1), "test")
    checkpoints.save(Checkpoint(1, epoch, 0, offset, 5, Ledger(received=40, accepted=40, applied=40), log_id=log_id))


def test_a_run_goes_on_where_the_state_says_and_only_with_the_same_log(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", events=9)
    with closing(EmbeddedLog.open(tmp_path / "log")) as opened:
        saved(tmp_path / "lake-state", opened.log_id)
    places = resolve(Options(log=log, lake=str(tmp_path / "lake")), Config())
    assert {partition: head.next_offset for partition, head in places.before.items()} == {1: 7}
    assert any("40 events were received before" in remark for remark in places.remarks)
    for begin in (EARLIEST, LATEST):
        with pytest.raises(UsageError, match=f"--from {begin}: .* goes on by --from checkpoint"):
            resolve(Options(log=log, lake=str(tmp_path / "lake"), begin=begin), Config())
    with pytest.raises(UsageError, match="holds the state of another log"):
        resolve(Options(log=make_log(tmp_path / "other"), lake=str(tmp_path / "lake")), Config())


# --- when it is over ------------------------------------------------------------------------------------------------------------
class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Watched:
    """What a service sees of a supervisor: each ward owns a partition as soon as it says anything."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        owned = [status | {"partitions": [number]} if status else {} for number, status in enumerate(statuses)]
        self.wards = [SimpleNamespace(status=status, is_down=False, is_lost=False) for status in owned]
        self._is_owned = all(statuses)

    def of_kind(self, _kind: str) -> list[Any]:
        return self.wards

    def is_owned(self) -> bool:
        return self._is_owned


QUIET = {"received": 10, "silent_s": 60.0, "quiet_ms": 0, "lag_events": 0, "undelivered": 0, "unusual": 0}


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[Service, Clock]:
    clock = Clock()
    monkeypatch.setattr(service, "time", clock)
    log = EmbeddedUrl(Path(make_log(tmp_path / "log").removeprefix("embedded:")))
    places = SimpleNamespace(log=log)
    found = Service(places, Config(), session_actors=2, has_story=True, until_idle_s=5.0)  # type: ignore[arg-type]
    found._started_s = clock.now_s
    return found, clock


def is_idle(watching: tuple[Service, Clock], *statuses: dict[str, Any]) -> bool:
    supervisor = Watched(*statuses)
    return watching[0]._is_idle(supervisor, watching[0]._seen(supervisor))  # type: ignore[arg-type]


def test_silence_counts_from_when_all_are_ready(watching: tuple[Service, Clock]) -> None:
    """An actor that took long to build has heard nothing for as long."""
    assert not is_idle(watching, QUIET, QUIET)
    watching[1].now_s += 4.9
    assert not is_idle(watching, QUIET, QUIET)
    watching[1].now_s += 0.1
    assert is_idle(watching, QUIET, QUIET)


@pytest.mark.parametrize("change", [{"silent_s": 4.9}, {"undelivered": 1}])
def test_a_run_goes_on_while_an_actor_hears_or_has_to_say_something(watching: tuple[Service, Clock], change: dict[str, Any]) -> None:
    watching[1].now_s += 60
    assert is_idle(watching, QUIET, QUIET)
    assert not is_idle(watching, QUIET, QUIET | change)
    assert not is_idle(watching, QUIET, {})


def test_a_run_waits_for_stalls_that_may_become_alerts(watching: tuple[Service, Clock]) -> None:
    watching[1].now_s += 60
    late = QUIET | {"quiet_ms": 10_200}
    assert not is_idle(watching, late, QUIET | {"unusual": 1, "quiet_ms": 10_199})
    assert not is_idle(watching, QUIET | {"unusual": 1, "quiet_ms": 10_199}, late)
    assert is_idle(watching, late, QUIET | {"unusual": 1, "quiet_ms": 10_200})


def test_one_that_stands_by_or_is_lost_has_no_say(watching: tuple[Service, Clock]) -> None:
    watching[1].now_s += 60
    supervisor = Watched(QUIET, QUIET)
    supervisor.wards += [
        SimpleNamespace(status=QUIET | {"partitions": [], "silent_s": 0.0}, is_down=False, is_lost=False),
        SimpleNamespace(status=QUIET | {"partitions": [1], "lag_events": 5}, is_down=False, is_lost=True),
    ]
    assert watching[0]._is_idle(supervisor, watching[0]._seen(supervisor))  # type: ignore[arg-type]


def test_rates_are_of_the_last_two_seconds(watching: tuple[Service, Clock]) -> None:
    watcher, clock = watching
    for step in range(40):
        rate = 1_000 if step < 20 else 10
        seen = watcher._seen(Watched({"received": step * rate, "scenes": step * 50, "told": step * 5}, {"received": 5}))  # type: ignore[arg-type]
        clock.now_s += 0.25
    assert seen["events_per_s"] == pytest.approx(40)
    assert (seen["scenes_per_s"], seen["told_per_s"]) == (pytest.approx(200), pytest.approx(20))
    after_death = watcher._seen(Watched({"received": 3}, {}))  # type: ignore[arg-type]
    assert after_death["events_per_s"] == 0.0, "a new actor counts from 0 again"


# --- what is reported -------------------------------------------------------------------------------------------------------------
def totals(partition: int = 0, *, undelivered: int = 0, next_offset: int = 0, **fields: Any) -> SessionTotals:
    ledger = Ledger(received=10, accepted=9, applied=8, duplicates=1, dead_lettered=1)
    one = PartitionTotals(**{"ledger": ledger, "dead_letters": {"invalid_json": 1}, "lake_rows": 9, **fields})
    return SessionTotals("session-0", {partition: one}, {partition: next_offset}, undelivered=undelivered)


def test_results_of_actors_add_up() -> None:
    result = RunResult()
    result.add(totals(alerts=2, sessions_closed=3, session_rows=3, next_offset=5), {})
    result.add(totals(1, alerts=1, next_offset=7, gaps={"retention": 4}, gap_list=["partition 1, offsets 0 to 3: retention"]), {})
    assert (result.ledger.received, result.alerts, result.sessions, result.session_rows) == (20, 3, 3, 3)
    assert (result.next_offsets, result.dead_letters, result.gaps) == ({0: 5, 1: 7}, {"invalid_json": 2}, {"retention": 4})
    assert failures(result) == ["records were passed over: partition 1, offsets 0 to 3: retention"]


def test_what_earlier_runs_did_is_not_counted_again() -> None:
    before = totals(alerts=2, gaps={"retention": 4}, gap_list=["a"], session_rows=1).partitions
    now = totals(
        alerts=5, gaps={"retention": 4, "corrupt": 1}, gap_list=["a", "b"], session_rows=1, lake_rows=19, dead_letters={"invalid_json": 1, "too_deep": 2},
        ledger=Ledger(received=22, accepted=19, applied=18, duplicates=1, dead_lettered=3),
    )  # fmt: skip
    result = RunResult()
    result.add(now, before)
    assert (result.ledger.received, result.ledger.lake_rows, result.ledger.duplicates) == (12, 10, 0)
    assert (result.alerts, result.session_rows, result.gaps, result.gap_list) == (3, 0, {"corrupt": 1}, ["b"])
    assert result.dead_letters == {"too_deep": 2}


def test_whatever_is_not_right_makes_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    good = RunResult()
    good.add(totals(), {})
    good.lake_rows = 9
    assert command._print(good) == 0
    out, err = capsys.readouterr()
    assert "10 events received in 0 s = accepted 9 (applied 8, duplicates 1) + dead letters 1 (invalid_json 1)" in out
    assert err == ""
    lost = RunResult(ledger=Ledger(received=10, accepted=9, applied=9, lake_rows=8), lake_rows=8, faults=["session-0 (partition 0) died"])
    lost.add(totals(undelivered=2, ledger=Ledger(), lake_rows=0), {})
    assert command._print(lost) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith("FAILED: ") for line in told] == [True] * 4
    assert [word for word in ("died", "2 deliveries", "received = 10", "lake_rows = 8") if not any(word in line for line in told)] == []


def test_a_report_is_json(tmp_path: Path) -> None:
    result = RunResult()
    result.add(totals(next_offset=5), {})
    places = Places(EmbeddedUrl(Path("/log")), 1, {0: 2}, OutputSpec(), None, ICEBERG, None, {}, "console")
    command._write_report(tmp_path / "report.json", report_of(result, places, Config()))
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert (report["start_offsets"], report["next_offsets"], report["log"]) == ({"0": 2}, {"0": 5}, "embedded:/log")
    assert "sasl_password" not in json.dumps(report["config"]) or report["config"]["kafka"]["sasl_password"] is None
