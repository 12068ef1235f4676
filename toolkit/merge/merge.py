"""Merge adapter folders, module by module: sources -> weighted adapters -> combine -> truncate -> PEFT folder."""

import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

import toolkit
from toolkit import delta
from toolkit.adapters import CONFIG, Adapter, AdapterError, read_adapter, sha256, write_adapter
from toolkit.merge.methods import METHODS, Method

REPORT = "merge.json"


@dataclass(frozen=True)
class Input:
    """One adapter that went in."""

    path: str
    sha256: str  # of the weights
    config_sha256: str  # alpha and patterns decide what the weights mean
    weight: float  # all weights sum to 1


@dataclass(frozen=True)
class MergeReport:
    """What was merged, how, and what was kept: `merge.json` in the merged folder, with `out` and `sha256` added."""

    out: Path
    sha256: str
    method: str
    paper: str
    parameters: dict[str, Any]
    inputs: list[Input]
    rank: int
    energy: float  # share of ||dW||^2 that truncation kept, over all modules; the relative error is sqrt(1 - energy)
    energy_of_module: dict[str, float]
    versions: dict[str, str]


def merge_adapters(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    method: str,
    rank: str | int = "full",
    weights: Sequence[float] | None = None,
    base: str | None = None,
    **parameters: Any,
) -> MergeReport:
    """Merge the adapters (or, for swa and ema, the replica folders) `sources` into the PEFT adapter `out`.

    `rank`: "full" (exact), "same" (the largest rank of the inputs), a number, or "energy=0.99" (the smallest rank at
    which every module keeps that share of its squared norm). It is an upper bound: no module gets more than the exact result
    has. Smaller modules are padded with zeros, so that one rank and alpha = rank hold everywhere and no reader needs
    patterns.

    `weights` are relative: they are normalised to sum 1, and an adapter of weight 0 is not read. A module that some
    adapters do not adapt counts as unchanged by them, which is what it is. Adapters of different base models are
    refused unless `base` names the one to write. The order of `sources` does not change a bit of the result: they are sorted by
    folder name, then by content.

    Memory: one module at a time, whatever the number of adapters (TIES: all changes of one module), plus the result.
    """
    out = Path(out)
    chosen, values = _bind(method, parameters)
    inputs, adapters = _read_inputs([Path(source) for source in sources], weights, chosen, values)
    if (out / CONFIG).is_file() and not (out / REPORT).is_file():
        raise AdapterError(f"{out}: holds an adapter that is not a merge; choose another folder")
    identity = _common_base(adapters) if base is None else (base, None)
    shapes = _common_shapes(adapters)
    limit = _rank_limit(rank, adapters, shapes)

    factors, energies, kept, total = {}, {}, 0.0, 0.0
    combining = _accepted(chosen.combine, values)
    for name in shapes:
        members = [(one, adapter) for one, adapter in zip(inputs, adapters, strict=True) if name in adapter.modules]
        A, B = chosen.combine((adapter.factors(name) for _, adapter in members), [one.weight for one, _ in members], **combining)
        power = delta.norm((A, B, 1.0)) ** 2
        A, B, energies[name] = delta.truncate(A, B, **limit(A.shape[0], shapes[name]))
        factors[name] = (A.float(), B.float())
        kept, total = kept + energies[name] * power, total + power
    r = max(A.shape[0] for A, _ in factors.values())
    factors = {name: _pad(A, B, r) for name, (A, B) in factors.items()}

    packages = ["torch", "safetensors"] + (["mergekit"] if method == "ties" else [])
    record = {
        "method": method,
        "paper": chosen.paper,
        "parameters": {**values, "rank": rank},
        "inputs": inputs,
        "rank": r,
        "energy": kept / total if total else 1.0,
        "energy_of_module": energies,
        "versions": {"ftk": toolkit.__version__, **{name: version(name) for name in packages}},
    }
    text = json.dumps({**record, "inputs": [asdict(one) for one in inputs]}, indent=2, sort_keys=True) + "\n"
    digest = write_adapter(
        out,
        factors,
        r=r,
        alpha=r,
        target_modules=_target_modules(adapters, list(shapes)),
        base=identity[0],
        revision=identity[1],
        fan_in_fan_out=any(adapter.config.get("fan_in_fan_out") for adapter in adapters),
        task_type=next((t for t in sorted({a.config.get("task_type") or "" for a in adapters}) if t), "CAUSAL_LM"),
        extra_files={REPORT: text},
    )
    return MergeReport(out=out, sha256=digest, **record)


