"""README.md of a run or of a merged adapter, as model cards are: what it is made of, what was kept,
and how much its procedure varies.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from toolkit.errors import FtkError
from toolkit.model.adapters import CONFIG, FULL
from toolkit.record import shapes
from toolkit.record.plain import read_record
from toolkit.record.population import write_text
from toolkit.record.results import Estimate, Procedure, Results, ResultsError, load_results
from toolkit.record.words import (
    contrast_return,
    figure,
    number,
    percent,
    procedure_name,
    replicas_in_words,
    warnings,
)
from toolkit.text import escape, tables
from toolkit.text.escape import Markdown, code, link, markdown

CARD = "README.md"
SHOWN = 20
"""inputs in the table; merge.json has all"""


class CardError(FtkError, ValueError):
    """A folder that a card cannot be written for; one line with the reason and the way out."""


def write_card(folder: Path, *, force: bool = False) -> Path:
    """Write README.md of a run with results, or of a merged adapter.

    Raises CardError, also where a README is there that ftk has not written, or that was edited
    since. force: write over it.
    """
    if (folder / "merge.json").is_file():
        text = merge_card(folder)
    elif (folder / "results.json").is_file():
        text = run_card(folder)
    else:
        raise CardError(
            f"{folder}: neither a merged adapter (merge.json) nor a run with results (results.json)"
        )
    if not force:
        check_card(folder)
    write_text(folder / CARD, f"{text}{_SIGNED.format(_digest(text))}")
    return folder / CARD


def check_card(folder: Path) -> None:
    """Raises CardError where the README of a folder is not, or no longer, one that ftk has
    written.
    """
    path = folder / CARD
    if path.is_file() and not _is_ours(path.read_text(encoding="utf-8", errors="replace")):
        raise CardError(
            f"{path}: ftk has not written it, or it was edited since; move it away, or "
            "write over it with --force"
        )


def describe(folder: Path, note: Callable[[str], None] = lambda text: None) -> None:
    """The card of a folder that is known to have one; a README that somebody has written stays,
    which is noted.
    """
    try:
        write_card(folder)
    except CardError as error:
        if not (folder / CARD).is_file():
            raise
        note(f"kept as it is: {error}")


_SIGNED = "\n<!-- written by ftk, {} -->\n"
_LEGACY = ("| made with | ftk ", "How much independent fine-tunes of ")
"""in cards of versions that did not sign them"""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _is_ours(text: str) -> bool:
    body, mark, signature = text.rpartition("\n<!-- written by ftk, ")
    if mark:
        return signature.strip() == f"{_digest(body)} -->"
    return any(line.startswith(_LEGACY) for line in text.splitlines())


def merge_card(folder: Path) -> str:
    """Of an adapter that `ftk merge` or a run made."""
    record = read_record(folder / "merge.json", shapes.Merge)
    inputs = record["inputs"]
    whole = (folder / FULL).is_file()
    named = read_record(
        folder / (FULL if whole else CONFIG), shapes.Full if whole else shapes.AdapterConfig
    )
    base = named.get("base" if whole else "base_model_name_or_path")
    kind, what, change = ("fully fine-tuned models", "A fine-tune of", "W - W of the base")
    if not whole:
        kind, what, change = ("LoRA adapters", "A LoRA adapter for", "scale * B * A")
    method, asked = record["method"], record["parameters"]
    facts: list[tuple[object, object]] = [("", "")]
    facts += [
        (name, value)
        for name, value in sorted(asked.items())
        if value is not None and name != "rank"
    ]
    if not whole:
        facts.append(("rank", f"{record['rank']} (asked: {asked.get('rank', 'full')})"))
        facts.append(("share of the squared norm that this rank keeps", f"{record['energy']:.4f}"))
    facts.append(
        (
            "made with",
            ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        )
    )
    sources: list[tuple[object, ...]] = [("adapter", "weight", "sha256 of its weights")]
    sources += [
        (_short(member["path"]), number(member["weight"], "e4"), code(member["sha256"]))
        for member in inputs[:SHOWN]
    ]
    if len(inputs) > SHOWN:
        sources.append((f"and {len(inputs) - SHOWN} more", "", "in merge.json"))
    lines = [
        _front(
            base,
            ["merge", "ftk"] if whole else ["lora", "merge", "ftk"],
            "finetune" if whole else "adapter",
        ),
        f"# {markdown(method)} of {len(inputs)} {kind}",
        "",
        f"{what} {_named(base)}: the weight changes dW = {change} of {len(inputs)} of "
        f"them, merged by {link(method, record['paper'])}.",
        "",
        *tables.markdown(facts),
        "",
        "## Inputs",
        "",
        *tables.markdown(sources),
    ]
    around = _results_around(folder)
    if around:
        results, condition, label = around
        procedures = [
            p
            for c in results.conditions
            if c.name == condition
            for p in c.procedures
            if p.kind == "replica" or p.label == label
        ]
        if any(p.label == label for p in procedures):
            lines += [
                "",
                "## How much it varies",
                "",
                *_table(results, procedures),
                "",
                *_losses(results, procedures),
                _legend(results),
            ]
    return "\n".join(lines) + "\n"


def run_card(folder: Path) -> str:
    """Of a run: every procedure of every condition."""
    results = load_results(folder / "results.json")
    lines = [
        _front(results.about.base or None, ["lora", "ftk"]),
        f"# {markdown(results.about.recipe)}",
        "",
    ]
    lines += [
        f"How much independent fine-tunes of {_named(results.about.base or None)} differ, "
        "and what remedies buy.",
        "",
    ]
    for condition in results.conditions:
        failed = f", {condition.n_failed} more failed" if condition.n_failed else ""
        lines += [
            f"## {markdown(condition.name)}: {replicas_in_words(condition)}{failed}",
            "",
            *_table(results, condition.procedures),
            "",
        ]
        lines += _losses(results, condition.procedures)
    lines += [
        *_contrasts(results),
        _legend(results),
        "",
        *map(escape.item, (*results.verdict, *results.notes)),
    ]
    return "\n".join(lines) + "\n"


def _results_around(folder: Path) -> tuple[Results, str, str] | None:
    """Results of the run, condition and label, where the folder is
    RUN/CONDITION/merged/LABEL/g000.
    """
    parents = folder.resolve().parents
    if (
        len(parents) < 4
        or parents[1].name != "merged"
        or not (parents[3] / "results.json").is_file()
    ):
        return None
    path = parents[3] / "results.json"
    try:
        return _results(path, path.stat().st_mtime_ns), parents[2].name, parents[0].name
    except (
        ResultsError
    ):  # an older version's: a run that goes on measures anew, and then has its cards written
        return None


@lru_cache(maxsize=1)  # thousands of merges of one run have a card each
def _results(path: Path, stamp: int) -> Results:
    return load_results(path)


def _table(results: Results, procedures: Sequence[Procedure]) -> list[str]:
    """Disagreement of two independent runs by shift, and against single replicas on the shift that
    is farthest out.
    """
    far = results.shifts[-1]
    head = [
        "procedure",
        "runs",
        *(f"{shift}, %" for shift in results.shifts),
        f"ratio, {far}",
        f"accuracy change, {far}, points",
    ]
    rows: list[list[str]] = [head]
    for p in procedures:
        cells = [p.cell(shift) for shift in results.shifts]
        last = cells[-1]
        figures = [_figure(cell.disagreement if cell else None, "%") for cell in cells]
        against = [
            _figure(last.ratio if last else None),
            _figure(last.accuracy_change if last else None, "%", signed=True),
        ]
        rows.append([procedure_name(p), str(p.n_runs), *figures, *against])
    return tables.markdown(rows)


def _losses(results: Results, procedures: Sequence[Procedure]) -> list[str]:
    """What mitigations are shown to lose, as a list below their table."""
    single = next(p for p in procedures if p.kind == "replica")
    lost = [
        escape.item(f"{procedure_name(p)}: {warning}")
        for p in procedures
        for warning in warnings(p, single, results.shifts)
    ]
    return [*lost, ""] if lost else []


def _contrasts(results: Results) -> list[str]:
    """Conditions against the first: what is won, and beside it what is lost."""
    if not results.contrasts:
        return []
    rows: list[list[str]] = [
        ["condition", "shift", "ratio of disagreement", "accuracy change, points", ""]
    ]
    for c in results.contrasts:
        losses = ["a loss of accuracy"] * c.loses
        if c.returned:
            losses.append(contrast_return(c))
        change = (
            "not known"
            if c.accuracy_change is None
            else _figure(c.accuracy_change, "%", signed=True)
        )
        rows.append([c.condition, c.shift, _figure(c.ratio), change, "; ".join(losses)])
    return [
        f"## Conditions against {markdown(results.contrasts[0].baseline)}",
        "",
        *tables.markdown(rows),
        "",
    ]


def _figure(estimate: Estimate | None, unit: str = "", signed: bool = False) -> Markdown:
    return Markdown(figure(estimate, unit, signed, doubt=" (inconclusive)", unknown=""))


def _legend(results: Results) -> str:
    return (
        "Disagreement: share of prompts that two independent runs of the whole procedure "
        f"answer differently; {percent(results.level)} "
        "intervals over runs and prompts in brackets. Ratio: of the disagreement to that "
        "of single replicas."
    )


def _front(base: str | None, tags: list[str], relation: str = "adapter") -> str:
    """The YAML block of a card; a base that is a folder of this machine is not named there."""
    try:
        from huggingface_hub import ModelCardData
    except ImportError:
        return ""
    hub, _, _ = (base or "").partition("@")  # what follows is a revision
    of_base: dict[str, Any] = (
        {"base_model": hub, "base_model_relation": relation}
        if _HUB_ID.fullmatch(hub) and not _is_folder(hub)
        else {}
    )
    library = "peft" if relation == "adapter" else "transformers"
    data = ModelCardData(library_name=library, pipeline_tag="text-generation", tags=tags, **of_base)
    return f"---\n{data.to_yaml()}\n---\n"


_HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)


def _is_folder(base: str) -> bool:
    """A folder of this machine, also where its path looks like the name of somebody's model on a
    hub.
    """
    return (
        base == "embedded"
        or base.startswith((".", "/", "~"))
        or base.count("/") > 1
        or os.path.isdir(base)  # noqa: PTH112 (Path.is_dir raises where it may not look)
    )


def _named(base: str | None) -> Markdown:
    if not base:
        return Markdown("a base model that its adapters do not name")
    return (
        Markdown(f"{code(Path(base).name)} (a local folder)")
        if base != "embedded" and _is_folder(base)
        else code(base)
    )


def _short(path: str) -> str:
    """The last folders: enough to know it by, and nothing of the machine."""
    return "/".join(Path(path).parts[-3:])
