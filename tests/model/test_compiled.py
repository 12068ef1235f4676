"""Compiled layers are the eager ones to rounding, and keep replicas apart to the bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.tiny import tiny_model
from helpers.training import REAL, plan_of, rows, same_bits, seeds_of

from toolkit import environment
from toolkit.model.compiled import TESTED, attention_by_products
from toolkit.recipe import LoraCondition
from toolkit.recipe.schedule import COMPILED_WORK, pays_to_compile
from toolkit.train import train_stack

needs_compiler = pytest.mark.skipif(environment.compiler() is None, reason="no C++ compiler here")


def train(kind, dtype, dropout, *, compiled, replicas=(0, 1, 2, 3), steps=3):
    condition = LoraCondition(**REAL, dropout=dropout)
    examples = rows(seed=5)
    plan = replace(plan_of(condition, examples), steps=steps, compiled=compiled)
    model = tiny_model(kind, dtype)
    attention = model.config._attn_implementation
    trained = train_stack(model, examples, condition, plan, seeds_of(replicas))
    assert model.config._attn_implementation == attention and all(
        m._compiled_call_impl is None for m in model.modules()
    )
    return trained, [
        {n: (A[r], B[r]) for n, (A, B) in trained.factors.items()} for r in range(len(replicas))
    ]


@needs_compiler
def test_compiled_is_eager_to_rounding_and_apart_to_the_bit():
    eager, _ = train("qwen2", torch.float32, 0.0, compiled=False)
    compiled, bits = train("qwen2", torch.float32, 0.0, compiled=True)
    np.testing.assert_allclose(compiled.loss_SR, eager.loss_SR, rtol=1e-5)
    np.testing.assert_allclose(compiled.norm_SR, eager.norm_SR, rtol=1e-4)
    _, permuted = train("qwen2", torch.float32, 0.0, compiled=True, replicas=(3, 0, 9, 1))
    for replica, slot in ((3, 0), (0, 1), (1, 3)):
        assert same_bits(bits[replica], permuted[slot])


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("kind", sorted(TESTED))
def test_every_tested_type_in_float64(kind, dropout):
    eager, _ = train(kind, torch.float64, dropout, compiled=False)
    compiled, _ = train(kind, torch.float64, dropout, compiled=True)
    # softmax is float32 in both
    np.testing.assert_allclose(compiled.loss_SR, eager.loss_SR, rtol=1e-6)
    np.testing.assert_allclose(compiled.norm_SR, eager.norm_SR, rtol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_products_is_scaled_dot_product_attention(masked):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, heads, 7, 8, generator=generator) for heads in (4, 2, 2))
    mask = (
        torch.ones(7, 7, dtype=torch.bool).tril(2)[None, None].expand(3, 1, -1, -1)
        if masked
        else None
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True
    )
    found, _ = attention_by_products(torch.nn.Module(), q, k, v, mask)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_what_pays_does_not_depend_on_the_number_of_replicas():
    plan = plan_of(LoraCondition(**REAL), rows())
    few = COMPILED_WORK / (4 * plan.tokens_per_step * plan.accumulation * plan.steps)
    assert not pays_to_compile(plan, int(few * 0.9)) and pays_to_compile(plan, int(few * 1.1))
    # old fingerprints stay
    assert "compiled" not in plan.to_dict() and replace(plan, compiled=True).to_dict()["compiled"]
