"""A name is a name: whatever users and models call things, a document keeps its structure and a
terminal obeys nothing.
"""

import ast
import io
import json
import logging
import re
import xml.etree.ElementTree as xml
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields, is_dataclass, replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from helpers.outcomes_of import World, vote
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from toolkit import cli
from toolkit.measurement.analyse import analyse
from toolkit.measurement.claims.text import claims_text
from toolkit.measurement.gate import judge as gating
from toolkit.measurement.gate import limits as gate
from toolkit.merging.module_spread import modules_text
from toolkit.record.results import (
    About,
    ChangedPrompt,
    Claims,
    Contrast,
    Judgement,
    Modules,
    ModuleSpread,
    Outlook,
    PromptContrast,
    Results,
    Sources,
    Tested,
    Thresholds,
    save_results,
)
from toolkit.report import charts, terminal
from toolkit.report.card import merge_card, run_card
from toolkit.report.html import figures, render
from toolkit.report.terminal import table_text
from toolkit.statistics import Estimate
from toolkit.text import escape, tables

PACKAGE = Path(__file__).parents[2] / "toolkit"
HOSTILE = (
    '"><script>alert(1)</script>',
    "' onload=alert(1) x='",
    "</title></style></svg><img src=x onerror=alert(1)>",
    "<!--",
    "]]>",
    "&lt;b&gt;&#60;",
    "{{ 7 * 7 }}{% raw %}",
    "a|b | c",
    "[x](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "<https://evil.example>",
    "https://evil.example www.evil.example me@evil.example",
    "`code` ``",
    "**bold** _so_ ~~no~~ # ## ===",
    "$\\frac{1}{2}$ $x_",
    "_hidden",
    "[red]x[/] [/nothing] [link=https://evil.example]y[/link]",
    "\x1b[31mred\x1b[2J\x1b]8;;https://evil.example\x07",
    "\x9b31m\x9d0;title\x9c",
    "\r\n\nftk: all is well",
    "\u202egnp.exe\u2066",
    "\u2028\x85\x0b\x0c\x00\x7f",
    "\ud800",
    "\ufeff\u200b\U000e0041",
    "=1+1 @SUM(A1) -1 +2",
    "\n---\nlicense: theirs\n",
    "%s {0} {name} \\n \\",
    "é 日本 😀 ✓",
)
CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
texts = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=8), min_size=1, max_size=4).map(
    "".join
)
"""what somebody may call something"""
quick = settings(derandomize=True, deadline=None, max_examples=100, database=None)
few = settings(derandomize=True, deadline=None, max_examples=5, database=None)
ALL = "".join(HOSTILE)


def safe_on_a_terminal(text: str) -> bool:
    return not CONTROL.search(text.replace("\n", ""))


# -- the rules by themselves ---------------------------------------------------------------------


@quick
@given(texts)
def test_a_line_stays_one_line_of_what_can_be_seen(text):
    assert not CONTROL.search(escape.line(text))
    escape.line(text).encode()
    assert escape.line(escape.line(text)) == escape.line(text)
    assert escape.lines([text, text]).count("\n") == 1
    assert escape.block(text).count("\n") == text.count("\n")


@quick
@given(st.dictionaries(texts, texts | st.integers() | st.lists(texts)))
def test_json_says_the_same_and_nothing_that_a_terminal_obeys(value):
    told = escape.json(value)
    assert json.loads(told) == value and not CONTROL.search(told) and told.encode()


@quick
@given(texts)
def test_markup_is_text_in_html_and_in_xml(text):
    for document in (
        f'<svg aria-label="{escape.markup(text)}"><text>{escape.markup(text)}</text></svg>',
    ):
        tree = xml.fromstring(document)
        assert (
            tree.attrib == {"aria-label": escape.line(text)}
            and len(tree) == 1
            and (tree[0].text or "") == escape.line(text)
        )
        assert (
            outline(document) == [("svg", ["aria-label"]), ("text", [])]
            and "".join(said(document)) == escape.line(text).strip()
        )


