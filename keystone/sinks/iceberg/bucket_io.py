"""How pyiceberg reads and writes metadata in a bucket: through obstore, one request a file.

pyarrow's file system begins an upload of several parts for the smallest file (three requests, and a server that refused the third of
them), gives up on other errors than obstore, after other times, and takes other keys. What scans and proofs read of data files still goes through it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pyiceberg.io import InputFile, OutputFile
from pyiceberg.io.pyarrow import PyArrowFileIO

from keystone.buckets import access, explained, s3_store
from keystone.store_objects import PART_BYTES

if TYPE_CHECKING:
    from obstore.store import S3Store

TAIL_BYTES: Final = 64 << 10  # of a data file, fetched with its size: nearly every footer is in it
VENDED: Final = ("s3.access-key-id", "s3.session-token", "s3.remote-signing-enabled")  # keys that a catalog gives out: for pyarrow

_stores: dict[tuple[str, ...], S3Store] = {}  # pyiceberg makes an IO for every table it loads; connections are kept


class BucketError(OSError):
    """One line that says what to change. An ``OSError``: what has to be done about one is the same."""


class BucketIO(PyArrowFileIO):
    """pyarrow's, but for opening, writing and deleting files in a bucket."""

    def new_input(self, location: str) -> InputFile:  # type: ignore[override]  # pyiceberg itself asks for no more
        return super().new_input(location) if self._is_vended() else _Input(location)

    def new_output(self, location: str) -> OutputFile:  # type: ignore[override]
        return super().new_output(location) if self._is_vended() else _Output(location)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Missing files are no error."""
        if self._is_vended():
            super().delete(location)
        else:
            delete(location if isinstance(location, str) else location.location)

    def _is_vended(self) -> bool:
        return any(name in self.properties for name in VENDED)


def sizes_below(url: str) -> dict[str, int]:
    """The objects below a folder, as URLs, with their sizes."""
    import obstore

    store, name = _found(url)
    bucket = url.removesuffix(name)
    with _told(url):
        return {f"{bucket}{item['path']}": int(item["size"]) for page in obstore.list(store, name) for item in page}


def upload(path: Path, url: str) -> None:
    """A file of this machine, whole or not at all."""
    import obstore

    store, name = _found(url)
    with _told(url):
        obstore.put(store, name, path, use_multipart=path.stat().st_size > PART_BYTES, chunk_size=PART_BYTES)


def delete(url: str) -> None:
    """Missing ones are no error."""
    import obstore

    store, name = _found(url)
    with contextlib.suppress(FileNotFoundError), _told(url):
        obstore.delete(store, name)


def _found(url: str) -> tuple[S3Store, str]:
    parts = urlsplit(url)
    found = access()
    key = (parts.netloc, found.endpoint or "", found.region, found.profile or "", found.env.get("AWS_ACCESS_KEY_ID", ""))
    if key not in _stores:
        _stores[key] = s3_store(parts.netloc)
    return _stores[key], parts.path.lstrip("/")


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        if "NoSuchBucket" not in str(error):
            raise FileNotFoundError(f"{url}: it is not there") from error
        raise BucketError(str(explained(_bucket(url), error))) from error
    except (exceptions.BaseError, OSError) as error:
        raise BucketError(str(explained(_bucket(url), error))) from error


def _bucket(url: str) -> str:
    return f"s3://{urlsplit(url).netloc}"


class _Input(InputFile):
    def __len__(self) -> int:
        return _Reader(self.location).size

    def exists(self) -> bool:
        import obstore

        store, name = _found(self.location)
        try:
            with _told(self.location):
                obstore.head(store, name)
        except FileNotFoundError:
            return False
        return True

    def open(self, seekable: bool = True) -> Any:  # noqa: ARG002, FBT001, FBT002 - pyiceberg's signature; it always is
        if self.location.endswith(".parquet"):
            return _Reader(self.location)
        import obstore

        store, name = _found(self.location)
        with _told(self.location):
            return io.BytesIO(bytes(obstore.get(store, name).bytes()))


class _Output(OutputFile):
    def __len__(self) -> int:
        return len(_Input(self.location))

    def exists(self) -> bool:
        return _Input(self.location).exists()

    def to_input_file(self) -> InputFile:
        return _Input(self.location)

    def create(self, overwrite: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002 - every name has a UUID in it
        return _Writer(self.location)


class _Writer(io.BytesIO):
    """An object once it is closed, unless what was to be written failed."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def close(self) -> None:
        if not self.closed:
            import obstore

            content = self.getvalue()
            super().close()
            store, name = _found(self._url)
            with _told(self._url):
                obstore.put(store, name, content)

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is not None:
            super().close()
        else:
            self.close()


class _Reader(io.RawIOBase):
    """A data file from its end: size and tail are one request, what is before the tail another one each time."""

    def __init__(self, url: str) -> None:
        import obstore

        self._url, self._at = url, 0
        self._store, self._name = _found(url)
        with _told(url):
            found = obstore.get(self._store, self._name, options={"range": {"suffix": TAIL_BYTES}})
            self.size = int(found.meta["size"])
            self._tail = bytes(found.bytes())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        import obstore

        begin, end = self._at, min(self._at + len(buffer), self.size)
        if end <= begin:
            return 0
        tail_at = self.size - len(self._tail)
        if begin >= tail_at:
            content = self._tail[begin - tail_at : end - tail_at]
        else:
            with _told(self._url):
                content = bytes(obstore.get_range(self._store, self._name, start=begin, end=end))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)
