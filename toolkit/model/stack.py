"""R adapters on one frozen base: every adapted linear layer runs the base once and its R adapters
as batched products.

The batch of a stack is replica-major, `[R * B, T, ...]`: rows of replica 0 first. The base sees one
matrix, replica k sees its own B rows through `A_RrI[k]`, `B_ROr[k]`. No parameter is shared between
replicas, so one backward pass of the summed losses gives each replica exactly the gradient of its
own loss.

Hugging Face models are wrapped module by module; there is no model code here. Any causal LM whose
targets are `nn.Linear` or GPT-2's `Conv1D` works.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from toolkit.errors import FtkError
from toolkit.model.compiled import compiled_layers, readers
from toolkit.model.stacked_embedding import StackedEmbedding


class ForwardError(FtkError, RuntimeError):
    """The base's own code fails on a stacked batch: one line with architecture and reason."""


@contextmanager
def own_code(model: nn.Module, where: str = "its forward pass") -> Iterator[None]:
    """Turn whatever the architecture raises into one line; out-of-memory errors pass through."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, ForwardError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ForwardError(
            f"a base of the architecture {type(model).__name__} fails in {where}: "
            f"{reason}; it, or this use of it, is not supported here"
        ) from error


# splitmix64, as signed int64
_GOLDEN, _MIX1, _MIX2 = (
    -7046029254386353131,
    -4658895280553007687,
    -7723592293110705685,
)


def _weyl(n: int) -> int:
    """n times the golden ratio, wrapped to a signed 64-bit integer."""
    return (n * _GOLDEN + 2**63) % 2**64 - 2**63


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) on int64 tensors, in place; the same
    bits on every device.
    """
    shifted = torch.empty_like(z)
    for bits, factor in ((30, _MIX1), (27, _MIX2), (31, 1)):
        torch.bitwise_right_shift(z, bits, out=shifted)
        # the mask makes the arithmetic shift a logical one
        z ^= shifted.bitwise_and_((1 << (64 - bits)) - 1)
        if factor != 1:
            z *= factor
    return z


