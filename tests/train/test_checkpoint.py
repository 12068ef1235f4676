"""A stack that goes on from a checkpoint ends with the bits of one that was never interrupted."""

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model
from helpers.training import REAL, plan_of, rows, seeds_of

from toolkit.recipe import Lookahead, LoraCondition, Snapshots
from toolkit.recipe.conditions import METHODS
from toolkit.train import Checkpoint, train_stack

ADAPTERS = {
    **REAL,
    "dropout": 0.1,
    "snapshots": Snapshots(count=4, start=0.0),
    "lookahead": Lookahead(k=3),
}
WHOLE = {
    **{key: value for key, value in REAL.items() if key not in ("rank", "alpha")},
    "method": "full",
    "snapshots": Snapshots(count=3),
}


class Interrupted(Exception):
    pass


def train(condition, path=None, *, mark="a", seconds=0.0, stop=None):
    examples = rows(seed=6)
    plan = plan_of(condition, examples)

    def on_step(step):
        if step == stop:
            raise Interrupted

    checkpoint = Checkpoint(path, mark, seconds) if path else None
    return train_stack(
        tiny_model(),
        examples,
        condition,
        plan,
        seeds_of(range(4)),
        checkpoint=checkpoint,
        on_step=on_step,
    )


def same(a, b):
    tensors = [(x, y) for n in a.factors for x, y in zip(a.factors[n], b.factors[n], strict=True)]
    tensors += [
        (x, y)
        for s, t in zip(a.snapshots, b.snapshots, strict=True)
        for n in s
        for x, y in zip(s[n], t[n], strict=True)
    ]
    arrays = ("loss_SR", "norm_SR", "lr_S", "row_SRB", "row_loss_SRB")
    return all(torch.equal(x, y) for x, y in tensors) and all(
        np.array_equal(getattr(a, n), getattr(b, n)) for n in arrays
    )


@pytest.mark.parametrize("keys", [ADAPTERS, WHOLE], ids=["adapters", "whole"])
def test_interrupted_twice_is_undisturbed_to_the_bit(tmp_path, keys):
    condition, path = METHODS[keys.get("method", "lora")](**keys), tmp_path / "stacks" / "s.pt"
    undisturbed = train(condition)
    for stop in (5, 11):
        with pytest.raises(Interrupted):
            train(condition, path, stop=stop)
    steps = []
    examples = rows(seed=6)
    plan = plan_of(condition, examples)
    resumed = train_stack(
        tiny_model(),
        examples,
        condition,
        plan,
        seeds_of(range(4)),
        checkpoint=Checkpoint(path, "a"),
        on_step=steps.append,
    )
    assert steps[0] == 12 and same(undisturbed, resumed)
    assert [f.name for f in path.parent.iterdir()] == ["s.pt"]


def test_what_is_not_its_own_or_broken_is_not_used(tmp_path):
    condition, path = LoraCondition(**REAL), tmp_path / "s.pt"
    undisturbed = train(condition)
    with pytest.raises(Interrupted):
        train(condition, path, mark="another", stop=4)
    assert Checkpoint(path, "a").load() is None and Checkpoint(path, "another").load() is not None
    assert same(undisturbed, train(condition, path, seconds=60.0))
    path.write_bytes(path.read_bytes()[:1000])
    assert Checkpoint(path, "another").load() is None
    assert same(undisturbed, train(condition, path, mark="another", seconds=60.0))


def test_short_stacks_write_none(tmp_path):
    with pytest.raises(Interrupted):
        train(LoraCondition(**REAL), tmp_path / "s.pt", seconds=60.0, stop=6)
    assert not (tmp_path / "s.pt").exists()
