"""10,000 replicas in one population: does everything after training stay linear? The last line is
JSON.

Adapters of a very small base (one layer) are written by the writer that training uses, each with
its average of snapshots, and with the records that a run would have left. Then the commands
themselves: a resume that finds everything there, a resume that trains one stack again, merges of
all replicas, `ftk run` (groups of 8 merged, a vote, everything answers a few prompts, statistics,
report), `ftk measure` and `ftk report`. Seconds, processor seconds of all its processes, and peak
memory of the largest of them, at each size; the exponent b of processor seconds ~ a + c N^b is
taken between the two largest sizes, after those of 16 replicas (imports, loading the base) are
taken off.

    python benchmarks/scale.py --out benchmarks/results/scale.json
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from result import finish

from toolkit.record.population import RECORD, Replica, replica_folder, write_text

RANK, HIDDEN, K = 2, 16, 8
RECIPE = """
base: {folder}/base
data:
  train: {folder}/rows.jsonl
  suites: {{typical: {folder}/prompts.jsonl}}
replicas: {replicas}
stack: 8
conditions:
  lora: {{rank: 2, epochs: 1, batch_size: 8, snapshots: {{count: 2, start: 0.5}}, averages: [swa]}}
mitigations:
  - {{merge: mean, k: 8, rank: same}}
  - {{ensemble: vote, k: 8}}
evaluation: {{max_new_tokens: 4}}
"""


def make(folder: Path, replicas: int) -> Path:
    """A base, data, a recipe, and its population as training would have left it; returns the
    recipe.

    In a process of its own: what a process holds when it starts a command counts as the peak of
    that command.
    """
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    from toolkit.data import read_rows
    from toolkit.model.adapters import WEIGHTS, write_adapter
    from toolkit.model.base import EMBEDDED, load_base
    from toolkit.model.stack import stacked
    from toolkit.pipeline import train_stacks
    from toolkit.recipe import load_recipe

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    shape = {
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            **shape,
            vocab_size=len(tokenizer),
            max_position_embeddings=128,
            tie_word_embeddings=True,
        )
    )
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [json.dumps(dict(row)) + "\n" for row in read_rows("embedded")]
    (folder / "rows.jsonl").write_text("".join(rows[:16]))
    (folder / "prompts.jsonl").write_text("".join(rows[16:28]))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, replicas=replicas))
    recipe = load_recipe(path)
    plan, mark = train_stacks.training_plan(recipe, "lora", "cpu")
    with stacked(load_base(recipe.base).model) as stack:
        shapes = {
            name: (layer.in_features, layer.out_features) for name, layer in stack.layers.items()
        }
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    common = {"r": RANK, "alpha": 2 * RANK, "target_modules": targets, "base": recipe.base}
    for r in range(replicas):
        own = torch.Generator().manual_seed(r)
        factors = {
            n: (torch.randn(RANK, I, generator=own), 0.02 * torch.randn(O, RANK, generator=own))
            for n, (I, O) in shapes.items()
        }
        home = replica_folder(folder / "run" / "lora", r)
        hashes = {
            f"averages/swa/{WEIGHTS}": write_adapter(home / "averages" / "swa", factors, **common)
        }
        hashes[WEIGHTS] = write_adapter(home, factors, **common)
        record = Replica(
            r,
            "ok",
            train_stacks.seeds_of(recipe, "lora", r),
            plan.steps,
            1.0,
            seconds=0.1,
            fingerprint=mark,
            sha256=hashes,
        )
        write_text(home / RECORD, record.to_json())
    return path


def ftk(*arguments: object) -> dict[str, object]:
    """One command: seconds, and the peak of its largest process. What it prints as JSON is kept."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "toolkit.cli", *map(str, arguments), "--json"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        _, status, used = os.wait4(process.pid, 0)
        said.seek(0)
        if status:
            raise SystemExit(f"ftk {' '.join(map(str, arguments))} failed")
        found = json.loads(said.read().splitlines()[-1])
    cpu = used.ru_utime + used.ru_stime
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": cpu,
        "peak_gib": used.ru_maxrss / 2**20,
        "said": found,
    }


def measure(folder: Path, replicas: int) -> dict[str, dict[str, float]]:
    """Every command on a population of this size."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, __file__, "--make", folder, "--replicas", str(replicas)], check=True
    )
    recipe, run = folder / "recipe.yaml", folder / "run"
    cases: dict[str, dict[str, float]] = {
        "write the population": {"seconds": time.perf_counter() - start}
    }

    def take(name: str, *arguments: object) -> dict[str, object]:
        found = ftk(*arguments)
        cases[name] = {key: float(found[key]) for key in ("seconds", "cpu_seconds", "peak_gib")}  # type: ignore[arg-type]
        print(
            json.dumps({"replicas": replicas, "case": name, **cases[name]}),
            file=sys.stderr,
            flush=True,
        )
        return found["said"]  # type: ignore[return-value]

    take("resume, all there", "train-replicas", recipe, "--out", run)
    shutil.rmtree(replica_folder(run / "lora", replicas - 1))
    take("resume, one stack to train", "train-replicas", recipe, "--out", run)
    for method in ("mean", "ties", "swa"):
        take(
            f"merge all by {method}",
            "merge",
            run,
            "--method",
            method,
            "--rank",
            "same",
            "--out",
            folder / method,
        )
    said = take("run", "run", recipe, "--out", run)
    for stage, seconds in said["seconds"].items():  # type: ignore[attr-defined]
        cases[f"run: {stage}"] = {"seconds": seconds}
    take("run again, all there", "run", recipe, "--out", run)
    take("measure", "measure", run)
    take("report", "report", run)
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--replicas", type=int, nargs="+", default=[1000, 3000, 10_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, *arguments.replicas)
        return
    sizes = sorted(arguments.replicas)
    cases = {}
    with tempfile.TemporaryDirectory() as folder:
        for replicas in [
            2 * K,
            *sizes,
        ]:  # the first shows what a command takes that has nearly nothing to do
            home = Path(folder) / str(replicas)
            home.mkdir()
            cases[replicas] = measure(home, replicas)
            shutil.rmtree(home)
    fixed = cases.pop(2 * K)
    exponents = {}
    for name, least in fixed.items():
        if "cpu_seconds" not in least:
            continue
        small, large = (
            max(cases[n][name]["cpu_seconds"] - least["cpu_seconds"], 1e-3) for n in sizes[-2:]
        )
        exponents[name] = round(math.log(large / small) / math.log(sizes[-1] / sizes[-2]), 2)
    result = {
        "benchmark": f"commands on a population of adapters of rank {RANK}, one layer of width "
        f"{HIDDEN}, 12 prompts, groups of {K}",
        "seconds_and_peak_gib": cases,
        "at_16_replicas": fixed,
        "exponent_of_the_processor_seconds": exponents,
        "peak_gib": max(
            case.get("peak_gib", 0.0) for of_size in cases.values() for case in of_size.values()
        ),
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
