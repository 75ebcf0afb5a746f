"""A SQLite catalog whose files are on the disk before it names them.

SQLite waits for the disk; pyiceberg does not. After a power cut the catalog would name a metadata file that is empty, and
the whole table could not be read. Only directories need this: an object store acknowledges what is durable.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pyiceberg.catalog.sql import SqlCatalog

if TYPE_CHECKING:
    from pyiceberg.io import FileIO
    from pyiceberg.table.metadata import TableMetadata


class DurableCatalog(SqlCatalog):
    @staticmethod
    def _write_metadata(metadata: TableMetadata, io: FileIO, metadata_path: str) -> None:
        SqlCatalog._write_metadata(metadata, io, metadata_path)  # noqa: SLF001 - this class is that one
        sync((metadata_path,))


def sync(urls: Iterable[str]) -> None:
    """Wait until files, and their names, are on the disk. Other URLs than ``file://`` are left alone."""
    paths = [Path(url.removeprefix("file://")) for url in urls if url.startswith("file://")]
    for path in (*paths, *{path.parent for path in paths}):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
