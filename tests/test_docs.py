"""What the Markdown files say is there: links lead to files, and every `ftk` and `make` command
that they show exists as written.
"""

import csv
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from scipy.stats import spearmanr

from toolkit import cli
from toolkit.measure.analyse.verdict import verdict
from toolkit.recipe.merge_methods import MERGE_METHODS
from toolkit.record.results import load_claims, load_results
from toolkit.report.sweeps import joined
from toolkit.report.terminal import table_text

ROOT = Path(__file__).parent.parent
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
    if isinstance(found, dict) and None not in (
        one := [found.get(key) for key in ("value", "low", "high")]
    ):
        yield tuple(one)


def results_of(page: Path) -> set[tuple[float, float, float]]:
    """The estimates in the result files, or folders of them, that a page links to."""
    targets = [(page.parent / link.partition("#")[0]).resolve() for link in links(page)]
    files = [
        file
        for path in targets
        for file in ([path] if path.suffix == ".json" else path.glob("*.json"))
    ]
    return {one for file in files for one in estimates(json.loads(file.read_text()))}


def as_written(number: float, text: str) -> bool:
    """A share may be written in per cent; nothing has no sign."""
    digits = len(text.partition(".")[2])
    return any(f"{scale * number:z.{digits}f}" == text.removeprefix("+") for scale in (1, 100))


def invented(page: Path) -> list[tuple[str, ...]]:
    """Intervals on a page, each with the number before it, that its result files do not have."""
    known = results_of(page)
    told = INTERVAL.findall(page.read_text(encoding="utf-8")) if known else []
    return [
        one for one in told if not any(all(map(as_written, estimate, one)) for estimate in known)
    ]


def unknown_words(line: str) -> str | None:
    """What of an `ftk` command line is no command or option of it; None when all of it is."""
    words = shlex.split(line.replace("\\|", "|"))
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
        if name == "--method":  # the README lists all of them as `mean|swa`
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


def test_the_readme_shows_every_command():
    shown = {
        line.split()[1]
        for line in commands(ROOT / "README.md")
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


def test_tables_are_those_of_their_results():
    import tables

    found = json.loads((ROOT / "benchmarks/results/methods.json").read_text())
    assert tables.table(found) in (ROOT / "docs/methods.md").read_text()
    found = json.loads((ROOT / "benchmarks/results/clinc150-methods.json").read_text())
    assert tables.table(found) in (ROOT / "docs/clinc150.md").read_text()
    found = json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    assert tables.table(found) in (ROOT / "docs/demo.md").read_text()
    told = (ROOT / "docs/claims.md").read_text()
    for study in ("claims", "claims-clinc150", "claims-scan"):
        claims = load_claims(ROOT / "benchmarks/results" / study / "claims.json")
        assert tables.claims_table(claims) in told and tables.matrix(claims) in told
    controls = [
        load_results(path) for path in sorted((ROOT / "benchmarks/results/controls").glob("*.json"))
    ]
    assert tables.conditions_table(joined(controls)) in told
    found = json.loads((ROOT / "benchmarks/results/merge.json").read_text())
    assert tables.merge_table(found) in (ROOT / "docs/merging.md").read_text()
    found = json.loads((ROOT / "benchmarks/results/train.json").read_text())
    assert tables.train_table(found) in (ROOT / "docs/performance.md").read_text()
    found = json.loads((ROOT / "benchmarks/results/scale.json").read_text())
    assert tables.scale_table(found) in (ROOT / "docs/performance.md").read_text()


def test_the_coverage_study_is_told_as_it_came_out():
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "coverage_study_of_docs", ROOT / "benchmarks/coverage.py"
    )
    assert spec and spec.loader
    study = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    found, told = (
        json.loads((ROOT / "benchmarks/results/coverage.json").read_text()),
        (ROOT / "docs/statistics.md").read_text(),
    )
    cells, counts = found["cells"], found["summary"]["counts"]
    assert found["summary"]["fail"] == [] and counts == {
        kind: sum(row["class"] == kind for row in cells) for kind in study.CLASSES
    }
    assert study.markdown(cells) in told
    assert all(f"*{kind}* ({count:,})" in told for kind, count in counts.items())
    many = sum(row["repetitions"] >= 200 for row in cells)
    assert f"in {many:,} of {len(cells):,} cells" in told
    swept = {
        study.Cell(name, settings).title
        for name, sweep in study.SWEEPS.items()
        for settings in sweep.settings
    }
    assert {study.Cell(row["statistic"], row["world"]).title for row in cells} <= swept


def test_the_demo_is_shown_as_the_terminal_shows_it():
    results = load_results(ROOT / "benchmarks/results/demo.json")
    for page in ("README.md", "docs/demo.md"):
        assert f"```\n{table_text(results)}\n```" in (ROOT / page).read_text()
    assert results.verdict == verdict(results)
    assert (
        "\n".join(f"- {sentence}" for sentence in results.verdict)
        in (ROOT / "docs/demo.md").read_text()
    )


