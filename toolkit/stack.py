"""R adapters on one frozen base: every adapted linear layer runs the base once and its R adapters as batched products.

The batch of a stack is replica-major, `[R * B, T, ...]`: rows of replica 0 first. The base sees one matrix, replica k sees
its own B rows through `A_RrI[k]`, `B_ROr[k]`. No parameter is shared between replicas, so one backward pass of the summed losses
gives each replica exactly the gradient of its own loss.

Hugging Face models are wrapped module by module; there is no model code here. Any causal LM whose targets are `nn.Linear` or
GPT-2's `Conv1D` works.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

_GOLDEN, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # splitmix64, as signed int64


def _weyl(n: int) -> int:
    """n times the golden ratio, wrapped to a signed 64-bit integer."""
    return (n * _GOLDEN + 2**63) % 2**64 - 2**63


def _mix(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014) on int64 tensors, in place; the same bits on every device."""
    shifted = torch.empty_like(z)
    for bits, factor in ((30, _MIX1), (27, _MIX2), (31, 1)):
        torch.bitwise_right_shift(z, bits, out=shifted)
        z ^= shifted.bitwise_and_((1 << (64 - bits)) - 1)  # the mask makes the arithmetic shift a logical one
        if factor != 1:
            z *= factor
    return z


class CounterDropout:
    """Dropout masks that are a function of (replica's dropout seed, step, module, position) and of nothing else.

    Never of the slot in the stack, of the neighbours, or of how many draws came before: so a replica has the same masks alone,
    in any stack, and after a resume.
    """

    def __init__(self, p: float, seed_R: Tensor):
        self.p = p
        self.seed_R = seed_R
        self.step = 0
        # drop where a uniform 16-bit lane is below the threshold: p is met to 2^-17
        self._threshold = round(p * 65536) - 32768

    def keep(self, module: int, n: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Mask [R, n, width] of ones (keep) and zeros; n counts the rows of one replica in this step (B * T)."""
        key_R = _mix(_mix(self.seed_R + _weyl(self.step + 1)) + _weyl(module + 1))
        count = (n * width + 3) // 4
        counter = torch.arange(1, count + 1, device=key_R.device) * _GOLDEN
        lanes = _mix(counter + key_R[:, None]).view(torch.int16)[:, : n * width]  # four 16-bit lanes a hash
        # the comparison writes the factors themselves: a boolean mask would cost another pass here and one at every use
        return torch.ge(lanes, self._threshold, out=torch.empty(lanes.shape, dtype=dtype, device=lanes.device)).view(-1, n, width)


class _Adapt(torch.autograd.Function):
    """y + scale * (x * keep) A' B', written into y; the gradients of all R adapters as batched products.

    A and B are both stored with the rank as the slower index, [R, r, I] and [R, r, O] in memory: products with a short side are
    several times faster when the long side is contiguous.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, A_RrI: Tensor, B_ROr: Tensor, keep_RnI: Tensor | None, scale: float) -> Tensor:
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
        ctx.mark_dirty(y)
        ctx.save_for_backward(x_RnI, A_RrI, B_ROr, keep_RnI, h_Rnr)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, x.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x_RnI, A_RrI, B_ROr, keep_RnI, h_Rnr = ctx.saved_tensors
        grad_RnO = grad.reshape(len(A_RrI), -1, grad.shape[-1]).to(A_RrI.dtype)
        grad_h = torch.bmm(grad_RnO, B_ROr).mul_(ctx.scale)
        grad_B = torch.bmm(h_Rnr.transpose(1, 2), grad_RnO).mul_(ctx.scale).transpose(1, 2)
        grad_A = torch.bmm(grad_h.transpose(1, 2), x_RnI)
        grad_x = None
        if ctx.needs_input_grad[1]:  # the first layers stand on frozen embeddings
            grad_x = torch.bmm(grad_h, A_RrI)
            if keep_RnI is not None:
                grad_x *= keep_RnI
            grad_x = grad_x.view(ctx.shape).to(ctx.dtype)
        return grad, grad_x, grad_A, grad_B, None, None


