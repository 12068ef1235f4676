"""The public functions of ftk, as `toolkit.NAME`. None prints or exits: what was found is returned,
progress and notes go to a `Console`, and what cannot be done raises FtkError.

Paths may be str or Path. Packages of the extra `train`, such as torch, are imported by the
functions that need them, and not before.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NotRequired, TypedDict, cast

from toolkit.errors import ArgumentError, FtkError, names_extra

if TYPE_CHECKING:
    import numpy as np

    from toolkit.measurement.gate.judge import Named
    from toolkit.measurement.gate.limits import Limits, Verdict
    from toolkit.measurement.replicas_needed import Plan
    from toolkit.pipeline.console import Console
    from toolkit.recipe import Criteria, Recipe
    from toolkit.record.results import Claims, Results, RunMetrics

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class Trained:
    """Replicas of a condition after `train_replicas`.

    folder: holds a PEFT adapter folder (of `method: full` a model folder) for each; replicas: the
    indexes of all of them; failed: those that diverged.
    """

    folder: Path
    replicas: tuple[int, ...]
    failed: tuple[int, ...]


class Evaluation(NamedTuple):
    """What `evaluate` returns: the folder of outcomes and report, and the results."""

    folder: Path
    results: Results


class Merged(TypedDict):
    """What `merge` says of each merge it wrote to the folder `out`.

    energy: share of the change's squared norm that was kept; rank: None for whole models; dtype and
    rounding: of full models; error_bound: of a merge with a `buffer`.
    """

    out: str
    method: str
    k: int
    energy: float | None
    rank: NotRequired[int | None]
    sha256: NotRequired[str]
    error_bound: NotRequired[float]
    dtype: NotRequired[str]
    rounding: NotRequired[float]
    soup: NotRequired[int]


# -- from a recipe -------------------------------------------------------------------------------


@names_extra
def run(
    recipe: Recipe | StrPath,
    out: StrPath,
    *,
    replicas: int | None = None,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    console: Console | None = None,
) -> Results:
    """Train, merge, evaluate and measure all that a recipe asks for; write a report.

    Run it again with the same folder: only what is missing is done.

    Args:
        recipe: a recipe, or its YAML file.
        out: the run folder; results.json and report.html go there, too.
        replicas: of every condition, instead of the recipe's number.
        workers: processes (default: one a core; one on a GPU).
        engine: this machine, or a Ray cluster.
        console: takes notes and progress; silent by default.

    Raises:
        FtkError: a recipe, data or folder that cannot be used, in one line.

    Example:
        >>> import toolkit
        >>> results = toolkit.run("recipe.yaml", "runs/first")
        >>> [condition.name for condition in results.conditions]
        ['lora']
    """
    asked, folder = _begun(recipe, out, replicas, answers=True)
    from toolkit import pipeline

    return pipeline.run(asked, folder, workers=workers, engine=engine, console=console)


@names_extra
def train_replicas(
    recipe: Recipe | StrPath,
    out: StrPath,
    *,
    conditions: Iterable[str] = (),
    replicas: int | None = None,
    only: Iterable[int] | None = None,
    workers: int | None = None,
    engine: Literal["local", "ray"] = "local",
    console: Console | None = None,
) -> dict[str, Trained]:
    """Train a recipe's replicas, many at once on one base; nothing is merged or asked.

    Args:
        recipe: a recipe, or its YAML file.
        out: the run folder.
        conditions: only these of the recipe's (default: all).
        replicas: train replicas 0 to replicas - 1.
        only: train these again even if they are finished.
        workers: as in `run`.
        engine: as in `run`.
        console: as in `run`.

    Returns:
        The replicas of every condition, teachers first.

    Raises:
        FtkError: as in `run`; a condition that there is not.

    Example:
        >>> import toolkit
        >>> found = toolkit.train_replicas("recipe.yaml", "runs/first", replicas=2)
        >>> found["lora"].folder.as_posix(), found["lora"].failed
        ('runs/first/lora/replicas', ())
    """
    asked, folder = _begun(recipe, out, None, conditions)
    names = list(dict.fromkeys(conditions)) or list(asked.conditions)
    from toolkit import pipeline
    from toolkit.pipeline.train_stacks import data_notes

    trained: dict[str, Trained] = {}
    # a rule that looks at answers while replicas are trained
    answers = any(asked.until_of(name) for name in names)
    with pipeline.open_run(
        asked, folder, workers=workers, engine=engine, console=console, answers=answers
    ) as job:
        for note in data_notes(job.recipe, {}, job.device):
            job.console.note(note)
        for name in sorted(names, key=asked.training_order.index):  # teachers first
            population = pipeline.train(
                job, name, replicas=replicas, only=None if only is None else sorted(set(only))
            )
            failed = [r for r, record in population.items() if record.status == "failed"]
            trained[name] = Trained(folder / name / "replicas", tuple(population), tuple(failed))
    return trained


def _begun(
    recipe: Recipe | StrPath,
    out: StrPath,
    replicas: int | None,
    conditions: Iterable[str] = (),
    *,
    answers: bool = False,
) -> tuple[Recipe, Path]:
    """Recipe and folder, both refused before torch is loaded where they cannot be used."""
    from toolkit.pipeline.checks.without_base import check_early
    from toolkit.recipe import load_recipe, with_replicas

    asked = load_recipe(Path(recipe)) if isinstance(recipe, str | os.PathLike) else recipe
    if replicas is not None:
        asked = with_replicas(asked, replicas)
    for name in conditions:
        if name not in asked.conditions:
            raise ArgumentError(
                f"no condition {name!r} in the recipe; there are: {', '.join(asked.conditions)}"
            )
    check_early(asked, Path(out), answers=answers)
    return asked, Path(out)


# -- adapters that are there ---------------------------------------------------------------------


@names_extra
def merge(
    sources: StrPath | Sequence[StrPath],
    out: StrPath | None = None,
    *,
    method: str = "mean",
    k: int | None = None,
    rank: int | str = "full",
    parameters: Mapping[str, Any] | None = None,
    base: str | None = None,
    buffer: int | None = None,
    dense: bool = False,
    prompts: str | None = None,
    score: Literal["accuracy", "logprob"] = "accuracy",
    guard: Sequence[str] = (),
    strict: bool = False,
    force: bool = False,
    console: Console | None = None,
) -> list[Merged]:
    """Merge LoRA adapters exactly, as changes of the weights: all into one, or groups of k.

    Args:
        sources: a run, a condition of it, or any folder of PEFT adapters; one or several.
        out: folder of the merged adapter, or of the groups (default: `merged` beside the sources).
        method: mean, ties, dare-ties, ... or mergekit:NAME; `ftk merge --help` lists them.
        k: merge disjoint groups of k adapters (default: all into one).
        rank: full (exact), same, a number, or energy=0.99.
        parameters: of the method, such as {"density": 0.5}.
        base: the base model, where the adapters do not say it or say it wrongly.
        buffer: sum in so many ranks, with a bound on the error; needs `rank`.
        dense: write full models, the change added to the base weights.
        prompts: of greedy_soup, the suite with references that decides.
        score: by what it decides.
        guard: suites with references on which a merge must stay in its members' basin; a warning is
            a note on the console.
        strict: make such a warning an error, before anything is written.
        force: write into a folder that has other files.
        console: takes notes; silent by default.

    Returns:
        One record for each merge, which say where it was written.

    Raises:
        FtkError: sources, a method or a folder that cannot be used, in one line.

    Example:
        >>> import toolkit
        >>> [merged] = toolkit.merge("runs/first", "merged", method="mean")
        >>> merged["k"], merged["out"], round(merged["energy"], 6)
        (4, 'merged', 1.0)
    """
    from toolkit.recipe.merge_methods import merge_parameters

    settings = dict(parameters or {})
    with _arguments():
        merge_parameters(method, settings)  # before anything heavy is loaded
        from toolkit.pipeline.given import merge_given

        reports = merge_given.merge_sources(
            _paths(sources),
            method=method,
            k=k,
            rank=str(rank),
            out=_path(out),
            parameters=settings,
            base=base,
            buffer=buffer,
            dense=dense,
            prompts=prompts,
            score=score,
            guard=guard,
            strict=strict,
            note=console.note if console else _silent,
            force=force,
        )
    return cast(list[Merged], reports)


@names_extra
def evaluate(
    subjects: StrPath | Sequence[StrPath],
    prompts: str | None = None,
    out: StrPath | None = None,
    *,
    base: str | None = None,
    answer: str | None = None,
    max_new_tokens: int | None = None,
    ensemble: Mapping[str, Any] | None = None,
    workers: int | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Let adapters answer prompts, and measure how much they disagree.

    Args:
        subjects: a run, a condition of it, or any folder of PEFT adapters; one or several.
        prompts: a file of prompts, or embedded:typical, embedded:near, embedded:far (default, of
            one run: its own suites).
        out: folder of outcomes and report (default: a free one under runs/; of a run alone, its
            own).
        base: the base model, where the adapters do not say it or say it wrongly.
        answer: what of a text is the answer: text, first-line, regex:PATTERN, ... (default: the
            run's rule, or text).
        max_new_tokens: of the longest answer.
        ensemble: what disjoint groups of k do as one, as in a recipe: {"ensemble": "vote", "k": 8}.
        workers: as in `run`.
        console: as in `run`.

    Raises:
        FtkError: what cannot be asked or answered, in one line.

    Example:
        >>> import toolkit
        >>> found = toolkit.evaluate("runs/first/lora", "suite.jsonl", "answers", max_new_tokens=4)
        >>> found.results.conditions[0].n_replicas
        4
    """
    from toolkit.data import check_rule

    check_rule(answer or "text")
    from toolkit.pipeline.console import Console
    from toolkit.pipeline.given import evaluate_given

    folder, results = evaluate_given.evaluate_subjects(
        _paths(subjects),
        prompts=prompts,
        base=base,
        answer_rule=answer,
        max_new_tokens=max_new_tokens,
        out=_path(out),
        workers=workers,
        console=console or Console(),
        ensemble={"k": None, **ensemble} if ensemble else None,
    )
    return Evaluation(folder, results)


