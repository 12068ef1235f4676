"""What would fail, or answer nonsense, only after hours of work: refused before anything is
trained.
"""

from __future__ import annotations

from functools import partial

import torch

from toolkit.answer.ensemble import SIMILARITIES
from toolkit.data import Prompt, encode_prompt, encode_reference
from toolkit.merging import accepted, combine, find_method
from toolkit.model.adopt import check_base, find_adapters, layer_shapes
from toolkit.model.base import Base
from toolkit.model.full import FullModel, check_whole, read_weights
from toolkit.model.stack import layer_shape, target_modules
from toolkit.pipeline.checks.architecture import check_architecture
from toolkit.pipeline.checks.without_base import check_criteria, refused_at
from toolkit.pipeline.job import RunError
from toolkit.pipeline.train_stacks import training_examples, training_plan
from toolkit.recipe import Mitigation, Recipe
from toolkit.recipe.schedule import snapshot_steps

TRIED = 4
"""changes that a merge is tried on; more tell nothing new"""


def check_all(
    recipe: Recipe,
    base: Base,
    prompts: dict[str, list[Prompt]],
    device: str,
    *,
    answers: bool = True,
) -> list[str]:
    """The one list: `ftk check` and the first second of a run ask nothing else of a recipe and its
    base. Returns what is worth a note.

    answers: prompts will be asked, which not every base that can be trained can do.
    Raises RunError, RecipeError, DataError or AdapterError in one line.
    """
    check_merges(recipe)
    check_criteria(recipe, prompts)
    check_against_base(recipe, base)
    notes = check_architecture(recipe, base, answers=answers)
    check_ensembles(recipe, prompts)
    check_evaluation(recipe, base, prompts)
    check_lengths(recipe, base, prompts, device)
    check_trajectories(recipe, device)
    check_counts(recipe)
    return notes


def check_merges(recipe: Recipe) -> None:
    """Try every merge on a few small changes: methods refuse some parameters only at work."""
    teachers = [condition.teacher for condition in recipe.trained.values() if condition.teacher]
    for mitigation in [*recipe.mitigations, *teachers]:
        if not mitigation.merge:
            continue
        draw = torch.Generator().manual_seed(0)
        changes = [
            (torch.randn(1, 8, generator=draw), torch.randn(8, 1, generator=draw), 1.0)
            for _ in range(min(mitigation.k, TRIED))
        ]
        with refused_at(f"mitigation {mitigation.label}"):
            combine(mitigation.merge, changes, **mitigation.parameters)


def check_evaluation(recipe: Recipe, base: Base, prompts: dict[str, list[Prompt]]) -> None:
    """Refuse what the base's tokens cannot answer: more candidates than it has, and choices that
    are no token.
    """
    evaluation, size = recipe.evaluation, base.model.config.get_text_config().vocab_size
    if evaluation.top_k > size:
        raise RunError(
            f"evaluation.top_k: base {recipe.base!r} has {size:,} tokens, not {evaluation.top_k:,}"
        )
    first = next((suite[0] for suite in prompts.values() if suite), None)
    for choice in evaluation.choices:
        with refused_at(f"evaluation.choices, {choice!r}"):
            if not choice or first and not encode_reference(first.prompt, choice, base.tokenizer):
                raise ValueError("the tokenizer makes no token of it")


def check_trajectories(recipe: Recipe, device: str) -> None:
    """Refuse a merge of more snapshots than the steps of a training hold; raises where rows are no
    training rows, too.
    """
    for name, condition in recipe.trained.items():
        plan, points = training_plan(recipe, name, device)[0], condition.snapshots
        n_snapshots = len(snapshot_steps(plan, points.count, points.start)) if points else 0
        mitigations: list[Mitigation] = [] if condition.teacher else recipe.mitigations
        lasts = {
            f"mitigation {m.label}": m.parameters.get("last")
            for m in mitigations
            if m.merge in ("swa", "lawa")
        }
        lasts |= (
            {f"conditions.{name}.lawa_last": condition.lawa_last}
            if "lawa" in condition.averages
            else {}
        )
        for where, last in lasts.items():
            if isinstance(last, int) and last > n_snapshots:
                held = f"{plan.steps} steps of {name} make {n_snapshots} snapshots"
                raise RunError(
                    f"{where}: {held}, fewer than the last {last}; train longer, or take fewer"
                )


def check_counts(recipe: Recipe) -> None:
    """Refuse groups of more replicas than any condition has."""
    count = {name: recipe.replicas_of(name) for name in recipe.trained}
    count |= {name: len(find_adapters(given.adapters)) for name, given in recipe.given.items()}
    for mitigation in recipe.mitigations:
        most = max(
            (n for name, n in count.items() if recipe.mitigations_of(name)), default=mitigation.k
        )
        if mitigation.k > most:
            raise RunError(
                f"mitigation {mitigation.label}: takes {mitigation.k:,} replicas, and no "
                f"condition has more than {most:,}; "
                "set a smaller `k`, or more `replicas`"
            )


