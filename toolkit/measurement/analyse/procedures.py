"""Every procedure on every shift and category: which statistic answers which question."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.replica_metrics import Replicas, replica_metrics
from toolkit.measurement.analyse.table import Arm, Table
from toolkit.record.results import (
    Cell,
    ConditionDesign,
    ConditionResult,
    Metric,
    MitigationDesign,
    Price,
    Procedure,
    TeacherDesign,
    Thresholds,
    UnstablePrompt,
)

UNSTABLE = 10
"""Prompts shown of those on which the replicas disagree most."""


class Versus(NamedTuple):
    """What a mitigation is held against: the single replicas, the base, and which replicas each
    group was built from.
    """

    single: Arm
    base: Arm | None
    members: list[np.ndarray]


class Whole(NamedTuple):
    """All runs of a design in which some share levels of sources, and the level of each in
    these.
    """

    everyone: Arm
    levels: Mapping[str, np.ndarray]


def condition_result(
    table: Table, design: ConditionDesign, level: float, thresholds: Thresholds
) -> ConditionResult:
    """Measure the replicas of a condition, and every mitigation that was built from them."""
    replicas = list(design.replicas)
    single = table.arm(design.name, "replica", replicas)
    if single is None:
        raise ValueError(f"no outcomes of the replicas of condition {design.name!r}")
    base = table.arm("", "base", [0])
    whole = None
    if shared := st.shared_sources(design.sources, len(design.everyone or replicas)):
        everyone = table.arm(design.name, "replica", list(design.everyone or replicas))
        whole = Whole(everyone, shared) if everyone is not None else None
    measured = _measure(table, single, level, thresholds, base, whole=whole)
    if design.teacher:
        measured = _with_fidelity(table, single, design.teacher, measured, level)
    procedures = [
        Procedure("replica", "single replica", "replica", 1, len(replicas), design.price, measured)
    ]
    for mitigation, arm, members in mitigation_arms(table, design, single):
        versus = Versus(single, base, members)
        cells = _measure(table, arm, level, thresholds, base, versus)
        m = mitigation
        procedures.append(Procedure(m.label, m.title, m.kind, m.k, len(m.members), m.price, cells))
    failures = st.failure_rate(
        design.failed, len(design.everyone or replicas) + design.failed, level=level
    )
    unstable = _unstable(table, single, base)
    return ConditionResult(
        design.name, len(replicas), design.failed, failures, tuple(procedures), unstable
    )


def _with_fidelity(
    table: Table, students: Arm, teacher: TeacherDesign, cells: tuple[Cell, ...], level: float
) -> tuple[Cell, ...]:
    """How often a student answers as its own teacher, where the run let the teachers answer."""
    taught_by = table.arm(teacher.condition, teacher.label, list(teacher.groups))
    if taught_by is None:
        return cells
    same_RP = np.where(
        (students.answer_RP < 0) | (taught_by.answer_RP < 0),
        np.nan,
        students.answer_RP == taught_by.answer_RP,
    )

    def with_share(cell: Cell) -> Cell:
        if cell.category:
            return cell
        index_P = table.shifts[cell.shift]
        share = st.accuracy(same_RP[:, index_P], cluster_P=table.cluster_P[index_P], level=level)
        return replace(
            cell, metrics=(*cell.metrics, Metric("answers as its own teacher", "%", share))
        )

    return tuple(map(with_share, cells))


def mitigation_arms(
    table: Table, design: ConditionDesign, single: Arm
) -> list[tuple[MitigationDesign, Arm, list[np.ndarray]]]:
    """The mitigations that have outcomes (or too few replicas for any), with the rows of `single`
    that each group was built from.
    """
    row_of = {replica: row for row, replica in enumerate(design.replicas)}
    arms = []
    for mitigation in design.mitigations:
        arm = table.arm(*mitigation.outcomes(design.name))
        if arm is None and mitigation.members:
            continue
        arm = arm or single.on_runs(slice(0, 0))  # fewer replicas than K
        arms.append((mitigation, arm, _members(mitigation, row_of, design.name)))
    return arms


def _members(
    mitigation: MitigationDesign, row_of: Mapping[int, int], condition: str
) -> list[np.ndarray]:
    try:
        return [np.array([row_of[replica] for replica in group]) for group in mitigation.members]
    except KeyError as error:
        raise ValueError(
            f"{condition}: {mitigation.label} was built from replica {error}, which is "
            "not among those that succeeded"
        ) from None


def _measure(
    table: Table,
    arm: Arm,
    level: float,
    thresholds: Thresholds,
    base: Arm | None,
    versus: Versus | None = None,
    whole: Whole | None = None,
) -> tuple[Cell, ...]:
    places = {(shift, ""): index_P for shift, index_P in table.shifts.items()} | table.parts
    return tuple(
        _cell(table, arm, shift, category, index_P, level, thresholds, base, versus, whole)
        for (shift, category), index_P in places.items()
    )


def _cell(
    table: Table,
    arm: Arm,
    shift: str,
    category: str,
    index_P: np.ndarray,
    level: float,
    thresholds: Thresholds,
    base: Arm | None,
    versus: Versus | None,
    whole: Whole | None,
) -> Cell:
    here = arm.on(index_P)
    answer_RP, correct_RP = here.answer_RP, here.correct_RP
    options = {"cluster_P": table.cluster_P[index_P], "level": level}
    if (
        whole is not None
    ):  # fresh pairs of all runs say more than the runs that share nothing do alone
        options["levels"] = whole.levels
        answer_RP, correct_RP = (
            whole.everyone.on(index_P).answer_RP,
            whole.everyone.on(index_P).correct_RP,
        )
    if len(answer_RP) < 2:  # one run shows nothing of how much runs differ
        too_few_runs = st.without_interval(
            None, level, len(answer_RP), len(index_P), st.MIN_GROUPS, "fewer than two runs"
        )
        nothing = too_few_runs if versus else None
        marks = (too_few_runs, nothing) if here.marked else (None, None)
        kept = None
        if (
            versus is None and not category and len(answer_RP)
        ):  # what this one run is like can be told all the same
            marks = (_of_one(correct_RP[0], options) if here.marked else None, None)
            kept = (
                _of_one(_same(answer_RP[0], base.answer_RP[0, index_P]), options) if base else None
            )
        return Cell(
            shift,
            category,
            len(index_P),
            too_few_runs,
            nothing,
            nothing,
            *marks,
            effect_size=nothing,
            zone=zone(too_few_runs, (0, 1)),
            as_base=kept,
        )
    figures: dict = {"disagreement": st.disagreement(answer_RP, **options)}
    decides = st.disagreement_for_verdict(figures["disagreement"], here.answer_RP)
    figures["zone"] = zone(decides, thresholds.of(category))
    if here.marked:
        figures["accuracy"] = st.accuracy(correct_RP, **options)
    options.pop("levels", None)
    answer_RP, correct_RP = here.answer_RP, here.correct_RP
    if versus:
        single = versus.single.on(index_P)
        pair = answer_RP, single.answer_RP
        figures["ratio"] = st.disagreement_ratio(*pair, versus.members, **options)
        figures["disagreement_change"] = st.disagreement_difference(
            *pair, versus.members, **options
        )
        if here.marked and not category:
            figures["accuracy_change"] = st.accuracy_change(
                correct_RP, single.correct_RP, versus.members, **options
            )
        if base and not category:
            figures["effect_size"] = st.effect_size(
                *pair, base.answer_RP[0, index_P], versus.members, **options
            )
            if here.marked and base.on(index_P).marked:
                marks = correct_RP, single.correct_RP, base.correct_RP[0, index_P]
                figures["gain_kept"] = st.accuracy_effect_size(*marks, versus.members, **options)
    elif not category and len(answer_RP) > 1:
        figures["metrics"], figures["survival"] = replica_metrics(
            Replicas(
                here,
                base.on(index_P) if base else None,
                table.texts,
                table.scored,
                table.cluster_P[index_P],
                level,
            )
        )
    if base and not category:
        figures["as_base"] = as_base(answer_RP, base.answer_RP[0, index_P], options)
    if here.marked and not category and len(answer_RP) > 1:
        figures["accuracy_spread"] = _spread(here, whole, index_P, options)
        figures["scores"] = run_accuracies(correct_RP)
    return Cell(shift, category, len(index_P), **figures)


def _spread(
    here: Arm, whole: Whole | None, index_P: np.ndarray, options: Mapping
) -> st.AccuracySpread:
    """Where runs share levels, the SD of a fresh run is the root of all variance components
    together.
    """
    spread = st.accuracy_spread(here.correct_RP, **options)
    if whole is None:
        return spread
    score_R = np.array(
        [np.nan if s is None else s for s in run_accuracies(whole.everyone.on(index_P).correct_RP)]
    )
    return replace(
        spread, sd=st.root(st.crossed(score_R, whole.levels, level=options["level"]).total)
    )


def as_base(answer_RP: np.ndarray, base_P: np.ndarray, options: dict) -> st.Estimate:
    """Share of the prompts on which a run gives the base's answer."""
    return st.accuracy(_same(answer_RP, base_P), **options)


