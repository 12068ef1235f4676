"""Two run folders of one procedure: the same seeds again are repeats on one machine, and
reproducibility is between machines.
"""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from toolkit import cli
from toolkit.measurement.machines import measure_runs
from toolkit.measurement.run import MeasureError, save_design
from toolkit.record.outcomes import write_outcomes
from toolkit.record.population import RECORD, Replica, replica_folder, write_text
from toolkit.record.results import ConditionDesign

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

PROMPTS = 60
ENVIRONMENT = {
    "ftk": "0",
    "cores": 2,
    "system": "Linux",
    "python": "3.11",
    "versions": {"torch": "2.13", "numpy": "2"},
    "numerics": {"device": "cpu", "cpu": "A", "gpu": None, "torch": "2.13"},
}


def write_run(folder, answer_RP, *, torch="2.13", mark="m", prompts=PROMPTS):
    """A finished run: replica r answers prompt p right where answer_RP is 1."""
    folder.mkdir()
    lines = [
        json.dumps({"id": str(p), "prompt": f"question {p}", "reference": "yes"})
        for p in range(prompts)
    ]
    (folder / "suite.jsonl").write_text("\n".join(lines))
    (folder / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    data = f"{{train: {folder}/train.jsonl, suites: {{typical: {folder}/suite.jsonl}}}}"
    (folder / "recipe.yaml").write_text(
        f"base: embedded\ndata: {data}\nconditions: {{lora: {{}}}}\n"
    )
    known = {name: {**ENVIRONMENT[name], "torch": torch} for name in ("versions", "numerics")}
    environment = ENVIRONMENT | known
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "base.json").write_text('{"parameters": 1}')
    rows = [
        {
            "suite": "typical",
            "prompt_id": str(p),
            "condition": "lora",
            "procedure": "replica",
            "index": r,
            "text": "yes" if right else "no",
            "answer": "yes" if right else "no",
            "correct": bool(right),
        }
        for r, right_P in enumerate(answer_RP)
        for p, right in enumerate(right_P)
    ]
    write_outcomes(folder / "outcomes" / "typical" / "all.parquet", rows)
    for r in range(len(answer_RP)):
        record = Replica(
            r, "ok", {"order": r}, 1, 0.5, fingerprint=mark, machine=f"A, torch {torch}"
        )
        write_text(replica_folder(folder / "lora", r) / RECORD, record.to_json())
    save_design(
        folder,
        [folder / "outcomes/typical/all.parquet"],
        [ConditionDesign("lora", range(len(answer_RP)))],
        "ftk run",
    )
    return folder


def answers(replicas=12, seed=0):
    return (
        np.random.default_rng(seed).random((replicas, PROMPTS))
        < np.linspace(0.3, 1, replicas)[:, None]
    )


def sources_of(results):
    return {s.figure: s for s in results.conditions[0].sources}


def test_the_same_bits_again_are_repeats_without_a_spread(tmp_path):
    runs = [write_run(tmp_path / name, answers()) for name in "ab"]
    results = measure_runs(runs, tmp_path / "out")
    found = sources_of(results)
    assert found["accuracy"].precision["repeatability"].value == 0
    assert found["accuracy"].precision["intermediate precision"].value > 0.05
    assert found["accuracy"].precision.get("reproducibility") is None  # one machine
    assert results.conditions[0].n_replicas == 12  # not 24: the same seeds are no independent run
    assert any("count as one machine" in note for note in results.notes)
    assert (tmp_path / "out" / "report.html").is_file()


def test_another_machine_adds_its_part(tmp_path):
    here = answers()
    here[:, :12] = True
    there = here.copy()
    there[:, :12] = False  # there a fifth of the prompts is answered otherwise, whatever the seeds
    runs = [write_run(tmp_path / "a", here), write_run(tmp_path / "b", there, torch="2.14")]
    results = measure_runs(runs, tmp_path / "out")
    parts, precision = (
        sources_of(results)["disagreement"].parts,
        sources_of(results)["accuracy"].precision,
    )
    assert parts["machine"].value == pytest.approx(0.2, abs=1e-6)
    assert precision["reproducibility"].value > precision["intermediate precision"].value
    assert any("torch 2.13 and 2.14" in note for note in results.notes)


def test_seeds_of_their_own_on_each_machine_are_measured_too(tmp_path):
    runs = [
        write_run(tmp_path / "a", answers(seed=1)),
        write_run(tmp_path / "b", answers(seed=2), torch="2.14"),
    ]
    for path in (runs[1] / "lora").glob(f"replicas/*/{RECORD}"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"seeds": {"order": 100 + record["replica"]}}))
    results = measure_runs(runs, tmp_path / "out")
    assert results.conditions[0].n_replicas == 24
    assert sources_of(results)["accuracy"].precision["reproducibility"].value > 0


def test_runs_that_are_not_of_one_procedure_are_told(tmp_path):
    a, b = write_run(tmp_path / "a", answers()), write_run(tmp_path / "b", answers(), mark="other")
    assert any(
        "more than machines" in note for note in measure_runs([a, b], tmp_path / "out").notes
    )
    with pytest.raises(MeasureError, match="no second run"):
        measure_runs([a, a], tmp_path / "out")
    other = write_run(tmp_path / "c", answers()[:, :50], prompts=50)
    with pytest.raises(MeasureError, match="asked other prompts"):
        measure_runs([a, other], tmp_path / "out")


def test_the_command_takes_several_runs(tmp_path):
    runs = [str(write_run(tmp_path / name, answers())) for name in "ab"]
    done = CliRunner().invoke(cli.main, ["measure", *runs])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a-together" / "results.json").is_file()
    refused = CliRunner().invoke(cli.main, ["measure", *runs, "--paired"])
    assert refused.exit_code == 2 and "several runs" in refused.output
