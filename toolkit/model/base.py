"""The frozen base model: a Hugging Face causal LM by id or folder, or the small one that ships with
ftk.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)
from transformers.utils import logging as transformers_logging

from toolkit.errors import FtkError
from toolkit.record.files import home, no_folder, real

EMBEDDED = Path(__file__).parent.parent / "embedded" / "base"
NARROW, FASTER = 128, 2.5


class BaseError(FtkError, ValueError):
    """A base model that cannot be loaded or used; one line with the fix."""


@dataclass(frozen=True)
class Base:
    """A loaded base: frozen, in eval mode."""

    name: str
    """what the recipe says"""
    source: str
    """what an adapter's configuration names: a hub id, or a folder"""
    revision: str | None
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_ids: tuple[int, ...]
    parameters: int
    sha256: str
    """of names, shapes, dtypes and bytes of all weights, as loaded"""
    tokenizer_sha256: str

    @property
    def max_positions(self) -> int | None:
        """Tokens that the base was made for, prompt and answer together; None where its
        configuration does not say.
        """
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def to_dict(self) -> dict[str, Any]:
        """What the base is, for the record of a run."""
        quantised = getattr(self.model, "is_quantized", False)
        return {
            "base": self.name,
            "source": self.source,
            "revision": self.revision,
            "architecture": type(self.model).__name__,
            "parameters": self.parameters,
            "dtype": "nf4" if quantised else str(self.model.dtype).removeprefix("torch."),
            **({"bitsandbytes": importlib.metadata.version("bitsandbytes")} if quantised else {}),
            "sha256": self.sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
        }


def _hash_weights(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256((text + str(tokenizer.chat_template)).encode()).hexdigest()


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's, and those of the generation config (chat models
    have several).
    """
    generation = getattr(model, "generation_config", None)
    configured = getattr(generation, "eos_token_id", None)
    ids = [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]
    return tuple(sorted({i for i in ids if isinstance(i, int)}))


@lru_cache(maxsize=8)  # one answer for a process, whatever else the machine does
def fastest_dtype(width: int, device: str) -> str:
    """`bfloat16` where a product of this many columns is several times faster in it, as on a GPU or
    with AMX; else `float32`.

    Measured here. Narrow bases stay in float32: their time goes elsewhere.
    """
    if width < NARROW:
        return "float32"
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"

    def seconds(dtype: torch.dtype) -> float:
        x, weight = (torch.ones(rows, width, dtype=dtype) for rows in (2048, width))
        times = []
        for _ in range(7):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            times.append(time.perf_counter() - start)
        return min(times)

    return "bfloat16" if seconds(torch.bfloat16) * FASTER < seconds(torch.float32) else "float32"


def _locate(name: str) -> tuple[str, str | None]:
    """Where Hugging Face finds a base, and its revision."""
    if name == "embedded":
        return str(EMBEDDED), None
    if home(name).is_dir():
        return str(real(home(name))), None
    if no_folder(name):
        raise BaseError(f"base {name!r}: no such folder")
    source, _, revision = name.partition("@")
    return source, revision or None


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, BaseError):
        raise
    except Exception as error:
        # of libraries, and of the code of an architecture, which fails in whatever way it likes
        raise BaseError(f"base {name!r} {why_not(error)}") from None


def _wants_code(error: Exception) -> bool:
    return "trust_remote_code" in str(error) or "custom code" in str(error)


def why_not(error: Exception) -> str:
    """Why a model is not loaded, after its name: transformers' reason, and whether it would have
    run code that came with it.
    """
    if isinstance(error, UnpicklingError):
        return (
            "has weights in a pickle that holds more than tensors, which could run code: name "
            "one with .safetensors"
        )
    if _wants_code(error):
        return (
            "needs code that comes with it (`auto_map`), which is never run: name a base of a "
            "kind that transformers knows itself"
        )
    # the first sentence; what follows is advice for library authors
    reason = " ".join(str(error).split()).split(". ")[0]
    return f"is no folder with a causal LM, and not to be had from a hub: {reason}"


def load_config(name: str) -> PretrainedConfig:
    """The configuration of a base, as `load_base` finds it. Raises BaseError."""
    source, revision = _locate(name)
    with _one_line(name):
        config = AutoConfig.from_pretrained(
            source, trust_remote_code=False, **({"revision": revision} if revision else {})
        )
    check_kernels(name, config)
    _check_kind(name, config)
    return config


def _check_kind(name: str, config: PretrainedConfig) -> None:
    """Raises BaseError for a model that does not write on from a text."""
    kind = None
    if getattr(config, "is_encoder_decoder", False):
        kind = "an encoder with a decoder"
    elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", True):
        kind = "an encoder (`is_decoder` is false)"
    elif type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        kind = "of a kind that transformers has no causal LM of"
    if kind:
        raise BaseError(f"base {name!r} ({config.model_type}) is {kind}; name a causal LM")


def check_cache(name: str) -> None:
    """Raises BaseError for a base that can be trained and not asked: ftk answers through a
    key-value cache. Its configuration alone is read.
    """
    architecture: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(load_config(name))]
    if "past_key_values" not in inspect.signature(architecture.forward).parameters:
        raise BaseError(
            f"base {name!r}: ftk answers through a key-value cache, and a "
            f"{architecture.__name__} has none; name another base"
        )


def check_kernels(name: str, config: PretrainedConfig) -> None:
    """Raises BaseError where a configuration asks for compiled code from a hub
    (`attn_implementation: org/kernel`).
    """
    for key in ("attn", "experts"):
        if "/" in str(getattr(config, f"_{key}_implementation", None)):
            raise BaseError(
                f"base {name!r} asks for code from a hub, which is never run: take "
                f"`{key}_implementation` out of its config.json"
            )


def width(config: PretrainedConfig) -> int:
    """Numbers that a token is in the base's layers; 0 where its configuration calls them otherwise
    than any other.
    """
    return int(getattr(config.get_text_config(), "hidden_size", 0))


def skeleton(name: str, whole: bool = False) -> Any | None:
    """A base without its weights, on the meta device: its modules, their names and shapes. None
    where its configuration is not on this machine or is of no causal LM. Raises BaseError where it
    names a folder that is not there.

    whole: of the class that its configuration names, which may be one for images too, instead of a
    causal LM.
    """
    source, revision = _locate(name)
    try:
        options = {"revision": revision} if revision else {}
        config = AutoConfig.from_pretrained(
            source, local_files_only=True, trust_remote_code=False, **options
        )
        check_kernels(name, config)
        with torch.device("meta"):
            if whole:
                return getattr(transformers, (config.architectures or [""])[0])(config)
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception:  # of code of its own architecture; what cannot be built cannot be asked
        return None


@lru_cache(maxsize=8)
def named_modules(name: str, whole: bool = False) -> Mapping[str, bool] | None:
    """Module of a base -> whether it holds a matrix; None where the base's configuration is not on
    this machine.

    whole: of the model of text and images that the configuration names, of which `skeleton` may
    take the model of text.
    """
    try:
        model = skeleton(name, whole)
    except BaseError:
        return None
    return (
        None
        if model is None
        else {
            name: getattr(getattr(m, "weight", None), "ndim", 0) == 2
            for name, m in model.named_modules()
        }
    )


def load_base(name: str, dtype: str = "float32", device: str = "cpu") -> Base:
    """Load a base: `embedded`, a folder, a hub id, or `id@revision`. dtype `auto`: see
    `fastest_dtype`; `nf4`: see `_four_bits`.

    Raises BaseError with one line when there is no such model, it has no end-of-sequence token, or
    a library is missing.
    """
    if dtype == "auto":
        dtype = fastest_dtype(width(load_config(name)), device)
    return _load(name, dtype, device)


def _four_bits(device: str) -> dict[str, Any]:
    """Linear layers in four bits, as QLoRA has them (NF4, scales quantised too; arXiv:2305.14314);
    the rest, and products, in 16 or 32.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BaseError("`dtype: nf4` needs bitsandbytes: pip install 'ftk[4bit]'")
    # it warns of a faster kernel that it would have fetched
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    compute = (
        torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    )
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": config, "dtype": compute, "device_map": {"": device}}


