"""Commands before a run: a starter recipe, a preview, the machine."""

from __future__ import annotations

from pathlib import Path

import click

import toolkit
from toolkit.cli.terminal import as_json, errors, load_recipe, print_json, say, workers_option


@click.command()
@click.argument("name", default="recipe.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
@as_json
def init(name: Path, force: bool, as_json: bool) -> None:
    """Write a commented starter recipe."""
    with errors():
        path = name if name.suffix in (".yaml", ".yml") else name.with_name(f"{name.name}.yaml")
        if path.exists() and not force:
            raise click.UsageError(f"{path} is there already; choose another name, or --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((Path(toolkit.__file__).parent / "recipe" / "starter.yaml").read_bytes())
        print_json({"recipe": str(path)}) if as_json else say(
            f"{path}: edit it, then `ftk check {path}` and `ftk run {path}`"
        )


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--no-probe",
    is_flag=True,
    help="Do not try a little of the work: no times, no measured memory.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder that keeps the forecast; `ftk run` says how it came out.",
)
@workers_option
@as_json
def check(
    recipe: Path, no_probe: bool, out: Path | None, workers: int | None, as_json: bool
) -> None:
    """Validate a recipe; show data, plan, memory, disk and time."""
    with errors():
        loaded = load_recipe(recipe)
        from toolkit.pipeline.checks.without_base import check_early

        check_early(loaded, out)
        from toolkit.pipeline import preview

        forecast = preview.check(loaded, probe=not no_probe, workers=workers, out=out)
        print_json(forecast) if as_json else preview.show(forecast)


@click.command()
@as_json
def doctor(as_json: bool) -> None:
    """What is installed, and what would make two runs differ."""
    with errors():
        from toolkit.pipeline import preview

        system = preview.doctor()
        print_json(system) if as_json else preview.show_doctor(system)
