"""Is the embedded base a real base, and is there anything to mitigate? The last line is JSON.

Two bases: the pretrained one, and the same shape with random weights. Each gets its own learning
rate, chosen by exact match on the validation rows with seeds that are used for nothing else; then N
fresh replicas are trained and answer all suites.

    python benchmarks/embedded_base.py --out benchmarks/results/embedded_base.json
"""

import argparse
import statistics
from pathlib import Path

from result import finish

from toolkit import environment, seeds
from toolkit import statistics as st
from toolkit.answer.predict import generate
from toolkit.data import encode_prompt, encode_rows, parse_answer, read_rows, read_suite
from toolkit.embedded import pretrain, world
from toolkit.model.base import Base, load_base
from toolkit.model.stack import stacked
from toolkit.recipe import LoraCondition
from toolkit.recipe.schedule import plan_training
from toolkit.train import train_stack

RATES = (2e-3, 5e-3, 1e-2, 2e-2)
TUNING, MEASURING = 999, 0  # root seeds


def answers(base: Base, prompts: list, lr: float, root: int, replicas: int) -> list[list[str]]:
    """Parsed greedy answers of fresh two-epoch LoRA replicas, [replica][prompt]."""
    condition = LoraCondition(lr=lr, warmup=15, epochs=2)
    examples = encode_rows(read_rows("embedded"), base.tokenizer, max_length=512)
    plan = plan_training(
        condition,
        [len(e.ids) for e in examples],
        [sum(e.loss_mask) for e in examples],
        stack=8,
        device="cpu",
    )
    found: list[list[str]] = []
    for first in range(0, replicas, 8):
        seeds_R = [seeds.replica_seeds(root, r, seeds.SOURCES) for r in range(first, first + 8)]
        trained = train_stack(base.model, examples, condition, plan, seeds_R)
        with stacked(base.model) as stack:
            stack.load(trained.factors, trained.scale)
            ids = [encode_prompt(p, base.tokenizer) for p in prompts]
            spoken = generate(
                stack, ids, voices=8, eos_ids=base.eos_ids, max_new_tokens=40, top_k=1
            )
        found += [
            [parse_answer(base.tokenizer.decode(g.ids), "embedded") for g in row] for row in spoken
        ]
    return found


def exact(found: list[list[str]], references: list[str]) -> list[float]:
    return [
        statistics.mean(
            a == parse_answer(r, "embedded") for a, r in zip(row, references, strict=True)
        )
        for row in found
    ]


def study(base: Base, replicas: int) -> dict:
    validation = world.validation_rows()
    rates = {}
    for lr in RATES:
        found = answers(base, [row["prompt"] for row in validation], lr, TUNING, 8)
        rates[lr] = statistics.median(exact(found, [row["completion"] for row in validation]))
    best = max(rates, key=rates.__getitem__)
    suites = {shift: read_suite("embedded@1", name=shift) for shift in ("typical", "near", "far")}
    found = answers(
        base, [p.prompt for asked in suites.values() for p in asked], best, MEASURING, replicas
    )
    result: dict = {
        "learning_rate": best,
        "validation_exact_match_by_rate": {str(lr): value for lr, value in rates.items()},
    }
    start = 0
    for shift, asked in suites.items():
        part = [row[start : start + len(asked)] for row in found]
        start += len(asked)
        known = [i for i, p in enumerate(asked) if p.reference]
        accuracy = exact(
            [[row[i] for i in known] for row in part], [asked[i].reference or "" for i in known]
        )
        clusters = {name: n for n, name in enumerate(dict.fromkeys(p.cluster for p in asked))}
        codes = st.encode(part)
        cluster_P = st.encode([[p.cluster for p in asked]])[0]
        result[shift] = {
            "prompts": len(asked),
            "clusters": len(clusters),
            "exact_match_median": statistics.median(accuracy),
            "exact_match_by_replica": accuracy,
            "disagreement": st.disagreement(codes, cluster_P=cluster_P).to_dict(),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--replicas", type=int, default=8, help="fresh replicas of each base, a multiple of 8"
    )
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    environment.make_deterministic("cpu")
    base = load_base("embedded")
    pretrained = study(base, arguments.replicas)
    ids = base.model.config
    random = pretrain.new_model(ids.eos_token_id, ids.pad_token_id).eval().requires_grad_(False)
    control = study(Base(**{**vars(base), "model": random}), arguments.replicas)
    result = {"replicas": arguments.replicas, "pretrained": pretrained, "random_init": control}
    finish(result, arguments.out)


if __name__ == "__main__":
    main()