def rendered(source: str) -> list:
    """Tokens of Markdown with tables and strikethrough, inline ones flat."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    return [inner for token in parser.parse(source) for inner in (token, *(token.children or ()))]


def shape(source: str) -> list[str]:
    """What a document is made of, texts aside: runs of texts count once."""
    kinds = [
        "text" if token.type in ("text", "text_special") else f"{token.type} {token.tag}"
        for token in rendered(source)
    ]
    return [
        kind
        for kind, before in zip(kinds, ["", *kinds], strict=False)
        if (kind, before) != ("text", "text")
    ]


def words(source: str) -> str:
    return "".join(
        token.content
        for token in rendered(source)
        if token.type in ("text", "text_special", "code_inline")
    )


@quick
@given(texts, texts)
def test_markdown_is_the_text_and_nothing_else(text, other):
    shown = escape.line(text).strip()
    for made in (escape.markdown(text), escape.code(text), escape.link(text, other)):
        if shown:
            assert words(f"say {made}") == f"say {shown}"
            assert {kind.split()[0] for kind in shape(f"say {made}")} <= {
                "paragraph_open",
                "inline",
                "text",
                "paragraph_close",
                "code_inline",
            }
    listed = shape(escape.item(text + "x"))
    assert (
        listed == shape("- x") and words(escape.item(text + "x")) == escape.line(text + "x").strip()
    )
    table = [["a", "b"], [text + "x", other + "x"], [f"-{text}", f"{other}-"]]
    plain = [["a", "b"], ["x", "x"], ["-", "-"]]
    assert shape("\n".join(tables.markdown(table))) == shape("\n".join(tables.markdown(plain)))
    assert words("\n".join(tables.markdown(table))) == "ab" + "".join(
        escape.line(cell).strip() for row in table[1:] for cell in row
    )


def test_a_link_is_one_of_the_web():
    assert (
        escape.link("TIES", "https://arxiv.org/abs/2306.01708")
        == "[TIES](https://arxiv.org/abs/2306.01708)"
    )
    for address in (
        "javascript:alert(1)",
        "data:text/html,x",
        "https://a.example/) [x](b",
        "https://a.example/\nx",
        "//a.example",
    ):
        assert escape.link("x", address) == "x"


# -- whole documents -----------------------------------------------------------------------------


class Reader(HTMLParser):
    """Tags with the names of their attributes, values of attributes, and texts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.values: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attrs]))
        self.values += [value or "" for _, value in attrs]

    def handle_comment(self, data: str) -> None:
        self.tags.append(("comment", []))

    def handle_decl(self, decl: str) -> None:
        self.tags.append((decl, []))

    def handle_pi(self, data: str) -> None:
        self.tags.append(("instruction", []))

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append(data.strip())


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    return reader


def outline(document: str) -> list[tuple[str, list[str]]]:
    return read(document).tags


def said(document: str) -> list[str]:
    return read(document).texts


FIXED = {
    "kind",
    "unit",
    "method",
    "zone",
    "figure",
    "verdict",
    "alone_verdict",
    "consequence",
    "quantity",
    "design",
}
"""fields of records that hold one of a few words of ours; all others may come from a user or a
model
"""


