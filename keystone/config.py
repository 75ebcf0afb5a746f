"""One typed tree of every limit and default.

``Config()`` is the defaults and reads nothing. ``load()`` lays over them, each over the one before: ``keystone.toml``,
``KEYSTONE_*`` variables (``KEYSTONE_SESSION__TIMEOUT_MS=60000`` is ``session.timeout_ms``; lists are JSON), and flags.
The tree is frozen: what was checked once stays true. A setting nobody knows is refused, not ignored: a typing error
would otherwise run with the default and never be noticed.

pydantic alone does this; pydantic-settings passes over unknown top-level variables and costs 0.2 s more to import.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from keystone.errors import UsageError

PREFIX = "KEYSTONE_"
DEFAULT_PATH = "keystone.toml"
#: Variables of ours that are no settings, and what they do.
OTHER_VARIABLES = {
    "KEYSTONE_CONFIG": "path of the configuration file",
    "KEYSTONE_CACHE_DIR": "where compiled kernels are kept",
}

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SessionConfig(_Frozen):
    timeout_ms: Positive = 90_000  # log time without an event, after which a session closes
    grace_ms: NotNegative = 10_000  # log time a stopped session is kept for late events and duplicates
    sessions_max: Positive = 1 << 26  # active sessions of one table; 67M x ~150 B = 10 GB, beyond any one machine here


class DetectionConfig(_Frozen):
    loop_threshold: Positive = 3  # stalls in a row that make a buffering loop
    open_stall_ms: Positive = 10_000  # log time of silence in a stall
    ladder_kbps: tuple[Positive, ...] = (235, 375, 560, 750, 1050, 1750, 2350, 3000, 4300, 5800)

    @field_validator("ladder_kbps")
    @classmethod
    def _rises(cls, ladder_kbps: tuple[int, ...]) -> tuple[int, ...]:
        if not ladder_kbps or list(ladder_kbps) != sorted(set(ladder_kbps)):
            raise ValueError("must list rising bitrates, each once")
        return ladder_kbps


class LakeConfig(_Frozen):
    row_group_rows: Positive = 131_072  # held in memory for each open file: x ~35 B of encoded pages = 5 MB
    row_group_bytes_max: Positive = 32 << 20  # of encoded pages, where rows are large
    file_rows_max: Positive = 4 << 20  # ~120 MB of Parquet
    file_bytes_max: Positive = 512 << 20
    file_age_max_ms: Positive = 10_000
    queue_bytes_max: Positive = 32 << 20  # pages between the step and the writing thread: ~1M rows; more only hides a slow disk


class Config(_Frozen):
    session: SessionConfig = SessionConfig()
    detection: DetectionConfig = DetectionConfig()
    lake: LakeConfig = LakeConfig()


def load(path: Path | str | None = None, env: Mapping[str, str] | None = None, flags: Mapping[str, object] | None = None) -> Config:
    """The configuration of a run.

    ``path``: the file; without one, the one ``KEYSTONE_CONFIG`` names, else ``keystone.toml`` here, if there is any.
    ``env``: the environment by default. ``flags``: settings by dotted name, as a command line gives them.
    Raises ``UsageError`` with one line that names the place of the mistake and says what to change.
    """
    env = os.environ if env is None else env
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, origin in (*_from_file(path, env), *_from_env(env), *_from_flags(flags or {})):
        *tables, leaf = name.split(".")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
        node[leaf] = value
        origins[name] = origin
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error, origins)) from None
    _check_together(config, origins)
    return config


def setting_names(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting, in the order of the tree."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


Setting = tuple[str, Any, str]  # dotted name, value, where it was given


def _from_file(path: Path | str | None, env: Mapping[str, str]) -> Iterator[Setting]:
    chosen = path or env.get("KEYSTONE_CONFIG")
    place = Path(chosen or DEFAULT_PATH)
    try:
        tree = tomllib.loads(place.read_text("utf-8"))
    except FileNotFoundError:
        if chosen:
            raise UsageError(f"{place}: there is no such configuration file: correct {'--config' if path else 'KEYSTONE_CONFIG'}") from None
        return
    except OSError as error:
        raise UsageError(f"{place}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{place}: is not TOML: {error}") from None
    yield from _leaves(tree, "", str(place))


def _leaves(tree: Mapping[str, Any], prefix: str, origin: str) -> Iterator[Setting]:
    known = tuple(setting_names())
    for key, value in tree.items():
        name = prefix + key
        is_table = any(setting.startswith(name + ".") for setting in known)
        if is_table and isinstance(value, Mapping):
            yield from _leaves(value, name + ".", origin)
        elif is_table:
            raise UsageError(f"{origin}: {name} = {value!r} is a table, not a value: write [{name}] on a line of its own, its settings below")
        elif name in known:
            yield name, value, origin
        else:
            raise UsageError(f"{origin}: {name} is no setting: {_advice(name, known)}")


def _from_env(env: Mapping[str, str]) -> Iterator[Setting]:
    settings = {variable_of(name): name for name in setting_names()}
    for variable in sorted(env):
        if not variable.startswith(PREFIX) or variable in OTHER_VARIABLES:
            continue
        if variable not in settings:
            raise UsageError(f"{variable} is no setting: {_advice(variable, (*settings, *OTHER_VARIABLES))}")
        yield settings[variable], _parsed(env[variable]), variable


def variable_of(name: str) -> str:
    """The environment variable of a setting: KEYSTONE_SESSION__TIMEOUT_MS for session.timeout_ms."""
    return PREFIX + name.replace(".", "__").upper()


def _parsed(text: str) -> Any:
    """Lists and tables are JSON; anything else is for the field to understand."""
    if text.lstrip().startswith(("[", "{")):
        try:
            return json.loads(text)
        except ValueError:
            return text
    return text


def _from_flags(flags: Mapping[str, object]) -> Iterator[Setting]:
    known = tuple(setting_names())
    for name, value in flags.items():
        if name not in known:
            raise UsageError(f"{name} is no setting: {_advice(name, known)}")
        yield name, _parsed(value) if isinstance(value, str) else value, "command line"


def _advice(name: str, known: tuple[str, ...]) -> str:
    """What to write instead of ``name``, all names being dotted, or all being variables."""
    prefix, divider = (PREFIX, "__") if name.startswith(PREFIX) else ("", ".")
    wrong, right = name.removeprefix(prefix), [other.removeprefix(prefix) for other in known]
    table = wrong.rpartition(divider)[0]
    tables = list(dict.fromkeys(other.partition(divider)[0] for other in right))
    same_leaf = [other for other in right if other.endswith(divider + wrong)]
    if close := same_leaf or difflib.get_close_matches(wrong, right if table else right + tables, n=1, cutoff=0.75):
        return f"did you mean {prefix}{close[0]}?"
    near = [other for other in right if table and other.startswith(table + divider)]
    return "remove it, or choose one of " + ", ".join(prefix + other for other in near or [t if t in right else f"{t}{divider}*" for t in tables])


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """The first mistake in one line."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    origin = next(origin for setting, origin in origins.items() if f"{name}.".startswith(f"{setting}."))
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{origin}: {name} = {first['input']!r} {reason}"


def _check_together(config: Config, origins: Mapping[str, str]) -> None:
    """Settings that each make sense alone, but not together. A test may build such a tree; a run may not."""
    session, detection, lake = config.session, config.detection, config.lake
    rules = (
        (
            session.timeout_ms > detection.open_stall_ms,
            ("session.timeout_ms", session.timeout_ms, "must exceed", "detection.open_stall_ms", detection.open_stall_ms),
            "raise timeout_ms, or sessions time out before an open stall is seen",
        ),
        (
            lake.file_rows_max >= lake.row_group_rows,
            ("lake.file_rows_max", lake.file_rows_max, "must be at least", "lake.row_group_rows", lake.row_group_rows),
            "lower row_group_rows: a file holds at least one row group",
        ),
    )
    for holds, (left, left_value, relation, right, right_value), cure in rules:
        if not holds:
            places = ", ".join(dict.fromkeys(origins[name] for name in (left, right) if name in origins))
            raise UsageError(f"{places}: {left} = {left_value} {relation} {right} = {right_value}: {cure}")
