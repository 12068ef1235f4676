"""How a benchmark ends: its result with the machine and the versions, as a file and as the last
line of its output.
"""

import json
from pathlib import Path
from typing import Any

from toolkit import environment


def finish(result: dict[str, Any], out: Path | None, device: str = "cpu") -> None:
    """Print a result as one JSON line; write it to `out` where that is given."""
    result = {**result, "environment": environment.describe(device)}
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))
