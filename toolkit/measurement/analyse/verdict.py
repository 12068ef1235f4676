"""The results in a few sentences: how different runs are, the mitigation that the data support
best, and what to bear in mind.

What is won never stands alone: what is lost with it (accuracy, the fine-tuning itself) is in the
same sentence. Whether something is lost is decided by the limits of its interval, never by its
value.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from toolkit import statistics as st
from toolkit.record.results import (
    Cell,
    ConditionResult,
    Contrast,
    Procedure,
    Results,
    Suspects,
)
from toolkit.record.words import (
    caveats,
    change_of_accuracy,
    contrast_return,
    estimate_in_words,
    mitigation_of,
    number,
    percent,
    replicas_in_words,
    share_in_words,
    warnings,
)

ALIKE = 0.9
"""share of prompts that two conditions answered, by which their figures are of the same prompts"""
SHOWN = 5
"""procedures that a sentence names"""
RARE = 0.01
"""share of trainings below which a kind of run that may be missing is not worth a sentence"""
IN_WORDS: Mapping[str, tuple[str, str]] = {
    "disagreement": ("two runs differ on", "how often they differ from each of these"),
    "accuracy": ("accuracy is", "accuracy"),
    "score": ("the mean score is", "their mean score"),
}
"""of what runs stand off in: its figure, and it"""


def verdict(results: Results) -> tuple[str, ...]:
    """Three sentences: how different runs are, the mitigation that the data support best, and what
    to bear in mind.

    Then how accurate runs are, where no mitigation's sentence tells it, or the base is better; and
    one for each group of runs that stand far off the others.
    """
    best = _best(results)
    return (
        _instability(results),
        best,
        _caveats(results, best),
        *_accuracy(results),
        *suspicions(results),
    )


def _instability(results: Results) -> str:
    ends = list(dict.fromkeys([results.shifts[0], results.shifts[-1]]))
    parts = []
    for condition in results.conditions:
        cells = [(shift, condition.single.cell(shift)) for shift in ends]
        shares = " and ".join(
            f"on {share_in_words(cell.disagreement)} of {shift} prompts"
            for shift, cell in cells
            if cell
        )
        parts.append(f"with {condition.name} {shares} ({replicas_in_words(condition)})")
    parts += [
        f"{c.condition} and {c.baseline} answered different {c.shift} prompts, "
        f"{c.gaps.common:,} of {c.gaps.n_prompts:,} in common, so these figures do not compare"
        for c in results.contrasts
        if c.shift in ends and c.gaps and c.gaps.common < ALIKE * c.gaps.n_prompts
    ]
    return (
        f"Two independent runs give different answers: {'; '.join(parts)}; "
        f"{percent(results.level)} intervals in brackets."
    )


def _accuracy(results: Results) -> Iterator[str]:
    """Of conditions without mitigations, and of those that are shown to be worse than the base,
    which is said first.
    """
    sentences = []
    for condition in results.conditions:
        cells = [
            cell
            for shift in results.shifts
            if (cell := condition.single.cell(shift)) and cell.accuracy
        ]
        lost = warnings(condition.single, condition.single, results.shifts)
        if not cells or not (lost or len(condition.procedures) == 1):
            continue
        shares = ", ".join(f"on {cell.shift} prompts {_accurate(cell)}" for cell in cells)
        sentences.append(
            (
                not lost,
                f"{condition.name} {'is less accurate than the base: ' * bool(lost)}{shares}",
            )
        )
    if sentences:
        yield (
            "Right answers: "
            f"{'; '.join(_shortened([text for _, text in sorted(sentences, key=itemgetter(0))]))}."
        )


def _accurate(cell: Cell) -> str:
    share = f"{number(cell.accuracy.value if cell.accuracy else None, '%')} %"
    if cell.gained is None or cell.gained.value is None:
        return share
    return f"{share}, {estimate_in_words(cell.gained, '%', signed=True)} points against the base"


class _Candidate(NamedTuple):
    condition: ConditionResult
    procedure: Procedure
    cell: Cell
    ratio: st.Estimate

    @property
    def name(self) -> str:
        return mitigation_of(self.procedure.title, self.procedure.k, self.condition.name)

    @property
    def resolved(self) -> bool:
        return self.ratio.conclusive and self.ratio.high is not None and self.ratio.high < 1

    def lost(self, shifts: Sequence[str]) -> list[str]:
        """What it is shown to lose, on any shift."""
        return warnings(self.procedure, self.condition.single, shifts)

    def keeps(self, shifts: Sequence[str]) -> bool:
        """Shown, by the lower limit: it still answers other than the base as often as a replica
        does, or nearly so.
        """
        cells = [self.procedure.cell(shift) for shift in shifts]
        return all(
            cell is not None
            and cell.effect_size is not None
            and st.collapsed(cell.effect_size) == "kept"
            for cell in cells
        )

    def gain_open(self, shifts: Sequence[str]) -> bool:
        """Whether it may have given back accuracy that was gained, as far as these runs tell."""
        gains = [cell.gain_kept for shift in shifts if (cell := self.procedure.cell(shift))]
        return any(gain is not None and st.collapsed(gain) != "kept" for gain in gains)


def _less_stable(cell: Cell) -> bool:
    """By more than what counts as no change in points; a ratio alone exaggerates where little is at
    stake.
    """
    change = cell.disagreement_change
    return bool(
        change
        and change.conclusive
        and change.value
        and change.low
        and change.low > 0
        and change.value > st.SAME_SHARE
    )


def _best(results: Results) -> str:
    home, target = results.shifts[0], results.shifts[-1]
    candidates = [
        _Candidate(condition, procedure, cell, cell.ratio)
        for condition in results.conditions
        for procedure in condition.procedures
        if (cell := procedure.cell(target)) and cell.ratio
    ]
    if not candidates:
        return _against_baseline(results) if results.contrasts else "No mitigation was measured."
    resolved = [c for c in candidates if c.resolved]
    ends = list(dict.fromkeys([home, target]))
    sound = [c for c in resolved if c.keeps(ends) and not c.lost(results.shifts)]
    if sound:
        return _praise(
            min(sound, key=lambda c: (c.gain_open(ends), c.ratio.high, c.procedure.label)),
            home,
            target,
        )
    if resolved:
        return (
            f"{len(resolved)} of {len(candidates)} mitigations make answers on {target} "
            "prompts conclusively more stable, but none is "
            f"recommended: {'; '.join(_reservations(resolved, results))}."
        )
    sizes = sorted({c.condition.n_replicas for c in candidates})
    text = (
        f"No mitigation is shown to make answers on {target} prompts more stable with "
        f"{' or '.join(map(str, sizes))} replicas"
    )
    open_ = [c for c in candidates if not c.ratio.conclusive and not c.lost(results.shifts)]
    hopeful = [c for c in open_ if c.ratio.needed and (c.ratio.value is None or c.ratio.value < 1)]
    if not hopeful:
        return f"{text}, and more replicas alone would not settle it."
    nearest = min(hopeful, key=lambda c: ((c.ratio.needed or 0) * c.procedure.k, c.procedure.label))
    return (
        f"{text}; about {(nearest.ratio.needed or 0) * nearest.procedure.k:,} replicas would "
        f"be needed for the nearest, {nearest.name}."
    )


def _reservations(candidates: Sequence[_Candidate], results: Results) -> list[str]:
    """Why none of these is recommended, the most stable first."""
    has_base = results.base is not None
    reservations = []
    for c in sorted(candidates, key=lambda c: (c.ratio.high, c.procedure.label)):
        lost = c.lost(results.shifts)
        open_ = "whether it keeps the fine-tuning cannot be told" + (
            "" if has_base else " without the base's answers"
        )
        reservations.append(f"{c.name}: {', and '.join(lost) or open_}")
    return _shortened(reservations)


def _against_baseline(results: Results) -> str:
    """Conditions instead of mitigations: which of them differ from the first in how much their runs
    differ, and what that costs.
    """
    target, baseline = results.shifts[-1], results.contrasts[0].baseline
    contrasts = [contrast for contrast in results.contrasts if contrast.shift == target]
    several = ", one by one" * (len(contrasts) > 1)
    sentences = [
        f"{c.condition} {estimate_in_words(c.ratio)}, {'; '.join(_with_losses(c, results))}"
        for c in contrasts
    ]
    return (
        f"Disagreement on {target} prompts relative to {baseline}{several}: "
        f"{'. '.join(sentences)}. Below 1 is more stable."
    )


def _with_losses(contrast: Contrast, results: Results) -> list[str]:
    """What stands beside a ratio: the change of accuracy on the same shift, what is lost on the
    others, and a return to the base.
    """
    others = [
        c
        for c in results.contrasts
        if (c.condition, c.baseline) == (contrast.condition, contrast.baseline)
        and c is not contrast
    ]
    remarks = [("but " if contrast.loses else "") + change_of_accuracy(contrast.accuracy_change)]
    remarks += [
        f"on {c.shift} prompts {change_of_accuracy(c.accuracy_change)}" for c in others if c.loses
    ]
    remarks += [
        f"the mean score moves by {estimate_in_words(c.score_change, signed=True)}"
        + f" on {c.shift} prompts" * (c is not contrast)
        for c in (contrast, *others)
        if c.score_change is not None and results.has_scores
    ]
    for c in (contrast, *others):
        if c.returned:
            remarks.append(contrast_return(c))
    for c in (contrast, *others):
        remarks += caveats(c)
    return remarks


def _praise(best: _Candidate, home: str, target: str) -> str:
    procedure, single = best.procedure, best.condition.single
    falls, kept = [], []
    for shift in dict.fromkeys([target, home]):
        cell, before = procedure.cell(shift), single.cell(shift)
        if cell is None or cell.ratio is None or before is None:
            continue
        falls.append(
            f"on {shift} prompts from {_percent(before)} to {_percent(cell)} (ratio "
            f"{estimate_in_words(cell.ratio, k=procedure.k)})"
        )
        kept.append(f"{estimate_in_words(cell.kept, k=procedure.k)} on {shift} prompts")
    price = procedure.price
    streams = (
        "one model answers"
        if price.inference_streams == 1
        else f"{price.inference_streams:.3g} models answer"
    )
    return (
        f"The best-supported mitigation is {best.name}: disagreement falls "
        f"{' and '.join(falls)}; on {target} prompts "
        f"{change_of_accuracy(best.cell.accuracy_change)}; of the fine-tuning it keeps "
        f"{' and '.join(kept)}; "
        f"the price is {price.training_runs} training "
        f"run{'s' * (price.training_runs != 1)} per model, and {streams} each prompt."
    )


def _percent(cell: Cell) -> str:
    return f"{number(cell.disagreement.value if cell.disagreement else None, '%')} %"


def _caveats(results: Results, sentence: str) -> str:
    """told: the sentence before; what is lost is not said twice."""
    parts = [_failed(results), *_unseen(results)]
    procedures = [
        (c, p)
        for c in results.conditions
        for p in c.procedures
        if p.kind not in ("base", "replica")
    ]
    returned = [(c, p) for c, p in procedures if any(cell.returned for cell in p.cells)]
    if returned:
        parts.append(
            "these fall back towards the base model, so their stability is no gain: "
            f"{_names(returned)}"
        )
        lost = {
            mitigation_of(p.title, p.k, c.name): ", and ".join(
                warnings(p, c.single, results.shifts)
            )
            for c, p in returned
        }
        parts += _shortened(
            [
                f"{name}: {remark}"
                for name, remark in lost.items()
                if f"{name}: {remark}" not in sentence
            ]
        )
    gave_back = [
        (c, p)
        for c, p in procedures
        if any(cell.collapsed for cell in p.cells) and (c, p) not in returned
    ]
    if gave_back:
        parts.append(f"these give back accuracy that the fine-tuning gained: {_names(gave_back)}")
    for shift in results.shifts:
        if losing := [(c, p) for c, p in procedures if (cell := p.cell(shift)) and cell.loses]:
            parts.append(f"on {shift} prompts these lose accuracy: {_names(losing)}")
    worse = [
        (c, p) for c, p in procedures if (cell := p.cell(results.shifts[-1])) and _less_stable(cell)
    ]
    if worse:
        parts.append(
            f"on {results.shifts[-1]} prompts these are conclusively less stable than a "
            f"single replica: {_names(worse)}"
        )
    ratios = [
        cell.ratio for _, p in procedures for cell in p.cells if not cell.category and cell.ratio
    ]
    open_ = sum(not r.conclusive for r in ratios)
    if ratios:
        parts.append(f"inconclusive comparisons with single replicas: {open_} of {len(ratios)}")
    if len(procedures) > 1:
        parts.append(
            f"intervals hold one by one, and the best of {len(procedures)} mitigations "
            "tends to look better than it is"
        )
    return f"Bear in mind: {'; '.join(parts)}."


def _unseen(results: Results) -> list[str]:
    """No figure speaks of a kind of run that none of the runs is: how rare one must be for that."""
    runs = [c.n_trained - c.n_failed for c in results.conditions]
    fewest = min((n for n in runs if n > 1), default=0)
    share = st.zero_event_bound(fewest) if fewest else 0.0
    if share < RARE:
        return []
    return [
        f"{fewest} runs may all lack a kind of run that turns up in as many as "
        f"{number(share, '%')} % of trainings, and no figure counts those"
    ]


def _failed(results: Results) -> str:
    """Never that none failed straight after some were noticed that look like it."""
    runs = sum(c.n_trained for c in results.conditions)
    failed = sum(c.n_failed for c in results.conditions)
    outlying = len({(s.condition, run) for s in results.suspects for run in s.runs})
    recorded = f"{failed} of {runs} training runs" if failed else f"none of {runs} training runs"
    if outlying:
        return (
            f"{recorded} {'are' if failed != 1 else 'is'} recorded as failed, but {outlying} more "
            "may have"
        )
    return f"{failed} of {runs} training runs failed" + (
        ", and failed runs are in no other figure" if failed else ""
    )


def suspicions(results: Results) -> list[str]:
    """A sentence for the runs of each condition that stand far off its others: which, in what, what
    they weigh, and what to do.
    """
    grouped: dict[tuple[str, tuple[str, ...]], list[Suspects]] = {}
    for suspect in results.suspects:
        grouped.setdefault((suspect.condition, suspect.runs), []).append(suspect)
    return [_suspicion(results, *key, suspects) for key, suspects in grouped.items()]


def _suspicion(
    results: Results, condition: str, runs: tuple[str, ...], suspects: Sequence[Suspects]
) -> str:
    single = len(runs) == 1
    shown = ", ".join(runs[:SHOWN]) + (
        f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
    )
    it, them, stand = ("it", "it", "stands") if single else ("they", "them", "stand")
    figures = [
        f"on {s.shift} prompts {IN_WORDS[s.what][0]} {_figure(s.figure_with, s.what)} "
        f"with {them} and "
        f"{_figure(s.figure_without, s.what)} without"
        for s in suspects
    ]
    whats = dict.fromkeys(IN_WORDS[what][1] for s in suspects for what in s.seen_in or (s.what,))
    return (
        f"{'Run' if single else 'Runs'} {shown} of {condition} {stand} far off the others in "
        f"{' and '.join(whats)}: {'; '.join(figures)}. "
        f"If {it} failed, {_leave_out(results, condition, runs)}; if not, keep {them}."
    )


def _figure(estimate: st.Estimate, what: str) -> str:
    return estimate_in_words(estimate, "e") if what == "score" else share_in_words(estimate)


def _leave_out(results: Results, condition: str, runs: Sequence[str]) -> str:
    """How runs are marked as failed: predictions by name; replicas that were trained, by training
    them again or leaving them out.
    """
    if results.about.base:
        return (
            "train them again (`ftk verify RUN` says whether they come out the same), or "
            "measure the others as adapters of a condition "
            "`adapters:` that leaves them out"
        )
    names = [f"{condition}/{run}" if len(results.conditions) > 1 else run for run in runs[:SHOWN]]
    options = " ".join(f"--failed {shlex.quote(name)}" for name in names) + " ..." * (
        len(runs) > SHOWN
    )
    return f"leave {'it' if len(runs) == 1 else 'them'} out of all other figures with `{options}`"


def _shortened(sentences: Sequence[str]) -> list[str]:
    hidden = len(sentences) - SHOWN
    return [*sentences[:SHOWN], *([f"and {hidden} more"] if hidden > 0 else [])]


def _names(procedures: Sequence[tuple[ConditionResult, Procedure]]) -> str:
    """`mean, K = 4, 8 (lora); vote, K = 4 (lora)`."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for condition, procedure in procedures:
        sizes.setdefault((procedure.title, condition.name), []).append(str(procedure.k))
    return "; ".join(
        f"{title}, K = {', '.join(several)} ({name})" for (title, name), several in sizes.items()
    )
