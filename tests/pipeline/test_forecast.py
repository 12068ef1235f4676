"""What `ftk check` expects: sizes of files follow from shapes, and what a run consists of is what
the pipeline makes of it.
"""

import json

import pytest
import torch
from helpers.tiny import tiny_base

from toolkit import pipeline
from toolkit.data import read_rows
from toolkit.measurement.run import read_prompts
from toolkit.model.adapters import WEIGHTS, read_adapter
from toolkit.model.base import load_base
from toolkit.pipeline import answer_prompts, forecast, preview, train_stacks
from toolkit.pipeline.forecast.probe import _answering, _merging
from toolkit.pipeline.forecast.work import Family, Part, adapter_bytes, blocks
from toolkit.recipe import parse_recipe

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: {folder}/base
data:
  train: {folder}/train.jsonl
  suites: {{typical: {folder}/suite.jsonl, far: {folder}/far.jsonl}}
replicas: 9
stack: 4
conditions:
  lora: {{rank: 4, epochs: 2, batch_size: 4, snapshots: {{count: 2, start: 0.5, save: true}},
      averages: [swa]}}
mitigations:
  - {{merge: mean, k: 2}}
  - {{merge: swa, k: 4, rank: same}}
  - {{merge: ties, k: 4, density: 0.5}}
  - {{ensemble: probabilities, k: 2}}
  - {{ensemble: vote, k: 4}}
evaluation: {{max_new_tokens: 6}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    tiny_base(folder / "base")
    rows = [json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[:60]]
    for name, own in {"train": rows[:20], "suite": rows[20:50], "far": rows[50:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(own))
    return parse_recipe(RECIPE.format(folder=folder), "test.yaml")


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "run"
    pipeline.run(recipe, folder, workers=1)
    return folder


def taken(paths) -> int:
    return sum(blocks(path.stat().st_size) for path in paths if path.is_file())


def part_of(recipe, run) -> Part:
    adapter = read_adapter(run / "lora/replicas/00000")
    shapes = {
        name: (module.in_features, module.out_features) for name, module in adapter.modules.items()
    }
    plan, _ = train_stacks.training_plan(recipe, "lora", "cpu")
    return Part("lora", 9, 4, shapes, plan, recipe.trained["lora"], recipe.mitigations)


def test_weights_files_are_known_to_the_byte(recipe, run):
    part = part_of(recipe, run)
    for folder, rank in [
        ("replicas/00003", 4),
        ("replicas/00003/averages/swa", 4),
        ("merged/mean-k2/g001", 8),
        ("merged/ties-density0.5-k4/g000", 32),
    ]:
        assert (run / "lora" / folder / WEIGHTS).stat().st_size == adapter_bytes(part.shapes, rank)
    assert [part.merged_rank(m) for m in recipe.mitigations[:3]] == [8, 4, 32]


def test_disk_is_what_a_run_leaves_to_a_tenth(recipe, run):
    found = preview.check(recipe, probe=False)["forecast"]
    assert found["seconds"] is None and found["memory_bytes"] is None
    real = {
        "train": taken((run / "lora").glob("replicas/**/*"))
        + taken((run / "lora/training").iterdir()),
        "merge": taken((run / "lora/merged").rglob("*")),
        "evaluate": taken(
            path for path in (run / "outcomes").rglob("*") if "votes" not in path.parts
        ),
    }
    for (
        stage,
        size,
    ) in (
        real.items()
    ):  # these answers are the same few tokens again and again, and compress better than others
        assert found["stages"][stage]["disk_bytes"] == pytest.approx(
            size, rel=0.5 if stage == "evaluate" else 0.1
        ), stage
    assert found["disk_bytes"] == pytest.approx(sum(real.values()), rel=0.1)


def test_units_are_those_of_the_pipeline(recipe, run):
    part = part_of(recipe, run)
    with pipeline.open_run(recipe, run, workers=1) as job:
        families = answer_prompts.all_subjects(job)[1:]
        units = [len(answer_prompts.answer_units(job, family, "far", [])) for family in families]
    assert part.families() == [
        Family(9, 1, 4),
        Family(4, 1, 8),
        Family(2, 1, 4),
        Family(2, 1, 32),
        Family(4, 2, 4),
    ]
    assert [(family.count, family.units) for family in part.families()] == [
        (len(f), n) for f, n in zip(families, units, strict=True)
    ]


def test_probes_of_a_merge_and_of_answers_take_time_and_leave_the_base_alone(recipe, run, tmp_path):
    part, base = part_of(recipe, run), load_base(recipe.base)
    before = base.model(input_ids=torch.tensor([[1, 2, 3]])).logits
    for one in recipe.mitigations[:3]:
        assert _merging(tmp_path, part, one, base) > 0
    prompts = read_prompts(recipe)["typical"]
    assert _answering(base, prompts, recipe, part.shapes, 4) > 0
    assert before.equal(base.model(input_ids=torch.tensor([[1, 2, 3]])).logits)


def test_a_run_compares_itself_with_its_forecast(tmp_path):
    assert forecast.compared(tmp_path, {}) is None
    stages = {
        "start": forecast.Stage(2.0),
        "train": forecast.Stage(8.0, 100, 4096),
        "merge": forecast.Stage(0.0, 120, 0),
    }
    ahead = forecast.Forecast(stages, workers=2, driver_bytes=50)
    assert (ahead.seconds, ahead.worker_bytes, ahead.memory_bytes, ahead.disk_bytes) == (
        10.0,
        120,
        290,
        4096,
    )
    assert forecast.save(tmp_path, ahead) == tmp_path / "forecast.json"
    line = forecast.compared(tmp_path, {"train": 9.0})
    assert (
        line
        and line.startswith("predicted 10 s and 0 MiB on disk, took ")
        and "train 8 -> 9" in line
        and "\n" not in line
    )
    # no probe, no times
    forecast.save(tmp_path, forecast.Forecast({"train": forecast.Stage(disk_bytes=1)}, 2))
    assert forecast.compared(tmp_path, {}) is None
