"""The SQL of a route: what may stand there, read token by token, so that every mistake has a position and nothing unforeseen gets through.

One row at a time is all that a route sees. So there is no SELECT in it, no aggregate and no window; nothing that is another value each time
(NOW, RANDOM); nothing that fails on some values only: a pattern is a literal, ``//`` divides by a number above 0, and CAST is TRY_CAST, which
gives null where a value does not fit. What is left is handed to Polars as text made anew from the tokens (``Node.sql``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from keystone.routes_words import (
    DEPTH_MAX,
    FUNCTIONS,
    INTEGER_MAX,
    MATCHES,
    NOT_POWER,
    OF_CLOCKS,
    OF_QUERIES,
    POWERS,
    SIGN_POWER,
    TERMS_MAX,
    TYPES,
    WORDS,
    SqlError,
    Token,
    advice,
    for_polars,
    no_function,
    shown,
    tokens_of,
    unquoted,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Node:
    """A part of an expression: as it was written, as SQL for Polars, and the parts it is made of.

    ``operator``: what joins the parts, in capitals. ``name``: of a column, if it is one and nothing else. ``literal``: string, number or word.
    """

    at: int
    text: str
    sql: str
    parts: tuple[Node, ...] = ()
    operator: str = ""
    name: str | None = None
    literal: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """One column of a ``select``. ``node`` is None for ``*``: all that the sink takes."""

    at: int
    name: str
    node: Node | None


def parse_where(sql: str, columns: Sequence[str]) -> Node:
    """The condition. ``SqlError`` says what is wrong with it, and where."""
    parser = _Parser(sql, columns)
    parser.skip("WHERE")
    node = parser.expression()
    parser.at_end()
    return node


def parse_select(sql: str, columns: Sequence[str], names: Sequence[str]) -> list[Item]:
    """The columns, in order. ``names``: what a FROM at the end may say, which is not needed. ``SqlError`` as above."""
    parser = _Parser(sql, columns)
    parser.skip("SELECT")
    items = list(parser.items())
    parser.skip_from(names)
    parser.at_end()
    return items


@dataclass(slots=True)
class _Parser:
    """Operator precedence, as Polars' own parser has it. Where the two should differ, only the place of a message would."""

    sql: str
    columns: Sequence[str]
    _tokens: list[Token] = field(init=False)
    _next: int = 0
    _end: int = 0  # of the last token taken
    _depth: int = 0
    _terms: int = 0

    def __post_init__(self) -> None:
        self._tokens = tokens_of(self.sql)

    @property
    def _token(self) -> Token:
        return self._tokens[self._next]

    def _take(self) -> Token:
        token = self._token
        if token.kind != "end":
            self._next += 1
            self._end = token.at + len(token.text)
        return token

    def _error(self, token: Token, message: str) -> SqlError:
        return SqlError(self.sql, token.at, message)

    def _made(self, first: int, *parts: Node, operator: str = "", name: str | None = None, literal: str = "") -> Node:
        """The node of all tokens from number ``first`` to here."""
        used = self._tokens[first : self._next]
        return Node(used[0].at, self.sql[used[0].at : self._end], " ".join(map(for_polars, used)), parts, operator, name, literal)

    def skip(self, word: str) -> None:
        if self._token.word == word:
            self._take()

    def skip_from(self, names: Sequence[str]) -> None:
        if self._token.word == "FROM" and self._tokens[self._next + 1].text in names:
            self._next += 2

    def at_end(self) -> None:
        if self._token.kind != "end":
            raise self._error(self._token, self._strange(self._token))

    def items(self) -> Iterator[Item]:
        while True:
            first = self._token
            if first.word == "*":
                self._take()
                yield Item(first.at, "*", None)
            else:
                node = self.expression()
                yield Item(first.at, self._alias(first, node), node)
            if self._token.word != ",":
                return
            self._take()

    def _alias(self, first: Token, node: Node) -> str:
        self._terms = 0
        if self._token.word == "AS":
            self._take()
            token = self._take()
            if token.kind not in ("word", "quoted") or token.word in WORDS:
                raise self._error(token, f"{shown(token)} is no name of a column: write it as {node.text[:40]} AS name")
            return unquoted(token)
        if node.name is None:
            raise self._error(first, f"the column made here has no name: write {node.text[:60]} AS name")
        return node.name

    def expression(self, power: int = 0) -> Node:
        """The longest one from here whose operators all bind tighter than ``power``."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error(self._token, f"is nested deeper than {DEPTH_MAX}: make it flatter")
        first = self._next
        left = self._prefix(first)
        while POWERS.get(self._token.word, 0) > power:
            left = self._infix(first, left)
        self._depth -= 1
        return left

    def _count(self, token: Token) -> None:
        self._terms += 1
        if self._terms > TERMS_MAX:
            raise self._error(token, f"has more than {TERMS_MAX} operators and calls: shorten it, with IN (...) for many values, or make several routes of it")

    def _prefix(self, first: int) -> Node:
        token = self._take()
        word = token.word
        if word in ("NOT", "-", "+"):
            self._count(token)
            part = self.expression(NOT_POWER if word == "NOT" else SIGN_POWER)
            return self._made(first, part, operator=word, literal="number" if word != "NOT" and part.literal == "number" else "")
        if word == "(":
            part = self.expression()
            self._expect(")")
            return self._made(first, part)
        if word in ("CASE", "CAST", "TRY_CAST"):
            return self._case(first, token) if word == "CASE" else self._cast(first, token)
        if token.kind in ("string", "number") or word in ("TRUE", "FALSE", "NULL"):
            return self._literal(first, token)
        if token.kind == "word" and self._token.word == "(" and word not in WORDS:
            return self._call(first, token)
        return self._column(first, token)

    def _literal(self, first: int, token: Token) -> Node:
        if token.kind == "number":
            is_whole = token.text.isdecimal()
            if int(token.text) > INTEGER_MAX if is_whole else not math.isfinite(float(token.text)):
                raise self._error(token, f"{token.text} is too large: {INTEGER_MAX:,} is the largest whole number, 1.79e308 the largest other")
        return self._made(first, literal=token.kind)

    def _column(self, first: int, token: Token) -> Node:
        name = unquoted(token)
        if token.kind not in ("word", "quoted") or (token.kind == "word" and name not in self.columns and self._is_word(token.word)):
            raise self._error(token, self._strange(token))
        if name not in self.columns:
            text = " (text stands in single quotes)" if token.kind == "quoted" else ""
            raise self._error(token, f'there is no column "{name[:60]}"{text}: {advice(name, self.columns)}')
        self._tokens[first] = Token("quoted", '"' + name.replace('"', '""') + '"', token.at)  # a column may be called like a word of SQL: "offset"
        return self._made(first, name=name)

    @staticmethod
    def _is_word(word: str) -> bool:
        return word in WORDS or word in OF_QUERIES or word in OF_CLOCKS

    def _call(self, first: int, token: Token) -> Node:
        self._count(token)
        word = token.word
        if word not in FUNCTIONS:
            raise self._error(token, no_function(token.text))
        self._expect("(")
        parts = [self.expression()] if self._token.word != ")" else []
        while self._token.word == ",":
            self._take()
            parts.append(self.expression())
        self._expect(")")
        least, most, literals = FUNCTIONS[word]
        if not least <= len(parts) <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise self._error(token, f"{word} takes {wanted} argument{'s' if most > 1 else ''}, here are {len(parts)}")
        for number in literals & set(range(len(parts))):
            if not parts[number].literal:
                raise SqlError(self.sql, parts[number].at, f"argument {number + 1} of {word} must be a text in quotes or a number, the same for every row")
        if word == "REPLACE" and parts[1].sql == "''":
            raise SqlError(self.sql, parts[1].at, "REPLACE of an empty text has no end: name what to replace")
        return self._made(first, *parts)

    def _case(self, first: int, token: Token) -> Node:
        parts = [] if self._token.word == "WHEN" else [self.expression()]
        while self._token.word == "WHEN":
            self._count(self._take())
            parts.append(self.expression())
            self._expect("THEN")
            parts.append(self.expression())
        if len(parts) < 2:
            raise self._error(token, "CASE needs at least one WHEN ... THEN ...")
        if self._token.word == "ELSE":
            self._take()
            parts.append(self.expression())
        self._expect("END")
        return self._made(first, *parts)

    def _cast(self, first: int, token: Token) -> Node:
        self._count(token)
        self._expect("(")
        part = self.expression()
        self._expect("AS")
        kind = self._take()
        if kind.word not in TYPES:
            raise self._error(kind, f"{shown(kind)} is no type to cast to: choose BIGINT, INTEGER, DOUBLE or VARCHAR")
        self._expect(")")
        return self._made(first, part)

    def _infix(self, first: int, left: Node) -> Node:
        token = self._take()
        self._count(token)
        word, power = token.word, POWERS[token.word]
        is_not = word == "NOT"
        if is_not:
            token = self._take()
            word = token.word
            if word not in ("IN", "LIKE", "ILIKE", "BETWEEN"):
                raise self._error(token, f"{shown(token)} cannot follow NOT here: NOT IN, NOT LIKE, NOT ILIKE and NOT BETWEEN can")
        if word == "IS":
            return self._is(first, left)
        if word == "IN":
            return self._in(first, left)
        if word == "BETWEEN":
            low = self.expression(power)
            self._expect("AND")
            return self._made(first, left, low, self.expression(power))
        right = self.expression(power)
        if (word in ("LIKE", "ILIKE") or word in MATCHES) and right.literal != "string":
            raise SqlError(self.sql, right.at, f"the pattern of {word} must be a text in quotes, the same for every row")
        if word == "//" and not (right.literal == "number" and float(right.sql.replace(" ", "")) > 0):
            raise SqlError(self.sql, right.at, "// divides by a number above 0 only, the same for every row: write FLOOR(a / b) for others")
        return self._made(first, left, right, operator=word)

    def _is(self, first: int, left: Node) -> Node:
        self.skip("NOT")
        token = self._take()
        if token.word == "NULL":
            return self._made(first, left)
        if token.word == "DISTINCT" and self._token.word == "FROM":
            self._take()
            return self._made(first, left, self.expression(POWERS["IS"]))
        raise self._error(token, f"{shown(token)} cannot follow IS: IS [NOT] NULL and IS [NOT] DISTINCT FROM ... can; a flag is a condition by itself")

    def _in(self, first: int, left: Node) -> Node:
        self._expect("(")
        values = [self._value()]
        while self._token.word == ",":
            self._take()
            values.append(self._value())
        kinds = {value.literal: value for value in values if value.sql.upper() != "NULL"}
        if len(kinds) > 1:
            raise SqlError(self.sql, list(kinds.values())[1].at, "IN takes values of one kind: all texts in quotes, or all numbers")
        self._expect(")")
        return self._made(first, left, values[0])

    def _value(self) -> Node:
        first, token = self._next, self._token
        node = self.expression(POWERS["IN"])
        if not node.literal:
            raise self._error(token, f"{node.text[:60]} is no value: IN takes texts in quotes and numbers; OR joins other conditions")
        return self._made(first, literal=node.literal)

    def _expect(self, word: str) -> None:
        token = self._take()
        if token.word != word:
            raise self._error(token, f"{shown(token)} stands where {word} should" if token.kind != "end" else f"ends where {word} should stand")

    def _strange(self, token: Token) -> str:
        """Why a token cannot stand where it does."""
        if token.kind == "end":
            return "ends too early: a column, a value or an expression is missing"
        if token.word in OF_QUERIES:
            return f"{token.word} has no place here: a route looks at one row at a time, and takes a condition and a list of columns only"
        if token.word in OF_CLOCKS:
            return f"{token.word} has no place here: a route gives the same whenever it runs; the columns with times are of the events"
        return f"{shown(token)} has no place here"