# -- the measuring instrument --------------------------------------------------------------------


def measure(
    source: Any,
    *more: StrPath,
    out: StrPath | None = None,
    reference: Sequence[Any] | np.ndarray | None = None,
    same: str = "exact",
    baseline: str | None = None,
    base: str | None = None,
    paired: bool = False,
    failed: Sequence[str] = (),
    factors: StrPath | None = None,
    columns: Mapping[str, str] | None = None,
    replica_columns: Sequence[str] = (),
    criteria: Criteria | StrPath | None = None,
    force: bool = False,
) -> Results:
    """How different are runs? From what they answered; no model is needed.

    Args:
        source: answers of replicas to prompts, in one of these forms:
            an array or nested lists [replicas, prompts] of texts, numbers or booleans, None or nan
            where an answer is missing; a dict of such arrays, one for each condition;
            a DataFrame, pyarrow table or list of dicts, or a .csv, .jsonl or .parquet file, long
            (replica, prompt, output) or wide (prompt, and a column for each replica, run_1, ...),
            as far as there are with reference, category, shift, cluster, condition, score, ...;
            a run folder.
        more: further run folders of the same procedure: repeatability within a machine,
            reproducibility between machines.
        out: folder for results.json and report.html; None writes nothing. Of a run it is the run.
        reference: of arrays, the right answer to each prompt, [prompts].
        same: when two answers mean the same: exact, normalised, numeric, json, ...
        baseline: the condition that the others are held against (default: the first).
        base: the condition that is the base model's answers.
        paired: replicas of one name share their seeds in all conditions.
        failed: replicas that failed (RUN or CONDITION/RUN): in no figure but the failure rate.
        factors: table of a crossed design: replica, and its level of init, order, ...
        columns: columns that have other names, {"reference": "gold"}; "" for none.
        replica_columns: of a wide table the columns that are replicas, by name or pattern.
        criteria: criteria, thresholds and level, or their YAML file.
        force: write into a folder that has other files, or results of something else.

    Raises:
        FtkError: what cannot be read or measured, in one line.

    Example:
        >>> import toolkit
        >>> answers = [["yes", "no", "no"], ["yes", "yes", "no"], ["yes", "no", "no"]]
        >>> results = toolkit.measure(answers, reference=["yes", "no", "no"])
        >>> cell = results.conditions[0].single.cell("typical")
        >>> round(cell.disagreement.value, 3), round(cell.accuracy.value, 3)
        (0.222, 0.889)
        >>> results.to_arrow().num_rows > 0
        True

        A file, with its report:

        >>> results = toolkit.measure("predictions.csv", out="measured")
        >>> print(results.verdict[0][:50])
        Two independent runs give different answers: with
    """
    from toolkit.measurement.run import measure_predictions, measure_run

    asked = _criteria(criteria)
    folder, path = _path(out), _file(source)
    of_files = (
        ("same", same != "exact"),
        ("baseline", baseline is not None),
        ("paired", paired),
        ("factors", factors is not None),
        ("base", base is not None),
        ("failed", bool(failed)),
        ("columns", bool(columns)),
        ("replica_columns", bool(replica_columns)),
        ("reference", reference is not None),
    )
    lost = ", ".join(f"{name}=" for name, given in of_files if given)
    if more or path is not None and path.is_dir():
        runs = [path or Path("predictions"), *map(Path, more)]
        if loose := [run for run in runs if not run.is_dir()]:
            raise ArgumentError(f"{loose[0]}: no run folder; several sources are runs")
        if lost:
            raise ArgumentError(
                f"{runs[0]}: a run says itself what its answers mean; {lost} is for predictions"
            )
        if more:
            from toolkit.measurement.machines import measure_runs

            return measure_runs(runs, folder, asked, force=force)
        if folder is not None and folder.resolve() != runs[0].resolve():
            raise ArgumentError(f"{folder}: results of a run stand in its folder, {runs[0]}")
        return measure_run(runs[0], asked, write=folder is not None)
    table = None
    if path is None:
        from toolkit.measurement.predictions import IN_MEMORY, as_table

        path, table = IN_MEMORY, as_table(source, reference)
    elif reference is not None:
        raise ArgumentError(f"{path}: reference= goes with arrays; a file has a column of it")
    return measure_predictions(
        path,
        folder,
        table=table,
        same=same,
        baseline=baseline,
        paired=paired,
        factors=_path(factors),
        criteria=asked,
        force=force,
        base=base,
        failed=failed,
        columns=columns,
        replica_columns=replica_columns,
    )


