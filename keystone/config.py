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
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from keystone.errors import UsageError

PREFIX = "KEYSTONE_"
DEFAULT_PATH = "keystone.toml"
#: Variables of ours that are no settings, and what they do.
OTHER_VARIABLES = {
    "KEYSTONE_CONFIG": "path of the configuration file",
    "KEYSTONE_CACHE_DIR": "where compiled kernels are kept",
}

#: Settings that no file of settings and no command line may hold: both are read by more people than need them.
SECRETS = frozenset({"kafka.sasl_password", "elastic.password", "elastic.api_key"})

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


class CohortsConfig(_Frozen):
    """What quality of experience is told by, and how much of it is kept (``keystone/qoe.py``)."""

    enabled: bool = True
    dimensions: tuple[str, ...] = ("region", "device_type", "cdn", "isp", "app_version", "country")  # the first matter most where combinations are too many
    pairs: tuple[tuple[str, str], ...] = (("region", "device_type"), ("region", "cdn"))
    values_max: Annotated[int, Field(gt=0, le=60_000)] = (
        1_000  # of a dimension; others are `other`: 6 x 1,000 rows a second at most, half of what an index takes
    )
    pair_values_max: Annotated[int, Field(gt=0, le=1_000)] = 128  # of each side of a pair: 130 x 130 cohorts at most
    combinations_max: Annotated[int, Field(ge=1_024, le=1 << 24)] = 1 << 18  # of values, of a partition's sessions: x ~160 B = 42 MB
    lateness_max_ms: Positive = 10_000  # that a window waits for partitions behind; what they tell then corrects it
    windows_held: Annotated[int, Field(ge=120)] = 600  # of 1 s, to be corrected: 10 minutes, longer than partitions take to come back
    rows_held_max: Positive = 1 << 19  # of these windows, all partitions: x ~250 B = 130 MB; then the oldest go first

    @field_validator("dimensions")
    @classmethod
    def _once(cls, dimensions: tuple[str, ...]) -> tuple[str, ...]:
        if not dimensions or len(set(dimensions)) != len(dimensions):
            raise ValueError("must list at least one dimension, each once")  # that they exist is known where they are used (qoe.Layout)
        return dimensions

    @field_validator("pairs")
    @classmethod
    def _differ(cls, pairs: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
        if any(left == right for left, right in pairs) or len({frozenset(pair) for pair in pairs}) != len(pairs):
            raise ValueError('must list pairs of two dimensions, each pair once, such as [["region", "cdn"]]')
        return pairs


class LakeConfig(_Frozen):
    row_group_rows: Positive = 131_072  # held in memory for each open file: x ~35 B of encoded pages = 5 MB
    row_group_bytes_max: Positive = 32 << 20  # of encoded pages, where rows are large
    file_rows_max: Positive = 4 << 20  # ~120 MB of Parquet
    file_bytes_max: Positive = 512 << 20
    file_age_max_ms: Positive = 10_000
    queue_bytes_max: Positive = 32 << 20  # pages between the step and the writing thread: ~1M rows; more only hides a slow disk
    catalog: Mapping[str, str] = Field(default_factory=dict)  # of Iceberg, as pyiceberg names its properties; none: SQLite in the lake's directory
    commit_interval_ms: Positive = 10_000  # how old what a reader of the tables sees may be; each is a snapshot of a table
    expire_every_commits: Positive = 10  # snapshots make every later commit dearer, and expiring many at once costs 75 ms each
    snapshots_kept: Annotated[int, Field(ge=2, le=1_000)] = 10  # 100 s to read what was planned on one, and orphan_age_ms for its files
    target_file_bytes: Positive = 128 << 20  # what compaction makes of small files: ~4M rows, one read of 1-2 s
    compact_files_min: Annotated[int, Field(ge=2)] = 5  # small files of a day that are worth a rewrite
    compact_time_share: Annotated[float, Field(ge=0, le=0.5)] = 0.1  # of the committer's time, for joining small files as they come; 0: by command only
    orphan_age_ms: Positive = 86_400_000  # that a file is seen to be in no snapshot before it is deleted: the longest query that still reads it
    sweep_interval_ms: Positive = 3_600_000  # between looks for such files: each lists the whole lake
    home_dir: str | None = None  # of what lakes in buckets keep on this machine: catalog, state, spool; none: ~/.local/share/keystone/lakes
    spool_bytes_max: Positive = 2 << 30  # waiting for upload, of a session actor: a minute of 1M events/s at 34 B, then nothing more is read


class CheckpointConfig(_Frozen):
    interval_ms: Positive = 10_000  # of events read again after a crash; at 1M sessions 0.09 s of CPU and 120 MB written, 1% of a core and 12 MB/s
    keep: Annotated[int, Field(ge=2)] = 3  # of a partition: the newest, and two to fall back on where a disk damages it
    fsync: bool = True  # 70 ms of waiting for 128 MB on a disk, off the stream's way; False: a power cut may cost the last half minute
    standbys: Annotated[int, Field(ge=0, le=64)] = 1  # built and warm: a death costs no start of a process (~4 s), and ~150 MB wait for it


class BalanceConfig(_Frozen):
    """When partitions move to another owner because loads are uneven (``keystone/balance.py``). What moves pauses, 0.3 to 1 s."""

    enabled: bool = True  # False: partitions are spread by their number alone
    window_ms: Positive = 30_000  # over which a partition's load is measured: bursts and batches are shorter
    patience_ms: Positive = 60_000  # at every look a move must have paid, and no owner changed: longer than loads differ at starts, ends and faults
    uneven_percent: Annotated[int, Field(ge=101)] = 125  # of the mean load: over it an owner is too full
    gain_percent: Annotated[int, Field(ge=1, le=99)] = 20  # by which the highest load must fall; as many partitions each, loads +-20 %: 17 at most
    partition_cost_eps: Positive = 2_000  # events/s that cost what a partition costs without any: 2 ms of CPU a second; far less load moves nothing


class LogsConfig(_Frozen):
    """What the program says of itself, and how much of it (``keystone/logs.py``)."""

    level: Literal["debug", "info", "warning", "error"] = "info"  # of our own loggers
    levels: Mapping[str, Literal["debug", "info", "warning", "error", "critical"]] = Field(default_factory=dict)  # of loggers that begin so
    format: Literal["auto", "human", "json"] = "auto"  # auto: for people on a terminal, JSON anywhere else
    queue_records_max: Positive = 4_096  # before the writing thread, and as many in its hands: 2 x 4,096 x ~1 kB = 8 MB
    repeats_max: Positive = 5  # of one message in a window; those beyond are counted and told in one line
    repeat_window_ms: Positive = 10_000

    @field_validator("levels", mode="before")
    @classmethod
    def _joined(cls, levels: object) -> object:
        """TOML reads ``keystone.log = "debug"`` as a table in a table: the same logger as ``"keystone.log"``."""
        if not isinstance(levels, Mapping):
            raise ValueError('must be a table such as {kafka = "error"}; in a variable or flag, JSON: {"kafka": "error"}')  # noqa: TRY004 - a message for people
        return dict(_joined_names(levels, ""))

    @field_validator("levels")
    @classmethod
    def _tells_no_secrets(cls, levels: Mapping[str, str]) -> Mapping[str, str]:
        if any(name.split(".")[0] == "kafka" and level == "debug" for name, level in levels.items()):
            raise ValueError("would write passwords and payloads, which kafka-python shows at debug: choose info or above for kafka")
        return levels


def _joined_names(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _joined_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


class KafkaConfig(_Frozen, hide_input_in_errors=True):
    """How the brokers of a ``kafka://`` log are reached and used. Secrets come from files or the environment, never from here."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    allow_plaintext: bool = False  # beyond this machine
    tls_ca_file: str | None = None  # PEM; without one, the system's
    tls_cert_file: str | None = None  # PEM, of this client, where the brokers ask for one
    tls_key_file: str | None = None
    tls_key_password_file: str | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "SCRAM-SHA-512"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None  # by KEYSTONE_KAFKA__SASL_PASSWORD only
    sasl_password_file: str | None = None
    oauth_token_command: tuple[str, ...] = ()  # prints a bearer token, alone or as {"token": ..., "expires_in_s": ...}
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")] = "keystone"
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,200}$")] = "keystone"  # its offsets are for lag tools only; "": none
    actions_topic: str = "keystone-actions"
    dead_letters_topic: str = "keystone-dead-letters"
    connect_timeout_ms: Positive = 8_000  # a wrong address or password is told within 10 s
    request_timeout_ms: Positive = 5_000  # without an answer the connection is given up and the request repeated elsewhere
    delivery_timeout_ms: Positive = 120_000  # far above any outage that heals; then the outcome is failed, or unknown
    metadata_max_age_ms: Positive = 5_000  # within which added partitions and moved leaders are noticed without an error
    codec: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "lz4"  # by benchmarks/kafka.py, brokers included
    linger_ms: NotNegative = 5  # records of that long share a batch: a request costs ~1 ms here and as much at the broker
    batch_bytes_max: Positive = 1_000_000  # unpacked; brokers take 1,048,588 by default
    send_bytes_max: Positive = 32 << 20  # not acknowledged yet, of one process: ~0.3 s of 400k events/s; then the caller waits
    fetch_bytes_max: Positive = 4 << 20  # of one partition and answer, packed; larger records come all the same
    fetch_buffer_bytes_max: Positive = 32 << 20  # fetched and not polled yet, of one process, packed
    fetch_wait_ms: Positive = 25  # that a broker keeps a fetch without records: 40 a second; log time of a silent partition is as stale
    append_late_max_ms: NotNegative = 100  # brokers' clocks behind ours, and replication: what log time is held back by


class RunConfig(_Frozen):
    """What ``keystone run`` takes where its command line says nothing: the same words as the options."""

    log: str | None = None
    lake: str | None = None  # also of keystone lake and doctor
    lake_format: Literal["iceberg", "parquet"] = "iceberg"
    state: str | None = None
    actions: str | None = None
    dead_letters: str | None = None
    elastic: str | None = None  # also of keystone elastic, top and audit


class SinksConfig(_Frozen):
    """How rows wait for a sink that is slow or away (``keystone/sinks/outbox.py``). Limits are of one sink of one process; queues of each kind."""

    queue_items_max: Positive = 50_000  # of a kind, in memory: 2.5 s of 20,000 sessions/s
    queue_bytes_max: Positive = 16 << 20  # of a kind, in memory; at half of either what waits goes to disk; more only hides a dead sink
    batch_items_max: Positive = 1_000  # of one request; 5,000 are 16 % faster on Elasticsearch 8, and hold up the next of their kind for longer
    batch_bytes_max: Positive = 4 << 20
    alert_linger_ms: NotNegative = 20  # how long an alert waits for others
    linger_ms: NotNegative = 500  # other kinds: 2 requests a second of each
    may_drop: tuple[Literal["cohorts", "events", "dead_letters"], ...] = ("cohorts",)  # where neither memory nor disk has room; alerts and sessions never
    retry_first_ms: Positive = 100  # bound of the first wait between two tries; it doubles
    retry_max_ms: Positive = 10_000  # and ends here: a receiver that is back is noticed within that
    open_after_failures: Positive = 3  # requests in a row, until only single tries are made
    give_up_ms: Positive = 600_000  # in memory, of kinds that may be dropped: then a window is nobody's "now" any more
    mark_wait_ms: NotNegative = 1_000  # of a checkpoint, for acknowledgements; then to disk
    spill_bytes_max: NotNegative = 1 << 30  # of one sink on disk; 0: none. 1,700 s of 1,000 alerts/s at 600 B
    spill_file_bytes: Positive = 4 << 20  # a file is read at once
    file_bytes_max: NotNegative = 256 << 20  # of a file of rows (sink file:PATH), then the next begins; 0: never. ~450,000 alerts of 600 B
    home_dir: str = "~/.local/share/keystone/outbox"  # of runs without a lake in a directory: what waits for a sink


class DeadLettersConfig(_Frozen):
    bytes_max: NotNegative = 1 << 30  # in files or a bucket, of a session actor: ~2 million letters, then they are counted; a topic ends by its retention


class ElasticConfig(_Frozen, hide_input_in_errors=True):
    """How Elasticsearch or OpenSearch is reached. Secrets come from files or the environment, never from here."""

    username: str | None = None
    password: SecretStr | None = None  # by KEYSTONE_ELASTIC__PASSWORD only
    password_file: str | None = None
    api_key: SecretStr | None = None  # by KEYSTONE_ELASTIC__API_KEY only; as the server gives it out, base64 of id:key
    api_key_file: str | None = None
    tls_ca_file: str | None = None  # PEM; without one, the system's
    tls_verify: bool = True
    allow_plaintext: bool = False  # to send a login beyond this machine without TLS
    connect_timeout_ms: Positive = 3_000
    request_timeout_ms: Positive = (
        10_000  # 1,000 alerts take ~0.12 s (8,248 a second, benchmarks/results/elastic.json); meanwhile their kind waits, nothing else does
    )
    dead_node_ms: Positive = 10_000  # that a node without an answer is passed over, while others answer


class RouteConfig(_Frozen):
    """A way of rows from a source to a sink (``keystone/routes.py``): which rows, which columns, where to."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_by_name=True, validate_by_alias=True)

    name: str
    source: Literal["events", "alerts", "sessions", "cohorts", "dead_letters"] = Field(alias="from")
    where: str | None = None  # SQL: a condition; none: every row
    select: str | None = None  # SQL: a list of columns; none: all
    sink: Annotated[str, Field(min_length=1, max_length=1_000)]

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name) is None:
            raise ValueError("must be 1 to 60 letters, digits, - or _")
        return name

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, given: object) -> object:
        known = ("name", "from", "where", "select", "sink")
        if not isinstance(given, Mapping):
            raise ValueError("must be a table: write [[routes]] on a line of its own, name, from and sink below")  # noqa: TRY004 - a message for people
        for key in given:
            if key not in (*known, "source"):
                raise ValueError(f"has {key}, which is no key of a route: {_advice(str(key), known)}")
        for key in ("name", "from", "sink"):
            if key not in given and not (key == "from" and "source" in given):
                raise ValueError(f"lacks {key}: a route has name, from and sink, and may have where and select")
        return given


