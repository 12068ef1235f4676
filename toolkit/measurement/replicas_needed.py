"""How many replicas? From a pilot's outcomes, its results.json, or a guess: what is known now, and
what more of them would show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import FtkError
from toolkit.measurement.analyse import OutcomeTable
from toolkit.measurement.run import DESIGN, outcome_table, read_run
from toolkit.record.population import replica_folder
from toolkit.record.results import ConditionDesign, Results, load_results
from toolkit.record.words import number, percent
from toolkit.statistics import MIN_RUNS
from toolkit.statistics.intervals import TwoWay
from toolkit.statistics.planning import power as pw
from toolkit.statistics.planning.tolerance import runs_for_tail
from toolkit.text import escape

USUAL_K = 8
RARE = (0.01, 0.001)
"""rates of runs that go astray, for which the plan names the replicas that show one"""


class PlanError(FtkError, ValueError):
    """Nothing to plan from; one line with the reason and the way out."""


@dataclass(frozen=True)
class Guess:
    """What to reckon with where there is no pilot. Shares, not percent; run_spread as in
    `power.guessed_spread`.
    """

    disagreement: float
    prompts: int
    replicas: int = 16
    run_spread: float = 0.2


@dataclass(frozen=True)
class Targets:
    """What should be seen: half-widths of the interval of D, and ratios by which a mitigation on
    groups of k changes D.
    """

    half_widths: tuple[float, ...] = (0.05, 0.02, 0.01)
    ratios: tuple[float, ...] = (0.8, 0.7, 0.5)
    k: int | None = None
    """default: the pilot's mitigations, each with its own; else 8"""
    power: float = 0.8


@dataclass(frozen=True)
class Goal:
    """A target, and what it takes: replicas (None: no number), the prompts that they must answer,
    and a word where that is more.
    """

    target: float
    replicas: int | None
    prompts: int
    note: str = ""


@dataclass(frozen=True)
class Comparison:
    """A mitigation on groups of k against single replicas. detectable: the ratio of D that the
    present replicas find, None = none does.

    assumed: the pilot has not enough groups of it, so its spread is an assumption
    (`power.expected_ratio_spread`).
    """

    label: str
    k: int
    assumed: bool
    detectable: float | None
    goals: tuple[Goal, ...]


@dataclass(frozen=True)
class ShiftPlan:
    """One shift: D and its half-width now, replicas for narrower ones, comparisons, and runs per
    arm for a ratio of variances of accuracy.

    prompts: independent prompts, or clusters. guessed: D's error, or how it divides between runs
    and prompts, is a guess.
    """

    shift: str
    prompts: int
    disagreement: float | None
    half_width: float | None
    guessed: bool
    goals: tuple[Goal, ...]
    comparisons: tuple[Comparison, ...]
    variance_goals: tuple[Goal, ...]
    note: str = ""


@dataclass(frozen=True)
class ConditionPlan:
    """One way of training. tail: upper limit of how often runs do what none of these replicas did.
    seconds, bytes: of one replica.
    """

    name: str
    replicas: int
    failed: int
    shifts: tuple[ShiftPlan, ...]
    tail: float | None
    sd_factors: tuple[float, float] | None
    seconds: float | None = None
    bytes: int | None = None


@dataclass(frozen=True)
class Plan:
    """How many replicas, groups and prompts are needed, for each condition."""

    source: str
    level: float
    power: float
    conditions: tuple[ConditionPlan, ...]
    rare: tuple[tuple[float, int], ...]
    """rate -> replicas that show at least one such run"""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def plan(
    pilot: Path | Results | None = None,
    *,
    guess: Guess | None = None,
    targets: Targets | None = None,
) -> Plan:
    """What a run (its folder), a results.json alone, results, or a guess says about how many
    replicas it takes.

    Raises PlanError where there is nothing to plan from, and what the readers of the files raise;
    ValueError for targets that cannot be.
    """
    targets = targets or Targets()
    if (pilot is None) == (guess is None):
        raise PlanError(
            "a plan starts from one of them: a run as a pilot, or a disagreement with "
            "--guess and --prompts"
        )
    if guess is not None:
        source, level, pilots = "a guess", 0.95, [_guessed(guess)]
    elif isinstance(pilot, Results):
        source, level, pilots = "results", pilot.level, _of_results(pilot)
    elif pilot is not None and (pilot / DESIGN).is_file():
        source, (level, pilots) = str(pilot), _of_run(pilot)
    else:
        assert pilot is not None
        file = pilot / "results.json" if pilot.is_dir() else pilot
        if not file.is_file():
            raise PlanError(
                f"{pilot}: neither a finished run nor a results.json; `ftk run RECIPE "
                f"--out {pilot}` makes one"
            )
        results = load_results(file)
        source, level, pilots = str(file), results.level, _of_results(results)
    rare = tuple((rate, runs_for_tail(rate, confidence=level)) for rate in RARE)
    return Plan(
        source,
        level,
        targets.power,
        tuple(_condition(pilot, level, targets) for pilot in pilots),
        rare,
    )


