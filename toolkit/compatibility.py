"""What peft, vLLM, llama.cpp, lm-eval and ftk itself do with an adapter folder, told from its configuration and the names of its tensors.

The rules were read in vLLM 0.33 (lora/peft_helper.py, config/lora.py), llama.cpp's convert_lora_to_gguf.py and lm-eval 0.4.13; that of peft
is the installed peft's own configuration class. One row a tool at the end: name -> function.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.adapters import FACTOR, INITS, WEIGHTS, AdapterError, module_of, read_adapter, read_files

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""what --max-lora-rank may be"""
REWRITE = "`ftk merge {path} --method mean --out NEW` writes the same change plainly"
UNLOAD = "merge it into the base: PeftModel.merge_and_unload, then save the model"


@dataclass(frozen=True)
class Folder:
    """What a tool sees of an adapter."""

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]  # tensor -> shape

    @property
    def base(self) -> str:
        return self.config.get("base_model_name_or_path") or "BASE"

    @property
    def rank(self) -> int:
        """The largest rank of a module; 0 where no tensor is a factor."""
        return max((shapes["A"][0] for shapes in _factors(self).values() if shapes.get("A")), default=0)

    def others(self, *allowed: str) -> list[str]:
        """Tensors that are neither factors nor contain one of `allowed`."""
        return [name for name in self.shapes if not FACTOR.fullmatch(name) and not any(part in name for part in allowed)]


class Problem(NamedTuple):
    because: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """What one tool does: `problems` is empty where it loads the folder and computes what was trained."""

    target: str
    ok: bool
    because: str
    fix: str
    command: str


def check_adapter(path: str | Path, targets: tuple[str, ...] = ()) -> list[Finding]:
    """One finding for each tool, the first problem of each. Raises AdapterError where the folder cannot be read at all."""
    folder = Folder(Path(path), *read_files(path))
    found = []
    for target, (problems, command) in TARGETS.items():
        if not targets or target in targets:
            problem = next(problems(folder), None)
            fix = problem.fix.format(path=folder.path) if problem else ""
            found.append(Finding(target, problem is None, problem.because if problem else "", fix, command(folder)))
    return found