def renamed(record: Any, name: Callable[[str], str], field: str = "") -> Any:
    """The record with every free text in it, keys included, given another name; equal texts stay
    equal.
    """
    if is_dataclass(record) and not isinstance(record, type):
        sentence = isinstance(record, Results)  # its verdict is sentences
        return replace(
            record,
            **{
                f.name: renamed(getattr(record, f.name), name, "" if sentence else f.name)
                for f in fields(record)
                if f.init
            },
        )
    if isinstance(record, dict):
        return {name(key): renamed(value, name, field) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return type(record)(renamed(value, name, field) for value in record)
    return name(record) if isinstance(record, str) and record and field not in FIXED else record


def naming(before: str) -> Callable[[str], str]:
    """A name for every text: hostile, and then a word that tells which it was."""
    known: dict[str, str] = {}
    return lambda text: known.setdefault(text, f"{before}word{len(known):04d}word")


def changed(text: str, before: str) -> str:
    """The plain document's text as it must stand in the hostile one."""
    return re.sub(r"word\d+word", lambda found: before + found[0], text)


E = Estimate(0.4, 0.2, 0.6, 0.95, 12, 30, "two-way jackknife", note="a note")


@cache
def planted() -> Results:
    """Results with something in every section of the report."""
    world = (
        World(12, per_category=4, failed=(3,))
        .mitigate("mean", 2, vote, "merge")
        .mitigate("mean", 4, vote, "merge")
    )
    about = About(
        "0.1.0", "recipe", "org/base", 10, {"gpu": "a card", "cpu": "a core"}, "ftk run recipe.yaml"
    )
    bare = analyse(world.table, world.prompts, world.designs, about=about)
    first = replace(bare.conditions[0], settings={"rank": 8, "targets": "all-linear"})
    cells = tuple(
        replace(cell, survival=None, scores=(), metrics=()) for cell in first.single.cells
    )
    single = replace(first.single, cells=cells)
    bones = replace(first, procedures=(single,), unstable=(), scaling=(), trade=None)
    others = [
        replace(bones, name=f"lora-r{rank}", settings={"rank": rank, "targets": "all-linear"})
        for rank in (16, 32)
    ]
    source = Sources(
        "far",
        "disagreement",
        {"init": E, "residual": E},
        E,
        {"repeatability": E},
        ("a note of it",),
    )
    first = replace(
        first, sources=(source, replace(source, figure="accuracy")), unstable=first.unstable[:2]
    )
    contrast = Contrast("lora-r16", "lora", "far", True, E, E, E, E, 0.01, E)
    named = replace(contrast, condition="mean, K = 2 (lora-r16)")
    by_prompt = ChangedPrompt(
        "far", "id-1", "What is it?", "two intents", "far", 0.1, 0.5, 0.001, 0.01
    )
    module = ModuleSpread("layers.0.q_proj", 0.2, E, E, 0.5)
    return replace(
        bare,
        conditions=(first, *others),
        notes=("a note of the run",),
        thresholds=Thresholds(categories={"two intents": (0.1, 0.3)}),
        contrasts=(
            contrast,
            replace(contrast, shift="near"),
            replace(contrast, condition="lora-r32"),
        ),
        mitigated=(named,),
        same_compute=(replace(named, baseline="longer"),),
        by_prompt=(PromptContrast("lora-r16", "lora", "disagreement", True, 20, 1, (by_prompt,)),),
        modules=(Modules("lora", "", True, (0, 1), module, (module,), (module,), (module,)),),
        judgements=tuple(
            Judgement(
                "few",
                "far prompts",
                "at most 5 %",
                0.95,
                "critical",
                "lora",
                p.label,
                p.k,
                "FAIL",
                E,
                "%",
                "too few runs",
            )
            for p in first.procedures
        ),
    )


@cache
def put_to_the_test() -> Claims:
    tested = Tested(
        "rare",
        "Runs differ on rare prompts",
        "lora",
        "disagreement",
        "far prompts",
        (0.1, 0.2),
        E,
        "supported",
        "so far",
        E,
        "supported",
    )
    outlook = Outlook("lora", "far", "", 20, "watch", E, E, E)
    return Claims(
        "claims.yaml",
        0.95,
        10_000,
        "",
        (tested,),
        (outlook, replace(outlook, category="two intents")),
    )


def parts_of(report: str) -> tuple[str, list[str]]:
    """The report without its charts, and the charts."""
    return re.sub(r"<svg.*?</svg>", "<svg></svg>", report, flags=re.DOTALL), re.findall(
        r"<svg.*?</svg>", report, flags=re.DOTALL
    )


@cache
def plain_report() -> str:
    name = naming("")
    return render(renamed(planted(), name), renamed(put_to_the_test(), name))


@settings(few, max_examples=2)
@given(before=texts)
@example(before=ALL)
@example(before="_")
def test_the_report_has_the_structure_of_its_plain_self(before):
    structure_holds(before)


@pytest.mark.slow
@settings(few, max_examples=40)
@given(before=texts)
def test_the_report_has_the_structure_of_its_plain_self_with_many_names(before):
    structure_holds(before)


def structure_holds(before: str) -> None:
    name = naming(before)
    report, drawn = parts_of(render(renamed(planted(), name), renamed(put_to_the_test(), name)))
    plain, plainly_drawn = parts_of(plain_report())
    assert outline(report) == outline(plain)
    inside = escape.seen(before)
    for text, plain_text in zip(said(report), said(plain), strict=True):
        assert same_words(text, changed(plain_text, inside))
    assert len(drawn) == len(plainly_drawn)
    for svg, plain_svg in zip(drawn, plainly_drawn, strict=True):
        same_drawing(svg, plain_svg, escape.line(before))


def same_words(text: str, expected: str) -> bool:
    """Long answers and prompts are cut."""
    text, expected = (" ".join(words.split()) for words in (text, expected))
    return text == expected or (text.endswith("...") and expected.startswith(text[:-3].strip()))


def same_drawing(svg: str, plain: str, before: str) -> None:
    """Kinds of elements, and every text of the plain one: coordinates and ticks make room for long
    names.
    """
    kinds = {(tag, *sorted(attributes)) for tag, attributes in outline(svg)}
    assert {kind[0] for kind in kinds} == {tag for tag, _ in outline(plain)}
    assert {name for _, *names in kinds for name in names} == {
        name for _, names in outline(plain) for name in names
    }
    named = {changed(text, before).strip() for text in said(plain) if "word" in text}
    assert named <= {text.strip() for text in said(svg)}
    tree = xml.fromstring(svg.replace("xlink:href", "href"))
    assert all(
        value.startswith("#")
        for node in tree.iter()
        for key, value in node.attrib.items()
        if key.endswith("href")
    )


@few
@given(before=texts)
@example(before=ALL)
def test_figures_for_documents_are_well_formed(before):
    drawn = figures(renamed(planted(), naming(before)))
    assert set(drawn) == {"sources", "controls", "dependence"}
    for svg in drawn.values():
        xml.fromstring(svg)
    assert escape.line(before) in xml.fromstring(drawn["controls"]).attrib["aria-label"]


def test_every_series_is_in_the_legend():
    svg = charts.survival(
        {name: ([1.0], [0.5], [0.4], [0.6]) for name in ("_hidden", "", "$x$", "a")}
    )
    assert {"_hidden", "$x$", "a"} <= set(said(svg))


def test_a_matplotlibrc_of_the_user_does_not_decide_what_a_chart_looks_like():
    import matplotlib

    dots = {"far": {"a": {"x": charts.Dot(0.2, 0.1, 0.3)}}}
    usual = charts.by_category(dots)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "svg.fonttype": "path"}):
        assert charts.by_category(dots) == usual
        assert matplotlib.rcParams["font.size"] == 30