# -- what is known -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ShiftPilot:
    """spread: None where too few replicas answered. mitigations: label -> (k, parts of ln ratio,
    None without enough groups).
    """

    prompts: int
    spread: pw.Spread | None
    mitigations: Mapping[str, tuple[int, TwoWay | None]]
    kurtosis: float | None = None


@dataclass(frozen=True)
class _Pilot:
    name: str
    replicas: int
    failed: int
    shifts: Mapping[str, _ShiftPilot]
    seconds: float | None = None
    bytes: int | None = None


def _guessed(guess: Guess) -> _Pilot:
    if guess.replicas < 1:
        raise PlanError(f"a guess of {guess.replicas} replicas says nothing")
    spread = pw.guessed_spread(guess.disagreement, guess.prompts, run_spread=guess.run_spread)
    return _Pilot("guess", guess.replicas, 0, {"prompts": _ShiftPilot(guess.prompts, spread, {})})


def _of_results(results: Results) -> list[_Pilot]:
    pilots = []
    for condition in results.conditions:
        mitigations = {p.label: (p.k, None) for p in condition.procedures[1:]}
        cells = [(shift, condition.single.cell(shift)) for shift in results.shifts]
        shifts = {
            shift: _ShiftPilot(cell.n_prompts, pw.interval_spread(cell.disagreement), mitigations)
            for shift, cell in cells
            if cell and cell.disagreement
        }
        pilots.append(
            _Pilot(
                condition.name,
                condition.n_replicas,
                condition.n_failed,
                shifts,
                condition.single.price.seconds,
            )
        )
    return pilots


def _of_run(folder: Path) -> tuple[float, list[_Pilot]]:
    recipe, design = read_run(folder)
    table, _ = outcome_table(folder, recipe, design)
    pilots = []
    for condition in design.conditions:
        first = (
            replica_folder(folder / condition.name, condition.replicas[0])
            if condition.replicas
            else folder / condition.name
        )
        size = (
            sum(file.stat().st_size for file in first.rglob("*") if file.is_file())
            if condition.replicas
            else None
        )
        shifts = dict(_shifts(table, condition))
        pilots.append(
            _Pilot(
                condition.name,
                len(condition.replicas),
                condition.failed,
                shifts,
                condition.price.seconds,
                size or None,
            )
        )
    return recipe.level, pilots


def _shifts(table: OutcomeTable, design: ConditionDesign) -> Iterator[tuple[str, _ShiftPilot]]:
    single = table.arm(design.name, "replica", design.replicas)
    if single is None:
        return
    row_of = {replica: row for row, replica in enumerate(design.replicas)}
    mitigated = {m.label: table.arm(*m.outcomes(design.name)) for m in design.mitigations}
    for shift, index_P in table.shifts.items():
        cluster_P, here = table.cluster_P[index_P], single.on(index_P)
        mitigations: dict[str, tuple[int, TwoWay | None]] = {}
        for m in design.mitigations:
            arm, parts = mitigated[m.label], None
            if arm is not None and len(m.members) > 2:
                members = [[row_of[replica] for replica in group] for group in m.members]
                parts = pw.ratio_spread(
                    arm.on(index_P).answer_RP, here.answer_RP, members, cluster_P=cluster_P
                )
            mitigations[m.label] = m.k, parts
        marked_RP = here.correct_RP >= 0  # missing marks are -1 or nan
        right_R, marked_R = (
            np.where(marked_RP, here.correct_RP, 0).sum(axis=1),
            marked_RP.sum(axis=1),
        )
        kurtosis = (
            pw.kurtosis_of(right_R[marked_R > 0] / marked_R[marked_R > 0]) if here.marked else None
        )
        yield (
            shift,
            _ShiftPilot(
                len(np.unique(cluster_P)),
                pw.pilot_spread(here.answer_RP, cluster_P=cluster_P),
                mitigations,
                kurtosis,
            ),
        )


