"""R copies of all weights of one base: every module that has weights runs its R copies as batched
products.

The batch is replica-major as in `toolkit.model.stack`, and no weight is shared, so that a backward
pass of the summed losses gives each replica the gradient of its own. There is no model code here:
linear layers are `bmm`, everything else (embeddings, norms) is its own forward pass under
`torch.vmap`. A weight that two modules share (a tied output head) is one tensor, and its gradients
add up.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from toolkit.model.full.folder import FullModel
from toolkit.model.stack import Stack


def check_whole(model: nn.Module) -> None:
    """Raises ValueError in one line for a base whose weights cannot be stacked."""
    for name, module in model.named_modules():
        parameters = list(module.named_parameters(recurse=False))
        unsuited = [key for key, parameter in parameters if not parameter.is_floating_point()] or [
            key for key, _ in parameters if list(module.children())
        ]
        if unsuited:
            raise ValueError(
                "`method: full` takes bases whose weights are floats of linear layers, "
                f"embeddings and norms; {name or 'this one'} "
                f"({type(module).__name__}) has {unsuited[0]!r}"
            )


class FullStack(Stack):
    """A base whose modules carry R copies of their weights: parameter -> (W [R, ...],), by `load`;
    without them it is the base itself.
    """

    def __init__(self, model: nn.Module):
        check_whole(model)
        # the first of several names
        self._name_of = {parameter: name for name, parameter in model.named_parameters()}
        self._weights: dict[str, tuple[Tensor, ...]] = {}
        self._rows = 0
        self._forwards: list[tuple[nn.Module, Callable[..., Tensor]]] = []
        for module in model.modules():
            names = {
                key: self._name_of[parameter]
                for key, parameter in module.named_parameters(recurse=False)
            }
            if names:
                make = self._linear if type(module) in (nn.Linear, Conv1D) else self._any
                plain = copy.copy(module)
                # those of the module itself run before it comes to its forward pass
                plain._forward_pre_hooks = OrderedDict()
                self._forwards.append((module, partial(make, plain, names)))
        super().__init__(model, [])

    def load(self, factors: Mapping[str, tuple[Tensor, ...]], scale: float = 1.0) -> None:
        """Set the weights of all R replicas. They are cast to the base's dtype where they are
        used.
        """
        self._weights = dict(factors)

    @property
    def loaded(self) -> dict[str, tuple[Tensor, ...]]:
        """The copies that are in use: parameter -> (W [R, ...],)."""
        return self._weights

    def copies(self, R: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, ...]]:
        """The base R times, to be trained."""
        return {
            name: (p.detach().to(dtype).expand(R, *p.shape).clone().requires_grad_(),)
            for p, name in self._name_of.items()
        }

    def load_models(self, models: Sequence[FullModel | None], width: int) -> None:
        """Put models on the stack; None, and empty slots up to `width`, are the base itself. Raises
        AdapterError for another base's.
        """
        weights = {
            name: (p.detach().expand(width, *p.shape).clone(),) for p, name in self._name_of.items()
        }
        for k, model in enumerate(models):
            if model:
                model.check({name: tuple(p.shape) for p, name in self._name_of.items()})
                for name, tensor in model.tensors().items():
                    weights[name][0][k] = tensor.to(weights[name][0])
        self.load(weights)

    def attach(self) -> None:
        """Have the modules use the copies."""
        super().attach()
        self._count = self.model.register_forward_pre_hook(self._note_rows, with_kwargs=True)
        for module, forward in self._forwards:
            module.forward = forward

    def remove(self) -> None:
        """Have the modules use the base's weights again."""
        for module, _ in self._forwards:
            del module.forward
        self._count.remove()
        super().remove()

    def _note_rows(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._rows = len(kwargs["input_ids"])

    def _linear(self, plain: nn.Module, names: Mapping[str, str], x: Tensor) -> Tensor:
        if not self._weights:
            return plain(x)
        weights = {key: self._weights[name][0].to(x.dtype) for key, name in names.items()}
        # GPT-2 stores [I, O]
        W_RIO = (
            weights["weight"] if isinstance(plain, Conv1D) else weights["weight"].transpose(1, 2)
        )
        x_RnI = x.reshape(len(W_RIO), -1, x.shape[-1])
        y_RnO = (
            torch.baddbmm(weights["bias"][:, None], x_RnI, W_RIO)
            if "bias" in weights
            else torch.bmm(x_RnI, W_RIO)
        )
        return y_RnO.view(*x.shape[:-1], -1)

    def _any(
        self, plain: nn.Module, names: Mapping[str, str], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        if not self._weights:
            return plain(x, *args, **kwargs)
        stacked = {
            key: self._weights[name][0].to(getattr(plain, key).dtype) for key, name in names.items()
        }
        if len(x) == 1 < self._rows:  # positions, which a model counts once for all rows
            x = x.expand(self._rows, *x.shape[1:])
        R = len(next(iter(stacked.values())))

        def single(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return torch.func.functional_call(plain, weights, (x, *args), kwargs)

        return torch.vmap(single)(stacked, x.reshape(R, -1, *x.shape[1:])).flatten(0, 1)


@contextmanager
def stacked_whole(model: nn.Module) -> Iterator[FullStack]:
    """A stack of whole models on `model` for the length of a `with` block. Raises ValueError as
    `check_whole`.
    """
    stack = FullStack(model)
    try:
        yield stack
    finally:
        stack.remove()
