"""Commands along the arrows: from a recipe to replicas, merged adapters, outcomes and a report."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import click

import toolkit
from toolkit.cli.terminal import (
    GROUP,
    REPLICAS,
    Between,
    as_json,
    console,
    engine_option,
    errors,
    given,
    load_recipe,
    out_option,
    print_json,
    say,
    show,
    without_network,
    workers_option,
)
from toolkit.errors import GATE_SAID_NO, FtkError
from toolkit.record.plain import read_json


class MethodOption(click.Option):
    """Its help names the merge methods, which are looked up only when help is shown."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The option's line of the help, with the methods' names."""
        from toolkit.recipe.merge_methods import MERGE_METHODS

        self.help = f"{', '.join(MERGE_METHODS)}, or mergekit:NAME."
        return super().get_help_record(ctx)


class EnsembleName(click.ParamType):
    """One of the ensembles that a recipe knows, looked up only when it is asked for."""

    name = "ensemble"

    def _choice(self) -> click.Choice:
        from toolkit.recipe import EnsembleMethod

        return click.Choice(get_args(EnsembleMethod))

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """The names, as the help shows them."""
        return self._choice().get_metavar(param, ctx)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name, where it is known; else a usage error that lists the names."""
        return self._choice().convert(value, param, ctx)


@contextmanager
def _usage() -> Iterator[None]:
    """A method, parameter or rank that there is not is a wrong command line."""
    try:
        yield
    except ValueError as error:
        raise click.UsageError(str(error)) from error


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@out_option
@engine_option
@click.option(
    "--replicas", type=REPLICAS, help="Replicas of every condition, instead of the recipe's."
)
@workers_option
@as_json
def run(
    recipe: Path,
    out: Path | None,
    engine: Literal["local", "ray"],
    replicas: int | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """From a recipe to a report. Run it again: only what is missing is done."""
    _run(recipe, out or Path("runs") / recipe.stem, replicas, workers, as_json, engine)


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Run folder.",
)
@click.option("--replicas", type=REPLICAS, help="Fewer or more replicas than the demo's 64.")
@workers_option
@as_json
def demo(out: Path, replicas: int | None, workers: int | None, as_json: bool) -> None:
    """The whole on the embedded model, in minutes on two cores."""
    _run(Path(toolkit.__file__).parent / "recipe" / "demo.yaml", out, replicas, workers, as_json)


def _run(
    path: Path,
    out: Path,
    replicas: int | None,
    workers: int | None,
    as_json: bool,
    engine: Literal["local", "ray"] = "local",
) -> None:
    with errors():
        recipe = load_recipe(path)
        fresh = not any(out.glob("*/population.json"))
        with console() as screen:
            results = toolkit.run(
                recipe, out, replicas=replicas, workers=workers, engine=engine, console=screen
            )
        from toolkit.pipeline.forecast import compared
        from toolkit.report.terminal import table_text

        if fresh and (line := compared(out, screen.seconds)):
            say(line, err=True)
        report = (out / "report.html").resolve()
        if as_json:
            paths = {"run": str(out), "results": str(out / "results.json"), "report": str(report)}
            print_json(paths | {"seconds": screen.seconds, "verdict": list(results.verdict)})
            return
        show(table_text(results))
        for sentence in results.verdict:
            say(f"- {sentence}")
        say(
            "seconds: "
            + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in screen.seconds.items())
        )
        say(f"report: {report}")


# -- the arrows ----------------------------------------------------------------------------------


@click.command("train-replicas")
@click.argument("recipe", type=click.Path(path_type=Path))
@out_option
@click.option("--condition", "-c", multiple=True, help="Only this condition (may be repeated).")
@click.option("--replicas", type=GROUP, help="Train replicas 0 to N-1.")
@click.option("--only", help="Train these again even if they are finished: 3,17 or 0-7.")
@engine_option
@workers_option
@as_json
def train_replicas(
    recipe: Path,
    out: Path | None,
    condition: tuple[str, ...],
    replicas: int | None,
    only: str | None,
    engine: Literal["local", "ray"],
    workers: int | None,
    as_json: bool,
) -> None:
    """Train a recipe's replicas, many at once on one base.

    Each is a PEFT adapter folder. Run it again: only what is missing is done.
    """
    folder = out or Path("runs") / recipe.stem
    with errors():
        loaded = load_recipe(recipe)
        chosen = None if only is None else _indices(only)
        with console() as screen:
            trained = toolkit.train_replicas(
                loaded,
                folder,
                conditions=condition,
                replicas=replicas,
                only=chosen,
                workers=workers,
                engine=engine,
                console=screen,
            )
        conditions = {
            name: {
                "folder": str(population.folder),
                "replicas": len(population.replicas),
                "failed": list(population.failed),
            }
            for name, population in trained.items()
        }
        if as_json:
            print_json({"run": str(folder), "conditions": conditions, "seconds": screen.seconds})
            return
        for name, population in conditions.items():
            failed = f", {len(population['failed'])} of them failed" if population["failed"] else ""
            say(f"{name}: {population['replicas']} replicas{failed} in {population['folder']}")


@click.command()
@click.argument("sources", nargs=-1, type=click.Path(path_type=Path))
@click.option("--method", cls=MethodOption)
@click.option(
    "--config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Instead of sources and a method: mergekit's YAML.",
)
@click.option("-k", "--groups", "k", type=GROUP, help="Merge disjoint groups of K replicas.")
@click.option(
    "--all", "merge_all", is_flag=True, help="Merge everything into one adapter (the default)."
)
@click.option(
    "--rank",
    default="full",
    show_default=True,
    help="full (exact), same, a number, or energy=0.99.",
)
@click.option(
    "--density",
    type=Between(1e-6, 1),
    help="Short for --set density=...: share of the entries that is kept.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the method (may be repeated).",
)
@click.option(
    "--buffer",
    type=click.IntRange(1, 65_536),
    help="Sum in this many ranks, not densely, with a bound on the error; needs --rank.",
)
@click.option(
    "--dense", is_flag=True, help="Write full models: the change added to the base weights."
)
@click.option("--base", help="Base model, where the adapters do not say it or say it differently.")
@click.option("--prompts", help="greedy_soup: suite with references, the scores of which decide.")
@click.option(
    "--score",
    type=click.Choice(["accuracy", "logprob"]),
    default="accuracy",
    help="greedy_soup: what is scored.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the merged adapter (or of the groups).",
)
@click.option(
    "--guard",
    multiple=True,
    help="Suite with references: warn before writing where the merge leaves its members' basin "
    "(see `ftk basin`).",
)
@click.option(
    "--strict",
    is_flag=True,
    help="With --guard: write nothing and exit with code 3 instead of a warning.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Write into a folder with other files, or over a README.md that ftk has not written.",
)
@as_json
def merge(
    sources: tuple[Path, ...],
    method: str | None,
    config: Path | None,
    k: int | None,
    merge_all: bool,
    rank: str,
    density: float | None,
    settings: tuple[str, ...],
    buffer: int | None,
    dense: bool,
    base: str | None,
    prompts: str | None,
    score: Literal["accuracy", "logprob"],
    out: Path | None,
    guard: tuple[str, ...],
    strict: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Merge replicas in delta space, all or in groups.

    A SOURCE is a run, a condition of it, or any folder of PEFT adapters.
    """
    with errors():
        if k and merge_all:
            raise click.UsageError("--groups and --all exclude each other")
        if config:
            with_it = {"config", "rank", "out", "force", "as_json"}
            names = [str(parameter.name) for parameter in merge.params]
            if lost := given(*(name for name in names if name not in with_it)):
                raise click.UsageError(
                    "--config says what is merged and how; only --rank, --out and --force go with "
                    f"it, not {lost}"
                )
            _show_merges([_as_mergekit(config, rank, out, force)], as_json)
            return
        if not sources or not method:
            lacking = "--method, such as mean" if sources else "folders of adapters to merge"
            raise click.UsageError(f"add {lacking}; or name a --config of mergekit")
        if not prompts and given("score"):
            raise click.UsageError(
                "--score says what greedy_soup takes on its --prompts: name them"
            )
        if strict and not guard:
            raise click.UsageError("--strict is what a --guard does: name its suite")
        parameters = _settings(settings) | ({} if density is None else {"density": density})
        from toolkit.pipeline.console import Console

        try:
            reports = toolkit.merge(
                sources,
                out,
                method=method,
                k=k,
                rank=rank,
                parameters=parameters,
                base=base,
                buffer=buffer,
                dense=dense,
                prompts=prompts,
                score=score,
                guard=guard,
                strict=strict,
                force=force,
                console=Console(note=partial(say, err=True)),
            )
        except FtkError as error:
            if error.exit_code != GATE_SAID_NO:
                raise
            say(error, err=True)
            sys.exit(GATE_SAID_NO)
        _show_merges(reports, as_json)


