"""Training laws: a replica of a stack is what plain peft + PyTorch would make of it, whoever its
neighbours are.
"""

import numpy as np
import pytest
import torch
from helpers.tiny import MODELS, tiny_model
from helpers.training import (
    REAL,
    VARY,
    peft_alone,
    plan_of,
    rows,
    same_bits,
    seeds_of,
)

from toolkit import seeds
from toolkit.model.stack import CounterDropout, stacked
from toolkit.recipe import LoraCondition, Snapshots
from toolkit.train import batch_rows, initial_factors, train_stack


@pytest.mark.parametrize(
    ("kind", "dropout"),
    [
        *((kind, 0.2) for kind in MODELS),
        *((kind, 0.0) for kind in ("qwen2", "gpt2")),
        *(
            pytest.param(kind, 0.0, marks=pytest.mark.slow)
            for kind in MODELS
            if kind not in ("qwen2", "gpt2")
        ),
    ],
)
def test_stacked_equals_peft_float64(kind, dropout):
    condition = LoraCondition(**REAL, dropout=dropout)
    examples = rows()
    plan = plan_of(condition, examples)
    # a last batch that is not full
    assert plan.steps >= 20 and plan.rows % (plan.micro_batch * plan.accumulation)
    seeds_R = seeds_of(range(4))
    trained = train_stack(tiny_model(kind, torch.float64), examples, condition, plan, seeds_R)
    for r in (0, 3):
        losses, weights, _ = peft_alone(
            tiny_model(kind, torch.float64), examples, condition, plan, seeds_R[r], plan.steps
        )
        np.testing.assert_allclose(trained.loss_SR[:, r], losses, rtol=1e-9)
        for name, (A, B) in weights.items():
            for mine, theirs in zip(
                (trained.factors[name][0][r], trained.factors[name][1][r]), (A, B), strict=True
            ):
                assert (mine - theirs).norm() <= 1e-9 * theirs.norm(), name


@pytest.mark.parametrize("kind", ["qwen2", "gpt2"])
@pytest.mark.parametrize("schedule,rslora", [("cosine", True), ("constant", False)])
def test_stacked_equals_peft_float32(kind, schedule, rslora):
    condition = LoraCondition(**{**REAL, "schedule": schedule, "rslora": rslora})
    examples = rows(seed=1)
    plan = plan_of(condition, examples)
    seeds_R = seeds_of(range(4))
    trained = train_stack(tiny_model(kind), examples, condition, plan, seeds_R)
    losses, _, _ = peft_alone(tiny_model(kind), examples, condition, plan, seeds_R[2], plan.steps)
    np.testing.assert_allclose(trained.loss_SR[:20, 2], losses[:20], rtol=1e-4)


def test_gradients_of_one_step_float32():
    condition = LoraCondition(**{**REAL, "clip": 0.0, "gradient_accumulation": 1})
    examples = rows(seed=2)
    plan = plan_of(condition, examples)
    seeds_R = seeds_of(range(4))
    _, _, gradients = peft_alone(
        tiny_model(), examples, condition.model_copy(update={"clip": 1e9}), plan, seeds_R[1], 1
    )
    trained = train_stack(tiny_model(), examples, condition, plan, seeds_R)
    theirs = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
    assert trained.norm_SR[0, 1] == pytest.approx(float(theirs), rel=1e-5)


def stack_bits(seeds_R, examples, condition, plan):
    trained = train_stack(tiny_model(), examples, condition, plan, seeds_R)
    return [
        {n: (A[r].clone(), B[r].clone()) for n, (A, B) in trained.factors.items()}
        for r in range(len(seeds_R))
    ], trained