def measure_metrics(
    source: Any,
    *,
    out: StrPath | None = None,
    baseline: str | None = None,
    base: str | None = None,
    paired: bool = False,
    failed: Sequence[str] = (),
    factors: StrPath | None = None,
    columns: Mapping[str, str] | None = None,
    force: bool = False,
) -> RunMetrics:
    """How different are the metrics of runs, such as F1? From a table of one row a run.

    Args:
        source: a DataFrame, pyarrow table, list of dicts, or a .csv, .jsonl or .parquet file: run,
            maybe condition, and numbers.
        out: folder for metrics.json; None writes nothing.
        baseline: as in `measure`.
        base: as in `measure`.
        paired: as in `measure`.
        failed: as in `measure`.
        factors: as in `measure`.
        columns: as in `measure`.
        force: as in `measure`.

    Raises:
        FtkError: what cannot be read or measured, in one line.

    Example:
        >>> import toolkit
        >>> rows = [{"run": 1, "f1": 0.81}, {"run": 2, "f1": 0.84}, {"run": 3, "f1": 0.78}]
        >>> [f1] = toolkit.measure_metrics(rows).metrics
        >>> round(f1.mean.value, 3), round(f1.sd.value, 3)
        (0.81, 0.03)
    """
    from toolkit.measurement.predictions import IN_MEMORY, as_table, read_run_table
    from toolkit.measurement.run_table import measure_run_table

    path = _file(source)
    rows = as_table(source) if path is None else None
    path = path or IN_MEMORY
    if rows is None and not path.is_file():
        raise ArgumentError(f"{path}: no such file")
    table = read_run_table(path, columns, rows)
    if table is None:
        raise ArgumentError(f"{path}: no table of one row a run: run, and numbers, but no prompt")
    return measure_run_table(
        table,
        path,
        _path(out),
        in_memory=rows is not None,
        baseline=baseline,
        base=base,
        failed=failed,
        paired=paired,
        factors=_path(factors),
        force=force,
    )


