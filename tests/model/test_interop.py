"""Populations that other tools trained, and what other tools do with ours: each held against the
real thing.
"""

import json
import math
import re
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
from click.testing import CliRunner
from helpers.peft_adapters import by_peft, edit, fresh_base
from safetensors.torch import load_file, save_file

from toolkit import cli, pipeline
from toolkit.merging import merge_adapters, mergekit_yaml
from toolkit.model.adapters import AdapterError, adapter_paths, read_adapter
from toolkit.model.adopt import adopt, find_adapters
from toolkit.model.base import EMBEDDED, load_base
from toolkit.model.compatibility import check_adapter
from toolkit.model.delta import dense
from toolkit.pipeline import preview
from toolkit.recipe import RecipeError, dump_recipe, load_recipe, parse_recipe
from toolkit.recipe.merge_methods import MERGE_METHODS
from toolkit.record.population import read_population, replica_folder
from toolkit.report.card import CardError, write_card

pytestmark = pytest.mark.usefixtures("undrawn")  # nothing here looks at a chart

GIVEN = """
base: embedded
data: {{suites: {{far: {suite}}}}}
conditions:
  mine: {{adapters: "{adapters}"}}
mitigations: [{mitigations}]
evaluation: {{max_new_tokens: 6, answer: embedded}}
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Four runs as trainers leave them: ranks and targets differ, files lie about, one saved
    nothing but checkpoints.
    """
    folder = tmp_path_factory.mktemp("foreign")
    by_peft(folder / "seed-0", 0)
    by_peft(folder / "seed-0" / "checkpoint-5", 10)  # beside a final adapter: of no account
    (folder / "seed-0" / "trainer_state.json").write_text("{}")
    by_peft(folder / "seed-1", 1, r=4, target_modules=["q_proj", "down_proj"], use_rslora=True)
    edit(
        folder / "seed-1",
        unsloth_fixed=True,
        some_newer_key=None,
        auto_mapping={"unsloth_fixed": True},
    )
    by_peft(folder / "seed-2", 2, target_modules=r".*\.(q|v)_proj", rank_pattern={"v_proj": 3})
    for step, seed in ((9, 11), (10, 3)):  # the last one by number, not by name
        by_peft(folder / "seed-3" / f"checkpoint-{step}", seed)
    (folder / "seed-3" / "runs").mkdir()
    (folder / "seed.log").write_text("")
    return folder


@pytest.fixture
def population(foreign, tmp_path):
    """A copy that a test may change."""
    return Path(shutil.copytree(foreign, tmp_path / "foreign"))


def recipe_of(folder: Path, adapters: object, mitigations: str = ""):
    suite = folder / "far.jsonl"
    suite.write_text(
        '{"prompt": "call ben and play blue moon =>", "reference": " none()"}\n'
        '{"prompt": "the cat =>"}\n'
    )
    path = folder / "given.yaml"
    path.write_text(GIVEN.format(suite=suite, adapters=adapters, mitigations=mitigations))
    return load_recipe(path)


# -- adapters that are there already -------------------------------------------------------------


def test_what_trainers_leave_is_one_adapter_a_run(foreign):
    found = [path.relative_to(foreign).as_posix() for path in find_adapters([f"{foreign}/seed*"])]
    assert found == ["seed-0", "seed-1", "seed-2", "seed-3/checkpoint-10"]
    assert find_adapters([str(foreign)]) == find_adapters(
        [f"{foreign}/seed*", str(foreign / "seed-0")]
    )
    assert adapter_paths(foreign / "seed-3") == [foreign / "seed-3" / "checkpoint-10"]


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        ("{0}/nothing-*", "matches no PEFT adapter folder"),
        ("{0}/seed.log", "no adapter_config.json"),
        ("{0}/*.log", "matches no PEFT"),
    ],
)
def test_what_is_no_adapter_is_told(foreign, adapters, told):
    with pytest.raises(AdapterError, match=told):
        find_adapters([adapters.format(foreign)])


