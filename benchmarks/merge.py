"""Merging K adapters of rank 8 on the shape of Qwen2.5-0.5B (24 layers, d = 896): seconds and peak memory; the last line is JSON.

Every case is a process of its own, so that its memory is its own. The adapters are random; only a few dozen files are written, and
the K folders are hard links to them in turn, so that a disk holds 10,000 (reads come from the page cache, as after training on the
same machine). The exact mean is checked against a float64 reference of one module. Peers, where they finish within the limit: reading
all files twice (the least that hashing and reading costs), peft's `cat` and `svd`, and mergekit's `ties` on dense changes in memory.

TIES forms every change, so its time is that of K x all weights. For K above --ties-full it merges only the first layer; `layers` in
the result says so, and time is linear in layers.

    python benchmarks/merge.py --out benchmarks/results/merge.json
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from toolkit import delta, environment
from toolkit.adapters import read_adapter, write_adapter
from toolkit.merge import merge_adapters

RANK, HIDDEN, KEYS, INNER = 8, 896, 128, 4864
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
DENSITY = 0.2


def make(folder: Path, layers: int, count: int) -> list[Path]:
    """Adapters around a common change, as replicas are: half of every factor is common."""
    common = torch.Generator().manual_seed(0)
    names = {f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in SHAPES.items()}
    shared = {name: (torch.randn(RANK, I, generator=common), torch.randn(O, RANK, generator=common)) for name, (O, I) in names.items()}
    for k in range(count):
        own = torch.Generator().manual_seed(1 + k)
        factors = {
            name: (A + torch.randn(A.shape, generator=own), 0.01 * (B + torch.randn(B.shape, generator=own)))
            for name, (A, B) in shared.items()
        }
        targets = sorted({name.rpartition(".")[2] for name in names})
        write_adapter(folder / f"{k:03d}", factors, r=RANK, alpha=2 * RANK, target_modules=targets, base="Qwen/Qwen2.5-0.5B")
    return [folder / f"{k:03d}" for k in range(count)]


def link(files: list[Path], folder: Path, K: int) -> list[Path]:
    paths = [folder / f"{k:05d}" for k in range(K)]
    for k, path in enumerate(paths):
        path.mkdir(parents=True, exist_ok=True)
        for file in files[k % len(files)].iterdir():
            if not (path / file.name).exists():
                os.link(file, path / file.name)
    return paths


def run_case(kind: str, paths: list[Path], layers: int, out: Path) -> dict[str, float]:
    """One case, in this process."""
    start, cpu, found = time.perf_counter(), time.process_time(), {}
    if kind == "read twice":
        for _ in range(2):
            for path in paths:
                (path / "adapter_model.safetensors").read_bytes()
    elif kind == "mean":
        report = merge_adapters(paths, out, method="mean", rank="full" if len(paths) * RANK <= 64 else "same")
        found = {"rank": report.rank, "energy": report.energy}
    elif kind == "ties":
        report = merge_adapters(paths, out, method="ties", rank="same", density=DENSITY)
        found = {"rank": report.rank, "energy": report.energy}
    elif kind == "mergekit ties":
        from mergekit.merge_methods import merge_tensors

        adapters = [read_adapter(path) for path in paths]
        for name in adapters[0].modules:
            changes = [delta.dense(adapter.factors(name)).float() for adapter in adapters]
            parameters = {"weight": [1.0] * len(paths), "density": DENSITY}
            with torch.no_grad():
                merge_tensors([torch.zeros_like(changes[0]), *changes], "ties", base_index=0, parameters=parameters, dtype=torch.float32)
    else:
        start = time.perf_counter() + peft_merge(kind.removeprefix("peft "), paths, layers)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {**spent, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, **found}


def peft_merge(combination: str, paths: list[Path], layers: int) -> float:
    """peft's own merge; returns the seconds that building the model took, which are not the merge's."""
    from peft import PeftModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    start = time.perf_counter()
    sizes = {"hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers, "vocab_size": 1000}
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=14, num_key_value_heads=2))
    seconds = time.perf_counter() - start
    adapted = PeftModel.from_pretrained(model, paths[0], adapter_name="0")
    for k, path in enumerate(paths[1:], 1):
        adapted.load_adapter(path, str(k))
    options = {"svd_rank": RANK, "svd_full_matrices": False} if combination == "svd" else {}
    names = [str(k) for k in range(len(paths))]
    adapted.add_weighted_adapter(names, [1 / len(paths)] * len(paths), "merged", combination_type=combination, **options)
    return seconds


def largest_error(files: list[Path], K: int) -> float:
    """Of the blockwise sum against float64, for the largest module: relative, with every file as often as it was linked."""
    adapters = [read_adapter(path) for path in files]
    name = "model.layers.0.mlp.down_proj"
    held = [adapter.factors(name) for adapter in adapters]
    A, B = delta.concat((held[k % len(held)] for k in range(K)), [1 / K] * K)
    counts = [len(range(k, K, len(held))) for k in range(len(held))]
    want = sum(count / K * delta.dense(one) for count, one in zip(counts, held, strict=True))
    return float((B @ A - want).norm() / want.norm())


def child(kind: str, folder: Path, K: int, layers: int, limit: float, threads: int) -> dict[str, object]:
    case = {"kind": kind, "folder": str(folder), "k": K, "layers": layers, "threads": threads}
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"case": kind, "k": K, "layers": layers, "unfinished_after_seconds": limit}
    if done.returncode:
        return {"case": kind, "k": K, "layers": layers, "failed": (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}
    return {"case": kind, "k": K, "layers": layers, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 64, 1000, 10_000])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--files", type=int, default=32, help="adapters that are really written")
    parser.add_argument("--ties-full", type=int, default=64, help="largest K for which TIES merges all layers")
    parser.add_argument("--peers", type=int, default=64, help="largest K for peft and mergekit")
    parser.add_argument("--limit", type=float, default=7200, help="seconds for one case")
    parser.add_argument("--threads", type=int, default=environment.cores())
    parser.add_argument("--quick", action="store_true", help="one layer, K = 8 and 64, peers at 8: a minute or two")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        case = json.loads(arguments.case)
        with tempfile.TemporaryDirectory(dir=Path(case["folder"]).parent) as out:
            torch.set_num_threads(case["threads"])
            paths = sorted(Path(case["folder"]).iterdir())[: case["k"]]
            print(json.dumps(run_case(case["kind"], paths, case["layers"], Path(out) / "merged")))
        return
    if arguments.quick:
        arguments.k, arguments.layers, arguments.files, arguments.peers = [8, 64], 1, 8, 8
    cases, errors = [], {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        files = make(work / "files", arguments.layers, arguments.files)
        first = make(work / "first", 1, arguments.files)
        size = (files[0] / "adapter_model.safetensors").stat().st_size
        link(files, work / "all", max(arguments.k))
        link(first, work / "one", max(arguments.k))
        for K in arguments.k:
            errors[K] = largest_error(files, K)
            todo = [("read twice", "all"), ("mean", "all"), ("ties", "all" if arguments.ties_full >= K else "one")]
            todo += [(kind, "all") for kind in ("peft cat", "peft svd", "mergekit ties") if arguments.peers >= K]
            for kind, where in todo:
                cases.append(child(kind, work / where, K, arguments.layers if where == "all" else 1, arguments.limit, arguments.threads))
                print(json.dumps(cases[-1]), file=sys.stderr, flush=True)
    seconds = {(one["case"], one["k"], one["layers"]): one["seconds"] for one in cases if "seconds" in one}
    ratios = {
        f"{own} over {peer}, K = {K}": seconds[own, K, arguments.layers] / seconds[peer, K, arguments.layers]
        for own, peer in (("mean", "read twice"), ("mean", "peft cat"), ("mean", "peft svd"), ("ties", "mergekit ties"))
        for K in arguments.k
        if {(own, K, arguments.layers), (peer, K, arguments.layers)} <= set(seconds)
    }
    result = {
        "benchmark": f"exact mean and TIES (density {DENSITY}) of adapters of rank {RANK}, {arguments.layers} layers of Qwen2.5-0.5B",
        "adapter_bytes": size,
        "threads": arguments.threads,
        "files_written": arguments.files,
        "folders_are_hard_links": True,
        "cases": cases,
        "relative_error_of_the_mean": errors,
        "seconds_over_seconds": ratios,
        "environment": environment.describe("cpu"),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
