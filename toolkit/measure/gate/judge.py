"""The gate at work: limits from a baseline population, and a candidate's answers, wherever the two
stand. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from toolkit.measure.analyse import Arm, PredictionTable, Table
from toolkit.measure.gate.limits import Limits, Verdict, judge, learn, load_limits
from toolkit.measure.predictions import SUFFIXES, read_predictions
from toolkit.measure.predictions.layout import listed
from toolkit.measure.run import DESIGN, MeasureError, outcome_table, read_run
from toolkit.record.folders import FolderError, check_outputs
from toolkit.record.plain import read_json
from toolkit.record.results import ConditionDesign
from toolkit.text import escape
from toolkit.text.nearest import counted


class Named(NamedTuple):
    """Columns of predictions that the user named; see `read_predictions`."""

    columns: Mapping[str, str] = MappingProxyType({})
    replica_columns: Sequence[str] = ()


def limits_of(
    source: Path,
    *,
    condition: str | None = None,
    same: str = "exact",
    alpha: float | None = None,
    named: Named = Named(),  # noqa: B008
) -> Limits:
    """Limits from a run folder, from a file of predictions, or as they were saved (a .json with a
    version).

    condition: of several, the baseline. Raises MeasureError, PredictionsError or ValueError in one
    line.
    """
    if is_limits(source):
        try:
            return load_limits(source)
        except ValueError as error:
            raise MeasureError(str(error)) from None
    table, design, _ = _runs(source, condition, same, named)
    if len(design.replicas) < 2:
        raise MeasureError(
            f"{source}: {design.name} has {counted(len(design.replicas), 'run')}; a "
            "baseline needs dozens"
        )
    arm = _arm(source, table, design)
    marks_RP = _marks(arm)
    options = {} if alpha is None else {"alpha": alpha}
    shift_P = [prompt.shift for _, prompt in table.prompts]
    return learn(
        arm.answer_RP,
        table.answers,
        marks_RP,
        shift_P,
        _ids(table),
        extra=_scores(table, arm),
        **options,
    )


def check_save(path: Path, limits: Limits, inputs: Sequence[Path]) -> None:
    """Refuse to write limits over an input, or over anything but limits on the same prompts. Raises
    FolderError in one line.
    """
    check_outputs([path], inputs)
    if not path.exists():
        return
    try:
        same = load_limits(path).prompts_sha256 == limits.prompts_sha256
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
    same: str = "exact",
    named: Named = Named(),  # noqa: B008
) -> Verdict:
    """All runs of a file of predictions, or of a folder of outcomes (a run, or what `ftk evaluate`
    wrote), in their order.

    condition: of several, the one that is judged. Notes say which runs were judged, and what was
    left out. Raises as `limits_of`.
    """
    table, design, others = _runs(candidate, condition, same, named, strict=False)
    # each is judged by itself, whatever it shares
    design = replace(design, replicas=design.everyone or design.replicas, everyone=())
    if not design.replicas:
        raise MeasureError(
            f"{candidate}: all runs of {design.name} have failed "
            f"({counted(design.failed, 'run')}); none is left to judge"
        )
    arm = _arm(candidate, table, design)
    verdict = judge(
        limits, arm.answer_RP, table.answers, _marks(arm), _ids(table), extra=_scores(table, arm)
    )
    runs, failed = table.run_names(design), table.failed_names(design)
    notes = [f"judged: {counted(len(runs), 'run')} of {design.name} ({listed(runs)})"]
    if design.failed:
        notes.append(
            f"not judged: {counted(design.failed, 'failed run')}"
            + f" ({listed(failed)})" * bool(failed)
        )
    if others:
        notes.append(f"not judged: other conditions of {candidate.name} ({listed(others)})")
    return replace(verdict, notes=(*notes, *verdict.notes))


def _runs(
    source: Path, condition: str | None, same: str, named: Named, strict: bool = True
) -> tuple[Table, ConditionDesign, list[str]]:
    """What the source holds, the one condition that is meant, and the names of the others.

    strict: the condition must be there, also where the source has but one.
    """
    if source.is_dir():
        if not (source / DESIGN).is_file():
            raise MeasureError(
                f"{source}: no outcomes there; name a run, a file of predictions, or what "
                "`ftk evaluate --out` wrote"
            )
        recipe, design = read_run(source)
        table: Table = outcome_table(source, recipe, design)[0]
        designs = {found.name: found for found in design.conditions}
    else:
        if not source.name.removesuffix(".gz").endswith(SUFFIXES):
            raise MeasureError(
                f"{source}: neither a folder of outcomes nor a file of predictions "
                f"({', '.join(SUFFIXES)})"
            )
        predictions = read_predictions(source, **named._asdict())
        table = PredictionTable(predictions, same)
        designs = {found.name: found for found in table.designs(list(predictions.arms))}
    names = list(designs)
    if condition is None and len(names) > 1:
        raise MeasureError(
            f"{source}: {len(names)} conditions; say which is meant, --condition NAME of: "
            f"{listed(names)}"
        )
    if condition is not None and condition not in names and (len(names) > 1 or strict):
        raise MeasureError(f"{source}: no condition {condition!r}; there are: {listed(names)}")
    found = designs.get(condition or "", designs[names[0]])
    return table, found, [name for name in names if name != found.name]


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


def _scores(table: Table, arm: Arm) -> dict[str, np.ndarray] | None:
    """Mean score of each run on every shift; None where no answer has one."""
    if arm.score_RP is None or not np.isfinite(arm.score_RP).any():
        return None
    found = {}
    for shift, at in table.shifts.items():
        known_P = np.isfinite(arm.score_RP[:, at]).all(axis=0)
        if known_P.any():
            found[f"score, {shift}"] = arm.score_RP[:, at[known_P]].mean(axis=1, dtype=np.float64)
    return found or None


def verdict_text(verdict: Verdict) -> str:
    """The verdict for people: the reasons first, then every metric that was tested."""
    lines = [verdict.status.upper() + ("" if not verdict.reasons else ":")]
    lines += [f"- {reason}" for reason in verdict.reasons]
    for row in verdict.rows:
        limits = (
            "no limits: never varied"
            if row.low is None or row.high is None
            else f"[{row.low:.4g}, {row.high:.4g}]"
        )
        run = f" (run {row.run})" if len({r.run for r in verdict.rows}) > 1 else ""
        lines.append(
            f" {row.metric + run:<34} {row.test:<6} {row.value:>9.4g}  "
            f"{limits}{'  OUTSIDE' if row.outside else ''}"
        )
    if verdict.t2_limit is not None:
        lines.append(
            f" {'all together (T2)':<34} {'run':<6} {max(verdict.t2):>9.4g}  limit "
            f"{verdict.t2_limit:.4g}"
        )
    return escape.lines([*lines, *(f"note: {note}" for note in verdict.notes)])
