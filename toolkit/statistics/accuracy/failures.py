"""Failed runs, counted first."""

from toolkit.statistics.arrays import as_level
from toolkit.statistics.estimate import Estimate
from toolkit.statistics.intervals import clopper_pearson


def failure_rate(failed: int, runs: int, *, level: float = 0.95) -> Estimate:
    """What share of runs of the procedure fails?

    Estimand: the probability that a fresh run fails. Unit: one run; runs are independent, prompts
    play no part. Exact interval of Clopper & Pearson (1934): covers at least `level`, whatever the
    rate and the number of runs. Raises ValueError unless 0 <= failed <= runs and runs >= 1.
    """
    level = as_level(level)
    if runs < 1 or not 0 <= failed <= runs:
        raise ValueError(
            "failed runs must be between 0 and the number of runs (at least 1), not "
            f"{failed} of {runs}"
        )
    low, high = clopper_pearson(failed, runs, level)
    return Estimate(failed / runs, low, high, level, runs, 0, "Clopper-Pearson")
