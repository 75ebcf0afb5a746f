"""From routes to sinks: each with its spill and its kinds; what receivers refuse is kept with their reason, within a limit."""

from __future__ import annotations

import base64
from pathlib import Path

import orjson
import pytest

from keystone.actors.console_tap import ConsoleTap
from keystone.actors.filtered import FilteredActions
from keystone.actors.outputs import Delivery, LocalOutput
from keystone.config import Config, RouteConfig
from keystone.errors import UsageError
from keystone.sinks.base import Refused
from keystone.sinks.opening import NOWHERE, REASON, Refusals, SinksSpec, look_at_elastic, open_sinks, routes_of
from tests.sink_rows import NumberedRows
from tests.unit.test_outputs import alert


def config_of(*routes: dict[str, str]) -> Config:
    return Config(routes=tuple(RouteConfig.model_validate(route) for route in routes))


def spec_in(folder: Path, elastic: str | None = None) -> SinksSpec:
    return SinksSpec(str(folder / "outbox"), str(folder / "refused"), elastic)


def test_files_and_the_console_take_rows_of_their_routes(tmp_path: Path) -> None:
    config = config_of(
        {"name": "copy", "from": "alerts", "sink": f"file:{tmp_path}/copy.ndjson"}, {"name": "look", "from": "alerts", "sink": "console"},
        {"name": "gone", "from": "alerts", "sink": "none"},
    )  # fmt: skip
    spec, tap, refusals = spec_in(tmp_path), ConsoleTap(), Refusals(tmp_path / "refused", "role")
    sinks = open_sinks(routes_of(spec, config).of("alerts"), spec, config, role="me", refusals=refusals, console=tap)
    assert sorted(target.kind for target in sinks) == ["console", "file"]  # nothing is held for none; lake and actions are elsewhere
    for sink in sinks.values():
        sink.offer([NumberedRows("alerts", 0, 3)])
        assert sink.flush(20)
        assert sink.close(5) == 0
    assert [orjson.loads(line)["id"] for line in (tmp_path / "copy-me.ndjson").read_bytes().splitlines()] == ["0", "1", "2"]
    assert [orjson.loads(line)["kind"] for line in tap.drain()] == ["alerts"] * 3
    assert not (tmp_path / "refused").exists()


def test_a_search_server_is_there_only_with_its_url(tmp_path: Path) -> None:
    def kinds(spec: SinksSpec) -> list[str]:
        return [route.sink.kind for route in routes_of(spec, Config()).of("alerts")]

    assert kinds(spec_in(tmp_path)) == ["lake", "actions"]
    assert kinds(spec_in(tmp_path, "http://127.0.0.1:9")) == ["elastic", "lake", "actions"]
    with pytest.raises(UsageError, match="add --elastic URL"):
        routes_of(spec_in(tmp_path), config_of({"name": "x", "from": "alerts", "sink": "elastic"}))


def test_what_is_refused_is_a_dead_letter_with_the_receivers_reason(tmp_path: Path) -> None:
    refusals = Refusals(tmp_path, "session-0")
    body = orjson.dumps({"alert_id": "a", "partition": 3, "region": "é\n"})
    refusals.take("elastic", [Refused("alerts", "a", "status 400: no such field", body), Refused("alerts", "", "cannot be made JSON", b"")])
    refusals.close()
    first, second = (orjson.loads(line) for line in (tmp_path / "refused-session-0.ndjson").read_bytes().splitlines())
    assert (first["reason"], first["partition"], first["offset"]) == (REASON, 3, NOWHERE)
    said = orjson.loads(base64.b64decode(first["raw"]))
    assert said == {"sink": "elastic", "kind": "alerts", "id": "a", "why": "status 400: no such field", "document": orjson.loads(body)}
    assert orjson.loads(base64.b64decode(second["raw"]))["document"] is None


def test_refusals_beyond_their_limit_or_on_a_full_disk_are_counted(tmp_path: Path) -> None:
    refused = [Refused("alerts", "a", "why", b"{}")] * 10
    small = Refusals(tmp_path, "small", bytes_max=500)
    small.take("elastic", refused)
    assert (small.count, small.not_kept) == (10, 10 - len((tmp_path / "refused-small.ndjson").read_bytes().splitlines()))
    assert 0 < small.not_kept < 10
    small.close()
    (tmp_path / "file").touch()
    nowhere = Refusals(tmp_path / "file" / "below", "x")
    nowhere.take("elastic", refused)
    assert (nowhere.count, nowhere.not_kept) == (10, 10)


def test_a_server_that_is_away_is_a_remark_and_a_wrong_url_a_mistake() -> None:
    (remark,) = look_at_elastic("http://127.0.0.1:9", Config())
    assert "what is for it waits until it answers" in remark
    with pytest.raises(UsageError, match="write it as http://HOST:9200"):
        look_at_elastic("127.0.0.1:9", Config())


def test_lines_that_nobody_fetches_are_bounded() -> None:
    tap = ConsoleTap(lines_max=3)
    for number in range(5):
        tap.write(b"%d\n" % number)
    assert tap.drain() == [b'{"missed":2}', b"2", b"3", b"4"]
    assert tap.drain() == []


def test_actions_of_some_alerts_only(tmp_path: Path) -> None:
    config = config_of({"name": "eu", "from": "alerts", "where": "region = 'eu'", "sink": "actions"})
    (route,) = routes_of(spec_in(tmp_path), config).to("actions")
    output = FilteredActions(LocalOutput(None, None), route)
    alerts = [alert(0, region="eu"), alert(1, region="us"), alert(2, region=None)]
    output.send(Delivery(0, 5, alerts, [1.0, 2.0, 3.0], [1.5, 2.5, 3.5]))
    (done,) = output.finished()
    assert ([one.alert_id for one in done.alerts], done.decoded_ms, done.next_offset) == ([alerts[0].alert_id], [1.0], 5)
    assert (output.held_back, output.alerts) == (2, 1)
