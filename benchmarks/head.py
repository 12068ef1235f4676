"""Logits of a large vocabulary in pieces against all of them at once: seconds of a step and peak
memory; the last line is JSON.

A stack of four replicas on a narrow random base with the vocabulary of Qwen2.5, every token of 4
rows of 128 in the loss. Each way is a process of its own, one thread; ways take turns; figures are
medians of steps.

    python benchmarks/head.py --out benchmarks/results/head.json
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from result import finish

VOCABULARY, WIDTH, TOKENS, BATCH, STACK = 151_936, 256, 128, 4, 4


def one(dtype: str, in_pieces: bool, steps: int) -> dict[str, float]:
    """Train one stack in this process."""
    import numpy as np
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from toolkit import environment, seeds
    from toolkit.data import Example
    from toolkit.recipe import LoraCondition
    from toolkit.recipe.schedule import head_piece, plan_training
    from toolkit.train import train_stack

    environment.make_deterministic("cpu")
    torch.manual_seed(0)
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 704,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    model = (
        Qwen2ForCausalLM(Qwen2Config(**shape, vocab_size=VOCABULARY, tie_word_embeddings=True))
        .eval()
        .to(getattr(torch, dtype))
    )
    rng = np.random.default_rng(0)
    rows = [rng.integers(1, VOCABULARY, TOKENS).tolist() for _ in range(32)]
    examples = [
        Example(ids, [False] + [True] * (TOKENS - 1), 1, prompt="", completion="") for ids in rows
    ]
    condition = LoraCondition(rank=8, epochs=1, batch_size=BATCH, lr=1e-3)
    plan = plan_training(condition, [TOKENS] * 32, [TOKENS - 1] * 32, stack=STACK, device="cpu")
    plan = replace(plan, steps=steps, piece=head_piece(plan, VOCABULARY, "cpu") if in_pieces else 0)
    marks = [time.perf_counter()]
    trained = train_stack(
        model,
        examples,
        condition,
        plan,
        [seeds.replica_seeds(0, r, seeds.SOURCES) for r in range(STACK)],
        on_step=lambda _: marks.append(time.perf_counter()),
    )
    return {
        "seconds": statistics.median(np.diff(marks)[1:]),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "tokens_of_a_piece": plan.piece,
        "last_loss": float(trained.loss_SR[-1].mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", nargs=2, metavar=("DTYPE", "WAY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], arguments.one[1] == "pieces", arguments.steps)))
        return
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for _ in range(arguments.repeats):
        for dtype in ("float32", "bfloat16"):
            for way in ("whole", "pieces"):
                command = [
                    sys.executable,
                    __file__,
                    "--steps",
                    str(arguments.steps),
                    "--one",
                    dtype,
                    way,
                ]
                said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                found.setdefault(dtype, {}).setdefault(way, []).append(
                    json.loads(said.splitlines()[-1])
                )
    medians = {
        dtype: {
            way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for way, runs in ways.items()
        }
        for dtype, ways in found.items()
    }
    for dtype, ways in medians.items():
        if abs(ways["whole"]["last_loss"] / ways["pieces"]["last_loss"] - 1) > (
            1e-5 if dtype == "float32" else 1e-2
        ):
            raise SystemExit(f"{dtype}: the losses differ: {ways}")
    result = {
        "benchmark": f"a step of {STACK} replicas, {BATCH} rows of {TOKENS}, "
        f"vocabulary {VOCABULARY}, "
        f"width {WIDTH}; one thread",
        "medians": medians,
        "ratio": {
            d: {key: w["whole"][key] / w["pieces"][key] for key in ("seconds", "peak_gib")}
            for d, w in medians.items()
        },
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
