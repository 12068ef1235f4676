"""A folder knows what it is: nothing is written before it is claimed, inputs are never outputs, and
what was changed is noticed.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from toolkit import environment, pipeline
from toolkit.cli import main
from toolkit.data import read_rows
from toolkit.measurement.gate.limits import learn, save_limits
from toolkit.measurement.run import read_design
from toolkit.model.adapters import AdapterError
from toolkit.model.adopt import adopt
from toolkit.model.base import load_base
from toolkit.pipeline.engines import ENGINES
from toolkit.pipeline.verify import verify
from toolkit.recipe import RecipeError, dump_recipe, parse_recipe
from toolkit.record.files import remove_leftovers
from toolkit.record.folders import MARKER, FolderError, check_claim, claim, read_marker
from toolkit.record.outcomes import read_outcomes
from toolkit.record.population import read_population, replica_folder

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

RECIPE = """
base: embedded
data:
  train: {folder}/train.jsonl
  suites: {{typical: {folder}/suite.jsonl}}
replicas: 4
stack: 4
conditions:
  {name}: {{epochs: 1, batch_size: 4, lr: {lr}, dropout: 0.1}}
mitigations: [{{merge: mean, k: 2}}]
evaluation: {{max_new_tokens: 3, answer: embedded}}
"""


class Inline:
    """An engine that does the work here and now: these tests are about files, and a process of its
    own takes seconds to start.
    """

    def __init__(self, device: str, workers: int | None):
        environment.make_deterministic(device)
        self.machines: set[str] = set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run(self, function, units, on_progress=None):
        for unit in units:
            yield unit, function(unit, lambda share: None)


@pytest.fixture(scope="module", autouse=True)
def inline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "local", Inline)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Recipes, predictions, limits, and a finished run of the first recipe."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [dict(row) for row in read_rows("embedded")[:14]]
    for name, part in {"train": rows[:8], "suite": rows[8:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    (folder / "a.yaml").write_text(RECIPE.format(folder=folder, name="lora", lr="1e-2"))
    (folder / "b.yaml").write_text(RECIPE.format(folder=folder, name="lora", lr="1e-3"))
    (folder / "c.yaml").write_text(RECIPE.format(folder=folder, name="other", lr="1e-3"))
    answers = [
        {"replica": r, "prompt": p, "output": str((r * p) % 3), "reference": "1"}
        for r in range(4)
        for p in range(6)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (folder / "merge.yml").write_text(
        "merge_method: linear\nmodels:\n"
        + "".join(f"  - model: {folder}/run/lora/replicas/0000{r}\n" for r in (0, 1))
    )
    answer_RP = np.arange(30 * 6).reshape(30, 6) % 3
    limits = learn(
        answer_RP,
        ["x", "y", "z"],
        (answer_RP == 1).astype(float),
        ["typical"] * 6,
        [str(p) for p in range(6)],
    )
    save_limits(folder / "limits.json", limits)
    pipeline.run(
        parse_recipe((folder / "a.yaml").read_text(), str(folder / "a.yaml")),
        folder / "run",
        workers=1,
    )
    return folder


@pytest.fixture
def run(inputs, tmp_path):
    return shutil.copytree(inputs / "run", tmp_path / "run", symlinks=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def marker(folder: Path) -> dict:
    found = read_marker(folder)
    assert found is not None
    return found


def ftk(*words) -> tuple[int, str]:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def refused(folder: Path, *words) -> str:
    """The command ends in one line with exit code 2, and all in the folder is byte for byte what it
    was.
    """
    before = contents(folder)
    code, said = ftk(*words)
    assert (code, len(said.strip().splitlines())) == (2, 1), said
    assert contents(folder) == before
    return said


def foreign(folder: Path) -> Path:
    """A folder of the user's own, with names that ftk would write too."""
    folder.mkdir()
    for name in (
        "notes.txt",
        "README.md",
        "recipe.yaml",
        "results.json",
        "base.json",
        ".draft.tmp",
        ".chapter.1234.tmp",
    ):
        (folder / name).write_text(f"{name} of the user")
    return folder


