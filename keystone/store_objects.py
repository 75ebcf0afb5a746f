"""Objects in a bucket of S3, or in memory, through obstore; its errors become ours."""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from keystone.buckets import explained
from keystone.errors import StoreUnavailable, UsageError

if TYPE_CHECKING:
    import obstore
    from obstore.store import MemoryStore

    _Buffer = bytes | bytearray | memoryview

#: "a/b/c", its parts of letters that mean the same to every file system and bucket; none begins with a dot.
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._=-]*(/[A-Za-z0-9_-][A-Za-z0-9._=-]*)*")
PART_BYTES: Final = 16 << 20  # of a multipart upload; S3 takes 5 MB at least, and 10,000 parts
PARTS_AT_ONCE: Final = 4
CONFLICTS_MAX: Final = 8  # answers in a row that somebody is at the same name, and nobody was


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


def look_at(bucket: str, prefix: str, url: str, *, makes_once: bool) -> None:
    """Try what a run does in a bucket, within seconds: list, write, read, delete. Raises ``UsageError`` that says what to change.

    ``makes_once``: also that of two who make one object only the first does, which epochs rest on. There are servers that
    overlook the condition; then the second of two owners would not notice the first.
    """
    import obstore

    from keystone.buckets import s3_store

    objects = s3_store(bucket, is_look=True)
    store = ObjectStore(objects, prefix, url)
    name = f"keystone-probe-{secrets.token_hex(8)}"
    try:
        with store._translated(name):  # noqa: SLF001 - of this module
            next(iter(obstore.list(objects, prefix or None, chunk_size=1)), None)
        store.put(name, [b"0"])
        store.get(name)
        store.delete([name])
        if makes_once and not _makes_once(store, name):
            raise UsageError(f"{url}: this service does not keep the condition If-None-Match, so epochs cannot be there: --state DIR, or another service")
    except KeyError:
        raise UsageError(f"{url}: an object that was written a moment ago is not there: this is no service for checkpoints or lakes") from None
    except StoreUnavailable as error:
        raise UsageError(str(error)) from error


def _makes_once(store: ObjectStore, name: str) -> bool:
    try:
        is_made = store.put_new(name, [b"1"])
        is_made_again = store.put_new(name, [b"2"])
        return is_made and not is_made_again and bytes(store.get(name)) == b"1"
    except StoreUnavailable as error:
        if "501" in str(error):
            return False
        raise
    finally:
        with contextlib.suppress(StoreUnavailable):
            store.delete([name])


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

    def put_file(self, name: str, path: Path) -> None:
        """Upload a file; replaces an object of that name. Raises ``OSError`` where the file is gone."""
        import obstore

        size = path.stat().st_size
        with self._translated(name):
            obstore.put(self._objects, self._place(name), path, use_multipart=size > PART_BYTES, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def put_new(self, name: str, parts: Sequence[_Buffer]) -> bool:
        """A request that was repeated, or whose answer was lost, may have been ours: the object tells, where no two callers write the same bytes."""
        content = b"".join(parts)
        for _ in range(CONFLICTS_MAX):
            unknown = self._create(name, content)
            if unknown is None:
                return True
            try:
                return self.get(name) == content
            except KeyError:
                if isinstance(unknown, StoreUnavailable):
                    raise unknown from unknown.__cause__
        raise StoreUnavailable(f"{self._url}: {name} is neither there nor can it be made: others are at it")

    def _create(self, name: str, content: bytes) -> Exception | None:
        """None where it was made; what else was heard, where the object itself must tell."""
        import obstore

        try:
            with self._translated(name):
                try:
                    obstore.put(self._objects, self._place(name), content, mode="create", use_multipart=False)
                except obstore.exceptions.AlreadyExistsError as error:
                    return error
        except StoreUnavailable as error:
            return error
        return None

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
            with contextlib.suppress(KeyError), self._translated(name):
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
                raise explained(self._url, error) from error
            raise KeyError(name) from error
        except (exceptions.BaseError, OSError) as error:
            raise explained(self._url, error) from error
