"""The run folder: same recipe, same bits, however often it was stopped and wherever its stacks were
trained.
"""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.processes import kill, started

from toolkit import pipeline
from toolkit.data import read_rows
from toolkit.measurement.run import read_design
from toolkit.pipeline import answer_prompts, merge_groups
from toolkit.recipe import parse_recipe
from toolkit.record.outcomes import read_outcomes, read_token_scores
from toolkit.record.population import groups, read_population, replica_folder, sha256_file

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: embedded
data:
  train: {train}
  suites: {{typical: {typical}, far: {far}}}
replicas: 8
stack: 4
conditions:
  lora:
    epochs: 2
    batch_size: 8
    lr: 1e-2
    dropout: 0.1
    snapshots: {{count: 2, start: 0.5, save: true}}
    averages: [swa, ema]
mitigations:
  - {{merge: swa, k: 1}}
  - {{merge: mean, k: 2, rank: same}}
  - {{merge: ties, k: 2, density: 0.5}}
  - {{ensemble: probabilities, k: 2}}
  - {{ensemble: vote, k: 4}}
  - {{ensemble: gated, k: 2, threshold: 0.5}}
  - {{ensemble: mbr, k: 4, similarity: edit, weights: "accuracy:typical"}}
  - {{ensemble: probabilities, k: 2, weights: "accuracy:typical"}}
evaluation: {{max_new_tokens: 12, answer: embedded, token_scores: true}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")

    def write(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / name

    train = write("train.jsonl", [dict(row) for row in read_rows("embedded")[:24]])
    typical = write("typical.jsonl", [dict(row) for row in read_rows("embedded")[24:36]])
    far = write(
        "far.jsonl",
        [
            {"prompt": "the cat is in the garage =>", "category": "odd"},
            {"prompt": "call ben and play blue moon =>"},
        ],
    )
    return parse_recipe(RECIPE.format(train=train, typical=typical, far=far), "test.yaml")


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "a"
    pipeline.run(recipe, folder, workers=2)
    return folder


def weights(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): sha256_file(p) for p in sorted(folder.rglob("*.safetensors"))
    }


def outcomes(folder: Path) -> dict[str, list]:
    return {
        str(p.relative_to(folder)): pq.read_table(p).to_pylist()
        for p in sorted(folder.rglob("outcomes/**/*.parquet"))
    }


def replicas(folder: Path) -> dict[int, dict[str, str]]:
    return {r: record.sha256 for r, record in read_population(folder / "lora").items()}


def test_a_run_leaves_what_it_promises(finished, recipe):
    population = read_population(finished / "lora")
    assert sorted(population) == list(range(8)) and all(
        record.status == "ok" for record in population.values()
    )
    files = set(weights(finished))
    for part in (
        "adapter_model",
        "averages/swa/adapter_model",
        "averages/ema/adapter_model",
        "snapshots/s001/adapter_model",
    ):
        assert f"lora/replicas/00003/{part}.safetensors" in files
    for label, count in {"swa-k1": 8, "mean-rank-same-k2": 4, "ties-density0.5-k2": 4}.items():
        assert sum(f"merged/{label}/" in name for name in files) == count
    assert len(set(weights(finished).values())) > 8 * 4  # no two replicas alike
    results = json.loads((finished / "results.json").read_text())
    labels = [p["label"] for p in results["conditions"][0]["procedures"]]
    assert labels == ["replica", *(m.label for m in recipe.mitigations)]
    steps = pq.read_table(
        next((finished / "lora" / "training").glob("steps-*.parquet"))
    ).to_pydict()
    examples = pq.read_table(
        next((finished / "lora" / "training").glob("examples-*.parquet"))
    ).to_pydict()
    assert len(steps["loss"]) == 4 * 6 and len(examples["row"]) == 4 * 2 * 24
    assert (finished / "report.html").stat().st_size > 5000


def test_a_gate_costs_what_it_ran_and_weights_are_the_accuracies(finished, recipe):
    results = json.loads((finished / "results.json").read_text())
    price = {
        p["label"]: p["price"]["inference_streams"] for p in results["conditions"][0]["procedures"]
    }
    assert price["replica"] == price["mean-rank-same-k2"] == 1 and price["probabilities-k2"] == 2
    table = read_outcomes(finished / path for path in read_design(finished).shards).to_pylist()
    gated = [row for row in table if row["procedure"] == "gated-threshold0.5-k2"]
    sure = {
        (r["index"], r["suite"], r["prompt_id"]): r["margin"] >= 0.5
        for r in table
        if r["procedure"] == "replica"
    }
    assert [row["streams"] == 1 for row in gated] == [
        sure[2 * row["index"], row["suite"], row["prompt_id"]] for row in gated
    ]
    assert price["gated-threshold0.5-k2"] == sum(row["streams"] for row in gated) / len(gated)
    with pipeline.open_run(recipe, finished, workers=1) as job:
        known = answer_prompts.accuracies(job, "lora", recipe.mitigations[-1])
        family = answer_prompts.subjects_of(job, "lora")[-1]
    single = [row for row in table if row["procedure"] == "replica" and row["suite"] == "typical"]
    for replica in range(8):
        marks = [row["correct"] for row in single if row["index"] == replica]
        assert known[replica] == sum(marks) / len(marks)
    equal = (1.0, 1.0)
    assert [subject.weights for subject in family] == [
        (known[2 * g], known[2 * g + 1]) if known[2 * g] or known[2 * g + 1] else equal
        for g in range(4)
    ]
    scores = read_token_scores(
        [finished / path for path in read_design(finished).shards], condition="lora"
    )
    single_far = {
        (row["suite"], row["prompt_id"]): row["reference_logprob"]
        for row in single
        if row["index"] == 3
    }
    for (suite, prompt), log_CT in zip(scores.prompts, scores.log_RPCT[3], strict=True):
        if (suite, prompt) in single_far:
            assert np.nansum(log_CT[0]) == pytest.approx(single_far[suite, prompt], rel=1e-5)


def test_the_last_snapshot_is_the_replica(finished):
    folder = replica_folder(finished / "lora", 2)
    assert sha256_file(folder / "snapshots/s001/adapter_model.safetensors") == sha256_file(
        folder / "adapter_model.safetensors"
    )


def test_one_worker_makes_the_same_bits_as_two(finished, recipe, tmp_path):
    pipeline.run(recipe, tmp_path / "b", workers=1)
    assert weights(tmp_path / "b") == weights(finished)
    assert list(outcomes(tmp_path / "b").values()) == list(outcomes(finished).values())


def test_a_killed_run_goes_on_to_the_same_bits(finished, recipe, tmp_path):
    folder = tmp_path / "c"
    process = started(pipeline.run, recipe, folder, workers=1)
    deadline = time.monotonic() + 120
    while not list(folder.glob("lora/replicas/*/replica.json")):
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.005)
    kill(process)
    assert len(replicas(folder)) < 8
    with pipeline.open_run(recipe, folder, workers=2) as job:
        pipeline.train(job, "lora")
        pipeline.merge(job)
    assert weights(folder) == weights(finished)


