"""The table of rules: how each makes the form of a text, and which of them link forms that are
close.
"""

import functools
import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.data import DataError, parse_answer, parse_reference
from toolkit.measurement.meaning.forms import json_form, normalised, number
from toolkit.record.files import home
from toolkit.record.plain import read_json, read_record

COSINE = 0.9
ROUNDING = 1e-6  # of a cosine in float32: equal embeddings have a cosine of 1 give or take this
COSINES = 1 << 22  # computed at a time


@dataclass(frozen=True)
class Rule:
    """form: the canonical form of a text. of_reference: that of a reference, None where nothing can
    be right.

    place: of rules that link, where each form stands: a number (nan: links with nothing) or a
    vector. link: from the places of distinct forms to the class of each; close: whether the places
    are close to one place.
    """

    form: Callable[[str], str]
    of_reference: Callable[[str], str | None] | None = None
    place: Callable[[Sequence[str]], np.ndarray] | None = None
    link: Callable[[np.ndarray], np.ndarray] | None = None
    close: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


@dataclass(frozen=True)
class Kind:
    """make: from the argument, behind the colon, to the rule; argument: what it is; needs: the
    extra of ftk that has to be installed.
    """

    make: Callable[[str], Rule]
    argument: str = ""
    optional: bool = False
    needs: str = ""

    def written(self, name: str) -> str:
        """How the rule is written, with its argument."""
        return (
            f"{name}[:{self.argument}]" if self.optional else f"{name}:{self.argument}".rstrip(":")
        )


def _parsed(rule: str) -> Rule:
    """A rule of data/answers.py."""
    return Rule(functools.partial(parse_answer, rule=rule))


def _regex(pattern: str) -> Rule:
    """Texts that do not match mean the same, and are never right."""
    rule = f"regex:{pattern}"
    parse_answer("", rule)  # raises DataError for a broken pattern
    return Rule(
        functools.partial(parse_answer, rule=rule),
        lambda reference: parse_reference(reference, rule) or None,
    )


