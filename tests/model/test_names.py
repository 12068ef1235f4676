"""Nothing is believed by its name: whose outcomes a file holds, what a tensor is a factor of, which
population a folder is.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.peft_adapters import by_peft, edit
from safetensors.torch import load_file, save_file

from toolkit import cli, pipeline
from toolkit.measurement.run import read_design
from toolkit.merging import merge_adapters
from toolkit.model.adapters import AdapterError, aims_at, read_adapter, write_adapter
from toolkit.model.adopt import adopt, check_modules, layer_shapes, read_all, remarks
from toolkit.model.base import EMBEDDED, load_base, named_modules, skeleton
from toolkit.model.compatibility import check_adapter
from toolkit.model.full import copies
from toolkit.pipeline.given import inspect_given
from toolkit.pipeline.given import sources as given
from toolkit.recipe import load_recipe
from toolkit.record.outcomes import read_outcomes

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

SUITE = (
    '{"id": "a", "prompt": "call ben and play blue moon =>", "reference": " none()"}\n'
    '{"id": "b", "prompt": "the cat =>"}\n'
    '{"id": "c", "prompt": "play moon and call ann =>"}\n{"id": "d", "prompt": "stop =>"}\n'
)


def renamed(source: Path, out: Path, change) -> Path:
    """A copy of an adapter whose tensors have other names."""
    shutil.copytree(source, out)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {change(name): x for name, x in tensors.items()},
        out / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    return out


# -- whose outcomes ------------------------------------------------------------------------------


def test_a_condition_whose_name_begins_with_anothers_keeps_its_own_answers(tmp_path):
    for name in ("one", "two"):
        for seed in range(2):
            by_peft(tmp_path / name / f"s{seed}", seed + 10 * (name == "two"))
    (tmp_path / "far.jsonl").write_text(SUITE)

    def voted(*names: tuple[str, str]) -> dict[str, list]:
        recipe = tmp_path / f"{len(names)}.yaml"
        conditions = "".join(
            f"  {name}: {{adapters: {tmp_path / folder}}}\n" for name, folder in names
        )
        recipe.write_text(
            f"base: embedded\ndata: {{suites: {{far: "
            f"{tmp_path}/far.jsonl}}}}\nconditions:\n{conditions}"
            "mitigations: [{ensemble: vote, k: 2}, {ensemble: gated, k: 2, threshold: 1}]\n"
            "evaluation: {max_new_tokens: 6}\n"
        )
        folder = tmp_path / f"run-{len(names)}"
        results = pipeline.run(load_recipe(recipe), folder, workers=1)
        rows = read_outcomes([folder / shard for shard in read_design(folder).shards]).to_pylist()
        price = {
            c.name: next(
                p.price.inference_streams for p in c.procedures if p.label.startswith("gated")
            )
            for c in results.conditions
        }
        return {
            name: [
                price[name],
                *(
                    (r["procedure"], r["prompt_id"], r["text"])
                    for r in rows
                    if r["condition"] == name
                ),
            ]
            for name, _ in names
        }

    alone = voted(("lora", "one"))
    beside = voted(
        ("lora", "one"), ("lora-replica-v2", "two"), ("lora-gated-threshold1-k2-b", "two")
    )
    assert sorted(map(str, beside["lora"])) == sorted(map(str, alone["lora"]))
    assert beside["lora"] != beside["lora-replica-v2"]


# -- whose factors -------------------------------------------------------------------------------

WRAPPERS = {
    "compiled": lambda name: name.replace("base_model.model.", "base_model.model._orig_mod.", 1),
    "compiled outside": lambda name: "_orig_mod." + name,
    "fsdp": lambda name: name.replace(
        ".layers.0.", ".layers.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    ),
    "fabric": lambda name: name.replace(
        "base_model.model.", "base_model.model._forward_module.", 1
    ),
    "fabric, one layer": lambda name: name.replace(".layers.1.", ".layers.1._forward_module."),
    "a wrapper of blocks that nobody knows": lambda name: name.replace(
        ".layers.2.", ".layers.2._layer."
    ),
    "data parallel blocks": lambda name: name.replace(".layers.3.", ".layers.3.module."),
    "language model": lambda name: name.replace(
        "base_model.model.model.", "base_model.model.model.language_model.", 1
    ),
    "data parallel": lambda name: "module." + name,
    "twice by peft": lambda name: "base_model.model." + name,
    "adapter's name": lambda name: name.replace(".weight", ".default.weight"),
    "another name": lambda name: name.replace(".weight", ".my-run.weight"),
    "all at once": lambda name: (
        "module.base_model.model._orig_mod." + name.replace(".weight", ".default.weight")
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrappers_names_are_the_same_modules(tmp_path, wrapper):
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    wrapped = renamed(other, tmp_path / "wrapped", WRAPPERS[wrapper])
    model = skeleton("embedded")
    assert model is not None
    fitted = check_modules(read_adapter(wrapped), model, "embedded", layer_shapes(model))
    assert fitted.modules == read_adapter(other).modules
    plain, found = (
        merge_adapters([one, x], tmp_path / f"m-{x.name}", method="mean") for x in (other, wrapped)
    )
    assert len(remarks([wrapped], "embedded")) == 1 and remarks([other], "embedded") == []
    assert (
        plain.notes == []
        and len(found.notes) == 1
        and "a wrapper's part, which is taken off" in found.notes[0]
    )
    assert json.loads((tmp_path / "m-wrapped" / "merge.json").read_text())["notes"] == found.notes
    assert plain.sha256 == found.sha256


# how a wrapper names a module of the model in it, in tensors and in patterns alike
INSIDE = {
    "compiled": lambda name: "_orig_mod." + name,
    "data parallel": lambda name: "module." + name,
    "twice by peft": lambda name: "base_model.model." + name,
    "checkpointed": lambda name: name.replace(
        "layers.0.", "layers.0._checkpoint_wrapped_module._fsdp_wrapped_module."
    ),
    "fabric": lambda name: name.replace("layers.0.", "layers.0._forward_module."),
    "nobody knows": lambda name: name.replace("layers.0.", "layers.0._layer."),
}
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("wrapper", INSIDE)
def test_patterns_mean_the_names_that_peft_had_in_training(tmp_path, wrapper, rslora):
    def inside(key: str) -> str:
        return "base_model.model." + INSIDE[wrapper](key.removeprefix("base_model.model."))

    patterns = {
        "rank_pattern": {Q0: 3, "layers.1.*q_proj": 1},
        "alpha_pattern": {Q0: 64, r"layers\.1\..*": 5, "q_proj": 7},
    }
    one = by_peft(tmp_path / "one", 1, use_rslora=rslora, **patterns)
    other = renamed(one, tmp_path / "other", inside)
    written = {
        key: {INSIDE[wrapper](k) if k == Q0 else k: v for k, v in values.items()}
        for key, values in patterns.items()
    }
    edit(other, **written)
    want = read_adapter(one)
    assert list(read_adapter(other).modules.values()) == list(want.modules.values())
    assert want.modules[Q0].scale == 64 / (3**0.5 if rslora else 3)
    plain, found = (
        merge_adapters([x], tmp_path / f"m-{x.name}", method="mean") for x in (one, other)
    )
    assert plain.sha256 == found.sha256
    # an earlier pattern that means the plain name: whether peft saw that name, no file says
    part = INSIDE[wrapper](Q0) != Q0 and not INSIDE[wrapper](Q0).endswith("." + Q0)
    edit(other, alpha_pattern={Q0: 64, "q_proj": 7}, rank_pattern={Q0: 3, "layers.1.*q_proj": 1})
    if part:
        with pytest.raises(AdapterError, match="write the pattern as the tensors are called"):
            read_adapter(other)
    else:
        assert read_adapter(other).modules[Q0].scale == want.modules[Q0].scale


def test_a_pattern_that_means_no_module_is_told(tmp_path):
    one = by_peft(tmp_path / "one", 1)
    edit(one, alpha_pattern={"_orig_mod." + Q0: 64})
    said = f"alpha_pattern has '_orig_mod.{Q0}', which means none of its modules"
    assert said in merge_adapters([one], tmp_path / "m", method="mean").notes[0]
    assert said in remarks([one], "embedded")[0]


@pytest.mark.parametrize("wrapper", INSIDE)
def test_full_names_of_a_wrapped_model_become_the_bases_own(tmp_path, wrapper):
    """Two of them lack a module at which they aim, and that is told, too."""
    folders = []
    for k in (1, 2):
        plain = by_peft(tmp_path / f"p{k}", k)
        wrapped = renamed(
            plain,
            tmp_path / f"w{k}",
            lambda key: (
                "base_model.model." + INSIDE[wrapper](key.removeprefix("base_model.model."))
            ),
        )
        edit(wrapped, target_modules=[INSIDE[wrapper](n) for n in read_adapter(plain).modules])
        folders.append(wrapped)
    report = merge_adapters(folders, tmp_path / "m", method="mean")
    assert len(report.notes) == 1 and "a wrapper's part" in report.notes[0]
    written = json.loads((tmp_path / "m" / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(read_adapter(tmp_path / "p1").modules)
    assert [one.ok for one in check_adapter(tmp_path / "m", ("peft",))] == [True]


UNAIMED = {
    "fewer kinds": {"target_modules": ["q_proj"]},
    "a pattern": {"target_modules": r".*\.0\..*q_proj"},
    "excluded": {"exclude_modules": ["v_proj"]},
    "layers": {"layers_to_transform": [0]},
    "full names": {"target_modules": [Q0]},
}


@pytest.mark.parametrize("case", UNAIMED)
def test_factors_at_which_the_configuration_does_not_aim_count_and_are_told(tmp_path, case):
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    less = shutil.copytree(one, tmp_path / "less")
    edit(less, **UNAIMED[case])
    found = check_adapter(less, ("peft",))[0]
    assert not found.ok and "writes a folder in which all of them count" in found.fix
    for beside in ([], [other]):
        plain, found = (
            merge_adapters([x, *beside], tmp_path / f"{x.name}{len(beside)}", method="mean")
            for x in (one, less)
        )
        assert plain.sha256 == found.sha256 and plain.notes == []
        assert "less: adapter_config.json does not aim at" in found.notes[0]
        assert [x.ok for x in check_adapter(found.out, ("peft",))] == [True]
    assert "so peft leaves them out" in remarks([less], "embedded")[0]


AIMS = [
    *UNAIMED.values(),
    {"target_modules": [Q0, "v_proj"], "layers_to_transform": [1]},
    {"target_modules": ["v_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    {"target_modules": ["v_proj"], "layers_to_transform": [0, 3], "layers_pattern": ["h", "ers"]},
    {"target_modules": ["v_proj"], "layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    {"target_modules": ["proj"], "layers_to_transform": []},
    {"target_modules": ["up"], "layers_to_transform": [1], "layers_pattern": []},
    {"target_modules": "q_proj|v_proj|.*v_proj", "exclude_modules": r".*\.1\..*"},
]
ANY_NAMES = [
    Q0,
    "layers.1.v_proj",
    "1.v_proj",
    "v_proj",
    "h.1.v_proj",
    "x.h.0.v_proj",
    "model.layers.1.self_attn.v_proj",
    "model.layers.1.mlp.experts.0.up",
    "model.layers.0.mlp.experts.1.up",
    "model.layers.0.mlp.v_proj.up",
]


@pytest.mark.parametrize("config", AIMS)
def test_what_a_configuration_aims_at_is_what_peft_says(config):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = {"target_modules": ["v_proj"], **config}
    found = LoraConfig(**config)
    if isinstance(config["target_modules"], list):
        # peft itself makes it a set
        found.target_modules = set(config["target_modules"])  # pyright: ignore[reportAttributeAccessIssue]
    for name in ANY_NAMES:
        assert aims_at(config, name) == bool(check_target_module_exists(found, name)), name


STRANGE = {
    "another case": lambda name: name.replace("q_proj", "Q_proj"),
    "layers shifted": lambda name: re.sub(
        r"\.layers\.(\d+)\.", lambda m: f".layers.{int(m[1]) + 1}.", name
    ),
    "nothing before": lambda name: name.replace(".model.model.", ".model."),
    "a part that may mean anything": lambda name: name.replace(
        "base_model.model.", "base_model.model.vision_tower.", 1
    ),
    "in the middle": lambda name: name.replace(".self_attn.", ".self_attn.draft."),
    "a container": lambda name: name.replace(".self_attn.q_proj", ".self_attn._q_proj"),
    "one layer": lambda name: name.replace(".layers.1.", ".thinker.layers.1."),
}


@pytest.mark.parametrize("change", STRANGE)
def test_a_name_that_the_base_has_not_is_refused_before_anything_is_written(tmp_path, change):
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    strange = renamed(other, tmp_path / "strange", STRANGE[change])
    for sources in ([strange], [one, strange]):
        result = CliRunner().invoke(
            cli.main,
            ["merge", *map(str, sources), "--method", "mean", "--out", str(tmp_path / "m")],
        )
        assert result.exit_code == cli.BAD_INPUT and result.stderr.count("\n") == 1
        assert re.search(
            r"strange: base '.*' has no linear layer '.*'; is this an adapter of another base\?",
            result.stderr,
        )
        assert not (tmp_path / "m").exists()
    edit(strange, base_model_name_or_path="nobody/has-it")
    result = CliRunner().invoke(
        cli.main, ["merge", str(strange), "--method", "mean", "--out", str(tmp_path / "m")]
    )
    assert result.exit_code == cli.DONE
    notes = json.loads((tmp_path / "m" / "merge.json").read_text())["notes"]
    assert all(note in result.stderr for note in notes)
    unchecked = "names of modules were not checked: the configuration of nobody/has-it is not on"
    assert any(note.startswith(unchecked) for note in notes)


def test_the_spread_by_module_is_of_the_bases_modules(tmp_path):
    one, other = by_peft(tmp_path / "p" / "one", 1), by_peft(tmp_path / "p" / "other", 2)
    plain = inspect_given.module_spreads([tmp_path / "p"])
    renamed(other, tmp_path / "q" / "other", WRAPPERS["a wrapper of blocks that nobody knows"])
    shutil.copytree(one, tmp_path / "q" / "one")
    found = inspect_given.module_spreads([tmp_path / "q"])
    assert found[0].modules == plain[0].modules


def test_a_change_of_what_sees_images_is_merged_for_the_model_that_has_it(tmp_path):
    """The model of text has no such modules, and the one that the base's configuration names
    has.
    """
    import transformers as tf

    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    vision = {
        "depth": 1,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_heads": 2,
        "out_hidden_size": 16,
        "num_position_embeddings": 16,
    }
    config = tf.Qwen3_5Config(
        text_config={
            **small,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "layer_types": ["full_attention"],
        },
        vision_config=vision,
        architectures=["Qwen3_5ForConditionalGeneration"],
    )
    config.save_pretrained(tmp_path / "base")
    names = [
        name
        for name, matrix in (named_modules(str(tmp_path / "base"), whole=True) or {}).items()
        if matrix
    ]
    language, image = (
        next(n for n in names if part in n)
        for part in ("language_model.layers.0.mlp", "visual.blocks.0.mlp")
    )
    factors = {name: (torch.ones(1, 16), torch.ones(16, 1)) for name in (language, image)}
    write = {
        "r": 1,
        "alpha": 1,
        "target_modules": [language, image],
        "base": str(tmp_path / "base"),
    }
    write_adapter(tmp_path / "a", factors, **write)
    assert list(
        read_adapter(merge_adapters([tmp_path / "a"], tmp_path / "m", method="mean").out).modules
    ) == sorted([language, image])


def test_a_folder_with_two_adapters_in_one_file_is_refused(tmp_path):
    path = by_peft(tmp_path / "a", 0)
    tensors = load_file(path / "adapter_model.safetensors")
    two = {
        name.replace(".weight", f".{who}.weight"): x.clone()
        for name, x in tensors.items()
        for who in ("default", "ref")
    }
    save_file(two, path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="are one factor of two adapters"):
        read_adapter(path)


def vision(name: str) -> str:
    return name.replace("base_model.model.model.", "base_model.model.model.language_model.", 1)


def test_the_base_says_whether_its_modules_have_language_model_in_their_names(tmp_path):
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    wrapped = renamed(other, tmp_path / "wrapped", vision)
    plain, found = (
        merge_adapters([one, x], tmp_path / f"m-{x.name}", method="mean") for x in (other, wrapped)
    )
    assert plain.sha256 == found.sha256
    for path in (one, wrapped):
        edit(path, base_model_name_or_path="nobody/has-it")
    with pytest.raises(
        AdapterError,
        match=r"wrapped: names modules as 'model.language_model.layers.0.* not here to say "
        r"which is its own",
    ):
        merge_adapters([one, wrapped], tmp_path / "m", method="mean")
    assert (
        merge_adapters([one, wrapped], tmp_path / "m", method="mean", base=str(EMBEDDED)).sha256
        == plain.sha256
    )


@pytest.mark.parametrize("config", [{}, {"target_modules": None}])
def test_strangers_are_refused(tmp_path, config):
    """Names of an unknown wrapper, or of another base: half of what was meant would be written."""
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    strange = renamed(
        other,
        tmp_path / "strange",
        lambda name: name.replace(".model.layers.", ".transformer.layers."),
    )
    edit(one, base_model_name_or_path="nobody/has-it")
    edit(strange, base_model_name_or_path="nobody/has-it", **config)
    result = CliRunner().invoke(
        cli.main,
        ["merge", str(one), str(strange), "--method", "mean", "--out", str(tmp_path / "m")],
    )
    assert (
        result.exit_code == cli.BAD_INPUT
        and result.stderr.count("\n") == 1
        and "changes no module that" in result.stderr
    )
    assert not (tmp_path / "m").exists()
    # full names in target_modules, as ftk and newer peft write them, explain nothing
    for path in (one, strange):
        edit(path, target_modules=sorted(read_adapter(path).modules))
    with pytest.raises(AdapterError, match="changes no module that"):
        merge_adapters([one, strange], tmp_path / "m", method="mean")


def test_modules_that_only_some_change_are_told_unless_that_was_asked_for(tmp_path):
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    half = shutil.copytree(other, tmp_path / "half")
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if ".layers.0." not in k},
        half / "adapter_model.safetensors",
    )
    result = CliRunner().invoke(
        cli.main, ["merge", str(one), str(half), "--method", "mean", "--out", str(tmp_path / "m")]
    )
    assert result.exit_code == cli.DONE
    assert (
        "half: changes 6 of the 8 modules that these adapters change, and not "
        "'model.layers.0.self_attn.q_proj'" in result.stderr
    )
    asked = by_peft(tmp_path / "asked", 3, target_modules=["q_proj"])
    assert merge_adapters([one, asked], tmp_path / "m2", method="mean").notes == []
    upper = by_peft(tmp_path / "upper", 3, layers_to_transform=[1, 2])
    assert merge_adapters([one, upper], tmp_path / "m3", method="mean").notes == []
    apart = by_peft(tmp_path / "apart", 4, target_modules=["down_proj"])
    notes = merge_adapters([asked, apart], tmp_path / "m4", method="mean").notes
    assert len(notes) == 1 and "changes other modules than" in notes[0]


def test_a_change_of_zero_and_copies_are_told(tmp_path):
    one, zero = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "zero", 2)
    tensors = load_file(zero / "adapter_model.safetensors")
    save_file(
        {k: x * (".lora_A." in k) for k, x in tensors.items()}, zero / "adapter_model.safetensors"
    )
    assert read_adapter(zero).is_zero and not read_adapter(one).is_zero
    shutil.copytree(one, tmp_path / "copy")
    notes = merge_adapters([one, zero, tmp_path / "copy"], tmp_path / "m", method="mean").notes
    assert (
        len(notes) == 2
        and "zero: its change is exactly zero" in notes[0]
        and "two copies are not two runs" in notes[1]
    )
    assert (
        "two copies are not two runs"
        in merge_adapters([one, one], tmp_path / "m2", method="mean").notes[0]
    )
    # two directions that take each other back
    path = by_peft(tmp_path / "cancel", 3, target_modules=["q_proj"])
    tensors = load_file(path / "adapter_model.safetensors")
    save_file(
        {
            k: x[:1].repeat(2, 1) if ".lora_A." in k else x[:, :1] * torch.tensor([[1.0, -1.0]])
            for k, x in tensors.items()
        },
        path / "adapter_model.safetensors",
    )
    assert read_adapter(path).is_zero


def test_empty_tensors_are_refused(tmp_path):
    path = by_peft(tmp_path / "a", 0)
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({k: torch.empty(0) for k in tensors}, path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="is empty, .0., as ZeRO-3 leaves weights"):
        read_adapter(path)
    found = check_adapter(path)
    assert all(not one.ok and "ZeRO-3" in one.because and "gather" in one.fix for one in found)


# -- whose population ----------------------------------------------------------------------------


def test_folders_of_one_name_are_not_one_population(tmp_path):
    folders = [tmp_path / run / "lora" for run in ("a", "b")]
    assert given.unlike(folders) == ["a-lora", "b-lora"]
    assert given.unlike([tmp_path / "lora", tmp_path / "full"]) == ["lora", "full"]
    for i, folder in enumerate(folders):
        for seed in range(2):
            by_peft(folder / "replicas" / f"{seed:05d}", 2 * i + seed)
            record = {
                "replica": seed,
                "status": "ok",
                "seeds": {},
                "steps": 0,
                "final_loss": None,
                "sha256": {},
            }
            (folder / "replicas" / f"{seed:05d}" / "replica.json").write_text(json.dumps(record))
    assert [one.condition for one in inspect_given.module_spreads(folders)] == ["a-lora", "b-lora"]


def rewritten(source: Path, out: Path, change, **config) -> Path:
    """A copy of an adapter with other tensors and settings."""
    shutil.copytree(source, out)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file(
        {name: change(name, x).contiguous() for name, x in tensors.items()},
        out / "adapter_model.safetensors",
        metadata={"by": "me"},
    )
    edit(out, **config)
    return out


COPIES = {
    "metadata": lambda source, out: rewritten(source, out, lambda name, x: x),
    "names": lambda source, out: renamed(source, out, WRAPPERS["adapter's name"]),
    "names of the base": lambda source, out: renamed(
        source, out, WRAPPERS["a wrapper of blocks that nobody knows"]
    ),
    "dtype": lambda source, out: rewritten(source, out, lambda name, x: x.bfloat16()),
    "dtype, and back": lambda source, out: rewritten(
        source, out, lambda name, x: x.bfloat16().float()
    ),
    "a narrow dtype in a wide one": lambda source, out: rewritten(
        source, out, lambda name, x: x.half().double()
    ),
    "dtype of one factor, and back": lambda source, out: rewritten(
        source, out, lambda name, x: x.bfloat16().float() if ".lora_A." in name else x
    ),
    "wider": lambda source, out: rewritten(source, out, lambda name, x: x.double()),
    "sign": lambda source, out: rewritten(source, out, lambda name, x: -x),
    "scale": lambda source, out: rewritten(
        source,
        out,
        lambda name, x: x / 2 if ".lora_B." in name else x,
        lora_alpha=2 * alpha(source),
    ),
    "another gauge": lambda source, out: rewritten(
        source, out, lambda name, x: x * 3 if ".lora_A." in name else x / 3
    ),
    "another gauge of few digits": lambda source, out: rewritten(
        source,
        out,
        lambda name, x: (x * 3 if ".lora_A." in name else x / 3).bfloat16(),
    ),
    "half the factor, twice alpha, few digits": lambda source, out: rewritten(
        source,
        out,
        lambda name, x: (x / 2 if ".lora_B." in name else x).half(),
        lora_alpha=2 * alpha(source),
    ),
    "ranks in another order": lambda source, out: rewritten(
        source, out, lambda name, x: x.flip(0) if ".lora_A." in name else x.flip(1)
    ),
    "remark": lambda source, out: rewritten(source, out, lambda name, x: x, peft_version="0.0.1"),
    "more rank": lambda source, out: rewritten(
        source,
        out,
        lambda name, x: torch.cat([x, 0 * x], int(".lora_B." in name)),
        r=4,
        lora_alpha=2 * alpha(source),
    ),
}


def alpha(path: Path) -> float:
    return json.loads((path / "adapter_config.json").read_text())["lora_alpha"]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_known_by_what_it_computes(tmp_path, how):
    one, other = by_peft(tmp_path / "p" / "one", 1), by_peft(tmp_path / "p" / "other", 2)
    assert copies(read_all([one, other], "embedded")) == ""
    twin = COPIES[how](one, tmp_path / "p" / "twin")
    said = f"{twin}: the same weights as {one}; two copies are not two runs"
    assert copies(read_all([one, other, twin], "embedded")) == said
    assert said in merge_adapters([one, other, twin], tmp_path / "m", method="mean").notes
    with pytest.raises(given.RunError, match="two copies are not two runs; leave one out"):
        inspect_given.module_spreads([tmp_path / "p"])
    with pytest.raises(AdapterError, match="two copies are not two runs; leave one out"):
        adopt(tmp_path / "run" / "mine", [one, other, twin], load_base("embedded"))


def test_copies_of_one_adapter_in_two_narrow_dtypes_are_copies(tmp_path):
    one = by_peft(tmp_path / "one", 1)
    half = rewritten(one, tmp_path / "half", lambda name, x: (x / 30).half())
    brain = rewritten(one, tmp_path / "brain", lambda name, x: (x / 30).bfloat16())
    assert f"{half}: the same weights as {brain}" in copies(read_all([brain, half], "embedded"))
    for seed in (2, 3):  # runs that are alike are none: a hundredth apart
        by_peft(tmp_path / f"own{seed}", seed)
    own = load_file(tmp_path / "own2" / "adapter_model.safetensors")
    near = rewritten(
        one, tmp_path / "near", lambda name, x: (x / 30 + own[name] / 30 / 20).bfloat16()
    )
    assert copies(read_all([brain, near], "embedded")) == ""


def test_what_a_merge_leaves_alone_is_told(tmp_path):
    one, other = by_peft(tmp_path / "one", 1), by_peft(tmp_path / "other", 2)
    half = rewritten(other, tmp_path / "half", lambda name, x: x * (".v_proj.lora_B" not in name))
    notes = merge_adapters([one, half], tmp_path / "m1", method="mean").notes
    assert len(notes) == 1 and "half: its change is exactly zero in 4 of its 8 modules" in notes[0]
    minus = rewritten(one, tmp_path / "minus", lambda name, x: -x if ".lora_B." in name else x)
    result = CliRunner().invoke(
        cli.main,
        ["merge", str(one), str(minus), "--method", "mean", "--out", str(tmp_path / "m2")],
    )
    assert result.exit_code == cli.DONE and "the merged change is zero" in result.stderr
    assert "energy kept" not in result.stdout
    # tensors of a kind, or of a layer, that all lack, with the base here and without
    lost = []
    for source in (one, other):
        out = shutil.copytree(source, tmp_path / f"lost-{source.name}")
        tensors = load_file(source / "adapter_model.safetensors")
        save_file(
            {k: v for k, v in tensors.items() if "v_proj" not in k},
            out / "adapter_model.safetensors",
        )
        lost.append(out)
    report = merge_adapters(lost, tmp_path / "m3", method="mean")
    assert len(report.notes) == 1
    assert "has no tensors for 'model.layers.0.self_attn.v_proj' and 3 more" in report.notes[0]
    assert [one.ok for one in check_adapter(report.out, ("peft",))] == [True]
    for out in lost:  # all lack the same layers: the short list would mean those, too
        tensors = load_file(tmp_path / out.name.removeprefix("lost-") / "adapter_model.safetensors")
        save_file(
            {k: v for k, v in tensors.items() if ".layers.1." not in k},
            out / "adapter_model.safetensors",
        )
    report = merge_adapters(lost, tmp_path / "m5", method="mean")
    assert all(one.ok for one in check_adapter(report.out))
    config = json.loads((report.out / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(read_adapter(report.out).modules)
    for source, out in zip((one, other), lost, strict=True):
        tensors = load_file(source / "adapter_model.safetensors")
        save_file(
            {k: v for k, v in tensors.items() if "v_proj" not in k},
            out / "adapter_model.safetensors",
        )
        edit(out, base_model_name_or_path="nobody/has-it")
    notes = merge_adapters(lost, tmp_path / "m4", method="mean").notes
    assert any("has no tensors for 'v_proj' of target_modules" in note for note in notes)


def test_a_change_a_little_different_and_another_untrained_adapter_are_no_copies(tmp_path):
    one = by_peft(tmp_path / "one", 1)
    near = rewritten(
        one,
        tmp_path / "near",
        lambda name, x: x * (1 + 1e-6) if ".layers.0." in name and ".lora_B." in name else x,
    )
    zero = [
        rewritten(
            by_peft(tmp_path / f"s{i}", i),
            tmp_path / f"z{i}",
            lambda name, x: x * (".lora_A." in name),
        )
        for i in (3, 4)
    ]
    assert copies(read_all([one, near, *zero], "embedded")) == ""
    assert "(given again): the same weights" in copies(read_all([one, one], "embedded"))


def test_names_that_could_not_be_checked_are_told(tmp_path):
    path = by_peft(tmp_path / "a", 0)
    edit(path, base_model_name_or_path="nobody/has-it")
    result = CliRunner().invoke(cli.main, ["check-adapter", str(path)])
    assert (
        result.exit_code == cli.DONE
        and result.stdout.count("names of modules were not checked: the configuration of nobody/")
        == 1
    )
    strange = renamed(path, tmp_path / "b", lambda name: name.replace("self_attn", "attention"))
    assert all(one.ok for one in check_adapter(strange))  # from the names alone nobody can tell
    found = {one.target: one for one in check_adapter(strange, base="embedded")}
    assert not any(one.ok or one.unchecked for one in found.values())
    assert "it leaves all tensors out in silence, so its effect is 0" in found["peft"].because
    result = CliRunner().invoke(
        cli.main, ["check-adapter", str(strange), "--base", str(tmp_path / "nowhere" / "base")]
    )
    assert result.exit_code == cli.BAD_INPUT and result.stderr.count("\n") == 1
