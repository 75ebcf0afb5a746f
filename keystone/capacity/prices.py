"""What machines and services cost: a small table with its date and source, or a file of the user's of the same form."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from keystone.errors import UsageError

KEPT: Final = Path(__file__).parent / "prices.toml"
HOURS_A_MONTH: Final = 730.0  # 365 days of 24 h, by twelve: as clouds count


@dataclass(frozen=True, slots=True)
class Instance:
    """A type of machine. ``network_mbit_s``: what it may send, and receive, all the time; bursts are more."""

    name: str
    vcpus: int
    memory_gib: float
    network_mbit_s: float
    usd_per_hour: float

    @property
    def network_mb_s(self) -> float:
        return self.network_mbit_s / 8

    @property
    def usd_per_month(self) -> float:
        return self.usd_per_hour * HOURS_A_MONTH


@dataclass(frozen=True, slots=True)
class Storage:
    """Dollars. ``zone_gb``: a GB from one availability zone to another, both sides together."""

    s3_gb_month: float
    s3_put_per_1000: float
    s3_get_per_1000: float
    disk_gb_month: float
    disk_mb_s_month: float
    disk_mb_s_included: float
    disk_gb_max: float
    zone_gb: float


@dataclass(frozen=True, slots=True)
class Prices:
    date: str
    source: str
    storage: Storage
    instances: Mapping[str, Instance]

    def instance(self, name: str, option: str) -> Instance:
        """``UsageError`` for a type that the table does not have."""
        if name not in self.instances:
            raise UsageError(f"{option} {name}: not in the price table, which has {', '.join(sorted(self.instances))}: choose one, or add it by --prices FILE")
        return self.instances[name]


def load(path: str | None) -> Prices:
    """A table of the user's, or the kept one. ``UsageError`` names what is wrong in it."""
    where = f"--prices {path}" if path is not None else str(KEPT)
    try:
        found = tomllib.loads(Path(path or KEPT).read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{where}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{where}: is not TOML: {error}") from error
    date, source, storage, instances = (found.pop(name, None) for name in ("date", "source", "storage", "instances"))
    if found:
        raise UsageError(f"{where}: {next(iter(found))} is unknown: a table has date, source, [storage] and [instances.NAME]")
    if not isinstance(source, str) or date is None:
        raise UsageError(f"{where}: needs date and source: prices without them say nothing")
    if not isinstance(storage, dict) or not isinstance(instances, dict) or not instances:
        raise UsageError(f"{where}: needs [storage] and at least one [instances.NAME]")
    costs = Storage(**_numbers(storage, Storage, f"{where}: [storage]"))
    return Prices(str(date), source, costs, {name: _instance(name, told, where) for name, told in instances.items()})


def _instance(name: str, told: Any, where: str) -> Instance:
    place = f"{where}: [instances.{name}]"
    if not isinstance(told, dict):
        raise UsageError(f"{place} must be a table")
    figures = _numbers(told, Instance, place)
    if any(value <= 0 for value in figures.values()):
        raise UsageError(f"{place}: every figure must be above 0")
    if figures["vcpus"] != int(figures["vcpus"]):
        raise UsageError(f"{place}: vcpus must be a whole number")
    return Instance(name=name, vcpus=int(figures.pop("vcpus")), **figures)


def _numbers(told: dict[str, Any], kind: type[Storage | Instance], place: str) -> dict[str, float]:
    wanted = {field.name for field in fields(kind)} - {"name"}
    if unknown := sorted(set(told) - wanted):
        raise UsageError(f"{place}: {unknown[0]} is unknown, known are {', '.join(sorted(wanted))}")
    if missing := sorted(wanted - set(told)):
        raise UsageError(f"{place}: {missing[0]} is missing")
    for name, value in told.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise UsageError(f"{place}: {name} = {value!r} must be a number of at least 0")
    return {name: float(value) for name, value in told.items()}