FOREIGN = {
    "results": {"results.json": '{"acc": 0.7}', "report.html": "<h1>mine</h1>"},
    "results of ftk, own report": {"results.json": None, "report.html": "<h1>mine</h1>"},
    "metrics": {"metrics.json": '{"mine": 1}'},
    "forecast": {"forecast.json": '{"rain": "no"}'},
    "merge": {"merge.json": '{"mine": 1}', "adapter_model.safetensors": "precious"},
    "groups": {"g000/merge.json": "[]"},
    "run": {"recipe.yaml": "flour: 1", "environment.json": '{"PATH": "/bin"}'},
    "population": {"town/population.json": '{"people": 7}'},
}


@pytest.mark.parametrize("theirs", FOREIGN)
def test_a_folder_is_not_ftks_because_of_the_names_of_its_files(inputs, tmp_path, theirs):
    out = tmp_path / "mine"
    for name, text in FOREIGN[theirs].items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text((inputs / "run/results.json").read_text() if text is None else text)
    (inputs / "rows.csv").write_text("run,f1\n0,0.1\n1,0.2\n2,0.3\n")
    for command in (
        "measure",
        "run",
        "check",
        "merge",
        "merge, groups",
        "merge, dense",
        "evaluate",
    ):
        refused(out, *WRITERS[command].format(i=inputs, out=out).split())
    refused(out, "measure", inputs / "rows.csv", "--out", out)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("how", ["--method mean", "--method mean --dense"])
def test_a_merge_is_not_replaced_by_another_merge(inputs, tmp_path, how, marked):
    one, two, three = (
        shutil.copytree(inputs / f"run/lora/replicas/0000{r}", tmp_path / f"adapter-{r}")
        for r in range(3)
    )
    out = tmp_path / "merged"
    again = ("merge", one, two, *how.split(), "--out", out)
    assert ftk(*again)[0] == 0
    if not marked:  # as older versions left it
        (out / MARKER).unlink()
    for other in (
        (one, three, "--method", "mean"),
        (one, two, "--method", "ties"),
        (one, two, "--method", "mean", "--rank", "2"),
    ):
        said = refused(out, "merge", *other, *how.split()[2:], "--out", out)
        assert "another --out, or --force" in said
    (tmp_path / "moved").mkdir()
    moved = two.rename(tmp_path / "moved" / "adapter-1")
    assert ftk("merge", moved, one, *how.split(), "--out", out)[0] == 0  # the same adapters
    assert ftk("merge", one, three, *how.split(), "--out", out, "--force")[0] == 0
    refused(out, *again[:2], moved, *again[3:])


WRITERS = {
    "run": "run {i}/a.yaml --out {out}",
    "train-replicas": "train-replicas {i}/a.yaml --out {out}",
    "demo": "demo --replicas 2 --out {out}",
    "check": "check {i}/a.yaml --no-probe --out {out}",
    "evaluate": "evaluate {i}/run/lora --prompts {i}/suite.jsonl --out {out}",
    "evaluate, ensemble": "evaluate {i}/run/lora --prompts {i}/suite.jsonl --ensemble vote -k 2 "
    "--out {out}",
    "merge": "merge {i}/run/lora/replicas/00000 {i}/run/lora/replicas/00001 --method mean --out "
    "{out}",
    "merge, groups": "merge {i}/run/lora --method mean --groups 2 --out {out}",
    "merge, dense": "merge {i}/run/lora --method mean --dense --out {out}",
    "merge, mergekit": "merge --config {i}/merge.yml --out {out}",
    "measure": "measure {i}/predictions.jsonl --out {out}",
    "measure, runs": "measure {i}/run {i}/run-2 --out {out}",
    "gate": "gate {i}/limits.json --save {out}/notes.txt",
    "init": "init {out}/recipe.yaml",
    "card": "card {out}",
    "report": "report {out}",
    "claims": "claims {out}",
}


@pytest.mark.parametrize("command", WRITERS)
def test_no_command_writes_into_a_folder_that_is_not_its_own(inputs, tmp_path, command):
    out = foreign(tmp_path / "mine")
    refused(out, *WRITERS[command].format(i=inputs, out=out).split())


@pytest.mark.parametrize("recipe", ["b.yaml", "c.yaml"])
@pytest.mark.parametrize("command", ["run", "train-replicas", "check"])
def test_a_run_of_another_recipe_is_as_it_was(inputs, run, command, recipe):
    said = refused(
        run, *WRITERS[command].replace("a.yaml", recipe).format(i=inputs, out=run).split()
    )
    assert "of another recipe" in said and "another --out" in said


