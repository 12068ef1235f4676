"""The commands. Each one loads what it is given, calls one function, and prints where the result lies; heavy imports wait until then."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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
    """From a recipe to a report. Run it again: only what is missing is done."""
    _run(recipe, out or Path("runs") / recipe.stem, replicas, workers, as_json)


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Run folder.")
@click.option("--replicas", type=click.IntRange(2), help="Fewer or more replicas than the demo's 64.")
@workers_option
@as_json
def demo(out: Path, replicas: int | None, workers: int | None, as_json: bool) -> None:
    """The whole on the embedded model, in minutes on two cores."""
    _run(Path(toolkit.__file__).parent / "demo.yaml", out, replicas, workers, as_json)


def _run(path: Path, out: Path, replicas: int | None, workers: int | None, as_json: bool) -> None:
    with _errors():
        recipe = _recipe(path, replicas)  # a wrong recipe is told before anything heavy is loaded
        from toolkit import pipeline
        from toolkit.report import table_text

        with _console() as console:
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
    """Train a recipe's replicas, many at once on one base.

    Each is a PEFT adapter folder. Run it again: only what is missing is done.
    """
    folder = out or Path("runs") / recipe.stem
    with _errors():
        loaded = _recipe(recipe, None)
        names = _conditions(loaded.conditions, condition)
        chosen = None if only is None else _indices(only)
        from toolkit import pipeline

        found: dict[str, Any] = {}
        with _console() as console, pipeline.open_run(loaded, folder, workers=workers, console=console) as job:
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
    """Merge replicas in delta space, all or in groups.

    A SOURCE is a run, a condition of it, or any folder of PEFT adapters.
    """
    with _errors():
        if k and merge_all:
            raise click.UsageError("--groups and --all exclude each other")
        from toolkit import external

        parameters = {} if density is None else {"density": density}
        try:
            reports = external.merge_sources(sources, method=method, k=k, rank=rank, out=out, parameters=parameters)
        except ValueError as error:  # a method, parameter or rank that there is not
            raise click.UsageError(str(error)) from error
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
    """Let adapters answer prompts; print how much they disagree.

    A SUBJECT is a run, a condition of it, or any folder of PEFT adapters.
    """
    with _errors():
        from toolkit.data import check_rule

        check_rule(answer or "text")
        _without_network(base, prompts)
        from toolkit import external
        from toolkit.report import table_text

        settings = {"prompts": prompts, "base": base, "answer_rule": answer, "max_new_tokens": max_new_tokens}
        with _console() as console:
            folder, results = external.evaluate_subjects(subjects, out=out, workers=workers, console=console, **settings)
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
@as_json
def init(name: Path, force: bool, as_json: bool) -> None:
    """Write a commented starter recipe."""
    with _errors():
        path = name if name.suffix in (".yaml", ".yml") else name.with_name(f"{name.name}.yaml")
        if path.exists() and not force:
            raise click.UsageError(f"{path} is there already; choose another name, or --force")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((Path(toolkit.__file__).parent / "starter.yaml").read_bytes())
        _print_json({"recipe": str(path)}) if as_json else click.echo(f"{path}: edit it, then `ftk check {path}` and `ftk run {path}`")


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--no-probe", is_flag=True, help="Do not time a few training steps.")
@as_json
def check(recipe: Path, no_probe: bool, as_json: bool) -> None:
    """Validate a recipe; show data, plan, memory, disk and time."""
    with _errors():
        loaded = _recipe(recipe, None)
        from toolkit import preview

        found = preview.check(loaded, probe=not no_probe)
        _print_json(found) if as_json else preview.show(found)


@main.command()
@as_json
def doctor(as_json: bool) -> None:
    """What is installed, and what would make two runs differ."""
    with _errors():
        from toolkit import preview

        found = preview.doctor()
        _print_json(found) if as_json else preview.show_doctor(found)


# -- help of the commands ----------------------------------------------------------------------------------------------


def _recipe(path: Path, replicas: int | None) -> Any:
    from toolkit.recipe import load_recipe

    recipe = load_recipe(path)
    _without_network(recipe.base, recipe.data.train, *recipe.data.suites.values())
    if replicas is None:
        return recipe
    conditions = {name: c.model_copy(update={"replicas": None}) for name, c in recipe.conditions.items()}
    return recipe.model_copy(update={"replicas": replicas, "conditions": conditions})


def _conditions(known: dict[str, Any], asked: tuple[str, ...]) -> list[str]:
    for name in asked:
        if name not in known:
            raise click.UsageError(f"no condition {name!r} in the recipe; there are: {', '.join(known)}")
    return list(dict.fromkeys(asked)) or list(known)


def _without_network(*sources: str | None) -> None:
    """Tell the hub's client at once that there is no network, which it would take a minute of retries to notice."""
    hub = any(s and not s.startswith("embedded") and not Path(s).exists() for s in sources)
    if not hub or any(name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ):
        return
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _indices(text: str) -> list[int]:
    """`3,17` and `0-7` as a sorted list."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        replicas = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not replicas:
            raise click.UsageError(f"--only {text!r}: write replicas as 3,17 or 0-7")
        found |= set(replicas)
    return sorted(found)


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


@contextmanager
def _errors() -> Iterator[None]:
    """One clear line instead of a traceback, and the exit code that scripts rely on."""
    try:
        yield
    except KeyboardInterrupt:
        _stop(f"stopped; finished work is kept. Go on with: {shlex.join(['ftk', *sys.argv[1:]])}", 130)
    except click.ClickException as error:
        _stop(error.format_message(), BAD_INPUT)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `ftk ... | head`: click's to handle
            raise
        reason = "the disk is full: free some and run again; finished work is kept" if error.errno == errno.ENOSPC else error.strerror
        _stop(f"{error.filename}: {reason}" if error.filename else reason or str(error), FAILED)
    except (ValueError, RuntimeError) as error:
        if not type(error).__module__.startswith("toolkit."):
            raise
        from toolkit.engines import WorkerDied  # every other error of ours is about what was asked

        _stop(str(error), FAILED if isinstance(error, WorkerDied) else BAD_INPUT)


def _stop(message: str, code: int) -> None:
    click.echo(f"ftk: {message}", err=True)
    sys.exit(code)


@contextmanager
def _console() -> Iterator[Console]:
    """Progress and notes on stderr: a bar on a terminal, which ends with the block however that ends; plain lines elsewhere."""
    from toolkit.pipeline import Console

    def note(text: str) -> None:
        click.echo(text, err=True)

    with ExitStack() as bars:
        yield Console(note=note, progress=partial(_bar, bars) if sys.stderr.isatty() else _lines)


def _lines(title: str, count: int) -> Callable[[float], None]:
    """A line at every tenth, with the pace and the time left."""
    import time

    start, told = time.monotonic(), [0]

    def update(share: float) -> None:
        if count and int(share * 10) > told[0]:
            told[0] = int(share * 10)
            seconds = time.monotonic() - start
            pace = share * count / seconds if seconds else 0.0
            time_ = f"{seconds * (1 - share) / share:.0f} s left" if share < 1 else f"{seconds:.0f} s"
            click.echo(f"{title}: {share * count:.0f}/{count}, {pace:.2f}/s, {time_}", err=True)

    return update


def _bar(bars: ExitStack, title: str, count: int) -> Callable[[float], None]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[pace]}"), TimeElapsedColumn(), TimeRemainingColumn()]
    bar = Progress(*columns, console=RichConsole(stderr=True), redirect_stdout=False)
    bars.callback(bar.stop)
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


if __name__ == "__main__":
    main(prog_name="ftk")
