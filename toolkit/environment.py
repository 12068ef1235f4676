"""Where a run happens: versions, device and switches that can change bits. Recorded with every
run.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import toolkit

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "mergekit",
    "safetensors",
    "tokenizers",
    "numpy",
    "scipy",
    "pyarrow",
)

MALLOC = (
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=8589934592"
)
"""GLIBC_TUNABLES of a worker on a CPU: a step frees what the next one asks for again, and memory
given back comes again with page faults
"""


def versions() -> dict[str, str | None]:
    """Installed versions of the libraries that affect a run; None where one is missing."""
    installed: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def cpu_model() -> str:
    """The name of the processor, as Linux says it; elsewhere as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use (affinity and container limits respected where the system
    tells).
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int | None:
    """The memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def source_revision() -> str | None:
    """Git revision of the source when ftk runs from a checkout, with `+changes` when files differ
    from it.
    """
    folder = Path(toolkit.__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(folder)]
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return (revision + ("+changes" if changed else "")) or None


def compiler() -> str | None:
    """The C++ compiler that `torch.compile` calls, where it has all that it needs; tried on Linux
    alone, so None elsewhere.
    """
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return (
        shutil.which(os.environ.get("CXX") or "g++")
        if headers and sys.platform == "linux"
        else None
    )


def resolve_device(asked: str) -> str:
    """`auto` is the first CUDA device if there is one, otherwise the CPU. Imports torch."""
    if asked == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise ValueError(
            "device: cuda was asked for, but torch sees no CUDA device; use `device: auto` or `cpu`"
        )
    return "cpu"


def variables_of_libraries(device: str) -> dict[str, str]:
    """Environment variables that the libraries of a worker read when they are loaded."""
    values = {"TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        malloc = os.environ.get("GLIBC_TUNABLES", MALLOC)
        values |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "GLIBC_TUNABLES": malloc}
    return values


@contextmanager
def of_workers(device: str) -> Iterator[None]:
    """Set environment variables for processes started in the `with` block; the caller's are
    restored afterwards.

    A worker is `python -c ...`, which looks for modules in the folder in which ftk was started: a
    `random.py` of the user's would be run as the standard library's.
    """
    values = {"PYTHONSAFEPATH": "1", **variables_of_libraries(device)}
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def make_deterministic(device: str) -> None:
    """Switch on everything that makes one machine repeat its bits: one thread on the CPU,
    deterministic kernels on a GPU.
    """
    import torch

    if device == "cpu":
        torch.set_num_threads(1)  # the number of threads decides the order of sums
    else:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def threads(count: int, device: str) -> Iterator[None]:
    """Use `count` torch threads on a CPU, for the length of a `with` block. Imports torch."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count if device == "cpu" else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(device: str) -> str:
    """Processor and torch build in one line, as a replica records it: where two of them differ,
    equal seeds may give other bits.
    """
    setting = numerics(device)
    return f"{setting['gpu'] or setting['cpu']}, torch {setting['torch']}"


def seconds_used(device: str) -> float:
    """Seconds used by this process: processor time of all threads on the CPU, else wall time."""
    return time.process_time() if device == "cpu" else time.monotonic()


def describe(device: str) -> dict:
    """Versions, device and machine as plain JSON values."""
    return {
        "ftk": toolkit.__version__,
        "source": source_revision(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": cores(),
        "memory_bytes": memory_bytes(),
        "versions": versions(),
        "numerics": numerics(device),
    }


def numerics(device: str) -> dict:
    """What can change the bits of a replica, beside its recipe."""
    gpu = None
    if device == "cuda":
        import torch

        gpu = torch.cuda.get_device_name()
    return {
        "device": device,
        "cpu": cpu_model(),
        "gpu": gpu,
        "compiler": compiler(),
        "threads_per_worker": 1 if device == "cpu" else None,
        "deterministic_algorithms": device != "cpu",
        "torch": versions()["torch"],
    }
