"""The command line of ``run``, ``simulate``, ``topics`` and ``doctor``: what is chosen, what is refused, in one line, with which status."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from keystone.actors.session import SessionTotals
from keystone.cli import COMMANDS, main
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
from keystone.run.places import LATEST, Options, Places, check_lake, resolve
from keystone.run.service import RunResult, Service, failures
from keystone.run.topics import milliseconds
from keystone.sinks.lake import LakeWriter
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
    "words", [("run", "--session-actors", "0"), ("run", "--until-idle", "0"), ("run", "--from", "now"), ("simulate", "--eps", "0"), ("topics", "create")]
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
    assert (places.actions, places.lake_dir, places.sessions_dir, places.remarks) == ("console", None, None, ())
    assert (places.output.actions, places.output.dead_letters, places.output.dead_letters_dir) == (None, None, None)
    with closing(EmbeddedLog.open(tmp_path / "a" / "log")) as log:
        assert log.partitions == places.partitions


def test_results_lie_beside_the_lake_and_never_in_it(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log")
    places = resolve(Options(log=log, lake=str(tmp_path / "lake")), Config())
    assert (places.lake_dir, places.sessions_dir) == (tmp_path / "lake", tmp_path / "lake-sessions")
    assert places.output.dead_letters_dir == str(tmp_path / "lake-dead-letters")
    chosen = resolve(Options(log=log, lake=str(tmp_path / "lake"), sessions=str(tmp_path / "s"), dead_letters=str(tmp_path / "d"), actions="none"), Config())
    assert (chosen.sessions_dir, chosen.output.dead_letters_dir, chosen.actions) == (tmp_path / "s", str(tmp_path / "d"), "none")
    assert resolve(Options(log=log, lake=str(tmp_path / "lake"), dead_letters="none"), Config()).output.dead_letters_dir is None


def test_a_run_begins_at_what_is_retained_or_at_the_end(tmp_path: Path) -> None:
    log = make_log(tmp_path / "log", events=9)
    assert resolve(Options(log=log), Config()).start_offsets == {0: 0, 1: 0, 2: 0}
    assert resolve(Options(log=log, begin=LATEST), Config()).start_offsets == {0: 0, 1: 9, 2: 0}


def test_a_lake_that_has_events_from_the_beginning_on_is_refused(tmp_path: Path) -> None:
    with closing(LakeWriter(tmp_path / "lake", Config().lake, partitions=[1])) as lake:
        pipeline = PartitionPipeline(1, Decoder(), Config(), on_batch=lake.append)
        line = b'{"event":"Start","ts":1790000000000,"device_id":"d","session_id":"s"}'
        pipeline.step(Records.of([line] * 5, partition=1, first_offset=10, append_ts_ms=1_790_000_000_000), None)
        lake.end_step(0)
    check_lake(tmp_path / "lake", {0: 0, 1: 15})
    for start in (0, 14):
        with pytest.raises(UsageError, match=rf"partition 1 up to offset 14, and this run begins at {start}: .*--from latest"):
            check_lake(tmp_path / "lake", {0: 0, 1: start})
    (tmp_path / "lake" / "event_date=2026-09-21" / "pxxxxx-somebody-elses.parquet").write_bytes(b"")
    check_lake(tmp_path / "lake", {0: 0, 1: 15})
    check_lake(tmp_path / "new" / "lake", {0: 0})
    assert (tmp_path / "new" / "lake").is_dir()


# --- when it is over ------------------------------------------------------------------------------------------------------------
class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


class Watched:
    """What a service sees of a supervisor."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        self.wards = [SimpleNamespace(status=status) for status in statuses]

    def of_kind(self, _kind: str) -> list[Any]:
        return self.wards


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
def totals(**fields: Any) -> SessionTotals:
    ledger = Ledger(received=10, accepted=9, applied=8, duplicates=1, dead_lettered=1, lake_rows=9).as_dict()
    return SessionTotals("session-0", (0,), **{"ledger": ledger, "dead_letters": {"invalid_json": 1}, **fields})


def test_results_of_actors_add_up() -> None:
    result = RunResult()
    result.add(totals(alerts=2, sessions_closed=3, session_rows=3, next_offsets={0: 5}))
    result.add(totals(alerts=1, next_offsets={1: 7}, gaps={"retention": 4}, gap_list=["partition 1, offsets 0 to 3: retention"]))
    assert (result.ledger.received, result.alerts, result.sessions, result.session_rows) == (20, 3, 3, 3)
    assert (result.next_offsets, result.dead_letters, result.gaps) == ({0: 5, 1: 7}, {"invalid_json": 2}, {"retention": 4})
    assert failures(result) == ["records were passed over: partition 1, offsets 0 to 3: retention"]


def test_whatever_is_not_right_makes_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    good = RunResult()
    good.add(totals())
    good.lake_rows = 9
    assert command._print(good) == 0
    out, err = capsys.readouterr()
    assert "10 events received in 0 s = accepted 9 (applied 8, duplicates 1) + dead letters 1 (invalid_json 1)" in out
    assert err == ""
    lost = RunResult(ledger=Ledger(received=10, accepted=9, applied=9, lake_rows=8), lake_rows=8, faults=["session-0 (partition 0) died"])
    lost.add(totals(undelivered=2, ledger={}))
    assert command._print(lost) == 1
    told = capsys.readouterr().err.splitlines()
    assert [line.startswith("FAILED: ") for line in told] == [True] * 4
    assert [word for word in ("died", "2 deliveries", "received = 10", "lake_rows = 8") if not any(word in line for line in told)] == []


def test_a_report_is_json(tmp_path: Path) -> None:
    result = RunResult()
    result.add(totals(next_offsets={0: 5}))
    places = Places(EmbeddedUrl(Path("/log")), 1, {0: 2}, None, None, None, "console")  # type: ignore[arg-type]
    command._write_report(tmp_path / "report.json", result, places, Config())
    report = json.loads((tmp_path / "report.json").read_bytes())
    assert (report["start_offsets"], report["next_offsets"], report["log"]) == ({"0": 2}, {"0": 5}, "embedded:/log")
    assert "sasl_password" not in json.dumps(report["config"]) or report["config"]["kafka"]["sasl_password"] is None