def test_a_run_of_given_adapters_measures_them_and_does_nothing_twice(population, tmp_path):
    recipe = recipe_of(
        tmp_path, "foreign/seed-*", "{merge: mean, k: 2}, {ensemble: probabilities, k: 2}"
    )
    folder = tmp_path / "run"
    results = pipeline.run(recipe, folder, workers=1)
    assert results.conditions[0].n_replicas == 4
    assert [p.label for p in results.conditions[0].procedures] == [
        "replica",
        "mean-k2",
        "probabilities-k2",
    ]
    assert (
        "seeds are not known here: what varies is whatever their trainer varied"
        in (folder / "report.html").read_text()
    )
    single, mean = results.conditions[0].procedures[:2]
    for card in (folder / "mine/merged/mean-k2/g000/README.md", write_card(folder)):
        text = card.read_text()
        assert (
            all(f"{100 * p.cell('far').disagreement.value:.1f}" in text for p in (single, mean))
            and "| mean, K = 2 | 2 |" in text
        )
    assert "mergekit-yaml" in (folder / "mine/merged/mean-k2/g000/mergekit_config.yml").read_text()
    ours, theirs = read_adapter(folder / "mine/replicas/00001"), read_adapter(population / "seed-1")
    assert ours.modules == theirs.modules and ours.sha256() == theirs.sha256()

    def stamps() -> dict[str, int]:
        kept = [
            *folder.rglob("*.safetensors"),
            *folder.rglob("*.parquet"),
            *folder.rglob("replica.json"),
        ]
        return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in kept}

    before = stamps()
    edit(population / "seed-2", lora_alpha=8)  # the same weights, another change
    pipeline.run(recipe, folder, workers=1)
    after = stamps()
    changed = {name for name in after if after[name] != before.get(name)}
    assert {
        "mine/replicas/00002/replica.json",
        "mine/merged/mean-k2/g001/adapter_model.safetensors",
    } <= changed
    assert (
        not {
            "mine/replicas/00001/replica.json",
            "mine/merged/mean-k2/g000/adapter_model.safetensors",
        }
        & changed
    )
    assert len([name for name in changed if name.startswith("outcomes/far/mine-replica")]) == 1


def test_a_population_that_shrinks_leaves_no_replica_behind(population, tmp_path):
    base = load_base("embedded")
    paths = find_adapters([f"{population}/seed-*"])
    assert sorted(adopt(tmp_path / "mine", paths, base)) == [0, 1, 2, 3]
    adopt(tmp_path / "mine", paths[1:], base)
    assert {r: record.source for r, record in read_population(tmp_path / "mine").items()} == {
        r: str(p) for r, p in enumerate(paths[1:])
    }
    assert all(path.is_dir() for path in paths)  # links go, adapters stay


def test_replicas_that_ftk_trained_are_not_overwritten(foreign, tmp_path):
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "population.json").write_text('{"design": "independent"}')
    with pytest.raises(AdapterError, match="holds replicas that ftk trained"):
        adopt(tmp_path / "lora", find_adapters([str(foreign)]), load_base("embedded"))


def test_two_copies_are_not_two_runs(population, tmp_path):
    shutil.copytree(population / "seed-0", population / "seed-9")
    recipe = recipe_of(tmp_path, "foreign/seed-*")
    told = r"seed-9: the same weights as .*seed-0; two copies are not two runs"
    with pytest.raises(AdapterError, match=told):
        adopt(
            tmp_path / "mine", find_adapters(recipe.given["mine"].adapters), load_base("embedded")
        )
    with pytest.raises(RecipeError, match=told):
        preview.check(recipe)


