"""LoRA on the token embedding: read as peft means it, merged as any change, and answered on the
stack as peft answers, tied or not.
"""

import peft
import pytest
import torch
from helpers.tiny import VOCABULARY, tiny_model
from safetensors.torch import load_file, save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from toolkit.answer.predict import load_adapters
from toolkit.merging import merge_adapters, merge_into_base
from toolkit.merging.mergekit_yaml import config_of
from toolkit.model import delta
from toolkit.model.adapters import WEIGHTS, AdapterError, read_adapter
from toolkit.model.adopt import check_base, layer_shapes
from toolkit.model.base import Base
from toolkit.model.stack import stacked

pytestmark = pytest.mark.filterwarnings("ignore")  # peft comments on tied weights

TARGETS = {
    "qwen2": ["embed_tokens", "q_proj"],
    "llama": ["embed_tokens", "down_proj"],
    "gpt2": ["wte", "c_attn"],
}
IDS = torch.arange(24).reshape(2, 12) % VOCABULARY


def gemma():
    """A model that multiplies what it looks up."""
    config = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gemma3ForCausalLM(
            Gemma3TextConfig(**config, num_attention_heads=4, num_key_value_heads=2)
        ).eval()


def model_of(kind, untied=False):
    model = gemma() if kind == "gemma" else tiny_model(kind)
    if untied:
        head = torch.nn.Linear(32, VOCABULARY, bias=False)
        head.weight = torch.nn.Parameter(
            model.get_input_embeddings().get_parameter("weight").detach().clone()
        )
        model.set_output_embeddings(head)
        model.config.tie_word_embeddings = False
    return model


def trained(folder, kind, seed, **config):
    """An adapter that peft made and saved, with random factors."""
    torch.manual_seed(seed)
    options = {
        "r": 3,
        "lora_alpha": 6,
        "target_modules": TARGETS.get(kind, ["embed_tokens"]),
        "task_type": "CAUSAL_LM",
        **config,
    }
    model = peft.get_peft_model(model_of(kind), peft.LoraConfig(**options))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def in_peft(kind, path):
    return logits(peft.PeftModel.from_pretrained(model_of(kind), path))


def on_the_stack(model, paths):
    with stacked(model) as stack, torch.inference_mode():
        load_adapters(stack, [read_adapter(path) for path in paths], len(paths))
        return stack.model(input_ids=IDS.repeat(len(paths), 1)).logits.view(
            len(paths), *IDS.shape, -1
        )


def changes(path):
    return {name: delta.dense(factors) for name, factors in read_adapter(path).items()}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"embed_tokens": 2, "wte": 5}, "alpha_pattern": {"wte": 1}},
    ],
)
@pytest.mark.parametrize("kind", TARGETS)
def test_the_change_is_that_of_peft(tmp_path, kind, config):
    trained(tmp_path, kind, 0, **config)
    model = peft.PeftModel.from_pretrained(model_of(kind), tmp_path)
    found = 0
    for name, module in model.get_submodule("base_model.model").named_modules():
        if isinstance(module, peft.tuners.lora.Embedding):
            got = read_adapter(tmp_path).modules[name]
            assert got.embedding and (got.out_features, got.in_features) == (32, VOCABULARY)
            torch.testing.assert_close(
                changes(tmp_path)[name].float().T,
                module.get_delta_weight("default").detach(),
                rtol=1e-5,
                atol=1e-6,
            )
            found += 1
    assert found == 1


@pytest.mark.parametrize("kind", [*TARGETS, "gemma"])
def test_replicas_on_the_stack_answer_as_in_peft(tmp_path, kind):
    """Together in one batch; and the base is as it was afterwards. All of these tie the head: peft
    leaves it alone, and so do we.
    """
    paths = [trained(tmp_path / f"{k}", kind, k, r=2 + k) for k in range(3)]
    model = model_of(kind)
    plain = logits(model)
    got = on_the_stack(model, paths)
    for path, one in zip(paths, got, strict=True):
        want = in_peft(kind, path)
        torch.testing.assert_close(one, want, rtol=1e-4, atol=1e-4)
        assert (want - plain).abs().max() > 0.05
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("mean", {}), ("ties", {"density": 0.5}), ("geometric_median", {}), ("dare", {})],
)
@pytest.mark.parametrize("kind", TARGETS)
def test_a_merge_loads_in_peft_with_our_logits(tmp_path, kind, method, parameters):
    paths = [trained(tmp_path / f"{k}", kind, k) for k in range(3)]
    merge_adapters(paths, tmp_path / "out", method=method, **parameters)
    if method == "mean":
        for name, D in changes(tmp_path / "out").items():
            want = sum((changes(path)[name] for path in paths), torch.zeros(())) / 3
            torch.testing.assert_close(D, want, rtol=0, atol=2e-6 * float(want.norm()))
    torch.testing.assert_close(
        on_the_stack(model_of(kind), [tmp_path / "out"])[0],
        in_peft(kind, tmp_path / "out"),
        rtol=1e-4,
        atol=2e-4,
    )


