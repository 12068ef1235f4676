"""The controls of a condition: each does to a stacked replica what it does in a plain loop, and
nothing to a condition without it.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import MODELS, tiny_model
from helpers.training import plan_of, rows, seeds_of
from peft import LoraConfig, get_peft_model

from toolkit.model.full import stacked_whole
from toolkit.model.stack import stacked
from toolkit.pipeline.preview import check
from toolkit.recipe import (
    FullCondition,
    Lookahead,
    LoraCondition,
    Snapshots,
    load_recipe,
    parse_recipe,
)
from toolkit.recipe.conditions import METHODS, LaterKey, marked
from toolkit.recipe.schedule import learning_rate, plan_training, snapshot_steps
from toolkit.record.population import fingerprint
from toolkit.train import batch_rows, initial_factors, train_stack
from toolkit.train.initial import flip_last_bits
from toolkit.train.optimise import layer_rate
from toolkit.train.save import average_weights

LATER = marked(LaterKey, *METHODS.values())

SHORT = {"epochs": 2, "batch_size": 4, "lr": 5e-3, "warmup": 2, "clip": 0.5}
LORA = {**SHORT, "rank": 4, "alpha": 8.0}
FULL = {**SHORT, "method": "full"}


def alone(model, examples, condition, plan, seed, rate_of, origin=None):
    """A plain PyTorch loop over the parameters that require a gradient: AdamW, Lookahead as its
    paper has it, decay towards `origin`.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    groups = [{"params": [p], "rate": rate_of(name)} for name, p in named.items()]
    adam = torch.optim.AdamW(
        groups, lr=condition.lr, weight_decay=0.0 if origin else condition.weight_decay
    )
    slow = {name: p.detach().clone() for name, p in named.items()}
    losses = []
    for step in range(plan.steps):
        batch = [examples[i] for i in batch_rows(plan, seed["order"], step) if i < plan.rows]
        total, count = torch.zeros(()), sum(sum(e.loss_mask[1:]) for e in batch)
        for e in batch:
            logits = model(input_ids=torch.tensor([e.ids])).logits[0, :-1]
            target = torch.tensor(
                [t if m else -100 for t, m in zip(e.ids, e.loss_mask, strict=True)]
            )[1:]
            total = total + (
                F.cross_entropy(
                    logits, target, reduction="sum", label_smoothing=condition.label_smoothing
                )
                / count
            )
        total.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), condition.clip)
        lr = learning_rate(step, plan, condition)
        for group in adam.param_groups:
            group["lr"] = lr * group["rate"]
        with torch.no_grad():
            for name, p in named.items() if origin else ():
                p -= lr * rate_of(name) * condition.weight_decay * (p - origin[name])
            adam.step()
            adam.zero_grad()
            if condition.lookahead and (
                (step + 1) % condition.lookahead.k == 0 or step + 1 == plan.steps
            ):
                for name, p in named.items():
                    slow[name] += condition.lookahead.alpha * (p - slow[name])
                    p.copy_(slow[name])
        losses.append(total.item())
    return losses, {name: p.detach() for name, p in named.items()}


def lora_alone(kind, examples, condition, plan, seed, rate_of):
    model = tiny_model(kind, torch.float64)
    with stacked(model) as stack:
        start = initial_factors(
            stack,
            condition.rank,
            [seed["init"]],
            torch.float64,
            torch.device("cpu"),
            init=condition.init,
        )
    config = LoraConfig(r=condition.rank, lora_alpha=condition.alpha, target_modules="all-linear")
    peft_model = get_peft_model(model, config, autocast_adapter_dtype=False).to(torch.float64)
    for name, (A, B) in start.items():
        layer: Any = peft_model.get_submodule(f"base_model.model.{name}")
        layer.lora_A["default"].weight.data.copy_(A[0])
        layer.lora_B["default"].weight.data.copy_(B[0])
        layer.lora_A["default"].weight.requires_grad_("A" not in condition.freeze)
    losses, _ = alone(peft_model, examples, condition, plan, seed, rate_of)
    return losses, {
        name: tuple(
            peft_model.get_parameter(f"base_model.model.{name}.lora_{x}.default.weight").detach()
            for x in "AB"
        )
        for name in start
    }


