"""Claims and the outlook for the terminal, at most 120 columns wide."""

from __future__ import annotations

from itertools import groupby
from textwrap import wrap

from toolkit.record.results import ZONES, Claims, Outlook, Tested
from toolkit.record.words import claimed_range, figure, outlook_figures, percent, tested_unit
from toolkit.text import escape, tables

WIDTH = 120
NAME = 21
"""columns of the name of a category"""
SIGNS: dict[str, str] = dict(zip(ZONES, "+~!?", strict=True))


def claims_text(claims: Claims) -> str:
    """Each claim with what was measured of it, then what to expect of many runs."""
    rows: list[list[str]] = []
    for _, of_claim in groupby(claims.tested, key=lambda row: row.name):
        for i, row in enumerate(of_claim):
            remark = wrap(row.remark * bool(row.condition), WIDTH - 4)
            rows += [[row.says]] * (i == 0) + [_measured(row)]
            rows += [[f"    {line}"] for line in remark]
            if row.alone:  # what more runs, but not more prompts, would find
                alone = figure(row.alone, tested_unit(row), doubt="")
                rows.append([row.alone_verdict, "of these prompts alone", alone, "", ""])
    lines = tables.plain(rows, indent=2)
    for condition, of_condition in groupby(claims.outlook, key=lambda row: row.condition):
        lines += _outlook(condition, list(of_condition), claims.runs)
    zones = ", ".join(f"{SIGNS[zone]} {zone}" for zone in ZONES)
    return escape.lines(
        [
            *lines,
            "",
            f"{percent(claims.level)} intervals in brackets; a verdict only where the whole "
            "interval gives it;",
            f"{zones};",
            "'answers a prompt': different ones of all runs; '>' rather a lower bound",
        ]
    )


def _measured(row: Tested) -> list[str]:
    return [
        row.verdict,
        ", ".join(filter(None, (row.condition, row.prompts))),
        figure(row.estimate, tested_unit(row), doubt="", unknown="n/a") if row.estimate else "",
        f"N = {row.estimate.n_replicas:,}" if row.estimate else "",
        f"claimed {claimed_range(row)}" if row.claimed else "",
    ]


def _outlook(condition: str, rows: list[Outlook], runs: int) -> list[str]:
    table = [
        [
            "",
            "prompts",
            "two runs differ, %",
            "off the majority, runs",
            "answers a prompt",
            "accuracy",
        ]
    ]
    for row in rows:
        name = f"  {row.category}" if row.category else row.shift
        sign = SIGNS.get(row.zone, "?")
        table.append([sign, name[:NAME], *outlook_figures(row, runs)])
    measured = f"{rows[0].differ.n_replicas:,}"
    title = f"{runs:,} runs of {condition}, to be expected from {measured}:"
    return ["", title, *tables.plain(table)]
