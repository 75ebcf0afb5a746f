"""Keeping the tables small: snapshots expire, and files that no snapshot needs any more are deleted, late.

pyiceberg's expiry edits metadata and deletes no file. What it leaves behind, what lost commits and compactions leave, and
what an owner wrote and never came to commit, is found by listing the lake and reading its manifests. A file is
deleted only when it has been *seen* unreferenced for ``lake.orphan_age_ms``: its own age says nothing, because a file that
compaction replaced a second ago may be a year old, and somebody may be reading it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keystone import logs
from keystone.sinks.iceberg.chain import CHAIN_KEY, Link
from keystone.sinks.iceberg.columns import EVENTS
from keystone.sinks.iceberg.places import UNFINISHED, home_of
from keystone.sinks.iceberg.tables import ORDER, LakeTables

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata

SEEN_FILE: Final = "unreferenced.json"  # path -> when it was first seen to be in no snapshot, ms

_LOG: Final = logs.get(__name__)


@dataclass(slots=True)
class Swept:
    """What a sweep found. ``waiting``: unreferenced, and not old enough. ``left``: nothing of ours, or perhaps still to be committed."""

    deleted: int = 0
    bytes: int = 0
    waiting: int = 0
    left: int = 0


# --- snapshots ------------------------------------------------------------------------------------------------------
def expire(tables: LakeTables, *, keep: int | None = None) -> int:
    """Expire all but the newest snapshots of each table; returns how many. A table that somebody is changing waits for the next time."""
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    expired = 0
    for name in ORDER:
        table = tables.load(name)
        chosen = expirable(table.metadata, tables.config.snapshots_kept if keep is None else keep)
        if not chosen:
            continue
        try:
            table.maintenance.expire_snapshots().by_ids(chosen).commit()
            expired += len(chosen)
        except (CommitFailedException, ValidationException, ValueError) as error:
            _LOG.debug("snapshots were not expired", table=name, reason=str(error))
    return expired


def expirable(metadata: TableMetadata, keep: int) -> list[int]:
    """Those beyond the newest ``keep`` of the table's history, but not the newest that says what is committed, and none with a name."""
    from pyiceberg.table.snapshots import ancestors_of

    history = list(ancestors_of(metadata.current_snapshot(), metadata))
    kept = {snapshot.snapshot_id for snapshot in history[:keep]} | {ref.snapshot_id for ref in metadata.refs.values()}
    told = next((s.snapshot_id for s in history if s.summary is not None and CHAIN_KEY in s.summary.additional_properties), None)
    return [s.snapshot_id for s in metadata.snapshots if s.snapshot_id not in kept and s.snapshot_id != told]


# --- files ----------------------------------------------------------------------------------------------------------
def sweep(tables: LakeTables, now_ms: int, *, pending: Iterable[str] = ()) -> Swept:
    """Delete what has been unreferenced for long enough, of all tables. ``pending``: files of segments still to be committed.

    Even without ``pending`` no such file is deleted: those of log offsets that are not committed yet are left alone.
    """
    io = tables.load(EVENTS).io
    seen, swept = _read_seen(tables, io), Swept()
    kept_seen: dict[str, int] = {}
    spared = {tables.place.url(path) for path in pending}
    chain = tables.committed(EVENTS)
    for name in ORDER:
        found = {
            **tables.sizes_below(tables.place.metadata(name)),
            **tables.sizes_below(tables.place.data(name)),
        }  # before the table
        if name == EVENTS:
            found |= tables.sizes_below(tables.place.url(UNFINISHED))
        table = tables.load(name)
        needed = referenced(table)
        for url in sorted(set(found) - needed - spared):
            if not url.startswith(tables.place.url(UNFINISHED, "")) and not is_ours_to_delete(url, tables.place.metadata(name), chain):
                swept.left += 1
                continue
            since = seen.get(url, now_ms)
            if now_ms - since < tables.config.orphan_age_ms:
                kept_seen[url] = since
                swept.waiting += 1
            else:
                table.io.delete(url)
                swept.deleted += 1
                swept.bytes += found[url]
    _write_seen(tables, io, kept_seen)
    if tables.place.is_bucket:
        _remove_drafts(home_of(tables.place, tables.config) / UNFINISHED, now_ms - tables.config.orphan_age_ms)
    return swept


def _remove_drafts(folder: Path, before_ms: int) -> None:
    """What compactions that were killed before their upload left on this machine."""
    for path in folder.glob("*.parquet"):
        with contextlib.suppress(FileNotFoundError):  # it was uploaded meanwhile
            if path.stat().st_mtime * 1_000 < before_ms:
                path.unlink()


def is_ours_to_delete(url: str, metadata_url: str, chain: Mapping[int, Link]) -> bool:
    """Whether an unreferenced file can be needed by nobody to come. Data: those that begin among committed offsets.

    A segment that is still to be committed begins where the chain ends or later, and so does every file of it.
    """
    from keystone.sinks.iceberg.files import parse_name

    if url.startswith(metadata_url + "/"):
        return url.endswith((".avro", ".metadata.json"))
    named = parse_name(url)
    if named is None or named[0] not in chain:
        return False
    partition, first, _ = named
    return first < chain[partition].next_offset


def referenced(table: Table) -> set[str]:
    """Every file that any snapshot of the table needs, and the metadata files that it names."""
    from pyiceberg.utils.concurrent import ExecutorFactory

    metadata = table.metadata
    needed = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    needed |= {statistics.statistics_path for statistics in metadata.statistics}
    manifests = {}
    for snapshot in metadata.snapshots:
        needed.add(snapshot.manifest_list)
        manifests.update({manifest.manifest_path: manifest for manifest in snapshot.manifests(table.io)})
    needed |= set(manifests)
    for entries in ExecutorFactory.get_or_create().map(lambda manifest: manifest.fetch_manifest_entry(table.io), manifests.values()):
        needed |= {entry.data_file.file_path for entry in entries}
    return needed


def _read_seen(tables: LakeTables, io: FileIO) -> dict[str, int]:
    """Nothing, where the file is lost or no such file: everything waits anew."""
    try:
        with io.new_input(tables.place.url("metadata", SEEN_FILE)).open() as stream:
            found = json.loads(stream.read())
    except (OSError, ValueError):
        return {}
    return {str(url): since for url, since in found.items() if isinstance(since, int)} if isinstance(found, dict) else {}


def _write_seen(tables: LakeTables, io: FileIO, seen: Mapping[str, int]) -> None:
    with io.new_output(tables.place.url("metadata", SEEN_FILE)).create(overwrite=True) as stream:
        stream.write(json.dumps(seen, indent=0).encode())
