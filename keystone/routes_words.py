"""The words of a route's SQL: its functions, operators and tokens, and what is said of those that have no place there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from keystone.errors import UsageError

SQL_CHARS_MAX: Final = 10_000  # of a `where` or `select`: some 600 values of an IN
DEPTH_MAX: Final = 30  # of parentheses and calls; Polars' parser takes 50
TERMS_MAX: Final = 100  # operators, WHENs and calls of one expression; between 200 and 1,000 ANDs overflow the stack of Polars, and end the process
COLUMNS_OUT_MAX: Final = 200

#: Number of arguments, and which of them (from 0) must be literals.
FUNCTIONS: Final[dict[str, tuple[int, int, frozenset[int]]]] = {
    **dict.fromkeys(("ABS", "CEIL", "CEILING", "FLOOR", "SIGN", "SQRT", "LN", "LOG10"), (1, 1, frozenset())),
    "ROUND": (1, 2, frozenset({1})),
    "MOD": (2, 2, frozenset()),
    **dict.fromkeys(("GREATEST", "LEAST", "COALESCE"), (2, 20, frozenset())),
    **dict.fromkeys(("NULLIF", "IFNULL"), (2, 2, frozenset())),
    "IF": (3, 3, frozenset()),
    **dict.fromkeys(("UPPER", "LOWER", "LENGTH", "CHAR_LENGTH", "OCTET_LENGTH", "TRIM", "LTRIM", "RTRIM", "REVERSE"), (1, 1, frozenset())),
    **dict.fromkeys(("LEFT", "RIGHT"), (2, 2, frozenset({1}))),
    **dict.fromkeys(("SUBSTR", "SUBSTRING"), (2, 3, frozenset({1, 2}))),
    "REPLACE": (3, 3, frozenset({1, 2})),
    "STRPOS": (2, 2, frozenset({1})),
    **dict.fromkeys(("STARTS_WITH", "ENDS_WITH"), (2, 2, frozenset())),
    "REGEXP_LIKE": (2, 2, frozenset({1})),
    "CONCAT": (2, 20, frozenset()),
}
TYPES: Final = ("BIGINT", "INTEGER", "INT", "SMALLINT", "DOUBLE", "FLOAT", "REAL", "VARCHAR", "TEXT", "STRING")
AGGREGATES: Final = frozenset((
    "ARRAY_AGG", "AVG", "CORR", "COUNT", "COVAR", "COVAR_POP", "COVAR_SAMP", "FIRST", "FIRST_VALUE", "LAST", "LAST_VALUE", "LAG", "LEAD", "MAX", "MEDIAN",
    "MIN", "QUANTILE", "QUANTILE_CONT", "QUANTILE_DISC", "RANK", "DENSE_RANK", "ROW_NUMBER", "STDDEV", "STDDEV_POP", "STDDEV_SAMP", "STRING_AGG", "SUM",
    "VARIANCE", "VAR", "VAR_POP", "VAR_SAMP",
))  # fmt: skip
OF_QUERIES: Final = frozenset((
    "SELECT", "FROM", "WHERE", "JOIN", "GROUP", "HAVING", "ORDER", "BY", "LIMIT", "OFFSET", "UNION", "INTERSECT", "EXCEPT", "WITH", "OVER", "QUALIFY",
    "EXISTS", "DISTINCT", "INTO",
))  # fmt: skip
OF_CLOCKS: Final = frozenset(("NOW", "CURRENT_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME", "RANDOM", "RAND", "UUID"))
WORDS: Final = frozenset((
    "AND", "OR", "NOT", "IN", "IS", "NULL", "TRUE", "FALSE", "LIKE", "ILIKE", "BETWEEN", "CASE", "WHEN", "THEN", "ELSE", "END", "CAST", "TRY_CAST", "AS",
    "RLIKE", "REGEXP",
))  # fmt: skip
COMPARISONS: Final = frozenset(("=", "==", "<>", "!=", "<", "<=", ">", ">="))
MATCHES: Final = frozenset(("~", "~*", "!~", "!~*", "RLIKE", "REGEXP"))
#: How tightly operators bind, those behind something.
POWERS: Final = {
    "OR": 1,
    "AND": 2,
    **dict.fromkeys(COMPARISONS | MATCHES | {"IS", "IN", "LIKE", "ILIKE", "BETWEEN", "NOT"}, 4),
    **dict.fromkeys(("+", "-", "||"), 5),
    **dict.fromkeys(("*", "/", "%", "//"), 6),
}
NOT_POWER: Final = 3
SIGN_POWER: Final = 7
INTEGER_MAX: Final = (1 << 63) - 1

_TOKEN = re.compile(
    r"""(?P<blank>\s+|--[^\n]*|/\*.*?\*/)
    |(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![A-Za-z_0-9.]))
    |(?P<word>[A-Za-z_][A-Za-z_0-9]*+(?!'))
    |(?P<string>'(?:[^']|'')*')
    |(?P<quoted>"(?:[^"]|"")+")
    |(?P<op>!~\*|!~|~\*|~|\|\||//|==|<>|!=|<=|>=|[-+*/%=<>(),])""",
    re.VERBOSE | re.DOTALL,
)


