"""Claims and the outlook for the terminal, at most 120 columns wide."""

from __future__ import annotations

from itertools import groupby
from textwrap import wrap

from toolkit.record.results import (
    ZONES,
    Claims,
    Outlook,
    Tested,
    claimed_range,
    floor_text,
    interval,
    number,
    tested_unit,
)
from toolkit.statistics import Estimate
from toolkit.text import escape

WIDTH = 120
SIGNS: dict[str, str] = dict(zip(ZONES, "+~!?", strict=True))


def claims_text(claims: Claims) -> str:
    """Each claim with what was measured of it, then what to expect of many runs."""
    lines = []
    for _, rows in groupby(claims.tested, key=lambda row: row.name):
        for i, row in enumerate(rows):
            lines += (
                [row.says] * (i == 0)
                + [_row(row)]
                + [f"    {line}" for line in wrap(row.remark * bool(row.condition), WIDTH - 4)]
            )
            lines += [_alone(row, row.alone)] if row.alone else []
    for condition, rows in groupby(claims.outlook, key=lambda row: row.condition):
        of_condition = list(rows)
        lines += [
            "",
            f"{claims.runs:,} runs of {condition}, to be expected from "
            f"{of_condition[0].differ.n_replicas:,}:",
        ]
        lines.append(
            "   "
            f"{'prompts':<22}{'two runs differ, %':<21}{'off the majority, runs':<24}"
            f"{'answers a prompt':<22}accuracy"
        )
        lines += [_outlook(row, claims.runs) for row in of_condition]
    level = (
        f"{100 * claims.level:g} % intervals in brackets; a verdict only where the whole "
        "interval gives it"
    )
    zones = ", ".join(f"{SIGNS[zone]} {zone}" for zone in ZONES)
    answers = "'answers a prompt': different ones of all runs; '>' rather a lower bound"
    return escape.lines([*lines, "", f"{level};", f"{zones};", answers])


def _row(row: Tested) -> str:
    e = row.estimate
    measured = (
        "" if e is None else f"{number(e.value, tested_unit(row))} {interval(e, tested_unit(row))}"
    )
    runs = "" if e is None else f"N = {e.n_replicas:,}"
    place = f"{row.condition}{', ' * bool(row.condition and row.prompts)}{row.prompts}"
    claimed = f"claimed {claimed_range(row)}" if row.claimed else ""
    return f"  {row.verdict:<16}{place:<34}{measured:<22}{runs:<12}{claimed}".rstrip()


def _alone(row: Tested, e: Estimate) -> str:
    """The same of the prompts at hand: what more runs, but not more prompts, would find."""
    return (
        f"  {row.alone_verdict:<16}of these prompts "
        f"alone{'':<14}{number(e.value, tested_unit(row))} {interval(e, tested_unit(row))}"
    )


def _outlook(row: Outlook, runs: int) -> str:
    differ = f"{number(row.differ.value, '%')} {interval(row.differ, '%')}"
    off = "n/a" if row.off.value is None else f"{runs * row.off.value:,.0f}"
    if row.off.low is not None and row.off.high is not None:
        off += f" [{runs * row.off.low:,.0f}, {runs * row.off.high:,.0f}]"
    distinct = (
        f"{'' if row.distinct.conclusive else '>'}{number(row.distinct.value)} "
        f"{interval(row.distinct)}"
    )
    name = f"  {row.category}" if row.category else row.shift
    figures = f"{differ:<21}{off:<24}{distinct:<22}{floor_text(row)}"
    return f" {SIGNS.get(row.zone, '?')} {name[:21]:<22}{figures}".rstrip()