def test_a_full_model_has_the_change_and_a_tied_head_refuses_it(tmp_path):
    from helpers.bases import model_folder

    base = model_folder(tmp_path / "base")
    path = trained(tmp_path / "a", "qwen2", 0)
    with pytest.raises(
        AdapterError, match="model.embed_tokens shares its weight with lm_head.weight"
    ):
        merge_into_base([path], tmp_path / "out", method="mean", base=str(base))
    model_of("qwen2", untied=True).save_pretrained(base)
    merge_into_base([path], tmp_path / "out", method="mean", base=str(base))
    merged = type(model_of("qwen2")).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(merged), in_peft("qwen2", path), rtol=1e-4, atol=2e-4)


def edit(path, change):
    tensors = load_file(path / WEIGHTS)
    change(tensors)
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})


def test_copies_of_base_weights_must_agree(tmp_path):
    """peft writes the embedding of the base beside the factors, and would put it in place of the
    base's.
    """
    key = "base_model.model.model.embed_tokens.base_layer.weight"
    paths = [trained(tmp_path / f"{k}", "llama", k) for k in range(2)]
    assert read_adapter(paths[0]).copies == ["model.embed_tokens"]
    edit(paths[0], lambda tensors: tensors.pop(key))  # one without: as another trainer writes it
    merge_adapters(paths, tmp_path / "out", method="mean")
    assert torch.equal(
        load_file(tmp_path / "out" / WEIGHTS)[key], model_of("llama").get_input_embeddings().weight
    )

    edit(paths[1], lambda tensors: tensors[key].mul_(2))
    model = model_of("llama")
    with pytest.raises(AdapterError, match="embed_tokens that is not that of the base"):
        on_the_stack(model, paths)
    with pytest.raises(AdapterError, match="stand on different bases"):
        merge_adapters([tmp_path / "out", paths[1]], tmp_path / "no", method="mean")
    edit(paths[1], lambda tensors: tensors.update({key: torch.zeros(VOCABULARY + 1, 32)}))
    with pytest.raises(AdapterError, match="which its factors do not fit"):
        read_adapter(paths[1])


def test_other_embeddings_are_refused_on_a_base(tmp_path):
    """Positions are looked up once for all rows of a batch: no replica can have its own."""
    path = trained(tmp_path, "gpt2", 0, target_modules=["wpe"])
    model = model_of("gpt2")
    base = Base("tiny", "tiny", None, model, None, (0,), 0, "", "")
    assert "transformer.wte" in layer_shapes(base.model) and layer_shapes(base.model)[
        "transformer.wte"
    ] == (32, VOCABULARY)
    with pytest.raises(AdapterError, match="neither linear nor the token embedding"):
        check_base(read_adapter(path), base, layer_shapes(base.model))
    with pytest.raises(ValueError, match="no linear layer 'transformer.wpe'"):
        on_the_stack(model, [path])


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [1]}],
)
def test_what_is_not_a_change_of_the_embedding_alone_is_refused(tmp_path, config):
    targets = {"target_modules": ["q_proj"]} if "trainable_token_indices" in config else {}
    with pytest.raises(AdapterError, match=next(iter(config))):
        read_adapter(trained(tmp_path, "llama", 0, **config, **targets))


def test_mergekit_is_not_told_to_change_a_tied_head(tmp_path):
    for name, targets in (("plain", ["q_proj"]), ("embedding", ["embed_tokens"])):
        path = trained(tmp_path / name / "in", "llama", 0, target_modules=targets)
        merge_adapters([path], tmp_path / name / "out", method="mean", base="org/base")
        assert (config_of(tmp_path / name / "out") is None) == (name == "embedding")