EARLY = {
    "another training": ("b.yaml", "", "", "run", "holds replicas of another recipe (lr)"),
    "another condition": (
        "c.yaml",
        "",
        "",
        "run",
        "holds the run of another recipe (conditions lora)",
    ),
    "another seed": (
        "a.yaml",
        "replicas: 4",
        "seed: 3\nreplicas: 4",
        "run",
        "another recipe (seed)",
    ),
    "foreign": ("a.yaml", "", "", ".", "is not empty"),
    "no base": ("a.yaml", "base: embedded", "base: ~nobody/x", "new", "no such folder"),
    "no category": (
        "a.yaml",
        "replicas: 4",
        "criteria: [{name: c, suite: typical, category: nosuch, limit: 0.05}]\nreplicas: 4",
        "new",
        "no category 'nosuch'",
    ),
}


@pytest.mark.parametrize("case", EARLY)
def test_what_needs_no_base_is_refused_before_it_is_loaded(inputs, run, case):
    name, old, new, out, told = EARLY[case]
    recipe = run.parent / "asked.yaml"
    recipe.write_text((inputs / name).read_text().replace(old, new))
    words = [str(recipe), "--out", str(run.parent / out)]
    code = (
        "import sys; from toolkit.cli import main\nfor c in ('run', 'train-replicas', "
        "'check'):\n try: main([c, *sys.argv[1:]])\n"
    )
    code += (
        " except SystemExit as stop: print(stop.code, *({'torch', 'transformers'} & "
        "set(sys.modules)))"
    )
    before = contents(run.parent)
    found = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines() == ["2"] * 3 and found.stderr.count(told) == 3, found
    assert contents(run.parent) == before


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize(
    "command",
    ["evaluate", "evaluate, ensemble", "merge", "merge, groups", "merge, dense", "measure"],
)
def test_what_is_no_run_does_not_go_into_one(inputs, run, command, marked):
    if not marked:  # as older versions left it
        (run / MARKER).unlink()
    assert "holds a run" in refused(run, *WRITERS[command].format(i=inputs, out=run).split())


def test_an_input_is_never_written_over(inputs, run, tmp_path):
    adapters = [
        shutil.copytree(inputs / "run/lora/replicas" / f"0000{r}", tmp_path / f"adapter-{r}")
        for r in (0, 1)
    ]
    assert "is read here" in refused(
        tmp_path, "merge", *adapters, "--method", "mean", "--out", adapters[0]
    )
    merged = run / "lora/merged/mean-k2/g000"
    assert "is read here" in refused(
        run, "merge", merged, adapters[0], "--method", "mean", "--out", merged
    )
    measured = tmp_path / "measured"
    assert ftk("measure", inputs / "predictions.jsonl", "--out", measured)[0] == 0
    shutil.copy(inputs / "limits.json", tmp_path / "limits.json")
    assert "is read here" in refused(
        tmp_path, "gate", tmp_path / "limits.json", "--save", tmp_path / "limits.json"
    )
    assert "is read here" in refused(
        tmp_path, "gate", tmp_path / "limits.json", "--save", tmp_path / "limits.json", "--force"
    )
    assert "is read here" in refused(
        run, "evaluate", run / "lora", "--prompts", inputs / "suite.jsonl", "--out", run / "lora"
    )


def test_results_of_one_file_are_not_replaced_by_those_of_another(inputs, tmp_path):
    out = tmp_path / "measured"
    other = tmp_path / "other.jsonl"
    other.write_text((inputs / "predictions.jsonl").read_text().replace('"1"', '"0"'))
    assert ftk("measure", inputs / "predictions.jsonl", "--out", out)[0] == 0
    assert ftk("measure", inputs / "predictions.jsonl", "--out", out)[0] == 0  # the same again
    assert "of something else" in refused(out, "measure", other, "--out", out)
    assert ftk("measure", other, "--out", out, "--force")[0] == 0
    assert marker(out)["of"]["source"] == str(other)
    mine = foreign(tmp_path / "mine")
    before = contents(mine)
    assert ftk("measure", other, "--out", mine, "--force")[0] == 0
    kept = {
        name: text
        for name, text in contents(mine).items()
        if name not in ("results.json", "report.html", MARKER)
    }
    assert kept == {name: text for name, text in before.items() if name != "results.json"}


