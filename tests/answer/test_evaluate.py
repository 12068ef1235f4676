"""What becomes of an answer between the model and its outcome."""

import pytest

from toolkit.answer.evaluate import EvaluationUnit, Subject, evaluate_unit
from toolkit.data import read_suite
from toolkit.model.base import load_base
from toolkit.record.outcomes import read_outcomes


@pytest.mark.parametrize("stop", [" ", "o", "zzz"])
def test_an_answer_ends_before_the_stop(stop, tmp_path):
    """As if the whole answer had been cut there, whichever token the stop is in; and no more tokens
    than that takes.
    """
    base = load_base("embedded")
    prompts = read_suite("embedded:typical", name="typical")[:12]

    def answers(stop: str | None) -> list[dict]:
        unit = EvaluationUnit(
            (Subject("", "base", 0),), "typical", 1, 1, None, tmp_path / f"{stop}.parquet"
        )
        options = {"answer": "text", "max_new_tokens": 12, "top_k": 2, "stop": stop}
        evaluate_unit(unit, base, prompts, combine=None, progress=lambda _: None, **options)
        return read_outcomes([unit.shard]).to_pylist()

    whole, cut = answers(None), answers(stop)
    assert [row["text"] for row in cut] == [row["text"].partition(stop)[0] for row in whole]
    for row, full in zip(cut, whole, strict=True):
        assert row["n_tokens"] <= full["n_tokens"] and (
            stop in full["text"] or row["n_tokens"] == full["n_tokens"]
        )
    assert (sum(row["n_tokens"] for row in cut) < sum(row["n_tokens"] for row in whole)) == (
        stop != "zzz"
    )
