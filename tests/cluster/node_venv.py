"""The virtual environment that hosts of a test share: what `deploy/install.sh` would make, without downloading a gigabyte for it.

Of ``deploy/requirements.lock`` the environment of the tests has all but some thirty packages: the dashboard's, which in ``.venv`` would make every Ray of
every test and bench heavier. They are fetched once, by their hashes, into ``KEYSTONE_TEST_CACHE``.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from tests.kafka_processes import CACHE, locked

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "deploy" / "requirements.lock"
RAY = """#!{python}
from ray.scripts.scripts import main
main()
"""


def make_venv(folder: Path) -> Path:
    """Make it in ``folder``; it may be mounted elsewhere. ``install.sh`` finds it ready."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--symlinks", str(folder)], check=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    # In this order: where both have a package, the tests' own version, which the lock names too.
    lines = [f"import site; site.addsitedir({str(path)!r})\n" for path in (sysconfig.get_path("purelib"), _missing_packages())]
    (site / "of-the-tests.pth").write_text("".join(lines))
    script = folder / "bin" / "ray"
    script.write_text(RAY.format(python="/usr/bin/env python"))
    script.chmod(0o755)
    shutil.copy(LOCK, folder / ".installed")
    return folder


def _missing_packages() -> str:
    """The folder of those in the lock that the tests' own environment lacks."""
    text = LOCK.read_text("utf-8")
    key = hashlib.sha256(f"{text}{sys.version}{sys.prefix}".encode()).hexdigest()[:16]
    folder = CACHE / f"cluster-{key}"
    if not folder.is_dir():
        with locked(CACHE / "lock-cluster"):
            if not folder.is_dir():
                _fetch(folder, [block for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()) if _is_missing(block)])
    return str(folder)


def _is_missing(block: str) -> bool:
    asked = Requirement(re.split(r" \\$", block.splitlines()[0])[0])
    if asked.marker is not None and not asked.marker.evaluate():
        return False
    try:
        have = version(asked.name)
    except PackageNotFoundError:
        return True
    assert have in asked.specifier, f"{asked.name} {have} is installed, where deploy/requirements.lock says {asked.specifier}: make setup"
    return False


def _fetch(folder: Path, blocks: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="part-", dir=CACHE, ignore_cleanup_errors=True) as part:
        wanted = Path(part) / "wanted"
        wanted.write_text("\n".join(blocks) + "\n")
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--target", f"{part}/site"]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, "--requirement", str(wanted)], check=True)
        (Path(part) / "site").rename(folder)
