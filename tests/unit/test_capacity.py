"""``keystone plan``: figures worked out by hand, what is refused in one line, and where the kept model comes from."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from keystone.capacity.demand import Demand
from keystone.capacity.fitting import busy_share, fit
from keystone.capacity.model import plan
from keystone.capacity.prices import load as load_prices
from keystone.capacity.rates import FIGURES, KEPT, Rate, Rates, kept, load
from keystone.capacity.sustained import CORES, LOOP, sustained
from keystone.cli import main
from keystone.config import Config
from keystone.errors import UsageError
from keystone.run import plan_measure, plan_view

ROOT = Path(__file__).parents[2]
PRICES = """
date = "2030-01-01"
source = "a shop"
[storage]
s3_gb_month = 1
s3_put_per_1000 = 1
s3_get_per_1000 = 1
disk_gb_month = 1
disk_mb_s_month = 1
disk_mb_s_included = 1
disk_gb_max = 1000
zone_gb = 1
[instances.box]
vcpus = 4
memory_gib = 64
network_mbit_s = 8000
usd_per_hour = 1
"""


def fit_rates() -> ModuleType:
    """tools/fit_rates.py, which is a script."""
    spec = importlib.util.spec_from_file_location("fit_rates", ROOT / "tools" / "fit_rates.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(autouse=True)
def _half_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine, as the plan measures it."""
    monkeypatch.setattr("keystone.bench.speed.measure_speed", lambda: kept().speed_events_per_s / 2)


def model(**values: float) -> Rates:
    """All figures 1, of a machine of 2 cores, but for ``values``."""
    figures = dict.fromkeys(FIGURES, 1.0) | {name: 0.0 for name in FIGURES if name.endswith("_base_cores")}
    return Rates("box", 2, 1e6, {name: Rate(values.get(name, value), "by hand") for name, value in figures.items()})


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


# --- where figures come from ----------------------------------------------------------------------------------------------------
def test_the_kept_model_is_what_the_script_makes_of_the_kept_results() -> None:
    assert KEPT.read_text("utf-8") == fit_rates().text(), "run: python tools/fit_rates.py > keystone/capacity/rates.json"


def test_every_source_names_a_kept_result() -> None:
    for name in FIGURES:
        files = re.findall(r"[a-z0-9_]+\.json", kept().source(name))
        assert files, name
        assert all((ROOT / "benchmarks" / "results" / file).exists() for file in files), name


def test_a_line_through_two_rates() -> None:
    low = {"achieved_eps": 100_000.0, "cpu_us_per_event": {"fleet": 3.0, "sessions": 5.0, "loop": 4.0, "other": 1.0, "broker": None}}
    high = {"achieved_eps": 1_000_000.0, "cpu_us_per_event": {"fleet": 1.2, "sessions": 1.4, "loop": 0.9, "other": 0.1, "broker": None}}
    found = fit(low, high)
    assert found["fleet_us"] == pytest.approx(1.0)
    assert found["fleet_base_cores"] == pytest.approx(0.2)
    assert found["sessions_us"] == pytest.approx(1.0)
    assert found["sessions_base_cores"] == pytest.approx(0.4)
    assert found["sessions_busy_us"] == 1.4
    assert (found["other_us"], found["other_base_cores"]) == (0.0, 0.1)
    assert (found["broker_us"], found["broker_base_cores"]) == (0.0, 0.0)
    with pytest.raises(UsageError, match="too near"):
        fit(high, high)


def test_a_base_below_zero_is_noise() -> None:
    low = {"achieved_eps": 100_000.0, "cpu_us_per_event": {"sessions": 1.0, "loop": 1.0}}
    high = {"achieved_eps": 1_000_000.0, "cpu_us_per_event": {"sessions": 1.5, "loop": 1.4}}
    assert fit(low, high)["sessions_us"] == 1.5
    assert fit(low, high)["sessions_base_cores"] == 0.0


def test_how_busy_a_run_was() -> None:
    cpu = {"total": 1.0, "broker": 0.5}
    assert busy_share({"achieved_eps": 1e6, "cpu_us_per_event": cpu, "machine": {"cores": 2}}) == 0.75


# --- what a machine sustains ----------------------------------------------------------------------------------------------------
def test_the_cores_are_the_limit() -> None:
    rates = model(embedded_fleet_busy_us=0.5, embedded_sessions_busy_us=1.0, embedded_loop_busy_us=0.6, embedded_other_busy_us=0.1, embedded_broker_busy_us=0.0,
                  embedded_busy_share=0.9)  # fmt: skip
    able = sustained(rates, "embedded")
    assert able.limit == CORES
    assert able.eps == pytest.approx(0.9 * 2 / 1.6 * 1e6)


