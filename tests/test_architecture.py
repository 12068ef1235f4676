"""The picture in ARCHITECTURE.md, held: imports only go down, siblings on one line never import each other."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "toolkit"
TORCH_FREE = {
    "recipe",
    "seeds",
    "environment",
    "files",
    "plain",
    "records",
    "patterns",
    "folders",
    "plan",
    "results",
    "statistics",
    "charts",
    "report",
    "population",
    "outcomes",
    "analyse",
    "data",
    "cli",
    "predictions",
    "meaning",
    "measure",
    "planning",
    "gate",
    "gating",
    "precision",
    "until",
    "claims",
    "run_table",
    "outset",
}


def layers() -> list[set[str]]:
    """The lines of the picture, top first."""
    picture = re.search(r"<!-- layers -->\s*```\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.S)
    assert picture, "ARCHITECTURE.md has lost its picture of the layers"
    return [{name.strip() for name in line.split("|")} for line in picture[1].splitlines() if line.strip()]


def modules() -> dict[str, list[Path]]:
    """Top-level modules and packages of toolkit with their files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        found.setdefault(first, []).append(path)
    found.pop("__init__")
    return found


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Names of toolkit's modules, and of other packages, that a file imports; `if TYPE_CHECKING:` does not count."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found = set()
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "toolkit" else [node.module]
        else:
            continue
        found |= {name.split(".")[1] if name.startswith("toolkit.") else name.split(".")[0] for name in names}
    return found


def test_the_picture_shows_every_module_once():
    drawn = [name for line in layers() for name in line]
    assert sorted(drawn) == sorted(modules())


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_only_go_down(name):
    level = {module: depth for depth, line in enumerate(layers()) for module in line}
    for path in modules()[name]:
        for other in imports(path) & set(level) - {name}:
            assert level[other] > level[name], f"{path.relative_to(ROOT)} imports {other}, which is not below {name}"


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_no_torch_at_import(name):
    for path in modules()[name]:
        heavy = imports(path, top_level_only=True) & {"torch", "transformers", "peft", "mergekit", "datasets", "matplotlib"}
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy} at its top"


def test_a_reversed_import_fails(tmp_path):
    bad = tmp_path / "statistics.py"
    bad.write_text("def f():\n    from toolkit import pipeline\n    from toolkit.train import train_stack\n")
    assert imports(bad) == {"pipeline", "train"}


def test_the_annotated_tree_is_the_tree():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            assert path.name in text, f"ARCHITECTURE.md does not mention {path.relative_to(ROOT)}"
