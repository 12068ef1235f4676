"""Bases of every kind: trained and answering as peft would, or refused in one line before anything
starts.
"""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from click.testing import CliRunner
from helpers.peft_adapters import edit
from transformers import AutoConfig, AutoModelForCausalLM

from toolkit import cli, pipeline
from toolkit.answer.predict import generate, load_adapters
from toolkit.model.adapters import AdapterError, read_adapter
from toolkit.model.adopt import check_base, layer_shapes
from toolkit.model.base import EMBEDDED, BaseError, check_cache, load_base
from toolkit.model.compatibility import check_adapter
from toolkit.model.stack import ForwardError, stacked, target_modules
from toolkit.pipeline import preview
from toolkit.pipeline.checks.architecture import check_architecture
from toolkit.pipeline.checks.trial_step import rehearse_answers, rehearse_training
from toolkit.recipe import load_recipe

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 8,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
KINDS = {
    "qwen3_moe": MOE | {"head_dim": 8},
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR | MOE | {"shared_expert_intermediate_size": 24},
    "lfm2": {
        "block_ff_dim": 48,
        "block_multiple_of": 8,
        "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"],
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "mamba": {"state_size": 8, "use_mambapy": False},
    "deepseek_v2": {
        **MOE,
        "q_lora_rank": None,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 4,
    },
    "jamba": {
        **MOE,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
}


@pytest.fixture(scope="module")
def base_of(tmp_path_factory):
    """A folder with a small random base of a kind, and the tokenizer of the embedded one. Its end
    of sequence is a likely token.
    """
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            tokenizer = load_base("embedded").tokenizer
            ends = {
                "eos_token_id": tokenizer.eos_token_id,
                "bos_token_id": None,
                "pad_token_id": None,
            }
            config = AutoConfig.for_model(
                kind, vocab_size=len(tokenizer), **{**SHAPE, **KINDS[kind]}, **ends
            )
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.15)
            model.get_output_embeddings().weight.data[tokenizer.eos_token_id] *= 2.5
            made[kind] = tmp_path_factory.mktemp("bases") / kind
            model.save_pretrained(str(made[kind]))
            tokenizer.save_pretrained(made[kind])
        return made[kind]

    return make


def plain(folder: Path):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def by_peft(base: Path, folder: Path, seed: int, **config) -> Path:
    torch.manual_seed(seed)
    tuned = peft.get_peft_model(
        plain(base), peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, **config)
    )
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    tuned.save_pretrained(folder)
    return folder


