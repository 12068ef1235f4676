"""How well does `ftk check` predict? It predicts, then the run is made; ratios of taken to
predicted; the last line is JSON.

Wall time is that of the whole command, start included. Memory is the peak of each process as the
system keeps it (VmHWM), read while they
live: of the largest worker, and of the largest workers and the leading process together. Disk is
what the files of the run take in blocks. Both commands run with the same number of workers. On a
busy machine the times mean little.

    python benchmarks/check.py recipes/demo.yaml --out benchmarks/results/check-demo.json
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from result import finish

from toolkit import environment

LIMITS = {"seconds": 0.30, "worker_bytes": 0.20, "memory_bytes": 0.20, "disk_bytes": 0.10}
"""how far off a prediction may be, as a share of it"""


def peaks(session: int) -> dict[int, tuple[int, bool]]:
    """Peak bytes of every living process of a session, and whether it is a worker."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) != session:
                continue
            high = next(
                line
                for line in (process / "status").read_text().splitlines()
                if line.startswith("VmHWM:")
            )
            found[int(process.name)] = (
                int(high.split()[1]) * 1024,
                b"spawn_main" in (process / "cmdline").read_bytes(),
            )
        except (OSError, StopIteration):
            continue
    return found


def watched(command: list[str]) -> tuple[dict[str, float], dict]:
    """Seconds and peaks of a command, and what it prints as JSON."""
    start, seen = time.perf_counter(), {}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, start_new_session=True)
        while process.poll() is None:
            seen |= peaks(process.pid)
            time.sleep(0.2)
        seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
        said.seek(0)
        found = json.loads(said.read().splitlines()[-1])
    workers = [high for high, worker in seen.values() if worker]
    taken = {
        "seconds": seconds,
        "worker_bytes": max(workers, default=0),
        "memory_bytes": sum(workers) + seen[process.pid][0],
    }
    return taken, found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--workers", type=int, default=environment.cores())
    parser.add_argument(
        "--run", type=Path, help="a new folder where the run is kept; default: it is not"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    ftk, options = (
        [sys.executable, "-m", "toolkit.cli"],
        ["--workers", str(arguments.workers), "--json"],
    )
    with tempfile.TemporaryDirectory() as scratch:
        run = arguments.run or Path(scratch) / "run"
        if run.exists():
            raise SystemExit(f"{run} exists: what is finished in it would take no time")
        check, found = watched([*ftk, "check", str(arguments.recipe), *options])
        taken, said = watched([*ftk, "run", str(arguments.recipe), "--out", str(run), *options])
        taken["disk_bytes"] = sum(
            path.stat().st_blocks * 512 for path in run.rglob("*") if path.is_file()
        )
    ahead = found["forecast"]
    stages = {
        name: {"predicted": stage["seconds"], "took": said["seconds"].get(name)}
        for name, stage in ahead["stages"].items()
    }
    ratio = {name: taken[name] / ahead[name] for name in LIMITS}
    result = {
        "benchmark": f"ftk check against ftk run, {arguments.recipe}",
        "workers": arguments.workers,
        "seconds_of_the_check": check["seconds"],
        "predicted": {name: ahead[name] for name in LIMITS},
        "took": taken,
        "took_over_predicted": ratio,
        "within": {name: abs(ratio[name] - 1) <= limit for name, limit in LIMITS.items()},
        "seconds_by_stage": stages,
        "load_before": os.getloadavg()[0],
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