def test_a_readme_that_somebody_wrote_or_edited_stays(run):
    merged = run / "lora/merged/mean-k2/g000"
    (merged / "README.md").write_text((merged / "README.md").read_text() + "\nMy remarks.\n")
    assert "edited" in refused(run, "card", merged)
    notes = []
    recipe = pipeline.open_folder(run)
    pipeline.run(recipe, run, workers=1, console=pipeline.Console(note=notes.append))
    assert (merged / "README.md").read_text().endswith("My remarks.\n") and any(
        "kept as it is" in note for note in notes
    )
    assert (
        ftk("card", merged, "--force")[0] == 0
        and "My remarks" not in (merged / "README.md").read_text()
    )
    assert ftk("card", merged)[0] == 0


def test_only_leftovers_of_ftk_are_removed(tmp_path):
    theirs = [".draft.tmp", ".chapter.1234.tmp", ".notes.deadbeef.tmp", "x.tmp", ".tmp"]
    ours = [
        ".recipe.yaml.1234.tmp",
        ".00017.0a1b2c3d.tmp",
        ".g003.0a1b2c3d.old.tmp",
        ".steps-00000.parquet.7.tmp",
        ".ftk.json.7.tmp",
    ]
    for name in (*theirs, *ours):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(theirs)


def test_trained_replicas_are_never_taken_for_links(inputs, run, tmp_path):
    (run / "lora" / "population.json").unlink()
    given = parse_recipe(
        f"base: embedded\ndata: {{suites: {{typical: {inputs}/suite.jsonl}}}}\n"
        f"conditions: {{lora: {{adapters: {inputs}/run/lora/replicas}}}}",
        "given.yaml",
    )
    before = contents(run)
    with pytest.raises(AdapterError, match="replicas that ftk trained"):
        pipeline.run(given, run, workers=1)
    for record in run.glob("lora/replicas/*/replica.json"):
        record.unlink()
    with pytest.raises(AdapterError, match="replicas that ftk trained"):
        adopt(
            run / "lora",
            sorted((inputs / "run/lora/replicas").iterdir()),
            load_base("embedded", "float32", "cpu"),
        )
    assert contents(run) == {
        name: text for name, text in before.items() if not name.endswith("replica.json")
    }


def test_a_lost_ledger_is_written_again_and_hides_no_other_recipe(inputs, run):
    weights = {name: text for name, text in contents(run).items() if name.endswith(".safetensors")}
    (run / "lora" / "population.json").unlink()
    refused(run, "run", inputs / "b.yaml", "--out", run)
    pipeline.run(pipeline.open_folder(run), run, workers=1)
    assert (run / "lora" / "population.json").is_file()
    assert {
        name: text for name, text in contents(run).items() if name.endswith(".safetensors")
    } == weights


def test_claims(tmp_path):
    claim(tmp_path / "x", "measured", {"source": "a", "sha256": "1"})
    claim(tmp_path / "x", "measured", {"source": "b", "sha256": "1"})  # it was moved
    assert marker(tmp_path / "x")["of"]["source"] == "b"
    for kind, of in (("run", {}), ("measured", {"source": "a", "sha256": "2"})):
        with pytest.raises(FolderError, match="choose another --out"):
            claim(tmp_path / "x", kind, of)
    with pytest.raises(FolderError, match="holds results"):
        claim(tmp_path / "x", "run", force=True)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed/.lock").touch()
    (tmp_path / "killed/.ftk.json.77.tmp").write_text('{"ki')
    check_claim(tmp_path / "killed", "run")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        check_claim(tmp_path / "file", "run")
    (tmp_path / "x" / MARKER).write_text('{"kind": "run", "format": 99, "of": {}}')
    with pytest.raises(FolderError, match="a newer ftk wrote it"):
        check_claim(tmp_path / "x", "run")


# -- what defines the bits -----------------------------------------------------------------------


def again(folder: Path) -> list[str]:
    """Run on what is there; what is said."""
    notes: list[str] = []
    pipeline.run(
        pipeline.open_folder(folder), folder, workers=1, console=pipeline.Console(note=notes.append)
    )
    return notes


def set_alpha(folder: Path, alpha: float) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": alpha}))


