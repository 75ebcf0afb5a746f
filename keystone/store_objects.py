"""Objects in a bucket of S3, or in memory, through obstore; its errors become ours."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, Final

from keystone.errors import StoreUnavailable, UsageError

if TYPE_CHECKING:
    import obstore
    from obstore.store import MemoryStore, S3Store

    _Buffer = bytes | bytearray | memoryview

#: "a/b/c", its parts of letters that mean the same to every file system and bucket; none begins with a dot.
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
PART_BYTES: Final = 16 << 20  # of a multipart upload; S3 takes 5 MB at least, and 10,000 parts
PARTS_AT_ONCE: Final = 4
REQUEST_TIMEOUT_S: Final = 30  # of one request: 16 MB at 0.5 MB/s
CONNECT_TIMEOUT_S: Final = 5
RETRY_TIMEOUT_S: Final = 30  # obstore tries again by itself for so long; then whoever asked decides
RETRIES_MAX: Final = 4
LINE_CHARACTERS_MAX: Final = 300  # of a foreign message


def checked_name(name: str) -> str:
    """The same. Raises ``ValueError`` where it is no name of an object."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name of an object")
    return name


@cache
def memory_store(name: str) -> MemoryStore:  # noqa: ARG001 - the cache's key
    """The one of that name in this process."""
    import obstore

    return obstore.store.MemoryStore()


def s3_store(bucket: str) -> S3Store:
    """A bucket, reached as the AWS_* variables say."""
    import obstore

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT") or ""
    try:
        return obstore.store.S3Store(
            bucket,
            client_options={
                "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "allow_http": endpoint.startswith("http://"),
            },
            retry_config={"max_retries": RETRIES_MAX, "retry_timeout": timedelta(seconds=RETRY_TIMEOUT_S)},
            endpoint=endpoint or None,
        )
    except (obstore.exceptions.BaseError, ValueError) as error:
        raise UsageError(f"s3://{bucket}: {_one_line(error)}: look at the AWS_* variables") from error


class ObjectStore:
    """A store (see ``store.Store``) over one of obstore, under a prefix.

    An upload of several parts is visible when it is complete; what a killed writer had sent is in no listing, and a rule of
    the bucket for incomplete uploads removes it.
    """

    def __init__(self, objects: obstore.store.MemoryStore | obstore.store.S3Store, prefix: str, url: str) -> None:
        self._objects = objects
        self._before = f"{prefix}/" if prefix else ""
        self._url = url

    def put(self, name: str, parts: Sequence[_Buffer]) -> None:
        import obstore

        with self._translated(name):
            if sum(len(part) for part in parts) <= PART_BYTES:
                obstore.put(self._objects, self._place(name), b"".join(parts), use_multipart=False)
            else:
                obstore.put(self._objects, self._place(name), [part for part in parts if len(part)], chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def put_new(self, name: str, parts: Sequence[_Buffer]) -> bool:
        import obstore

        with self._translated(name):
            try:
                obstore.put(self._objects, self._place(name), b"".join(parts), mode="create", use_multipart=False)
            except obstore.exceptions.AlreadyExistsError:
                return False
            return True

    def get(self, name: str) -> memoryview:
        import obstore

        with self._translated(name):
            return memoryview(obstore.get(self._objects, self._place(name)).bytes())

    def get_range(self, name: str, start: int, size: int) -> memoryview:
        import obstore

        with self._translated(name):
            there = int(obstore.head(self._objects, self._place(name))["size"])
            end = min(start + size, there)
            if end <= start:
                return memoryview(b"")
            return memoryview(obstore.get_range(self._objects, self._place(name), start=start, end=end))

    def names(self, prefix: str) -> list[str]:
        import obstore

        folder = (self._before + prefix).rpartition("/")[0]
        with self._translated(prefix):
            found = [str(item["path"]) for page in obstore.list(self._objects, folder or None) for item in page]
        return sorted(name.removeprefix(self._before) for name in found if name.startswith(self._before + prefix))

    def delete(self, names: Iterable[str]) -> None:
        import obstore

        for name in names:
            with self._translated(name), contextlib.suppress(FileNotFoundError):
                obstore.delete(self._objects, self._place(name))

    def _place(self, name: str) -> str:
        return self._before + checked_name(name)

    @contextlib.contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        from obstore import exceptions

        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error):
                raise UsageError(f"{self._url}: there is no such bucket: make it, or name another") from error
            raise KeyError(name) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise UsageError(f"{self._url}: {_one_line(error)}: look at the AWS_* variables and the bucket's policy") from error
        except (exceptions.NotSupportedError, exceptions.InvalidPathError, exceptions.UnknownConfigurationKeyError) as error:
            raise UsageError(f"{self._url}: {_one_line(error)}") from error
        except (exceptions.BaseError, OSError) as error:
            raise StoreUnavailable(f"{self._url}: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0][:LINE_CHARACTERS_MAX]
