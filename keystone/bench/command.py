"""From options to a report: one run, or a search and its confirming run, in one Ray."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from keystone.actors.joining import is_outside
from keystone.actors.nodes import Placement
from keystone.actors.runtime import RayRuntime, cluster_address
from keystone.actors.stopping import StopSignal
from keystone.bench.chaos import Chaos, parse
from keystone.bench.cluster import on_cluster
from keystone.bench.cohorts import COHORTS_FILE
from keystone.bench.driver import Driver
from keystone.bench.engine import LAKE_DIR, OUTBOX_DIR, STATE_DIR, WORK_DIR
from keystone.bench.logs import BenchLog, EmbeddedBench, KafkaBench
from keystone.bench.machine import Machine, usable_cores, versions
from keystone.bench.plan import OWN_FILE, SEARCH_PROBE_S, BenchPlan, Options, check_room, kafka_url, log_home, resolve
from keystone.bench.report import Measured, build_report
from keystone.bench.screen import Progress, duration
from keystone.bench.search import RateSearch
from keystone.config import Config
from keystone.errors import UsageError
from keystone.report.making import PAGE
from keystone.sinks.opening import look_at_elastic

RESULTS = ("report.json", PAGE, "alerts.ndjson", "truth.parquet", "latency.parquet", COHORTS_FILE, LAKE_DIR, ".lake.writing", STATE_DIR, OUTBOX_DIR, WORK_DIR)
WARM_S, WARM_SHARE = 30, 0.5  # before a search over Kafka: seconds, and share of the rate it begins with
STOLEN_SHARE_DOUBTED = 0.05  # of the cores: what failed while the host took so much of them says little of this machine
CONFIRMATIONS_MAX = 12  # runs of the full length that a search may take to find one that passes


def run_bench(options: Options, *, config_file: str | None, is_search: bool, unit_events_per_s: float | None) -> dict[str, Any]:
    """Run, write ``report.json`` into ``options.out`` and return it. Raises ``UsageError`` before anything was started."""
    machine = Machine.here()
    plan = resolve(options, machine)
    address = cluster_address(options.address)
    if is_outside(address):
        raise UsageError(
            "--address ray://...: the judge of a bench must be on a node, where the actors' files and clocks are: submit it"
            " (ray job submit --address http://127.0.0.1:8265 -- python -m keystone.bench ...)"
        )
    out = Path(options.out).absolute()
    config = _load_config(config_file)
    _check_out(out)
    remarks = look_at_elastic(plan.elastic, config) if plan.elastic is not None else []
    make_log, remark = _log_of(options, plan, machine, out, config)
    chaos = parse(options.chaos, seconds=plan.seconds) if options.chaos is not None else None
    if chaos is not None and is_search:
        raise UsageError("--chaos and --search: a run with faults says nothing about the highest rate: choose one")
    if chaos is not None and address is not None:
        raise UsageError("--chaos kills processes of this machine: not on a cluster (--address); there, kill a node yourself while a run goes on")
    with Progress() as progress, StopSignal() as stop:
        if address is None:
            progress.say(_headline(plan, machine))
        for line in (*([remark] if remark else []), *remarks):
            progress.say(line)
        warming = subprocess.Popen([sys.executable, "-c", "from keystone.kernels import warm; warm()"], stdout=subprocess.DEVNULL)
        if chaos is not None:
            _check_warm(warming)
            measured, probes = _with_faults(options, plan, config, config_file, out, make_log, chaos, progress, stop), None
        else:
            with RayRuntime(address=address):
                stop.install()
                _check_warm(warming)
                placement = Placement()
                grows = address is not None and options.session_actors is None and kafka_url(options) is not None
                if address is not None:
                    placement, plan = on_cluster(options, plan, out, progress)
                driver = Driver(config, make_log, progress, stop, keep_log=options.keep_log, placement=placement, grows=grows)
                measured, probes = _search(driver, plan, out, warms=kafka_url(options) is not None) if is_search else (_one(driver, plan, out), None)
    measured.machine, measured.versions = machine.as_dict(), versions()
    measured.config, measured.unit_events_per_s = config.model_dump(mode="json"), unit_events_per_s
    report = build_report(measured)
    if probes is not None:
        report["search"] = probes
    (out / OWN_FILE).write_bytes(as_json(report))
    return report


def _check_warm(warming: subprocess.Popen[bytes]) -> None:
    if warming.wait() != 0:
        raise UsageError("the kernels do not compile here: see the message above")


def _with_faults(
    options: Options, plan: BenchPlan, config: Config, config_file: str | None, out: Path, make_log: Callable[[BenchPlan], BenchLog], chaos: Chaos,
    progress: Progress, stop: StopSignal,
) -> Measured:  # fmt: skip
    from keystone.bench.chaos_judge import judge_chaos

    _clear(out)
    work_dir = out / WORK_DIR
    work_dir.mkdir(parents=True)
    log = make_log(plan)
    try:
        return judge_chaos(plan, config, config_file, out, log, chaos, progress, stop)
    finally:
        if (kept := log.close(keep=options.keep_log)) is not None:
            progress.say(kept)
        else:  # nobody can go on without it
            shutil.rmtree(out / STATE_DIR, ignore_errors=True)
        shutil.rmtree(work_dir, ignore_errors=True)


def _log_of(options: Options, plan: BenchPlan, machine: Machine, out: Path, config: Config) -> tuple[Callable[[BenchPlan], BenchLog], str | None]:
    """How to make the log of a run, and a remark on where it is. ``UsageError`` where the machine, or a broker, does not have what it takes."""
    url = kafka_url(options)
    if url is not None:
        check_room(plan, machine, out, None)
        KafkaBench(url, plan, config.kafka).close(keep=False)  # what would be refused is refused before anything is started
        return lambda chosen: KafkaBench(url, chosen, config.kafka), f"log: {url}"
    home, remark = log_home(options, plan, Path(tempfile.gettempdir()))
    check_room(plan, machine, out, home)
    return lambda chosen: EmbeddedBench(chosen, home), remark


def as_json(report: dict[str, Any], *, is_pretty: bool = True) -> bytes:
    """``is_pretty``: for people, with an end of line; else in one line without it."""
    return orjson.dumps(report, option=orjson.OPT_NON_STR_KEYS | (orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE if is_pretty else 0))


def _one(driver: Driver, plan: BenchPlan, out: Path) -> Measured:
    _clear(out)
    return driver.run(plan, out)


def _search(driver: Driver, plan: BenchPlan, out: Path, *, warms: bool = False) -> tuple[Measured, list[dict[str, Any]]]:
    """Probe rates, then confirm the best; the confirming run's measures, and what each probe gave.

    ``warms``: brokers that were just started compile while they serve, which takes most of a core for half a minute here: what the first
    probe finds then is less than what the same brokers take later, and a rate that failed is not tried again.
    """
    search = RateSearch(plan.eps)
    probes: list[dict[str, Any]] = []

    def probe(rate: float, seconds: int) -> tuple[Measured, bool]:
        measured = _one(driver, plan.at(rate, seconds=seconds), out)
        report = build_report(measured)
        passed = report["verdict"] == "pass"
        p99, cpu = report["latency_ms"]["end_to_end"]["p99"], report["cpu_us_per_event"]
        us = (cpu["total"] or 0.0) + (cpu["broker"] or 0.0)  # which tells whether the machine is the one it was a minute ago
        told = {"eps": rate, "seconds": seconds, "verdict": report["verdict"], "reasons": report["reasons"]}
        probes.append({**told, "end_to_end_p99_ms": p99, "cpu_us_per_event": round(us, 3), "stolen_cores": round(measured.stolen_cores, 3)})
        reason = f": {report['reasons'][0]}" if report["reasons"] else ""
        driver.progress.say(f"{rate:>12,.0f} events/s for {seconds} s: {report['verdict']}, end-to-end p99 {duration(p99)}, {us:.2f} us an event{reason}")
        return measured, passed

    measured, rate = None, search.next_rate()
    if warms and rate is not None:
        driver.progress.say(f"{rate * WARM_SHARE:>12,.0f} events/s for {WARM_S} s: not judged, it warms the brokers")
        _one(driver, plan.at(rate * WARM_SHARE, seconds=WARM_S), out)
    while rate is not None and not driver.stop.is_asked():
        measured, passed = probe(rate, min(plan.seconds, SEARCH_PROBE_S))
        if not passed and measured.stolen_cores > STOLEN_SHARE_DOUBTED * usable_cores() and not driver.stop.is_asked():
            driver.progress.say(f"{'':>12} the host gave {measured.stolen_cores:.2f} cores to others meanwhile (steal): once more")
            measured, passed = probe(rate, min(plan.seconds, SEARCH_PROBE_S))
        search.record(rate, passed)
        rate = search.next_rate()
    best, doubted = search.best, 0.0
    for _ in range(CONFIRMATIONS_MAX):
        if best == 0 or driver.stop.is_asked():
            break
        measured, passed = probe(best, plan.seconds)
        if passed:
            break
        if best != doubted:
            doubted = best  # as a probe's, a run's fail may be that of a moment in which others had the machine
        else:
            best = search.demote()
    if measured is None:
        measured = Measured(plan)
        measured.faults.append("interrupted before the first probe")
    return measured, probes


def _check_out(out: Path) -> None:
    """An empty or absent directory, or an earlier run's, which will be replaced."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"--out {out} is not a directory")
    found = {path.name for path in out.iterdir()}
    if found and (not found <= set(RESULTS) or not found & {OWN_FILE, ".work"}):
        stranger = min(found - set(RESULTS), default=min(found))
        raise UsageError(f"--out {out} holds {stranger}, which is not from a run of mine: choose another directory, or empty it")


def _clear(out: Path) -> None:
    for name in RESULTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _load_config(config_file: str | None) -> Config:
    from keystone.config import load

    return load(Path(config_file) if config_file else None)


def _headline(plan: BenchPlan, machine: Machine) -> str:
    return (
        f"{plan.eps:,.0f} events/s for {plan.seconds} s from {plan.devices:,} devices: {plan.partitions} partitions,"
        f" {plan.fleet_actors} fleet and {plan.session_actors} session actors on {machine.cores} cores"
    )
