"""Stacked training against what people do today, in one run; the last line is JSON.

    python benchmarks/train.py --out benchmarks/results/train.json
    python benchmarks/train.py --workloads G-A G-B G-C --out benchmarks/results/train-gpu.json
    python benchmarks/train.py --workloads --campaign --out benchmarks/results/campaign-gpu.json

Workloads C1 to C3 (random Llama-shaped bases, LoRA of rank 8 on all linear layers, dropout 0.05,
clipping and schedule on) and the embedded default; on a GPU G-A to G-C, of the shape of
Qwen2.5-0.5B with rank 16 (`--device cpu` runs them on a CPU, which takes hours). Peers: a plain
peft loop in float32 and with bfloat16 autocast, the same compiled, peft under the Hugging Face
Trainer, and torch.func.vmap over peft adapters. One thread each, or one GPU, where peers need not
be deterministic; repeats are interleaved; figures are medians of milliseconds for one step of one
replica, and tokens are real ones. `--cold` times fresh processes, `--cores` the faster loop and the
stack in one process for every core, `--end-to-end` a replica of the embedded default from the
shell: `ftk train-replicas` against a script with the Trainer. `--campaign` (G-D) trains 512
replicas of G-A's shape from the shell while the run is killed three times, and lets `ftk verify`
train one stack again.

No ratio is printed before the gates hold in the same run. G1: gradients of one step and 20 losses
equal those of the peft loop (float32). G2: a rerun and another order of replicas give the same
bits. G3: a replica with NaN leaves the others' bits alone.
"""

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from result import finish
from torch.nn.utils import clip_grad_norm_
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
    get_scheduler,
)

from toolkit import environment, seeds
from toolkit.data import Example, encode_rows, read_rows
from toolkit.model.base import EMBEDDED, fastest_dtype, load_base
from toolkit.model.stack import stacked
from toolkit.recipe import LoraCondition
from toolkit.recipe.schedule import head_piece, plan_training
from toolkit.train import batch_rows, initial_factors, loop, train_stack


@dataclass(frozen=True)
class Shape:
    """A base, and rows of random tokens; `completion`: the share of them, at the end, that has a
    loss.
    """

    hidden: int
    layers: int
    inner: int
    vocabulary: int
    heads: int
    rows: int
    tokens: int
    rank: int = 8
    kv_heads: int | None = None
    completion: float = 1.0


QWEN = Shape(896, 24, 4864, 151_936, 14, 4, 512, rank=16, kv_heads=2)
SHAPES = {
    "C1": Shape(64, 2, 176, 512, 4, 2, 32),
    "C2": Shape(256, 4, 704, 2048, 4, 4, 64),
    "C3": Shape(512, 8, 1408, 8192, 8, 4, 128),
    "G-A": QWEN,
    "G-B": replace(QWEN, rows=1, tokens=256),
    "G-C": replace(QWEN, completion=0.25),
}
STEPS = {"C1": 60, "C2": 12, "C3": 4, "embedded": 20, "G-A": 12, "G-B": 12, "G-C": 12}
GATED = 4
"""replicas of a stack that the gates look at on a GPU, where a whole one does not fit in float32"""


def random_base(shape: Shape) -> PreTrainedModel:
    """A Llama or, with fewer key-value heads, a Qwen2 of this shape with random weights."""
    torch.manual_seed(0)
    common = {
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
    }
    common |= {
        "vocab_size": shape.vocabulary,
        "num_attention_heads": shape.heads,
        "tie_word_embeddings": True,
    }
    if shape.kv_heads is None:
        return LlamaForCausalLM(LlamaConfig(**common, max_position_embeddings=shape.tokens)).eval()
    return Qwen2ForCausalLM(
        Qwen2Config(
            **common, num_key_value_heads=shape.kv_heads, max_position_embeddings=shape.tokens
        )
    ).eval()


