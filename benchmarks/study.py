"""What is worth keeping of a run that is too large to keep: estimates, how many replicas gave each
answer, and hashes of all weights.

python benchmarks/study.py runs/claims --out benchmarks/results/claims

results.json, claims.json    as the run has them, but for the texts of prompts, which may not be
ours to give; their ids name them recipe.yaml                  files by the last two parts of their
paths environment.json answers.csv.gz               suite, prompt, condition, answer, replicas that
gave it; the most frequent first weights.csv                  condition, replica, sha256 of its
weights (empty where training failed), mean loss of its last tenth of steps

python benchmarks/study.py runs/methods --brief benchmarks/results/methods.json

keeps one file: the estimates of every procedure on each shift, without categories of prompts, to
six digits. Tables and figures can be made of it. Its part `alike` counts, of every condition, the
replicas with answers, their different files of weights and their different answers to all prompts
together, with the hashes of the most frequent ones: conditions with one table of answers and one
hash answer alike.

ftk run recipes/claims.yaml --replicas 10 --out runs/again
python benchmarks/study.py runs/again --against benchmarks/results/claims

keeps nothing: it says how many replicas of a run, here a small one, are the files of a study that
was kept, bit for bit.
"""

import argparse
import csv
import gzip
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq
import yaml

from toolkit.embedded import with_version
from toolkit.measurement.run import DESIGN, read_design
from toolkit.model.adapters import WEIGHTS
from toolkit.model.full import MODEL
from toolkit.record.outcomes import read_outcomes
from toolkit.record.population import read_population, sha256_file
from toolkit.record.results import load_claims

KEPT = ("claims.json", "environment.json")


def answers(run: Path) -> Iterator[list]:
    """Of single replicas alone: those of merges and ensembles are in the estimates."""
    design = read_design(run)
    table = read_outcomes(
        (run / shard for shard in design.shards),
        ["suite", "prompt_id", "condition", "procedure", "answer"],
    )
    mask = [procedure == "replica" for procedure in table["procedure"].to_pylist()]
    keys = ["suite", "prompt_id", "condition", "answer"]
    counted = table.filter(mask).select(keys).group_by(keys).aggregate([([], "count_all")])
    order = [
        ("suite", "ascending"),
        ("prompt_id", "ascending"),
        ("condition", "ascending"),
        ("count_all", "descending"),
        ("answer", "ascending"),
    ]
    for row in counted.sort_by(order).to_pylist():
        yield [row["suite"], row["prompt_id"], row["condition"], row["answer"], row["count_all"]]


def weights(run: Path) -> Iterator[list]:
    for folder in sorted(path.parent for path in run.glob("*/population.json")):
        losses = last_losses(folder)
        for replica, record in sorted(read_population(folder).items()):
            yield [
                folder.name,
                replica,
                record.sha256.get(WEIGHTS) or record.sha256.get(MODEL) or "",
                losses.get(replica, ""),
            ]


def last_losses(condition: Path) -> dict[int, str]:
    """Replica -> mean training loss of the last tenth of its steps: that of one batch is mostly the
    batch.
    """
    losses: dict[int, dict[int, float]] = {}
    for path in sorted((condition / "training").glob("steps-*.parquet")):
        for row in pq.read_table(path, columns=["replica", "step", "loss"]).to_pylist():
            losses.setdefault(row["replica"], {})[row["step"]] = row["loss"]
    found = {
        i: fmean(loss for step, loss in of.items() if step >= 0.9 * (max(of) + 1))
        for i, of in losses.items()
    }
    return {i: f"{loss:.4f}" for i, loss in found.items() if isfinite(loss)}


def alike(run: Path) -> dict[str, dict[str, int | str]]:
    """How many replicas of a condition are different files, and how many differ in any answer."""
    files: dict[str, Counter[str]] = {}
    for condition, _, file, _ in weights(run):
        files.setdefault(condition, Counter()).update([file] if file else [])
    design = read_design(run)
    table = read_outcomes(
        (run / shard for shard in design.shards),
        ["suite", "prompt_id", "condition", "procedure", "index", "answer"],
    )
    told: dict[str, dict[int, list[tuple[str, str, str]]]] = {}
    for row in table.filter(
        [procedure == "replica" for procedure in table["procedure"].to_pylist()]
    ).to_pylist():
        told.setdefault(row["condition"], {}).setdefault(row["index"], []).append(
            (row["suite"], row["prompt_id"], row["answer"])
        )
    found = {}
    for condition, of_replica in told.items():
        hashes = Counter(
            sha256(json.dumps(sorted(answers)).encode()).hexdigest()
            for answers in of_replica.values()
        )
        kept = files.get(condition, Counter())
        counts = {"replicas": len(of_replica), "files": len(kept), "answers": len(hashes)}
        found[condition] = counts | {"file_sha256": _usual(kept), "answers_sha256": _usual(hashes)}
    return found


