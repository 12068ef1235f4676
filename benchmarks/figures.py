"""The figures over all conditions as SVG, for the documents: controls.svg, dependence.svg and
sources.svg.

Of several results.json that begin with the same condition, such as those of recipes/controls, it
makes one figure.

    python benchmarks/figures.py runs/dependence/results.json --out docs/figures
    python benchmarks/figures.py runs/controls-*/results.json --only controls --out docs/figures
"""

import argparse
from pathlib import Path

from toolkit.record.results import load_results
from toolkit.report.html import figures
from toolkit.report.sweeps import joined


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
    drawn = figures(joined([load_results(path) for path in options.results]))
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
