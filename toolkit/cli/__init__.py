"""The commands. Each one loads what it is given, calls one function, and prints where the result
lies; heavy imports wait until then.
"""

import click

import toolkit
from toolkit.cli import adapters, before, instrument, runs, schema
from toolkit.cli.last import Guarded
from toolkit.errors import BAD_INPUT, DONE, FAILED, GATE_SAID_NO

__all__ = ["BAD_INPUT", "DONE", "FAILED", "GATE_SAID_NO", "main"]


@click.group(
    cls=Guarded, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(toolkit.__version__, prog_name="ftk")
def main() -> None:
    """How different are two fine-tunes of one model on one data set, where does it matter, and what
    does a remedy buy?

    Start with `ftk demo`, or `ftk init` and `ftk run recipe.yaml`.
    """


for _command in (
    runs.run,
    runs.demo,
    runs.train_replicas,
    runs.merge,
    runs.evaluate,
    runs.report,
    runs.verify,
    instrument.measure,
    instrument.claims,
    instrument.plan,
    instrument.gate,
    adapters.basin,
    adapters.modules,
    adapters.check_adapter,
    adapters.card,
    before.init,
    before.check,
    before.doctor,
    schema.schema,
):
    main.add_command(_command)
