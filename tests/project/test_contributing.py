"""CONTRIBUTING.md says how to add a merge method, a statistic, a control and a format of rows: its
diffs are applied to a copy of the code, which then does all four.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
RECIPE = """base: embedded
data: {train: train.jsonl, suites: {mine: suite.jsonl}}
replicas: 4
stack: 2
compile: never
conditions:
  lora: {rank: 1, epochs: 1, batch_size: 2, lr: 0.01, targets: [q_proj], warmup: 2}
  slow: {from: lora, warmup_power: 2.0}
mitigations: [{merge: weakest, k: 2}]
evaluation: {max_new_tokens: 4}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of the changed code."""
    folder = tmp_path_factory.mktemp("walks")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "toolkit", folder / "toolkit", ignore=ignored)
    for diff in DIFFS:
        subprocess.run(["git", "apply", "-p0"], input=diff, text=True, cwd=folder, check=True)
    rows = [{"question": f"set a timer for {n} minutes", "answer": f"timer {n}"} for n in range(6)]
    prompts = [
        {"prompt": f"set a timer for {n} minutes\n", "reference": f"timer {n}"} for n in range(9)
    ]
    for name, lines in (("train", rows), ("suite", prompts)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    (folder / "recipe.yaml").write_text(RECIPE)
    command = "-m toolkit.cli run recipe.yaml --out run --workers 1"
    subprocess.run(
        [sys.executable, *command.split()],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        check=True,
        capture_output=True,
    )
    return folder / "run"


def test_the_diffs_are_small():
    assert len(DIFFS) == 4 and all(len(diff.splitlines()) < 30 for diff in DIFFS)


def test_a_merge_method_and_a_statistic_are_in_results_and_report(run):
    report, results = (run / "report.html").read_text(), (run / "results.json").read_text()
    for shown in ("weakest", "answers that no other run gives"):
        assert shown in report and shown in results
    [merged] = {
        json.loads(path.read_text())["method"] for path in run.glob("lora/merged/*/*/merge.json")
    }
    assert merged == "weakest"


def test_a_control_trains_otherwise_and_leaves_other_conditions_alone(run):
    def losses(condition: str) -> list[float]:
        paths = sorted((run / condition / "replicas").glob("*/replica.json"))
        return [json.loads(path.read_text())["final_loss"] for path in paths]

    assert len(losses("lora")) == 4 and losses("lora") != losses("slow")
    said = (run / "recipe.yaml").read_text()
    assert said.count("warmup_power") == 1


def test_rows_of_a_new_format_are_trained_on(run):
    assert all(path.is_file() for path in run.glob("lora/replicas/*/adapter_model.safetensors"))
    assert len(list(run.glob("lora/replicas/*/adapter_model.safetensors"))) == 4
