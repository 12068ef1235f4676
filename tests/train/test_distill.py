"""Distillation laws: a student is what plain peft + PyTorch would make of its teacher, whoever its
neighbours and their teachers are.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model
from helpers.training import REAL, labels_loss, peft_alone, plan_of, rows, same_bits, seeds_of
from peft import PeftModel

from toolkit import environment
from toolkit.answer.ensemble import logits as geometric
from toolkit.answer.ensemble import probabilities as arithmetic
from toolkit.answer.predict import load_adapters
from toolkit.model.adapters import read_adapter, write_adapter
from toolkit.model.stack import stacked
from toolkit.pipeline import train_stacks
from toolkit.recipe import (
    Condition,
    DistilledCondition,
    LoraCondition,
    RecipeError,
    dump_recipe,
    parse_recipe,
)
from toolkit.recipe import Teacher as TeacherBlock
from toolkit.recipe.schedule import soft_target_bytes
from toolkit.train import token_losses, train_stack
from toolkit.train.distill import Teacher, group_log_probs

MEAN = {
    "probabilities": lambda p_KTV: p_KTV.mean(0),
    "logits": lambda p_KTV: p_KTV.log().mean(0).exp(),
    None: lambda p_KTV: p_KTV[0],
}
RULE = {"probabilities": arithmetic, "logits": geometric, None: None}
TEACHER = TeacherBlock(condition="lora", ensemble="probabilities", k=2)
SHORT = {"epochs": 2}
"""where every step is held against the same step of another training, and a few are as good as
many
"""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> list:
    """PEFT folders of adapters that change the tiny model visibly, of several ranks; the last one
    changes nothing.
    """
    folder = tmp_path_factory.mktemp("teachers")
    with stacked(tiny_model()) as stack:
        shapes = {
            name: (layer.in_features, layer.out_features) for name, layer in stack.layers.items()
        }
    names = {name.rsplit(".", 1)[-1] for name in shapes}
    for i, rank in enumerate((2, 3, 2, 4, 3, 2)):
        draw = torch.Generator().manual_seed(i)
        factors = {
            n: (torch.randn(rank, a, generator=draw) / a**0.5, torch.randn(b, rank, generator=draw))
            for n, (a, b) in shapes.items()
        }
        if i == 5:
            factors = {name: (A, 0 * B) for name, (A, B) in factors.items()}
        write_adapter(
            folder / str(i),
            factors,
            r=rank,
            alpha=0.5 * rank,
            target_modules=sorted(names),
            base="tiny",
        )
    return [folder / str(i) for i in range(6)]


def distilled(**changes) -> Condition:
    return DistilledCondition(**{**REAL, "method": "distill", "teacher": TEACHER, **changes})


def teacher(paths, rule="probabilities") -> Teacher:
    return Teacher(tuple(map(read_adapter, paths)), RULE[rule])


def peft_says(paths, examples, rule, temperature) -> list[torch.Tensor]:
    """p [T, V] at every token of every row: each member alone in peft, each row alone and unpadded;
    mixed, then tempered.
    """
    said = []
    for path in paths:
        member = PeftModel.from_pretrained(tiny_model(dtype=torch.float64), str(path)).double()
        with torch.no_grad():
            said.append(
                [member(input_ids=torch.tensor([e.ids])).logits[0].softmax(-1) for e in examples]
            )
    tempered = [
        MEAN[rule](torch.stack(p_K)) ** (1 / temperature) for p_K in zip(*said, strict=True)
    ]
    return [p / p.sum(-1, keepdim=True) for p in tempered]


def hinton(says, examples, temperature, mix):
    """The loss as the paper writes it, in probabilities."""

    def loss_of(logits, labels, batch):
        total = (1 - mix) * labels_loss(logits, labels, batch)
        q_BTV = (logits / temperature).softmax(-1)
        for b, i in enumerate(batch):
            if i < len(examples):
                counts = labels[b][: len(examples[i].ids) - 1] != -100
                p, q = says[i][:-1][counts], q_BTV[b][: len(examples[i].ids) - 1][counts]
                total = total + mix * temperature**2 * (p * (p / q).log()).sum()
        return total

    return loss_of


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("probabilities", {"dropout": 0.2}),
        ("probabilities", {"temperature": 3.0, "mix": 0.6}),
        ("logits", {"temperature": 2.0}),
        (None, {"mix": 0.5, "dropout": 0.2}),
    ],
)
def test_a_stacked_student_equals_peft_float64(adapters, rule, changes):
    condition, examples = distilled(**changes), rows()
    plan = plan_of(condition, examples)
    assert plan.steps >= 20
    groups = [adapters[:1], adapters[1:2]] if rule is None else [adapters[:2], adapters[2:5]]
    model, seeds_R = tiny_model(dtype=torch.float64), seeds_of(range(4))
    teachers_G = [teacher(group, rule) for group in groups]
    trained = train_stack(
        model, examples, condition, plan, seeds_R, teachers_R=[teachers_G[g] for g in (0, 1, 1, 0)]
    )
    for r, g in ((0, 0), (2, 1)):
        says = peft_says(groups[g], examples, rule, condition.temperature)
        loss_of = hinton(says, examples, condition.temperature, condition.mix)
        losses, weights, _ = peft_alone(
            tiny_model(dtype=torch.float64),
            examples,
            condition,
            plan,
            seeds_R[r],
            plan.steps,
            loss_of,
        )
        np.testing.assert_allclose(trained.loss_SR[:, r], losses, rtol=1e-9)
        for name, pair in weights.items():
            for mine, theirs in zip((x[r] for x in trained.factors[name]), pair, strict=True):
                assert (mine - theirs).norm() <= 1e-9 * theirs.norm(), name


def test_what_is_kept_is_what_is_computed_at_every_step(adapters):
    condition, examples = distilled(temperature=1.5, **SHORT), rows(seed=1)
    plan, model = plan_of(condition, examples), tiny_model(dtype=torch.float64)
    teachers_R = [teacher(adapters[:2])] * 2 + [teacher(adapters[2:4])] * 2
    kept, anew = (
        train_stack(
            model,
            examples,
            condition,
            plan,
            seeds_of(range(4)),
            teachers_R=teachers_R,
            keep_soft_targets=keep,
        )
        for keep in (True, False)
    )
    np.testing.assert_allclose(kept.loss_SR, anew.loss_SR, rtol=1e-9)
    for name, pair in kept.factors.items():
        for one, other in zip(pair, anew.factors[name], strict=True):
            assert (one - other).norm() <= 1e-9 * one.norm()


@pytest.mark.skipif(environment.compiler() is None, reason="no C++ compiler here")
def test_a_student_in_compiled_layers_hears_the_same_teacher(adapters):
    """The teacher's adapters take the places of the student's in the layers that are compiled."""
    condition, examples = distilled(dropout=0.1, **SHORT), rows(seed=1)
    plan, model = plan_of(condition, examples), tiny_model(dtype=torch.float64)
    teachers_R = [teacher(adapters[:2])] * 2 + [teacher(adapters[2:4])] * 2

    def losses(compiled: bool, keep: bool) -> np.ndarray:
        how = {"teachers_R": teachers_R, "keep_soft_targets": keep}
        return train_stack(
            model, examples, condition, replace(plan, compiled=compiled), seeds_of(range(4)), **how
        ).loss_SR

    eager, compiled = losses(False, True), losses(True, False)
    # compiled attention has its softmax in float32
    np.testing.assert_allclose(compiled, eager, rtol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_neighbours_and_their_teachers_do_not_matter_to_the_bit(adapters, keep):
    condition, examples = distilled(dropout=0.1, **SHORT), rows(seed=2)
    plan = plan_of(condition, examples)

    def bits(replicas, groups):
        teachers = {group: teacher([adapters[i] for i in group]) for group in dict.fromkeys(groups)}
        trained = train_stack(
            tiny_model(),
            examples,
            condition,
            plan,
            seeds_of(replicas),
            teachers_R=[teachers[group] for group in groups],
            keep_soft_targets=keep,
        )
        return [
            {n: (A[r].clone(), B[r].clone()) for n, (A, B) in trained.factors.items()}
            for r in range(len(replicas))
        ]

    together = bits([0, 1, 2, 3], [(0, 1), (2, 3), (0, 1), (3, 4)])
    elsewhere = bits([8, 0, 3, 1], [(1, 2), (0, 1), (3, 4), (2, 3)])
    for replica, slot in ((0, 1), (3, 2), (1, 3)):
        assert same_bits(together[replica], elsewhere[slot])
    other_teacher = bits([0, 1, 2, 3], [(0, 2), (2, 3), (0, 1), (3, 4)])
    assert not same_bits(together[0], other_teacher[0]) and same_bits(together[2], other_teacher[2])


def test_a_teacher_that_is_the_start_teaches_nothing(adapters):
    """The last adapter changes nothing, as a fresh student: the loss and its gradient are 0, and
    Adam stands still.
    """
    condition, examples = distilled(weight_decay=0.0, **SHORT), rows(seed=3)
    plan, model = plan_of(condition, examples), tiny_model(dtype=torch.float64)
    for members in (adapters[5:], [adapters[5]] * 3):
        trained = train_stack(
            model, examples, condition, plan, seeds_of(range(4)), teachers_R=[teacher(members)] * 4
        )
        assert trained.loss_SR[0].max() < 1e-14 and trained.norm_SR[0].max() < 1e-13
    moved = train_stack(
        model, examples, condition, plan, seeds_of(range(4)), teachers_R=[teacher(adapters[:1])] * 4
    )
    assert moved.norm_SR[0].min() > 1e-3


def test_without_the_teachers_share_it_is_plain_training_bit_for_bit(adapters):
    examples, plain = rows(seed=4), LoraCondition(**{**REAL, **SHORT}, dropout=0.1)
    plan, seeds_R = plan_of(plain, examples), seeds_of(range(4))
    lora = train_stack(tiny_model(), examples, plain, plan, seeds_R)
    student = distilled(dropout=0.1, mix=0.0, **SHORT)
    same = train_stack(
        tiny_model(), examples, student, plan, seeds_R, teachers_R=[teacher(adapters[:2])] * 4
    )
    assert np.array_equal(lora.loss_SR, same.loss_SR) and same_bits(lora.factors, same.factors)


@pytest.mark.parametrize("rule", ["probabilities", "logits"])
def test_k_copies_of_an_adapter_say_what_it_says(adapters, rule):
    ids, position = (
        torch.randint(1, 64, (3, 9), generator=torch.Generator().manual_seed(0)),
        torch.tensor([[2, 5]] * 3),
    )
    said = []
    with stacked(tiny_model(dtype=torch.float64)) as stack:
        for one in (
            teacher(adapters[:1], None),
            teacher([adapters[0]] * 4, rule),
            Teacher((None,)),
            Teacher((None,) * 3, RULE[rule]),
        ):
            load_adapters(stack, one.members, len(one.members))
            said.append(group_log_probs(stack, one, ids, position))
    torch.testing.assert_close(said[0], said[1])
    torch.testing.assert_close(said[2], said[3])
    assert not torch.allclose(said[0], said[2], atol=0.1)


def test_gradient_of_the_loss_in_closed_form():
    """d/dz T^2 KL = T (q - p), both at T; and for a high T the gradient of matching logits, (z - v)
    / V (Hinton et al. 2015, eq. 4).
    """
    draw = torch.Generator().manual_seed(0)
    z, v = (torch.randn(3, 2, 7, generator=draw, dtype=torch.float64) for _ in range(2))
    target = torch.zeros(3, 2, dtype=torch.long)
    z, v = z - z.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)

    def gradient(temperature, mix=1.0):
        at = z.clone().requires_grad_()
        token_losses(
            at, target, (v / temperature).log_softmax(-1), temperature, mix
        ).sum().backward()
        return at.grad

    for T in (0.5, 1.0, 4.0):
        torch.testing.assert_close(gradient(T), T * ((z / T).softmax(-1) - (v / T).softmax(-1)))
    torch.testing.assert_close(gradient(1e4), (z - v) / 7, rtol=1e-3, atol=1e-4)
    hard = z.softmax(-1) - torch.nn.functional.one_hot(target, 7)
    torch.testing.assert_close(gradient(2.0, mix=0.25), 0.25 * gradient(2.0) + 0.75 * hard)


def test_the_base_comes_back_unchanged(adapters):
    model, examples, condition = tiny_model(), rows(), distilled(**SHORT)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    for keep in (True, False):
        train_stack(
            model,
            examples,
            condition,
            plan_of(condition, examples),
            seeds_of(range(4)),
            teachers_R=[teacher(adapters[:2])] * 4,
            keep_soft_targets=keep,
        )
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[n], after[n]) for n in before)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_teacher_of_another_base_is_refused_in_one_line(adapters, tmp_path):
    write_adapter(
        tmp_path / "x",
        {"model.nowhere": (torch.ones(2, 32), torch.ones(32, 2))},
        r=2,
        alpha=2,
        target_modules=["x"],
        base="b",
    )
    condition, examples, model = distilled(), rows(), tiny_model()
    with pytest.raises(
        ValueError, match="no linear layer 'model.nowhere'; is this an adapter of another base"
    ):
        train_stack(
            model,
            examples,
            condition,
            plan_of(condition, examples),
            seeds_of(range(4)),
            teachers_R=[teacher([tmp_path / "x"])] * 4,
        )
    assert type(model.get_submodule("model.layers.0.self_attn.q_proj")) is torch.nn.Linear


@pytest.mark.parametrize("stack", [4, 8])
@pytest.mark.parametrize("students", [1, 2, 3, 4, 5, 8, 11])
def test_memory_counts_every_group_that_a_stack_can_hold(stack, students):
    condition = distilled(students=students)
    most = max(
        len({condition.group_of(r) for r in range(s * stack, (s + 1) * stack)}) for s in range(40)
    )
    assert most <= soft_target_bytes(condition, [2, 3], 10, stack) / (5 * 10 * 4) <= most + 1
    fixed = distilled(teacher=TEACHER.model_copy(update={"groups": "fixed"}))
    assert soft_target_bytes(fixed, [2, 3], 10, stack) == 5 * 10 * 4


# --- what is asked ------------------------------------------------------------------------------

HEAD = "base: embedded\ndata: {train: embedded}\nreplicas: 16\nconditions:\n"
LORA = (
    "  lora: "
    "{rank: 4, dropout: 0.1, lr: 1e-2, replicas: 12, vary: [order], "
    "snapshots: {count: 4}, averages: [swa]}\n"
)
TAUGHT = "method: distill, teacher: {condition: lora, ensemble: logits, k: 4}"


def test_a_student_trains_as_its_teachers_do_where_it_does_not_say():
    text = (
        HEAD + LORA + f"  student: {{{TAUGHT}, lr: 1e-3}}\n  hot: {{from: student, temperature: 2, "
        f"students: 3}}\n"
    )
    recipe = parse_recipe(text)
    lora, student, hot = recipe.conditions.values()
    assert isinstance(student, DistilledCondition) and isinstance(hot, DistilledCondition)
    assert (student.rank, student.dropout, student.lr, hot.rank, hot.lr, hot.temperature) == (
        4,
        0.1,
        1e-3,
        4,
        1e-3,
        2,
    )
    assert (student.snapshots, student.averages, student.vary, student.replicas) == (
        None,
        [],
        None,
        None,
    )
    assert [recipe.replicas_of(name) for name in recipe.conditions] == [12, 3, 9]
    assert [hot.group_of(r) for r in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert parse_recipe(dump_recipe(recipe)) == recipe
    # a recipe says no more than is meant
    assert "teacher" not in lora.model_dump() and "temperature" not in lora.model_dump()


def test_teachers_are_trained_first_and_students_are_not_mitigated():
    text = HEAD + f"  student: {{{TAUGHT}}}\n" + LORA + "mitigations: [{merge: mean, k: 2}]\n"
    recipe = parse_recipe(text)
    assert recipe.training_order == ["lora", "student"]
    assert not recipe.mitigations_of("student") and len(recipe.mitigations_of("lora")) == 1


@pytest.mark.parametrize(
    ("student", "told"),
    [
        (
            "method: distill",
            "6: 'conditions.student': `method: distill` goes with `teacher: {condition: NAME",
        ),
        (
            "teacher: {condition: lora, merge: mean, k: 2}",
            "6: 'conditions.student': `method: distill` goes with `teacher",
        ),
        (
            "temperature: 2",
            "6: 'conditions.student': 'students', 'temperature' and 'mix' belong to "
            "`method: distill`",
        ),
        (
            TAUGHT.replace("lora", "lara"),
            "6: 'conditions.student.teacher.condition': names no other condition; did you "
            "mean 'lora'?",
        ),
        (
            TAUGHT.replace("lora", "student"),
            "6: 'conditions.student.teacher.condition': names no other condition",
        ),
        (
            TAUGHT.replace("lora", "other"),
            "6: 'conditions.student.teacher.condition': 'other' is distilled itself; name "
            "the condition",
        ),
        (
            TAUGHT.replace("lora", "grid"),
            "6: 'conditions.student.teacher.condition': 'grid' is a crossed design: no groups",
        ),
        (
            TAUGHT.replace("4", "7"),
            "6: 'conditions.student.teacher.k': 12 replicas of 'lora' make 1 groups of 7; "
            "two are needed",
        ),
        (
            TAUGHT.replace("4", "0"),
            "6: 'conditions.student.teacher.k': should be greater than or equal to 1",
        ),
        (
            TAUGHT.replace("logits", "vote"),
            "6: 'conditions.student.teacher': 'ensemble: vote' has no probabilities to learn from",
        ),
        (
            TAUGHT.replace("ensemble: logits", "merge: ema"),
            "6: 'conditions.student.teacher.merge': add `snapshots: {count: 8}` and "
            "`averages: [ema]`",
        ),
        (
            TAUGHT.replace("k: 4", "k: 4, group: fixed"),
            "6: unknown key 'group' in 'conditions.student.teacher'; did you mean 'groups'?",
        ),
        (
            TAUGHT + ", replicas: 4",
            "6: 'conditions.student.replicas': 4 students need 4 groups of 4, 16 replicas "
            "of 'lora'; there are 12",
        ),
        (
            TAUGHT + ", crossed: {init: 2, order: 2}",
            "6: 'conditions.student': a crossed design of students needs `groups: fixed`",
        ),
        (
            TAUGHT.replace("k: 4", "k: 4, groups: fixed") + ", students: 2",
            "6: 'conditions.student': 'students' is per fresh teacher group",
        ),
        (
            TAUGHT + ", temperature: 0",
            "6: 'conditions.student.temperature': should be greater than 0",
        ),
        (TAUGHT + ", mix: 2", "6: 'conditions.student.mix': should be less than or equal to 1"),
    ],
)
def test_what_cannot_be_distilled_is_told_in_one_line(student, told):
    others = (
        "  other: {method: distill, teacher: {condition: lora, merge: mean, k: 2}}\n  grid: "
        "{crossed: {init: 4, order: 4}}\n"
    )
    with pytest.raises(RecipeError) as caught:
        parse_recipe(HEAD + LORA + f"  student: {{{student}}}\n" + others, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml:{told}") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        (
            "  a: {from: b}\n  b: {method: distill, teacher: {condition: a, merge: mean, k: 2}}\n",
            "5: 'from: b' leads back to itself",
        ),
        (
            "  a: {from: b}\n  b: {method: distill, teacher: {condition: c, merge: mean, k: 2}}\n",
            "5: 'conditions.a': names no other",
        ),
    ],
)
def test_a_teacher_that_is_inherited_and_wrong_is_told_in_one_line(conditions, told):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(HEAD + conditions, "my.yaml")
    assert str(caught.value).startswith(f"my.yaml:{told}")


def test_what_a_teaching_ensemble_would_not_heed_is_refused():
    """A key that another kind of mitigation has must not pass unnoticed."""
    TeacherBlock(condition="lora", ensemble="logits", k=2)
    with pytest.raises(ValueError, match="'weights' is not for an ensemble that teaches"):
        TeacherBlock(condition="lora", ensemble="logits", k=2, weights="accuracy:typical")


def test_students_share_no_seed_with_any_teacher():
    recipe = parse_recipe(
        HEAD
        + LORA.replace("vary: [order], ", "")
        + f"  student: {{{TAUGHT}}}\n  other: {{{TAUGHT}, mix: 0.5}}\n"
    )
    taught = {seed for r in range(12) for seed in train_stacks.seeds_of(recipe, "lora", r).values()}
    students = [train_stacks.seeds_of(recipe, "student", r) for r in range(3)]
    assert not taught & {seed for seeds in students for seed in seeds.values()}
    # two ways to distil are compared pair by pair
    assert students == [train_stacks.seeds_of(recipe, "other", r) for r in range(3)]
    assert len({seed for seeds in students for seed in seeds.values()}) == 9
