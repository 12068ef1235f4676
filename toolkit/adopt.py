"""Populations made elsewhere: adapters of another tool found, checked, and linked into a run as if it had trained them.

    CONDITION/
      population.json       design "given": which folder is which replica
      replicas/00017/       links to the adapter's two files, and replica.json with their hashes and where they are

From there on nothing asks who trained them: they are merged, let answer and measured as any population. A file that changes no longer
agrees with its hash, so the adapter is taken anew and everything made of it is made again.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from toolkit import records
from toolkit.adapters import CONFIG, WEIGHTS, Adapter, AdapterError, adapter_paths, read_adapter
from toolkit.base import Base
from toolkit.files import sha256_file
from toolkit.plain import read_record
from toolkit.population import RECORD, Replica, read_population, replica_folder, write_text
from toolkit.stack import layer_shape, target_modules
from toolkit.stacked_embedding import StackedEmbedding

RUN_LEVELS = 6
"""folders above an adapter in which ftk's own base.json may lie: RUN/CONDITION/merged/LABEL/g000, .../replicas/00000/averages/swa"""
TRAJECTORY = ("averages", "snapshots")
"""what `swa` and `ema` need beside an adapter, as ftk writes it"""


def find_adapters(patterns: Iterable[str]) -> list[Path]:
    """Adapter folders that paths and patterns mean, each once, sorted.

    A pattern may also match files and folders that are no adapters; a path may not. Raises AdapterError in one line.
    """
    found: set[Path] = set()
    for pattern in patterns:
        if Path(pattern).exists() or not glob.has_magic(pattern):
            found |= {path.absolute() for path in adapter_paths(pattern)}
            continue
        before = len(found)
        for match in sorted(glob.glob(pattern, recursive=True)):
            try:
                found |= {path.absolute() for path in adapter_paths(match)}
            except AdapterError:
                continue
        if len(found) == before:
            raise AdapterError(f"{pattern}: matches no PEFT adapter folder; an adapter has {CONFIG} and {WEIGHTS}")
    return sorted(found)


def adopt(folder: Path, paths: Sequence[Path], base: Base) -> dict[int, Replica]:
    """Make `paths` the population of the condition `folder`, in their order; return it. What is there and unchanged stays.

    Raises AdapterError in one line where an adapter cannot be read exactly, was trained on another base, or is the same as another, and
    where the folder holds a population of another kind.
    """
    record = {"condition": folder.name, "design": "given", "adapters": [str(path) for path in paths]}
    _claim(folder, record)
    shape_of = layer_shapes(base)
    known, population = read_population(folder), {}
    for r, path in enumerate(paths):
        check_base(read_adapter(path), base, shape_of)
        same = r in known and known[r].source == str(path)
        population[r] = known[r] if same else _link(folder, r, path)
    if twins := duplicates({str(path): population[r].sha256[WEIGHTS] for r, path in enumerate(paths)}):
        raise AdapterError(f"{same_weights(twins)}; leave one out (if a trainer made both, its seed did nothing)")
    for r in set(known) - set(population):
        shutil.rmtree(replica_folder(folder, r))  # links and a record, never an adapter
    write_text(folder / "population.json", json.dumps(record, indent=2, sort_keys=True) + "\n")
    return population


def duplicates(hash_of: Mapping[str, str]) -> list[tuple[str, str]]:
    """Pairs (first, copy) of names that stand for the same bits."""
    first: dict[str, str] = {}
    return [(first[digest], name) for name, digest in hash_of.items() if first.setdefault(digest, name) != name]


def same_weights(twins: Sequence[tuple[str, str]]) -> str:
    """What is wrong with duplicates, in one line."""
    more = f", and {len(twins) - 1} more such pairs" if len(twins) > 1 else ""
    return f"{twins[0][1]}: the same weights as {twins[0][0]}{more}; two copies are not two runs"


def layer_shapes(base: Base) -> dict[str, tuple[int, int]]:
    """[O, I] of every layer that an adapter may change, by name: the linear ones, and the token embedding."""
    layers = target_modules(base.model, "all-linear")
    embedding = StackedEmbedding(base.model)
    shapes = {name: layer_shape(layer) for name, layer in layers.items()}
    return shapes | {embedding.name: (embedding.out_features, embedding.in_features)}


def check_base(adapter: Adapter, base: Base, shape_of: Mapping[str, tuple[int, int]]) -> None:
    """Refuse an adapter of another base: by the base's hash where ftk wrote it down, and always by names and shapes of the layers."""
    known = base_hash(adapter.path)
    if known is not None and known != base.sha256:
        raise AdapterError(
            f"{adapter.path}: trained on a base whose weights have the sha256 {known[:12]}..., those of {base.name!r} have "
            f"{base.sha256[:12]}...; name its own base"
        )
    for name, module in adapter.modules.items():
        shape = (module.out_features, module.in_features)
        if name not in shape_of and name in dict(base.model.named_modules()):
            raise AdapterError(
                f"{adapter.path}: adapts {name!r}, which is the output head, or neither linear nor the token embedding; train without"
            )
        if name not in shape_of:
            raise AdapterError(f"{adapter.path}: base {base.name!r} has no linear layer {name!r}; is this an adapter of another base?")
        if shape != shape_of[name]:
            of_base = list(shape_of[name])
            raise AdapterError(
                f"{adapter.path}: {name} is {list(shape)}, in base {base.name!r} {of_base}; is this an adapter of another base?"
            )
    adapter.check_copies(lambda name: base.model.get_submodule(name).weight)  # type: ignore[return-value]


def base_hash(adapter: Path) -> str | None:
    """sha256 of the weights it was trained on, where an ftk run around the adapter says it."""
    for parent in adapter.resolve().parents[:RUN_LEVELS]:
        if (parent / "base.json").is_file():
            return read_record(parent / "base.json", records.Base).get("sha256")
    return None


def _claim(folder: Path, record: dict[str, object]) -> None:
    path = folder / "population.json"
    if path.is_file() and read_record(path, records.Claimed)["design"] != record["design"]:
        raise AdapterError(f"{folder}: holds replicas that ftk trained; choose another --out, or another name for this condition")


def _link(folder: Path, replica: int, path: Path) -> Replica:
    """Links beside a record of what they lead to; the record is written last."""
    home = replica_folder(folder, replica)
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS, *(part for part in TRAJECTORY if (path / part).is_dir())):
        os.symlink(path / name, home / name)
    files = [Path(CONFIG), Path(WEIGHTS), *(f.relative_to(path) for part in TRAJECTORY for f in sorted((path / part).rglob(WEIGHTS)))]
    hashes = {str(file): sha256_file(path / file) for file in files}
    record = Replica(replica, "ok", seeds={}, steps=0, final_loss=None, sha256=hashes, source=str(path))
    write_text(home / RECORD, record.to_json())
    return record
