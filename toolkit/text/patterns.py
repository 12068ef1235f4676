"""Patterns that a user, or somebody's adapter, wrote: the syntax of Python's `re`, and a limit on
the time that they may take.
"""

from __future__ import annotations

import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from toolkit.errors import FtkError

LONGEST = 1000
"""characters of a pattern"""
SECONDS = 1.0
"""for one text"""
ALLOWANCE, EACH = 5.0, 0.01
"""seconds for all texts: so many, and so many more for each of them"""
_BRACE = re.compile(r"(\\.)|\{(?!\d*,?\d*\})", re.DOTALL)


class PatternError(FtkError, ValueError):
    """A pattern that is broken, or takes too long; one line."""


class Pattern:
    """One pattern. A text that takes it more than SECONDS, or texts that take it too long together,
    raise PatternError.
    """

    def __init__(self, pattern: str):
        """Raises PatternError where Python's `re` does not take it, or takes it for a mistake."""
        import regex

        if len(pattern) > LONGEST:
            raise PatternError(
                f"the pattern has {len(pattern):,} characters, and {LONGEST:,} is the most"
            )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(
                    pattern
                    # what the other module knows beyond Python's syntax would mean something else
                    # elsewhere
                )
                # to it, `{e}` is any one letter
                self._compiled = regex.compile(_BRACE.sub(lambda match: match[1] or r"\{", pattern))
        except (
            re.error,
            regex.error,
            OverflowError,
            RecursionError,
            IndexError,
            ValueError,
        ) as error:
            raise PatternError(
                f"the pattern is broken: {' '.join(str(error).split()) or type(error).__name__}"
            ) from None
        self.pattern, self.groups = pattern, self._compiled.groups
        self._spent, self._texts, self._endless = 0.0, 0, ""

    def search(self, text: str) -> Any:
        """The first match anywhere in the text, or None."""
        return self._limited(self._compiled.search, text)

    def match(self, text: str) -> Any:
        """The match at the start of the text, or None."""
        return self._limited(self._compiled.match, text)

    def _limited(self, find: Any, text: str) -> Any:
        if self._endless:
            raise PatternError(self._endless)
        start = time.thread_time()
        try:
            match = find(text, timeout=SECONDS)
        except TimeoutError:
            self._endless = (
                f"the pattern {self.pattern[:60]!r} takes more than {SECONDS:g} s for one "
                "text; write it simpler"
            )
            raise PatternError(self._endless) from None
        self._spent += time.thread_time() - start
        self._texts += 1
        if self._spent > ALLOWANCE + EACH * self._texts:
            raise PatternError(
                f"the pattern {self.pattern[:60]!r} takes {self._spent:.0f} s for "
                f"{self._texts:,} texts; write it simpler"
            )
        return match


@lru_cache(maxsize=1024)
def compiled(pattern: str) -> Pattern:
    """The one `Pattern` of a text, so that all its uses count together. Raises PatternError."""
    return Pattern(pattern)


class _Clocked:
    """The module `re` for others: what they match with a pattern as text is on the clock."""

    def __getattr__(self, name: str) -> Any:
        return getattr(re, name)

    def match(self, pattern: Any, text: str, flags: int = 0) -> Any:
        return (
            compiled(pattern).match(text)
            if isinstance(pattern, str) and not flags
            else re.match(pattern, text, flags)
        )

    def search(self, pattern: Any, text: str, flags: int = 0) -> Any:
        return (
            compiled(pattern).search(text)
            if isinstance(pattern, str) and not flags
            else re.search(pattern, text, flags)
        )

    def fullmatch(self, pattern: Any, text: str, flags: int = 0) -> Any:
        whole = rf"(?:{pattern})\Z" if isinstance(pattern, str) else ""
        return (
            compiled(whole).match(text)
            if whole and not flags
            else re.fullmatch(pattern, text, flags)
        )


@contextmanager
def on_the_clock(package: str) -> Iterator[None]:
    """For the length of a block the modules of another package, such as peft, match patterns of an
    adapter's on the clock.

    They raise PatternError then where a pattern takes too long.
    """
    clocked = _Clocked()
    theirs = [
        module
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] == package and vars(module).get("re") is re
    ]
    for module in theirs:
        module.re = clocked  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in theirs:
            module.re = re  # type: ignore[attr-defined]
