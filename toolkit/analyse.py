"""From a table of outcomes to results: which statistic answers which question, and what may be said about it in words."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from toolkit import statistics as st
from toolkit.results import (
    About,
    Cell,
    ConditionDesign,
    ConditionResult,
    MitigationDesign,
    Price,
    Procedure,
    Results,
    SuiteCount,
    UnstablePrompt,
    interval,
    number,
)

if TYPE_CHECKING:
    import pyarrow

UNSTABLE = 10
"""Prompts shown of those on which the replicas disagree most."""


class PromptLike(Protocol):
    """A row of a suite. cluster: prompts made from one template are no independent sample; reference: the right answer."""

    @property
    def id(self) -> str: ...
    @property
    def prompt(self) -> str | Sequence[Mapping[str, str]]: ...
    @property
    def category(self) -> str: ...
    @property
    def shift(self) -> str: ...
    @property
    def cluster(self) -> str | None: ...
    @property
    def reference(self) -> str | None: ...


def analyse(
    outcomes: "pyarrow.Table",
    prompts: Mapping[str, Sequence[PromptLike]],
    conditions: Sequence[ConditionDesign],
    *,
    level: float = 0.95,
    about: About | None = None,
) -> Results:
    """Measure every procedure on every shift and category.

    The table may come in any order and may lack cells; rows of other prompts, procedures or replicas are left out. Two rows for
    one cell are an error, since nothing says which one counts.
    """
    cells = _Outcomes(outcomes, prompts)
    results = [_condition(cells, design, level) for design in conditions]
    notes = tuple(
        f"{design.name}: no outcomes of {m.label}"
        for design, result in zip(conditions, results, strict=True)
        for m in design.mitigations
        if m.label not in {p.label for p in result.procedures}
    )
    suites = [
        SuiteCount(suite, shift, category, sum((p.shift, p.category) == (shift, category) for p in rows))
        for suite, rows in prompts.items()
        for shift, category in dict.fromkeys((p.shift, p.category) for p in rows)
    ]
    found = Results(about or About(), level, tuple(suites), _base(cells, level), tuple(results), (), notes)
    return Results(**{**vars(found), "verdict": verdict(found)})


# -- the table as arrays -----------------------------------------------------------------------------------------------


class _Arm(NamedTuple):
    answer_RP: np.ndarray
    correct_RP: np.ndarray

    def on(self, at: np.ndarray) -> "_Arm":
        return _Arm(self.answer_RP[:, at], self.correct_RP[:, at])


class _Outcomes:
    """The table as integer columns, from which the arrays [runs, prompts] of a procedure are filled without a loop over cells."""

    def __init__(self, outcomes: "pyarrow.Table", prompts: Mapping[str, Sequence[PromptLike]]) -> None:
        self.prompts = [(suite, prompt) for suite, rows in prompts.items() for prompt in rows]
        suite_N, suites = _codes(outcomes, "suite")
        id_N, ids = _codes(outcomes, "prompt_id")
        at = {(suite, prompt.id): i for i, (suite, prompt) in enumerate(self.prompts)}
        if len(at) < len(self.prompts):
            raise ValueError("two prompts of one suite have the same id")
        table = np.array([[at.get((suite, id), -1) for id in ids] for suite in suites], dtype=np.int64).reshape(len(suites), len(ids))
        self.prompt_N = table[suite_N, id_N]
        self.condition_N, self.conditions = _codes(outcomes, "condition")
        self.procedure_N, self.procedures = _codes(outcomes, "procedure")
        self.answer_N, self.answers = _codes(outcomes, "answer")
        self.index_N = outcomes["index"].to_numpy()
        self.correct_N = outcomes["correct"].cast("float32").to_numpy()  # null becomes nan

        shift_P = np.array([prompt.shift for _, prompt in self.prompts])
        category_P = np.array([prompt.category for _, prompt in self.prompts])
        self.shifts = {shift: np.flatnonzero(shift_P == shift) for shift in dict.fromkeys(shift_P.tolist())}
        self.parts = {
            (shift, category): np.flatnonzero((shift_P == shift) & (category_P == category))
            for shift, category in dict.fromkeys(zip(shift_P.tolist(), category_P.tolist(), strict=True))
        }
        names = [("", i) if p.cluster is None else (p.cluster, -1) for i, (_, p) in enumerate(self.prompts)]
        numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
        self.cluster_P = np.array([numbers[name] for name in names], dtype=np.int64)

    def arm(self, condition: str, procedure: str, indexes: Sequence[int]) -> _Arm | None:
        """Answers and marks of the runs `indexes` of a procedure; None where the table has none of them."""
        if condition not in self.conditions or procedure not in self.procedures:
            return None
        shape = len(indexes), len(self.prompts)
        row_of = np.full(max(int(self.index_N.max(initial=0)), *indexes, 0) + 1, -1)
        row_of[np.asarray(indexes, dtype=np.int64)] = np.arange(len(indexes))
        wanted_N = (self.condition_N == self.conditions.index(condition)) & (self.procedure_N == self.procedures.index(procedure))
        wanted_N &= (self.prompt_N >= 0) & (self.index_N >= 0)
        wanted = np.flatnonzero(wanted_N)
        wanted = wanted[row_of[self.index_N[wanted]] >= 0]
        at = row_of[self.index_N[wanted]], self.prompt_N[wanted]
        filled = np.zeros(shape, dtype=bool)
        filled[at] = True
        if filled.sum() < len(wanted):
            raise ValueError(f"outcomes of {condition or 'the base'}, {procedure}: two rows for the same run and prompt")
        answer_RP, correct_RP = np.full(shape, st.MISSING), np.full(shape, np.nan)
        answer_RP[at], correct_RP[at] = self.answer_N[wanted], self.correct_N[wanted]
        return _Arm(answer_RP, correct_RP) if len(wanted) else None


def _codes(outcomes: "pyarrow.Table", column: str) -> tuple[np.ndarray, list[str]]:
    """A text column as integer codes (null = -1) and what they stand for; codes follow the text, not the order of rows."""
    encoded = outcomes[column].combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    order = sorted(range(len(texts)), key=texts.__getitem__)
    rank = np.empty(len(texts) + 1, dtype=np.int64)
    rank[order], rank[-1] = np.arange(len(texts)), -1
    return rank[encoded.indices.fill_null(-1).to_numpy()], [texts[i] for i in order]


# -- measuring ---------------------------------------------------------------------------------------------------------


def _condition(cells: _Outcomes, design: ConditionDesign, level: float) -> ConditionResult:
    replicas = list(design.replicas)
    single = cells.arm(design.name, "replica", replicas)
    if single is None:
        raise ValueError(f"no outcomes of the replicas of condition {design.name!r}")
    base = cells.arm("", "base", [0])
    row_of = {replica: row for row, replica in enumerate(replicas)}
    measured = [_measure(cells, single, level)]
    procedures = [Procedure("replica", "single replica", "replica", 1, len(replicas), design.price, measured[0])]
    for mitigation in design.mitigations:
        arm = cells.arm(design.name, mitigation.label, range(len(mitigation.members)))
        if arm is None and mitigation.members:
            continue
        arm = arm or _Arm(single.answer_RP[:0], single.correct_RP[:0])  # fewer replicas than K
        versus = _Versus(single, base, _members(mitigation, row_of, design.name))
        m = mitigation
        procedures.append(Procedure(m.label, m.title, m.kind, m.k, len(m.members), m.price, _measure(cells, arm, level, versus)))
    failures = st.failure_rate(design.failed, len(replicas) + design.failed, level=level)
    unstable = _unstable(cells, single, base)
    return ConditionResult(design.name, len(replicas), design.failed, failures, tuple(procedures), unstable)


def _members(mitigation: MitigationDesign, row_of: Mapping[int, int], condition: str) -> list[np.ndarray]:
    try:
        return [np.array([row_of[replica] for replica in group]) for group in mitigation.members]
    except KeyError as error:
        raise ValueError(
            f"{condition}: {mitigation.label} was built from replica {error}, which is not among those that succeeded"
        ) from None


class _Versus(NamedTuple):
    """What a mitigation is held against: the single replicas, the base, and which replicas each group was built from."""

    single: _Arm
    base: _Arm | None
    members: list[np.ndarray]


def _measure(cells: _Outcomes, arm: _Arm, level: float, versus: _Versus | None = None) -> tuple[Cell, ...]:
    whole = [_cell(cells, arm, shift, "", at, level, versus) for shift, at in cells.shifts.items()]
    parts = [_cell(cells, arm, shift, category, at, level, versus) for (shift, category), at in cells.parts.items()]
    return (*whole, *parts)


def _cell(cells: _Outcomes, arm: _Arm, shift: str, category: str, at: np.ndarray, level: float, versus: _Versus | None) -> Cell:
    answer_RP, correct_RP = arm.on(at)
    options = {"cluster_P": cells.cluster_P[at], "level": level}
    marked = bool(np.isfinite(correct_RP).any())
    if len(answer_RP) < 2:  # one run shows nothing of how much runs differ
        few = st.Estimate(None, None, None, level, len(answer_RP), len(at), "none", False, st.MIN_GROUPS, "fewer than two runs")
        nothing = few if versus else None
        return Cell(shift, category, len(at), few, nothing, nothing, few if marked else None, nothing if marked else None, nothing)
    found: dict = {"disagreement": st.disagreement(answer_RP, **options)}
    if marked:
        found["accuracy"] = st.accuracy(correct_RP, **options)
    if versus:
        single = versus.single.on(at)
        pair = answer_RP, single.answer_RP
        found["ratio"] = st.disagreement_ratio(*pair, versus.members, **options)
        found["disagreement_change"] = st.disagreement_difference(*pair, versus.members, **options)
        if marked and not category:
            found["accuracy_change"] = st.accuracy_change(correct_RP, single.correct_RP, versus.members, **options)
        if versus.base and not category:
            found["effect_size"] = st.effect_size(*pair, versus.base.answer_RP[0, at], versus.members, **options)
    if marked and not category:
        found["accuracy_spread"] = st.accuracy_spread(correct_RP, **options)
        found["scores"] = tuple(float(np.nanmean(row)) if np.isfinite(row).any() else None for row in correct_RP)
    return Cell(shift, category, len(at), **found)


def _base(cells: _Outcomes, level: float) -> Procedure | None:
    """The base is one fixed model: it has an accuracy, and no run-to-run anything."""
    arm = cells.arm("", "base", [0])
    if arm is None:
        return None
    found = []
    for (shift, category), at in {**{(shift, ""): at for shift, at in cells.shifts.items()}, **cells.parts}.items():
        marks = arm.correct_RP[0, at]
        marks = marks[np.isfinite(marks)]
        accuracy, scores = None, ()
        if len(marks):
            low, high = st.clopper_pearson(int(marks.sum()), len(marks), level)
            value = float(marks.mean())
            accuracy = st.Estimate(value, low, high, level, 1, len(marks), "Clopper-Pearson over prompts, one fixed model")
            scores = (value,)
        found.append(Cell(shift, category, len(at), accuracy=accuracy, scores=scores))
    return Procedure("base", "base model", "base", 1, 1, Price(training_runs=0), tuple(found))


def _unstable(cells: _Outcomes, single: _Arm, base: _Arm | None) -> tuple[UnstablePrompt, ...]:
    if len(single.answer_RP) < 2:
        return ()
    d_P = np.nan_to_num(st.prompt_disagreement(single.answer_RP))
    worst = [i for i in np.argsort(-d_P, kind="stable")[:UNSTABLE] if d_P[i] > 0]
    found = []
    for i in worst:
        suite, prompt = cells.prompts[i]
        codes, counts = np.unique(single.answer_RP[single.answer_RP[:, i] >= 0, i], return_counts=True)
        answers = sorted(((cells.answers[c], int(n)) for c, n in zip(codes, counts, strict=True)), key=lambda a: (-a[1], a[0]))
        said = base.answer_RP[0, i] if base else st.MISSING
        says = cells.answers[said] if said >= 0 else None
        about = suite, prompt.id, _text(prompt.prompt), prompt.category, prompt.shift, prompt.reference
        found.append(UnstablePrompt(*about, says, float(d_P[i]), tuple(answers)))
    return tuple(found)


def _text(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """A conversation as one line per turn."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.get('role', '')}: {turn.get('content', '')}" for turn in prompt)


