"""Compile with numba, and keep the machine code in a cache directory of our own."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import llvmlite
import numba


def _cache_dir() -> Path:
    digest = hashlib.sha256(f"{numba.__version__} {llvmlite.__version__} {sys.version}".encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "keystone" / digest.hexdigest()[:16]


numba.config.CACHE_DIR = str(_cache_dir())


def kernel(function: Any) -> Any:
    """Compile ``function`` (nogil, no bound checks, cached on disk).

    ``_nrt=False``: numba otherwise counts references of every array it takes out of a tuple, with atomic operations,
    also in inner loops (the JSON kernel was 5 times slower). So kernels allocate nothing: callers hand in the room.
    """
    return numba.njit(cache=True, _nrt=False, nogil=True, boundscheck=False, error_model="numpy")(function)


def inline(function: Any) -> Any:
    """A piece of a kernel: inlined where it is called, never called from Python on a hot way."""
    return numba.njit(inline="always", boundscheck=False, error_model="numpy")(function)


def piece(function: Any) -> Any:
    """A small function that LLVM inlines where it is called; cheaper to compile than ``inline`` and as fast."""
    return numba.njit(forceinline=True, _nrt=False, boundscheck=False, error_model="numpy")(function)


def callee(function: Any) -> Any:
    """A function that kernels call for the rare cases: compiled once, not inlined."""
    return numba.njit(_nrt=False, boundscheck=False, error_model="numpy")(function)
