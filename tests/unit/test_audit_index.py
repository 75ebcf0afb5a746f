"""``keystone audit --elastic``: documents beside the lake's rows; what is late is waited for, what is wrong is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from keystone.audit.engine import Audit, Streams
from keystone.audit.index_check import IndexCheck
from keystone.audit.index_side import IndexSide
from keystone.audit.lake_side import LakeSide
from keystone.audit.log_side import LogSide
from keystone.config import Config, LakeConfig
from keystone.events import Alert
from keystone.sinks.documents import AlertRows, SessionRows
from keystone.sinks.elastic_http import Nodes
from keystone.sinks.iceberg.tables import LakeTables
from tests.audit_scene import MINUTES, FakeIndex, Scene, served, told_of
from tests.lake_batches import APPEND_MS
from tests.lake_tables import alert, session_table
from tests.letters import told

pytestmark = pytest.mark.slow


@pytest.fixture
def scene(tmp_path: Path, lake: Path, tables: LakeTables) -> Iterator[Scene]:
    found = Scene(tmp_path, lake, tables)
    yield found
    found.close()


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    monkeypatch.setattr("keystone.audit.index_side.PAGE", 3)
    monkeypatch.setattr("keystone.audit.index_check.LOOK_EVERY_S", 0.01)
    return FakeIndex()


def raised(scene: Scene) -> tuple[Alert, ...]:
    return tuple(replace(alert(k, 0), append_ts_ms=scene.times[0][k], event_ts=scene.times[0][k]) for k in range(8))


def with_index(scene: Scene, index: FakeIndex) -> tuple[Alert, ...]:
    scene.append()
    alerts = raised(scene)
    scene.commit(0, alerts=alerts)
    scene.commit(1)
    index.put(AlertRows(alerts))
    index.put(SessionRows(session_table(3), 0))  # both partitions close the same ones: they are one document each
    return alerts


def test_the_index_agrees(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
        assert (status, found["indexed"]) == (0, {"alerts": {"expected": 8, "found": 8}, "sessions": {"expected": 3, "found": 3}})
        assert found["partitions"][0]["indexed"] == 8
        assert {request.split()[0] for request in index.requests} <= {"GET", "POST"}
        assert all("_search" in request or "_cat" in request for request in index.requests), "nothing is changed"
        assert "alerts 8, in the index 8" in told(capsys, *scene.words, "--elastic", url, "--wait", "0")[1]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda d: d[:5] + d[6:], (4, 3, 1, 0, 0, "0-5")),
        (lambda d: [*d, ("keystone-alerts-2026.09.20", *d[5][1:])], (4, 5, 0, 0, 1, "0-5")),
        (lambda d: [*d, (d[5][0], "other", d[5][2] | {"alert_id": "other"})], (4, 5, 0, 1, 0, "other")),
    ],
    ids=["removed", "in two days", "added"],
)
def test_the_index_differs(scene: Scene, index: FakeIndex, change: Any, difference: tuple[Any, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    index.documents = change(index.documents)
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
    assert status == 1
    when = MINUTES[scene.times[0][5] // 60_000 - APPEND_MS // 60_000]
    assert told_of(found) == [(when, 0, "index alerts", *difference)]


def test_the_sessions_differ(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    at = next(k for k, one in enumerate(index.documents) if "sessions" in one[0])
    index.documents[at] = (index.documents[at][0], "strange", index.documents[at][2])
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
    assert status == 1
    assert [one[1:3] + one[5:8] for one in told_of(found)] == [(-1, "index sessions", 1, 1, 0)]


def test_no_index_at_all_is_a_difference(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    index.documents.clear()
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
    assert (status, sum(d["missing"] for d in found["differences"])) == (1, 8)
    assert "the index has no sessions: not compared" in found["notes"]


def test_days_that_were_deleted_are_said(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    scene.append()
    old = replace(alert(99, 0), append_ts_ms=APPEND_MS - 3 * 86_400_000, event_ts=APPEND_MS - 3 * 86_400_000)
    alerts = raised(scene)
    scene.commit(0, alerts=(old, *alerts))
    scene.commit(1)
    index.put(AlertRows(alerts))
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
    assert status == 0
    assert "1 alerts are older than the first index there is: not compared" in found["notes"]


def test_a_document_that_is_searchable_a_little_later_is_no_difference(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    late, index.documents = index.documents[2], index.documents[:2] + index.documents[3:]
    looks: list[int] = []

    def refresh() -> None:
        looks.append(1)
        if len(looks) == 6:
            index.documents.append(late)

    index.on_search = refresh
    with served(index) as url:
        assert scene.audit(capsys, "--elastic", url, "--wait", "20")[0] == 0


def test_alerts_newer_than_the_last_commit_are_in_flight(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    """They are said at once, and in the lake with the next commit only."""
    alerts = with_index(scene, index)
    scene.append(2)
    index.put(AlertRows([replace(alerts[0], alert_id="new", append_ts_ms=scene.times[0][-1], event_ts=scene.times[0][-1])]))
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
        assert (status, found["in_flight_documents"]) == (0, 1)
        scene.commit(0)
        scene.commit(1)
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
        assert status == 1, "everything is committed, and no alert is its reason"
        assert told_of(found)[0][5:] == (0, 1, 0, "new")


def test_an_alert_that_is_committed_while_the_audit_waits(scene: Scene, index: FakeIndex) -> None:
    alerts = with_index(scene, index)
    scene.append(2)
    new = replace(alerts[0], alert_id="new", append_ts_ms=scene.times[0][9], event_ts=scene.times[0][9])
    index.put(AlertRows([new]))
    index.put(SessionRows(session_table(3, 12), 0))  # which the commit brings
    found = Audit()
    config = Config()
    with served(index) as url, closing(LakeSide(str(scene.lake), LakeConfig())) as lake, closing(LogSide(scene.words[2], config)) as log:
        Streams(log, lake, None).into(found)
        commits = iter([lambda: scene.commit(0, alerts=(new,))])
        check = IndexCheck(lake, IndexSide(Nodes(url, config.elastic)), 20.0, 0, sleep=lambda _: next(commits, lambda: None)())  # type: ignore[func-returns-value]
        check.into(found)
    assert found.differences == []
    assert found.in_flight_documents == 0


# --- beside routes ----------------------------------------------------------------------------------------------------------------------
def routed(folder: Path, *routes: dict[str, str]) -> tuple[str, str]:
    """The words that name a keystone.toml with these routes."""
    path = folder / "routes.toml"
    path.write_text("".join("[[routes]]\n" + "".join(f'{name} = "{value}"\n' for name, value in route.items()) for route in routes))
    return "--config", str(path)


SOME_ALERTS = {"name": "some", "from": "alerts", "where": "cdn = 'c1'", "select": "device_id, cdn", "sink": "elastic"}
SOME_SESSIONS = {"name": "few", "from": "sessions", "where": "start_ts > 0", "sink": "elastic"}
SOME_LETTERS = {"name": "json", "from": "dead_letters", "where": "reason = 'bad_type'", "sink": "none"}


def test_what_a_route_holds_back_is_not_missing(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    """As the route has it in a run: of eight alerts three are sent, without their partition; of three sessions two."""
    scene.append()
    alerts = raised(scene)
    scene.commit(0, alerts=alerts)
    scene.commit(1)
    index.put(AlertRows([one for one in alerts if one.dimensions["cdn"] == "c1"]))
    index.documents = [(name, id_, {key: body[key] for key in ("@timestamp", "device_id", "alert_id")}) for name, id_, body in index.documents]
    index.put(SessionRows(session_table(2, 1), 0))
    words = routed(scene.folder, SOME_ALERTS, SOME_SESSIONS, SOME_LETTERS)
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0", *words)
        assert (status, found["indexed"]) == (0, {"alerts": {"expected": 3, "found": 3}, "sessions": {"expected": 2, "found": 2}}), found
        assert found["held_back"] == {"alerts": 5, "sessions": 1}
        assert [found["partitions"][0][name] for name in ("alerts", "indexed", "held_back", "letters")] == [3, 3, 5, 3]
        assert found["notes"] == [
            "route some holds back 5 of 8 alerts: not expected in the index", "route few holds back 1 of 3 sessions: not expected in the index",
        ]  # fmt: skip
        said = told(capsys, *scene.words, "--elastic", url, "--wait", "0", *words)[1]
        assert "; alerts 3, in the index 3, held back 5" in said
        assert "index: 3 of 3 alerts, 5 more held back by a route" in said
        index.documents.pop(1)
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0", *words)
        assert (status, [one[2:8] for one in told_of(found)]) == (1, [("index alerts", 1, 0, 1, 0, 0)]), "one that the route sends is missed as ever"
        assert scene.audit(capsys, "--elastic", url, "--wait", "0")[0] == 1, "without the routes every alert is expected"


def test_what_was_sent_before_a_route_held_it_back_is_told(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0", *routed(scene.folder, SOME_ALERTS | {"where": "1 = 0"}))
    assert (status, found["indexed"]["alerts"]) == (0, {"expected": 0, "found": 0})
    assert found["notes"] == ["route some holds back 8 of 8 alerts: not expected in the index; 8 of them are in the index, sent before this route was declared"]


def test_a_document_without_its_partition_may_be_in_flight(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    alerts = with_index(scene, index)
    scene.append(2)
    index.put(AlertRows([replace(alerts[0], alert_id="new", append_ts_ms=scene.times[0][-1], event_ts=scene.times[0][-1])]))
    del index.documents[-1][2]["partition"]
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0", *routed(scene.folder, SOME_ALERTS | {"where": "seq IS NULL"}))
        assert (status, found["in_flight_documents"]) == (0, 1), found
        scene.commit(0)
        scene.commit(1)
        assert scene.audit(capsys, "--elastic", url, "--wait", "0")[0] == 1


def test_a_mistake_in_a_route_is_one_line(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    with_index(scene, index)
    words = routed(scene.folder, SOME_ALERTS | {"where": "cdm = 'c1'"})
    with served(index) as url:
        status, out, err = told(capsys, *scene.words, "--elastic", url, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert f'{words[1]}: routes[0] "some" where, column 1: there is no column "cdm"' in err


# --- beside other logs ------------------------------------------------------------------------------------------------------------------
def test_documents_of_other_logs_are_not_compared(scene: Scene, index: FakeIndex, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the same partition and time, as topics beside this one give them; one of them in two days' indices."""
    alerts = with_index(scene, index)
    index.put(AlertRows([replace(one, alert_id=f"other-{k}", device_id=f"other-{k}") for k, one in enumerate(alerts[:4])]))
    index.documents.append(("keystone-alerts-2026.09.20", *index.documents[-1][1:]))
    sessions = session_table(2, 100)
    index.put(SessionRows(sessions.set_column(0, sessions.schema.field("device_id"), pa.array(["other-0", "other-1"])), 0))
    with served(index) as url:
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
        assert (status, found["indexed"]) == (0, {"alerts": {"expected": 8, "found": 8}, "sessions": {"expected": 3, "found": 3}}), found
        told_apart = "in the index are of sessions that this lake has no row of: of other logs, not compared"
        assert found["notes"] == [f"4 alerts {told_apart}", f"2 sessions {told_apart}"]
        index.put(AlertRows([replace(alerts[0], alert_id="doubtful", device_id="d", session_id="s")]))
        status, found = scene.audit(capsys, "--elastic", url, "--wait", "0")
        assert (status, [one[5:] for one in told_of(found)]) == (1, [(0, 1, 0, "doubtful")]), "its session is in the lake's events, and no alert of it"
