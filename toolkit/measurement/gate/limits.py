"""The gate: is today's fine-tune still from the same process as the baseline population?

`learn` makes limits of a population, once; `judge` needs those limits and today's answers only, so
that a CI job gates without the population.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.measurement.meaning import RULES, classes, code_answers, rule_of
from toolkit.record.plain import from_plain, read_json, shortened
from toolkit.record.population import write_text
from toolkit.record.words import number
from toolkit.statistics.arrays import as_answers, as_correct
from toolkit.statistics.control.control_charts import (
    ALPHA,
    Ewma,
    ewma_path,
    laney,
    prediction,
    reaches,
)
from toolkit.statistics.control.hotelling import from_covariance, hotelling, mardia, t_squared
from toolkit.statistics.intervals import skewness_and_excess
from toolkit.statistics.pairs import count_pairs
from toolkit.statistics.planning.tolerance import normal
from toolkit.text.nearest import counted

VERSION = 2
"""1: without terms, and without what a prompt asks"""
MAX_BASELINE, LARGEST = 10**7, 1e100
MIN_BASELINE = 30  # runs: with fewer the baseline's standard deviation is not known to 25 %
EWMA_WEIGHT = 0.2
# added to both counts of log-odds (Agresti & Coull): with 0.5 a single wrong answer near 100 %
# looks like a jump
OFFSET = 2.0
CONTENT = 0.95  # of the tolerance limits, and their confidence

Extra = Mapping[str, Sequence[float] | np.ndarray]
Terms = dict[str, str | int | None]


@dataclass(frozen=True)
class Prompt:
    """The panel that a new run is compared with. referenced: it has a right answer; answers: form
    of a text -> baseline runs, the modal one first.

    asked: hash of what the prompt says, empty where its source does not tell. reference: the right
    answer as it was written, where it is known. scored: it counts in the score of its shift.
    """

    id: str
    shift: str
    referenced: bool
    answers: dict[str, int]
    asked: str = ""
    reference: str | None = None
    scored: bool = False


@dataclass(frozen=True)
class Metric:
    """One number per run. kind: accuracy or disagreement (with the other runs) of a shift, judged
    as log-odds; or value, judged as it is.

    center, sd, skew, excess: of the baseline, on the scale that is judged (see `reaches`). All else
    is in the metric's own unit. low, high: limits of a run judged alone. content_low, content_high:
    hold 95 % of the runs of the process, with 95 % confidence. None where all baseline runs are
    equal: what never varied has no limits.
    sigma_z: of an accuracy, how many times as much as by counting it varies between runs (Laney's
    p'); for the reader.
    """

    name: str
    kind: str
    shift: str
    prompts: int
    center: float
    sd: float
    skew: float
    excess: float
    low: float | None
    high: float | None
    content_low: float | None
    content_high: float | None
    sigma_z: float | None

    def shown(self, x: float) -> float:
        """From the scale that is judged to the metric's own unit."""
        if self.kind == "value":
            return x
        share = 1 / (1 + math.exp(-x)) if x > -700 else 0.0  # beyond, exp is no number
        return min(1.0, max(0.0, (share * (self.prompts + 2 * OFFSET) - OFFSET) / self.prompts))


@dataclass(frozen=True)
class Limits:
    """What `limits.json` holds. alpha: probability that a run of the same process fails, all tests
    together.

    n: baseline runs; n_incomplete: those left out because something of theirs is missing;
    n_failed: those left out because they have failed.
    terms: what decides what a number means beside the prompts, such as `rule`, by which two answers
    are the same. What a source does not know is not there; of version 1 nothing is.
    covariance: of the metrics that vary, in their order; empty where the runs do not determine it.
    heavy: their excess kurtosis together (see `statistics.hotelling.from_covariance`).
    """

    n: int
    n_incomplete: int
    alpha: float
    ewma_weight: float
    prompts: tuple[Prompt, ...]
    metrics: tuple[Metric, ...]
    covariance: tuple[tuple[float, ...], ...]
    heavy: float
    n_failed: int = 0
    terms: Terms = field(default_factory=dict)

    @property
    def linked(self) -> str | None:
        """The rule of the answers, where it is one that links forms that are close."""
        return linking(self.terms.get("rule"))


@dataclass(frozen=True)
class Row:
    """A metric of a run against its limits, in the metric's own unit. test: run, or drift (the
    moving average after the last run).

    z: standard deviations of single runs from the baseline's mean, on the scale that is judged;
    None where nothing varied.
    """

    metric: str
    test: str
    run: int
    value: float
    low: float | None
    high: float | None
    z: float | None
    outside: bool


@dataclass(frozen=True)
class Verdict:
    """status: pass, fail or inconclusive; reasons: why not pass. t2: of every run, with its limit,
    where there is one.
    """

    status: str
    reasons: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    t2: tuple[float, ...] = ()
    t2_limit: float | None = None
    notes: tuple[str, ...] = ()


def learn(
    answer_RP: np.ndarray,
    texts: Sequence[str],
    correct_RP: np.ndarray,
    shift_P: Sequence[str],
    prompt_id_P: Sequence[str],
    *,
    extra: Extra | None = None,
    alpha: float = ALPHA,
    ewma_weight: float = EWMA_WEIGHT,
    terms: Terms | None = None,
) -> Limits:
    """Limits from a baseline population, for `judge`.

    Metrics of a run, for every shift: its accuracy, and its disagreement with the OTHER baseline
    runs (share of them that answer differently, mean over prompts), so that a new run, which is
    none of them, is exchangeable with them.
    extra: more numbers per run, such as the mean reference log-prob or the final loss.

    answer_RP: codes into `texts`, the forms of answers, -1 = missing. correct_RP: 1, 0, nan =
    missing or without reference. terms: see `Limits`. Prompts that no run answered are left out; so
    are runs that lack an answer, a mark or an extra that others have, and they are counted. Raises
    ValueError for other shapes, fewer than two runs, or equal prompt ids.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    answer_RP, correct_RP = _tables(answer_RP, correct_RP, texts, prompt_id_P, at_least=2)
    if len(shift_P) != len(prompt_id_P):
        raise ValueError(
            f"shift_P must name a shift for each of the {len(prompt_id_P)} prompts, not "
            f"{len(shift_P)}"
        )
    values = {
        name: x_R for name, x_R in _extras(extra, len(answer_RP)).items() if np.isfinite(x_R).any()
    }
    asked = np.flatnonzero((answer_RP >= 0).any(axis=0))
    answer_RP, correct_RP = answer_RP[:, asked], correct_RP[:, asked]
    referenced_P = np.atleast_1d(np.isfinite(correct_RP).any(axis=0))
    whole_R = (answer_RP >= 0).all(axis=1) & np.isfinite(correct_RP[:, referenced_P]).all(axis=1)
    whole_R &= np.all([np.isfinite(x_R) for x_R in values.values()], axis=0)
    answer_RP, correct_RP = answer_RP[whole_R], correct_RP[whole_R]
    values = {name: x_R[whole_R] for name, x_R in values.items()}
    n = len(answer_RP)

    prompts = tuple(
        Prompt(str(prompt_id_P[p]), str(shift_P[p]), bool(referenced), _counted(code_R, texts))
        for p, referenced, code_R in zip(asked.tolist(), referenced_P, answer_RP.T, strict=True)
    )
    if rule := linking((terms or {}).get("rule")):
        answer_RP = code_answers(answer_RP, texts, rule)[0]
    differ_RP = 1 - count_pairs(answer_RP).others_RP / max(1, n - 1)
    table = _scores(differ_RP, correct_RP, prompts, values) if n > 1 else {}
    varying = [x_R for _, x_R in table.values() if prediction(x_R).low is not None]
    covariance, heavy = _covariance(varying)
    metrics = tuple(_metric(name, kind, x_R) for (name, (kind, x_R)) in table.items())
    learned = Limits(
        n,
        int((~whole_R).sum()),
        alpha,
        ewma_weight,
        prompts,
        metrics,
        covariance,
        heavy,
        terms=dict(terms or {}),
    )
    return with_alpha(learned, alpha)


def with_alpha(limits: Limits, alpha: float) -> Limits:
    """The same baseline, with limits for another rate of false alarms."""
    varying = sum(metric.low is not None for metric in limits.metrics)
    each = alpha / (1 + bool(limits.covariance)) / max(1, varying)
    metrics = []
    for metric in limits.metrics:
        if metric.low is not None:
            below, above = reaches(metric.sd, limits.n, metric.skew, metric.excess, each)
            low, high = metric.shown(metric.center - below), metric.shown(metric.center + above)
            metric = replace(metric, low=low, high=high)
        metrics.append(metric)
    return replace(limits, alpha=alpha, metrics=tuple(metrics))


def linking(rule: object) -> str | None:
    """The rule itself where it links forms that are close, so that a class of answers is known only
    among all of them.
    """
    name = str(rule)
    return name if name.partition(":")[0] in RULES and rule_of(name).link else None


def judge(
    limits: Limits,
    answer_CP: np.ndarray,
    texts: Sequence[str],
    correct_CP: np.ndarray,
    prompt_id_P: Sequence[str],
    *,
    extra: Extra | None = None,
) -> Verdict:
    """Do C new runs, in time order, come from the process of the baseline?

    Fail: a metric of a run outside its prediction limits; Hotelling's T2 of a run above its limit;
    or, with several runs, a metric's moving average (EWMA) after the last one outside its limits.
    alpha is divided evenly over these kinds of test, and within each over metrics and runs
    (Bonferroni): where metrics are normal, runs of the same process fail with probability alpha at
    most. (Simulated answers, alpha 0.27 %, 30 to 200 baseline runs: 0.1 to 0.8 %.) Inconclusive:
    fewer than MIN_BASELINE baseline runs; missing prompts, marks or extras; a metric that never
    varied in the baseline and now differs; a baseline that is equal in all metrics. The new runs
    are never part of what they are compared with.

    Arrays as in `learn`, of one run or more. Prompts are matched by id; those that the baseline
    does not know are left out.
    """
    answer_CP, correct_CP = _tables(answer_CP, correct_CP, texts, prompt_id_P, at_least=1)
    values = _extras(extra, len(answer_CP))
    position = {str(name): i for i, name in enumerate(prompt_id_P)}
    shared = tuple(prompt for prompt in limits.prompts if prompt.id in position)
    notes = []
    if limits.n_incomplete:
        notes.append(
            f"not in the limits: {counted(limits.n_incomplete, 'baseline run')} with "
            "something missing"
        )
    if limits.n_failed:
        notes.append(f"not in the limits: {counted(limits.n_failed, 'failed baseline run')}")
    if len(position) > len(shared):
        notes.append(
            f"left out: {counted(len(position) - len(shared), 'prompt')} "
            "that the baseline does not have"
        )

    column = [position[prompt.id] for prompt in shared]
    answer_CP, correct_CP = answer_CP[:, column], correct_CP[:, column]
    referenced_P = np.array([prompt.referenced for prompt in shared], dtype=bool)
    unanswered_P = (answer_CP < 0).any(axis=0)
    unmarked_P = referenced_P & ~unanswered_P & ~np.isfinite(correct_CP).all(axis=0)
    counts = {
        "are missing": len(limits.prompts) - len(shared),
        "lack an answer": int(unanswered_P.sum()),
        "lack a mark": int(unmarked_P.sum()),
    }
    lacking = [
        f"{count} of {len(limits.prompts)} prompts {what}"
        for what, count in counts.items()
        if count
    ]
    wanted = [metric.name for metric in limits.metrics if metric.kind == "value"]
    lacking += [
        f"no value of {name}"
        for name in wanted
        if name not in values or not np.isfinite(values[name]).all()
    ]
    if limits.n < MIN_BASELINE:
        lacking.append(f"the baseline has {limits.n} complete runs, and limits need {MIN_BASELINE}")
    if lacking:
        return Verdict("inconclusive", tuple(lacking), notes=tuple(notes))

    same_CP = _agreeing(limits.linked, shared, answer_CP, texts)
    table = _scores(
        1 - same_CP / limits.n, correct_CP, shared, {name: values[name] for name in wanted}
    )
    return _judged(
        limits, np.array([table[metric.name][1] for metric in limits.metrics]).T, tuple(notes)
    )


def save_limits(path: Path | str, limits: Limits) -> None:
    """Write limits.json: beside, synced, renamed."""
    data = {"version": VERSION, **asdict(limits)}
    data = {"sha256": _digest(data), **data}
    write_text(Path(path), json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def load_limits(path: Path | str) -> Limits:
    """Read limits.json. ValueError where it is of another version, broken, or was edited."""
    try:
        data = read_json(Path(path))
        version = data.get("version") if isinstance(data, dict) else None
        if version not in (1, VERSION) or isinstance(version, bool):
            raise ValueError(
                f"limits of version {shortened(version)}; this ftk reads versions 1 to "
                f"{VERSION}: learn them again"
            )
        digest = data.pop("prompts_sha256" if version == 1 else "sha256", None)
        content = _digest(data)
        del data["version"]
        limits: Limits = from_plain(Limits, data)
        if unknown := sorted(data.keys() - {f.name for f in fields(Limits)}):
            raise ValueError(f"key {shortened(unknown[0])} is unknown")
        if version == 1:
            content = _digest([[prompt.id, prompt.shift] for prompt in limits.prompts])
            limits = _of_version_1(limits)
        if digest != content:
            raise ValueError("its prompts or numbers were edited: learn the limits again")
        _check(limits)
    except ValueError as error:
        raise ValueError(f"{path}: no limits of the gate ({error})") from None
    return limits


def _of_version_1(limits: Limits) -> Limits:
    """Where a shift had a score, nothing says which of its prompts had one: all of them are asked
    for it.
    """
    scored = {m.name for m in limits.metrics}
    prompts = (replace(p, scored=f"score, {p.shift}" in scored) for p in limits.prompts)
    return replace(limits, prompts=tuple(prompts), terms={})


def _check(limits: Limits) -> None:
    """ValueError where the numbers cannot be those of a baseline."""
    shifts = {prompt.shift for prompt in limits.prompts}
    referenced = {prompt.shift for prompt in limits.prompts if prompt.referenced}
    counted = {f"accuracy, {shift}" for shift in referenced} | {
        f"disagreement, {shift}" for shift in shifts
    }
    varying = sum(metric.low is not None for metric in limits.metrics)
    rules = {
        "alpha lies between 0 and 1": 0 < limits.alpha < 1,
        "ewma_weight lies above 0, up to 1": 0 < limits.ewma_weight <= 1,
        "n is 2 or more": 2 <= limits.n <= MAX_BASELINE,
        "n runs answered every prompt": all(
            min(prompt.answers.values(), default=0) > 0 and sum(prompt.answers.values()) == limits.n
            for prompt in limits.prompts
        ),
        "no count is negative": min(limits.n_incomplete, limits.n_failed) >= 0,
        "an id stands once": len({prompt.id for prompt in limits.prompts}) == len(limits.prompts),
        "a metric is of the prompts, or a value": all(
            m.kind == "value" or m.name in counted for m in limits.metrics
        ),
        "a metric of the prompts counts them": all(
            m.kind == "value" or m.prompts > 0 for m in limits.metrics
        ),
        "a metric that varies has a standard deviation": all(
            m.low is None or m.sd > 0 for m in limits.metrics
        ),
        "the numbers of a metric are those of runs": all(
            abs(x) < LARGEST
            for m in limits.metrics
            for x in (m.center, m.sd, m.skew, m.excess, m.low or 0.0, m.high or 0.0)
        ),
        "heavy is a kurtosis": 0 <= limits.heavy < LARGEST,
        "covariance is a square of the metrics that vary": all(
            len(row) == len(limits.covariance) for row in limits.covariance
        )
        and len(limits.covariance) in (0, varying),
    }
    if broken := [rule for rule, holds in rules.items() if not holds]:
        raise ValueError(f"{broken[0]}, here not")
    if limits.covariance:
        within = np.linalg.eigvalsh(np.array(limits.covariance, dtype=np.float64))
        if not (np.isfinite(within).all() and within.min() > 0 and limits.n > varying):
            raise ValueError("covariance is not one of metrics that vary")


# -- from answers to numbers per run -------------------------------------------------------------

Kind = tuple[str, str, int]  # accuracy, disagreement or value; shift; prompts


def _scores(
    differ_RP: np.ndarray,
    correct_RP: np.ndarray,
    prompts: Sequence[Prompt],
    values: Mapping[str, np.ndarray],
) -> dict[str, tuple[Kind, np.ndarray]]:
    """Every metric's numbers per run, on the scale that is judged."""
    shift_P = np.array([prompt.shift for prompt in prompts])
    referenced_P = np.array([prompt.referenced for prompt in prompts])
    table = {}
    for shift in dict.fromkeys(shift_P.tolist()):
        for kind, cell_RP, used_P in (
            ("accuracy", correct_RP, (shift_P == shift) & referenced_P),
            ("disagreement", differ_RP, shift_P == shift),
        ):
            if n := int(used_P.sum()):
                sum_R = cell_RP[:, used_P].sum(axis=1)
                table[f"{kind}, {shift}"] = (
                    (kind, shift, n),
                    np.log((sum_R + OFFSET) / (n - sum_R + OFFSET)),
                )
    return table | {name: (("value", "", 0), x_R) for name, x_R in values.items()}


def _metric(name: str, kind: Kind, x_R: np.ndarray) -> Metric:
    """Without the limits of a run, which `with_alpha` sets where low is not None."""
    chart, content, (skew, excess) = (
        prediction(x_R),
        normal(x_R, CONTENT, CONTENT),
        skewness_and_excess(x_R),
    )
    bare = Metric(
        name, *kind, chart.center, chart.sigma, skew, excess, None, None, None, None, None
    )
    if chart.low is None:
        return bare
    sigma_z = None
    if kind[0] == "accuracy":
        size_R = np.full(len(x_R), float(kind[2]))
        sigma_z = laney(np.array([bare.shown(x) for x in x_R]) * size_R, size_R).sigma_z
    inner = [None if x is None else bare.shown(x) for x in (content.low, content.high)]
    return replace(
        bare,
        low=chart.low,
        high=chart.high,
        content_low=inner[0],
        content_high=inner[1],
        sigma_z=sigma_z,
    )


def _covariance(varying: Sequence[np.ndarray]) -> tuple[tuple[tuple[float, ...], ...], float]:
    """Of two metrics or more, and their kurtosis; empty where they are too many for the runs, or
    one follows from the others.

    The kurtosis enters twice: from a few dozen runs it comes out too small.
    """
    if len(varying) < 2:
        return (), 0.0
    x_RM = np.array(varying).T
    try:
        hotelling(x_RM)
    except ValueError:
        return (), 0.0
    return tuple(tuple(row) for row in np.cov(x_RM, rowvar=False).tolist()), 2 * max(
        0.0, mardia(x_RM)
    )


def _counted(code_R: np.ndarray, texts: Sequence[str]) -> dict[str, int]:
    return {str(texts[code]): count for code, count in Counter(code_R.tolist()).most_common()}


def _agreeing(
    rule: str | None, prompts: Sequence[Prompt], answer_CP: np.ndarray, texts: Sequence[str]
) -> np.ndarray:
    """How many baseline runs answer each prompt as the new run does, int [C, P].

    rule: one that links: the chains of a prompt are laid through the panel's answers and the one
    new answer, as those of the baseline are laid through all of its own.
    """
    rows = [[str(texts[code]) for code in row] for row in answer_CP.tolist()]
    if rule is None:
        counts = [[p.answers.get(a, 0) for p, a in zip(prompts, row, strict=True)] for row in rows]
        return np.array(counts)
    panel = [(p, form, n) for p, prompt in enumerate(prompts) for form, n in prompt.answers.items()]
    prompt_N = np.array([p for p, _, _ in panel])
    count_N = np.array([n for _, _, n in panel])
    same_CP = []
    for row in rows:
        words = [*row, *(form for _, form, _ in panel)]
        code_T = classes(words, rule, groups=[*range(len(row)), *prompt_N.tolist()])
        same_N = code_T[len(row) :] == code_T[prompt_N]
        same_CP.append(np.bincount(prompt_N, weights=count_N * same_N, minlength=len(row)))
    return np.array(same_CP)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _tables(
    answer_RP: np.ndarray,
    correct_RP: np.ndarray,
    texts: Sequence[str],
    prompt_id_P: Sequence[str],
    *,
    at_least: int,
) -> tuple[np.ndarray, np.ndarray]:
    answer_RP = as_answers(answer_RP, "answer_RP", at_least=at_least)
    correct_RP = as_correct(correct_RP, "correct_RP", at_least=at_least)
    if answer_RP.shape != correct_RP.shape or answer_RP.shape[1] != len(prompt_id_P):
        raise ValueError(
            f"{len(prompt_id_P)} prompts, answers of shape {answer_RP.shape} and marks of "
            f"shape {correct_RP.shape} do not fit"
        )
    if len(set(map(str, prompt_id_P))) < len(prompt_id_P):
        raise ValueError("two prompts have the same id: the gate could not tell them apart")
    if answer_RP.max(initial=-1) >= len(texts):
        raise ValueError(f"an answer has code {answer_RP.max()}, but there are {len(texts)} texts")
    return answer_RP, correct_RP


def _extras(extra: Extra | None, n_runs: int) -> dict[str, np.ndarray]:
    values = {name: np.asarray(x_R, dtype=np.float64) for name, x_R in (extra or {}).items()}
    for name, x_R in values.items():
        if x_R.shape != (n_runs,):
            raise ValueError(
                f"{name} must be one number for each of the {n_runs} runs, not shape {x_R.shape}"
            )
    return values


# -- from numbers to a verdict -------------------------------------------------------------------


def _judged(limits: Limits, x_CM: np.ndarray, notes: tuple[str, ...]) -> Verdict:
    runs = len(x_CM)
    varying = [m for m, metric in enumerate(limits.metrics) if metric.low is not None]
    kinds = 1 + bool(limits.covariance) + (runs > 1)
    each = limits.alpha / kinds / max(1, len(varying))
    rows, failed, doubtful = [], [], []
    for metric, x_C in zip(limits.metrics, x_CM.T, strict=True):
        if metric.low is None:
            rows += [
                Row(metric.name, "run", c, metric.shown(x), None, None, None, False)
                for c, x in enumerate(x_C)
            ]
            changed = x_C[np.abs(x_C - metric.center) > 1e-9 * max(1.0, abs(metric.center))]
            if len(changed):
                was, now = metric.shown(metric.center), metric.shown(changed[0])
                doubtful.append(
                    f"{metric.name}: {number(now, 'e4')}, and {number(was, 'e4')} in all baseline "
                    "runs: what never varied has no limits"
                )
            continue
        below, above = reaches(metric.sd, limits.n, metric.skew, metric.excess, each / runs)
        rows += [
            _row(metric, "run", c, x, metric.center - below, metric.center + above)
            for c, x in enumerate(x_C)
        ]
        if runs > 1:
            path = ewma_path(
                Ewma(metric.center, metric.sd, limits.n, limits.ewma_weight, each), x_C
            )
            rows.append(
                _row(metric, "drift", runs - 1, path.z_T[-1], path.low_T[-1], path.high_T[-1])
            )
    for row in rows:
        if row.outside:
            who = "the runs' moving average" if row.test == "drift" else _run(row.run, runs)
            failed.append(
                f"{row.metric}: {number(row.value, 'e4')} of {who} is outside "
                f"[{number(row.low, 'e4')}, {number(row.high, 'e4')}] ({row.z:+.1f} sd)"
            )

    t2, t2_limit = (), None
    if limits.covariance:
        center_M = np.array([limits.metrics[m].center for m in varying])
        chart = from_covariance(
            center_M,
            np.array(limits.covariance, dtype=np.float64),
            limits.n,
            alpha=limits.alpha / kinds / runs,
            heavy=limits.heavy,
        )
        t2, t2_limit = tuple(t_squared(chart, x_CM[:, varying]).tolist()), chart.limit
        failed += [
            f"all metrics together: T2 {x:.1f} of {_run(c, runs)} is above {t2_limit:.1f}"
            for c, x in enumerate(t2)
            if x > t2_limit
        ]
    if not varying:
        doubtful.append(
            f"the {limits.n} baseline runs are equal in every metric: what never varied "
            "has no limits"
        )
    status = "fail" if failed else "inconclusive" if doubtful else "pass"
    return Verdict(status, tuple(failed + doubtful), tuple(rows), t2, t2_limit, notes)


def _row(metric: Metric, test: str, run: int, x: float, low: float, high: float) -> Row:
    shown = metric.shown(x), metric.shown(low), metric.shown(high)
    return Row(
        metric.name,
        test,
        run,
        *shown,
        float((x - metric.center) / metric.sd),
        bool(x < low or x > high),
    )


def _run(run: int, runs: int) -> str:
    return f"run {run}" if runs > 1 else "the run"
