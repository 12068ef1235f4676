"""The commands. Each one loads what it is given, calls one function, and prints where the result lies; heavy imports wait until then."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import toolkit

if TYPE_CHECKING:
    from toolkit.pipeline import Console

DONE, FAILED, BAD_INPUT = 0, 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(toolkit.__version__, prog_name="ftk")
def main() -> None:
    """How different are two fine-tunes of one model on one data set, where does it matter, and what does a remedy buy?

    Start with `ftk demo`, or `ftk init` and `ftk run recipe.yaml`.
    """


as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
workers_option = click.option("--workers", type=click.IntRange(1), help="Worker processes (default: one a core; one on a GPU).")
out_option = click.option("--out", type=click.Path(path_type=Path), help="Run folder.")


# -- the whole ---------------------------------------------------------------------------------------------------------


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@out_option
@click.option("--engine", type=click.Choice(["local"]), default="local", help="Where the work runs.")
@click.option("--replicas", type=click.IntRange(2), help="Replicas of every condition, instead of the recipe's.")
@workers_option
@as_json
def run(recipe: Path, out: Path | None, engine: str, replicas: int | None, workers: int | None, as_json: bool) -> None:
    """Train, merge, evaluate, measure and report. Resumes: the same command does only what is missing."""
    _run(
        recipe, out or Path("runs") / recipe.stem, replicas, workers, as_json, again=f"ftk run {recipe}" + (f" --out {out}" if out else "")
    )


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder.")
@click.option("--replicas", type=click.IntRange(2), help="Fewer or more replicas than the demo's 64.")
@workers_option
@as_json
def demo(out: Path, replicas: int | None, workers: int | None, as_json: bool) -> None:
    """The whole pipeline on the embedded model and data, in minutes on two CPU cores, ending in a report."""
    _run(Path(toolkit.__file__).parent / "demo.yaml", out, replicas, workers, as_json, again=f"ftk demo --out {out}")


def _run(path: Path, out: Path, replicas: int | None, workers: int | None, as_json: bool, again: str) -> None:
    with _errors(again):
        from toolkit import pipeline
        from toolkit.report import table_text

        recipe = _recipe(path, replicas)
        console = _console()
        results = pipeline.run(recipe, out, workers=workers, console=console)
        report = (out / "report.html").resolve()
        if as_json:
            found = {"run": str(out), "results": str(out / "results.json"), "report": str(report)}
            _print_json(found | {"seconds": console.seconds, "verdict": list(results.verdict)})
            return
        click.echo(table_text(results))
        for sentence in results.verdict:
            click.echo(f"- {sentence}")
        click.echo("seconds: " + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in console.seconds.items()))
        click.echo(f"report: {report}")


# -- the arrows --------------------------------------------------------------------------------------------------------


@main.command("train-replicas")
@click.argument("recipe", type=click.Path(path_type=Path))
@out_option
@click.option("--condition", "-c", multiple=True, help="Only this condition (may be repeated).")
@click.option("--replicas", type=click.IntRange(1), help="Train replicas 0 to N-1.")
@click.option("--only", help="Train these again even if they are finished: 3,17 or 0-7.")
@workers_option
@as_json
def train_replicas(
    recipe: Path, out: Path | None, condition: tuple[str, ...], replicas: int | None, only: str | None, workers: int | None, as_json: bool
) -> None:
    """Train a recipe's replicas, many at once on one frozen base. Each is a PEFT adapter folder."""
    folder = out or Path("runs") / recipe.stem
    with _errors(f"ftk train-replicas {recipe}" + (f" --out {out}" if out else "")):
        from toolkit import pipeline

        loaded = _recipe(recipe, None)
        names = _conditions(loaded.conditions, condition)
        chosen = _indices(only) if only else None
        found: dict[str, Any] = {}
        console = _console()
        with pipeline.open_run(loaded, folder, workers=workers, console=console) as job:
            for name in names:
                population = pipeline.train(job, name, replicas=replicas, only=chosen)
                failed = [r for r, record in population.items() if record.status == "failed"]
                found[name] = {"folder": str(folder / name / "replicas"), "replicas": len(population), "failed": failed}
        if as_json:
            _print_json({"run": str(folder), "conditions": found, "seconds": console.seconds})
            return
        for name, population in found.items():
            failed = f", {len(population['failed'])} of them failed" if population["failed"] else ""
            click.echo(f"{name}: {population['replicas']} replicas{failed} in {population['folder']}")