def plan(
    pilot: Results | StrPath | None = None,
    *,
    guess: float | None = None,
    prompts: int = 500,
    replicas: int = 16,
    k: int | None = None,
    half_widths: Sequence[float] = (),
    ratios: Sequence[float] = (),
    power: float = 0.8,
) -> Plan:
    """How many replicas are needed? From a pilot, or from a guess.

    Args:
        pilot: results, a run folder, or a results.json.
        guess: without a pilot: the disagreement to reckon with, a share from 0 to 1.
        prompts: with `guess`: independent prompts that you have now.
        replicas: with `guess`: replicas that you have now.
        k: replicas of one merge or ensemble (default: the pilot's, or 8).
        half_widths: wanted of the interval of the disagreement; 0.01 is one point.
        ratios: effects of a mitigation on the disagreement that shall be found.
        power: the chance to find them.

    Raises:
        FtkError: nothing to plan from.

    Example:
        >>> import toolkit
        >>> found = toolkit.plan(guess=0.1, prompts=2000, half_widths=[0.02])
        >>> found.conditions[0].shifts[0].goals[0].replicas
        21
    """
    from toolkit.measurement import replicas_needed

    usual = replicas_needed.Targets()
    targets = replicas_needed.Targets(
        tuple(half_widths) or usual.half_widths, tuple(ratios) or usual.ratios, k, power
    )
    guessed = None if guess is None else replicas_needed.Guess(guess, prompts, replicas)
    known = Path(pilot) if isinstance(pilot, str | os.PathLike) else pilot
    with _arguments():
        return replicas_needed.plan(known, guess=guessed, targets=targets)


