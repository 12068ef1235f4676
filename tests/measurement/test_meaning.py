"""What means the same: each rule on pairs that anybody would agree on, and the laws of an
equivalence on whatever else there is.
"""

import json
import sys
import types
from decimal import Decimal

import hypothesis.strategies as some
import numpy as np
import pytest
from hypothesis import example, given, settings

from toolkit.data import DataError
from toolkit.measurement.meaning import (
    RULES,
    canonical,
    classes,
    code_answers,
    mark_answers,
    rule_of,
    rules,
    same_as_reference,
)

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

SAME = {
    "exact": [("a", "a")],
    "text": [("a  b\n", " a b")],
    "normalised": [
        ("Paris", "**paris**."),
        ("“Yes,” he said!", "yes he said"),
        ("ＡＢＣ", "abc"),
        ("Straße", "STRASSE"),
        ("\N{MINUS SIGN}5", "-5"),
        ("(42)", "42."),
        ("é", "e\N{COMBINING ACUTE ACCENT}"),
    ],
    "first-line": [("\n yes \nbecause", "yes")],
    r"regex:answer is (\w+)": [
        ("The answer is yes.", "So the answer is yes, no?"),
        ("none", "nothing"),
    ],
    "numeric": [
        ("#### 72", "72.0"),
        ("It costs $1,200.50 in all.", "1.2005e3"),
        ("3 apples, so 7", "7."),
        ("x = -5", "\N{MINUS SIGN}5"),
        ("0.50", ".5"),
        ("-0", "0"),
        ("1\N{NO-BREAK SPACE}000", "1000"),
        ("no number", " no  number "),
        ("007", "7"),
        ("1,2345", "2345"),
        ("12345678901234567891", "12345678901234567891.0"),
    ],
    "numeric:0.01": [("1.00", "1.01"), ("1000", "1009"), ("0", "0.01"), ("1e400", "1e400")],
    "json": [
        ('{"a": 1, "b": [1.0, 1e2]}', '{"b":[1,100],"a":1.0}'),
        ('Sure!\n```json\n{"a": "x"}\n```', '{ "a" : "\\u0078" }'),
        ("[1, 2]", "The list is [1,2], see {above}."),
        ("1.0", "1"),
        ("no json", " no json\n"),
        ("[1" * 5000, "[1" * 5000),
    ],
}
DIFFERENT = {
    "exact": [("a", "a "), ("1", "1.0")],
    "text": [("a", "A")],
    "normalised": [
        ("5", "-5"),
        ("5", ".5"),
        ("3.5", "35"),
        ("C#", "C"),
        ("50%", "50"),
        ("a*b", "a/b"),
        ("?", "!"),
        ("", "?"),
        ("-$5", "$5"),
    ],
    "first-line": [("yes\nno", "no\nyes")],
    r"regex:answer is (\w+)": [("answer is yes", "answer is no"), ("answer is yes", "yes")],
    "numeric": [
        ("72", "72.1"),
        ("5", "-5"),
        ("12345678901234567891", "12345678901234567892"),
        ("1e400", "1e401"),
        ("a", "b"),
        ("0", "none"),
    ],
    "numeric:0.01": [
        ("1.00", "1.02"),
        ("1000", "1011"),
        ("0", "0.011"),
        ("1e400", "1e401"),
        ("a", "b"),
        ("0", "none"),
        ("1", "-1"),
        ("1", "1e400"),
    ],
    "json": [
        ('{"a": 1}', '{"a": true}'),
        ("[1, 2]", "[2, 1]"),
        ('{"a": null}', "{}"),
        ('"a"', "a"),
        ("[NaN]", "[null]"),
        ("12345678901234567891", "12345678901234567892"),
    ],
}
PAIRS = [
    (rule, *pair, same)
    for table, same in ((SAME, True), (DIFFERENT, False))
    for rule, pairs in table.items()
    for pair in pairs
]
ANSWERS = [
    "1",
    "1.0",
    " 1 ",
    "1.005",
    "1.02",
    "2",
    "[1]",
    "[1.0]",
    "Yes.",
    "yes",
    "answer is yes",
    "answer is no",
    "no\nyes",
    "no",
    "",
    "-1",
    "?",
]


