"""Changes to files of a run."""

import json

from safetensors.torch import load_file, save_file

from toolkit.record.population import sha256_file


def rewrite(folder, change):
    """Other weights, recorded as if they had been trained so."""
    path = folder / "adapter_model.safetensors"
    save_file(
        {name: change(tensor) for name, tensor in load_file(path).items()},
        path,
        metadata={"format": "pt"},
    )
    record = json.loads((folder / "replica.json").read_text())
    record["sha256"][path.name] = sha256_file(path)
    (folder / "replica.json").write_text(json.dumps(record))
