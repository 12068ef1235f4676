"""The last handler: what nobody foresaw is one line with an exit code, and its traceback lies in a
file.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from typing import Any

import click

from toolkit.cli.terminal import Commands, say, stop
from toolkit.errors import BAD_INPUT, FAILED

PREFIX = "ftk-error-"
"""how the names of files with tracebacks begin"""


class Guarded(Commands):
    """The group of all commands; whatever they raise that is not for click is told in one line."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; what is not for click ends in one line and exit code FAILED."""
        for stream in (sys.stdout, sys.stderr):
            _take_any_text(stream)
        try:
            return super().main(*args, **kwargs)
        except Exception as error:
            _tell(error)
            sys.exit(FAILED)

    def invoke(self, ctx: click.Context) -> Any:
        """A command line that is wrong is one line, too; click would add how the command is
        used.
        """
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            where = f" (`{error.ctx.command_path} --help` says more)" if error.ctx else ""
            stop(error.format_message() + where, BAD_INPUT)


def _take_any_text(stream: Any) -> None:
    """A terminal of another encoding, or half a surrogate, shows an escape: no text stops a
    command.
    """
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def _tell(error: BaseException) -> None:
    """One line on stderr: what it was, and the file with the traceback."""
    reason = " ".join(str(error).split())[:200]
    what = f"{type(error).__name__}{': ' if reason else ''}{reason}"
    if isinstance(error, MemoryError):
        what = "there is not enough memory for this" + (f" ({reason})" if reason else "")
    try:
        descriptor, path = tempfile.mkstemp(prefix=PREFIX, suffix=".txt")
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(" ".join(map(ascii, sys.argv)) + "\n")
            traceback.print_exception(error, file=file)
        where = f"the traceback is in {path}; please report it"
    except OSError as refused:
        where = f"and the traceback could not be written ({refused.strerror})"
    say(f"ftk: this should not have happened: {what} ({where})", err=True)
