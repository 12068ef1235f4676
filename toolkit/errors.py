"""The errors that ftk raises on purpose: one base class, each message one line for the user."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

DONE, FAILED, BAD_INPUT, GATE_SAID_NO = 0, 1, 2, 3
"""Exit codes of the commands."""

EXTRAS = {
    "torch": "train",
    "transformers": "train",
    "peft": "train",
    "safetensors": "train",
    "mergekit": "train",
    "ray": "ray",
    "bitsandbytes": "4bit",
    "model2vec": "meaning",
    "lm_eval": "eval",
    "sacrebleu": "chrf",
}
"""Package that the core does without -> the extra of ftk that brings it."""


class FtkError(Exception):
    """Something that ftk refuses or cannot do. The message is one line: what, why, and the way out.

    Every error that ftk raises on purpose derives from it; most are a ValueError or a RuntimeError,
    too. `exit_code` is what the command line ends with.

    Example:
        >>> import toolkit
        >>> try:
        ...     toolkit.measure("absent.csv")
        ... except toolkit.FtkError as error:
        ...     print(f"{error} (exit code {error.exit_code})")
        absent.csv: no such file (exit code 2)
    """

    exit_code: int = BAD_INPUT


class ArgumentError(FtkError, ValueError):
    """An argument that there is not, or that cannot be."""


class MissingExtra(FtkError, ImportError):
    """A package is not installed that one of ftk's extras brings.

    package: its name; way_out: the line for pip.
    """

    def __init__(self, who: str, package: str) -> None:
        super().__init__(who, package)
        self.who, self.package = who, package
        self.way_out = f'pip install "ftk[{EXTRAS[package]}]"'

    def __str__(self) -> str:
        return f"{self.who} needs {self.package}: {self.way_out}"


def missing_extra(error: ImportError, who: str) -> MissingExtra | None:
    """What an import that failed means to the user; None where no extra brings the package.

    who: what needs it, such as `ftk merge`.
    """
    if isinstance(error, MissingExtra):
        return MissingExtra(who, error.package)
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in EXTRAS:
        return None
    return MissingExtra(who, package)


def names_extra(function: Callable[P, T]) -> Callable[P, T]:
    """A public function that raises MissingExtra where a package of an extra is missing."""

    @functools.wraps(function)
    def named(*args: P.args, **options: P.kwargs) -> T:
        try:
            return function(*args, **options)
        except ImportError as error:
            missing = missing_extra(error, f"toolkit.{function.__name__}")
            if missing is None:
                raise
            raise missing from error

    return named
