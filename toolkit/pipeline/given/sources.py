"""Adapters and models that are there already: which folders, of which base, asked what."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from toolkit.embedded import with_version
from toolkit.model.adapters import adapter_paths
from toolkit.model.base import EMBEDDED
from toolkit.model.full import read_weights
from toolkit.pipeline.job import RunError, open_folder, successful
from toolkit.recipe import SHIFTS, Data, Evaluation, Given, Recipe
from toolkit.record.folders import (
    is_run,
)
from toolkit.record.population import (
    changed_files,
    read_records,
    replica_folder,
)


def collections_of(sources: Sequence[Path]) -> list[tuple[Path, list[Path]]]:
    """(folder for results, adapters) for each population that the sources mean; loose adapter
    folders are one population.
    """
    loose: list[Path] = []
    collections = []
    for source in sources:
        if not source.exists():
            raise RunError(
                f"{source}: no such folder; name a run, a condition of it, or folders of "
                "PEFT adapters"
            )
        if is_run(source):
            conditions = [source / name for name in open_folder(source).conditions]
        else:
            conditions = [source] if (source / "replicas").is_dir() else []
        for condition in conditions:
            refuse_damaged(condition)
            if replicas := successful(condition):
                collections.append((condition, [replica_folder(condition, r) for r in replicas]))
        if not conditions:
            loose += adapter_paths(source)
    if loose:
        collections.append((sources[0] if len(sources) == 1 else Path(), loose))
    if not collections:
        raise RunError(f"{sources[0]}: no finished replicas there; `ftk train-replicas` makes them")
    return collections


def refuse_damaged(condition: Path) -> None:
    """Refuse a population in which a finished replica is not, or no longer, what was recorded:
    nobody would see that it is left out.

    Raises RunError in one line.
    """
    for r, record in read_records(condition).items():
        if changed := changed_files(replica_folder(condition, r), record):
            raise RunError(
                f"{replica_folder(condition, r)}: {changed[0]} is not what was recorded; "
                f"`ftk run {condition.parent / 'recipe.yaml'} --out {condition.parent}` "
                "makes it again"
            )


def unlike(folders: Sequence[Path]) -> list[str]:
    """A name for each folder, no two alike: its own, and as many of those above it as it takes,
    `b-lora` beside `a-lora`.
    """
    whole = [folder.absolute().parts[1:] for folder in folders]
    for count in range(1, max(map(len, whole)) + 1):
        names = [
            re.sub(r"[^A-Za-z0-9._-]", "-", "-".join(parts[-count:])) if count > 1 else folder.name
            for parts, folder in zip(whole, folders, strict=True)
        ]
        if len(set(names)) == len(names):
            return names
    return [f"{folder.name}-{i}" for i, folder in enumerate(folders)]


def suite_name(prompts: str) -> str:
    """What a suite is called, from its file or from `embedded:NAME`."""
    shift = prompts.rpartition(":")[2]
    return shift if shift in SHIFTS else re.sub(r"[^A-Za-z0-9._-]", "-", Path(prompts).stem)


def home_of(sources: Sequence[Path]) -> Path | None:
    """The run that the sources lie in, if any."""
    return next(
        (path for source in sources for path in (source, source.parent) if is_run(path)), None
    )


def setting_of(
    sources: Sequence[Path], adapter: Path, base: str | None
) -> tuple[Recipe | None, str, Evaluation]:
    """The recipe of the run that the sources lie in, if any; the base model; and how answers are
    given.
    """
    home = home_of(sources)
    run_recipe = open_folder(home) if home else None
    base = base or (run_recipe.base if run_recipe else None) or read_weights(adapter).base
    if not base:
        raise RunError(f"{adapter}: does not say its base model; name it with --base")
    return (
        run_recipe,
        "embedded" if base == str(EMBEDDED) else base,
        run_recipe.evaluation if run_recipe else Evaluation(),
    )


def one_suite(
    name: str,
    prompts: str,
    base: str,
    evaluation: Evaluation,
    adapters: Mapping[str, Sequence[Path]],
    run_recipe: Recipe | None,
) -> Recipe:
    """A recipe that asks one suite and trains nothing. run_recipe: of the run that the adapters are
    from.
    """
    return Recipe(
        name=name,
        base=base,
        data=Data(
            train="",
            suites={suite_name(prompts): with_version(prompts)},
            date=run_recipe.data.date if run_recipe else None,
        ),
        conditions={
            condition: Given(adapters=[str(path) for path in paths])
            for condition, paths in adapters.items()
        },
        evaluation=evaluation,
    )
