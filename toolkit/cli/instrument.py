"""The measuring instrument by itself: no model and no torch, unless an adapter has to answer
first.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

import toolkit
from toolkit.cli.terminal import (
    GROUP,
    REPLICAS,
    SHARE,
    Between,
    as_json,
    console,
    errors,
    given,
    load_recipe,
    print_json,
    say,
    show,
    workers_option,
)
from toolkit.errors import GATE_SAID_NO
from toolkit.record.plain import read_json

if TYPE_CHECKING:
    from toolkit.record.results import RunMetrics


def columns_options(command: Callable) -> Callable:
    """Options that name the columns of predictions."""
    column = click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="ROLE=NAME",
        help="Column of a role: replica, prompt, output, reference, category, shift, cluster, "
        "condition, score, ...; ROLE= for none.",
    )
    replicas = click.option(
        "--replica-columns",
        multiple=True,
        metavar="NAMES",
        help="Columns of a wide file that are replicas: a,b,c or a pattern, 'llama_*'.",
    )
    return column(replicas(command))


def roles_of(columns: tuple[str, ...]) -> dict[str, str]:
    """`role=NAME` of every option --column. Raises UsageError."""
    roles: dict[str, str] = {}
    for entry in columns:
        role, sign, name = entry.partition("=")
        if not sign:
            raise click.UsageError(
                f"--column {entry}: write ROLE=NAME, such as --column reference={entry}"
            )
        if role in roles:
            raise click.UsageError(f"--column {role}= is given twice; give it once")
        roles[role] = name
    return roles


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of results.json and report.html (default: beside the file).",
)
@click.option(
    "--same",
    default="exact",
    show_default=True,
    help="When two outputs mean the same: exact, normalised, numeric, json, ...",
)
@click.option(
    "--criteria",
    type=click.Path(path_type=Path),
    help="YAML file with criteria, thresholds and level.",
)
@click.option("--baseline", help="Condition that the others are held against (default: the first).")
@click.option(
    "--paired", is_flag=True, help="Replicas of the same name share their seeds in all conditions."
)
@click.option(
    "--factors",
    type=click.Path(path_type=Path),
    help="Table of a crossed design: replica, and its level of init, order, ...",
)
@click.option(
    "--force",
    is_flag=True,
    help="Write results into a folder that has other files, or results of something else.",
)
@click.option(
    "--base",
    help="Condition that is the base model's answers, of which fine-tuned runs keep some or none.",
)
@click.option(
    "--failed",
    multiple=True,
    metavar="NAME",
    help="A run that failed (RUN or CONDITION/RUN): in no figure but the failure rate.",
)
@columns_options
@as_json
def measure(
    source: Path,
    others: tuple[Path, ...],
    out: Path | None,
    same: str,
    criteria: Path | None,
    baseline: str | None,
    paired: bool,
    factors: Path | None,
    force: bool,
    base: str | None,
    failed: tuple[str, ...],
    columns: tuple[str, ...],
    replica_columns: tuple[str, ...],
    as_json: bool,
) -> None:
    """Statistics alone: of a run, or of anybody's predictions.

    SOURCE is a run folder, or a .jsonl, .csv or .parquet file: long (replica, prompt, output, and
    as far as there are reference, category, shift, cluster, condition, score, failed, base_answer,
    and init, order, dropout, seed where runs share them) or wide (one column per replica: run_1,
    run_2, ...). Columns of other names: --column reference=gold, --replica-columns 'llama_*'. A
    file of one row a run (run, maybe condition, and numbers such as F1) is measured by its means
    and standard deviations. Several run folders of one procedure are measured together:
    repeatability within a machine, reproducibility between machines.
    """
    with errors():
        of_files = given(
            *("same", "baseline", "paired", "factors", "base", "failed"),
            *("columns", "replica_columns"),
        )
        roles = roles_of(columns)
        if others:
            if of_files:
                raise click.UsageError(
                    f"several runs are measured as they are: {of_files} is for files"
                )
            folder = out or source.with_name(f"{source.name}-together")
            results = toolkit.measure(source, *others, out=folder, criteria=criteria, force=force)
        elif source.is_dir():
            if lost := ", ".join(filter(None, [given("out", "force"), of_files])):
                raise click.UsageError(
                    f"{source}: a run says itself what its answers mean; {lost} is for files"
                )
            folder, results = source, toolkit.measure(source, out=source, criteria=criteria)
        else:
            from toolkit.measurement.predictions import read_run_table

            folder = out or source.with_name(f"{source.name.partition('.')[0]}-measured")
            of_both = {
                "out": folder,
                "baseline": baseline,
                "base": base,
                "failed": failed,
                "paired": paired,
                "factors": factors,
                "columns": roles,
                "force": force,
            }
            if not replica_columns and read_run_table(source, roles) is not None:
                if lost := given("same", "criteria"):
                    raise click.UsageError(
                        f"{source}: a row is a run, without prompts; {lost} is for predictions"
                    )
                _show_metrics(toolkit.measure_metrics(source, **of_both), folder, as_json)
                return
            results = toolkit.measure(
                source, same=same, criteria=criteria, replica_columns=replica_columns, **of_both
            )
        from toolkit.report.terminal import table_text

        if as_json:
            print_json({"out": str(folder), "results": read_json(folder / "results.json")})
            return
        show(table_text(results))
        for sentence in results.verdict:
            say(f"- {sentence}")
        say(f"report: {(folder / 'report.html').resolve()}")


def _show_metrics(metrics: RunMetrics, folder: Path, as_json: bool) -> None:
    from toolkit.measurement.run_table import METRICS, metrics_text

    path = folder / METRICS
    if as_json:
        print_json({"out": str(folder), "metrics": read_json(path)})
        return
    show(metrics_text(metrics))
    say(f"metrics: {path.resolve()}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--claims",
    "file",
    type=click.Path(path_type=Path),
    help="YAML file of claims (default: those that ftk ships with).",
)
@as_json
def claims(run: Path, file: Path | None, as_json: bool) -> None:
    """Claims about run-to-run variance, held against a run.

    Supported, contradicted, or not resolvable; and what to expect of 10,000 such runs, by category
    of prompts. RUN: a folder of `ftk run`; claims.json is written there.
    """
    with errors():
        tested = toolkit.claims(run, file)
        from toolkit.measurement.claims import CLAIMS, claims_text

        path = run / CLAIMS
        if as_json:
            print_json({"out": str(path), "claims": read_json(path)})
            return
        show(claims_text(tested))
        say(f"claims: {path.resolve()}")


@click.command()
@click.argument("pilot", required=False, type=click.Path(path_type=Path))
@click.option("--guess", type=SHARE, help="Without a pilot: disagreement to reckon with, 0 to 1.")
@click.option(
    "--prompts",
    type=click.IntRange(2, 10**7),
    default=500,
    show_default=True,
    help="With --guess: independent prompts.",
)
@click.option(
    "--replicas",
    type=REPLICAS,
    default=16,
    show_default=True,
    help="With --guess: replicas that you can afford now.",
)
@click.option(
    "--k", type=GROUP, help="Replicas of one merge or ensemble (default: the pilot's, or 8)."
)
@click.option(
    "--half-width",
    "half_widths",
    multiple=True,
    type=Between(1e-6, 0.5, max_open=True),
    help="Wanted, 0.01 = one point.",
)
@click.option(
    "--ratio",
    "ratios",
    multiple=True,
    type=SHARE,
    help="Effect of a mitigation to be found.",
)
@click.option("--power", type=SHARE, default=0.8, show_default=True, help="Chance to find it.")
@as_json
def plan(
    pilot: Path | None,
    guess: float | None,
    prompts: int,
    replicas: int,
    k: int | None,
    half_widths: tuple[float, ...],
    ratios: tuple[float, ...],
    power: float,
    as_json: bool,
) -> None:
    """How many replicas are needed?

    PILOT is a run folder or a results.json; without one say a disagreement with --guess.
    """
    with errors():
        if pilot is not None and (lost := given("prompts", "replicas")):
            raise click.UsageError(f"{lost} is for --guess; a pilot has its own")
        planned = toolkit.plan(
            pilot,
            guess=guess,
            prompts=prompts,
            replicas=replicas,
            k=k,
            half_widths=half_widths,
            ratios=ratios,
            power=power,
        )
        from toolkit.measurement.replicas_needed import plan_text

        print_json(planned.to_dict()) if as_json else show(plan_text(planned))


class GateCommand(click.Command):
    """Its help says how many runs a baseline needs, which is asked of the gate only when help is
    shown.
    """

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help text, with the smallest baseline written out."""
        from toolkit.measurement.gate.limits import MIN_BASELINE

        self.help = (self.help or "").replace("MIN_BASELINE", str(MIN_BASELINE))
        super().format_help_text(ctx, formatter)