def _same(answer_RP: np.ndarray, base_P: np.ndarray) -> np.ndarray:
    same_RP = (answer_RP == base_P).astype(np.int8)
    same_RP[(answer_RP < 0) | (base_P < 0)] = st.MISSING
    return same_RP


def _of_one(mark_P: np.ndarray, options: Mapping) -> st.Estimate:
    """Of one run, whose interval is over prompts: what the next run would be like is not known."""
    estimate = st.model_accuracy(mark_P, cluster_P=options["cluster_P"], level=options["level"])
    return replace(
        estimate,
        conclusive=False,
        needed=st.MIN_GROUPS,
        note="of this one run; how much runs differ is not known",
    )


def run_accuracies(correct_RP: np.ndarray) -> tuple[float | None, ...]:
    """Share of its marked prompts that each run answers correctly; None for a run without a
    mark.
    """
    accuracies = []
    for row in correct_RP:
        marks = row[np.isfinite(row) & (row >= 0)]
        accuracies.append(float(marks.mean()) if len(marks) else None)
    return tuple(accuracies)


def zone(disagreement: st.Estimate, thresholds: tuple[float, float]) -> str:
    """What an interval shows against (acceptable, critical): a claim only where the whole interval
    supports it.

    disagreement: its interval allows for kinds of runs, too (`st.disagreement_for_verdict`).
    """
    acceptable, critical = thresholds
    low, high = disagreement.low, disagreement.high
    if (
        not disagreement.conclusive
        or low is None
        or high is None
        or (low <= acceptable and high > critical)
    ):
        return "not enough data"
    return "acceptable" if high <= acceptable else "critical" if low > critical else "watch"


