"""Commands about adapters as they are, whoever trained them: may they be averaged, who can load them."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from toolkit.cli.terminal import GATE_SAID_NO, as_json, errors, print_json, without_network


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--prompts", multiple=True, required=True, help="Suite with references (may be repeated): a file, or embedded:typical|near|far."
)
@click.option("--groups", "k", type=click.IntRange(2), help="Look at means of disjoint groups of K (default: of all).")
@click.option("--base", help="Base model, where the adapters do not say it or say it wrongly.")
@click.option("--strict", is_flag=True, help="Exit code 3 when there is a warning.")
@as_json
def basin(sources: tuple[Path, ...], prompts: tuple[str, ...], k: int | None, base: str | None, strict: bool, as_json: bool) -> None:
    """May these adapters be averaged? Clusters and loss barriers.

    A SOURCE is a run, a condition of it, or any folder of PEFT adapters.
    """
    with errors():
        without_network(base, *prompts)
        from toolkit import external
        from toolkit.basin import basin_text

        found = external.basins(sources, prompts=prompts, base=base, k=k)
        if as_json:
            print_json({"populations": [{"population": str(folder), **one.to_dict()} for folder, one in found]})
        else:
            click.echo("\n\n".join(f"{folder}: {basin_text(one)}" for folder, one in found))
    if strict and any(one.verdict == "warn" for _, one in found):
        sys.exit(GATE_SAID_NO)
