"""From a load and a measured model to a plan: every section, the machines, the bill, and what it all rests on. Pure."""

from __future__ import annotations

from keystone.capacity.demand import Demand
from keystone.capacity.lines import Plan, Section, ceil
from keystone.capacity.prices import HOURS_A_MONTH, Instance, Prices
from keystone.capacity.rates import FIGURES, LOGS, Rates
from keystone.capacity.services import COMMIT_GETS, COMMIT_PUTS, INDEX_DISK_OF_MEMORY, bucket_section, index_section, kafka_section
from keystone.capacity.sustained import sustained
from keystone.capacity.work import event_bytes, fleet_section, sessions_section
from keystone.config import Config
from keystone.errors import UsageError

MEMORY_SHARE = 0.8  # of a machine's memory; the rest is the system's, and page cache
MONTH_S = HOURS_A_MONTH * 3_600


def plan(demand: Demand, rates: Rates, prices: Prices, config: Config, ours: Rates | None = None) -> Plan:
    """``UsageError`` where the load cannot be carried as asked: a type of machine that is not there, an embedded log on many machines.

    ``ours``: the model of this machine, where it is not the one to plan with; what this machine sustains is told by it.
    """
    demand.check()
    rates = rates.resized(event_bytes(demand, rates) / rates["event_bytes"])
    instance = prices.instance(demand.instance, "--instance")
    sessions = sessions_section(demand, rates, config)
    fleet = fleet_section(demand, rates)
    has_kafka = demand.log == "kafka"
    kafka = kafka_section(demand, rates, prices.instance(demand.broker_instance, "--broker-instance"), prices.storage) if has_kafka else None
    bucket = bucket_section(demand, rates, config, int(sessions["partitions"]))
    index = index_section(demand, rates, prices.instance(demand.index_instance, "--index-instance")) if demand.has_index else None
    nodes = _nodes(demand, rates, instance, sessions, kafka, bucket, index)
    cost = _cost(demand, prices, nodes, kafka, bucket, index)
    if ours is None:
        machine = machine_section("one machine", rates, demand.eps)
    else:
        machine = machine_section("this machine", ours.resized(event_bytes(demand, ours) / ours["event_bytes"]), demand.eps)
    sections = tuple(section for section in (sessions, kafka, bucket, index, nodes, cost, fleet, machine) if section is not None)
    return Plan(demand.as_dict(), sections, _notes(demand, nodes), _assumptions(demand, rates, prices))


def _nodes(
    demand: Demand, rates: Rates, instance: Instance, sessions: Section, kafka: Section | None, bucket: Section, index: Section | None
) -> Section:  # fmt: skip
    found = Section("machines")
    share = 1 - demand.headroom
    cores = instance.vcpus - rates[f"{demand.log}_other_base_cores"]
    if cores <= 0:
        raise UsageError(f"--instance {instance.name} has too few cores for Ray alone: choose a larger one")
    into = kafka["kafka_out"] if kafka is not None else 0.0
    by = {
        "cores": ceil(sessions["session_cores"] / cores),
        "memory": ceil(sessions["session_gib"] / (instance.memory_gib * MEMORY_SHARE)),
        "network": ceil(max(into, bucket["bucket_writes"]) / (instance.network_mb_s * share)),
    }
    needed = max(1, *by.values())
    why = f"{instance.name}, by {max(by, key=lambda name: by[name])}: " + ", ".join(f"{name} {n}" for name, n in by.items())
    if kafka is None and needed > 1:
        raise UsageError(
            f"the embedded log serves one machine, and {demand.eps:,.0f} events/s need {needed} of {instance.name}: --log kafka, or a larger --instance"
        )
    found.add("session_nodes", "for session actors", needed, "nodes", why)
    parts = ["session_nodes"]
    if kafka is not None:
        found.add("spare_nodes", "spare", 1, "nodes", f"{instance.name}: where actors of a lost machine go on")
        found.add("broker_nodes", "for brokers", kafka["brokers"], "nodes", demand.broker_instance)
        parts += ["spare_nodes", "broker_nodes"]
    if index is not None:
        found.add("search_nodes", "for the index", index["index_nodes"], "nodes", demand.index_instance)
        parts.append("search_nodes")
    found.total("nodes", "machines", tuple(parts))
    return found


def _cost(demand: Demand, prices: Prices, nodes: Section, kafka: Section | None, bucket: Section, index: Section | None) -> Section:
    found, storage = Section("cost"), prices.storage
    instance = prices.instances[demand.instance]
    ours = nodes["session_nodes"] + (nodes["spare_nodes"] if kafka is not None else 0)
    found.add("session_usd", "session actors' machines", ours * instance.usd_per_month, "$/month", _of(ours, instance))
    parts = ["session_usd"]
    if kafka is not None:
        parts += _kafka_cost(found, demand, prices, kafka)
    held = bucket["lake_gb"] + bucket["state_gb"]
    found.add("bucket_usd", "S3 storage", held * storage.s3_gb_month, "$/month", f"${storage.s3_gb_month:g} a GB")
    requests = (bucket["puts"] * storage.s3_put_per_1000 + bucket["gets"] * storage.s3_get_per_1000) * MONTH_S / 1_000
    why = f"${storage.s3_put_per_1000:g} per 1,000 PUT or LIST, ${storage.s3_get_per_1000:g} per 1,000 GET"
    found.add("requests_usd", "S3 requests", requests, "$/month", why)
    parts += ["bucket_usd", "requests_usd"]
    if index is not None:
        machine = prices.instances[demand.index_instance]
        found.add("index_usd", "the index's machines", index["index_nodes"] * machine.usd_per_month, "$/month", _of(index["index_nodes"], machine))
        found.add("index_disk_usd", "the index's disks", index["index_disk"] * storage.disk_gb_month, "$/month", f"${storage.disk_gb_month:g} a GB")
        parts += ["index_usd", "index_disk_usd"]
    found.total("usd", "in all", tuple(parts), f"{prices.source}, {prices.date}")
    return found