@pytest.mark.parametrize(("rule", "one", "two", "same"), PAIRS)
def test_pairs(rule, one, two, same):
    code_T = classes([one, two], rule)
    assert (code_T[0] == code_T[1]) == same
    if "numeric:" not in rule:
        assert (canonical(one, rule) == canonical(two, rule)) == same
    if canonical(one, rule):
        assert bool(same_as_reference([two], one, rule)[0]) == same


@pytest.mark.parametrize("rule", SAME)
def test_codes_are_numbered_by_first_appearance_and_do_not_depend_on_order(rule):
    code_T = classes(ANSWERS, rule)
    assert code_T.dtype == np.int32 and list(dict.fromkeys(code_T.tolist())) == list(
        range(code_T.max() + 1)
    )
    order = np.random.default_rng(0).permutation(len(ANSWERS))
    shuffled_T = classes([ANSWERS[i] for i in order], rule)
    np.testing.assert_array_equal(
        shuffled_T[:, None] == shuffled_T, (code_T[:, None] == code_T)[order][:, order]
    )
    assert classes([], rule).tolist() == []


# --- canonical forms ----------------------------------------------------------------------------


@settings(deadline=None)
@given(some.text())
@example("-.-5")
@example("ͅ.İ")
def test_a_canonical_form_is_its_own(text):
    for rule in ("exact", "text", "normalised", "first-line", "numeric", "json"):
        form = canonical(text, rule)
        assert canonical(form, rule) == form


VALUES = some.recursive(
    some.none()
    | some.booleans()
    | some.integers()
    | some.floats(allow_nan=False, allow_infinity=False)
    | some.text(),
    lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner),
)


@settings(deadline=None, max_examples=40)
@given(some.lists(VALUES) | some.dictionaries(some.text(), VALUES))
def test_json_is_the_same_however_it_is_written_and_wherever_it_stands(value):
    def turned(value):  # other order of keys, whole numbers as floats
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        if isinstance(value, list):
            return [turned(item) for item in value]
        return float(value) if type(value) is int and abs(value) < 2**53 else value

    form = canonical(json.dumps(value), "json")
    assert form == canonical(json.dumps(turned(value), indent=2, ensure_ascii=False), "json")
    assert form == canonical(f"So:\n{json.dumps(value)}\nIs that right? [x]", "json")
    one, two = (
        json.loads(text, parse_float=Decimal, parse_int=Decimal)
        for text in (form, json.dumps(value))
    )
    assert one == two


@settings(deadline=None)
@given(some.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**30), max_value=10**30))
def test_a_number_keeps_its_value_to_the_last_digit(number):
    form = canonical(f"The answer is {number}.", "numeric")
    assert type(number)(form) == number
    assert form == canonical(f"{number:e}", "numeric") == canonical(f"{number:f}", "numeric")
    assert form == canonical(f"so {number:,f}!", "numeric")


def test_the_form_is_what_a_reader_would_write():
    assert canonical("It costs $1,200.50.", "numeric") == "1200.5"
    assert canonical("**Paris**, of course!", "normalised") == "paris of course"
    assert canonical('{"b":1.0,"a":[ ]}', "json") == '{"a": [], "b": 1}'


# --- links --------------------------------------------------------------------------------------


def test_numbers_chain_along_the_line_where_the_gaps_are_small():
    """Gap rule: 1.00, 1.01, ... 1.10 are one class at a tolerance of 0.015, though its ends are not
    close; 1.13 is none of it.
    """
    texts = [f"{1 + n / 100:.2f}" for n in range(11)] + ["1.13"]
    assert classes(texts, "numeric:0.015").tolist() == [0] * 11 + [1]
    assert (
        same_as_reference(texts, "1.00", "numeric:0.015").tolist() == [True, True] + [False] * 10
    ), "a reference is no end of a chain"


