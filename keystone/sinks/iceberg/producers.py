"""How snapshots are made: pyiceberg's producers, kept from its two dangers. Rests on private parts of pyiceberg 0.12.

A commit that loses a race is repeated on the refreshed table. pyiceberg's append then looks at nothing: whoever was
replaced in the meantime appends its files a second time. Ours compares the refreshed chain with the one it planned on.

And a commit that is reported as failed makes pyiceberg delete the manifests it wrote, on the last try even where the
commit did land, as when only the answer was lost: the table's current snapshot then names files that are gone, and nobody
can read it. Ours deletes nothing. What is left behind is swept as unreferenced, once it is old enough (``upkeep``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pyiceberg.exceptions import ValidationException
from pyiceberg.table.snapshots import Operation, Summary, ancestors_of
from pyiceberg.table.update.snapshot import _MergeAppendFiles, _OverwriteFiles, _SnapshotProducer
from pyiceberg.table.update.validate import _validate_data_files_exist, _validate_no_new_deletes_for_data_files

from keystone.errors import LakeDamaged
from keystone.sinks.iceberg.chain import ADDED_KEY, CHAIN_KEY, COMMITTER_KEY, Link, chain_of
from keystone.sinks.iceberg.durable import sync

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.update import UpdatesAndRequirements


class ChainMoved(ValidationException):
    """Somebody else committed segments since this commit was planned."""


@dataclass(frozen=True, slots=True)
class Head:
    """What the newest snapshot that says anything of it says of the chain. ``text``: as it stands there."""

    chain: Mapping[int, Link] = field(default_factory=dict)
    committer_epoch: int = 0
    text: str = ""


def head_of(metadata: TableMetadata) -> Head:
    """Of a table as it was loaded. Snapshots of other writers say nothing and are passed over.

    Raises ``LakeDamaged`` where all snapshots that said it are gone: to begin anew would commit everything again.
    """
    current = metadata.current_snapshot()
    for snapshot in ancestors_of(current, metadata):
        found = snapshot.summary.additional_properties if snapshot.summary is not None else {}
        if CHAIN_KEY in found:
            text = found[CHAIN_KEY]
            return Head(chain_of(text), int(found.get(COMMITTER_KEY, "0")), text)
    if current is not None:
        count = len(metadata.snapshots)
        raise LakeDamaged(f"{metadata.location}: none of its {count} snapshots says what is committed: another program removed those that did")
    return Head()


class _Careful(_SnapshotProducer[Any]):
    """Deletes nothing, and waits for the disk."""

    def _clean_all_uncommitted(self) -> None:
        """The commit may have landed all the same."""

    def _cleanup_uncommitted(self) -> None:
        """Of an earlier try, which may have landed, been built upon, and expired."""

    def _commit(self) -> UpdatesAndRequirements:
        staged = super()._commit()
        sync((*self._written_manifests, *self._written_manifest_lists[-1:]))
        return staged


class _ChainAppend(_Careful, _MergeAppendFiles):
    planned_on: Head

    def _validate_concurrency(self) -> None:
        """Asked before each repetition, with the refreshed table. Others' changes, such as a compaction, are no matter."""
        if head_of(self._transaction._table.metadata) != self.planned_on:  # noqa: SLF001 - where producers look, too
            raise ChainMoved("the chain has moved since this commit was planned")


class _Replace(_Careful, _OverwriteFiles):
    """Other files with the same rows. Whatever is appended meanwhile stays, and the chain is the parent's as it is then."""

    def _refresh_for_retry(self) -> None:
        super()._refresh_for_retry()
        self.snapshot_properties = inherited(self._transaction._table.metadata)  # noqa: SLF001

    def _validate_concurrency(self) -> None:
        """Serializable isolation would refuse any concurrent append. The rows are the same, so only deletions matter."""
        window = self._commit_window
        if window is None or window.is_empty() or window.head is None or window.base is None:
            return
        table = self._transaction._table  # noqa: SLF001
        _validate_data_files_exist(table, window.head, self._deleted_data_files, window.base)
        _validate_no_new_deletes_for_data_files(table, window.head, None, self._deleted_data_files, window.base)

    def _summary(self, snapshot_properties: Mapping[str, str] | None = None) -> Summary:
        summary = super()._summary(dict(snapshot_properties or {}))
        # Who follows appends passes over replacements. pyiceberg adds up totals of overwrites only, so it is renamed afterwards.
        return Summary(Operation.REPLACE, **summary.additional_properties)


def inherited(metadata: TableMetadata) -> dict[str, str]:
    """What a snapshot without segments says of the chain: the same as before."""
    head = head_of(metadata)
    return {CHAIN_KEY: head.text, COMMITTER_KEY: str(head.committer_epoch)} if head.text else {}


def append(table: Table, files: list[DataFile], planned_on: Head, chain: str, added: str, committer_epoch: int) -> None:
    """Commit one snapshot that adds ``files`` (or none) and moves the chain from ``planned_on``, which was read from ``table``.

    Returns when it is committed. Raises ``ChainMoved`` where it is not and must be planned anew; anything else: unknown.
    """
    said = {CHAIN_KEY: chain, ADDED_KEY: added, COMMITTER_KEY: str(committer_epoch)}
    transaction = table.transaction()
    producer = _ChainAppend(Operation.APPEND, transaction, table.io, snapshot_properties=said)
    producer.planned_on = planned_on
    for file in files:
        producer.append_data_file(file)
    producer.commit()  # stages: the table is still as it was
    transaction.commit_transaction()


def replace(table: Table, old: list[DataFile], new: list[DataFile]) -> None:
    """Commit one snapshot with ``new`` in place of ``old``. Raises what pyiceberg raises; then the outcome is unknown."""
    transaction = table.transaction()
    producer = _Replace(Operation.OVERWRITE, transaction, table.io, snapshot_properties=inherited(table.metadata))
    for file in old:
        producer.delete_data_file(file)
    for file in new:
        producer.append_data_file(file)
    producer.commit()
    transaction.commit_transaction()
