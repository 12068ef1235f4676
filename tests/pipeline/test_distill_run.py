"""Distillation in a run folder: teachers first, the same bits whenever it is stopped, and students
measured as what they are.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.bases import on_the_base
from helpers.outcomes_of import World, vote

from toolkit import pipeline
from toolkit import statistics as st
from toolkit.data import read_rows
from toolkit.measurement.analyse import analyse
from toolkit.model.adapters import read_adapter, write_adapter
from toolkit.model.base import load_base
from toolkit.pipeline import preview, train_stacks
from toolkit.recipe import DistilledCondition, LoraCondition, RecipeError, dump_recipe, parse_recipe
from toolkit.record.population import (
    RECORD,
    read_population,
    replica_folder,
    sha256_file,
    write_text,
)
from toolkit.record.results import ConditionDesign, MitigationDesign, Price, TeacherDesign
from toolkit.train.students import StudentsError, student_notes

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: embedded
data:
  train: {train}
  suites: {{typical: {typical}}}
replicas: 9
stack: 4
conditions:
  soup: {{method: distill, teacher: {{condition: lora, merge: mean, k: 2}}, students: 2, epochs: 1}}
  lora: {{epochs: 2, batch_size: 8, lr: 1e-2, dropout: 0.1, rank: 4}}
  student: {{method: distill, teacher: {{condition: lora, ensemble: probabilities, k: 2}},
      mix: 0.9, epochs: 1}}
  same: {{method: distill, teacher: {{condition: lora, ensemble: logits, k: 3, groups: fixed}},
      replicas: 3, epochs: 1}}
mitigations: [{{ensemble: probabilities, k: 2}}]
evaluation: {{max_new_tokens: 12, answer: embedded}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, start, end in (("train", 0, 24), ("typical", 24, 36)):
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[start:end])
        )
    return parse_recipe(
        RECIPE.format(train=folder / "train.jsonl", typical=folder / "typical.jsonl"), "test.yaml"
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "a"
    pipeline.run(recipe, folder, workers=1)
    return folder


def bits(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.safetensors"))
    }


def noted(recipe, folder: Path, name: str, **options) -> list[str]:
    """Train one condition; what was said."""
    said: list[str] = []
    with pipeline.open_run(
        recipe, folder, workers=1, console=pipeline.Console(note=said.append)
    ) as job:
        pipeline.train(job, name, **options)
    return said


def test_students_learn_from_disjoint_groups_and_stand_beside_their_teachers_remedies(finished):
    assert [
        len(read_population(finished / name)) for name in ("lora", "student", "soup", "same")
    ] == [9, 4, 8, 3]
    ledger = json.loads((finished / "soup" / "population.json").read_text())
    assert [group["replicas"] for group in ledger["teachers"]["groups"]] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]
    assert list(ledger["group"].values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    merged = [read_adapter(finished / "lora/merged/mean-k2" / f"g00{g}").sha256() for g in range(4)]
    assert [group["sha256"] for group in ledger["teachers"]["groups"]] == [
        [digest] for digest in merged
    ]
    results = json.loads((finished / "results.json").read_text())
    of = {c["name"]: c for c in results["conditions"]}
    assert [p["label"] for p in of["lora"]["procedures"]] == [
        "replica",
        "probabilities-k2",
        "distilled-soup-k2",
        "distilled-student-k2",
    ]
    assert {name: len(c["procedures"]) for name, c in of.items()} == {
        "soup": 1,
        "lora": 4,
        "student": 1,
        "same": 1,
    }
    assert [
        of[name]["procedures"][0]["n_runs"] for name in ("soup", "lora", "student", "same")
    ] == [4, 9, 4, 3]
    price = of["lora"]["procedures"][3]["price"]
    seconds = [
        np.array([r.seconds for r in read_population(finished / name).values()]).mean()
        for name in ("lora", "student")
    ]
    assert (price["training_runs"], price["inference_streams"], price["rank"]) == (3, 1, 4)
    assert price["seconds"] == pytest.approx(2 * seconds[0] + seconds[1])
    names = [m["name"] for m in of["student"]["procedures"][0]["cells"][0]["metrics"]]
    assert "answers as its own teacher" in names and of["soup"]["sources"]
    assert [note.partition(":")[0] for note in results["notes"]] == ["soup", "same"]


def test_an_unfinished_run_goes_on_to_the_same_bits(finished, recipe, tmp_path):
    folder, before = tmp_path / "b", bits(finished)
    shutil.copytree(finished, folder)
    for name, replica in (("student", 1), ("soup", 5), ("lora", 2)):
        shutil.rmtree(replica_folder(folder / name, replica))
    shutil.rmtree(folder / "lora" / "merged")
    stamp = (replica_folder(folder / "student", 0) / RECORD).stat().st_mtime_ns
    with pytest.raises(
        StudentsError,
        match="student: learns from lora, of which replica 2 is not trained; train that "
        "condition first",
    ):
        noted(recipe, folder, "student")
    pipeline.run(recipe, folder, workers=1)
    assert bits(folder) == before
    assert (replica_folder(folder / "student", 0) / RECORD).stat().st_mtime_ns == stamp


def test_students_of_a_teacher_with_other_bits_are_trained_again_and_no_other(
    finished, recipe, tmp_path
):
    folder, before = (
        tmp_path / "c",
        {r: record.sha256 for r, record in read_population(finished / "student").items()},
    )
    shutil.copytree(finished, folder)
    path = replica_folder(folder / "lora", 3)
    record, adapter = json.loads((path / RECORD).read_text()), read_adapter(path)
    factors = {name: (A, -B) for name, (A, B, _) in adapter.items()}
    config = adapter.config
    digest = write_adapter(
        path, factors, r=4, alpha=8, target_modules=config["target_modules"], base=adapter.base
    )
    write_text(
        path / RECORD, json.dumps(record | {"sha256": {"adapter_model.safetensors": digest}})
    )
    said = noted(recipe, folder, "student")
    assert said == [
        "student: the teachers of 1 students are not what they were; these students are "
        "trained again"
    ]
    after = {r: record.sha256 for r, record in read_population(folder / "student").items()}
    assert after[1] != before[1] and {r: after[r] for r in (0, 2, 3)} == {
        r: before[r] for r in (0, 2, 3)
    }
    assert noted(recipe, folder, "student") == []


def test_failed_teachers_leave_fewer_groups(finished, recipe, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(finished / "lora", folder / "lora")
    for replica in (0, 4):
        path = replica_folder(folder / "lora", replica) / RECORD
        write_text(
            path,
            json.dumps(
                json.loads(path.read_text()) | {"status": "failed", "failed_step": 1, "sha256": {}}
            ),
        )
    assert noted(recipe, folder, "student") == [
        "student: 3 of 4 students, since lora has 3 groups of 2 successful replicas"
    ]
    ledger = json.loads((folder / "student" / "population.json").read_text())
    assert [group["replicas"] for group in ledger["teachers"]["groups"]] == [[1, 2], [3, 5], [6, 7]]


def test_check_tells_the_teachers_and_their_price(recipe, capsys, monkeypatch):
    found = preview.check(recipe, probe=False)
    teaching = {name: entry["teaching"] for name, entry in found["conditions"].items()}
    assert teaching["lora"] is None
    assert [
        (teaching[n]["groups"], teaching[n]["groups_a_stack"]) for n in ("student", "soup", "same")
    ] == [(4, 4), (4, 2), (1, 1)]
    tokens = sum(sum(e.loss_mask[1:]) for e in train_stacks.training_examples(recipe, "cpu"))
    assert [teaching[n]["kept_bytes"] for n in ("student", "soup", "same")] == [
        4096 * g * tokens for g in (4, 2, 1)
    ]
    preview.show(found)
    told = capsys.readouterr().out
    assert (
        "learns from 4 fresh groups of 2 of lora (probabilities), 1 student each: a run "
        "is 3 trainings, one model answers" in told
    )
    assert "learns from the first 3 of lora (logits): a run is 4 trainings" in told
    assert "student (4)" not in told  # four groups are enough for an interval
    monkeypatch.setattr(preview, "SOFT_TARGET_BYTES", 10_000)
    preview.show(preview.check(recipe, probe=False))
    assert "so computed anew at every step" in capsys.readouterr().out


def test_students_without_teachers_are_refused_in_one_line(recipe, tmp_path):
    with pytest.raises(
        StudentsError,
        match="^student: learns from lora, of which no replica is trained; train that condition "
        "first$",
    ):
        noted(recipe, tmp_path / "e", "student")


# --- measuring ----------------------------------------------------------------------------------


def taught_world(students: int = 1) -> tuple[World, list[ConditionDesign], list[list[list[str]]]]:
    """40 replicas, ten votes of four, and students that answer as the vote of their group but for
    their own slips.
    """
    world = World(40).mitigate("vote", 4, vote)
    mitigation, rng = world.mitigations[0], np.random.default_rng(1)
    said = []
    for g, group in enumerate(mitigation.members):
        taught = vote([world.answers[r] for r in group])
        of_group = [
            [f"slip {s}" if rng.random() < 0.05 else answer for answer in taught]
            for s in range(students)
        ]
        for s, answers in enumerate(of_group):
            world._add("student", "replica", students * g + s, answers)
        said.append(of_group)
    everyone, runs = list(range(10 * students)), list(range(0, 10 * students, students))
    members = mitigation.members
    teacher = TeacherDesign("lora", "vote-k4", list(range(10)), members)
    factors = {"teachers": [r // students for r in everyone]} if students > 1 else {}
    student = ConditionDesign(
        "student", runs, price=Price(5), factors=factors, everyone=everyone, teacher=teacher
    )
    row = MitigationDesign(
        "distilled-student-k4", "student", "distilled", 4, members, Price(5), "student", runs
    )
    lora = ConditionDesign("lora", world.replicas, 0, [*world.mitigations, row], Price())
    return world, [lora, student], said


def test_a_student_is_measured_against_its_teachers_group_by_group():
    world, designs, said = taught_world()
    results = analyse(world.table, world.prompts, designs, paired=True)
    members = designs[0].mitigations[0].members
    voted = [vote([world.answers[r] for r in group]) for group in members]
    codes = st.encode([*world.answers.values(), *(answers for (answers,) in said), *voted])
    answer_RP, answer_GP, voted_GP = codes[:40], codes[40:50], codes[50:]
    for shift in ("typical", "near", "far"):
        at = np.array([prompt.shift == shift for _, prompt in world.flat])
        cell = results.conditions[0].procedures[2].cell(shift)
        single = results.conditions[1].single.cell(shift)
        assert (
            cell
            and single
            and cell.ratio == st.disagreement_ratio(answer_GP[:, at], answer_RP[:, at], members)
        )
        assert cell.disagreement == single.disagreement == st.disagreement(answer_GP[:, at])
        fidelity = next(
            m for m in single.metrics if m.name == "answers as its own teacher"
        ).estimate
        assert fidelity == st.accuracy((answer_GP == voted_GP)[:, at].astype(float))
        assert fidelity.value == pytest.approx(0.95, abs=0.02)
    assert results.contrasts == ()  # said once, among the mitigations


def test_several_students_of_a_group_are_no_independent_runs():
    world, designs, said = taught_world(students=3)
    results = analyse(world.table, world.prompts, designs)
    student = results.conditions[1]
    everyone = st.encode([answers for of_group in said for answers in of_group])
    at = np.array([prompt.shift == "far" for _, prompt in world.flat])
    assert student.n_replicas == 10 and student.failure_rate.n_replicas == 30
    of_fresh_teachers = st.disagreement(
        everyone[:, at], levels={"teachers": np.repeat(np.arange(10), 3)}
    )
    assert student.single.cell("far").disagreement == of_fresh_teachers
    right_P = np.array([prompt.reference for _, prompt in world.flat])
    score_R = [
        (np.array(answers) == right_P)[at].mean() for of_group in said for answers in of_group
    ]
    expected = st.nested(np.array(score_R), np.repeat(np.arange(10), 3))
    found = next(s for s in student.sources if (s.shift, s.figure) == ("far", "accuracy"))
    assert found.parts["teachers"].value == pytest.approx(expected.parts["between"].value)
    assert found.parts["residual"].value == pytest.approx(expected.parts["residual"].value)


def test_what_students_share_is_said():
    """Randomness that all of them share cannot be seen in how they differ."""
    teacher = {"condition": "lora", "merge": "mean", "k": 2}
    for changes, vary, told in (
        ({}, ["init", "order", "dropout"], []),
        ({}, ["init", "order"], []),  # no dropout, nothing to hold
        ({"dropout": 0.1}, ["init"], ["order and dropout are the same in all students"]),
        (
            {"teacher": teacher | {"groups": "fixed"}},
            [],
            ["init and order are the same in all", "all students learned from the same 2"],
        ),
    ):
        condition = DistilledCondition.model_validate({"teacher": teacher, **changes})
        notes = student_notes(condition, ConditionDesign("s", [0, 1], everyone=[0, 1]), vary)
        assert len(notes) == len(told) and all(
            part in note for part, note in zip(told, notes, strict=True)
        )
    assert student_notes(LoraCondition(), ConditionDesign("s", [0, 1]), []) == []


def test_replicas_are_pairs_only_if_they_had_the_same_teacher():
    world, (lora, student), _ = taught_world()
    for r in student.replicas:
        world._add("other", "replica", r, world.base)
    shifted = TeacherDesign(
        "lora",
        "vote-k4",
        list(range(10)),
        [*student.teacher.members[1:], student.teacher.members[0]],
    )
    for teacher, paired in ((student.teacher, True), (shifted, False)):
        other = ConditionDesign(
            "other", student.replicas, everyone=student.replicas, teacher=teacher
        )
        found = analyse(world.table, world.prompts, [student, other], paired=True).contrasts
        assert [contrast.paired for contrast in found] == [paired] * 3
    assert not any(
        c.paired
        for c in analyse(world.table, world.prompts, [student, lora], paired=True).contrasts
    )


GIVEN = """
base: embedded
data: {{train: {train}, suites: {{typical: {typical}}}}}
stack: 2
conditions:
  mine: {{adapters: {adapters}}}
  student:
    method: distill
    teacher: {{condition: mine, {teacher}, k: 2}}
    {settings}
