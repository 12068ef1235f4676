"""What a run found: one versioned JSON of small frozen records, the only thing that a report
reads.
"""

import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from toolkit.errors import FtkError
from toolkit.record.files import write_text
from toolkit.record.plain import JsonError, from_plain, read_json, shortened, to_plain
from toolkit.record.tidy import Tidy, estimates_of, row_of
from toolkit.statistics import (
    AccuracySpread,
    Estimate,
    Tolerance,
    Tradeoff,
    collapsed,
    independent_runs,
)

VERSION = 2
SHIFTS = ("typical", "near", "far")
ZONES = ("acceptable", "watch", "critical", "not enough data")
VERDICTS = ("PASS", "FAIL", "INCONCLUSIVE")
Item = typing.TypeVar("Item")
Tuple_ = Annotated[Sequence[Item], AfterValidator(tuple)]
"""any sequence when it is made, a tuple when it is read"""
Ints = Tuple_[int]
CLAIM_VERDICTS = ("supported", "contradicted", "not resolvable", "measured", "not in this run")


@dataclass(frozen=True)
class Price:
    """What one run of a procedure costs: trainings, models that answer each prompt (a mean, behind
    a gate), rank of the adapter.

    seconds: measured for its trainings, of one core (CPU) or of the device. tokens: of all its
    trainings, padding included.
    """

    training_runs: int = 1
    inference_streams: float = 1
    rank: int | None = None
    seconds: float | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class MitigationDesign:
    """A mitigation on disjoint groups of K replicas: members[g] are the replica indexes behind
    group g.

    label: names the rows of the outcomes, `mean-k8`. title: the method in words, without K. kind:
    `merge`, `ensemble` or `distilled`.
    condition: of kind `distilled`, that of the students. runs: the number of every group in the
    outcomes (of students: the student); empty where they are 0, 1, ...
    """

    label: str
    title: str
    kind: str
    k: int
    members: Tuple_[Ints]
    price: Price
    condition: str = ""
    runs: Ints = ()

    def outcomes(self, condition: str) -> tuple[str, str, Sequence[int]]:
        """Condition, procedure and indexes of its rows, where `condition` is the one that it is
        built from.
        """
        if self.condition:
            return self.condition, "replica", self.runs
        return condition, self.label, self.runs or range(len(self.members))

    def only(self, replicas: Set[int]) -> "MitigationDesign":
        """The groups all of whose members are among `replicas`."""
        numbers = list(self.runs or range(len(self.members)))
        kept = [g for g, members in enumerate(self.members) if set(members) <= replicas]
        return replace(
            self, members=[self.members[g] for g in kept], runs=[numbers[g] for g in kept]
        )


@dataclass(frozen=True)
class TeacherDesign:
    """Whom the replicas of a distilled condition learned from.

    label: of the teachers' own outcomes, where a mitigation of `condition` has them. groups,
    members: of the teacher of each replica, its number and the replicas of `condition` behind it.
    """

    condition: str
    label: str
    groups: Ints
    members: Tuple_[Ints]


MACHINE = "machine"
"""the factor of a design that is no seed"""


@dataclass(frozen=True)
class ConditionDesign:
    """One way of training: the replicas that succeeded (by index), how many failed, and what was
    built from them.

    factors: of a crossed design, the level of every replica in each source; equal numbers, equal
    level.
    everyone: all that succeeded, where several learned from one teacher and only one of those is in
    `replicas`; `factors` are theirs then.
    """

    name: str
    replicas: Ints
    failed: int = 0
    mitigations: Tuple_[MitigationDesign] = ()
    price: Price = Price()
    factors: Mapping[str, Ints] = field(default_factory=dict)
    everyone: Ints = ()
    teacher: TeacherDesign | None = None

    @property
    def sources(self) -> dict[str, Sequence[int]]:
        """The level of every run of `everyone` (or `replicas`) in each source of randomness. A
        machine is none: nobody draws it.
        """
        return {name: level_R for name, level_R in self.factors.items() if name != MACHINE}

    def independent(self) -> "ConditionDesign":
        """The same with only such `replicas`, and groups of them, of which any two share no level
        of any source.

        All that succeeded stay in `everyone`. A group stays where all its members are among those
        replicas.
        """
        whole = list(self.everyone or self.replicas)
        kept = [whole[row] for row in independent_runs(self.sources, len(whole))]
        if kept == list(self.replicas):
            return self
        fresh = set(kept)
        mitigations = tuple(mitigation.only(fresh) for mitigation in self.mitigations)
        teacher = self.teacher
        if teacher:
            of = dict(
                zip(self.replicas, zip(teacher.groups, teacher.members, strict=True), strict=True)
            )
            kept = [replica for replica in kept if replica in of]
            teacher = replace(
                teacher, groups=[of[r][0] for r in kept], members=[of[r][1] for r in kept]
            )
        return replace(
            self, replicas=kept, everyone=whole, mitigations=mitigations, teacher=teacher
        )