def _bind(method: str, parameters: Mapping[str, Any]) -> tuple[Method, dict[str, Any]]:
    """The method and all its parameters, defaults filled in; the signatures are the only list of parameters."""
    if method not in METHODS:
        raise ValueError(f"unknown merge method {method!r}; known: {', '.join(METHODS)}")
    chosen = METHODS[method]
    defaults = {
        name: parameter.default
        for function in (chosen.along, chosen.combine)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    for name in parameters:
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(f"unknown parameter {name!r} of merge method {method}; known: {known}")
    return chosen, {**defaults, **parameters}


def _accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(function).parameters
    return {name: value for name, value in values.items() if name in known}


def _read_inputs(
    sources: Sequence[Path], weights: Sequence[float] | None, chosen: Method, values: Mapping[str, Any]
) -> tuple[list[Input], list[Adapter]]:
    """The adapters behind the sources, with normalised weights, in an order that depends on names and content alone."""
    if not sources:
        raise ValueError("nothing to merge: give at least one adapter folder")
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise ValueError(f"{len(weights)} weights for {len(sources)} adapters; give one each")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(f"weights {weights} cannot be normalised; none may be negative, and one must be above 0")
    total = math.fsum(weights)  # rounded once, so the same in any order
    groups = []
    for source, weight in zip(sources, weights, strict=True):
        if weight > 0:
            members = []
            for path, share in chosen.along(source, **_accepted(chosen.along, values)):
                adapter = read_adapter(path)
                hashes = adapter.sha256(), sha256(path / CONFIG)
                members.append((Input(str(path), *hashes, weight * share / total), adapter))
            content = [(one.sha256, one.config_sha256, one.weight) for one, _ in members]
            groups.append((source.name, content, str(source), members))
    groups.sort(key=lambda group: group[:3])
    pairs = [pair for *_, members in groups for pair in members]
    return [one for one, _ in pairs], [adapter for _, adapter in pairs]


def _common_base(adapters: Sequence[Adapter]) -> tuple[str | None, str | None]:
    first = adapters[0]
    for other in adapters:
        if (other.base, other.revision) != (first.base, first.revision):
            raise AdapterError(
                f"{other.path}: trained on {other.base} (revision {other.revision}), but {first.path} on {first.base} "
                f"(revision {first.revision}); if these are the same model, name it with `base`"
            )
    return first.base, first.revision


def _common_shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """[O, I] of every module that an adapter changes, sorted by name."""
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for name, module in adapter.modules.items():
            shape = (module.out_features, module.in_features)
            if shapes.setdefault(name, shape) != shape:
                raise AdapterError(
                    f"{adapter.path}: {name} has shape {shape}, in other adapters {shapes[name]}; merge adapters of one base model"
                )
    return dict(sorted(shapes.items()))


def _rank_limit(
    rank: str | int, adapters: Sequence[Adapter], shapes: Mapping[str, tuple[int, int]]
) -> Callable[[int, tuple[int, int]], dict[str, Any]]:
    """What `truncate` gets for a module of exact rank `exact` and shape [O, I]."""
    text = str(rank)
    if text.startswith("energy="):
        try:
            energy = float(text.removeprefix("energy="))
        except ValueError:
            energy = math.nan
        if not 0 < energy <= 1:
            raise ValueError(f"rank {rank!r} is impossible: the energy to keep is a share, above 0 and at most 1")
        return lambda exact, shape: {"energy": energy}
    if text == "full":
        return lambda exact, shape: {"rank": min(exact, *shape)}
    if text != "same" and not text.isdecimal():
        raise ValueError(f"rank {rank!r} is unknown; use full, same, a number, or energy=0.99")
    number = max(adapter.rank for adapter in adapters) if text == "same" else int(text)
    largest = max(min(shape) for shape in shapes.values())
    if text != "same" and not 1 <= number <= largest:
        raise ValueError(f"rank {number} is impossible: the changes merged here have ranks 1 to {largest}")
    return lambda exact, shape: {"rank": min(number, exact, *shape)}


def _pad(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Rows of A and columns of B that are zero, up to rank r: the same change."""
    missing = r - A.shape[0]
    return pad(A, (0, 0, 0, missing)), pad(B, (0, missing))


def _target_modules(adapters: Sequence[Adapter], names: list[str]) -> list[str]:
    """The list all inputs agree on; else the full names, which match these modules and no others."""
    lists = set()
    for adapter in adapters:
        target = adapter.config.get("target_modules")
        narrowed = adapter.config.get("layers_to_transform") is not None or adapter.config.get("exclude_modules")
        lists.add(tuple(sorted(target)) if isinstance(target, list) and not narrowed else None)
    common = lists.pop() if len(lists) == 1 else None
    return list(common) if common else names