def test_an_adapter_of_another_base_is_told_in_one_line(foreign, population, tmp_path):
    from helpers.tiny import tiny_model

    by_peft(population / "seed-4", 4, model=tiny_model("llama"))
    with pytest.raises(
        AdapterError,
        match=r"seed-4: model.layers.0.self_attn.q_proj is \[32, 32\], in base 'embedded'",
    ):
        adopt(tmp_path / "mine", find_adapters([f"{population}/*"]), load_base("embedded"))
    (population / "base.json").write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(
        AdapterError, match="seed-0: trained on a base whose weights have the sha256 000000000000"
    ):
        adopt(tmp_path / "mine", find_adapters([f"{population}/*"]), load_base("embedded"))


def test_averages_need_a_trajectory(population, tmp_path):
    with (
        pytest.raises(AdapterError, match="seed-0: no adapters in snapshots/"),
        pipeline.open_run(
            recipe_of(tmp_path, "foreign/seed-*", "{merge: swa, k: 2}"), tmp_path / "run"
        ),
    ):
        pass
    for path in find_adapters([f"{population}/seed-*"]):
        shutil.copytree(
            path, path / "averages" / "swa", ignore=lambda *_: ["averages", "checkpoint-5"]
        )
    population_ = adopt(
        tmp_path / "mine", find_adapters([f"{population}/seed-*"]), load_base("embedded")
    )
    assert "averages/swa/adapter_model.safetensors" in population_[0].sha256
    assert read_adapter(replica_folder(tmp_path / "mine", 1) / "averages" / "swa").rank == 4


def test_check_shows_the_population(foreign, tmp_path, capsys):
    found = preview.check(recipe_of(tmp_path, f"{foreign}/seed-*"), workers=1)
    assert (
        found["conditions"]["mine"]["ranks"] == [2, 3, 4]
        and found["conditions"]["mine"]["replicas"] == 4
    )
    preview.show(found)
    shown = capsys.readouterr().out
    assert (
        "mine: 4 adapters that were there already" in shown
        and "ranks 2 to 4, on down_proj, q_proj, v_proj" in shown
    )


@pytest.mark.parametrize(
    ("condition", "told"),
    [
        (
            "{adapters: a, rank: 8}",
            "g.yaml:4: 'conditions.mine.rank': is about training, and a condition with "
            "`adapters` is not trained",
        ),
        ("{adapters: a, method: lora}", "g.yaml:4: 'conditions.mine.method': is about training"),
        ("{adapters: []}", "g.yaml:4: 'conditions.mine.adapters': should be 1 or more entries"),
        ("{adapters: 3}", "g.yaml:4: 'conditions.mine.adapters': should be a list"),
        ("{adapters: a, weights: b}", "g.yaml:4: unknown key 'weights' in 'conditions.mine'"),
        (
            "{adapter: a}",
            "g.yaml:4: unknown key 'adapter' in 'conditions.mine'; did you mean 'adapters'?",
        ),
        (
            "{from: other, adapters: a}",
            "g.yaml:4: 'from' hands on how to train, and a condition with `adapters` is "
            "not trained",
        ),
    ],
)
def test_a_given_condition_is_not_trained(condition, told):
    with pytest.raises(RecipeError) as error:
        parse_recipe(
            f"base: embedded\ndata: {{train: embedded, suites: {{}}}}\nconditions:\n  "
            f"mine: {condition}\n  other: {{}}\n",
            "g.yaml",
        )
    assert str(error.value).startswith(told)


def test_paths_count_from_the_recipe(foreign, tmp_path, monkeypatch):
    (tmp_path / "here").symlink_to(foreign)
    recipe = recipe_of(tmp_path, "here/seed-*")
    monkeypatch.chdir("/")
    assert len(find_adapters(recipe.given["mine"].adapters)) == 4
    again = parse_recipe(dump_recipe(recipe))
    assert again.given == recipe.given and again.trained == {}


# -- who can load it -----------------------------------------------------------------------------

OLD_KEYS = """
    peft_type auto_mapping base_model_name_or_path revision task_type inference_mode loftq_bits
    loftq_iter r target_modules lora_alpha
    lora_dropout fan_in_fan_out bias use_rslora modules_to_save init_lora_weights
    layers_to_transform layers_pattern rank_pattern
    alpha_pattern megatron_config megatron_core loftq_config
""".split()
"""of LoraConfig in peft 0.8.2 (February 2024), which fails on others"""


