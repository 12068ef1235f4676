"""The public API: its examples run, it prints nothing, and the core needs no other package."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from toolkit.data import read_rows
from toolkit.errors import EXTRAS, MissingExtra

RECIPE = """
base: embedded
data:
  train: train.jsonl
  suites: {typical: suite.jsonl}
replicas: 4
stack: 4
conditions:
  lora: {epochs: 1, batch_size: 8, lr: 1e-2}
evaluation: {max_new_tokens: 4, answer: embedded}
"""
PUBLIC = {name: getattr(toolkit, name) for name in toolkit.__all__ if not name.startswith("__")}
EXAMPLES = [
    (name, test)
    for name, thing in {"toolkit": toolkit, **PUBLIC}.items()
    for test in doctest.DocTestFinder(recurse=False).find(thing, name, module=False, globs={})
    if test.examples
]


def test_every_public_name_is_there_and_documented():
    assert sorted(toolkit.__all__) == toolkit.__all__
    assert set(toolkit.__all__) <= set(dir(toolkit))
    for name, thing in PUBLIC.items():
        assert thing.__doc__, name
    functions = {name for name in PUBLIC if name[0].islower()} - {"statistics"}
    assert functions <= {name for name, _ in EXAMPLES}
    with pytest.raises(AttributeError):
        _ = toolkit.absent


def test_no_room_hides_a_public_function():
    """Python sets `toolkit.NAME` to a module of that name once it is imported."""
    rooms = {path.stem for path in Path(toolkit.__file__).parent.iterdir()}
    assert rooms & set(toolkit.__all__) == {"statistics"}  # public as a whole


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with what the examples name: recipe, data, predictions, and a finished run."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [dict(row) for row in read_rows("embedded")[:20]]
    for name, some in (("train", rows[:16]), ("suite", rows[16:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "recipe.yaml").write_text(RECIPE)
    runs = [f"run_{i}" for i in range(30)]
    lines = [",".join(["prompt", "reference", *runs])] + [
        ",".join([f"p{p}", "yes", *("no" if (p * 7 + r) % 11 < 2 else "yes" for r in range(30))])
        for p in range(40)
    ]
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        toolkit.run("recipe.yaml", "runs/first", workers=1)
    return folder


@pytest.mark.parametrize(("name", "test"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_an_example_runs_and_nothing_else_is_printed(name, test, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    report: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(test, out=report.append)
    assert not report, "".join(report)
    assert not capsys.readouterr().err


def test_a_room_that_is_imported_is_still_called_as_its_function():
    import toolkit.measurement.run as stage

    assert stage.measure_run
    answers = [["a", "b"], ["a", "c"]]
    for measure in (toolkit.measure, toolkit.api.measure):
        assert measure(answers).conditions[0].n_replicas == 2


def test_predictions_in_memory_are_those_of_a_file(workplace, monkeypatch):
    pd = pytest.importorskip("pandas")
    import pyarrow.csv

    monkeypatch.chdir(workplace)
    of_file = toolkit.measure("predictions.csv").to_frame()
    of_file["condition"] = "predictions"
    frame = pd.read_csv("predictions.csv")
    runs = [name for name in frame if name.startswith("run_")]
    answer_RP = frame[runs].to_numpy().T
    for source, options in (
        (frame, {}),
        (pyarrow.csv.read_csv("predictions.csv"), {}),
        (frame.to_dict("records"), {}),
        (frame.to_dict("list"), {}),
        (answer_RP, {"reference": frame["reference"].to_numpy()}),
        (answer_RP.tolist(), {"reference": ["yes"] * 40}),
        ({"predictions": answer_RP}, {"reference": ["yes"] * 40}),
    ):
        pd.testing.assert_frame_equal(toolkit.measure(source, **options).to_frame(), of_file)


@pytest.mark.parametrize(
    "source",
    ["absent.csv", 5, [], ["a"], [["a"], ["a", "b"]], {"a": 1}, [{"prompt": "a", "output": "b"}]],
    ids=repr,
)
def test_what_cannot_be_measured_is_one_line(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(toolkit.FtkError) as caught:
        toolkit.measure(source)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_arguments_that_cannot_be_are_errors_of_ftk(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for call in (
        lambda: toolkit.merge("runs/first", method="maen"),
        lambda: toolkit.merge("runs/first", method="mean", parameters={"density": 1}),
        lambda: toolkit.plan(guess=2.0),
        lambda: toolkit.plan(),
        lambda: toolkit.train_replicas("recipe.yaml", "runs/first", conditions=["absent"]),
        lambda: toolkit.measure("runs/first", same="exact", baseline="lora"),
        lambda: toolkit.measure("runs/first", out="elsewhere"),
        lambda: toolkit.measure("runs/first", "predictions.csv"),
        lambda: toolkit.measure_metrics("predictions.csv"),
        lambda: toolkit.gate("predictions.csv", "absent"),
    ):
        with pytest.raises(toolkit.FtkError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_every_error_of_ftk_has_one_base():
    """Found by name in the source, so that none is forgotten."""
    import ast

    bases = {"ValueError", "RuntimeError", "Exception", "OSError", "TypeError"}
    for path in Path(toolkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found = {ast.unparse(base) for base in node.bases}
                assert not found & bases or found & {"FtkError"} or node.name == "FtkError", (
                    f"{path}: {node.name}"
                )


# -- the core alone ------------------------------------------------------------------------------

CORE = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
{body}
"""


