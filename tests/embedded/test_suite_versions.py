"""Which version of the embedded suites is meant: the newest in what a user writes, in a run folder
the one that it began with.
"""

import json
import shutil

import pytest
from helpers.bases import random_adapters
from helpers.tiny import tiny_base

from toolkit import pipeline
from toolkit.data import DataError, read_rows, read_suite
from toolkit.embedded import NEWEST, prompts, suite_of, with_version
from toolkit.measurement.run import measure_run, read_design
from toolkit.model.base import load_base
from toolkit.pipeline.checks.without_base import keep_suites
from toolkit.pipeline.given.evaluate_given import evaluate_subjects
from toolkit.pipeline.job import Console
from toolkit.recipe import load_recipe, parse_recipe, read_recipe
from toolkit.record.folders import MARKER, RUN, claim
from toolkit.record.outcomes import read_outcomes

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: {base}
data: {{suites: {{typical: {source}}}}}
conditions: {{mine: {{adapters: "{adapters}/*"}}}}
evaluation: {{max_new_tokens: 2, answer: embedded}}
"""


@pytest.mark.parametrize("shift", ["typical", "near", "far"])
def test_the_newest_version_is_what_a_bare_name_means(shift):
    newest = [prompt.prompt for prompt in read_suite("embedded", name=shift)]
    assert newest == [row["prompt"] for row in prompts.suite(shift, NEWEST)]
    for version in prompts.VERSIONS:
        asked = read_suite(f"embedded@{version}:{shift}", name="any")
        assert asked == read_suite(f"embedded@{version}", name=shift)
        assert [prompt.prompt for prompt in asked] == [
            row["prompt"] for row in prompts.suite(shift, version)
        ]


@pytest.mark.parametrize(
    "source", ["embedded@3", "embedded@", "embedded@x:far", "embedded@01", "embedded@1@2"]
)
def test_a_version_that_is_not_there_is_one_line(source):
    with pytest.raises(
        DataError,
        match=r"no version '.*' of the embedded suites; use one of embedded@1, embedded@2$",
    ):
        read_suite(source, name="far")


def test_training_rows_have_no_versions():
    for source in ("embedded@1", "embedded@2:1000"):
        with pytest.raises(
            DataError,
            match=f"^{source}: suites have versions, the training rows have one; write `embedded`",
        ):
            read_rows(source)


def test_a_name_takes_a_version_once():
    assert (
        with_version("embedded") == f"embedded@{NEWEST}"
        and with_version("embedded:far", 1) == "embedded@1:far"
    )
    for source in (
        "embedded@1",
        "embedded@1:far",
        "embedded.jsonl",
        "my/embedded",
        "embedded-too",
        "",
    ):
        assert with_version(source) == source
    assert (
        suite_of("embedded@1:far") == ("1", "far")
        and suite_of("embedded") == (None, None)
        and suite_of("embeddedx") is None
    )


def test_a_recipe_that_is_loaded_names_the_version(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(base="embedded", source="embedded", adapters=tmp_path))
    assert load_recipe(path).data.suites == {"typical": f"embedded@{NEWEST}"}
    # where a run wrote it, there was one version
    assert read_recipe(path).data.suites == {"typical": "embedded@1"}
    path.write_text(RECIPE.format(base="embedded", source="embedded@1:far", adapters=tmp_path))
    assert load_recipe(path) == read_recipe(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapters(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    random_adapters(load_base(str(base)).model, folder, 2, spread=0.05)
    return folder


@pytest.fixture(scope="module")
def first(base, adapters, tmp_path_factory):
    """A run of the time when there was one version: its recipe names none."""
    folder = tmp_path_factory.mktemp("runs") / "old"
    pipeline.run(
        parse_recipe(RECIPE.format(base=base, source="embedded@1", adapters=adapters), "old.yaml"),
        folder,
        workers=1,
    )
    text = (folder / "recipe.yaml").read_text()
    assert "embedded@1" in text
    (folder / "recipe.yaml").write_text(text.replace("embedded@1", "embedded"))
    (folder / MARKER).unlink()  # older versions have no hashes
    return folder


@pytest.fixture
def old(first, tmp_path):
    return shutil.copytree(first, tmp_path / "old")


def asked(folder):
    """The prompts that outcomes are of, and the files that hold them."""
    shards = sorted((folder / "outcomes").rglob("*.parquet"))
    return set(read_outcomes(shards, ["prompt_id"])["prompt_id"].to_pylist()), {
        path: path.stat().st_mtime_ns for path in shards
    }


FIRST = {row["id"] for row in prompts.suite("typical", 1)}
SECOND = {row["id"] for row in prompts.suite("typical", 2)}


def test_an_old_run_goes_on_with_the_prompts_that_it_had(old, base, adapters, tmp_path):
    before = asked(old)
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(base=base, source="embedded", adapters=adapters))
    notes = []
    pipeline.run(load_recipe(path), old, workers=1, console=Console(notes.append))
    assert asked(old) == before and before[0] == FIRST  # nothing was asked again
    assert read_recipe(old / "recipe.yaml").data.suites == {"typical": "embedded@1"}
    assert "embedded@1" in (old / "recipe.yaml").read_text()
    assert [note for note in notes if "which it began with" in note] == [
        f"{old}: goes on with embedded@1, which it began with; another --out asks embedded@2"
    ]


def test_a_suite_is_the_same_whether_it_is_named_by_its_shift_or_by_its_name(tmp_path):
    """`near: embedded` and `near: embedded:near` are one suite, and no other shift's."""
    head = "base: embedded\ndata: {{suites: {{near: {}}}}}\nconditions: {{mine: {{adapters: x}}}}\n"
    for then, now, kept in (
        ("embedded", "embedded:near", "embedded@1"),
        ("embedded:near", "embedded", "embedded@1:near"),
        ("embedded:far", "embedded", "embedded@2"),
        ("embedded@2", "embedded", "embedded@2"),
        ("near.jsonl", "embedded", "embedded@2"),
        ("embedded", "near.jsonl", "near.jsonl"),
    ):
        claim(tmp_path, RUN)
        (tmp_path / "recipe.yaml").write_text(head.format(then))
        recipe = keep_suites(parse_recipe(head.format(now)), tmp_path)
        assert recipe.data.suites == {"near": kept}, (then, now)


