"""What peft, vLLM, llama.cpp, lm-eval and ftk itself do with an adapter folder, told from its
configuration, its tensors, and its base.

The rules were read in vLLM 0.33 (lora/peft_helper.py, lora/lora_model.py, config/lora.py),
llama.cpp's convert_lora_to_gguf.py and lm-eval 0.4.13. peft is not told but asked: the installed
one loads the adapter on the base's modules without weights, where the base's configuration is on
this machine; else names of modules are not checked, and that is said. One row a tool at the end:
name -> function.
"""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from toolkit.model.adapters import (
    CONFIG,
    FACTOR,
    GATHER,
    INITS,
    NAMED,
    PREFIX,
    WEIGHTS,
    AdapterError,
    empty_tensor,
    module_of,
    plain_key,
    read_adapter,
    read_files,
    stored,
    text_name,
    without_tensors,
    written_names,
    wrong_type,
)
from toolkit.model.adopt import check_modules, layer_shapes
from toolkit.model.base import BaseError, skeleton
from toolkit.model.stack import target_modules
from toolkit.record.files import home
from toolkit.text.patterns import on_the_clock

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""what --max-lora-rank may be"""
REWRITE = "`ftk merge {path} --method mean --out NEW` writes the same change plainly"
COUNT_ALL = (
    "`ftk merge {path} --method mean --out NEW` writes a folder in which all of them count; else "
    "delete the tensors"
)
RESAVE = "save the adapter again"
RESIZE = (
    "resize the base alike (model.resize_token_embeddings({tokens})), save it with its "
    "tokenizer, and name that one"
)
LEAVE = "leave it out"
LARGEST = {"float32": 3.4028235e38, "float16": 65504.0}
"""what a dtype that tools load adapters in holds"""
UNLOAD = "merge it into the base: PeftModel.merge_and_unload, then save the model"


@dataclass(frozen=True)
class Folder:
    """What a tool sees of an adapter."""

    path: Path
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]  # tensor -> shape
    named: str | None = None  # the base, where it is not what the adapter says

    @property
    def base(self) -> str:
        """The base's name: the one that was given, else that of the configuration, else BASE."""
        return self.named or self.config.get("base_model_name_or_path") or "BASE"

    def skeleton(self) -> Any | None:
        """The modules of the base without weights, made anew: whoever asks may change them. None
        where it is not on this machine.

        Raises BaseError where the caller named a base that is not there.
        """
        revision = self.config.get("revision") if self.named is None else None
        try:
            return (
                skeleton(f"{self.base}@{revision}" if revision else self.base)
                if self.base != "BASE"
                else None
            )
        except BaseError:
            if self.named:
                raise
            return None

    @cached_property
    def bare(self) -> Any | None:
        """`skeleton`, made once: nobody may change it."""
        return self.skeleton()

    @cached_property
    def modules_of_base(self) -> frozenset[str]:
        """Names of the base's modules; empty where it is not here."""
        return (
            frozenset(name for name, _ in self.bare.named_modules()) if self.bare else frozenset()
        )

    @cached_property
    def lacking(self) -> list[str]:
        """Modules at which it aims, and of which it has no tensors; where the base is not here,
        entries of target_modules, which may be names of other bases.
        """
        layers: list[str] = []
        if self.bare is not None and self.config.get("target_modules") == "all-linear":
            layers = [*target_modules(self.bare, "all-linear")]
        elif self.bare is not None:
            layers = [
                name
                for name, module in self.bare.named_modules()
                if getattr(getattr(module, "weight", None), "ndim", 0) == 2
            ]
        return without_tensors(self.config, _factors(self), layers)

    @cached_property
    def sizes(self) -> dict[str, float]:
        """The largest absolute value of every tensor; NaN where one of its values is."""
        return {
            name: max(abs(x.item()) for x in tensor.aminmax()) if tensor.numel() else 0.0
            for name, tensor in stored(self.path)
        }

    @property
    def dtype(self) -> str:
        """In which the base is stored; empty text where it is not here."""
        return str(getattr(getattr(self.bare, "config", None), "dtype", "")).removeprefix("torch.")

    @cached_property
    def written(self) -> dict[str, str]:
        """`written_names` of its tensors."""
        return written_names({plain_key(key): key for key in self.shapes})

    @property
    def unaimed(self) -> bool:
        """Whether ftk reads it, and finds tensors of modules at which its configuration does not
        aim.
        """
        try:
            return read_adapter(self.path).unaimed is not None
        except AdapterError:
            return False

    @property
    def rank(self) -> int:
        """The largest rank of a module; 0 where no tensor is a factor."""
        return max(
            (shapes["A"][0] for shapes in _factors(self).values() if shapes.get("A")), default=0
        )

    def others(self, *allowed: str) -> list[str]:
        """Tensors that are neither factors nor contain one of `allowed`."""
        return [
            name
            for name in self.shapes
            if not FACTOR.fullmatch(plain_key(name)) and not any(part in name for part in allowed)
        ]

    @property
    def fused(self) -> list[str]:
        """Factors of fused experts, which target_parameters makes: their first side is experts
        times rank.
        """
        if not self.config.get("target_parameters"):
            return []
        return [
            name for name in _factors(self) if name.endswith((".experts", ".experts.base_layer"))
        ] or [*_factors(self)][:1]


