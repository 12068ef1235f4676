"""Merging as a user meets it: recipes, the shell, full models, and soups that are scored on
prompts.
"""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.bases import model_folder
from helpers.tiny import generated
from transformers import AutoModelForCausalLM, AutoTokenizer

from toolkit import cli
from toolkit.merging import merge_adapters, merge_into_base
from toolkit.model import delta
from toolkit.model.adapters import AdapterError, read_adapter, write_adapter
from toolkit.model.base import EMBEDDED
from toolkit.pipeline.merge_groups import MergeUnit, is_merged, merge_unit, merge_units
from toolkit.recipe import Mitigation
from toolkit.record.population import Replica

pytestmark = pytest.mark.filterwarnings("ignore")


def layers(model, suffixes):
    for name, module in model.named_modules():
        if name.endswith(suffixes):
            O, I = (
                module.weight.T.shape if type(module).__name__ == "Conv1D" else module.weight.shape
            )
            yield name, O, I


def adapters(folder, base, suffixes=("q_proj", "down_proj"), K=3, size=0.02, r=2):
    model = AutoModelForCausalLM.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    paths = []
    for k in range(K):
        factors = {
            name: (
                torch.randn(r, I, generator=generator),
                size * torch.randn(O, r, generator=generator),
            )
            for name, O, I in layers(model, suffixes)
        }
        paths.append(folder / f"{k:05d}")
        targets = [suffix.split(".")[-1] for suffix in suffixes]
        write_adapter(paths[-1], factors, r=r, alpha=2 * r, target_modules=targets, base=str(base))
    return paths


def mean_change(paths):
    names = read_adapter(paths[0]).modules
    return {
        name: sum(
            (delta.dense(read_adapter(path).factors(name)) for path in paths), torch.zeros(())
        )
        / len(paths)
        for name in names
    }


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(24).reshape(2, 12) % 64).logits.double()


# #
# -------------------------------------------------------------------------------------------------
# full models


@pytest.mark.parametrize(
    ("kind", "suffixes"), [("qwen2", ("q_proj", "down_proj")), ("gpt2", ("c_attn", "c_proj"))]
)
def test_a_full_model_is_the_base_with_the_change(tmp_path, kind, suffixes):
    base = model_folder(tmp_path / "base", kind)
    paths = adapters(tmp_path / "in", base, suffixes)
    report = merge_into_base(paths, tmp_path / "out", method="mean")
    want = AutoModelForCausalLM.from_pretrained(base).double()
    plain = logits(want)
    with torch.no_grad():
        for name, D in mean_change(paths).items():
            transposed = type(want.get_submodule(name)).__name__ == "Conv1D"
            want.get_parameter(f"{name}.weight").add_(D.T if transposed else D)
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(got), logits(want), rtol=0, atol=1e-4)
    assert (logits(want) - plain).abs().max() > 0.01
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "t0"
    record = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert (
        record["base"] == str(base) and record["dtype"] == "float32" and len(record["inputs"]) == 3
    )
    assert report.rounding < 1e-5 and report.energy == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["base", "in", "out"]
    # a merge may be written again
    assert merge_into_base(paths, tmp_path / "out", method="ties", rank=1).energy < 1


def test_what_bfloat16_weights_lose_is_told(tmp_path):
    """Small changes drown in the rounding of the weights; the figure is that of the written
    file.
    """
    base = model_folder(tmp_path / "base", dtype=torch.bfloat16)
    paths = adapters(tmp_path / "in", base, size=2e-4)
    report = merge_into_base(paths, tmp_path / "out", method="mean")
    before, after = (
        AutoModelForCausalLM.from_pretrained(base),
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
    )
    lost = total = 0.0
    for name, D in mean_change(paths).items():
        found = (
            after.get_parameter(f"{name}.weight").detach().double()
            - before.get_parameter(f"{name}.weight").detach().double()
        )
        lost, total = lost + float((found - D).square().sum()), total + float(D.square().sum())
    assert (
        report.dtype == "bfloat16"
        and report.rounding == pytest.approx((lost / total) ** 0.5, rel=1e-6)
        and report.rounding > 0.1
    )


