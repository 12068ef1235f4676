r"""Texts of users and models on their way out: one rule for each of terminal, HTML and SVG, JSON,
and Markdown.

A name may hold anything: tags, escape sequences, line ends, marks that turn the direction of
writing. On all ways out a character that cannot be seen is written as in Python (`\x1b`,
`\u202e`); then what the language of the document reads as its own is escaped.
"""

from __future__ import annotations

import html as standard
import json as standard_json
import logging
import re
from collections.abc import Iterable
from typing import Any

_UNSEEN = (
    "\x00-\x1f\x7f-\x9f"  # control characters, those of eight bits too
    # direction, no width
    "\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"
    "\u2028\u2029"  # line ends to some readers
    "\ud800-\udfff\ufffe\uffff"  # no characters: half surrogates, and what XML refuses
)
_IN_A_LINE = re.compile(f"[{_UNSEEN}]")
_IN_A_TEXT = re.compile(rf"(?![\n\t])[{_UNSEEN}]")
_IN_JSON = re.compile(rf"(?!\n)[{_UNSEEN}]")


def _as_python(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


# -- terminal ------------------------------------------------------------------------------------


def line(text: object) -> str:
    """One line, whatever is in it: for error lines, file names, cells and labels."""
    return _IN_A_LINE.sub(_as_python, str(text))


def lines(rows: Iterable[object]) -> str:
    """A text of lines: each of `rows` stays one."""
    return "\n".join(map(line, rows))


def block(text: object) -> str:
    """A text whose line ends are meant."""
    return lines(str(text).split("\n"))


def json(value: Any) -> str:
    """A value as JSON in one line: the same value to a reader of JSON, and nothing that a terminal
    obeys.
    """

    def unit(match: re.Match[str]) -> str:
        return "".join(
            f"\\u{int.from_bytes(pair, 'big'):04x}"
            for pair in _pairs(match[0].encode("utf-16-be", "surrogatepass"))
        )

    return _IN_JSON.sub(unit, standard_json.dumps(value, ensure_ascii=False))


class _Record(logging.LogRecord):
    def getMessage(self) -> str:
        return block(super().getMessage())


def in_logs() -> None:
    """From here on in what libraries log, too: they quote configurations and file names as they
    are.
    """
    logging.setLogRecordFactory(_Record)


def _pairs(text: bytes) -> list[bytes]:
    return [text[i : i + 2] for i in range(0, len(text), 2)]


# -- HTML and SVG --------------------------------------------------------------------------------


def seen(value: Any) -> Any:
    """What a template shows, for its `finalize`: line ends and tabs stay; numbers, and markup that
    was made here, pass as they are.
    """
    return (
        value
        if not isinstance(value, str) or hasattr(value, "__html__")
        else _IN_A_TEXT.sub(_as_python, value)
    )


def markup(text: object) -> str:
    """Text, or a quoted attribute, of HTML or SVG, on one line."""
    return standard.escape(line(text))


# -- Markdown ------------------------------------------------------------------------------------

_MARKS = re.compile(
    r"[\\`*\[\]<>&|~#!$@]|_(?![^\W_])|(?<![^\W_])_"  # an underscore inside a word is one
    r"|:(?=/)|(?<=www)\.",  # addresses, which some renderers make links without being asked
    re.IGNORECASE,
)
_BEGINS = re.compile(r"^(\d{0,9})([-+.)])(?=[\s-]|$)")
"""a list or a rule at the beginning of a block"""


class Markdown(str):
    """Markdown that was made here, which is not escaped again."""


def markdown(text: object) -> Markdown:
    """Text inside a line, a heading or a cell: no link, no element and no other cell comes of
    it.
    """
    return (
        text if isinstance(text, Markdown) else Markdown(_MARKS.sub(r"\\\g<0>", line(text).strip()))
    )


def item(text: object) -> Markdown:
    """A line of a list."""
    return Markdown("- " + _BEGINS.sub(r"\1\\\2", markdown(text)))


def code(text: str) -> Markdown:
    """In the type of code, where it holds nothing that would end it."""
    plain = line(text)
    return (
        markdown(text)
        if plain.strip() != plain or not plain or set("`|\\") & set(plain)
        else Markdown(f"`{plain}`")
    )


def link(text: str, address: str) -> Markdown:
    """A link, where the address is one of the web; else the text alone."""
    safe = re.fullmatch(r"https://[\w.-]+(?:/[\w./%+-]*)?", address, re.ASCII)
    return Markdown(f"[{markdown(text)}]({address})") if safe else markdown(text)