def _numeric(argument: str) -> Rule:
    def form(text: str) -> str:
        value = number(text)
        return parse_answer(text, "text") if value is None else value

    if not argument:
        return Rule(form)
    # 1.1 is within 0.1 of 1.0
    tolerance = _fraction(argument, f"numeric:{argument}", 0.0, math.inf) * (1 + 1e-9)

    def place(forms: Sequence[str]) -> np.ndarray:
        place_F = np.array([float(number(form) or math.nan) for form in forms], dtype=np.float64)
        return np.where(np.isfinite(place_F), place_F, math.nan)

    def within(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.abs(a - b) <= tolerance * np.maximum(1.0, np.maximum(np.abs(a), np.abs(b)))

    def link(place_F: np.ndarray) -> np.ndarray:
        """On the sorted line a class ends where the gap to the next number is too wide."""
        order_F = np.argsort(place_F, kind="stable")
        sorted_F = place_F[order_F]
        class_F = np.empty(len(place_F), dtype=np.int64)
        class_F[order_F] = np.cumsum(
            np.append([False] * (len(place_F) > 0), ~within(sorted_F[1:], sorted_F[:-1]))
        )
        return class_F

    return Rule(form, place=place, link=link, close=within)


def _embedding(argument: str) -> Rule:
    folder, _, last = argument.rpartition(":")
    try:
        least, folder = (float(last), folder) if folder else (COSINE, argument)
    except ValueError:  # a colon in the name of the folder
        least, folder = COSINE, argument
    least = _fraction(str(least), f"embedding:{argument}", -1.0, 1.0) - ROUNDING

    def place(forms: Sequence[str]) -> np.ndarray:
        if not forms:
            return np.empty((0, 1))
        vector_FD = np.nan_to_num(
            np.asarray(load_model(folder).encode(list(forms)), dtype=np.float32)
        )
        return vector_FD / np.maximum(
            np.linalg.norm(vector_FD, axis=1, keepdims=True), np.finfo(np.float32).tiny
        )

    def close(place_FD: np.ndarray, place_D: np.ndarray) -> np.ndarray:
        return place_FD @ place_D >= least

    def link(place_FD: np.ndarray) -> np.ndarray:
        """Chains, grown from one text after the other: what is close to the end of a chain joins
        it.
        """
        class_F, left_F = np.empty(len(place_FD), dtype=np.int64), np.arange(len(place_FD))
        while len(left_F):
            name, ends_F, left_F = left_F[0], left_F[:1], left_F[1:]
            class_F[name] = name
            while len(ends_F):
                some_F, ends_F = np.split(ends_F, [max(1, COSINES // max(1, len(left_F)))])
                joins_F = (place_FD[some_F] @ place_FD[left_F].T >= least).any(axis=0)
                class_F[left_F[joins_F]] = name
                ends_F, left_F = np.append(ends_F, left_F[joins_F]), left_F[~joins_F]
        return class_F

    return Rule(functools.partial(parse_answer, rule="text"), place=place, link=link, close=close)


def _fraction(argument: str, rule: str, low: float, high: float) -> float:
    try:
        value = float(argument)
    except ValueError:
        value = math.nan
    if not low <= value <= high or math.isinf(value):
        raise DataError(
            f"meaning: {rule!r} needs a number "
            f"{f'of at least {low:g}' if math.isinf(high) else f'from {low:g} to {high:g}'}"
        )
    return value


def _check_parts(file: Path, folder: str) -> None:
    """Raises DataError where a part is a class that comes with the folder: the library would run
    its code without asking.
    """
    try:
        parts = [part["type"] for part in read_json(file)]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"meaning: {file} is no list of the parts of an embedding model") from None
    for part in parts:
        if not str(part).startswith("sentence_transformers."):
            raise DataError(
                f"meaning: the embedding in {folder} needs code of its own ({part}), "
                "which is never run; name another"
            )


@functools.cache
def load_model(folder: str) -> Any:
    """A model2vec or sentence-transformers model from a folder: an object with encode(texts) ->
    [texts, dimensions].
    """
    path = home(folder)
    if not path.is_dir():
        raise DataError(
            f"meaning: no folder {folder!r}; an embedding model is read from disk, never downloaded"
        )
    config = path / "config.json"
    static = (
        config.is_file() and read_record(config, dict[str, Any]).get("model_type") == "model2vec"
    )
    try:
        if static or not (path / "modules.json").is_file():
            return importlib.import_module("model2vec").StaticModel.from_pretrained(str(path))
        _check_parts(path / "modules.json", folder)
        return importlib.import_module("sentence_transformers").SentenceTransformer(
            str(path), trust_remote_code=False
        )
    except ImportError as error:
        raise DataError(
            f"meaning: the embedding in {folder} needs {error.name}; pip install 'ftk[meaning]'"
        ) from None


RULES = {
    "exact": Kind(lambda _: Rule(str)),
    "text": Kind(lambda _: _parsed("text")),
    "normalised": Kind(lambda _: Rule(normalised)),
    "first-line": Kind(lambda _: _parsed("first-line")),
    "regex": Kind(_regex, "PATTERN"),
    "numeric": Kind(_numeric, "TOLERANCE", optional=True),
    "json": Kind(lambda _: Rule(json_form)),
    "embedding": Kind(_embedding, "FOLDER[:COSINE]", needs="meaning"),
}
"""Name -> how the rule is made, and what it needs. A new rule is one line here.

exact: the same characters. text: the same but for white space. normalised: see `normalised`.
first-line, regex: see `parse_answer`.
numeric: the last number in the text, a text without one as it is; the tolerance is absolute below 1
and relative above. json: see `json_form`, numbers as in numeric. embedding: a cosine of at least
0.9, or as given, in a model of one's own.
"""


def rule_of(rule: str) -> Rule:
    """The rule of a name such as `numeric:1e-6`. Raises DataError where there is none."""
    name, _, argument = rule.partition(":")
    kind = RULES.get(name)
    if (
        kind is None
        or bool(argument) != bool(kind.argument)
        and not (kind.optional and not argument)
    ):
        raise DataError(
            f"meaning: unknown rule {rule!r}; use one of "
            f"{', '.join(kind.written(name) for name, kind in RULES.items())}"
        )
    return kind.make(argument)
