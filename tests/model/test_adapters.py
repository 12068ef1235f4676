"""Adapter folders: what peft writes is read exactly or refused, what we write is what peft
reads.
"""

import json
import math
import os
import shutil
from typing import Any

import peft
import pytest
import torch
from helpers.tiny import tiny_model
from safetensors.torch import load_file, save_file

from toolkit.model import adapters, delta
from toolkit.model.adapters import (
    CONFIG,
    WEIGHTS,
    AdapterError,
    adapter_paths,
    read_adapter,
    write_adapter,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # peft comments on patterns that match nothing

TARGETS = {
    "gpt2": ["c_attn", "c_fc"],
    "gpt-neox": ["query_key_value", "dense"],
    "llama": ["q_proj", "v_proj", "down_proj"],
}
TARGETS["qwen2"] = TARGETS["qwen3"] = TARGETS["llama"]


def peft_folder(path, kind="llama", seed=0, r=4, **config):
    """An adapter that peft made and saved, with random factors; returns the peft model."""
    torch.manual_seed(seed)
    config = {"target_modules": TARGETS[kind], "task_type": "CAUSAL_LM", "lora_alpha": 6, **config}
    model = peft.get_peft_model(tiny_model(kind), peft.LoraConfig(r=r, **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    return model


def dense_of_peft(model):
    """peft's own dW per module, as [O, I]."""
    layers: dict[str, Any] = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    changes = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    return {
        name: change.T if layers[name].fan_in_fan_out else change
        for name, change in changes.items()
    }


@pytest.mark.parametrize("kind", list(TARGETS))
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {
            "rank_pattern": {"0.self_attn.q_proj": 2, "h.1.mlp.c_fc": 3},
            "alpha_pattern": {r"\d\.(self_)?attn.*": 32},
        },
        {
            "use_rslora": True,
            "rank_pattern": {"v_proj": 7, "dense": 5},
            "alpha_pattern": {"_proj": 9, "v_proj": 1, "c_attn": 3},
        },
        {"target_modules": "all-linear"},
    ],
)
def test_scales_are_those_of_peft(tmp_path, kind, config):
    if kind.startswith("gpt") and config.get("target_modules"):
        config = {**config, "exclude_modules": ["lm_head", "embed_out"]}
    model = peft_folder(tmp_path, kind, **config)
    adapter = read_adapter(tmp_path)
    want = dense_of_peft(model)
    assert list(adapter.modules) == sorted(want)
    for name, factors in adapter.items():
        torch.testing.assert_close(delta.dense(factors).float(), want[name], rtol=1e-5, atol=1e-7)
        assert (adapter.modules[name].out_features, adapter.modules[name].in_features) == tuple(
            want[name].shape
        )


def test_regular_expressions_as_targets(tmp_path):
    peft_folder(tmp_path, target_modules=r".*\.1\.self_attn\.[qk]_proj")
    assert list(read_adapter(tmp_path).modules) == [
        "model.layers.1.self_attn.k_proj",
        "model.layers.1.self_attn.q_proj",
    ]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True, "target_modules": ["q_proj"]}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"trainable_token_indices": [1, 2]}, "token"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ],
)
def test_what_is_not_plain_lora_is_refused(tmp_path, config, word):
    kind = "qwen2" if config.get("lora_bias") else "llama"  # qwen2's q_proj has a bias
    peft_folder(tmp_path, kind, **config)
    with pytest.raises(AdapterError, match=word) as error:
        read_adapter(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_trained_biases_are_refused(tmp_path):
    peft_folder(tmp_path, "qwen2", bias="all")
    with pytest.raises(AdapterError, match="bias='none'"):
        read_adapter(tmp_path)


def test_bias_without_bias_tensors_is_read(tmp_path):
    peft_folder(tmp_path, "llama", bias="lora_only")  # llama has no biases to save
    assert read_adapter(tmp_path).modules


def test_half_an_embedding_is_refused(tmp_path):
    peft_folder(tmp_path).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = torch.zeros(4, 64)
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="embed_tokens has only lora_A"):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (
            peft.IA3Config(
                task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]
            ),
            "IA3",
        ),
        (peft.LoHaConfig(task_type="CAUSAL_LM", target_modules=["k_proj"], r=2), "LOHA"),
        (peft.VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2), "VERA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_tuners_are_refused(tmp_path, config, kind):
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=kind):
        read_adapter(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"kasa_config": {"beta": 1}},
        {"alora_invocation_tokens": [1]},
        {"use_qalora": True},
        {"target_parameters": ["mlp.experts"]},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"an_option_of_the_future": {"x": 1}},
        {"r": 3},
        {"rank_pattern": {"q_proj": 2}},
        {"lora_alpha": None},
        {"lora_alpha": float("nan")},
        {"alpha_pattern": {"(": 2}},
    ],
    ids=str,
)
def test_configurations_that_cannot_be_treated_are_refused(tmp_path, change):
    peft_folder(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(AdapterError) as error:
        read_adapter(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def damage_shape(folder):
    tensors = load_file(folder / WEIGHTS)
    key = sorted(tensors)[0]
    tensors[key] = tensors[key][:2].contiguous()
    save_file(tensors, folder / WEIGHTS)


def drop_b(folder):
    tensors = load_file(folder / WEIGHTS)
    del tensors[next(key for key in tensors if "lora_B" in key)]
    save_file(tensors, folder / WEIGHTS)


def other_key(folder):
    save_file(
        {**load_file(folder / WEIGHTS), "base_model.model.model.norm.weight": torch.ones(4)},
        folder / WEIGHTS,
    )


def cut(folder):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


DAMAGE = {
    "no weights": lambda folder: (folder / WEIGHTS).unlink(),
    "no configuration": lambda folder: (folder / CONFIG).unlink(),
    "no folder": shutil.rmtree,
    "half a file": cut,
    "no tensors": lambda folder: save_file({}, folder / WEIGHTS),
    "not JSON": lambda folder: (folder / CONFIG).write_text("{"),
    "a list": lambda folder: (folder / CONFIG).write_text("[]"),
    "integers": lambda folder: save_file(
        {k: v.int() for k, v in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS
    ),
    "wrong rank": damage_shape,
    "no B": drop_b,
    "another tensor": other_key,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders_are_refused(tmp_path, damage):
    folder = tmp_path / "adapter"
    peft_folder(folder)
    DAMAGE[damage](folder)
    with pytest.raises(AdapterError) as error:
        read_adapter(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_values_that_are_not_finite_are_refused(tmp_path):
    peft_folder(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = sorted(tensors)[0]
    tensors[name][0, 0] = math.nan
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="not finite"):
        dict(read_adapter(tmp_path).items())
    with pytest.raises(AdapterError, match="not finite"):
        write_adapter(
            tmp_path / "out",
            {"m": (tensors[name], torch.zeros(4, 4))},
            r=4,
            alpha=4,
            target_modules=["m"],
            base=None,
        )
    assert not (tmp_path / "out").exists()


def some_factors(seed=0, r=3):
    generator = torch.Generator().manual_seed(seed)
    stack = torch.randn(5, r, 32, generator=generator), torch.randn(5, 32, r, generator=generator)
    return {
        "model.layers.0.self_attn.q_proj": (stack[0][1], stack[1][1]),
        "model.layers.1.self_attn.q_proj": (stack[0][2], stack[1][2]),
    }


def write(path, factors=None, **changes):
    factors = some_factors() if factors is None else factors
    return write_adapter(
        path,
        factors,
        **{"r": 3, "alpha": 6, "target_modules": ["q_proj"], "base": "org/base", **changes},
    )


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_written_folders_round_trip_and_load_in_peft(tmp_path, dtype, rslora):
    factors = {name: (A.to(dtype), B.to(dtype)) for name, (A, B) in some_factors().items()}
    digest = write(tmp_path / "a", factors, use_rslora=rslora, config={"lora_dropout": 0.1})
    adapter = read_adapter(tmp_path / "a")
    assert adapter.sha256() == digest and adapter.base == "org/base" and adapter.rank == 3
    for name, (A, B, scale) in adapter.items():
        assert torch.equal(A, factors[name][0].to(A.dtype)) and torch.equal(
            B, factors[name][1].to(B.dtype)
        )
        assert A.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert scale == (6 / math.sqrt(3) if rslora else 2)
    model = peft.PeftModel.from_pretrained(tiny_model("llama"), tmp_path / "a")
    read = model.peft_config["default"]
    assert isinstance(read, peft.LoraConfig) and read.lora_dropout == 0.1
    loaded = dense_of_peft(model)
    for name, one in adapter.items():
        torch.testing.assert_close(loaded[name].double(), delta.dense(one), rtol=1e-5, atol=1e-5)


def test_same_tensors_same_bytes(tmp_path):
    names = list(some_factors())
    reverse = {name: some_factors()[name] for name in reversed(names)}
    assert write(tmp_path / "a") == write(tmp_path / "b", reverse)
    assert (tmp_path / "a" / CONFIG).read_bytes() == (tmp_path / "b" / CONFIG).read_bytes()


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    write(tmp_path / "old")
    before = {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    for target in ("new", "old"):
        with pytest.raises(OSError, match="No space left") as refused:
            write(tmp_path / target, some_factors(1))
        assert (refused.value.errno, refused.value.filename) == (28, str(tmp_path / target))
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {file.name: file.read_bytes() for file in (tmp_path / "old").iterdir()} == before


def test_a_crash_while_replacing_leaves_no_mixed_adapter(tmp_path, monkeypatch):
    """Old weights under a new configuration, or the reverse, would be another adapter in
    silence.
    """
    write(tmp_path / "a", extra_files={"replica.json": "{}"})
    done = []

    def crash(source, target, replace=os.replace):
        if done:
            raise OSError("the machine stopped")
        done.append(replace(source, target))

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="stopped"):
        write(tmp_path / "a", some_factors(1), extra_files={"replica.json": "{}"})
    # without configuration it is no adapter
    assert [path.name for path in (tmp_path / "a").iterdir()] == [WEIGHTS]
    with pytest.raises(AdapterError):
        adapter_paths(tmp_path / "a")


def test_files_are_on_the_disk_before_they_get_their_names(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(adapters, "sync", lambda path: events.append(path.name))
    monkeypatch.setattr(
        os,
        "rename",
        lambda source, target, rename=os.rename: (events.append("rename"), rename(source, target)),
    )
    write(tmp_path / "a", extra_files={"replica.json": "{}"})
    assert events[:3] == [WEIGHTS, CONFIG, "replica.json"] and events[4:] == [
        "rename",
        tmp_path.name,
    ]


def test_writing_into_a_folder_that_has_snapshots(tmp_path):
    write(tmp_path / "r" / "snapshots" / "s001")
    digest = write(tmp_path / "r", some_factors(1), extra_files={"replica.json": "{}"})
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        CONFIG,
        WEIGHTS,
        "replica.json",
        "snapshots",
    ]
    assert read_adapter(tmp_path / "r").sha256() == digest
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_wrong_shapes_are_not_written(tmp_path):
    with pytest.raises(AdapterError, match="rank 4"):
        write(tmp_path / "a", r=4)
    with pytest.raises(AdapterError, match="no modules"):
        write(tmp_path / "a", {})


def test_paths_of_a_source(tmp_path):
    for name in ("00002", "00000", ".00003.tmp", "00001"):
        write(tmp_path / name)
    (tmp_path / "notes").mkdir()
    assert [path.name for path in adapter_paths(tmp_path)] == ["00000", "00001", "00002"]
    assert adapter_paths(tmp_path / "00001") == [tmp_path / "00001"]
    for nothing in (tmp_path / "notes", tmp_path / "absent"):
        with pytest.raises(AdapterError, match="no adapter_config.json"):
            adapter_paths(nothing)