def verdicts(folder: Path) -> dict[str, bool]:
    return {one.target: one.ok for one in check_adapter(folder)}


def test_what_peft_and_ftk_write_loads_everywhere(tmp_path):
    path = by_peft(tmp_path / "a", 0)
    assert set(verdicts(path).values()) == {True}
    merge_adapters(
        [path, by_peft(tmp_path / "b", 1, r=4, use_rslora=True)], tmp_path / "out", method="mean"
    )
    assert set(verdicts(tmp_path / "out").values()) == {True}
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert set(config) <= set(OLD_KEYS)


ALL = {"peft", "vllm", "llama.cpp", "lm-eval", "ftk"}
REFUSALS = [
    ({"use_rslora": True}, {}, {"llama.cpp"}),
    ({"alpha_pattern": {"v_proj": 32}}, {}, {"vllm", "llama.cpp"}),
    (
        {"rank_pattern": {"v_proj": 4}},
        {},
        {"vllm"},
    ),  # alpha / r for all modules, and here v_proj is alpha / 4
    (
        {"rank_pattern": {"v_proj": 4}, "alpha_pattern": {"v_proj": 8}},
        {},
        {"llama.cpp"},
    ),  # one scale, and llama.cpp has one alpha
    ({"use_dora": True}, {}, {"vllm", "llama.cpp", "ftk"}),
    ({"modules_to_save": ["lm_head"]}, {}, {"vllm", "llama.cpp", "ftk"}),
    ({"lora_bias": True}, {}, {"vllm", "llama.cpp", "ftk"}),
    ({"target_modules": ["embed_tokens"]}, {}, set()),
    ({"init_lora_weights": "pissa"}, {}, {"vllm", "llama.cpp", "ftk"}),
    ({}, {"r": 3}, ALL),  # configuration and tensors disagree
    ({}, {"target_modules": None}, {"vllm"}),
    ({}, {"peft_type": "NEWER"}, ALL),
    ({}, {"bias": "all"}, {"vllm"}),
]


@pytest.mark.parametrize(("config", "edits", "refuse"), REFUSALS)
def test_what_refuses_which_adapter(tmp_path, config, edits, refuse):
    path = by_peft(tmp_path / "a", 0, **config)
    edit(path, **edits)
    found = check_adapter(path)
    assert {one.target for one in found if not one.ok} == refuse
    assert all(one.because and one.fix and "{" not in one.fix for one in found if not one.ok)
    loads = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.PeftModel.from_pretrained(fresh_base(), path)
    except (KeyError, RuntimeError, ValueError):
        loads = False
    # peft then takes its defaults
    assert loads == ("peft" not in refuse) or edits == {"target_modules": None}


def test_what_mends_a_refusal_mends_it(tmp_path):
    path = by_peft(tmp_path / "a", 0, use_rslora=True, alpha_pattern={"v_proj": 32})
    merge_adapters([path], tmp_path / "new", method="mean")
    assert set(verdicts(tmp_path / "new").values()) == {True}
    wide = by_peft(tmp_path / "wide", 0, r=520)
    assert [one.because for one in check_adapter(wide, ("vllm",))] == [
        "rank 520 is above its largest, 512"
    ]
    merge_adapters([wide], tmp_path / "cut", method="mean", rank=64)
    assert "--max-lora-rank 64 " in check_adapter(tmp_path / "cut", ("vllm",))[0].command


def test_the_lines_to_type(tmp_path):
    path = by_peft(tmp_path / "my adapter", 0, r=9)
    edit(path, base_model_name_or_path="org/model")
    line = {one.target: one.command for one in check_adapter(path)}
    assert (
        line["vllm"] == "vllm serve org/model --enable-lora --max-lora-rank 16 --lora-modules 'my "
        f"adapter={path}'"
    )
    assert line["llama.cpp"] == f"python convert_lora_to_gguf.py '{path}' --base-model-id org/model"
    assert (
        line["lm-eval"]
        == f"lm_eval --model hf --model_args 'pretrained=org/model,peft={path}' --tasks TASK"
    )


