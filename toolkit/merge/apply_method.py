"""The merge methods: one table at the end. Their parameters stand in `toolkit/recipe/merges.py`.

A method has two parts. `along` turns one source into the adapters it stands for. Then either
`coefficients` says how much of every change D_k = scale * B @ A makes up the result, from inner
products alone, or `entries` makes the result from the D_k entry by entry. Nothing looks at A or B
by themselves: (B G^-1, G A) is the same adapter for every invertible G.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.merge import coefficients as c
from toolkit.merge import entrywise as e
from toolkit.merge import mergekit_methods
from toolkit.merge.trajectory import Along, ema, itself, lawa, swa
from toolkit.model import delta
from toolkit.recipe.merge_methods import MERGEKIT, check_method, merge_parameters

SUM = "one running sum of one module"
FACTORS = "the factors of one module of all K, and K x K numbers"
ADAPTER = "K x K numbers, and the factors of one module of all K; reads twice"
SIGNS = "four running sums of one module"


class Method(NamedTuple):
    """One row of the table."""

    along: Callable[..., Along]  # (source, **parameters) -> adapters and weights
    coefficients: Callable[..., Tensor] | None  # (gram [K, K], weights [K], **parameters) -> [K]
    entries: Callable[..., Tensor] | None  # (factors, weights, ids, **parameters) -> [O, I]
    # whose inner products the coefficients need: "" (none), "module", or "adapter" (all modules as
    # one vector)
    gram: str
    holds: str  # in memory at once
    needs: str
    paper: str


METHODS = {
    "mean": Method(
        itself, c.weighted, None, "", SUM, "adapters", "https://arxiv.org/abs/2203.05482"
    ),
    "trimmed_mean": Method(
        itself,
        None,
        e.trimmed_mean,
        "",
        "the factors of one module of all K",
        "3 adapters or more",
        "https://arxiv.org/abs/1803.01498",
    ),
    # of whole adapters: a replica is one point, and parts of different replicas have never worked
    # together
    "geometric_median": Method(
        itself,
        c.geometric_median,
        None,
        "adapter",
        ADAPTER,
        "3 adapters or more",
        "https://arxiv.org/abs/1912.13445",
    ),
    "swa": Method(
        swa,
        c.weighted,
        None,
        "",
        SUM,
        "averages/swa or snapshots of every replica",
        "https://arxiv.org/abs/1803.05407",
    ),
    "ema": Method(
        ema,
        c.weighted,
        None,
        "",
        SUM,
        "averages/ema or snapshots of every replica",
        "https://arxiv.org/abs/2411.18704",
    ),
    "lawa": Method(
        lawa,
        c.weighted,
        None,
        "",
        SUM,
        "snapshots of every replica",
        "https://arxiv.org/abs/2306.03241",
    ),
    "model_stock": Method(
        itself,
        c.model_stock,
        None,
        "module",
        FACTORS,
        "2 adapters or more",
        "https://arxiv.org/abs/2403.19522",
    ),
    "shrink": Method(
        itself,
        c.shrink,
        None,
        "adapter",
        ADAPTER,
        "2 adapters or more, or t",
        "https://projecteuclid.org/euclid.bsmsp/1200512173",
    ),
    "task_arithmetic": Method(
        itself, c.scaled, None, "", SUM, "adapters", "https://arxiv.org/abs/2212.04089"
    ),
    "ties": Method(itself, None, e.ties, "", SIGNS, "adapters", "https://arxiv.org/abs/2306.01708"),
    "dare": Method(itself, None, e.dare, "", SUM, "adapters", "https://arxiv.org/abs/2311.03099"),
    "della": Method(
        itself, None, e.della, "", SIGNS, "adapters", "https://arxiv.org/abs/2406.11617"
    ),
    "breadcrumbs": Method(
        itself, None, e.breadcrumbs, "", SUM, "adapters", "https://arxiv.org/abs/2312.06795"
    ),
    "sce": Method(
        itself,
        None,
        e.sce,
        "",
        "five running sums of one module; reads twice or thrice",
        "adapters",
        "https://arxiv.org/abs/2408.07990",
    ),
    "karcher": Method(
        itself, c.karcher, None, "module", FACTORS, "adapters", "https://arxiv.org/abs/2603.04972"
    ),
    "multislerp": Method(
        itself,
        c.multislerp,
        None,
        "module",
        FACTORS,
        "adapters",
        "https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    ),
    "greedy_soup": Method(
        itself,
        c.weighted,
        None,
        "",
        SUM,
        "a validation score of every adapter",
        "https://arxiv.org/abs/2203.05482",
    ),
}


def find_method(method: str, given: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The row of a method, also of `mergekit:NAME`, and all its parameters. Raises ValueError in
    one line.
    """
    parameters = merge_parameters(method, given)
    if method in METHODS:
        return METHODS[method], parameters
    name = check_method(method).removeprefix(MERGEKIT)
    mergekit_methods.check(name, {key: value for key, value in parameters.items() if key != "seed"})
    row = Method(
        itself,
        None,
        partial(mergekit_methods.entries, name),
        "",
        "K changes of one module, about three times",
        "adapters",
        "https://github.com/arcee-ai/mergekit",
    )
    return row, parameters


def combine(
    method: str,
    factors: Sequence[delta.Factors],
    weights: Sequence[float] | None = None,
    *,
    ids: Sequence[str] | None = None,
    module: str = "",
    **parameters: Any,
) -> tuple[Tensor, Tensor]:
    """K changes of one module -> (A, B) of the merged change, exact. What a method takes of whole
    adapters it takes of these alone.
    """
    chosen, values = find_method(method, parameters)
    share = (
        [1 / len(factors)] * len(factors)
        if weights is None
        else [w / sum(weights) for w in weights]
    )
    if chosen.coefficients:
        gram = delta.gram(factors) if chosen.gram else torch.empty(0)
        return delta.concat(factors, find_coefficients(chosen, gram, share, values))
    return delta.from_dense(
        merge_entries(
            chosen, factors, share, ids or [str(k) for k in range(len(factors))], module, values
        )
    )


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters that the function takes; `lambda` is a word that Python keeps, so it
    is `lambda_` there.
    """
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in parameters}


def find_coefficients(
    chosen: Method, gram: Tensor, weights: Sequence[float], values: Mapping[str, Any]
) -> list[float]:
    """How much of every change makes up the result, for a method that has `coefficients`."""
    assert chosen.coefficients is not None
    arguments = accepted(
        chosen.coefficients,
        {f"{name}_" if name == "lambda" else name: value for name, value in values.items()},
    )
    return chosen.coefficients(
        gram, torch.tensor(weights, dtype=torch.float64), **arguments
    ).tolist()


def merge_entries(
    chosen: Method,
    factors: Sequence[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    module: str,
    values: Mapping[str, Any],
) -> Tensor:
    """The merged change [O, I], for a method that has `entries`."""
    assert chosen.entries is not None
    if isinstance(chosen.entries, partial):
        return chosen.entries(factors, weights, ids, module=module, **values)
    return chosen.entries(factors, weights, ids, **values)
