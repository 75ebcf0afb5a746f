"""Keystone: streaming playback telemetry, from devices to judged alerts and a Parquet lake."""

__version__ = "0.1.0"
