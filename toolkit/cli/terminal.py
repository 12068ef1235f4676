"""What all commands share: options, errors as one line with an exit code, progress on stderr. Heavy
imports wait until they are needed.
"""

from __future__ import annotations

import errno
import math
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from toolkit.errors import BAD_INPUT, FAILED, FtkError, missing_extra
from toolkit.text import escape

if TYPE_CHECKING:
    from toolkit.pipeline.console import Console
    from toolkit.recipe import Recipe

LONGEST = 1000
"""characters of an error"""
DISK_SAID_NO = {
    errno.ENOSPC: "the disk is full: free some and run again; finished work is kept",
    errno.EDQUOT: "your quota of the disk is used up: free some and run again; "
    "finished work is kept",
    errno.EROFS: "the disk is read-only: make it writable, or name another folder with --out, "
    "and run "
    "again; finished work is kept",
}


class Between(click.FloatRange):
    """A number within limits; `nan` is within none."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, where it is finite and within the limits; else a usage error."""
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is no number", param, ctx)


REPLICAS = click.IntRange(2, 10**5)
GROUP = click.IntRange(1, 10**5)
SHARE = Between(1e-6, 1 - 1e-6)
"""of something that is neither none nor all; nearer to either end, nothing could be measured"""

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
workers_option = click.option(
    "--workers",
    type=click.IntRange(1, 4096),
    help="Worker processes (default: one a core; one on a GPU).",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="This machine, or a Ray cluster.",
)
out_option = click.option("--out", type=click.Path(path_type=Path), help="Run folder.")


class Commands(click.Group):
    """Commands that take every option as often as they use it, and say in one line what is wrong on
    the command line.

    click keeps the last of two values and drops the first without a word.
    """

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command and its arguments; a usage error where an option is given twice."""
        with errors():
            name, command, rest = super().resolve_command(ctx, args)
            if command is not None:
                parser = command.make_parser(click.Context(command, info_name=name, parent=ctx))
                _, _, order = parser.parse_args(args=list(rest))
                for option in order:
                    if (
                        isinstance(option, click.Option)
                        and not (option.multiple or option.count)
                        and order.count(option) > 1
                    ):
                        raise click.UsageError(
                            f"{option.opts[0]} stands {order.count(option)} times, and is "
                            "used once; keep one"
                        )
                # what click would tell in several lines
                command.make_context(name, list(rest), parent=ctx).close()
        return name, command, rest


def given(*names: str) -> str:
    """Those of the command's options, by the names of its parameters, that stand on the command
    line, also with the value that they would have anyway. For what would be taken and not used.
    """
    context = click.get_current_context()
    options = {parameter.name: parameter for parameter in context.command.params}
    return ", ".join(
        max(options[name].opts, key=len)
        for name in names
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )


def load_recipe(path: Path) -> Recipe:
    """A recipe, with the hub's client told at once where there is no network to fetch its parts."""
    from toolkit import recipe as recipes

    recipe = recipes.load_recipe(path)
    without_network(recipe.base, recipe.data.train, *recipe.data.suites.values())
    return recipe


def without_network(*sources: str | None) -> None:
    """Tell the hub's client at once that there is no network, which it would take a minute of
    retries to notice.
    """
    hub = any(s and not s.startswith("embedded") and not Path(s).exists() for s in sources)
    if not hub or any(
        name.lower() in ("http_proxy", "https_proxy", "all_proxy") for name in os.environ
    ):
        return
    try:
        socket.getaddrinfo(
            urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443
        )
    except OSError:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")


def say(line: object, err: bool = False) -> None:
    """Print one line; names in it cannot make it two, nor move the cursor."""
    click.echo(escape.line(line), err=err)


def show(text: str) -> None:
    """Print a text of several lines, such as a table that `escape.lines` made."""
    click.echo(escape.block(text))


def print_json(value: dict[str, Any]) -> None:
    """Print a JSON document in which no character is hidden."""
    click.echo(escape.json(value))


@contextmanager
def errors() -> Iterator[None]:
    """One clear line instead of a traceback, and the exit code that scripts rely on."""
    escape.in_logs()
    try:
        yield
    except KeyboardInterrupt:
        stop(
            f"stopped; finished work is kept. Go on with: {shlex.join(['ftk', *sys.argv[1:]])}", 130
        )
    except click.ClickException as error:
        stop(error.format_message(), BAD_INPUT)
    except OSError as error:
        if error.errno == errno.EPIPE:  # `ftk ... | head`: click's to handle
            raise
        reason = DISK_SAID_NO.get(error.errno or 0, error.strerror)
        stop(f"{error.filename}: {reason}" if error.filename else reason or str(error), FAILED)
    except ImportError as error:
        context = click.get_current_context(silent=True)
        missing = missing_extra(error, context.command_path if context else "ftk")
        if missing is None:
            raise
        say(missing, err=True)
        sys.exit(missing.exit_code)
    except FtkError as error:
        stop(str(error), error.exit_code)


def stop(message: str, code: int) -> NoReturn:
    """One line on stderr, however long or broken up the message is; then the exit code."""
    if len(message) > LONGEST:  # a value of the user's is in it
        message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
    say(f"ftk: {message}", err=True)
    sys.exit(code)


@contextmanager
def console() -> Iterator[Console]:
    """Progress and notes on stderr: a bar on a terminal, which ends with the block however that
    ends; plain lines elsewhere.
    """
    from toolkit.pipeline.console import Console

    with ExitStack() as bars:
        yield Console(
            note=partial(say, err=True),
            progress=partial(_bar, bars) if sys.stderr.isatty() else _lines,
        )


def _lines(title: str, count: int) -> Callable[[float], None]:
    """A line at every tenth, with the pace and the time left."""
    import time

    start, tenths = time.monotonic(), [0]

    def update(share: float) -> None:
        if count and int(share * 10) > tenths[0]:
            tenths[0] = int(share * 10)
            seconds = time.monotonic() - start
            pace = share * count / seconds if seconds else 0.0
            time_ = (
                f"{seconds * (1 - share) / share:.0f} s left" if share < 1 else f"{seconds:.0f} s"
            )
            say(f"{title}: {share * count:.0f}/{count}, {pace:.2f}/s, {time_}", err=True)

    return update


def _bar(bars: ExitStack, title: str, count: int) -> Callable[[float], None]:
    from rich.console import Console as RichConsole
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    title_, pace_ = (
        TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[pace]}")
    )
    columns = [title_, BarColumn(), pace_, TimeElapsedColumn(), TimeRemainingColumn()]
    bar = Progress(*columns, console=RichConsole(stderr=True), redirect_stdout=False)
    bars.callback(bar.stop)
    task = bar.add_task(escape.line(title), total=1.0, pace="")

    def update(share: float) -> None:
        if not bar.live.is_started:
            bar.start()
        elapsed = bar.tasks[0].elapsed or 0.0
        pace = share * count / elapsed if elapsed else 0.0
        bar.update(task, completed=share, pace=f"{share * count:.0f}/{count} {pace:.2f}/s")
        if share >= 1:
            bar.stop()

    return update
