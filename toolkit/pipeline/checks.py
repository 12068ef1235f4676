"""What would fail, or answer nonsense, only after hours of work: refused before anything is trained."""

from __future__ import annotations

from functools import partial

from toolkit.adopt import check_base, find_adapters, layer_shapes
from toolkit.base import Base
from toolkit.data import Prompt, encode_prompt, encode_reference
from toolkit.ensemble import SIMILARITIES
from toolkit.full import FullModel, check_whole, read_weights
from toolkit.merge import accepted, find_method
from toolkit.pipeline.job import RunError
from toolkit.pipeline.training import training_examples
from toolkit.recipe import Recipe
from toolkit.stack import layer_shape, target_modules


def check_against_base(recipe: Recipe, base: Base) -> None:
    """Refuse what this base cannot do, or mergekit does not know, before anything is trained."""
    along = []
    for mitigation in recipe.mitigations:
        if mitigation.merge:
            try:
                chosen, parameters = find_method(mitigation.merge, mitigation.parameters)
            except ValueError as error:
                raise RunError(f"mitigation {mitigation.label}: {error}") from None
            along.append(partial(chosen.along, **accepted(chosen.along, parameters)))
    for condition in recipe.given.values():
        shape_of = layer_shapes(base)
        for path in find_adapters(condition.adapters):
            weights = read_weights(path)
            if isinstance(weights, FullModel):
                weights.check({name: tuple(p.shape) for name, p in base.model.named_parameters()})
            else:
                check_base(weights, base, shape_of)
            for trajectory in along:
                trajectory(path)  # raises where the method needs snapshots that are not there
    for name in recipe.conditions:
        own = recipe.trained.get(name)
        if own and own.method == "full" and "nf4" in (own.dtype, recipe.dtype):
            raise RunError(f"conditions.{name}: all weights cannot be trained, or answer, in four bits; set `dtype: bfloat16` for the run")
        try:
            if own and own.method == "full":
                check_whole(base.model)
            layers = target_modules(base.model, own.targets if own else "all-linear")
        except ValueError as error:
            raise RunError(f"conditions.{name}{'' if own and own.method == 'full' else '.targets'}: {error}") from None
        if own and own.threads > 1 and base.model.device.type != "cpu":
            raise RunError(f"conditions.{name}.threads: are those of a CPU, and this run is on {base.model.device.type}; leave it out")
        largest = max(min(layer_shape(layer)) for layer in layers.values())
        for mitigation in [*recipe.mitigations, *([own.teacher] if own and own.teacher else [])]:
            if isinstance(mitigation.rank, int) and mitigation.rank > largest:
                raise RunError(f"mitigation {mitigation.label}: the changes of this base have ranks 1 to {largest}")


def check_ensembles(recipe: Recipe, prompts: dict[str, list[Prompt]]) -> None:
    """Refuse an ensemble that could not be made after everything has been trained."""
    for mitigation in recipe.mitigations:
        suite = (mitigation.weights or "").partition(":")[2]
        if suite and all(prompt.reference is None for prompt in prompts[suite]):
            raise RunError(f"mitigation {mitigation.label}: the prompts of suite {suite} have no `reference`, so no accuracy to weigh by")
        if mitigation.similarity:
            try:
                SIMILARITIES[mitigation.similarity](["a", "b"])
            except ValueError as error:
                raise RunError(f"mitigation {mitigation.label}: {error}") from None


def check_lengths(recipe: Recipe, base: Base, prompts: dict[str, list[Prompt]], device: str) -> None:
    """Refuse rows and prompts that are longer than the base: it would fail on them, or answer nonsense."""
    limit = base.max_positions
    if limit is None:
        return
    longest = max((len(example.ids) for example in training_examples(recipe, device)), default=0) if recipe.data.train else 0
    if longest > limit:
        raise RunError(
            f"data.max_length: a training row has {longest:,} tokens, base {recipe.base!r} takes {limit:,}; set `max_length: {limit}`"
        )
    for suite, asked in prompts.items():
        for prompt in asked:
            known = encode_prompt(prompt, base.tokenizer)
            reference = encode_reference(prompt, prompt.reference, base.tokenizer) if prompt.reference is not None else []
            answer = max(recipe.evaluation.max_new_tokens, len(reference))
            if len(known) + answer > limit:
                raise RunError(
                    f"suite {suite}, prompt {prompt.id!r}: {len(known):,} tokens and an answer of up to {answer:,} are more than "
                    f"the {limit:,} that base {recipe.base!r} takes; shorten the prompt or set a smaller `evaluation.max_new_tokens`"
                )
