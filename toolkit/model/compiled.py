"""Decoder layers as compiled code: one graph for all layers of a base, made by `torch.compile` from
the wrapped Hugging Face modules.

Layer by layer rather than the whole model: layers of one shape share their code, so that it is made
in seconds and once, whatever the depth; what lies between them (embedding, rotation table, final
norm) is little work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch._dynamo
import torch._inductor.config
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

TESTED = frozenset({"gpt2", "llama", "mistral", "qwen2", "qwen3", "smollm3"})
"""model types whose compiled layers are held to their eager ones by tests"""
PRODUCTS = "ftk_products"
SHORT = 128
"""tokens up to which attention by two products is faster on a CPU than its fused kernel, above all
backward
"""


def attention_by_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' / sqrt(d) + mask) v, softmax in float32; causal where there is no mask. query
    [N, H, T, D] -> [N, T, H, D].
    """
    N, H, T, D = query.shape
    # fewer than H where several query heads share keys and values: theirs is one taller product
    kv = key.shape[1]
    q = query.reshape(N, kv, H // kv * T, D)
    scores = (torch.matmul(q, key.transpose(2, 3)).float() * (scaling or D**-0.5)).view(
        N, kv, H // kv, T, T
    )
    if attention_mask is None:
        # added: compiled code is fast at sums, not at choices
        hidden = torch.full((T, T), -torch.inf, device=query.device).triu(1)
    else:
        hidden = torch.zeros(attention_mask.shape, device=query.device).masked_fill(
            ~attention_mask, -torch.inf
        )[:, :, None]
    share = torch.softmax(scores + hidden, -1).to(value.dtype).view(N, kv, H // kv * T, T)
    return torch.matmul(share, value).view(N, H, T, D).transpose(1, 2).contiguous(), None


AttentionInterface.register(PRODUCTS, attention_by_products)
AttentionMaskInterface.register(PRODUCTS, sdpa_mask)


def decoder_layers(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Members of the model's lists of layers that hold any of the named modules."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(other + ".") for other in lists)]
    layers = {}
    for name in names:
        for path in outer:
            if name.startswith(path + "."):
                layers[f"{path}.{name.removeprefix(path + '.').split('.', 1)[0]}"] = None
    return [model.get_submodule(path) for path in layers]


@contextmanager
def compiled_layers(model: nn.Module, names: Iterable[str], length: int) -> Iterator[None]:
    """Compile the decoder layers that hold `names`, for inputs of `length` tokens, as long as the
    block lasts.
    """
    layers = decoder_layers(model, names)
    config: Any = model.config
    attention = config._attn_implementation
    if length <= SHORT:
        model.set_attn_implementation(PRODUCTS)  # type: ignore[operator]
    # here: the processes of a pool would outlive a worker that is killed
    torch._inductor.config.compile_threads = 1
    # conditions of a run have shapes of their own
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    for layer in layers:
        layer.compile(dynamic=False, fullgraph=True)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
        model.set_attn_implementation(attention)  # type: ignore[operator]


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function as compiled code, for tensors of fixed shapes."""
    return torch.compile(function, dynamic=False)


def readers(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[list[str]]:
    """Names of `modules` in groups that read the very same input, in the order in which they run:
    q, k and v; gate and up.
    """
    groups: list[tuple[Tensor, list[str]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if groups and groups[-1][0] is args[0]:
                groups[-1][1].append(name)
            else:
                groups.append((args[0], [name]))

        return hook

    hooks = [module.register_forward_pre_hook(note(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            model(
                input_ids=torch.zeros(
                    1, 2, dtype=torch.long, device=next(model.parameters()).device
                ),
                use_cache=False,
            )
    finally:
        for hook in hooks:
            hook.remove()
    return [names for _, names in groups]
