"""A base in four bits: its adapters are those of peft on the same packed weights, and a run goes
from recipe to results.
"""

import importlib.util
import json

import numpy as np
import pytest
from helpers.tiny import tiny_base
from helpers.training import REAL, peft_alone, plan_of, rows, seeds_of

from toolkit.cli import main
from toolkit.data import read_rows
from toolkit.model import base as bases
from toolkit.model.base import BaseError, load_base
from toolkit.pipeline.train_stacks import training_plan
from toolkit.recipe import LoraCondition, load_recipe
from toolkit.train import train_stack

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the extra ftk[4bit] is not installed"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("four-bits") / "base")


@needs_bitsandbytes
def test_a_stack_on_packed_weights_equals_peft(folder):
    base = load_base(str(folder), "nf4")
    before = base.sha256
    condition = LoraCondition(**REAL)
    examples = rows(seed=5)
    plan = plan_of(condition, examples)
    seeds_R = seeds_of(range(4))
    trained = train_stack(base.model, examples, condition, plan, seeds_R)
    whole = train_stack(load_base(str(folder)).model, examples, condition, plan, seeds_R)
    packed = load_base(str(folder), "nf4")
    assert packed.sha256 == before != load_base(str(folder)).sha256
    losses, _, _ = peft_alone(packed.model, examples, condition, plan, seeds_R[2], plan.steps)
    np.testing.assert_allclose(trained.loss_SR[:20, 2], losses[:20], rtol=1e-4)
    # Four bits are another base, far beyond rounding (1e-6). By how much depends on the processor:
    # 2e-4 seen, and above 1e-3.
    assert np.abs(trained.loss_SR[0] / whole.loss_SR[0] - 1).max() > 1e-4


@needs_bitsandbytes
def test_a_run_from_recipe_to_results(folder, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for name, start, end in (("train", 0, 24), ("typical", 24, 34)):
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[start:end])
        )
    recipe.write_text(
        f"base: {folder}\ndtype: nf4\ncompile: always\n"
        f"data: {{train: {tmp_path}/train.jsonl, suites: {{typical: "
        f"{tmp_path}/typical.jsonl}}}}\nreplicas: 4\nstack: 4\n"
        "conditions:\n  lora: {rank: 2, epochs: 1, batch_size: 8}\nmitigations: "
        "[{merge: mean, k: 2}]\nevaluation: {max_new_tokens: 2}\n"
    )
    run = tmp_path / "run"
    assert main(
        ["run", str(recipe), "--out", str(run), "--workers", "1"], standalone_mode=False
    ) in (None, 0)
    written = json.loads((run / "base.json").read_text())
    assert (
        written["dtype"] == "nf4"
        and written["bitsandbytes"]
        and written["parameters"] == load_base(str(folder)).parameters
    )
    assert json.loads((run / "results.json").read_text())["conditions"][0]["n_replicas"] == 4
    plan, _ = training_plan(load_recipe(recipe), "lora", "cpu")
    assert not plan.compiled
    assert main(["verify", str(run), "--workers", "1"], standalone_mode=False) in (None, 0)


def test_what_four_bits_cannot_do(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BaseError, match=r"pip install 'ftk\[4bit\]'"):
        load_base(f"{folder}/", "nf4")  # by another name: loaded models are kept
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"base: {folder}\ndata: {{train: embedded}}\nreplicas: 2\nconditions: {{all: "
        f"{{method: full, dtype: nf4, epochs: 0.1}}}}\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train-replicas", str(recipe), "--out", str(tmp_path / "run")])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == 2 and "conditions.all" in said and "four bits" in said
