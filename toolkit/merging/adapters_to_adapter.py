"""Merge adapter folders, module by module: sources -> weighted adapters -> method -> truncate ->
PEFT folder.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

import toolkit
from toolkit.merging.align_names import layers_of_base, under_one_naming
from toolkit.merging.apply_method import (
    Method,
    accepted,
    find_coefficients,
    find_method,
    merge_entries,
)
from toolkit.merging.soup import Step, greedy_soup
from toolkit.model import delta
from toolkit.model.adapters import (
    CONFIG,
    FULL,
    WEIGHTS,
    Adapter,
    AdapterError,
    aims_at,
    without_tensors,
    write_adapter,
)
from toolkit.model.full import MODEL, FullModel, copies, read_weights
from toolkit.recipe.merge_methods import MERGEKIT
from toolkit.record.files import sha256_file
from toolkit.record.folders import MERGED
from toolkit.record.plain import parse

REPORT = "merge.json"
CANCELLED = 1e-12
"""share of the squared norm of what goes in; less is the rounding of float32"""


@dataclass(frozen=True)
class Input:
    """One merged adapter."""

    path: str
    sha256: str  # of the weights
    config_sha256: str  # alpha and patterns decide what the weights mean
    weight: float  # all weights sum to 1


@dataclass(frozen=True)
class MergeReport:
    """What was merged, how, and what was kept: `merge.json` in the merged folder, with `out` and
    `sha256` added.
    """

    out: Path
    sha256: str
    method: str
    paper: str
    parameters: dict[str, Any]
    inputs: list[Input]
    rank: int
    # share of ||dW||^2 that truncation kept, over all modules; the relative error is sqrt(1 -
    # energy); 0 where nothing is left of what went in
    energy: float
    energy_of_module: dict[str, float]
    # 1 for a mean, below for a shrunken one; empty for methods that look at entries
    coefficient_sum_of_module: dict[str, float]
    # where `buffer` cut while summing: |result - exact| is at most this share of |result|
    error_bound_of_module: dict[str, float]
    soup: list[Step]  # what a greedy soup tried, in order
    notes: list[
        str
        # what a reader must know of the inputs: modules that only some change, changes that are
        # zero, copies
    ]
    versions: dict[str, str]


def merge_adapters(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    method: str,
    rank: str | int = "full",
    weights: Sequence[float] | None = None,
    base: str | None = None,
    buffer: int | None = None,
    score: Callable[[Path], float] | None = None,
    **parameters: Any,
) -> MergeReport:
    """Merge the adapters (or, for swa, ema and lawa, the replica folders) `sources` into the PEFT
    adapter `out`.

    `rank`: "full" (exact), "same" (the largest rank of the inputs), a number, or "energy=0.99" (the
    smallest rank at which every module keeps that share of its squared norm). It is an upper bound:
    no module gets more than the exact result has. Smaller modules are padded with zeros, so that
    one rank and alpha = rank hold everywhere and no reader needs patterns.

    Adapters that share no module, though their target_modules mean the same ones, are refused: they
    name the modules of one base differently. Those that share only some, change nothing, or are
    copies of each other are merged, and `notes` says so.

    `weights` are relative: they are normalised to sum 1, and an adapter of weight 0 is not read. A
    module that some adapters do not adapt counts as unchanged by them, which is what it is.
    Adapters of different base models are refused unless `base` names the one to write. The order of
    `sources` does not change a bit of the result: they are sorted by folder name, then by content.

    Memory: one module at a time, with what the method `holds` of it, plus the result. `buffer`
    bounds the sum of a module further, to twice that many ranks instead of a dense matrix: all but
    the `buffer` largest are cut whenever it is full, and the error is bounded in the record.
    `score`, of an adapter folder, higher is better: what a greedy soup goes by.

    Raises AdapterError or ValueError in one line; then nothing is written.
    """
    out = Path(out)
    if (out / CONFIG).is_file() and not (out / REPORT).is_file():
        raise AdapterError(f"{out}: holds an adapter that is not a merge; choose another folder")
    if buffer is not None and (str(rank) == "full" or str(rank).startswith("energy=")):
        raise ValueError(f"a buffer goes with a rank that is a number or same, not {rank!r}")
    chosen, values, members, soup = choose_members(
        sources, out, method, weights, base, rank, score, parameters
    )
    limit = rank_limit(rank, members.adapters, members.shapes)

    factors, energies, bounds, sums, kept, total = {}, {}, {}, {}, 0.0, 0.0
    for name, A, B, discarded, coefficient_sum in exact_changes(
        chosen, values, members, buffer, limit
    ):
        power = delta.norm((A, B, 1.0)) ** 2
        A, B, energies[name] = delta.truncate(A, B, **limit(A.shape[0], members.shapes[name]))
        if discarded:
            size = (energies[name] * power) ** 0.5
            bounds[name] = (
                (discarded + ((1 - energies[name]) * power) ** 0.5) / size if size else math.inf
            )
        if coefficient_sum is not None:
            sums[name] = coefficient_sum
        factors[name] = (A.float(), B.float())
        kept, total = kept + energies[name] * power, total + power
    nothing = nothing_left(members, total)
    r = max(A.shape[0] for A, _ in factors.values())
    factors = {name: _pad(A, B, r) for name, (A, B) in factors.items()}

    adapters = members.adapters
    record = {
        "method": method,
        "paper": chosen.paper,
        "parameters": {**values, "rank": rank} | ({} if buffer is None else {"buffer": buffer}),
        "inputs": members.inputs,
        "rank": r,
        "energy": 0.0 if nothing else kept / total if total else 1.0,
        "energy_of_module": energies,
        "coefficient_sum_of_module": sums,
        "error_bound_of_module": bounds,
        "soup": soup,
        "notes": members.notes + nothing,
        "versions": versions(method),
    }
    digest = write_adapter(
        out,
        factors,
        r=r,
        alpha=r,
        target_modules=_target_modules(members),
        base=members.base,
        revision=members.revision,
        fan_in_fan_out=any(adapter.config.get("fan_in_fan_out") for adapter in adapters),
        embeddings=members.embeddings,
        copies=_common_copies(adapters),
        task_type=next(
            (t for t in sorted({a.config.get("task_type") or "" for a in adapters}) if t),
            "CAUSAL_LM",
        ),
        extra_files={REPORT: as_text(record)},
        kind=MERGED,
        of=merged_of(record),
    )
    return MergeReport(out=out, sha256=digest, **record)


NOTHING_LEFT = (
    "the merged change is zero up to rounding: what goes in takes itself back, so the merge "
    "answers as the base"
)


def nothing_left(members: "Members", total: float) -> list[str]:
    """A note where a merge of squared norm `total` is zero beside what went in, though that is not.
    Reads no more modules than it takes to see.
    """
    power = 0.0
    for adapter in members.adapters:
        for _, factors in adapter.items():
            power += delta.norm(factors) ** 2
            if total > CANCELLED**0.5 * power > 0:
                return []
    return [NOTHING_LEFT] if power > 0 and total <= CANCELLED * power else []


def as_text(record: Mapping[str, Any]) -> str:
    """merge.json."""
    plain = {
        key: [entry if isinstance(entry, dict) else asdict(entry) for entry in value]
        if key in ("inputs", "soup")
        else value
        for key, value in record.items()
    }
    return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def merged_of(record: Mapping[str, Any]) -> dict[str, str]:
    """What identifies a merge when it claims its folder: the paths and the content of its inputs;
    for a soup, of all candidates.

    record: merge.json, or as much of it as is known before.
    """
    plain = parse(as_text(record), any_number=True)
    tried = plain.get("soup", []) if record["method"] == "greedy_soup" else plain["inputs"]
    paths = sorted({str(Path(source["path"]).absolute()) for source in tried})
    how = {**plain["parameters"], "rank": str(plain["parameters"].get("rank"))}
    settings = ", ".join(f"{name} {value}" for name, value in sorted(how.items())) + ", dense" * (
        "dtype" in record
    )
    made = {"source": f"{record['method']} ({settings}) of {', '.join(paths)}"}
    if tried is plain["inputs"]:
        content = sorted(
            [source["sha256"], source.get("config_sha256"), source["weight"]] for source in tried
        )
        made["sha256"] = sha256(
            json.dumps([record["method"], settings, content]).encode()
        ).hexdigest()
    return made


def planned(
    sources: Sequence[Path],
    method: str,
    rank: str | int,
    weights: Sequence[float] | None = None,
    *,
    buffer: int | None = None,
    dense: bool = False,
    **parameters: Any,
) -> dict[str, str]:
    """`merged_of`, before the merge is made. Raises AdapterError or ValueError in one line."""
    chosen, values = find_method(method, parameters)
    inputs, _ = read_inputs(sources, weights, chosen, values)
    how = {**values, "rank": rank} | ({} if buffer is None else {"buffer": buffer})
    return merged_of(
        {
            "method": method,
            "parameters": how,
            "inputs": inputs,
            "soup": inputs,
            **({"dtype": ""} if dense else {}),
        }
    )


def versions(method: str) -> dict[str, str]:
    """Versions of the packages that decide the bits of a merge."""
    packages = ["torch", "numpy", "safetensors"] + (
        ["mergekit"] if method.startswith(MERGEKIT) else []
    )
    return {"ftk": toolkit.__version__, **{name: version(name) for name in packages}}


@dataclass(frozen=True)
class Members:
    """The adapters behind the sources, in an order that depends on names and content alone."""

    inputs: list[Input]
    adapters: list[Adapter]
    ids: list[str]  # folder name; where two agree, with the hash of the weights
    base: str | None
    revision: str | None
    # [O, I] of every module that an adapter changes, sorted by name
    shapes: dict[str, tuple[int, int]]
    notes: list[str]

    @property
    def embeddings(self) -> set[str]:
        """Those of the modules that are embeddings."""
        return {
            name
            for adapter in self.adapters
            for name, module in adapter.modules.items()
            if module.embedding
        }

    @property
    def weights(self) -> list[float]:
        """The weight of every source, in order."""
        return [source.weight for source in self.inputs]

    def fitted(self, names: Collection[str]) -> "Members":
        """The same members under the base's module names."""
        adapters = [adapter.fitted(names) for adapter in self.adapters]
        return replace(self, adapters=adapters, shapes=_common_shapes(adapters))


