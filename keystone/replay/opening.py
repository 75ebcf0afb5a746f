"""The replay that a specification tells of."""

from __future__ import annotations

from keystone.replay.engine import FileReplay, Replay, ReplaySpec
from keystone.replay.log_replay import LogReplay


def open_replay(spec: ReplaySpec) -> Replay:
    """Of files, or of a log."""
    return LogReplay(spec) if spec.log else FileReplay(spec)
