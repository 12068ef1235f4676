"""Stacked training: R replicas of one condition at once on one base, each with its own seeds, loss,
clipping and moments.

Nothing is shared between replicas but the base, so a replica becomes what it would become alone
(the same peft + PyTorch loop, to rounding), and a replica that diverges harms no other.
"""

from toolkit.train.checkpoint import Checkpoint
from toolkit.train.head import plain_head, token_losses_in_pieces
from toolkit.train.initial import initial_factors
from toolkit.train.loop import Trained, train_stack
from toolkit.train.objective import Rows, batch_rows, token_losses
from toolkit.train.optimise import clip_gradients, gradient_norms
from toolkit.train.save import average_snapshots, save_stack

__all__ = [
    "Checkpoint",
    "Rows",
    "Trained",
    "average_snapshots",
    "batch_rows",
    "clip_gradients",
    "gradient_norms",
    "initial_factors",
    "plain_head",
    "save_stack",
    "token_losses",
    "token_losses_in_pieces",
    "train_stack",
]
