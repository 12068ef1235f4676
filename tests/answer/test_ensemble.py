"""K adapters that answer as one: at every token, over whole answers, afterwards from stored scores,
and as a Hugging Face model.
"""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers.bases import random_adapters
from helpers.tiny import VOCABULARY, generated, tiny_model
from peft import PeftModel

import toolkit
from toolkit import cli
from toolkit.answer.ensemble import ENSEMBLES, SIMILARITIES, Ensemble, ensemble_scores, mbr, vote
from toolkit.answer.evaluate import EvaluationUnit, Subject, evaluate_unit
from toolkit.answer.predict import batches, generate, load_adapters, score, score_tokens
from toolkit.data import read_suite
from toolkit.model.adapters import read_adapter
from toolkit.model.base import load_base
from toolkit.model.stack import StackedLinear, stacked
from toolkit.pipeline.given.evaluate_given import _of_groups
from toolkit.pipeline.job import RunError
from toolkit.recipe import EnsembleMethod, Similarity
from toolkit.record.outcomes import read_outcomes, read_token_scores

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

TOKEN_RULES = ["probabilities", "logits", "token-vote", "median"]
K = 4


@pytest.fixture(scope="module", params=["qwen2", "gpt2"])
def world(request, tmp_path_factory):
    return request.param, random_adapters(
        tiny_model(request.param), tmp_path_factory.mktemp(request.param), K
    )


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """The base that ships with ftk, with a tokenizer, and adapters that change its answers."""
    base = load_base("embedded")
    return base, random_adapters(base.model, tmp_path_factory.mktemp("embedded"), K, spread=0.05)


def asked(n=6, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, VOCABULARY, rng.integers(3, 7)).tolist() for _ in range(n)]


def left_padded(rows):
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def answers_of(model, rows, **options):
    """Generated ids behind each prompt, cut at the end token."""
    inputs = left_padded(rows)
    out = model.generate(
        **inputs,
        **{"max_new_tokens": 7, "do_sample": False, "eos_token_id": 0, "pad_token_id": 0} | options,
    )
    tails = [row[inputs["input_ids"].shape[1] :] for row in out.tolist()]
    return [tail[: tail.index(0)] if 0 in tail else tail for tail in tails]


def member(kind, path):
    return PeftModel.from_pretrained(tiny_model(kind), path).eval()


@pytest.mark.parametrize("size", [4, 5])
def test_the_rules_are_what_they_are_called(size):
    rng = np.random.default_rng(size)
    p_KV = rng.dirichlet(np.full(9, 0.5), size)
    weight_K = rng.random(size)
    w_K1 = (weight_K / weight_K.sum())[:, None]
    votes_V = (w_K1 * (p_KV == p_KV.max(1, keepdims=True))).sum(0)
    expected = {
        "probabilities": (w_K1 * p_KV).sum(0),
        "logits": np.prod(p_KV**w_K1, 0) / np.prod(p_KV**w_K1, 0).sum(),
        "token-vote": (size * votes_V + (w_K1 * p_KV).sum(0) / 2) / (size + 0.5),
        "median": np.exp(np.median(np.log(p_KV), 0)) / np.exp(np.median(np.log(p_KV), 0)).sum(),
    }
    log_GKNV = torch.tensor(np.log(p_KV))[None, :, None]
    for name, p_V in expected.items():
        rule = ENSEMBLES[name].rule
        np.testing.assert_allclose(
            rule(log_GKNV, torch.tensor(weight_K)[None])[0, 0].exp(), p_V, rtol=1e-10
        )
        torch.testing.assert_close(rule(log_GKNV.flip(1)), rule(log_GKNV))


# -- as a Hugging Face model ---------------------------------------------------------------------