# -- what it takes -------------------------------------------------------------------------------


def _condition(pilot: _Pilot, level: float, targets: Targets) -> ConditionPlan:
    shifts = tuple(
        _shift_plan(name, shift, pilot.replicas, level, targets)
        for name, shift in pilot.shifts.items()
    )
    tail = pw.tail_bound(0, pilot.replicas, level=level) if pilot.replicas else None
    factors = pw.sd_factors(pilot.replicas, level=level) if pilot.replicas > 1 else None
    return ConditionPlan(
        pilot.name, pilot.replicas, pilot.failed, shifts, tail, factors, pilot.seconds, pilot.bytes
    )


def _shift_plan(
    name: str, pilot: _ShiftPilot, replicas: int, level: float, targets: Targets
) -> ShiftPlan:
    spread = pilot.spread
    normal = pw.NORMAL_KURTOSIS
    variances = tuple(
        Goal(
            ratio,
            max(
                MIN_RUNS,
                pw.runs_for_ratio(
                    ratio, power=targets.power, kurtosis=pilot.kurtosis or normal, level=level
                ),
            ),
            pilot.prompts,
        )
        for ratio in targets.ratios
    )
    if spread is None:
        note = (
            f"{replicas} replicas are too few to plan from: three or more show how much they matter"
        )
        return ShiftPlan(name, pilot.prompts, None, None, False, (), (), variances, note)
    sizes = [
        pw.replicas_for_half_width(spread, half, pilot.prompts, level=level)
        for half in targets.half_widths
    ]
    goals = tuple(
        Goal(half, *_plain(size)) for half, size in zip(targets.half_widths, sizes, strict=True)
    )
    half = (
        pw.interval_half_width(spread, replicas, pilot.prompts, level=level)
        if replicas > 1
        else None
    )
    if spread.value in (0.0, 1.0):
        return ShiftPlan(
            name, pilot.prompts, spread.value, half, spread.guessed, goals, (), variances
        )
    wanted = (
        {f"K = {targets.k}": (targets.k, None)}
        if targets.k
        else pilot.mitigations or {f"K = {USUAL_K}": (USUAL_K, None)}
    )
    comparisons = tuple(
        _comparison(label, k, parts, spread, replicas, level, targets)
        for label, (k, parts) in wanted.items()
    )
    return ShiftPlan(
        name, pilot.prompts, spread.value, half, spread.guessed, goals, comparisons, variances
    )


def _comparison(
    label: str,
    k: int,
    parts: TwoWay | None,
    spread: pw.Spread,
    replicas: int,
    level: float,
    targets: Targets,
) -> Comparison:
    error, power = parts or spread, targets.power
    sizes = [
        pw.runs_for_disagreement_ratio(error, ratio, k, power=power, level=level)
        for ratio in targets.ratios
    ]
    goals = tuple(
        Goal(ratio, *_plain(size)) for ratio, size in zip(targets.ratios, sizes, strict=True)
    )
    return Comparison(
        label,
        k,
        parts is None,
        pw.detectable_disagreement_ratio(error, replicas, k, power=power, level=level),
        goals,
    )


def _plain(size: pw.Size) -> tuple[int | None, int, str]:
    return size.replicas, size.prompts, size.note


# -- in words ------------------------------------------------------------------------------------


