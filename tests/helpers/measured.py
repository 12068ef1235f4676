"""Predictions and run folders of known content, and the command that measures them."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from helpers.outcomes_of import World
from toolkit import cli
from toolkit.measurement.run import save_design
from toolkit.record.outcomes import write_outcomes

RECIPE = """
base: embedded
data: {{train: {folder}/train.jsonl, suites: {{typical: {folder}/typical.jsonl,
    near: {folder}/near.jsonl, far: {folder}/far.jsonl}}}}
conditions:
  lora: {{epochs: 2}}
"""


@pytest.fixture(scope="module")
def world() -> World:
    return World(60, per_category=30, seed=3)


def folder_of(world: World, folder: Path) -> Path:
    """A run folder as `ftk run` leaves it, but for the replicas."""
    (folder / "train.jsonl").write_text(json.dumps({"prompt": "a", "completion": " b"}) + "\n")
    for suite, prompts in world.prompts.items():
        (folder / f"{suite}.jsonl").write_text(
            "".join(json.dumps(vars(prompt)) + "\n" for prompt in prompts)
        )
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    write_outcomes(folder / "outcomes.parquet", world.rows)
    save_design(folder, [folder / "outcomes.parquet"], world.designs, "ftk run")
    return folder


REPLICAS, PROMPTS = 40, 60


def answers(seed: int = 0, spread: float = 0.3, replicas: int = REPLICAS) -> np.ndarray:
    """answer_RP: 0 is right; prompts differ in how often runs leave it."""
    rng = np.random.default_rng(seed)
    rate_P = rng.uniform(0, spread, PROMPTS)
    return np.where(
        rng.random((replicas, PROMPTS)) < rate_P, rng.integers(1, 4, (replicas, PROMPTS)), 0
    )


def rows(answer_RP: np.ndarray, condition: str | None = None, **more) -> list[dict]:
    found = []
    for r, row in enumerate(answer_RP):
        for p, code in enumerate(row):
            place = {
                "category": "easy" if p % 2 else "hard",
                "shift": "far" if p >= PROMPTS // 2 else "typical",
            }
            cell = {
                "replica": f"seed-{r}",
                "prompt": f"p{p}",
                "output": f"answer {code}",
                "reference": "answer 0",
                **place,
                **more,
            }
            found.append(cell | ({"condition": condition} if condition else {}))
    return found


def write(path: Path, cells: list[dict]) -> Path:
    path.write_text("".join(json.dumps(cell) + "\n" for cell in cells))
    return path


def ftk(*arguments) -> Result:
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


def one_line(result: Result, *told: str, code: int = cli.BAD_INPUT) -> None:
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1 and all(
        word in result.stderr for word in told
    ), result.stderr


def _fresh(spread: float) -> np.ndarray:
    """One more run of the process of `answers()`: the same prompts, other draws."""
    rate_P = np.random.default_rng(0).uniform(0, 0.3, PROMPTS) * spread / 0.3
    rng = np.random.default_rng(77)
    return np.where(rng.random((1, PROMPTS)) < rate_P, rng.integers(1, 4, (1, PROMPTS)), 0)