@quick
@given(before=texts)
@example(before=ALL)
def test_the_terminal_obeys_no_name(before):
    name, plain = naming(before), naming("")
    assert safe_on_a_terminal(table_text(renamed(planted(), name)))
    with pytest.MonkeyPatch.context() as patch:
        # a longer name may take another line; it must not make one
        patch.setattr(terminal, "WIDTH", 10**6)
        shown = [table_text(renamed(planted(), one)) for one in (name, plain)]
    assert shown[0].count("\n") == shown[1].count("\n")
    spread = modules_text(renamed(planted().modules, name))
    assert safe_on_a_terminal(spread) and spread.count("\n") == modules_text(
        renamed(planted().modules, plain)
    ).count("\n")
    assert safe_on_a_terminal(claims_text(renamed(put_to_the_test(), name)))
    verdict = gate.Verdict(
        "fail",
        (name("why"),),
        (gate.Row(name("metric"), "run", 0, 1.0, 0.0, 2.0, 0.5, False),),
        notes=(name("note"),),
    )
    told = gating.verdict_text(verdict)
    assert safe_on_a_terminal(told) and told.count("\n") == 3


def cards(results: Results, name: Callable[[str], str], folder: Path) -> list[str]:
    """The card of a run, and of a merge."""
    save_results(folder / "results.json", renamed(results, lambda text: escape.line(name(text))))
    merge = {
        "method": name("mean"),
        "paper": name("https://arxiv.org/abs/1"),
        "parameters": {name("density"): name("half"), "rank": 8},
        "inputs": [
            {
                "path": f"{name('runs')}/lora/{name('adapter')}",
                "weight": 0.5,
                "sha256": name("hash"),
            }
        ]
        * 2,
        "rank": 8,
        "energy": 1.0,
        "versions": {name("torch"): name("2.9")},
    }
    (folder / "merge.json").write_text(json.dumps(merge))
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": name("org/base")})
    )
    return [run_card(folder), merge_card(folder)]


