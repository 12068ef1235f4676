"""Codes of meanings: texts in, integers out, equal where the texts mean the same."""

from collections.abc import Iterator, Sequence

import numpy as np

from toolkit.measurement.meaning.rules import Rule, rule_of
from toolkit.statistics import MISSING
from toolkit.statistics.arrays import blocks

CELLS = 1 << 22  # codes taken at a time


def classes(
    texts: Sequence[str], rule: str, *, groups: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """int32 code of the class of every text: equal codes exactly where texts mean the same.
    Numbered by first appearance.

    groups: the prompt of every text. Where the rule links, chains are laid and codes mean something
    within a group only; otherwise groups change nothing. Raises DataError for an unknown rule, a
    broken argument, or a model that is not there.
    """
    equality = rule_of(rule)
    form_T, forms = _forms(equality, texts)
    if not (equality.place and equality.link):
        return form_T
    place_F = equality.place(forms)
    group_T = (
        np.zeros(len(texts), dtype=np.int64)
        if groups is None
        else np.unique(np.asarray(groups), return_inverse=True)[1]
    )
    class_T = np.empty(len(texts), dtype=np.int64)
    order_T = np.argsort(group_T, kind="stable")
    for members in np.split(order_T, np.flatnonzero(np.diff(group_T[order_T])) + 1):
        kinds, at_kind = np.unique(form_T[members], return_inverse=True)
        class_T[members] = group_T[members] * len(forms) + equality.link(place_F[kinds])[at_kind]
    return _by_first_appearance(class_T)


def canonical(text: str, rule: str) -> str:
    """A form of the text that can be read; where the rule does not link, equal exactly where texts
    mean the same.
    """
    return rule_of(rule).form(text)


def same_as_reference(texts: Sequence[str], reference: str, rule: str) -> np.ndarray:
    """Which texts mean the same as the reference: of its form or close to it, not by way of a
    chain.
    """
    return mark_answers(np.arange(len(texts))[:, None], texts, [reference], rule)[:, 0] == 1


def code_answers(
    text_RP: np.ndarray, texts: Sequence[str], rule: str
) -> tuple[np.ndarray, list[str]]:
    """answer_RP, int32, -1 missing: equal codes on a prompt exactly where answers mean the same;
    and a name of every code.

    text_RP: codes into texts, -1 missing. Where the rule does not link, a code means the same on
    every prompt; where it does, the name is that of one answer of the class. Errors as in
    `classes`.
    """
    equality = rule_of(rule)
    form_T, forms = _forms(equality, texts)
    if not (equality.place and equality.link):
        return _take(form_T, text_RP), forms
    place_F = equality.place(forms)
    answer_RP, names = np.full(text_RP.shape, MISSING, dtype=np.int32), []
    for p, form_R in _prompts(text_RP, form_T):
        kinds, at_R = np.unique(form_R, return_inverse=True)
        kinds_there = kinds[kinds >= 0]
        class_F = _by_first_appearance(equality.link(place_F[kinds_there]))
        answer_RP[:, p] = np.append(class_F + len(names), MISSING)[
            at_R - (len(kinds) - len(kinds_there))
        ]
        names += [
            forms[kinds_there[position]] for position in np.unique(class_F, return_index=True)[1]
        ]
    return answer_RP, names


def mark_answers(
    text_RP: np.ndarray, texts: Sequence[str], references: Sequence[str | None], rule: str
) -> np.ndarray:
    """correct_RP: int8, 1 where an answer means the same as the reference of its prompt, 0 where
    not, -1 without answer or reference.

    text_RP: codes into texts, -1 missing; references: one for each prompt. Right is what has the
    form of the reference or is close to it, not what a chain leads to. Errors as in `classes`.
    """
    equality = rule_of(rule)
    form_T, forms = _forms(equality, texts)
    right_P = [
        None if reference is None else (equality.of_reference or equality.form)(reference)
        for reference in references
    ]
    code_of = {form: code for code, form in enumerate(forms)}
    code_P = np.array(
        [MISSING if form is None else code_of.get(form, len(forms)) for form in right_P],
        dtype=np.int64,
    )
    known_P = np.array([reference is not None for reference in references], dtype=bool)
    correct_RP = np.empty(text_RP.shape, dtype=np.int8)
    for block in blocks(*text_RP.shape):
        form_RP = _take(form_T, text_RP[:, block])
        correct_RP[:, block] = np.where(
            (form_RP >= 0) & known_P[block], form_RP == code_P[block], MISSING
        )
    if equality.place and equality.close:
        place_F = equality.place([*forms, *(form or "" for form in right_P)])
        for p, form_R in _prompts(text_RP, form_T):
            if right_P[p] is not None:
                kinds, at_R = np.unique(form_R, return_inverse=True)
                close_R = equality.close(place_F[kinds], place_F[len(forms) + p])[at_R]
                correct_RP[close_R & (form_R >= 0), p] = 1
    return correct_RP


def _forms(rule: Rule, texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Code of the form of every text, and the forms in order of first appearance."""
    form_of: dict[str, str] = {}
    code_of: dict[str, int] = {}
    form_T = np.empty(len(texts), dtype=np.int32)
    for i, text in enumerate(texts):
        form = form_of.get(text)
        if form is None:
            form = form_of[text] = rule.form(text)
        form_T[i] = code_of.setdefault(form, len(code_of))
    return form_T, list(code_of)


def _by_first_appearance(class_T: np.ndarray) -> np.ndarray:
    _, first, class_T = np.unique(class_T, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first)).astype(np.int32)[class_T]


def _take(code_T: np.ndarray, text_RP: np.ndarray) -> np.ndarray:
    """code_T[text_RP], -1 where text_RP is. In pieces: numpy makes 8-byte indices of all it takes
    at a time.
    """
    code_T = np.append(code_T, np.array(MISSING, dtype=code_T.dtype))
    code_RP = np.empty(text_RP.shape, dtype=code_T.dtype)
    text_N, code_N = text_RP.reshape(-1), code_RP.reshape(-1)
    for start in range(0, text_N.size, CELLS):
        np.take(
            code_T, text_N[start : start + CELLS], out=code_N[start : start + CELLS], mode="wrap"
        )
    return code_RP


def _prompts(text_RP: np.ndarray, form_T: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Number and forms of every prompt, -1 missing."""
    for block in blocks(*text_RP.shape):
        form_PR = np.ascontiguousarray(_take(form_T, text_RP[:, block]).T)
        yield from enumerate(form_PR, block.start)