def claims(run: StrPath, file: StrPath | None = None) -> Claims:
    """Hold claims about run-to-run variance against a run, and look ahead to 10,000 such runs.

    Args:
        run: a folder of `run`; claims.json is written there, and a section of its report.
        file: YAML file of claims (default: those that ftk ships with).

    Raises:
        FtkError: a file or a run that cannot be read.

    Example:
        >>> import toolkit
        >>> found = toolkit.claims("runs/first")
        >>> {row.verdict for row in found.tested} <= {
        ...     "supported", "contradicted", "not resolvable", "measured", "not in this run"}
        True
    """
    from toolkit.measurement.claims import ORIGIN, hold_claims

    return hold_claims(Path(run), _path(file) or ORIGIN)


def gate_limits(
    baseline: StrPath,
    *,
    condition: str | None = None,
    same: str | None = None,
    alpha: float | None = None,
    columns: Mapping[str, str] | None = None,
    replica_columns: Sequence[str] = (),
    save: StrPath | None = None,
    force: bool = False,
) -> Limits:
    """Learn the limits of a process from a baseline of at least 30 runs.

    Args:
        baseline: a run, a file of predictions, or limits that were saved.
        condition: the one that is meant, of several.
        same: of predictions, when two answers mean the same (default: exact; saved limits know).
        alpha: false alarms that you accept, as a share (default: 0.0027).
        columns: of predictions, as in `measure`.
        replica_columns: of predictions, as in `measure`.
        save: file for the limits, with which another machine can judge.
        force: let `save` write over a file that holds something else.

    Raises:
        FtkError: a baseline that cannot be read, or is too small to say anything.

    Example:
        >>> import toolkit
        >>> limits = toolkit.gate_limits("predictions.csv", save="limits.json")
        >>> limits.n
        30
    """
    named = _named(columns, replica_columns)
    return _limits(baseline, named, condition, same, alpha, save, [], force)


