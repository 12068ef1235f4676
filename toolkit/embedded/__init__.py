"""The small world that ships with ftk, with its task and its base; here, how its suites are named.

`embedded` and `embedded:far` are the newest version, `embedded@1` and `embedded@1:far` the first. A
version never changes.
"""

import re

NAME = "embedded"
NEWEST = 2

_SUITE = re.compile(rf"{NAME}(?:@(?P<version>[^:]*))?(?::(?P<shift>.*))?", re.DOTALL)


def suite_of(source: str) -> tuple[str | None, str | None] | None:
    """The version and the shift that a source of prompts names, each None where it does not; None:
    not an embedded suite.
    """
    match = _SUITE.fullmatch(source)
    return (match["version"], match["shift"]) if match else None


def with_version(source: str, version: int = NEWEST) -> str:
    """An embedded suite that names its version; `version` where it does not. Any other source as it
    is.
    """
    match = _SUITE.fullmatch(source)
    return (
        source
        if match is None or match["version"] is not None
        else f"{NAME}@{version}{source[len(NAME) :]}"
    )
