"""The merge methods: one table, one row a method, and nothing here loads torch.

A new method is one row of MERGE_METHODS and the function that it names. `toolkit.merging`
applies it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

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

SUM = "one running sum of one module"
FACTORS = "the factors of one module of all K, and K x K numbers"
ADAPTER = "K x K numbers, and the factors of one module of all K; reads twice"
SIGNS = "four running sums of one module"


class MergeMethod(NamedTuple):
    """One row of the table. A function is named as `module:function` of `toolkit.merging` and
    loaded when a merge begins; your own may be given as it is.

    kind: `coefficients` takes (gram [K, K], weights [K], **parameters) and returns how much of
    every change makes up the result, [K]; `entries` takes (factors, weights, ids, **parameters) and
    returns the merged change of one module, [O, I].
    gram: the inner products that coefficients need: none, those of one "module", or those of whole
    adapters ("adapter": all modules as one vector). holds: in memory at once. needs: of sources.
    sources: (source, **parameters) -> the adapters that a source stands for, with weights.
    """

    kind: Literal["coefficients", "entries"]
    function: str | Callable[..., Any]
    paper: str
    parameters: dict[str, Parameter] = {}
    holds: str = SUM
    needs: str = "adapters"
    gram: Literal["", "module", "adapter"] = ""
    sources: str | Callable[..., Any] = "trajectory:itself"


MERGE_METHODS: dict[str, MergeMethod] = {
    "mean": MergeMethod(
        "coefficients", "coefficients:weighted", "https://arxiv.org/abs/2203.05482"
    ),
    "trimmed_mean": MergeMethod(
        "entries",
        "entrywise:trimmed_mean",
        "https://arxiv.org/abs/1803.01498",
        {
            "trim": Parameter(
                0.2, BELOW_HALF, "share of the values of an entry left out at either end"
            )
        },
        holds="the factors of one module of all K",
        needs="3 adapters or more",
    ),
    # of whole adapters: a replica is one point, and parts of different replicas have never worked
    # together
    "geometric_median": MergeMethod(
        "coefficients",
        "coefficients:geometric_median",
        "https://arxiv.org/abs/1912.13445",
        holds=ADAPTER,
        needs="3 adapters or more",
        gram="adapter",
    ),
    "swa": MergeMethod(
        "coefficients",
        "coefficients:weighted",
        "https://arxiv.org/abs/1803.05407",
        {
            "last": Parameter(
                None,
                COUNT,
                "number of snapshots, the latest ones; default: what training averaged, or all",
            )
        },
        needs="averages/swa or snapshots of every replica",
        sources="trajectory:swa",
    ),
    "ema": MergeMethod(
        "coefficients",
        "coefficients:weighted",
        "https://arxiv.org/abs/2411.18704",
        {
            "decay": Parameter(
                None,
                BELOW_ONE,
                "weight of the past at each snapshot; default: what training averaged",
            )
        },
        needs="averages/ema or snapshots of every replica",
        sources="trajectory:ema",
    ),
    "lawa": MergeMethod(
        "coefficients",
        "coefficients:weighted",
        "https://arxiv.org/abs/2306.03241",
        {"last": Parameter(5, COUNT, "number of snapshots, the latest ones")},
        needs="snapshots of every replica",
        sources="trajectory:lawa",
    ),
    "model_stock": MergeMethod(
        "coefficients",
        "coefficients:model_stock",
        "https://arxiv.org/abs/2403.19522",
        holds=FACTORS,
        needs="2 adapters or more",
        gram="module",
    ),
    "shrink": MergeMethod(
        "coefficients",
        "coefficients:shrink",
        "https://projecteuclid.org/euclid.bsmsp/1200512173",
        {
            "t": Parameter(
                None,
                NUMBER,
                "factor of the mean; default: estimated from the spread of the adapters",
            )
        },
        holds=ADAPTER,
        needs="2 adapters or more, or t",
        gram="adapter",
    ),
    "task_arithmetic": MergeMethod(
        "coefficients",
        "coefficients:scaled",
        "https://arxiv.org/abs/2212.04089",
        {
            "lambda": Parameter(
                1.0,
                NUMBER,
                "factor of the mean; the paper's sum is the mean at K times its lambda",
            )
        },
    ),
    "ties": MergeMethod(
        "entries",
        "entrywise:ties",
        "https://arxiv.org/abs/2306.01708",
        {"density": Parameter(0.2, SHARE, _DENSITY)},
        holds=SIGNS,
    ),
    "dare": MergeMethod(
        "entries",
        "entrywise:dare",
        "https://arxiv.org/abs/2311.03099",
        {"density": Parameter(0.5, SHARE, _DENSITY), "seed": Parameter(0, SEED, _SEED)},
    ),
    "della": MergeMethod(
        "entries",
        "entrywise:della",
        "https://arxiv.org/abs/2406.11617",
        {
            "density": Parameter(0.5, SHARE, "mean " + _DENSITY),
            "epsilon": Parameter(
                0.15,
                BELOW_ONE,
                "a row's smallest entry is kept at density - epsilon, its largest at density + "
                "epsilon",
            ),
            "seed": Parameter(0, SEED, _SEED),
        },
        holds=SIGNS,
    ),
    "breadcrumbs": MergeMethod(
        "entries",
        "entrywise:breadcrumbs",
        "https://arxiv.org/abs/2312.06795",
        {
            "density": Parameter(0.9, SHARE, _DENSITY),
            "gamma": Parameter(
                0.01,
                BELOW_ONE,
                "share of the largest entries that is left out, as far as the density allows",
            ),
        },
    ),
    "sce": MergeMethod(
        "entries",
        "entrywise:sce",
        "https://arxiv.org/abs/2408.07990",
        {
            "select_topk": Parameter(
                1.0,
                SHARE,
                "share of the entries, those that vary most between adapters, that is merged",
            )
        },
        holds="five running sums of one module; reads twice or thrice",
    ),
    "karcher": MergeMethod(
        "coefficients",
        "coefficients:karcher",
        "https://arxiv.org/abs/2603.04972",
        holds=FACTORS,
        gram="module",
    ),
    "multislerp": MergeMethod(
        "coefficients",
        "coefficients:multislerp",
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
        holds=FACTORS,
        gram="module",
    ),
    "greedy_soup": MergeMethod(
        "coefficients",
        "coefficients:weighted",
        "https://arxiv.org/abs/2203.05482",
        needs="a validation score of every adapter",
    ),
}


def parameter_names() -> set[str]:
    """Parameters of all methods."""
    return {name for row in MERGE_METHODS.values() for name in row.parameters}


def check_method(method: str) -> str:
    """Raises ValueError with the nearest name for a method that there is not. Methods of mergekit
    are checked when they are used.
    """
    if method not in MERGE_METHODS and not method.startswith(MERGEKIT):
        raise ValueError(f"unknown merge method {method!r}{nearest(method, [*MERGE_METHODS])}")
    return method


def merge_parameters(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of `method`, defaults filled in, in the order of the table. Raises ValueError
    in one line.
    """
    if check_method(method) not in MERGE_METHODS:
        return {**given, "seed": _value("seed", given.get("seed", 0), SEED)}
    parameters = MERGE_METHODS[method].parameters
    for name in given:
        if name not in parameters:
            raise ValueError(
                f"unknown parameter {name!r} of merge method "
                f"{method}{nearest(name, [*parameters]) if parameters else '; known: none'}"
            )
    asked = {
        name: (given.get(name, parameter.default), parameter)
        for name, parameter in parameters.items()
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