CONTROLS = {
    "lookahead": {"lookahead": Lookahead(k=3, alpha=0.4)},
    "label smoothing": {"label_smoothing": 0.1},
    "layer-wise rates": {"layer_lr_decay": 0.5},
    "LoRA+": {"lr_ratio_B": 4.0},
    "A frozen": {"freeze": ["A"], "weight_decay": 0.1},
    "gaussian": {"init": "gaussian"},
    "orthogonal": {"init": "orthogonal", "weight_decay": 0.1},
    "cyclic": {"schedule": "cyclic", "snapshots": Snapshots(count=3, start=0.4)},
}


@pytest.mark.parametrize("control", CONTROLS)
def test_a_stacked_replica_with_a_control_equals_a_plain_peft_loop(control):
    condition = LoraCondition(**{**LORA, **CONTROLS[control]})
    examples = rows(11)
    plan, seeds_R = plan_of(condition, examples), seeds_of(range(4))
    trained = train_stack(tiny_model("qwen2", torch.float64), examples, condition, plan, seeds_R)

    def rate_of(name):
        block = int(name.split("layers.")[1][0])  # of two
        return condition.layer_lr_decay ** (1 - block) * (
            condition.lr_ratio_B if "lora_B" in name else 1
        )

    losses, weights = lora_alone("qwen2", examples, condition, plan, seeds_R[2], rate_of)
    np.testing.assert_allclose(trained.loss_SR[:, 2], losses, rtol=1e-9)
    for name, pair in weights.items():
        for mine, theirs in zip((x[2] for x in trained.factors[name]), pair, strict=True):
            assert (mine - theirs).norm() <= 1e-9 * theirs.norm(), name
    plain = train_stack(
        tiny_model("qwen2", torch.float64), examples, LoraCondition(**LORA), plan, seeds_R
    )
    assert not np.allclose(plain.loss_SR[-1], trained.loss_SR[-1], rtol=1e-6)  # it does something


@pytest.mark.parametrize("kind", MODELS)
def test_stacked_full_fine_tuning_equals_a_plain_loop(kind):
    condition = FullCondition(
        **FULL, layer_lr_decay=0.8, weight_decay=0.1, lookahead=Lookahead(k=3)
    )
    examples = rows(11)
    plan, seeds_R = plan_of(condition, examples), seeds_of(range(4), ["order"])
    model = tiny_model(kind, torch.float64)
    before = copy.deepcopy(model.state_dict())
    trained = train_stack(model, examples, condition, plan, seeds_R)
    # the base is given back
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    origin = {name: p.detach().clone() for name, p in model.named_parameters()}
    blocks = {"embed": -1, "wte": -1, "wpe": -1, ".0.": 0}

    def rate_of(name):
        return 0.8 ** (1 - next((depth for part, depth in blocks.items() if part in name), 1))

    one = tiny_model(kind, torch.float64).requires_grad_(True)
    losses, weights = alone(one, examples, condition, plan, seeds_R[1], rate_of, origin)
    np.testing.assert_allclose(trained.loss_SR[:, 1], losses, rtol=1e-9)
    assert set(weights) == set(trained.factors)
    for name, W in weights.items():
        assert (trained.factors[name][0][1] - W).norm() <= 1e-9 * W.norm(), name


def test_full_fine_tuning_of_a_narrow_base_keeps_wide_weights():
    """The base computes in bfloat16; what is trained is float32, so that steps below its last digit
    add up.
    """
    condition = FullCondition(**{**FULL, "lr": 1e-5})
    examples = rows(11)
    trained = train_stack(
        tiny_model("qwen2", torch.bfloat16),
        examples,
        condition,
        plan_of(condition, examples),
        seeds_of(range(4)),
    )
    base = dict(tiny_model("qwen2", torch.bfloat16).named_parameters())
    name = "model.layers.0.mlp.up_proj.weight"
    W = trained.factors[name][0][0]
    assert W.dtype == torch.float32 and not torch.equal(W, base[name].float())
    assert trained.failed_step(0) is None and (W - base[name].float()).abs().max() < 1e-3


