"""The gate at work: limits from a baseline population, and a candidate's answers, wherever the two
stand. No torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from toolkit.measurement.analyse import Arm, PredictionTable, Table
from toolkit.measurement.analyse.table import PromptLike
from toolkit.measurement.gate.limits import (
    Limits,
    Terms,
    Verdict,
    judge,
    learn,
    linking,
    load_limits,
    with_alpha,
)
from toolkit.measurement.meaning import canonical, rule_of
from toolkit.measurement.predictions import SUFFIXES, read_predictions
from toolkit.measurement.predictions.layout import listed
from toolkit.measurement.run import MeasureError, is_outcomes, outcome_table, read_run
from toolkit.recipe import Recipe
from toolkit.record.folders import FolderError, check_outputs
from toolkit.record.plain import read_json
from toolkit.record.results import ConditionDesign
from toolkit.record.words import number
from toolkit.text import escape, tables
from toolkit.text.nearest import counted


class Named(NamedTuple):
    """Columns of predictions that the user named; see `read_predictions`."""

    columns: Mapping[str, str] = MappingProxyType({})
    replica_columns: Sequence[str] = ()


def limits_of(
    source: Path,
    *,
    condition: str | None = None,
    same: str | None = None,
    alpha: float | None = None,
    named: Named = Named(),  # noqa: B008
) -> Limits:
    """Limits from a run folder, from a file of predictions, or as they were saved (a .json with a
    version).

    condition: of several, the baseline; nothing to limits that were saved. same: the rule of
    predictions (default: exact); a source that has a rule of its own must have this one. alpha: of
    saved limits, instead of theirs. Raises MeasureError, PredictionsError or ValueError in one
    line.
    """
    if is_limits(source):
        try:
            limits = load_limits(source)
        except ValueError as error:
            raise MeasureError(str(error)) from None
        if same is not None:
            rule_of(same)
            terms = limits.terms or {"rule": same}  # version 1 does not say by which it was learned
            _check_terms(source, terms, {"rule": same})
            limits = replace(limits, terms=terms)
        return limits if alpha is None else with_alpha(limits, alpha)
    baseline = _runs(source, condition, same, named)
    table, design = baseline.table, baseline.design
    if len(design.replicas) < 2:
        raise MeasureError(
            f"{source}: {design.name} has {counted(len(design.replicas), 'run')}; a "
            "baseline needs dozens"
        )
    arm = _arm(source, table, design)
    scored_P = _scored(arm)
    shift_P = [prompt.shift for _, prompt in table.prompts]
    extra = _scores(arm, shift_P, scored_P)
    limits = learn(
        *_forms(table, arm, baseline.terms),
        _marks(arm),
        shift_P,
        _ids(table),
        extra=extra,
        terms=baseline.terms | ({"score": table.scored} if extra else {}),
        **({} if alpha is None else {"alpha": alpha}),
    )
    if limits.n < 2:
        raise MeasureError(
            f"{source}: {counted(limits.n, 'run')} of {design.name} with nothing missing; a "
            "baseline needs dozens"
        )
    asked = dict(zip(_ids(table), (prompt for _, prompt in table.prompts), strict=True))
    scored = dict(zip(_ids(table), scored_P.tolist(), strict=True))
    prompts = tuple(
        replace(
            prompt,
            asked=_asked(asked[prompt.id]),
            reference=asked[prompt.id].reference,
            scored=scored[prompt.id],
        )
        for prompt in limits.prompts
    )
    return replace(limits, prompts=prompts, n_failed=design.failed)


def check_save(path: Path, limits: Limits, inputs: Sequence[Path], *, force: bool = False) -> None:
    """Refuse to write limits over an input, or over anything but limits on the same prompts. Raises
    FolderError in one line.

    force: over any other file, but never an input.
    """
    check_outputs([path], inputs)
    if force or not path.exists():
        return
    try:
        there = load_limits(path).prompts
        same = [(p.id, p.shift) for p in there] == [(p.id, p.shift) for p in limits.prompts]
    except ValueError:
        same = False
    if not same:
        raise FolderError(
            f"{path}: is there and holds no limits on these prompts; choose another name, "
            "or write over it with --force"
        )


def judge_candidate(
    limits: Limits,
    candidate: Path,
    *,
    condition: str | None = None,
    named: Named = Named(),  # noqa: B008
    strict: bool = False,
) -> Verdict:
    """All runs of a file of predictions, or of a folder of outcomes (a run, or what `ftk evaluate`
    wrote), in their order, by the rule of the limits.

    condition: of several, the one that is judged; strict: it must be there also where the candidate
    has but one. Notes say which runs were judged, and what was left out. Raises as `limits_of`, and
    MeasureError where the candidate was asked or marked in another way than the baseline.
    """
    rule = limits.terms.get("rule")
    candidate_runs = _runs(
        candidate, condition, None if rule is None else str(rule), named, strict=strict
    )
    table, design, others = candidate_runs.table, candidate_runs.design, candidate_runs.others
    # each is judged by itself, whatever it shares
    design = replace(design, replicas=design.everyone or design.replicas, everyone=())
    if not design.replicas:
        raise MeasureError(
            f"{candidate}: all runs of {design.name} have failed "
            f"({counted(design.failed, 'run')}); none is left to judge"
        )
    arm = _arm(candidate, table, design)
    terms = candidate_runs.terms | ({"score": table.scored} if arm.score_RP is not None else {})
    _check_terms(candidate, terms, limits.terms)
    _check_prompts(candidate, table, limits)
    verdict = judge(
        limits,
        *_forms(table, arm, candidate_runs.terms),
        _marks(arm),
        _ids(table),
        extra=_scores_of(limits, table, arm),
    )
    runs, failed = table.run_names(design), table.failed_names(design)
    notes = [f"judged: {counted(len(runs), 'run')} of {design.name} ({listed(runs)})"]
    if design.failed:
        notes.append(
            f"not judged: {counted(design.failed, 'failed run')}"
            + f" ({listed(failed)})" * bool(failed)
        )
    if not limits.terms:
        notes.append(
            "limits of an older ftk do not say by which rule answers are the same; here it is "
            f"{candidate_runs.terms['rule']!r}"
        )
    if others:
        notes.append(f"not judged: other conditions of {candidate.name} ({listed(others)})")
    return replace(verdict, notes=(*notes, *verdict.notes))


class _Runs(NamedTuple):
    """What a source holds, the one condition that is meant, the names of the others, and the terms
    of its numbers (see `Limits`).
    """

    table: Table
    design: ConditionDesign
    others: list[str]
    terms: Terms


def _runs(
    source: Path, condition: str | None, same: str | None, named: Named, strict: bool = True
) -> _Runs:
    """same: the rule of predictions; the one that a run has must be equal. strict: the condition
    must be there, also where the source has but one.
    """
    if source.is_dir():
        if not is_outcomes(source):
            raise MeasureError(
                f"{source}: no outcomes there; name a run, a file of predictions, or what "
                "`ftk evaluate --out` wrote"
            )
        recipe, design = read_run(source)
        terms = _terms(recipe)
        if same is not None:
            _check_terms(source, terms, {"rule": same})
        table: Table = outcome_table(source, recipe, design)[0]
        designs = {chosen.name: chosen for chosen in design.conditions}
    else:
        if not source.name.removesuffix(".gz").endswith(SUFFIXES):
            raise MeasureError(
                f"{source}: neither a folder of outcomes nor a file of predictions "
                f"({', '.join(SUFFIXES)})"
            )
        rule = same or "exact"
        terms: Terms = {"rule": rule}
        try:
            rule_of(rule)
        except ValueError as error:
            raise MeasureError(f"{source}: its answers cannot be compared: {error}") from None
        predictions = read_predictions(source, **named._asdict())
        table = PredictionTable(predictions, rule)
        designs = {chosen.name: chosen for chosen in table.designs(list(predictions.arms))}
    names = list(designs)
    if condition is None and len(names) > 1:
        raise MeasureError(
            f"{source}: {len(names)} conditions; say which is meant, --condition NAME of: "
            f"{listed(names)}"
        )
    if condition is not None and condition not in names and (len(names) > 1 or strict):
        raise MeasureError(f"{source}: no condition {condition!r}; there are: {listed(names)}")
    chosen = designs.get(condition or "", designs[names[0]])
    return _Runs(table, chosen, [name for name in names if name != chosen.name], terms)


def check_recipe(source: Path, recipe: Recipe, limits: Limits) -> None:
    """Raises MeasureError, before anything answers, where adapters would answer by this recipe in
    another way than the limits were learned on.
    """
    _check_terms(source, _terms(recipe), limits.terms)


def _terms(recipe: Recipe) -> Terms:
    how = recipe.evaluation
    return {"rule": how.answer, "max_new_tokens": how.max_new_tokens, "stop": how.stop}


def _check_terms(source: Path, here: Terms, asked: Terms) -> None:
    """Raises MeasureError where two sides that both know a term differ in it."""
    for name in here.keys() & asked.keys():
        if here[name] != asked[name]:
            raise MeasureError(
                f"{source}: {TERMS[name]} is {here[name]!r} there, and {asked[name]!r} is asked "
                "for; numbers of the two cannot be compared: ask for the same, or learn limits anew"
            )


TERMS = {
    "rule": "the rule by which two answers are the same",
    "max_new_tokens": "max_new_tokens",
    "stop": "the text that ends an answer (stop)",
    "score": "what a score is",
}


def _check_prompts(source: Path, table: Table, limits: Limits) -> None:
    """Raises MeasureError where a prompt of the limits asks something else here, or has another
    right answer.
    """
    by_id = {prompt.id: prompt for prompt in limits.prompts}
    for name, (_, prompt) in zip(_ids(table), table.prompts, strict=True):
        there = by_id.get(name)
        if there is None:
            continue
        asked = _asked(prompt)
        alike = asked[:4] == there.asked[:4]  # both text, or both messages
        other = [
            what
            for what, now, then in (
                ("text", asked, there.asked if alike else None),
                ("reference", prompt.reference, there.reference),
            )
            if None not in (now, then) and now != then
        ]
        if other:
            raise MeasureError(
                f"{source}: prompt {name!r} has another {other[0]} than the limits were learned "
                "on; ask the same prompts, or learn limits anew"
            )


def _asked(prompt: PromptLike) -> str:
    """Hash of what a prompt says; empty where its source has an id alone. Plain text and messages
    are told apart: of the same prompt one source may have this and another that.
    """
    question, given = prompt.prompt, getattr(prompt, "given", None)
    if (
        not isinstance(question, str)
        and not given
        and [turn["role"] for turn in question] == ["user"]
    ):
        question = question[0]["content"]
    if f"/{prompt.id}".endswith(f"/{question}"):  # an id may have its suite before it
        return ""
    kind = "text" if isinstance(question, str) and not given else "chat"
    canonical = json.dumps([question, given or {}], sort_keys=True)
    return f"{kind}:{hashlib.sha256(canonical.encode()).hexdigest()}"


def _forms(table: Table, arm: Arm, terms: Terms) -> tuple[np.ndarray, list[str]]:
    """Codes of the forms of answers, not of classes: where a rule links, a class is known only
    among all answers, those of the limits and of the candidate.
    """
    if rule := linking(terms["rule"]):
        form_of = {text: canonical(text, rule) for text in table.texts}
        forms = {form: code for code, form in enumerate(dict.fromkeys(form_of.values()))}
        code_T = np.array([*(forms[form_of[text]] for text in table.texts), -1])
        return code_T[arm.text_RP], list(forms)
    return arm.answer_RP, table.answers


def _arm(source: Path, table: Table, design: ConditionDesign) -> Arm:
    arm = table.arm(design.name, "replica", list(design.replicas))
    if arm is None:
        raise MeasureError(f"{source}: no outcomes of {design.name}")
    return arm


def is_limits(path: Path) -> bool:
    """Whether a file is limits that were saved, and no predictions."""
    if path.suffix != ".json":
        return False
    try:
        return "version" in read_json(path)
    except (OSError, ValueError, TypeError):
        return False


def _ids(table: Table) -> list[str]:
    """With the suite before it where there are several: the way that files of predictions name
    prompts too.
    """
    alone = len(table.suites) == 1
    return [prompt.id if alone else f"{suite}/{prompt.id}" for suite, prompt in table.prompts]


def _marks(arm: Arm) -> np.ndarray:
    marks_RP = arm.correct_RP.astype(np.float64)
    return np.where(marks_RP >= 0, marks_RP, np.nan)


def _scored(arm: Arm) -> np.ndarray:
    """Which prompts have a score of every run, bool [P]."""
    if arm.score_RP is None:
        return np.zeros(arm.answer_RP.shape[1], dtype=bool)
    return np.atleast_1d(np.isfinite(arm.score_RP).all(axis=0))


def _scores(arm: Arm, shift_P: Sequence[str], scored_P: np.ndarray) -> dict[str, np.ndarray]:
    """Mean score of each run over the scored prompts of every shift that has some."""
    prompts_of = {
        shift: np.flatnonzero((np.array(shift_P) == shift) & scored_P) for shift in shift_P
    }
    return {
        f"score, {shift}": arm.score_RP[:, at_P].mean(axis=1, dtype=np.float64)
        for shift, at_P in prompts_of.items()
        if arm.score_RP is not None and len(at_P)
    }


def _scores_of(limits: Limits, table: Table, arm: Arm) -> dict[str, np.ndarray]:
    """The same of a candidate, on the baseline's prompts and shifts; left out where a prompt is
    missing.
    """
    column = {name: position for position, name in enumerate(_ids(table))}
    scored = [prompt for prompt in limits.prompts if prompt.scored]
    lost = {prompt.shift for prompt in scored if prompt.id not in column}
    shift_P = [""] * len(column)
    scored_P = np.zeros(len(column), dtype=bool)
    for prompt in scored:
        if prompt.shift not in lost:
            shift_P[column[prompt.id]], scored_P[column[prompt.id]] = prompt.shift, True
    return _scores(arm, shift_P, scored_P)


def verdict_text(verdict: Verdict) -> str:
    """The verdict for people: the reasons first, then every metric that was tested."""
    several = len({row.run for row in verdict.rows}) > 1
    table = [
        [
            f"{row.metric} (run {row.run})" if several else row.metric,
            row.test,
            number(row.value, "e4"),
            _limits_text(row.low, row.high) + "  OUTSIDE" * row.outside,
        ]
        for row in verdict.rows
    ]
    if verdict.t2_limit is not None:
        limit = f"limit {number(verdict.t2_limit, 'e4')}"
        table.append(["all together (T2)", "run", number(max(verdict.t2), "e4"), limit])
    return escape.lines(
        [
            verdict.status.upper() + ":" * bool(verdict.reasons),
            *(f"- {reason}" for reason in verdict.reasons),
            *tables.plain(table, right=[2]),
            *(f"note: {note}" for note in verdict.notes),
        ]
    )


def _limits_text(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no limits: never varied"
    return f"[{number(low, 'e4')}, {number(high, 'e4')}]"
