"""The figures over all conditions as SVG, for the documents: controls.svg, dependence.svg,
sources.svg, and overview.svg, the procedures of the first condition on every shift.

Of several results.json that begin with the same condition, such as those of recipes/controls, it
makes one figure. The overview is drawn where `--only overview` asks for it.

    python benchmarks/figures.py benchmarks/results/demo.json --only overview --out docs/figures
    python benchmarks/figures.py runs/dependence/results.json --out docs/figures
    python benchmarks/figures.py runs/controls-*/results.json --only controls --out docs/figures
"""

import argparse
from pathlib import Path

from toolkit.record.results import Results, load_results
from toolkit.report import charts
from toolkit.report.html import figures
from toolkit.report.sweeps import joined


def overview(results: Results) -> str:
    """How often two independent runs of each procedure answer differently, on every shift: one
    replica, and the largest K of every remedy.
    """
    procedures = results.conditions[0].procedures
    largest = max(procedure.k for procedure in procedures)
    panels: dict[str, dict[str, dict[str, charts.Dot]]] = {}
    for shift in results.shifts:
        rows = {}
        for procedure in procedures:
            cell = procedure.cell(shift)
            if cell and (procedure.kind == "replica" or procedure.k == largest):
                one = procedure.kind == "replica"
                name = procedure.title if one else f"{procedure.title}, K = {procedure.k}"
                found = cell.disagreement
                rows[name] = {
                    "value and 95 % interval": charts.Dot(found.value, found.low, found.high)
                }
        panels[f"{shift} prompts"] = rows
    return charts.by_category(panels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this figure, where there are several"
    )
    options = parser.parse_args()
    results = joined([load_results(path) for path in options.results])
    drawn = figures(results)
    if "overview" in (options.only or ()):
        drawn["overview"] = overview(results)
    for name in options.only or ():
        if name not in drawn:
            parser.error(f"--only {name}: there are {', '.join(drawn)}")
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only or drawn:
        svg = drawn[name]
        path = options.out / f"{name}.svg"
        path.write_text(svg.replace("<svg", '<svg style="background: white"', 1), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