def test_neighbours_do_not_matter_to_the_bit():
    condition = LoraCondition(**REAL, dropout=0.1)
    examples = rows(seed=3)
    plan = plan_of(condition, examples)
    together, _ = stack_bits(seeds_of([0, 1, 2, 3]), examples, condition, plan)
    permuted, _ = stack_bits(seeds_of([3, 0, 9, 1]), examples, condition, plan)
    for replica, slot in ((3, 0), (0, 1), (1, 3)):
        assert same_bits(together[replica], permuted[slot])
    wider, _ = stack_bits(seeds_of(range(8)), examples, condition, plan)
    for name, (A, B) in together[1].items():
        torch.testing.assert_close(wider[1][name][0], A, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(wider[1][name][1], B, rtol=1e-2, atol=1e-3)


def test_a_replica_that_diverges_harms_no_other():
    condition = LoraCondition(**REAL)
    examples = rows(seed=4)
    plan = plan_of(condition, examples)
    healthy, _ = stack_bits(seeds_of(range(4)), examples, condition, plan)
    with pytest.MonkeyPatch.context() as patch:
        from toolkit.train import initial

        def poisoned(*args, **options):
            factors = initial_factors(*args, **options)
            next(iter(factors.values()))[0].data[2] = float("nan")
            return factors

        patch.setattr(initial, "initial_factors", poisoned)
        sick, trained = stack_bits(seeds_of(range(4)), examples, condition, plan)
    assert trained.failed_step(2) == 0 and trained.failed_step(1) is None
    for r in (0, 1, 3):
        assert same_bits(healthy[r], sick[r])


def test_each_seed_moves_its_own_source_only():
    examples = rows()
    condition = LoraCondition(**REAL)
    plan = plan_of(condition, examples)
    a, b = seeds.replica_seeds(0, 5, VARY), seeds.replica_seeds(0, 5, ["order"])
    assert a["order"] == b["order"] and a["init"] != b["init"]
    held = [seeds.replica_seeds(0, r, ["order"]) for r in (1, 2)]
    assert held[0]["init"] == held[1]["init"] and held[0]["order"] != held[1]["order"]
    with stacked(tiny_model()) as stack:
        first, second = (
            initial_factors(stack, 4, [s["init"]], torch.float32, torch.device("cpu")) for s in held
        )
    assert all(torch.equal(first[n][0], second[n][0]) for n in first)
    assert not np.array_equal(
        batch_rows(plan, held[0]["order"], 0), batch_rows(plan, held[1]["order"], 0)
    )
    assert np.array_equal(batch_rows(plan, a["order"], 3), batch_rows(plan, b["order"], 3))


def test_an_epoch_shows_every_row_once():
    examples = rows()
    plan = plan_of(LoraCondition(**REAL), examples)
    for epoch in range(2):
        shown = np.concatenate(
            [
                batch_rows(plan, 11, epoch * plan.steps_per_epoch + s)
                for s in range(plan.steps_per_epoch)
            ]
        )
        assert sorted(shown[shown < plan.rows]) == list(range(plan.rows))


def test_dropout_masks_are_fair_and_keyed():
    stream = CounterDropout(0.3, torch.tensor([1, 2]))
    mask = stream.keep(0, 500, 64)
    assert mask.mean(dim=(1, 2)).sub(0.7).abs().max() < 0.01  # 32,000 draws: SE 0.0026
    assert mask.mean(dim=1).std(1).max() < 2.5 * (0.21 / 500) ** 0.5  # no feature is special
    assert not torch.equal(mask[0], mask[1])
    alone = CounterDropout(0.3, torch.tensor([2])).keep(0, 500, 64)
    assert torch.equal(mask[1], alone[0])
    assert not torch.equal(stream.keep(1, 500, 64), mask)
    stream.step = 1
    assert not torch.equal(stream.keep(0, 500, 64), mask)
    both = torch.stack([mask[0].flatten().float(), mask[1].flatten().float()])
    assert torch.corrcoef(both)[0, 1].abs() < 0.02


def test_losses_per_row_add_up_and_snapshots_end_at_the_end():
    condition = LoraCondition(
        **{**REAL, "gradient_accumulation": 1}, snapshots=Snapshots(count=3, start=0.5)
    )
    examples = rows(seed=5)
    plan = plan_of(condition, examples)
    trained = train_stack(tiny_model(), examples, condition, plan, seeds_of(range(4)))
    counts = np.array([sum(e.loss_mask[1:]) for e in examples] + [0])[trained.row_SRB]
    np.testing.assert_allclose(
        (trained.row_loss_SRB * counts).sum(2) / counts.sum(2), trained.loss_SR, rtol=1e-5
    )
    assert len(trained.snapshots) == 3
    for name, (A, B) in trained.factors.items():
        assert torch.equal(trained.snapshots[-1][name][0], A) and torch.equal(
            trained.snapshots[-1][name][1], B
        )


def test_the_base_comes_back_unchanged():
    model = tiny_model()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    condition = LoraCondition(**REAL)
    examples = rows()
    train_stack(model, examples, condition, plan_of(condition, examples), seeds_of(range(4)))
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[n], after[n]) for n in before)
