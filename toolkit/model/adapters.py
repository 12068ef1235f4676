"""PEFT LoRA adapter folders: read exactly or refuse, write atomically and with the same bits every
time.

    adapter_config.json          rank, alpha and the patterns from which each module's scale follows
    adapter_model.safetensors    base_model.model.<module>.lora_A.weight [r, I] and
                                 .lora_B.weight [O, r]; of an embedding .lora_embedding_A [r, I]
                                 and .lora_embedding_B [O, r], I tokens; and, where peft found it
                                 right, a copy of base weights, .base_layer.weight

Trainers that wrap a model leave their wrappers' parts in the names of tensors (`_orig_mod.` of
torch.compile, `module.` of data parallelism); `plain_key` takes them off, so that one module has
one name.

The weight change of a module is dW = scale * B @ A, of shape [O, I]. GPT-2's Conv1D and embeddings
store their weight transposed, their factors not: the shapes above hold there too. An embedding is a
linear layer whose inputs are tokens, one of them at a time.
"""

import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from toolkit.errors import FtkError
from toolkit.record.files import naming, sha256_file, sync
from toolkit.record.folders import MARKER, marker_text, read_marker
from toolkit.record.plain import JsonError, from_plain, parse
from toolkit.record.shapes import AdapterConfig
from toolkit.text.patterns import PatternError, compiled

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
OLD_WEIGHTS = "adapter_model.bin"
PREFIX = "base_model.model."
FULL = "full.json"
"""what a folder with a fully fine-tuned model has instead (`toolkit.model.full`)"""
FACTOR = re.compile(rf"{re.escape(PREFIX)}(.+)\.lora_(?:([AB])\.weight|embedding_([AB]))")
COPY = ".base_layer.weight"
INNER = re.compile(
    r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
"""what torch.compile, FSDP, activation checkpointing and Lightning Fabric put before any module's
name
"""
OUTER = re.compile(r"(?:module\.|base_model\.model\.)*base_model\.model\.(?:module\.)*")
"""PREFIX as it is where peft wrapped a model twice, or data parallelism wrapped it"""
NAMED = re.compile(r"\.lora_(?:([AB])\.[^.]+\.weight|embedding_([AB])\.[^.]+)")
"""a factor with the name of its adapter, `.lora_A.default.weight`, as in a model's own
state_dict
"""
SINGLE_EXPERT = re.compile(r"(.+\.experts)\.\d+\.")
"""one of the experts that transformers 5 holds as one tensor"""
LANGUAGE = "language_model"
"""a part of names that models of text and images have, and the model of text in them has not"""

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Names of dtypes in safetensors and in torch."""

INITS = (None, True, False, "gaussian", "orthogonal", "eva", "mica")
"""`init_lora_weights` that leave the base alone. PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA move a part of
it into the adapter.
"""

HARMLESS = frozenset(
    """
    peft_type task_type auto_mapping base_model_name_or_path revision peft_version inference_mode
    unsloth_fixed
    r lora_alpha use_rslora rank_pattern alpha_pattern fan_in_fan_out bias lora_dropout
    init_lora_weights
    target_modules exclude_modules layers_to_transform layers_pattern megatron_config megatron_core
    loftq_config eva_config corda_config lora_ga_config qalora_group_size runtime_config
    """.split()
)
"""Keys that are read below or do not touch dW. Of `bias`, the tensors decide: biases that were
saved are refused.
"""

REFUSED = {
    "use_dora": "DoRA rescales the whole weight, so dW is not a product of two factors",
    "lora_bias": "lora_bias adds a bias to the product",
    "modules_to_save": "it carries trained copies of whole modules",
    "trainable_token_indices": "it carries trained token embeddings",
    "target_parameters": "it adapts parameters (such as stacked experts), not linear layers",
    "layer_replication": "it changes the layers of the base model",
    "alora_invocation_tokens": "activated LoRA applies to a part of the tokens only",
    "use_qalora": "QALoRA pools the inputs",
    "kasa_config": "KaSA changes the base weights and puts a diagonal between the factors",
    "arrow_config": "Arrow routes tokens between adapters",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "ensure_weight_tying": "its factors are shared between modules",
}
PLAIN_LORA = "train it again as plain LoRA, or merge it into the base model"


class AdapterError(FtkError, ValueError):
    """An adapter that cannot be read, written or combined: one line with the folder, the problem
    and the fix.
    """


class Module(NamedTuple):
    """One adapted layer: sizes from the tensors, scale from the configuration."""

    out_features: int
    in_features: int
    rank: int
    scale: float
    embedding: bool = False


class Place(NamedTuple):
    """Position of a tensor in its file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    bytes: int


@dataclass(frozen=True)
class Adapter:
    """A checked PEFT LoRA folder. The tensors stay on disk until `factors` asks for one
    module's.
    """

    path: Path
    config: Mapping[str, Any]
    modules: Mapping[str, Module]  # by module name of the base model, in sorted order
    places: Mapping[str, Place]  # of every tensor in the file
    stamp: tuple[int, int]  # size and time of the file that the places are of
    wrapped: str | None = None  # what is said of names that are not the base's own
    idle: str | None = None  # what is said of patterns for rank and alpha that mean no module
    unaimed: str | None = None  # what is said of modules at which the configuration does not aim

    @property
    def base(self) -> str | None:
        """Name or path of the base model."""
        return self.config.get("base_model_name_or_path") or None

    @property
    def revision(self) -> str | None:
        """Revision of the base model."""
        return self.config.get("revision") or None

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(module.rank for module in self.modules.values())

    @property
    def copies(self) -> list[str]:
        """Modules of which the folder has the base's weight beside the factors, as peft writes it
        for embeddings and heads.
        """
        return [key[len(PREFIX) : -len(COPY)] for key in self.places if key.endswith(COPY)]

    def sha256(self) -> str:
        """Of the weights file."""
        return sha256_file(self.path / WEIGHTS)

    def factors(self, name: str) -> "tuple[Tensor, Tensor, float]":
        """(A [r, I], B [O, r], scale) of one module on the CPU, in float32 or what is stored if
        that is wider.

        The file is opened for each call, so thousands of adapters cost neither memory nor open
        files, and only these tensors are read: where they lie is known since `read_adapter`.
        """
        A, B = self._read(*(factor_key(name, x, self.modules[name].embedding) for x in "AB"))
        for x, tensor in (("A", A), ("B", B)):
            if not finite(tensor):
                raise AdapterError(
                    f"{self.path}: lora_{x} of {name} has values that are not finite (a "
                    "diverged run?); leave it out"
                )
        if A.element_size() < 4:  # bf16 would lose small differences in every sum
            A, B = A.float(), B.float()
        return A, B, self.modules[name].scale

    @property
    def is_zero(self) -> bool:
        """Whether the change is exactly zero, as in an adapter that was never trained. Reads only
        as much as needed.
        """
        return all(map(self.leaves_alone, self.modules))

    def leaves_alone(self, name: str) -> bool:
        """Whether the change of one module is zero, to the last bit."""
        A, B, scale = self.factors(name)
        row = B[int(B.abs().amax(dim=1).argmax())]
        if scale and (row.double() @ A.double()).any():  # nearly always: no product is needed
            return False
        A, B = A.double(), B.double()  # squares of numbers that float64 holds
        return scale * float(((B.T @ B) * (A @ A.T)).sum()) == 0

    def fitted(self, names: Collection[str]) -> "Adapter":
        """The same adapter under a base's own names of modules, where they differ in
        `language_model.` and parts of wrappers alone.

        A wrapper's part is called `module`, or begins with `_`, and no module of the base has it in
        its name.
        """
        if all(name in names for name in self.modules):
            return self
        full_names: dict[str, list[str]] = {}
        for name in names:
            full_names.setdefault(text_name(name), []).append(name)
        parts_of_base = {part for name in names for part in name.split(".")}
        new: dict[str, str] = {}
        for name in self.modules:
            parts = (
                part for part in name.split(".") if part in parts_of_base or not _of_wrapper(part)
            )
            meant = full_names.get(text_name(".".join(parts)), [])
            new[name] = meant[0] if name not in names and len(meant) == 1 else name
        if len(set(new.values())) < len(new):
            raise AdapterError(
                f"{self.path}: has two changes of one module under two names; save the "
                "adapter again"
            )
        places = {}
        for key, place in self.places.items():
            module = _owner(key)
            places[key.replace(PREFIX + module, PREFIX + new.get(module, module), 1)] = place
        modules = {new[name]: module for name, module in self.modules.items()}
        changed = next((name for name in new if new[name] != name), None)
        wrapped = self.wrapped or (changed and _wrapped(PREFIX + changed, PREFIX + new[changed]))
        return replace(self, modules=dict(sorted(modules.items())), places=places, wrapped=wrapped)

    def copy(self, name: str) -> "Tensor":
        """The base's weight of a module in `copies`, as stored."""
        return self._read(PREFIX + name + COPY)[0]

    def check_copies(self, weight_of: "Callable[[str], Tensor]") -> None:
        """Raise AdapterError where a copy is not the weight that this base has: peft would put it
        in its place.
        """
        import torch

        for name in self.copies:
            weight = weight_of(name)
            if not torch.equal(self.copy(name).to(weight), weight):
                raise AdapterError(
                    f"{self.path}: has a weight of {name} that is not that of the base; "
                    "name its own base, or train it again"
                )

    def _read(self, *keys: str) -> "list[Tensor]":
        try:
            with (self.path / WEIGHTS).open("rb", buffering=0) as file:
                if _stamp(file) != self.stamp:
                    raise OSError("it has changed since it was checked")
                return [_tensor(file, self.places[key]) for key in keys]
        except (OSError, EOFError) as error:
            raise AdapterError(
                f"{self.path}: {WEIGHTS} cannot be read ({error}); copy or train it again"
            ) from None

    def items(self) -> "Iterator[tuple[str, tuple[Tensor, Tensor, float]]]":
        """(name, factors) of every module, read one at a time."""
        return ((name, self.factors(name)) for name in self.modules)


def adapter_paths(source: str | Path) -> list[Path]:
    """The adapter folders (or whole models written by ftk) that `source` means: itself, or its
    sub-folders, sorted by name.

    Of a trainer's `checkpoint-N` folders the last one counts, and only where nothing was saved
    beside them: they are one run.
    """
    source = Path(source)
    if itself := _final(source):
        return [itself]
    children = sorted(source.iterdir()) if source.is_dir() else []
    paths = [
        path for child in children if not child.name.startswith(".") and (path := _final(child))
    ]
    if not paths:
        raise AdapterError(
            f"{source}: no {CONFIG} here nor one level down; name a PEFT adapter folder "
            "or a folder of them"
        )
    return paths


def _final(folder: Path) -> Path | None:
    """The adapter in a folder, or its last checkpoint."""
    if (folder / CONFIG).is_file() or (folder / FULL).is_file():
        return folder
    steps = {
        int(path.name[11:]): path
        for path in folder.glob("checkpoint-*")
        if path.name[11:].isdecimal() and (path / CONFIG).is_file()
    }
    return steps[max(steps)] if steps else None


def read_adapter(path: str | Path) -> Adapter:
    """Check configuration, tensor names and shapes; read no tensor yet.

    Raises AdapterError for all but plain LoRA on linear layers and embeddings.
    """
    path = Path(path)
    config = _read_config(path)
    written, stamp = _read_places(path)
    if not written:
        raise AdapterError(f"{path}: {WEIGHTS} holds no tensors; train or save the adapter again")
    if problem := empty_tensor({key: place.shape for key, place in written.items()}):
        raise AdapterError(f"{path}: {problem}; {GATHER}")
    plain_names = plain_keys(path, written)
    places = {plain: written[key] for plain, key in sorted(plain_names.items())}
    written_as = written_names(plain_names)
    wrapped = next(
        (_wrapped(key, plain_key(key)) for key in written if plain_key(key) != key), None
    )
    shapes = {key: place.shape for key, place in places.items()}
    names: dict[str, dict[str, tuple[int, ...]]] = {}  # module -> {"A": shape, "B": shape}
    embeddings = set()
    for key, shape in shapes.items():
        if match := FACTOR.fullmatch(key):
            names.setdefault(match[1], {})[match[2] or match[3]] = shape
            embeddings |= {match[1]} if match[3] else set()
    modules = {
        name: module_of(path, config, name, names[name], written_as.get(name))._replace(
            embedding=name in embeddings
        )
        for name in sorted(names)
    }
    for key, shape in shapes.items():
        module = modules.get(key[len(PREFIX) : -len(COPY)]) if key.endswith(COPY) else None
        if not module and not FACTOR.fullmatch(key):
            raise AdapterError(f"{path}: {_no_factor(key, shape)}")
        if module and shape not in (
            (module.out_features, module.in_features),
            (module.in_features, module.out_features),
        ):
            raise AdapterError(
                f"{path}: {key!r} is {list(shape)}, which its factors do not fit; save "
                "the adapter again"
            )
    plain_config = {**config, **_plain_lists(config)}
    return Adapter(
        path,
        plain_config,
        _shared(tuple(modules.items())),
        _shared(tuple(places.items())),
        stamp,
        wrapped,
        _idle(config, [written_as.get(name, name) for name in modules]),
        _unaimed(
            [
                name
                for name in modules
                if not aims_at(config, written_as.get(name, name))
                and not aims_at(plain_config, name)
            ],
            len(modules),
        ),
    )


def _plain_lists(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Lists of modules in a configuration, without the parts that wrappers put into names."""
    return {
        key: sorted({plain_key(PREFIX + name).removeprefix(PREFIX) for name in names})
        for key in ("target_modules", "exclude_modules")
        if isinstance(names := config.get(key), list)
    }


def _unaimed(names: Sequence[str], count: int) -> str | None:
    """What is said of the modules `names`, of `count`, at which the configuration does not aim."""
    if not names:
        return None
    return (
        f"{CONFIG} does not aim at {len(names)} of the {count} modules that have tensors, as "
        f"{names[0]!r}, so peft leaves them out; here all of them count"
    )


def plain_key(key: str) -> str:
    """The name of a tensor without the parts that wrappers put into it."""
    key = OUTER.sub(PREFIX, INNER.sub("", key), count=1) if "base_model.model." in key else key
    match = NAMED.search(key)
    if not match or match.end() != len(key):
        return key
    return key[: match.start()] + (
        f".lora_{match[1]}.weight" if match[1] else f".lora_embedding_{match[2]}"
    )


def plain_keys(path: Path, keys: Collection[str]) -> dict[str, str]:
    """Plain name -> name in the file. Raises AdapterError for two tensors of one name."""
    plain: dict[str, str] = {}
    for key in keys:
        if plain.setdefault(plain_key(key), key) != key:
            both = f"{plain[plain_key(key)]!r} and {key!r}"
            raise AdapterError(
                f"{path}: {both} are one factor of two adapters, or of two wrappers; save "
                "one adapter in a folder"
            )
    return plain


def _wrapped(name: str, base_name: str) -> str:
    """What is said of a name that was changed into the base's own."""
    if len(base_name) > len(name):
        return f"names as {name!r} lack the base's `{LANGUAGE}.`, which is put in"
    return f"names as {name!r} have a wrapper's part, which is taken off"


def no_such_layer(name: str, base: str) -> str:
    """Why an adapter cannot be of a base, with what to do."""
    return f"base {base!r} has no linear layer {name!r}; is this an adapter of another base?"


def text_name(module: str) -> str:
    """The name of a module without `language_model.`, wherever it stands:
    `model.language_model.layers` and `language_model.model.layers` are `model.layers` of the model
    of text.
    """
    return ".".join(part for part in module.split(".") if part != LANGUAGE)


def _owner(key: str) -> str:
    """The module that a tensor of an adapter belongs to."""
    match = FACTOR.fullmatch(key)
    return match[1] if match else key.removeprefix(PREFIX).removesuffix(COPY)


def empty_tensor(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong where a tensor has no values; empty text where none is."""
    key = next((key for key, shape in shapes.items() if 0 in shape), None)
    return (
        f"{key!r} is empty, {list(shapes[key])}, as ZeRO-3 leaves weights that it did not gather"
        if key
        else ""
    )


GATHER = (
    "save the adapter again with stage3_gather_16bit_weights_on_model_save (or zero_to_fp32.py)"
)


def aims_at(config: Mapping[str, Any], module: str) -> bool:
    """Whether an adapter's target_modules, layers and exclusions, as peft reads them, mean a
    module. True where they say nothing.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    if excluded and _among(excluded, module):
        return False
    if targets is None or targets == "all-linear":
        return True
    if not _among(targets, module):
        return False
    layers = config.get("layers_to_transform")
    if isinstance(targets, str) or module in targets or layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or r"[^.]*"
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        before = r".*?\." if pattern == r"[^.]*" else r"(?:.*?\.)?"
        if match := _match(rf"{before}{pattern}\.(?P<idx>\d+)\.", module):
            return int(match["idx"]) in (layers if isinstance(layers, list) else [layers])
    return False


def without_tensors(
    config: Mapping[str, Any], modules: Collection[str], layers: Collection[str]
) -> list[str]:
    """What an adapter's target_modules mean, and none of `modules`, which have tensors, is: of
    `layers`, those of the base, or without any of them entries of the list. Under plain names.
    """
    config = {**config, **_plain_lists(config)}
    targets = config.get("target_modules")
    if targets is None:
        return []
    if layers:
        have = {text_name(name) for name in modules}
        return [n for n in layers if text_name(n) not in have and aims_at(config, n)]
    return [
        target
        for target in (targets if isinstance(targets, list) else [])
        if not any(_among([target], name) for name in modules)
    ]


def _among(names: Any, module: str) -> bool:
    """A regular expression matches whole names, a list whole components at the end."""
    if isinstance(names, str):
        return _match(rf"(?:{names})\Z", module) is not None
    return isinstance(names, list) and any(
        module == name or module.endswith(f".{name}") for name in names
    )


def _match(pattern: str, text: str) -> Any:
    """The match at the start of a text; None for a pattern that is broken."""
    try:
        return compiled(pattern).match(text)
    except PatternError:
        return None


@lru_cache(maxsize=64)
def _shared(items: tuple[tuple[str, Any], ...]) -> Mapping[str, Any]:
    """One mapping for all that are equal: the replicas of a population are laid out alike, and
    there may be 10,000 of them.
    """
    return dict(items)


def write_adapter(
    path: str | Path,
    factors: "Mapping[str, tuple[Tensor, Tensor]]",  # module name -> A [r, I], B [O, r]
    *,
    r: int,
    alpha: float,
    target_modules: Sequence[str],
    base: str | None,
    revision: str | None = None,
    use_rslora: bool = False,
    fan_in_fan_out: bool = False,
    task_type: str = "CAUSAL_LM",
    embeddings: Collection[str] = (),  # those of the modules that are embeddings
    copies: "Mapping[str, Tensor] | None" = None,  # module name -> weight of the base
    config: Mapping[str, Any] | None = None,  # further keys of LoraConfig, such as lora_dropout
    extra_files: Mapping[str, str | bytes] | None = None,
    kind: str = "",  # of the folder, see `write_folder`
    of: Mapping[str, str] | None = None,
) -> str:
    """Write a PEFT folder; return the sha256 of its weights.

    Everything is written beside, synced, and renamed: `path` is never half an adapter. If `path`
    exists (a replica whose snapshots came first), the files move in one by one: weights,
    configuration, then the extra files in the order given; the old ones are removed before. Tensors
    keep their dtype.

    Raises AdapterError for factors that are no adapter, and OSError that names `path` when the disk
    refuses.
    """
    path = Path(path)
    tensors = {}
    for name, (A, B) in factors.items():
        if A.dim() != 2 or B.dim() != 2 or A.shape[0] != r or B.shape[1] != r:
            raise AdapterError(
                f"{path}: {name} has A {tuple(A.shape)} and B {tuple(B.shape)}; rank {r} "
                f"needs [{r}, I] and [O, {r}]"
            )
        tensors |= {
            factor_key(name, x, name in embeddings): tensor for x, tensor in (("A", A), ("B", B))
        }
    if not tensors:
        raise AdapterError(f"{path}: no modules to write; check the target modules")
    tensors |= {PREFIX + name + COPY: weight for name, weight in (copies or {}).items()}
    # Only what differs from the defaults or what vLLM and llama.cpp insist on: newer keys break an
    # older peft.
    settings = {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "r": r,
        "lora_alpha": alpha,
        "target_modules": sorted(target_modules),
        "bias": "none",
        "use_rslora": use_rslora,
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
        **(config or {}),
    }
    return write_folder(
        path,
        tensors,
        WEIGHTS,
        {CONFIG: json.dumps(settings, indent=2, sort_keys=True) + "\n", **(extra_files or {})},
        kind,
        of,
    )


def write_folder(
    path: Path,
    tensors: "Mapping[str, Tensor]",
    weights: str,
    files: Mapping[str, str | bytes],
    kind: str = "",
    of: Mapping[str, str] | None = None,
) -> str:
    """Write the file `weights` and the others beside, sync and rename them, as `write_adapter`
    says; return the sha256 of the weights.

    kind: what ftk.json says that the folder is, `of` what it is made of, with the hashes of all its
    files; none without. Raises AdapterError in one line, and writes nothing, where the disk refuses
    or a value is not finite.
    """
    import torch
    from safetensors.torch import save

    if bad := [name for name, tensor in tensors.items() if not finite(tensor)]:
        raise AdapterError(f"{path}: {bad[0]} has values that are not finite; not written")
    # copies of their own: a slice of a stack shares storage, which safetensors refuses
    copied = {
        name: tensor.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    staging = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        staging.mkdir(parents=True)
        # `save_file` does not say in a form for programs why the disk refused
        data = save(copied, metadata={"format": "pt"})
        (staging / weights).write_bytes(data)
        for name, text in files.items():
            (staging / name).write_bytes(text.encode() if isinstance(text, str) else text)
        publish(staging, path, [weights, *files], kind, of)
    except OSError as error:
        raise naming(path, error) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return hashlib.sha256(data).hexdigest()


def publish(
    staging: Path,
    path: Path,
    names: Sequence[str],
    kind: str = "",
    of: Mapping[str, str] | None = None,
) -> None:
    """Have the files `names` of a folder `staging` on the disk and give them their place in `path`,
    whose other files stay.

    kind: what ftk.json is to say that `path` is, and `of` of what; it is there first, so that a
    folder which was being replaced is known, and known as not whole. What an earlier ftk.json names
    and is not written again is removed.
    """
    stale = []
    if kind:
        stale = [
            name
            for name in (read_marker(path) or {}).get("sha256", {})
            if name not in names and Path(name).name == name
        ]
        hashes = {name: sha256_file(staging / name) for name in names}
        (staging / MARKER).write_text(marker_text(kind, of, hashes), encoding="utf-8")
    for name in [*names, *([MARKER] if kind else [])]:
        sync(staging / name)
    sync(staging)
    if not path.exists():
        staging.rename(path)
    else:
        if kind:
            (staging / MARKER).replace(path / MARKER)
        for name in [*stale, *reversed(names)]:
            (path / name).unlink(missing_ok=True)
        for name in names:
            (staging / name).replace(path / name)
        sync(path)
    sync(path.parent)


def read_files(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
    """Configuration, and shape of every tensor, of any PEFT folder as it is. Raises AdapterError
    only for what cannot be read.
    """
    path = Path(path)
    config = _read_json(path)
    if (path / WEIGHTS).is_file() or not (path / OLD_WEIGHTS).is_file():
        return config, {key: place.shape for key, place in _read_places(path)[0].items()}
    import torch

    try:
        tensors = torch.load(path / OLD_WEIGHTS, map_location="meta", weights_only=True)
        return config, {str(name): tuple(tensor.shape) for name, tensor in tensors.items()}
    except Exception as error:  # a pickle fails in whatever way it likes
        raise AdapterError(
            f"{path}: {OLD_WEIGHTS} is damaged ({' '.join(str(error).split())[:100]}); "
            "save it as safetensors"
        ) from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        config = _json((path / CONFIG).read_bytes())
    except FileNotFoundError:
        problem = (
            "a fully fine-tuned model, and this is for adapters alone"
            if (path / FULL).is_file()
            else f"no {CONFIG}"
        )
        raise AdapterError(f"{path}: {problem}; name a PEFT adapter folder") from None
    except (OSError, ValueError) as error:
        raise AdapterError(
            f"{path}: {CONFIG} cannot be read ({error}); save the adapter again"
        ) from None
    if not isinstance(config, dict):
        raise AdapterError(f"{path}: {CONFIG} is no block of keys; save the adapter again")
    return config


def stored(path: str | Path) -> "Iterator[tuple[str, Tensor]]":
    """Name and values of every tensor of a folder that `read_files` reads, one at a time. Raises
    AdapterError in one line where they cannot be read.
    """
    import torch

    path = Path(path)
    try:
        if not (path / WEIGHTS).is_file():
            yield from torch.load(path / OLD_WEIGHTS, map_location="cpu", weights_only=True).items()
            return
        with (path / WEIGHTS).open("rb", buffering=0) as file:
            for key, place in _read_places(path)[0].items():
                yield key, _tensor(file, place)
    except (OSError, EOFError, RuntimeError) as error:
        raise AdapterError(
            f"{path}: its weights cannot be read ({error}); copy or train it again"
        ) from None


def wrong_type(config: Mapping[str, Any]) -> str:
    """What in the configuration of LoRA is of another type than peft writes, so that tools would
    fail at it, or read it each in its way.
    """
    try:
        if config.get("peft_type") == "LORA":
            from_plain(AdapterConfig, config)
    except JsonError as error:
        return f"{CONFIG} cannot be read ({error})"
    return ""


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path)
    if wrong := wrong_type(config):
        raise AdapterError(f"{path}: {wrong}; repair {CONFIG}, or save the adapter again")
    tuner = config.get("peft_type")
    if tuner != "LORA":
        raise AdapterError(
            f"{path}: peft_type is {tuner}, only LORA can be treated exactly; train it "
            "again with LoRA"
        )
    for key, value in config.items():
        if value and key in REFUSED:
            raise AdapterError(f"{path}: {key} is set, and {REFUSED[key]}; {PLAIN_LORA}")
        if value and key not in HARMLESS:
            raise AdapterError(
                f"{path}: option {key!r} of {CONFIG} is unknown here and may change what "
                "the factors mean; "
                f"delete it if it is a remark of another tool, else {PLAIN_LORA}"
            )
    init = config.get("init_lora_weights", True)
    if init not in INITS:
        raise AdapterError(
            f"{path}: init_lora_weights {init!r} moves a part of the base weights into "
            "the adapter; convert it to "
            "plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return config


@lru_cache(maxsize=64)  # shared like the layout
def _json(text: bytes) -> Any:
    return parse(text)


def _read_places(path: Path) -> tuple[dict[str, Place], tuple[int, int]]:
    """Where every tensor lies, from the header of a file that safetensors has checked; and the
    stamp of that file.
    """
    from safetensors import SafetensorError, safe_open

    if not (path / WEIGHTS).is_file():
        raise AdapterError(
            f"{path}: no {WEIGHTS}; save the adapter as safetensors (save_pretrained does)"
        )
    try:
        with (path / WEIGHTS).open("rb") as file, safe_open(path / WEIGHTS, framework="np"):
            length = int.from_bytes(file.read(8), "little")
            header, stamp = parse(file.read(length)), _stamp(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterError(
            f"{path}: {WEIGHTS} is damaged ({error}); copy or train it again"
        ) from None

    header.pop("__metadata__", None)
    places = {}
    for key in sorted(header):
        part = header[key]
        if part["dtype"] not in DTYPES:
            raise AdapterError(
                f"{path}: {key} is stored as {part['dtype']}; save the adapter in float32"
            )
        start, end = part["data_offsets"]
        places[key] = Place(part["dtype"], tuple(part["shape"]), 8 + length + start, end - start)
    return places, stamp


def _stamp(file: Any) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _tensor(file: Any, place: Place) -> "Tensor":
    import torch

    tensor = torch.empty(place.shape, dtype=getattr(torch, DTYPES[place.dtype]))
    file.seek(place.start)
    if file.readinto(tensor.view(torch.uint8).numpy()) != place.bytes:
        raise EOFError("it ends early")
    return tensor


def finite(tensor: "Tensor") -> bool:
    """Whether no value is infinite or NaN. One pass over the extremes, NaN among them, takes a
    tenth of `torch.isfinite(tensor).all()`.
    """
    return tensor.numel() == 0 or all(map(math.isfinite, (x.item() for x in tensor.aminmax())))


def factor_key(name: str, x: str, embedding: bool) -> str:
    """Name of the tensor with factor A or B of a module."""
    return f"{PREFIX}{name}.lora_embedding_{x}" if embedding else f"{PREFIX}{name}.lora_{x}.weight"


def written_names(plain_names: Mapping[str, str]) -> dict[str, str]:
    """Of modules whose names in the file are not their plain ones: plain name -> name in the file,
    as peft had it in training. plain_names: plain name of a tensor -> name in the file.
    """
    written = {}
    for plain, key in plain_names.items():
        if plain != key and (match := FACTOR.fullmatch(plain)):
            written[match[1]] = key.partition(PREFIX)[2].rpartition(".lora_")[0]
    return written


def module_of(
    path: Path,
    config: Mapping[str, Any],
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    written: str | None = None,
) -> Module:
    """Rank and scale as PEFT resolves them: the first pattern that matches the name from some
    component to its end. written: the name that the file has, where it is not the plain one.

    Raises AdapterError where rank and tensors differ, and where a pattern counts only if a wrapper
    was put on after peft: the scale is not known then.
    """
    if set(shapes) != {"A", "B"}:
        raise AdapterError(
            f"{path}: {name} has only lora_{''.join(shapes)}; save the adapter again"
        )
    A, B = shapes["A"], shapes["B"]
    written = name if written is None else written
    try:
        ranks = _readings(config.get("rank_pattern"), written, name, config.get("r", 8))
        alphas = _readings(config.get("alpha_pattern"), written, name, config.get("lora_alpha", 8))
        r = next((r for r in ranks if len(A) == 2 and A[0] == r), ranks[-1])
        scales = [alpha / (math.sqrt(r) if config.get("use_rslora") else r) for alpha in alphas]
        if not all(map(math.isfinite, scales)):
            raise ValueError(f"scale {scales[-1]}")
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, AttributeError) as error:
        raise AdapterError(
            f"{path}: rank and alpha of {name} cannot be read ({error}); repair {CONFIG}"
        ) from None
    if len(A) != 2 or len(B) != 2 or A[0] != r or B[1] != r or 0 in A + B:
        raise AdapterError(
            f"{path}: {name} has A {A} and B {B}, but {CONFIG} says rank {r}; save the "
            "adapter again"
        )
    if len(set(scales)) > 1:
        raise AdapterError(
            f"{path}: alpha_pattern of {CONFIG} means {name!r}, which the tensors call "
            f"{written!r}, so its scale is {scales[0]:g} if the wrapper was put on after peft, and "
            f"{scales[-1]:g} if before; write the pattern as the tensors are called, or delete it"
        )
    return Module(B[0], A[1], r, scales[-1])


def _readings(
    patterns: Mapping[str, Any] | None, written: str, plain: str, default: Any
) -> list[Any]:
    """What the patterns may give a module: last what they give its name in the file, and before it
    what an earlier pattern gives the name without any part of a wrapper.
    """
    bare = ".".join(part for part in plain.split(".") if not _of_wrapper(part))
    values = []
    for pattern, value in (patterns or {}).items():
        if matches(pattern, written):
            return [*values, value]
        if matches(pattern, bare):
            values.append(value)
    return [*values, default]


def _idle(config: Mapping[str, Any], written: Sequence[str]) -> str | None:
    """What is said of keys of rank_pattern and alpha_pattern that mean none of the modules, by
    their names in the file.
    """
    for key in ("alpha_pattern", "rank_pattern"):
        for pattern in config.get(key) or {}:
            try:
                if any(matches(pattern, name) for name in written):
                    continue
            except PatternError:
                pass  # no module came so far, else it had been refused
            return f"{key} has {pattern!r}, which means none of its modules, so it counts for none"
    return None


def matches(pattern: str, name: str) -> bool:
    """Whether a key of rank_pattern or alpha_pattern means a module, as peft has it."""
    return compiled(rf"(.*\.)?({pattern})$").match(name) is not None


def _of_wrapper(part: str) -> bool:
    """Whether a part of a name can be a wrapper's."""
    return part == "module" or part.startswith("_")


def _no_factor(key: str, shape: tuple[int, ...]) -> str:
    """Why a tensor that is no factor is refused, and what to do."""
    if key.endswith(WHOLE_EMBEDDING):
        return (
            f"{key!r} is a whole weight for {shape[0]:,} tokens, in which a resized "
            "vocabulary has its new ones; where the base has "
            "as many, save again with save_embedding_layers=False, else resize the base, "
            "save it, and train on it"
        )
    what = f"tensor {key!r} is not a LoRA factor of a linear layer or an embedding"
    return (
        f"{what}; train it again with bias='none'"
        if key.endswith(".bias")
        else f"{what}; {PLAIN_LORA}"
    )


WHOLE_EMBEDDING = (
    "embed_tokens.weight",
    "lm_head.weight",
    "embed_tokens.base_layer.weight",
    "lm_head.base_layer.weight",
    "wte.weight",
)