class Changes(Sequence[delta.Factors]):
    """One module of all members, read from disk whenever it is asked for. A member that leaves it
    alone has factors of rank 0.
    """

    def __init__(self, members: Members, name: str):
        self.members, self.name = members, name
        self.ids = [f"{id}:{name}" for id in members.ids]

    def __len__(self) -> int:
        return len(self.members.adapters)

    def __getitem__(self, k: Any) -> Any:
        adapter = self.members.adapters[k]
        if self.name in adapter.modules:
            return adapter.factors(self.name)
        O, I = self.members.shapes[self.name]
        return torch.zeros(0, I), torch.zeros(O, 0), 1.0


class Change(NamedTuple):
    """The merged change of one module, dW = B @ A."""

    name: str
    A: Tensor
    B: Tensor
    discarded: float  # the most that a buffer took away, Frobenius norm
    coefficient_sum: float | None


Limit = Callable[[int, tuple[int, int]], dict[str, Any]]
"""What `truncate` gets for a module of exact rank and shape [O, I]."""


def exact_changes(
    chosen: Method, values: Mapping[str, Any], members: Members, buffer: int | None, limit: Limit
) -> Iterator[Change]:
    """Module by module, before it is cut to its rank."""
    every = {name: Changes(members, name) for name in members.shapes}
    gram: Any = torch.zeros(0)
    if chosen.gram == "adapter":
        gram = sum(delta.gram(changes) for changes in every.values())
    for name, changes in every.items():
        if chosen.coefficients is None:
            yield Change(
                name,
                *delta.from_dense(
                    merge_entries(chosen, changes, members.weights, changes.ids, name, values)
                ),
                0.0,
                None,
            )
            continue
        gram = delta.gram(changes) if chosen.gram == "module" else gram
        coefficients = find_coefficients(chosen, gram, members.weights, values)
        if buffer is None:
            A, B, discarded = *delta.concat(changes, coefficients), 0.0
        else:
            A, B, discarded = delta.stream(
                changes, coefficients, max(buffer, limit(buffer, members.shapes[name])["rank"])
            )
        yield Change(name, A, B, discarded, math.fsum(coefficients))


