"""What an earlier version wrote goes on: a run folder to the bit, results, and limits of the gate.

The files in `old/` are of the first release of their formats; they are never made again.
"""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from toolkit.cli import main
from toolkit.record.plain import from_plain
from toolkit.record.population import read_population, read_records
from toolkit.record.results import ResultsError, load_results
from toolkit.record.shapes import Input

OLD = Path(__file__).parent / "old"


def ftk(*arguments: str | Path) -> str:
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert done.exit_code in (0, 1), done.stderr
    return done.output


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        str(path.relative_to(folder)): load_file(path) for path in folder.rglob("*.safetensors")
    }


def test_an_old_run_goes_on_to_the_bit(tmp_path, monkeypatch):
    study = shutil.copytree(OLD, tmp_path / "study")
    condition = study / "run" / "lora"
    before, finished = tensors(condition), read_population(condition)
    assert len(finished) == 4
    for replica in ("00002", "00003"):
        shutil.rmtree(condition / "replicas" / replica)
    monkeypatch.chdir(study)
    ftk("run", "recipe.yaml", "--out", "run", "--workers", "1")
    records, after = read_records(condition), tensors(condition)
    assert [records[r] for r in (0, 1)] == [finished[r] for r in (0, 1)]
    assert all(records[r].seeds == finished[r].seeds for r in range(4))
    assert {record.fingerprint for record in records.values()} == {finished[0].fingerprint}
    for name, weights in before.items():
        kept = "replicas/00000" in name or "replicas/00001" in name
        for key, value in weights.items():  # another processor may round otherwise
            assert torch.allclose(after[name][key], value, rtol=0.0, atol=0.0 if kept else 1e-5)


def test_old_results_are_read_and_make_a_report(tmp_path):
    results = load_results(OLD / "run" / "results.json")
    assert results.conditions[0].n_replicas == 4
    assert results.conditions[0].single.cell("far").disagreement.n_prompts == 2
    study = shutil.copytree(OLD, tmp_path / "study")
    ftk("report", study / "run")
    assert (study / "run" / "report.html").read_text().startswith("<!doctype html>")


def test_old_limits_judge_new_runs(tmp_path):
    draw = random.Random(3)
    rows = [
        {
            "replica": r,
            "prompt": f"q{p}",
            "output": "a" if draw.random() < 0.8 else "b",
            "reference": "a",
        }
        for r in range(40)
        for p in range(30)
    ]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = ftk("gate", OLD / "limits.json", "--candidate", tmp_path / "runs.jsonl")
    assert "PASS" in told or "FAIL" in told


@pytest.mark.parametrize("version", [1, 3, None, "2"])
def test_other_versions_of_results_are_refused_in_one_line(tmp_path, version):
    data = json.loads((OLD / "run" / "results.json").read_text()) | {"version": version}
    (tmp_path / "results.json").write_text(json.dumps(data))
    with pytest.raises(ResultsError, match=r"this ftk reads version 2: `ftk measure RUN`") as error:
        load_results(tmp_path / "results.json")
    assert "\n" not in str(error.value)


def test_a_typed_dict_keeps_the_keys_that_it_does_not_name():
    data = {"path": "a", "weight": 1, "sha256": "b", "more": [1, {"x": None}]}
    assert from_plain(Input, data) == data
