"""`ftk verify`: replicas trained again, in a scratch folder, must come out with the bits that the
run has.
"""

import json
import shutil

import pytest
from click.testing import CliRunner
from helpers.run_folders import rewrite

from toolkit import pipeline
from toolkit.cli import main
from toolkit.data import read_rows
from toolkit.pipeline.job import RunError
from toolkit.pipeline.verify import verify
from toolkit.recipe import parse_recipe
from toolkit.record.population import replica_folder

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: embedded
data: {{train: {train}}}
replicas: 6
stack: 4
conditions:
  a: {{epochs: 1, batch_size: 8, lr: 1e-2, dropout: 0.1, snapshots: {{count: 2, start: 0.5}},
      averages: [swa]}}
  b: {{epochs: 1, batch_size: 8, lr: 1e-3}}
  student: {{method: distill, teacher: {{condition: b, ensemble: probabilities, k: 2}}}}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[:16]))
    recipe = parse_recipe(RECIPE.format(train=train), "test.yaml")
    with pipeline.open_run(recipe, folder / "run", workers=1) as job:
        for name in recipe.training_order:
            pipeline.train(job, name)
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def verdicts(found):
    return {(one["condition"], one["replica"]): one["verdict"] for one in found["replicas"]}


def test_an_untouched_run_verifies_and_stays_untouched(run):
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    }
    found = verify(run, workers=1)
    # of each condition a stack
    firsts = (
        {("a", r) for r in range(4)}
        | {("b", r) for r in range(4)}
        | {("student", r) for r in range(3)}
    )
    assert verdicts(found) == dict.fromkeys(firsts, "same")
    assert found["environment"] == {}
    assert {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for path in run.rglob("*")
        if path.is_file()
    } == before


def test_weights_that_the_recipe_does_not_make_are_found_and_measured(run):
    # A and B both: the weight change grows by 2.01 %
    rewrite(replica_folder(run / "a", 5), lambda tensor: tensor * 1.01)
    found = verify(run, conditions=["a"], replicas=[4], workers=1)
    # the stack of replica 4, and no other
    assert verdicts(found) == {
        ("a", 4): "same",
        ("a", 5): "different",
    }
    wrong = found["replicas"][1]
    assert wrong["files"] == ("adapter_model.safetensors",)
    assert wrong["distance"] == pytest.approx((1.01**2 - 1) / 1.01**2, rel=1e-4)


def test_files_that_changed_after_training_are_damage_not_difference(run):
    (replica_folder(run / "a", 0) / "averages/swa/adapter_model.safetensors").write_bytes(b"broken")
    found = verify(run, conditions=["a"], workers=1)
    assert verdicts(found)["a", 0] == "damaged" and verdicts(found)["a", 1] == "same"


def test_another_environment_is_named(run):
    environment = json.loads((run / "environment.json").read_text())
    environment["numerics"]["cpu"] = "abacus"
    (run / "environment.json").write_text(json.dumps(environment))
    assert verify(run, conditions=["b"], workers=1)["environment"]["cpu"][0] == "abacus"


def test_what_cannot_be_verified_is_refused_in_one_line(run):
    with pytest.raises(RunError, match="trains no condition 'c'"):
        verify(run, conditions=["c"])
    with pytest.raises(RunError, match="replica 77 is not there"):
        verify(run, conditions=["a"], replicas=[77])
    recipe = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(recipe.replace("seed: 0", "seed: 1"))
    with pytest.raises(RunError, match="another recipe, data, base or teacher"):
        verify(run, conditions=["a"])


def test_students_whose_teachers_have_changed_are_not_verified_against_them(run):
    rewrite(replica_folder(run / "b", 1), lambda tensor: tensor * 2)
    with pytest.raises(
        RunError, match="student/replicas/00000: was trained from another .* teacher"
    ):
        verify(run, conditions=["student"], workers=1)


def test_the_command_says_no_with_exit_code_3(run):
    assert (
        CliRunner().invoke(main, ["verify", str(run), "-c", "b", "--workers", "1"]).exit_code == 0
    )
    # the same change of weights from other factors
    rewrite(replica_folder(run / "b", 2), lambda tensor: -tensor)
    result = CliRunner().invoke(main, ["verify", str(run), "-c", "b", "--workers", "1"])
    assert result.exit_code == 3
    assert (
        "b, replica 2: adapter_model.safetensors came out otherwise" in result.output
        and "3 of 4" in result.output
    )
