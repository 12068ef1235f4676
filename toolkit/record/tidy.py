"""Records as a tidy table: one row for every estimate, for pandas, Arrow or plain Python."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from toolkit.errors import FtkError
from toolkit.statistics import Estimate

if TYPE_CHECKING:
    import pandas
    import pyarrow


class Tidy:
    """A record that is a table of estimates, too.

    Columns of every row: where the figure stands, its name (`figure`), and the estimate: `value`,
    `low`, `high` (shares are 0 to 1), `level`, `n_replicas`, `n_prompts`, `conclusive`, `needed`
    (replicas, where it is not), `method`, `note`.
    """

    def to_rows(self) -> list[dict[str, Any]]:
        """A dict for every estimate; all have the same keys."""
        raise NotImplementedError

    def to_arrow(self) -> pyarrow.Table:
        """The rows of `to_rows` as a pyarrow table."""
        import pyarrow as pa

        return pa.Table.from_pylist(self.to_rows())

    def to_frame(self) -> pandas.DataFrame:
        """The rows of `to_rows` as a pandas DataFrame.

        Raises FtkError where pandas is not installed; `to_arrow` and `to_rows` need none.
        """
        try:
            import pandas as pd
        except ImportError:
            raise FtkError(
                "to_frame needs pandas: pip install pandas; to_arrow() and to_rows() do not"
            ) from None
        return pd.DataFrame(self.to_rows())


def estimates_of(record: Any) -> Iterator[tuple[str, Estimate]]:
    """Every field of a record that is an estimate, by its name."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Estimate):
            yield field.name, value


def row_of(place: dict[str, Any], figure: str, estimate: Estimate) -> dict[str, Any]:
    """One row: where the figure stands, what it is called, and the estimate."""
    return {
        **place,
        "figure": figure,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "level": estimate.level,
        "n_replicas": estimate.n_replicas,
        "n_prompts": estimate.n_prompts,
        "conclusive": estimate.conclusive,
        "needed": estimate.needed,
        "method": estimate.method,
        "note": estimate.note,
    }
