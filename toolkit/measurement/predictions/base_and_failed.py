"""What the user says about the runs of predictions: which condition is the base, and which runs
have failed.
"""

from collections.abc import Sequence
from dataclasses import replace

from toolkit.measurement.predictions.gather import Predictions
from toolkit.measurement.predictions.layout import PredictionsError
from toolkit.text.nearest import nearest


def with_base(predictions: Predictions, condition: str, where: object) -> Predictions:
    """The same predictions, with a condition as the base's answers instead of a population. where:
    begins an error.

    Raises PredictionsError, one line, for an unknown condition, one of several runs, and
    predictions of the base alone.
    """
    arms = dict(predictions.arms)
    arm = arms.pop(condition, None)
    if arm is None:
        raise PredictionsError(
            f"{where}: no condition {condition!r} for the "
            f"base{nearest(condition, list(predictions.arms))}"
        )
    if predictions.base is not None:
        raise PredictionsError(
            f"{where}: a column has the base's answers already; give --base or the column"
        )
    if len(arm.replicas) > 1:
        several = (
            f"{len(arm.replicas)} rows for a prompt (runs "
            f"{', '.join(arm.replicas[:3])}{', ...' * (len(arm.replicas) > 3)})"
        )
        raise PredictionsError(
            f"{where}: the base {condition!r} has {several}; it is one model: keep one run of it"
        )
    if not arms:
        raise PredictionsError(
            f"{where}: {condition!r} is the only condition; the base needs fine-tuned "
            "runs beside it"
        )
    return replace(predictions, arms=arms, base=arm)


def with_failed(predictions: Predictions, names: Sequence[str], where: object) -> Predictions:
    """The same predictions, with runs that the user says have failed: `NAME`, or `CONDITION/NAME`
    where several conditions have it.

    Raises PredictionsError, one line, for a name that no run has, or that runs of several
    conditions have.
    """
    arms = dict(predictions.arms)
    owners: dict[str, list[tuple[str, str]]] = {}
    for condition, arm in arms.items():
        for replica in arm.replicas:
            owners.setdefault(replica, []).append((condition, replica))
    full = {
        f"{condition}/{replica}": [(condition, replica)]
        for runs in owners.values()
        for condition, replica in runs
    }
    for name in names:
        runs = owners.get(name) or full.get(name) or []
        if not runs:
            raise PredictionsError(
                f"{where}: --failed {name}: no run has this name{nearest(name, [*owners])}"
            )
        if len(runs) > 1:
            which = ", ".join(condition for condition, _ in runs[:4])
            raise PredictionsError(
                f"{where}: --failed {name}: runs of {which} have this name; write "
                f"{runs[0][0]}/{name}"
            )
        (condition, replica) = runs[0]
        arms[condition] = replace(arms[condition], failed=arms[condition].failed | {replica})
    return replace(predictions, arms=arms)