def choose_members(
    sources: Sequence[str | Path],
    out: Path,
    method: str,
    weights: Sequence[float] | None,
    base: str | None,
    rank: str | int,
    score: Callable[[Path], float] | None,
    parameters: Mapping[str, Any],
) -> tuple[Method, dict[str, Any], Members, list[Step]]:
    """The method, its parameters, and the adapters to merge; of a soup, the selected ones."""
    paths = [Path(source) for source in sources]
    chosen, values = find_method(method, parameters)
    soup: list[Step] = []
    if method == "greedy_soup":
        if score is None:
            raise ValueError(
                "greedy_soup needs the validation score of every adapter: give `score`, "
                "or on the shell --prompts SUITE"
            )
        if weights is not None:
            raise ValueError("greedy_soup chooses the weights itself: leave them out")

        def mean(members: Sequence[Path], to: Path) -> Path:
            return merge_adapters(members, to, method="mean", rank=rank, base=base).out

        paths, soup = greedy_soup(paths, mean=mean, score=score, beside=out)
    return chosen, values, read_members(paths, weights, chosen, values, base), soup


def read_members(
    sources: Sequence[Path],
    weights: Sequence[float] | None,
    chosen: Method,
    values: Mapping[str, Any],
    base: str | None,
) -> Members:
    """Check and hash all inputs. Raises AdapterError or ValueError in one line."""
    inputs, loaded = read_inputs(sources, weights, chosen, values)
    adapters = [source for source in loaded if isinstance(source, Adapter)]
    if whole := [source for source in loaded if isinstance(source, FullModel)]:
        raise AdapterError(
            f"{whole[0].path}: a fully fine-tuned model; it merges with others of its "
            "kind, into a model"
        )
    identity = common_base(adapters) if base is None else (base, None)
    adapters, notes = under_one_naming(adapters, identity)
    notes += remarks(adapters, base)
    names = [Path(source.path).name for source in inputs]
    count = Counter(names)
    ids = [
        name if count[name] == 1 else f"{name}:{source.sha256}"
        for name, source in zip(names, inputs, strict=True)
    ]
    return Members(inputs, adapters, ids, *identity, _common_shapes(adapters), notes)