@main.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--method", required=True, help="mean, swa, ema or ties.")
@click.option("--groups", "k", type=click.IntRange(1), help="Merge disjoint groups of K replicas.")
@click.option("--all", "merge_all", is_flag=True, help="Merge everything into one adapter (the default).")
@click.option("--rank", default="full", show_default=True, help="full (exact), same, a number, or energy=0.99.")
@click.option("--density", type=click.FloatRange(0, 1, min_open=True), help="ties: share of the entries that is kept.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the merged adapter (or of the groups).")
@as_json
def merge(
    sources: tuple[Path, ...],
    method: str,
    k: int | None,
    merge_all: bool,
    rank: str,
    density: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Merge replicas in delta space: a run, a condition of it, or any folders of PEFT adapters."""
    with _errors():
        from toolkit import pipeline

        if k and merge_all:
            raise click.UsageError("--groups and --all exclude each other")
        parameters = {} if density is None else {"density": density}
        reports = pipeline.merge_sources(sources, method=method, k=k, rank=rank, out=out, parameters=parameters)
        if as_json:
            _print_json({"merged": reports})
            return
        for report in reports:
            click.echo(
                f"{report['out']}: {report['method']} of {report['k']} adapters, rank {report['rank']}, energy kept {report['energy']:.4f}"
            )


@main.command()
@click.argument("subjects", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--prompts", help="Suite file of prompts, or embedded:typical|near|far (default for a run: its own suites).")
@click.option("--base", help="Base model, where the adapters do not say it or say it wrongly.")
@click.option("--answer", help="text, first-line, regex:PATTERN or embedded (default: the run's, or text).")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer.")
@out_option
@workers_option
@as_json
def evaluate(
    subjects: tuple[Path, ...],
    prompts: str | None,
    base: str | None,
    answer: str | None,
    max_new_tokens: int | None,
    out: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Let a run, a condition, or folders of PEFT adapters answer prompts; print how much they disagree."""
    with _errors():
        from toolkit import pipeline
        from toolkit.report import table_text

        settings = {"prompts": prompts, "base": base, "answer_rule": answer, "max_new_tokens": max_new_tokens}
        folder, results = pipeline.evaluate_subjects(subjects, out=out, workers=workers, console=_console(), **settings)
        if as_json:
            _print_json({"out": str(folder), "results": json.loads((folder / "results.json").read_text())})
            return
        click.echo(table_text(results))
        click.echo(f"outcomes: {folder / 'outcomes'}")
        click.echo(f"report: {(folder / 'report.html').resolve()}")


@main.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@as_json
def report(folder: Path, as_json: bool) -> None:
    """results.json -> report.html."""
    with _errors():
        from toolkit.report import write_report

        if not (folder / "results.json").is_file():
            raise click.UsageError(f"{folder}: no results.json; `ftk run RECIPE --out {folder}` makes one")
        path = write_report(folder)
        _print_json({"report": str(path)}) if as_json else click.echo(path)


# -- before the run ----------------------------------------------------------------------------------------------------


@main.command()
@click.argument("name", default="recipe.yaml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite an existing file.")
def init(name: Path, force: bool) -> None:
    """Write a commented starter recipe."""
    with _errors():
        path = name if name.suffix in (".yaml", ".yml") else name.with_suffix(".yaml")
        if path.exists() and not force:
            raise click.UsageError(f"{path} is there already; choose another name, or --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text((Path(toolkit.__file__).parent / "starter.yaml").read_text())
        click.echo(f"{path}: edit it, then `ftk check {path}` and `ftk run {path}`")


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--no-probe", is_flag=True, help="Do not time a few training steps.")
@as_json
def check(recipe: Path, no_probe: bool, as_json: bool) -> None:
    """Validate a recipe; show the data as the model will see it, the plan, memory, disk and time."""
    with _errors():
        loaded = _recipe(recipe, None)  # a wrong recipe is told before anything heavy is loaded
        from toolkit import preview

        found = preview.check(loaded, probe=not no_probe)
        _print_json(found) if as_json else preview.show(found)


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """What is installed, where it runs, and what would make two runs differ."""
    with _errors():
        from toolkit import preview

        found = preview.doctor()
        _print_json(found) if as_json else preview.show_doctor(found)


# -- help of the commands ----------------------------------------------------------------------------------------------


def _recipe(path: Path, replicas: int | None) -> Any:
    from toolkit.recipe import load_recipe

    recipe = load_recipe(path)
    if replicas is None:
        return recipe
    conditions = {name: c.model_copy(update={"replicas": None}) for name, c in recipe.conditions.items()}
    return recipe.model_copy(update={"replicas": replicas, "conditions": conditions})


def _conditions(known: dict[str, Any], asked: tuple[str, ...]) -> list[str]:
    for name in asked:
        if name not in known:
            raise click.UsageError(f"no condition {name!r} in the recipe; there are: {', '.join(known)}")
    return list(asked) or list(known)


def _indices(text: str) -> list[int]:
    """`3,17` and `0-7` as a sorted list."""
    try:
        found: set[int] = set()
        for part in text.split(","):
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
        return sorted(found)
    except ValueError:
        raise click.UsageError(f"--only {text!r}: write replicas as 3,17 or 0-7") from None


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def _errors(again: str | None = None) -> Iterator[None]:
    """One clear line instead of a traceback, and the exit code that scripts rely on."""
    try:
        yield
    except KeyboardInterrupt:
        _stop(f"stopped; finished work is kept. Go on with: {again or 'the same command'}", 130)
    except click.ClickException as error:
        _stop(error.format_message(), BAD_INPUT)
    except OSError as error:
        import errno

        full = error.errno == errno.ENOSPC
        where = f" ({error.filename})" if error.filename else ""
        _stop(f"the disk is full{where}: free some and run again; finished work is kept" if full else str(error), FAILED)
    except ValueError as error:  # every error of ours about input is a ValueError with one line
        if type(error).__module__.startswith("toolkit."):
            _stop(str(error), BAD_INPUT)
        raise
    except RuntimeError as error:
        if type(error).__module__.startswith("toolkit."):
            _stop(str(error), FAILED)
        raise


def _stop(message: str, code: int) -> None:
    click.echo(f"ftk: {message}", err=True)
    sys.exit(code)


def _console() -> Console:
    """Progress and notes on stderr: a bar on a terminal, plain lines elsewhere."""
    from toolkit.pipeline import Console

    def note(text: str) -> None:
        click.echo(text, err=True)

    return Console(note=note, progress=_bar if sys.stderr.isatty() else _lines)


def _lines(title: str, count: int) -> Callable[[float], None]:
    """A line at every tenth, with the pace and the time left."""
    import time

    start, told = time.monotonic(), [0]

    def update(share: float) -> None:
        if count and int(share * 10) > told[0]:
            told[0] = int(share * 10)
            seconds = time.monotonic() - start
            pace = share * count / seconds if seconds else 0.0
            left = seconds * (1 - share) / share
            click.echo(f"{title}: {share * count:.0f}/{count}, {pace:.2f}/s, {left:.0f} s left", err=True)

    return update


def _bar(title: str, count: int) -> Callable[[float], None]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}"), TimeElapsedColumn(), TimeRemainingColumn()]
    bar = Progress(*columns, console=RichConsole(stderr=True))
    task = bar.add_task(title, total=1.0, pace="")

    def update(share: float) -> None:
        if not bar.live.is_started:
            bar.start()
        elapsed = bar.tasks[0].elapsed or 0.0
        pace = share * count / elapsed if elapsed else 0.0
        bar.update(task, completed=share, pace=f"{share * count:.0f}/{count} {pace:.2f}/s")
        if share >= 1:
            bar.stop()

    return update
