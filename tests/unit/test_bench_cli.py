"""Command lines: plans that suit the machine, refusals in one line, nothing heavy imported for --help."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from keystone import __version__
from keystone.actors.stopping import StopSignal
from keystone.actors.supervisor import shares
from keystone.bench.__main__ import bench_command
from keystone.bench.command import CONFIRMATIONS_MAX, WARM_S, WARM_SHARE, _check_out, _clear, _search
from keystone.bench.machine import Machine, usable_cores
from keystone.bench.plan import SEARCH_PROBE_S, SEGMENTS, BenchPlan, Options, check_room, log_home, resolve
from keystone.bench.report import Measured, build_report
from keystone.bench.screen import Progress
from keystone.cli import cli
from keystone.errors import UsageError

SMALL = Machine("cpu", 2, 24_000, 23_000, (0.0, 0.0, 0.0), "Linux", "3.11")


@given(st.floats(1, 5e6), st.integers(1, 256), st.integers(500, 2_000_000), st.none() | st.integers(1, 64), st.none() | st.integers(64, 256))
def test_any_machine_gets_a_plan_that_holds_together(eps: float, cores: int, memory_mib: int, actors: int | None, partitions: int | None) -> None:
    machine = replace(SMALL, cores=cores, memory_mib=memory_mib, memory_available_mib=memory_mib)
    plan = resolve(Options(eps=eps, session_actors=actors, partitions=partitions), machine)
    assert 1 <= plan.fleet_actors <= plan.partitions
    assert 1 <= plan.session_actors <= plan.partitions
    assert 100 <= plan.devices <= 10_000_000
    assert plan.segment_bytes % 65_536 == 0
    assert plan.log_bytes >= min(eps * 3 * 260, 1 << 40) or plan.log_bytes >= 128 << 20
    dealt = sorted(p for share in shares(plan.partitions, plan.session_actors) for p in share)
    assert dealt == list(range(plan.partitions))
    assert plan.at(eps * 2, seconds=5).log_bytes >= plan.log_bytes
    assert plan.log_bytes == plan.segment_bytes * SEGMENTS * plan.partitions


@given(st.floats(1_000, 4e6), st.floats(1_000, 4e6))
def test_a_rate_is_the_same_load_wherever_a_search_began(start: float, rate: float) -> None:
    assert resolve(Options(eps=start), SMALL).at(rate, seconds=12).devices == resolve(Options(eps=rate), SMALL).devices
    assert resolve(Options(eps=start, devices=777), SMALL).at(rate, seconds=12).devices == 777


def test_two_cores_run_one_fleet_and_one_session_actor_at_a_million() -> None:
    plan = resolve(Options(eps=1_000_000.0), SMALL)
    assert (plan.fleet_actors, plan.session_actors, plan.devices, plan.seconds) == (1, 1, 5_000_000, 30)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (Options(eps=0), "--eps"),
        (Options(seconds=0), "--seconds"),
        (Options(devices=20_000_000), "--devices"),
        (Options(bad_paths=1.5), "--bad-paths"),
        (Options(partitions=2, session_actors=4), "--partitions 2"),
    ],
)
def test_nonsense_is_refused_by_name(options: Options, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        resolve(options, SMALL)


def test_a_run_that_does_not_fit_is_refused_before_it_starts(tmp_path: Path) -> None:
    plan = resolve(Options(eps=1_000_000.0, devices=10_000_000), SMALL)
    with pytest.raises(UsageError, match="fewer --devices"):
        check_room(plan, replace(SMALL, memory_available_mib=2_000), tmp_path, tmp_path)
    with pytest.raises(UsageError, match="--no-lake"):
        check_room(replace(plan, seconds=86_400, eps=1e9), SMALL, tmp_path, tmp_path)
    with pytest.raises(UsageError, match="--log"):
        check_room(replace(plan, segment_bytes=1 << 50), SMALL, tmp_path, tmp_path)


def test_the_log_goes_where_it_was_told(tmp_path: Path) -> None:
    plan = resolve(Options(), SMALL)
    assert log_home(Options(log=str(tmp_path)), plan, Path("/")) == (tmp_path, None)
    home, remark = log_home(Options(), replace(plan, segment_bytes=1 << 50), tmp_path)
    assert home == tmp_path
    assert remark is not None


@pytest.mark.parametrize("args", [["--eps", "x"], ["--nonsense"], ["--eps", "0"], ["--partitions", "1", "--session-actors", "3"]])
def test_usage_errors_end_with_status_2(args: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(bench_command, [*args, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def test_a_directory_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = CliRunner().invoke(bench_command, ["--eps", "1000", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "thesis.tex" in result.output
    assert (tmp_path / "thesis.tex").exists()


def test_an_earlier_run_is_replaced_and_so_is_one_that_died(tmp_path: Path) -> None:
    for name in ("report.json", "alerts.ndjson"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "lake").mkdir()
    _check_out(tmp_path)
    _clear(tmp_path)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".work").mkdir()
    _check_out(tmp_path)


def test_a_lone_folder_named_lake_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    with pytest.raises(UsageError, match="lake"):
        _check_out(tmp_path)


def test_the_console_script_lists_its_commands_and_version() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    assert {"bench", "replay"} <= set(result.output.split())
    assert __version__ in CliRunner().invoke(cli, ["--version"]).output
    assert CliRunner().invoke(cli, ["frobnicate"]).exit_code == 2


def test_bench_passes_through_the_console_script() -> None:
    result = CliRunner().invoke(cli, ["bench", "--help"])
    assert result.exit_code == 0
    for option in ("--eps", "--search", "--unit", "--no-lake", "--json", "--fleet-actors", "--session-actors"):
        assert option in result.output


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom keystone.cli import main\n"
        "try: main(['bench', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('ray', 'numba', 'polars', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class FakeDriver:
    """Runs that pass up to a capacity, and up to another in runs of full length."""

    def __init__(self, capacity: float, confirmed: float) -> None:
        self.capacity, self.confirmed = capacity, confirmed
        self.runs: list[tuple[float, int]] = []
        self.progress, self.stop = Progress(), StopSignal()

    def run(self, plan: BenchPlan, out: Path) -> Measured:
        assert not (out / "report.json").exists()
        out.mkdir(exist_ok=True)
        (out / "report.json").write_text("{}")
        self.runs.append((plan.eps, plan.seconds))
        measured = Measured(plan, seconds=plan.seconds, events_on_time=round(plan.eps * plan.seconds))
        if plan.eps > (self.confirmed if plan.seconds == 30 else self.capacity):
            measured.faults.append("too fast")
        return measured


def test_a_rate_that_fails_one_run_of_full_length_gets_another(tmp_path: Path) -> None:
    class Noisy(FakeDriver):
        """Fails the first run of full length of each rate."""

        def run(self, plan: BenchPlan, out: Path) -> Measured:
            is_first = (plan.eps, plan.seconds) not in self.runs
            self.confirmed = 0.0 if is_first else 1e9
            return super().run(plan, out)

    driver = Noisy(1_000_000.0, 1e9)
    measured, probes = _search(driver, resolve(Options(eps=400_000.0), SMALL), tmp_path / "out")  # type: ignore[arg-type]
    full = [(probe["eps"], probe["verdict"]) for probe in probes if probe["seconds"] == 30]
    assert full == [(measured.plan.eps, "fail"), (measured.plan.eps, "pass")]
    assert measured.plan.eps == max(probe["eps"] for probe in probes if probe["verdict"] == "pass" and probe["seconds"] == SEARCH_PROBE_S)


def test_what_fails_while_the_host_takes_the_cores_is_tried_once_more(tmp_path: Path) -> None:
    class Shared(FakeDriver):
        """The first run of each rate loses half a core and fails; so do all above 1,000,000 events/s, undisturbed."""

        def run(self, plan: BenchPlan, out: Path) -> Measured:
            is_first = (plan.eps, plan.seconds) not in self.runs
            measured = super().run(plan, out)
            if is_first and plan.seconds == SEARCH_PROBE_S:
                measured.stolen_cores = usable_cores() / 2
                measured.faults = ["too slow"]
            return measured

    driver = Shared(1_000_000.0, 1e9)
    measured, _ = _search(driver, resolve(Options(eps=400_000.0), SMALL), tmp_path / "out")  # type: ignore[arg-type]
    assert 950_000 <= measured.plan.eps <= 1_000_000
    probed = [eps for eps, seconds in driver.runs if seconds == SEARCH_PROBE_S]
    assert probed[:4] == [400_000.0, 400_000.0, 800_000.0, 800_000.0]


def test_a_search_over_kafka_warms_the_brokers_with_a_run_that_decides_nothing(tmp_path: Path) -> None:
    driver = FakeDriver(1e9, 1e9)
    plan = resolve(Options(eps=400_000.0), SMALL)
    _, probes = _search(driver, plan, tmp_path / "out", warms=True)  # type: ignore[arg-type]
    assert driver.runs[0] == (400_000.0 * WARM_SHARE, WARM_S)
    assert [probe["eps"] for probe in probes] == [eps for eps, _ in driver.runs[1:]]
    assert probes[0]["eps"] == 400_000.0


@pytest.mark.parametrize(("confirmed", "verdict"), [(1e9, "pass"), (900_000.0, "pass"), (0.0, "fail")])
def test_a_search_ends_with_a_run_of_full_length(tmp_path: Path, confirmed: float, verdict: str) -> None:
    driver = FakeDriver(1_000_000.0, confirmed)
    plan = resolve(Options(eps=400_000.0), SMALL)
    measured, probes = _search(driver, plan, tmp_path / "out")  # type: ignore[arg-type]
    assert driver.runs[-1][1] == 30
    assert all(seconds == SEARCH_PROBE_S for _, seconds in driver.runs[:4])
    assert measured.plan.eps == driver.runs[-1][0] <= 1_000_000
    assert build_report(measured)["verdict"] == verdict
    assert [p["eps"] for p in probes] == [eps for eps, _ in driver.runs]
    full = [eps for eps, seconds in driver.runs if seconds == 30]
    assert len(full) <= CONFIRMATIONS_MAX
    assert all(full.count(eps) == 2 for eps in full if eps > confirmed)  # no rate is given up before, or tried after