def test_a_loop_is_the_limit() -> None:
    rates = model(embedded_fleet_busy_us=0.1, embedded_sessions_busy_us=0.9, embedded_loop_busy_us=0.9, embedded_other_busy_us=0.0, embedded_broker_busy_us=0.0)
    able = sustained(rates, "embedded")
    assert able.limit == LOOP
    assert able.eps == pytest.approx(1e6 / 0.9)


# --- a plan by hand -------------------------------------------------------------------------------------------------------------
def by_hand(tmp_path: Path, **demand: Any) -> Any:
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    rates = model(kafka_loop_us=0.5, kafka_loop_busy_us=0.5, kafka_sessions_us=0.8, event_bytes=250,
                  codec_ratio_lz4=2.5, sessions_closed_per_device_hour=3.6, alerts_per_device_hour=0,
                  cohort_rows_per_s=0, kafka_broker_us=0.25, lake_event_bytes=20)  # fmt: skip
    boxes = {"instance": "box", "broker_instance": "box", "index_instance": "box"}
    return plan(Demand(eps=1e6, devices=1_000_000, headroom=0.5, **boxes, **demand), rates, load_prices(str(prices)), Config())


def test_figures_worked_out_by_hand(tmp_path: Path) -> None:
    made = by_hand(tmp_path)
    assert made["session_actors"].value == 1  # 0.5 of a core for the loop, half of it free
    assert made["loop_cores"].value == 1.0
    assert made["beside_cores"].value == 0.6
    assert made["partitions"].value == 4
    assert made["kafka_in"].value == 100.0  # 1e6 x 250 / 2.5
    assert (made["kafka_replication"].value, made["kafka_out"].value, made["kafka_network"].value) == (200.0, 100.0, 400.0)
    assert made["kafka_disk"].value == pytest.approx(100 * 86.4 * 3 * 2)  # GB in a day, three copies, half of the disk free
    assert made["brokers"].value == 52  # by disks of 1,000 GB
    assert made["broker_cores"].value == 1.5
    assert made["lake_daily"].value == 1_728.0
    assert made["session_documents"].value == 1_000.0
    assert made["zones_usd"].value == pytest.approx((100 * 2 / 3 * 2 + 200) * 2_628, rel=1e-3)
    assert made["state_lists"].value == pytest.approx(4 * (2 + 0.3))
    assert made["session_usd"].value == 2 * 730


def test_one_zone_costs_nothing_between_zones(tmp_path: Path) -> None:
    assert by_hand(tmp_path, zones=1)["zones_usd"].value == 0


def test_without_an_index_there_is_no_index(tmp_path: Path) -> None:
    made = by_hand(tmp_path, has_index=False)
    assert made["rows_cores"].value == 0
    assert "Elasticsearch" not in {section.title for section in made.sections}
    assert "index_usd" not in made["usd"].parts


def test_larger_events_cost_more_and_smaller_ones_no_less(tmp_path: Path) -> None:
    usual, large, small = by_hand(tmp_path), by_hand(tmp_path, event_bytes=500), by_hand(tmp_path, event_bytes=100)
    assert large["loop_cores"].value == 2 * usual["loop_cores"].value
    assert large["lake_daily"].value == 2 * usual["lake_daily"].value
    assert small["loop_cores"].value == usual["loop_cores"].value
    assert small["kafka_in"].value == 40.0


def test_the_embedded_log_serves_one_machine() -> None:
    with pytest.raises(UsageError, match=r"serves one machine.*--log kafka"):
        plan(Demand(eps=1e8, devices=100, log="embedded"), kept(), load_prices(None), Config())
    made = plan(Demand(eps=1e5, devices=100, log="embedded"), kept(), load_prices(None), Config())
    assert made["session_nodes"].value == 1
    assert "brokers_usd" not in made["usd"].parts


def test_simulated_devices_are_in_no_sum() -> None:
    made = plan(Demand(eps=1e6, devices=5_000_000), kept(), load_prices(None), Config())
    parts = {part for section in made.sections for line in section for part in line.parts}
    assert not {part for part in parts if part.startswith("fleet")}
    assert any("Fleet actors simulate" in note for note in made.notes)