def forget_hashes(run: Path) -> None:
    """Records as older versions wrote them: hashes of weights alone."""
    for path in run.glob("lora/replicas/*/replica.json"):
        record = json.loads(path.read_text())
        record["sha256"] = {
            name: digest
            for name, digest in record["sha256"].items()
            if name.endswith(".safetensors")
        }
        path.write_text(json.dumps(record))
    for path in [*run.rglob("merged/*/*/ftk.json"), run / MARKER]:
        path.unlink()


@pytest.mark.parametrize("old", [False, True])
def test_a_changed_alpha_is_noticed_everywhere(inputs, run, old):
    if old:
        forget_hashes(run)
    replica = replica_folder(run / "lora", 1)
    right = (replica / "adapter_config.json").read_text()
    set_alpha(replica, 400)
    found = {one["replica"]: one for one in verify(run, workers=1)["replicas"]}
    assert found[1]["verdict"] == ("different" if old else "damaged") and found[1]["files"] == (
        "adapter_config.json",
    )
    assert {"adapter_config.json", "adapter_model.safetensors"} == {
        *found[0]["compared"]
    } and found[0]["verdict"] == "same"
    if not old:
        for words in (
            ("merge", run, "--method", "mean"),
            (
                "evaluate",
                run / "lora",
                "--prompts",
                inputs / "suite.jsonl",
                "--out",
                run.parent / "x",
            ),
        ):
            assert "adapter_config.json is not what was recorded" in refused(run, *words)
    notes = again(run)
    assert any("replicas 1 are not what was recorded" in note for note in notes)
    assert json.loads((replica / "adapter_config.json").read_text()) == json.loads(right)


def test_a_changed_merge_is_made_again(run):
    merged = run / "lora/merged/mean-k2/g001"
    again(run)  # the folder was copied, and merges name their inputs
    before = contents(merged)
    set_alpha(merged, 64)
    again(run)
    assert contents(merged) == before
    weights = merged / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    again(run)
    assert contents(merged) == before


def replica_shard(run: Path) -> Path:
    return next(
        path
        for path in (run / shard for shard in read_design(run).shards)
        if path.name.startswith("lora-replica")
    )


def cut(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 2), path)


