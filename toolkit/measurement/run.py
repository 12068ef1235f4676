"""Measuring alone: the outcomes of a run, or anybody's predictions -> statistics -> results.json ->
report.html. No model, no torch.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

import toolkit
from toolkit.data import DataError, Prompt, is_chat, read_rows, read_suite
from toolkit.errors import FtkError
from toolkit.measurement.analyse import OutcomeTable, PredictionTable, analyse_table
from toolkit.measurement.predictions import (
    Predictions,
    PredictionsError,
    read_predictions,
    with_base,
    with_factors,
    with_failed,
)
from toolkit.measurement.predictions.layout import listed
from toolkit.recipe import Criteria, Recipe, read_recipe
from toolkit.record import shapes
from toolkit.record.folders import MEASURED as MEASURED_FOLDER
from toolkit.record.folders import (
    again,
    check_claim,
    check_outputs,
    check_sealed,
    claim,
    made_of,
    seal,
)
from toolkit.record.outcomes import MEASURED, OutcomesError, read_outcomes
from toolkit.record.plain import read_record, to_plain
from toolkit.record.population import write_text
from toolkit.record.results import (
    SHIFTS,
    About,
    ConditionDesign,
    Modules,
    Results,
    Thresholds,
    in_order,
    load_results,
    save_results,
)
from toolkit.record.words import unpaired
from toolkit.report.html import write_report
from toolkit.text.nearest import counted

CONDITIONS = 500
"""of one file of predictions: each is held against the first, with intervals for every shift and
category
"""
DESIGN, MODULES, RESULTS, PROMPTS = "design.json", "modules.json", "results.json", "prompts.json"


class MeasureError(FtkError, ValueError):
    """Nothing to measure, or not what it should be; one line with the reason and the way out."""


@dataclass(frozen=True)
class Design:
    """What stands behind the outcomes of a run: which files, and which replicas behind which row of
    them.
    """

    shards: tuple[str, ...]
    conditions: tuple[ConditionDesign, ...]
    command: str
    notes: tuple[str, ...] = ()


def save_design(
    folder: Path,
    shards: Sequence[Path],
    conditions: Sequence[ConditionDesign],
    command: str,
    notes: Sequence[str] = (),
    *,
    prompts: Mapping[str, Sequence[Prompt]] | None = None,
) -> None:
    """Write RUN/design.json, from which `measure_run` can start again. Paths are relative: a run
    folder can be moved.

    prompts: by suite, as they were asked; RUN/prompts.json keeps them, whatever becomes of the
    files that they came from.
    """
    if prompts is not None:
        kept = {suite: [asdict(prompt) for prompt in asked] for suite, asked in prompts.items()}
        write_text(folder / PROMPTS, json.dumps(kept, indent=1) + "\n")
    design = Design(
        tuple(str(path.relative_to(folder)) for path in shards),
        tuple(conditions),
        command,
        tuple(notes),
    )
    write_text(folder / DESIGN, json.dumps(to_plain(design), indent=1) + "\n")
    seal(folder, DESIGN, *([] if prompts is None else [PROMPTS]))


def is_outcomes(path: Path) -> bool:
    """Whether a folder has outcomes, which a run, or `ftk evaluate`, wrote."""
    return (path / DESIGN).is_file()


def read_run(folder: Path) -> tuple[Recipe, Design]:
    """Recipe and design of a run whose files are what was written. Raises MeasureError or
    FolderError in one line.
    """
    design = read_design(folder)
    return read_recipe(folder / "recipe.yaml"), design


def read_design(folder: Path) -> Design:
    """RUN/design.json, all files of outcomes being there; `replicas` are runs that share no seed.

    Raises MeasureError in one line, and FolderError where a file of the run is not what was
    written.
    """
    check_sealed(folder)
    if not (folder / DESIGN).is_file():
        raise MeasureError(
            f"{folder}: no outcomes of a finished evaluation there; `ftk run RECIPE --out "
            f"{folder}` makes them"
        )
    design: Design = read_record(folder / DESIGN, Design, again(folder / DESIGN))
    for condition in design.conditions:
        if wrong := _contradiction(condition):
            raise MeasureError(
                f"{folder / DESIGN}: condition {condition.name}: {wrong}; {again(folder / DESIGN)}"
            )
    missing = [shard for shard in design.shards if not (folder / shard).is_file()]
    if missing:
        raise MeasureError(
            f"{folder / missing[0]}: {len(missing)} files of outcomes are missing; "
            f"{again(folder / DESIGN)}"
        )
    return replace(
        design, conditions=tuple(condition.independent() for condition in design.conditions)
    )


def _contradiction(condition: ConditionDesign) -> str | None:
    """Where a design speaks of replicas that it does not have."""
    replicas = set(condition.everyone or condition.replicas)
    if len(replicas) < len(condition.everyone or condition.replicas) or not replicas.issuperset(
        condition.replicas
    ):
        return "'replicas' holds one twice, or one that is not in 'everyone'"
    if condition.failed < 0:
        return f"'failed' is {condition.failed}"
    if bad := [
        source for source, levels in condition.factors.items() if len(levels) != len(replicas)
    ]:
        return (
            f"'factors.{bad[0]}' has {len(condition.factors[bad[0]])} levels "
            f"for {len(replicas)} replicas"
        )
    for mitigation in condition.mitigations:
        if not mitigation.condition and (
            strange := sorted({r for group in mitigation.members for r in group} - replicas)
        ):
            return (
                f"a group of {mitigation.label} has replica {strange[0]}, "
                "which is not in 'replicas'"
            )
        if mitigation.runs and len(mitigation.runs) != len(mitigation.members):
            return (
                f"{mitigation.label} has {len(mitigation.members)} groups "
                f"and {len(mitigation.runs)} numbers for them"
            )
    if condition.teacher and {len(condition.teacher.groups), len(condition.teacher.members)} != {
        len(condition.replicas)
    }:
        return "'teacher' has not one group for each of the replicas"
    return None


def asked_prompts(folder: Path, recipe: Recipe) -> tuple[dict[str, list[Prompt]], list[str]]:
    """The prompts that the outcomes of a run answer, by suite, and what a reader must know of them.

    Runs of versions that kept no prompts have them in the files of their suites alone, as those are
    now. Raises MeasureError or DataError in one line.
    """
    kept = _kept_prompts(folder)
    if kept is None:
        if not (folder / DESIGN).is_file():
            return read_prompts(recipe), []
        return read_prompts(recipe), [
            "this run did not keep its prompts: their texts are those that the files of "
            "the suites have now"
        ]
    try:
        notes = changed_prompts(folder, read_prompts(recipe))
    except DataError as error:
        notes = [f"{error}; what was asked is in {PROMPTS}"]
    return kept, [f"{note}; the figures are of the prompts that were asked" for note in notes]


def changed_prompts(folder: Path, now: Mapping[str, Sequence[Prompt]]) -> list[str]:
    """A sentence for each suite that is not as it was when the run asked it."""
    kept = _kept_prompts(folder) or {}
    return [
        f"suite {name} has changed since it was asked"
        for name, asked in kept.items()
        if list(now.get(name, asked)) != asked
    ]


def _kept_prompts(folder: Path) -> dict[str, list[Prompt]] | None:
    try:
        return read_record(folder / PROMPTS, dict[str, list[Prompt]], again(folder / PROMPTS))
    except FileNotFoundError:
        return None


def check_complete(table: pa.Table, prompts: Mapping[str, Sequence[Prompt]], folder: Path) -> None:
    """Refuse outcomes in which a subject lacks an answer, has two, or answers what was not asked.
    Raises MeasureError in one line.
    """
    key = ["suite", "condition", "procedure", "index"]
    rows = (
        table.group_by(key)
        .aggregate([("prompt_id", "count"), ("prompt_id", "count_distinct")])
        .to_pylist()
    )
    ids = {suite: {prompt.id for prompt in asked} for suite, asked in prompts.items()}
    asked_of = table.group_by(["suite", "prompt_id"]).aggregate([]).to_pylist()
    strange = next(
        (row for row in asked_of if row["prompt_id"] not in ids.get(row["suite"], set())), None
    )
    if strange:
        raise MeasureError(
            f"{folder}: {strange['prompt_id']!r} was answered and is no prompt of suite "
            f"{strange['suite']} now; bring its file back, or "
            "let `ftk run` ask the new prompts"
        )
    for row in rows:
        wanted = len(ids[row["suite"]])
        if (row["prompt_id_count"], row["prompt_id_count_distinct"]) != (wanted, wanted):
            who = " ".join(filter(None, [row["condition"], row["procedure"], str(row["index"])]))
            raise MeasureError(
                f"{folder / 'outcomes' / row['suite']}: {who} has "
                f"{row['prompt_id_count']} answers to {wanted} prompts; "
                f"{again(folder / DESIGN)}"
            )


def outcome_table(folder: Path, recipe: Recipe, design: Design) -> tuple[OutcomeTable, list[str]]:
    """The outcomes of a run with the prompts that they answer, and what a reader must know of
    these. Raises MeasureError in one line.
    """
    prompts, notes = asked_prompts(folder, recipe)
    try:
        outcomes = read_outcomes((folder / shard for shard in design.shards), MEASURED)
    except OutcomesError as error:
        raise MeasureError(str(error)) from None
    check_complete(outcomes, prompts, folder)
    return OutcomeTable(outcomes, prompts), notes


def measure_run(folder: Path, criteria: Criteria | None = None, *, write: bool = True) -> Results:
    """Outcomes of a run -> results.json and report.html in its folder.

    criteria: instead of the recipe's. write: False leaves the folder as it is.
    Raises MeasureError in one line for a folder without
    outcomes.
    """
    recipe, design = read_run(folder)
    asked = criteria or recipe
    table, notes = outcome_table(folder, recipe, design)
    results = analyse_table(
        table,
        design.conditions,
        level=asked.level,
        about=about_run(folder, recipe, design.command),
        thresholds=thresholds_of(asked),
        criteria=asked.criteria,
        # replica r of every condition that is trained has the seeds of (root seed, purpose, r)
        paired=not recipe.given,
        notes=(*design.notes, *notes),
    )
    trained = {name: _settings(recipe, name) for name in recipe.trained}
    conditions = tuple(
        replace(condition, settings=trained.get(condition.name, {}))
        for condition in results.conditions
    )
    results = replace(
        results, conditions=conditions, modules=_read_modules(folder, design.conditions)
    )
    return finish(folder, results) if write else results


def save_modules(folder: Path, modules: Sequence[Modules]) -> None:
    """Write RUN/modules.json, and take it into results.json and report.html where they are."""
    write_text(folder / MODULES, json.dumps(to_plain(modules), indent=1) + "\n")
    if (folder / DESIGN).is_file() and (folder / RESULTS).is_file():
        measured = _read_modules(folder, read_design(folder).conditions)
        finish(folder, replace(load_results(folder / RESULTS), modules=measured))


def _read_modules(folder: Path, designs: Sequence[ConditionDesign]) -> tuple[Modules, ...]:
    """RUN/modules.json, as far as it is of the replicas that were measured."""
    try:
        rows = read_record(
            folder / MODULES, tuple[Modules, ...], f"`ftk modules {folder}` writes it again"
        )
    except FileNotFoundError:
        return ()
    replicas_of = {design.name: tuple(design.everyone or design.replicas) for design in designs}
    return tuple(row for row in rows if replicas_of.get(row.condition) == row.replicas)


def measure_predictions(
    path: Path,
    out: Path | None,
    *,
    table: pa.Table | None = None,
    same: str = "exact",
    baseline: str | None = None,
    paired: bool = False,
    factors: Path | None = None,
    criteria: Criteria | None = None,
    force: bool = False,
    base: str | None = None,
    failed: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    replica_columns: Sequence[str] = (),
) -> Results:
    """A table of predictions that any tool made -> results.json and report.html in `out`, if any.

    table: as in `read_predictions`.
    same: when two outputs mean the same, a rule of `toolkit.measurement.meaning`. baseline: the
    condition that the others are held against (default: the first). paired: replicas of the same
    name share their seeds. factors: a table that says which level each replica has in each source,
    where the file does not. base: the condition that is the base model's answers: a reference, and
    no population.
    failed: runs that are in no figure but the failure rate, by the user's names. columns,
    replica_columns: see `read_predictions`.
    force: see `check_measured`. Raises PredictionsError, MeasureError or FolderError in one line.
    """
    of = made_of(path) if table is None else {"source": "predictions in memory"}
    if out is not None:
        check_measured(out, of, [path, *([factors] if factors else [])], force=force)
    predictions = read_predictions(path, table, columns=columns, replica_columns=replica_columns)
    if base is not None:
        predictions = with_base(predictions, base, path)
    if failed:
        predictions = with_failed(predictions, failed, path)
    if factors is not None:
        predictions = with_factors(predictions, factors)
    names = list(predictions.arms)
    if baseline is not None and baseline not in names:
        raise MeasureError(
            f"{path}: no condition {baseline!r} to hold the others against; there are: "
            f"{', '.join(names)}"
        )
    if baseline is not None:
        names = [baseline, *(name for name in names if name != baseline)]
    if paired and len(names) < 2:
        raise MeasureError(
            f"{path}: --paired is about runs of several conditions, and there is one; leave it out"
        )
    if len(names) > CONDITIONS:
        raise MeasureError(
            f"{path}: {len(names):,} conditions, and {CONDITIONS} are measured together; "
            "name fewer in one file"
        )
    asked, coded = criteria or Criteria(), PredictionTable(predictions, same)
    designs = coded.designs(names)
    if nobody := next((design for design in designs if not design.replicas), None):
        raise PredictionsError(
            f"{path}: all {nobody.failed} runs of {nobody.name} have failed; there is "
            "nothing to measure"
        )
    lone = [
        design.name
        for design in designs
        if len(design.everyone or design.replicas) == 1 and len(designs) > 1
    ]
    hints = [
        f"{name} has one run: if it is the base model, say --base {shlex.quote(name)}; "
        "--baseline NAME is what others are held against"
        for name in lone[:1]
        if predictions.base is None
    ]
    first = set(designs[0].replicas)
    hints += [
        unpaired(d.name, names[0])
        for d in designs[1:]
        if paired and len(first & set(d.replicas)) < 2
    ]
    options: list[tuple[str, object]] = [
        ("--same", same),
        ("--baseline", baseline),
        ("--base", base),
        ("--factors", factors),
    ]
    options += [("--failed", name) for name in failed]
    options += [("--column", f"{role}={name}") for role, name in (columns or {}).items()]
    options += [("--replica-columns", names) for names in replica_columns]
    words = [
        word for option, value in options if value is not None for word in (option, str(value))
    ]
    words = ["ftk", "measure", str(path), *words, *(["--paired"] if paired else [])]
    command = shlex.join(words) if table is None else ""
    results = analyse_table(
        coded,
        designs,
        level=asked.level,
        about=About(toolkit.__version__, recipe=path.name, command=command),
        thresholds=thresholds_of(asked),
        criteria=asked.criteria,
        paired=paired,
        notes=(
            *predictions.notes,
            *_notes_on_predictions(coded, predictions),
            *_excluded(designs, predictions),
            *hints,
        ),
    )
    if out is None:
        return results
    claim(out, MEASURED_FOLDER, of, force=force)
    return finish(out, results)


def check_measured(
    out: Path, of: Mapping[str, str], inputs: Sequence[Path], *, force: bool = False
) -> None:
    """Whether results may go to `out`: a free folder, or one with results of the same input. Raises
    FolderError in one line.

    force: take any folder that holds nothing else of ftk's; results.json and report.html alone are
    replaced, and never an input.
    """
    check_outputs([out / RESULTS, out / "report.html"], inputs)
    check_claim(out, MEASURED_FOLDER, of, force=force)


def _notes_on_predictions(table: PredictionTable, predictions: Predictions) -> Iterator[str]:
    """How shifts were taken that have names of one's own, and of how many prompts what is said of
    the base is.
    """
    shifts = in_order(table.shifts)
    if len(shifts) > 1 and not set(shifts) <= set(SHIFTS):
        yield (
            f"shifts, in the order of the file: {listed(shifts)}; {shifts[0]} is taken as "
            f"home, {shifts[-1]} as the farthest"
        )
    if predictions.base is not None and (missing := predictions.base.missing):
        prompts = counted(len(predictions.prompts), "prompt")
        yield (
            f"the base's answers are missing for {missing:,} of {prompts}; what is said of it "
            "is of the others"
        )
    if table.repeated:
        yield (
            "where the text of a prompt stands in another column, name it with --column "
            "words=NAME, or none with --column words="
        )
    arms = table.coded.values()
    if any(arm.marked for arm in arms) and not any((arm.correct_RP == 1).any() for arm in arms):
        arm = next(arm for arm in arms if arm.marked)
        run, column = (int(places[0]) for places in np.nonzero(arm.correct_RP == 0))
        answer, right = (
            table.texts[arm.text_RP[run, column]],
            predictions.prompts[column].reference or "",
        )
        yield (
            f"no answer is right: one is {answer[:40]!r} where the reference is {right[:40]!r}; if "
            "that is the same, write both alike, or say when two are the same with --same"
        )


def _excluded(designs: Sequence[ConditionDesign], predictions: Predictions) -> Iterator[str]:
    """The runs that the user counts as failed, by name."""
    for design in designs:
        arm = predictions.arms[design.name]
        if names := [name for name in arm.replicas if name in arm.failed]:
            yield f"{design.name}: counted as failed, and in no other figure: {', '.join(names)}"


def read_prompts(recipe: Recipe) -> dict[str, list[Prompt]]:
    """Suite name -> prompts; where training saw conversations, a plain prompt becomes a user turn.
    Raises DataError in one line.
    """
    data = recipe.data
    chat = (
        is_chat(read_rows(data.train), data.format)
        if data.train
        else data.format in ("messages", "sharegpt")
    )
    return {
        name: read_suite(source, name=name, chat=chat, date=data.date)
        for name, source in recipe.data.suites.items()
    }


def _settings(recipe: Recipe, name: str) -> dict[str, str | int | float]:
    """How a condition trains its replicas, not how many there are."""
    written = recipe.trained[name].model_dump(exclude={"replicas", "vary", "repeats"})
    settings = {
        key: value for key, value in written.items() if isinstance(value, str | int | float)
    }
    return settings | {"vary": ", ".join(recipe.vary_of(name))}


def about_run(folder: Path, recipe: Recipe, command: str) -> About:
    """Where and with what a run was made."""
    record = read_record(
        folder / "environment.json", shapes.Environment, again(folder / "environment.json")
    )
    numerics = record["numerics"]
    where = numerics["gpu"] or f"{numerics['cpu']}, {record['cores']} cores"
    environment = {"machine": where, "system": record["system"], "python": record["python"]}
    return About(
        ftk=toolkit.__version__,
        recipe=recipe.name,
        base=recipe.base,
        parameters=read_record(folder / "base.json", shapes.Base, again(folder / "base.json")).get(
            "parameters"
        ),
        environment=environment | {k: v or "" for k, v in record["versions"].items()},
        command=command,
    )


def thresholds_of(asked: Criteria) -> Thresholds:
    """Where the matrix of a recipe, or of a file of criteria, changes its colour."""
    zones = asked.thresholds
    categories = {name: (zone.acceptable, zone.critical) for name, zone in zones.categories.items()}
    return Thresholds(zones.acceptable, zones.critical, categories or None)


def finish(folder: Path, results: Results) -> Results:
    """Write results.json and report.html."""
    folder.mkdir(parents=True, exist_ok=True)
    save_results(folder / RESULTS, results)
    write_report(folder)
    return results
