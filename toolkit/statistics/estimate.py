"""The one thing every statistic returns: a number with its honest interval."""

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and what the interval rests on.

    value, low, high: in the unit of the statistic; None where the data cannot support the figure.
    level: nominal coverage of [low, high], 0.95 for a 95 % interval.
    n_replicas: independent runs of the procedure behind the figure (replicas, or disjoint groups of
    K).
    n_prompts: prompts behind the figure.
    method: how the interval was made, in words that a reader can look up.
    conclusive: False is printed as INCONCLUSIVE, with `needed` runs of the procedure as the remedy
    where it is known.
    note: one sentence for the reader, or empty.
    p: of a contrast, the two-sided level at which its interval would just touch "no change"; None
    for other figures.
    """

    value: float | None
    low: float | None
    high: float | None
    level: float
    n_replicas: int
    n_prompts: int
    method: str
    conclusive: bool = True
    needed: int | None = None
    note: str = ""
    p: float | None = None

    def to_dict(self) -> dict:
        """As plain values, for JSON."""
        return asdict(self)


def without_interval(
    value: float | None,
    level: float,
    n_replicas: int,
    n_prompts: int,
    needed: int | None = None,
    note: str = "",
) -> Estimate:
    """A figure, or none, without an interval: inconclusive, and `note` says why."""
    return Estimate(value, None, None, level, n_replicas, n_prompts, "none", False, needed, note)


def complement(share: Estimate) -> Estimate:
    """1 - share, with its interval: agreement from disagreement."""
    value, high, low = (None if x is None else 1 - x for x in (share.value, share.low, share.high))
    return replace(share, value=value, low=low, high=high)
