"""What several commands take: a configuration with settings by hand, and where errors of the user end."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from keystone.config import Config, load
from keystone.errors import UsageError

ACTORS_MAX = 1_024
ADDRESS = "auto|HOST:PORT|ray://HOST:10001"  # of a Ray cluster; the last from a machine that is none of its nodes
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


class ActorCount(click.ParamType[int | None]):
    """A number of actors, or ``auto``: None."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """``click.BadParameter`` for anything else."""
        if value is None or value == "auto":
            return None
        if not str(value).isdecimal() or not 1 <= int(value) <= ACTORS_MAX:
            self.fail(f"{value!r} is neither auto nor a number from 1 to {ACTORS_MAX:,}", param, ctx)
        return int(value)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--config`` and ``--set``, handed over as ``config_file`` and ``settings``."""
    command = click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="One setting, such as kafka.codec=zstd. May be repeated.")(command)
    return click.option("--config", "config_file", type=click.Path(dir_okay=False), default=None, help="Read this keystone.toml.")(command)


def load_config(config_file: str | None, settings: tuple[str, ...]) -> Config:
    """The configuration of a command. ``UsageError`` for a setting that is not NAME=VALUE, or unknown."""
    return load(config_file, flags=dict(setting(text) for text in settings))


def setting(text: str) -> tuple[str, str]:
    """Name and value of ``NAME=VALUE``."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: write it as NAME=VALUE, such as detection.loop_threshold=2")
    return name.strip(), value.strip()


def check_target(option: str, path: str | None) -> None:
    """``UsageError`` where a file that is written at the end cannot be: said before the work, not after it."""
    if path is None:
        return
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(path if Path(path).exists() else folder, os.W_OK):
        raise UsageError(f"{option} {path}: {'there is no such directory' if not folder.is_dir() else 'cannot be written'}: name another file")