@settings(deadline=None)
@given(some.lists(some.integers(-50, 50)), some.integers(0, 5))
def test_classes_of_numbers_are_the_components_of_close_ones(numbers, tolerance):
    """For absolute tolerances (all within -1..1) the gap rule is single linkage."""
    from scipy.sparse.csgraph import connected_components

    value_T = np.array(numbers, dtype=float) / 100
    code_T = classes([str(value) for value in value_T], f"numeric:{tolerance / 100}")
    if numbers:
        _, expected_T = connected_components(
            np.abs(value_T[:, None] - value_T) <= tolerance / 100 + 1e-9
        )
        np.testing.assert_array_equal(code_T[:, None] == code_T, expected_T[:, None] == expected_T)


class Stub:
    """An embedding model: a text of numbers is its own vector, and every other one has none."""

    def __init__(self):
        self.asked: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.asked += texts
        return np.array(
            [
                [float(x) for x in text.split()]
                if text[:1] in "-0123456789" and text
                else [0.0, 0.0]
                for text in texts
            ]
        )


@pytest.fixture
def stub(monkeypatch) -> Stub:
    model = Stub()
    monkeypatch.setattr(rules, "load_model", lambda folder: model)
    return model


def at(degrees: float) -> str:
    return f"{np.cos(np.radians(degrees)):.9f} {np.sin(np.radians(degrees)):.9f}"


def test_embeddings_chain_where_the_angle_is_small(stub):
    # cos 20 = 0.94, cos 30 = 0.87
    texts = [
        at(0),
        at(20),
        at(40),
        at(70),
        "0 0",
        "3 0",
        at(20),
        "text",
    ]
    assert classes(texts, "embedding:model").tolist() == [0, 0, 0, 1, 2, 0, 0, 3]
    assert classes(texts, "embedding:model:0.85").tolist() == [0, 0, 0, 0, 1, 0, 0, 2]
    assert same_as_reference(texts, at(0), "embedding:model").tolist() == [
        True,
        True,
        False,
        False,
        False,
        True,
        True,
        False,
    ]
    assert same_as_reference(["0 0", "1 0"], "0 0", "embedding:model").tolist() == [True, False], (
        "without a vector: the same text"
    )


def test_classes_of_embeddings_are_the_components_of_close_ones(stub, monkeypatch):
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(1)
    for limit in (1 << 22, 5):
        monkeypatch.setattr(rules, "COSINES", limit)
        vector_TD = rng.normal(size=(60, 3))
        code_T = classes(
            [" ".join(f"{x:.17g}" for x in vector_D) for vector_D in vector_TD],
            "embedding:model:0.95",
        )
        unit_TD = vector_TD / np.linalg.norm(vector_TD, axis=1, keepdims=True)
        _, expected_T = connected_components(unit_TD @ unit_TD.T >= 0.95)
        assert 5 < code_T.max() < 55
        np.testing.assert_array_equal(code_T[:, None] == code_T, expected_T[:, None] == expected_T)


def test_equal_texts_are_embedded_once(stub):
    classes([at(0), at(90), at(0)] * 10, "embedding:model", groups=np.arange(30) % 3)
    assert stub.asked == [at(0), at(90)]


def test_no_chain_leads_through_another_prompt():
    texts, prompt_T = ["1.0", "1.2", "1.1", "1.0", "1.0"], [0, 0, 1, 1, 0]
    assert classes(texts, "numeric:0.1").tolist() == [0, 0, 0, 0, 0]
    assert classes(texts, "numeric:0.1", groups=prompt_T).tolist() == [0, 1, 2, 2, 0]
    assert (
        classes(texts, "numeric", groups=prompt_T).tolist()
        == classes(texts, "numeric").tolist()
        == [0, 1, 2, 0, 0]
    )


# --- tables -------------------------------------------------------------------------------------


