"""JSON: one reader, with limits, for every file and row; and records as plain values and back,
their types checked.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from reprlib import Repr

from toolkit.errors import FtkError

DEEPEST = 64
"""levels of lists and objects inside each other"""
DIGITS = 300
"""of a whole number: with more of them it is no float"""
LARGEST = 1 << 28
"""bytes of a file that is one document; in memory it takes ten times as many"""
WORD = 1 << 63
"""a whole number in a record lies below: numpy, torch and Parquet take no more"""

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2
Record_ = typing.TypeVar("Record_")


class JsonError(FtkError, ValueError):
    """No JSON, or not what is expected there: one line. line and column are where `msg` was found,
    from 1.
    """

    def __init__(self, msg: str, line: int = 1, column: int = 1, *, grammar: bool = False):
        """grammar: it is not what JSON looks like, rather than beyond a limit."""
        super().__init__(msg)
        self.msg, self.lineno, self.colno, self.grammar = msg, line, column, grammar

    @property
    def told(self) -> str:
        """What is wrong with a line that the reader knows already: the column only where it means
        one.
        """
        return f"broken JSON at column {self.colno}: {self.msg}" if self.grammar else self.msg


def shortened(value: object) -> str:
    """A value for a message: one line, however much it is."""
    return _SHORT.repr(value)


def parse(data: bytes | str, *, any_number: bool = False) -> typing.Any:
    """JSON of a line or a document.

    any_number: NaN and Infinity are taken, which Python writes though JSON has none. Raises
    JsonError for all that is no JSON, and for a key that stands twice, more than DEEPEST levels or
    a whole number of more than DIGITS digits.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        value = _reader(any_number).decode(text)
    except UnicodeDecodeError:
        raise JsonError("not UTF-8; save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.lineno, error.colno, grammar=True) from None
    except RecursionError:
        raise JsonError(
            f"nested too deeply: more than {DEEPEST} levels of lists and objects"
        ) from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEEPEST + 1):
        if not level:
            return value
        items = (
            item
            for outer in level
            for item in (outer.values() if isinstance(outer, dict) else outer)
        )
        level = [item for item in items if isinstance(item, dict | list)]
    raise JsonError(f"nested too deeply: more than {DEEPEST} levels of lists and objects")


def read_json(path: Path) -> typing.Any:
    """The JSON document in a file. Raises JsonError that names it, and OSError where it cannot be
    opened.
    """
    with open(path, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise JsonError(f"{path}: larger than {LARGEST >> 20} MiB")
    try:
        return parse(data)
    except JsonError as error:
        raise JsonError(
            f"{path}:{error.lineno}: broken JSON at column {error.colno}: {error.msg}"
        ) from None


def read_record(path: Path, kind: typing.Any, remedy: str = "") -> typing.Any:
    """The record, dataclass or TypedDict, in a JSON file; remedy: how to make the file anew.

    Raises JsonError in one line: file, field, what it should be; and OSError where it cannot be
    opened.
    """
    data = read_json(path)
    try:
        return from_plain(kind, data)
    except JsonError as error:
        raise JsonError(f"{path}: {error}{remedy and f'; {remedy}'}") from None


def to_plain(record: typing.Any) -> typing.Any:
    """A record as what JSON holds: numpy scalars as Python's; a number that is none (nan, inf) as
    null.
    """
    if is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_plain(getattr(record, f.name)) for f in fields(record)}
    if isinstance(record, dict):
        return {key: to_plain(item) for key, item in record.items()}
    if isinstance(record, list | tuple | range):
        return [to_plain(item) for item in record]
    value = record.item() if hasattr(record, "item") else record  # type: ignore[union-attr]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(kind: typing.Any, data: typing.Any, field: str = "") -> typing.Any:
    """Plain values back to records, guided by the type hints. Keys that a dataclass does not know
    are left out, a TypedDict keeps them.

    field: what the message calls it. Raises JsonError where a field is missing or of another type.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is typing.Any:
        return data
    if origin in (types.UnionType, typing.Union):
        return _one_of(inner, data, field)
    if origin is typing.Literal:
        return data if data in inner else _refuse(" or ".join(map(repr, inner)), data, field)
    if is_dataclass(kind) or typing.is_typeddict(kind):
        return _record(kind, data, field)
    if origin in (tuple, list, Sequence):
        if not isinstance(data, list):
            _refuse("a list", data, field)
        each = inner if origin is tuple and inner[-1] is not Ellipsis else inner[:1] * len(data)
        if len(each) != len(data):
            _refuse(f"a list of {len(each)}", data, field)
        items = [
            from_plain(of, item, f"{field}.{i}")
            for i, (of, item) in enumerate(zip(each, data, strict=True))
        ]
        return items if origin is list else tuple(items)
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            _refuse("an object", data, field)
        return {key: from_plain(inner[1], item, f"{field}.{key}") for key, item in data.items()}
    return data if _fits(kind, data) else _refuse(WORDS.get(kind, str(kind)), data, field)


WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "an object",
    types.NoneType: "null",
}


def _fits(kind: typing.Any, data: typing.Any) -> bool:
    if kind in (int, float):
        return (
            isinstance(data, int if kind is int else int | float)
            and not isinstance(data, bool)
            and (kind is float or abs(data) < WORD)
        )
    return isinstance(data, kind)


def _one_of(kinds: Sequence[typing.Any], data: typing.Any, field: str) -> typing.Any:
    if data is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    for kind in others[:-1]:
        try:
            return from_plain(kind, data, field)
        except JsonError:
            continue
    return from_plain(others[-1], data, field)


def _record(kind: typing.Any, data: typing.Any, field: str) -> typing.Any:
    if not isinstance(data, dict):
        _refuse("an object", data, field)
    hints, needed = _hints(kind)
    if missing := sorted(needed - data.keys()):
        raise JsonError(f"{field.lstrip('.')}.{missing[0]} is missing".lstrip("."))
    values = {
        name: from_plain(hints[name], value, f"{field}.{name}")
        for name, value in data.items()
        if name in hints
    }
    return kind(**values) if is_dataclass(kind) else data | values  # type: ignore[operator]


@lru_cache
def _hints(kind: typing.Any) -> tuple[dict[str, typing.Any], frozenset[str]]:
    """Types of the fields, and the fields without a default."""
    hints = typing.get_type_hints(kind)
    if not is_dataclass(kind):
        return hints, kind.__required_keys__
    needed = frozenset(
        f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING
    )
    return {f.name: hints[f.name] for f in fields(kind)}, needed


def _refuse(expected: str, data: typing.Any, field: str) -> typing.NoReturn:
    raise JsonError(
        f"{field.lstrip('.') or 'the file'} should be {expected} (got {shortened(data)})"
    )


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise JsonError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _finite(written: str) -> float:
    value = float(written)
    if math.isinf(value):
        raise JsonError(f"{written[:30]} is beyond what a number can be")
    return value


def _no_number(name: str) -> typing.NoReturn:
    raise JsonError(f"{name} is no JSON number; write null")


def _once(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise JsonError(
            f"key {shortened(next(key for key in keys if keys.count(key) > 1))} stands "
            "twice in one object"
        )
    return found


@lru_cache
def _reader(any_number: bool) -> json.JSONDecoder:
    numbers = {} if any_number else {"parse_float": _finite, "parse_constant": _no_number}
    return json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole, **numbers)
