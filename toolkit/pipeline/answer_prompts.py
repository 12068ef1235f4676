"""Who answers which prompts, in which shards: the base, replicas, merged adapters and ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit.answer.ensemble import ENSEMBLES
from toolkit.answer.evaluate import EvaluationUnit, Subject, evaluate_unit, shard_name
from toolkit.data import Prompt
from toolkit.measurement.run import changed_prompts, read_prompts
from toolkit.model.adapters import CONFIG, WEIGHTS
from toolkit.model.base import load_base
from toolkit.model.full import FULL, MODEL, read_weights
from toolkit.pipeline.engines import Progress
from toolkit.pipeline.job import Run
from toolkit.pipeline.merge_groups import merged_folder
from toolkit.recipe import Evaluation, Mitigation
from toolkit.recipe.schedule import WEIGHT_BYTES, whole_width
from toolkit.record.files import sha256_file
from toolkit.record.outcomes import is_sound, read_outcomes
from toolkit.record.population import Replica, fingerprint, groups, read_population, replica_folder

EVALUATION_WIDTH = 8
"""adapters on the stack while prompts are answered; fixed, so that the shapes never depend on how
many there are
"""


@dataclass(frozen=True)
class AnswerUnit:
    """Subjects that answer the prompts of one suite together, in one worker."""

    unit: EvaluationUnit
    base: str
    dtype: str
    device: str
    prompts: tuple[Prompt, ...]
    evaluation: Evaluation


def evaluate(job: Run) -> None:
    """The base, all replicas, all merged adapters and all ensembles answer all suites."""
    prompts = read_prompts(job.recipe)
    for note in changed_prompts(job.folder, prompts):
        job.console.note(f"{note}; the prompts as they are now are asked")
    with job.console.stage("evaluate"):
        if any(
            (m.weights or "").startswith("accuracy:") for m in job.recipe.mitigations
        ):  # what members are weighed by
            answer(job, [replicas_of(job, name) for name in job.recipe.conditions], prompts)
        answer(job, all_subjects(job), prompts)


def all_subjects(job: Run) -> list[list[Subject]]:
    """The base, and every condition's replicas, merged adapters and ensembles: one list for each
    procedure.
    """
    families = [[Subject("", "base", 0)]]
    for name in job.recipe.conditions:
        families += subjects_of(job, name)
    return families


def subjects_of(job: Run, name: str) -> list[list[Subject]]:
    """Subjects of a condition, one list for each procedure. Rules over whole answers need no model
    and are not among them.
    """
    folder = job.condition(name)
    single = {subject.index: subject for subject in replicas_of(job, name)}
    families = [list(single.values())]
    for mitigation in job.recipe.mitigations_of(name):
        members = groups(single, mitigation.k)
        if mitigation.merge:
            merged = [merged_folder(folder, mitigation.label, g) for g in range(len(members))]
            families.append(
                [
                    Subject(name, mitigation.label, g, (str(p),), (read_weights(p).sha256(),))
                    for g, p in enumerate(merged)
                ]
            )
        elif ENSEMBLES[mitigation.ensemble or ""].rule:
            weigh = accuracies(job, name, mitigation)
            paths = [tuple(single[r].adapters[0] for r in group) for group in members]
            digests = [tuple(single[r].sha256[0] for r in group) for group in members]
            weights = [
                _not_all_zero([weigh[r] for r in group]) if weigh else () for group in members
            ]
            families.append(
                [
                    Subject(name, mitigation.label, g, *members_of)
                    for g, members_of in enumerate(zip(paths, digests, weights, strict=True))
                ]
            )
    return families


def replicas_of(job: Run, name: str) -> list[Subject]:
    """The finished replicas of a condition, as subjects."""
    folder = job.condition(name)
    return replica_subjects(folder, name, read_population(folder))


def accuracies(job: Run, name: str, mitigation: Mitigation) -> dict[int, float]:
    """Accuracy of every replica on the suite by which a mitigation weighs its members, from their
    outcomes; empty without one.
    """
    suite = (mitigation.weights or "").partition(":")[2]
    if not suite:
        return {}
    units = answer_units(job, replicas_of(job, name), suite, read_prompts(job.recipe)[suite])
    marks = read_outcomes((unit.unit.shard for unit in units), ["index", "correct"]).drop_null()
    replica_N, right_N = marks["index"].to_numpy(), marks["correct"].cast("int64").to_numpy()
    asked_R, right_R = np.bincount(replica_N), np.bincount(replica_N, weights=right_N)
    return {int(r): float(right_R[r] / asked_R[r]) for r in np.flatnonzero(asked_R)}


def _not_all_zero(weights: Sequence[float]) -> tuple[float, ...]:
    """Equal weights where all are zero."""
    return tuple(weights) if any(weights) else (1.0,) * len(weights)


def replica_subjects(folder: Path, name: str, population: dict[int, Replica]) -> list[Subject]:
    """The replicas that succeeded, in index order."""
    return [
        Subject(name, "replica", r, (str(replica_folder(folder, r)),), (digest(record),))
        for r, record in sorted(population.items())
        if record.status == "ok"
    ]


def digest(record: Replica) -> str:
    """Of the weights, and of the configuration where something else than ftk could change it: alpha
    decides what weights mean.
    """
    return "-".join(
        record.sha256[name] for name in (WEIGHTS, MODEL, CONFIG) if name in record.sha256
    )


def weights_digest(folder: Path) -> str:
    """Of the weights in a folder, and of the configuration that decides what an adapter's mean; of
    the same shape as `digest`.
    """
    weights = read_weights(folder)
    return (
        weights.sha256()
        if (folder / FULL).is_file()
        else f"{weights.sha256()}-{sha256_file(folder / CONFIG)}"
    )


def answer(
    job: Run, families: Sequence[Sequence[Subject]], prompts: dict[str, list[Prompt]]
) -> None:
    """Write the outcome shards that are missing, or do not hold what was written."""
    units, damaged = [], 0
    tokens = job.recipe.evaluation.token_scores
    for suite, suite_prompts in prompts.items():
        for family in families:
            for unit in answer_units(job, family, suite, suite_prompts):
                if not is_sound(
                    unit.unit.shard, len(unit.unit.subjects) * len(suite_prompts), tokens=tokens
                ):
                    units.append(unit)
                    damaged += unit.unit.shard.exists()
    if damaged:
        job.console.note(
            f"{job.folder / 'outcomes'}: {damaged} files are damaged or were changed; "
            "these answers are asked again"
        )
    progress = job.console.progress("evaluate", len(units))
    for _ in job.engine.run(_answer_unit, units, progress):
        pass


def answer_units(
    job: Run, family: Sequence[Subject], suite: str, prompts: Sequence[Prompt]
) -> list[AnswerUnit]:
    """The prompts of a suite for a family of subjects, in parts for workers."""
    if not family:
        return []
    recipe = job.recipe
    members = max(1, len(family[0].adapters))
    at_once = EVALUATION_WIDTH
    if family[0].adapters and (Path(family[0].adapters[0]) / FULL).is_file():
        at_once = min(
            at_once,
            whole_width(
                load_base(recipe.base, recipe.dtype, job.device).parameters,
                WEIGHT_BYTES,
                job.device,
            ),
        )
    width = max(1, at_once // members)
    evaluation = recipe.evaluation.model_dump(exclude_none=True)
    settings = fingerprint(
        {"prompts": [p.to_dict() for p in prompts], "evaluation": evaluation, "dtype": recipe.dtype}
    )
    rule = threshold = None
    if members > 1:
        rule, threshold = next(
            (m.ensemble, m.threshold) for m in recipe.mitigations if m.label == family[0].procedure
        )
    units = []
    for start in range(0, len(family), width):
        part = tuple(family[start : start + width])
        shard = job.folder / "outcomes" / suite / shard_name(part, settings)
        unit = EvaluationUnit(part, suite, width, members, rule, shard, threshold)
        units.append(
            AnswerUnit(
                unit, recipe.base, recipe.dtype, job.device, tuple(prompts), recipe.evaluation
            )
        )
    return units


def _answer_unit(unit: AnswerUnit, progress: Progress) -> int:
    base = load_base(unit.base, unit.dtype, unit.device)
    combine = ENSEMBLES[unit.unit.rule].rule if unit.unit.rule else None
    return evaluate_unit(
        unit.unit,
        base,
        unit.prompts,
        combine=combine,
        progress=progress,
        **unit.evaluation.model_dump(),
    )