@click.command(cls=GateCommand)
@click.argument("baseline", type=click.Path(path_type=Path))
@click.option(
    "--candidate",
    type=click.Path(path_type=Path),
    help="Adapter(s), predictions, or a folder of outcomes: what is to be judged.",
)
@click.option(
    "--condition", help="The condition that is meant, of several in the baseline or the candidate."
)
@click.option(
    "--recipe",
    type=click.Path(path_type=Path),
    help="For an adapter judged by saved limits: the recipe that has base and suites.",
)
@click.option(
    "--save",
    type=click.Path(path_type=Path),
    help="Write the limits to this small file, with which another machine can judge.",
)
@click.option(
    "--force", is_flag=True, help="Let --save write over a file that holds something else."
)
@click.option(
    "--same",
    help="For predictions: when two outputs mean the same (default: exact; saved limits know).",
)
@click.option(
    "--alpha",
    type=Between(1e-9, 0.5),
    help="False alarms that you accept, as a share (default 0.0027).",
)
@columns_options
@workers_option
@as_json
def gate(
    baseline: Path,
    candidate: Path | None,
    condition: str | None,
    recipe: Path | None,
    save: Path | None,
    force: bool,
    same: str | None,
    alpha: float | None,
    columns: tuple[str, ...],
    replica_columns: tuple[str, ...],
    workers: int | None,
    as_json: bool,
) -> None:
    """Is a new fine-tune still of the same process? Exit code 3: no.

    BASELINE is a run, a file of predictions of at least MIN_BASELINE runs, or limits that --save
    wrote.
    """
    with errors():
        from toolkit.measurement.gate.judge import is_limits, verdict_text
        from toolkit.measurement.run import is_outcomes

        if candidate is None and save is None:
            raise click.UsageError(
                "--candidate names what is to be judged; --save FILE only writes the limits"
            )
        if candidate is not None and not candidate.exists():
            raise click.UsageError(f"{candidate}: no such file or folder")
        saved = is_limits(baseline)
        files = [path for path in (baseline, candidate) if path and path.is_file()]
        if (columns or replica_columns) and not files[saved:]:
            raise click.UsageError("--column and --replica-columns are for files of predictions")
        adapters = candidate is not None and candidate.is_dir() and not is_outcomes(candidate)
        if not adapters and (lost := given("recipe", "workers")):
            raise click.UsageError(f"{lost} is for adapters, which must answer first; leave it out")
        if lost := "" if save else given("force"):
            raise click.UsageError(f"{lost} is for --save; leave it out")
        if lost := given("condition") if saved and not candidate else "":
            raise click.UsageError(f"{lost} is for what is learned or judged; leave it out")
        learned = {
            "condition": condition,
            "same": same,
            "alpha": alpha,
            "columns": roles_of(columns),
            "replica_columns": replica_columns,
            "save": save,
            "force": force,
        }
        if candidate is None:
            limits = toolkit.gate_limits(baseline, **learned)
            written = {
                "limits": str(save),
                "runs": limits.n,
                "metrics": [metric.name for metric in limits.metrics],
            }
            print_json(written) if as_json else say(
                f"{save}: limits of {len(limits.metrics)} metrics from {limits.n} runs"
            )
            return
        if adapters and (asked := recipe or baseline / "recipe.yaml").is_file():
            load_recipe(asked)  # tells the client of the hub where there is no network
        with console() if adapters else nullcontext() as screen:
            verdict = toolkit.gate(
                baseline, candidate, recipe=recipe, workers=workers, console=screen, **learned
            )
        print_json(asdict(verdict)) if as_json else show(verdict_text(verdict))
    if verdict.status == "fail":
        sys.exit(GATE_SAID_NO)
