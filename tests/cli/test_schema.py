"""The published JSON Schemas are those of the code, and files of ftk keep them."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator

from toolkit.cli import main
from toolkit.cli.schema import FILES, schema_of

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "record" / "old"


@pytest.mark.parametrize("file", FILES)
def test_what_is_published_is_what_the_code_says(file):
    published = json.loads((ROOT / "docs" / "schemas" / f"{file}.schema.json").read_text())
    done = CliRunner().invoke(main, ["schema", file])
    assert published == json.loads(done.stdout) == schema_of(file)
    Draft202012Validator.check_schema(published)


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "benchmarks" / "results" / "demo.json",
        OLD / "run" / "design.json",
        OLD / "run" / "results.json",
        OLD / "run" / "environment.json",
        OLD / "run" / "lora" / "population.json",
        *sorted(OLD.glob("run/lora/replicas/*/replica.json")),
        *sorted(OLD.glob("run/lora/merged/*/*/merge.json")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_files_keep_their_schema(path):
    file = "results.json" if path.name == "demo.json" else path.name
    Draft202012Validator(schema_of(file)).validate(json.loads(path.read_text()))


def test_a_recipe_that_a_run_wrote_keeps_its_schema_and_others_do_not():
    recipe = yaml.safe_load((OLD / "run" / "recipe.yaml").read_text())
    validator = Draft202012Validator(schema_of("recipe.yaml"))
    written = {key: value for key, value in recipe.items() if key != "format"}
    validator.validate(written)
    assert not validator.is_valid(written | {"replicas": "many"})
    assert not validator.is_valid(written | {"replica": 3})


def test_files_are_listed_and_a_wrong_name_is_one_line():
    assert CliRunner().invoke(main, ["schema"]).stdout.split() == [*FILES]
    done = CliRunner().invoke(main, ["schema", "resutls.json"])
    assert done.exit_code == 2 and "did you mean 'results.json'" in done.stderr
