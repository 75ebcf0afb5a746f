r"""The language of ``keystone dead-letters replay --expr``: a small part of jq, which only changes fields of one object.

    program  = step { "|" step }
    step     = path "=" value
             | "del(" path { "," path } ")"
             | "if" path ( "==" | "!=" ) constant "then" program [ "else" program ] "end"
    value    = path | constant | "tonumber(" value ")" | "tostring(" value ")"
    path     = "." key { "." key }          key = a name of letters, digits and _, or any JSON string
    constant = a JSON string, a JSON number, true, false or null

A field that is absent reads as null; assigning makes the objects on its way. Nothing loops, calls or reads anything else, so a program
ends, and within the size of its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from keystone.errors import KeystoneError, UsageError

DEPTH_MAX: Final = 32  # of "if" and of functions within each other
_NUMBER: Final = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?"
_TOKEN: Final = re.compile(rf'\s*(?:(?P<text>"(?:[^"\\]|\\.)*")|(?P<number>{_NUMBER})|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<mark>==|!=|[.=|(),]))')
_JSON_NUMBER: Final = re.compile(_NUMBER)
_CONSTANTS: Final[dict[str, object]] = {"true": True, "false": False, "null": None}

Event = dict[str, Any]
Path = tuple[str, ...]
Step = Callable[[Event], None]
Value = Callable[[Event], Any]


class CannotMend(KeystoneError):
    """A program or a function cannot mend this line; others it may."""


class _Token(NamedTuple):
    kind: str  # text | number | word | mark | end
    text: str
    at: int


class Program:
    """A compiled expression. ``UsageError`` names the place of a mistake in it."""

    def __init__(self, text: str) -> None:
        self._steps = _Parser(text).program()

    def __call__(self, line: bytes) -> bytes:
        """The line mended; ``CannotMend`` where it is no JSON object, or has other fields than the program takes."""
        event = _object_in(line)
        try:
            for step in self._steps:
                step(event)
            return json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise CannotMend("it would be no JSON") from error


def _object_in(line: bytes) -> Event:
    try:
        event = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise CannotMend("it is no JSON: only --python can mend it") from error
    if not isinstance(event, dict):
        raise CannotMend("it is no JSON object: only --python can mend it")
    return event


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


# --- what the steps do ------------------------------------------------------------------------------------------------------
def _get(event: Any, path: Path) -> Any:
    for key in path:
        if event is None:
            return None
        if not isinstance(event, dict):
            raise CannotMend(f"{_shown(path)}: {json.dumps(key)} is asked of what is no object")
        event = event.get(key)
    return event


def _put(event: Event, path: Path, value: Any) -> None:
    at: Any = event
    for key in path[:-1]:
        if at.get(key) is None:
            at[key] = {}
        at = at[key]
        if not isinstance(at, dict):
            raise CannotMend(f"{_shown(path)}: {json.dumps(key)} is no object")
    at[path[-1]] = value


def _delete(event: Event, path: Path) -> None:
    within = _get(event, path[:-1])
    if isinstance(within, dict):
        within.pop(path[-1], None)


def _number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and _JSON_NUMBER.fullmatch(value):
        return json.loads(value)
    raise CannotMend("tonumber(): the field is no number, nor a string that is one")


def _string(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shown(path: Path) -> str:
    return "".join(f".{key}" if key.isidentifier() else f".{json.dumps(key)}" for key in path)


_FUNCTIONS: Final[dict[str, Callable[[Any], Any]]] = {"tonumber": _number, "tostring": _string}


def _assignment(path: Path, value: Value) -> Step:
    # A copy, since the same object in two places would change in both.
    return lambda event: _put(event, path, json.loads(json.dumps(found)) if isinstance(found := value(event), dict | list) else found)


def _deletion(paths: list[Path]) -> Step:
    def step(event: Event) -> None:
        for path in paths:
            _delete(event, path)

    return step


def _choice(path: Path, wanted: object, steps: tuple[list[Step], list[Step]], *, is_equal: bool) -> Step:
    def step(event: Event) -> None:
        found = _get(event, path)
        is_same = found == wanted and isinstance(found, bool) == isinstance(wanted, bool)
        for one in steps[0 if is_same == is_equal else 1]:
            one(event)

    return step


def _plain(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


# --- how it is read -----------------------------------------------------------------------------------------------------------
class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._depth = 0

    def program(self) -> list[Step]:
        """All of the text."""
        steps = self._program()
        if self._tokens[0].kind != "end":
            self._fail('"|" or the end')
        return steps

    def _split(self) -> list[_Token]:
        tokens: list[_Token] = []
        at, end = 0, len(self._text.rstrip())
        while at < end:
            found = _TOKEN.match(self._text, at)
            if found is None:
                at += len(self._text[at:]) - len(self._text[at:].lstrip())
                raise self._mistake(at, f"{self._text[at]!r} means nothing here")
            kind = str(found.lastgroup)
            tokens.append(_Token(kind, found[kind], found.start(kind)))
            at = found.end()
        return [*tokens, _Token("end", "the end", end)]

    def _mistake(self, at: int, what: str) -> UsageError:
        return UsageError(f"--expr, character {at + 1}: {what}: write it like .ts = tonumber(.timestamp) | del(.timestamp)")

    def _fail(self, wanted: str) -> NoReturn:
        token = self._tokens[0]
        raise self._mistake(token.at, f"{_plain(token.text)} stands where {wanted} should")

    def _next(self) -> _Token:
        return self._tokens.pop(0)

    def _takes(self, text: str) -> bool:
        token = self._tokens[0]
        if token.kind in {"mark", "word"} and token.text == text:
            self._next()
            return True
        return False

    def _must(self, text: str) -> None:
        if not self._takes(text):
            self._fail(f'"{text}"')

    def _program(self) -> list[Step]:
        steps = [self._step()]
        while self._takes("|"):
            steps.append(self._step())
        return steps

    def _step(self) -> Step:
        if self._takes("del"):
            self._must("(")
            paths = [self._path()]
            while self._takes(","):
                paths.append(self._path())
            self._must(")")
            return _deletion(paths)
        if self._takes("if"):
            return self._choice()
        path = self._path('a path, "del" or "if"')
        self._must("=")
        return _assignment(path, self._value())

    def _choice(self) -> Step:
        self._deeper()
        path = self._path()
        is_equal = self._takes("==")
        if not is_equal:
            self._must("!=")
        wanted = self._constant("a constant")
        self._must("then")
        then = self._program()
        other = self._program() if self._takes("else") else []
        self._must("end")
        self._depth -= 1
        return _choice(path, wanted, (then, other), is_equal=is_equal)

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._mistake(self._tokens[0].at, f"nested more than {DEPTH_MAX} deep")

    def _path(self, wanted: str = "a path") -> Path:
        if self._tokens[0].text != "." or self._tokens[0].kind != "mark":
            self._fail(wanted)
        keys = []
        while self._takes("."):
            if self._tokens[0].kind not in {"word", "text"}:
                self._fail("a field's name")
            token = self._next()
            keys.append(self._string(token) if token.kind == "text" else token.text)
        return tuple(keys)

    def _string(self, token: _Token) -> str:
        try:
            return str(json.loads(token.text))
        except ValueError as error:
            raise self._mistake(token.at, f"{_plain(token.text)} is no JSON string") from error

    def _value(self) -> Value:
        token = self._tokens[0]
        if token.kind == "word" and token.text in _FUNCTIONS:
            self._deeper()
            function = _FUNCTIONS[self._next().text]
            self._must("(")
            inner = self._value()
            self._must(")")
            self._depth -= 1
            return lambda event: function(inner(event))
        if token.text == "." and token.kind == "mark":
            path = self._path()
            return lambda event: _get(event, path)
        constant = self._constant("a path, a constant, tonumber() or tostring()")
        return lambda _: constant

    def _constant(self, wanted: str) -> object:
        token = self._tokens[0]
        if token.kind == "word" and token.text in _CONSTANTS:
            return _CONSTANTS[self._next().text]
        if token.kind not in {"text", "number"}:
            self._fail(wanted)
        self._next()
        if token.kind == "text":
            return self._string(token)
        try:
            return json.loads(token.text)
        except ValueError as error:
            raise self._mistake(token.at, "the number has too many digits") from error
