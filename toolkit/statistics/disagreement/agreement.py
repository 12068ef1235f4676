"""Other ways to say how much runs agree on discrete answers: beyond chance, all of n at once, and
against a reference run.
"""

import math
from dataclasses import replace

import numpy as np

from toolkit.statistics.accuracy.mean_accuracy import accuracy
from toolkit.statistics.arrays import (
    Clusters,
    as_answers,
    as_clusters,
    as_correct,
    as_level,
    same_prompts,
)
from toolkit.statistics.conclusive import MIN_REPLICAS, few_clusters, verdict
from toolkit.statistics.estimate import Estimate, without_interval
from toolkit.statistics.intervals import logit_interval, two_way, zero_event_bound
from toolkit.statistics.outliers import odd_replicas
from toolkit.statistics.pairs import Pairs, count_pairs, leave_one_out, pair_variance
from toolkit.statistics.prompt_averages import share_estimate

# chance agreement is estimated from the same clusters: 12 to 15 of them covered 86 to 90 %
MIN_EFFECTIVE_KAPPA = 20.0
# what n fresh runs do together was seen to be covered from this many times n replicas on
RUNS_PER_FRESH_RUN = 2


def fleiss_kappa(
    answer_RP: np.ndarray, *, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """How much do two fresh runs agree beyond what they would if the prompt did not matter?

    Estimand: kappa = 1 - D / (1 - P_e) for fresh runs and prompts: D as in `disagreement`, P_e =
    sum_v pi_v^2 the chance that answers to two unrelated prompts coincide (Fleiss 1971). 1 = runs
    always agree, 0 = an answer says nothing about what another run answers; independent runs are
    never below 0, an estimate may be. pi_v is the share of answer v over ALL prompts and replicas,
    so a code must mean the same on every prompt. Kappa of free text, where every prompt has answers
    of its own, is no more than 1 - D. Resampled: replicas and clusters of prompts, by the two-way
    jackknife of the linearised kappa, on the logit scale of D / (1 - P_e). Never tighter near 1
    than the zero-event bound of D (see `disagreement`).

    answer_RP: int codes [replicas, prompts], -1 = missing. D counts pairs of which both answered;
    pi_v is the mean over prompts of the share among those that answered. Conclusive as
    `disagreement` is; raises ValueError as it does.
    """
    level = as_level(level)
    answer_RP = as_answers(answer_RP, "answer_RP")
    cluster_P = as_clusters(cluster_P, answer_RP.shape[1])
    row_R = np.flatnonzero((answer_RP >= 0).any(axis=1))
    used_P = (answer_RP >= 0).sum(axis=0) >= 2
    n_replicas, n_prompts = len(row_R), int(used_P.sum())
    if n_prompts == 0:
        return without_interval(
            None, level, n_replicas, 0, None, "no prompt was answered by two replicas"
        )
    answer_RP, cluster_P = answer_RP[row_R][:, used_P], cluster_P[used_P]
    pairs = count_pairs(answer_RP)
    d_P, present_RP, n_P = pairs.d_P, pairs.present_RP, pairs.present_RP.sum(axis=0)
    code_RP = answer_RP.astype(np.int64) + 1  # missing cells weigh nothing
    if code_RP.max() > code_RP.size:  # too sparse to count in a table of all codes
        code_RP = np.unique(answer_RP, return_inverse=True)[1].reshape(answer_RP.shape)
    weight_RP = np.where(present_RP, 1.0 / (n_P * n_prompts), 0.0)
    share_V = np.bincount(code_RP.ravel(), weights=weight_RP.ravel())
    # the share that this answer has among all answers
    common_RP = np.where(present_RP, share_V[code_RP], 0.0)
    common_P = common_RP.sum(axis=0)
    chance = float(share_V @ share_V)
    if np.count_nonzero(share_V) < 2:
        return without_interval(
            None,
            level,
            n_replicas,
            n_prompts,
            None,
            "every answer to every prompt is the same: chance alone explains the agreement",
        )

    # 1 - kappa = D / (1 - P_e) to first order, prompt by prompt; P_e moves by twice what the shares
    # of the answers do.
    ratio = float(d_P.mean()) / (1 - chance)
    ratio_P = (d_P + 2 * ratio * (common_P / n_P - chance)) / (1 - chance)
    with np.errstate(invalid="ignore", divide="ignore"):
        left_common_RP = (common_P - common_RP) / (n_P - present_RP)
        left_RP = (leave_one_out(pairs) + 2 * ratio * (left_common_RP - chance)) / (1 - chance)
    parts = (
        two_way(ratio_P, left_RP, cluster_P)
        .carried_by(d_P, cluster_P)
        .and_pairs(pair_variance(answer_RP) / (1 - chance) ** 2)
    )
    bound = zero_event_bound(parts.effective, level) / (1 - chance)
    half = parts.half_width(level) if np.isfinite(left_RP).any() else math.nan
    method = "two-way jackknife-t over replicas and prompts, logit scale of 1 - kappa"
    low = high = None
    if ratio == 0.0:
        method, low, high = (
            f"zero-event bound over {parts.n_clusters} prompts or clusters, one-sided",
            1.0 - bound,
            1.0,
        )
    elif math.isfinite(half):
        ends = logit_interval(ratio, half) if ratio < 1.0 else (ratio - half, ratio + half)
        low, high = 1.0 - max(ends[1], bound), 1.0 - ends[0]
    shortage = few_clusters(parts.n_clusters, parts.effective, MIN_EFFECTIVE_KAPPA)
    enough, needed, note = verdict(n_replicas, shortage, row_R[odd_replicas(pairs)])
    return Estimate(
        1.0 - ratio, low, high, level, n_replicas, n_prompts, method, enough, needed, note
    )


def total_agreement(
    answer_RP: np.ndarray, *, of: int | None = None, cluster_P: Clusters = None, level: float = 0.95
) -> Estimate:
    """On what share of fresh prompts do n = `of` fresh runs ALL give the same answer?

    Estimand: the total agreement rate TAR@n of Atil et al. 2024 (TARr on raw text, TARa on parsed
    answers), for fresh runs and prompts. It falls with n by construction, so it means nothing
    without its n; n = 2 is 1 - D of `disagreement`. From N replicas the mean over all sets of n is
    taken, sum_v C(k_v, n) / C(N, n) per prompt (rarefaction, Hurlbert 1971): unbiased, and linear
    in the cells. of=None takes n = N: what was observed. It has no interval, for there is one such
    set (only where it is 0 or 1, the bound for fresh prompts). Resampled: replicas and clusters of
    prompts, as in `disagreement`.

    answer_RP: int codes [replicas, prompts], -1 = missing; a prompt that fewer than n replicas
    answered does not count. Conclusive: as `disagreement`, and from RUNS_PER_FRESH_RUN * n replicas
    on. Raises ValueError as it does, and for n < 2.
    """
    level = as_level(level)
    answer_RP = as_answers(answer_RP, "answer_RP")
    n = _runs(of, 2, answer_RP)
    note = f"the more runs, the fewer prompts on which all {n} agree: compare at equal n only"
    return _all_alike(answer_RP, answer_RP >= 0, n, cluster_P, level, note)


def ambiguity(
    answer_RP: np.ndarray,
    reference_P: np.ndarray | None = None,
    *,
    of: int | None = None,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """On what share of fresh prompts does at least one of n = `of` fresh runs answer other than the
    reference?

    Estimand: the ambiguity of Marx, Calmon & Ustun 2020 (the share of prompts that some model of a
    set flips), at a fixed number of fresh runs: it grows with n by construction. reference_P: codes
    of one given model, encoded together with answer_RP. Without it the reference is one more run of
    the procedure, so that the figure is 1 - TAR@(n+1). From N replicas the mean over all sets of n
    is taken: 1 - C(k, n) / C(N, n) with k that answer as the reference does. Resampled, missing
    cells, verdict and errors: as in `total_agreement`, and n >= 1. A prompt whose reference is -1
    does not count. of=None takes all replicas, without an interval.
    """
    level = as_level(level)
    answer_RP = as_answers(answer_RP, "answer_RP")
    if reference_P is None:  # one of the n + 1 serves as the reference
        n = _runs(of, 1, answer_RP, spare=1)
        drawn, counted_RP = n + 1, answer_RP >= 0
    else:
        answer_RP, differs_RP = _differs(answer_RP, reference_P)
        n = drawn = _runs(of, 1, answer_RP)
        counted_RP = differs_RP == 0.0
    note = f"the more runs, the more prompts that one of the {n} flips: compare at equal n only"
    same = _all_alike(answer_RP, counted_RP, drawn, cluster_P, level, note)
    value, low, high = (None if x is None else 1.0 - x for x in (same.value, same.high, same.low))
    return replace(same, value=value, low=low, high=high)


def discrepancy(answer_RP: np.ndarray, reference_P: np.ndarray, *, level: float = 0.95) -> Estimate:
    """How many of these prompts does the worst of the N observed runs flip against the reference?

    The discrepancy of Marx, Calmon & Ustun 2020: the largest share of prompts, over runs, answered
    other than the reference does. An observed maximum on these prompts, which grows with N: no
    interval goes with it. What it says of fresh runs is an order statistic: with confidence `level`
    at most a share 1 - (1-level)^(1/N) of them flips more (Wilks 1941), see the note. Each run is
    judged on the prompts that it and the reference answered. Conclusive: at least 59 replicas (at
    level 0.95), when that share is at most 1 - level.

    Codes of answers, encoded together, -1 = missing. Raises ValueError for shapes that do not fit.
    """
    level = as_level(level)
    answer_RP, differs_RP = _differs(as_answers(answer_RP, "answer_RP"), reference_P)
    n_R = np.isfinite(differs_RP).sum(axis=1)
    flips_R = np.nansum(differs_RP, axis=1)[n_R > 0] / n_R[n_R > 0]
    n_replicas, n_prompts = len(flips_R), int(np.isfinite(differs_RP).any(axis=0).sum())
    if n_replicas == 0:
        return without_interval(
            None, level, 0, 0, None, "no run answered a prompt that has a reference"
        )
    beyond = zero_event_bound(n_replicas, level)
    needed = math.ceil(math.log(1 - level) / math.log(level))
    note = (
        f"the largest of {n_replicas} runs, on these prompts; at most {beyond:.2g} of fresh "
        f"runs flip more ({level:.0%} confidence)"
    )
    enough = n_replicas >= needed
    method = "observed maximum"
    return Estimate(
        float(flips_R.max()),
        None,
        None,
        level,
        n_replicas,
        n_prompts,
        method,
        enough,
        None if enough else needed,
        note,
    )


def negative_flips(
    correct_RP: np.ndarray,
    reference_P: np.ndarray,
    *,
    answer_RP: np.ndarray | None = None,
    reference_answer_P: np.ndarray | None = None,
    cluster_P: Clusters = None,
    level: float = 0.95,
) -> Estimate:
    """How often does a fresh run get wrong what the reference run got right?

    Estimand: the negative flip rate P(reference right and fresh run wrong) on fresh prompts, as a
    share of ALL prompts (Yan et al. 2021), for this one reference, which is not drawn anew. With
    answers (codes encoded together) the multi-class form: P(fresh run wrong and its answer is not
    the reference's), which adds one wrong answer turned into another. Resampled: replicas and
    clusters of prompts, as in `accuracy`, with its verdict and its bound near 0.

    correct_RP, reference_P: 1 right, 0 wrong, nan missing or without a reference answer; codes: -1
    = missing. Cells where something is missing do not count. Raises ValueError for shapes or values
    that do not fit, or fewer than two rows.
    """
    correct_RP = as_correct(correct_RP, "correct_RP")
    reference_P = as_correct(np.asarray(reference_P)[None], "reference_P", at_least=1)[0]
    same_prompts(correct_RP, reference_P)
    if (answer_RP is None) != (reference_answer_P is None):
        raise ValueError(
            "the multi-class form needs the answers of the runs and of the reference, not "
            "one of them"
        )
    changed_RP = np.broadcast_to(reference_P, correct_RP.shape)
    if answer_RP is not None and reference_answer_P is not None:
        answer_RP, changed_RP = _differs(as_answers(answer_RP, "answer_RP"), reference_answer_P)
        if answer_RP.shape != correct_RP.shape:
            raise ValueError(
                "answers and marks must be of the same runs and prompts, not "
                f"{answer_RP.shape} and {correct_RP.shape}"
            )
    return accuracy((1.0 - correct_RP) * changed_RP, cluster_P=cluster_P, level=level)


def _all_alike(
    answer_RP: np.ndarray,
    counted_RP: np.ndarray,
    n: int,
    cluster_P: Clusters,
    level: float,
    note: str,
) -> Estimate:
    """Share of prompts on which n fresh runs all give the same answer, and one that counts."""
    cluster_P = as_clusters(cluster_P, answer_RP.shape[1])
    row_R = np.flatnonzero((answer_RP >= 0).any(axis=1))
    answer_RP, counted_RP = answer_RP[row_R], counted_RP[row_R]
    pairs = count_pairs(answer_RP)
    value_P, left_RP = alike_sets(pairs, counted_RP, n)
    n_P = pairs.present_RP.sum(axis=0)
    dropped = int(np.sum((n_P < n) & (n_P > 0)))
    note = "; ".join(
        filter(
            None,
            [
                note,
                f"{dropped} prompts with fewer than {n} answers do not count" if dropped else "",
            ],
        )
    )
    at_least = max(MIN_REPLICAS, RUNS_PER_FRESH_RUN * n)
    odd_R = row_R[odd_replicas(pairs)] if len(row_R) else row_R
    of_pairs = (
        pair_variance(answer_RP) if n == 2 and np.array_equal(counted_RP, answer_RP >= 0) else 0.0
    )
    return share_estimate(
        value_P, left_RP, cluster_P, level, odd_R, at_least=at_least, of_pairs=of_pairs, note=note
    )


def alike_sets(pairs: Pairs, counted_RP: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Share of the sets of n replicas that give one and the same answer, per prompt, and without
    each replica.

    counted_RP: which answers count; it depends on the answer only. a = C(k, n) / C(N, n) for an
    answer of k among N. Without one of these k runs C(k-1, n) / C(N-1, n) is left, without another
    run C(k, n) / C(N-1, n): both are a times a factor.
    """
    n_P = pairs.present_RP.sum(axis=0)
    k_RP = np.where(counted_RP, pairs.others_RP + 1, 1)
    a_RP = np.where(counted_RP, _drawn_from(k_RP, n_P, n), 0.0)
    value_P = np.where(n_P >= n, np.sum(a_RP / k_RP, axis=0), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        left_RP = np.where(n_P > n, n_P / (n_P - n) * (value_P - a_RP * n / k_RP), np.nan)
    return value_P, np.where(pairs.present_RP, left_RP, value_P)


def _drawn_from(k_RP: np.ndarray, n_P: np.ndarray, n: int) -> np.ndarray:
    """C(k, n) / C(N, n), the chance that n drawn from N all come from k of them: prod_{k < j <= N}
    (1 - n/j), in logs.
    """
    most = int(n_P.max(initial=0))
    log_J = np.zeros(most + 1)
    log_J[n + 1 :] = np.cumsum(np.log1p(-n / np.arange(n + 1, most + 1)))
    return np.where(k_RP >= n, np.exp(np.minimum(log_J[n_P] - log_J[k_RP], 0.0)), 0.0)


def _runs(of: int | None, at_least: int, answer_RP: np.ndarray, spare: int = 0) -> int:
    n = max(int((answer_RP >= 0).any(axis=1).sum()) - spare, at_least) if of is None else of
    if n < at_least:
        raise ValueError(f"of must be a number of runs, at least {at_least}, not {of}")
    return n


def _differs(answer_RP: np.ndarray, reference_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Answers to prompts that have a reference (-1 elsewhere), and 1 where they differ from it, 0
    where not, nan where missing.
    """
    reference_P = as_answers(np.asarray(reference_P)[None], "reference_P", at_least=1)[0]
    same_prompts(answer_RP, reference_P)
    answer_RP = np.where(reference_P >= 0, answer_RP, -1)
    return answer_RP, np.where(
        answer_RP >= 0, (answer_RP != reference_P).astype(np.float64), np.nan
    )