def plan_text(plan: Plan) -> str:
    """The plan for people: a few lines for every condition and shift."""
    lines = [
        f"plan from {plan.source}; {percent(plan.level)} intervals, power {percent(plan.power)}"
    ]
    for condition in plan.conditions:
        failed = f", {condition.failed} failed" if condition.failed else ""
        lines += ["", f"{condition.name}: {condition.replicas} replicas{failed}"]
        for shift in condition.shifts:
            lines += _shift_text(shift)
        lines += _condition_text(condition, plan)
    shifts = [
        shift
        for condition in plan.conditions
        for shift in condition.shifts
        if shift.disagreement not in (0.0, 1.0)
    ]
    if any(goal.prompts > shift.prompts for shift in shifts for goal in _goals(shift)):
        lines += [
            "",
            "on P prompts: more replicas do not help on the prompts of the pilot; it takes more",
        ]
    if any(c.assumed for shift in shifts for c in shift.comparisons):
        lines += [
            "*: the pilot has too few groups of it, or none; how its runs will differ is "
            "assumed, and the size is rough"
        ]
    return escape.lines(lines)


def _goals(shift: ShiftPlan) -> list[Goal]:
    return [*shift.goals, *(goal for c in shift.comparisons for goal in c.goals)]


def _shift_text(shift: ShiftPlan) -> list[str]:
    head = f" {shift.shift}, {shift.prompts:,} prompts or clusters: "
    if shift.disagreement is None:
        return [head + shift.note]
    if shift.disagreement in (0.0, 1.0):
        seen = "no two runs differed" if shift.disagreement == 0 else "all runs differed"
        sizes = "; ".join(f"{goal.prompts:,}" for goal in shift.goals)
        return [
            f"{head}{seen}, which says nothing of how many replicas it takes",
            f"   prompts for +- {_targets(shift.goals, 100)} points, if that stays so: {sizes}",
        ]
    now = "" if shift.half_width is None else f" +- {number(shift.half_width, '%')} points now"
    guessed = " (partly a guess)" if shift.guessed else ""
    lines = [f"{head}two runs differ on {number(shift.disagreement, '%')} %{now}{guessed}"]
    lines.append(
        f"   replicas for +- {_targets(shift.goals, 100)} points: "
        f"{_sizes(shift.goals, shift.prompts)}"
    )
    for c in shift.comparisons:
        finds = (
            f"finds a ratio of {number(c.detectable)} now" if c.detectable else "finds no ratio now"
        )
        name = c.label + "*" * c.assumed
        lines.append(
            f"   {name}: {finds}; replicas for a ratio of {_targets(c.goals)}: "
            f"{_sizes(c.goals, shift.prompts)}"
        )
    variances = shift.variance_goals
    return [
        *lines,
        f"   runs per arm for a ratio of variances of {_targets(variances)}: "
        f"{_sizes(variances, shift.prompts)}",
    ]


def _targets(goals: Sequence[Goal], unit: float = 1.0) -> str:
    return ", ".join(f"{unit * goal.target:g}" for goal in goals)


def _sizes(goals: Sequence[Goal], prompts: int) -> str:
    def size(goal: Goal) -> str:
        on_prompts = f" on {goal.prompts:,} prompts" if goal.prompts > prompts else ""
        return f"{goal.replicas:,}{on_prompts}" if goal.replicas else "no number"

    return "; ".join(map(size, goals))


def _condition_text(condition: ConditionPlan, plan: Plan) -> list[str]:
    rare = ", ".join(f"{replicas:,} show one of {percent(rate)}" for rate, replicas in plan.rare)
    lines = []
    if condition.tail is not None:
        sure = f"{percent(plan.level)} confidence"
        lines.append(
            f" what none of {condition.replicas} runs does, fewer than "
            f"{100 * condition.tail:.2g} % of runs do ({sure}); {rare}"
        )
    if condition.sd_factors:
        low, high = condition.sd_factors
        lines.append(
            f" a standard deviation between {condition.replicas} runs is known to a "
            f"factor of {number(low)} to {number(high)}"
        )
    price = []
    if condition.seconds is not None:
        price.append(
            f"{condition.seconds:,.1f} s of a core or device "
            f"({condition.seconds * 1000 / 3600:,.1f} hours a thousand)"
        )
    if condition.bytes is not None:
        price.append(
            f"{condition.bytes / 2**20:,.1f} MiB on disk "
            f"({condition.bytes * 1000 / 2**30:,.1f} GiB a thousand)"
        )
    return [*lines, *([" a replica takes " + " and ".join(price)] if price else [])]
