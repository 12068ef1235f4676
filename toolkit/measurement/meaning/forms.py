"""Canonical forms of texts: the same string exactly where texts mean the same."""

import functools
import json
import re
import unicodedata
from decimal import Decimal, InvalidOperation
from typing import Any

NUMBER_AHEAD = re.compile(r"-?\.?\d|-[$€£¥]")
PIECE = 1024
"""characters that are normalised at a time"""
LOOKED_AT = 10_000_000
"""characters that a search for JSON in one text reads; beyond, a text is as it is"""
THOUSANDS = "[,\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}]"
NUMBER = re.compile(  # a sign behind a word or a bracket is an operator
    rf"((?<![\w)\]])[-+])?((\d{{1,3}}({THOUSANDS}\d{{3}})+(?!\d)|\d+)(\.\d+)?|(?<!\d)\.\d+)([eE][-+]?\d{{1,6}}(?!\d))?"
)


def normalised(text: str) -> str:
    r"""NFKC, case folded, white space collapsed, and words without the punctuation around them;
    inside words it stays.

    Kept is what carries meaning: a minus or a point before a digit, and the signs # % & @ / \.
    Punctuation alone stays as it is.
    """
    folded = _nfkc(_nfkc(text).casefold()).replace("\N{MINUS SIGN}", "-")
    words = folded.split()
    return " ".join(filter(None, map(_bare, words))) or " ".join(words)


def _nfkc(text: str) -> str:
    """In pieces: Unicode sorts the marks of one letter, and a text can be one letter with 100,000
    marks.
    """
    return "".join(
        unicodedata.normalize("NFKC", text[start : start + PIECE])
        for start in range(0, len(text), PIECE)
    )


def _bare(word: str) -> str:
    start, end = 0, len(word)
    while end and _punctuation(word[end - 1]):
        end -= 1
    while start < end and _punctuation(word[start]) and not NUMBER_AHEAD.match(word, start, end):
        start += 1
    return word[start:end]


@functools.cache
def _punctuation(sign: str) -> bool:
    return unicodedata.category(sign).startswith("P") and sign not in "#%&@/\\"


def number(text: str) -> str | None:
    """The last number in the text, in full precision: 1,200.50 and 1.2005e3 are 1200.5."""
    numbers = [match[0] for match in NUMBER.finditer(text.replace("\N{MINUS SIGN}", "-"))]
    return plain(re.sub(THOUSANDS, "", numbers[-1])) if numbers else None


def plain(number: str) -> str:
    """A number in the one way of writing it: no plus, no zeros at the ends, no exponent unless it
    is long.
    """
    try:
        sign, digits, exponent = Decimal(number).as_tuple()
    except InvalidOperation:
        return number
    if not isinstance(exponent, int):
        return number
    written = "".join(map(str, digits))
    kept = written.rstrip("0")
    if not kept:
        return "0"
    plain = Decimal((sign, tuple(map(int, kept)), exponent + len(written) - len(kept)))
    return f"{plain:f}" if -20 <= plain.adjusted() <= 20 else f"{plain:e}"


def json_form(text: str) -> str:
    """The JSON that the text is, else the first object or array in it, in the one way of writing
    it; a text without JSON as it is.
    """
    text = text.strip()
    reader = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_refuse)
    looked_at = 0
    for start in (None, *(match.start() for match in re.finditer(r"[\[{]", text))):
        try:
            return _written(
                reader.decode(text) if start is None else reader.raw_decode(text, start)[0]
            )
        except json.JSONDecodeError as error:
            looked_at += error.pos  # to name the line, the error counts from the start of the text
        except ValueError:  # a constant that is no JSON
            looked_at += len(text)
        except RecursionError:  # nested deeper than any answer
            break
        if looked_at > LOOKED_AT:  # a text of opening brackets is read again from each of them
            break
    return text


class _Number(str):
    """A number of JSON, as it was written."""


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _written(value: Any) -> str:
    if isinstance(value, _Number):
        return plain(value)
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(
                f"{json.dumps(key, ensure_ascii=False)}: {_written(value[key])}"
                for key in sorted(value)
            )
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(map(_written, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
