"""Greedy soup: the mean of those adapters that do not lower a validation score, tried from the best
to the worst.
"""

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.model.adapters import AdapterError


@dataclass(frozen=True)
class Step:
    """One adapter that was tried: its own score, that of the soup with it, and whether it stayed
    in.
    """

    path: str
    score: float
    soup_score: float
    kept: bool


def greedy_soup(
    sources: Sequence[Path],
    *,
    mean: Callable[[Sequence[Path], Path], Path],
    score: Callable[[Path], float],
    beside: Path,
) -> tuple[list[Path], list[Step]]:
    """The members of the soup, and what was tried. Wortsman et al. 2022, recipe 1:
    https://arxiv.org/abs/2203.05482

    `mean` writes the mean of some adapters to a folder, `score` says how good a folder is, higher
    is better. Equal scores are tried in the order of the folder names. Candidates are written
    beside the result and removed.
    """
    scores = {source: score(source) for source in sources}
    for source, value in scores.items():
        if value != value:
            raise AdapterError(
                f"{source}: its validation score is not a number; leave it out, or choose "
                "other prompts"
            )
    soup: list[Path] = []
    steps: list[Step] = []
    best = float("-inf")
    candidate = beside.parent / f".{beside.name}.{secrets.token_hex(4)}.tmp"
    try:
        for source in sorted(scores, key=lambda s: (-scores[s], s.name, str(s))):
            soup_score = score(mean([*soup, source], candidate)) if soup else scores[source]
            kept = soup_score >= best
            steps.append(Step(str(source), scores[source], soup_score, kept))
            if kept:
                soup, best = [*soup, source], soup_score
    finally:
        shutil.rmtree(candidate, ignore_errors=True)
    return soup, steps
