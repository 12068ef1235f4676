"""A GPU whose memory is too small gets narrower stacks, and the run remembers them. The device is
played; no GPU is needed.
"""

import pytest
import torch
from helpers.tiny import tiny_base

import toolkit.train
from toolkit.pipeline import fitting
from toolkit.pipeline.job import RunError
from toolkit.pipeline.opening import resolve_auto
from toolkit.pipeline.train_stacks import TrainingUnit, train_unit, training_plan
from toolkit.recipe import dump_recipe, load_recipe


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {tiny_base(tmp_path / 'base')}\ndata: {{train: embedded}}\nreplicas: "
        "8\ndtype: float32\nconditions:\n"
        "  lora: {rank: 2, epochs: 0.1, batch_size: 8}\n  longer: "
        "{from: lora, epochs: 0.2}\n  chosen: {from: lora, stack: 4}\n"
    )
    return load_recipe(path)


def test_a_stack_is_halved_until_a_step_fits(recipe, monkeypatch):
    tried = []

    def fits(recipe, name, device, width):
        tried.append((name, width))
        return width <= (2 if name == "lora" else 1000)

    monkeypatch.setattr(fitting, "fits", fits)
    planned = training_plan(recipe, "lora", "cpu")[0].stack
    fitted = fitting.fit_stacks(recipe, "cpu")
    assert planned > 2 and {name: one.stack for name, one in fitted.trained.items()} == {
        "lora": 2,
        "longer": planned,
        "chosen": 4,
    }
    assert tried == [
        *(("lora", planned // 2**k) for k in range(planned.bit_length() - 1)),
        ("longer", planned),
    ]
    assert training_plan(fitted, "lora", "cpu")[0].stack == 2
    whole = recipe.model_copy(update={"stack": 16})
    assert fitting.fit_stacks(whole, "cpu") == whole


def test_not_even_one_replica(recipe, monkeypatch):
    monkeypatch.setattr(fitting, "fits", lambda *_: False)
    with pytest.raises(
        RunError, match=r"conditions\.lora: not even one replica fits .* `batch_size`"
    ):
        fitting.fit_stacks(recipe, "cpu")


def test_what_a_step_says(recipe, monkeypatch):
    assert fitting.fits(recipe, "lora", "cpu", 4)
    seen = []

    def full(model, examples, condition, plan, seeds_R, **_):
        seen.append((plan.stack, plan.steps, len(seeds_R)))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(fitting, "train_stack", full)
    assert not fitting.fits(recipe, "lora", "cpu", 4) and seen == [(4, 1, 4)]


def test_a_run_keeps_the_stack_of_its_first_replica(recipe, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    narrow = recipe.trained["lora"].model_copy(update={"stack": 2})
    (run / "recipe.yaml").write_text(
        dump_recipe(recipe.model_copy(update={"conditions": {**recipe.conditions, "lora": narrow}}))
    )
    settled = resolve_auto(recipe, "cpu", run)
    assert {name: one.stack for name, one in settled.trained.items()} == {
        "lora": 2,
        "longer": None,
        "chosen": 4,
    }


def test_a_gpu_that_is_full_ends_in_one_line(recipe, tmp_path, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(toolkit.train, "train_stack", full)
    plan, mark = training_plan(recipe, "lora", "cpu")
    unit = TrainingUnit(recipe, "lora", tmp_path / "lora", 0, (0,), plan, {0: mark}, "cpu")
    with pytest.raises(
        RunError, match=rf"a stack of {plan.stack} does not fit .* `stack: {plan.stack // 2}`"
    ) as caught:
        train_unit(unit, lambda share: None)
    assert "\n" not in str(caught.value)