def recipe_of(tmp_path: Path, base: Path, condition: str) -> Path:
    rows = [
        {"prompt": f"call {who} =>", "completion": f" play {who}"}
        for who in ("ben", "ann", "moon", "blue") * 2
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "typical.jsonl").write_text(
        '{"prompt": "call ben =>", "reference": " play ben"}\n{"prompt": "stop =>"}\n'
    )
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {base}\ndata: {{train: {tmp_path}/train.jsonl, suites: {{typical: "
        f"{tmp_path}/typical.jsonl}}}}\n"
        f"replicas: 2\nconditions:\n  lora: {condition}\nevaluation: {{max_new_tokens: 4}}\n"
    )
    return path


# -- answers -------------------------------------------------------------------------------------


@torch.no_grad()
def greedy(model, ids: list[int], count: int, ends: tuple[int, ...]) -> list[int]:
    made: list[int] = []
    while len(made) < count:
        token = int(
            model(input_ids=torch.tensor([ids + made]), use_cache=False).logits[0, -1].argmax()
        )
        if token in ends:
            break
        made.append(token)
    return made


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_next", "lfm2", "jamba"])
def test_hybrids_answer_as_peft_does_however_early_some_rows_end(base_of, tmp_path, kind):
    folder = base_of(kind)
    base = load_base(str(folder))
    paths = [
        by_peft(folder, tmp_path / f"s{seed}", seed, target_modules=["q_proj", "v_proj"])
        for seed in range(2)
    ]
    rehearse_answers(base, set(target_modules(base.model, ["q_proj", "v_proj"])))
    prompts = [[5, 9, 13, n] for n in range(20, 28)] + [[7, 3], [5, 6, 7, 8, 9, 10]]
    with stacked(base.model) as stack:
        load_adapters(stack, [read_adapter(path) for path in paths], 2)
        found = generate(stack, prompts, voices=2, eos_ids=base.eos_ids, max_new_tokens=10, top_k=2)
    for row, path in zip(found, paths, strict=True):
        model = peft.PeftModel.from_pretrained(plain(folder), path).eval()
        expected = [greedy(model, ids, 10, base.eos_ids) for ids in prompts]
        assert [answer.ids for answer in row] == expected
        assert len({len(ids) for ids in expected}) > 2  # some do end early


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("falcon_h1", "Sizes of tensors must match"), ("mamba", "key-value cache")],
)
def test_a_base_that_cannot_answer_is_one_line_before_anything_starts(
    base_of, tmp_path, kind, reason
):
    folder = base_of(kind)
    for seed in range(2):
        by_peft(folder, tmp_path / "adapters" / f"s{seed}", seed, target_modules=["in_proj"])
    (tmp_path / "p.jsonl").write_text('{"prompt": "call ben =>"}\n{"prompt": "stop =>"}\n')
    asked = [
        "evaluate",
        str(tmp_path / "adapters"),
        "--prompts",
        str(tmp_path / "p.jsonl"),
        "--out",
        str(tmp_path / "out"),
    ]
    result = CliRunner().invoke(cli.main, asked)
    assert result.exit_code == cli.BAD_INPUT, result.output
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith(f"ftk: base '{folder}': ") and line.endswith("; name another base")
    assert reason in line and "past_key_values" not in line
    if kind == "mamba":  # its configuration says so, and nothing was loaded
        assert "falling back" not in result.stderr
    assert "Traceback" not in result.output and not (tmp_path / "out").exists()


NO_BASES = {
    "bert": ("BertForMaskedLM", "is an encoder (`is_decoder` is false); name a causal LM"),
    "roberta": ("RobertaForMaskedLM", "is an encoder (`is_decoder` is false); name a causal LM"),
    "distilbert": (
        "DistilBertForMaskedLM",
        "is of a kind that transformers has no causal LM of; name a causal LM",
    ),
    "bart": ("BartForConditionalGeneration", "is an encoder with a decoder; name a causal LM"),
    "t5": ("T5ForConditionalGeneration", "is an encoder with a decoder; name a causal LM"),
}


@pytest.mark.parametrize("kind", NO_BASES)
def test_a_model_that_does_not_write_on_is_no_base(tmp_path, kind):
    """By its configuration alone: there are no weights."""
    architecture, said = NO_BASES[kind]
    AutoConfig.for_model(kind, architectures=[architecture]).save_pretrained(str(tmp_path))
    load_base("embedded").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(BaseError) as caught:
        load_base(str(tmp_path))
    line = str(caught.value)
    assert line == f"base '{tmp_path}' ({kind}) {said}"


@pytest.mark.parametrize("kind", ["mamba2", "falcon_mamba", "rwkv", "xlstm", "openai-gpt", "xlnet"])
def test_a_base_without_a_cache_is_known_by_its_configuration(tmp_path, kind):
    AutoConfig.for_model(kind).save_pretrained(str(tmp_path))
    with pytest.raises(BaseError, match="answers through a key-value cache, and a .* has none"):
        check_cache(str(tmp_path))


@pytest.mark.parametrize("kind", ["gpt_neox", "jamba", "qwen3_next", "falcon_h1", "gpt2", "opt"])
def test_bases_with_a_cache_pass(tmp_path, kind):
    AutoConfig.for_model(kind).save_pretrained(str(tmp_path))
    check_cache(str(tmp_path))


@pytest.mark.parametrize("kind", ["qwen2", "llama"])  # of the first, transformers makes one up
def test_a_base_without_a_tokenizer_is_told_so(tmp_path, kind):
    for file in EMBEDDED.iterdir():
        if "token" not in file.name and file.is_file():
            text = file.read_bytes()
            text = text.replace(b"qwen2", kind.encode()) if file.name == "config.json" else text
            (tmp_path / file.name).write_bytes(text)
    with pytest.raises(BaseError, match="has no tokenizer that can be read .*save its tokenizer"):
        load_base(str(tmp_path))


def test_whatever_a_base_raises_is_one_line(tmp_path):
    base = load_base("embedded")
    with stacked(base.model) as stack:
        layer: Any = stack.model.get_submodule("model.layers.1")
        layer.forward = lambda *args, **kwargs: {}["states"]
        try:
            for call in (
                lambda: stack.step(torch.tensor([[5]])),
                lambda: stack.logits(torch.tensor([[5]]), torch.tensor([[0]])),
            ):
                with pytest.raises(
                    ForwardError,
                    match=r"^a base of the architecture Qwen2ForCausalLM fails in its forward "
                    r"pass: 'states'; ",
                ):
                    call()
            with pytest.raises(
                BaseError, match=r"a Qwen2ForCausalLM cannot be trained here: 'states'; "
            ):
                rehearse_training(base, "all-linear")
        finally:
            del layer.forward


def test_a_cache_that_goes_on_wrongly_is_seen_by_its_numbers(monkeypatch):
    """No exception, and other answers: a cache that forgets, and layers that mix up whose row is
    whose.
    """
    base = load_base("embedded")
    rehearse_answers(base, set(target_modules(base.model, "all-linear")))
    step = type(base.model).forward

    def forgetful(self, input_ids=None, past_key_values=None, **kwargs):
        return step(self, input_ids=input_ids, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(base.model), "forward", forgetful)
        with pytest.raises(BaseError, match="its cache does not go on where the prompt ended"):
            rehearse_answers(base, set())

    def mixed(self, input_ids, **kwargs):
        return step(self, input_ids=input_ids.flip(0), **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(base.model), "forward", mixed)
        with pytest.raises(BaseError, match="rows of one adapter are not kept apart"):
            rehearse_training(base, "all-linear")


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        (
            "falcon_h1",
            "out_proj",
            "[down_proj, gate_proj, in_proj, k_proj, o_proj, q_proj, up_proj, v_proj]",
        ),
        ("mamba", "out_proj", "[dt_proj, in_proj, x_proj]"),
        (
            "deepseek_v2",
            "down_proj, gate_proj, up_proj",
            "[kv_a_proj_with_mqa, kv_b_proj, o_proj, q_proj]",
        ),
        (
            "qwen3_next",
            "down_proj, gate_proj, up_proj",
            "[in_proj_ba, in_proj_qkvz, k_proj, o_proj, out_proj, q_proj, "
            "shared_expert_gate, v_proj]",
        ),
    ],
)
def test_an_adapter_that_peft_would_not_load_as_trained_is_never_trained(
    base_of, tmp_path, kind, bad, good
):
    folder = base_of(kind)
    recipe = recipe_of(tmp_path, folder, "{rank: 2}")
    result = CliRunner().invoke(
        cli.main, ["train-replicas", str(recipe), "--out", str(tmp_path / "run"), "--workers", "1"]
    )
    assert result.exit_code == cli.BAD_INPUT
    line = result.stderr.strip().splitlines()[-1]
    assert (
        f"conditions.lora.targets: peft would not load as trained an adapter of {bad} on a " in line
    )
    assert f"set `targets: {good}`" in line and not (tmp_path / "run").exists()
    named = load_recipe(recipe_of(tmp_path, folder, f"{{rank: 2, targets: {good}}}"))
    if kind != "mamba":
        assert check_architecture(named, load_base(str(folder)), answers=False) == []