def read_inputs(
    sources: Sequence[Path],
    weights: Sequence[float] | None,
    chosen: Method,
    values: Mapping[str, Any],
) -> tuple[list[Input], list[Adapter | FullModel]]:
    """The adapters (or whole models) behind the sources, with normalised weights, in an order that
    depends on names and content alone.
    """
    if not sources:
        raise ValueError("nothing to merge: give at least one adapter folder")
    weights = [1.0] * len(sources) if weights is None else list(weights)
    if len(weights) != len(sources):
        raise ValueError(f"{len(weights)} weights for {len(sources)} adapters; give one each")
    if not all(math.isfinite(w) and w >= 0 for w in weights) or not sum(weights) > 0:
        raise ValueError(
            f"weights {weights} cannot be normalised; none may be negative, and one must be above 0"
        )
    total = math.fsum(weights)  # rounded once, so the same in any order
    groups = []
    for source, weight in zip(sources, weights, strict=True):
        if weight > 0:
            members = []
            for path, share in chosen.sources(source, **accepted(chosen.sources, values)):
                members.append(
                    (Input(str(path), *_hashes(path), weight * share / total), read_weights(path))
                )
            content = [
                (input_.sha256, input_.config_sha256, input_.weight) for input_, _ in members
            ]
            groups.append((source.name, content, str(source), members))
    groups.sort(key=lambda group: group[:3])
    pairs = [pair for *_, members in groups for pair in members]
    return [input_ for input_, _ in pairs], [adapter for _, adapter in pairs]


def _hashes(folder: Path) -> tuple[str, str]:
    """Of the weights in a folder, and of what decides what they mean."""
    files = (MODEL, FULL) if (folder / FULL).is_file() else (WEIGHTS, CONFIG)
    return sha256_file(folder / files[0]), sha256_file(folder / files[1])


