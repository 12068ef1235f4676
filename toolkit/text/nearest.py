"""Names that were meant: the nearest known one, and what other tools call a field; and counts in
words.
"""

import difflib
from typing import Any

Path_ = tuple[Any, ...]
"""Keys and positions that lead to a place in a document."""

OTHER_NAMES = {
    "learning_rate": "lr",
    "r": "rank",
    "lora_r": "rank",
    "target_modules": "targets",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "schedule",
    "max_grad_norm": "clip",
    "max_seq_length": "max_length",
    "<<": "from",
}
"""what other tools call a field"""


def counted(n: int, noun: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def nearest(word: str, names: list[str]) -> str:
    """The end of an error about an unknown word: the name that may be meant, or all names."""
    if len(word) > 60:
        return ""
    near = (
        [OTHER_NAMES[word]]
        if OTHER_NAMES.get(word) in names
        else difflib.get_close_matches(word, names, n=1)
    )
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(names))}"
