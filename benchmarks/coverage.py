"""Do nominal 95 % intervals cover 95 %? Every interval that ftk prints, in simulated populations of
known truth; the last line is JSON.

For each statistic a grid of replicas x prompts x run effect, then one flaw at a time around its
middle: failed runs, marked or not, clusters of prompts, missing cells, strong run effects. The
corner are the largest populations, with few samples. A cell is classified (see `worlds.CLASSES`);
one of class FAIL claims and misses.

    python benchmarks/coverage.py --study quick
    python benchmarks/coverage.py --study full --out benchmarks/results/coverage.json
    python benchmarks/coverage.py --study full --only ratio --repetitions 4000
    python benchmarks/coverage.py --study corner --out benchmarks/results/coverage.json --update
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.stats import binom
from worlds import CLASSES, Tally, simulate
from worlds.sweeps import SWEEPS, Settings
from worlds.unkind import sizes_of

# replicas x prompts of one population: beyond, a cell takes a minute for twenty samples, and is
# of the corner
MOST_ANSWERS = 1_000_000
# answers simulated for a cell of the full study; its fewest repetitions
ANSWERS, FEWEST = (
    30_000_000,
    200,
)
QUICK_REPETITIONS, CORNER_REPETITIONS = 200, 40

QUICK = {
    "replicas": (5, 30),
    "prompts": (50, 500),
    "run_sd": (0.7, 1.0),
    "init": (4, 5),
    "main": (0.4,),
}


class Cell(NamedTuple):
    statistic: str
    settings: Settings

    @property
    def title(self) -> str:
        return f"{self.statistic}: {words(self.settings)}"

    @property
    def seed(self) -> int:
        """Of the cell's own name, so that it depends on no other cell, nor on who computes it
        when.
        """
        return int.from_bytes(hashlib.sha256(self.title.encode()).digest()[:8], "big")

    @property
    def answers(self) -> int:
        return math.prod(
            int(self.settings.get(axis, 1))
            for axis in ("replicas", "init", "order", "dropout", "prompts")
        )

    @property
    def unseen(self) -> float:
        """Probability that all runs of an arm are alike, though one in so many fails unmarked or
        follows another strategy.

        Of votes of kinds that answer as wholes (`drop`): that all groups decide alike, with a
        majority of one kind or without.
        """
        two_arms, k = self.settings.get("draw") == "failures", int(self.settings.get("k", 1))
        rate = (
            0.05
            if two_arms
            else max(float(self.settings.get(name, 0.0)) for name in ("garbage", "kinds"))
        )
        if not rate:
            return 0.0
        replicas = int(self.settings["replicas"])
        alike = (1 - rate) ** replicas
        if k > 1 and "drop" in self.settings:
            usual, groups = float(binom.sf(k // 2, k, 1 - rate)), replicas // k
            alike = usual**groups + (1 - usual) ** groups
        return 1 - (1 - alike) ** 2 if two_arms else alike

    @property
    def enough(self) -> bool:
        """Whether its sizes are those from which the estimator promises to be conclusive, and no
        runs stand far off unmarked.
        """
        least, settings = SWEEPS[self.statistic].enough, self.settings
        if (
            not least
            or self.unseen
            or int(settings.get("replicas", least["runs"])) // int(settings.get("k", 1))
            < least["runs"]
        ):
            return False
        prompts = int(settings.get("prompts", least.get("clusters", 1)))
        clusters = int(settings.get("clusters", prompts // int(settings.get("per_cluster", 1))))
        size_C = sizes_of(prompts, clusters, str(settings.get("sizes", "equal")))
        return float(size_C.sum() ** 2 / np.sum(size_C**2)) >= least.get("clusters", 0)


def words(settings: Settings) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def cells(study: str, only: str = "") -> list[Cell]:
    """Of the quick study: the settings of QUICK, or the cheapest of a statistic that has none.

    Of the corner: what the full study leaves out.
    """
    names = [only] if only in SWEEPS else [name for name in SWEEPS if only in name]
    found = []
    for name in names:
        # fewer than two groups are no population: the estimators refuse them
        full = [
            Cell(name, s)
            for s in SWEEPS[name].settings
            if int(s.get("replicas", 2)) // int(s.get("k", 1)) >= 2
        ]
        corner = [cell for cell in full if cell.answers > MOST_ANSWERS]
        full = [cell for cell in full if cell.answers <= MOST_ANSWERS]
        quick = [
            cell
            for cell in full
            if all(cell.settings.get(key, values[0]) in values for key, values in QUICK.items())
        ]
        found += {
            "full": full,
            "corner": corner,
            "quick": quick or [min(full, key=lambda cell: cell.answers)],
        }[study]
    return found


# -- running it ----------------------------------------------------------------------------------


def repetitions_of(cell: Cell, study: str) -> int:
    wanted = {
        "quick": QUICK_REPETITIONS,
        "corner": CORNER_REPETITIONS,
        "full": max(FEWEST, ANSWERS // cell.answers),
    }[study]
    return min(SWEEPS[cell.statistic].most, wanted)


def measure(cell: Cell, repetitions: int) -> dict:
    """One row of the results."""
    sweep = SWEEPS[cell.statistic]
    tally = simulate(sweep.factory(**cell.settings), repetitions, cell.seed, sweep.border)

    def short(x: float | None) -> float | None:
        return None if x is None or not np.isfinite(x) else float(f"{x:.4g}")

    low, high = tally.error
    return {
        "statistic": cell.statistic,
        "world": cell.settings,
        "class": tally.kind(cell.unseen, enough=cell.enough),
        "coverage": short(tally.coverage),
        "low": short(low),
        "high": short(high),
        "conclusive": short(tally.conclusive / repetitions),
        "coverage_conclusive": short(tally.coverage_conclusive),
        "printed": short(tally.printed / repetitions),
        "withheld": short(tally.withheld / repetitions),
        "width": short(tally.width),
        "repetitions": repetitions,
    }


def seconds_of(cell: Cell, repetitions: int) -> float:
    """What a cell will cost, from one sample of its world; making the world (its truth) counts
    once.
    """
    start = time.perf_counter()
    world = SWEEPS[cell.statistic].factory(**cell.settings)
    ready = time.perf_counter()
    world(np.random.default_rng(0))
    return ready - start + repetitions * (time.perf_counter() - ready)


def measure_all(jobs: list[tuple[Cell, int]], workers: int, kept: Path | None = None) -> list[dict]:
    """Rows in the order of the jobs, whatever the number of processes. The longest begin first.

    kept: a file of the rows that an interrupted study has finished, one JSON document a line; those
    are not computed again.
    """
    found = (
        [json.loads(line) for line in kept.read_text().splitlines()]
        if kept and kept.exists()
        else []
    )
    known = {(row["statistic"], words(row["world"]), row["repetitions"]): row for row in found}
    rows = {
        j: known[key]
        for j, (cell, n) in enumerate(jobs)
        if (key := (cell.statistic, words(cell.settings), n)) in known
    }
    seconds = {j: seconds_of(*job) for j, job in enumerate(jobs) if j not in rows}
    print(
        f"{len(seconds)} cells, about {sum(seconds.values()) / workers / 60:.1f} minutes "
        f"on {workers} processes",
        file=sys.stderr,
        flush=True,
    )
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {
            pool.submit(measure, *jobs[j]): j for j in sorted(seconds, key=lambda j: -seconds[j])
        }
        for future in as_completed(futures):
            row = rows[futures[future]] = future.result()
            if kept:
                with kept.open("a") as file:
                    file.write(json.dumps(row) + "\n")
            title = jobs[futures[future]][0].title
            print(
                f"{len(rows)}/{len(jobs)} {row['class']:12s} {row['coverage']} {title}",
                file=sys.stderr,
                flush=True,
            )
    return [rows[j] for j in range(len(jobs))]


# -- saying it -----------------------------------------------------------------------------------


def markdown(rows: list[dict]) -> str:
    """The cells outside 93-97 %, those that differ in replicas and prompts alone on one line."""
    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["class"] != "ok":
            world = {
                name: value
                for name, value in row["world"].items()
                if name not in ("replicas", "prompts")
            }
            lines.setdefault((row["statistic"], words(world), row["class"]), []).append(row)
    text = [
        "| statistic | world | replicas x prompts | covers % | called conclusive % | class |",
        "|---|---|---|---|---|---|",
    ]
    for (statistic, world, kind), same in lines.items():
        sizes: dict[str, list[str]] = {}
        for row in same:
            sizes.setdefault(str(row["world"].get("replicas", "")), []).append(
                str(row["world"].get("prompts", ""))
            )
        where = "; ".join(
            " x ".join(filter(None, (n, ", ".join(filter(None, m))))) for n, m in sizes.items()
        )
        text.append(
            f"| {statistic} | {world} | {where} | {span(same, 'coverage')} | "
            f"{span(same, 'conclusive')} | {kind} |"
        )
    return "\n".join(text)


def span(rows: list[dict], name: str) -> str:
    """Smallest and largest, in percent."""
    found = sorted({f"{100 * row[name]:.1f}" for row in rows if row[name] is not None}, key=float)
    return "-" if not found else found[0] if len(found) == 1 else f"{found[0]}-{found[-1]}"


def again(row: dict) -> dict:
    """A row of an earlier study, classified by the rules of today. If it does not say what was
    withheld, all that is not conclusive was.
    """
    n, cell = row["repetitions"], Cell(row["statistic"], row["world"])
    withheld = row.get("withheld", max(0.0, row["printed"] - row["conclusive"]))
    printed, conclusive = round(row["printed"] * n), round(row["conclusive"] * n)
    held, held_conclusive = (
        round((row["coverage"] or 0) * printed),
        round((row["coverage_conclusive"] or 0) * conclusive),
    )
    tally = Tally(n, printed, held, conclusive, held_conclusive, row["width"], round(withheld * n))
    return {**row, "class": tally.kind(cell.unseen, enough=cell.enough), "withheld": withheld}


def joined(old: list[dict], new: list[dict]) -> list[dict]:
    """New rows in place of the old ones of their cells, or beside them: in the order of the full
    study, then of the corner.
    """
    rows = {Cell(row["statistic"], row["world"]).title: row for row in (*old, *new)}
    order = [cell.title for study in ("full", "corner") for cell in cells(study)]
    return [rows[title] for title in order if title in rows]


def summary(study: str, rows: list[dict], seconds: float) -> dict:
    return {
        "study": study,
        "cells": len(rows),
        "counts": {kind: sum(row["class"] == kind for row in rows) for kind in CLASSES},
        "by_statistic": {
            name: dict(Counter(row["class"] for row in rows if row["statistic"] == name))
            for name in dict.fromkeys(r["statistic"] for r in rows)
        },
        "fail": [
            Cell(row["statistic"], row["world"]).title
            for row in rows
            if row["class"] in ("FAIL", "SILENT")
        ],
        "samples": sum(row["repetitions"] for row in rows),
        "seconds": round(seconds),
        "environment": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", choices=("quick", "full", "corner"), default="quick")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="one statistic, or all whose name contains NAME"
    )
    parser.add_argument(
        "--repetitions", type=int, help="samples per cell, in place of the study's own number"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(2, os.cpu_count() or 1),
        help="processes; the figures do not depend on it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="one row for each cell, as JSON; run it again after an interruption, and it goes on",
    )
    parser.add_argument("--update", action="store_true", help="keep the other cells of --out")
    arguments = parser.parse_args()
    if arguments.update and not (arguments.out and arguments.out.exists()):
        parser.error("--update needs the --out of an earlier study")
    # read by the workers when they start
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    start = time.perf_counter()
    jobs = [
        (cell, arguments.repetitions or repetitions_of(cell, arguments.study))
        for cell in cells(arguments.study, arguments.only)
    ]
    if not jobs:
        parser.error(f"no statistic is called {arguments.only!r}; there are: {', '.join(SWEEPS)}")
    kept = arguments.out.with_suffix(".unfinished.jsonl") if arguments.out else None
    rows = measure_all(jobs, arguments.workers, kept)
    study, seconds = arguments.study, time.perf_counter() - start
    if arguments.update:
        before = json.loads(arguments.out.read_text())
        rows = joined([again(row) for row in before["cells"]], rows)
        study, seconds = before["summary"]["study"], before["summary"]["seconds"] + seconds
    found = summary(study, rows, seconds)
    if arguments.out:
        lines = ",\n".join(json.dumps(row) for row in rows)
        arguments.out.write_text(
            f'{{"summary": {json.dumps(found)},\n"classes": '
            f'{json.dumps(CLASSES)},\n"cells": [\n{lines}\n]}}\n'
        )
        kept.unlink(missing_ok=True)
    print(markdown(rows))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
