"""Where a lake is: its directory or bucket, and the catalog that knows its tables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from keystone.buckets import access
from keystone.config import LakeConfig
from keystone.errors import UsageError

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

CATALOG_NAME: Final = "keystone"  # PYICEBERG_CATALOG__KEYSTONE__TOKEN and the like are read from the environment
NAMESPACE: Final = "keystone"
CATALOG_FILE: Final = "catalog.db"
BUCKET_IO = "keystone.sinks.iceberg.bucket_io.BucketIO"
UNFINISHED: Final = ".compacting"  # where compaction writes, until a file is whole
SQLITE_WAIT_S: Final = 30  # for another process's transaction, which takes milliseconds
_SECRET: Final = re.compile(r"secret|password|token|credential|access-key|private-key|sas", re.IGNORECASE)
_LOGIN: Final = re.compile(r"://[^/@]*:[^/@]*@")
_UNSAFE: Final = set("#?%")  # pyiceberg reads paths as URLs, and does not decode them


@dataclass(frozen=True, slots=True)
class Place:
    """``root``: ``file:///path`` or ``s3://bucket/prefix``, without a slash at the end."""

    root: str

    @property
    def directory(self) -> Path | None:
        """None where it is no directory of a file system."""
        return Path(self.root.removeprefix("file://")) if self.root.startswith("file://") else None

    @property
    def is_bucket(self) -> bool:
        return not self.root.startswith("file://")

    def url(self, *names: str) -> str:
        return "/".join((self.root, *names))

    def data(self, table: str) -> str:
        return self.url("data", table)

    def metadata(self, table: str) -> str:
        """Not among the data: whoever reads a folder of Parquet files refuses others in it."""
        return self.url("metadata", table)

    def relative(self, url: str) -> str:
        """The path within the lake; the URL itself where it is elsewhere."""
        return url.removeprefix(self.root + "/")


def place_of(lake: Path | str) -> Place:
    """``UsageError`` for what is no place of a lake."""
    text = str(lake)
    if "://" in text and not text.startswith("file://"):
        if not re.fullmatch(r"(s3|s3a|gs)://[^/]+(/.*)?", text):
            raise UsageError(f"lake {text}: write it as a directory, or s3://BUCKET/PREFIX")
        return Place(text.rstrip("/"))
    path = str(Path(text.removeprefix("file://")).absolute())
    if _UNSAFE & set(path):
        raise UsageError(f"lake {path}: tables cannot be in a directory with #, ? or % in its name: choose another")
    return Place("file://" + path)


def check_catalog(properties: Mapping[str, str]) -> None:
    """Settings are read by more people than need secrets. ``UsageError`` names the one that is a secret, not its value."""
    for name, value in properties.items():
        if _SECRET.search(name) or _LOGIN.search(value):
            variable = f"PYICEBERG_CATALOG__{CATALOG_NAME.upper()}__" + name.upper().replace(".", "__").replace("-", "_")
            raise UsageError(f"lake.catalog: {name} is a secret, or holds one: give it by {variable}")


def home_of(place: Place, config: LakeConfig) -> Path:
    """Where a lake keeps what is of one machine (the catalog above all): its own directory, or that of a lake in a bucket.

    That is ``BUCKET/PREFIX`` below ``lake.home_dir``, by default below ~/.local/share/keystone/lakes (or XDG_DATA_HOME).
    """
    if place.directory is not None:
        return place.directory
    share = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "keystone" / "lakes"
    root = Path(config.home_dir).expanduser().absolute() if config.home_dir is not None else share
    return root / place.root.partition("://")[2]


def has_catalog(lake: Path | str, config: LakeConfig) -> bool:
    """False where the lake was not made yet, by a catalog of this machine; of a configured one only that catalog can say."""
    return bool(config.catalog) or (home_of(place_of(lake), config) / CATALOG_FILE).exists()


def open_catalog(place: Place, config: LakeConfig, *, is_made: bool, is_adopted: bool = False) -> Catalog:
    """The configured catalog, or SQLite in the lake's home. ``UsageError`` where there is none, and none is to be made.

    ``is_adopted``: tables that are there without a catalog are what it is made for.
    """
    properties = config.catalog
    check_catalog(properties)
    common: dict[str, Any] = io_settings(place)
    try:
        if properties:
            from pyiceberg.catalog import load_catalog

            return load_catalog(CATALOG_NAME, **{**common, **properties})
        return _own_catalog(place, home_of(place, config) / CATALOG_FILE, common, is_made=is_made, is_adopted=is_adopted)
    except UsageError:
        raise
    except Exception as error:
        if place.is_bucket and isinstance(error, OSError):
            raise UsageError(f"lake {error}") from error
        reason = str(error).splitlines()[0]
        if "database is locked" in reason:
            held = home_of(place, config) / CATALOG_FILE
            raise UsageError(
                f"lake {place.root}: another process has held {held} for {SQLITE_WAIT_S} s: if it was stopped in its midst, let it go on, or kill it"
            ) from error
        raise UsageError(f"lake {place.root}: its catalog cannot be opened: {reason:.200}") from error


def io_settings(place: Place) -> dict[str, str]:
    """Properties by which pyiceberg reads and writes the lake's files."""
    implementation = BUCKET_IO if place.root.startswith("s3://") else "pyiceberg.io.pyarrow.PyArrowFileIO"
    return {"py-io-impl": implementation, **_s3_settings(place)}


def _own_catalog(place: Place, file: Path, common: Mapping[str, Any], *, is_made: bool, is_adopted: bool) -> Catalog:
    from keystone.sinks.iceberg.durable import DurableCatalog

    if not file.exists():
        if not is_made and place.is_bucket:
            raise UsageError(f"lake {place.root}: {file} is not there: say this on the machine that writes the lake, or set lake.home_dir or lake.catalog")
        if not is_made and has_tables(file.parent):
            raise UsageError(lost_line(file.parent))
        if not is_made:
            raise UsageError(f"lake {file.parent}: there is no {CATALOG_FILE} in it: name the directory that a run was given as --lake")
        if place.is_bucket and not is_adopted and _has_metadata(place):
            raise UsageError(
                f"lake {place.root}: the bucket has a lake's tables there, and {file}, which knows them, is not here: bring it back, or name another prefix;"
                " where it is lost, say keystone lake adopt"
            )
    file.parent.mkdir(parents=True, exist_ok=True)
    return DurableCatalog(CATALOG_NAME, uri=f"sqlite:///{file}?timeout={SQLITE_WAIT_S}", warehouse=place.root, **common)


def has_tables(directory: Path) -> bool:
    """Whether there are metadata files of tables in a lake's directory, whatever a catalog says."""
    return any((directory / "metadata").glob("*/*.metadata.json"))


def lost_line(lake: Path | str) -> str:
    return f"lake {lake}: its tables are there, and the catalog that knows them is not: bring {CATALOG_FILE} back, or say keystone lake adopt --lake {lake}"


def _has_metadata(place: Place) -> bool:
    from keystone.sinks.iceberg.bucket_io import sizes_below

    return place.root.startswith("s3://") and bool(sizes_below(place.url("metadata")))


def _s3_settings(place: Place) -> dict[str, str]:
    """How pyarrow reaches the bucket: as everything else here does."""
    return access().pyarrow_properties() if place.root.startswith("s3") else {}