def _tokenizer(name: str, source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """Raises BaseError where there is none; of some kinds transformers makes an empty one then."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
            raise ValueError("it knows no text")
        # ftk counts tokens itself, and says in one line which prompt or row is too long
        tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = (
            True
        )
        return tokenizer
    except Exception as error:  # of libraries, which fail in whatever way they like
        if _wants_code(error):
            raise BaseError(f"base {name!r} {why_not(error)}") from None
        reason = " ".join(str(error).split()).split(". ")[0][:200]
        raise BaseError(
            f"base {name!r} has no tokenizer that can be read ({reason}); save its tokenizer there"
        ) from None


@lru_cache(maxsize=1)  # a worker process serves many stacks on one base
def _load(name: str, dtype: str, device: str) -> Base:
    source, revision = _locate(name)
    load_config(name)  # refuses what would run code
    transformers_logging.disable_progress_bar()  # every worker would draw one
    options: dict[str, Any] = {"revision": revision} if revision else {}
    packed = dtype == "nf4"
    kind = _four_bits(device) if packed else {"dtype": getattr(torch, dtype)}
    tokenizer = _tokenizer(name, source, options)
    with _one_line(name):
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, weights_only=True, **kind, **options
        )
    if model.get_output_embeddings() is None or model.get_input_embeddings() is None:
        raise BaseError(
            f"base {name!r}: a {type(model).__name__} has no output head over a "
            "vocabulary; choose a causal LM"
        )
    model = (model if packed else model.to(device)).eval().requires_grad_(False)
    for module in model.modules() if packed else ():
        if hasattr(
            module, "support_avx512bf16_for_cpu"
        ):  # it would pack itself anew in a pass without gradients, and round otherwise
            module.support_avx512bf16_for_cpu = False
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids or tokenizer.eos_token_id is None:
        raise BaseError(
            f"base {name!r}: its tokenizer has no end-of-sequence token; set `eos_token` "
            "in tokenizer_config.json"
        )
    return Base(
        name=name,
        source=source,
        revision=revision,
        model=model,
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        parameters=model.num_parameters(),
        sha256=_hash_weights(model),
        tokenizer_sha256=_hash_tokenizer(tokenizer),
    )
