"""Dead letters in files, as a run leaves them, for tests of what reads them again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from keystone.cli import main
from keystone.events import DeadLetter
from keystone.sinks.ndjson import DeadLetterFile


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Run a command line; its exit status, standard output and error."""
    try:
        main(list(words))
        status = 0
    except SystemExit as ended:
        status = int(ended.code or 0)
    out, err = capsys.readouterr()
    return status, out, err


def letter(offset: int, raw: bytes, reason: str, *, partition: int = 0, line: int = 0, length: int | None = None) -> DeadLetter:
    return DeadLetter(partition, offset, line, reason, len(raw) if length is None else length, raw)


def write(folder: Path, letters: Iterable[DeadLetter], *, epoch: int = 1, run: str = "0f3a91c2") -> None:
    """Files of each partition, as session actors of a run name them."""
    by_partition: dict[int, list[DeadLetter]] = {}
    for one in letters:
        by_partition.setdefault(one.partition, []).append(one)
    for partition, some in by_partition.items():
        file = DeadLetterFile(folder / f"{run}-p{partition:05d}-e{epoch:08d}.ndjson", per_line=False)
        file.write(some)
        file.close()
