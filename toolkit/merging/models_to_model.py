"""Merge fully fine-tuned models: weight by weight, on the changes dW = W - W of the base, into
another model folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.merging.adapters_to_adapter import (
    REPORT,
    Input,
    MergeReport,
    as_text,
    common_base,
    merge_adapters,
    merged_of,
    read_inputs,
    versions,
)
from toolkit.merging.adapters_to_model import load_model
from toolkit.merging.apply_method import Method, find_coefficients, find_method, merge_entries
from toolkit.model import delta
from toolkit.model.adapters import AdapterError
from toolkit.model.full import FULL, MODEL, FullModel, copies, write_model
from toolkit.record.folders import MARKER, MERGED
from toolkit.record.population import RECORD

MADE_HERE = (MODEL, REPORT, RECORD, MARKER, "README.md", "mergekit_config.yml")
"""files beside a model that say something of that model alone"""


@dataclass(frozen=True)
class WholeReport:
    """What was merged: `merge.json` in the folder, with `out` and `sha256` added. Nothing is cut:
    energy is 1, and there is no rank.
    """

    out: Path
    sha256: str
    method: str
    paper: str
    parameters: dict[str, Any]
    inputs: list[Input]
    rank: None
    energy: float
    notes: list[str]
    versions: dict[str, str]


def merge_folders(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    method: str,
    rank: str | int = "full",
    **options: Any,
) -> MergeReport | WholeReport:
    """Adapters into an adapter (`merge_adapters`), whole models into a whole model
    (`merge_models`).
    """
    if not (Path(sources[0]) / FULL).is_file():
        return merge_adapters(sources, out, method=method, rank=rank, **options)
    if rank != "full" or any(
        options.pop(key, None) is not None for key in ("base", "buffer", "score")
    ):
        raise AdapterError(
            f"{sources[0]}: a fully fine-tuned model: rank, buffer, base and a soup's "
            "score are for adapters; leave them out"
        )
    return merge_models(sources, out, method=method, **options)


def merge_models(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    method: str,
    weights: Sequence[float] | None = None,
    **parameters: Any,
) -> WholeReport:
    """Merge whole models (or, for swa, ema and lawa, the replica folders) that were fine-tuned from
    one base.

    As `merge_adapters`: one weight at a time, in float64, rounded once to the dtype of the models;
    the order of `sources` does not change a bit. A weight of one dimension counts as a matrix of
    one column. Raises AdapterError or ValueError in one line, writing nothing.
    """
    out = Path(out)
    if (out / FULL).is_file() and not (out / REPORT).is_file():
        raise AdapterError(f"{out}: holds a model that is not a merge; choose another folder")
    chosen, values = find_method(method, parameters)
    if method == "greedy_soup":
        raise AdapterError(f"{sources[0]}: a fully fine-tuned model; a greedy soup is for adapters")
    inputs, loaded = read_inputs([Path(source) for source in sources], weights, chosen, values)
    models = [source for source in loaded if isinstance(source, FullModel)]
    if len(models) < len(loaded):
        raise AdapterError(
            f"{out}: adapters and fully fine-tuned models do not merge with each other; "
            "take one kind"
        )
    name, revision = common_base(models)
    base, _ = load_model(str(name), revision)
    start = {name: parameter.detach() for name, parameter in base.named_parameters()}
    for model in models:
        model.check({name: tuple(W.shape) for name, W in start.items()})
    every = {name: _Changes(models, name, W) for name, W in start.items()}
    share = [source.weight for source in inputs]
    gram = (
        sum(delta.gram(changes) for changes in every.values())
        if chosen.gram == "adapter"
        else torch.zeros(0)
    )
    merged = {
        name: _merge_one(chosen, values, changes, share, torch.as_tensor(gram))
        for name, changes in every.items()
    }
    record = {
        "method": method,
        "paper": chosen.paper,
        "parameters": {**values, "rank": "full"},
        "inputs": inputs,
        "rank": None,
        "energy": 1.0,
        "notes": [line for line in (copies(models),) if line],
        "versions": versions(method),
    }
    files = {
        path.name: path.read_bytes()
        for path in sorted(models[0].path.iterdir())
        if path.is_file() and path.name not in MADE_HERE
    }
    digest = write_model(out, merged, {**files, REPORT: as_text(record)}, MERGED, merged_of(record))
    return WholeReport(out=out, sha256=digest, **record)


class _Changes(Sequence[delta.Factors]):
    """One weight of all models as changes, read from disk whenever it is asked for."""

    def __init__(self, models: Sequence[FullModel], name: str, start: Tensor):
        self.models, self.name, self.start = models, name, start
        self.ids = [f"{model.path.name}:{name}" for model in models]

    def __len__(self) -> int:
        return len(self.models)

    def __getitem__(self, k: Any) -> Any:
        return (*delta.from_dense(self.change(k)), 1.0)

    def change(self, k: int) -> Tensor:
        """dW of model k as a matrix, in float64."""
        D = self.models[k].tensor(self.name).double() - self.start.double()
        return D.reshape(D.shape[0], -1) if D.dim() else D.reshape(1, 1)


def _merge_one(
    chosen: Method,
    values: Mapping[str, Any],
    changes: _Changes,
    share: Sequence[float],
    gram: Tensor,
) -> Tensor:
    """W of the base and the merged change, in the dtype of the models."""
    if chosen.coefficients is None:
        D = merge_entries(chosen, changes, share, changes.ids, changes.name, values)
    else:
        own_gram = delta.gram(changes) if chosen.gram == "module" else gram
        coefficients = find_coefficients(chosen, own_gram, share, values)
        D = sum(
            (c * changes.change(k) for k, c in enumerate(coefficients)),
            torch.zeros((), dtype=torch.float64),
        )
    return (changes.start.double() + D.view(changes.start.shape)).to(
        changes.models[0].tensor(changes.name).dtype
    )