def test_old_weights_are_read_as_they_are(tmp_path):
    path = by_peft(tmp_path / "a", 0)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    assert verdicts(path) == {
        name: name != "ftk" for name in ("peft", "vllm", "llama.cpp", "lm-eval", "ftk")
    }


BROKEN = {"nan": (math.nan, ALL), "inf": (-math.inf, ALL), "1e5": (1e5, {"vllm"})}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("old", [False, True])
def test_no_tool_takes_values_with_which_answers_are_nan(tmp_path, case, factor, old):
    """One value is enough. A base in float16 is one in which vLLM holds the adapter, too."""
    path, (value, refuse) = by_peft(tmp_path / "a", 0), BROKEN[case]
    base = shutil.copytree(EMBEDDED, tmp_path / "base")
    config = base / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": "float16"}))
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    name = [name for name in tensors if factor in name][-1]
    tensors[name][0, 0] = value
    save_file(tensors, file)
    if old:
        torch.save(tensors, path / "adapter_model.bin")
        file.unlink()
    found = check_adapter(path, base=str(base))
    bad = {one.target: one.because for one in found if not one.ok}
    assert bad.keys() == (refuse | {"ftk"} if old else refuse)
    assert all(
        name in text and ("answers would be NaN" in text) == (tool != "ftk")
        for tool, text in bad.items()
        if not (old and tool == "ftk")
    )


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "all-linear", r".*\.[qv]_proj"])
@pytest.mark.parametrize("part", ["v_proj", ".layers.1."])
def test_what_is_missing_is_missing_in_every_tool(tmp_path, targets, part):
    path = by_peft(tmp_path / "a", 0, target_modules=["q_proj", "v_proj"])
    file = path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if part not in k}, file)
    edit(path, target_modules=targets)
    said = {one.because for one in check_adapter(path)}
    assert len(said) == 1 and "are not there, as of model.layers." in said.pop()
    edit(path, base_model_name_or_path="nobody/has-it")
    found = check_adapter(path)
    assert all(one.ok for one in found)
    assert ("no tensor is of 'v_proj'" in found[0].unchecked) == (
        part == "v_proj" and isinstance(targets, list)
    )


def test_check_adapter_as_a_command(tmp_path):
    path = by_peft(tmp_path / "a", 0, use_rslora=True)
    result = CliRunner().invoke(cli.main, ["check-adapter", str(path)])
    assert result.exit_code == cli.GATE_SAID_NO and result.stdout.count("\n") == 5
    assert (
        "llama.cpp  refused  it scales by alpha / rank alone" in result.stdout
        and "vllm       OK       vllm serve" in result.stdout
    )
    result = CliRunner().invoke(cli.main, ["check-adapter", str(path), "--for", "vllm", "--json"])
    assert result.exit_code == cli.DONE and [
        one["target"] for one in json.loads(result.stdout)["targets"]
    ] == ["vllm"]
    assert CliRunner().invoke(cli.main, ["check-adapter", str(tmp_path)]).exit_code == cli.BAD_INPUT
    assert (
        CliRunner().invoke(cli.main, ["check-adapter", str(path), "--for", "tgi"]).exit_code
        == cli.BAD_INPUT
    )


# -- merges in other tools -----------------------------------------------------------------------


@torch.no_grad()
def logits(model) -> torch.Tensor:
    ids = torch.arange(24).reshape(2, 12) % 64
    return model.eval()(input_ids=ids).logits.double()


def trained_base(folder: Path) -> Path:
    """A tiny base as a folder, which peft, mergekit and transformers load."""
    from helpers.tiny import tiny_model

    tiny_model("llama").save_pretrained(folder)
    return folder


