"""Stacked training against a plain peft loop, on the embedded default, in one run; the last line is JSON.

Both train the same replicas (same initial adapters, same batches, same clipping and schedule) in one thread: the stack R at a time, the
loop one by one. Repeats are interleaved; the ratio is that of the medians. The gate comes first: the losses of both must agree to 1e-4.

    python benchmarks/train.py --out benchmarks/results/train.json
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_scheduler

from toolkit import environment, seeds
from toolkit.base import EMBEDDED, load_base
from toolkit.data import encode_rows, read_rows
from toolkit.plan import plan_training
from toolkit.recipe import Condition
from toolkit.stack import stacked
from toolkit.train import batch_rows, initial_factors, train_stack

CONDITION = Condition(rank=8, epochs=2, batch_size=16, lr=1e-2, warmup=15, clip=1.0)


def peft_loop(examples, plan, seed, steps, initial):
    """What a careful user writes: one adapter, batches padded to their longest row, loss on completions, clipping, schedule."""
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    config = LoraConfig(r=CONDITION.rank, lora_alpha=2 * CONDITION.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, config)
    for name, (A, _) in initial.items():
        model.base_model.model.get_submodule(name).lora_A["default"].weight.data.copy_(A[0])
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=CONDITION.lr, weight_decay=0.0, fused=True)
    scheduler = get_scheduler("linear", optimizer, plan.warmup_steps, plan.steps)
    losses = []
    start = time.perf_counter()
    for step in range(steps):
        batch = [examples[i] for i in batch_rows(plan, seed["order"], step) if i < plan.rows]
        length = max(len(e.ids) for e in batch)
        ids = torch.tensor([[*e.ids, *[0] * (length - len(e.ids))] for e in batch])
        mask = torch.tensor([[1] * len(e.ids) + [0] * (length - len(e.ids)) for e in batch])
        labels = torch.tensor(
            [[t if m else -100 for t, m in zip(e.ids, e.loss_mask, strict=True)] + [-100] * (length - len(e.ids)) for e in batch]
        )
        logits = model(input_ids=ids, attention_mask=mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CONDITION.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.perf_counter() - start, losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment.make_deterministic("cpu")
    base = load_base("embedded")
    examples = encode_rows(read_rows("embedded"), base.tokenizer, max_length=512)
    plan = plan_training(CONDITION, [len(e.ids) for e in examples], [sum(e.loss_mask) for e in examples], stack=None, device="cpu")
    seeds_R = [seeds.replica_seeds(0, r, seeds.SOURCES) for r in range(plan.stack)]
    with stacked(base.model) as stack:
        initial = initial_factors(stack, CONDITION.rank, [seeds_R[0]["init"]], torch.float32, torch.device("cpu"))

    def stack_seconds():
        marks = [time.perf_counter()]
        short = plan.__class__(**{**vars(plan), "steps": arguments.steps})  # the schedule of a short run, on both sides
        trained = train_stack(base.model, examples, CONDITION, short, seeds_R, on_step=lambda _: marks.append(time.perf_counter()))
        return marks[-1] - marks[0], trained.loss_SR[:, 0]

    short = plan.__class__(**{**vars(plan), "steps": arguments.steps})
    ours, theirs = [], []
    for repeat in range(arguments.repeats + 1):
        seconds, loss = stack_seconds()
        loop_seconds, loop_loss = peft_loop(examples, short, seeds_R[0], arguments.steps, initial)
        if repeat:  # the first warms both up
            ours.append(seconds / (plan.stack * arguments.steps))
            theirs.append(loop_seconds / arguments.steps)
    gap = float(np.max(np.abs(loss[:20] / np.array(loop_loss[:20]) - 1)))
    if gap > 1e-4:
        raise SystemExit(f"the two do not train the same replica: losses differ by {gap:.1e}")
    result = {
        "benchmark": "stacked training against a plain peft loop, embedded default, one thread",
        "stack": plan.stack,
        "steps": arguments.steps,
        "repeats": arguments.repeats,
        "largest_relative_loss_gap": gap,
        "stacked_replica_steps_per_second": 1 / statistics.median(ours),
        "peft_replica_steps_per_second": 1 / statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "ratio_by_repeat": [b / a for a, b in zip(ours, theirs, strict=True)],
        "environment": environment.describe("cpu"),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
