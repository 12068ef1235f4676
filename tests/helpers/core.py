"""What `.ci/core` runs where only the core of ftk is installed: the import, the files that must be
shipped, and predictions for the commands.
"""

import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

IMPORT_SECONDS, HELP_SECONDS = 0.2, 0.5


def seconds(*command: str) -> float:
    """Of a processor, the fastest of a few runs: other work on the machine is of no interest."""

    def once() -> float:
        start = os.times()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        end = os.times()
        return sum(end[2:4]) - sum(start[2:4])  # of finished children, user and system

    return min(once() for _ in range(5))


importing = seconds(sys.executable, "-c", "import toolkit")
helping = seconds(sys.executable, "-m", "toolkit.cli", "--help")
print(f"import toolkit: {importing:.2f} s; ftk --help: {helping:.2f} s")
assert importing < IMPORT_SECONDS and helping < HELP_SECONDS

for name in (
    "py.typed",
    "embedded/base/config.json",
    "recipe/starter.yaml",
    "recipe/demo.yaml",
    "measurement/claims/origin.yaml",
    "report/templates",
):
    there = importlib.resources.files("toolkit").joinpath(name)
    assert there.is_file() or there.is_dir(), f"{name} is not in the wheel"

runs = [f"run_{run}" for run in range(30)]
with Path("predictions.csv").open("w", encoding="utf-8") as file:
    print("prompt", "reference", *runs, sep=",", file=file)
    for prompt in range(40):
        answers = ("no" if (7 * prompt + run) % 11 < 2 else "yes" for run in range(30))
        print(f"p{prompt}", "yes", *answers, sep=",", file=file)

import toolkit  # noqa: E402

assert len(toolkit.measure("predictions.csv").to_rows()) > 5
heavy = {"torch", "transformers", "peft", "safetensors", "mergekit"} & set(sys.modules)
assert not heavy, heavy
