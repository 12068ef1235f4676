"""K adapters on one base that behave as one Hugging Face causal LM: forward, generate, and all that
is built on them.
"""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import CausalLMOutputWithPast

from toolkit.answer.ensemble.combine import ENSEMBLES
from toolkit.answer.predict import Voices, load_adapters
from toolkit.environment import resolve_device
from toolkit.model.adapters import adapter_paths, read_adapter
from toolkit.model.base import load_base
from toolkit.model.stack import Stack


class MemberCaches(DynamicCache):
    """The KV caches of all members: one cache for each piece of them, with rows of all its members,
    member 0 first.
    """

    def __init__(self, pieces: Sequence[slice]):
        super().__init__()
        self.pieces = pieces
        self.caches: list[Any] = [None] * len(pieces)

    def update_member(self, i: int, cache: Any) -> None:
        """Keep the cache of piece `i`, and list the layers of all pieces anew."""
        self.caches[i] = cache
        self.layers = [
            layer for cache in self.caches if cache is not None for layer in cache.layers
        ]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows as one member has them; every member follows."""
        for piece, cache in zip(self.pieces, self.caches, strict=True):
            first = torch.arange(piece.stop - piece.start, device=beam_idx.device)[:, None] * len(
                beam_idx
            )
            cache.reorder_cache((first + beam_idx).reshape(-1))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows of the batch, of every member."""
        for piece, cache in zip(self.pieces, self.caches, strict=True):
            k = piece.stop - piece.start
            first = torch.arange(k, device=indices.device)[:, None] * (cache.batch_size // k)
            cache.batch_select_indices((first + indices).reshape(-1))


class Ensemble(PreTrainedModel, GenerationMixin):
    """K adapters of one base whose output is one distribution. For inference: frozen, always in
    eval mode, no gradient.

    `logits` are the log-probabilities of the ensemble, so temperature, top-p, beams and losses mean
    what they mean for one model. Every row of a batch runs K times; where that is much, a few
    members at a time, with the same result to rounding.
    """

    main_input_name = "input_ids"
    # whatever the base was loaded with
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(
        self,
        model: PreTrainedModel,
        adapters: Sequence[str | Path],
        rule: str,
        weights: Sequence[float] | None = None,
    ):
        super().__init__(copy.deepcopy(model.config))
        combine = ENSEMBLES[rule].rule if rule in ENSEMBLES and rule != "gated" else None
        if combine is None:
            can = ", ".join(
                name
                for name, ensemble_rule in ENSEMBLES.items()
                if ensemble_rule.rule and name != "gated"
            )
            raise ValueError(
                f"rule {rule!r} does not combine log-probabilities at every token; use one of {can}"
            )
        weights = [1.0] * len(adapters) if weights is None else list(weights)
        if (
            len(weights) != len(adapters)
            or not all(0 <= w < math.inf for w in weights)
            or not sum(weights)
        ):
            raise ValueError(
                f"weights are {len(adapters)} finite numbers, none negative and not all 0 "
                f"(got {weights})"
            )
        # in the order of their hashes, so that the sums do not depend on the order in which they
        # were named
        members = sorted(
            (adapter.sha256(), weight, adapter)
            for adapter, weight in zip(map(read_adapter, adapters), weights, strict=True)
        )
        self.rule, self.members = rule, tuple(adapter.path for *_, adapter in members)
        self.generation_config = copy.deepcopy(model.generation_config)
        self.tokenizer: PreTrainedTokenizerBase | None = None
        shared = {
            id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())
        }
        # modules of its own, the weights of the base
        self.model: Any = copy.deepcopy(model, shared)
        stack = Stack(self.model)
        load_adapters(stack, [adapter for *_, adapter in members], len(members))
        self._voices = Voices(
            stack, 1, len(members), combine, torch.tensor([[weight for _, weight, _ in members]])
        )
        self._keeps = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.eval()

    @classmethod
    def from_adapters(
        cls,
        base: str | PreTrainedModel,
        adapters: Sequence[str | Path],
        rule: str = "probabilities",
        *,
        weights: Sequence[float] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "float32",
        device: str = "auto",
    ) -> Ensemble:
        """An ensemble of PEFT LoRA folders (or folders of such folders).

        base: `embedded`, a Hugging Face id or a folder, or a loaded model, which stays as it is and
        shares its weights.
        rule: `probabilities`, `logits`, `token-vote` or `median`. weights: one for each adapter,
        only their ratios count. Raises AdapterError, BaseError or ValueError in one line.
        """
        if isinstance(base, str):
            loaded = load_base(base, dtype, resolve_device(device))
            base, tokenizer = loaded.model, tokenizer or loaded.tokenizer
        ensemble = cls(
            base, [path for source in adapters for path in adapter_paths(source)], rule, weights
        )
        ensemble.tokenizer = tokenizer
        return ensemble

    @torch.no_grad()
    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CausalLMOutputWithPast:
        """Log-probabilities [B, T, V] of the ensemble (the last `logits_to_keep` positions; 0: all)
        and the KV caches of its members.

        attention_mask: [B, past + T], 0 is padding on either side; positions count what is not
        padding. past_key_values: of an earlier call. labels: [B, T], -100 is ignored; loss is the
        mean log loss of the token that follows.
        """
        B, T = input_ids.shape
        cache = past_key_values
        if cache is not None and not isinstance(cache, MemberCaches):
            if cache.is_compileable or cache.get_seq_length():
                raise ValueError(
                    "each member has a dynamic KV cache of its own: leave "
                    "`past_key_values` and `cache_implementation` out"
                )
            cache, use_cache = None, True  # the empty one that `generate` prepares
        kept = min(logits_to_keep or T, T)
        pieces = (
            cache.pieces
            if cache is not None
            else self._voices.pieces(B * T, B * kept * self.config.get_text_config().vocab_size)
        )
        if cache is None and use_cache:
            cache = MemberCaches(pieces)
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        same = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        same = {name: tensor for name, tensor in same.items() if tensor is not None}
        options = {"logits_to_keep": logits_to_keep} if self._keeps else {}

        def logits(i: int) -> Tensor:
            rows = {
                name: self._voices.rows(pieces[i], tensor.expand(B, -1)[None])
                for name, tensor in same.items()
            }
            past = cache.caches[i] if cache is not None else None
            output = self.model(
                **rows, past_key_values=past, use_cache=cache is not None, **options
            )
            if cache is not None:
                cache.update_member(i, output.past_key_values)
            return output.logits[:, -kept:]

        log_BTV = self._voices.log_probs(pieces, logits).view(B, kept, -1)
        loss = None
        if labels is not None:
            loss = F.nll_loss(
                log_BTV[:, :-1].flatten(0, 1), labels[:, -kept:][:, 1:].flatten(), ignore_index=-100
            )
        return CausalLMOutputWithPast(loss=loss, logits=log_BTV, past_key_values=cache)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Ensemble:
        """Stays in eval mode."""
        return super().train(False)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """The base has tied what it ties."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Ensemble:
        """`.to(...)` and its like reach the adapters too."""
        super()._apply(fn, recurse)
        self._voices.weights = {
            name: (fn(A), fn(B)) for name, (A, B) in self._voices.weights.items()
        }
        self._voices.stack.load(self._voices.weights)
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Raises NotImplementedError: an ensemble has no weights of its own."""
        raise NotImplementedError(
            "an ensemble has no weights of its own: keep its adapters, and "
            "`Ensemble.from_adapters` makes it again"
        )
