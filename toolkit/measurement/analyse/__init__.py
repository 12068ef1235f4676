"""From what runs answered to results: which statistic answers which question, and what may be said
about it in words.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from toolkit.measurement.analyse.acceptance import CriterionError, judge
from toolkit.measurement.analyse.contrasts import (
    adjusted,
    by_prompt,
    contrasts,
    mitigated,
    same_compute,
    scaling,
)
from toolkit.measurement.analyse.crossed_designs import crossing, shared_note, sources
from toolkit.measurement.analyse.distances import distances, in_notes
from toolkit.measurement.analyse.procedures import (
    base_procedure,
    condition_result,
    run_accuracies,
    zone,
)
from toolkit.measurement.analyse.suspects import suspects
from toolkit.measurement.analyse.table import (
    CATEGORIES,
    Arm,
    OutcomeTable,
    PredictionTable,
    PromptLike,
    Table,
)
from toolkit.measurement.analyse.trades import trade
from toolkit.measurement.analyse.verdict import verdict
from toolkit.recipe import Criterion
from toolkit.record.results import (
    UNEVEN,
    About,
    ConditionDesign,
    Results,
    SuiteCount,
    Thresholds,
)
from toolkit.record.words import number

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "Arm",
    "OutcomeTable",
    "PredictionTable",
    "PromptLike",
    "Table",
    "analyse",
    "analyse_table",
    "run_accuracies",
    "zone",
]


def analyse(
    outcomes: "pyarrow.Table",
    prompts: Mapping[str, Sequence[PromptLike]],
    conditions: Sequence[ConditionDesign],
    **options,
) -> Results:
    """Measure a table of outcomes (see `OutcomeTable`); options as in `analyse_table`."""
    return analyse_table(OutcomeTable(outcomes, prompts), conditions, **options)


def analyse_table(
    table: Table,
    conditions: Sequence[ConditionDesign],
    *,
    level: float = 0.95,
    about: About | None = None,
    thresholds: Thresholds | None = None,
    criteria: Sequence[Criterion] = (),
    paired: bool = False,
    notes: Sequence[str] = (),
) -> Results:
    """Measure every procedure on every shift and category, compare the conditions with the first,
    judge the criteria.

    paired: replica j of every condition shares its seeds with replica j of the others. Raises
    ValueError for a design that the outcomes contradict, or a criterion or threshold about prompts
    that are not there.
    """
    thresholds = thresholds or Thresholds()
    categories = dict.fromkeys(prompt.category for _, prompt in table.prompts)
    if unknown := next(
        (name for name in thresholds.categories or {} if name not in categories), None
    ):
        raise CriterionError(
            f"thresholds.categories: no prompt has the category {unknown!r}; there are: "
            f"{', '.join(sorted(categories))}"
        )
    conditions = [design.independent() for design in conditions]
    results = [condition_result(table, design, level, thresholds) for design in conditions]
    results = [
        replace(
            draft,
            scaling=scaling(table, design, level, thresholds),
            sources=sources(table, design, level),
            trade=trade(table, design, level),
            runs=table.run_names(design),
            failed=table.failed_names(design),
        )
        for draft, design in zip(adjusted(results), conditions, strict=True)
    ]
    unmeasured = [
        f"{design.name}: no outcomes of {m.label}"
        for design, result in zip(conditions, results, strict=True)
        for m in design.mitigations
        if m.label not in {p.label for p in result.procedures}
    ]
    if table.unlisted:
        unmeasured.append(
            f"{CATEGORIES} categories have figures of their own, those with the most "
            f"prompts; {table.unlisted:,} more do not"
        )
    if table.repeated:
        unmeasured.append(
            f"{table.repeated:,} of {len(table.prompts):,} prompts repeat the text of one before: "
            "prompts of one text are one cluster, no independent sample"
        )
    uncrossed = [
        f"{design.name}: {note}" for design in conditions if (note := crossing(design.factors).note)
    ]
    apart = distances(table, conditions, level)
    draft = Results(
        about=about or About(),
        level=level,
        suites=_counts(table),
        base=base_procedure(table, level),
        conditions=tuple(results),
        verdict=(),
        notes=(
            *notes,
            *filter(None, map(shared_note, conditions)),
            *uncrossed,
            *unmeasured,
            *_missing(table, conditions),
            *in_notes(apart),
        ),
        thresholds=thresholds,
        contrasts=contrasts(table, conditions, level, paired),
        mitigated=mitigated(table, conditions, level, paired),
        judgements=judge(table, conditions, criteria),
        by_prompt=by_prompt(table, conditions, level, paired),
        same_compute=same_compute(table, conditions, level),
        distances=apart,
        suspects=tuple(
            suspect for design in conditions for suspect in suspects(table, design, level)
        ),
    )
    return replace(draft, verdict=verdict(draft))


def _missing(table: Table, designs: Sequence[ConditionDesign]) -> Iterator[str]:
    """Of how accurate the runs of a condition would be, were the answers wrong that they lack."""
    for design in designs:
        arm = table.arm(design.name, "replica", list(design.replicas))
        if arm is None:
            continue
        for shift, index_P in table.shifts.items():
            here = arm.on(index_P)
            asked_P = (here.answer_RP >= 0).any(axis=0)
            mark_RP, lost_RP = here.correct_RP[:, asked_P], here.answer_RP[:, asked_P] < 0
            mark_RP, lost_RP = (x[:, (mark_RP >= 0).any(axis=0)] for x in (mark_RP, lost_RP))
            if not lost_RP.any() or lost_RP.mean() < UNEVEN:
                continue
            right = int((mark_RP == 1).sum())
            yield (
                f"{design.name}: {number(float(lost_RP.mean()), '%')} % of the answers to {shift} "
                f"prompts are missing; were they all wrong, {number(right / lost_RP.size, '%')} % "
                f"would be right, not {number(right / int((mark_RP >= 0).sum()), '%')} %"
            )


def _counts(table: Table) -> tuple[SuiteCount, ...]:
    counts: dict[tuple[str, str, str], int] = {}
    for suite, prompt in table.prompts:
        place = suite, prompt.shift, prompt.category
        counts[place] = counts.get(place, 0) + 1
    return tuple(SuiteCount(*place, n) for place, n in counts.items())