def on_tiny(folder: Path, seed: int, base: Path, **config) -> Path:
    from transformers import AutoModelForCausalLM

    path = by_peft(folder, seed, model=AutoModelForCausalLM.from_pretrained(base), **config)
    edit(path, base_model_name_or_path=str(base))
    return path


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_peft_gives_the_logits_of_every_method(tmp_path, method):
    """All rows of the table, those added later too."""
    from transformers import AutoModelForCausalLM

    base = trained_base(tmp_path / "base")
    # some methods shrink what is not alike
    paths = [on_tiny(tmp_path / str(k), seed, base) for k, seed in enumerate((0, 1, 0))]
    for path in paths:
        for trajectory in ("averages/swa", "averages/ema", "snapshots/s000"):
            shutil.copytree(
                path, path / trajectory, ignore=shutil.ignore_patterns("averages", "snapshots")
            )
    own = {"lawa": {"last": 1}, "greedy_soup": {"score": lambda path: 0.0}}.get(method, {})
    merge_adapters(paths, tmp_path / "out", method=method, **own)
    model = AutoModelForCausalLM.from_pretrained(base).double()
    plain = logits(model)
    for name, factors in read_adapter(tmp_path / "out").items():
        model.get_submodule(name).weight.data += dense(factors)
    by_hand = logits(model)
    loaded = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base).double(), tmp_path / "out"
    )
    torch.testing.assert_close(logits(loaded), by_hand, rtol=0, atol=1e-4)
    assert (by_hand - plain).abs().max() > 0.05


def mergekit_makes(config: str, folder: Path) -> dict[str, torch.Tensor]:
    """What mergekit itself makes of a YAML."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    options = MergeOptions(
        lora_merge_cache=str(folder / "cache"), write_model_card=False, copy_tokenizer=False
    )
    run_merge(
        MergeConfiguration.model_validate(yaml.safe_load(config)), str(folder / "full"), options
    )
    return load_file(folder / "full" / "model.safetensors")


def test_mergekit_makes_the_same_mean_of_our_yaml(tmp_path):
    base = trained_base(tmp_path / "base")
    paths = [on_tiny(tmp_path / f"a{k}", k, base, r=2 + k) for k in range(3)]
    merge_adapters(paths, tmp_path / "out", method="mean", weights=[1, 2, 3])
    config = mergekit_yaml.config_of(tmp_path / "out")
    assert config
    full, plain = mergekit_makes(config, tmp_path), load_file(base / "model.safetensors")
    for name, factors in read_adapter(tmp_path / "out").items():
        want = plain[f"{name}.weight"].double() + dense(factors)
        torch.testing.assert_close(full[f"{name}.weight"].double(), want, rtol=0, atol=1e-6)
        assert (full[f"{name}.weight"] - plain[f"{name}.weight"]).abs().max() > 0.01
    (tmp_path / "again.yml").write_text(config)  # and we read what we wrote
    asked = mergekit_yaml.read_request(tmp_path / "again.yml")
    assert (asked.method, asked.base, asked.adapters) == ("mean", str(base), paths)
    assert asked.weights == pytest.approx([1 / 6, 2 / 6, 3 / 6])


def test_the_outputs_of_ftk_are_adapters_for_mergekit(tmp_path):
    base = trained_base(tmp_path / "base")
    merged = []
    for g in range(2):
        merge_adapters(
            [on_tiny(tmp_path / f"{g}{k}", 10 * g + k, base) for k in range(2)],
            tmp_path / f"out{g}",
            method="mean",
        )
        merged.append(tmp_path / f"out{g}")
    models = "".join(
        f"- {{model: '{base}+{path}', parameters: {{weight: 1.0}}}}\n" for path in merged
    )
    full = mergekit_makes(f"merge_method: linear\nmodels:\n{models}dtype: float32\n", tmp_path)
    merge_adapters(merged, tmp_path / "both", method="mean")
    plain = load_file(base / "model.safetensors")
    for name, factors in read_adapter(tmp_path / "both").items():
        torch.testing.assert_close(
            full[f"{name}.weight"].double(),
            plain[f"{name}.weight"].double() + dense(factors),
            rtol=0,
            atol=1e-6,
        )


def request(folder: Path, text: str):
    (folder / "config.yml").write_text(text)
    return mergekit_yaml.read_request(folder / "config.yml")


def test_mergekits_yaml_is_read(foreign, tmp_path):
    (tmp_path / "runs").symlink_to(foreign)
    text = """
