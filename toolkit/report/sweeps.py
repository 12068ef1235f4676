"""Which conditions of a run belong on one line: those that differ in one number, and all of them
beside the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from toolkit.record.results import ConditionResult, Price, Procedure, Results
from toolkit.record.words import mitigation_of, procedure_name
from toolkit.statistics import Estimate

LEAST = 3
"""levels of a number from which its conditions make a line"""


@dataclass(frozen=True)
class Sweep:
    """Conditions that differ in the setting `key` alone, by its ascending value."""

    key: str
    points: tuple[tuple[float, ConditionResult], ...]


def sweeps(results: Results) -> list[Sweep]:
    """Every number along which LEAST or more conditions of a run are ordered, all else being
    equal.
    """
    orders = []
    for key in dict.fromkeys(
        key
        for condition in results.conditions
        for key, value in condition.settings.items()
        if _number(value)
    ):
        lines: dict[frozenset, dict[float, ConditionResult]] = {}
        for condition in results.conditions:
            if _number(value := condition.settings.get(key)):
                lines.setdefault(_others(condition.settings, key), {}).setdefault(
                    float(value), condition
                )
        orders += [
            Sweep(key, tuple(sorted(line.items()))) for line in lines.values() if len(line) >= LEAST
        ]
    return orders


@dataclass(frozen=True)
class Control:
    """One remedy held against single replicas of the first condition: ratio of disagreement,
    independent runs, price of one of them, change of accuracy.
    """

    name: str
    ratio: Estimate
    runs: int
    price: Price
    accuracy_change: Estimate | None = None


def controls(results: Results) -> list[Control]:
    """Every other condition, and what is made of the first one's replicas or of theirs.

    On the last shift (far, if any), the steadiest first.
    """
    shift, first = results.shifts[-1], results.conditions[0]
    price_of = {condition.name: condition.single.price for condition in results.conditions}
    price_of |= {
        mitigation_of(p.title, p.k, condition.name): p.price
        for condition in results.conditions
        for p in condition.procedures[1:]
    }
    remedies = [
        Control(c.condition, c.ratio, c.ratio.n_replicas, price_of[c.condition], c.accuracy_change)
        for c in (*results.contrasts, *results.mitigated)
        if c.shift == shift and c.baseline == first.name and c.condition in price_of
    ]
    for procedure in first.procedures[1:]:
        cell = procedure.cell(shift)
        if cell and cell.ratio:
            name = procedure_name(procedure)
            remedies.append(
                Control(name, cell.ratio, procedure.n_runs, procedure.price, cell.accuracy_change)
            )
    return sorted(
        (remedy for remedy in remedies if remedy.ratio.value is not None),
        key=lambda remedy: (remedy.ratio.value or 0.0, remedy.name),
    )


def joined(several: Sequence[Results]) -> Results:
    """Results of recipes that begin with the same condition, as one: its procedures, the other
    conditions, and their contrasts with it.

    Seconds are those of the first one's machine: of any other they are scaled so that a run of the
    first condition takes the same. Raises ValueError where the first conditions or the prompts are
    not the same.
    """
    first = several[0]
    several = [first, *(_at_the_pace_of(first, other) for other in several[1:])]
    for other in several[1:]:
        ours, theirs = first.conditions[0], other.conditions[0]
        trained = [
            {k: v for k, v in condition.settings.items() if k not in ("snapshots", "averages")}
            for condition in (ours, theirs)
        ]
        if (ours.name, trained[0], first.suites) != (theirs.name, trained[1], other.suites):
            raise ValueError(
                f"results that begin with {theirs.name!r} on other prompts, or trained "
                "otherwise, cannot be joined"
            )
    procedures = {
        procedure.label: procedure
        for results in several
        for procedure in results.conditions[0].procedures
    }
    conditions = {
        condition.name: condition for results in several for condition in results.conditions[1:]
    }
    return replace(
        first,
        conditions=(
            replace(first.conditions[0], procedures=tuple(procedures.values())),
            *conditions.values(),
        ),
        contrasts=tuple(
            {
                (c.condition, c.baseline, c.shift): c
                for results in several
                for c in results.contrasts
            }.values()
        ),
        mitigated=tuple(
            {
                (c.condition, c.baseline, c.shift): c
                for results in several
                for c in results.mitigated
            }.values()
        ),
    )


def _at_the_pace_of(first: Results, other: Results) -> Results:
    ours, theirs = (results.conditions[0].single.price.seconds for results in (first, other))
    if not ours or not theirs:
        return other

    def scaled(procedure: Procedure) -> Procedure:
        seconds = procedure.price.seconds
        return replace(
            procedure, price=replace(procedure.price, seconds=seconds and seconds * ours / theirs)
        )

    conditions = (
        replace(condition, procedures=tuple(map(scaled, condition.procedures)))
        for condition in other.conditions
    )
    return replace(other, conditions=tuple(conditions))


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _others(settings: Mapping[str, Any], key: str) -> frozenset:
    return frozenset((name, value) for name, value in settings.items() if name != key)
