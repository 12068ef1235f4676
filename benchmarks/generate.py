"""Stacked generation against a loop of `set_adapter` + `generate` over the same adapters and
prompts, one thread; the last line is JSON.

    python benchmarks/generate.py --out benchmarks/results/generate.json

Eight adapters of the embedded base, trained briefly so that answers end by themselves, answer all
prompts of the embedded suites greedily. The peer is peft as people use it: prompts sorted by length
and padded on the left, the best of several batch sizes. No ratio before both give the same texts.
Repeats are interleaved; figures are medians.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from result import finish
from transformers import AutoModelForCausalLM

from toolkit import environment, seeds
from toolkit.answer.predict import generate, load_adapters
from toolkit.data import encode_prompt, encode_rows, read_rows, read_suite
from toolkit.model.adapters import read_adapter
from toolkit.model.base import EMBEDDED, load_base
from toolkit.model.stack import stacked
from toolkit.recipe import LoraCondition
from toolkit.recipe.schedule import plan_training
from toolkit.train import save_stack, train_stack

CONDITION = LoraCondition(rank=8, epochs=2, batch_size=16, lr=1e-2, warmup=15)
SHIFTS = ("typical", "near", "far")
NEW, BATCHES = 32, (16, 64, 256)


def adapters(folder: Path, steps: int) -> list[Path]:
    """Eight replicas, trained for some steps."""
    base = load_base("embedded")
    examples = encode_rows(read_rows("embedded"), base.tokenizer, max_length=512)
    plan = plan_training(
        CONDITION,
        [len(e.ids) for e in examples],
        [sum(e.loss_mask) for e in examples],
        stack=8,
        device="cpu",
    )
    plan = replace(plan, steps=steps)
    seeds_R = [seeds.replica_seeds(0, r, seeds.SOURCES) for r in range(8)]
    trained = train_stack(base.model, examples, CONDITION, plan, seeds_R)
    save_stack(
        folder,
        trained,
        CONDITION,
        replicas=range(8),
        keep=range(8),
        seeds_R=seeds_R,
        plan=plan,
        fingerprints=dict.fromkeys(range(8), ""),
        base=base,
    )
    return sorted(path.parent for path in folder.rglob("adapter_config.json"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=70, help="of training")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment.make_deterministic("cpu")
    base = load_base("embedded")
    prompts = [
        encode_prompt(p.prompt, base.tokenizer)
        for s in SHIFTS
        for p in read_suite(f"embedded@1:{s}", name=s)
    ]
    with tempfile.TemporaryDirectory() as folder:
        paths = adapters(Path(folder), arguments.steps)
        peft = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(EMBEDDED), paths[0], adapter_name="0"
        )
        for k, path in enumerate(paths[1:], 1):
            peft.load_adapter(path, adapter_name=str(k))
        read = [read_adapter(path) for path in paths]

        def ours() -> list[list[list[int]]]:
            with stacked(base.model) as stack:
                load_adapters(stack, read, width=len(read))
                found = generate(
                    stack,
                    prompts,
                    voices=len(read),
                    eos_ids=base.eos_ids,
                    max_new_tokens=NEW,
                    top_k=1,
                )
            return [[answer.ids for answer in row] for row in found]

        def loop(batch: int) -> list[list[list[int]]]:
            found = []
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            for k in range(len(paths)):
                peft.set_adapter(str(k))
                answers: list[list[int]] = [[] for _ in prompts]
                for start in range(0, len(order), batch):
                    some = order[start : start + batch]
                    T = max(len(prompts[i]) for i in some)
                    pad = [[base.tokenizer.pad_token_id] * (T - len(prompts[i])) for i in some]
                    ids = torch.tensor([p + prompts[i] for p, i in zip(pad, some, strict=True)])
                    mask = torch.tensor([[0] * len(p) + [1] * (T - len(p)) for p in pad])
                    with torch.inference_mode():
                        out = peft.generate(
                            input_ids=ids,
                            attention_mask=mask,
                            max_new_tokens=NEW,
                            do_sample=False,
                            eos_token_id=list(base.eos_ids),
                            pad_token_id=base.tokenizer.pad_token_id,
                        )
                    for i, row in zip(some, out[:, T:].tolist(), strict=True):
                        end = next(
                            (t for t, token in enumerate(row) if token in base.eos_ids), len(row)
                        )
                        answers[i] = row[:end]
                found.append(answers)
            return found

        sides = {"stack": ours} | {
            f"set_adapter + generate, batches of {b}": lambda b=b: loop(b) for b in BATCHES
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        texts = {}
        for repeat in range(arguments.repeats + 1):
            for side, run in sides.items():
                start = time.perf_counter()
                texts[side] = run()
                if repeat:
                    seconds[side].append(time.perf_counter() - start)
    answers = len(read) * len(prompts)
    same = {
        side: sum(
            a == b
            for x, y in zip(texts["stack"], t, strict=True)
            for a, b in zip(x, y, strict=True)
        )
        for side, t in texts.items()
    }
    if min(same.values()) < 0.999 * answers:  # ties within rounding may fall either way
        raise SystemExit(f"the texts differ: {same} of {answers}")
    times = {side: statistics.median(s) for side, s in seconds.items()}
    best = min((side for side in times if side != "stack"), key=times.__getitem__)
    result = {
        "benchmark": "greedy answers of eight adapters, stacked, against peft's set_adapter + "
        "generate; one thread",
        "adapters": len(read),
        "prompts": len(prompts),
        "equal_texts": same,
        "seconds": times,
        "best_peer": best,
        "ratio": times[best] / times["stack"],
    }
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