evaluation: {{max_new_tokens: 4, answer: embedded}}
"""
SETTINGS = {"rank": 4, "epochs": 1, "batch_size": 8, "lr": 0.01, "replicas": 4}


def given_recipe(recipe, adapters, teacher="ensemble: probabilities", without=()):
    settings = "\n    ".join(
        f"{key}: {value}" for key, value in SETTINGS.items() if key not in without
    )
    text = GIVEN.format(
        train=recipe.data.train,
        typical=recipe.data.suites["typical"],
        adapters=adapters,
        teacher=teacher,
        settings=settings,
    )
    return parse_recipe(text, "given.yaml")


@pytest.mark.parametrize("teacher", ["ensemble: probabilities", "merge: mean"])
def test_adapters_that_are_given_teach_in_groups(recipe, tmp_path, teacher):
    """Four of them are two groups of two, so two of the four students that were asked for have a
    teacher.
    """
    on_the_base(tmp_path / "in", load_base("embedded"), 4, 0.05)
    asked = given_recipe(recipe, tmp_path / "in" / "*", teacher)
    entry = preview.check(asked, probe=False)["conditions"]["student"]["teaching"]
    assert (entry["condition"], entry["groups"]) == ("mine", 2)
    with pipeline.open_run(asked, tmp_path / "run", workers=1) as job:
        for name in asked.training_order:
            pipeline.train(job, name)
    ledger = json.loads((tmp_path / "run/student/population.json").read_text())
    assert [group["replicas"] for group in ledger["teachers"]["groups"]] == [[0, 1], [2, 3]]
    assert len(read_population(tmp_path / "run/student")) == 2
    first = bits(tmp_path / "run/student")

    # another alpha makes another teacher: its student is trained again, the other is not
    config = tmp_path / "in/00/adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 9'))
    with pipeline.open_run(asked, tmp_path / "run", workers=1) as job:
        for name in asked.training_order:
            pipeline.train(job, name)
    again = bits(tmp_path / "run/student")
    assert [first[name] == again[name] for name in sorted(first)] == [False, True]


def test_students_of_given_adapters_say_how_they_train(recipe, tmp_path):
    with pytest.raises(RecipeError, match="'mine' is given as adapters.*: give rank, replicas$"):
        given_recipe(recipe, tmp_path, without=("rank", "replicas"))
    assert parse_recipe(dump_recipe(given_recipe(recipe, tmp_path)), "again.yaml") == given_recipe(
        recipe, tmp_path
    ).model_copy(update={"name": "given"})