def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    """The parent alone: its workers must not train on beside those of a resumed run."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, time\nfrom toolkit.pipeline.engines import LocalEngine\n\n"
        "def unit(n, progress):\n    print(os.getpid(), flush=True)\n    time.sleep(60)\n\n"
        "if __name__ == '__main__':\n    with LocalEngine('cpu', 1) as engine:\n        "
        "list(engine.run(unit, [0]))\n"
    )
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while (
        Path(f"/proc/{worker}").exists()
        and Path(f"/proc/{worker}/stat").read_text().split()[2] != "Z"
    ):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)


def test_lost_and_damaged_replicas_come_back(finished, recipe, tmp_path):
    folder = tmp_path / "d"
    shutil.copytree(finished, folder)
    before = weights(folder)
    shutil.rmtree(replica_folder(folder / "lora", 1))
    damaged = replica_folder(folder / "lora", 6) / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4] + b"\0\0\0\1")
    (replica_folder(folder / "lora", 4) / "replica.json").unlink()
    touched = replica_folder(folder / "lora", 0) / "replica.json"
    stamp = touched.stat().st_mtime_ns
    pipeline.run(recipe, folder, workers=1)
    assert weights(folder) == before
    assert touched.stat().st_mtime_ns == stamp  # what was finished is not done again


def test_what_killed_workers_leave_half_written_is_gone_when_the_run_is_done(
    finished, recipe, tmp_path
):
    folder = tmp_path / "l"
    shutil.copytree(finished, folder)
    with pipeline.open_run(recipe, folder, workers=1):
        half = folder / "lora" / "replicas" / "00001" / "averages" / ".swa.f17f4475.tmp"
        half.mkdir()
        (half / "adapter_model.safetensors").write_bytes(b"half")
    assert not list(folder.rglob("*.tmp")) and weights(folder) == weights(finished)


def test_a_merge_that_was_killed_before_it_was_described_is_made_again(finished, recipe, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(finished, folder)
    merged = merge_groups.merged_folder(folder / "lora", "mean-rank-same-k2", 1)
    names = {path.name for path in merged.iterdir()}
    assert {"merge.json", "mergekit_config.yml", "README.md"} < names
    for name in ("mergekit_config.yml", "README.md"):
        (merged / name).unlink()
    with pipeline.open_run(recipe, folder, workers=1) as job:
        pipeline.merge(job)
    assert {path.name for path in merged.iterdir()} == names
    assert weights(folder) == weights(finished)


def test_more_replicas_change_none_that_exist(finished, recipe, tmp_path):
    folder = tmp_path / "e"
    shutil.copytree(finished, folder)
    before = replicas(folder)
    with pipeline.open_run(recipe, folder, workers=1) as job:
        after = {r: record.sha256 for r, record in pipeline.train(job, "lora", replicas=10).items()}
        assert sorted(after) == list(range(10)) and {r: after[r] for r in before} == before
        again = pipeline.train(job, "lora", only=[5])
    assert again[5].sha256 == before[5]


def test_a_folder_of_another_recipe_is_refused(finished, recipe, tmp_path):
    folder = tmp_path / "f"
    shutil.copytree(finished, folder)
    other = recipe.model_copy(update={"seed": 1})
    with (
        pytest.raises(pipeline.RunError, match="another recipe"),
        pipeline.open_run(other, folder, workers=1) as job,
    ):
        pipeline.train(job, "lora")
    assert json.loads((folder / "lora" / "population.json").read_text())["root_seed"] == 0


def test_a_diverging_condition_is_recorded_and_said(recipe, tmp_path):
    wild = recipe.conditions["lora"].model_copy(
        update={"lr": 1e30, "clip": 0.0, "snapshots": None, "averages": []}
    )
    sick = recipe.model_copy(
        update={"conditions": {"lora": wild}, "mitigations": [], "replicas": 4}
    )
    with pytest.raises(pipeline.RunError, match="lower `lr`"):
        pipeline.run(sick, tmp_path / "g", workers=1)
    population = read_population(tmp_path / "g" / "lora")
    assert [record.status for record in population.values()] == ["failed"] * 4
    assert all(record.failed_step is not None for record in population.values())


def test_groups_are_disjoint():
    assert groups([5, 1, 3, 2, 9], 2) == [[1, 2], [3, 5]]
    assert groups([1], 2) == []


def test_what_the_base_cannot_do_is_told_before_training(recipe, tmp_path):
    wrong = recipe.conditions["lora"].model_copy(update={"targets": ["nope"]})
    with (
        pytest.raises(
            pipeline.RunError, match="conditions.lora.targets: target 'nope' matches no module"
        ),
        pipeline.open_run(
            recipe.model_copy(update={"conditions": {"lora": wrong}}), tmp_path / "h"
        ),
    ):
        pass
    high = [m.model_copy(update={"rank": 5000}) for m in recipe.mitigations[:1]]
    with (
        pytest.raises(pipeline.RunError, match="ranks 1 to 96"),
        pipeline.open_run(recipe.model_copy(update={"mitigations": high}), tmp_path / "h"),
    ):
        pass


def test_a_crossed_design_gives_every_combination_of_seeds_and_its_components(recipe, tmp_path):
    crossed = recipe.conditions["lora"].model_copy(
        update={"crossed": {"init": 3, "order": 2}, "repeats": 2, "snapshots": None, "averages": []}
    )
    recipe = recipe.model_copy(
        update={"conditions": {"lora": crossed}, "mitigations": [], "stack": 6}
    )
    results = pipeline.run(recipe, tmp_path / "x", workers=1)
    found = read_population(tmp_path / "x" / "lora")
    assert sorted(found) == list(range(12))
    cells = [(record.seeds["init"], record.seeds["order"]) for _, record in sorted(found.items())]
    assert (
        len(set(cells[:6])) == 6
        and cells[:6] == cells[6:]
        and len({init for init, _ in cells}) == 3
    )
    # what is not named is held
    assert len({record.seeds["dropout"] for record in found.values()}) == 1
    same = [
        found[r].sha256["adapter_model.safetensors"]
        == found[r + 6].sha256["adapter_model.safetensors"]
        for r in range(6)
    ]
    assert all(same)  # a repeat is the same bits: on this engine the numerics add nothing
    answers = [s for s in results.conditions[0].sources if s.figure == "disagreement"]
    assert set(answers[0].parts) == {"init", "order", "init x order", "residual"}
    for s in answers:
        assert s.parts["residual"].value == 0
        parts = np.array([part.value for part in s.parts.values()])
        assert parts.sum() == pytest.approx(s.total.value)
    assert "What makes runs differ" in (tmp_path / "x" / "report.html").read_text()
