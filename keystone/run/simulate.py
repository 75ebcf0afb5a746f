"""``keystone simulate``: the devices alone, sent on their schedule whether or not anyone reads, with a ledger at the end."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from keystone.run.options import CONTEXT, check_target, config_options, load_config

EXIT_FAIL: Final = 1
LOOK_EVERY_S: Final = 0.25
START_AHEAD_MS: Final = 200.0
DEVICE_SECONDS: Final = 5  # a device sends about every 5 s
DEVICES_MIN: Final = 100
DEFAULT_SEED: Final = 1
FOREVER_S: Final = 86_400.0  # without --seconds


@click.command("simulate", context_settings=CONTEXT)
@click.option("--log", "log", default=None, metavar="URL", help="embedded:DIR, or kafka://HOST[:PORT][,...][/TOPIC].  [default: this user's embedded log]")
@click.option("--eps", type=click.FloatRange(0, min_open=True), default=1_000.0, help="Events a second.")
@click.option("--devices", type=click.IntRange(1), default=None, help="Devices that take turns.  [default: 5 x eps]")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=None, help="Length of the schedule.  [default: until Ctrl-C]")
@click.option("--seed", type=click.IntRange(0), default=None, help="Fixes every byte and intended time; 1 without one.")
@click.option(
    "--epoch-ms",
    type=click.IntRange(10**12, 9 * 10**12 - 1),
    default=None,
    help="The devices' clock at the start.  [default: now; with --seed a fixed one, so that every byte is the same again]",
)
@click.option("--bad-paths", type=click.FloatRange(0, 1), default=None, help="Share of devices on a bad network path.  [default: the simulator's]")
@click.option(
    "--weak-paths", type=click.FloatRange(0, 1), default=None, help="Share of sessions whose path is too slow for a while.  [default: the simulator's]"
)
@click.option("--truth", type=click.Path(dir_okay=False), default=None, help="Write every expected alert here, as Parquet.")
@click.option("--one-event-per-record", is_flag=True, help="One event a record, its key the device's id, instead of frames.")
@config_options
def simulate_command(**given: Any) -> None:
    """Send simulated devices' events to a log, open-loop: what is due is sent, however late.

    Ends with what was intended, acknowledged, failed and unknown. Exit status: 0, or 1 where an event is not acknowledged,
    or 2 where something must be changed.
    """
    from keystone import logs
    from keystone.actors.stopping import StopSignal

    config = load_config(given["config_file"], given["settings"])
    with closing(logs.configure(config.logs)), StopSignal() as stop:
        sys.exit(_simulate(given, config, stop))


def _simulate(given: dict[str, Any], config: Any, stop: Any) -> int:
    from keystone.log.url import default_log_url, parse_log_url

    check_target("--truth", given["truth"])
    text = given["log"]
    url = parse_log_url(text) if text is not None else default_log_url()
    plan = _plan(given, config, _partitions(url, config))
    from keystone.bench.screen import Progress
    from keystone.kernels import warm

    with Progress() as progress, tempfile.TemporaryDirectory(prefix="keystone-simulate-") as work_dir:
        progress.say(f"{plan.eps:,.0f} events/s from {plan.devices:,} devices to {url} ({plan.partitions} partitions), seed {plan.seed}")
        warm()
        if given["epoch_ms"] is None and given["seed"] is None:  # else the last hour shows nothing, and a second run repeats ids of the first
            plan = plan.model_copy(update={"epoch_ms": int(time.time() * 1_000)})
        totals, start_ms = _drive(given, config, plan, str(url), work_dir, progress, stop)
        return _end(given, plan, totals, start_ms)


def _partitions(url: Any, config: Any) -> int:
    """How many the log has; it is made where it may be. ``UsageError`` where it cannot be written."""
    from keystone.log.kafka import KafkaLog
    from keystone.log.url import KafkaUrl, open_embedded

    if isinstance(url, KafkaUrl):
        with closing(KafkaLog.open(url, config.kafka, action="write", role="simulate")) as topic:
            return topic.partitions
    with closing(open_embedded(url, is_made=True)) as log:
        return log.partitions


def _plan(given: dict[str, Any], config: Any, partitions: int) -> Any:
    """``UsageError`` where the figures do not go together."""
    from keystone.sim.plan import FleetPlan

    detection = config.detection
    shares = {"bad_path_share": given["bad_paths"], "weak_path_share": given["weak_paths"]}
    chosen = {name: figure for name, figure in {**shares, "epoch_ms": given["epoch_ms"]}.items() if figure is not None}
    return FleetPlan(
        eps=given["eps"],
        seconds=given["seconds"] or FOREVER_S,
        devices=given["devices"] or max(DEVICES_MIN, int(given["eps"] * DEVICE_SECONDS)),
        seed=DEFAULT_SEED if given["seed"] is None else given["seed"],
        partitions=partitions,
        loop_threshold=detection.loop_threshold,
        open_stall_ms=detection.open_stall_ms,
        ladder_kbps=detection.ladder_kbps,
        **chosen,
    )


def _drive(given: dict[str, Any], config: Any, plan: Any, url: str, work_dir: str, progress: Any, stop: Any) -> tuple[Any, float]:
    """Run the devices in a thread of this process; their totals, and when the schedule began (wall time, ms)."""
    from keystone.actors.fleet import FleetActor, FleetSpec
    from keystone.actors.loop import FAILED, FINISHED, READY, RUNNING
    from keystone.errors import KeystoneError

    spec = FleetSpec("fleet", tuple(range(plan.partitions)), url, work_dir, plan, config.kafka, given["one_event_per_record"])
    fleet = FleetActor(spec)
    fleet.begin()
    start_ms, is_started, is_ending = 0.0, False, False
    while True:
        status = fleet.status()
        if status["state"] == FINISHED:
            return fleet.result(), start_ms
        if status["state"] == FAILED:
            raise KeystoneError(status["error"])
        if not is_started and status["state"] in (READY, RUNNING):
            start_ms, is_started = time.time() * 1_000 + START_AHEAD_MS, True
            fleet.go(start_ms)
        if stop.is_asked() and not is_ending:
            is_ending = True
            fleet.finish()
        if is_started:
            _show(progress, plan, status, start_ms)
        time.sleep(LOOK_EVERY_S)


def _show(progress: Any, plan: Any, status: dict[str, Any], start_ms: float) -> None:
    at_s = max(0.0, time.time() - start_ms / 1_000)
    length = "" if plan.seconds >= FOREVER_S else f"/{plan.seconds:.0f}"
    delay = status["send_delay_p99_ms"]
    progress.show(
        at_s,
        {
            "time": f"{at_s:.0f}{length} s",
            "sent": f"{status['events']:,}",
            "acknowledged": f"{status['acknowledged']:,}",
            "failed": f"{status['failed']:,}",
            "unknown": f"{status['unknown']:,}",
            "events/s": f"{status['events'] / max(at_s, 0.1):,.0f}",
            "send delay p99": "-" if delay is None else f"{delay:,.1f} ms",
        },
    )


def _end(given: dict[str, Any], plan: Any, totals: Any, start_ms: float) -> int:
    """Write the truth, print the ledger; the exit status."""
    if given["truth"] is not None:
        from keystone.bench.collect import TRUTH_COLUMNS, read_truth

        truth = read_truth([totals], start_ms, plan.epoch_ms)
        truth.select(TRUTH_COLUMNS).write_parquet(Path(given["truth"]))
        click.echo(f"truth: {truth.height:,} expected alerts in {given['truth']}")
    click.echo(f"intended {totals.events:,} = acknowledged {totals.acknowledged:,} + failed {totals.failed:,} + unknown {totals.unknown:,}")
    p99 = totals.delays.quantile(0.99) if totals.events else None
    click.echo(f"{totals.bytes / 1e6:,.0f} MB, {totals.sessions:,} sessions; send delay p99 {'-' if p99 is None else f'{p99:,.1f} ms'}")
    if reasons := ", ".join(f"{name} {count:,}" for name, count in sorted(totals.reasons.items())):
        click.echo(f"not acknowledged, records by reason: {reasons}", err=True)
    return 0 if totals.acknowledged == totals.events else EXIT_FAIL