GAINED = "accuracy gained over the base"
"""the metric of that name"""
MEAN_SCORE = "score: mean"
"""the metric of predictions that come with a number each"""


@dataclass(frozen=True)
class Metric:
    """A further figure of a procedure on a shift. unit: "%" for a share, else ""."""

    name: str
    unit: str
    estimate: Estimate


@dataclass(frozen=True)
class Survival:
    """Share of pairs of runs whose texts are still equal after t tokens, with pointwise intervals
    (Kaplan-Meier).
    """

    token: tuple[float, ...]
    share: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]


@dataclass(frozen=True)
class Cell:
    """One procedure on one shift, or on one category of it (category "" = all). None = nothing to
    measure it with.

    ratio, disagreement_change (negative = more stable), accuracy_change, effect_size (share of
    answers that differ from the base's) and gain_kept (accuracy gained over the base) compare a
    mitigation with the single replicas of its condition; on a category only the first two of them
    are kept. as_base: share of the procedure's answers that equal the base's; not on a category.
    zone: what the disagreement's interval says against the thresholds, one of ZONES.
    p_adjusted: the ratio's p-value, adjusted (Holm for shifts, Benjamini-Hochberg for categories)
    over all mitigations of the results.
    scores: accuracy of each replica or group, in index order.
    metrics, survival: further figures of single replicas on a shift.
    """

    shift: str
    category: str
    n_prompts: int
    disagreement: Estimate | None = None
    ratio: Estimate | None = None
    disagreement_change: Estimate | None = None
    accuracy: Estimate | None = None
    accuracy_change: Estimate | None = None
    effect_size: Estimate | None = None
    gain_kept: Estimate | None = None
    accuracy_spread: AccuracySpread | None = None
    zone: str = ""
    p_adjusted: float | None = None
    scores: tuple[float | None, ...] = ()
    metrics: tuple[Metric, ...] = ()
    survival: Survival | None = None
    as_base: Estimate | None = None

    @property
    def gained(self) -> Estimate | None:
        """Accuracy of single replicas less that of the base, where both are known."""
        return next((metric.estimate for metric in self.metrics if metric.name == GAINED), None)

    @property
    def returned(self) -> bool:
        """Shown, by the upper limit of the effect size: it answers as the base does more often than
        what was fine-tuned.
        """
        return _given_back(self.effect_size)

    @property
    def collapsed(self) -> bool:
        """Shown, by the upper limit of the effect size or of the gain: part of the fine-tuning has
        been given back.
        """
        return self.returned or _given_back(self.gain_kept)

    @property
    def loses(self) -> bool:
        """Shown, by the upper limit of the change: accuracy is lost against single replicas."""
        return is_loss(self.accuracy_change)

    @property
    def kept(self) -> Estimate | None:
        """Share of the fine-tuning that is kept: of the answers that it changed, or of the accuracy
        that it gained, the lower.

        Where `collapsed`, the one that shows it.
        """
        kept = [
            e for e in (self.effect_size, self.gain_kept) if e is not None and e.value is not None
        ]
        return min(
            kept, key=lambda e: (not _given_back(e), e.value or 0.0), default=self.effect_size
        )


@dataclass(frozen=True)
class Procedure:
    """A way to obtain a model, run n_runs times independently (replicas, or disjoint groups of k).

    kind: base, replica, merge, ensemble, distilled.
    """

    label: str
    title: str
    kind: str
    k: int
    n_runs: int
    price: Price
    cells: tuple[Cell, ...]

    @property
    def family(self) -> str:
        """The label without K: `ties-k2` and `ties-k8` are one family."""
        return self.label.rpartition("-k")[0] or self.label

    def cell(self, shift: str, category: str = "") -> Cell | None:
        """The cell of a shift, and of a category of it; None where there is none."""
        return next((c for c in self.cells if c.shift == shift and c.category == category), None)


