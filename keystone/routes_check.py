"""The SQL of a route made into Polars expressions, and tried out before the first row comes.

It is run on rows that no stream would send all at once: nulls, empty and hostile texts, the largest and smallest numbers. What fails there is
told at start, at the smallest part of the SQL that fails; what gives other values for a row alone than among others is no route.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple, Self

import polars as pl
from polars.exceptions import PanicException

from keystone.routes_sources import Schema
from keystone.routes_sql import Item, Node, parse_select, parse_where
from keystone.routes_words import COLUMNS_OUT_MAX, COMPARISONS, SqlError

#: What an expression may raise. A panic is of Polars' own making, and no ``Exception``.
FAILURES: Final = (Exception, PanicException)
_VALUES: Final = {
    pl.String(): (None, "", "a", "Z", "1", "-1.5", "1e999", "true", "eu-west", "2026-11-24", "\0", "%_\\", "'\";--\n", "é…\U0001f600", "x" * 300, "NaN"),
    pl.Int64(): (None, 0, 1, -1, 2, 3_000, 1_790_000_000_000, (1 << 53), (1 << 63) - 1, -(1 << 63), -(1 << 63) + 1, 7, 64, 255, -300, 10),
    pl.Int32(): (None, 0, 1, -1, 2, 3_000, (1 << 31) - 1, -(1 << 31), 10, 7, 255, 64, -300, 3, 4, 5),
    pl.Float64(): (None, 0.0, -0.0, 1.0, -1.5, 1e308, -1e308, 5e-324, math.nan, math.inf, -math.inf, 0.1, 3_000.5, 1e19, -1e19, 2.5),
    pl.Boolean(): (None, True, False, True, False, True, True, False) * 2,
}
_ROWS: Final = 16  # of each of the shifts
_SHIFTS: Final = (0, 1, 3)  # by which each column's values are moved against those of the column before
_INTEGERS: Final = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)
_FLOATS: Final = (pl.Float32, pl.Float64)
TEXT, WHOLE, NUMBER, FLAG = "text", "whole number", "number", "flag"


def kind_of(dtype: pl.DataType) -> str | None:
    """What a type is for people and sinks; None for types that no sink takes."""
    if dtype == pl.String:
        return TEXT
    return WHOLE if dtype in _INTEGERS else NUMBER if dtype in _FLOATS else FLAG if dtype == pl.Boolean else None


class Output(NamedTuple):
    """A column that a route gives: its name, the expression behind it, its type, and where in the SQL it stands."""

    name: str
    expression: pl.Expr
    dtype: pl.DataType
    at: int


def where_of(sql: str, schema: Schema) -> Computed:
    """The condition, true or false and never null. ``SqlError`` says what is wrong with it, and where."""
    node = parse_where(sql, tuple(schema))
    expression, dtype = _tried(sql, node, _samples(schema))
    if dtype != pl.Boolean:
        raise SqlError(sql, node.at, f"{node.text[:60]} is {_said(dtype)}, and a condition is true or false: compare it with something")
    return Computed.made(schema, [expression.fill_null(value=False)])


def select_of(sql: str, schema: Schema, star: tuple[str, ...], names: tuple[str, ...]) -> list[Output]:
    """The columns. ``star``: what ``*`` stands for; ``names``: how the source may be called behind FROM."""
    outputs: list[Output] = []
    for item in parse_select(sql, tuple(schema), names):
        if item.node is None:
            outputs += [Output(name, pl.col(name), schema[name], item.at) for name in star]
        else:
            outputs.append(_output(sql, item, item.node, schema))
    seen: set[str] = set()
    for output in outputs:
        if output.name in seen:
            raise SqlError(sql, output.at, f'"{output.name[:60]}" is there twice: give one of them another name with AS')
        seen.add(output.name)
    if len(outputs) > COLUMNS_OUT_MAX:
        raise SqlError(sql, outputs[COLUMNS_OUT_MAX].at, f"gives more than {COLUMNS_OUT_MAX} columns: leave some out")
    return outputs


def _output(sql: str, item: Item, node: Node, schema: Schema) -> Output:
    if node.name is not None:
        return Output(item.name, pl.col(node.name), schema[node.name], item.at)
    expression, dtype = _tried(sql, node, _samples(schema))
    if kind_of(dtype) is None:
        raise SqlError(sql, item.at, f"{node.text[:60]} is {_said(dtype)}, which no sink takes: CAST(... AS VARCHAR), or another type")
    if dtype in _FLOATS:
        expression = pl.when(expression.is_finite()).then(expression)  # JSON and search servers have no infinity
    return Output(item.name, expression, dtype, item.at)


def _tried(sql: str, node: Node, frame: pl.DataFrame) -> tuple[pl.Expr, pl.DataType]:
    try:
        found = _evaluated(node, frame)
    except FAILURES as error:
        part, reason = _smallest(node, frame, error)
        _check_flags(sql, part, frame.schema)
        raise SqlError(sql, part.at, f"{part.text[:100]}: {_told(part, frame, reason)}") from None
    _check_flags(sql, node, frame.schema)
    return found


def _check_flags(sql: str, node: Node, schema: Mapping[str, pl.DataType]) -> None:
    """Polars takes numbers for flags and flags for texts, here and there: mistakes, most likely."""
    for part in node.parts:
        _check_flags(sql, part, schema)
    is_logic = node.operator in ("NOT", "AND", "OR")
    if is_logic or node.operator in COMPARISONS:
        dtypes = [_dtype_of(part, schema) for part in node.parts]
        strange = [(part, dtype) for part, dtype in zip(node.parts, dtypes, strict=True) if dtype not in (pl.Boolean, pl.Null)]
        if is_logic and strange:
            part, dtype = strange[0]
            raise SqlError(sql, part.at, f"{part.text[:60]} is {_said(dtype)}, and {node.operator} takes conditions: compare it with something")
        if not is_logic and strange and pl.Boolean in dtypes:
            raise SqlError(sql, node.at, f"{node.text[:100]}: compares a flag with {_said(strange[0][1])}: write the flag by itself, or NOT before it")


def _evaluated(node: Node, frame: pl.DataFrame) -> tuple[pl.Expr, pl.DataType]:
    """The expression and its type. Raises what Polars raises, or ``ValueError`` where a row alone gives another value."""
    expression = pl.sql_expr(node.sql)
    computed = Computed.made(frame.schema, [expression])
    together = computed.of(frame).to_series()
    dtype = computed.of(frame.clear()).to_series().dtype
    alone = pl.concat([computed.of(frame.slice(row, 1)).to_series() for row in range(frame.height)])
    if together.dtype != dtype or not together.equals(alone, null_equal=True):
        raise ValueError("gives other values for a row alone than for several rows, and a route looks at one row at a time")
    return expression, dtype


def _dtype_of(node: Node, schema: Mapping[str, pl.DataType]) -> pl.DataType:
    """Of a node that was evaluated before."""
    return Computed.made(schema, [pl.sql_expr(node.sql)]).of(pl.DataFrame(schema=schema)).to_series().dtype


@dataclass(frozen=True, slots=True)
class Computed:
    """Expressions that give the same for a row alone as among others.

    For Polars a column that has one value, or is known to repeat it, is a scalar: that it divides by a number, while it multiplies a column
    with the number's inverse, which differs in the last bit. So a row of nulls is put behind a row that is alone, and every column is made a real one.
    """

    expressions: tuple[pl.Expr, ...]
    names: tuple[str, ...]  # of the columns that they need, one at least: literals are given as many times as there are rows
    nulls: pl.DataFrame  # a row of these

    @classmethod
    def made(cls, schema: Mapping[str, pl.DataType], expressions: Sequence[pl.Expr]) -> Self:
        used = dict.fromkeys(name for expression in expressions for name in expression.meta.root_names())
        names = tuple(used) or (next(iter(schema)),)
        return cls(tuple(expressions), names, pl.DataFrame({name: [None] for name in names}, schema={name: schema[name] for name in names}))

    def of(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The values, a column an expression, named by a NUL and their number."""
        rows = frame[list(self.names)]
        rows = rows if frame.height != 1 else rows.vstack(self.nulls)
        rows = pl.DataFrame(rows.rechunk().get_columns())
        made = rows.with_columns(expression.alias(f"\0{place}") for place, expression in enumerate(self.expressions))
        return made[[f"\0{place}" for place in range(len(self.expressions))]].head(frame.height)


