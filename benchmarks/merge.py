"""Merging K adapters of rank 8 on the shape of Qwen2.5-0.5B (24 layers, d = 896): seconds and peak
memory; the last line is JSON.

Every case is a process of its own with one thread, so that its memory is its own. The adapters are
random; only a few dozen files are written, and the K folders are hard links to them in turn (reads
come from the page cache, as after training on the same machine).

Modules are merged one after the other, each by itself, so a case merges one layer, or, for TIES at
large K, one module of it. `share` is what that is of the weights of a layer, and
`cpu_seconds_for_24_layers` is 24 / share times what was measured: an estimate, and for the mean one
from above, since opening a file and reading its header is paid once and here counted 24 times. The
cases "all 24 layers" and TIES at both shares test it. Time is that of the processor, so that other
work on the machine counts little; `load` is the number of processes that were at work when a case
was done. Cases that --out has already are not measured again.

Peers, where they finish within the limit: reading the files twice, peft's `cat` and `svd`, and
mergekit's `ties` on dense changes in memory. The blockwise float32 sum is checked against float64.

    python benchmarks/merge.py --out benchmarks/results/merge.json
    python benchmarks/tables.py benchmarks/results/merge.json
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from result import finish

from toolkit.merging import merge_adapters
from toolkit.model import delta
from toolkit.model.adapters import read_adapter, write_adapter

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
LAYERS = 24
ONE = "self_attn.k_proj"  # what TIES merges where a whole layer takes too long
DENSITY = 0.2
WHOLE = "all 24 layers"
CACHED, FROM_DISK = "read twice", "read twice, from disk"


def make(
    folder: Path, layers: int, count: int, modules: dict[str, tuple[int, int]] = SHAPES
) -> list[Path]:
    """Adapters around a common change, as replicas are: half of every factor is common."""
    common = torch.Generator().manual_seed(0)
    names = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(layers)
        for name, shape in modules.items()
    }
    shared = {
        name: (torch.randn(RANK, I, generator=common), torch.randn(O, RANK, generator=common))
        for name, (O, I) in names.items()
    }
    for k in range(count):
        own = torch.Generator().manual_seed(1 + k)
        factors = {
            name: (
                A + torch.randn(A.shape, generator=own),
                0.01 * (B + torch.randn(B.shape, generator=own)),
            )
            for name, (A, B) in shared.items()
        }
        targets = sorted({name.rpartition(".")[2] for name in names})
        write_adapter(
            folder / f"{k:03d}",
            factors,
            r=RANK,
            alpha=2 * RANK,
            target_modules=targets,
            base="Qwen/Qwen2.5-0.5B",
        )
    return [folder / f"{k:03d}" for k in range(count)]


def link(files: list[Path], folder: Path, K: int) -> list[Path]:
    paths = [folder / f"{k:05d}" for k in range(K)]
    for k, path in enumerate(paths):
        path.mkdir(parents=True, exist_ok=True)
        for file in files[k % len(files)].iterdir():
            if not (path / file.name).exists():
                os.link(file, path / file.name)
    return paths


def run_case(kind: str, paths: list[Path], out: Path) -> dict[str, float]:
    """One case, in this process."""
    start, cpu, found = time.perf_counter(), time.process_time(), {}
    if kind == CACHED:
        for _ in range(2):
            for path in paths:
                (path / "adapter_model.safetensors").read_bytes()
    elif kind == "mean":
        report = merge_adapters(
            paths, out, method="mean", rank="full" if len(paths) * RANK <= 64 else "same"
        )
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
                merge_tensors(
                    [torch.zeros_like(changes[0]), *changes],
                    "ties",
                    base_index=0,
                    parameters=parameters,
                    dtype=torch.float32,
                )
    else:
        start, cpu = peft_merge(kind.removeprefix("peft "), paths)
    spent = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    return {
        **spent,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        **found,
    }


def peft_merge(combination: str, paths: list[Path]) -> tuple[float, float]:
    """peft's own merge; returns the times at which the model was there, since building it is not
    merging.
    """
    from peft import PeftModel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = {
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": 1,
        "vocab_size": 1000,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_attention_heads=14, num_key_value_heads=2))
    started = time.perf_counter(), time.process_time()
    adapted = PeftModel.from_pretrained(model, paths[0], adapter_name="0")
    for k, path in enumerate(paths[1:], 1):
        adapted.load_adapter(path, str(k))
    options = {"svd_rank": RANK, "svd_full_matrices": False} if combination == "svd" else {}
    names = [str(k) for k in range(len(paths))]
    adapted.add_weighted_adapter(
        names, [1 / len(paths)] * len(paths), "merged", combination_type=combination, **options
    )
    return started


def largest_error(files: list[Path], K: int) -> float:
    """Of the blockwise sum against float64, for the largest module: relative, with every file as
    often as it was linked.
    """
    adapters = [read_adapter(path) for path in files]
    name = "model.layers.0.mlp.down_proj"
    held = [adapter.factors(name) for adapter in adapters]
    A, B = delta.concat((held[k % len(held)] for k in range(K)), [1 / K] * K)
    counts = [len(range(k, K, len(held))) for k in range(len(held))]
    want = sum(
        (count / K * delta.dense(one) for count, one in zip(counts, held, strict=True)),
        torch.zeros(()),
    )
    return float((B @ A - want).norm() / want.norm())


def child(kind: str, folder: Path, K: int, limit: int) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--case",
        json.dumps({"kind": kind, "folder": str(folder), "k": K}),
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 1)),
    )
    if done.returncode == -signal.SIGXCPU:
        return {"unfinished_after_cpu_seconds": limit}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [str(done.returncode)])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def disk_speed(file: Path, size: int = 2**28) -> float:
    """MiB a second at which a new file comes from the disk, none of it in the page cache."""
    file.write_bytes(os.urandom(2**20) * (size // 2**20))
    with file.open("rb", buffering=0) as opened:
        os.fsync(opened.fileno())
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while opened.read(2**20):
            pass
        return size / 2**20 / (time.perf_counter() - start)


def measure(work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All cases, and what follows from them."""
    homes = {"one layer": (1, SHAPES), ONE: (1, {ONE: SHAPES[ONE]}), WHOLE: (LAYERS, SHAPES)}
    weights = {
        name: sum(O * I for O, I in modules.values()) * layers
        for name, (layers, modules) in homes.items()
    }
    files = {
        "one layer": make(work / "files", 1, arguments.files),
        ONE: make(work / "one", 1, arguments.files, homes[ONE][1]),
    }
    files[WHOLE] = make(work / "all", LAYERS, min(arguments.k))
    there = arguments.out and arguments.out.exists()
    cases: list[dict[str, Any]] = json.loads(arguments.out.read_text())["cases"] if there else []

    def case(kind: str, K: int, what: str) -> None:
        if any((one["case"], one["k"], one["what"]) == (kind, K, what) for one in cases):
            return
        folder = work / f"{what}-{K}".replace(" ", "-")
        link(files[what], folder, K)
        share = weights[what] / weights["one layer"]
        found = {
            "case": kind,
            "k": K,
            "what": what,
            "share": share,
            **child(kind, folder, K, arguments.limit),
        }
        if "cpu_seconds" in found:
            found["cpu_seconds_for_24_layers"] = found["cpu_seconds"] * LAYERS / share
        found["load"] = os.getloadavg()[0]
        cases.append(found)
        if arguments.out:
            arguments.out.write_text(json.dumps({"cases": cases}, indent=2) + "\n")
        print(json.dumps(found), file=sys.stderr, flush=True)

    for K in arguments.k:
        case(CACHED, K, "one layer")
        case("mean", K, "one layer")
        case("ties", K, ONE)
        if arguments.ties_layer >= K:
            case("ties", K, "one layer")
    for K in arguments.whole:
        case(CACHED, K, WHOLE)
        case("mean", K, WHOLE)
    for K in arguments.k:
        for kind in ("peft cat", "peft svd", "mergekit ties") if arguments.peers >= K else ():
            case(kind, K, "one layer")

    done = [one for one in cases if "cpu_seconds" in one]
    seconds = {
        (one["case"], one["k"]): one["cpu_seconds"] for one in done if one["what"] == "one layer"
    }
    whole = {(one["case"], one["k"]): one["cpu_seconds"] for one in done if one["what"] == WHOLE}
    peak = {
        (one["case"], one["what"], one["k"]): one["peak_gib"] for one in cases if "peak_gib" in one
    }
    least, most = min(arguments.k), max(arguments.k)
    size = (files["all 24 layers"][0] / "adapter_model.safetensors").stat().st_size
    speed = disk_speed(work / "random")
    read = {K: 2 * K * size / 2**20 / speed for K in arguments.k}
    of_mean = {
        one["k"]: one["cpu_seconds_for_24_layers"]
        for one in done
        if (one["case"], one["what"]) == ("mean", "one layer")
    }
    of_mean |= {K: spent for (kind, K), spent in whole.items() if kind == "mean"}
    pairs = (
        ("mean", CACHED),
        ("mean", "peft cat"),
        ("mean", "peft svd"),
        ("ties", "mergekit ties"),
    )
    return {
        "cases": cases,
        "cpu_seconds_over_cpu_seconds": {
            f"{own} over {peer}, K = {K}": seconds[own, K] / seconds[peer, K]
            for own, peer in pairs
            for K in arguments.k
            if (own, K) in seconds
            and seconds.get((peer, K))  # reading a few files takes less than the clock sees
        }
        | {
            f"mean over {CACHED}, {WHOLE}, K = {K}": whole["mean", K] / whole[CACHED, K]
            for K in arguments.whole
            if whole.get((CACHED, K))
        }
        | {f"mean over {FROM_DISK}, K = {K}": of_mean[K] / read[K] for K in of_mean},
        "peak_over_peak": {
            f"{kind}, {what}, K = {most} over {least}": peak[kind, what, most]
            / peak[kind, what, least]
            for kind, what in (("mean", "one layer"), ("ties", ONE))
            if {(kind, what, most), (kind, what, least)} <= set(peak)
        }
        | {
            f"mean, {WHOLE}, K = {K} over {least}": peak["mean", WHOLE, K]
            / peak["mean", WHOLE, least]
            for K in arguments.whole
            if least < K and {("mean", WHOLE, K), ("mean", WHOLE, least)} <= set(peak)
        },
        "adapter_bytes_of_24_layers": size,
        "disk_mib_per_second": speed,
        "relative_error_of_the_mean": {
            K: largest_error(files["one layer"], K) for K in arguments.k
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--k", type=int, nargs="+", default=[8, 64, 1000, 10_000])
    parser.add_argument("--files", type=int, default=32, help="adapters that are really written")
    parser.add_argument(
        "--ties-layer",
        type=int,
        default=64,
        help=f"largest K for which TIES merges a whole layer, not {ONE} alone",
    )
    parser.add_argument(
        "--whole",
        type=int,
        nargs="*",
        default=[8, 1000],
        help="K for which all 24 layers are merged, the mean alone",
    )
    parser.add_argument("--peers", type=int, default=64, help="largest K for peft and mergekit")
    parser.add_argument(
        "--limit", type=int, default=900, help="seconds of the processor for one case"
    )
    parser.add_argument(
        "--quick", action="store_true", help="K = 8 and 16, peers at 8: a minute or two"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="where the adapters are written, and removed at the end (about 200 MB)",
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.case:
        case = json.loads(arguments.case)
        with tempfile.TemporaryDirectory(dir=Path(case["folder"]).parent) as out:
            print(
                json.dumps(
                    run_case(
                        case["kind"],
                        sorted(Path(case["folder"]).iterdir())[: case["k"]],
                        Path(out) / "merged",
                    )
                )
            )
        return
    if arguments.quick:
        arguments.k, arguments.ties_layer, arguments.files, arguments.peers, arguments.whole = (
            [8, 16],
            8,
            8,
            8,
            [8],
        )
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        found = measure(Path(folder), arguments)
    result = {
        "benchmark": f"exact mean and TIES (density {DENSITY}) of adapters of rank {RANK}, "
        "shape of "
        "Qwen2.5-0.5B, one core",
        "threads": 1,
        "files_written": arguments.files,
        "folders_are_hard_links": True,
        **found,
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