class Problem(NamedTuple):
    """Why a tool cannot load an adapter, and what helps."""

    because: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """What one tool does: `ok` where it loads the folder and computes what was trained. unchecked:
    what was not looked at, and why.
    """

    target: str
    ok: bool
    because: str
    fix: str
    command: str
    unchecked: str = ""


def check_adapter(
    path: str | Path, targets: tuple[str, ...] = (), base: str | None = None
) -> list[Finding]:
    """One finding for each tool, the first problem of each. base: instead of the one that the
    adapter names.

    Raises AdapterError where the folder cannot be read at all, BaseError where there is no such
    `base`.
    """
    folder = Folder(Path(path), *read_files(path), base)
    unchecked = ""
    if not folder.modules_of_base:
        unchecked = (
            f"names of modules were not checked: the configuration of {folder.base} is not on "
            "this machine; name a folder with --base"
        )
        if folder.lacking:
            unchecked += f" (no tensor is of {folder.lacking[0]!r}, which target_modules names)"
    wrong = wrong_type(folder.config)
    typed = Problem(wrong, f"repair {CONFIG}, or save the adapter again") if wrong else None
    findings = []
    for target, (problems, command) in TARGETS.items():
        if not targets or target in targets:
            problem = typed or next(chain(problems(folder), _anywhere(folder, target)), None)
            fix = problem.fix.format(path=folder.path) if problem else ""
            findings.append(
                Finding(
                    target,
                    problem is None,
                    problem.because if problem else "",
                    fix,
                    command(folder),
                    unchecked,
                )
            )
    return findings


def changes_nothing(path: str | Path) -> bool:
    """Whether an adapter's change is exactly zero; False where ftk cannot read it."""
    try:
        return read_adapter(path).is_zero
    except AdapterError:
        return False


def to_plain(findings: list[Finding]) -> list[dict[str, Any]]:
    """Findings as plain values, for JSON."""
    return [asdict(finding) for finding in findings]


# -- what stands in the way ----------------------------------------------------------------------


def _anywhere(folder: Folder, target: str) -> Iterator[Problem]:
    """What no tool looks at, and all of them compute with: values, and modules that are missing."""
    # vLLM holds adapters in the dtype of the base, the others in float32
    dtype = "float16" if target == "vllm" and folder.dtype == "float16" else "float32"
    for name, size in folder.sizes.items():
        if not size <= LARGEST[dtype]:
            what = (
                f"values up to {size:.2g}, and {dtype} holds none above {LARGEST[dtype]:.2g}"
                if math.isfinite(size)
                else "values that are not finite"
            )
            says = "" if target == "ftk" else "it loads, and answers would be NaN: "
            yield Problem(f"{says}{name!r} has {what} (a diverged run?)", LEAVE)
    if folder.bare is not None and folder.config.get("peft_type") == "LORA" and folder.lacking:
        yield _missing(2 * len(folder.lacking), folder.lacking[0])


def _missing(factors: int, module: str) -> Problem:
    return Problem(
        f"{factors} factors that target_modules asks for are not there, as of {module}: their "
        "effect is 0",
        RESAVE,
    )


