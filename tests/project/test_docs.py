"""What the Markdown files say is there: links lead to files, every `ftk` and `make` command that
they show exists as written, tables and outputs are those of the results and of the commands. No
sentence is pinned.
"""

import ast
import functools
import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click
import figures
import pages
import pytest
import yaml

from toolkit import cli
from toolkit.measurement.analyse.verdict import verdict
from toolkit.recipe import load_criteria, load_recipe
from toolkit.recipe.merge_methods import MERGE_METHODS
from toolkit.record.results import load_results

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p
    for p in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part == "runs" for part in p.relative_to(ROOT).parts)
)
IDS = [str(p.relative_to(ROOT)) for p in PAGES]
NUMBER = r"[+-]?\d+(?:\.\d+)?"
INTERVAL = re.compile(rf"({NUMBER})[^\[\]\d]*\[({NUMBER}), ({NUMBER})\]")  # 57.8 % [48.5, 66.5]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def commands(page: Path) -> list[str]:
    """Lines of code blocks, fenced or indented, and inline code."""
    text = page.read_text(encoding="utf-8")
    blocks = [
        line
        for block in re.findall(r"^```.*?\n(.*?)^```", text, re.S | re.M)
        for line in block.splitlines()
    ]
    indented = re.findall(r"^(?: {4}|\t)(.*)$", text, re.M)
    inline = re.findall(r"`([^`\n]+)`", prose(page))
    return [
        line.strip().removeprefix("$ ").split("  #")[0].split("    #")[0]
        for line in [*blocks, *indented, *inline]
    ]


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def broken_links(page: Path) -> list[str]:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://")):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    return broken


def estimates(found) -> Iterator[tuple[float, float, float]]:
    """(value, low, high) of every estimate in a JSON document."""
    for inside in (
        found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    ):
        yield from estimates(inside)
    if isinstance(found, dict) and {"value", "low", "high"} <= found.keys():
        one = (found["value"], found["low"], found["high"])
        if None not in one:
            yield one


def results_of(page: Path) -> set[tuple[float, float, float]]:
    """The estimates in the result files, or folders of them, that a page links to."""
    targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    files = [
        file
        for path in targets
        if path.parent.name != "schemas"
        for file in ([path] if path.suffix == ".json" else path.glob("*.json"))
    ]
    return {one for file in files for one in estimates(json.loads(file.read_text()))}


def invented(page: Path) -> list[tuple[str, ...]]:
    """Intervals on a page, each with the number before it, that its result files do not have. A
    share may be written in per cent; nothing has no sign.
    """
    known = results_of(page)
    text = pages.SESSION.sub("", page.read_text(encoding="utf-8"))  # held by running the commands

    @functools.cache
    def written(digits: tuple[int, ...]) -> set[tuple[str, ...]]:
        return {
            tuple(f"{scale * x:z.{n}f}" for x, n in zip(estimate, digits, strict=True))
            for estimate in known
            for scale in (1, 100)
        }

    return [
        one
        for one in (INTERVAL.findall(text) if known else [])
        if tuple(number.removeprefix("+") for number in one)
        not in written(tuple(len(number.partition(".")[2]) for number in one))
    ]


def unknown_words(line: str) -> str | None:
    """What of an `ftk` command line is no command or option of it; None when all of it is."""
    words = shlex.split(line.replace("\\|", "|").partition(" | ")[0])
    command = cli.main.commands.get(words[1]) if len(words) > 1 else None
    if len(words) == 1 or words[1] == "--help":
        return None
    if command is None:
        return words[1]
    options = {
        name: p for p in command.params if isinstance(p, click.Option) for name in p.opts
    } | {"--help": None}
    for word, after in itertools.pairwise([*words[2:], ""]):
        name, _, value = word.partition("=")
        if not word.startswith("-"):
            continue
        if name not in options:
            return word
        if name == "--method":  # a page may list several as `mean|swa`
            wrong = set((value or after).split("|")) - set(MERGE_METHODS)
            if wrong:
                return f"{name} {wrong.pop()}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_are_spelt_as_they_are(page):
    shown = [line for line in commands(page) if re.match(r"ftk [a-z\-]", line)]
    assert {line: unknown for line in shown if (unknown := unknown_words(line))} == {}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_make_targets_and_scripts_exist(page):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    for line in commands(page):
        if match := re.match(r"make (\w+)", line):
            assert match[1] in targets, line
        if match := re.match(r"python (?:-m )?([\w./-]+)", line):
            name = match[1]
            module = name.replace(".", "/")
            files = [name] if name.endswith(".py") else [f"{module}.py", f"{module}/__main__.py"]
            if name not in ("pip", "venv", "pytest", "build", "http.server"):
                assert any(
                    (folder / file).is_file() for folder in (ROOT, page.parent) for file in files
                ), line


def test_the_reference_shows_every_command():
    shown = {
        line.split()[1]
        for line in commands(ROOT / "docs/reference/cli.md")
        if line.startswith("ftk ") and len(line.split()) > 1
    }
    assert set(cli.main.commands) <= shown


def test_a_wrong_link_and_a_wrong_command_are_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[here](#a-title) [there](missing.md) [gone](#nowhere)\n\n    ftk "
        "merge run --method median\n"
    )
    assert broken_links(page) == ["missing.md", "#nowhere"]
    assert [unknown_words(line) for line in commands(page) if line.startswith("ftk")] == [
        "--method median"
    ]
    assert (
        unknown_words("ftk run recipe.yaml --fast") == "--fast"
        and unknown_words("ftk fly") == "fly"
    )


