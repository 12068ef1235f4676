"""Tokenizers and chat templates that tests make."""

from typing import Any

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from toolkit.data import (
    Example,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

USER, ASSISTANT = (
    {"role": "user", "content": "wake me at seven"},
    {"role": "assistant", "content": "alarm(seven)"},
)

SYSTEM = {"role": "system", "content": "you are a clock"}


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    """A byte-level BPE, as Qwen's and Llama-3's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=350,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        ["wake me at seven => alarm(seven)", "you are a clock", "### Instruction:"] * 20, trainer
    )
    return tokenizer


def make(bpe: Tokenizer, kind: str = "plain", **options: Any) -> Any:
    """A tokenizer of a kind: with a chat template, with BOS in front of every text, or with EOS
    behind every text.
    """
    backend = Tokenizer.from_str(bpe.to_str())
    special = [("<s>", backend.token_to_id("<s>")), ("</s>", backend.token_to_id("</s>"))]
    if "bos" in kind:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=special
        )
    if kind == "closes-prompts":
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=special
        )
    chat = kind.startswith("chat")
    options = {
        "bos_token": "<s>",
        "eos_token": "<|im_end|>" if chat else "</s>",
        "pad_token": "<pad>",
    } | options
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    if chat:
        tokenizer.chat_template = "{{ bos_token }}" + CHATML if "bos" in kind else CHATML
    return tokenizer


def learned(example: Example, tokenizer) -> str:
    return tokenizer.decode(
        [i for i, counts in zip(example.ids, example.loss_mask, strict=True) if counts]
    )