def base_procedure(table: Table, level: float) -> Procedure | None:
    """The base is one fixed model: it has an accuracy, and no run-to-run anything."""
    arm = table.arm("", "base", [0])
    if arm is None:
        return None
    cells = []
    for (shift, category), index_P in {
        **{(shift, ""): index_P for shift, index_P in table.shifts.items()},
        **table.parts,
    }.items():
        accuracy = (
            st.model_accuracy(
                arm.correct_RP[0, index_P], cluster_P=table.cluster_P[index_P], level=level
            )
            if arm.on(index_P).marked
            else None
        )
        scores = (accuracy.value,) if accuracy else ()
        cells.append(Cell(shift, category, len(index_P), accuracy=accuracy, scores=scores))
    return Procedure("base", "base model", "base", 1, 1, Price(training_runs=0), tuple(cells))


def _unstable(table: Table, single: Arm, base: Arm | None) -> tuple[UnstablePrompt, ...]:
    if len(single.answer_RP) < 2:
        return ()
    d_P = np.nan_to_num(st.prompt_disagreement(single.answer_RP))
    worst = [i for i in np.argsort(-d_P, kind="stable")[:UNSTABLE] if d_P[i] > 0]
    prompts = []
    for i in worst:
        suite, prompt = table.prompts[i]
        codes, counts = np.unique(
            single.answer_RP[single.answer_RP[:, i] >= 0, i], return_counts=True
        )
        answers = sorted(
            ((table.answers[c], int(n)) for c, n in zip(codes, counts, strict=True)),
            key=lambda a: (-a[1], a[0]),
        )
        base_code = base.answer_RP[0, i] if base else st.MISSING
        says = table.answers[base_code] if base_code >= 0 else None
        about = (
            suite,
            prompt.id,
            in_words(prompt.prompt),
            prompt.category,
            prompt.shift,
            prompt.reference,
        )
        prompts.append(UnstablePrompt(*about, says, float(d_P[i]), tuple(answers)))
    return tuple(prompts)


def in_words(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A conversation as one line per turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)