def test_the_same_condition_on_several_machines_gave_the_same_numbers():
    several = [
        json.loads(path.read_text())
        for path in sorted((ROOT / "benchmarks/results/controls").glob("*.json"))
    ]
    told = [
        (one["alike"]["lora"], one["conditions"][0]["procedures"][0]["cells"]) for one in several
    ]
    assert len(told) > 1 and told == told[:1] * len(told)


def test_the_trainings_that_are_told_are_those_of_the_results():
    def trained(pattern: str) -> tuple[int, int]:
        of = [
            c
            for path in (ROOT / "benchmarks/results").glob(pattern)
            for c in json.loads(path.read_text())["conditions"]
        ]
        return sum(c["n_replicas"] for c in of), sum(c["n_failed"] for c in of)

    told = " ".join((ROOT / "docs/claims.md").read_text().split())
    studies = [f"{name}/results.json" for name in ("claims", "claims-clinc150", "claims-scan")]
    for pattern in (*studies, "controls/*.json", "dependence.json"):
        trainings, failed = trained(pattern)
        said = (f"None of the {trainings:,} trainings failed", f"none of {trainings:,} failed")
        assert trainings and failed == 0 and any(sentence in told for sentence in said)


def test_late_runs_are_those_that_the_losses_tell():
    kept = ROOT / "benchmarks/results/claims-scan"
    with (kept / "weights.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    right, loss = {}, {}
    for condition in json.loads((kept / "results.json").read_text())["conditions"]:
        name = condition["name"]
        cells = condition["procedures"][0]["cells"]
        right[name] = np.array(
            next(
                cell["scores"]
                for cell in cells
                if (cell["shift"], cell["category"]) == ("typical", "")
            )
        )
        loss[name] = np.array([float(row["loss"]) for row in rows if row["condition"] == name])
    told = " ".join((ROOT / "docs/claims.md").read_text().split())
    late = right["lora-10-epochs"] < 0.3
    assert late.sum() == 7 and set(np.flatnonzero(late)) == set(
        np.argsort(loss["lora-10-epochs"])[-7:]
    )
    ends = (100 * right["lora-10-epochs"].min(), 100 * right["lora-10-epochs"].max())
    assert (
        "the worst of 64 answers {:.0f} % of the typical prompts right, the best {:.0f} %, "
        "seven fewer than 30 %"
    ).format(*ends) in told
    assert "from {:.0f} % of the typical prompts of SCAN right to {:.0f} %".format(*ends) in told

    def ranks(name: str) -> str:
        """Spearman's correlation with its 95 % interval on Fisher's scale (Bonett and Wright,
        Psychometrika 2000).
        """
        r = spearmanr(loss[name], right[name]).statistic
        ends = np.tanh(
            np.arctanh(r)
            + 1.96 * np.sqrt((1 + r**2 / 2) / (len(right[name]) - 3)) * np.array([-1, 1])
        )
        return "{:.2f} ({:.2f} to {:.2f})".format(r, *ends)

    assert [
        len(right[name])
        for name in ("lora-10-epochs", "lora-2-epochs", "full-1-epoch", "distilled")
    ] == [64, 192, 64, 64]
    assert (
        "over all 64 its ranks and those of accuracy correlate by "
        f"{ranks('lora-10-epochs')}, over the 192 runs of two epochs by" in told
    )
    assert (
        f"two epochs by {ranks('lora-2-epochs')}, over the 64 full fine-tunes by "
        f"{ranks('full-1-epoch')};" in told
    )
    assert f"the 64 students' losses say little, {ranks('distilled')}:" in told


def test_ratios_in_sentences_are_those_of_their_results():
    told = (ROOT / "docs/performance.md").read_text()

    def found(name):
        return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())

    ratios = [found(f"check-{name}")["took_over_predicted"] for name in ("demo", "clinc150")]
    demo, clinc = (
        [f"{ratio[key]:.2f}" for key in ("seconds", "worker_bytes", "disk_bytes")]
        for ratio in ratios
    )
    assert (
        "{} times the wall time, {} times the memory of a worker, {} times the disk".format(*demo)
        in told
    )
    assert "{}, {} and {} times. A machine".format(*clinc) in told
    head = found("head")["ratio"]
    assert (
        f"{head['float32']['seconds']:.2f} times as long in float32 and "
        f"{head['bfloat16']['seconds']:.2f} times in bfloat16" in told
    )
    works = found("train-vmap")["workloads"]
    vmap = [
        works[name]["ratios"]["vmap over peft"][works[name]["chosen"]]
        for name in ("C1", "C2", "embedded")
    ]
    assert (
        "{:.1f} times as fast on C1, {:.1f} times on C2 and {:.1f} times on the embedded".format(
            *vmap
        )
        in told
    )
    for label in ("stack, nothing compiled", "stack, compiled code on disk"):
        seconds = [
            works[name]["seconds_of_a_fresh_process"][label] for name in ("C1", "C2", "embedded")
        ]
        assert "{:.0f}, {:.0f} and {:.0f} s".format(*seconds) in " ".join(told.split())
