"""Logits a piece of tokens at a time: the same losses, gradients and replicas as with all of them
at once.
"""

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.tiny import MODELS, VOCABULARY, tiny_base, tiny_model
from helpers.training import REAL, plan_of, rows, same_bits, seeds_of
from transformers import Gemma2Config, Gemma2ForCausalLM

from toolkit.model.stack import stacked
from toolkit.pipeline import train_stacks
from toolkit.recipe import LoraCondition, load_recipe
from toolkit.recipe import schedule as plans
from toolkit.train import head, plain_head, token_losses_in_pieces, train_stack


@pytest.mark.parametrize(
    "replicas,tokens,most", [*itertools.product([1, 4, 6], [1, 7, 12], [1, 3, 7, 20, 100])]
)
def test_every_replica_is_cut_alike(replicas, tokens, most):
    sizes = head.pieces(replicas, tokens, most)
    edges = list(itertools.accumulate(sizes))
    assert edges[-1] == replicas * tokens and max(sizes) <= most and min(sizes) >= 1
    if tokens > most:
        assert sizes == sizes[: len(sizes) // replicas] * replicas
    else:
        assert len(set(sizes)) == 1 and sizes[0] % tokens == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("piece", [1, 5, 12, 30])
def test_losses_and_gradients_are_those_of_cross_entropy(piece, smoothing):
    model = tiny_model("gpt2", torch.float64)
    generator = torch.Generator().manual_seed(0)
    ids, target = (
        torch.randint(1, VOCABULARY, size, generator=generator) for size in ((6, 9), (6, 4))
    )
    position = torch.randint(0, 9, (6, 4), generator=generator)
    weight = torch.rand(6, 4, generator=generator, dtype=torch.float64)
    gradients = []
    with stacked(model) as stack:
        for in_pieces in (False, True):
            own = torch.Generator().manual_seed(1)
            draw = {"generator": own, "dtype": torch.float64}
            shapes = {
                name: ((3, 2, one.in_features), (3, one.out_features, 2))
                for name, one in stack.layers.items()
            }
            factors = {
                n: tuple((0.3 * torch.randn(s, **draw)).requires_grad_() for s in both)
                for n, both in shapes.items()
            }
            stack.load(factors)
            if in_pieces:
                loss = token_losses_in_pieces(
                    stack, ids, position, target, replicas=3, piece=piece, label_smoothing=smoothing
                )
            else:
                logits = stack.logits(ids, position).flatten(0, 1)
                loss = F.cross_entropy(
                    logits, target.flatten(), reduction="none", label_smoothing=smoothing
                ).view(target.shape)
            (loss * weight).sum().backward()
            gradients.append([loss, *(x.grad for several in factors.values() for x in several)])
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("piece", [5, 40])
def test_replicas_are_the_same_and_neighbours_do_not_matter(piece):
    condition = LoraCondition(**{**REAL, "epochs": 2}, dropout=0.1, label_smoothing=0.1)
    examples = rows(seed=3)
    whole = plan_of(condition, examples)
    cut = replace(whole, piece=piece)
    exact = [
        train_stack(tiny_model("qwen2", torch.float64), examples, condition, p, seeds_of(range(4)))
        for p in (whole, cut)
    ]
    torch.testing.assert_close(*(torch.from_numpy(one.loss_SR) for one in exact), rtol=1e-9, atol=0)
    together, permuted = (
        train_stack(tiny_model(), examples, condition, cut, seeds_of(which))
        for which in ([0, 1, 2, 3], [3, 0, 9, 1])
    )

    def of(trained, r):
        return {name: tuple(x[r] for x in several) for name, several in trained.factors.items()}

    for replica, slot in ((3, 0), (0, 1), (1, 3)):
        assert same_bits(of(together, replica), of(permuted, slot))


def test_a_head_whose_logits_are_changed_afterwards_is_told_apart():
    assert all(plain_head(tiny_model(kind)) for kind in MODELS)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    capped = Gemma2ForCausalLM(
        Gemma2Config(**shape, vocab_size=VOCABULARY, head_dim=8, final_logit_softcapping=5.0)
    ).eval()
    before = capped(input_ids=torch.tensor([[1, 2]])).logits
    assert not plain_head(capped)
    # it is given back as it was
    assert torch.equal(capped(input_ids=torch.tensor([[1, 2]])).logits, before)


def test_the_plan_decides_and_records_it(tmp_path, monkeypatch):
    base = tiny_base(tmp_path / "base")
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {base}\ndata: {{train: embedded}}\nreplicas: 8\nstack: 4\nconditions:\n"
        "  lora: {rank: 2, epochs: 1, batch_size: 4}\n  full: "
        "{method: full, epochs: 1, batch_size: 4}\n"
        "  student: {method: distill, teacher: {condition: lora, ensemble: probabilities, k: 2}}\n"
    )
    recipe = load_recipe(path)
    plan, mark = train_stacks.training_plan(recipe, "lora", "cpu")
    assert plan.piece == 0 and "piece" not in plan.to_dict()
    monkeypatch.setattr(plans, "CPU_LOGITS", 20_000)
    cut, other = train_stacks.training_plan(recipe, "lora", "cpu")
    assert (
        0 < cut.piece < plan.stack * plan.micro_batch * plan.targets
        and cut.to_dict()["piece"] == cut.piece
        and other != mark
    )
    assert all(
        train_stacks.training_plan(recipe, name, "cpu")[0].piece == 0
        for name in ("full", "student")
    )
