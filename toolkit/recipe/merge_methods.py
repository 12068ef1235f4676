"""The parameters of every merge method: one table, name -> default, what may be asked, meaning.

`toolkit/merge/methods.py` has the functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from toolkit.record.plain import shortened
from toolkit.text.nearest import nearest

MERGEKIT = "mergekit:"
"""`mergekit:NAME` is the method NAME of mergekit, with that method's own parameters and a seed."""


class Kind(NamedTuple):
    """What a value may be."""

    words: str
    type: type
    holds: Callable[[Any], bool]


SHARE = Kind("a share above 0 and at most 1", float, lambda x: 0 < x <= 1)
BELOW_HALF = Kind("a share from 0 to below 0.5", float, lambda x: 0 <= x < 0.5)
BELOW_ONE = Kind("a share from 0 to below 1", float, lambda x: 0 <= x < 1)
NUMBER = Kind("a finite number", float, math.isfinite)
COUNT = Kind("a whole number from 1 to 10,000", int, lambda x: 1 <= x <= 10_000)
SEED = Kind("a whole number from 0, of 63 bits", int, lambda x: 0 <= x < 2**63)


class Parameter(NamedTuple):
    """One parameter of a method. A default of None says that the method finds the value itself."""

    default: float | int | None
    kind: Kind
    meaning: str


_DENSITY = "share of the entries of every change that is kept"
_SEED = "root of the masks; each depends on it, the adapter's name and the module alone"

MERGES: dict[str, dict[str, Parameter]] = {
    "mean": {},
    "trimmed_mean": {
        "trim": Parameter(0.2, BELOW_HALF, "share of the values of an entry left out at either end")
    },
    "geometric_median": {},
    "swa": {
        "last": Parameter(
            None,
            COUNT,
            "number of snapshots, the latest ones; default: what training averaged, or all",
        )
    },
    "ema": {
        "decay": Parameter(
            None, BELOW_ONE, "weight of the past at each snapshot; default: what training averaged"
        )
    },
    "lawa": {"last": Parameter(5, COUNT, "number of snapshots, the latest ones")},
    "model_stock": {},
    "shrink": {
        "t": Parameter(
            None, NUMBER, "factor of the mean; default: estimated from the spread of the adapters"
        )
    },
    "task_arithmetic": {
        "lambda": Parameter(
            1.0, NUMBER, "factor of the mean; the paper's sum is the mean at K times its lambda"
        )
    },
    "ties": {"density": Parameter(0.2, SHARE, _DENSITY)},
    "dare": {"density": Parameter(0.5, SHARE, _DENSITY), "seed": Parameter(0, SEED, _SEED)},
    "della": {
        "density": Parameter(0.5, SHARE, "mean " + _DENSITY),
        "epsilon": Parameter(
            0.15,
            BELOW_ONE,
            "a row's smallest entry is kept at density - epsilon, its largest at density + epsilon",
        ),
        "seed": Parameter(0, SEED, _SEED),
    },
    "breadcrumbs": {
        "density": Parameter(0.9, SHARE, _DENSITY),
        "gamma": Parameter(
            0.01,
            BELOW_ONE,
            "share of the largest entries that is left out, as far as the density allows",
        ),
    },
    "sce": {
        "select_topk": Parameter(
            1.0,
            SHARE,
            "share of the entries, those that vary most between adapters, that is merged",
        )
    },
    "karcher": {},
    "multislerp": {},
    "greedy_soup": {},
}

PARAMETERS = {name for parameters in MERGES.values() for name in parameters}


def check_method(method: str) -> str:
    """Raises ValueError with the nearest name for a method that there is not. Methods of mergekit
    are checked when they are used.
    """
    if method not in MERGES and not method.startswith(MERGEKIT):
        raise ValueError(f"unknown merge method {method!r}{nearest(method, [*MERGES])}")
    return method


def merge_parameters(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of `method`, defaults filled in, in the order of the table. Raises ValueError
    in one line.
    """
    if check_method(method) not in MERGES:
        return {**given, "seed": _value("seed", given.get("seed", 0), SEED)}
    known = MERGES[method]
    for name in given:
        if name not in known:
            raise ValueError(
                f"unknown parameter {name!r} of merge method "
                f"{method}{nearest(name, [*known]) if known else '; known: none'}"
            )
    asked = {
        name: (given.get(name, parameter.default), parameter) for name, parameter in known.items()
    }
    return {
        name: None
        if value is None and parameter.default is None
        else _value(name, value, parameter.kind)
        for name, (value, parameter) in asked.items()
    }


def _value(name: str, value: Any, kind: Kind) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
    whole = number and (kind.type is float or isinstance(value, int))
    if not whole or not math.isfinite(value) or not kind.holds(value):
        raise ValueError(f"{name} {shortened(value)} is impossible: {kind.words}")
    return kind.type(value)


def parse_setting(text: str) -> tuple[str, Any]:
    """`name=value` from the shell: a number, true, false, none, or text."""
    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise ValueError(f"--set {text!r}: write it as name=value")
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return name, words[value.lower()]
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, value