def test_models_that_cannot_be_are_refused(tmp_path):
    base = model_folder(tmp_path / "base")
    paths = adapters(tmp_path / "in", base)
    head = adapters(tmp_path / "head", base, ("lm_head",))
    other = adapters(tmp_path / "other", model_folder(tmp_path / "neox", "gpt-neox"), ("dense",))
    with pytest.raises(AdapterError, match="lm_head shares its weight with model.embed_tokens"):
        merge_into_base(head, tmp_path / "out", method="mean")
    with pytest.raises(AdapterError, match="has no linear layer"):
        merge_into_base(other, tmp_path / "out", method="mean", base=str(base))
    with pytest.raises(AdapterError, match="cannot be loaded"):
        merge_into_base(paths, tmp_path / "out", method="mean", base=str(tmp_path / "in"))
    with pytest.raises(AdapterError, match="no merged model"):
        merge_into_base(paths, paths[0], method="mean")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


# #
# -------------------------------------------------------------------------------------------------
# recipes


def replica_folders(folder, K=4):
    paths = []
    for k in range(K):
        generator = torch.Generator().manual_seed(k)
        path = folder / "replicas" / f"{k:05d}"
        write_adapter(
            path,
            {
                "q_proj": (
                    torch.randn(2, 8, generator=generator),
                    torch.randn(6, 2, generator=generator),
                )
            },
            r=2,
            alpha=4,
            target_modules=["q_proj"],
            base="org/base",
        )
        (path / "replica.json").write_text(Replica(k, "ok", {}, 1, 0.0).to_json())
        paths.append(path)
    return paths


@pytest.mark.parametrize(
    ("mitigation", "others"),
    [
        (
            {"merge": "ties", "k": 2, "density": 0.5},
            [{"density": 0.2}, {"rank": 2}, {"merge": "dare"}],
        ),
        ({"merge": "dare", "k": 2}, [{"seed": 1}, {"density": 0.9}]),
        ({"merge": "mean", "k": 2, "rank": 2}, [{"rank": "full"}, {"merge": "shrink"}]),
    ],
)
def test_only_the_same_merge_of_the_same_inputs_counts_as_done(tmp_path, mitigation, others):
    replica_folders(tmp_path)
    units = merge_units(tmp_path, range(4), Mitigation.model_validate(mitigation))
    assert len(units) == 2
    for unit in units:
        merge_unit(unit, lambda share: None)
        assert is_merged(unit)
    assert merge_units(tmp_path, range(4), Mitigation.model_validate(mitigation)) == []
    unit = units[0]
    for other in others:
        changed = Mitigation.model_validate({**mitigation, **other})
        asked = MergeUnit(unit.sources, unit.out, changed.method, changed.rank, changed.parameters)
        assert not is_merged(asked), other
    assert not is_merged(
        MergeUnit(units[1].sources, unit.out, unit.method, unit.rank, unit.parameters)
    )
    assert not is_merged(
        MergeUnit(unit.sources[:1], unit.out, unit.method, unit.rank, unit.parameters)
    )
    config = unit.sources[0] / "adapter_config.json"
    # the same tensors, another change
    config.write_text(config.read_text().replace('"lora_alpha": 4', '"lora_alpha": 8'))
    assert not is_merged(unit)


# #
# -------------------------------------------------------------------------------------------------
# the shell


def ftk(*arguments):
    return CliRunner().invoke(cli.main, [str(a) for a in arguments], catch_exceptions=False)