def check_against_base(recipe: Recipe, base: Base) -> None:
    """Refuse what this base cannot do, or mergekit does not know, before anything is trained."""
    along = []
    for mitigation in recipe.mitigations:
        if mitigation.merge:
            try:
                chosen, parameters = find_method(mitigation.merge, mitigation.parameters)
            except ValueError as error:
                raise RunError(f"mitigation {mitigation.label}: {error}") from None
            along.append(partial(chosen.sources, **accepted(chosen.sources, parameters)))
    for condition in recipe.given.values():
        shape_of = layer_shapes(base.model)
        for path in find_adapters(condition.adapters):
            weights = read_weights(path)
            if isinstance(weights, FullModel):
                weights.check({name: tuple(p.shape) for name, p in base.model.named_parameters()})
            else:
                check_base(weights, base, shape_of)
            for trajectory in along:
                trajectory(path)  # raises where the method needs snapshots that are not there
    for name in recipe.conditions:
        trained = recipe.trained.get(name)
        full = trained is not None and trained.method == "full"
        if trained and full and "nf4" in (trained.dtype, recipe.dtype):
            raise RunError(
                f"conditions.{name}: all weights cannot be trained, or answer, in four "
                "bits; set `dtype: bfloat16` for the run"
            )
        try:
            if full:
                check_whole(base.model)
            layers = target_modules(base.model, trained.targets if trained else "all-linear")
        except ValueError as error:
            raise RunError(f"conditions.{name}{'' if full else '.targets'}: {error}") from None
        if trained and trained.threads > 1 and base.model.device.type != "cpu":
            raise RunError(
                f"conditions.{name}.threads: are those of a CPU, and this run is on "
                f"{base.model.device.type}; leave it out"
            )
        largest = max(min(layer_shape(layer)) for layer in layers.values())
        if trained and trained.adapter_rank and trained.adapter_rank > largest:
            raise RunError(
                f"conditions.{name}.rank: the widest layer that is adapted takes rank "
                f"{largest}, not {trained.adapter_rank:,}"
            )
        teacher = trained.teacher if trained else None
        for mitigation in [*recipe.mitigations, *([teacher] if teacher else [])]:
            if isinstance(mitigation.rank, int) and mitigation.rank > largest:
                raise RunError(
                    f"mitigation {mitigation.label}: the changes of this base have ranks "
                    f"1 to {largest}"
                )


def check_ensembles(recipe: Recipe, prompts: dict[str, list[Prompt]]) -> None:
    """Refuse an ensemble that could not be made after everything has been trained."""
    for mitigation in recipe.mitigations:
        suite = (mitigation.weights or "").partition(":")[2]
        if suite and all(prompt.reference is None for prompt in prompts[suite]):
            raise RunError(
                f"mitigation {mitigation.label}: the prompts of suite {suite} have no "
                "`reference`, so no accuracy to weigh by"
            )
        if mitigation.similarity:
            try:
                SIMILARITIES[mitigation.similarity](["a", "b"])
            except ValueError as error:
                raise RunError(f"mitigation {mitigation.label}: {error}") from None


def check_lengths(
    recipe: Recipe, base: Base, prompts: dict[str, list[Prompt]], device: str
) -> None:
    """Refuse rows and prompts that are longer than the base: it would fail on them, or answer
    nonsense.
    """
    # even so, every row and prompt is read here: its template or tokens may refuse it
    limit = base.max_positions or 10**9
    longest = (
        max((len(example.ids) for example in training_examples(recipe, device)), default=0)
        if recipe.data.train
        else 0
    )
    if longest > limit:
        raise RunError(
            f"data.max_length: a training row has {longest:,} tokens, base "
            f"{recipe.base!r} takes {limit:,}; set `max_length: {limit}`"
        )
    for suite, suite_prompts in prompts.items():
        for prompt in suite_prompts:
            ids = encode_prompt(prompt, base.tokenizer)
            reference = (
                encode_reference(prompt, prompt.reference, base.tokenizer)
                if prompt.reference is not None
                else []
            )
            answer = max(recipe.evaluation.max_new_tokens, len(reference))
            if len(ids) + answer > limit:
                raise RunError(
                    f"suite {suite}, prompt {prompt.id!r}: {len(ids):,} tokens and an "
                    f"answer of up to {answer:,} are more than "
                    f"the {limit:,} that base {recipe.base!r} takes; shorten the prompt "
                    "or set a smaller `evaluation.max_new_tokens`"
                )
