"""Files are whole or not there, also on a disk that is full or read-only; a hash is taken once, and
again when the file has changed.
"""

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.tiny import tiny_base
from safetensors import SafetensorError

import toolkit
from toolkit.data import read_rows
from toolkit.record import files
from toolkit.record.files import naming, replacing, sha256_file, write_text
from toolkit.record.population import read_population

RECIPE = """
base: {folder}/base
data:
  train: {folder}/rows.jsonl
  suites: {{typical: {folder}/rows.jsonl}}
replicas: 8
stack: 4
conditions:
  lora: {{rank: 4, epochs: 1, batch_size: 4}}
mitigations: [{{merge: mean, k: 2}}]
evaluation: {{max_new_tokens: 3}}
"""
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_names_the_path(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "old")
    with (
        pytest.raises(OSError, match="No space left on device") as refused,
        replacing(path) as file,
    ):
        file.write(b"half of the n")
        raise OSError(errno.ENOSPC, "No space left on device")  # a write does not say where
    assert refused.value.filename == str(path)
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
    with pytest.raises(ValueError, match="not of the disk"), replacing(path):
        raise ValueError("not of the disk")
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_safetensors_errors_are_known_by_their_number(tmp_path):
    error = naming(
        tmp_path,
        SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    )
    assert (error.errno, error.filename) == (errno.ENOSPC, str(tmp_path))
    assert (
        str(naming(tmp_path, OSError("the machine stopped"))) == f"{tmp_path}: the machine stopped"
    )


def test_a_hash_is_taken_once_and_again_when_the_file_has_changed(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    read = []
    monkeypatch.setattr(
        hashlib,
        "file_digest",
        lambda file, name, digest=hashlib.file_digest: (read.append(1), digest(file, name))[1],
    )
    monkeypatch.setattr(files.time, "time_ns", lambda now=files.time.time_ns: now() + 2 * 10**9)
    first = sha256_file(path)
    assert sha256_file(path) == first == hashlib.sha256(b"one").hexdigest() and len(read) == 1
    stamp = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as a copy that keeps times does
    assert sha256_file(path) == hashlib.sha256(b"two").hexdigest() and len(read) == 2


def test_a_file_of_this_second_is_read_every_time(tmp_path):
    path = tmp_path / "a"
    for content in (b"one", b"two", b"six"):
        path.write_bytes(content)
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()


# -- disks that refuse ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    tiny_base(folder / "base")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(dict(row)) + "\n" for row in read_rows("embedded")[:8])
    )
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "recipe.yaml"


def shell(script: str) -> list[str]:
    """Lines of a script in a mount namespace of its own; its `ftk` is the command, stderr and then
    a line with the exit code.
    """
    ftk = (
        f'ftk() {{ code=0; "{sys.executable}" -m toolkit.cli "$@" 2>&1 >/dev/null || code=$?; '
        f'echo "exit $code"; }}\n'
    )
    surroundings = {
        **os.environ,
        "PYTHONPATH": str(Path(toolkit.__file__).parent.parent),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [*NAMESPACE, "bash", "-ec", ftk + script],
        capture_output=True,
        text=True,
        env=surroundings,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """Where a disk can be mounted that nobody else sees; not everywhere may a user do that."""
    folder = tmp_path_factory.mktemp("disk")
    try:
        subprocess.run(
            [*NAMESPACE, "mount", "-t", "tmpfs", "none", str(folder)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no small disk can be mounted here (unshare --map-root-user --mount)")
    return folder


FULL, READ_ONLY = (
    "the disk is full: free some and run again; finished work is kept",
    "the disk is read-only: make it writable",
)


@pytest.mark.slow
def test_a_run_on_a_full_or_read_only_disk_ends_in_one_line_and_goes_on(recipe, disk, tmp_path):
    """Every stage, on a real disk: it is full, is made larger by little, and in between is
    read-only.
    """
    lines = shell(f"""
        mount -t tmpfs -o size=40k none {disk}
        for size in 40 120 260; do
            mount -o remount,rw,size=${{size}}k {disk}
            ftk run {recipe} --out {disk}/run --workers 2
        done
        mount -o remount,ro {disk}; ftk run {recipe} --out {disk}/run --workers 2
        mount -o remount,rw,size=100m {disk}
        ftk run {recipe} --out {disk}/run --workers 2; cp -r {disk}/run {tmp_path}/run
        mount -o remount,rw,size=$(( $(du -sk {disk} | cut -f1) + 8 ))k {disk}
        ftk merge {disk}/run --method ties --groups 2
        ftk evaluate {disk}/run --prompts {recipe.parent}/rows.jsonl --out {disk}/asked
        ftk train-replicas {recipe} --out {disk}/run --replicas 16; ftk measure {disk}/run
        mount -o remount,ro {disk}
        ftk merge {disk}/run --method ties --groups 2
        ftk evaluate {disk}/run --prompts {recipe.parent}/rows.jsonl --out {disk}/asked
        ftk train-replicas {recipe} --out {disk}/run --replicas 16; ftk measure {disk}/run
        ftk report {disk}/run
    """)
    print("\n".join(lines))
    told = [line for line in lines if line.startswith("ftk: ")]
    assert all(FULL in line or READ_ONLY in line for line in told) and all(
        str(disk) in line for line in told
    ), told
    assert not [line for line in lines if "Traceback" in line or "Error" in line], lines
    codes = [line for line in lines if line.startswith("exit ")]
    assert set(codes) == {"exit 0", "exit 1"} and len(told) == codes.count("exit 1")
    assert sum(FULL in line for line in told) >= 5 and sum(READ_ONLY in line for line in told) >= 5
    whole = subprocess.run(
        [sys.executable, "-m", "toolkit.cli", "run", str(recipe), "--out", str(tmp_path / "whole")],
        capture_output=True,
        text=True,
    )
    assert whole.returncode == 0, whole.stderr
    hashes = [
        {str(p.relative_to(run)): sha256_file(p) for p in run.rglob("*.safetensors")}
        for run in (tmp_path / "run", tmp_path / "whole")
    ]
    assert hashes[0] == hashes[1] and len(read_population(tmp_path / "run" / "lora")) == 8
    assert not list((tmp_path / "run").rglob("*.tmp"))