def _peft(folder: Folder) -> Iterator[Problem]:
    import peft

    kind = folder.config.get("peft_type")
    if kind not in list(peft.PeftType):
        yield Problem(
            f"peft {peft.__version__} knows no peft_type {kind!r}",
            "upgrade peft, or train it again as LoRA",
        )
    yield from _nothing_there(folder)
    if kind != "LORA":
        return
    if model := folder.skeleton():
        yield from _as_peft_says(folder, model)
        return
    if strange := next((key for key in folder.shapes if _unknown_to_peft(key)), None):
        yield Problem(
            f"{strange!r} has a wrapper's name: it leaves such tensors out in silence, so "
            "their effect is 0",
            REWRITE,
        )
    if not folder.fused:
        yield from _ranks(folder)


def _as_peft_says(folder: Folder, model: Any) -> Iterator[Problem]:
    """peft itself loads the adapter on the modules of its base, which have no weights: what it
    refuses, and what it leaves out.
    """
    import peft

    try:
        with warnings.catch_warnings(), on_the_clock("peft"):
            warnings.simplefilter("ignore")  # that nothing is copied to modules without weights
            config: Any = peft.PeftConfig.from_pretrained(str(folder.path))
            if folder.config.get("init_lora_weights", True) not in INITS:
                # one that looks at the base's weights changes no name and no shape
                config.init_lora_weights = True
            tuned = peft.PeftModel.from_pretrained(
                model, str(folder.path), config=config, torch_device="cpu"
            )
            left = tuned.load_adapter(str(folder.path), "default", torch_device="cpu")
    except Exception as error:  # of peft, or of what it looks at; a refusal in any case
        yield _refusal(folder, error)
        return
    unused = [key for key in left.unexpected_keys if "lora_" in key]
    if unused:
        share = (
            "all" if len(unused) == len(folder.shapes) else f"{len(unused)} of {len(folder.shapes)}"
        )
        effect = "its effect is 0" if share == "all" else "their effect is 0"
        yield Problem(
            f"the base has no place for {unused[0]!r}: it leaves {share} tensors out in "
            f"silence, so {effect}",
            COUNT_ALL if folder.unaimed else _rename(folder),
        )
    if left.missing_keys:
        of = left.missing_keys[0].removeprefix(PREFIX).partition(".lora_")[0]
        yield _missing(len(left.missing_keys), of)


def _refusal(folder: Folder, error: Exception) -> Problem:
    text = " ".join(str(error).split())
    whole = next(
        (
            key
            for key in folder.shapes
            if key.endswith(("embed_tokens.weight", "lm_head.weight", "lora_embedding_A"))
        ),
        None,
    )
    if (
        "size mismatch" in text
        and whole
        and any(name in text for name in ("embed_tokens", "lm_head", "lora_embedding"))
    ):
        shape = folder.shapes[whole]
        tokens = shape[1] if whole.endswith("lora_embedding_A") else shape[0]
        return Problem(
            f"its vocabulary was resized to {tokens:,} tokens, and that of {folder.base} is not",
            RESIZE.format(tokens=tokens),
        )
    if "size mismatch" in text:
        where = (
            text.partition("size mismatch for ")[2]
            .partition(": copying")[0]
            .replace(".default", "")
        )
        return Problem(
            f"{where} has another shape than rank and base say",
            "name its own base, or save it again",
        )
    return Problem(
        f"it stops: {text.partition('. ')[0][:200].rstrip('.')}",
        "train it again on what peft can adapt",
    )


def _rename(folder: Folder) -> str:
    """How names that the base has not become its own."""
    if any(plain_key(key) != key for key in folder.shapes) or next(_ftk(folder), None) is None:
        return REWRITE
    return "name its own base with --base, or save it again from the unwrapped model"


def _unknown_to_peft(key: str) -> bool:
    """Whether a name has a wrapper's part, other than the name that peft itself gives to the
    adapter it loads.
    """
    return plain_key(key) not in (
        key,
        key.replace(".default.weight", ".weight").removesuffix(".default"),
    )


def _lm_eval(folder: Folder) -> Iterator[Problem]:
    """peft, after the base has as many tokens as its tokenizer."""
    yield from _peft(folder)
    model = folder.skeleton() if folder.config.get("peft_type") == "LORA" else None
    vocabulary = _tokens(folder) if model is not None else None
    if model is not None and vocabulary and vocabulary != model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
        if problem := next(_as_peft_says(folder, model), None):
            yield Problem(
                f"it resizes the base to the {vocabulary:,} tokens of its tokenizer, and then "
                f"{problem.because}",
                problem.fix,
            )