@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_copies_of_one_adapter_are_that_adapter(world, rule):
    kind, paths = world
    ensemble, alone = (
        Ensemble.from_adapters(tiny_model(kind), [paths[1]] * 3, rule),
        member(kind, paths[1]),
    )
    ids = torch.tensor(asked(1))
    theirs = alone(input_ids=ids).logits.log_softmax(-1)
    mine = ensemble(ids).logits
    if rule == "token-vote":
        assert torch.equal(mine.argmax(-1), theirs.argmax(-1))
    else:
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)
    assert answers_of(ensemble, asked()) == answers_of(alone, asked())


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 2},
        {"do_sample": True, "top_p": 0.9},
    ],
)
@pytest.mark.parametrize("tokens", [batches.TOKENS, 1])
def test_beams_and_samples_of_copies_are_those_of_the_adapter(world, options, tokens, monkeypatch):
    monkeypatch.setattr(batches, "TOKENS", tokens)  # 1: the members pass one by one
    kind, paths = world
    ensemble, alone = (
        Ensemble.from_adapters(tiny_model(kind), [paths[1]] * 3),
        member(kind, paths[1]),
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        mine = answers_of(ensemble, asked(), **options)
        torch.manual_seed(5)
        assert mine == answers_of(alone, asked(), **options)


@pytest.mark.parametrize("rule", TOKEN_RULES)
def test_generate_is_that_of_ftk_and_padding_on_the_left_changes_nothing(world, rule):
    kind, paths = world
    ensemble = Ensemble.from_adapters(tiny_model(kind), paths, rule)
    with stacked(tiny_model(kind)) as stack:
        load_adapters(stack, list(map(read_adapter, paths)), width=K)
        own = generate(
            stack,
            asked(),
            voices=1,
            members=K,
            combine=ENSEMBLES[rule].rule,
            eos_ids=[0],
            max_new_tokens=7,
            top_k=2,
        )[0]
    assert answers_of(ensemble, asked()) == [answer.ids for answer in own]
    assert [answers_of(ensemble, [row])[0] for row in asked()] == [answer.ids for answer in own]
    inputs = left_padded(asked())
    together = ensemble(**inputs).logits
    for i, row in enumerate(asked()):
        torch.testing.assert_close(
            together[i, -len(row) :], ensemble(torch.tensor([row])).logits[0], atol=1e-5, rtol=1e-4
        )


def test_the_mixture_is_the_mean_of_the_members_and_loses_at_most_log_k(world):
    kind, paths = world
    ensemble = Ensemble.from_adapters(tiny_model(kind), paths)
    ids = torch.tensor([row[:3] for row in asked(8)])
    losses, members = [], [member(kind, path) for path in paths]
    for m in members:
        losses.append(float(m(input_ids=ids, labels=ids).loss))
    out = ensemble(ids, labels=ids)
    mean = torch.stack([m(input_ids=ids).logits.softmax(-1) for m in members]).mean(0)
    torch.testing.assert_close(out.logits.exp(), mean, atol=1e-5, rtol=1e-4)
    assert float(out.loss) <= min(losses) + math.log(K)
    single = Ensemble.from_adapters(tiny_model(kind), paths[:1])(ids, labels=ids)
    assert float(single.loss) == pytest.approx(losses[0], rel=1e-5)


def test_the_order_of_the_members_does_not_matter(world):
    kind, paths = world
    ids = torch.tensor(asked(1))
    for rule in TOKEN_RULES:
        one = Ensemble.from_adapters(
            tiny_model(kind), paths, rule, weights=[1, 2, 3, 4] if rule != "median" else None
        )
        two = Ensemble.from_adapters(
            tiny_model(kind), paths[::-1], rule, weights=[4, 3, 2, 1] if rule != "median" else None
        )
        # the same bits: members stand in the order of their hashes
        assert torch.equal(one(ids).logits, two(ids).logits)


def test_a_member_with_all_the_weight_speaks_alone(world):
    kind, paths = world
    ids = torch.tensor(asked(1))
    theirs = member(kind, paths[2])(input_ids=ids).logits.log_softmax(-1)
    for rule in ("probabilities", "logits"):
        mine = Ensemble.from_adapters(tiny_model(kind), paths, rule, weights=[0, 0, 5, 0])(
            ids
        ).logits
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", ["probabilities", "token-vote", "median"])
def test_64_members_pass_a_few_at_a_time(world, rule, monkeypatch):
    kind, paths = world
    many = [paths[k % K] for k in range(64)]
    weights = None if rule == "median" else [k % 5 + 1.0 for k in range(64)]
    ids = torch.tensor([row[:3] for row in asked(2)])
    whole = Ensemble.from_adapters(tiny_model(kind), many, rule, weights=weights)
    expected, said = (
        whole(ids).logits,
        generated(whole, ids, max_new_tokens=4, do_sample=False, pad_token_id=0),
    )
    monkeypatch.setattr(batches, "TOKENS", 24)
    few = Ensemble.from_adapters(tiny_model(kind), many, rule, weights=weights)
    rows = []
    few.model.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    torch.testing.assert_close(few(ids).logits, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(generated(few, ids, max_new_tokens=4, do_sample=False, pad_token_id=0), said)
    assert max(rows) <= 24
    with stacked(
        tiny_model(kind)
    ) as stack:  # ftk's own: prompts of several lengths, some finished before others
        load_adapters(stack, list(map(read_adapter, many)), width=64)
        options = {
            "voices": 1,
            "members": 64,
            "combine": ENSEMBLES[rule].rule,
            "weight_UK": weights and torch.tensor([weights]),
        }
        limits = {"eos_ids": [0, 5, 9], "max_new_tokens": 6, "top_k": 2}
        in_pieces = (
            generate(stack, asked(8), **options, **limits)[0],
            score_tokens(stack, asked(8), asked(8, 1), **options)[0],
        )
        monkeypatch.setattr(batches, "TOKENS", 1 << 20)
        at_once = (
            generate(stack, asked(8), **options, **limits)[0],
            score_tokens(stack, asked(8), asked(8, 1), **options)[0],
        )
    assert [a.ids for a in in_pieces[0]] == [a.ids for a in at_once[0]]
    np.testing.assert_allclose(
        [s.logprob for s in in_pieces[1]], [s.logprob for s in at_once[1]], rtol=1e-5
    )


def test_the_recipe_knows_the_tables():
    assert set(get_args(EnsembleMethod)) == set(ENSEMBLES)
    assert set(get_args(Similarity)) == set(SIMILARITIES)


def test_the_base_stays_as_it_was_and_its_weights_are_shared(world):
    kind, paths = world
    model = tiny_model(kind)
    ids = torch.tensor(asked(1))
    before = model(input_ids=ids).logits
    one, two = Ensemble.from_adapters(model, paths[:2]), Ensemble.from_adapters(model, paths[2:])
    assert not any(isinstance(module, StackedLinear) for module in model.modules())
    assert torch.equal(model(input_ids=ids).logits, before) and not torch.equal(
        one(ids).logits, two(ids).logits
    )
    pointers = {p.data_ptr() for p in model.parameters()}
    assert (
        {p.data_ptr() for p in one.parameters()}
        == pointers
        == {p.data_ptr() for p in two.parameters()}
    )
    doubled = Ensemble.from_adapters(tiny_model(kind), paths[:2]).to(torch.float64)
    torch.testing.assert_close(doubled(ids).logits.float(), one(ids).logits, atol=1e-5, rtol=1e-4)
    assert doubled(ids).logits.dtype == torch.float64 and not doubled.train().training
    # the adapters move with the base
    assert {m.A_RrI.dtype for m in doubled.modules() if isinstance(m, StackedLinear)} == {
        torch.float64
    }


def test_what_is_no_ensemble_is_refused_in_one_line(world):
    kind, paths = world
    for rule, weights, told in (
        ("vote", None, "use one of probabilities"),
        ("gated", None, "at every token"),
        ("mean", None, "'mean'"),
        ("probabilities", [1.0], "weights are 4 finite numbers"),
        ("probabilities", [0, 0, 0, 0], "not all 0"),
    ):
        with pytest.raises(ValueError, match=told) as error:
            Ensemble.from_adapters(tiny_model(kind), paths, rule, weights=weights)
        assert "\n" not in str(error.value)
    ensemble = Ensemble.from_adapters(tiny_model(kind), paths)
    with pytest.raises(ValueError, match="cache_implementation"):
        generated(
            ensemble,
            torch.tensor(asked(1)),
            max_new_tokens=2,
            cache_implementation="static",
            pad_token_id=0,
        )
    with pytest.raises(NotImplementedError, match="from_adapters"):
        ensemble.save_pretrained("somewhere")


def test_importing_the_package_brings_no_torch():
    code = (
        "import sys, toolkit; assert 'Ensemble' in toolkit.__all__ and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert toolkit.Ensemble is Ensemble
    with pytest.raises(AttributeError, match="no attribute 'Ensembl'"):
        toolkit.Ensembl  # noqa: B018


# -- afterwards, from cached scores --------------------------------------------------------------


@pytest.mark.parametrize("rule", ["probabilities", "token-vote"])
def test_offline_is_online(world, rule):
    kind, paths = world
    prompts, said = asked(5), asked(5, seed=1)
    with stacked(tiny_model(kind)) as stack:
        load_adapters(stack, list(map(read_adapter, paths)), width=K)
        single = score_tokens(stack, prompts, said, voices=K)
        groups = [[0, 1], [3, 2], [0, 1, 2, 3]]
        online = []
        for group in groups:
            load_adapters(stack, [read_adapter(paths[k]) for k in group], width=len(group))
            online.append(
                score(
                    stack, prompts, said, voices=1, members=len(group), combine=ENSEMBLES[rule].rule
                )[0]
            )
    T = max(map(len, said))
    log_RPT, best_RPT = np.full((K, 5, T), np.nan), np.zeros((K, 5, T), dtype=bool)
    for r, row in enumerate(single):
        for p, scored in enumerate(row):
            log_RPT[r, p, : len(said[p])], best_RPT[r, p, : len(said[p])] = (
                scored.logprobs,
                scored.best,
            )
    offline = ensemble_scores(log_RPT, groups, rule, best_RNT=best_RPT)
    np.testing.assert_allclose(offline, online, rtol=1e-5)
    copies = ensemble_scores(log_RPT, [[2, 2, 2]], "probabilities")[0]
    np.testing.assert_allclose(copies, [scored.logprob for scored in single[2]], rtol=1e-6)


def test_rules_that_need_whole_distributions_are_not_faked():
    log_RNT = np.log(np.full((2, 1, 3), 0.5))
    for rule in ("logits", "median", "gated", "vote", "mbr", "mean"):
        with pytest.raises(ValueError, match="probabilities, token-vote can"):
            ensemble_scores(log_RNT, [[0, 1]], rule)
    with pytest.raises(ValueError, match="best_RNT"):
        ensemble_scores(log_RNT, [[0, 1]], "token-vote")
    assert np.isnan(ensemble_scores(np.full((2, 1, 3), np.nan), [[0, 1]])).all()


# -- over whole answers --------------------------------------------------------------------------


def majority(answers, logprobs):
    """The definition, written another way: all maxima, then the surest on average, then the
    alphabet.
    """
    count = Counter(answers)
    tied = [a for a in count if count[a] == max(count.values())]
    sure = {a: np.mean([l for b, l in zip(answers, logprobs, strict=True) if b == a]) for a in tied}
    return min(tied, key=lambda a: (-sure[a], a))


def test_mbr_where_only_the_same_is_similar_is_the_majority_vote():
    rng = random.Random(0)
    for _ in range(300):
        answers = [rng.choice("abcd") for _ in range(rng.randint(1, 9))]
        logprobs = [-float(rng.randint(0, 3)) for _ in answers]
        expected = majority(answers, logprobs)
        assert (
            answers[mbr(answers, logprobs, similarity=SIMILARITIES["exact"])]
            == expected
            == answers[vote(answers, logprobs)]
        )
        order = rng.sample(range(len(answers)), len(answers))
        for similarity in (SIMILARITIES["exact"], SIMILARITIES["edit"]):
            here = answers[mbr(answers, logprobs, similarity=similarity)]
            assert (
                here
                == answers[
                    order[
                        mbr(
                            [answers[i] for i in order],
                            [logprobs[i] for i in order],
                            similarity=similarity,
                        )
                    ]
                ]
            )


def test_mbr_takes_the_answer_in_the_middle_of_the_others():
    answers = ["the cat sat", "the cat sat down", "the cat sat down here", "no idea"]
    # no two agree, so a vote would take the surest: "no idea" or "the cat sat"
    assert mbr(answers, [0.0, -1.0, -1.0, 0.0]) == 1
    assert vote(answers, [0.0, -1.0, -1.0, 0.0]) != 1
    assert mbr(["x"] * 3, [-3.0, -1.0, -2.0]) == 1


def test_weights_decide_a_vote_and_their_scale_does_not():
    answers, logprobs = ["a", "a", "b"], [-1.0, -1.0, -1.0]
    assert vote(answers, logprobs) in (0, 1) and vote(answers, logprobs, [0.1, 0.2, 0.9]) == 2
    assert vote(answers, logprobs, [1, 2, 9]) == 2 and vote(answers, logprobs, [0, 0, 0]) == vote(
        answers, logprobs
    )


def test_similarities_are_1_for_the_same_and_0_for_nothing_in_common():
    for name, similarity in SIMILARITIES.items():
        if name == "chrf":
            pytest.importorskip("sacrebleu")
        alike = similarity(["", "kitten", "sitting", "xyz"])
        assert np.diag(alike).tolist() == [1, 1, 1, 1] and alike.min() >= 0 and alike[1, 3] == 0
    assert SIMILARITIES["edit"](["kitten", "sitting"])[0, 1] == pytest.approx(1 - 3 / 7)


# -- evaluated -----------------------------------------------------------------------------------


def evaluated(
    embedded, tmp_path, prompts, members, rule=None, threshold=None, combine="probabilities"
):
    """Outcomes of one group, or of every adapter alone."""
    base, paths = embedded
    sha256 = tuple(read_adapter(path).sha256() for path in paths)
    single = [
        Subject("c", "replica", k, (str(path),), (sha256[k],)) for k, path in enumerate(paths)
    ]
    subjects = (
        (Subject("c", "e", 0, tuple(map(str, paths)), sha256),) if members > 1 else tuple(single)
    )
    shard = tmp_path / f"{rule}-{threshold}-{members}.parquet"
    unit = EvaluationUnit(subjects, "far", 1 if members > 1 else K, members, rule, shard, threshold)
    options = {
        "answer": "text",
        "max_new_tokens": 10,
        "top_k": 2,
        "choices": ["yes", "no"],
        "token_scores": True,
    }
    evaluate_unit(
        unit,
        base,
        prompts,
        combine=ENSEMBLES[combine].rule if members > 1 else None,
        progress=lambda share: None,
        **options,
    )
    return read_outcomes([shard]).to_pylist(), shard


def test_a_gate_is_the_first_member_at_0_and_the_ensemble_at_infinity(embedded, tmp_path):
    prompts = read_suite("embedded:far", name="far")[:12]
    alone, shard = evaluated(embedded, tmp_path, prompts, 1)
    first = alone[: len(prompts)]
    together, joint = evaluated(embedded, tmp_path, prompts, K, "probabilities")

    def said(rows):
        return [(row["text"], row["answer"], row["n_tokens"]) for row in rows]

    closed, _ = evaluated(embedded, tmp_path, prompts, K, "gated", 0.0)
    opened, _ = evaluated(embedded, tmp_path, prompts, K, "gated", math.inf)
    assert said(closed) == said(first) and [row["streams"] for row in closed] == [1] * len(prompts)
    assert said(opened) == said(together) and [row["streams"] for row in opened] == [1 + K] * len(
        prompts
    )
    np.testing.assert_allclose(
        [r["reference_logprob"] for r in opened],
        [r["reference_logprob"] for r in together],
        rtol=1e-5,
    )
    assert said(first) != said(together)
    middle = float(np.median([row["margin"] for row in first]))
    half, _ = evaluated(embedded, tmp_path, prompts, K, "gated", middle)
    for mixed, one, all_, margin in zip(
        half, first, together, [row["margin"] for row in first], strict=True
    ):
        assert mixed["text"] == (all_ if margin < middle else one)["text"] and mixed["streams"] == (
            1 + K if margin < middle else 1
        )

    # every K and every group afterwards, from the token scores of the replicas
    scores, of_group = (
        read_token_scores([shard], condition="c"),
        read_token_scores([joint], condition="c", procedure="e"),
    )
    assert scores.choices == [None, "yes", "no"] and scores.indexes == list(range(K))
    offline, online = (
        ensemble_scores(scores.log_RPCT, [range(K)])[0],
        np.nansum(of_group.log_RPCT[0], -1),
    )
    np.testing.assert_allclose(offline, online, rtol=1e-4)
    assert (offline[:, 1:].argmax(-1) == online[:, 1:].argmax(-1)).all()
    np.testing.assert_allclose(
        np.nansum(scores.log_RPCT[:, :, 0], -1).ravel(),
        [row["reference_logprob"] for row in alone],
        rtol=1e-5,
    )
    with pytest.raises(ValueError, match="two rows"):
        read_token_scores([shard, shard], condition="c")
    with pytest.raises(ValueError, match="token_scores: true"):
        read_token_scores([shard], condition="d")


def test_the_margin_is_the_least_lead_along_the_answer(world):
    kind, paths = world
    with stacked(tiny_model(kind)) as stack:
        load_adapters(stack, [read_adapter(paths[0])], width=1)
        answers = generate(stack, asked(), voices=1, eos_ids=[0], max_new_tokens=5, top_k=2)[0]
    alone = member(kind, paths[0])
    for row, answer in zip(asked(), answers, strict=True):
        text = [*row, *answer.ids]
        steps = len(answer.ids) + answer.finished
        best = (
            alone(input_ids=torch.tensor([text]))
            .logits[0, len(row) - 1 : len(row) - 1 + steps]
            .topk(2)
            .values
        )
        assert answer.margin == pytest.approx(float((best[:, 0] - best[:, 1]).min()), abs=1e-4)


# -- in lm-eval ----------------------------------------------------------------------------------


def test_lm_eval_takes_an_ensemble(embedded, tmp_path):
    """Log-likelihoods and answers of lm-eval are those of ftk."""
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    base, paths = embedded
    prompts = read_suite("embedded:far", name="far")[:6]
    rows = [
        {"question": p.prompt, "answer": p.reference, "choices": [p.reference, "no", "the cat"]}
        for p in prompts
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "rows.jsonl"}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
    (tmp_path / "choice.yaml").write_text(f"""task: choice
{shared}
output_type: multiple_choice
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
""")
    (tmp_path / "speak.yaml").write_text(f"""task: speak
{shared}
output_type: generate_until
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["~"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
""")
    ensemble = toolkit.Ensemble.from_adapters("embedded", paths)
    model = HFLM(pretrained=ensemble, tokenizer=ensemble.tokenizer, batch_size=4)
    found = lm_eval.simple_evaluate(
        model=model,
        tasks=["choice", "speak"],
        task_manager=TaskManager(include_path=str(tmp_path)),
        log_samples=True,
        bootstrap_iters=0,
    )
    assert set(found["results"]) == {"choice", "speak"}
    with stacked(base.model) as stack:
        load_adapters(stack, list(map(read_adapter, paths)), width=K)
        options = {"voices": 1, "members": K, "combine": ENSEMBLES["probabilities"].rule}
        for sample in found["samples"]["choice"]:
            for (context, continuation), (logprob, _) in zip(
                (request for request in sample["arguments"]),
                (response[0] for response in sample["resps"]),
                strict=True,
            ):
                context_ids, ids = model._encode_pair(context, continuation)
                assert logprob == pytest.approx(
                    score(stack, [context_ids], [ids], **options)[0][0], rel=1e-4
                )
        for sample in found["samples"]["speak"]:
            ids = model.tok_encode(sample["arguments"][0][0])
            own = generate(
                stack, [ids], **options, eos_ids=base.eos_ids, max_new_tokens=8, top_k=2
            )[0][0]
            assert (
                sample["resps"][0][0]
                == base.tokenizer.decode(own.ids, skip_special_tokens=True).split("~")[0]
            )


# #
# -------------------------------------------------------------------------------------------------
# loose adapters from the shell


@pytest.fixture
def suite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": p.id, "prompt": p.prompt, "reference": p.reference}
        for p in read_suite("embedded:typical", name="typical")[:3]
    ]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "suite.jsonl"


def ftk(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments])


@pytest.mark.parametrize(
    ("asked", "label", "groups"),
    [
        (["--ensemble", "logits", "-k", 2], "logits-k2", 2),
        (["--ensemble", "mbr", "--set", "similarity=edit"], "mbr-edit-k4", 1),
        (["--ensemble", "gated", "--set", "threshold=0.5", "-k", 3], "gated-threshold0.5-k3", 1),
    ],
)
def test_loose_adapters_answer_in_groups(embedded, suite, asked, label, groups):
    _, adapters = embedded
    common = (
        "--prompts",
        suite,
        "--base",
        "embedded",
        "--max-new-tokens",
        4,
        "--workers",
        1,
        "--out",
        "out",
        "--json",
    )
    result = ftk("evaluate", *adapters, *common, *asked)
    assert result.exit_code == cli.DONE, result.stderr
    procedures = json.loads(result.stdout)["results"]["conditions"][0]["procedures"]
    assert [(one["label"], one["n_runs"]) for one in procedures] == [
        ("replica", 4),
        (label, groups),
    ]
    # again: nothing but what is missing
    assert ftk("evaluate", *adapters, *common, *asked).exit_code == cli.DONE


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (["-k", 2], "-k and --set say how an --ensemble is made"),
        (["--ensemble", "logits", "-k", 5], "4 adapters are fewer than a group of 5"),
        (["--ensemble", "mbr"], "--ensemble mbr: `ensemble: mbr` goes with `similarity`"),
        (
            ["--ensemble", "vote", "--set", "wieghts=confidence"],
            "--ensemble vote: unknown setting; did you mean 'weights'?",
        ),
        (["--ensemble", "vote", "--set", "weights=accuracy:x"], "needs a second suite"),
        (["--ensemble", "vote", "--set", "density=0.5"], "'density' belongs to"),
    ],
)
def test_ensembles_that_cannot_be_are_one_line(embedded, suite, asked, told):
    result = ftk(
        "evaluate", *embedded[1], "--prompts", suite, "--base", "embedded", "--out", "no", *asked
    )
    assert (
        result.exit_code != cli.DONE and told in result.stderr and result.stderr.count("\n") == 1
    ), result.stderr


def test_populations_of_different_sizes_need_a_size_of_groups(tmp_path):
    paths = {"a": [tmp_path / "0"] * 4, "b": [tmp_path / "0"] * 3}
    with pytest.raises(RunError, match="b: 3 adapters, others have more; say with -k"):
        _of_groups({"ensemble": "vote", "k": None}, paths)
    assert _of_groups({"ensemble": "vote", "k": 3}, paths).label == "vote-k3"
