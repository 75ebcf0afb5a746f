"""The cache of compiled kernels under everything that happens to files: edits, damage, no room, several at once."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from keystone.kernels import cache
from keystone.kernels.cache import CACHES_KEPT, KernelStore, cache_places, source_digest
from keystone.kernels.compiler import cached

PACKAGE = Path(cache.__file__).parent


def total(numbers):
    found = 0
    for number in numbers:
        found += number
    return found


NUMBERS = np.arange(5)


@pytest.fixture
def places(tmp_path):
    return (tmp_path / "home" / "0123456789abcdef", tmp_path / "temporary" / "0123456789abcdef")


def run_total(store: KernelStore) -> int:
    """As a process that has just started would: nothing is compiled, but for what ``store`` holds."""
    return int(cached(total, store)(NUMBERS))


def entries(place: Path) -> list[Path]:
    return sorted(place.glob("*.kernel"))


def test_the_second_process_loads(places):
    first, second = KernelStore(places), KernelStore(places)
    assert (run_total(first), first.compiled, first.loaded) == (10, 1, 0)
    assert (run_total(second), second.compiled, second.loaded) == (10, 0, 1)
    assert len(entries(places[0])) == 1
    assert not places[1].exists()


@pytest.mark.slow
def test_each_signature_has_its_own_entry(places):
    store = KernelStore(places)
    kernel = cached(total, store)
    assert (kernel(NUMBERS), kernel(NUMBERS.astype(np.float64))) == (10, 10.0)
    assert len(entries(places[0])) == store.compiled == 2


def damage_by_cutting(raw: bytes) -> list[bytes]:
    return [raw[:size] for size in (0, 1, len(cache.MAGIC), len(cache.MAGIC) + 20, len(cache.MAGIC) + 32, len(raw) // 2, len(raw) - 1)]


def damage_by_flipping(raw: bytes) -> list[bytes]:
    flipped = []
    for place in (0, len(cache.MAGIC), len(cache.MAGIC) + 31, len(cache.MAGIC) + 32, len(raw) // 2, len(raw) - 1):
        other = bytearray(raw)
        other[place] ^= 0x10
        flipped.append(bytes(other))
    return flipped


@pytest.mark.parametrize("damage", [damage_by_cutting, damage_by_flipping, lambda raw: [raw + b"\0", b"\0" * len(raw)]], ids=["cut", "flipped", "other"])
def test_damage_is_never_unpickled(places, damage, caplog):
    store = KernelStore(places)
    store.write("some.kernel", b"content")
    (path,) = entries(places[0])
    raw = path.read_bytes()
    for broken in damage(raw):
        assert broken != raw
        path.write_bytes(broken)
        assert KernelStore(places).read("some.kernel") is None
        assert not path.exists()
    assert "some.kernel is damaged" in caplog.text


def test_an_entry_under_another_name_is_refused(places):
    store = KernelStore(places)
    store.write("a.kernel", b"content")
    (places[0] / "a.kernel").rename(places[0] / "b.kernel")
    assert store.read("b.kernel") is None


@pytest.mark.slow
@pytest.mark.parametrize("broken", [b"", b"half", None], ids=["empty", "short", "flipped"])
def test_a_damaged_entry_is_compiled_again(places, broken, caplog):
    run_total(KernelStore(places))
    (path,) = entries(places[0])
    raw = path.read_bytes()
    path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:] if broken is None else broken)
    store = KernelStore(places)
    assert (run_total(store), store.compiled) == (10, 1)
    assert "compiling it again" in caplog.text
    assert path.stat().st_size > 1000
    after = KernelStore(places)
    assert (run_total(after), after.compiled, after.loaded) == (10, 0, 1)


@pytest.mark.slow
def test_a_whole_entry_that_cannot_be_rebuilt_is_compiled_again(places, caplog):
    run_total(KernelStore(places))
    (path,) = entries(places[0])
    KernelStore(places).write(path.name, b"whole, and no pickle at all")
    store = KernelStore(places)
    assert (run_total(store), store.compiled) == (10, 1)
    assert "UnpicklingError" in caplog.text


def test_leftovers_of_a_killed_writer_do_no_harm(places):
    places[0].mkdir(parents=True)
    (places[0] / "test.kernel.0123456789ab.tmp").write_bytes(b"half")
    store = KernelStore(places)
    assert run_total(store) == 10


def test_where_the_home_cannot_be_written_the_temporary_directory_serves(places, caplog):
    places[0].parent.write_text("a file where a directory should be")  # stops root, too, unlike permissions
    first, second = KernelStore(places), KernelStore(places)
    assert (run_total(first), first.compiled) == (10, 1)
    assert (run_total(second), second.loaded) == (10, 1)
    assert "cannot be written" in caplog.text
    assert "KEYSTONE_CACHE_DIR" in caplog.text
    assert len(entries(places[1])) == 1


@pytest.mark.slow
def test_where_nothing_can_be_written_each_process_compiles(places, caplog):
    for place in places:
        place.parent.write_text("a file")
    store = KernelStore(places)
    assert (run_total(store), store.compiled) == (10, 1)
    assert (run_total(store), store.compiled) == (10, 2)
    assert sum("not kept" in record.message for record in caplog.records) == 1


def test_a_directory_that_can_only_be_read_is_read(places, monkeypatch):
    run_total(KernelStore(places))

    def refuse(self, place):
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(KernelStore, "_make", refuse)
    store = KernelStore(places)
    assert (run_total(store), store.compiled, store.loaded) == (10, 0, 1)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_temporary_directory_open_to_others_is_not_trusted(places, mode):
    places[0].parent.write_text("a file")
    KernelStore(places).write("some.kernel", b"planted")
    places[1].parent.chmod(mode)
    store = KernelStore(places)
    assert store.read("some.kernel") is None
    store.write("other.kernel", b"content")
    assert not (places[1] / "other.kernel").exists()


def test_a_temporary_directory_that_is_a_link_is_not_trusted(places, tmp_path):
    places[0].parent.write_text("a file")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    places[1].parent.symlink_to(elsewhere)
    KernelStore(places).write("some.kernel", b"content")
    assert not list(elsewhere.rglob("*.kernel"))


def test_directories_are_private(places):
    KernelStore(places).write("some.kernel", b"content")
    assert stat.S_IMODE(places[0].stat().st_mode) == 0o700


def test_old_directories_are_swept_but_not_what_is_ours_or_young(places):
    home = places[0].parent
    for age in range(CACHES_KEPT + 3):
        other = home / f"{age:016x}"
        other.mkdir(parents=True)
        (other / "some.kernel").write_text("old")
        os.utime(other, (time.time() - 1e6 - age, time.time() - 1e6 - age))
    (home / "fedcba9876543210").mkdir()
    (home / "notes").mkdir()
    os.utime(home / "notes", (1, 1))
    KernelStore(places).complete()
    left = {path.name for path in home.iterdir()}
    kept = {f"{age:016x}" for age in range(CACHES_KEPT - 1)}  # and the young one
    assert left == kept | {"fedcba9876543210", "notes", places[0].name}


def test_what_is_compiled_from_sources_edited_meanwhile_is_not_kept(places, caplog):
    store = KernelStore(places, is_current=lambda: False)
    assert run_total(store) == 10
    store.complete()
    assert not entries(places[0])
    assert not store.is_complete()
    assert "changed since this process started" in caplog.text


def test_threads_compile_once(places):
    store = KernelStore(places)
    kernel = cached(total, store)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(int(kernel(NUMBERS)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [10] * 4
    assert store.compiled == 1
    assert store._depth == 0


def test_a_failed_compilation_gives_the_lock_back(places):
    def wrong(numbers):
        return numbers.no_such_attribute

    store = KernelStore(places)
    with pytest.raises(Exception, match="no_such_attribute"):
        cached(wrong, store)(NUMBERS)
    assert store._depth == 0
    assert run_total(KernelStore(places)) == 10


@pytest.mark.slow
def test_a_lock_held_for_too_long_is_not_waited_for(places, monkeypatch, caplog):
    monkeypatch.setattr(cache, "LOCK_WAIT_S_MAX", 0.1)
    holder, other = KernelStore(places), KernelStore(places)
    with holder.locked():
        assert run_total(other) == 10
    assert "compiling without it" in caplog.text
    assert other.compiled == 1


def test_a_constant_that_cannot_be_kept_is_refused(places):
    table = np.zeros(1 << 20, np.int64)  # 8 MB: numba leaves a pointer into this process

    def lookup(index):
        return table[index]

    with pytest.raises(ValueError, match="make it an argument"):
        cached(lookup, KernelStore(places))(3)


# --- the places and the name -------------------------------------------------------------------------------------------


def test_where_the_cache_lies():
    def home(**env):
        return str(cache_places("d", env)[0])

    assert home(HOME="/h", XDG_CACHE_HOME="/x", KEYSTONE_CACHE_DIR="/k") == "/k/d"
    assert home(HOME="/h", XDG_CACHE_HOME="/x") == "/x/keystone/d"
    assert home(HOME="/h") == "/h/.cache/keystone/d"
    assert cache_places(None, {"HOME": "/h"}) == ()


def test_the_name_is_of_everything_that_machine_code_depends_on(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("a = 1")
    two.write_text("b = 2")
    before = source_digest([one, two], {})
    assert source_digest([two, one], {"NUMBA_NUM_THREADS": "3", "HOME": "/"}) == before
    assert source_digest([one, two], {"NUMBA_OPT": "1"}) != before
    assert source_digest([one], {}) != before
    two.write_text("b = 3")
    assert source_digest([one, two], {}) != before
    assert source_digest([], {}) is None


# --- whole processes ---------------------------------------------------------------------------------------------------

CALLEE = "from keystone.kernels.compiler import callee\n\n@callee\ndef step(number):\n    return number + {step}\n"
KERNEL = """
from keystone.events import LF
from keystone.kernels.compiler import kernel
from keystone.kernels.steps import step