def _tokens(folder: Folder) -> int | None:
    """How many tokens the tokenizer of the base has."""
    from transformers import AutoTokenizer

    try:
        source = str(home(folder.base)) if home(folder.base).is_dir() else folder.base
        return len(
            AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        )
    except (
        Exception
    ):  # there is none, or none that can be read: lm-eval would stop at it, adapter or not
        return None


def _nothing_there(folder: Folder) -> Iterator[Problem]:
    if not folder.shapes:
        yield Problem(f"{WEIGHTS} holds no tensors", RESAVE)
    if empty := empty_tensor(folder.shapes):
        yield Problem(empty, GATHER)


def _ranks(folder: Folder) -> Iterator[Problem]:
    """Where configuration and tensors disagree."""
    try:
        for name, shapes in _factors(folder).items():
            module_of(folder.path, folder.config, name, shapes, folder.written.get(name))
    except AdapterError as error:
        yield Problem(str(error).removeprefix(f"{folder.path}: ").partition(";")[0], RESAVE)


def _scales(folder: Folder, says: str, scale: Callable[[int], float]) -> Iterator[Problem]:
    """Where a tool that has one rule for all modules scales otherwise than the adapter was trained.
    scale: of a rank, by that rule.
    """
    try:
        for name, shapes in _factors(folder).items():
            module = module_of(folder.path, folder.config, name, shapes, folder.written.get(name))
            if not math.isclose(taken := scale(module.rank), module.scale):
                yield Problem(
                    f"{says}, in silence: {name} would get {taken:.4g} instead of "
                    f"{module.scale:.4g}",
                    REWRITE,
                )
    except AdapterError as error:
        yield Problem(str(error).removeprefix(f"{folder.path}: ").partition(";")[0], RESAVE)


def _nowhere(folder: Folder, name_of: Callable[[str], str]) -> str | None:
    """A module that the base has not, by the name under which a tool looks for it. Single experts
    are the tool's own affair.
    """
    base_names = {name_of(name) for name in folder.modules_of_base}
    names = (name for name in _factors(folder) if ".experts." not in name)
    return next((name for name in names if base_names and name_of(name) not in base_names), None)


def _vllm(folder: Folder) -> Iterator[Problem]:
    config = folder.config
    if config.get("peft_type") != "LORA":
        yield Problem(f"peft_type is {config.get('peft_type')}, it serves LORA alone", UNLOAD)
    for key in ("r", "lora_alpha", "target_modules"):
        if config.get(key) is None:
            yield Problem(f"adapter_config.json lacks {key!r}", "add it, or " + REWRITE)
    if config.get("bias", "none") != "none":
        yield Problem(f"bias is {config['bias']!r}, it serves adapters without", UNLOAD)
    if unserved := [
        name for name in config.get("modules_to_save") or [] if name not in ("classifier", "score")
    ]:
        yield Problem(f"modules_to_save holds {', '.join(unserved)}", UNLOAD)
    for key in (
        "use_dora",
        "lora_bias",
        "alora_invocation_tokens",
        "layer_replication",
        "use_bdlora",
        "use_qalora",
    ):
        if config.get(key):
            yield Problem(f"{key} is set", UNLOAD)
    yield from _moved_base(folder)
    yield from _nothing_there(folder)
    if others := folder.others(".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight"):
        yield Problem(f"tensor {others[0]!r} is no factor of LoRA", UNLOAD)
    if named := next((key for key in folder.shapes if NAMED.search(key)), None):
        yield Problem(f"it stops at {named!r}, in which the adapter has a name", REWRITE)
    if folder.fused:
        yield Problem(
            f"it serves adapters of fused experts ({folder.fused[0]}) only on bases whose "
            "experts it keeps fused, as gpt-oss",
            UNLOAD,
        )
        return
    if strange := next((key for key in folder.shapes if _inner(key)), None):
        yield Problem(
            f"{strange!r} has a wrapper's name: it leaves such tensors out in silence", REWRITE
        )
    if nowhere := _nowhere(folder, lambda name: name):
        yield Problem(
            f"the base has no module {nowhere!r}: it leaves its change out in silence",
            _rename(folder),
        )
    if folder.rank > VLLM_RANKS[-1]:
        yield Problem(
            f"rank {folder.rank} is above its largest, {VLLM_RANKS[-1]}",
            "`ftk merge {path} --method mean --rank 64 --out NEW` cuts it",
        )
    r, alpha = config.get("r"), config.get("lora_alpha")
    if isinstance(r, int) and isinstance(alpha, int | float) and r > 0:
        scale = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
        yield from _scales(
            folder, "it has one scale for all modules, from r and lora_alpha", lambda rank: scale
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
    yield from _nothing_there(folder)
    if named := next((key for key in folder.shapes if NAMED.search(key)), None):
        yield Problem(f"its converter stops at {named!r}, in which the adapter has a name", REWRITE)
    if folder.fused:
        yield Problem(
            f"its converter knows no adapters of fused experts ({folder.fused[0]})", UNLOAD
        )
        return
    if strange := next((key for key in folder.shapes if _inner(key)), None):
        yield Problem(f"its converter stops at {strange!r}, which has a wrapper's name", REWRITE)
    if nowhere := _nowhere(folder, text_name):
        yield Problem(
            f"its converter stops at {nowhere!r}, which the base has not", _rename(folder)
        )
    if head := [name for name in folder.shapes if "lm_head" in name]:
        yield Problem(
            f"its converter stops at {head[0]!r} where the base ties its embeddings", UNLOAD
        )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float):
        yield Problem("adapter_config.json lacks 'lora_alpha'", "add it")
        return
    yield from _scales(
        folder, "it scales by alpha / rank alone", lambda rank: alpha / rank if alpha else 1.0
    )