def test_merging_from_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = replica_folders(tmp_path / "c")
    result = ftk(
        "merge",
        "c/replicas",
        "--method",
        "della",
        "--set",
        "density=0.6",
        "--set",
        "seed=7",
        "--groups",
        2,
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["merged"]
    assert [one["out"] for one in found] == [
        f"c/replicas/merged/della-density0.6-epsilon0.15-seed7-k2/g00{g}" for g in (0, 1)
    ]
    record = json.loads(Path(found[1]["out"], "merge.json").read_text())
    assert record["parameters"] == {"density": 0.6, "epsilon": 0.15, "seed": 7, "rank": "full"}
    assert [Path(one["path"]).name for one in record["inputs"]] == ["00002", "00003"]
    result = ftk("merge", *paths, "--method", "ties", "--density", "0.5", "--rank", 1, "--out", "t")
    assert "t: ties of 4 adapters, rank 1, energy kept 0." in result.stdout
    result = ftk("merge", *paths, "--method", "mean", "--rank", 1, "--buffer", 1, "--out", "b")
    assert "error at most" in result.stdout
    result = ftk(
        "merge", *paths, "--method", "mergekit:karcher", "--set", "max_iter=3", "--out", "m"
    )
    assert (
        result.exit_code == 0
        and json.loads((tmp_path / "m/merge.json").read_text())["versions"]["mergekit"]
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            "--method ties --set densty=0.5",
            "unknown parameter 'densty' of merge method ties; did you mean 'density'?",
        ),
        ("--method ties --set density", "--set 'density': write it as name=value"),
        ("--method ties --density 2", "'--density': 2.0 is not in the range"),
        ("--method dare --set seed=x", "seed 'x' is impossible: a whole number from 0"),
        ("--method tie", "unknown merge method 'tie'; did you mean 'ties'?"),
        ("--method mergekit:slerp", "mergekit:slerp needs 't'"),
        ("--method greedy_soup", "--prompts SUITE belongs to greedy_soup"),
        ("--method mean --prompts x.jsonl", "--prompts SUITE belongs to greedy_soup"),
        (
            "--method mean --buffer 4",
            "a buffer goes with a rank that is a number or same, not 'full'",
        ),
        ("--method mean --dense --base ./nowhere", "'./nowhere' cannot be loaded"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    replica_folders(tmp_path / "c")
    result = ftk("merge", "c/replicas", *options.split(), "--out", "out")
    assert (
        result.exit_code == cli.BAD_INPUT
        and told in result.stderr
        and result.stderr.count("\n") == 1
    ), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("score", ["accuracy", "logprob"])
def test_a_greedy_soup_from_the_shell(tmp_path, monkeypatch, score):
    """Of three adapters on the embedded model one is wild: it answers nothing right, and the soup
    leaves it out.
    """
    monkeypatch.chdir(tmp_path)
    paths = adapters(tmp_path / "in", EMBEDDED, ("q_proj",), size=1e-3)
    wild = read_adapter(paths[1])
    factors = {name: (A, 3e4 * B) for name, (A, B, _) in wild.items()}
    write_adapter(paths[1], factors, r=2, alpha=4, target_modules=["q_proj"], base=str(EMBEDDED))
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    rows = []
    for i, prompt in enumerate(
        ["the sun", "one two", "a small house"]
    ):  # what the base says is right
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        out = generated(model, ids, max_new_tokens=64, do_sample=False)[0, ids.shape[1] :]
        rows.append(
            {
                "id": str(i),
                "prompt": prompt,
                "reference": tokenizer.decode(out, skip_special_tokens=True),
            }
        )
    Path("suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = ftk(
        "merge",
        "in",
        "--method",
        "greedy_soup",
        "--prompts",
        "suite.jsonl",
        "--score",
        score,
        "--out",
        "soup",
    )
    assert result.exit_code == 0, result.stderr
    steps = json.loads(Path("soup/merge.json").read_text())["soup"]
    kept = {Path(step["path"]).name: step["kept"] for step in steps}
    assert (
        len(steps) == 3
        and steps[-1]["path"].endswith("00001")
        and not kept["00001"]
        and kept[Path(steps[0]["path"]).name]
    )
    Path("bare.jsonl").write_text('{"id": "0", "prompt": "the sun"}\n')
    result = ftk("merge", "in", "--method", "greedy_soup", "--prompts", "bare.jsonl", "--out", "no")
    assert result.exit_code == cli.BAD_INPUT and "no prompt has a reference" in result.stderr
    assert merge_adapters(paths[::2], tmp_path / "mean", method="mean").energy == pytest.approx(1)
