"""A base tried before anything starts: a step of training and a few answers on a handful of tokens,
held against the plain model.

Nothing here knows an architecture by name. Whether a base can be trained in a stack, and whether
prompts of several lengths can be read together, go on from a cache and leave the batch one by one,
is seen from what it does: its code raises, or its numbers differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from toolkit.answer.predict.prefill import prefill
from toolkit.answer.predict.voices import Voices
from toolkit.model.adapters import AdapterError
from toolkit.model.base import Base, BaseError
from toolkit.model.stack import ForwardError, Stack, stacked

R, RANK = 2, 2
LENGTHS = (3, 3, 5)
"""of the prompts: two that are read together, and one that joins them later, where caches can be
joined
"""
SIZE = 0.02
"""of random factors: enough to tell two adapters apart"""
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUNDED = 0.2
"""nats by which log-probabilities may differ on average, by the dtype of the base; in 16 bits and
less
"""


def rehearse_training(base: Base, targets: Any) -> None:
    """A step of two replicas on the base. Raises BaseError in one line where the model's code fails
    or mixes the replicas up.
    """
    with (
        _told(base, "cannot be trained", "choose other targets, or another base"),
        stacked(base.model, targets) as stack,
    ):
        factors = _factors(stack, base)
        ids_NT = torch.stack([_ids(base, start, max(LENGTHS)) for start in range(R)])
        position_NT = torch.arange(max(LENGTHS), device=ids_NT.device).expand(R, -1)
        alone = []
        for k in range(R):
            stack.load(
                {name: tuple(x[k : k + 1] for x in tensors) for name, tensors in factors.items()}
            )
            with torch.no_grad():
                alone.append(stack.logits(ids_NT[k : k + 1], position_NT[:1]))
        stack.load(
            {name: tuple(x.requires_grad_() for x in tensors) for name, tensors in factors.items()}
        )
        logits = stack.logits(ids_NT, position_NT)
        logits.float().log_softmax(-1)[..., 0].sum().backward()
        stack.load({})
        _hold(
            torch.cat(alone),
            logits.detach(),
            "rows of one adapter are not kept apart from those of another",
        )


@torch.inference_mode()
def rehearse_answers(base: Base, modules: Collection[str]) -> None:
    """Two adapters of some modules answer three prompts from caches; one leaves the batch. Raises
    BaseError in one line, as above.
    """
    with _told(base, "cannot answer prompts", "name another base"), stacked(base.model) as stack:
        stack.load(
            {name: factors for name, factors in _factors(stack, base).items() if name in modules}
        )
        prompts = [_ids(base, start, length).tolist() for start, length in enumerate(LENGTHS)]
        voices = Voices(stack, R, 1, None)
        vocabulary = int(base.model.get_output_embeddings().weight.shape[0])  # type: ignore[union-attr]
        for batch in prefill(voices, prompts, 3, vocabulary):
            read_so_far = [prompts[i] for i in batch.indices]
            _hold(
                _plain(stack, read_so_far),
                batch.log_UPV,
                "reading a prompt into a cache changes what it says",
            )
            for token in range(2):
                read_so_far = [[*ids, token] for ids in read_so_far]
                log_UPV = batch.go_on(
                    torch.full((R, len(read_so_far), 1), token, device=batch.log_UPV.device)
                )
                _hold(
                    _plain(stack, read_so_far),
                    log_UPV,
                    "its cache does not go on where the prompt ended",
                )
                if token == 0 and len(read_so_far) > 1 and batch.keeps:
                    still_P = torch.arange(len(read_so_far), device=log_UPV.device) > 0
                    batch.keep(still_P)
                    read_so_far = read_so_far[1:]


def _plain(stack: Stack, prompts: list[list[int]]) -> Tensor:
    """Log-probabilities [R, P, V] after whole prompts, one at a time and without a cache."""
    rows = []
    for ids in prompts:
        ids_RT = torch.tensor([ids] * R, device=next(stack.model.parameters()).device)
        rows.append(
            stack.logits(ids_RT, torch.full((R, 1), len(ids) - 1, device=ids_RT.device))[:, 0]
        )
    return torch.stack(rows, 1).float().log_softmax(-1)


def _ids(base: Base, start: int, length: int) -> Tensor:
    """Some ordinary tokens, others for each start."""
    count = min(len(base.tokenizer), int(base.model.get_input_embeddings().weight.shape[0]))  # type: ignore[union-attr]
    return (torch.arange(length, device=base.model.device) * 7 + 11 * start + 5) % count


def _factors(stack: Stack, base: Base) -> dict[str, tuple[Tensor, Tensor]]:
    parameter = next(base.model.parameters())
    dtype = (
        torch.promote_types(parameter.dtype, torch.float32)
        if parameter.is_floating_point()
        else torch.float32
    )
    generator = torch.Generator().manual_seed(0)  # nobody else's random state is touched

    def some(*shape: int) -> Tensor:
        return (SIZE * torch.randn(shape, generator=generator)).to(dtype).to(parameter.device)

    return {
        name: (some(R, RANK, layer.in_features), some(R, layer.out_features, RANK))
        for name, layer in stack.layers.items()
    }


def _hold(expected: Tensor, actual: Tensor, what: str) -> None:
    """Raise ArithmeticError where log-probabilities differ by more than rounding."""
    dtype = actual.dtype
    a, b = (x.float().log_softmax(-1) for x in (expected, actual))
    difference = float((a - b).abs().mean())
    if not difference <= TOLERANCE.get(dtype, ROUNDED):
        raise ArithmeticError(f"{what} (log-probabilities differ by {difference:.2g})")


@contextmanager
def _told(base: Base, what: str, fix: str) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, AdapterError):
        raise
    except ValueError as error:
        if type(error).__module__.startswith("toolkit."):
            raise
        raise _refused(base, what, fix, error) from error
    except Exception as error:  # of the model's own code, which fails in whatever way it likes
        raise _refused(base, what, fix, error) from error


def _refused(base: Base, what: str, fix: str, error: Exception) -> BaseError:
    cause = error.__cause__ if isinstance(error, ForwardError) and error.__cause__ else error
    reason = " ".join(str(cause).split())[:200] or type(cause).__name__
    return BaseError(
        f"base {base.name!r}: a {type(base.model).__name__} {what} here: {reason}; {fix}"
    )