class CounterDropout:
    """Dropout masks that are a function of (replica's dropout seed, step, module, position) and of
    nothing else.

    Never of the slot in the stack, of the neighbours, or of how many draws came before: so a
    replica has the same masks alone, in any stack, and after a resume.
    """

    def __init__(self, p: float, seed_R: Tensor):
        self.p = p
        self.seed_R = seed_R
        # drop where a uniform lane of 31 bits is below the threshold: p is met to 2^-32
        self._threshold = min(round(p * 2**31), 2**31 - 1)
        self.step = 0

    @property
    def step(self) -> int:
        """The step whose masks are drawn."""
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        """The step whose masks are drawn."""
        self._step = step
        # a tensor, so that compiled code is the same at every step
        self._key_R = _mix(self.seed_R + _weyl(step + 1))

    def keep(
        self, module: int | Tensor, n: int, width: int, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Mask [R, n, width] of ones (keep) and zeros; n counts the rows of one replica in this
        step (B * T).

        module: its number, or what `module_key` makes of it.
        """
        key_R = _mix(self._key_R + (_weyl(module + 1) if isinstance(module, int) else module))
        count = (n * width + 1) // 2
        counter = torch.arange(1, count + 1, device=key_R.device) * _GOLDEN
        # two lanes a hash: compiled code has no vectors of anything smaller
        lanes = _mix(counter + key_R[:, None]).view(torch.int32)
        # -1 below the threshold and 0 above, without a comparison: compiled code is slow to store
        # what is true or false
        lanes.bitwise_and_(0x7FFFFFFF).sub_(self._threshold).bitwise_right_shift_(31).add_(1)
        return lanes[:, : n * width].to(dtype).view(-1, n, width)


def module_key(module: int) -> Tensor:
    """A module's number as its dropout masks know it, as a tensor: compiled code would be made
    again for every plain number.
    """
    return torch.tensor(_weyl(module + 1))


def _add_change(
    y: Tensor, x: Tensor, A_RrI: Tensor, B_ROr: Tensor, keep_RnI: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """y + scale * (x * keep) A' B', written into y; x * keep as [R, n, I] and its product with
    A'.
    """
    R, _, width = A_RrI.shape
    x_RnI = x.reshape(R, -1, width).to(A_RrI.dtype)
    if keep_RnI is not None:
        x_RnI = x_RnI * keep_RnI
    h_Rnr = torch.bmm(x_RnI, A_RrI.transpose(1, 2))
    y_RnO = y.view(R, -1, y.shape[-1])
    if y.dtype == h_Rnr.dtype:
        y_RnO.baddbmm_(h_Rnr, B_ROr.transpose(1, 2), alpha=scale)
    else:
        y_RnO.add_(torch.bmm(h_Rnr, B_ROr.transpose(1, 2)), alpha=scale)
    return x_RnI, h_Rnr


class _Adapt(torch.autograd.Function):
    """y + scale * (x * keep) A' B', written into y; the gradients of all R adapters as batched
    products.

    A and B are both stored with the rank as the slower index, [R, r, I] and [R, r, O] in memory:
    products with a short side are several times faster when the long side is contiguous.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        A_RrI: Tensor,
        B_ROr: Tensor,
        keep_RnI: Tensor | None,
        scale: float,
    ) -> Tensor:
        x_RnI, h_Rnr = _add_change(y, x, A_RrI, B_ROr, keep_RnI, scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x_RnI, A_RrI, B_ROr, keep_RnI, h_Rnr)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # as torch documents it
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_RnI, A_RrI, B_ROr, keep_RnI, h_Rnr = ctx.saved_tensors
        grad_RnO = grad.reshape(len(A_RrI), -1, grad.shape[-1]).to(A_RrI.dtype)
        grad_h = torch.bmm(grad_RnO, B_ROr).mul_(ctx.scale)
        grad_B = torch.bmm(h_Rnr.transpose(1, 2), grad_RnO).mul_(ctx.scale).transpose(1, 2)
        # A may be frozen
        grad_A = torch.bmm(grad_h.transpose(1, 2), x_RnI) if ctx.needs_input_grad[2] else None
        grad_x = None
        if ctx.needs_input_grad[1]:  # the first layers stand on frozen embeddings
            grad_x = torch.bmm(grad_h, A_RrI)
            if keep_RnI is not None:
                grad_x *= keep_RnI
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad, grad_x, grad_A, grad_B, None, None


