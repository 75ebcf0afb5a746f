"""From folders to a page: what the commands and the bench call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from keystone.errors import UsageError
from keystone.report import notebook

PAGE: Final = "report.html"  # in a bench's folder


def make_latency_page(folders: Sequence[Path], target: Path) -> None:
    """The latency report of these bench folders. ``UsageError`` where one holds no report, before anything is started."""
    from keystone.report.runs import read_report

    for folder in folders:
        read_report(folder)
    _make(notebook.LATENCY, {"RUNS": [str(folder.absolute()) for folder in folders]}, target)


def make_qoe_page(folder: Path, target: Path) -> None:
    """What the lake in the folder of a run, bench or replay tells of quality."""
    from keystone.report.quality import find_lake

    find_lake(folder)
    _make(notebook.QOE, {"FOLDER": str(folder.absolute())}, target)


def _make(name: str, parameters: dict[str, object], target: Path) -> None:
    notebook.check_packages()
    if not target.absolute().parent.is_dir():
        raise UsageError(f"--out {target}: there is no such directory: name another file")
    from keystone.report import page

    page.write(page.to_html(notebook.execute(name, parameters)), target)