def same(a, b, slot, other):
    return all(
        torch.equal(x[slot], y[other]) for name in a for x, y in zip(a[name], b[name], strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [
        FULL,
        {
            **LORA,
            "lookahead": Lookahead(),
            "init": "orthogonal",
            "lr_ratio_B": 2.0,
            "layer_lr_decay": 0.7,
            "label_smoothing": 0.1,
        },
    ],
    ids=["full", "lora"],
)
def test_neighbours_do_not_matter_to_the_bit(settings):
    condition = METHODS[settings.get("method", "lora")](**settings)
    examples = rows(11)
    plan = plan_of(condition, examples)
    model = tiny_model("qwen2")
    together = train_stack(model, examples, condition, plan, seeds_of([0, 1, 2, 3]))
    others = train_stack(model, examples, condition, plan, seeds_of([3, 9, 0, 1]))
    for replica, slot in ((3, 0), (0, 2), (1, 3)):
        assert same(together.factors, others.factors, replica, slot)
    assert not same(together.factors, together.factors, 0, 1)


def test_a_full_replica_that_diverges_harms_no_other():
    condition = FullCondition(**FULL)
    examples = rows(11)
    plan, model = plan_of(condition, examples), tiny_model("qwen2")
    healthy = train_stack(model, examples, condition, plan, seeds_of(range(4)))
    with pytest.MonkeyPatch.context() as patch:
        from toolkit.model.full import FullStack

        def poisoned(stack, R, dtype, copies=FullStack.copies):
            weights = copies(stack, R, dtype)
            next(iter(weights.values()))[0].data[2] = float("nan")
            return weights

        patch.setattr(FullStack, "copies", poisoned)
        sick = train_stack(model, examples, condition, plan, seeds_of(range(4)))
    assert sick.failed_step(2) == 0 and sick.failed_step(1) is None
    assert all(same(healthy.factors, sick.factors, r, r) for r in (0, 1, 3))


def test_without_a_source_that_varies_all_full_replicas_are_one():
    condition = FullCondition(**FULL)
    examples = rows(11)
    plan, model = plan_of(condition, examples), tiny_model("qwen2")
    held = train_stack(model, examples, condition, plan, seeds_of(range(4), ["init", "dropout"]))
    assert all(same(held.factors, held.factors, 0, r) for r in (1, 2, 3))


def test_a_base_with_weights_of_another_kind_is_refused():
    model = tiny_model("qwen2")
    model.model.layers[0].mlp.gate = torch.nn.Parameter(torch.zeros(2))
    with (
        pytest.raises(ValueError, match=r"model\.layers\.0\.mlp \(Qwen2MLP\) has 'gate'"),
        stacked_whole(model),
    ):
        pass


@pytest.mark.parametrize("init", ["kaiming", "gaussian", "orthogonal"])
def test_adapters_begin_as_those_of_peft_do(init):
    """The same law of the draws, and no change of the base; peft draws from a global state, so not
    the same numbers.
    """
    model, rank = tiny_model("qwen2"), 8
    with stacked(model) as stack:
        mine = initial_factors(
            stack, rank, list(range(40)), torch.float32, torch.device("cpu"), init=init
        )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = [
            get_peft_model(
                tiny_model("qwen2"),
                LoraConfig(
                    r=rank,
                    target_modules="all-linear",
                    init_lora_weights=True if init == "kaiming" else init,
                ),
            )
            for _ in range(10)
        ]
    name = "model.layers.0.mlp.down_proj"
    A, B = mine[name]
    assert (B @ A).abs().max() < 1e-5
    for x, side in ((A, "lora_A"), (B, "lora_B")):
        reference = torch.stack(
            [
                one.get_parameter(f"base_model.model.{name}.{side}.default.weight").detach()
                for one in made
            ]
        )
        assert x[0].shape == reference[0].shape
        assert float(x.std()) == pytest.approx(float(reference.std()), rel=0.1)
        assert float(x.abs().max()) == pytest.approx(float(reference.abs().max()), rel=0.5)
    assert not torch.equal(A[0], A[1])


def test_lookahead_of_one_step_and_all_the_way_is_no_lookahead():
    examples = rows(11)
    plain, idle = LoraCondition(**LORA), LoraCondition(**LORA, lookahead=Lookahead(k=1, alpha=1.0))
    plan = plan_of(plain, examples)
    a, b = (
        train_stack(tiny_model("qwen2", torch.float64), examples, c, plan, seeds_of(range(4)))
        for c in (plain, idle)
    )
    for name, pair in a.factors.items():
        for x, y in zip(pair, b.factors[name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_a_cycle_ends_low_at_every_snapshot_and_begins_high_after_it():
    condition = LoraCondition(
        **{**LORA, "epochs": 10, "warmup": 0},
        schedule="cyclic",
        cycle_floor=0.1,
        snapshots=Snapshots(count=4, start=0.5),
    )
    plan = plan_of(condition, rows(16))
    rates = [learning_rate(step, plan, condition) for step in range(plan.steps)]
    ends = snapshot_steps(plan, 4, 0.5)
    assert plan.steps == 40 and ends == [25, 30, 35, 40]
    assert rates[:20] == [condition.lr] * 20
    for end in ends:
        assert rates[end - 1] == pytest.approx(0.1 * condition.lr)
        assert np.diff(rates[end - 5 : end]) == pytest.approx([-0.18 * condition.lr] * 4)


def test_averages_are_of_the_snapshots_that_they_say():
    condition = LoraCondition(
        **LORA, snapshots=Snapshots(count=6), averages=["swa", "ema", "lawa"], lawa_last=2
    )
    found = average_weights(condition, 6)
    assert found["swa"] == [1 / 6] * 6 and found["lawa-last2"] == [0, 0, 0, 0, 0.5, 0.5]
    assert sum(found["ema"]) == pytest.approx(1)


def test_blocks_below_learn_slower():
    model = tiny_model("qwen2")
    names = [
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "model.norm.weight",
    ]
    assert [layer_rate(model, name, 0.5) for name in names] == [0.25, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_bit_of_one_weight_is_flipped_by_the_seed_of_its_own(dtype):
    def start():
        with stacked(tiny_model("qwen2")) as stack:
            return initial_factors(stack, 4, [1] * 4, dtype, torch.device("cpu"))

    plain, flipped, again = start(), start(), start()
    flip_last_bits(flipped, [5, 6, 7, 8])
    flip_last_bits(again, [9, 6, 10, 11])
    for r in range(4):
        changed = [
            (x[r], y[r])
            for name in plain
            for x, y in zip(plain[name], flipped[name], strict=True)
            if not torch.equal(x[r], y[r])
        ]
        assert len(changed) == 1
        before, after = (x[changed[0][0] != changed[0][1]] for x in changed[0])
        assert len(before) == 1 and abs(float(after - before)) <= torch.finfo(dtype).eps * abs(
            float(before)
        )
    assert same(flipped, again, 1, 1) and not same(flipped, again, 0, 0)


# -- recipes -------------------------------------------------------------------------------------

RECIPE = (
    "base: embedded\ndata: {train: embedded}\nconditions:\n  lora: {lr: 1e-3, dropout: 0.1}\n "
    " other: "
)


def test_an_older_condition_keeps_its_fingerprint():
    """What this condition was written as before there were controls; a replica that is on disk is
    named by a hash of it.
    """
    known = {
        "method": "lora",
        "rank": 8,
        "alpha": None,
        "rslora": False,
        "dropout": 0.0,
        "targets": "all-linear",
        "epochs": 2,
        "batch_size": 16,
        "gradient_accumulation": 1,
        "lr": 2e-4,
        "schedule": "linear",
        "warmup": 0.03,
        "clip": 1.0,
        "weight_decay": 0.0,
        "betas": [0.9, 0.999],
        "eps": 1e-8,
        "snapshots": None,
        "averages": [],
        "ema_decay": 0.7,
        "replicas": None,
        "vary": None,
        "crossed": {},
        "repeats": 1,
    }
    assert LoraCondition().model_dump() == known
    used = {
        "init": "gaussian",
        "freeze": ["A"],
        "layer_lr_decay": 0.9,
        "lookahead": Lookahead(),
        "label_smoothing": 0.1,
        "dtype": "float64",
        "stack": 8,
        "threads": 2,
        "perturb": "bit",
    }
    assert set(used) < LATER
    marks = [fingerprint(LoraCondition(**{key: value}).model_dump()) for key, value in used.items()]
    assert len({*marks, fingerprint(known)}) == len(marks) + 1


@pytest.mark.parametrize(
    "other,says",
    [
        ("{method: full, rank: 4}", "'rank' is about adapters, and `method: full` has none"),
        ("{method: full, crossed: {init: 2, order: 2}}", "all levels of init are alike"),
        ("{method: full, vary: [init]}", "vary `order`, or nothing at all"),
        ("{schedule: cyclic}", "add `snapshots: {count: 8}`"),
        ("{cycle_floor: 0.5}", "'cycle_floor' belongs to `schedule: cyclic`"),
        ("{init: orthogonal, rank: 3}", "3 is odd"),
        ("{freeze: [A], lr_ratio_B: 2}", "`freeze: [A]` holds A"),
        ("{freeze: [B]}", "should be 'A'"),
        ("{lawa_last: 3}", "'lawa_last' belongs to `averages: [lawa]`"),
        (
            "{averages: [lawa], snapshots: {count: 3}}",
            "'lawa_last' (5) is more than the 3 snapshots",
        ),
        (
            "{lookahead: {k: 5, alfa: 0.5}}",
            "unknown key 'alfa' in 'conditions.other.lookahead'; did you mean 'alpha'?",
        ),
        ("{perturb: byte}", "should be 'bit'"),
        (
            "{method: distill, teacher: {condition: third, ensemble: probabilities, k: 2}}\n "
            " third: {method: full}",
            "trains all weights",
        ),
        (
            "{method: full}\nmitigations: [{merge: mean, k: 2, rank: same}]",
            "a rank is for adapters",
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(other, says):
    from toolkit.recipe import RecipeError

    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE + other, "r.yaml")
    assert (
        says in str(caught.value)
        and "\n" not in str(caught.value)
        and str(caught.value).startswith("r.yaml:")
    )


def test_the_recipes_of_all_controls_are_fit_to_run():
    """`ftk check` takes them, they begin alike, and no two conditions of all are the same."""
    recipes = [
        load_recipe(path)
        for path in sorted((Path(__file__).parents[2] / "recipes" / "controls").glob("*.yaml"))
    ]
    found = [check(recipe, probe=False)["conditions"] for recipe in recipes]
    assert all(
        set(one) == set(recipe.conditions) for one, recipe in zip(found, recipes, strict=True)
    )
    assert sum(one["full"]["trained_parameters"] for one in found if "full" in one) == 505_440
    first = {
        json.dumps(recipe.trained["lora"].model_dump(exclude={"snapshots", "averages"}))
        for recipe in recipes
    }
    assert len(first) == 1 and all(next(iter(recipe.conditions)) == "lora" for recipe in recipes)
    others = [
        (name, c, recipe)
        for recipe in recipes
        for name, c in recipe.trained.items()
        if name != "lora"
    ]
    written = {
        json.dumps([c.model_dump(exclude={"snapshots", "averages"}), recipe.vary_of(name)])
        for name, c, recipe in others
    }
    # `constant` stands in two recipes
    assert len(others) > 30 and len(written | first) in (
        len(others),
        len(others) + 1,
    )
    used = {key for _, c, _ in others for key in c.model_dump()}
    # the first two only tune another
    assert {key for key in LATER if key not in ("cycle_floor", "lawa_last", "rows")} <= used


def test_full_takes_over_from_adapters_what_is_not_theirs():
    recipe = parse_recipe(
        RECIPE.replace("dropout", "epochs: 3, dropout") + "{from: lora, method: full}", "r.yaml"
    )
    other = recipe.trained["other"]
    assert (other.method, other.epochs, other.lr) == ("full", 3, 2e-5)
    assert (
        "rank" not in other.model_dump()
        and parse_recipe(RECIPE + str(other.model_dump(exclude_none=True)), "r.yaml").trained[
            "other"
        ]
        == other
    )


def test_a_large_base_is_trained_alone():
    condition, lengths = FullCondition(method="full"), [20] * 100

    def width(parameters, **asked):
        settings = FullCondition(method="full", **asked)
        return plan_training(
            settings, lengths, lengths, stack=None, device="cpu", parameters=parameters
        ).stack

    assert (
        width(500_000)
        == plan_training(LoraCondition(), lengths, lengths, stack=None, device="cpu").stack
    )
    assert width(20_000_000) == 4
    assert width(500_000_000) == 1
    assert width(500_000_000, stack=2) == 2
    assert condition.lr == 2e-5 and LoraCondition().lr == 2e-4
