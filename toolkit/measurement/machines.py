"""Several run folders of one procedure: repeatability within a machine and reproducibility between
machines (ISO 5725). No torch.

A machine is what `environment.json` and `replica.json` record of processor, device, torch and the
other libraries: two runs in which all of it is equal are repeats on one machine.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from toolkit.measurement.analyse import OutcomeTable, analyse_table
from toolkit.measurement.run import (
    Design,
    MeasureError,
    about_run,
    asked_prompts,
    check_complete,
    check_measured,
    finish,
    read_run,
    thresholds_of,
)
from toolkit.recipe import Criteria
from toolkit.record import shapes
from toolkit.record.folders import MEASURED as MEASURED_FOLDER
from toolkit.record.folders import claim
from toolkit.record.outcomes import OutcomesError, read_outcomes
from toolkit.record.plain import read_record
from toolkit.record.population import Replica, fingerprint, read_population
from toolkit.record.results import MACHINE, ConditionDesign, Results


def measure_runs(
    folders: Sequence[Path],
    out: Path | None,
    criteria: Criteria | None = None,
    *,
    force: bool = False,
) -> Results:
    """Replicas of the conditions that all runs have -> results.json and report.html in `out`, if
    any.

    Disagreement and accuracy are taken apart into machine, seeds, and the rest. The rows of single
    replicas are of one replica for each set of seeds, since the same seeds again are no independent
    run. criteria: instead of those of the first run. Raises MeasureError in one line for runs that
    asked different prompts or share no condition, and for the same run twice; FolderError as
    `check_measured`, also for `force`.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise MeasureError(
            f"{folders[0]}: the same folder twice is no second run; train the recipe "
            "again, here or elsewhere"
        )
    recipes, designs = zip(*(read_run(folder) for folder in folders), strict=True)
    prompts, remarks = asked_prompts(folders[0], recipes[0])
    for folder, recipe in zip(folders[1:], recipes[1:], strict=True):
        others, further = asked_prompts(folder, recipe)
        remarks += further
        if others != prompts:
            raise MeasureError(
                f"{folder}: asked other prompts than {folders[0]}; answers to different "
                "prompts cannot be compared"
            )
    common = [
        c.name
        for c in designs[0].conditions
        if all(c.name in {d.name for d in design.conditions} for design in designs)
    ]
    if not common:
        raise MeasureError(
            f"{folders[1]}: has no condition that {folders[0]} has, too; reproducibility "
            "is of one procedure"
        )
    of = {"source": ", ".join(str(folder.absolute()) for folder in folders)}
    if out is not None:
        check_measured(out, of, folders, force=force)
    try:
        outcomes = [
            read_outcomes(folder / shard for shard in design.shards)
            for folder, design in zip(folders, designs, strict=True)
        ]
    except OutcomesError as error:
        raise MeasureError(str(error)) from None
    for folder, answers in zip(folders, outcomes, strict=True):
        check_complete(answers, prompts, folder)
    environments = [
        read_record(folder / "environment.json", shapes.Environment) for folder in folders
    ]
    tables = [_of(outcomes[0], "", "base")]
    conditions, notes = [], [*_differences(folders, environments), *dict.fromkeys(remarks)]
    for name in common:
        runs = [read_population(folder / name) for folder in folders]
        if len({record.fingerprint for run in runs for record in run.values()}) > 1:
            notes.append(
                f"{name}: the runs differ in recipe, data, base, plan or seeds, too: what "
                "is between them is more than machines"
            )
        design, renumbered = _together(name, designs, runs, outcomes, environments)
        conditions.append(design)
        tables += renumbered
    wanted = criteria or recipes[0]
    results = analyse_table(
        OutcomeTable(pa.concat_tables(tables), prompts),
        conditions,
        level=wanted.level,
        about=about_run(folders[0], recipes[0], "ftk measure " + " ".join(map(str, folders))),
        thresholds=thresholds_of(wanted),
        criteria=wanted.criteria,
        notes=notes,
    )
    if out is None:
        return results
    claim(out, MEASURED_FOLDER, of, force=force)
    return finish(out, results)


def _together(
    name: str,
    designs: Sequence[Design],
    runs: Sequence[dict[int, Replica]],
    outcomes: Sequence[pa.Table],
    environments: Sequence[dict[str, Any]],
) -> tuple[ConditionDesign, list[pa.Table]]:
    """One condition of all runs as one design, and its outcomes with the replicas numbered
    through.
    """
    tables: list[pa.Table] = []
    replicas: list[int] = []
    seeds: list[str] = []
    machines: list[str] = []
    failed = start = 0
    for design, run, table, environment in zip(designs, runs, outcomes, environments, strict=True):
        members = next(condition for condition in design.conditions if condition.name == name)
        failed += members.failed
        if gone := sorted(set(members.everyone or members.replicas) - set(run)):
            raise MeasureError(
                f"{name}: replica {gone[0]} was measured and is not there, or its files "
                "were changed; `ftk run` trains it again"
            )
        for r in members.everyone or members.replicas:
            replicas.append(start + r)
            seeds.append(json.dumps(run[r].seeds, sort_keys=True))
            machines.append(_machine(run[r], environment))
        rows = _of(table, name, "replica")
        numbered = pa.array(rows["index"].to_numpy() + start, pa.int32())
        tables.append(rows.set_column(rows.column_names.index("index"), "index", numbered))
        start += 1 + max(run)
    first = sorted(np.unique(seeds, return_index=True)[1].tolist())
    factors = {MACHINE: machines, "seeds": seeds}
    codes = {
        factor: np.unique(levels, return_inverse=True)[1].tolist()
        for factor, levels in factors.items()
    }
    return ConditionDesign(
        name, [replicas[i] for i in first], failed, factors=codes, everyone=replicas
    ), tables


def _of(table: pa.Table, condition: str, procedure: str) -> pa.Table:
    return table.filter((pc.field("condition") == condition) & (pc.field("procedure") == procedure))


def _machine(record: Replica, environment: dict[str, Any]) -> str:
    """All that is recorded of where a replica came from, as a short hash."""
    return fingerprint(
        {
            "replica": record.machine,
            "numerics": environment["numerics"],
            "versions": environment["versions"],
        }
    )


def _differences(folders: Sequence[Path], environments: Sequence[dict[str, Any]]) -> list[str]:
    """What the environments have otherwise than the first, a sentence a run."""
    flat = [{**e["versions"], **e["numerics"]} for e in environments]
    notes = []
    for folder, environment in zip(folders[1:], flat[1:], strict=True):
        changed = [
            f"{key} {flat[0].get(key)} and {environment.get(key)}"
            for key in environment
            if environment.get(key) != flat[0].get(key)
        ]
        differences = (
            "; ".join(changed)
            if changed
            else "nothing that is recorded: they count as one machine, and the same seeds as "
            "repeats"
        )
        notes.append(f"{folders[0].name} and {folder.name} differ in {differences}")
    return notes