def to_plain(found: list[Finding]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


# -- what stands in the way --------------------------------------------------------------------------------------------


def _peft(folder: Folder) -> Iterator[Problem]:
    import peft

    kind = folder.config.get("peft_type")
    if kind not in list(peft.PeftType):
        yield Problem(f"peft {peft.__version__} knows no peft_type {kind!r}", "upgrade peft, or train it again as LoRA")
    if not folder.shapes:
        yield Problem(f"{WEIGHTS} holds no tensors", "save the adapter again")
    if kind == "LORA":
        try:
            for name, shapes in _factors(folder).items():
                module_of(folder.path, folder.config, name, shapes)
        except AdapterError as error:
            yield Problem(str(error).removeprefix(f"{folder.path}: ").partition(";")[0], "save the adapter again")


def _vllm(folder: Folder) -> Iterator[Problem]:
    config = folder.config
    if config.get("peft_type") != "LORA":
        yield Problem(f"peft_type is {config.get('peft_type')}, it serves LORA alone", UNLOAD)
    for key in ("r", "lora_alpha", "target_modules"):
        if config.get(key) is None:
            yield Problem(f"adapter_config.json lacks {key!r}", "add it, or " + REWRITE)
    if config.get("bias", "none") != "none":
        yield Problem(f"bias is {config['bias']!r}, it serves adapters without", UNLOAD)
    if unserved := [name for name in config.get("modules_to_save") or [] if name not in ("classifier", "score")]:
        yield Problem(f"modules_to_save holds {', '.join(unserved)}", UNLOAD)
    for key in ("use_dora", "lora_bias", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"):
        if config.get(key):
            yield Problem(f"{key} is set", UNLOAD)
    yield from _moved_base(folder)
    if others := folder.others(".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight"):
        yield Problem(f"tensor {others[0]!r} is no factor of LoRA", UNLOAD)
    if folder.rank > VLLM_RANKS[-1]:
        yield Problem(
            f"rank {folder.rank} is above its largest, {VLLM_RANKS[-1]}", "`ftk merge {path} --method mean --rank 64 --out NEW` cuts it"
        )


def _llama_cpp(folder: Folder) -> Iterator[Problem]:
    config = folder.config
    if config.get("peft_type") != "LORA":
        yield Problem(f"peft_type is {config.get('peft_type')}, it converts LORA alone", UNLOAD)
    if others := folder.others(".base_layer.weight", "_layernorm", ".norm"):
        yield Problem(f"its converter stops at the tensor {others[0]!r}", UNLOAD)
    if config.get("layer_replication"):
        yield Problem("layer_replication changes the layers of the base", UNLOAD)
    yield from _moved_base(folder)
    if head := [name for name in folder.shapes if "lm_head" in name]:
        yield Problem(f"its converter stops at {head[0]!r} where the base ties its embeddings", UNLOAD)
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        yield Problem("adapter_config.json lacks 'lora_alpha'", "add it")
        return
    try:
        for name, shapes in _factors(folder).items():
            module = module_of(folder.path, config, name, shapes)
            taken = alpha / module.rank if alpha else 1.0
            if not math.isclose(taken, module.scale):
                yield Problem(
                    f"it scales by alpha / rank alone, in silence: {name} would get {taken:.4g} instead of {module.scale:.4g}", REWRITE
                )
    except AdapterError as error:
        yield Problem(str(error).removeprefix(f"{folder.path}: ").partition(";")[0], "save the adapter again")


def _ftk(folder: Folder) -> Iterator[Problem]:
    try:
        read_adapter(folder.path)
    except AdapterError as error:
        because, _, fix = str(error).removeprefix(f"{folder.path}: ").rpartition("; ")
        yield Problem(because, fix)


def _moved_base(folder: Folder) -> Iterator[Problem]:
    init = folder.config.get("init_lora_weights", True)
    if init not in INITS:
        yield Problem(
            f"init_lora_weights {init!r} moved a part of the base into the adapter",
            "convert it with save_pretrained(path_initial_model_for_weight_conversion=...)",
        )


def _factors(folder: Folder) -> dict[str, dict[str, tuple[int, ...]]]:
    names: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in folder.shapes.items():
        if match := FACTOR.fullmatch(key):
            names.setdefault(match[1], {})[match[2] or match[3]] = shape
    return names


# -- what to type ------------------------------------------------------------------------------------------------------


def _serve(folder: Folder) -> str:
    rank = next((rank for rank in VLLM_RANKS if rank >= folder.rank), VLLM_RANKS[-1])
    module = shlex.quote(f"{folder.path.resolve().name}={folder.path}")
    return f"vllm serve {shlex.quote(folder.base)} --enable-lora --max-lora-rank {rank} --lora-modules {module}"


def _convert(folder: Folder) -> str:
    option = "--base" if folder.base == "BASE" or Path(folder.base).is_dir() else "--base-model-id"
    return f"python convert_lora_to_gguf.py {shlex.quote(str(folder.path))} {option} {shlex.quote(folder.base)}"


def _evaluate(folder: Folder) -> str:
    return f"lm_eval --model hf --model_args {shlex.quote(f'pretrained={folder.base},peft={folder.path}')} --tasks TASK"


def _load(folder: Folder) -> str:
    return f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({folder.base!r}), {str(folder.path)!r})"


def _merge(folder: Folder) -> str:
    return f"ftk merge {shlex.quote(str(folder.path))} ... --method mean --out MERGED"


TARGETS: dict[str, tuple[Callable[[Folder], Iterator[Problem]], Callable[[Folder], str]]] = {
    "peft": (_peft, _load),
    "vllm": (_vllm, _serve),
    "llama.cpp": (_llama_cpp, _convert),
    "lm-eval": (_peft, _evaluate),  # through peft: `peft=` beside `pretrained=`
    "ftk": (_ftk, _merge),
}
