"""Measuring predictions of 10,000 replicas on 10,000 prompts: seconds by stage and peak memory; the
last line is JSON.

A Parquet file of invented answers is made in a temporary folder, by a process of its own, so that
the memory is that of measuring alone. Then: read, decide which answers mean the same, and estimate
disagreement, accuracy and its spread for the whole, each of 3 shifts, and each of 12 shifts x
categories. The peer is the count over all pairs of replicas that a careful user writes in numpy, on
as many replicas as it can finish (--peer), for both the same; it gives the share of disagreeing
pairs and no interval.

    python benchmarks/measure.py --out benchmarks/results/measure.json
"""

import argparse
import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from result import finish

from toolkit import statistics as st
from toolkit.measurement.meaning import code_answers, mark_answers
from toolkit.measurement.predictions import read_predictions

SHIFTS, CATEGORIES, LABELS = ("typical", "near", "far"), ("a", "b", "c", "d"), 500
SPELLINGS = ("label {}", "Label {}.", "**label {}**")
RULE = "normalised"
ROW_GROUP = 1 << 20  # rows, as pyarrow writes them by itself
T = TypeVar("T")


def make(path: Path, replicas: int, prompts: int, layout: str) -> None:
    """Right answers, the prompt's favourite wrong one, and others, in three spellings; harder on
    far prompts; one cell in 1,000 missing.
    """
    rng = np.random.default_rng(0)
    texts = pa.array([spelling.format(label) for label in range(LABELS) for spelling in SPELLINGS])
    right_P, wrong_P = rng.integers(0, LABELS, prompts), rng.integers(0, LABELS, prompts)
    shift_P, category_P = rng.integers(0, 3, prompts), rng.integers(0, 4, prompts)
    skill_P = rng.beta(3, 1 + shift_P)

    def answers() -> pa.Array:
        u_P = rng.random(prompts) + 0.03 * rng.standard_normal()
        label_P = np.where(
            u_P < skill_P, right_P, np.where(u_P < 0.97, wrong_P, rng.integers(0, LABELS, prompts))
        )
        missing_P = rng.random(prompts) < 0.001
        return pa.array(
            3 * label_P + (rng.random(prompts) ** 3 * 3).astype(np.int64),
            pa.int32(),
            mask=missing_P,
        )

    def column(index: np.ndarray | pa.Array, values: list | pa.Array) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(
            index if isinstance(index, pa.Array) else pa.array(index, pa.int32()), values
        )

    about = {
        "prompt": column(np.arange(prompts), [f"prompt-{p:05d}" for p in range(prompts)]),
        "shift": column(shift_P, list(SHIFTS)),
        "category": column(category_P, list(CATEGORIES)),
        "reference": column(right_P, [f"label {label}" for label in range(LABELS)]),
    }
    names = [f"replica_{r:05d}" for r in range(replicas)]
    if layout == "wide":
        pq.write_table(pa.table(about | {name: column(answers(), texts) for name in names}), path)
        return
    tables = (
        pa.table(
            {
                "replica": column(np.full(prompts, r), names),
                **about,
                "output": column(answers(), texts),
            }
        )
        for r in range(replicas)
    )
    writer = None
    while group := list(itertools.islice(tables, max(1, ROW_GROUP // prompts))):
        writer = writer or pq.ParquetWriter(path, group[0].schema)
        writer.write_table(pa.concat_tables(group), row_group_size=ROW_GROUP)
    if writer:
        writer.close()


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(path: Path) -> tuple[dict, np.ndarray]:
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}  # of both cores; the same on a machine that others use too

    def timed(stage: str, call: Callable[[], T]) -> T:
        start = time.perf_counter(), time.process_time()
        result = call()
        seconds[stage] = time.perf_counter() - start[0]
        processor[stage] = time.process_time() - start[1]
        print(
            f"{stage:32s} {seconds[stage]:7.2f} s  ({processor[stage]:.2f} s of "
            f"processor)  peak {peak_gib():.2f} GiB",
            flush=True,
        )
        return result

    found = timed("read", lambda: read_predictions(path))
    (arm,) = found.arms.values()
    answer_RP, _ = timed(
        "which answers mean the same", lambda: code_answers(arm.text_RP, found.texts, RULE)
    )
    references = [prompt.reference for prompt in found.prompts]
    correct_RP = timed(
        "which are right", lambda: mark_answers(arm.text_RP, found.texts, references, RULE)
    )
    shift_P = np.array([prompt.shift for prompt in found.prompts])
    category_P = np.array([prompt.category for prompt in found.prompts])
    parts: dict[str, list] = {"whole": [slice(None)]}
    parts["3 shifts"] = [np.flatnonzero(shift_P == shift) for shift in SHIFTS]
    parts["12 categories"] = [
        np.flatnonzero((shift_P == shift) & (category_P == c))
        for shift in SHIFTS
        for c in CATEGORIES
    ]
    for name, cells in parts.items():
        for function, table_RP in (
            (st.disagreement, answer_RP),
            (st.accuracy, correct_RP),
            (st.accuracy_spread, correct_RP),
        ):
            stage = f"{function.__name__}, {name}"
            first = timed(
                stage,
                lambda f=function, t=table_RP, cells=cells: [
                    f(t[:, at]) for at in cells if t[:, at].size
                ],
            )[0]
            if name == "whole":
                print(f"{'':32s} {first}", flush=True)
    total = {
        "total_seconds": sum(seconds.values()),
        "total_processor_seconds": sum(processor.values()),
        "peak_gib": peak_gib(),
    }
    return {"seconds": seconds, "processor_seconds": processor, **total}, answer_RP


def against_all_pairs(answer_RP: np.ndarray, repeats: int) -> dict:
    """Interleaved repeats, medians; the gate: both must find the same share."""
    answer_RP = np.where(answer_RP < 0, 0, answer_RP)  # the peer knows no missing cells

    def all_pairs() -> float:
        n_replicas, n_prompts = answer_RP.shape
        differing = sum(
            np.count_nonzero(answer_RP[r + 1 :] != answer_RP[r]) for r in range(n_replicas)
        )
        return differing / (n_replicas * (n_replicas - 1) / 2 * n_prompts)

    ours, theirs = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        estimate = st.disagreement(answer_RP)
        middle = time.perf_counter()
        share = all_pairs()
        ours.append(middle - start)
        theirs.append(time.perf_counter() - middle)
        if abs(share - (estimate.value or 0.0)) > 1e-12:
            raise SystemExit(f"the two do not count the same pairs: {estimate.value} and {share}")
    return {
        "peer": "all pairs of replicas, one numpy comparison for each replica",
        "replicas": len(answer_RP),
        "prompts": answer_RP.shape[1],
        "repeats": repeats,
        "seconds": statistics.median(ours),
        "peer_seconds": statistics.median(theirs),
        "ratio": statistics.median(theirs) / statistics.median(ours),
        "ratio_by_repeat": [b / a for a, b in zip(ours, theirs, strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, default=10_000)
    parser.add_argument("--layout", choices=("wide", "long"), default="long")
    parser.add_argument("--peer", type=int, default=2_000, help="replicas on which the peer is run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, arguments.replicas, arguments.prompts, arguments.layout)
        return
    size = {name: getattr(arguments, name) for name in ("replicas", "prompts", "layout")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "predictions.parquet"
        options = [item for name, value in size.items() for item in (f"--{name}", str(value))]
        subprocess.run([sys.executable, __file__, "--make", str(path), *options], check=True)
        print(
            f"{size['replicas']} replicas x {size['prompts']} prompts, {size['layout']}, "
            f"{path.stat().st_size / 2**20:.0f} MiB",
            flush=True,
        )
        result, answer_RP = measure(path)
    result["against"] = against_all_pairs(answer_RP[: arguments.peer], arguments.repeats)
    result = {"benchmark": "measuring predictions", **size, **result}
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