merge_method: ties
base_model: org/base
models:
  - model: org/base
  - {model: org/base+runs/seed-0, parameters: {weight: 0.5}}
  - model: runs/seed-1
parameters: {density: 0.4, normalize: true, int8_mask: true}
dtype: bfloat16
tokenizer_source: base
"""
    asked = request(tmp_path, text)
    assert (asked.method, asked.parameters, asked.base, asked.weights) == (
        "ties",
        {"density": 0.4},
        "org/base",
        [0.5, 1.0],
    )
    assert (
        asked.adapters == [tmp_path / "runs/seed-0", tmp_path / "runs/seed-1"]
        and "bfloat16 is not used" in asked.notes[0]
    )
    plain = request(tmp_path, "merge_method: ties\nmodels: [{model: runs/seed-0}]\n")
    assert plain.parameters == {"density": 1.0}  # mergekit's default, not ours


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            "slices: []",
            "config.yml:4: 'slices': slices put layers of several models on top of each other",
        ),
        ("modules: {a: 1}", "config.yml:4: 'modules': modules merge the parts"),
        (
            "chat_template: chatml",
            "config.yml:4: 'chat_template': an adapter carries no chat template",
        ),
        ("tokenizer_source: union", "config.yml:4: 'tokenizer_source'"),
        ("base_model: [a, b]", "config.yml:4: 'base_model': should be the name or folder of"),
        ("base_model: {a: b}", "config.yml:4: 'base_model': should be the name or folder of"),
        ("dtyp: float32", "config.yml:4: unknown key 'dtyp'; did you mean 'dtype'?"),
        (
            "parameters: {densty: 1}",
            "config.yml:4: unknown key 'densty' in 'parameters'; did you mean 'density'?",
        ),
        (
            "parameters: {lambda: 2}",
            "config.yml:4: 'parameters.lambda': the merged change is not scaled here",
        ),
        (
            "parameters: {normalize: false}",
            "config.yml:4: 'parameters.normalize': weights are normalised here, and these sum to 2",
        ),
        (
            "parameters: {weight: [0.1, 0.9]}",
            "config.yml:4: 'parameters.weight': should be one number for all layers",
        ),
        (
            "parameters: {density: 0.5}",
            "config.yml:4: 'parameters.density': belongs to `merge_method: ties`",
        ),
        (
            "base_model: other/base",
            "config.yml:3: 'models': adapters of one base are merged; here are org/base, "
            "other/base",
        ),
    ],
)
def test_what_mergekits_yaml_asks_beyond_adapters_is_refused(foreign, tmp_path, changes, told):
    (tmp_path / "runs").symlink_to(foreign)
    head = (
        "# a comment\nmerge_method: linear\nmodels: [{model: org/base+runs/seed-0}, "
        "{model: runs/seed-1}]\n"
    )
    with pytest.raises(RecipeError) as error:
        request(tmp_path, head + changes + "\n")
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "merge_method: slerp\nmodels: []",
            "'merge_method': should be one of linear, task_arithmetic, ties (got 'slerp')",
        ),
        (
            "merge_method: [linear]\nmodels: []",
            "'merge_method': should be one of linear, task_arithmetic, ties (got ['linear'])",
        ),
        (
            "merge_method: {a: linear}\nmodels: []",
            "'merge_method': should be one of linear, task_arithmetic, ties (got {'a': 'linear'})",
        ),
        (
            "merge_method: linear\nmodels: [{model: org/base}]",
            "'org/base' is no folder with an adapter",
        ),
        (
            "merge_method: linear\nmodels: [{model: a, weight: 1}]",
            "unknown key 'weight' in 'models.0'",
        ),
        ("merge_method: linear\nmodels: a", "'models': should be a list"),
        ("- a", "a mapping with `merge_method` and `models` is expected"),
    ],
)
def test_wrong_yaml_is_told(tmp_path, text, told):
    with pytest.raises(RecipeError, match=re.escape(told)):
        request(tmp_path, text)


def test_merge_by_config_as_a_command(foreign, tmp_path):
    (tmp_path / "runs").symlink_to(foreign)
    text = (
        "merge_method: linear\nmodels: [{model: runs/seed-0, parameters: {weight: 3}}, "
        "{model: runs/seed-1}]\n"
    )
    (tmp_path / "config.yml").write_text(text)
    result = CliRunner().invoke(
        cli.main,
        [
            "merge",
            "--config",
            str(tmp_path / "config.yml"),
            "--out",
            str(tmp_path / "out"),
            "--json",
        ],
    )
    assert result.exit_code == cli.DONE and json.loads(result.stdout)["merged"][0]["k"] == 2
    inputs = json.loads((tmp_path / "out" / "merge.json").read_text())["inputs"]
    assert sorted(one["weight"] for one in inputs) == [0.25, 0.75]
    for wrong in (
        ["merge"],
        ["merge", "--config", str(tmp_path / "config.yml"), "--method", "mean"],
        ["merge", str(foreign)],
    ):
        assert CliRunner().invoke(cli.main, wrong).exit_code == cli.BAD_INPUT


# -- cards ---------------------------------------------------------------------------------------


def test_the_card_of_a_merge_names_what_went_in(foreign, tmp_path):
    from huggingface_hub import ModelCard

    paths = [foreign / "seed-0", foreign / "seed-1"]
    merge_adapters(paths, tmp_path / "out", method="mean", rank=2, base="org/model")
    text = write_card(tmp_path / "out").read_text()
    data = ModelCard(text).data.to_dict()
    assert (
        data["library_name"] == "peft"
        and data["base_model"] == "org/model"
        and {"lora", "merge"} <= set(data["tags"])
    )
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (
        all(read_adapter(path).sha256() in text for path in paths)
        and f"{record['energy']:.4f}" in text
    )
    assert str(foreign.parent) not in text  # nothing of this machine's folders
    merge_adapters(paths, tmp_path / "local", method="mean", base="/somewhere/model")
    assert "base_model" not in ModelCard(write_card(tmp_path / "local").read_text()).data.to_dict()


def test_a_folder_without_results_has_no_card(tmp_path):
    with pytest.raises(CardError, match="neither a merged adapter"):
        write_card(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lora_alpha", "8"),
        ("lora_alpha", True),
        ("lora_alpha", [8]),
        ("r", "2"),
        ("r", 2.0),
        ("use_rslora", "false"),
        ("use_rslora", 1),
    ]
    + [
        ("rank_pattern", {"q_proj": "2"}),
        ("rank_pattern", []),
        ("alpha_pattern", {"q_proj": "8"}),
        ("target_modules", [1]),
    ]
    + [
        ("modules_to_save", "lm_head"),
        ("bias", False),
        ("use_dora", "no"),
        ("layers_to_transform", "0"),
        ("lora_dropout", "0"),
    ],
)
def test_a_setting_of_another_type_is_refused_for_every_tool(tmp_path, key, value):
    path = by_peft(tmp_path / "a", 0)
    assert all(one.ok for one in check_adapter(path))
    edit(path, **{key: value})
    found = check_adapter(path)
    assert len(found) == 5 and not any(one.ok for one in found)
    assert {one.because.partition(" should be ")[0] for one in found} == {
        f"adapter_config.json cannot be read ({key}"
    } or isinstance(value, dict | list)
    with pytest.raises(
        AdapterError,
        match=f"adapter_config.json cannot be read .{key}.* should be .*; repair "
        "adapter_config.json",
    ):
        read_adapter(path)
