"""Which conditions of a run belong on one line: those that differ in one number, and all of them beside the first."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from toolkit.results import ConditionResult, Contrast, Results

LEAST = 3
"""levels of a number from which its conditions make a line"""


@dataclass(frozen=True)
class Sweep:
    """Conditions that differ in the setting `key` alone, by its ascending value."""

    key: str
    points: tuple[tuple[float, ConditionResult], ...]


def sweeps(results: Results) -> list[Sweep]:
    """Every number along which LEAST or more conditions of a run are ordered, all else being equal."""
    found = []
    for key in dict.fromkeys(key for condition in results.conditions for key, value in condition.settings.items() if _number(value)):
        lines: dict[frozenset, dict[float, ConditionResult]] = {}
        for condition in results.conditions:
            if _number(value := condition.settings.get(key)):
                lines.setdefault(_others(condition.settings, key), {}).setdefault(float(value), condition)
        found += [Sweep(key, tuple(sorted(line.items()))) for line in lines.values() if len(line) >= LEAST]
    return found


def controls(results: Results) -> list[tuple[Contrast, ConditionResult]]:
    """Every condition against the first on the last shift (far, where there is one), the steadiest first."""
    known = {condition.name: condition for condition in results.conditions}
    on_target = [c for c in results.contrasts if c.shift == results.shifts[-1] and c.ratio.value is not None and c.condition in known]
    return [(c, known[c.condition]) for c in sorted(on_target, key=lambda c: (c.ratio.value or 0.0, c.condition))]


def _number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _others(settings: Mapping[str, Any], key: str) -> frozenset:
    return frozenset((name, value) for name, value in settings.items() if name != key)