def _ftk(folder: Folder) -> Iterator[Problem]:
    try:
        adapter = read_adapter(folder.path)
        if model := folder.skeleton():
            check_modules(adapter, model, folder.base, layer_shapes(model))
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


def _inner(key: str) -> bool:
    """Whether a wrapper's part is left when every `base_model.model.` has been taken off, as vLLM
    and llama.cpp do.
    """
    return PREFIX + key.replace(PREFIX, "") != plain_key(key)


def _factors(folder: Folder) -> dict[str, dict[str, tuple[int, ...]]]:
    """Module -> shapes of its factors, under plain names."""
    names: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, shape in folder.shapes.items():
        if match := FACTOR.fullmatch(plain_key(key)):
            names.setdefault(match[1], {})[match[2] or match[3]] = shape
    return names


# -- what to type --------------------------------------------------------------------------------


def _serve(folder: Folder) -> str:
    rank = next((rank for rank in VLLM_RANKS if rank >= folder.rank), VLLM_RANKS[-1])
    module = shlex.quote(f"{folder.path.resolve().name}={folder.path}")
    return (
        f"vllm serve {shlex.quote(folder.base)} --enable-lora --max-lora-rank {rank} "
        f"--lora-modules {module}"
    )


def _convert(folder: Folder) -> str:
    option = "--base" if folder.base == "BASE" or Path(folder.base).is_dir() else "--base-model-id"
    return (
        f"python convert_lora_to_gguf.py {shlex.quote(str(folder.path))} {option} "
        f"{shlex.quote(folder.base)}"
    )


def _evaluate(folder: Folder) -> str:
    return (
        "lm_eval --model hf --model_args "
        f"{shlex.quote(f'pretrained={folder.base},peft={folder.path}')} --tasks TASK"
    )


def _load(folder: Folder) -> str:
    return (
        f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({folder.base!r}), "
        f"{str(folder.path)!r})"
    )


def _merge(folder: Folder) -> str:
    return f"ftk merge {shlex.quote(str(folder.path))} ... --method mean --out MERGED"


TARGETS: dict[str, tuple[Callable[[Folder], Iterator[Problem]], Callable[[Folder], str]]] = {
    "peft": (_peft, _load),
    "vllm": (_vllm, _serve),
    "llama.cpp": (_llama_cpp, _convert),
    "lm-eval": (_lm_eval, _evaluate),  # through peft: `peft=` beside `pretrained=`
    "ftk": (_ftk, _merge),
}
