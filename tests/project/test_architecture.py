"""The picture in ARCHITECTURE.md, held: imports only go down, siblings on one line never import
each other.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "toolkit"
HEAVY = {"torch", "transformers", "peft", "mergekit", "datasets", "matplotlib"}


def marked(name: str) -> list[str]:
    """Lines of the block that stands in ARCHITECTURE.md behind a marker."""
    block = re.search(
        rf"<!-- {name} -->\s*```\n(.*?)```", (ROOT / "ARCHITECTURE.md").read_text(), re.S
    )
    assert block, f"ARCHITECTURE.md has lost its block of {name}"
    return [line for line in block[1].splitlines() if line.strip()]


LAYERS = [[entry.strip() for entry in line.split("|")] for line in marked("layers")]
LEVEL = {entry: depth for depth, line in enumerate(LAYERS) for entry in line}
TORCH_FREE = [name for line in marked("torch-free") for name in line.split()]


def module(path: Path) -> str:
    """`toolkit/merging/soup.py` is `merge/soup`, a package is its folder, and the package of all is
    empty.
    """
    name = path.relative_to(PACKAGE).with_suffix("").as_posix()
    return "" if name == "__init__" else name.removesuffix("/__init__")


MODULES = {module(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INSIDE = sorted(set(MODULES) - {""})


def entry_of(name: str) -> str | None:
    """The entry of the picture that a module belongs to: its own, or that of the nearest folder
    above it.
    """
    while name and name not in LEVEL:
        name = name.rpartition("/")[0]
    return name or None


def imports(
    path: Path, *, at_import: bool = False, package: tuple[str, ...] = ()
) -> tuple[set[str], set[str]]:
    """Modules of toolkit, and names of other packages, that a file imports; `if TYPE_CHECKING:`
    does not count.

    at_import: only what is imported with the file. package: the folders that the file lies in, for
    relative imports.
    """
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    ours, others = set(), set()
    for node in tree.body if at_import else ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = (
                ".".join(("toolkit", *package[: len(package) + 1 - node.level]))
                if node.level
                else ""
            )
            origin = ".".join(filter(None, (start, node.module)))
            names = [f"{origin}.{alias.name}" for alias in node.names]
        for name in names:
            first, *rest = name.split(".")
            if first != "toolkit":
                others.add(first)
                continue
            while rest and "/".join(rest) not in MODULES:  # a name that a module defines
                rest.pop()
            ours.add("/".join(rest))
    return ours - {""}, others


def folders_of(name: str) -> tuple[str, ...]:
    parts = tuple(name.split("/"))
    return parts if MODULES[name].name == "__init__.py" else parts[:-1]


GRAPH = {name: imports(MODULES[name], package=folders_of(name))[0] for name in INSIDE}


def test_every_entry_of_the_picture_is_there_once_and_shows_every_module():
    drawn = [entry for line in LAYERS for entry in line]
    assert len(drawn) == len(set(drawn))
    assert set(drawn) <= set(MODULES), "no entry for what is gone"
    assert all(entry_of(name) for name in INSIDE)


@pytest.mark.parametrize("name", INSIDE)
def test_imports_only_go_down(name):
    mine = entry_of(name)
    for other in GRAPH[name]:
        theirs = entry_of(other)
        assert mine == theirs or LEVEL[theirs] > LEVEL[mine], (
            f"{name} imports {other}, which is not below it"
        )


def test_rooms_stand_on_each_other():
    """The top level of the package has an order of its own: what a room needs does not need the
    room.
    """
    below = {name.split("/")[0]: set() for name in INSIDE}
    for name, others in GRAPH.items():
        below[name.split("/")[0]] |= {other.split("/")[0] for other in others} - {
            name.split("/")[0]
        }
    while below:
        floor = {room for room, needs in below.items() if not needs & set(below)}
        assert floor, f"in a circle: {sorted(below)}"
        below = {room: needs for room, needs in below.items() if room not in floor}


@pytest.mark.parametrize("name", TORCH_FREE)
def test_no_torch_at_import(name):
    """Nor in the packages that Python imports with a module."""
    family = [
        other
        for other in INSIDE
        if other == name or other.startswith(f"{name}/") or name.startswith(f"{other}/")
    ]
    assert any(other == name or other.startswith(f"{name}/") for other in family), f"{name} is gone"
    for other in family:
        heavy = imports(MODULES[other], at_import=True)[1] & HEAVY
        assert not heavy, f"{other} imports {heavy} at its top"


@pytest.mark.parametrize(
    ("text", "package", "found"),
    [
        (
            "def f():\n    from toolkit import pipeline\n    from toolkit.train import "
            "train_stack\n",
            (),
            {"pipeline", "train"},
        ),
        (
            "from . import loop\nfrom .save import x\nfrom ..model.base import load_base\n",
            ("train",),
            {"train/loop", "train/save", "model/base"},
        ),
        (
            "import toolkit.merging.entrywise as m\nfrom toolkit.merging import soup, x\n",
            (),
            {"merging/entrywise", "merging/soup", "merging"},
        ),
    ],
)
def test_an_import_is_seen(text, package, found, tmp_path):
    path = tmp_path / "statistics.py"
    path.write_text(text)
    assert imports(path, package=package)[0] == found


def test_the_annotated_tree_is_the_tree():
    """Every file, under its folder, once; none that is gone."""
    drawn, folders = [], []
    for line in marked("tree"):
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if name.endswith(".py"):
            drawn.append("/".join(folders[1:]))
    there = [
        path.relative_to(PACKAGE).as_posix()
        for path in MODULES.values()
        if path.name != "__init__.py"
    ]
    assert sorted(drawn) == sorted(there)
