"""What ``run`` was told, and what it did: for a run that is watched, and for one that goes on by itself."""

from __future__ import annotations

from typing import Any, Final

PROMISE_MS: Final = 3_000.0  # from append to visible here: when devices meant to send is not known to a run


def options_of(given: dict[str, Any], config: Any) -> Any:
    """Places as the command line says them, else the configuration."""
    from keystone.config import origin_of_routes
    from keystone.run.places import Options

    names = ("log", "lake", "actions", "dead_letters", "state", "lake_format", "elastic")
    return Options(
        **{name: given[name] if given[name] is not None else getattr(config.run, name) for name in names},
        begin=given["begin"],
        origin=origin_of_routes(given["config_file"]),
    )


def report_of(result: Any, places: Any, config: Any) -> dict[str, Any]:
    """What a run did, as it is written by --report."""
    from keystone.run.service import failures

    return {
        "log": str(places.log),
        "actions": places.actions,
        "partitions": places.partitions,
        "start_offsets": places.start_offsets,
        "next_offsets": result.next_offsets,
        "seconds": round(result.seconds, 3),
        "ledger": result.ledger.as_dict(),
        "alerts": result.alerts,
        "sessions": result.sessions,
        "session_rows": result.session_rows,
        "lake_rows": result.lake_rows,
        "dead_letters": result.dead_letters,
        "dead_letters_run": places.output.run or None,
        "dead_letters_not_kept": result.dead_letters_not_kept,
        "gaps": result.gaps,
        "gap_list": result.gap_list,
        "latency_ms": {"detect": result.detect.summary()},
        "within_3s": result.detect.share_within(PROMISE_MS),
        "log_metrics": result.log_metrics,
        "restarts": result.restarts,
        "fenced_writes": result.fenced_writes,
        "recoveries": result.recoveries,
        "checkpoints": result.checkpoints,
        "commits": result.commits,
        "routing": result.routing,
        "cohorts": result.cohorts,
        "failures": failures(result),
        "config": config.model_dump(mode="json"),
    }
