"""Commands about adapters as they are, whoever trained them: may they be averaged, how far apart
are they, who can load them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from toolkit.cli.terminal import (
    REPLICAS,
    as_json,
    errors,
    print_json,
    say,
    show,
    without_network,
)
from toolkit.errors import GATE_SAID_NO
from toolkit.text import escape, tables


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--prompts",
    multiple=True,
    required=True,
    help="Suite with references (may be repeated): a file, or embedded:typical|near|far.",
)
@click.option(
    "--groups", "k", type=REPLICAS, help="Look at means of disjoint groups of K (default: of all)."
)
@click.option("--base", help="Base model, where the adapters do not say it or say it wrongly.")
@click.option("--strict", is_flag=True, help="Exit code 3 when there is a warning.")
@as_json
def basin(
    sources: tuple[Path, ...],
    prompts: tuple[str, ...],
    k: int | None,
    base: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """May these adapters be averaged? Clusters and loss barriers.

    A SOURCE is a run, a condition of it, or any folder of PEFT adapters.
    """
    with errors():
        without_network(base, *prompts)
        from toolkit.merging.basin import basin_text
        from toolkit.pipeline.given import inspect_given

        diagnoses = inspect_given.basins(sources, prompts=prompts, base=base, k=k)
        if as_json:
            print_json(
                {
                    "populations": [
                        {"population": str(folder), **diagnosis.to_dict()}
                        for folder, diagnosis in diagnoses
                    ]
                }
            )
        else:
            show(
                "\n\n".join(
                    f"{escape.line(folder)}: {basin_text(diagnosis)}"
                    for folder, diagnosis in diagnoses
                )
            )
    if strict and any(diagnosis.verdict == "warn" for _, diagnosis in diagnoses):
        sys.exit(GATE_SAID_NO)


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@as_json
def modules(sources: tuple[Path, ...], as_json: bool) -> None:
    """Which modules do replicas change alike, and which differently?

    A SOURCE is a run, a condition of it, or any folder of PEFT adapters; the second and further
    ones are held against the first. Of a run the figures go into its report too.
    """
    with errors():
        from toolkit.merging.module_spread import modules_text
        from toolkit.pipeline.given import inspect_given
        from toolkit.record.results import to_plain

        spreads = inspect_given.module_spreads(sources)
        print_json({"conditions": to_plain(spreads)}) if as_json else show(modules_text(spreads))


@click.command("check-adapter")
@click.argument("folder", metavar="ADAPTER", type=click.Path(path_type=Path))
@click.option(
    "--for",
    "targets",
    multiple=True,
    help="Only this tool: peft, vllm, llama.cpp, lm-eval or ftk (may be repeated).",
)
@click.option(
    "--base",
    help="Base model, where the adapter does not say it or says it wrongly; only its "
    "configuration is read.",
)
@as_json
def check_adapter(folder: Path, targets: tuple[str, ...], base: str | None, as_json: bool) -> None:
    """What peft, vLLM, llama.cpp and lm-eval do with an adapter.

    Names and shapes of modules are held against the base, where its configuration is on this
    machine.

    Exit code 3: one of them refuses it or would compute something else; 2: it cannot be read.
    """
    with errors():
        from toolkit.model import compatibility

        if unknown := [name for name in targets if name not in compatibility.TARGETS]:
            raise click.UsageError(
                f"--for {unknown[0]!r}: known are {', '.join(compatibility.TARGETS)}"
            )
        findings = compatibility.check_adapter(folder, targets, base)
        zero = compatibility.changes_nothing(folder)
        if as_json:
            print_json(
                {"adapter": str(folder), "zero": zero, "targets": compatibility.to_plain(findings)}
            )
        else:
            rows = [
                [finding.target, "OK", finding.command]
                if finding.ok
                else [finding.target, "refused", f"{finding.because}; {finding.fix}"]
                for finding in findings
            ]
            show(escape.lines(tables.plain(rows, indent=0)))
            for note in dict.fromkeys(
                finding.unchecked for finding in findings if finding.unchecked
            ):
                say(note)
            if zero:
                say("its change is exactly zero: with it, the base answers as without")
    if not all(finding.ok for finding in findings):
        sys.exit(GATE_SAID_NO)


@click.command()
@click.argument(
    "folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--force", is_flag=True, help="Write over a README.md that ftk has not written.")
@as_json
def card(folders: tuple[Path, ...], force: bool, as_json: bool) -> None:
    """Write the model card of a run or a merged adapter."""
    with errors():
        from toolkit.report.card import write_card

        paths = [str(write_card(folder, force=force)) for folder in folders]
        print_json({"cards": paths}) if as_json else show(escape.lines(paths))