def test_the_first_lines_of_the_readme_work():
    """`make -n` resolves both targets without running them."""
    for target in ("demo", "test"):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert plan.returncode == 0 and ".venv/bin/" in plan.stdout, plan.stderr


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_interval_is_one_of_its_results(page):
    assert invented(page) == []


def test_an_interval_that_nobody_measured_is_found(tmp_path):
    (tmp_path / "found.json").write_text(
        json.dumps({"rows": [{"ratio": {"value": 0.4221, "low": 0.3, "high": -0.06}}]})
    )
    page = tmp_path / "page.md"
    page.write_text(
        "From [a run](found.json): 42.2 % [30.0, -6.0], a ratio of 0.42 [0.30, -0.06], or "
        "0.42 [0.31, -0.06] and 0.43 [0.3, -0.1].\n"
    )
    assert invented(page) == [("0.42", "0.31", "-0.06"), ("0.43", "0.3", "-0.1")]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_generated_blocks_are_what_the_results_and_the_code_say(page):
    """Every table, count and terminal output between markers: `python benchmarks/pages.py`."""
    text = page.read_text(encoding="utf-8")
    assert pages.with_blocks(text) == text


def test_a_block_that_was_edited_is_found():
    page = "Text.\n\n<!-- block: forecasts -->\n\n| recipe |\n\n<!-- end block -->\n"
    made = pages.with_blocks(page)
    assert made != page and pages.with_blocks(made) == made


def numbers_apart(output: str) -> str:
    return re.sub(r"[+-]?\d[\d,.]*", "N", output)


@pytest.mark.parametrize(
    "page",
    [
        pages.CONSOLE[0],
        *(pytest.param(page, marks=pytest.mark.slow) for page in pages.CONSOLE[1:]),
    ],
)
def test_commands_print_what_the_tutorials_show(page, tmp_path):
    """Statistics to the digit; what is trained may differ in its numbers on another processor."""
    text = (ROOT / page).read_text(encoding="utf-8")
    pages.prepare(tmp_path)
    same = (lambda output: output) if page == pages.CONSOLE[0] else numbers_apart
    shown = [line for session in pages.sessions(text) for line in session]
    assert shown
    for command, output in shown:
        printed = pages.printed(command, tmp_path)
        assert same(pages.shortened(printed, output)) == same(output), command


def test_the_readme_shows_what_the_tutorials_show():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(pages.sessions(text)) >= 2 and pages.as_in_tutorials(text) == text


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize(
    ("results", "name"),
    [
        (["demo.json"], "overview"),
        (["sources.json"], "sources"),
        (["dependence.json"], "dependence"),
        (["controls/*.json"], "controls"),
    ],
)
def test_figures_are_those_of_their_results(results, name, tmp_path, monkeypatch):
    files = [str(path) for glob in results for path in sorted(pages.RESULTS.glob(glob))]
    monkeypatch.setattr(sys, "argv", ["figures.py", *files, "--only", name, "--out", str(tmp_path)])
    figures.main()
    svg = (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
    assert svg == (ROOT / f"docs/figures/{name}.svg").read_text(encoding="utf-8")
    assert not re.search(r"<script|href=\"http|on\w+=", svg)


def test_the_site_has_every_page():
    def leaves(entry):
        for inside in entry.values() if isinstance(entry, dict) else entry:
            yield from [inside] if isinstance(inside, str) else leaves(inside)

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert sorted(leaves(nav)) == sorted(there)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_in_the_pages_names_what_there_is(page):
    for block in re.findall(
        r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M
    ):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("toolkit"):
                module = importlib.import_module(node.module or "")
                assert [n.name for n in node.names if not hasattr(module, n.name)] == []


def test_recipes_and_criteria_of_the_pages_are_read(tmp_path):
    load_recipe(ROOT / "docs/examples/small.yaml")
    load_criteria(ROOT / "docs/examples/criteria.yaml")
    text = (ROOT / "docs/how-to/criteria.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^    (?:thresholds|criteria):.*\n(?: {4}.*\n)*", text, re.M)
    (tmp_path / "criteria.yaml").write_text("".join(map(textwrap.dedent, blocks)))
    assert len(blocks) == 2 and len(load_criteria(tmp_path / "criteria.yaml").criteria) == 4


def test_the_verdict_of_the_demo_is_that_of_its_results():
    results = load_results(ROOT / "benchmarks/results/demo.json")
    assert results.verdict == verdict(results)


def test_the_coverage_study_has_no_cell_that_fails():
    found = json.loads((ROOT / "benchmarks/results/coverage.json").read_text())
    study, cells = pages.coverage_study(), found["cells"]
    assert found["summary"]["fail"] == [] and found["summary"]["counts"] == {
        kind: sum(row["class"] == kind for row in cells) for kind in study.CLASSES
    }
    swept = {
        study.Cell(name, settings).title
        for name, sweep in study.SWEEPS.items()
        for settings in sweep.settings
    }
    assert {study.Cell(row["statistic"], row["world"]).title for row in cells} <= swept


def test_the_same_condition_on_several_machines_gave_the_same_numbers():
    several = [
        json.loads(path.read_text())
        for path in sorted((ROOT / "benchmarks/results/controls").glob("*.json"))
    ]
    told = [
        (one["alike"]["lora"], one["conditions"][0]["procedures"][0]["cells"]) for one in several
    ]
    assert len(told) > 1 and told == told[:1] * len(told)
