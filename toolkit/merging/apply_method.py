"""One row of the table of merge methods (`toolkit.recipe.merge_methods`), applied to changes.

A method has two parts. `sources` turns one source into the adapters it stands for. Then either
`coefficients` says how much of every change D_k = scale * B @ A makes up the result, from inner
products alone, or `entries` makes the result from the D_k entry by entry. Nothing looks at A or B
by themselves: (B G^-1, G A) is the same adapter for every invertible G.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch import Tensor

from toolkit.merging import mergekit_methods
from toolkit.merging.trajectory import Trajectory, itself
from toolkit.model import delta
from toolkit.recipe.merge_methods import MERGE_METHODS, MERGEKIT, check_method, merge_parameters


class Method(NamedTuple):
    """A row of the table with its functions loaded; the fields mean what they mean in
    `MergeMethod`. One of `coefficients` and `entries` is None.
    """

    sources: Callable[..., Trajectory]  # (source, **parameters) -> adapters and weights
    coefficients: Callable[..., Tensor] | None  # (gram [K, K], weights [K], **parameters) -> [K]
    entries: Callable[..., Tensor] | None  # (factors, weights, ids, **parameters) -> [O, I]
    gram: str
    holds: str
    needs: str
    paper: str


def load_method(name: str) -> Method:
    """The functions of a row of MERGE_METHODS. Raises KeyError for a method without a row."""
    row = MERGE_METHODS[name]
    function = _function(row.function)
    return Method(
        _function(row.sources),
        function if row.kind == "coefficients" else None,
        function if row.kind == "entries" else None,
        row.gram,
        row.holds,
        row.needs,
        row.paper,
    )


def _function(reference: str | Callable[..., Any]) -> Callable[..., Any]:
    if callable(reference):
        return reference
    module, _, name = reference.partition(":")
    return getattr(import_module(f"toolkit.merging.{module}"), name)


def find_method(method: str, given: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The row of a method, also of `mergekit:NAME`, and all its parameters. Raises ValueError in
    one line.
    """
    parameters = merge_parameters(method, given)
    if method in MERGE_METHODS:
        return load_method(method), parameters
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
    """K changes of one module -> (A, B) of the merged change, exact. A method that needs whole
    adapters treats this module as the whole adapter.
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
    """The parameters that the function takes; `lambda` is reserved in Python and is passed as
    `lambda_`.
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
