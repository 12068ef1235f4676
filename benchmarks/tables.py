"""The table of a results.json or claims.json, or of `benchmarks/merge.py`, `train.py` or
`scale.py`, as Markdown, for the documents.

python benchmarks/tables.py benchmarks/results/methods.json
python benchmarks/tables.py benchmarks/results/claims/claims.json
python benchmarks/tables.py benchmarks/results/merge.json
python benchmarks/tables.py benchmarks/results/train.json
python benchmarks/tables.py benchmarks/results/scale.json
python benchmarks/tables.py --conditions benchmarks/results/controls/*.json
"""

import argparse
import json
from pathlib import Path

from toolkit.record.plain import from_plain
from toolkit.record.results import (
    SHIFTS,
    Claims,
    Procedure,
    Results,
    Tested,
    load_claims,
    load_results,
)
from toolkit.record.words import claimed_range, figure, procedure_name, tested_unit
from toolkit.report.sweeps import controls, joined
from toolkit.statistics import Estimate
from toolkit.text import tables
from toolkit.text.escape import Markdown, markdown

HEAD = [
    "method",
    "K",
    "groups",
    "ratio, typical",
    "near",
    "far",
    "accuracy, far (points)",
    "kept",
    "models that answer",
    "rank",
]


def table(results: dict) -> str:
    """Every mitigation of the first condition of a results.json, whole or cut short: ratios on
    every shift, accuracy and what is kept, with their intervals.
    """
    rows = [HEAD]
    for plain in results["conditions"][0]["procedures"][1:]:
        procedure = from_plain(Procedure, plain)
        typical, near, far = (procedure.cell(shift) for shift in SHIFTS)
        rows.append(
            [
                procedure.title,
                str(procedure.k),
                str(procedure.n_runs),
                *(cell_of(cell.ratio) for cell in (typical, near, far)),
                cell_of(far.accuracy_change, "%", signed=True),
                cell_of(typical.kept),
                f"{procedure.price.inference_streams:.2g}",
                str(procedure.price.rank),
            ]
        )
    return as_markdown(rows)


def cell_of(estimate: Estimate | None, unit: str = "", signed: bool = False) -> Markdown:
    """`0.86 [0.81, 0.92]`, with ? where it is inconclusive; - where there is none."""
    text = figure(estimate, unit, signed, doubt="", unknown="-")
    return Markdown(text + " ?" * (estimate is not None and not estimate.conclusive))


def merge_table(results: dict) -> str:
    """Every case of the benchmark of merging: seconds of one core, and peak memory of its
    process.
    """
    lines = [["case", "K", "measured", "CPU seconds", "for 24 layers", "peak GiB"]]
    for one in results["cases"]:
        seconds = ["not finished", "-"]
        if "cpu_seconds" in one:
            seconds = [f"{one['cpu_seconds']:.3g}", f"{one['cpu_seconds_for_24_layers']:,.3g}"]
        lines.append(
            [
                one["case"],
                f"{one['k']:,}",
                one["what"],
                *seconds,
                f"{one.get('peak_gib', float('nan')):.2f}",
            ]
        )
    return as_markdown(lines)


def as_markdown(lines: list[list[str]]) -> str:
    """Cells are escaped, but for figures and marks that were made here."""
    return "\n".join(tables.markdown(lines))


def train_table(results: dict) -> str:
    """Milliseconds of one step of one replica, a side in each row, and how many times the chosen
    way of a stack is as fast.
    """
    works = results["workloads"]
    sides = list(
        dict.fromkeys(
            side for work in works.values() for side in work["milliseconds_of_a_replica_step"]
        )
    )
    lines = [["ms a replica-step", *works]]
    for side in sides:
        cells = []
        for work in works.values():
            taken, chosen = work["milliseconds_of_a_replica_step"].get(side), work["chosen"]
            ratio = work["ratios"].get(side, {}).get(chosen)
            own = " (chosen)" if side == chosen else ""
            cells.append(
                "-" if taken is None else f"{taken:.3g}" + (f" ({ratio:.1f}x)" if ratio else own)
            )
        lines.append([side, *cells])
    if all("ratio_on_all_cores" in work for work in works.values()):
        lines.append(
            [
                "the faster of the loops, both on all cores",
                *(f"({work['ratio_on_all_cores']:.1f}x)" for work in works.values()),
            ]
        )
    return as_markdown(lines)