class Workload:
    """A base, training rows, a condition; and the same replicas trained by each side."""

    def __init__(self, name: str, device: str = "cpu"):
        self.name, self.steps, self.device = name, STEPS[name], device
        common = {"epochs": 2, "warmup": 15, "clip": 1.0}
        if name == "embedded":
            base = load_base("embedded")
            self.condition = LoraCondition(**common, rank=8, batch_size=16, lr=1e-2)
            self.examples = encode_rows(read_rows("embedded"), base.tokenizer, max_length=512)
            self.model = base.model
        else:
            shape = SHAPES[name]
            self.condition = LoraCondition(
                **common, rank=shape.rank, batch_size=shape.rows, lr=1e-3, dropout=0.05
            )
            rng = np.random.default_rng(0)
            rows = [rng.integers(1, shape.vocabulary, shape.tokens).tolist() for _ in range(256)]
            prompt = max(1, round((1 - shape.completion) * shape.tokens))
            mask = [False] * prompt + [True] * (shape.tokens - prompt)
            self.examples = [Example(ids, mask, prompt, prompt="", completion="") for ids in rows]
            self.model = random_base(shape).to(
                device, torch.bfloat16 if device == "cuda" else torch.float32
            )
        lengths, targets = (
            [len(e.ids) for e in self.examples],
            [sum(e.loss_mask[1:]) for e in self.examples],
        )
        plan = plan_training(self.condition, lengths, targets, stack=None, device=device)
        plan = replace(plan, piece=head_piece(plan, self.model.config.vocab_size, device))
        self.plan = replace(plan, steps=self.steps)  # the schedule of a short run, on every side
        self.seeds_R = [seeds.replica_seeds(0, r, seeds.SOURCES) for r in range(plan.stack)]
        self.tokens = statistics.mean(lengths) * self.condition.batch_size

    def stack(self, dtype: torch.dtype, compiled: bool, **changes):
        """Seconds of one step of one replica, and what was trained."""
        plan = replace(
            self.plan, compiled=compiled, **{k: v for k, v in changes.items() if k == "steps"}
        )
        seeds_R = changes.get("seeds_R", self.seeds_R)
        model = copy.deepcopy(self.model).to(dtype)
        marks = [time.perf_counter()]
        trained = train_stack(
            model,
            self.examples,
            changes.get("condition", self.condition),
            plan,
            seeds_R,
            on_step=lambda _: marks.append(self.now()),
        )
        return statistics.median(np.diff(marks)[1:]) / len(seeds_R), trained

    def now(self) -> float:
        """A clock that has waited for what was asked of the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def batch(self, step: int, seed: dict[str, int]):
        """Padded to the longest row of the batch, as a careful loop does."""
        batch = [
            self.examples[i]
            for i in batch_rows(self.plan, seed["order"], step)
            if i < self.plan.rows
        ]
        length = max(len(e.ids) for e in batch)
        ids = torch.tensor([[*e.ids, *[0] * (length - len(e.ids))] for e in batch])
        mask = torch.tensor([[1] * len(e.ids) + [0] * (length - len(e.ids)) for e in batch])
        labels = [
            [t if m else -100 for t, m in zip(e.ids, e.loss_mask, strict=True)]
            + [-100] * (length - len(e.ids))
            for e in batch
        ]
        return ids.to(self.device), mask.to(self.device), torch.tensor(labels, device=self.device)

    def adapted(self, dropout: float | None = None, dtype: torch.dtype | None = None):
        """The base with one fresh peft adapter, the stack's first one. dtype: of the base, if not
        its own.
        """
        condition = self.condition
        config = LoraConfig(
            r=condition.rank,
            lora_alpha=2 * condition.rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            lora_dropout=condition.dropout if dropout is None else dropout,
        )
        with stacked(self.model) as stack:
            initial = initial_factors(
                stack,
                condition.rank,
                [self.seeds_R[0]["init"]],
                torch.float32,
                torch.device(self.device),
            )
        model = get_peft_model(
            copy.deepcopy(self.model).to(dtype or self.model.dtype), config
        ).train()
        for name, (A, _) in initial.items():
            weight = model.get_parameter(f"base_model.model.{name}.lora_A.default.weight")
            weight.data.copy_(A[0].detach())
        return model

    def loop(
        self,
        autocast: bool = False,
        compiled: bool = False,
        steps: int | None = None,
        dropout: float | None = None,
        dtype: torch.dtype | None = None,
    ):
        """The plain peft loop: seconds of a step, losses, and the gradients of the first step."""
        model = self.adapted(dropout, dtype)
        forward: Callable = torch.compile(model, dynamic=False) if compiled else model
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, lr=self.condition.lr, weight_decay=0.0, fused=True
        )
        scheduler = get_scheduler("linear", optimizer, self.plan.warmup_steps, self.plan.steps)
        seconds, losses, first = [], [], {}
        for step in range(steps or self.steps):
            start = self.now()
            ids, mask, labels = self.batch(step, self.seeds_R[0])
            if (
                compiled and ids.shape[1] < self.plan.length
            ):  # one shape, or it would compile for every length
                pad = self.plan.length - ids.shape[1]
                ids, mask, labels = (
                    F.pad(ids, (0, pad)),
                    F.pad(mask, (0, pad)),
                    F.pad(labels, (0, pad), value=-100),
                )
            with torch.autocast(self.device, torch.bfloat16, enabled=autocast):
                logits = forward(input_ids=ids, attention_mask=mask).logits
            loss = F.cross_entropy(
                logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )
            loss.backward()
            first = first or {
                n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
            }
            clip_grad_norm_(parameters, self.condition.clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(self.now() - start)
        return statistics.median(seconds[1:]), losses, first

    def trainer(self):
        """peft under the Hugging Face Trainer: seconds of a step, from a whole run of `steps`."""
        ids, mask, labels = self.batch(0, self.seeds_R[0])
        rows = [
            {"input_ids": i, "attention_mask": m, "labels": y}
            for i, m, y in zip(ids, mask, labels, strict=True)
        ] * self.steps
        with tempfile.TemporaryDirectory() as folder:
            asked = TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=len(ids),
                max_steps=self.steps,
                learning_rate=self.condition.lr,
                warmup_steps=self.plan.warmup_steps,
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                use_cpu=self.device == "cpu",
                bf16=self.device == "cuda",
                disable_tqdm=True,
            )
            trainer = Trainer(model=self.adapted(), args=asked, train_dataset=rows)
            start = time.perf_counter()
            with contextlib.redirect_stdout(sys.stderr):
                trainer.train()
        return (time.perf_counter() - start) / self.steps

    def vmap(self):
        """torch.func.vmap over the adapters of one stack: seconds of a step of a replica."""
        model = self.adapted(dropout=0.0)  # its dropout has no key of its own for a replica
        model.set_attn_implementation("eager")
        names = [n for n, p in model.named_parameters() if p.requires_grad]
        R = self.plan.stack
        frozen = {n: p.detach() for n, p in model.named_parameters() if n not in names}
        mine = {
            n: p.detach().expand(R, *p.shape).clone()
            for n, p in model.named_parameters()
            if n in names
        }
        optimizer = torch.optim.AdamW(
            list(mine.values()), lr=self.condition.lr, weight_decay=0.0, fused=True
        )

        def loss(own, ids, labels):
            logits = torch.func.functional_call(
                model, {**frozen, **own}, (), {"input_ids": ids, "use_cache": False}
            ).logits
            return F.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
            )

        step = torch.func.vmap(torch.func.grad(loss))
        T, seconds = self.plan.length, []
        for number in range(self.steps):
            start = time.perf_counter()
            batches = [self.batch(number, seed) for seed in self.seeds_R]
            ids = torch.stack([F.pad(b[0], (0, T - b[0].shape[1])) for b in batches])
            labels = torch.stack([F.pad(b[2], (0, T - b[2].shape[1]), value=-100) for b in batches])
            for name, gradient in step(mine, ids, labels).items():
                mine[name].grad = gradient
            for r in range(R):
                clip_grad_norm_([m.grad[r] for m in mine.values()], self.condition.clip)
            optimizer.step()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:]) / R


def gates(work: Workload, ways: list[tuple[torch.dtype, bool]]) -> dict:
    """G1 to G3; raises SystemExit where one fails."""
    found = {}
    # peft draws other masks; with given masks the tests hold them equal
    plain = work.condition.model_copy(update={"dropout": 0.0})
    steps = min(20, 2 * work.steps)
    _, theirs, _ = work.loop(steps=steps, dropout=0.0, dtype=torch.float32)
    few = work.seeds_R if work.device == "cpu" else work.seeds_R[:GATED]
    for dtype, compiled in dict.fromkeys(
        [*ways, *([] if work.device == "cpu" else [(torch.float32, False)])]
    ):
        way = f"{str(dtype).removeprefix('torch.')}{', compiled' if compiled else ''}"
        _, trained = work.stack(dtype, compiled, condition=plain, steps=steps, seeds_R=few)
        gap = float(np.max(np.abs(trained.loss_SR[:, 0] / np.array(theirs) - 1)))
        if dtype == torch.float32 and gap > 1e-4:
            raise SystemExit(
                f"G1 {work.name}, {way}: losses differ from the peft loop's by {gap:.1e}"
            )
        found[way] = {"largest_relative_loss_gap": gap}
        if (dtype, compiled) not in ways:
            continue
        short = min(6, work.steps)
        _, one = work.stack(dtype, compiled, steps=short)
        _, again = work.stack(dtype, compiled, steps=short)
        turned = [*work.seeds_R[1:], work.seeds_R[0]]
        _, other = work.stack(dtype, compiled, steps=short, seeds_R=turned)
        same = all(
            torch.equal(x, y) and torch.equal(x, z.roll(1, 0))
            for name in one.factors
            for x, y, z in zip(
                one.factors[name], again.factors[name], other.factors[name], strict=True
            )
        )
        if not same:
            raise SystemExit(f"G2 {work.name}, {way}: a rerun or another order gave other bits")
        found[way] |= {"bits": same, "isolated": isolated(work, dtype, compiled, one)}
    return found


def isolated(work: Workload, dtype: torch.dtype, compiled: bool, healthy) -> bool:
    """G3: the adapters of replica 1 start as NaN; all others end as they did."""
    original = loop.initial_weights

    def poisoned(*arguments):
        weights, scale = original(*arguments)
        next(iter(weights.values()))[0].data[1] = float("nan")
        return weights, scale

    loop.initial_weights = poisoned
    try:
        _, sick = work.stack(dtype, compiled, steps=min(6, work.steps))
    finally:
        loop.initial_weights = original
    others = [r for r in range(work.plan.stack) if r != 1]
    kept = all(
        torch.equal(x[others], y[others])
        for n in healthy.factors
        for x, y in zip(healthy.factors[n], sick.factors[n], strict=True)
    )
    if not kept or sick.failed_step(1) != 0:
        raise SystemExit(f"G3 {work.name}: NaN of one replica reached another, or went unnoticed")
    return kept


@contextlib.contextmanager
def as_people_run_it(device: str) -> Iterator[None]:
    """Peers need not repeat their bits: on a GPU they may take the kernels that are fastest."""
    asked = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = device == "cuda"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(asked)
        torch.backends.cuda.matmul.allow_tf32 = False


def measure(name: str, repeats: int, vmap: bool, device: str) -> dict:
    """All sides of one workload, repeats interleaved."""
    work = Workload(name, device)
    fast = getattr(torch, fastest_dtype(work.model.config.hidden_size, device))
    on_cpu = [(torch.float32, False), (torch.float32, True), (fast, True), (torch.bfloat16, True)]
    ways = list(dict.fromkeys(on_cpu if device == "cpu" else [(fast, False), (fast, True)]))
    ours = {
        f"stack {str(d).removeprefix('torch.')}{', compiled' if c else ''}": (
            lambda d=d, c=c: work.stack(d, c)[0]
        )
        for d, c in ways
    }
    peers = {
        "peft loop float32": lambda: work.loop(dtype=torch.float32)[0],
        "peft loop bfloat16 autocast": lambda: work.loop(autocast=True)[0],
        "peft loop compiled": lambda: work.loop(compiled=True)[0],
        "peft loop bfloat16 autocast, compiled": lambda: work.loop(autocast=True, compiled=True)[0],
        "peft and Trainer": work.trainer,
    }
    if vmap:
        peers["vmap over peft"] = work.vmap
    checked = gates(work, ways)
    failed = {}
    seconds: dict[str, list[float]] = {side: [] for side in (*ours, *peers)}
    for repeat in range(repeats + 1):
        for side, run in (ours | peers).items():
            if side in failed:
                continue
            try:
                with as_people_run_it(device) if side in peers else contextlib.nullcontext():
                    taken = run()
            except Exception as error:  # a peer that does not run here is a result, too
                failed[side] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
                continue
            if repeat:  # the first warms up and compiles
                seconds[side].append(taken)
    times = {side: 1000 * statistics.median(s) for side, s in seconds.items() if s}
    spread = {
        side: [1000 * float(np.quantile(s, q)) for q in (0.25, 0.75)]
        for side, s in seconds.items()
        if s
    }
    chosen = f"stack {str(fast).removeprefix('torch.')}, compiled"
    fastest = min(
        (side for side in times if side.startswith("peft loop") and "compiled" not in side),
        key=times.__getitem__,
    )
    memory = {}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        work.stack(fast, True, steps=3)
        memory = {"peak_gib_of_the_device": torch.cuda.max_memory_allocated() / 2**30}
    return {
        "stack": work.plan.stack,
        "tokens_of_a_piece": work.plan.piece,
        "steps": work.steps,
        **memory,
        "real_tokens_of_a_step": work.tokens,
        "gates": checked,
        "milliseconds_of_a_replica_step": times,
        "quartiles": spread,
        "did_not_run": failed,
        "chosen": chosen,
        "faster_loop": fastest,
        "ratio_to_faster_loop": times[fastest] / times[chosen],
        "ratios": {
            peer: {own: times[peer] / times[own] for own in ours if own in times}
            for peer in peers
            if peer in times
        },
        "real_tokens_per_second": work.tokens / times[chosen] * 1000,
    }


def campaign(folder: Path, replicas: int = 512, kills: int = 3) -> dict:
    """G-D: tokens per second of a whole run from the shell that is killed on the way, and whether a
    stack comes out the same again.
    """
    shape = SHAPES["G-A"]
    random_base(shape).to(torch.bfloat16).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder / "base")
    rows = [json.dumps(dict(row)) for row in read_rows("embedded")]
    # longer than a row
    texts = [
        " ".join(json.loads(rows[(i + k) % len(rows)])["prompt"] for k in range(60))
        for i in range(200)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    condition = {
        "rank": shape.rank,
        "batch_size": shape.rows,
        "epochs": 2,
        "lr": 1e-4,
        "dropout": 0.05,
        "warmup": 10,
    }
    data = {"train": str(folder / "rows.jsonl"), "max_length": shape.tokens}
    recipe = {
        "base": str(folder / "base"),
        "data": data,
        "replicas": replicas,
        "conditions": {"lora": condition},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    command = [
        sys.executable,
        "-m",
        "toolkit.cli",
        "train-replicas",
        str(folder / "recipe.yaml"),
        "--out",
        str(folder / "run"),
    ]
    start, killed = time.perf_counter(), 0
    while True:
        process = subprocess.Popen(command, stdout=sys.stderr, start_new_session=True)
        finished = len(list((folder / "run").rglob("adapter_model.safetensors")))
        target = replicas * (killed + 1) // (kills + 1)
        while process.poll() is None and (killed == kills or finished < target):
            time.sleep(1)
            finished = len(list((folder / "run").rglob("adapter_model.safetensors")))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += 1
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"the run ended with {process.returncode}")
    again = subprocess.run(
        [*command[:3], "verify", str(folder / "run")], stdout=sys.stderr
    ).returncode
    plan = json.loads((folder / "run" / "lora" / "population.json").read_text())["plan"]
    tokens = replicas * plan["steps"] * plan["micro_batch"] * plan["length"]
    return {
        "replicas": replicas,
        "kills": killed,
        "plan": plan,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "verified": not again,
    }


def _core(name: str, side: str, seconds: float, barrier, queue) -> None:
    environment.make_deterministic("cpu")
    run = side_of(Workload(name), side)
    run()
    barrier.wait()
    taken, start = [], time.perf_counter()
    while time.perf_counter() - start < seconds:
        taken.append(run())
    queue.put(statistics.median(taken))


def on_all_cores(name: str, side: str) -> float:
    """Replica-steps per second of the whole machine, one process a core."""
    context = multiprocessing.get_context("spawn")
    cores = environment.cores()
    barrier, queue = context.Barrier(cores), context.Queue()
    workers = [
        context.Process(target=_core, args=(name, side, 10.0, barrier, queue)) for _ in range(cores)
    ]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(1 / seconds for seconds in found)


def cold(name: str, loop: str) -> dict[str, float]:
    """Wall seconds of a fresh process that imports, loads and takes the steps of a workload: the
    stack without and with compiled code on disk (all replicas of a stack), and the loop (one
    replica).
    """
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        for label, side in (
            ("stack, nothing compiled", "stack"),
            ("stack, compiled code on disk", "stack"),
            ("peft loop", loop),
        ):
            start = time.perf_counter()
            command = [sys.executable, __file__, "--workloads", name, "--once", side]
            subprocess.run(
                command,
                check=True,
                stdout=sys.stderr,
                env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache},
            )
            found[label] = time.perf_counter() - start
    return found


def side_of(work: Workload, side: str) -> Callable[[], float]:
    """Seconds of a step of the stack as it is chosen for this machine, or of a plain loop."""
    fast = getattr(torch, fastest_dtype(work.model.config.hidden_size, "cpu"))
    sides = {
        "stack": lambda: work.stack(fast, True)[0],
        "float32": lambda: work.loop()[0],
        "autocast": lambda: work.loop(autocast=True)[0],
    }
    return sides[side]


def end_to_end(replicas: int = 64, theirs: int = 2) -> dict:
    """Wall seconds of a replica of the embedded default, from the shell: start-up, training and
    saving.
    """
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        condition = {
            "rank": 8,
            "epochs": 2,
            "batch_size": 16,
            "lr": 1e-2,
            "warmup": 15,
            "clip": 1.0,
        }
        recipe.write_text(
            json.dumps(
                {
                    "base": "embedded",
                    "data": {"train": "embedded"},
                    "replicas": replicas,
                    "conditions": {"lora": condition},
                }
            )
        )
        start = time.perf_counter()
        subprocess.run(
            [
                sys.executable,
                "-m",
                "toolkit.cli",
                "train-replicas",
                str(recipe),
                "--out",
                f"{folder}/run",
            ],
            check=True,
            stdout=sys.stderr,
        )
        ours = (time.perf_counter() - start) / replicas
        start = time.perf_counter()
        for seed in range(theirs):
            script = Path(__file__).with_name("trainer_script.py")
            subprocess.run(
                [
                    sys.executable,
                    str(script),
                    "--seed",
                    str(seed),
                    "--out",
                    f"{folder}/trainer-{seed}",
                ],
                check=True,
                stdout=sys.stderr,
            )
        peer = (time.perf_counter() - start) / theirs
    return {
        "replicas": replicas,
        "ftk_seconds_a_replica": ours,
        "trainer_seconds_a_replica": peer,
        "ratio": peer / ours,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workloads", nargs="*", default=["C1", "C2", "C3", "embedded"], choices=STEPS
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: cuda for G-A to G-C, cpu for the others"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vmap", action="store_true", help="torch.func.vmap, too")
    parser.add_argument("--cores", action="store_true", help="one process for every core, too")
    parser.add_argument(
        "--cold", action="store_true", help="fresh processes, too: what the first stack waits for"
    )
    parser.add_argument("--once", choices=["stack", "float32", "autocast"], help=argparse.SUPPRESS)
    parser.add_argument("--end-to-end", action="store_true")
    parser.add_argument("--campaign", action="store_true", help="G-D")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    usual = (
        "cuda"
        if arguments.campaign or any(name.startswith("G-") for name in arguments.workloads)
        else "cpu"
    )
    try:
        device = environment.resolve_device(arguments.device or usual)
    except ValueError as error:
        parser.error(str(error))
    environment.make_deterministic(device)
    if arguments.once:
        side_of(Workload(arguments.workloads[0]), arguments.once)()
        return
    where = "one thread" if device == "cpu" else "one GPU"
    result: dict = {"benchmark": f"stacked training against peft, {where}", "workloads": {}}
    for name in arguments.workloads:
        result["workloads"][name] = measure(name, arguments.repeats, arguments.vmap, device)
        print(
            name,
            json.dumps(result["workloads"][name]["milliseconds_of_a_replica_step"]),
            flush=True,
        )
        faster = "autocast" if "autocast" in result["workloads"][name]["faster_loop"] else "float32"
        if arguments.cold:
            result["workloads"][name]["seconds_of_a_fresh_process"] = cold(name, faster)
        if arguments.cores:
            whole = {side: on_all_cores(name, side) for side in ("stack", faster)}
            result["workloads"][name]["replica_steps_per_second_on_all_cores"] = whole
            result["workloads"][name]["ratio_on_all_cores"] = whole.pop("stack") / next(
                iter(whole.values())
            )
    if arguments.end_to_end:
        result["end_to_end"] = end_to_end()
    if arguments.campaign:
        with tempfile.TemporaryDirectory() as folder:
            result["campaign"] = campaign(Path(folder))
    finish(result, arguments.out, device)


if __name__ == "__main__":
    main()
