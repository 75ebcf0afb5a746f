"""``keystone plan``: what a load takes of machines, brokers, a bucket and a search server, and what that costs a month."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from keystone.run.options import CONTEXT, check_target, config_options, load_config

if TYPE_CHECKING:
    from keystone.capacity.rates import Rates

MEASURED_FILE: Final = "keystone-rates.json"


@click.command("plan", context_settings=CONTEXT)
@click.option("--eps", type=float, default=1_000_000.0, help="Events a second, of the busiest minute.")
@click.option("--devices", type=int, default=None, help="Devices playing at once.  [default: 5 x eps]")
@click.option("--log", "log", type=click.Choice(["embedded", "kafka"]), default="kafka", help="Where events come from.")
@click.option("--bytes-per-event", "event_bytes", type=float, default=None, help="Of JSON.  [default: as measured]")
@click.option("--codec", type=click.Choice(["none", "gzip", "snappy", "lz4", "zstd"]), default=None, help="Of the log.  [default: kafka.codec]")
@click.option("--replication", type=int, default=3, help="Replicas on the brokers.")
@click.option("--headroom", type=float, default=0.3, help="Share of every core, link and disk that is to stay free.")
@click.option("--retention-hours", type=float, default=24.0, help="How long brokers keep telemetry.")
@click.option("--zones", type=int, default=3, help="Availability zones of the brokers.")
@click.option("--lake-days", type=float, default=30.0, help="How long the lake is kept.")
@click.option("--index-days", type=float, default=7.0, help="How long the index is kept.")
@click.option("--no-index", is_flag=True, help="Without a search server.")
@click.option("--instance", default="c7i.4xlarge", metavar="TYPE", help="Machines of session actors.")
@click.option("--broker-instance", default="m7i.2xlarge", metavar="TYPE", help="Machines of brokers.")
@click.option("--index-instance", default="r7i.2xlarge", metavar="TYPE", help="Machines of the search server.")
@click.option("--rates", "rates_file", type=click.Path(dir_okay=False), default=None, help="A measured model.  [default: of this project's kept results]")
@click.option("--prices", "prices_file", type=click.Path(dir_okay=False), default=None, help="A price table.  [default: AWS list prices, us-east-1]")
@click.option("--here", is_flag=True, help="Plan for machines of this one's speed: all figures are scaled to it.")
@click.option("--kept", "is_kept", is_flag=True, help="Measure nothing here: what one machine sustains is told of the model's own.")
@click.option(
    "--measure", "measured_file", is_flag=False, flag_value=MEASURED_FILE, default=None, metavar="[FILE]",
    help=f"Bench this machine for about a minute, write its model to FILE ({MEASURED_FILE}), and plan with it.",
)  # fmt: skip
@click.option("--json", "json_file", type=click.Path(dir_okay=False), default=None, help="Write the plan here too ('-': stdout, and no tables).")
@config_options
def plan_command(**given: Any) -> None:
    """Plan capacity from a measured model: actors, machines, brokers, bucket, index and cost, with every assumption.

    It also tells what this machine sustains with devices and brokers on it, which is what the bench's --search looks for: its speed is measured for
    that, in a quarter of a minute.
    """
    from keystone.capacity.demand import EVENT_S, Demand
    from keystone.capacity.model import plan
    from keystone.capacity.prices import load as load_prices
    from keystone.run.plan_view import as_json, show

    config = load_config(given["config_file"], given["settings"])
    names = (
        "eps", "log", "event_bytes", "replication", "headroom", "retention_hours", "zones", "lake_days", "index_days", "instance", "broker_instance",
        "index_instance",
    )  # fmt: skip
    chosen = {name: given[name] for name in names}
    devices = given["devices"] if given["devices"] is not None else max(1, round(min(given["eps"], 1e12) * EVENT_S)) if given["eps"] > 0 else 1
    demand = Demand(devices=devices, codec=given["codec"] or config.kafka.codec, has_index=not given["no_index"], **chosen)
    demand.check()
    prices = load_prices(given["prices_file"])
    if given["json_file"] != "-":
        check_target("--json", given["json_file"])
    rates = _rates(given)
    made = plan(demand, rates, prices, config)  # refused, where it is, before anything is measured
    if (ours := _ours(given, rates)) is not None:
        made = plan(demand, rates, prices, config, ours)
    if given["json_file"] == "-":
        sys.stdout.buffer.write(as_json(made))
        return
    if given["json_file"] is not None:
        Path(given["json_file"]).write_bytes(as_json(made))
    show(made)


def _ours(given: dict[str, Any], rates: Rates) -> Rates | None:
    """The kept model at the speed of this machine; None where ``rates`` tell of the machine that is meant."""
    if given["is_kept"] or given["here"] or given["rates_file"] is not None or given["measured_file"] is not None:
        return None
    from keystone.run.plan_measure import here

    return here(rates)


def _rates(given: dict[str, Any]) -> Rates:
    """The model to plan with: kept or given, measured here, or scaled to here."""
    from keystone.capacity.rates import load
    from keystone.errors import UsageError

    chosen = [name for name, value in (("--rates", given["rates_file"]), ("--measure", given["measured_file"])) if value is not None]
    if len(chosen) > 1 or (given["here"] and given["measured_file"] is not None):
        raise UsageError("--measure makes a model of this machine by itself: leave out --rates and --here")
    rates = load(given["rates_file"])
    if given["measured_file"] is not None:
        from keystone.run.plan_measure import measure

        check_target("--measure", given["measured_file"])
        return measure(rates, Path(given["measured_file"]))
    if given["here"]:
        from keystone.run.plan_measure import here

        return here(rates)
    return rates