# -- the verdict -------------------------------------------------------------------------------------------------------


def verdict(results: Results) -> tuple[str, ...]:
    """Three sentences: how different runs are, the mitigation that the data support best, and what to bear in mind."""
    return _instability(results), _best(results), _caveats(results)


def _share(estimate: st.Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "an unknown share"
    text = f"{number(estimate.value, '%')} % {interval(estimate, '%')}".strip()
    return text if estimate.conclusive else f"{text} (inconclusive)"


def _instability(results: Results) -> str:
    ends = list(dict.fromkeys([results.shifts[0], results.shifts[-1]]))
    parts = []
    for condition in results.conditions:
        cells = [(shift, condition.single.cell(shift)) for shift in ends]
        shares = " and ".join(f"on {_share(cell.disagreement)} of {shift} prompts" for shift, cell in cells if cell)
        parts.append(f"with {condition.name} {shares} ({condition.n_replicas} replicas)")
    return f"Two independent runs give different answers: {'; '.join(parts)}; {100 * results.level:g} % intervals in brackets."


class _Candidate(NamedTuple):
    condition: ConditionResult
    procedure: Procedure
    cell: Cell
    ratio: st.Estimate

    @property
    def name(self) -> str:
        return f"{self.procedure.title}, K = {self.procedure.k} ({self.condition.name})"

    @property
    def resolved(self) -> bool:
        return self.ratio.conclusive and self.ratio.high is not None and self.ratio.high < 1

    def sound(self, home: str) -> bool:
        """No accuracy lost anywhere, and the fine-tuning kept where it was meant to act."""
        cells = [c for c in self.procedure.cells if not c.category]
        at_home = self.procedure.cell(home)
        kept = at_home is not None and not at_home.collapsed and at_home.effect_size is not None and at_home.effect_size.value is not None
        return kept and not any(_lost(c.accuracy_change) for c in cells)


def _lost(change: st.Estimate | None) -> bool:
    if change is None or change.value is None:
        return False
    return change.value < -st.SAME_SHARE or (change.high is not None and change.high < 0 and change.conclusive)


def _less_stable(cell: Cell) -> bool:
    """By more than what counts as no change in points; a ratio alone exaggerates where little is at stake."""
    change = cell.disagreement_change
    return bool(change and change.conclusive and change.value and change.low and change.low > 0 and change.value > st.SAME_SHARE)


def _best(results: Results) -> str:
    home, target = results.shifts[0], results.shifts[-1]
    candidates = [
        _Candidate(condition, procedure, cell, cell.ratio)
        for condition in results.conditions
        for procedure in condition.procedures
        if (cell := procedure.cell(target)) and cell.ratio
    ]
    if not candidates:
        return "No mitigation was measured."
    resolved = [c for c in candidates if c.resolved]
    sound = [c for c in resolved if c.sound(home)]
    if sound:
        return _praise(min(sound, key=lambda c: (c.cell.collapsed, c.ratio.high, c.procedure.label)), home, target)
    if resolved:
        return (
            f"{len(resolved)} of {len(candidates)} mitigations make answers on {target} prompts conclusively more stable, but each loses "
            f"accuracy, falls back towards the base model, or cannot be told from that: none is recommended."
        )
    sizes = sorted({c.condition.n_replicas for c in candidates})
    text = f"No mitigation is shown to make answers on {target} prompts more stable with {' or '.join(map(str, sizes))} replicas"
    hopeful = [c for c in candidates if not c.ratio.conclusive and c.ratio.needed and (c.ratio.value is None or c.ratio.value < 1)]
    if not hopeful:
        return f"{text}, and more replicas alone would not settle it."
    nearest = min(hopeful, key=lambda c: ((c.ratio.needed or 0) * c.procedure.k, c.procedure.label))
    return f"{text}; about {(nearest.ratio.needed or 0) * nearest.procedure.k:,} replicas would be needed for the nearest, {nearest.name}."


def _praise(best: _Candidate, home: str, target: str) -> str:
    procedure, single = best.procedure, best.condition.single
    parts = []
    for shift in dict.fromkeys([target, home]):
        cell, before = procedure.cell(shift), single.cell(shift)
        if cell is None or cell.ratio is None or before is None:
            continue
        ratio = f"ratio {number(cell.ratio.value)} {interval(cell.ratio)}".strip() + ("" if cell.ratio.conclusive else ", inconclusive")
        parts.append(f"on {shift} prompts from {_percent(before)} to {_percent(cell)} ({ratio})")
    change, effect = best.cell.accuracy_change, (procedure.cell(home) or best.cell).effect_size
    moved = (
        f"accuracy on {target} prompts moves by {number(change.value, '%', True)} points {interval(change, '%', True)}"
        if change and change.value is not None
        else "accuracy could not be measured"
    )
    kept = f"the effect size is {number(effect.value)} on {home} prompts" if effect else "the effect size is not known"
    fallback = (
        f" (on {target} prompts {number(best.cell.effect_size.value)}: part of the gain is a return to the base)"
        if best.cell.collapsed and best.cell.effect_size and home != target
        else ""
    )
    price = procedure.price
    streams = "one model answers" if price.inference_streams == 1 else f"{price.inference_streams} models answer"
    return (
        f"The best-supported mitigation is {best.name}: disagreement falls {' and '.join(parts)}; {moved}; {kept}{fallback}; "
        f"the price is {price.training_runs} training run{'s' * (price.training_runs != 1)} per model, and {streams} each prompt."
    )


def _percent(cell: Cell) -> str:
    return f"{number(cell.disagreement.value if cell.disagreement else None, '%')} %"


def _caveats(results: Results) -> str:
    parts = []
    runs = sum(c.n_replicas + c.n_failed for c in results.conditions)
    failed = sum(c.n_failed for c in results.conditions)
    parts.append(f"{failed} of {runs} training runs failed" + (", and failed runs are in no other figure" if failed else ""))
    procedures = [(c, p) for c in results.conditions for p in c.procedures if p.kind != "replica"]
    home = results.shifts[0]
    flagged = [f"{p.title}, K = {p.k} ({c.name})" for c, p in procedures if (cell := p.cell(home)) and cell.collapsed]
    if flagged:
        parts.append(f"on {home} prompts these fall back towards the base model, so their stability is no gain: {'; '.join(flagged)}")
    worse = [f"{p.title}, K = {p.k} ({c.name})" for c, p in procedures if (cell := p.cell(results.shifts[-1])) and _less_stable(cell)]
    if worse:
        parts.append(f"on {results.shifts[-1]} prompts these are conclusively less stable than a single replica: {'; '.join(worse)}")
    ratios = [cell.ratio for _, p in procedures for cell in p.cells if not cell.category and cell.ratio]
    open_ = sum(not r.conclusive for r in ratios)
    if ratios:
        parts.append(f"inconclusive comparisons with single replicas: {open_} of {len(ratios)}")
    if len(procedures) > 1:
        parts.append(f"intervals hold one by one, and the best of {len(procedures)} mitigations tends to look better than it is")
    return f"Bear in mind: {'; '.join(parts)}."