# --- the command ----------------------------------------------------------------------------------------------------------------
def test_plain_lines_and_json_tell_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    status, out, _ = told(capsys, "plan", "--eps", "10000000", "--devices", "50000000", "--json", str(target))
    assert status == 0
    shown = [line.split("\t") for line in out.splitlines()]
    wanted = json.loads(target.read_text())
    assert wanted["asked"]["eps"] == 1e7
    assert wanted["asked"]["devices"] == 50_000_000
    figures = {(line[0], line[1]): line[2] for line in shown if len(line) >= 3}
    for title, section in wanted["sections"].items():
        for line in section.values():
            number, _, unit = figures[(title, line["name"])].partition(" ")
            assert unit == line["unit"]
            assert float(number.replace(",", "")) == line["value"]
    assert [line[1] for line in shown if line[0] == "assumption"] == wanted["assumptions"]
    assert len(wanted["assumptions"]) > len(FIGURES) / 2


def test_json_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = told(capsys, "plan", "--json", "-")
    assert status == 0
    assert json.loads(out)["asked"]["devices"] == 5_000_000


def test_tables_on_a_terminal() -> None:
    import io

    from rich.console import Console

    made = plan(Demand(eps=1e6, devices=5_000_000), kept(), load_prices(None), Config())
    screen = io.StringIO()
    plan_view.show(made, Console(file=screen, force_terminal=True, width=150, color_system=None))
    shown = screen.getvalue()
    for line in (line for section in made.sections for line in section):
        assert plan_view.figure(line) in shown
    assert "Assumptions" in shown


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--eps", "0"), "--eps 0 must be from 1 to"),
        (("--eps", "nan"), "--eps nan must be from 1 to"),
        (("--devices", "0"), "--devices 0 must be from 1 to"),
        (("--headroom", "1"), "--headroom 1 must be from 0 to 0.9"),
        (("--replication", "0"), "--replication 0 must be from 1"),
        (("--instance", "z9.huge"), "--instance z9.huge: not in the price table, which has c6i"),
        (("--broker-instance", "z9.huge"), "--broker-instance z9.huge: not in the price table"),
        (("--rates", "{there}/none.json"), "none.json: cannot be read: No such file"),
        (("--prices", "{there}/none.toml"), "none.toml: cannot be read: No such file"),
        (("--json", "{there}/none/plan.json"), "there is no such directory"),
        (("--measure", "{there}/r.json", "--here"), "leave out --rates and --here"),
        (("--log", "embedded", "--eps", "100000000"), "--log kafka, or a larger --instance"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    status, out, err = told(capsys, "plan", *(word.format(there=tmp_path) for word in words))
    assert status == 2
    assert out == ""
    assert line in err
    assert len(err.splitlines()) == 1


def edited(change: Any) -> str:
    found = json.loads(KEPT.read_text())
    change(found)
    return json.dumps(found)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("{", "is not JSON"),
        ("[]", "needs an object 'figures'"),
        (edited(lambda f: f.update(schema=99)), "schema = 99, this version reads 1"),
        (edited(lambda f: f["figures"].update(speed=1)), "speed is no figure of mine"),
        (edited(lambda f: f["figures"].update(event_bytes={"value": "many"})), "event_bytes = 'many' (bytes of JSON an event) must be a number from"),
        (edited(lambda f: f["figures"].update(event_bytes=float("nan"))), "event_bytes = nan"),
        (edited(lambda f: f["figures"].update(session_bytes=True)), "session_bytes = True"),
        (edited(lambda f: f["figures"].update(kafka_loop_us=999.0)), "kafka_loop_us is a part of kafka_sessions_us"),
        (edited(lambda f: f["figures"].update(kafka_loop_us=0)), "kafka_loop_us must be above 0"),
        (edited(lambda f: f.update(cores=0)), "cores = 0 must be a whole number"),
        (edited(lambda f: f.update(speed_events_per_s=0)), "speed_events_per_s = 0"),
        (edited(lambda f: f.pop("machine")), "machine must name the processor"),
    ],
)
def test_a_bad_file_of_rates_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    status, _, err = told(capsys, "plan", "--rates", str(path))
    assert status == 2
    assert line in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("[storage]", "[storage", "is not TOML"),
        ('date = "2030-01-01"', "", "needs date and source"),
        ("zone_gb = 1", "", "[storage]: zone_gb is missing"),
        ("zone_gb = 1", "zone_gb = 1\nfree = 2", "[storage]: free is unknown"),
        ("zone_gb = 1", "zone_gb = -1", "zone_gb = -1 must be a number of at least 0"),
        ("zone_gb = 1", "zone_gb = nan", "zone_gb = nan must be a number"),
        ("vcpus = 4", "vcpus = 0", "[instances.box]: every figure must be above 0"),
        ("vcpus = 4", "vcpus = 2.5", "vcpus must be a whole number"),
        ("vcpus = 4", "vcpus = 'four'", "vcpus = 'four' must be a number"),
        ("[instances.box]", "[other]\nx = 1\n[instances.box]", "other is unknown"),
    ],
)
def test_a_bad_price_table_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, before: str, after: str, line: str) -> None:
    path = tmp_path / "prices.toml"
    path.write_text(PRICES.replace(before, after, 1))
    status, _, err = told(capsys, "plan", "--prices", str(path), "--instance", "box", "--broker-instance", "box", "--index-instance", "box")
    assert status == 2
    assert line in err
    assert len(err.splitlines()) == 1


