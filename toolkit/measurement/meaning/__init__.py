"""Which answers mean the same: a table of rules, from the same characters to close embeddings.

Every rule gives a text a canonical form, and texts of one form mean the same. Some rules also link
forms that are close: numbers within a tolerance, embeddings at a small angle. Closeness is not
transitive, so such classes are chains (single linkage): two answers are in one class exactly when a
chain of close ones leads from one to the other, whatever the order they come in. Chains are laid
within one prompt only, never through the answers to another.
"""

from toolkit.measurement.meaning.codes import (
    canonical,
    classes,
    code_answers,
    mark_answers,
    same_as_reference,
)
from toolkit.measurement.meaning.rules import RULES, rule_of

__all__ = [
    "RULES",
    "canonical",
    "classes",
    "code_answers",
    "mark_answers",
    "rule_of",
    "same_as_reference",
]
