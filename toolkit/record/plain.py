"""JSON: one reader, with limits, for every file and row; and records as plain values and back,
their types checked.
"""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import lru_cache
from pathlib import Path
from reprlib import Repr
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

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


class JsonError(FtkError, ValueError):
    """No JSON, or not what is expected there: one line. line and column are where `msg` was found,
    from 1.
    """

    def __init__(self, msg: str, line: int = 1, column: int = 1, *, grammar: bool = False):
        """grammar: it is not what JSON looks like, rather than beyond a limit."""
        super().__init__(msg)
        self.msg, self.lineno, self.colno, self.grammar = msg, line, column, grammar

    @property
    def reason(self) -> str:
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
    with path.open("rb") as file:
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


def from_plain(kind: typing.Any, data: typing.Any) -> typing.Any:
    """Plain values back to records, their types checked by pydantic without any conversion. Keys
    that a dataclass does not know are left out, a TypedDict keeps them.

    Raises JsonError where a field is missing or of another type.
    """
    from pydantic import ValidationError
    from typing_extensions import is_typeddict

    text = json.dumps(data)
    # of a name that is no UTF-8, which pydantic does not take: JSON and Python do
    if split := _SURROGATE.search(text) is not None:
        text = json.dumps(_each_text(data, _hidden))
    try:
        record = adapter_of(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise JsonError(_in_words(error, data)) from None
    _refuse_huge_numbers(to_plain(record))  # where a float is meant it is one by now
    if is_typeddict(kind):
        return data
    return _each_text(record, _shown_again) if split else record


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _hidden(text: str) -> str:
    """Lone surrogates as characters that nobody uses, of plane 16."""
    return "".join(chr(ord(c) + 0x100000) if "\ud800" <= c <= "\udfff" else c for c in text)


def _shown_again(text: str) -> str:
    return "".join(chr(ord(c) - 0x100000) if "\U0010d800" <= c <= "\U0010dfff" else c for c in text)


def _each_text(value: typing.Any, change: Callable[[str], str]) -> typing.Any:
    """Plain values or records with every text in them changed."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_each_text(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(
            value, **{f.name: _each_text(getattr(value, f.name), change) for f in fields(value)}
        )
    return value


@lru_cache
def adapter_of(kind: typing.Any) -> TypeAdapter[typing.Any]:
    """What reads a record and knows its JSON Schema."""
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


EXPECTED = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "an object",
    "mapping_type": "an object",
    "dataclass_type": "an object",
    "none_required": "null",
}
"""what a value should be, by pydantic's name of the error"""


def _in_words(error: ValidationError, data: typing.Any) -> str:
    """The first thing that is wrong: field, what it should be, what it is."""
    details = error.errors(include_url=False)
    path, value = _place(details[0]["loc"], data)
    if details[0]["type"] == "missing":
        return f"{'.'.join([*path, str(details[0]['loc'][-1])])} is missing"
    expected = [
        EXPECTED.get(detail["type"], detail["msg"].removeprefix("Input should be "))
        for detail in details
        if _place(detail["loc"], data)[0] == path
    ]
    return (
        f"{'.'.join(path) or 'the file'} should be {' or '.join(dict.fromkeys(expected))} "
        f"(got {shortened(value)})"
    )


def _place(loc: Sequence[int | str], data: typing.Any) -> tuple[list[str], typing.Any]:
    """The steps of pydantic's path that lead through the data, without the names of a union's
    branches; and the value there.
    """
    path = []
    for step in loc:
        items: typing.Any = dict(enumerate(data)) if isinstance(data, list) else data
        if isinstance(items, dict) and step in items:
            data = items[step]
            path.append(str(step))
    return path, data


def _refuse_huge_numbers(data: typing.Any) -> None:
    level: list[tuple[str, typing.Any]] = [("", data)]
    while level:
        inner = []
        for name, value in level:
            if isinstance(value, dict | list):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                inner += [(f"{name}.{key}", item) for key, item in items]
            elif isinstance(value, int) and abs(value) >= WORD:
                raise JsonError(
                    f"{name.lstrip('.')} should be a whole number below 2^63 "
                    f"(got {shortened(value)})"
                )
        level = inner


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
    fields = dict(pairs)
    if len(fields) < len(pairs):
        keys = [key for key, _ in pairs]
        raise JsonError(
            f"key {shortened(next(key for key in keys if keys.count(key) > 1))} stands "
            "twice in one object"
        )
    return fields


@lru_cache
def _reader(any_number: bool) -> json.JSONDecoder:
    numbers = {} if any_number else {"parse_float": _finite, "parse_constant": _no_number}
    return json.JSONDecoder(object_pairs_hook=_once, parse_int=_whole, **numbers)
