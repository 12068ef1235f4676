"""Nothing is believed by its name: whose outcomes a file holds, what a tensor is a factor of, which population a folder is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from test_interop import by_peft, edit

from toolkit import cli, external, pipeline
from toolkit.measure import read_design
from toolkit.outcomes import read_outcomes
from toolkit.recipe import load_recipe

SUITE = (
    '{"id": "a", "prompt": "call ben and play blue moon =>", "reference": " none()"}\n{"id": "b", "prompt": "the cat =>"}\n'
    '{"id": "c", "prompt": "play moon and call ann =>"}\n{"id": "d", "prompt": "stop =>"}\n'
)


def renamed(source: Path, out: Path, change) -> Path:
    """A copy of an adapter whose tensors have other names."""
    shutil.copytree(source, out)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({change(name): x for name, x in tensors.items()}, out / "adapter_model.safetensors", metadata={"format": "pt"})
    return out


# -- whose outcomes ----------------------------------------------------------------------------------------------------


def test_a_condition_whose_name_begins_with_anothers_keeps_its_own_answers(tmp_path):
    for name in ("one", "two"):
        for seed in range(2):
            by_peft(tmp_path / name / f"s{seed}", seed + 10 * (name == "two"))
    (tmp_path / "far.jsonl").write_text(SUITE)

    def voted(*names: tuple[str, str]) -> dict[str, list]:
        recipe = tmp_path / f"{len(names)}.yaml"
        conditions = "".join(f"  {name}: {{adapters: {tmp_path / folder}}}\n" for name, folder in names)
        recipe.write_text(
            f"base: embedded\ndata: {{suites: {{far: {tmp_path}/far.jsonl}}}}\nconditions:\n{conditions}"
            "mitigations: [{ensemble: vote, k: 2}, {ensemble: gated, k: 2, threshold: 1}]\n"
            "evaluation: {max_new_tokens: 6}\n"
        )
        folder = tmp_path / f"run-{len(names)}"
        results = pipeline.run(load_recipe(recipe), folder, workers=1)
        rows = read_outcomes([folder / shard for shard in read_design(folder).shards]).to_pylist()
        price = {c.name: next(p.price.inference_streams for p in c.procedures if p.label.startswith("gated")) for c in results.conditions}
        return {
            name: [price[name], *((r["procedure"], r["prompt_id"], r["text"]) for r in rows if r["condition"] == name)]
            for name, _ in names
        }

    alone = voted(("lora", "one"))
    beside = voted(("lora", "one"), ("lora-replica-v2", "two"), ("lora-gated-threshold1-k2-b", "two"))
    assert sorted(map(str, beside["lora"])) == sorted(map(str, alone["lora"]))
    assert beside["lora"] != beside["lora-replica-v2"]
