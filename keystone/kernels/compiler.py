"""Compile with numba, and keep the machine code in a cache of our own (``cache.py`` says what it promises).

Four decorators, one for each part a function can play:

``kernel``  called from Python; compiled once for each signature and machine, then loaded.
``piece``   inlined by LLVM where a kernel calls it. Cheap to compile: the first choice.
``inline``  inlined by numba before typing: for pieces that take functions or make tuples. Dearer to compile.
``callee``  called by kernels for rare cases, not inlined.

All of them live in this package, because the cache's key is every source here and ``keystone.events`` (kernels fold its
constants into their code); kernels import nothing else of ours. A module of kernels has a ``warm_up()`` that calls each
of its kernels once on tiny inputs of the dtypes used in earnest; ``warm`` runs them all.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import pickle
import pkgutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
from numba.core import serialize
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher

from keystone.kernels.cache import KernelStore, cache_places, source_digest

# numba has no public way to say where machine code is kept; these two (private, unchanged for years) are all we use.
_dumps: Callable[[object], bytes] = serialize.dumps
_rebuild: Callable[..., Any] = CompileResult._rebuild  # noqa: SLF001
_njit: Callable[..., Any] = numba.njit  # its types leave out _nrt

_HERE = Path(__file__).parent


def _digest() -> str | None:
    return source_digest([*_HERE.glob("*.py"), _HERE.parent / "events.py"], os.environ)


DIGEST = _digest()
STORE = KernelStore(cache_places(DIGEST, os.environ), is_current=lambda: _digest() == DIGEST)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` (nogil, no bound checks, division as in C, kept on disk).

    ``_nrt=False``: numba otherwise counts references of every array it takes out of a tuple, with atomic operations,
    also in inner loops (the JSON kernel was 5 times slower). So kernels allocate nothing: callers hand in the room.
    """
    return cached(function, STORE)


def inline(function: Callable[..., Any]) -> Any:
    """A piece of a kernel: inlined where it is called, never called from Python on a hot way."""
    return _njit(inline="always", boundscheck=False, error_model="numpy")(function)


def piece(function: Callable[..., Any]) -> Any:
    """A small function that LLVM inlines where it is called; cheaper to compile than ``inline`` and as fast."""
    return _njit(forceinline=True, _nrt=False, boundscheck=False, error_model="numpy")(function)


def callee(function: Callable[..., Any]) -> Any:
    """A function that kernels call for the rare cases: compiled once, not inlined."""
    return _njit(_nrt=False, boundscheck=False, error_model="numpy")(function)


@dataclass(frozen=True, slots=True)
class Warmth:
    """What making the kernels ready cost: how many were compiled and how many loaded, wall seconds, and where they are."""

    compiled: int
    loaded: int
    seconds: float
    directory: Path | None

    def __str__(self) -> str:
        return f"{self.compiled} kernels compiled, {self.loaded} loaded in {self.seconds:.1f} s, cache {self.directory or 'off'}"


def warm(*more: Callable[[], object]) -> Warmth:
    """Make every kernel of the package ready in this process: each module's ``warm_up()``, then ``more``.

    ``more`` is for kernels whose arguments only modules above can make (a small run of the simulator, say).

    Call it before starting processes that need kernels: they then load instead of compiling. Of several processes that
    call it cold, one compiles while the others wait. Raises what a module's ``warm_up`` raises.
    """
    started, compiled, loaded = time.monotonic(), STORE.compiled, STORE.loaded
    package = __name__.rpartition(".")[0]
    with nullcontext() if STORE.is_complete() else STORE.locked():
        for module in pkgutil.iter_modules([str(_HERE)]):
            warm_up = getattr(importlib.import_module(f"{package}.{module.name}"), "warm_up", None)
            if warm_up is not None:
                warm_up()
        for step in more:
            step()
        STORE.complete()
    directory = next((place for place in STORE.places if (place / "complete").is_file()), None)
    return Warmth(STORE.compiled - compiled, STORE.loaded - loaded, time.monotonic() - started, directory)


def cached(function: Callable[..., Any], store: KernelStore) -> Any:
    """``function`` compiled as ``kernel`` says, with its machine code in ``store``."""
    dispatcher = _njit(_nrt=False, nogil=True, boundscheck=False, error_model="numpy")(function)
    if not isinstance(dispatcher, Dispatcher):  # NUMBA_DISABLE_JIT: the function itself
        return dispatcher
    overloads = _Overloads(function, store)
    compile_always = dispatcher.compile

    def compile_once(signature: Any) -> Any:
        with global_compiler_lock:
            try:
                return compile_always(signature)
            finally:
                overloads.release()

    vars(dispatcher).update(_cache=overloads, compile=compile_once)  # numba offers its own file cache only
    return dispatcher


class _Overloads:
    """The compiled forms of one kernel: what numba's dispatcher asks for before, and hands over after, compiling.

    A miss takes the store's lock and looks again: whoever held it may have compiled the same. ``release`` ends it,
    also when compiling fails. numba's compiler lock serves as the mutex of this object.
    """

    def __init__(self, function: Callable[..., Any], store: KernelStore) -> None:
        self._function = function
        self._store = store
        self._locks = 0
        self._stem = f"{Path(function.__code__.co_filename).stem}.{function.__qualname__}".replace("<", "").replace(">", "")

    @property
    def cache_path(self) -> str | None:
        return str(self._store.places[0]) if self._store.places else None

    def enable(self) -> None:
        """Part of numba's protocol; there is nothing to switch."""

    def disable(self) -> None:
        """Part of numba's protocol; there is nothing to switch."""

    def flush(self) -> None:
        self._store.forget(self._stem)

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        target_context.refresh()
        entry = self._entry(signature, target_context.codegen())
        result = self._load(entry, target_context)
        if result is None:
            self._store.lock()
            self._locks += 1
            result = self._load(entry, target_context)
        if result is not None:
            self._store.loaded += 1
        return result

    def save_overload(self, signature: Any, result: Any) -> None:
        self._store.compiled += 1
        if result.lifted or result.library.has_dynamic_globals:
            raise ValueError(f"{self._stem} cannot be kept on disk: it uses an array of over 1 MB, or a pointer, as a constant: make it an argument")
        self._store.write(self._entry(signature, result.codegen), _dumps(result._reduce()))  # noqa: SLF001

    def release(self) -> None:
        while self._locks:
            self._locks -= 1
            self._store.unlock()

    def _load(self, entry: str, target_context: Any) -> Any:
        content = self._store.read(entry)
        if content is None:
            return None
        try:
            return _rebuild(target_context, *pickle.loads(content))  # noqa: S301 - our own, checksummed
        except Exception as error:  # noqa: BLE001 - whatever it is, compiling again cures it
            self._store.drop(entry, f"{type(error).__name__}: {error}")
            return None

    def _entry(self, signature: Any, codegen: Any) -> str:
        """Name of the file for ``signature``: the argument types, the processor, and the kernel's own file and variables."""
        code = self._function.__code__
        closure = tuple(cell.cell_contents for cell in self._function.__closure__ or ())
        key = (signature, codegen.magic_tuple(), code.co_firstlineno, _file_digest(code.co_filename))
        digest = hashlib.sha256(repr(key).encode() + code.co_code + (_dumps(closure) if closure else b""))
        return f"{self._stem}-{digest.hexdigest()[:16]}.kernel"


@functools.cache
def _file_digest(path: str) -> str:
    """Hash of a kernel's own file, for kernels outside this package (tests have some)."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return path