def _smallest(node: Node, frame: pl.DataFrame, error: BaseException) -> tuple[Node, BaseException]:
    """The smallest part that fails, and why."""
    for part in node.parts:
        try:
            _evaluated(part, frame)
        except FAILURES as reason:
            return _smallest(part, frame, reason)
    return node, error


def _told(node: Node, frame: pl.DataFrame, error: BaseException) -> str:
    """Why, in one line: Polars' first, and what is there."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    first = first.replace(node.sql, node.text)[:200]
    kinds = [f"{part.text[:40]} is {_said(_dtype_of(part, frame.schema))}" for part in node.parts]
    return f"{first} ({', '.join(kinds)})" if kinds else first


def _said(dtype: pl.DataType) -> str:
    kind = kind_of(dtype)
    return f"a {kind}" if kind is not None else "always null" if dtype == pl.Null else f"of the type {dtype}"


def _samples(schema: Schema) -> pl.DataFrame:
    return _sample_frame(tuple(schema.items()))


@lru_cache(maxsize=32)
def _sample_frame(columns: tuple[tuple[str, pl.DataType], ...]) -> pl.DataFrame:
    """Rows of every kind of value; the first row is all nulls."""
    names = list(enumerate(columns))
    frames = [
        pl.DataFrame({name: [_VALUES[dtype][(row + shift * number) % _ROWS] for row in range(_ROWS)] for number, (name, dtype) in names}, schema=dict(columns))
        for shift in _SHIFTS
    ]
    return pl.concat(frames)


def plan_of(schema: Schema, condition: Computed | None, outputs: Sequence[Output] | None) -> str:
    """What Polars makes of a route, in its own words."""
    frame = pl.LazyFrame(schema=schema)
    if condition is not None:
        frame = frame.filter(condition.expressions)
    if outputs is not None:
        frame = frame.select(output.expression.alias(output.name) for output in outputs)
    return frame.explain()
