"""Dead letters read again, from wherever a run put them: files of a directory, objects of a bucket, or a topic.

A source gives one ``Letter`` after the other and holds none, so a flood of any size can be counted. It only looks: files that a run is writing are
read up to their last whole line. In a topic or a bucket the same letter may be there twice (docs/DELIVERY.md), with the same place.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import orjson

from keystone.config import KafkaConfig
from keystone.errors import LogUnreachable, UsageError
from keystone.log.url import KAFKA_SCHEME, KafkaUrl, parse_log_url
from keystone.sinks.ndjson import LETTER_BYTES_MAX
from keystone.store import Store, open_bucket, open_store

if TYPE_CHECKING:
    from keystone.log.kafka import KafkaLog

READ_BYTES: Final = 4 << 20
POLL_WAIT_MS: Final = 1_000
SILENCE_MAX: Final = 30  # polls without a record: the topic does not give what it says it has
#: What runs name their files (``actors.outputs.Letters``) and objects (``letter_objects``), and what a replay of files leaves.
FILE_NAME: Final = re.compile(r"(?:(?P<run>.*)-)?p(?P<partition>\d{5,})-e\d{8,}(?:-\d{20}-\d{8,})?\.ndjson|dead_letters\.ndjson")


class Place(NamedTuple):
    """What names a line of the log for ever."""

    partition: int
    offset: int
    line: int

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}:{self.line}"


@dataclass(frozen=True, slots=True)
class Letter:
    """``raw``: at most the first 64 KiB of a line of ``length`` bytes. ``said_ms``: when a broker took it; None in files, which do not tell.

    ``run``: what runs over the same state have in common; None where nothing tells it.
    """

    place: Place
    reason: str
    length: int
    raw: bytes
    said_ms: int | None
    source: str
    run: str | None = None

    @property
    def is_whole(self) -> bool:
        return len(self.raw) == self.length

    def as_json(self) -> bytes:
        """One line, as in the files: ``raw`` in base64 loses nothing."""
        partition, offset, line = self.place
        fields: dict[str, object] = {
            "line": line, "reason": self.reason, "length": self.length, "raw": base64.b64encode(self.raw).decode(), "partition": partition, "offset": offset,
            "source": self.source,
        }  # fmt: skip
        fields |= {"said_ms": self.said_ms} if self.said_ms is not None else {}
        fields |= {"run": self.run} if self.run is not None else {}
        return orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)


class LetterSource(Protocol):
    """``is_exact``: each letter is there once; else repeats are possible. ``torn``: lines so far that are no dead letters."""

    url: str
    is_exact: bool
    torn: int

    def letters(self, partition: int | None = None) -> Iterator[Letter]:
        """All there are now, or those of one partition of the log: by partition, then in the order in which they were written."""

    def forgotten(self, partition: int) -> bool:
        """Whether letters of this partition were there once and are gone: by retention."""

    def close(self) -> None:
        """May be repeated."""


def open_letters(url: str, config: KafkaConfig) -> LetterSource:
    """``DIR``, a file of one, ``s3://BUCKET/PREFIX`` or ``kafka://HOST[:PORT][/TOPIC]``. ``UsageError`` where there is no such place."""
    if url.startswith(KAFKA_SCHEME):
        place = parse_log_url(url, topic=config.dead_letters_topic)
        assert isinstance(place, KafkaUrl)  # noqa: S101 - by its scheme
        return TopicLetters(place, config)
    if url.startswith("s3://"):
        return ObjectLetters(url.rstrip("/"), open_bucket(url.rstrip("/")))
    if url.startswith("memory://"):
        return ObjectLetters(url, open_store(url))
    if "://" in url:
        raise UsageError(f"--from {url}: write it as a directory, s3://BUCKET/PREFIX or kafka://HOST[:PORT]/keystone-dead-letters")
    return FileLetters(Path(url))


class EmptyLetters:
    """A place where no dead letter has been written yet."""

    is_exact, torn = True, 0

    def __init__(self, url: str) -> None:
        self.url = url

    def letters(self, partition: int | None = None) -> Iterator[Letter]:  # noqa: ARG002 - there are none
        return iter(())

    def forgotten(self, partition: int) -> bool:  # noqa: ARG002 - nor were there any
        return False

    def close(self) -> None:
        """Nothing is held."""


class FileLetters:
    """NDJSON files of a directory, or one of them."""

    is_exact = True

    def __init__(self, path: Path) -> None:
        self.url = str(path)
        self.torn = 0
        self._path = path
        if not path.exists():
            raise UsageError(f"--from {path}: there is no such directory or file: name where the run's dead letters are")

    def letters(self, partition: int | None = None) -> Iterator[Letter]:
        paths = self._path.iterdir() if self._path.is_dir() else [self._path]
        names = {path.name: path for path in paths if self._path.is_file() or FILE_NAME.fullmatch(path.name)}
        for name in _in_order(names, partition):
            yield from self._of(names[name], partition)

    def _of(self, path: Path, partition: int | None) -> Iterator[Letter]:
        try:
            with path.open("rb") as file:
                while line := file.readline(LETTER_BYTES_MAX + 1):
                    if line.endswith(b"\n"):  # else it is being written, or torn
                        yield from self._one(line, path.name, partition)
        except OSError as error:
            raise UsageError(f"--from {path}: cannot be read ({error.strerror})") from error

    def _one(self, line: bytes, name: str, partition: int | None) -> Iterator[Letter]:
        letter = parsed(line, name)
        if letter is None:
            self.torn += 1
        elif partition is None or letter.place.partition == partition:
            yield letter

    def forgotten(self, partition: int) -> bool:  # noqa: ARG002 - nothing of ours deletes files
        return False

    def close(self) -> None:
        """Nothing is held."""


