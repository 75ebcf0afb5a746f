"""``keystone score``: actions in a topic against the truth that ``simulate`` wrote."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import click

from keystone.errors import UsageError
from keystone.run.options import CONTEXT, check_target, config_options, load_config

EXIT_FAIL: Final = 1


@click.command("score", context_settings=CONTEXT)
@click.option("--truth", type=click.Path(exists=True, dir_okay=False), required=True, help="What simulate --truth wrote.")
@click.option("--actions", required=True, metavar="URL", help="kafka://HOST[:PORT][,...][/TOPIC]")
@click.option("--json", "json_file", type=click.Path(dir_okay=False), default=None, help="Write the result here too.")
@config_options
def score_command(**given: Any) -> None:
    """Compare a topic's actions with a simulation's truth: missed, false, doubled, and how long each took.

    An action's time is the broker's append time of its record. Exit status: 0, or 1 where an alert is missed, false, doubled or late,
    or 2 where something must be changed.
    """
    from keystone import logs

    config = load_config(given["config_file"], given["settings"])
    with closing(logs.configure(config.logs)):
        sys.exit(_score(given, config))


def _score(given: dict[str, Any], config: Any) -> int:
    import polars as pl

    from keystone.bench.latency import ALERT_KEY, PROMISE_MS, quantiles, score

    check_target("--json", given["json_file"])
    truth = _truth(given["truth"], {*ALERT_KEY, "intended_ms"})
    alerts = _actions(given["actions"], config)
    found = score(truth, alerts)
    keys = list(ALERT_KEY)
    first = alerts.group_by(keys).agg(pl.col("visible_ms").min())
    took = truth.join(first, on=keys, how="inner", nulls_equal=True).select((pl.col("visible_ms") - pl.col("intended_ms")).alias("ms"))["ms"]
    latency = quantiles(took.to_numpy())
    within = float((took <= PROMISE_MS).sum()) / found.expected if found.expected else 1.0
    result = {"truth": found.as_dict(), "within_3s": within, "latency_ms": {"end_to_end": latency.as_dict()}}
    if given["json_file"] is not None:
        _write(Path(given["json_file"]), result)
    click.echo(", ".join(f"{count:,} {name}" for name, count in found.as_dict().items()) + f"; within 3 s: {within:.4%}")
    click.echo("end to end, ms: " + ", ".join(f"{name} {value:,.1f}" for name, value in latency.as_dict().items() if isinstance(value, float)))
    is_right = not (found.missed or found.false or found.duplicate) and within == 1.0
    return 0 if is_right else EXIT_FAIL


def _truth(path: str, columns: set[str]) -> Any:
    import polars as pl

    try:
        truth = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError):
        truth = pl.DataFrame()
    if not columns <= set(truth.columns):
        raise UsageError(f"--truth {path}: is not what simulate --truth writes")
    return truth


def _actions(text: str, config: Any) -> Any:
    """Every action of a topic, with the time of its record."""
    import polars as pl

    from keystone.log.kafka import KafkaLog
    from keystone.log.url import KafkaUrl, parse_log_url
    from keystone.sinks.kafka import read_json

    url = parse_log_url(text, topic=config.kafka.actions_topic)
    if not isinstance(url, KafkaUrl):
        raise UsageError(f"--actions {text}: actions are scored from a topic: write it as kafka://HOST[:PORT]/keystone-actions")
    with closing(KafkaLog.open(url, config.kafka, action="read", role="score")) as topic:
        found = read_json(topic, topic.start_offsets())
    schema = {"device_id": pl.String, "session_id": pl.String, "kind": pl.String, "event_ts": pl.Int64, "seq": pl.Int64, "visible_ms": pl.Float64}
    return pl.DataFrame([{name: action.get(name) for name in schema} for action in found], schema=schema)


def _write(path: Path, result: dict[str, Any]) -> None:
    import orjson

    path.write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
