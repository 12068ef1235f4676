"""What of a generated text is the answer."""

from toolkit.data.rows import DataError
from toolkit.text.patterns import PatternError, compiled

RULES = "text, first-line, embedded, regex:PATTERN"


def parse_answer(text: str, rule: str) -> str:
    """The answer in a text, white space normalised, so that two answers are equal exactly when
    their strings are.

    `text`: all of it. `first-line`: the first line that is not blank. `embedded`: the call of the
    embedded task in its canonical form. `regex:PATTERN`: the first group of the first match, or the
    match where there is no group; a text that does not match has the answer "", so two texts
    without an answer agree, and neither is ever correct.

    Raises DataError for an unknown rule, and for a pattern that is broken or takes too long.
    """
    if rule == "text":
        return _normal(text)
    if rule == "first-line":
        return _normal(next((line for line in text.splitlines() if line.strip()), ""))
    if rule == "embedded":
        from toolkit.embedded import world

        return world.parse_call(text)
    if not rule.startswith("regex:"):
        raise DataError(f"answer: unknown rule {rule!r}; use one of {RULES}")
    try:
        pattern = compiled(rule.removeprefix("regex:"))
        match = pattern.search(text)
    except PatternError as error:
        raise DataError(f"answer {rule[:60]!r}: {error}") from None
    if match is None:
        return ""
    return _normal((match[1] if pattern.groups else match[0]) or "")


def parse_reference(reference: str | None, rule: str) -> str | None:
    """The answer that counts as correct, or None without a reference.

    A reference may be a whole text ("... #### 72") or the bare answer ("72"), which the pattern
    need not match.
    """
    return None if reference is None else parse_answer(reference, rule) or _normal(reference)


def check_rule(rule: str) -> None:
    """Raises DataError where `parse_answer` would, before anything has been generated."""
    parse_answer("", rule)


def _normal(text: str) -> str:
    return " ".join(text.split())
