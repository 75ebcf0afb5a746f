"""The lake's tables: opened or made, committed to, and told what they hold.

A commit is three, one for each table: sessions and alerts first, then events, whose snapshot says what is committed. A
crash between them leaves files in the first tables that events do not know of yet; the next commit is planned on each table's
own chain, finds them there, and adds what is missing. So each segment is in each table exactly once, and all agree again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from keystone import logs
from keystone.config import LakeConfig
from keystone.errors import ChainBroken, Fenced, KeystoneError, LakeDamaged, SinkBusy, UsageError
from keystone.segments import Segment
from keystone.sinks.iceberg import chain as rules
from keystone.sinks.iceberg.chain import Link
from keystone.sinks.iceberg.columns import ALERTS, EVENTS, SESSIONS
from keystone.sinks.iceberg.places import NAMESPACE, Place, lost_line, open_catalog, place_of

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from keystone.sinks.iceberg.producers import Head

ORDER: Final = (SESSIONS, ALERTS, EVENTS)
TRIES_MAX: Final = 5  # of one commit, each after a look at the table; then the caller tries again later
TRY_AGAIN_S: Final = 0.2  # doubled each time: 3 s in all
FILES_MAX: Final = 2_000  # of one snapshot: their footers are read before, ~1 ms each

T = TypeVar("T")

_LOG: Final = logs.get(__name__)


@dataclass(slots=True)
class Committed:
    """What one call committed. ``chain``: of events, afterwards. ``files``: added, of all tables."""

    chain: dict[int, Link] = field(default_factory=dict)
    segments: int = 0
    files: int = 0
    refused: dict[int, str] = field(default_factory=dict)


class LakeTables:
    """``commit`` needs a committer's epoch; everything else only looks. Not for several threads.

    Raises ``SinkBusy`` where the catalog or the storage does not answer: the same again, later.
    """

    def __init__(self, place: Place, catalog: Catalog, config: LakeConfig) -> None:
        self.place = place
        self.config = config
        self.catalog = catalog
        self._io: Any = None

    @classmethod
    def open(cls, lake: Path | str, config: LakeConfig, *, is_made: bool = True) -> LakeTables:
        """The tables of a lake. ``is_made``: make those that are not there, and give them the columns they lack.

        ``UsageError`` where there is no lake, or not one that this version can write.
        """
        place = place_of(lake)
        tables = cls(place, open_catalog(place, config, is_made=is_made), config)
        try:
            if is_made:
                tables._make()
            else:
                tables._check_there()
        except KeystoneError:
            raise
        except Exception as error:
            if place.is_bucket and isinstance(error, OSError):
                raise UsageError(f"lake {error}") from error
            raise UsageError(f"lake {place.root}: its tables cannot be opened: {_line(error)}") from error
        return tables

    def close(self) -> None:
        """Give back the catalog's connections. May be repeated."""
        engine = getattr(self.catalog, "engine", None)
        if engine is not None:
            engine.dispose()
        self.catalog.close()

    def load(self, name: str) -> Table:
        """The table as the catalog knows it now."""
        return _translated(lambda: self.catalog.load_table((NAMESPACE, name)), f"table {name}")

    def committed(self, name: str = EVENTS) -> dict[int, Link]:
        """Where each partition ends in the table; in ``events``: what is committed."""
        return dict(self._head(self.load(name)).chain)

    def filesystem(self, url: str) -> tuple[Any, str]:
        """A file system of pyarrow for a place in the lake, and the path there."""
        from pyiceberg.io.pyarrow import PyArrowFileIO

        if self._io is None:
            self._io = PyArrowFileIO(dict(self.catalog.properties))  # keeps its connections
        scheme, netloc, path = PyArrowFileIO.parse_location(url)
        return self._io.fs_by_scheme(scheme, netloc), path

    def sizes_below(self, url: str) -> dict[str, int]:
        """The files below a folder of the lake, as URLs, with their sizes."""
        if self.place.is_bucket:
            from keystone.sinks.iceberg.bucket_io import sizes_below

            return _translated(lambda: sizes_below(url), url)
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self.filesystem(url)
        prefix = url.removesuffix(path)
        found = filesystem.get_file_info(FileSelector(path, recursive=True, allow_not_found=True))
        return {prefix + info.path: info.size for info in found if info.type == FileType.File}

    # --- committing -------------------------------------------------------------------------------------------------
    def commit(self, segments: Iterable[Segment], epoch: int) -> Committed:
        """Commit what is not in yet. Segments may be given again, in any order, and by several committers.

        ``epoch``: of this committer; ``Fenced`` where one of a higher epoch has committed. Partitions that the rules refuse,
        or that name a file which is not what was written, are left out: ``refused`` says why, the others are committed.
        """
        done = Committed()
        for portion in rules.in_portions(segments, FILES_MAX):
            self._commit_portion(portion, epoch, done)
        if not done.chain:
            done.chain = self.committed()
        return done

    def _commit_portion(self, portion: list[Segment], epoch: int, done: Committed) -> None:
        floor = self._head(self.load(EVENTS))
        wanted = [segment for segment in portion if segment.partition not in done.refused]  # by an earlier portion
        done.refused |= rules.plan(floor.chain, wanted, EVENTS).refused
        wanted = [segment for segment in wanted if segment.partition not in done.refused]
        for name in ORDER:
            plan = self._commit_table(name, wanted, floor, epoch, done)
            wanted = [segment for segment in wanted if segment.partition not in done.refused]
            if name == EVENTS:
                done.segments += len(plan.take)
                done.chain = plan.chain

    def _commit_table(self, name: str, wanted: list[Segment], floor: Head, epoch: int, done: Committed) -> rules.Plan:
        """Look, plan, commit, and look again until there is nothing left to commit: what an answer does not tell, the table does."""
        described: dict[str, DataFile] = {}
        reason: Exception | None = None
        for attempt in range(TRIES_MAX):
            if attempt:
                self._wait(TRY_AGAIN_S * 2 ** (attempt - 1))
            table = self.load(name)
            head = self._head(table)
            if head.committer_epoch > epoch:
                raise Fenced("committer", epoch, head.committer_epoch)
            plan = self._planned(name, table, head, floor, wanted, described, done)
            files = [described[f.path] for s in plan.take for f in s.files if f.table == name and f.rows]
            if not (files if name != EVENTS else plan.take):
                return plan
            try:
                self._append(table, files, head, plan, epoch)
            except KeystoneError:
                raise
            except Exception as error:  # noqa: BLE001 - lost, refused or half done: the table tells
                _LOG.warning("a commit to the lake was not answered by done: looking whether it is in", table=name, reason=_line(error))
                reason = error
                continue
            done.files += len(files)
            return plan
        raise SinkBusy(f"table {name} was not committed to in {TRIES_MAX} tries: {_line(reason)}") from reason

    # These two, ``load``, ``_head`` and ``_describe`` touch the world: the simulated lake of the tests has its own.
    @staticmethod
    def _append(table: Table, files: list[DataFile], head: Head, plan: rules.Plan, epoch: int) -> None:
        from keystone.sinks.iceberg import producers

        producers.append(table, files, head, rules.to_text(plan.chain), rules.to_text(plan.added), epoch)

    @staticmethod
    def _wait(wait_s: float) -> None:
        time.sleep(wait_s)

    def _planned(self, name: str, table: Table, head: Head, floor: Head, wanted: list[Segment], described: dict[str, DataFile], done: Committed) -> rules.Plan:
        """The plan without partitions whose files are not what was written. Footers are read once."""
        while True:
            given = [segment for segment in wanted if segment.partition not in done.refused]
            plan = rules.plan(head.chain, given, name, floor=floor.chain if name != EVENTS else None)
            done.refused |= plan.refused
            faults = self._describe(name, table, plan, described)
            if not faults:
                return plan
            done.refused |= faults

    def _describe(self, name: str, table: Table, plan: rules.Plan, described: dict[str, DataFile]) -> dict[int, str]:
        from keystone.sinks.iceberg import files

        new = [(s.partition, f) for s in plan.take for f in s.files if f.table == name and f.rows and f.path not in described]
        faults: dict[int, str] = {}
        for (partition, file), found in zip(new, files.described(table, self.place, new), strict=True):
            if isinstance(found, LakeDamaged):
                faults.setdefault(partition, str(found))
            else:
                described[file.path] = found
        return faults

    @staticmethod
    def _head(table: Table) -> Head:
        from keystone.sinks.iceberg.producers import head_of

        return head_of(table.metadata)

    # --- making -----------------------------------------------------------------------------------------------------
    def _make(self) -> None:
        from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NoSuchTableError

        from keystone.sinks.iceberg import schema

        try:
            self.catalog.create_namespace_if_not_exists(NAMESPACE)
        except NamespaceAlreadyExistsError:
            _LOG.debug("another process made the namespace")
        for name in ORDER:
            try:
                table = self.catalog.load_table((NAMESPACE, name))
            except NoSuchTableError:
                table = self._begun(name)
            self._check_location(table, name)
            try:
                schema.catch_up(table, name)
            except CommitFailedException:  # another process of this version did the same, or the stream committed
                schema.catch_up(self.catalog.load_table((NAMESPACE, name)), name)

    def _begun(self, name: str) -> Table:
        """A table that the catalog does not know: made, where there is none of that name without a catalog. That one's files would be swept."""
        from pyiceberg.exceptions import TableAlreadyExistsError

        from keystone.sinks.iceberg import schema
        from keystone.sinks.iceberg.adoption import is_lost

        if is_lost(self.place, name) and not self.catalog.table_exists((NAMESPACE, name)):  # made, and committed to, a moment ago
            raise UsageError(lost_line(self.place.directory or self.place.root))
        wanted = schema.schema_of(name)
        properties = schema.properties_of(name, wanted, self.place.metadata(name))
        try:
            return self.catalog.create_table(
                (NAMESPACE, name), wanted, location=self.place.data(name), partition_spec=schema.spec_of(name, wanted), properties=properties
            )
        except TableAlreadyExistsError:
            return self.catalog.load_table((NAMESPACE, name))

    def _check_there(self) -> None:
        for name in ORDER:
            if not _translated(lambda name=name: self.catalog.table_exists((NAMESPACE, name)), "the catalog"):  # type: ignore[misc]
                raise UsageError(f"lake {self.place.root}: its catalog has no table {NAMESPACE}.{name}: name the directory that a run was given as --lake")

    def _check_location(self, table: Table, name: str) -> None:
        if table.location() != self.place.data(name):
            raise UsageError(
                f"lake {self.place.root}: the catalog's table {NAMESPACE}.{name} is at {table.location()}: a lake cannot be moved, name the one it was made in"
            )


def refuse(done: Committed) -> None:
    """Raise ``ChainBroken`` where something was refused."""
    if done.refused:
        raise ChainBroken(done.refused)


def _translated(ask: Callable[[], T], what: str) -> T:
    """The answer, or ``SinkBusy`` where there is none now."""
    try:
        return ask()
    except KeystoneError:
        raise
    except Exception as error:
        raise SinkBusy(f"{what} of the lake cannot be read: {_line(error)}") from error


def _line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
