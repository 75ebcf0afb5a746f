"""Notebooks found, given their parameters, and executed in a kernel of their own.

A notebook says its parameters in one cell tagged ``parameters`` (``NAME = value`` lines); executing replaces that cell, so what a
person runs by hand in Jupyter and what a command runs is one file.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from keystone.errors import KeystoneError, UsageError

LATENCY: Final = "latency_report.ipynb"
QOE: Final = "qoe_explore.ipynb"
CELL_MAX_S: Final = 900  # a lake of a billion rows is read in less; more is a hang
START_MAX_S: Final = 120  # of the kernel, on a machine that is busy
SOCKET_FOLDER_MAX: Final = 96  # a socket's whole name may have 107 bytes
NEEDED: Final = ("altair", "duckdb", "ipykernel", "nbclient", "nbformat", "vl_convert")
_PACKAGE: Final = Path(__file__).parents[1]


class NotebookFailed(KeystoneError):
    """A cell raised: the message says which, and what."""


def check_packages() -> None:
    """``UsageError`` where what makes notebooks is not installed; costs no import."""
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"the report needs packages that are not installed ({', '.join(missing)}): pip install 'keystone[notebooks]', or make setup in a checkout"
        )


def find(name: str) -> Path:
    """The notebook's file: inside an installed package, or beside the package in a checkout."""
    for folder in (_PACKAGE / "notebooks", _PACKAGE.parent / "notebooks"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"the notebook {name} is neither in {_PACKAGE} nor beside it: install keystone again, or take a whole checkout")


def read(name: str, parameters: Mapping[str, Any]) -> Any:
    """The notebook of that name with these parameters in its tagged cell, and without static pictures: the page draws."""
    import nbformat

    notebook = nbformat.read(find(name), as_version=4)  # type: ignore[no-untyped-call]
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    cell.source = "\n".join(f"{key} = {value!r}" for key, value in {**parameters, "PICTURES": False}.items())
    return notebook


def execute(name: str, parameters: Mapping[str, Any]) -> Any:
    """The notebook with all outputs. Paths among the parameters must be absolute. ``NotebookFailed`` where a cell raises.

    The kernel is this Python with this package, whatever kernels the user has installed, and leaves nothing behind in their home.
    It is reached by sockets in a folder that only this user enters: ports are chosen before they are bound, and on a busy machine another
    process was quicker. Where the folder's name is too long for a socket, by ports after all, of which it would warn: it tells errors only.
    """
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    class ThisPython(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:  # noqa: ARG002 - jupyter_client's signature
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--log-level=40"], display_name="this", language="python"
            )

    notebook = read(name, parameters)
    with tempfile.TemporaryDirectory(prefix="keystone-report-") as scratch:
        place = {"transport": "ipc", "ip": f"{scratch}/k"} if len(scratch) <= SOCKET_FOLDER_MAX else {}
        manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=ThisPython(), connection_file=f"{scratch}/kernel.json", **place)
        client = NotebookClient(notebook, km=manager, timeout=CELL_MAX_S, startup_timeout=START_MAX_S, resources={"metadata": {"path": scratch}})
        try:
            client.execute(env=_environment(scratch))
        except CellExecutionError as error:
            raise NotebookFailed(f"{name}: {error.ename}: {error.evalue}") from error
        except (CellTimeoutError, DeadKernelError, RuntimeError) as error:
            raise NotebookFailed(f"{name} did not come to its end: {str(error).strip().splitlines()[0]}") from error
    return notebook


def _environment(scratch: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(_PACKAGE.parent), os.environ.get("PYTHONPATH"))))
    own = {"IPYTHONDIR": scratch, "JUPYTER_RUNTIME_DIR": scratch, "PYTHONPATH": path, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    return {**os.environ, **own}
