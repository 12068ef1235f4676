"""Populations made elsewhere: adapters of another tool found, checked, and linked into a run as if
it had trained them.

    CONDITION/
      population.json       design "given": which folder is which replica
      replicas/00017/       links to the adapter's two files, and replica.json with their hashes
                            and where they are

From there on nothing asks who trained them: they are merged, let answer and measured as any
population. A file that changes no longer agrees with its hash, so the adapter is taken anew and
everything made of it is made again.
"""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from toolkit.model.adapters import (
    CONFIG,
    SINGLE_EXPERT,
    WEIGHTS,
    Adapter,
    AdapterError,
    adapter_paths,
    no_such_layer,
    read_adapter,
)
from toolkit.model.base import EMBEDDED, Base, named_modules
from toolkit.model.full import FullModel, copies, read_weights
from toolkit.model.stack import layer_shape, target_modules
from toolkit.model.stacked_embedding import StackedEmbedding
from toolkit.record import shapes as records
from toolkit.record.files import home, is_leftover, real, sha256_file
from toolkit.record.plain import read_record
from toolkit.record.population import (
    LEDGER,
    RECORD,
    Replica,
    read_ledger,
    read_population,
    replica_folder,
    write_text,
)

RUN_LEVELS = 6
"""folders above an adapter in which ftk's own base.json may lie: RUN/CONDITION/merged/LABEL/g000,
.../replicas/00000/averages/swa
"""
TRAJECTORY = ("averages", "snapshots")
"""what `swa` and `ema` need beside an adapter, as ftk writes it"""


def find_adapters(patterns: Iterable[str]) -> list[Path]:
    """Adapter folders that match the paths and patterns, without duplicates, sorted.

    A pattern may also match files and folders that are no adapters; a path may not. Raises
    AdapterError in one line.
    """
    folders: set[Path] = set()
    for pattern in patterns:
        if Path(pattern).exists() or not glob.has_magic(pattern):
            folders |= {path.absolute() for path in adapter_paths(pattern)}
            continue
        before = len(folders)
        # Path.glob takes no absolute pattern
        for match in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207
            try:
                folders |= {path.absolute() for path in adapter_paths(match)}
            except AdapterError:
                continue
        if len(folders) == before:
            raise AdapterError(
                f"{pattern}: matches no PEFT adapter folder; an adapter has {CONFIG} and {WEIGHTS}"
            )
    return sorted(folders)


def adopt(folder: Path, paths: Sequence[Path], base: Base) -> dict[int, Replica]:
    """Make `paths`, in their order, the population of the condition `folder`; return it. Unchanged
    links are kept.

    Raises AdapterError in one line where an adapter cannot be read exactly, was trained on another
    base, or is the same as another, and where the folder holds a population of another kind.
    """
    record = {
        "condition": folder.name,
        "design": "given",
        "adapters": [str(path) for path in paths],
    }
    check_given(folder)
    shape_of = layer_shapes(base.model)
    recorded, population = read_population(folder), {}
    if twins := copies([check_base(read_adapter(path), base, shape_of) for path in paths]):
        raise AdapterError(f"{twins}; leave one out (if a trainer made both, its seed did nothing)")
    for r, path in enumerate(paths):
        same = r in recorded and recorded[r].source == str(path)
        population[r] = recorded[r] if same else _link(folder, r, path)
    for r in set(recorded) - set(population):
        _remove_link(replica_folder(folder, r))
    write_text(folder / LEDGER, json.dumps(record, indent=2, sort_keys=True) + "\n")
    return population


def read_all(paths: Sequence[Path], base: str) -> list[Adapter | FullModel]:
    """Adapters and whole models under the names of modules that `base` has, where it is here to
    tell. Raises AdapterError in one line.
    """
    names = named_modules(base) or ()
    sources = map(read_weights, paths)
    return [source.fitted(names) if isinstance(source, Adapter) else source for source in sources]


def remarks(paths: Sequence[Path], base: str) -> list[str]:
    """Lines on adapters that are to answer on `base` beside each other: another base by name, a
    wrapper's names, patterns that mean no module, modules that peft leaves out, a change of zero.
    """
    adapters = [weights for weights in read_all(paths, base) if isinstance(weights, Adapter)]
    source = str(EMBEDDED) if base == "embedded" else base
    accepted_bases = {None, base, source, str(real(home(source)))}
    other = [adapter for adapter in adapters if adapter.base not in accepted_bases]
    wrapped = [adapter for adapter in adapters if adapter.wrapped]
    idle = [adapter for adapter in adapters if adapter.idle]
    unaimed = [adapter for adapter in adapters if adapter.unaimed]
    zero = [adapter for adapter in adapters if adapter.is_zero]
    remarked = [
        (
            other,
            lambda a: (
                f"says that its base is {a.base}, and {base} is what answers; names and "
                "shapes of the layers fit"
            ),
        ),
        (wrapped, lambda a: a.wrapped),
        (idle, lambda a: a.idle),
        (unaimed, lambda a: a.unaimed),
        (zero, lambda a: "its change is exactly zero: it answers as the base"),
    ]
    others_of = {len(of): f" and {len(of) - 1} more" if len(of) > 1 else "" for of, _ in remarked}
    return [f"{of[0].path}{others_of[len(of)]}: {text(of[0])}" for of, text in remarked if of]


