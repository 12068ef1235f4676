"""Texts as sequences of tokens, and which of them are different."""

from collections.abc import Hashable, Sequence

import numpy as np

from toolkit.statistics.outliers import far_from_centre

Text = Sequence[Hashable]  # tokens; a str is a sequence of characters


def prompts_of_texts(texts: Sequence[Sequence[Text | None]]) -> int:
    """The number of prompts of texts [R][P]. Raises ValueError."""
    if len(texts) < 2 or len({len(row) for row in texts}) > 1 or len(texts[0]) == 0:
        raise ValueError(
            "texts must have two rows (replicas) at least, all with one entry per prompt "
            "(None where there is no text)"
        )
    return len(texts[0])


def distinct_texts(texts: Sequence[Text | None]) -> tuple[np.ndarray, np.ndarray, list[Text]]:
    """Rows that have a text, which of the different texts they have, and these."""
    index: dict[Hashable, int] = {}
    rows, which = [], []
    for r, text in enumerate(texts):
        if text is not None:
            rows.append(r)
            which.append(
                index.setdefault(text if isinstance(text, str) else tuple(text), len(index))
            )
    return np.array(rows, dtype=np.int64), np.array(which, dtype=np.int64), list(index)  # type: ignore[arg-type]


def outlying_runs(events_R: np.ndarray, chances_R: np.ndarray) -> np.ndarray:
    """Rows whose texts differ from the others' far more often than the chances they had explain."""
    return far_from_centre(events_R / np.maximum(chances_R, 1), 12.0)
