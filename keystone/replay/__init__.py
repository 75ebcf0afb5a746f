"""``keystone replay``: files of events through the same engine as the stream, as fast as it goes."""

from keystone.replay.command import replay_command

__all__ = ["replay_command"]