def scale_table(results: dict) -> str:
    """Processor seconds of every command at every size, how they grow, and the largest process at
    the last.
    """
    sizes = results["seconds_and_peak_gib"]
    lines = [["command", *(f"{int(size):,}" for size in sizes), "exponent", "peak GiB"]]
    for name, exponent in results["exponent_of_the_processor_seconds"].items():
        seconds = [f"{of_size[name]['cpu_seconds']:.1f}" for of_size in sizes.values()]
        lines.append(
            [name, *seconds, f"{exponent:.2f}", f"{list(sizes.values())[-1][name]['peak_gib']:.2f}"]
        )
    return as_markdown(lines)


def claims_table(found: Claims) -> str:
    """Every claim beside what was measured: for fresh prompts, and of those of the suite alone."""
    lines = [
        [
            "claim",
            "condition",
            "N",
            "claimed",
            "measured",
            "verdict",
            "of these prompts alone",
            "verdict",
        ]
    ]
    for row in found.tested:
        runs = f"{row.estimate.n_replicas:,}" if row.estimate else "-"
        alone = [_measured(row, row.alone), row.alone_verdict] if row.alone else ["-", "-"]
        lines.append(
            [
                row.says,
                row.condition or "-",
                runs,
                claimed_range(row) or "-",
                _measured(row, row.estimate),
                row.verdict,
                *alone,
            ]
        )
    return as_markdown(lines)


def _measured(row: Tested, estimate: Estimate | None) -> Markdown:
    return Markdown(figure(estimate, tested_unit(row), doubt="", unknown="-"))


def matrix(found: Claims) -> str:
    """Where the spread of runs is acceptable and where critical: per cent of differing answers,
    categories against conditions.
    """
    conditions = list(dict.fromkeys(row.condition for row in found.outlook))
    cells = {(row.shift, row.category, row.condition): row for row in found.outlook}
    lines = [["prompts", "number", *conditions]]
    for shift, category in dict.fromkeys((row.shift, row.category) for row in found.outlook):
        row = [cells.get((shift, category, condition)) for condition in conditions]
        said = [
            Markdown(
                "-" if one is None else f"{figure(one.differ, '%', doubt='')} {markdown(one.zone)}"
            )
            for one in row
        ]
        number_of = next(one.n_prompts for one in row if one)
        lines.append(
            [
                f"{shift}: {category}" if category else Markdown(f"**{markdown(shift)}**"),
                str(number_of),
                *said,
            ]
        )
    return as_markdown(lines)


def conditions_table(results: Results) -> str:
    """Every other condition, and every procedure on the first one's replicas, against single
    replicas of the first.

    The steadiest on the last shift first. Price: of one run, in seconds of a core or of the device,
    as a multiple of the first one's.
    """
    first, shifts = results.conditions[0], results.shifts
    against = {
        (c.condition, c.shift): (c.ratio, c.accuracy_change, c.pair_differs)
        for c in (*results.contrasts, *results.mitigated)
        if c.baseline == first.name
    }
    against |= {
        (procedure_name(procedure), cell.shift): (
            cell.ratio,
            cell.accuracy_change,
            None,
        )
        for procedure in first.procedures[1:]
        for cell in procedure.cells
        if not cell.category
    }
    lines = [
        [
            "against " + first.name,
            "N",
            *(f"ratio, {s}" for s in shifts),
            *(f"accuracy, {s} (points)" for s in shifts),
        ]
    ]
    lines[0] += [f"pairs differ, {shifts[-1]} (%)", "price"]
    for one in controls(results):
        pairs = [against.get((one.name, shift), (None, None, None)) for shift in shifts]
        seconds, unit = one.price.seconds, first.single.price.seconds
        lines.append(
            [
                one.name,
                f"{one.runs:,}",
                *(cell_of(ratio) for ratio, *_ in pairs),
                *(cell_of(change, "%", signed=True) for _, change, _ in pairs),
                cell_of(pairs[-1][2], "%"),
                f"{seconds / unit:.2g}" if seconds and unit else "-",
            ]
        )
    return as_markdown(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument(
        "--conditions",
        action="store_true",
        help="compare them; results that begin with the same one are joined",
    )
    options = parser.parse_args()
    if options.conditions:
        print(conditions_table(joined([load_results(path) for path in options.results])))
        return
    [path] = options.results
    kept = json.loads(path.read_text())
    if "tested" in kept:
        claims = load_claims(path)
        print(claims_table(claims), matrix(claims), sep="\n\n")
        return
    kinds = {
        "cases": merge_table,
        "workloads": train_table,
        "exponent_of_the_processor_seconds": scale_table,
    }
    print(next((make for key, make in kinds.items() if key in kept), table)(kept))


if __name__ == "__main__":
    main()
