"""`ftk basin` and `ftk modules`: may adapters be averaged, and in which modules do they differ?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from toolkit.data import is_chat, read_rows, read_suite
from toolkit.measurement.run import save_modules
from toolkit.merging import (
    under_one_naming,
)
from toolkit.merging.basin import Basin, diagnose_basin
from toolkit.merging.module_spread import Population, modules
from toolkit.model.adapters import read_adapter
from toolkit.model.adopt import check_base, layer_shapes
from toolkit.model.base import check_cache, load_base
from toolkit.model.full import FULL, copies
from toolkit.pipeline.given.sources import collections_of, setting_of, suite_name, unlike
from toolkit.pipeline.job import RunError
from toolkit.record.folders import (
    is_run,
)
from toolkit.record.population import (
    groups,
    read_replica,
)
from toolkit.record.results import Modules


def basins(
    sources: Sequence[Path],
    *,
    prompts: Sequence[str],
    base: str | None = None,
    k: int | None = None,
    method: str = "mean",
    merge: Callable[[Path, Sequence[Path], Path], Path] | None = None,
) -> list[tuple[Path, Basin]]:
    """Whether the members of each population lie in one basin, on prompts that have references.

    merge: (population, members, folder to write) -> the adapter that `method` makes of a group;
    None: their mean. Raises RunError, AdapterError, BaseError, BasinError or DataError in one line.
    """
    collections = collections_of(sources)
    run_recipe, base, _ = setting_of(sources, collections[0][1][0], base)
    check_cache(base)
    loaded = load_base(base, run_recipe.dtype if run_recipe else "float32")
    chat = (
        run_recipe is not None
        and bool(run_recipe.data.train)
        and is_chat(read_rows(run_recipe.data.train), run_recipe.data.format)
    )
    date = run_recipe.data.date if run_recipe else None
    suite_prompts = [
        prompt
        for source in prompts
        for prompt in read_suite(source, name=suite_name(source), chat=chat, date=date)
    ]
    shape_of = layer_shapes(loaded.model)
    diagnosed = []
    for folder, paths in collections:
        adapters = [check_base(read_adapter(path), loaded, shape_of) for path in paths]
        if merge is None and not any(map(read_replica, paths)) and (twins := copies(adapters)):
            raise RunError(f"{twins}; leave one out")
        with tempfile.TemporaryDirectory() as scratch:
            merged = None
            if merge:
                members = groups(range(len(paths)), k or len(paths))
                made = [
                    merge(folder, [paths[i] for i in group], Path(scratch) / f"g{g:03d}")
                    for g, group in enumerate(members)
                ]
                merged = [read_adapter(path) for path in made]
            diagnosed.append(
                (
                    folder,
                    diagnose_basin(
                        adapters, loaded, suite_prompts, k=k, method=method, merged_G=merged
                    ),
                )
            )
    return diagnosed


def module_spreads(sources: Sequence[Path]) -> tuple[Modules, ...]:
    """The spread of weight changes by module, of each population, against the first one; kept in a
    run's results where it is one.

    Of a run, conditions that train all weights are left out: they have no factors to take inner
    products of. Raises RunError or AdapterError in one line.
    """
    populations, of_run = [], len(sources) == 1 and is_run(sources[0])
    collections = collections_of(sources)
    for name, (folder, paths) in zip(
        unlike([folder for folder, _ in collections]), collections, strict=True
    ):
        if of_run and paths and (paths[0] / FULL).is_file():
            continue
        if len(paths) < 2:
            raise RunError(f"{folder}: {len(paths)} adapter; a spread takes two or more")
        shapes = [read_replica(path) for path in paths]
        numbers = [record.replica if record else i for i, record in enumerate(shapes)]
        seeds = [record.seeds if record else {} for record in shapes]
        adapters = [read_adapter(path) for path in paths]
        adapters, _ = under_one_naming(adapters, (adapters[0].base, adapters[0].revision))
        if not any(shapes) and (twins := copies(adapters)):
            raise RunError(f"{twins}; leave one out")
        populations.append(Population(name or "adapters", adapters, numbers, seeds))
    if not populations:
        raise RunError(f"{sources[0]}: none of its conditions trains adapters")
    spreads = modules(populations)
    if of_run:
        save_modules(sources[0], spreads)
    return spreads