@names_extra
def gate(
    baseline: Limits | StrPath,
    candidate: StrPath,
    *,
    condition: str | None = None,
    recipe: Recipe | StrPath | None = None,
    same: str | None = None,
    alpha: float | None = None,
    columns: Mapping[str, str] | None = None,
    replica_columns: Sequence[str] = (),
    save: StrPath | None = None,
    force: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> Verdict:
    """Is a new fine-tune still of the same process? `status` is pass, fail or inconclusive.

    Args:
        baseline: limits of `gate_limits`, or what they are learned from.
        candidate: a file of predictions, a folder of outcomes, or adapters, which answer first.
        condition: the one that is meant, of several in the baseline or the candidate.
        recipe: for adapters, the recipe that has base and suites (default: the baseline's).
        same: as in `gate_limits`.
        alpha: as in `gate_limits`.
        columns: as in `gate_limits`.
        replica_columns: as in `gate_limits`.
        save: as in `gate_limits`.
        force: as in `gate_limits`.
        workers: for adapters, as in `run`.
        console: for adapters, as in `run`.

    Raises:
        FtkError: sides that cannot be read, or not be compared.

    Example:
        >>> import toolkit
        >>> toolkit.gate("predictions.csv", "predictions.csv").status
        'pass'
    """
    from toolkit.measurement.gate import judge
    from toolkit.measurement.gate.limits import Limits

    path = Path(candidate)
    if not path.exists():
        raise ArgumentError(f"{path}: no such file or folder")
    named = _named(columns, replica_columns)
    strict = isinstance(baseline, Limits) or judge.is_limits(Path(baseline))
    if isinstance(baseline, Limits):
        limits = baseline
    else:
        inputs = [path, *([Path(recipe)] if isinstance(recipe, str | os.PathLike) else [])]
        limits = _limits(baseline, named, condition, same, alpha, save, inputs, force)
        recipe = recipe or Path(baseline) / "recipe.yaml"
    judged = _answers_of(path, recipe, limits, workers, console) if path.is_dir() else path
    return judge.judge_candidate(limits, judged, condition=condition, named=named, strict=strict)


def _named(columns: Mapping[str, str] | None, replica_columns: Sequence[str]) -> Named:
    from toolkit.measurement.gate.judge import Named

    return Named(columns or {}, replica_columns)


def _limits(
    baseline: StrPath,
    named: Named,
    condition: str | None,
    same: str | None,
    alpha: float | None,
    save: StrPath | None,
    inputs: Sequence[Path],
    force: bool,
) -> Limits:
    """The limits of a baseline, saved where that is asked: over no input, and over no other file
    without `force`.
    """
    from toolkit.measurement.gate import judge
    from toolkit.measurement.gate.limits import save_limits

    source = Path(baseline)
    with _arguments():
        limits = judge.limits_of(source, condition=condition, same=same, alpha=alpha, named=named)
    if save is not None:
        judge.check_save(Path(save), limits, [source, *inputs], force=force)
        save_limits(Path(save), limits)
    return limits


def _answers_of(
    candidate: Path,
    recipe: Recipe | StrPath | None,
    limits: Limits,
    workers: int | None,
    console: Console | None,
) -> Path:
    """A folder of outcomes as it is; adapters answer the recipe's suites first."""
    from toolkit.measurement.gate.judge import check_recipe
    from toolkit.measurement.run import is_outcomes
    from toolkit.recipe import Recipe, load_recipe

    if is_outcomes(candidate):
        return candidate
    path = None if recipe is None or isinstance(recipe, Recipe) else Path(recipe)
    if recipe is None or path is not None and not path.is_file():
        raise ArgumentError(
            f"{candidate}: adapters must answer the prompts first; --recipe says which "
            "base and suites"
        )
    asked = load_recipe(path) if path is not None else recipe
    assert isinstance(asked, Recipe)
    check_recipe(path or Path("recipe"), asked, limits)
    from toolkit.pipeline.console import Console
    from toolkit.pipeline.given import evaluate_given

    out = Path("runs") / f"gate-{candidate.name}"
    return evaluate_given.answer_suites(
        asked, [candidate], out, workers=workers, console=console or Console()
    )


# -- what arguments are --------------------------------------------------------------------------


def _silent(text: str) -> None:
    pass


def _path(value: StrPath | None) -> Path | None:
    return None if value is None else Path(value)


def _paths(values: StrPath | Sequence[StrPath]) -> list[Path]:
    return list(map(Path, [values] if isinstance(values, str | os.PathLike) else values))


def _file(source: Any) -> Path | None:
    """The file or folder that is meant, or None for data in memory."""
    return Path(source) if isinstance(source, str | os.PathLike) else None


def _criteria(criteria: Criteria | StrPath | None) -> Criteria | None:
    from toolkit.recipe import load_criteria

    return load_criteria(Path(criteria)) if isinstance(criteria, str | os.PathLike) else criteria


@contextmanager
def _arguments() -> Iterator[None]:
    """A ValueError about an argument, such as a method that there is not, is an error of ftk's."""
    try:
        yield
    except FtkError:
        raise
    except ValueError as error:
        raise ArgumentError(str(error)) from error
