"""Merge into the base weights: K adapters become a full Hugging Face model folder, with its
tokenizer.
"""

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from toolkit.merging.adapters_to_adapter import (
    REPORT,
    Input,
    Step,
    as_text,
    choose_members,
    exact_changes,
    merged_of,
    nothing_left,
    rank_limit,
    versions,
)
from toolkit.model import delta
from toolkit.model.adapters import AdapterError, publish
from toolkit.record.files import naming
from toolkit.record.folders import MERGED


@dataclass(frozen=True)
class DenseReport:
    """What was merged into which base: `merge.json` in the model folder, with `out` added."""

    out: Path
    method: str
    paper: str
    parameters: dict[str, Any]
    inputs: list[Input]
    base: str
    revision: str | None
    dtype: str
    energy: float  # share of ||dW||^2 that truncation kept
    # error of the written weights by their dtype, relative to ||dW||; of bfloat16 weights often
    # tens of percent
    rounding: float
    soup: list[Step]
    notes: list[str]  # as of a merge into an adapter
    versions: dict[str, str]


def merge_into_base(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    method: str,
    rank: str | int = "full",
    weights: Sequence[float] | None = None,
    base: str | None = None,
    score: Callable[[Path], float] | None = None,
    **parameters: Any,
) -> DenseReport:
    """As `merge_adapters`, but W + dW is written instead of dW, for the base model that the
    adapters name, or `base`.

    Weights keep the dtype that they are stored in: the sum is made in float64 and rounded once, and
    `rounding` says what that costs. Raises AdapterError or ValueError in one line; then nothing is
    written.
    """
    out = Path(out)
    if out.exists() and not ((out / REPORT).is_file() and (out / "config.json").is_file()):
        raise AdapterError(f"{out}: is there and is no merged model; choose another folder")
    chosen, values, members, soup = choose_members(
        sources, out, method, weights, base, rank, score, parameters
    )
    if members.base is None:
        raise AdapterError(
            f"{members.adapters[0].path}: does not say its base model; name it with `base`"
        )
    limit = rank_limit(rank, members.adapters, members.shapes)
    model, tokenizer = load_model(members.base, members.revision)
    members = members.fitted(dict(model.named_modules()))
    for adapter in members.adapters:
        adapter.check_copies(lambda name: _module(model, name).weight)
    kept = total = lost = 0.0
    with torch.no_grad():
        for change in exact_changes(chosen, values, members, None, limit):
            A, B, power = change.A, change.B, delta.norm((change.A, change.B, 1.0)) ** 2
            energy = 1.0
            if rank != "full":
                A, B, energy = delta.truncate(
                    A, B, **limit(A.shape[0], members.shapes[change.name])
                )
            D = B @ A
            weight, turned = _weight(model, change.name, D)
            wanted = weight.double() + (D.T if turned else D)
            weight.copy_(wanted)
            lost += float((weight.double() - wanted).square().sum())
            kept, total = kept + energy * power, total + power
    nothing = nothing_left(members, total)
    record = {
        "method": method,
        "paper": chosen.paper,
        "parameters": {**values, "rank": rank},
        "inputs": members.inputs,
        "base": members.base,
        "revision": members.revision,
        "dtype": str(model.dtype).removeprefix("torch."),
        "energy": 0.0 if nothing else kept / total if total else 1.0,
        "rounding": (lost / total) ** 0.5 if total and not nothing else 0.0,
        "soup": soup,
        "notes": members.notes + nothing,
        "versions": versions(method),
    }
    _write(out, model, tokenizer, record)
    return DenseReport(out=out, **record)


def load_model(base: str, revision: str | None) -> tuple[Any, Any]:
    """A base with its weights as they are stored, and its tokenizer. Raises AdapterError in one
    line.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    from toolkit.model.base import BaseError, check_kernels, why_not

    logging.disable_progress_bar()  # every merge would draw one
    options = {"revision": revision} if revision else {}
    try:
        check_kernels(base, AutoConfig.from_pretrained(base, trust_remote_code=False, **options))
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype="auto", trust_remote_code=False, weights_only=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, **options)
    except BaseError as error:
        raise AdapterError(str(error)) from None
    except Exception as error:
        # a base is loaded by code of its own architecture, which fails in whatever way it likes
        raise AdapterError(
            f"base {base!r} cannot be loaded: it {why_not(error)}; name it with `base`"
        ) from None
    if getattr(model.config, "quantization_config", None):
        raise AdapterError(
            f"base {base!r} is quantised, so that a change cannot be added to its "
            "weights; name the unquantised one with `base`"
        )
    return model, tokenizer


def _module(model: Any, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise AdapterError(
            f"the base has no module {name!r}; is this an adapter of another base?"
        ) from None


def _weight(model: Any, name: str, D: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """The weight that `name` means, and whether it is stored transposed. Refuses what would change
    something else too.
    """
    module = _module(model, name)
    turned = type(module).__name__ == "Conv1D" or isinstance(module, torch.nn.Embedding)
    shape = tuple(module.weight.T.shape if turned else module.weight.shape)
    if shape != tuple(D.shape):
        raise AdapterError(
            f"{name} is {list(D.shape)}, the base {list(shape)}; is this an adapter of "
            "another base?"
        )
    others = [
        key
        for key, p in model.named_parameters(remove_duplicate=False)
        if p is module.weight and key != f"{name}.weight"
    ]
    if others:
        raise AdapterError(
            f"{name} shares its weight with {others[0]}, which the adapters leave alone; "
            "merge into an adapter instead"
        )
    return module.weight, turned


def _write(out: Path, model: Any, tokenizer: Any, record: dict[str, Any]) -> None:
    staging = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    try:
        staging.mkdir(parents=True)
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        names = sorted(path.name for path in staging.iterdir())
        (staging / REPORT).write_text(as_text(record), encoding="utf-8")
        publish(staging, out, [*names, REPORT], MERGED, merged_of(record))
    except (OSError, SafetensorError) as error:
        raise naming(out, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