def repeated(run: Path, kept: Path) -> dict[str, tuple[int, int]]:
    """Condition -> replicas whose weights are the file that was kept of the same replica, and
    replicas that both have.
    """
    with (kept / "weights.csv").open(newline="") as lines:
        then = {
            (row["condition"], int(row["replica"])): row["sha256"]
            for row in csv.DictReader(lines)
            if row["sha256"]
        }
    found: dict[str, tuple[int, int]] = {}
    for condition, replica, file, _ in weights(run):
        if file and (known := then.get((condition, replica))):
            same, both = found.get(condition, (0, 0))
            found[condition] = (same + (file == known), both + 1)
    return found


def _usual(hashes: Counter[str]) -> str:
    return max(hashes, key=hashes.__getitem__, default="")


def as_csv(head: str, rows: Iterator[list]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head.split())
    writer.writerows(rows)
    return text.getvalue().encode()


BRIEF = ("version", "about", "level", "suites", "base", "verdict", "contrasts", "mitigated")
OF_CONDITION = ("name", "n_replicas", "n_failed", "failure_rate", "settings", "sources")


def without_texts(value: Any) -> Any:
    """Prompts by their ids alone."""
    if isinstance(value, dict):
        return {
            key: "" if key == "prompt" and "id" in value else without_texts(x)
            for key, x in value.items()
        }
    return [without_texts(x) for x in value] if isinstance(value, list) else value


def elsewhere(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe whose base and data are not named by where they lie on this machine; the embedded
    suites of a run that names no version are the first.
    """
    data = recipe["data"]
    suites = {name: with_version(short(path, 2), 1) for name, path in data["suites"].items()}
    data = data | {"train": short(data["train"], 2), "suites": suites}
    return recipe | {"base": short(recipe["base"], 1), "data": data}


def short(path: Any, parts: int) -> Any:
    """The end of an absolute path; a hub id, `embedded` and anything else as it is."""
    return (
        "/".join(Path(path).parts[-parts:])
        if isinstance(path, str) and Path(path).is_absolute()
        else path
    )


def brief(results: dict[str, Any]) -> dict[str, Any]:
    """What the tables and figures of a document need of results.json, to be read as such."""
    conditions = []
    for condition in results["conditions"]:
        procedures = [
            p | {"cells": [cell for cell in p["cells"] if not cell["category"]]}
            for p in condition["procedures"]
        ]
        conditions.append(
            {key: condition[key] for key in OF_CONDITION}
            | {"procedures": procedures, "unstable": []}
        )
    return shortened(
        {key: results[key] for key in BRIEF if key in results} | {"conditions": conditions}
    )


def shortened(value: Any) -> Any:
    """Numbers to six digits, and without what is empty of an estimate."""
    if isinstance(value, dict):
        return {
            key: shortened(x)
            for key, x in value.items()
            if not (x is None and key in ("needed", "p") or x == "" and key == "note")
        }
    if isinstance(value, list):
        return [shortened(x) for x in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    kept = parser.add_mutually_exclusive_group(required=True)
    kept.add_argument("--out", type=Path, help="folder")
    kept.add_argument("--brief", type=Path, help="file")
    kept.add_argument(
        "--against",
        type=Path,
        metavar="KEPT",
        help="compare its weights with those of a folder made by --out",
    )
    options = parser.parse_args(arguments)
    if options.against:
        if not (options.against / "weights.csv").is_file():
            parser.error(
                f"{options.against}: no weights.csv there; `--out {options.against}` "
                "keeps a study with one"
            )
        compared = repeated(options.run, options.against)
        if not compared:
            parser.error(
                f"{options.run} and {options.against} have no replica of a condition in common"
            )
        for condition, (same, both) in compared.items():
            print(f"{condition}: {same:,} of {both:,} replicas are the same file")
        return
    if not (options.run / "results.json").is_file():
        parser.error(
            f"{options.run}: no results.json there; `ftk run RECIPE --out {options.run}` makes one"
        )
    found = json.loads((options.run / "results.json").read_text())
    found["about"]["base"] = short(found["about"]["base"], 1)
    if options.brief:
        options.brief.write_text(json.dumps(brief(found) | {"alike": alike(options.run)}) + "\n")
        return
    if (options.run / "claims.json").is_file() and load_claims(
        options.run / "claims.json"
    ).design != sha256_file(options.run / DESIGN):
        parser.error(
            f"{options.run / 'claims.json'}: of an earlier measurement of this run; `ftk "
            f"claims {options.run}` makes it new"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (options.run / name).is_file():
            shutil.copyfile(options.run / name, options.out / name)
    (options.out / "results.json").write_text(
        json.dumps(without_texts(found), indent=1, ensure_ascii=False) + "\n"
    )
    recipe = elsewhere(yaml.safe_load((options.run / "recipe.yaml").read_text()))
    (options.out / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    packed = gzip.compress(
        as_csv("suite prompt condition answer replicas", answers(options.run)), mtime=0
    )
    (options.out / "answers.csv.gz").write_bytes(packed)
    (options.out / "weights.csv").write_bytes(
        as_csv("condition replica sha256 loss", weights(options.run))
    )
    for path in sorted(options.out.iterdir()):
        print(f"{path.stat().st_size:>10,} {path}")


if __name__ == "__main__":
    main()