@kernel
def run(number):
    return step(number) * 1000 + LF

def warm_up():
    run(1)
"""
PROGRAM = """
import json, sys
from keystone.kernels import warm
from keystone.kernels.tiny import run
ran = []
cost = warm(lambda: ran.append(run(2)))
assert len(ran) == 1
print(json.dumps({"answer": run(1), "compiled": cost.compiled, "loaded": cost.loaded, "directory": str(cost.directory), "said": str(cost)}))
"""


class Installation:
    """A copy of the compiler with one small kernel, and processes that use it."""

    def __init__(self, folder: Path) -> None:
        self.kernels = folder / "install" / "keystone" / "kernels"
        self.home = folder / "cache"
        self.kernels.mkdir(parents=True)
        for name in ("__init__.py", "cache.py", "compiler.py"):
            shutil.copy(PACKAGE / name, self.kernels)
        (self.kernels.parent / "__init__.py").touch()
        (self.kernels / "tiny.py").write_text(KERNEL)
        self.edit(step=1)
        self.set_constant(10)

    def edit(self, step: int) -> None:
        (self.kernels / "steps.py").write_text(CALLEE.format(step=step))

    def set_constant(self, value: int) -> None:
        (self.kernels.parent / "events.py").write_text(f"LF = {value}\n")

    def start(self, **env: str) -> subprocess.Popen[str]:
        mine = {"PYTHONPATH": str(self.kernels.parents[1]), "KEYSTONE_CACHE_DIR": str(self.home), "PYTHONDONTWRITEBYTECODE": "1", **env}
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env={**os.environ, **mine}, cwd=self.home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    @staticmethod
    def answer(process: subprocess.Popen[str]) -> dict[str, object]:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        return {**json.loads(out), "stderr": err}

    def run(self, **env: str) -> dict[str, object]:
        return self.answer(self.start(**env))


@pytest.fixture
def installation(tmp_path):
    return Installation(tmp_path)


@pytest.mark.slow
def test_a_changed_callee_or_constant_is_noticed(installation):
    assert installation.run()["answer"] == 2010
    installation.edit(step=5)
    assert installation.run()["answer"] == 6010
    installation.set_constant(7)
    assert installation.run()["answer"] == 6007


@pytest.mark.slow
def test_four_cold_starts_compile_once(installation):
    processes = [installation.start() for _ in range(4)]
    answers = [installation.answer(process) for process in processes]
    assert [answer["answer"] for answer in answers] == [2010] * 4
    assert sorted(answer["compiled"] for answer in answers) == [0, 0, 0, 1]
    assert "compiled" in answers[0]["said"]


@pytest.mark.slow
def test_an_install_and_a_home_that_cannot_be_written_still_run_and_say_so(installation, tmp_path):
    root = installation.kernels.parents[1]
    for path in (*root.rglob("*"), root):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = sorted(root.rglob("*"))
    (tmp_path / "file").touch()
    answer = installation.run(KEYSTONE_CACHE_DIR=str(tmp_path / "file" / "cache"), TMPDIR=str(tmp_path))
    for path in (root, *root.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert answer["answer"] == 2010
    assert sorted(root.rglob("*")) == before
    assert "cannot be written" in str(answer["stderr"])
    assert answer["directory"].startswith(str(tmp_path / f"keystone-{os.geteuid()}"))


@pytest.mark.slow
def test_without_compilation_the_functions_still_run(installation):
    assert installation.run(NUMBA_DISABLE_JIT="1")["answer"] == 2010