def test_a_file_of_rates_may_leave_figures_out(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(edited(lambda found: found.update(figures={"event_bytes": 400})))
    rates = load(str(path))
    assert rates["event_bytes"] == 400
    assert rates["session_bytes"] == kept()["session_bytes"]
    assert str(path) in rates.source("event_bytes")


def test_a_model_that_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    path.write_text(json.dumps(kept().on(500_000, machine="here", cores=4).as_dict()))
    again = load(str(path))
    assert (again.machine, again.cores) == ("here", 4)
    assert again["embedded_loop_us"] == pytest.approx(kept()["embedded_loop_us"] * kept().speed_events_per_s / 500_000)


# --- measuring ------------------------------------------------------------------------------------------------------------------
def _report(eps: float, seconds: int, verdict: str = "pass") -> dict[str, Any]:
    us = {"fleet": 0.5, "sessions": 2.0, "other": 0.1, "total": 2.6, "loop": 1.5, "broker": None}
    return {"verdict": verdict, "reasons": ["lag grows"], "achieved_eps": eps, "seconds": seconds, "cpu_us_per_event": us, "machine": {"cores": 2}}


@pytest.fixture
def _no_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benches that take no time: their reports."""
    monkeypatch.setattr("keystone.bench.command.run_bench", lambda options, **_: _report(options.eps, options.seconds))


def test_what_this_machine_sustains_is_told_by_its_own_speed_and_nothing_else_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = {}
    for name, words in {"default": (), "kept": ("--kept",), "here": ("--here",)}.items():
        path = tmp_path / name
        status, _, _ = told(capsys, "plan", *words, "--json", str(path))
        assert status == 0
        sections[name] = json.loads(path.read_bytes())["sections"]
    *same, machine = sections["kept"]
    assert all(sections["default"][title] == sections["kept"][title] for title in same)
    assert sections["default"]["this machine with everything on it"] == sections["here"][machine]
    assert sections["default"]["this machine with everything on it"] != sections["kept"][machine]


@pytest.mark.usefixtures("_no_bench")
def test_here_scales_the_kept_model() -> None:
    rates = plan_measure.here(kept())
    assert rates["kafka_loop_us"] == pytest.approx(2 * kept()["kafka_loop_us"])
    assert rates["session_bytes"] == kept()["session_bytes"]


@pytest.mark.usefixtures("_no_bench")
def test_measuring_writes_a_model_that_plans(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    status, out, _ = told(capsys, "plan", "--measure", str(path))
    assert status == 0
    assert "embedded_loop_us = 1.5 (CPU us an event; measured)" in out
    again = load(str(path))
    assert again["embedded_sessions_us"] == 2.0
    assert again["kafka_sessions_us"] == pytest.approx(kept()["kafka_sessions_us"] * 2.0 / kept()["embedded_sessions_us"], rel=1e-3)
    assert told(capsys, "plan", "--rates", str(path))[0] == 0


@pytest.mark.usefixtures("_no_bench")
def test_a_bench_that_does_not_pass_measures_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keystone.bench.command.run_bench", lambda options, **_: _report(options.eps, options.seconds, "fail"))
    status, _, err = told(capsys, "plan", "--measure", str(tmp_path / "here.json"))
    assert status == 2
    assert "did not pass here (lag grows): measure when the machine is quiet" in err
    assert not (tmp_path / "here.json").exists()


@pytest.mark.usefixtures("_no_bench")
def test_a_rate_that_is_too_high_is_followed_by_a_lower_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def run(options: Any, **_: Any) -> dict[str, Any]:
        tried.append(options.eps)
        return _report(options.eps, options.seconds, "fail" if len(tried) == 2 else "pass")

    monkeypatch.setattr("keystone.bench.command.run_bench", run)
    plan_measure.measure(kept(), tmp_path / "here.json")
    assert len(tried) == 3
    assert tried[0] < tried[2] < tried[1]
    assert load(str(tmp_path / "here.json"))["embedded_sessions_us"] == 2.0
