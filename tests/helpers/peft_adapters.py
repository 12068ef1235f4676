"""Adapters as peft writes them, and as other tools change them."""

import json
from pathlib import Path

import peft
import torch

from toolkit.model.base import load_base


def by_peft(folder: Path, seed: int, *, model=None, **config) -> Path:
    """An adapter as peft saves it, with a change that is felt."""
    torch.manual_seed(seed)
    settings = {
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "v_proj"],
    } | config
    tuned = peft.get_peft_model(model or fresh_base(), peft.LoraConfig(**settings))
    for name, parameter in tuned.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(folder)
    return folder


def fresh_base():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(load_base("embedded").source)


def edit(folder: Path, **changes) -> None:
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
