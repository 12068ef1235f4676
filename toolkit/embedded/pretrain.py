"""Pretrain the embedded base: `python -m toolkit.embedded.pretrain --out DIR`. Same machine, same
versions: the same bits.

A Qwen-style byte-level BPE and a Qwen2 model of half a million parameters, on text of the embedded
world that holds no request.
"""

import argparse
import hashlib
import itertools
import json
import os
import time
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from toolkit.embedded import world

EOS, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 1024
SEED, STEPS, ROWS, LENGTH, PEAK_LR = 0, 3000, 64, 48, 3e-3

# The pre-tokenizer of Qwen2, which transformers puts in for `model_type: qwen2` whatever
# tokenizer.json says.
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(lines: int = 20_000) -> Tokenizer:
    """A byte-level BPE tokenizer, trained on so many lines of the pretraining text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.islice(world.pretraining_text(SEED), lines), trainer)
    return tokenizer


def batches(tokenizer: Tokenizer, steps: int):
    """Lines end to end with an end-of-sequence token between them, cut into rows: [ROWS, LENGTH +
    1].
    """
    end = tokenizer.token_to_id(EOS)
    lines = world.pretraining_text(SEED + 1)
    stream: list[int] = []
    for _ in range(steps):
        while len(stream) < ROWS * (LENGTH + 1):
            for encoding in tokenizer.encode_batch(list(itertools.islice(lines, 256))):
                stream += [*encoding.ids, end]
        yield torch.tensor(stream[: ROWS * (LENGTH + 1)]).view(ROWS, LENGTH + 1)
        stream = stream[ROWS * (LENGTH + 1) :]


def new_model(eos: int | None, pad: int | None) -> Qwen2ForCausalLM:
    """A Qwen2 model of four layers with random weights, the same each time."""
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=eos,
        bos_token_id=None,
        pad_token_id=pad,
    )
    torch.manual_seed(SEED)
    return Qwen2ForCausalLM(config)


def pretrain(tokenizer: Tokenizer, steps: int) -> tuple[Qwen2ForCausalLM, float]:
    """AdamW, warm-up over a twentieth, linear decay to 0; returns the model and its loss over the
    last hundred steps.
    """
    model = new_model(tokenizer.token_to_id(EOS), tokenizer.token_to_id(PAD))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LR, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    warmup, losses = max(1, steps // 20), []
    for step, ids in enumerate(batches(tokenizer, steps)):
        rate = min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * rate
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 250 == 0:
            print(f"step {step}: loss {losses[-1]:.3f}", flush=True)
    last = losses[-100:]
    return model.eval(), sum(last) / len(last)


def save(out: Path, tokenizer: Tokenizer, model: Qwen2ForCausalLM, **record: object) -> None:
    """A normal Hugging Face folder, and pretrained.json: what it was made with and the hash of the
    weights.
    """
    out.mkdir(parents=True, exist_ok=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, model_max_length=256
    )
    fast.save_pretrained(out)
    settings = json.loads((out / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "Qwen2Tokenizer"
    (out / "tokenizer_config.json").write_text(
        json.dumps(settings, indent=2, sort_keys=True) + "\n"
    )
    model.generation_config = GenerationConfig(
        eos_token_id=model.config.eos_token_id, pad_token_id=model.config.pad_token_id
    )
    model.save_pretrained(out)
    # it must load as a user will load it
    AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    digest = hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
    versions = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }
    summary = {
        **record,
        "sha256": digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "versions": versions,
    }
    (out / "pretrained.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n")


def corpus_sha256(lines: int = 1000) -> str:
    """Hex digest of the first lines of the pretraining text: the same world, the same digest."""
    text = "\n".join(itertools.islice(world.pretraining_text(SEED + 1), lines))
    return hashlib.sha256(text.encode()).hexdigest()


def main() -> None:
    """Train tokenizer and model, and save both to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)  # the number of threads decides the order of sums
    start = time.monotonic()
    tokenizer = train_tokenizer()
    model, loss = pretrain(tokenizer, arguments.steps)
    save(
        arguments.out,
        tokenizer,
        model,
        seed=SEED,
        steps=arguments.steps,
        loss=round(loss, 4),
        corpus_sha256=corpus_sha256(),
        threads=1,
    )
    print(f"{arguments.out}: loss {loss:.4f}, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