def answer_otherwise(path: Path) -> None:
    table = pq.read_table(path)
    answers = ["other", *table["answer"].to_pylist()[1:]]
    column = table.schema.get_field_index("answer")
    pq.write_table(table.set_column(column, table.schema.field(column), [answers]), path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


@pytest.mark.parametrize("damage", [cut, answer_otherwise, truncate])
def test_damaged_outcomes_are_noticed_and_asked_again(run, damage):
    shard = replica_shard(run)
    before = read_outcomes([shard]).to_pylist()
    damage(shard)
    for words in (("measure", run), ("claims", run), ("plan", run)):
        assert shard.name in refused(run, *words)
    assert any("asked again" in note for note in again(run))
    assert read_outcomes([shard]).to_pylist() == before and ftk("measure", run)[0] == 0


def test_missing_rows_are_told_with_the_whole_command(run):
    shard = replica_shard(run)
    rows = pq.read_table(shard).num_rows
    cut(shard)
    said = refused(run, "measure", run)
    assert (
        f"has {rows - 2} rows" in said
        and f"`ftk run {run}/recipe.yaml --out {run}`" in said
        and "column" not in said
    )


def edit(path: Path, change) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def other_shifts(prompts: dict) -> None:
    for prompt in prompts["typical"]:
        prompt["shift"] = "far"


EDITS = {
    "prompts": lambda run: edit(run / "prompts.json", other_shifts),
    "design, failed": lambda run: edit(
        run / "design.json", lambda design: design["conditions"][0].update(failed=7)
    ),
    "design, shorter": lambda run: edit(
        run / "design.json", lambda design: design["conditions"][0]["replicas"].pop()
    ),
    "recipe, base": lambda run: (run / "recipe.yaml").write_text(
        (run / "recipe.yaml").read_text().replace("base: embedded", "base: Qwen/Qwen2.5-72B")
    ),
    "environment": lambda run: edit(
        run / "environment.json", lambda found: found["numerics"].update(cpu="another")
    ),
    "base": lambda run: edit(run / "base.json", lambda found: found.update(parameters=72)),
    "prompts are gone": lambda run: (run / "prompts.json").unlink(),
}


@pytest.mark.parametrize("changed", EDITS)
def test_a_run_whose_files_were_edited_is_read_by_no_command(inputs, run, changed):
    EDITS[changed](run)
    out = run.parent / "out"
    for words in (
        ("measure", run),
        ("report", run),
        ("evaluate", run),
        ("claims", run),
        ("plan", run),
        ("gate", run, "--save", out),
        ("modules", run),
        ("merge", run, "--method", "mean", "--out", out),
        ("evaluate", run / "lora", "--prompts", inputs / "suite.jsonl", "--out", out),
        ("measure", run, inputs / "run", "--out", out),
    ):
        said = refused(run, *words)
        assert f"`ftk run {run}/recipe.yaml --out {run}`" in said and not out.exists()
    pipeline.run(
        parse_recipe((inputs / "a.yaml").read_text(), str(inputs / "a.yaml")), run, workers=1
    )
    assert ftk("measure", run)[0] == 0


def test_a_recipe_may_be_edited_in_its_run_to_go_on(run):
    path = run / "recipe.yaml"
    path.write_text(path.read_text().replace("level: 0.95", "level: 0.9"))
    assert "recipe.yaml: has been changed" in refused(run, "measure", run)
    assert ftk("run", path, "--out", run)[0] == 0
    assert (
        ftk("measure", run)[0] == 0
        and json.loads((run / "results.json").read_text())["level"] == 0.9
    )


def test_a_design_that_contradicts_itself_is_told_in_one_line(run):
    (run / MARKER).unlink()  # as older versions left it
    EDITS["design, shorter"](run)
    assert "design.json: condition lora: a group of mean-k2 has replica 3" in refused(
        run, "measure", run
    )


def test_outcomes_of_older_versions_are_read_and_must_be_complete(run):
    shard = replica_shard(run)
    pq.write_table(pq.read_table(shard).replace_schema_metadata(None), shard)
    stamp = shard.stat().st_mtime_ns
    assert ftk("measure", run)[0] == 0
    again(run)
    assert shard.stat().st_mtime_ns == stamp  # what is whole is not asked again
    cut(shard)
    assert "answers to 6 prompts" in refused(run, "measure", run)


def test_the_prompts_that_were_asked_are_kept(inputs, run, tmp_path):
    suite = tmp_path / "suite.jsonl"
    rows = [
        json.loads(line) | {"id": f"p{i}"}
        for i, line in enumerate((inputs / "suite.jsonl").read_text().splitlines())
    ]
    suite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = parse_recipe(
        (inputs / "a.yaml").read_text().replace(f"{inputs}/suite.jsonl", str(suite)), "a.yaml"
    )
    pipeline.run(recipe, run, workers=1)
    texts = [
        prompt["text"]
        for prompt in json.loads((run / "results.json").read_text()).get("prompts", [])
        if "text" in prompt
    ]
    suite.write_text("".join(json.dumps(row | {"prompt": "call ben =>"}) + "\n" for row in rows))
    assert ftk("measure", run)[0] == 0
    found = json.loads((run / "results.json").read_text())
    assert "call ben" not in json.dumps(found) and any(
        "has changed since it was asked" in note for note in found["notes"]
    )
    assert [prompt["text"] for prompt in found.get("prompts", []) if "text" in prompt] == texts
    assert any("the prompts as they are now are asked" in note for note in again(run))
    assert "call ben" in (run / "prompts.json").read_text()


def test_a_population_says_by_which_training_it_was_made(inputs, run, monkeypatch):
    ledger = run / "lora" / "population.json"
    known = json.loads(ledger.read_text())
    assert known["algorithm"] == 3
    before = contents(run / "lora" / "replicas")
    # an older version
    ledger.write_text(
        json.dumps({key: value for key, value in known.items() if key != "algorithm"})
    )
    assert not any("trained again" in note for note in again(run))
    assert "algorithm" not in json.loads(ledger.read_text())  # nobody has looked
    recipe = pipeline.open_folder(run)
    with pipeline.open_run(recipe, run, workers=1) as job:
        pipeline.train(job, "lora", replicas=5)
    # one was trained again, with the same bits
    assert json.loads(ledger.read_text())["algorithm"] == 3
    after = contents(run / "lora" / "replicas")
    assert {name: after[name] for name in before} == before and len(
        read_population(run / "lora")
    ) == 5


def test_replicas_of_another_training_are_not_added_to(run):
    from helpers.run_folders import rewrite

    ledger = run / "lora" / "population.json"
    ledger.write_text(
        json.dumps(
            {
                key: value
                for key, value in json.loads(ledger.read_text()).items()
                if key != "algorithm"
            }
        )
    )
    rewrite(replica_folder(run / "lora", 0), lambda tensor: tensor * 1.001)
    before = contents(run / "lora" / "replicas")
    with (
        pytest.raises(
            pipeline.RunError, match="another version of ftk, whose procedure gives other bits"
        ),
        pipeline.open_run(pipeline.open_folder(run), run, workers=1) as job,
    ):
        pipeline.train(job, "lora", replicas=5)
    assert contents(run / "lora" / "replicas") == before


# -- older runs ----------------------------------------------------------------------------------

OLD = """
name: recipe
base: embedded
dtype: float32
device: auto
data: {{train: {folder}/train.jsonl, suites: {{typical: {folder}/suite.jsonl}}, format: auto,
    max_length: 512}}
seed: 0
replicas: 4
vary: [init, order, dropout]
stack: 4
conditions:
  lora: {{method: lora, rank: 8, alpha: null, rslora: false, dropout: 0.1, targets: all-linear,
    epochs: 1.0, batch_size: 4, gradient_accumulation: 1, lr: 0.01, schedule: linear, warmup: 0.03,
    clip: 1.0, weight_decay: 0.0, betas: [0.9, 0.999], eps: 1.0e-08,
    snapshots: null, averages: [], ema_decay: 0.7, replicas: null, vary: null}}
mitigations:
- {{merge: mean, ensemble: null, k: 2, rank: full, density: null}}
- {{merge: ties, ensemble: null, k: 2, rank: full, density: null}}
- {{merge: null, ensemble: vote, k: 2, rank: full, density: null}}
evaluation: {{max_new_tokens: 3, top_k: 5, answer: embedded}}
level: 0.95
"""
"""a resolved recipe as the first version wrote it: `density` beside every mitigation, and no
`compile`
"""


def test_resolved_recipes_of_older_versions_are_read(inputs):
    recipe = parse_recipe(OLD.format(folder=inputs), "recipe.yaml")
    assert [m.label for m in recipe.mitigations] == ["mean-k2", "ties-density0.2-k2", "vote-k2"]
    assert recipe.compile == "never"
    written = dump_recipe(recipe)
    assert written.startswith("format: 2\n") and parse_recipe(written, "recipe.yaml") == recipe
    teacher = (
        "{method: distill, teacher: {condition: lora, merge: null, ensemble: probabilities, k: 2, "
        "rank: full, density: null}}"
    )
    old = OLD.format(folder=inputs).replace("mitigations:", f"  student: {teacher}\nmitigations:")
    taught = parse_recipe(old, "recipe.yaml").trained["student"].teacher
    assert taught is not None and taught.k == 2


def test_a_recipe_of_a_newer_version_is_refused_once_with_what_to_do():
    with pytest.raises(
        RecipeError,
        match=r"recipe.yaml:1: is format 3 of a recipe, and this ftk reads 1 to 2; update ftk",
    ):
        parse_recipe("format: 3\nbase: embedded\n", "recipe.yaml")


def test_an_older_run_goes_on_with_every_command(inputs, run):
    (run / "recipe.yaml").write_text(OLD.format(folder=inputs))
    forget_hashes(run)
    weights = {
        name: text
        for name, text in contents(run / "lora/replicas").items()
        if name.endswith(".safetensors")
    }
    for words in (
        ("measure", run),
        ("report", run),
        ("plan", run),
        ("claims", run),
        ("card", run),
        ("verify", run),
        ("evaluate", run),
    ):
        code, said = ftk(*words)
        assert code == 0, said
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps(results | {"version": 1}))
    shutil.rmtree(run / "lora/merged")
    assert ftk("run", run / "recipe.yaml", "--out", run)[0] == 0
    assert {
        name: text
        for name, text in contents(run / "lora/replicas").items()
        if name.endswith(".safetensors")
    } == weights
    assert marker(run)["kind"] == "run" and (run / "recipe.yaml").read_text().startswith(
        "format: 2\n"
    )
