"""Bases, adapters and models that tests make."""

import torch
from transformers import PreTrainedTokenizerFast

from helpers.tiny import tiny_model
from toolkit.model.adapters import read_adapter, write_adapter
from toolkit.model.stack import stacked


def draw(generator, centre, noise, shapes, r=2):
    """Factors whose change is a common part and a part of its own."""
    factors = {}
    for name, (out, into) in shapes.items():
        A, B = torch.randn(r, into, generator=generator), torch.randn(out, r, generator=generator)
        C, D = centre[name]
        factors[name] = torch.cat([C, noise * A]), torch.cat([D, B], 1)
    return factors


def on_the_base(folder, base, count, size, r=2):
    """Adapters with random changes of layers of the embedded base."""
    with stacked(base.model) as stack:
        shapes = {
            name: (layer.out_features, layer.in_features)
            for name, layer in stack.layers.items()
            if name.endswith("v_proj")
        }
    adapters = []
    for k in range(count):
        draw = torch.Generator().manual_seed(k)
        factors = {
            n: (size * torch.randn(r, i, generator=draw), torch.randn(o, r, generator=draw))
            for n, (o, i) in shapes.items()
        }
        write_adapter(
            folder / f"{k:02d}", factors, r=r, alpha=r, target_modules=["v_proj"], base="embedded"
        )
        adapters.append(read_adapter(folder / f"{k:02d}"))
    return adapters


def random_adapters(model, folder, n, spread=0.2):
    generator = torch.Generator().manual_seed(3)
    with stacked(model) as stack:
        shapes = {
            name: (layer.in_features, layer.out_features, layer.is_conv)
            for name, layer in stack.layers.items()
        }
    for k in range(n):
        draw = {
            name: (
                torch.randn(2, i, generator=generator) * spread,
                torch.randn(o, 2, generator=generator) * spread,
            )
            for name, (i, o, _) in shapes.items()
        }
        targets = sorted({name.rsplit(".", 1)[-1] for name in draw})
        conv = any(conv for *_, conv in shapes.values())
        write_adapter(
            folder / f"a{k}",
            draw,
            r=2,
            alpha=4.0,
            target_modules=targets,
            base=None,
            fan_in_fan_out=conv,
        )
    return [folder / f"a{k}" for k in range(n)]


def model_folder(path, kind="qwen2", dtype=torch.float32):
    """A tiny model with a tokenizer, as a hub folder has them."""
    from tokenizers import Tokenizer, models

    tiny_model(kind, dtype).save_pretrained(path)
    vocabulary = {f"t{i}": i for i in range(64)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t1"))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t1", eos_token="t0"
    ).save_pretrained(path)
    return path
