"""Further figures of single replicas on a shift: other ways to ask how different two runs are."""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from toolkit import statistics as st
from toolkit.measurement.analyse.table import Arm
from toolkit.record.results import GAINED, Metric, Survival

TOGETHER = 10
"""Runs in "all of n agree" and "one of n differs": figures that depend on n, so n is fixed."""
LOOKED_AT, READ = 5_000_000, 200_000
"""Answers, and texts, behind a figure: of a larger table the first replicas count, and the figure
says how many.
"""
LONGEST = 2_000
"""Tokens of a text that edit distances look at: they take the square of it, and a run that diverged
writes without end.
"""
TOKEN = re.compile(r"\w+|[^\w\s]")


class Replicas:
    """Single replicas of a condition on the prompts of one shift, as statistics want them."""

    def __init__(
        self,
        arm: Arm,
        base: Arm | None,
        texts: list[str],
        scored: str,
        cluster_P: np.ndarray,
        level: float,
    ) -> None:
        """texts: of the codes in arm.text_RP; scored: what the scores of arm are."""
        self.arm = arm.on_runs(slice(max(3 * TOGETHER, LOOKED_AT // len(cluster_P))))
        self.base, self.scored = base, scored
        self.options = {"cluster_P": cluster_P, "level": level}
        read = arm.text_RP[: max(3 * TOGETHER, READ // len(cluster_P))]
        self._spelled = functools.partial(_tokens, read, texts)

    @property
    def answer_RP(self) -> np.ndarray:
        """Answer codes [R, P]."""
        return self.arm.answer_RP

    @property
    def score_RP(self) -> np.ndarray:
        """Scores [R, P]; of shape [0, 0] where there are none."""
        return self.arm.score_RP if self.arm.score_RP is not None else np.empty((0, 0))

    @property
    def base_answer_P(self) -> np.ndarray:
        """The base's answer codes [P]; empty without a base."""
        return self.base.answer_RP[0] if self.base is not None else np.empty(0)

    @property
    def base_correct_P(self) -> np.ndarray:
        """The base's marks [P]; empty without a base."""
        return self.base.correct_RP[0] if self.base is not None else np.empty(0)

    @functools.cached_property
    def tokens(self) -> list[list[tuple[str, ...] | None]]:
        """The texts [R][P] as tokens, None where there is no text."""
        return self._spelled()

    @functools.cached_property
    def is_cut(self) -> bool:
        """Whether a text is longer than LONGEST tokens."""
        return any(len(text) > LONGEST for row in self.tokens for text in row if text)

    @property
    def beginnings(self) -> list[list[tuple[str, ...] | None]]:
        """The first LONGEST tokens of every text."""
        return [[text and text[:LONGEST] for text in row] for row in self.tokens]

    @functools.cached_property
    def divergence(self) -> st.Divergence:
        """After how many tokens two runs part."""
        return st.first_divergence(self.tokens, **self.options)

    @functools.cached_property
    def score_spread(self) -> st.ScoreSpread:
        """How much the scores of runs differ."""
        return st.score_sd(self.score_RP, **self.options)

    # --- what a statistic may need ---

    @property
    def many(self) -> bool:
        """Whether there are more than TOGETHER runs."""
        return len(self.answer_RP) > TOGETHER

    @property
    def has_base(self) -> bool:
        """Whether the base answered."""
        return self.base is not None

    @property
    def marked_beside_base(self) -> bool:
        """Whether there is a base, and the runs' answers are marked."""
        return self.base is not None and self.arm.marked

    @property
    def both_marked(self) -> bool:
        """Whether the answers of the runs and of the base are marked."""
        return self.marked_beside_base and self.base is not None and self.base.marked

    @functools.cached_property
    def has_texts(self) -> bool:
        """A bare label has no inside."""
        return any(len(text) > 1 for row in self.tokens for text in row if text)

    @property
    def has_scores(self) -> bool:
        """Whether an answer has a finite score."""
        return bool(np.isfinite(self.score_RP).any())


@dataclass(frozen=True)
class Statistic:
    """A figure of single replicas on a shift. results.json and the report's table show every row,
    the terminal those with a label in `words.IN_TERMINAL`.

    name: as people read it; `{scored}` and `{cut}` are filled in. unit: "%" for a share, else "".
    needs: a property of `Replicas`; where it is false, the row is left out.
    """

    name: str
    unit: str
    estimate: Callable[[Replicas], st.Estimate]
    needs: str = ""


def _edit_distance(replicas: Replicas) -> st.Estimate:
    # which pairs are compared where there are too many: the figure is unbiased whichever they are
    rng = np.random.default_rng(0)
    texts = replicas.beginnings if replicas.is_cut else replicas.tokens
    return st.edit_distance(texts, rng=rng, **replicas.options)


STATISTICS = (
    Statistic("Fleiss' kappa", "", lambda r: st.fleiss_kappa(r.answer_RP, **r.options)),
    Statistic(
        f"all of {TOGETHER} runs agree",
        "%",
        lambda r: st.total_agreement(r.answer_RP, of=TOGETHER, **r.options),
        needs="many",
    ),
    Statistic(
        f"at least one of {TOGETHER} runs differs from another",
        "%",
        lambda r: st.ambiguity(r.answer_RP, of=TOGETHER, **r.options),
        needs="many",
    ),
    Statistic(
        "answers other than the base",
        "%",
        lambda r: st.ambiguity(r.answer_RP, r.base_answer_P, of=1, **r.options),
        needs="has_base",
    ),
    Statistic(
        "negative flips: the base right, the run wrong",
        "%",
        lambda r: st.negative_flips(r.arm.correct_RP, r.base_correct_P, **r.options),
        needs="marked_beside_base",
    ),
    Statistic(
        GAINED,
        "%",
        lambda r: st.accuracy_gain(r.arm.correct_RP, r.base_correct_P, **r.options),
        needs="both_marked",
    ),
    Statistic(
        "edit distance of two texts{cut}, share of the longer",
        "%",
        _edit_distance,
        needs="has_texts",
    ),
    Statistic(
        "tokens until half of the pairs have parted",
        "",
        lambda r: r.divergence.median,
        needs="has_texts",
    ),
    Statistic(
        "{scored}: mean",
        "",
        lambda r: st.score_mean(r.score_RP, **r.options),
        needs="has_scores",
    ),
    Statistic(
        "{scored}: SD between runs of the mean",
        "",
        lambda r: r.score_spread.sd,
        needs="has_scores",
    ),
    Statistic(
        "{scored}: SD between runs on one prompt",
        "",
        lambda r: r.score_spread.within_prompt_sd,
        needs="has_scores",
    ),
    Statistic(
        "{scored}: share of its variance that is the prompt's, ICC(A,1)",
        "",
        lambda r: st.icc(r.score_RP, **r.options),
        needs="has_scores",
    ),
)
"""Every further figure of single replicas: to show another one, add its row, and for the terminal
its label to `words.IN_TERMINAL`.
"""


def replica_metrics(replicas: Replicas) -> tuple[tuple[Metric, ...], Survival | None]:
    """The figures that apply, in the order of `STATISTICS`, and how long texts stay equal."""
    metrics = tuple(
        Metric(_name(row, replicas), row.unit, row.estimate(replicas))
        for row in STATISTICS
        if not row.needs or getattr(replicas, row.needs)
    )
    return metrics, _survival(replicas.divergence) if replicas.has_texts else None


def _name(row: Statistic, replicas: Replicas) -> str:
    cut = f", their first {LONGEST:,} tokens" if "{cut}" in row.name and replicas.is_cut else ""
    return row.name.format(scored=replicas.scored, cut=cut)


def _tokens(text_RP: np.ndarray, texts: list[str]) -> list[list[tuple[str, ...] | None]]:
    """Words and signs: the same for every tokenizer, so that models can be compared."""
    split = {v: tuple(TOKEN.findall(texts[v])) for v in np.unique(text_RP).tolist() if v >= 0}
    return [[split.get(v) for v in row] for row in text_RP.tolist()]


def _survival(divergence: st.Divergence) -> Survival | None:
    """The curve at its steps: where nothing changes there is nothing to draw."""
    if not len(divergence.t):
        return None
    steps = [
        i for i in range(len(divergence.t)) if divergence.events[i] or i == len(divergence.t) - 1
    ]
    columns = (divergence.survival[steps], divergence.low[steps], divergence.high[steps])
    share, low, high = (
        tuple(None if np.isnan(x) else float(x) for x in column) for column in columns
    )
    return Survival(tuple(divergence.t[steps].tolist()), share, low, high)  # type: ignore[arg-type]
