"""What comes from others is data: no code of a base, a pickle, an embedding or the working
directory is run, and nobody is asked.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from toolkit.data import DataError, read_rows
from toolkit.measurement.meaning.rules import load_model
from toolkit.merging.adapters_to_model import load_model as load_dense
from toolkit.model.base import EMBEDDED, BaseError, load_base, load_config

PACKAGE = Path(__file__).parents[2] / "toolkit"
LOADERS = ("from_pretrained", "from_config", "load_dataset", "SentenceTransformer")
WITHOUT_CODE = {"StaticModel", "PeftConfig", "PeftModel"}
"""model2vec reads safetensors and a tokenizer.json, peft a configuration and tensors; they know no
such option
"""


def calls(tree: ast.AST) -> list[tuple[str, str, ast.Call]]:
    """(what it is called on, name of the function, call) of every call."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            name = (
                function.attr
                if isinstance(function, ast.Attribute)
                else getattr(function, "id", "")
            )
            owner = function.value if isinstance(function, ast.Attribute) else None
            found.append((getattr(owner, "attr", getattr(owner, "id", "")), name, node))
    return found


def says(call: ast.Call, option: str, value: bool) -> bool:
    return any(
        k.arg == option and isinstance(k.value, ast.Constant) and k.value.value is value
        for k in call.keywords
    )


def careless(source: str) -> list[str]:
    """Calls that could run code of what they load."""
    wrong = []
    for owner, name, call in calls(ast.parse(source)):
        if (
            name in LOADERS
            and owner not in WITHOUT_CODE
            and not says(call, "trust_remote_code", False)
        ):
            wrong.append(f"line {call.lineno}: {owner}.{name} without trust_remote_code=False")
        if (owner, name) == ("torch", "load") and not says(call, "weights_only", True):
            wrong.append(f"line {call.lineno}: torch.load without weights_only=True")
        if (owner, name) in (
            ("pickle", "load"),
            ("pickle", "loads"),
            ("yaml", "load"),
            ("yaml", "unsafe_load"),
            ("joblib", "load"),
        ):
            wrong.append(f"line {call.lineno}: {owner}.{name}")
        if (owner, name) == ("np", "load") and not says(call, "allow_pickle", False):
            wrong.append(f"line {call.lineno}: np.load without allow_pickle=False")
    return wrong


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_every_loader_is_told_to_run_no_code(path):
    assert not careless(path.read_text(encoding="utf-8"))


def test_a_careless_call_is_noticed():
    assert (
        len(
            careless(
                "AutoModel.from_pretrained(x)\ntorch.load(x)\npickle.load(f)\nload_dataset('x', "
                "trust_remote_code=flag)"
            )
        )
        == 4
    )


# -- bases ---------------------------------------------------------------------------------------


def base_with(folder: Path, mark: Path, kind: str) -> Path:
    """A copy of the embedded base that would leave `mark`, were its code run."""
    shutil.copytree(EMBEDDED, folder)
    code = f"open({str(mark)!r}, 'w').close()\n"
    (folder / "theirs.py").write_text(code)

    def edit(file: str, **values: object) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    if kind == "model":
        edit(
            "config.json",
            model_type="theirs",
            auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"},
        )
    elif kind == "known model":
        edit("config.json", auto_map={"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"})
    elif kind == "tokenizer":
        edit(
            "tokenizer_config.json",
            tokenizer_class="Theirs",
            auto_map={"AutoTokenizer": ["theirs.T", None]},
        )
    elif kind == "generate":
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate/generate.py").write_text(code)
    elif kind == "kernel":
        edit("config.json", attn_implementation="theirs/kernel")
    elif kind == "pickle":
        for path in folder.glob("*.safetensors"):
            path.unlink()
        torch.save({"weight": Pickled(code)}, folder / "pytorch_model.bin")
    return folder


class Pickled:
    def __init__(self, code: str):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