class StackedLinear(nn.Module):
    """A frozen linear layer with R adapters: y = x W' + b + scale_k * (x A_k') B_k'."""

    def __init__(self, base: nn.Linear | Conv1D, index: int):
        super().__init__()
        self.base = base
        self.index = index
        self.in_features: int
        self.out_features: int
        self.scale = 1.0
        self.dropout: CounterDropout | None = None
        self.A_RrI: Tensor | None = None
        self.B_ROr: Tensor | None = None
        shape = tuple(base.weight.shape)
        self.is_conv = isinstance(base, Conv1D)  # GPT-2 stores [I, O]
        self.out_features, self.in_features = (int(n) for n in (shape[::-1] if self.is_conv else shape))

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.A_RrI is None or self.B_ROr is None:
            return y
        keep, scale = None, self.scale
        if self.dropout is not None:
            keep = self.dropout.keep(self.index, x.numel() // self.A_RrI.shape[0] // self.in_features, self.in_features, self.A_RrI.dtype)
            scale /= 1 - self.dropout.p
        return _Adapt.apply(y, x, self.A_RrI, self.B_ROr, keep, scale)  # type: ignore[return-value]


def target_modules(model: nn.Module, targets: str | Iterable[str]) -> dict[str, nn.Linear | Conv1D]:
    """Linear layers to adapt, by module path. `all-linear` is every one but the output head, as in PEFT.

    A list matches whole path components at the end (`q_proj`, `mlp.down_proj`), as in PEFT.
    Raises ValueError when a target matches nothing or matches a layer that is not linear.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    if targets == "all-linear":
        return linear
    found: dict[str, nn.Module] = {}
    for target in targets:
        matches = {name: m for name, m in model.named_modules() if name == target or name.endswith("." + target)}
        other = [name for name in matches if name not in linear]
        if not matches or other:
            kinds = sorted({name.rsplit(".", 1)[-1] for name in linear})
            why = f"is no linear layer ({other[0]})" if other else "matches no module"
            raise ValueError(f"target {target!r} {why}; linear layers of this base: {', '.join(kinds)}")
        found |= matches
    return {name: m for name, m in linear.items() if name in found}  # the model's order, not the list's


def lora_scale(rank: int, alpha: float, rslora: bool) -> float:
    """alpha / r, or alpha / sqrt(r) with rank stabilisation (arXiv:2312.03732)."""
    return alpha / math.sqrt(rank) if rslora else alpha / rank


class Stack:
    """A base model whose targets carry R adapters. The base stays frozen and in eval mode (its own dropout is off)."""

    def __init__(self, model: nn.Module, targets: str | Iterable[str] = "all-linear"):
        self.model = model.eval().requires_grad_(False)
        self._keep: Tensor | None = None
        self.layers: dict[str, StackedLinear] = {}
        for index, (name, module) in enumerate(target_modules(model, targets).items()):
            self.layers[name] = StackedLinear(module, index)
        self.attach()

    def _select(self, head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Only positions that count reach the output head: it is a large share of the work and most rows have no loss."""
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
            return self.model(input_ids=ids, use_cache=False).logits
        finally:
            self._keep = None

    def step(self, ids: Tensor, cache: Any = None) -> Any:
        """One step of generation: logits of the last position and the KV cache that now includes `ids` [N, T]."""
        self._keep = torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)
        try:
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True)
        finally:
            self._keep = None

    def load(self, factors: Mapping[str, tuple[Tensor, ...]], scale: float = 1.0) -> None:
        """Set the adapters: name -> (A [R, r, I], B [R, O, r]). Layers that are not named run the base alone."""
        for name, layer in self.layers.items():
            layer.A_RrI, layer.B_ROr = factors.get(name, (None, None))
            layer.scale = scale

    @property
    def loaded(self) -> dict[str, tuple[Tensor, ...]]:
        """What `load` has set."""
        layers = self.layers.items()
        return {name: (layer.A_RrI, layer.B_ROr) for name, layer in layers if layer.A_RrI is not None and layer.B_ROr is not None}

    def set_dropout(self, dropout: CounterDropout | None) -> None:
        for layer in self.layers.values():
            layer.dropout = dropout

    def attach(self) -> None:
        """Put the adapted layers in the place of the base's; again, too, after `remove`."""
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer)
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        self._hook = head.register_forward_pre_hook(self._select)

    def remove(self) -> None:
        """Give the base back as it was."""
        for name, layer in self.layers.items():
            parent, _, child = name.rpartition(".")
            setattr(self.model.get_submodule(parent), child, layer.base)
        self._hook.remove()


@contextmanager
def stacked(model: nn.Module, targets: str | Iterable[str] = "all-linear") -> Iterator[Stack]:
    """A stack on `model` for the length of a `with` block."""
    stack = Stack(model, targets)
    try:
        yield stack
    finally:
        stack.remove()