def same_input(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether a folder still has the hashes that merge.json records."""
    return _hashes(folder) == (record["sha256"], record["config_sha256"])


def common_base(adapters: Sequence[Adapter | FullModel]) -> tuple[str | None, str | None]:
    """The base that all were trained on, and its revision. Raises AdapterError if they differ."""
    first = adapters[0]
    for other in adapters:
        if (other.base, other.revision) != (first.base, first.revision):
            raise AdapterError(
                f"{other.path}: trained on {other.base} (revision {other.revision}), but "
                f"{first.path} on {first.base} "
                f"(revision {first.revision}); if these are the same model, name it with `base`"
            )
    return first.base, first.revision


def remarks(adapters: Sequence[Adapter], base: str | None) -> list[str]:
    """Notes on inputs that are merged as requested but may be a mistake."""
    notes = []
    if wrapped := [adapter for adapter in adapters if adapter.wrapped]:
        notes.append(f"{_several(wrapped)}: {wrapped[0].wrapped}")
    if idle := [adapter for adapter in adapters if adapter.idle]:
        notes.append(f"{_several(idle)}: {idle[0].idle}")
    if unaimed := [adapter for adapter in adapters if adapter.unaimed]:
        notes.append(f"{_several(unaimed)}: {unaimed[0].unaimed}")
    still = [
        (adapter, [name for name in adapter.modules if adapter.leaves_alone(name)])
        for adapter in adapters
    ]
    if zero := [adapter for adapter, names in still if len(names) == len(adapter.modules)]:
        notes.append(
            f"{_several(zero)}: its change is exactly zero, so it only makes the merge smaller"
        )
    if partly := [
        (adapter, names) for adapter, names in still if 0 < len(names) < len(adapter.modules)
    ]:
        first, names = partly[0]
        changed = _several([adapter for adapter, _ in partly])
        notes.append(
            f"{changed}: its change is exactly zero in {len(names)} "
            f"of its {len(first.modules)} modules, as {names[0]!r}; what it leaves alone counts as "
            "unchanged"
        )
    if other := [
        adapter for adapter in adapters if base is not None and adapter.base not in (None, base)
    ]:
        notes.append(
            f"{_several(other)}: says that its base is {other[0].base}; merged for {base}, as asked"
        )
    return notes + [line for line in (copies(adapters),) if line]


def _several(adapters: Sequence[Adapter]) -> str:
    return str(adapters[0].path) + (f" and {len(adapters) - 1} more" if len(adapters) > 1 else "")


def _common_shapes(adapters: Sequence[Adapter]) -> dict[str, tuple[int, int]]:
    """[O, I] of every module that an adapter changes, sorted by name."""
    shapes: dict[str, tuple[int, int]] = {}
    for adapter in adapters:
        for name, module in adapter.modules.items():
            shape = (module.out_features, module.in_features)
            if shapes.setdefault(name, shape) != shape:
                raise AdapterError(
                    f"{adapter.path}: {name} has shape {shape}, in other adapters "
                    f"{shapes[name]}; merge adapters of one base model"
                )
    return dict(sorted(shapes.items()))


def _common_copies(adapters: Sequence[Adapter]) -> dict[str, Tensor]:
    """Weights of the base that some adapters carry: the merged one does too. Where they differ,
    there is no one base.
    """
    copies: dict[str, Tensor] = {}
    for adapter in adapters:
        for name in adapter.copies:
            weight = adapter.copy(name)
            if not torch.equal(copies.setdefault(name, weight), weight):
                raise AdapterError(
                    f"{adapter.path}: has another weight of {name} than other adapters, "
                    "so they stand on different bases; leave it out"
                )
    return copies


def rank_limit(
    rank: str | int, adapters: Sequence[Adapter], shapes: Mapping[str, tuple[int, int]]
) -> Limit:
    """What `truncate` gets for a module of exact rank `exact` and shape [O, I]."""
    text = str(rank)
    if text.startswith("energy="):
        try:
            energy = float(text.removeprefix("energy="))
        except ValueError:
            energy = math.nan
        if not 0 < energy <= 1:
            raise ValueError(
                f"rank {rank!r} is impossible: the energy to keep is a share, above 0 and at most 1"
            )
        return lambda exact, shape: {"energy": energy}
    if text == "full":
        return lambda exact, shape: {"rank": min(exact, *shape)}
    if text != "same" and not text.isdecimal():
        raise ValueError(f"rank {rank!r} is unknown; use full, same, a number, or energy=0.99")
    number = max(adapter.rank for adapter in adapters) if text == "same" else int(text)
    largest = max(min(shape) for shape in shapes.values())
    if text != "same" and not 1 <= number <= largest:
        raise ValueError(
            f"rank {number} is impossible: the changes merged here have ranks 1 to {largest}"
        )
    return lambda exact, shape: {"rank": min(number, exact, *shape)}


def _pad(A: Tensor, B: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """Rows of A and columns of B that are zero, up to rank r: the same change."""
    missing = r - A.shape[0]
    return pad(A, (0, 0, 0, missing)), pad(B, (0, missing))


def _target_modules(members: Members) -> list[str]:
    """The list all inputs agree on, where it means all modules with tensors, every entry means
    some, and none means another layer of the base, where that is here to tell; else their full
    names, which mean them and no others.
    """
    names = list(members.shapes)
    lists = set()
    for adapter in members.adapters:
        target = adapter.config.get("target_modules")
        narrowed = adapter.config.get("layers_to_transform") is not None or adapter.config.get(
            "exclude_modules"
        )
        lists.add(tuple(sorted(target)) if isinstance(target, list) and not narrowed else None)
    common: list[str] = list((lists.pop() if len(lists) == 1 else None) or ())
    meant = [{n for n in names if aims_at({"target_modules": [entry]}, n)} for entry in common]
    if not all(meant) or set().union(*meant) != set(names):
        return names
    layers = layers_of_base((members.base, members.revision), names)
    return (
        names if layers and without_tensors({"target_modules": common}, names, layers) else common
    )