def _kafka_cost(found: Section, demand: Demand, prices: Prices, kafka: Section) -> list[str]:
    storage, machine = prices.storage, prices.instances[demand.broker_instance]
    found.add("brokers_usd", "brokers' machines", kafka["brokers"] * machine.usd_per_month, "$/month", _of(kafka["brokers"], machine))
    extra = max(0.0, kafka["kafka_writes"] - kafka["brokers"] * storage.disk_mb_s_included)
    disks = kafka["kafka_disk"] * storage.disk_gb_month + extra * storage.disk_mb_s_month
    why = f"${storage.disk_gb_month:g} a GB, ${storage.disk_mb_s_month:g} an MB/s above {storage.disk_mb_s_included:g} a disk"
    found.add("brokers_disk_usd", "brokers' disks", disks, "$/month", why)
    crossing = (demand.zones - 1) / demand.zones
    mb_s = (kafka["kafka_in"] + kafka["kafka_out"]) * crossing + (kafka["kafka_replication"] if demand.zones > 1 else 0.0)
    found.add("zones_usd", "between zones", mb_s / 1_000 * MONTH_S * storage.zone_gb, "$/month",
              f"{mb_s:,.0f} MB/s at ${storage.zone_gb:g} a GB: {crossing:.0%} of what is sent and read, every copy")  # fmt: skip
    return ["brokers_usd", "brokers_disk_usd", "zones_usd"]


def _of(count: float, instance: Instance) -> str:
    return f"{count:.0f} x {instance.name} at ${instance.usd_per_hour:g}/h"


def machine_section(machine: str, rates: Rates, eps: float) -> Section:
    """What the machine of the figures sustains by itself, devices and brokers on it."""
    found = Section(f"{machine} with everything on it")
    found.add("machine_cores", rates.machine, rates.cores, "cores", f"speed {rates.speed_events_per_s:,.0f} events/s a core")
    for log in LOGS:
        able = sustained(rates, log)
        fits = "enough for" if able.eps >= eps else "not enough for"
        found.add(f"sustained_{log}", f"sustains, {log}", able.eps, "events/s", f"limit: {able.limit}; {fits} {eps:,.0f}")
    return found


def _notes(demand: Demand, nodes: Section) -> tuple[str, ...]:
    notes = ["Fleet actors simulate devices: they are in no sum of cores, machines or cost."]
    if nodes["session_nodes"] > 1:
        notes.append("More than one machine for session actors is arithmetic from what one machine was measured to do; nothing here was run on several.")
    else:
        notes.append("One machine can keep its state on a disk of its own (--state DIR): that saves the LIST and PUT of epochs and checkpoints.")
    if demand.log == "embedded":
        notes.append("The embedded log is in memory: it survives any process, not a power cut.")
    return tuple(notes)


def _assumptions(demand: Demand, rates: Rates, prices: Prices) -> tuple[str, ...]:
    used = [name for name in FIGURES if not name.startswith("codec_ratio_") or name == f"codec_ratio_{demand.codec}"]
    speed = f"speed {rates.speed_events_per_s:,.0f} events/s a core, all of them busy (keystone/bench/speed.py)"
    size = f"{event_bytes(demand, rates):.0f} bytes of JSON, {rates['event_bytes']:.0f} where it was measured"
    lines = [
        f"Figures hold for {rates.machine}, {rates.cores} cores, {speed}; a vCPU counts as one of its cores.",
        f"An event has {size}: larger ones cost as much more CPU and lake, smaller ones no less.",
        f"{demand.headroom:.0%} of every core, link and disk stay free; of memory, {1 - MEMORY_SHARE:.0%}.",
        "The rate is even: plan with the busiest minute's.",
        "Kafka's replicas cost a broker as much again as the first; one group reads; actions and dead letters are small beside telemetry.",
        "State and lake are in the bucket; whoever queries the lake, joins its files or reads the index comes on top.",
        f"A commit takes {COMMIT_PUTS} PUT and {COMMIT_GETS} GET: counted from the tables' layout, not measured.",
        f"A node of the index holds {INDEX_DISK_OF_MEMORY} times its memory on disk, a rule of thumb for what is written and searched all the time.",
        f"Prices: {prices.source}, {prices.date}; no taxes, discounts, support, or traffic from the internet.",
    ]
    return (*lines, *(f"{name} = {rates[name]:g} ({FIGURES[name][0]}; {rates.source(name)})" for name in used))
