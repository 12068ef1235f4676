"""Which modules do replicas change alike, and which differently? The spread of their weight
changes, module by module.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from toolkit import statistics as st
from toolkit.model.adapters import Adapter
from toolkit.model.grams import module_gram, module_names
from toolkit.record.results import Modules, ModuleSpread
from toolkit.record.words import module_rows
from toolkit.text import escape, tables

LISTS = ("all", "kinds", "layers", "modules")


@dataclass(frozen=True)
class Population:
    """Adapters of one condition. replicas: their numbers; seeds: of each, by source, empty where
    nobody knows them.
    """

    name: str
    adapters: Sequence[Adapter]
    replicas: Sequence[int]
    seeds: Sequence[Mapping[str, int]]


def place(name: str) -> tuple[str, str]:
    """(layer, kind) of a module: the first number in its name, and what stands behind it: ("0",
    "self_attn.q_proj").
    """
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", name)
    return (match[1], match[2]) if match else ("", name)


def modules(populations: Sequence[Population], *, level: float = 0.95) -> tuple[Modules, ...]:
    """Spread of every module, kind of module and layer, of each population; its ratio to that of
    the first, adjusted within each list.

    A kind, or a layer, is measured as one: the changes of all its modules together. Populations are
    compared as pairs of the same number where these have the same seeds. Reads one module of a few
    members at a time. Raises AdapterError in one line, ValueError for fewer than two adapters.
    """
    pairs = [_pairs(population, populations[0]) for population in populations]
    notes = [_dependent(population.seeds) for population in populations]

    def measured(name: str, gram_C: Sequence[np.ndarray]) -> list[ModuleSpread]:
        """Of each population; `share` is a sum of squared norms still."""
        spreads = []
        for c, gram in enumerate(gram_C):
            spread, ratio = st.weight_spread(gram, level=level), None
            if c:
                b, a = gram, gram_C[0]
                if both := pairs[c]:
                    b, a = b[np.ix_(both[0], both[0])], a[np.ix_(both[1], both[1])]
                ratio = _told(
                    st.weight_spread_ratio(b, a, paired=both is not None, level=level),
                    notes[c] or notes[0],
                )
            spreads.append(
                ModuleSpread(
                    name, float(np.trace(gram)) / len(gram), _told(spread, notes[c]), ratio
                )
            )
        return spreads

    rows: dict[str, list[list[ModuleSpread]]] = {title: [] for title in LISTS}
    sums: defaultdict[tuple[str, str], list] = defaultdict(lambda: [0.0] * len(populations))
    for name in sorted(
        {name for population in populations for name in module_names(population.adapters)},
        key=_in_order,
    ):
        gram_C = [module_gram(population.adapters, name) for population in populations]
        rows["modules"].append(measured(name, gram_C))
        layer, kind = place(name)
        for group in (("all", "all"), ("kinds", kind), *([("layers", layer)] if layer else [])):
            sums[group] = [total + added for total, added in zip(sums[group], gram_C, strict=True)]
    for (title, name), gram_C in sums.items():
        rows[title].append(measured(name, gram_C))

    results = []
    for c, population in enumerate(populations):
        size = rows["all"][0][c].share or 1.0
        lists = {
            title: _adjusted([replace(row[c], share=row[c].share / size) for row in rows[title]])
            for title in LISTS
        }
        baseline = populations[0].name if c else ""
        numbers = tuple(population.replicas)
        results.append(
            Modules(
                population.name,
                baseline,
                pairs[c] is not None,
                numbers,
                lists["all"][0],
                *(lists[t] for t in LISTS[1:]),
            )
        )
    return tuple(results)


def _in_order(name: str) -> list[tuple[int, str]]:
    """layers.2 comes before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _pairs(b: Population, a: Population) -> tuple[list[int], list[int]] | None:
    """Places of the members that have number and seeds in common, in both; None where fewer than
    two have.
    """
    if b is a:
        return None
    position = {
        (number, *sorted(seeds.items())): i
        for i, (number, seeds) in enumerate(zip(a.replicas, a.seeds, strict=True))
        if seeds
    }
    keys = [
        (number, *sorted(seeds.items())) for number, seeds in zip(b.replicas, b.seeds, strict=True)
    ]
    common = [(i, position[key]) for i, key in enumerate(keys) if key in position]
    return ([i for i, _ in common], [j for _, j in common]) if len(common) >= 2 else None


def _dependent(seeds: Sequence[Mapping[str, int]]) -> str:
    """Why the members are no independent runs; "" where they are, as far as their seeds tell."""
    for source in seeds[0] if seeds else ():
        if 1 < len({of.get(source) for of in seeds}) < len(seeds):
            return f"some replicas share their {source}, so that they are fewer independent runs"
    return ""


def _told(estimate: st.Estimate, note: str) -> st.Estimate:
    return replace(estimate, conclusive=False, note=note) if note else estimate


def _adjusted(rows: Sequence[ModuleSpread]) -> tuple[ModuleSpread, ...]:
    adjusted = st.benjamini_hochberg([row.ratio.p if row.ratio else None for row in rows])
    return tuple(
        row if np.isnan(p) else replace(row, p_adjusted=float(p))
        for row, p in zip(rows, adjusted, strict=True)
    )


# -- words ---------------------------------------------------------------------------------------


def modules_text(populations: Sequence[Modules]) -> str:
    """For the terminal."""
    return "\n\n".join(_text(population) for population in populations) + (
        "\n\nspread: share of a change's squared norm that the next run does not repeat, "
        "0 = copies, 1 = nothing in common;\n"
        "size: share of the squared norm of the whole change; '?' inconclusive"
    )


def _text(population: Modules) -> str:
    lines = [
        f"{population.condition}: {len(population.replicas)} replicas"
        + (f", against {population.baseline}" if population.baseline else "")
    ]
    lines[0] += " (pairs of the same seeds)" if population.paired else ""
    if population.total.spread.note:
        lines.append(f"inconclusive: {population.total.spread.note}")
    table = module_rows(population)
    lines += tables.plain(
        [row if row[1:] else [f" {row[0]}"] for row in table], right=[1], indent=2
    )
    if population.baseline:
        clear = sum(
            row.p_adjusted is not None and row.p_adjusted < 1 - population.total.spread.level
            for row in population.modules
        )
        lines.append(
            f" {clear} of {len(population.modules)} modules have another spread than in "
            f"{population.baseline}, adjusted for their number"
        )
    return escape.lines(lines)
