"""The results in three sentences: how different runs are, the mitigation that the data support best, and what to bear in mind."""

from collections.abc import Sequence
from typing import NamedTuple

from toolkit import statistics as st
from toolkit.results import Cell, ConditionResult, Procedure, Results, interval, mitigation_of, number


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
        return mitigation_of(self.procedure.title, self.procedure.k, self.condition.name)

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
        return _against(results) if results.contrasts else "No mitigation was measured."
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


def _against(results: Results) -> str:
    """Conditions instead of mitigations: which of them differ from the first in how much their runs differ."""
    target, baseline = results.shifts[-1], results.contrasts[0].baseline
    found = [contrast for contrast in results.contrasts if contrast.shift == target]
    told = [
        f"{c.condition} {number(c.ratio.value)} {interval(c.ratio)}".strip() + ("" if c.ratio.conclusive else " (inconclusive)")
        for c in found
    ]
    return f"Disagreement on {target} prompts, relative to {baseline}: {'; '.join(told)}; below 1 is more stable."


def _praise(best: _Candidate, home: str, target: str) -> str:
    procedure, single = best.procedure, best.condition.single
    parts = []
    for shift in dict.fromkeys([target, home]):
        cell, before = procedure.cell(shift), single.cell(shift)
        if cell is None or cell.ratio is None or before is None:
            continue
        ratio = f"ratio {number(cell.ratio.value)} {interval(cell.ratio)}".strip() + ("" if cell.ratio.conclusive else ", inconclusive")
        parts.append(f"on {shift} prompts from {_percent(before)} to {_percent(cell)} ({ratio})")
    change, share = best.cell.accuracy_change, (procedure.cell(home) or best.cell).kept
    moved = (
        f"accuracy on {target} prompts moves by {number(change.value, '%', True)} points {interval(change, '%', True)}"
        if change and change.value is not None
        else "accuracy could not be measured"
    )
    kept = (
        f"it keeps {number(share.value)} of the fine-tuning on {home} prompts" if share else "what it keeps of the fine-tuning is not known"
    )
    fallback = (
        f" (on {target} prompts {number(best.cell.kept.value)}: part of the gain is a return to the base)"
        if best.cell.collapsed and best.cell.kept and home != target
        else ""
    )
    price = procedure.price
    streams = "one model answers" if price.inference_streams == 1 else f"{price.inference_streams:.3g} models answer"
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
    flagged = [(c, p) for c, p in procedures if (cell := p.cell(home)) and cell.collapsed]
    if flagged:
        parts.append(f"on {home} prompts these fall back towards the base model, so their stability is no gain: {_names(flagged)}")
    worse = [(c, p) for c, p in procedures if (cell := p.cell(results.shifts[-1])) and _less_stable(cell)]
    if worse:
        parts.append(f"on {results.shifts[-1]} prompts these are conclusively less stable than a single replica: {_names(worse)}")
    ratios = [cell.ratio for _, p in procedures for cell in p.cells if not cell.category and cell.ratio]
    open_ = sum(not r.conclusive for r in ratios)
    if ratios:
        parts.append(f"inconclusive comparisons with single replicas: {open_} of {len(ratios)}")
    if len(procedures) > 1:
        parts.append(f"intervals hold one by one, and the best of {len(procedures)} mitigations tends to look better than it is")
    return f"Bear in mind: {'; '.join(parts)}."


def _names(procedures: Sequence[tuple[ConditionResult, Procedure]]) -> str:
    """`mean, K = 4, 8 (lora); vote, K = 4 (lora)`."""
    sizes: dict[tuple[str, str], list[str]] = {}
    for condition, procedure in procedures:
        sizes.setdefault((procedure.title, condition.name), []).append(str(procedure.k))
    return "; ".join(f"{title}, K = {', '.join(several)} ({name})" for (title, name), several in sizes.items())