def in_core(body: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program of its own, in which no package of an extra is there."""
    text = CORE.format(blocked={*EXTRAS, "pandas"}, body=body)
    command = [sys.executable, "-c", text]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


COMMANDS = [
    (["measure", "predictions.csv", "--out", "core/measured"], 0),
    (["report", "core/measured"], 0),
    (["card", "core/measured"], 0),
    (["plan", "--guess", "0.1"], 0),
    (["plan", "core/measured"], 0),
    (["plan", "runs/first"], 0),
    (["gate", "predictions.csv", "--save", "core/limits.json"], 0),
    (["gate", "core/limits.json", "--candidate", "predictions.csv"], 0),
    (["claims", "runs/first"], 0),
    (["measure", "runs/first"], 0),
    (["init", "core/starter"], 0),
    (["merge", "runs/first", "--method", "mean"], 2),
    (["evaluate", "runs/first"], 2),
    (["run", "recipe.yaml"], 2),
    (["train-replicas", "recipe.yaml"], 2),
    (["check", "recipe.yaml"], 2),
    (["doctor"], 2),
    (["verify", "runs/first"], 2),
    (["basin", "runs/first", "--prompts", "suite.jsonl"], 2),
    (["modules", "runs/first"], 2),
    (["check-adapter", "runs/first/lora/replicas/00000"], 2),
]


def test_the_core_runs_its_commands_and_others_name_their_extra(workplace):
    """All in one program: importing the libraries takes longer than the commands."""
    body = f"""
from click.testing import CliRunner
from toolkit.cli import main
for command, code in {COMMANDS!r}:
    done = CliRunner().invoke(main, command, prog_name="ftk")
    said = done.output.splitlines()
    assert done.exit_code == code, (command, done.exit_code, done.output)
    if code:
        assert said == [f'ftk {{command[0]}} needs torch: pip install "ftk[train]"'], said
"""
    done = in_core(body, workplace)
    assert not done.returncode, done.stderr
    assert (workplace / "core/measured/report.html").stat().st_size > 10_000


def test_the_api_names_the_extra_that_is_missing(workplace):
    body = """
import toolkit
for call in (
    lambda: toolkit.merge("runs/first"),
    lambda: toolkit.evaluate("runs/first"),
    lambda: toolkit.run("recipe.yaml", "elsewhere"),
    lambda: toolkit.Ensemble,
):
    try:
        call()
        raise SystemExit("no error")
    except toolkit.FtkError as error:
        assert 'needs torch: pip install "ftk[train]"' in str(error), error
results = toolkit.measure([["a", "b"], ["a", "c"], ["a", "b"]])
assert results.to_arrow().num_rows == len(results.to_rows())
try:
    results.to_frame()
except toolkit.FtkError as error:
    print(error)
"""
    done = in_core(body, workplace)
    assert not done.returncode, done.stderr
    assert done.stdout.startswith("to_frame needs pandas")


def test_the_package_is_imported_without_anything_else(tmp_path):
    body = """
import toolkit
heavy = {"torch", "numpy", "click", "pydantic", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    done = in_core(body, tmp_path)
    assert not done.returncode, done.stderr


def test_a_missing_extra_survives_a_worker():
    import pickle

    error = pickle.loads(pickle.dumps(MissingExtra("ftk merge", "ray")))
    assert str(error) == 'ftk merge needs ray: pip install "ftk[ray]"'
    assert error.package == "ray" and isinstance(error, ImportError)


def test_the_types_are_shipped():
    assert (Path(toolkit.__file__).parent / "py.typed").is_file()
