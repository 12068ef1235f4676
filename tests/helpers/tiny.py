"""Tiny real models, built where they are needed: two layers, a few thousand parameters, no
download.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from toolkit.model.base import EMBEDDED

VOCABULARY = 64
_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
_GQA = {**_SHAPE, "num_key_value_heads": 2}


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )


MODELS = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_GQA)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_GQA, head_dim=8)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_GQA)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**_SHAPE)),
    "gpt2": _gpt2,
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_GQA)),
    "smollm3": lambda: SmolLM3ForCausalLM(
        SmolLM3Config(**_GQA, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    ),
}


def tiny_model(
    kind: str = "qwen2", dtype: torch.dtype = torch.float32, seed: int = 0
) -> PreTrainedModel:
    """A random model; weights larger than the default initialisation, so that attention and
    gradients are far from flat.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[kind]()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    model.config.bos_token_id = model.config.pad_token_id = None
    return model.to(dtype).eval()


def tiny_base(folder: Path, seed: int = 0) -> Path:
    """A random Qwen2 that reads and writes as the embedded base does: a folder that a recipe can
    name.
    """
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(
            Qwen2Config(**{**_GQA, "vocab_size": len(tokenizer), "max_position_embeddings": 256})
        )
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = model.config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def generated(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """`model.generate`, whose type in transformers fits no model."""
    return model.generate(ids, **options)
