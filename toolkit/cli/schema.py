"""`ftk schema`: the JSON Schema of the files that ftk writes and reads."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import click

from toolkit.cli.terminal import as_json, errors, print_json, show
from toolkit.errors import ArgumentError
from toolkit.text.nearest import nearest

FILES: dict[str, tuple[str, str]] = {
    "recipe.yaml": ("toolkit.recipe", "Recipe"),
    "criteria.yaml": ("toolkit.recipe", "Criteria"),
    "results.json": ("toolkit.record.results", "Results"),
    "claims.json": ("toolkit.record.results", "Claims"),
    "metrics.json": ("toolkit.record.results", "RunMetrics"),
    "design.json": ("toolkit.measurement.run", "Design"),
    "limits.json": ("toolkit.measurement.gate.limits", "Limits"),
    "replica.json": ("toolkit.record.population", "Replica"),
    "population.json": ("toolkit.record.shapes", "Population"),
    "merge.json": ("toolkit.record.shapes", "Merge"),
    "stopping.json": ("toolkit.record.shapes", "Stopping"),
    "environment.json": ("toolkit.record.shapes", "Environment"),
}
"""file -> the record that it holds"""
VERSIONED = ("results.json", "claims.json", "metrics.json", "limits.json")


def schema_of(file: str) -> dict[str, Any]:
    """The JSON Schema of a file, draft 2020-12. Raises ArgumentError for a file without one."""
    from toolkit.record.plain import adapter_of

    if file not in FILES:
        raise ArgumentError(f"no schema of {file!r}{nearest(file, [*FILES])}")
    module_name, record = FILES[file]
    module = import_module(module_name)
    schema = adapter_of(getattr(module, record)).json_schema()
    if file in VERSIONED:
        schema["properties"] = {"version": {"const": module.VERSION}, **schema["properties"]}
        schema["required"] = ["version", *schema.get("required", [])]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": file,
        **{key: value for key, value in schema.items() if key != "title"},
    }


@click.command()
@click.argument("file", required=False)
@as_json
def schema(file: str | None, as_json: bool) -> None:
    """Print the JSON Schema of a file, or which files have one.

    Recipes are described as a run writes them out: without `from` and lists of `k`.
    """
    with errors():
        if as_json:
            print_json(schema_of(file) if file else {"files": [*FILES]})
        else:
            show(json.dumps(schema_of(file), indent=1) if file else "\n".join(FILES))