@click.command()
@click.argument("subjects", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--prompts",
    help="Suite file of prompts, or embedded:typical|near|far (default for a run: its own suites).",
)
@click.option("--base", help="Base model, where the adapters do not say it or say it wrongly.")
@click.option(
    "--answer", help="text, first-line, regex:PATTERN or embedded (default: the run's, or text)."
)
@click.option("--max-new-tokens", type=click.IntRange(1, 10**7), help="Longest answer.")
@click.option(
    "--ensemble",
    type=EnsembleName(),
    help="Let disjoint groups of the adapters answer as one, too.",
)
@click.option(
    "-k",
    "--groups",
    "k",
    type=REPLICAS,
    help="With --ensemble: adapters in a group (default: all are one group).",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Of the ensemble: similarity, threshold, weights.",
)
@out_option
@workers_option
@as_json
def evaluate(
    subjects: tuple[Path, ...],
    prompts: str | None,
    base: str | None,
    answer: str | None,
    max_new_tokens: int | None,
    ensemble: str | None,
    k: int | None,
    settings: tuple[str, ...],
    out: Path | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Let adapters answer prompts; print how much they disagree.

    A SUBJECT is a run, a condition of it, or any folder of PEFT adapters.
    """
    with errors():
        if (k or settings) and not ensemble:
            raise click.UsageError("-k and --set say how an --ensemble is made: name one")
        asked = {"ensemble": ensemble, "k": k, **_settings(settings)} if ensemble else None
        without_network(base, prompts)
        with console() as screen:
            folder, results = toolkit.evaluate(
                subjects,
                prompts,
                out,
                base=base,
                answer=answer,
                max_new_tokens=max_new_tokens,
                ensemble=asked,
                workers=workers,
                console=screen,
            )
        from toolkit.report.terminal import table_text

        if as_json:
            print_json({"out": str(folder), "results": read_json(folder / "results.json")})
            return
        show(table_text(results))
        say(f"outcomes: {folder / 'outcomes'}")
        say(f"report: {(folder / 'report.html').resolve()}")


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@as_json
def report(folder: Path, as_json: bool) -> None:
    """results.json -> report.html."""
    with errors():
        from toolkit.report.html import write_report

        if not (folder / "results.json").is_file():
            raise click.UsageError(
                f"{folder}: no results.json; `ftk run RECIPE --out {folder}` makes one"
            )
        path = write_report(folder)
        print_json({"report": str(path)}) if as_json else say(path)


@click.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--replica",
    "-r",
    type=click.IntRange(0, 10**5),
    multiple=True,
    help="Train its stack again (may be repeated).",
)
@click.option("--condition", "-c", multiple=True, help="Only this condition (may be repeated).")
@workers_option
@as_json
def verify(
    folder: Path,
    replica: tuple[int, ...],
    condition: tuple[str, ...],
    workers: int | None,
    as_json: bool,
) -> None:
    """Train replicas again and compare hashes.

    Without options the first stack of every condition. Exit code 3 when a bit differs.
    """
    with errors():
        from toolkit.pipeline.verify import SAME, verify

        with console() as screen:
            verified = verify(
                folder, conditions=condition, replicas=replica, workers=workers, console=screen
            )
        wrong = [record for record in verified["replicas"] if record["verdict"] != SAME]
        if as_json:
            print_json(verified)
        else:
            for record in wrong:
                say(_what_differs(record))
            say(
                f"{len(verified['replicas']) - len(wrong)} of {len(verified['replicas'])} "
                "replicas came out with the same bits"
            )
            compared = {file for replica in verified["replicas"] for file in replica["compared"]}
            say(f"compared: {', '.join(sorted(compared))}")
            if wrong:
                for name, (then, now) in verified["environment"].items():
                    say(f"not as it was: {name} {then} then, {now} now")
        if wrong:
            raise SystemExit(GATE_SAID_NO)


def _what_differs(record: dict[str, Any]) -> str:
    where = f"{record['condition']}, replica {record['replica']}"
    files = ", ".join(record["files"]) or "its record"
    if record["verdict"] == "damaged":
        return (
            f"{where}: {files} on disk is not what was trained; delete the replica's folder, "
            "and `ftk run` trains it again"
        )
    distance = (
        ""
        if record["distance"] is None
        else f"; the weight change is {record['distance']:.1e} of its norm away"
    )
    return f"{where}: {files} came out otherwise{distance}"


def _show_merges(reports: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"merged": list(reports)})
        return
    for report in reports:
        dense = (
            f"{report.get('dtype')} weights, rounding {report.get('rounding', 0):.1e} of the change"
        )
        whole = "rank" in report and report["rank"] is None
        kind = "models" if whole else "adapters"
        size = "whole" if whole else f"rank {report['rank']}" if "rank" in report else dense
        bound = f", error at most {report['error_bound']:.1e}" if "error_bound" in report else ""
        kept = f"energy kept {report['energy']:.4f}" if report["energy"] else "no change left"
        say(f"{report['out']}: {report['method']} of {report['k']} {kind}, {size}, {kept}{bound}")


def _as_mergekit(config: Path, rank: str, out: Path | None, force: bool) -> dict[str, Any]:
    from toolkit.pipeline.given import merge_given

    with _usage():
        report, notes = merge_given.merge_request(
            config, rank=rank, out=out or config.with_name("merged"), force=force
        )
    for note in notes:
        say(note, err=True)
    return report


# -- what the options say ------------------------------------------------------------------------


def _settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """`name=value` of every option --set."""
    from toolkit.recipe.merge_methods import parse_setting

    with _usage():
        return dict(map(parse_setting, settings))


def _indices(text: str) -> list[int]:
    """`3,17` and `0-7` as a sorted list."""
    indexes: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        replicas = range(int(match[1]), int(match[2] or match[1]) + 1) if match else ()
        if not replicas:
            raise click.UsageError(f"--only {text!r}: write replicas as 3,17 or 0-7")
        indexes |= set(replicas)
    return sorted(indexes)