@dataclass(frozen=True)
class UnstablePrompt:
    """A prompt on which the replicas disagree most. answers: (text, replicas that gave it), most
    frequent first.
    """

    suite: str
    id: str
    prompt: str
    category: str
    shift: str
    reference: str | None
    base_answer: str | None
    disagreement: float
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Scaling:
    """How a family of mitigations gets more stable with K: D(K) = floor + slope / K^power, and the
    free exponent of D ~ K^-exponent.

    smallest_k: the least K whose disagreement is expected to be at most `target`; safe_k: the least
    at which its upper limit is.
    """

    title: str
    shift: str
    floor: Estimate
    slope: Estimate
    exponent: Estimate
    power: float
    target: float
    smallest_k: int | None = None
    safe_k: int | None = None
    note: str = ""


@dataclass(frozen=True)
class Sources:
    """Which source makes runs differ, from a crossed design: parts of a figure on a shift, and
    their total.

    figure: "disagreement" (parts add up to the disagreement of two fresh runs), "accuracy"
    (variance between runs, points squared), or what a score is called (variance between runs of its
    mean). Parts are unclipped: about nothing may come out negative. precision: for accuracy and
    scores, SDs in the words of ISO 5725.
    """

    shift: str
    figure: str
    parts: dict[str, Estimate]
    total: Estimate
    precision: dict[str, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tested:
    """A claim held against one condition, "" where the run has none that it speaks of.

    claimed: the range that the quantity is said to lie in; None where nothing is claimed. verdict:
    one of CLAIM_VERDICTS. remark: what stands behind it, or what it would take. alone,
    alone_verdict: of behaviour, the same on the very prompts of the suite: for runs drawn anew, but
    not for other prompts.
    """

    name: str
    says: str
    condition: str
    quantity: str
    prompts: str
    claimed: tuple[float, float] | None
    estimate: Estimate | None
    verdict: str
    remark: str = ""
    alone: Estimate | None = None
    alone_verdict: str = ""


@dataclass(frozen=True)
class Outlook:
    """What to expect of many runs of a condition on the prompts of one shift, or of one category of
    it (category "" = all).

    differ: two runs answer a prompt differently. off: a run answers otherwise than the majority.
    distinct: different answers of all those runs to one prompt. floor: an accuracy that nearly all
    runs reach. zone: of `differ`, one of ZONES.
    """

    condition: str
    shift: str
    category: str
    n_prompts: int
    zone: str
    differ: Estimate
    off: Estimate
    distinct: Estimate
    floor: Tolerance | None = None


@dataclass(frozen=True)
class Claims:
    """claims.json: claims against what was measured, and what to expect of `runs` runs. design:
    sha256 of the design.json behind it.
    """

    file: str
    level: float
    runs: int
    design: str
    tested: tuple[Tested, ...]
    outlook: tuple[Outlook, ...]


@dataclass(frozen=True)
class RunMetric:
    """A number that every run of a condition has: MCC, F1, perplexity, in the order of `runs`; None
    where a run has none.

    lowest, highest: the range that was seen. gain_over_base: of the mean. suspects: runs far off
    the others, as failed ones are.
    """

    condition: str
    metric: str
    runs: tuple[str, ...]
    scores: tuple[float | None, ...]
    n_failed: int
    mean: Estimate
    sd: Estimate
    lowest: float | None = None
    highest: float | None = None
    gain_over_base: Estimate | None = None
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunMetricContrast:
    """A metric of two conditions: change of its mean and of its SD between runs, in its unit, and
    the ratio of the variances.

    p_adjusted: of the change of the mean, by Holm over all contrasts of the table. sd_change: None
    where an arm is one run.
    """

    condition: str
    baseline: str
    metric: str
    paired: bool
    mean_change: Estimate
    sd_change: Estimate | None = None
    variance_ratio: Estimate | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class RunMetrics(Tidy):
    """metrics.json: what a table of one row a run says."""

    about: "About"
    level: float
    metrics: tuple[RunMetric, ...]
    contrasts: tuple[RunMetricContrast, ...]
    notes: tuple[str, ...] = ()

    def to_rows(self) -> list[dict[str, typing.Any]]:
        """A dict for every estimate (see `Tidy`), of a metric of a condition, or of a condition
        `against` another.
        """
        return [
            row_of(
                {
                    "condition": metric.condition,
                    "against": getattr(metric, "baseline", ""),
                    "metric": metric.metric,
                },
                figure,
                estimate,
            )
            for metric in (*self.metrics, *self.contrasts)
            for figure, estimate in estimates_of(metric)
        ]


@dataclass(frozen=True)
class Judgement:
    """A criterion of the user held against one procedure. verdict: one of VERDICTS, from a
    one-sided limit; estimate.level is two-sided.
    """

    criterion: str
    where: str
    limit: str
    confidence: float
    consequence: str
    condition: str
    procedure: str
    k: int
    verdict: str
    estimate: Estimate
    unit: str
    reason: str


UNEVEN = 0.01
"""A difference in the share of missing answers that is told."""


@dataclass(frozen=True)
class Gaps:
    """Answers that one of two conditions lacks.

    common: prompts that both answered, of n_prompts that either did; missing, baseline_missing: the
    share of their answers to these that the runs lack; at_worst: the change of accuracy, were all
    of these wrong.
    """

    common: int
    n_prompts: int
    missing: float
    baseline_missing: float
    at_worst: Estimate | None = None


@dataclass(frozen=True)
class Contrast:
    """Two conditions on one shift: the condition against the baseline. paired: run j of both shares
    its seeds;
    pair_differs: then, the share of prompts that the two runs of a pair answer differently.

    Of `Results.mitigated` and `same_compute` condition is a mitigation in words
    (`words.mitigation_of`); baseline is there a condition that takes as many tokens in one
    training.
    score_change: of the mean of the number that answers come with. effect_size, gain_kept: of what
    the baseline's fine-tuning changed against the base (answers, accuracy), the share that the
    condition's changes; as_base, baseline_as_base: how often either answers as the base does. None
    where the base's answers are not known.
    """

    condition: str
    baseline: str
    shift: str
    paired: bool
    ratio: Estimate
    change: Estimate
    accuracy_change: Estimate | None = None
    score_variance_ratio: Estimate | None = None
    p_adjusted: float | None = None
    pair_differs: Estimate | None = None
    score_change: Estimate | None = None
    effect_size: Estimate | None = None
    gain_kept: Estimate | None = None
    as_base: Estimate | None = None
    baseline_as_base: Estimate | None = None
    gaps: Gaps | None = None

    @property
    def returned(self) -> bool:
        """As of a Cell."""
        return _given_back(self.effect_size)

    @property
    def loses(self) -> bool:
        """As of a Cell."""
        return is_loss(self.accuracy_change)


@dataclass(frozen=True)
class Distance:
    """Two conditions on one shift of which one, or both, has a single run: how far each run of the
    other is from it.

    single: the condition of the single run; differs: share of prompts that a run of the other
    answers otherwise, accuracy_change: of a run of `condition` less one of `baseline`. runs: of the
    other condition, name and share of prompts answered otherwise, one by one.
    """

    condition: str
    baseline: str
    shift: str
    single: str
    differs: Estimate
    accuracy_change: Estimate | None = None
    runs: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True)