@settings(few, max_examples=25)
@given(before=texts)
@example(before=ALL)
@example(before="---\n")
def test_cards_hold_no_markup_of_a_name(before, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    small = replace(planted(), conditions=planted().conditions[:1])
    for card, plain in zip(
        cards(small, naming(before), folder), cards(small, naming(""), folder), strict=True
    ):
        (front, body), (plain_front, plain_body) = (
            text.removeprefix("---\n").split("\n---\n", 1) for text in (card, plain)
        )
        assert not CONTROL.search(card.replace("\n", ""))
        known, plainly_known = (
            {k: v for k, v in yaml.safe_load(text).items() if "base" not in k}
            for text in (front, plain_front)
        )
        assert known == plainly_known
        typed = {"code_inline code"}  # a name that holds a back tick is no code
        assert [kind for kind in shape(body) if kind not in typed | {"text"}] == [
            kind for kind in shape(plain_body) if kind not in typed | {"text"}
        ]


def test_a_base_is_named_to_a_hub_only_where_it_is_one(tmp_path, monkeypatch):
    (tmp_path / "merge.json").write_text(
        json.dumps(
            {
                "method": "mean",
                "paper": "",
                "parameters": {},
                "inputs": [],
                "rank": 1,
                "energy": 1.0,
                "versions": {},
            }
        )
    )
    monkeypatch.chdir(tmp_path)
    Path("models/base").mkdir(parents=True)
    told = {}
    for base in (
        "Qwen/Qwen3-0.6B",
        "Qwen/Qwen3-0.6B@main",
        "models/base",
        "../x",
        "a\n---\nb",
        "a/b/c",
        "C:\\models",
        'x"><b>',
    ):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        told[base] = yaml.safe_load(merge_card(tmp_path).split("---\n")[1]).get("base_model")
    assert {base: name for base, name in told.items() if name} == dict.fromkeys(
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B@main"), "Qwen/Qwen3-0.6B"
    )


@settings(few, max_examples=25)
@given(before=texts)
@example(before=ALL)
def test_tables_for_documents_hold_no_markup_of_a_name(before):
    import tables as documents

    name, plain = naming(before), naming("")
    for make, record in (
        (documents.claims_table, put_to_the_test()),
        (documents.matrix, put_to_the_test()),
        (documents.conditions_table, planted()),
    ):
        assert shape(make(renamed(record, name))) == shape(make(renamed(record, plain)))
        assert words(make(renamed(record, name))) == changed(
            words(make(renamed(record, plain))), escape.line(before).lstrip()
        )


# -- commands ------------------------------------------------------------------------------------


def test_only_the_terminal_module_prints():
    """`say`, `show` and `print_json` escape; anything else would print as it comes."""
    for path in sorted((PACKAGE / "cli").glob("*.py")):
        loose = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and ast.unparse(node.func)
            in ("click.echo", "click.secho", "print", "sys.stdout.write", "sys.stderr.write")
        ]
        assert len(loose) == (3 if path.name == "terminal.py" else 0), f"{path.name}, lines {loose}"