def layer_shape(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """[O, I] of a linear layer, whatever its weights are packed as."""
    if isinstance(layer, Conv1D):  # GPT-2 stores [I, O]
        return int(layer.weight.shape[1]), int(layer.weight.shape[0])
    return layer.out_features, layer.in_features


class StackedLinear(nn.Module):
    """A frozen linear layer with R adapters: y = x W' + b + scale_k * (x A_k') B_k'."""

    def __init__(self, base: nn.Linear | Conv1D, index: int):
        super().__init__()
        self.base = base
        self.index = index
        self.key = module_key(index)
        self.in_features: int
        self.out_features: int
        self.scale = 1.0
        self.dropout: CounterDropout | None = None
        self.A_RrI: Tensor | None = None
        self.B_ROr: Tensor | None = None
        self.readers: Readers | None = None
        self.is_conv = isinstance(base, Conv1D)
        self.packed = not base.weight.is_floating_point()
        self.out_features, self.in_features = layer_shape(base)

    @property
    def weight(self) -> Tensor:
        """The base's, for code that reads it past this layer (as Mamba's does): right only while no
        adapter is on it.
        """
        if self.A_RrI is not None:
            raise RuntimeError(
                "another layer reads the weights of an adapted one itself, so that the "
                "adapter would have no effect"
            )
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """As `weight`; no adapter changes it."""
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        """Outputs for x of any shape [R * n, ..., I], n rows for each replica, replica 0 first."""
        y = self.base(x)
        if self.A_RrI is None or self.B_ROr is None:
            return y
        if self.packed and torch.is_grad_enabled():
            y = y.clone()  # what bitsandbytes gives out may not be written into
        keep, scale = None, self.scale
        if self.dropout is not None:
            module = self.key if self.readers else self.index
            keep = self.dropout.keep(
                module,
                x.numel() // self.A_RrI.shape[0] // self.in_features,
                self.in_features,
                self.A_RrI.dtype,
            )
            scale /= 1 - self.dropout.p
        if self.readers is None and not torch.is_grad_enabled():
            _add_change(y, x, self.A_RrI, self.B_ROr, keep, scale)
            return y
        if self.readers is None:
            return _Adapt.apply(y, x, self.A_RrI, self.B_ROr, keep, scale)  # type: ignore[return-value]
        h_Rnr = self.readers.down(self, x.reshape(len(self.A_RrI), -1, self.in_features), keep)
        B_RrO = (self.B_ROr * scale).to(x.dtype).transpose(1, 2)
        return y + torch.bmm(h_Rnr, B_RrO).view(y.shape)


class Readers:
    """Adapted layers that read the same input, in compiled code: their products with A are one, and
    so is its backward pass.

    With dropout each layer has a mask of its own, as in PEFT, and a product of its own.
    """

    def __init__(self, layers: Sequence[StackedLinear]):
        self.layers = list(layers)
        self._h: tuple[Tensor, ...] = ()

    def down(self, layer: StackedLinear, x_RnI: Tensor, keep_RnI: Tensor | None) -> Tensor:
        """x A_k' for one of the layers, [R, n, r]. They are asked for in the order of `layers`."""
        if keep_RnI is not None:
            x_RnI = x_RnI * keep_RnI.to(x_RnI.dtype)
        if keep_RnI is not None or len(self.layers) == 1:
            assert layer.A_RrI is not None
            return torch.bmm(x_RnI, layer.A_RrI.to(x_RnI.dtype).transpose(1, 2))
        if layer is self.layers[0]:
            A_RsI = torch.cat([member.A_RrI for member in self.layers], 1)  # type: ignore[misc]
            h_Rns = torch.bmm(x_RnI, A_RsI.to(x_RnI.dtype).transpose(1, 2))
            self._h = h_Rns.split([member.A_RrI.shape[1] for member in self.layers], 2)  # type: ignore[union-attr]
        first, *remaining = self._h
        self._h = tuple(remaining)
        return first


def target_modules(model: nn.Module, targets: str | Iterable[str]) -> dict[str, nn.Linear | Conv1D]:
    """Linear layers to adapt, by module path. `all-linear` is every one but the output head, as in
    PEFT.

    A list matches whole path components at the end (`q_proj`, `mlp.down_proj`), as in PEFT.
    Raises ValueError when a target matches nothing or matches a layer that is not linear.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = {
        name: m
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | Conv1D) and m is not head
    }
    if targets == "all-linear":
        return linear
    selected: dict[str, nn.Module] = {}
    for target in targets:
        matches = {
            name: m
            for name, m in model.named_modules()
            if name == target or name.endswith("." + target)
        }
        other = [name for name in matches if name not in linear]
        if not matches or other:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
            why = f"is no linear layer ({other[0]})" if other else "matches no module"
            raise ValueError(
                f"target {target!r} {why}; linear layers of this base: {', '.join(kinds)}"
            )
        selected |= matches
    # the model's order, not the list's
    return {name: m for name, m in linear.items() if name in selected}


class Stack:
    """A base model whose targets carry R adapters. The base stays frozen and in eval mode (its own
    dropout is off).
    """

    def __init__(self, model: nn.Module, targets: str | Iterable[str] = "all-linear"):
        self.model = model.eval().requires_grad_(False)
        self._keep: Tensor | None = None
        self.layers: dict[str, StackedLinear] = {}
        for index, (name, module) in enumerate(target_modules(model, targets).items()):
            self.layers[name] = StackedLinear(module, index)
        self.embedding = StackedEmbedding(model)
        self.attach()

    @property
    def adaptable(self) -> dict[str, StackedLinear | StackedEmbedding]:
        """What adapters may change, by name: the layers, and the token embedding, which is not
        trained here.
        """
        return {**self.layers, self.embedding.name: self.embedding}

    def _select(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Only positions that count reach the output head: it is a large share of the work and most
        rows have no loss.
        """
        if self._keep is None:
            return None
        hidden = args[0]
        return (torch.gather(hidden, 1, self._keep[:, :, None].expand(-1, -1, hidden.shape[-1])),)

    def logits(self, ids: Tensor, position: Tensor) -> Tensor:
        """Logits [N, L, V] at `position` [N, L] of right-padded `ids` [N, T].

        No attention mask: under a causal mask nothing before a padded token sees it.
        """
        self._keep = position
        try:
            with own_code(self.model):
                return self.model(input_ids=ids, use_cache=False).logits
        finally:
            self._keep = None

    def hidden(self, ids: Tensor, position: Tensor) -> Tensor:
        """What the output head would make these logits of, [N, L, H]."""
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        head.forward = lambda hidden: hidden
        try:
            return self.logits(ids, position)
        finally:
            del head.forward

    def step(self, ids: Tensor, cache: Any = None, *, every: bool = False, **where: Tensor) -> Any:
        """One step of generation: logits of the last position (`every`: of all) and the KV cache
        that now includes `ids` [N, T].

        where: `position_ids` [N, T] and `attention_mask` [N, cached + T], if they are not those of
        full rows.
        """
        self._keep = (
            None if every else torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
        )
        try:
            with own_code(self.model):
                return self.model(input_ids=ids, past_key_values=cache, use_cache=True, **where)
        finally:
            self._keep = None

    def load(self, factors: Mapping[str, tuple[Tensor, ...]], scale: float = 1.0) -> None:
        """Set the adapters: name -> (A [R, r, I], B [R, O, r]). Layers that are not named run the
        base alone.
        """
        for name, layer in self.adaptable.items():
            layer.A_RrI, layer.B_ROr = factors.get(name, (None, None))
            layer.scale = scale

    @property
    def loaded(self) -> dict[str, tuple[Tensor, ...]]:
        """The factors set by `load`."""
        layers = self.adaptable.items()
        return {
            name: (layer.A_RrI, layer.B_ROr)
            for name, layer in layers
            if layer.A_RrI is not None and layer.B_ROr is not None
        }

    def set_dropout(self, dropout: CounterDropout | None) -> None:
        """Have all layers draw their masks from `dropout`; None is no dropout."""
        for layer in self.layers.values():
            layer.dropout = dropout

    def attach(self) -> None:
        """Replace the layers of the base by the adapted ones; may be repeated after `remove`."""
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer)
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        self._hook = head.register_forward_pre_hook(self._select)
        self.embedding.attach()

    def remove(self) -> None:
        """Restore the base."""
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer.base)
        self._hook.remove()
        self.embedding.remove()


@contextmanager
def stacked(
    model: nn.Module, targets: str | Iterable[str] = "all-linear", *, compiled: int | None = None
) -> Iterator[Stack]:
    """A stack on `model` for the length of a `with` block; `compiled`: for rows of so many tokens,
    its layers as compiled code.
    """
    groups = readers(model, target_modules(model, targets)) if compiled else []
    stack = Stack(model, targets)
    with ExitStack() as at_the_end:
        at_the_end.callback(stack.remove)
        if compiled:
            for names in groups:
                members = Readers([stack.layers[name] for name in names])
                for layer in members.layers:
                    layer.readers = members
            at_the_end.enter_context(compiled_layers(model, stack.layers, compiled))
        yield stack
