"""Folders of fully fine-tuned models: what transformers loads, and beside it which base they
started from.

    config.json, tokenizer files    the base's
    model.safetensors               all weights, by the names of the base's parameters
    full.json                       base and revision

`AutoModelForCausalLM.from_pretrained(folder)` just works. The change of a weight is dW = W - W of
the base.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from toolkit.model.adapters import DTYPES, FULL, Adapter, AdapterError, read_adapter, write_folder
from toolkit.model.base import Base
from toolkit.model.sketch import equal_pairs, sketch
from toolkit.record.files import sha256_file
from toolkit.record.plain import read_record
from toolkit.record.shapes import Full

MODEL = "model.safetensors"


@dataclass(frozen=True)
class FullModel:
    """A checked folder. The tensors stay on disk until needed."""

    path: Path
    base: str
    revision: str | None
    shapes: Mapping[str, tuple[int, ...]]

    def sha256(self) -> str:
        """Of the weights file."""
        return sha256_file(self.path / MODEL)

    def check(self, shape_of: Mapping[str, tuple[int, ...]]) -> None:
        """Raises AdapterError in one line where the weights are not those of a base with such
        shapes.
        """
        for name, shape in shape_of.items():
            if self.shapes.get(name) != shape:
                shape_here = list(self.shapes[name]) if name in self.shapes else "not there"
                raise AdapterError(
                    f"{self.path}: {name} is {shape_here}, in the base {list(shape)}; is this "
                    "a model of another base?"
                )

    @property
    def dtypes(self) -> set[str]:
        """Of the weights, as stored."""
        with safe_open(self.path / MODEL, framework="pt") as file:
            return {DTYPES.get(file.get_slice(name).get_dtype(), "float64") for name in self.shapes}

    def digest(self, dtype: torch.dtype | None = None) -> str:
        """Of all weights, however they are written. dtype: they are rounded to it before."""
        digest = hashlib.sha256()
        for name in sorted(self.shapes):
            W = self.tensor(name)
            digest.update(
                name.encode()
                + W.to(dtype or W.dtype)
                .contiguous()
                .reshape(-1)
                .view(torch.uint8)
                .numpy()
                .tobytes()
            )
        return digest.hexdigest()

    def tensor(self, name: str) -> Tensor:
        """One parameter, read from the disk."""
        with safe_open(self.path / MODEL, framework="pt") as file:
            return file.get_tensor(name)

    def tensors(self) -> dict[str, Tensor]:
        """All weights by parameter."""
        return load_file(self.path / MODEL)


def read_model(path: str | Path) -> FullModel:
    """Check a folder; read no tensor yet. Raises AdapterError in one line."""
    path = Path(path)
    try:
        record = read_record(path / FULL, Full)
        with safe_open(path / MODEL, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return FullModel(path, record["base"], record["revision"], shapes)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            f"{path}: is no model that ftk has written, or damaged ({error}); train it again"
        ) from None


def read_weights(path: str | Path) -> Adapter | FullModel:
    """The adapter or the whole model in a folder. Raises AdapterError in one line."""
    return read_model(path) if (Path(path) / FULL).is_file() else read_adapter(path)


def copies(sources: Sequence[Adapter | FullModel]) -> str:
    """One line if two sources are the same model, judged by what they compute, not by names or
    files; empty otherwise.

    Adapters are compared up to the rounding of the dtypes that hold their values, whole models in
    the narrowest that one of them is stored in.
    """
    adapters = [i for i, source in enumerate(sources) if isinstance(source, Adapter)]
    pairs = equal_pairs([sketch(source) for source in sources if isinstance(source, Adapter)])
    twins = sorted([(adapters[i], adapters[k]) for i, k in pairs] + _equal_models(sources))
    if not twins:
        return ""
    twin, original = (sources[i].path for i in twins[0])
    name = f"{twin} (given again)" if twin == original else twin
    others = f", and {len(twins) - 1} more such pairs" if len(twins) > 1 else ""
    return f"{name}: the same weights as {original}{others}; two copies are not two runs"


def _equal_models(sources: Sequence[Adapter | FullModel]) -> list[tuple[int, int]]:
    """(later, first) of the whole models that equal an earlier one."""
    whole = [(i, model) for i, model in enumerate(sources) if isinstance(model, FullModel)]
    stored = {dtype for _, model in whole for dtype in model.dtypes}
    narrow = (
        min((getattr(torch, name) for name in stored), key=lambda dtype: dtype.itemsize)
        if len(stored) > 1
        else None
    )
    first: dict[str, int] = {}
    return [(i, k) for i, model in whole if (k := first.setdefault(model.digest(narrow), i)) != i]


def model_files(base: Base) -> dict[str, bytes]:
    """What a model folder has beside the weights: configuration, tokenizer, and the base that it
    started from.
    """
    config: Any = copy.deepcopy(base.model.config)
    config.architectures = [type(base.model).__name__]
    # that of the weights as they are trained
    config.dtype = torch.promote_types(base.model.dtype, torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        base.tokenizer.save_pretrained(scratch)
        if base.model.can_generate():
            base.model.generation_config.save_pretrained(scratch)
        config.save_pretrained(scratch)
        files = {path.name: path.read_bytes() for path in sorted(Path(scratch).iterdir())}
    mark = {"base": base.source, "revision": base.revision}
    return {**files, FULL: (json.dumps(mark, indent=2, sort_keys=True) + "\n").encode()}


def write_model(
    path: Path,
    weights: Mapping[str, Tensor],
    files: Mapping[str, str | bytes],
    kind: str = "",
    of: Mapping[str, str] | None = None,
) -> str:
    """Write a folder, complete or not at all; return the sha256 of its weights. `files`: see
    `model_files`; kind and `of`: `write_folder`.

    Raises AdapterError in one line.
    """
    return write_folder(path, weights, MODEL, files, kind, of)
