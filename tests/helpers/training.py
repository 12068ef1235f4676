"""Rows, plans and loops in which a stack is held to a plain training of one replica."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import get_scheduler

from helpers.tiny import VOCABULARY
from toolkit import seeds
from toolkit.data import Example
from toolkit.model.stack import CounterDropout, stacked
from toolkit.recipe import Condition
from toolkit.recipe.schedule import TrainingPlan, plan_training
from toolkit.train import batch_rows, initial_factors

VARY = ["init", "order", "dropout"]


def rows(n: int = 22, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for _ in range(n):
        ids = rng.integers(1, VOCABULARY, rng.integers(6, 13)).tolist()
        start = int(rng.integers(2, 5))
        examples.append(
            Example(ids, [t >= start for t in range(len(ids))], start, prompt="", completion="")
        )
    return examples


def plan_of(condition: Condition, examples: list[Example], stack: int = 4) -> TrainingPlan:
    lengths, targets = [len(e.ids) for e in examples], [sum(e.loss_mask[1:]) for e in examples]
    return plan_training(condition, lengths, targets, stack=stack, device="cpu")


def seeds_of(replicas, vary=VARY, root: int = 7):
    return [seeds.replica_seeds(root, r, vary) for r in replicas]


class GivenDropout(torch.nn.Module):
    """Stands where peft has nn.Dropout and applies the masks that the stack draws for one
    replica.
    """

    def __init__(self, stream: CounterDropout, module: int):
        super().__init__()
        self.stream, self.module = stream, module

    def forward(self, x):
        keep = self.stream.keep(self.module, x.shape[0] * x.shape[1], x.shape[2], x.dtype)
        return x * keep.view(x.shape) / (1 - self.stream.p)


def labels_loss(logits, labels, batch):
    """Cross-entropy, summed over the tokens that count."""
    return F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
    )


def peft_alone(model, examples, condition, plan, seed, steps, loss_of=labels_loss):
    """The reference: peft adapter, HF scheduler, torch clipping, the model's own masked forward on
    left-over padding.
    """
    names = list(_layers(model))
    dtype = next(model.parameters()).dtype
    with stacked(model) as stack:
        initial = initial_factors(stack, condition.rank, [seed["init"]], dtype, torch.device("cpu"))
    config = LoraConfig(
        r=condition.rank,
        lora_alpha=condition.alpha,
        use_rslora=condition.rslora,
        target_modules="all-linear",
        lora_dropout=0.1,
    )
    peft_model = get_peft_model(model, config, autocast_adapter_dtype=False).to(dtype)
    stream = CounterDropout(condition.dropout, torch.tensor([seed["dropout"]]))
    for index, name in enumerate(names):
        layer: Any = peft_model.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data.copy_(initial[name][0][0])
        layer.lora_B["default"].weight.data.zero_()
        layer.lora_dropout["default"] = (
            GivenDropout(stream, index) if condition.dropout else torch.nn.Identity()
        )
    parameters = [p for p in peft_model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=condition.lr, weight_decay=condition.weight_decay)
    schedule = {"constant": "constant_with_warmup"}.get(condition.schedule, condition.schedule)
    scheduler = get_scheduler(schedule, optimizer, plan.warmup_steps, plan.steps)
    losses, first_gradients = [], None
    for step in range(steps):
        order = batch_rows(plan, seed["order"], step)
        tokens = sum(sum(examples[i].loss_mask[1:]) for i in order if i < plan.rows)
        total = 0.0
        for micro in range(plan.accumulation):
            stream.step = step * plan.accumulation + micro
            batch = order[micro * plan.micro_batch : (micro + 1) * plan.micro_batch]
            ids = torch.zeros(len(batch), plan.length, dtype=torch.long)
            labels = torch.full((len(batch), plan.length), -100)
            for b, i in enumerate(batch):
                if i < plan.rows:
                    e = examples[i]
                    ids[b, : len(e.ids)] = torch.tensor(e.ids)
                    labels[b, : len(e.ids)] = torch.tensor(
                        [t if m else -100 for t, m in zip(e.ids, e.loss_mask, strict=True)]
                    )
            logits = peft_model(input_ids=ids).logits
            loss = loss_of(logits[:, :-1], labels[:, 1:], batch) / tokens
            loss.backward()
            total += loss.item()
        if first_gradients is None:
            first_gradients = {
                n: p.grad.clone() for n, p in peft_model.named_parameters() if p.requires_grad
            }
        torch.nn.utils.clip_grad_norm_(parameters, condition.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(total)
    weights = {
        name: tuple(
            peft_model.get_parameter(f"base_model.model.{name}.lora_{x}.default.weight").detach()
            for x in "AB"
        )
        for name in names
    }
    return losses, weights, first_gradients


def _layers(model):
    with stacked(model) as stack:
        return list(stack.layers)


REAL = {
    "rank": 4,
    "alpha": 8.0,
    "epochs": 7,
    "batch_size": 4,
    "gradient_accumulation": 2,
    "lr": 5e-3,
    "warmup": 3,
    "clip": 0.5,
    "weight_decay": 0.01,
    "schedule": "linear",
}


def same_bits(a, b) -> bool:
    return all(torch.equal(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))