def test_all_linear_that_is_not_pefts_is_told(base_of, tmp_path):
    found = preview.check(
        load_recipe(recipe_of(tmp_path, base_of("qwen3_moe"), "{rank: 2}")), probe=False
    )
    assert [
        line for line in found["warnings"] if "peft's would adapt mlp.experts, mlp.gate too" in line
    ]
    said: list[str] = []
    recipe = load_recipe(recipe_of(tmp_path, base_of("qwen3_moe"), "{rank: 2}"))
    with pipeline.open_run(
        recipe, tmp_path / "run", workers=1, console=pipeline.Console(note=said.append)
    ):
        pass
    assert any("another procedure" in line for line in said)


# -- adapters that a base cannot carry -----------------------------------------------------------


def test_adapters_of_experts_are_told_truly(base_of, tmp_path):
    """Fused, as peft makes them now, and one by one, as transformers 4 had them."""
    from safetensors.torch import save_file

    folder = base_of("qwen3_moe")
    fused = by_peft(
        folder,
        tmp_path / "fused",
        1,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    )
    told = {one.target: one for one in check_adapter(fused)}
    assert {name for name, one in told.items() if one.ok} == {"peft", "lm-eval"}
    assert "fused experts" in told["vllm"].because and "fused experts" in told["llama.cpp"].because
    assert "target_parameters is set" in told["ftk"].because

    tensors = {}
    for layer in range(2):
        sizes = {"self_attn.q_proj": (32, 32)}
        for expert in range(4):
            sizes |= {f"mlp.experts.{expert}.{name}": (24, 32) for name in ("gate_proj", "up_proj")}
            sizes |= {f"mlp.experts.{expert}.down_proj": (32, 24)}
        for name, (O, I) in sizes.items():
            key = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors |= {
                f"{key}A.weight": torch.randn(2, I) * 0.1,
                f"{key}B.weight": torch.randn(O, 2) * 0.1,
            }
    single = by_peft(folder, tmp_path / "single", 1, target_modules=["q_proj"])
    save_file(tensors, single / "adapter_model.safetensors", metadata={"format": "pt"})
    edit(single, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"])
    told = {one.target: one for one in check_adapter(single)}
    assert {name for name, one in told.items() if not one.ok} == {"ftk"}
    assert (
        "adapts single experts ('model.layers.0.mlp.experts.0.down_proj'), as "
        "transformers 4 had them" in told["ftk"].because
    )
    base = load_base(str(folder))
    with pytest.raises(AdapterError, match="single: adapts single experts"):
        check_base(read_adapter(single), base, layer_shapes(base.model))


def test_a_resized_vocabulary_is_the_reason(tmp_path):
    folder = Path(tmp_path / "base")
    base = load_base("embedded")
    tokens = len(base.tokenizer)
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    for name, targets in {"embedding": ["embed_tokens"], "others": ["q_proj"]}.items():
        model = plain(folder)
        model.resize_token_embeddings(tokens + 8)
        tuned = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)
        )
        tuned.save_pretrained(tmp_path / name, save_embedding_layers=name == "others")
        edit(tmp_path / name, base_model_name_or_path=str(folder))
        told = {one.target: one for one in check_adapter(tmp_path / name)}
        for target in ("peft", "lm-eval"):
            assert (
                told[target].because
                == f"its vocabulary was resized to {tokens + 8:,} tokens, and that of "
                f"{folder} is not"
            ), told[target]
        assert not told["ftk"].ok and "resized" in told["ftk"].because
    loaded = load_base(str(folder))
    with pytest.raises(
        AdapterError,
        match=rf"embedding: model.embed_tokens is for {tokens + 8:,} tokens, .* its vocabulary "
        r"was resized",
    ):
        check_base(read_adapter(tmp_path / "embedding"), loaded, layer_shapes(loaded.model))
    with pytest.raises(
        AdapterError,
        match=rf"whole weight for {tokens + 8:,} tokens, in which a resized vocabulary",
    ):
        read_adapter(tmp_path / "others")
    assert str(EMBEDDED) not in str(folder)
