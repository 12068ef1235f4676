"""Further figures of single replicas on a shift: other ways to ask how different two runs are."""

import re

import numpy as np

from toolkit import statistics as st
from toolkit.measure.analyse.table import Arm
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


def further(
    arm: Arm, base: Arm | None, texts: list[str], scored: str, cluster_P: np.ndarray, level: float
) -> tuple[tuple[Metric, ...], Survival | None]:
    """The figures, and how long texts stay equal. arm, base: on the prompts of one shift; scored:
    what its scores are.
    """
    options = {"cluster_P": cluster_P, "level": level}
    arm = arm.on_runs(slice(max(3 * TOGETHER, LOOKED_AT // len(cluster_P))))
    metrics = [Metric("Fleiss' kappa", "", st.fleiss_kappa(arm.answer_RP, **options))]
    if len(arm.answer_RP) > TOGETHER:
        metrics.append(
            Metric(
                f"all of {TOGETHER} runs agree",
                "%",
                st.total_agreement(arm.answer_RP, of=TOGETHER, **options),
            )
        )
        metrics.append(
            Metric(
                f"at least one of {TOGETHER} runs differs from another",
                "%",
                st.ambiguity(arm.answer_RP, of=TOGETHER, **options),
            )
        )
    if base is not None:
        metrics.append(
            Metric(
                "answers other than the base",
                "%",
                st.ambiguity(arm.answer_RP, base.answer_RP[0], of=1, **options),
            )
        )
        if arm.marked:
            flips = st.negative_flips(arm.correct_RP, base.correct_RP[0], **options)
            metrics.append(Metric("negative flips: the base right, the run wrong", "%", flips))
            if base.marked:
                gain = st.accuracy_gain(arm.correct_RP, base.correct_RP[0], **options)
                metrics.append(Metric(GAINED, "%", gain))
    scores, survival = _scores(arm, scored, options), None
    tokens = _tokens(arm.text_RP[: max(3 * TOGETHER, READ // len(cluster_P))], texts)
    if any(len(text) > 1 for row in tokens for text in row if text):  # a bare label has no inside
        rng = np.random.default_rng(
            0
            # which pairs are compared where there are too many; the figure is unbiased whichever
            # they are
        )
        cut = any(len(text) > LONGEST for row in tokens for text in row if text)
        beginnings = (
            [[text and text[:LONGEST] for text in row] for row in tokens] if cut else tokens
        )
        name = (
            f"edit distance of two texts{f', their first {LONGEST:,} tokens' if cut else ''}, "
            "share of the longer"
        )
        metrics.append(Metric(name, "%", st.edit_distance(beginnings, rng=rng, **options)))
        divergence = st.first_divergence(tokens, **options)
        metrics.append(Metric("tokens until half of the pairs have parted", "", divergence.median))
        survival = _survival(divergence)
    return (*metrics, *scores), survival


def _scores(arm: Arm, scored: str, options: dict) -> list[Metric]:
    """Of a number per answer: the log-probability of the reference, or the score that the
    predictions came with.
    """
    if arm.score_RP is None or not np.isfinite(arm.score_RP).any():
        return []
    spread = st.score_sd(arm.score_RP, **options)
    return [
        Metric(f"{scored}: mean", "", st.score_mean(arm.score_RP, **options)),
        Metric(f"{scored}: SD between runs of the mean", "", spread.sd),
        Metric(f"{scored}: SD between runs on one prompt", "", spread.within_prompt_sd),
        Metric(
            f"{scored}: share of its variance that is the prompt's, ICC(A,1)",
            "",
            st.icc(arm.score_RP, **options),
        ),
    ]


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