def table(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    text_RP = rng.integers(0, len(ANSWERS), (9, 20)).astype(np.int32)
    text_RP[rng.random(text_RP.shape) < 0.2] = -1
    text_RP[:, 7] = -1
    return text_RP


@pytest.mark.parametrize("rule", SAME)
def test_codes_of_a_table_are_those_of_its_prompts(rule):
    text_RP = table()
    answer_RP, names = code_answers(text_RP, ANSWERS, rule)
    assert answer_RP.dtype == np.int32 and (answer_RP < 0).tolist() == (text_RP < 0).tolist()
    for text_R, answer_R in zip(text_RP.T, answer_RP.T, strict=True):
        there = text_R >= 0
        code_R = classes([ANSWERS[t] for t in text_R[there]], rule)
        np.testing.assert_array_equal(
            code_R[:, None] == code_R, answer_R[there][:, None] == answer_R[there]
        )
        for text, code in zip(text_R[there], answer_R[there], strict=True):
            assert names[code] in {
                canonical(ANSWERS[t], rule) for t in text_R[there][answer_R[there] == code]
            } | {canonical(ANSWERS[text], rule)}
    if ":0" not in rule:  # the rule does not link, so a code is one form wherever it stands
        assert [names[code] for code in answer_RP[answer_RP >= 0]] == [
            canonical(ANSWERS[t], rule) for t in text_RP[text_RP >= 0]
        ]


@pytest.mark.parametrize("rule", SAME)
def test_marks_of_a_table_are_those_of_its_cells(rule):
    text_RP = table(1)
    references = [
        None if p % 5 == 0 else [*ANSWERS, "unheard of"][p % (len(ANSWERS) + 1)] for p in range(20)
    ]
    correct_RP = mark_answers(text_RP, ANSWERS, references, rule)
    assert correct_RP.dtype == np.int8
    for (r, p), text in np.ndenumerate(text_RP):
        known = references[p] is not None and text >= 0
        expected = int(same_as_reference([ANSWERS[text]], references[p], rule)[0]) if known else -1
        assert correct_RP[r, p] == expected


def test_a_text_that_does_not_match_is_never_right():
    rule = r"regex:(\d+)"
    assert same_as_reference(["none", "5"], "", rule).tolist() == [False, False]
    assert same_as_reference(["none", "so 5", "6"], "#### 5", rule).tolist() == [False, True, False]
    assert same_as_reference(["it is x"], "x", r"regex:it is (\w+)").tolist() == [True], (
        "a bare reference need not match"
    )


# --- names and models ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", ["exakt", "", "exact:1", "regex", "regex:", "embedding", "embedding:"]
)
def test_an_unknown_rule_lists_those_there_are(rule):
    with pytest.raises(DataError) as caught:
        classes(["a"], rule)
    assert all(name in str(caught.value) for name in RULES) and "numeric[:TOLERANCE]" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "rule",
    ["numeric:x", "numeric:-1", "numeric:inf", "numeric:nan", "regex:(", "embedding:model:2"],
)
def test_a_broken_argument_is_told_before_any_work(rule):
    with pytest.raises(DataError, match="needs a number|is broken"):
        rule_of(rule)


def test_a_model_is_read_from_disk_by_the_library_it_was_made_with(tmp_path, monkeypatch):
    made = []

    def library(name: str, model: str) -> None:
        def load(folder: str, trust_remote_code: bool = False) -> Stub:
            assert not trust_remote_code
            made.append((name, folder))
            return Stub()

        module = types.ModuleType(name)
        setattr(
            module,
            model,
            types.SimpleNamespace(from_pretrained=load) if name == "model2vec" else load,
        )
        monkeypatch.setitem(sys.modules, name, module)

    library("model2vec", "StaticModel")
    library("sentence_transformers", "SentenceTransformer")
    static, other = tmp_path / "static:8M", tmp_path / "other"
    for folder, kind in ((static, "model2vec"), (other, "bert")):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind}))
        (folder / "modules.json").write_text("[]")
        assert classes(["1 0", "2 0"], f"embedding:{folder}:0.9").tolist() == [0, 0]
    assert classes(["1 0", "2 0"], f"embedding:{static}").tolist() == [0, 0], "a colon in the name"
    assert made == [("model2vec", str(static)), ("sentence_transformers", str(other))], "each once"


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="never downloaded"):
        classes(["a"], "embedding:minishlab/potion-base-8M")
    monkeypatch.setitem(sys.modules, "model2vec", None)
    with pytest.raises(DataError, match=r"needs model2vec; pip install 'ftk\[meaning\]'") as caught:
        classes(["a"], f"embedding:{tmp_path}")
    assert "\n" not in str(caught.value)