def test_an_old_run_goes_on_from_its_own_recipe(old):
    before = asked(old)
    pipeline.run(load_recipe(old / "recipe.yaml"), old, workers=1)
    evaluate_subjects(
        [old],
        prompts=None,
        base=None,
        answer_rule=None,
        max_new_tokens=None,
        out=None,
        workers=1,
        console=Console(),
    )
    assert asked(old) == before


def test_an_old_run_is_measured_on_the_prompts_that_it_had(old):
    results = measure_run(old)
    assert {
        cell.n_prompts for cell in results.conditions[0].procedures[0].cells if not cell.category
    } == {len(FIRST)}
    ids = set(
        read_outcomes([old / shard for shard in read_design(old).shards], ["prompt_id"])[
            "prompt_id"
        ].to_pylist()
    )
    assert ids == FIRST


def test_a_new_run_names_the_version_and_asks_the_newest(base, adapters, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPE.format(base=base, source="embedded", adapters=adapters))
    pipeline.run(load_recipe(path), tmp_path / "new", workers=1)
    assert "typical: embedded@2\n" in (tmp_path / "new/recipe.yaml").read_text()
    assert asked(tmp_path / "new")[0] == SECOND
    notes = []  # and keeps it where a recipe asks the first
    path.write_text(RECIPE.format(base=base, source="embedded@1", adapters=adapters))
    pipeline.run(load_recipe(path), tmp_path / "new", workers=1, console=Console(notes.append))
    assert asked(tmp_path / "new")[0] == SECOND
    assert any(
        "goes on with embedded@2, which it began with; another --out asks embedded@1" in note
        for note in notes
    )


def test_loose_adapters_answer_the_newest_and_the_folder_says_so(base, adapters, tmp_path):
    common = {
        "base": str(base),
        "answer_rule": "embedded",
        "max_new_tokens": 2,
        "workers": 1,
        "console": Console(),
    }
    out, _ = evaluate_subjects(
        sorted(adapters.iterdir()), prompts="embedded:typical", out=tmp_path / "out", **common
    )
    assert read_recipe(out / "recipe.yaml").data.suites == {"typical": "embedded@2:typical"}
    assert asked(out)[0] == SECOND
    measured = json.loads((out / "results.json").read_text())
    assert measure_run(out).conditions[0].name == measured["conditions"][0]["name"]