class Suspects:
    """Runs of a condition that stand far off the others on a shift, as failed ones do, by the
    user's names.

    seen_in: in which of "disagreement", "accuracy" and "score" they do. what: one of these figures;
    figure_with, figure_without: it with all runs, and without these.
    """

    condition: str
    shift: str
    runs: tuple[str, ...]
    what: str
    figure_with: Estimate
    figure_without: Estimate
    seen_in: tuple[str, ...] = ()


@dataclass(frozen=True)
class ChangedPrompt:
    """A prompt on which two conditions differ: a share in either, and its p-value before and after
    adjustment for all prompts.
    """

    suite: str
    id: str
    prompt: str
    category: str
    shift: str
    condition: float
    baseline: float
    p: float
    p_adjusted: float


@dataclass(frozen=True)
class PromptContrast:
    """Two conditions prompt by prompt. figure: "disagreement" or "accuracy".

    tested: prompts; clear: those that differ after adjustment (Benjamini-Hochberg) at the level of
    the results; prompts: those of the smallest p-values.
    """

    condition: str
    baseline: str
    figure: str
    paired: bool
    tested: int
    clear: int
    prompts: tuple[ChangedPrompt, ...]


@dataclass(frozen=True)
class ModuleSpread:
    """How far apart the replicas' weight changes of a module are, or of all modules of a kind or
    layer together.

    share: of the mean squared norm of a replica's whole change. spread: see
    `toolkit.statistics.weight_spread`. ratio: to the spread in the first condition; p_adjusted: its
    p-value by Benjamini and Hochberg over the list in which it stands.
    """

    name: str
    share: float
    spread: Estimate
    ratio: Estimate | None = None
    p_adjusted: float | None = None


