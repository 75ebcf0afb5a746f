"""Our own processes: actors, cores and memory that a load takes. Pure."""

from __future__ import annotations

from typing import Final

from keystone.capacity.demand import Demand
from keystone.capacity.lines import Section, ceil
from keystone.capacity.rates import Rates
from keystone.config import Config

MIB: Final = 1 << 20
GIB: Final = 1 << 30
HOUR_S: Final = 3_600
PARTITIONS_MIN: Final = 4
PARTITIONS_OF_AN_ACTOR: Final = 4  # whoever is lost leaves pieces of a quarter of an actor's load to the others
LOG_SECONDS: Final = 24  # of events that the embedded log holds, in memory: two checkpoint intervals and 4 s


def event_bytes(demand: Demand, rates: Rates) -> float:
    """Of JSON, as given or as measured."""
    return demand.event_bytes if demand.event_bytes is not None else rates["event_bytes"]


def documents(demand: Demand, rates: Rates) -> dict[str, float]:
    """Documents/s of the default routes to an index, by kind; none where there is no index."""
    if not demand.has_index:
        return {}
    return {
        "alerts": demand.devices * rates["alerts_per_device_hour"] / HOUR_S,
        "sessions": demand.devices * rates["sessions_closed_per_device_hour"] / HOUR_S,
        "cohorts": rates["cohort_rows_per_s"],
    }


def session_actors(demand: Demand, rates: Rates) -> int:
    """So many that no loop needs more of its core than headroom leaves."""
    return max(1, ceil(demand.eps * rates[f"{demand.log}_loop_busy_us"] / 1e6 / (1 - demand.headroom)))


def sessions_section(demand: Demand, rates: Rates, config: Config) -> Section:
    """Actors, partitions, cores and memory of whatever reads the log."""
    log, found = demand.log, Section("session actors")
    actors = session_actors(demand, rates)
    share = 1 - demand.headroom
    loop_us, busy_us, sessions_us = rates[f"{log}_loop_us"], rates[f"{log}_loop_busy_us"], rates[f"{log}_sessions_us"]
    partitions = max(PARTITIONS_MIN, actors * PARTITIONS_OF_AN_ACTOR)
    found.add("actor_rate", "one actor's loop sustains", 1e6 / busy_us, "events/s", f"one thread, {busy_us:.3f} us an event where it is busy")
    found.add("session_actors", "session actors", actors, "actors", f"each with a loop that is {100 * share:.0f} % busy at most")
    found.add("partitions", "partitions of the log", partitions, "partitions", f"{PARTITIONS_OF_AN_ACTOR} an actor: others share those of one that is lost")
    found.add("loop_cores", "cores for loops", demand.eps * loop_us / 1e6 / share, "cores", f"{loop_us:.3f} us an event, headroom {demand.headroom:.0%}")
    beside_us = sessions_us - loop_us
    found.add("beside_cores", "cores beside loops", demand.eps * beside_us / 1e6 / share, "cores", f"{beside_us:.3f} us: files, checkpoints, the committer")
    other_us = rates[f"{log}_other_us"]
    found.add("other_cores", "cores for Ray and cohorts", demand.eps * other_us / 1e6 / share, "cores", f"{other_us:.3f} us")
    rows_s, row_us = sum(documents(demand, rates).values()), rates["index_own_us"]
    found.add("rows_cores", "cores for rows to the index", rows_s * row_us / 1e6 / share, "cores", f"{row_us:.0f} us a document")
    base = rates[f"{log}_sessions_base_cores"]
    found.add("base_cores", "cores at any rate", actors * base, "cores", f"{base:.3f} an actor: polls and statuses")
    found.total("session_cores", "cores", ("loop_cores", "beside_cores", "other_cores", "rows_cores", "base_cores"))
    _memory(found, demand, rates, config, actors, partitions)
    return found


def _memory(found: Section, demand: Demand, rates: Rates, config: Config, actors: int, partitions: int) -> None:
    sessions = demand.devices * rates["sessions_per_device"]
    state, copy = rates["session_bytes"], rates["checkpoint_session_bytes"]
    lake = config.lake
    found.add("state_gib", "memory of sessions", sessions * state / GIB, "GiB", f"{state:.0f} B each, {rates['sessions_per_device']:.2f} open a device")
    found.add("copy_gib", "... of their copies", sessions * copy / GIB, "GiB", f"{copy:.0f} B each, where all partitions save at once")
    rows = partitions * lake.row_group_bytes_max + actors * lake.queue_bytes_max
    why = f"at most {lake.row_group_bytes_max >> 20} MiB a partition, {lake.queue_bytes_max >> 20} an actor"
    found.add("rows_gib", "... of rows before their file", rows / GIB, "GiB", why)
    base = rates["actor_base_mib"]
    found.add("actors_gib", "... of processes", actors * base / 1024, "GiB", f"{base:.0f} MiB each")
    if demand.log == "embedded":
        log = demand.eps * event_bytes(demand, rates) * LOG_SECONDS
        found.add("log_gib", "... of the log", log / GIB, "GiB", f"{LOG_SECONDS} s of events in shared memory")
    else:
        buffers = actors * (config.kafka.fetch_buffer_bytes_max + config.kafka.send_bytes_max)
        found.add("log_gib", "... of the log's buffers", buffers / GIB, "GiB", "kafka.fetch_buffer_bytes_max and send_bytes_max, an actor")
    found.total("session_gib", "memory", ("state_gib", "copy_gib", "rows_gib", "actors_gib", "log_gib"))


def fleet_section(demand: Demand, rates: Rates) -> Section:
    """Devices that are simulated: nobody needs these in production."""
    found = Section("simulation only: fleet actors")
    us, share = rates[f"{demand.log}_fleet_us"], 1 - demand.headroom
    fleets = max(1, ceil(demand.eps * us / 1e6 / share))
    found.add("fleet_actors", "fleet actors", fleets, "actors", f"one thread each, {us:.3f} us an event; real devices need none: in no sum below")
    base = rates[f"{demand.log}_fleet_base_cores"]
    cores = demand.eps * us / 1e6 / share + fleets * base
    found.add("fleet_cores", "cores", cores, "cores", f"headroom {demand.headroom:.0%}, {base:.3f} an actor at any rate")
    found.add("fleet_gib", "memory", demand.devices * rates["seat_bytes"] / GIB, "GiB", f"{rates['seat_bytes']:.0f} B a device, processes not counted")
    return found
