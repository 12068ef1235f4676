"""Methods of mergekit (LGPL: called, not copied), with guards for what would go wrong on the small
changes of LoRA.

Its thresholds are absolute (1e-5, 1e-6, 1e-8), so the changes are brought to a root mean square of
1 and the result back: every method becomes homogeneous. Its masks come from the global random
state, so that is forked, seeded from (seed, module) and restored. It forms all K changes of one
module at once, about three times over.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from toolkit import seeds
from toolkit.model import delta
from toolkit.text.nearest import nearest

REFUSED = {
    "nearswap": "its t is a distance between weights, which would mean something else for "
    "every module",
    "arcee_fusion": "it compares softmaxes of whole weights, and changes alone do not have these",
}


def check(name: str, parameters: Mapping[str, Any]) -> Any:
    """The method of mergekit. Raises ValueError in one line for one that there is not, that is
    refused, or whose parameters are wrong.
    """
    from mergekit.merge_methods import registered_methods

    if name in REFUSED:
        raise ValueError(f"mergekit:{name} cannot merge changes: {REFUSED[name]}")
    methods = {method.spec.name: method for method in registered_methods()}
    if name not in methods:
        raise ValueError(f"unknown merge method 'mergekit:{name}'{nearest(name, [*methods])}")
    accepted = {
        p.name: p for p in methods[name].spec.parameters if p.name not in ("weight", "int8_mask")
    }
    for key, value in parameters.items():
        if key not in accepted:
            raise ValueError(
                f"unknown parameter {key!r} of merge method "
                f"mergekit:{name}{nearest(key, [*accepted, 'seed'])}"
            )
        try:
            accepted[key].validate(value)
        except ValueError:
            raise ValueError(f"{key} {value!r} is impossible for mergekit:{name}") from None
    for key, parameter in accepted.items():
        if parameter.required and key not in parameters:
            raise ValueError(f"mergekit:{name} needs {key!r}")
    return methods[name]


def entries(
    name: str,
    factors: Iterable[delta.Factors],
    weights: Sequence[float],
    ids: Sequence[str],
    *,
    module: str,
    seed: int,
    **parameters: Any,
) -> Tensor:
    """The changes merged by `mergekit:NAME`, [O, I]; `weights` go in as they are, summing to 1.

    Methods that need a base get a change of zero; those for a base and one other model (slerp) get
    two adapters.
    """
    from mergekit.merge_methods import merge_tensors
    from mergekit.merge_methods.base import BasePolicy

    method = check(name, parameters)
    changes = [delta.dense(change) for change in factors]
    unit = float(torch.stack([D.square().mean() for D in changes]).mean().sqrt())
    if unit == 0:
        return changes[0]
    changes = [D / unit for D in changes]
    contract = method.spec.contract
    needs_base = contract.base == BasePolicy.REQUIRED
    zero = needs_base and contract.max_inputs != 2
    weighted = any(p.name == "weight" for p in method.spec.parameters)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seeds.derive(seed, f"merge:mergekit:{name}:{module}"))
        try:
            merged = merge_tensors(
                [torch.zeros_like(changes[0])] * zero + changes,
                method,
                base_index=0 if needs_base else None,
                parameters={**parameters, **({"weight": list(weights)} if weighted else {})},
                dtype=torch.float64,
            )
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"mergekit:{name}: {' '.join(str(error).split())}") from None
    return unit * merged