@dataclass(frozen=True)
class Modules:
    """The spread of a condition's weight changes by module. baseline: the condition that it is held
    against, "" for the first.
    """

    condition: str
    baseline: str
    paired: bool
    replicas: tuple[int, ...]
    total: ModuleSpread
    kinds: tuple[ModuleSpread, ...]
    layers: tuple[ModuleSpread, ...]
    modules: tuple[ModuleSpread, ...]

    def shown(self, ends: int = 5) -> list[tuple[str, Sequence[ModuleSpread]]]:
        """Titles and rows for a reader: all together, by kind, by layer, and the modules at either
        end.
        """
        order = sorted(
            (row for row in self.modules if row.spread.value is not None),
            key=lambda row: row.spread.value or 0.0,
        )
        few = min(ends, len(order) // 2)
        groups = [
            ("all modules", (self.total,)),
            ("by kind", self.kinds),
            ("by layer", self.layers),
        ]
        return [*groups, ("most alike", order[:few]), ("least alike", order[::-1][:few])]


@dataclass(frozen=True)
class Thresholds:
    """Shares of prompts: a disagreement that is shown to be at most `acceptable`, or above
    `critical`; a category may have its own.
    """

    acceptable: float = 0.05
    critical: float = 0.20
    categories: dict[str, tuple[float, float]] | None = None

    def of(self, category: str) -> tuple[float, float]:
        """(acceptable, critical) of a category."""
        return (self.categories or {}).get(category, (self.acceptable, self.critical))


@dataclass(frozen=True)
class Trade:
    """How the accuracies of categories go together over runs. places: (shift, category) of each;
    tradeoff: in their order.

    p_adjusted: of every pair, in the order of rows above the diagonal (Holm).
    """

    places: tuple[tuple[str, str], ...]
    tradeoff: Tradeoff
    p_adjusted: tuple[float | None, ...]


@dataclass(frozen=True)
class ConditionResult:
    """settings: how its replicas were trained, single values by their name in the recipe; empty
    where that is not known.

    runs: what the user calls the replicas, in the order of `Cell.scores`; failed: those that are in
    no figure, as far as they have names.
    """

    name: str
    n_replicas: int
    n_failed: int
    failure_rate: Estimate
    procedures: tuple[Procedure, ...]
    unstable: tuple[UnstablePrompt, ...]
    scaling: tuple[Scaling, ...] = ()
    sources: tuple[Sources, ...] = ()
    settings: dict[str, typing.Any] = field(default_factory=dict)
    trade: Trade | None = None
    runs: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    @property
    def single(self) -> Procedure:
        """The procedure that is one replica alone."""
        return self.procedures[0]

    @property
    def n_trained(self) -> int:
        """All runs, those that failed and those that share a seed with others, too."""
        return max(self.failure_rate.n_replicas, self.n_replicas + self.n_failed)


@dataclass(frozen=True)
class SuiteCount:
    """How many prompts of one category a suite holds."""

    suite: str
    shift: str
    category: str
    n_prompts: int


@dataclass(frozen=True)
class About:
    """Where the numbers come from; the caller knows, the analysis does not."""

    ftk: str = ""
    recipe: str = ""
    base: str = ""
    parameters: int | None = None
    environment: dict[str, str] | None = None
    command: str = ""


@dataclass(frozen=True)
class Results(Tidy):
    """All that was measured. `conditions` holds the figures of every procedure by shift and
    category, `contrasts` the conditions against the first, `verdict` what it comes to in sentences.

    Example:
        >>> import toolkit
        >>> answers = [["a", "b", "c", "d"], ["a", "b", "c", "e"], ["a", "b", "c", "d"]]
        >>> results = toolkit.measure(answers)
        >>> row = next(row for row in results.to_rows() if row["figure"] == "disagreement")
        >>> round(row["value"], 3), row["n_replicas"]
        (0.167, 3)
    """

    about: About
    level: float
    suites: tuple[SuiteCount, ...]
    base: Procedure | None
    conditions: tuple[ConditionResult, ...]
    verdict: tuple[str, ...]
    notes: tuple[str, ...] = ()
    thresholds: Thresholds = Thresholds()
    contrasts: tuple[Contrast, ...] = ()
    judgements: tuple[Judgement, ...] = ()
    mitigated: tuple[Contrast, ...] = ()
    by_prompt: tuple[PromptContrast, ...] = ()
    same_compute: tuple[Contrast, ...] = ()
    modules: tuple[Modules, ...] = ()
    distances: tuple[Distance, ...] = ()
    suspects: tuple[Suspects, ...] = ()

    @property
    def shifts(self) -> list[str]:
        """The shifts that the suites hold, from home to the farthest."""
        return in_order(s.shift for s in self.suites)

    def to_rows(self) -> list[dict[str, typing.Any]]:
        """A dict for every estimate (see `Tidy`): of a `procedure` of a `condition` on a `shift`
        (category "": all of it), or of single replicas of a condition `against` another.
        """
        return list(self._rows())

    def _rows(self) -> Iterator[dict[str, typing.Any]]:
        procedures = [("", self.base)] if self.base else []
        procedures += [(c.name, procedure) for c in self.conditions for procedure in c.procedures]
        for condition, procedure in procedures:
            for cell in procedure.cells:
                place = {
                    "condition": condition,
                    "against": "",
                    "procedure": procedure.label,
                    "kind": procedure.kind,
                    "k": procedure.k,
                    "shift": cell.shift,
                    "category": cell.category,
                }
                for figure, estimate in estimates_of(cell):
                    yield row_of(place, figure, estimate)
                if spread := cell.accuracy_spread:
                    for figure, estimate in estimates_of(spread):
                        yield row_of(place, f"accuracy_{figure}", estimate)
                for metric in cell.metrics:
                    yield row_of(place, metric.name, metric.estimate)
        for contrast in self.contrasts:
            single = next(c.single for c in self.conditions if c.name == contrast.condition)
            place = {
                "condition": contrast.condition,
                "against": contrast.baseline,
                "procedure": single.label,
                "kind": single.kind,
                "k": single.k,
                "shift": contrast.shift,
                "category": "",
            }
            for figure, estimate in estimates_of(contrast):
                name = "disagreement_change" if figure == "change" else figure
                yield row_of(place, name, estimate)

    @property
    def has_scores(self) -> bool:
        """Whether predictions came with a number each; scores of a run are log-probabilities."""
        return any(
            metric.name == MEAN_SCORE
            for condition in self.conditions
            for cell in condition.single.cells
            for metric in cell.metrics
        )


def in_order(shifts: Iterable[str]) -> list[str]:
    """From home to the farthest: typical, near, far, then others as they came."""
    return sorted(
        dict.fromkeys(shifts),
        key=lambda shift: SHIFTS.index(shift) if shift in SHIFTS else len(SHIFTS),
    )


def is_loss(change: Estimate | None) -> bool:
    """Whether a change of accuracy is shown to be a loss: by its upper limit, never by its
    value.
    """
    return change is not None and change.conclusive and change.high is not None and change.high < 0


def _given_back(kept: Estimate | None) -> bool:
    return kept is not None and collapsed(kept) == "collapsed"


Record_ = typing.TypeVar("Record_")


class ResultsError(FtkError, ValueError):
    """A results.json that cannot be read; one line with the reason and the way out."""


# -- the file ------------------------------------------------------------------------------------


def save_results(path: Path | str, results: Results | Claims | RunMetrics) -> None:
    """Write results.json, claims.json or metrics.json: beside, fsynced, renamed, so that a reader
    never sees half a file.
    """
    text = json.dumps(
        {"version": VERSION, **to_plain(results)}, indent=1, ensure_ascii=False, allow_nan=False
    )
    write_text(Path(path), text + "\n")


def load_results(path: Path | str) -> Results:
    """Read results.json. ResultsError where it is of another version or not a result at all.

    Example:
        >>> import toolkit
        >>> results = toolkit.load_results("runs/first/results.json")
        >>> results.conditions[0].n_replicas
        4
    """
    return _load(path, Results, "`ftk measure RUN` makes them anew")


def load_claims(path: Path | str) -> Claims:
    """Read claims.json. ResultsError as in `load_results`."""
    return _load(path, Claims, "`ftk claims RUN` makes them anew")


def load_run_metrics(path: Path | str) -> RunMetrics:
    """Read metrics.json. ResultsError as in `load_results`."""
    return _load(path, RunMetrics, "`ftk measure FILE` makes them anew")


def _load(path: Path | str, kind: type[Record_], remedy: str) -> Record_:
    data = read_json(Path(path))
    version = data.pop("version", None) if isinstance(data, dict) else None
    if version != VERSION:
        raise ResultsError(
            f"{path}: results of version {shortened(version)}; this ftk reads version "
            f"{VERSION}: {remedy}"
        )
    try:
        return from_plain(kind, data)
    except JsonError as error:
        raise ResultsError(f"{path}: not a complete results file ({error}); {remedy}") from None