def test_templates_say_nothing_unescaped():
    for path in (PACKAGE / "report" / "templates").iterdir():
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text()), path.name
    sites = [
        path.name
        for path in PACKAGE.rglob("*.py")
        for _ in range(len(re.findall(r"\bMarkup\(", path.read_text())))
    ]
    assert sites == ["html.py"] * 3, "only charts, and tables of escaped cells, are markup already"


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> Path:
    """Answers of two conditions with hostile text in every column, in a file with such a name."""
    folder = tmp_path_factory.mktemp("predictions")
    bad = ALL.replace("\ud800", "").replace("\x00", "")
    path = folder / ("\x1b[31m\n<b>" + "predictions.jsonl")
    rng = np.random.default_rng(0)
    rows = [
        {
            "condition": f"{condition}{bad}",
            "replica": f"{replica}{bad}",
            "prompt": f"{prompt}{bad}",
            "output": f"{int(rng.integers(2))}{bad}",
            "reference": f"1{bad}",
            "category": f"{prompt % 2}{bad}",
            "shift": f"{prompt % 2}{bad}",
            "cluster": f"{prompt}{bad}",
        }
        for condition in "ab"
        for replica in range(8)
        for prompt in range(8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_file_of_hostile_predictions_is_measured_and_gated(predictions, tmp_path):
    done = invoke("measure", predictions, "--out", tmp_path / "out\n\x1b[31m")
    assert done.exit_code == 0, done.output
    assert safe_on_a_terminal(done.stdout) and safe_on_a_terminal(done.stderr)
    tags = outline((tmp_path / "out\n\x1b[31m" / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in tags}.isdisjoint(
        {"script", "img", "b onload", "iframe", "a", "comment"}
    )
    assert not [name for _, names in tags for name in names if name.startswith("on")]
    for arguments in (
        ["measure", predictions, "--out", tmp_path / "j", "--json"],
        ["plan", tmp_path / "j", "--json"],
    ):
        done = invoke(*arguments)
        assert (
            done.exit_code == 0
            and safe_on_a_terminal(done.stdout)
            and done.stdout.count("\n") == 1
            and json.loads(done.stdout)
        )
    done = invoke("gate", predictions, "--candidate", predictions)
    assert (
        done.exit_code == 2 and safe_on_a_terminal(done.stderr) and done.stderr.count("\n") == 1
    ), done.output
    condition = json.loads(predictions.read_text().splitlines()[0])["condition"]
    done = invoke("gate", predictions, "--candidate", predictions, "--condition", condition)
    assert done.exit_code in (0, 3) and safe_on_a_terminal(done.stdout), done.output
    for command in (["card", tmp_path / "j"], ["plan", tmp_path / "j"], ["report", tmp_path / "j"]):
        done = invoke(*command)
        assert done.exit_code == 0 and safe_on_a_terminal(done.output), done.output


@pytest.mark.parametrize(
    "command",
    [
        "run",
        "check",
        "measure",
        "gate",
        "plan",
        "claims",
        "report",
        "card",
        "merge",
        "evaluate",
        "modules",
        "basin",
    ],
)
def test_errors_about_a_hostile_name_are_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "\x1b[31mno\nsuch\r\u202efile\x9b"
    options = {
        "gate": ["--candidate", name],
        "merge": ["--method", "mean"],
        "evaluate": ["--prompts", "embedded:far"],
        "basin": ["--prompts", name],
    }
    for arguments in ([command, name, *options.get(command, [])], [command, name, f"--no{name}"]):
        done = invoke(*arguments)
        assert done.exit_code in (1, 2) and safe_on_a_terminal(done.output), repr(done.output)
        assert done.stderr.splitlines()[-1].startswith(("ftk: ", "Error: "))
        if done.stderr.startswith("ftk: "):
            assert done.stderr.count("\n") == 1, done.stderr


def test_a_recipe_with_hostile_names_is_told_in_one_line(tmp_path):
    for key in ("\x1b[31mbase\n", "\u202e", "[red]x[/]", "\x9b"):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({key: 1, "base": key, "conditions": {key: {key: key}}}))
        done = invoke("check", path)
        assert (
            done.exit_code == 2 and safe_on_a_terminal(done.stderr) and done.stderr.count("\n") == 1
        ), done.stderr


def test_what_a_library_logs_is_escaped(monkeypatch):
    stream = io.StringIO()
    logger = logging.Logger("library")
    logger.addHandler(logging.StreamHandler(stream))
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    escape.in_logs()
    logger.warning("a model of type `%s`\nand more", "\x1b[2J\x9b")
    assert stream.getvalue() == "a model of type `\\x1b[2J\\x9b`\nand more\n"


def test_progress_shows_a_name_as_it_is(monkeypatch):
    from toolkit.cli import terminal

    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    for title in ("[/nothing] [red]x", "\x1b[2Jx", "a\nb"):
        screen = Screen()
        monkeypatch.setattr("sys.stderr", screen)
        with ExitStack() as bars:
            terminal._bar(bars, title, 4)(0.5)
        assert escape.line(title) in screen.getvalue() and "\x1b[2Jx" not in screen.getvalue()
        terminal._lines(title, 4)(0.5)
        assert f"{escape.line(title)}: 2/4" in screen.getvalue().splitlines()[-1]
