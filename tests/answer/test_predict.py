"""Answers of a stack are the answers of peft, one adapter at a time; an ensemble's are those of the
mean distribution.
"""

import numpy as np
import pytest
import torch
from helpers.tiny import MODELS, VOCABULARY, tiny_model
from peft import PeftModel
from transformers import MistralConfig, MistralForCausalLM

from toolkit.answer.ensemble import ENSEMBLES, logits, probabilities, token_vote, vote
from toolkit.answer.predict import batches, generate, load_adapters, score, score_tokens
from toolkit.answer.predict import greedy as answers_of
from toolkit.model.adapters import read_adapter, write_adapter
from toolkit.model.stack import stacked

RANKS = [2, 4, 3]


@pytest.fixture(scope="module", params=["qwen2", "gpt2", "gpt-neox"])
def world(request, tmp_path_factory):
    """A base and three random adapters of different rank and scale, as PEFT folders."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_model(request.param)
    generator = torch.Generator().manual_seed(3)
    with stacked(model) as stack:
        shapes = {
            name: (layer.in_features, layer.out_features) for name, layer in stack.layers.items()
        }
    paths = []
    for k, rank in enumerate(RANKS):
        factors = {
            n: (
                torch.randn(rank, i, generator=generator) * 0.2,
                torch.randn(o, rank, generator=generator) * 0.2,
            )
            for n, (i, o) in shapes.items()
        }
        targets = sorted({n.rsplit(".", 1)[-1] for n in factors})
        write_adapter(
            folder / f"a{k}",
            factors,
            r=rank,
            alpha=2.0 * rank,
            target_modules=targets,
            base=None,
            fan_in_fan_out=request.param == "gpt2",
        )
        paths.append(folder / f"a{k}")
    return request.param, paths


def prompts(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, rng.integers(3, 7)).tolist() for _ in range(n)]


def peft_members(kind, paths):
    return [PeftModel.from_pretrained(tiny_model(kind), path).eval() for path in paths]


def log_probs(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)


def test_greedy_answers_equal_peft_generate(world):
    kind, paths = world
    asked = prompts()
    with stacked(tiny_model(kind)) as stack:
        # the base, three adapters, an empty slot
        load_adapters(stack, [None, *map(read_adapter, paths)], width=5)
        mine = generate(stack, asked, voices=5, eos_ids=[0], max_new_tokens=8, top_k=3)
    members = [tiny_model(kind), *peft_members(kind, paths)]
    for u, member in enumerate(members):
        for i, ids in enumerate(asked):
            theirs = member.generate(
                input_ids=torch.tensor([ids]),
                max_new_tokens=8,
                do_sample=False,
                eos_token_id=0,
                pad_token_id=0,
            )
            answer = theirs[0, len(ids) :].tolist()
            answer = answer[: answer.index(0)] if 0 in answer else answer
            assert mine[u][i].ids == answer
            first = log_probs(member, ids)[-1].topk(3)
            assert mine[u][i].first_ids == first.indices.tolist()
            np.testing.assert_allclose(mine[u][i].first_logprobs, first.values, atol=1e-4)
    for empty, base in zip(
        mine[4], mine[0], strict=True
    ):  # to rounding: on some processors the place in a batch decides the last bit
        assert empty.ids == base.ids
        np.testing.assert_allclose(empty.logprob, base.logprob, atol=1e-5)


def test_scores_equal_peft(world):
    kind, paths = world
    asked, said = prompts(), prompts(seed=1)
    with stacked(tiny_model(kind)) as stack:
        load_adapters(stack, list(map(read_adapter, paths)), width=3)
        mine = score(stack, asked, said, voices=3)
    for u, member in enumerate(peft_members(kind, paths)):
        for i, (ids, tail) in enumerate(zip(asked, said, strict=True)):
            table = log_probs(member, ids + tail)
            expected = sum(float(table[len(ids) - 1 + t, token]) for t, token in enumerate(tail))
            assert mine[u][i] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["probabilities", "logits", "token-vote"])
def test_ensemble_speaks_with_one_voice(world, name):
    kind, paths = world
    asked, said = prompts(), prompts(seed=1)
    rule = ENSEMBLES[name].rule
    with stacked(tiny_model(kind)) as stack:
        # two voices: {0, 1, 2} and {2, 2, 2}; the second must answer as member 2 alone
        adapters = [read_adapter(paths[k]) for k in (0, 1, 2, 2, 2, 2)]
        load_adapters(stack, adapters, width=6)
        mine = generate(
            stack, asked, voices=2, members=3, combine=rule, eos_ids=[0], max_new_tokens=6, top_k=2
        )
        scores = score(stack, asked, said, voices=2, members=3, combine=rule)
        load_adapters(stack, adapters[2:3], width=6)
        alone = generate(stack, asked, voices=6, eos_ids=[0], max_new_tokens=6, top_k=2)
    assert [a.ids for a in mine[1]] == [a.ids for a in alone[0]]
    members = peft_members(kind, paths)
    for i, ids in enumerate(asked):
        answer = []
        while len(answer) < 6:  # no cache, no batch: the definition
            together = rule(
                torch.stack([log_probs(m, ids + answer)[-1] for m in members])[None, :, None]
            )[0, 0]
            token = int(together.argmax())
            if token == 0:
                break
            answer.append(token)
        assert mine[0][i].ids == answer
        table = torch.stack([log_probs(m, ids + said[i]) for m in members])[None]
        together = rule(table)[0]
        expected = sum(float(together[len(ids) - 1 + t, token]) for t, token in enumerate(said[i]))
        assert scores[0][i] == pytest.approx(expected, rel=1e-4)


def test_rules_are_distributions_and_do_not_depend_on_order():
    log_GKNV = torch.randn(2, 5, 3, 7, dtype=torch.float64).log_softmax(-1)
    for rule in (probabilities, logits, token_vote):
        together = rule(log_GKNV)
        torch.testing.assert_close(together.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))
        torch.testing.assert_close(rule(log_GKNV.flip(1)), together)
    torch.testing.assert_close(probabilities(log_GKNV).exp(), log_GKNV.exp().mean(1))
    for rule in (probabilities, logits):
        torch.testing.assert_close(rule(log_GKNV[:, :1].expand(-1, 4, -1, -1)), log_GKNV[:, 0])


def test_vote_counts_answers_and_breaks_ties_by_confidence():
    # the majority, through its most confident member
    assert vote(["a", "b", "b"], [-0.1, -5.0, -4.0]) == 2
    assert vote(["a", "b"], [-2.0, -1.0]) == 1
    assert vote(["b", "a"], [-1.0, -2.0]) == 0
    answers, confidence = ["x", "y", "x", "y", "z"], [-1.0, -3.0, -2.0, -4.0, 0.0]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert (
            answers[order[vote([answers[i] for i in order], [confidence[i] for i in order])]] == "x"
        )


def test_an_adapter_of_another_base_is_refused(world):
    kind, paths = world
    other = "qwen2" if kind != "qwen2" else "gpt2"
    with stacked(tiny_model(other)) as stack, pytest.raises(ValueError, match="another base"):
        load_adapters(stack, [read_adapter(paths[0])], width=1)


def test_short_references_need_no_second_reading(world, monkeypatch):
    kind, paths = world
    asked = prompts()
    said = [[[5, 9, 3]] for _ in asked]
    with stacked(tiny_model(kind)) as stack:
        load_adapters(stack, list(map(read_adapter, paths)), width=3)
        expected = score(stack, asked, [one for [one] in said], voices=3)
        monkeypatch.setattr(answers_of, "score_tokens", None)
        found = generate(
            stack, asked, voices=3, eos_ids=[0], max_new_tokens=4, top_k=1, continuations=said
        )
    np.testing.assert_allclose(
        [[a.scores[0].logprob for a in row] for row in found], expected, rtol=1e-4
    )


def test_a_batch_that_is_scored_holds_no_more_numbers_than_allowed(monkeypatch):
    monkeypatch.setattr(batches, "LOGITS", 1000)
    found = list(
        batches.alike(
            [10] * 8, range(8), rows_each=2, spread=0, head=[100, 100, 100, 400, 100, 900, 100, 100]
        )
    )
    assert sorted(i for batch in found for i in batch) == list(range(8))
    assert [0, 1, 2] in found and [3] in found and [5] in found  # one row alone may be too large


def sliding() -> MistralForCausalLM:
    """Every layer sees the last five tokens alone: its KV caches are of another kind."""
    model = tiny_model("mistral")
    narrow = MistralForCausalLM(
        MistralConfig.from_dict({**model.config.to_dict(), "sliding_window": 5})
    )
    narrow.load_state_dict(model.state_dict())
    return narrow.eval()


@pytest.mark.parametrize("kind", [*MODELS, "sliding"])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "small batches"])
def test_an_answer_does_not_depend_on_the_lengths_beside_it(kind, together, monkeypatch):
    """Prompts of all lengths in one batch, some of which end early, against each prompt alone."""
    monkeypatch.setitem(answers_of.LOOK, "cpu", 1 if together else 5)
    if not together:
        monkeypatch.setattr(batches, "CACHED", 150)
        monkeypatch.setattr(batches, "TOKENS", 60)
        monkeypatch.setattr(batches, "LOGITS", 4 * 8 * VOCABULARY)
    rng = np.random.default_rng(2)
    asked = [rng.integers(1, VOCABULARY, n).tolist() for n in (9, 2, 30, 2, 17, 9, 1, 12)]
    tails = [rng.integers(1, VOCABULARY, n).tolist() for n in (3, 1, 2, 6, 1, 4, 2, 2)]
    options = {"voices": 2, "members": 2, "combine": ENSEMBLES["probabilities"].rule, "top_k": 3}
    with stacked(
        sliding().double() if kind == "sliding" else tiny_model(kind, torch.float64)
    ) as stack:
        generator = torch.Generator().manual_seed(1)
        draw = {"generator": generator, "dtype": torch.float64}
        stack.load(
            {
                name: (
                    0.3 * torch.randn(4, 2, layer.in_features, **draw),
                    0.3 * torch.randn(4, layer.out_features, 2, **draw),
                )
                for name, layer in stack.layers.items()
            }
        )
        several = [
            [],
            *([tail, [*tail, 3]] for tail in tails[1:-1]),
            [tails[-1], rng.integers(1, VOCABULARY, 40).tolist()],
        ]
        answers = generate(
            stack, asked, eos_ids=range(16), max_new_tokens=12, continuations=several, **options
        )
        scored = score_tokens(
            stack, asked, tails, **{k: v for k, v in options.items() if k != "top_k"}
        )
        assert [[len(one.logprobs) for one in answer.scores] for answer in answers[0]] == [
            [len(one) for one in tails] for tails in several
        ]
        assert len({len(answer.ids) for row in answers for answer in row}) > 2
        for i, (prompt, tail) in enumerate(zip(asked, tails, strict=True)):
            alone = generate(stack, [prompt], eos_ids=range(16), max_new_tokens=12, **options)
            own = score_tokens(
                stack, [prompt], [tail], **{k: v for k, v in options.items() if k != "top_k"}
            )
            for u in range(2):
                mine, other = answers[u][i], alone[u][0]
                assert (mine.ids, mine.finished, mine.first_ids) == (
                    other.ids,
                    other.finished,
                    other.first_ids,
                )
                np.testing.assert_allclose(
                    [mine.logprob, mine.margin], [other.logprob, other.margin], rtol=1e-9
                )
                np.testing.assert_allclose(mine.first_logprobs, other.first_logprobs, rtol=1e-9)
                np.testing.assert_allclose(scored[u][i].logprobs, own[u][0].logprobs, rtol=1e-9)
                for continuation, found in zip(several[i], mine.scores, strict=True):
                    again = score_tokens(
                        stack,
                        [prompt],
                        [continuation],
                        **{k: v for k, v in options.items() if k != "top_k"},
                    )[u][0]
                    np.testing.assert_allclose(found.logprobs, again.logprobs, rtol=1e-9)
                    assert found.best == again.best