def layer_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """[O, I] of every layer of a base that an adapter may change, by name: the linear ones, and the
    token embedding.
    """
    layers = target_modules(model, "all-linear")
    embedding = StackedEmbedding(model)
    shapes = {name: layer_shape(layer) for name, layer in layers.items()}
    return shapes | {embedding.name: (embedding.out_features, embedding.in_features)}


def check_base(adapter: Adapter, base: Base, shape_of: Mapping[str, tuple[int, int]]) -> Adapter:
    """Refuse an adapter of another base: by the base's hash where ftk wrote it down, and always by
    names and shapes of the layers.

    Return it under the base's own names of modules.
    """
    expected = base_hash(adapter.path)
    if expected is not None and expected != base.sha256:
        raise AdapterError(
            f"{adapter.path}: trained on a base whose weights have the sha256 "
            f"{expected[:12]}..., those of {base.name!r} have "
            f"{base.sha256[:12]}...; name its own base"
        )
    adapter = check_modules(adapter, base.model, base.name, shape_of)
    adapter.check_copies(lambda name: base.model.get_submodule(name).weight)  # type: ignore[return-value]
    return adapter


def check_modules(
    adapter: Adapter, model: nn.Module, name_of_base: str, shape_of: Mapping[str, tuple[int, int]]
) -> Adapter:
    """The adapter under the names that the modules of a base have; refuse, with the reason, what
    this base cannot carry.

    model: may be on the meta device. shape_of: its `layer_shapes`.
    """
    adapter = adapter.fitted(shape_of)
    embedding = StackedEmbedding(model).name
    for name, module in adapter.modules.items():
        shape, its = (module.out_features, module.in_features), shape_of.get(name)
        if its is None:
            raise AdapterError(f"{adapter.path}: {_why_not(name, model, name_of_base)}")
        if name == embedding and shape[0] == its[0] and shape != its:
            raise AdapterError(
                f"{adapter.path}: {name} is for {shape[1]:,} tokens, base "
                f"{name_of_base!r} has {its[1]:,}: its vocabulary was "
                "resized; resize the base in the same way, save it, and name that one"
            )
        if shape != its:
            raise AdapterError(
                f"{adapter.path}: {name} is {list(shape)}, in base {name_of_base!r} "
                f"{list(its)}; is this an adapter of another base?"
            )
    return adapter


def _why_not(name: str, model: nn.Module, name_of_base: str) -> str:
    """Why a base has no layer of this name to adapt."""
    modules = dict(model.named_modules())
    if name in modules:
        return (
            f"adapts {name!r}, which is the output head, or neither linear nor the token "
            "embedding; train without"
        )
    single = SINGLE_EXPERT.match(name)
    if single and single[1] in modules:
        return (
            f"adapts single experts ({name!r}), as transformers 4 had them; base "
            f"{name_of_base!r} holds them as one tensor, which is not "
            "adapted here; peft loads it, and `ftk merge` merges it"
        )
    return no_such_layer(name, name_of_base)


def base_hash(adapter: Path) -> str | None:
    """sha256 of the base an adapter was trained on, if a surrounding ftk run records it."""
    for parent in real(adapter).parents[:RUN_LEVELS]:
        if (parent / "base.json").is_file():
            return read_record(parent / "base.json", records.Base).get("sha256")
    return None


def check_given(folder: Path) -> None:
    """Refuse a condition's folder that holds replicas which ftk trained: by its ledger, or where
    that is lost by any of them.

    Raises AdapterError in one line.
    """
    design = read_ledger(folder).get("design")
    homes = sorted((folder / "replicas").iterdir()) if (folder / "replicas").is_dir() else []
    if design != "given" and (
        design is not None or not all(map(_is_linked, homes))
    ):  # copies of a run hold copies of what was linked
        raise AdapterError(
            f"{folder}: holds replicas that ftk trained; choose another --out, or another "
            "name for this condition"
        )


def _is_linked(home: Path) -> bool:
    """Whether a replica's folder is links and a record, or less: nothing that would be lost with
    it.
    """
    return home.is_dir() and all(
        path.is_symlink() or path.name == RECORD or is_leftover(path.name)
        for path in home.iterdir()
    )


def _remove_link(home: Path) -> None:
    if home.exists() and not _is_linked(home):
        raise AdapterError(
            f"{home}: holds more than links to an adapter; move it away, or choose another --out"
        )
    shutil.rmtree(home, ignore_errors=True)  # links and a record, never an adapter


def _link(folder: Path, replica: int, path: Path) -> Replica:
    """Links beside a record of what they lead to; the record is written last."""
    home = replica_folder(folder, replica)
    _remove_link(home)
    home.mkdir(parents=True)
    for name in (CONFIG, WEIGHTS, *(part for part in TRAJECTORY if (path / part).is_dir())):
        (home / name).symlink_to(path / name)
    files = [
        Path(CONFIG),
        Path(WEIGHTS),
        *(f.relative_to(path) for part in TRAJECTORY for f in sorted((path / part).rglob(WEIGHTS))),
    ]
    hashes = {str(file): sha256_file(path / file) for file in files}
    record = Replica(
        replica, "ok", seeds={}, steps=0, final_loss=None, sha256=hashes, source=str(path)
    )
    write_text(home / RECORD, record.to_json())
    return record