@pytest.fixture
def nobody_is_asked(monkeypatch):
    def ask(*_: object) -> str:
        raise AssertionError("a question on stdin")

    monkeypatch.setattr("builtins.input", ask)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("model", "code that comes with it"),
        ("known model", None),
        ("tokenizer", None),
        ("generate", None),
        ("kernel", "take `attn_implementation` out of its config.json"),
        ("pickle", "pickle that holds more than tensors"),
    ],
)
def test_code_of_a_base_is_never_run(kind, told, tmp_path, nobody_is_asked):
    """Where transformers knows the kind itself, that is what runs; else one line says why not."""
    base = base_with(tmp_path / "base", tmp_path / "ran", kind)
    loads = [lambda: load_base(str(base)), lambda: load_dense(str(base), None)]
    for load in [*loads, lambda: load_config(str(base))] if kind in ("model", "kernel") else loads:
        if told is None:
            assert load()
        else:
            with pytest.raises(ValueError) as caught:
                load()
            assert (
                told in str(caught.value)
                and "\n" not in str(caught.value)
                and type(caught.value).__module__.startswith("toolkit.")
            )
    assert not (tmp_path / "ran").exists()
    if told:
        with pytest.raises(BaseError, match="never run|pickle"):
            load_base(str(base))


def test_classes_of_an_embedding_folder_are_never_run(tmp_path):
    """sentence-transformers runs the code of a local folder without being told to."""
    (tmp_path / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "theirs.Module"}])
    )
    with pytest.raises(
        DataError, match=r"needs code of its own \(theirs.Module\), which is never run"
    ):
        load_model(str(tmp_path))


# -- modules of the working directory ------------------------------------------------------------

SHADOWED = (
    "multiprocessing",
    "random",
    "numpy",
    "torch",
    "json",
    "tempfile",
    "secrets",
    "threading",
    "queue",
    "statistics",
    "click",
    "rich",
)


@pytest.fixture(scope="module")
def trapped(tmp_path_factory) -> Path:
    """A folder with a small recipe, and modules that leave a mark when they are imported."""
    folder = tmp_path_factory.mktemp("trapped")
    rows = [json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[:16]]
    (folder / "train.jsonl").write_text("".join(rows))
    (folder / "suite.jsonl").write_text("".join(rows[:4]))
    recipe = {
        "base": "embedded",
        "device": "cpu",
        "data": {"train": "train.jsonl", "suites": {"typical": "suite.jsonl"}},
        "replicas": 2,
        "stack": 2,
        "conditions": {"lora": {"epochs": 1, "batch_size": 8}},
        "evaluation": {"max_new_tokens": 4},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    answers = "".join(
        f"{replica},{prompt},{replica * prompt % 3}\n"
        for replica in range(4)
        for prompt in range(9)
    )
    (folder / "predictions.csv").write_text("replica,prompt,output\n" + answers)
    trap = (
        "import os\nopen(os.path.join(os.path.dirname(__file__), f'ran-{__name__}'), "
        "'w').close()\nraise SystemExit('trapped')\n"
    )
    for name in SHADOWED:
        (folder / f"{name}.py").write_text(trap)
    (folder / "matplotlibrc").write_text(
        "text.usetex: True\ntext.latex.preamble: \\input{theirs}\n"
    )
    return folder


RUN = ["run", "recipe.yaml", "--workers", "1"]


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (["ftk"], RUN),
        (["-m", "toolkit.cli"], ["measure", "predictions.csv"]),
        pytest.param(["ftk"], [*RUN, "--engine", "ray"], marks=pytest.mark.slow),
    ],
    ids=["workers", "module", "ray"],
)
def test_modules_of_the_working_directory_are_never_imported(command, arguments, trapped, request):
    if "ray" in arguments:
        pytest.importorskip("ray")
    interpreter = Path(sys.executable)
    program = (
        [str(interpreter.parent / "ftk")] if command == ["ftk"] else [str(interpreter), *command]
    )
    out = trapped / request.node.callspec.id
    surroundings = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTHONSAFEPATH", "PYTHONPATH")
    }
    asked = [*program, *arguments, "--out", str(out)]
    done = subprocess.run(
        asked, cwd=trapped, env=surroundings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert not list(trapped.rglob("ran-*"))
    assert (out / "report.html").is_file()
