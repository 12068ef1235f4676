"""All weights of a base, R times over: a stack of them, and the model folders that they are kept
in.
"""

from toolkit.model.full.copies import FullStack, check_whole, stacked_whole
from toolkit.model.full.folder import (
    FULL,
    MODEL,
    FullModel,
    copies,
    model_files,
    read_model,
    read_weights,
    write_model,
)

__all__ = [
    "FULL",
    "MODEL",
    "FullModel",
    "FullStack",
    "check_whole",
    "copies",
    "model_files",
    "read_model",
    "read_weights",
    "stacked_whole",
    "write_model",
]
