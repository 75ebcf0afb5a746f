"""Tables whose catalog was lost: found again by the metadata files that lie beside their data, and registered anew.

The metadata file with the highest number is the newest. Several may have it, where a commit lost a race or was not answered: each is whole,
with files that are all there, and the one that says that most is committed is taken. Nothing is deleted, nothing is written but the catalog.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keystone.config import LakeConfig
from keystone.errors import KeystoneError, UsageError
from keystone.sinks.iceberg.places import NAMESPACE, Place, io_settings, open_catalog, place_of

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table.metadata import TableMetadata

_NAME: Final = re.compile(r"([0-9]+)-[^/]*\.metadata\.json")


@dataclass(frozen=True, slots=True)
class Adopted:
    """A table that the catalog knows now. ``metadata``: the file's name, None where it was known before."""

    table: str
    metadata: str | None = None
    snapshots: int = 0
    rows: int = 0


def newest(urls: Iterable[str]) -> list[str]:
    """Of a table's metadata files those with the highest number. Pure."""
    numbered = [(int(match[1]), url) for url in urls if (match := _NAME.fullmatch(url.rpartition("/")[2]))]
    highest = max((number for number, _ in numbered), default=0)
    return sorted(url for number, url in numbered if number == highest)


def is_lost(place: Place, table: str) -> bool:
    """Whether there are files of a table that was committed to: one that is not in the catalog must not be begun anew beside them.

    What cannot be read may be such a table.
    """
    found = [_read(place, url) for url in newest(_metadata_urls(place, table))]
    return any(metadata is None or metadata.snapshots for metadata in found)


def adopt(lake: Path | str, config: LakeConfig, tables: Iterable[str]) -> list[Adopted]:
    """Have the catalog, made where there is none, know the newest metadata file of each of ``tables`` that it does not know. May be repeated.

    ``UsageError`` where there is nothing to adopt, the newest cannot be read, or the lake was moved: then the catalog is as it was.
    """
    place = place_of(lake)
    try:
        return _adopted(place, config, {table: one for table in tables if (one := _newest_metadata(place, table)) is not None})
    except KeystoneError:
        raise
    except Exception as error:
        raise UsageError(f"lake {place.root}: its tables cannot be adopted: {str(error).splitlines()[0]:.200}") from error


def _adopted(place: Place, config: LakeConfig, found: Mapping[str, tuple[str, TableMetadata]]) -> list[Adopted]:
    if not found:
        raise UsageError(f"lake {place.root}: there are no metadata files of a table: name the place that a run was given as --lake")
    with closing(open_catalog(place, config, is_made=True, is_adopted=True)) as catalog:
        catalog.create_namespace_if_not_exists(NAMESPACE)
        return [_registered(catalog, table, *one) for table, one in found.items()]


def _registered(catalog: Catalog, table: str, url: str, metadata: TableMetadata) -> Adopted:
    if catalog.table_exists((NAMESPACE, table)):
        return Adopted(table)
    catalog.register_table((NAMESPACE, table), url)
    current = metadata.current_snapshot()
    rows = current.summary.additional_properties.get("total-records", "0") if current is not None and current.summary is not None else "0"
    return Adopted(table, url.rpartition("/")[2], len(metadata.snapshots), int(rows))


def _newest_metadata(place: Place, table: str) -> tuple[str, TableMetadata] | None:
    """None where there is none."""
    from keystone.sinks.iceberg.producers import head_of

    found: list[tuple[int, int, str, TableMetadata]] = []
    for url in newest(_metadata_urls(place, table)):
        metadata = _read(place, url)
        if metadata is None:
            raise UsageError(f"lake {place.root}: {place.relative(url)} cannot be read: bring it or the catalog back; without, the newest rows are lost")
        if metadata.location != place.data(table):
            raise UsageError(f"lake {place.root}: its table {table} is at {metadata.location}: a lake cannot be moved, name the place it was made in")
        committed = sum(link.next_offset for link in head_of(metadata).chain.values())
        found.append((committed, metadata.last_updated_ms, url, metadata))
    return max(found, key=lambda one: one[:3])[2:] if found else None


def _metadata_urls(place: Place, table: str) -> list[str]:
    if place.directory is not None:
        return [f"file://{path}" for path in (place.directory / "metadata" / table).glob("*.json")]
    if not place.root.startswith("s3://"):
        return []
    from keystone.sinks.iceberg.bucket_io import sizes_below

    return list(sizes_below(place.metadata(table)))


def _read(place: Place, url: str) -> TableMetadata | None:
    """None where it is not whole. ``OSError`` where a bucket does not answer."""
    from pydantic import ValidationError
    from pyiceberg.exceptions import ValidationError as IcebergError
    from pyiceberg.io import load_file_io
    from pyiceberg.serializers import FromInputFile

    try:
        return FromInputFile.table_metadata(load_file_io(io_settings(place), url).new_input(url))
    except (ValueError, ValidationError, IcebergError):
        return None
