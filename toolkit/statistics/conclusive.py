"""When a figure is conclusive: enough replicas, enough clusters of prompts, enough levels of every
source, and what to say where there are too few.
"""

from collections.abc import Mapping

import numpy as np

from toolkit.statistics.outliers import odd_note

# From 3 replicas the interval was seen to cover in simulation, where runs differ by up to 1 on
# the logit of an answer.
MIN_REPLICAS = 3
MIN_LEVELS = 5  # of a source that runs share; with fewer, intervals are next to endless
MIN_CLUSTERS = 10
MIN_EFFECTIVE_CLUSTERS = 6.0
"""of unequal sizes: so many equal ones must know as much (see `leverage`)"""
MIN_REPLICAS_ALONE = 10
"""where replicas alone are drawn anew, no spread of prompts hides how little a few of them know of
their own spread: 5 covered 89 %
"""
MIN_REPLICAS_SPREAD = 15
"""A kind of run that makes up a fifth of all is missing from 3.5 % of samples of 15, and from 10.7
% of samples of 10, which look alike.
"""


def verdict(
    n_replicas: int, shortage: str, odd_R: np.ndarray, at_least: int = MIN_REPLICAS
) -> tuple[bool, int | None, str]:
    """Conclusive or not, the replicas it would need (None where more of them are not enough), and
    why, or what to look at.

    shortage: too few clusters or levels, in words. odd_R: rows that stand far off; they are named
    and withhold nothing.
    """
    short = n_replicas < at_least
    replicas = (
        f"{n_replicas} replicas are too few for an interval that holds what it says (at "
        f"least {at_least})"
        if short
        else ""
    )
    note = "; ".join(filter(None, [replicas or shortage, odd_note(odd_R)]))
    return not (short or shortage), at_least if short else None, note


def enough_clusters(n_clusters: int, effective: float) -> bool:
    """Whether the variance between clusters is known well enough for an interval that holds what it
    says.
    """
    return n_clusters >= MIN_CLUSTERS and effective >= MIN_EFFECTIVE_CLUSTERS


def clusters_in_words(n_clusters: int, effective: float) -> str:
    """How many there are, and what they are worth where they differ in size."""
    worth = (
        f" of unequal size, worth {effective:.1f} equal ones,"
        if effective < 0.9 * n_clusters
        else ""
    )
    return f"{n_clusters} prompts or clusters{worth}"


def few_clusters(n_clusters: int, effective: float, worth: float = MIN_EFFECTIVE_CLUSTERS) -> str:
    """Why `enough_clusters` says no; empty where it says yes. worth: so many equal ones where it
    takes more.
    """
    if enough_clusters(n_clusters, effective) and effective >= worth:
        return ""
    least = f"at least {MIN_CLUSTERS}" + (
        f", worth {worth:g}" if n_clusters >= MIN_CLUSTERS else ""
    )
    return (
        f"{clusters_in_words(n_clusters, effective)} are too few for an interval that holds "
        f"what it says ({least})"
    )


def few_clusters_of(cluster_P: np.ndarray) -> str:
    """The same of a suite, from the cluster of every prompt."""
    size_C = np.unique(cluster_P, return_counts=True)[1]
    return few_clusters(len(size_C), float(size_C.sum() ** 2 / np.sum(size_C**2)))


def few_levels(sources: Mapping[str, np.ndarray]) -> str:
    """Why levels of sources that runs share are too few to be resampled; empty where they are
    not.
    """
    short_sources = [
        f"{n} levels of {name}"
        for name, code_R in sources.items()
        if (n := int(code_R.max()) + 1) < MIN_LEVELS
    ]
    return (
        f"{' and '.join(short_sources)} are too few for an interval that holds what it says (at "
        f"least {MIN_LEVELS})"
        if short_sources
        else ""
    )
