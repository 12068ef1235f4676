"""The report is one closed file: nothing is loaded, nothing that a model said is executed, and it
says what is not known.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.html_reader import Reader
from helpers.outcomes_of import World, vote

from toolkit import statistics as st
from toolkit.measurement.analyse import analyse, replica_metrics
from toolkit.record import words
from toolkit.record.results import About, Results, save_results
from toolkit.report import charts
from toolkit.report.html import render, write_report
from toolkit.report.terminal import table_text
from toolkit.text import tables

ATTACK = '<script>alert("x")</script><img src=http://evil.example/x.png>'


@pytest.fixture(scope="module")
def results() -> Results:
    world = (
        World(24, failed=(3,))
        .mitigate("mean", 2, vote, "merge")
        .mitigate("vote", 2, vote)
        .mitigate("vote", 8, vote)
    )
    world.mitigate("collapse", 4, lambda members: world.base, "merge")
    worst = next(p for _, p in world.flat if p.id == "two intents-3")
    worst.prompt = f"What about {ATTACK}?"
    for n, row in enumerate(row for row in world.rows if row["prompt_id"] == worst.id):
        row["answer"] = f"{ATTACK} {n}"
    return analyse(
        world.table,
        world.prompts,
        world.designs,
        about=About("0.1.0", ATTACK, "embedded", 10, {"gpu": ATTACK}, "ftk run"),
    )


@pytest.fixture(scope="module")
def html(results: Results) -> str:
    return render(results)


def test_nothing_is_loaded_and_nothing_is_executed(html: str) -> None:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert {tag for tag, _ in reader.tags}.isdisjoint(
        {"script", "img", "link", "iframe", "object", "image"}
    )
    for _, attributes in reader.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|<!DOCTYPE svg|<\?xml", html)


def test_text_of_models_is_escaped(html: str) -> None:
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 3, "shown as text: prompt, answers, environment"


def test_the_report_says_what_is_in_the_results(results: Results, html: str) -> None:
    for heading in (
        "What each mitigation buys",
        "Where replicas disagree",
        "one by one",
        "against K",
        "least stable",
        "Environment",
    ):
        assert heading in html
    assert all(sentence[:40] in html for sentence in results.verdict)
    assert "inconclusive; needs about 24 replicas" in html
    assert "the gain is a return to the base" in html
    assert "1 of 24 runs failed" in html
    assert "not adjusted for multiplicity" in html
    assert "± 0" not in html and "nan" not in re.sub(r"<[^>]*>", "", html).split()


def test_the_report_is_deterministic(results: Results, html: str) -> None:
    assert render(results) == html


def test_report_of_a_run(results: Results, tmp_path) -> None:
    save_results(tmp_path / "results.json", results)
    path = write_report(tmp_path)
    assert path.read_text(encoding="utf-8") == render(results)


@pytest.mark.parametrize("n_replicas", [1, 2, 6])
def test_little_data_still_makes_a_report(n_replicas: int) -> None:
    world = World(n_replicas, per_category=4).mitigate("vote", 4, vote)
    for row in world.rows:
        row["correct"] = None
    results = analyse(world.table, world.prompts, world.designs)
    assert "inconclusive" in render(results) and "?" in table_text(results)


def test_table_fits_a_terminal(results: Results) -> None:
    text = table_text(results)
    assert text.isascii() and max(map(len, text.splitlines())) <= 120
    assert "needs 24" in text and "0.00!" in text


def test_importing_the_report_is_cheap() -> None:
    heavy = ("torch", "matplotlib", "jinja2", "scipy.stats")
    code = (
        f"import sys, toolkit.report.html, toolkit.measurement.analyse; print([m for m in {heavy} "
        "if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


def test_charts_are_deterministic_and_leave_nothing_behind() -> None:
    dot, zero, unknown = (
        charts.Dot(0.2, 0.1, 0.3),
        charts.Dot(0.0, 0.0, 0.05),
        charts.Dot(None, None, None),
    )
    for svg in (
        lambda: charts.by_category(
            {
                "far": {
                    "a (3)": {"single replica": dot, "vote, K = 2": zero},
                    "b (4)": {"single replica": unknown},
                }
            }
        ),
        lambda: charts.accuracies(
            {"typical": ([0.5, 0.75, 0.75], 0.25, 4), "far": ([1.0], None, 4)}
        ),
        lambda: charts.against_k({"far": (dot, {"vote": {2: dot, 4: zero, 8: unknown}})}),
        lambda: charts.against_k({"far": (unknown, {})}),
    ):
        assert svg() == svg() and svg().startswith("<svg") and "http-equiv" not in svg()


def test_a_statistic_is_a_row_and_a_label_and_stands_wherever_figures_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refusals(replicas: replica_metrics.Replicas) -> st.Estimate:
        n_replicas, n_prompts = replicas.answer_RP.shape
        return st.Estimate(0.25, 0.2, 0.3, 0.95, n_replicas, n_prompts, "counted")

    row = replica_metrics.Statistic("answers that refuse", "%", refusals)
    monkeypatch.setattr(replica_metrics, "STATISTICS", (*replica_metrics.STATISTICS, row))
    label = words.TerminalFigure("refusals in %")
    monkeypatch.setitem(words.IN_TERMINAL, "answers that refuse", label)

    world = World(4, per_category=4)
    results = analyse(world.table, world.prompts, world.designs)

    assert "lora, refusals in %: typical 25.0 [20.0, 30.0]" in table_text(results)
    assert "answers that refuse, %" in render(results)
    save_results(tmp_path / "results.json", results)
    [condition] = json.loads((tmp_path / "results.json").read_text())["conditions"]
    metrics = condition["procedures"][0]["cells"][0]["metrics"]
    assert {"name": row.name, "unit": "%"}.items() <= metrics[-1].items()
    assert metrics[-1]["estimate"]["value"] == 0.25


def test_a_terminal_table_is_as_wide_as_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the terminal is, and whatever stands in a cell."""
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("FORCE_COLOR", "1")
    rows = [["name", "n ", "last"], ["[red]a\nb", "1!", "x" * 200], ["across"], ["y" * 80, "2 "]]
    assert tables.plain(rows, right=[1]) == [
        f" name{' ' * 58}n   last",
        f" [red]a\\nb{' ' * 53}1!  {'x' * 200}",
        "across",
        f" {'y' * 57}...  2",
    ]
    assert tables.markdown(rows[:2])[1] == "|---|---|---|"
    assert "<td>[red]a\nb</td>" in tables.html(rows) and '<th colspan="3">across' in tables.html(
        rows
    )