class ObjectLetters:
    """Objects of a bucket, some seconds of one partition in each."""

    is_exact = False

    def __init__(self, url: str, store: Store) -> None:
        self.url = url
        self.torn = 0
        self._store = store

    def letters(self, partition: int | None = None) -> Iterator[Letter]:
        names = [name for name in self._store.names("") if FILE_NAME.fullmatch(name.rpartition("/")[2])]
        for name in _in_order(names, partition):
            try:
                text = bytes(self._store.get(name))
            except KeyError:
                continue  # deleted meanwhile
            for line in text.splitlines():
                letter = parsed(line, name)
                if letter is None:
                    self.torn += 1
                elif partition is None or letter.place.partition == partition:
                    yield letter

    def forgotten(self, partition: int) -> bool:  # noqa: ARG002 - a bucket's own rules are not ours to know
        return False

    def close(self) -> None:
        """Nothing is held."""


def _in_order(names: Iterable[str], partition: int | None) -> list[str]:
    """By partition, then by name: epochs, offsets and lines have as many digits each time."""

    def key(name: str) -> tuple[int, str]:
        return int(_partition_in(name) or 0), name

    return sorted((name for name in names if partition is None or _partition_in(name) in {None, partition}), key=key)


def _partition_in(name: str) -> int | None:
    """That a file's name says; None where it may hold any."""
    found = FILE_NAME.fullmatch(name.rpartition("/")[2])
    return int(found["partition"]) if found is not None and found["partition"] is not None else None


def _run_in(name: str) -> str | None:
    """That a file's name says."""
    found = FILE_NAME.fullmatch(name.rpartition("/")[2])
    return found["run"] if found is not None else None


def parsed(line: bytes, source: str) -> Letter | None:
    """A line of a file; None where it is no dead letter."""
    try:
        row = orjson.loads(line)
        place = Place(int(row["partition"]), int(row["offset"]), int(row["line"]))
        return Letter(place, str(row["reason"]), int(row["length"]), base64.b64decode(row["raw"], validate=True), row.get("said_ms"), source, _run_in(source))
    except (ValueError, KeyError, TypeError, AttributeError, binascii.Error):
        return None


class TopicLetters:
    """Records of a topic, from its beginning to what was its end when reading began."""

    is_exact = False

    def __init__(self, url: KafkaUrl, config: KafkaConfig) -> None:
        from keystone.log.kafka import KafkaLog

        self.url = str(url)
        self.torn = 0
        self._log: KafkaLog = KafkaLog.open(url, config, action="read", role="letters")

    def letters(self, partition: int | None = None) -> Iterator[Letter]:
        wanted = range(self._log.partitions) if partition is None else [partition % self._log.partitions]  # as ``sinks.kafka`` sends them
        for number in wanted:
            yield from self._of(number, partition)

    def _of(self, number: int, partition: int | None) -> Iterator[Letter]:
        from keystone.log.kafka.headers import HeaderReader

        end = self._log.end_offsets()[number]
        reader = self._log.reader(number, kind=HeaderReader)
        assert isinstance(reader, HeaderReader)  # noqa: S101 - as asked for
        silent = 0
        try:
            while reader.position() < end:
                records = reader.poll(bytes_max=READ_BYTES, wait_ms=POLL_WAIT_MS)
                silent = 0 if len(records) else silent + 1
                if silent >= SILENCE_MAX:
                    raise LogUnreachable(f"{self.url}, partition {number}: no record at offset {reader.position():,}, although it ends at {end:,}")
                places = zip(records.starts.tolist(), records.ends.tolist(), records.offsets.tolist(), records.append_ts_ms.tolist(), strict=True)
                for start, stop, offset, said_ms in places:
                    if offset < end:
                        yield from self._one(records.text[start:stop].tobytes(), reader.headers(offset), said_ms, f"{number}:{offset}", partition)
        finally:
            reader.close()

    def _one(self, raw: bytes, headers: dict[str, bytes], said_ms: int, where: str, partition: int | None) -> Iterator[Letter]:
        try:
            place = Place(int(headers["partition"]), int(headers["offset"]), int(headers["line"]))
            run = headers["run"].decode("utf-8", "replace") if "run" in headers else None
            letter = Letter(place, headers["reason"].decode("utf-8", "replace"), int(headers["length"]), raw, said_ms, where, run)
        except (KeyError, ValueError):
            self.torn += 1
            return
        if partition is None or place.partition == partition:
            yield letter

    def forgotten(self, partition: int) -> bool:
        return self._log.start_offsets()[partition % self._log.partitions] > 0

    def close(self) -> None:
        self._log.close()