class SqlError(UsageError):
    """A mistake at a place of the SQL: ``str`` begins with the place."""

    def __init__(self, sql: str, at: int, message: str) -> None:
        super().__init__(f"{place_of(sql, at)}: {message}")


def place_of(sql: str, at: int) -> str:
    """Where a character is, for people: from 1."""
    line, column = sql.count("\n", 0, at) + 1, at - (sql.rfind("\n", 0, at) + 1) + 1
    return f"line {line}, column {column}" if "\n" in sql.strip() else f"column {column}"


class Token(NamedTuple):
    """``kind``: word, quoted, string, number, op, or end. ``at``: of its first character."""

    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        """An operator, or a word in capitals; nothing of anything else."""
        return self.text if self.kind == "op" else self.text.upper() if self.kind == "word" else ""


def tokens_of(sql: str) -> list[Token]:
    """All of them, an ``end`` behind. ``SqlError`` where something is none."""
    if len(sql) > SQL_CHARS_MAX:
        raise SqlError(sql, SQL_CHARS_MAX, f"is longer than {SQL_CHARS_MAX:,} characters: shorten it, or make several routes of it")
    tokens, at = [], 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        if match is None:
            raise SqlError(sql, at, _no_token(sql, at))
        kind = match.lastgroup or ""
        if kind != "blank":
            tokens.append(Token(kind, match[0], at))
        at = match.end()
    return [*tokens, Token("end", "", len(sql))]


def _no_token(sql: str, at: int) -> str:
    found = sql[at]
    if found in "'\"":
        what = "text" if found == "'" else "name of a column"
        return f"the {what} that begins here has no end: close it with {found}, and write {found} within it twice"
    if found == ";":
        return "';' has no place here: a route is one expression, not a statement"
    if found in "[{":
        return f"{found!r} has no place here: lists and structs are not read; a list of values is IN ('a', 'b')"
    return f"{found!r} has no place here{': a column stands there by its name alone' if found == '.' else ''}"


def shown(token: Token) -> str:
    text = token.text if len(token.text) <= 60 else f"{token.text[:60]}..."
    return "the end" if token.kind == "end" else text if token.kind in ("string", "quoted") else f"'{text}'"


def for_polars(token: Token) -> str:
    if token.kind == "number" and not token.text.isdecimal():
        return token.text if "e" in token.text.lower() else f"{token.text}e0"  # 1.5 would be a decimal number, which JSON has not
    return "TRY_CAST" if token.word == "CAST" else token.text


def unquoted(token: Token) -> str:
    return token.text[1:-1].replace('""', '"') if token.kind == "quoted" else token.text


def no_function(name: str) -> str:
    word = name.upper()
    if word in AGGREGATES:
        return f"{word} looks at several rows, and a route at one at a time: aggregates and windows belong where the rows end"
    if word in OF_CLOCKS:
        return f"{word} has no place here: a route gives the same whenever it runs"
    if word in OF_QUERIES:
        return f"{word} has no place here: a route looks at one row at a time"
    return f"there is no function {name[:60]}: {advice(word, tuple(FUNCTIONS))}"


def advice(name: str, known: Sequence[str]) -> str:
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f'did you mean "{by_lower[close[0]]}"?' if close else f"choose among {', '.join(known)}"
