"""What a load takes of the services around: Kafka, a bucket, a search server. Pure."""

from __future__ import annotations

from typing import Final

from keystone.actors.leases import LOOK_EVERY_S
from keystone.capacity.demand import Demand
from keystone.capacity.lines import Section, ceil
from keystone.capacity.prices import Instance, Storage
from keystone.capacity.rates import Rates
from keystone.capacity.work import HOUR_S, documents, event_bytes
from keystone.config import Config
from keystone.errors import UsageError
from keystone.store_objects import PART_BYTES

DAY_S: Final = 86_400
#: Of a commit: in each of three tables a manifest, a list of them and the table's metadata are put; metadata, list and manifests are got.
COMMIT_PUTS: Final = 9
COMMIT_GETS: Final = 12
LISTS_OF_A_CHECKPOINT: Final = 3  # whether the partition is still ours, before and after; which old ones can go
PUTS_OF_A_PART: Final = 3  # at most, beyond a file's own: a part, and a multipart upload's beginning and end
INDEX_COPIES: Final = 2  # a primary and a replica
INDEX_NODES_MIN: Final = 3  # two that agree when one is lost
INDEX_DISK_OF_MEMORY: Final = 30  # GB of disk for each of memory: Elastic's advice for nodes that are written to all the time


def kafka_section(demand: Demand, rates: Rates, instance: Instance, storage: Storage) -> Section:
    """Bandwidth, brokers and disks. One group reads: ours."""
    found = Section("Kafka")
    size, ratio, share = event_bytes(demand, rates), rates[f"codec_ratio_{demand.codec}"], 1 - demand.headroom
    r = demand.replication
    into = found.add("kafka_in", "in, from producers", demand.eps * size / ratio / 1e6, "MB/s", f"{size:.0f} B an event, {demand.codec} packs {ratio:.2f} to 1")
    copies = found.add("kafka_replication", "replication, between brokers", into * (r - 1), "MB/s", f"{r} replicas")
    out = found.add("kafka_out", "out, to session actors", into, "MB/s", "read once")
    found.total("kafka_network", "through brokers' links", ("kafka_in", "kafka_replication", "kafka_out"))
    us, base = rates["kafka_broker_us"], rates["kafka_broker_base_cores"]
    if base >= instance.vcpus:
        raise UsageError(f"--broker-instance {instance.name} has too few cores for a broker alone: choose a larger one")
    why = f"{us:.3f} us an event and replica, headroom {demand.headroom:.0%}; besides, {base:.2f} cores a broker at any rate"
    cores = found.add("broker_cores", "cores", demand.eps * us / 1e6 * r / share, "cores", why)
    disk = found.add("kafka_disk", "disk", into * 1e6 * demand.retention_hours * HOUR_S * r / share / 1e9, "GB", f"{demand.retention_hours:g} h, {r} replicas")
    found.add("kafka_writes", "written to disk", into * r, "MB/s")
    busiest = max(into + copies, copies + out)  # a link has two directions
    by = {
        "replicas": r,
        "cores": ceil(cores / (instance.vcpus - base)),
        "network": ceil(busiest / (instance.network_mb_s * share)),
        "disk": ceil(disk / storage.disk_gb_max),
    }
    brokers = max(by.values())
    reason = max(by, key=lambda name: by[name])
    found.add("brokers", "brokers", brokers, "brokers", f"of {instance.name}, by {reason}: " + ", ".join(f"{name} {n}" for name, n in by.items()))
    found.add("broker_disk", "disk of each", disk / brokers, "GB")
    return found


