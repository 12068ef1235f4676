"""A world is a population of runs with a known truth. Here: how often an interval holds that truth,
and what to call the result.

A module of this package makes worlds: functions from sizes and flaws of a population (replicas,
prompts, run effect, failed runs, ...) to a World. `benchmarks/coverage.py` lists them in one table
and sweeps them; tests/statistics/test_coverage.py holds a selection to 95 %.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolkit.statistics import Estimate, clopper_pearson

Sampled = tuple[Estimate, float]
World = Callable[[np.random.Generator], Sampled]
"""Draws one population; gives the estimate that ftk would print for it, and the truth."""

LOW, HIGH = 0.93, 0.97  # what a nominal 95 % interval must cover
CEILING = 0.10  # of samples, whose interval holds and decides, that may be called INCONCLUSIVE
RARELY = 0.05  # "nearly never": a share of samples that does not count as claiming

CLASSES = {
    "ok": "covers 93-97 %, or what it covers cannot be told from that with these repetitions",
    "conservative": "covers more than 97 %: wider than it need be",
    "guarded": "covers less than 93 %, but says INCONCLUSIVE where it misses "
    "(or prints no interval)",
    "unseen": "claims and misses, but no more often than all runs (or groups) of a sample are of "
    "one kind: nothing in it can tell",
    "FAIL": "covers less than 93 %, also of the samples that it calls conclusive",
    "SILENT": "covers, and says INCONCLUSIVE all the same of over 10 % of samples whose interval "
    "decides, at sizes that are enough",
}


@dataclass(frozen=True)
class Tally:
    """Samples of one world: those with an interval at all, with one that holds the truth, called
    conclusive, and both.

    withheld: whose interval decides (see `decides`) and that are not called conclusive.
    width: median of the intervals with two ends (a mean would be that of the few samples whose
    interval is next to endless).
    """

    samples: int
    printed: int
    held: int
    conclusive: int
    held_conclusive: int
    width: float | None
    withheld: int = 0

    @property
    def coverage(self) -> float:
        """Of the samples with an interval; nan without any."""
        return self.held / self.printed if self.printed else math.nan

    @property
    def coverage_conclusive(self) -> float:
        return self.held_conclusive / self.conclusive if self.conclusive else math.nan

    @property
    def error(self) -> tuple[float, float]:
        """Exact 95 % Monte Carlo interval of the coverage."""
        return clopper_pearson(self.held, self.printed) if self.printed else (0.0, 1.0)

    def kind(self, unseen: float = 0.0, *, enough: bool = False) -> str:
        """Which of CLASSES. unseen: the probability that a sample shows nothing of what makes the
        interval wrong; enough: whether the sizes are those from which the estimator promises to be
        conclusive.
        """
        if enough and clopper_pearson(self.withheld, self.samples)[0] > CEILING:
            return "SILENT"
        low, high = self.error
        if self.printed <= RARELY * self.samples:
            return "guarded"
        if high >= LOW:
            return "conservative" if low > HIGH else "ok"
        if (
            self.conclusive <= RARELY * self.samples
            or clopper_pearson(self.held_conclusive, self.conclusive)[1] >= LOW
        ):
            return "guarded"
        false_claims = clopper_pearson(self.conclusive - self.held_conclusive, self.samples)
        return "unseen" if unseen and false_claims[0] <= unseen + (1 - LOW) else "FAIL"


def decides(estimate: Estimate, border: float | None = None) -> bool:
    """Whether the interval answers the question: it leaves the border outside. Of a figure that is
    no contrast, any interval does.

    border: of a contrast that carries no p.
    """
    if estimate.low is None or estimate.high is None:
        return False
    if border is not None:
        return not estimate.low <= border <= estimate.high
    return estimate.p is None or estimate.p < 1 - estimate.level


def simulate(world: World, repetitions: int, seed: int, border: float | None = None) -> Tally:
    """The first repetitions of a longer simulation are those of a shorter one with the same seed.
    border: see `decides`.
    """
    rng = np.random.default_rng(seed)
    printed = held = conclusive = held_conclusive = withheld = 0
    widths = []
    for _ in range(repetitions):
        estimate, truth = world(rng)
        low = -math.inf if estimate.low is None else estimate.low
        high = math.inf if estimate.high is None else estimate.high
        holds = low <= truth <= high
        has_interval = estimate.low is not None or estimate.high is not None
        printed += has_interval
        held += has_interval and holds
        conclusive += estimate.conclusive
        withheld += not estimate.conclusive and decides(estimate, border)
        held_conclusive += estimate.conclusive and holds
        if math.isfinite(high - low):
            widths.append(high - low)
    width = float(np.median(widths)) if widths else None
    return Tally(repetitions, printed, held, conclusive, held_conclusive, width, withheld)