class Config(_Frozen, hide_input_in_errors=True):
    session: SessionConfig = SessionConfig()
    detection: DetectionConfig = DetectionConfig()
    lake: LakeConfig = LakeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    balance: BalanceConfig = BalanceConfig()
    kafka: KafkaConfig = KafkaConfig()
    logs: LogsConfig = LogsConfig()
    run: RunConfig = RunConfig()
    cohorts: CohortsConfig = CohortsConfig()
    sinks: SinksConfig = SinksConfig()
    dead_letters: DeadLettersConfig = DeadLettersConfig()
    elastic: ElasticConfig = ElasticConfig()
    routes: Annotated[tuple[RouteConfig, ...], Field(max_length=100)] = ()  # beside the default ones; each is looked at for every batch of its source

    @field_validator("routes", mode="before")
    @classmethod
    def _are_tables(cls, routes: object) -> object:
        if not isinstance(routes, list | tuple):
            raise ValueError("must be a list of tables: write [[routes]], in two brackets, above each")  # noqa: TRY004 - a message for people
        return routes


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
        if name in SECRETS and origin != variable_of(name):
            raise UsageError(f"{origin}: {name} is a secret: give it by {variable_of(name)}, or write it into a file and name that by {name}_file")
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


def origin_of_routes(path: Path | str | None = None, env: Mapping[str, str] | None = None) -> str:
    """Where ``load`` finds the routes, for messages."""
    env = os.environ if env is None else env
    variable = variable_of("routes")
    return variable if variable in env else str(path or env.get("KEYSTONE_CONFIG") or DEFAULT_PATH)


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
        name = settings[variable]
        yield name, env[variable] if name in SECRETS else _parsed(env[variable]), variable


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
    shown = "..." if name in SECRETS else repr(first["input"])
    return f"{origin}: {name} = {shown} {reason}"


def _check_together(config: Config, origins: Mapping[str, str]) -> None:
    """Settings that each make sense alone, but not together. A test may build such a tree; a run may not."""
    session, detection, lake = config.session, config.detection, config.lake
    strange = sorted({name for pair in config.cohorts.pairs for name in pair} - set(config.cohorts.dimensions))
    if strange:
        places = ", ".join(dict.fromkeys(origins[name] for name in ("cohorts.dimensions", "cohorts.pairs") if name in origins))
        raise UsageError(f"{places}: cohorts.pairs has {strange[0]}, which is not in cohorts.dimensions: list it there, or leave the pair out of cohorts.pairs")
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