def bucket_section(demand: Demand, rates: Rates, config: Config, partitions: int) -> Section:
    """The lake and the checkpoints in a bucket."""
    found = Section("S3")
    interval_s, commit_s = config.checkpoint.interval_ms / 1_000, config.lake.commit_interval_ms / 1_000
    each, files = rates["lake_event_bytes"], rates["files_per_checkpoint"]
    saved = demand.devices * rates["sessions_per_device"] * rates["checkpoint_session_bytes"]
    lake_bytes_s, state_bytes_s = demand.eps * each, saved / interval_s
    daily = found.add("lake_daily", "lake", lake_bytes_s * DAY_S / 1e9, "GB/day", f"{each:.1f} B an event, as Parquet")
    found.add("lake_gb", "lake, kept", daily * demand.lake_days, "GB", f"{demand.lake_days:g} days")
    found.add("state_gb", "checkpoints, kept", saved * config.checkpoint.keep / 1e9, "GB", f"{config.checkpoint.keep} of each partition")
    found.add("bucket_writes", "written", (lake_bytes_s + state_bytes_s) / 1e6, "MB/s", "lake and checkpoints")
    found.add("file_puts", "PUT of files", partitions * files / interval_s + PUTS_OF_A_PART * lake_bytes_s / PART_BYTES, "requests/s",
              f"{files:.2f} files a partition each {interval_s:g} s, parts of {PART_BYTES >> 20} MiB")  # fmt: skip
    found.add("commit_puts", "PUT of commits", COMMIT_PUTS / commit_s, "requests/s", f"{COMMIT_PUTS} each {commit_s:g} s: three tables")
    state_puts = partitions / interval_s + PUTS_OF_A_PART * state_bytes_s / PART_BYTES
    found.add("state_puts", "PUT of checkpoints", state_puts, "requests/s", f"one a partition each {interval_s:g} s, parts as above")
    found.add("state_lists", "LIST of epochs", partitions * (1 / LOOK_EVERY_S + LISTS_OF_A_CHECKPOINT / interval_s), "requests/s",
              f"whether a partition is still ours, each {LOOK_EVERY_S:g} s; priced as PUT")  # fmt: skip
    found.total("puts", "PUT and LIST", ("file_puts", "commit_puts", "state_puts", "state_lists"))
    found.add("gets", "GET", COMMIT_GETS / commit_s, "requests/s", f"{COMMIT_GETS} a commit; whoever reads the lake comes on top")
    return found


def index_section(demand: Demand, rates: Rates, instance: Instance) -> Section:
    """Documents of the default routes: alerts, sessions, cohorts."""
    found = Section("Elasticsearch")
    share = 1 - demand.headroom
    alerts, sessions = rates["alerts_per_device_hour"], rates["sessions_closed_per_device_hour"]
    told = documents(demand, rates)
    a = found.add("alert_documents", "alerts", told["alerts"], "documents/s", f"{alerts:.2f} a device and hour")
    s = found.add("session_documents", "sessions", told["sessions"], "documents/s", f"{sessions:.2f} a device and hour")
    c = found.add("cohort_documents", "cohorts", told["cohorts"], "documents/s", "whatever the rate: by the values of the dimensions")
    total = found.total("documents", "documents", ("alert_documents", "session_documents", "cohort_documents"))
    us = rates["index_server_us"]
    cores = found.add("index_cores", "cores", total * us / 1e6 * INDEX_COPIES / share, "cores", f"{us:.0f} us a document, {INDEX_COPIES} copies")
    size = a * rates["alert_document_bytes"] + (s + c) * rates["session_document_bytes"]
    disk = found.add("index_disk", "disk", size * DAY_S * demand.index_days * INDEX_COPIES / share / 1e9, "GB",
              f"{demand.index_days:g} days, {INDEX_COPIES} copies, as large as their JSON; a cohort's like a session's")  # fmt: skip
    by = {"at least": INDEX_NODES_MIN, "cores": ceil(cores / instance.vcpus), "disk": ceil(disk / (instance.memory_gib * INDEX_DISK_OF_MEMORY))}
    found.add("index_nodes", "nodes", max(by.values()), "nodes", f"of {instance.name}: " + ", ".join(f"{name} {n}" for name, n in by.items()))
    return found
