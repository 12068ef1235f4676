"""Whole models through the whole pipeline; and conditions that differ in numerics alone."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from helpers.tiny import generated
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit import pipeline
from toolkit.data import encode_prompt, read_rows
from toolkit.measurement.claims import hold_claims
from toolkit.measurement.run import read_prompts
from toolkit.merging import merge_adapters, merge_folders, merge_models
from toolkit.model.adapters import AdapterError, read_adapter
from toolkit.model.base import load_base
from toolkit.model.full import MODEL, read_model, read_weights, write_model
from toolkit.model.grams import whole_gram
from toolkit.pipeline import merge_groups
from toolkit.recipe import parse_recipe
from toolkit.record.outcomes import read_outcomes
from toolkit.record.population import read_population, replica_folder, sha256_file

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: embedded
data: {{train: {train}, suites: {{typical: {typical}}}}}
replicas: 4
stack: 2
vary: []
conditions:
  full:
    method: full
    vary: [order]
    epochs: 2
    batch_size: 8
    lr: 1e-3
    snapshots: {{count: 2, start: 0, save: true}}
    averages: [swa, lawa]
    lawa_last: 1
  bit: {{method: full, from: full, epochs: 1, vary: [], perturb: bit, replicas: 2}}
  held: {{epochs: 1, batch_size: 8, lr: 1e-2, replicas: 2, snapshots: {{count: 1, save: true}},
      averages: [swa, ema]}}
  double: {{from: held, dtype: float64}}
  half: {{from: held, dtype: bfloat16}}
  wide: {{from: held, stack: 4}}
  threads: {{from: held, threads: 2}}
mitigations:
  - {{merge: mean, k: 2}}
  - {{merge: swa, k: 1}}
  - {{merge: ties, k: 2, density: 0.5}}
  - {{ensemble: probabilities, k: 2}}
evaluation: {{max_new_tokens: 12, answer: embedded}}
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run") / "a"

    def write(name, rows):
        (data / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return data / name

    rows = [dict(row) for row in read_rows("embedded")[:30]]
    text = RECIPE.format(
        train=write("train.jsonl", rows[:24]), typical=write("typical.jsonl", rows[24:])
    )
    with pipeline.open_run(parse_recipe(text, "test.yaml"), folder, workers=1) as job:
        for name in job.recipe.training_order:
            pipeline.train(job, name)
        of_models = job.recipe.model_copy(
            update={"conditions": {"full": job.recipe.conditions["full"]}}
        )
        for stage in (pipeline.merge, pipeline.evaluate, pipeline.measure):
            stage(replace(job, recipe=of_models))
        yield job


def tensors(folder):
    return load_file(folder / MODEL)


def same(a, b):
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_every_procedure_of_whole_models_is_measured(job):
    results = json.loads((job.folder / "results.json").read_text())
    full = next(condition for condition in results["conditions"] if condition["name"] == "full")
    assert {p["label"] for p in full["procedures"]} == {
        "replica",
        "mean-k2",
        "swa-k1",
        "ties-density0.5-k2",
        "probabilities-k2",
    }
    records = read_population(job.folder / "full")
    assert len({record.sha256[MODEL] for record in records.values()}) == 4
    assert all("torch" in record.machine for record in records.values())
    # nothing is made twice
    assert (
        merge_groups.merge_units(job.folder / "full", [0, 1, 2, 3], job.recipe.mitigations[0]) == []
    )


def test_a_replica_is_a_model_that_transformers_loads_and_answers_as_measured(job):
    path = replica_folder(job.folder / "full", 1)
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(path),
        AutoTokenizer.from_pretrained(path),
    )
    assert model.dtype == torch.float32
    prompt = read_prompts(job.recipe)["typical"][0]
    rows = read_outcomes(
        sorted((job.folder / "outcomes" / "typical").glob("full-replica-*.parquet"))
    ).to_pylist()
    wanted = next(row for row in rows if row["index"] == 1 and row["prompt_id"] == prompt.id)
    ids = torch.tensor([encode_prompt(prompt.prompt, load_base("embedded").tokenizer)])
    made = generated(model, ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(made, skip_special_tokens=True) == wanted["text"]


def test_averages_are_means_of_snapshots(job):
    path = replica_folder(job.folder / "full", 0)
    first, last = (tensors(path / "snapshots" / name) for name in ("s000", "s001"))
    assert same(last, tensors(path)) and same(last, tensors(path / "averages" / "lawa-last1"))
    for name, W in tensors(path / "averages" / "swa").items():
        torch.testing.assert_close(W, (first[name] + last[name]) / 2, rtol=1e-6, atol=1e-8)


def test_inner_products_of_whole_models_are_those_of_their_changes(job):
    models = [read_model(replica_folder(job.folder / "full", r)) for r in range(4)]
    weights = {name: W.detach() for name, W in load_base("embedded").model.named_parameters()}
    change_KN = torch.stack(
        [
            torch.cat([(model.tensor(name) - W).double().flatten() for name, W in weights.items()])
            for model in models
        ]
    )
    found = torch.from_numpy(whole_gram(models, weights))
    torch.testing.assert_close(found, change_KN @ change_KN.T, rtol=1e-6, atol=1e-9)
    spread = next(
        row
        for row in hold_claims(job.folder).tested
        if (row.name, row.condition) == ("weights", "full")
    )
    assert spread.estimate and 0 < spread.estimate.value < 1


def test_merging_whole_models_keeps_the_laws(job, tmp_path):
    members = [replica_folder(job.folder / "full", r) for r in range(3)]
    start = dict(load_base("embedded").model.named_parameters())
    report = merge_models(members, tmp_path / "mean", method="mean")
    assert report.sha256 == merge_models(members[::-1], tmp_path / "back", method="mean").sha256
    for name, W in tensors(tmp_path / "mean").items():
        torch.testing.assert_close(
            W.double(), sum(tensors(m)[name].double() for m in members) / 3, rtol=1e-6, atol=1e-9
        )
    files = {
        file.name: file.read_bytes()
        for file in members[0].iterdir()
        if file.is_file() and file.name not in (MODEL, "replica.json")
    }
    copies = [tmp_path / f"copy{k}" for k in range(3)]
    for copy in copies:
        write_model(copy, tensors(members[0]), files)
    for method, parameters in {
        "mean": {},
        "ties": {"density": 1.0},
        "model_stock": {},
        "geometric_median": {},
        "swa": {"last": 1},
    }.items():
        sources = copies if method != "swa" else members[:1]
        merge_folders(sources, tmp_path / method, method=method, **parameters)
        for name, W in tensors(tmp_path / method).items():
            torch.testing.assert_close(W, tensors(members[0])[name], rtol=1e-6, atol=1e-7)
    merge_models(members[:1], tmp_path / "none", method="task_arithmetic", **{"lambda": 0.0})
    assert all(torch.equal(W, start[name]) for name, W in tensors(tmp_path / "none").items())


def test_what_does_not_go_with_whole_models_is_refused(job, tmp_path):
    whole, adapter = replica_folder(job.folder / "full", 0), replica_folder(job.folder / "held", 0)
    for refused, says in (
        (lambda: merge_folders([whole], tmp_path / "x", method="mean", rank="same"), "rank"),
        (
            lambda: merge_folders([whole, adapter], tmp_path / "x", method="mean"),
            "do not merge with each other",
        ),
        (
            lambda: merge_adapters([adapter, whole], tmp_path / "x", method="mean"),
            "a fully fine-tuned model",
        ),
        (lambda: read_adapter(whole), "this is for adapters alone"),
    ):
        with pytest.raises(AdapterError, match=says):
            refused()
    other = tmp_path / "other"
    shutil.copytree(whole, other)
    (other / MODEL).write_bytes(b"broken")
    with pytest.raises(AdapterError, match="or damaged"):
        read_weights(other)


def adapter(job, name, r=0):
    return dict(read_adapter(replica_folder(job.folder / name, r)).items())


def test_numerics_are_conditions(job):
    """Everything held: what differs is one bit, the dtype, the width of the stack, or the number of
    threads.
    """
    held = adapter(job, "held")
    hashes = {
        name: [record.sha256 for record in read_population(job.folder / name).values()]
        for name in job.recipe.conditions
    }
    assert hashes["held"][0] == hashes["held"][1] and len(hashes["threads"]) == 2
    assert hashes["bit"][0] != hashes["bit"][1]
    bits = [tensors(replica_folder(job.folder / "bit", r)) for r in (0, 1)]
    # of one bit, after training
    assert all((bits[0][name] - bits[1][name]).abs().max() < 1e-2 for name in bits[0])
    seeds = [record.seeds for record in read_population(job.folder / "bit").values()]
    assert seeds[0]["perturb"] != seeds[1]["perturb"] and seeds[0]["order"] == seeds[1]["order"]
    apart = {}
    for name in ("double", "half", "wide", "threads"):
        other = adapter(job, name)
        apart[name] = max(
            float((other[m][1].double() - held[m][1].double()).norm() / held[m][1].double().norm())
            for m in held
        )
    assert 0 < apart["double"] < apart["half"] < 1
    assert apart["wide"] < 0.1 and apart["threads"] < 0.1
    plans = {
        name: json.loads((job.folder / name / "population.json").read_text())["plan"]["stack"]
        for name in ("held", "wide")
    }
    assert plans == {"held": 2, "wide": 4}
    assert next(iter(adapter(job, "double").values()))[1].dtype == torch.float64


def test_weights_are_the_same_bits_again(job, tmp_path):
    before = {r: sha256_file(replica_folder(job.folder / "full", r) / MODEL) for r in (2, 3)}
    pipeline.train(job, "full", only=[2, 3])
    assert {
        r: sha256_file(replica_folder(job.folder / "full", r) / MODEL) for r in (2, 3)
    } == before
