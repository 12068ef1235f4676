"""Which files of a folder are the rows that were asked for, and what beside them is left aside."""

import re
from collections.abc import Collection
from pathlib import Path

from toolkit.errors import FtkError
from toolkit.record.plain import read_json

PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes behind that of a text file"""

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation", "heldout", "holdout"),
}
"""Split -> words in the name of a file, or of the folder that it lies in; the hub reads folders by
the same words.
"""

BESIDE = (
    "s",
    "set",
    "sets",
    "data",
    "dataset",
    "split",
    "file",
    "part",
    "fold",
    "rows",
    "samples",
    "examples",
)
"""What stands before or behind such a word without a space: `testset`, `datatrain`."""

ABOUT = (
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
)
"""Files that say something of a data set and hold no rows of it."""

SHOWN = 5
"""names in a note"""


class DataError(FtkError, ValueError):
    """Data that cannot be used as it is. The message is one line: the file, the line or row, the
    field and the fix.
    """


def kind_of(path: Path) -> str:
    """What a file holds, by its name without what it is packed with: `.jsonl` of `a.jsonl.gz`."""
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def files_of(
    folder: Path, kinds: Collection[str], *, suite: bool = False
) -> tuple[list[Path], list[str]]:
    """The files of a folder that are read, in order, and one note for each group of files that is
    not.

    kinds: suffixes that can be read, as `kind_of` gives them. Files in the folder itself count;
    where there are none, those one folder below; one that is named as a split always counts. Where
    names tell splits, as on the hub, the training split is read; a suite has no split that goes
    without saying. A folder that `Dataset.save_to_disk` wrote is read as it says itself.

    Raises DataError where the folder has no file to read, or names do not tell which are meant.
    """
    if (folder / "dataset_dict.json").is_file():
        return _saved_splits(folder, kinds, suite)
    if (folder / "state.json").is_file():
        return _saved(folder), []
    inside = _visible(folder)
    files = [path for path in inside if _readable(path, kinds)]
    files += [
        path
        for below in inside
        if below.is_dir() and (not files or split_of(below.name))
        for path in _visible(below)
        if _readable(path, kinds)
    ]
    if not files:
        raise DataError(f"{folder}: no {', '.join(kinds)} file in this folder")
    chosen, split = _one_split(folder, files, suite)
    notes = []
    if aside := [path for path in files if path not in chosen]:
        notes.append(f"{folder}: read as its {split} split; left aside: {names_in(folder, aside)}")
    considered = {*files, *(path.parent for path in files)}
    unread = [path for path in inside if path not in considered and path.name not in ABOUT]
    deeper = [
        path
        for path in unread
        if path.is_dir() and any(_readable(inner, kinds) for inner in path.rglob("*"))
    ]
    if deeper:
        notes.append(
            f"{folder}: left aside, for files that lie nearer are read: {names_in(folder, deeper)}"
        )
    if skipped := [path for path in unread if path not in deeper]:
        notes.append(
            f"{folder}: skipped, for they are no rows that can be read: {names_in(folder, skipped)}"
        )
    return chosen, notes


def split_of(name: str) -> str | None:
    """The split that a name tells; None where it tells none, or several."""
    splits = {
        split
        for word in _words(name)
        for split, words in SPLITS.items()
        if any(word in _forms(synonym) for synonym in words)
    }
    return splits.pop() if len(splits) == 1 else None


def _words(name: str) -> list[str]:
    """`myTrain_v2.jsonl` -> my, train, v, jsonl."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    return re.split(
        r"[^a-z]+", re.sub(r"\bh(e|o)ld[^a-z]out", r"h\1ldout", apart.replace("_", " "))
    )


def _forms(word: str) -> set[str]:
    return {word, *(word + beside for beside in BESIDE), *(beside + word for beside in BESIDE)}


def _told_by_another(paths: list[Path]) -> dict[Path, str]:
    """Splits of files that are named alike but for the split: `xtrain.jsonl` beside
    `xtest.jsonl`.
    """
    alike: dict[tuple[Path, str], dict[Path, str]] = {}
    for path in paths:
        name = path.name.lower()
        for split, word in ((split, word) for split, words in SPLITS.items() for word in words):
            for match in re.finditer(word, name):
                alike.setdefault(
                    (path.parent, f"{name[: match.start()]}/{name[match.end() :]}"), {}
                )[path] = split
    return {
        path: split
        for splits in alike.values()
        if len({*splits.values()}) > 1 and len(splits) > 1
        for path, split in splits.items()
    }


def _one_split(folder: Path, files: list[Path], suite: bool) -> tuple[list[Path], str]:
    """The files of the split that is meant."""
    of = {
        path: split_of(path.name) or (split_of(path.parent.name) if path.parent != folder else None)
        for path in files
    }
    of |= {path: split for path, split in _told_by_another(files).items() if of[path] is None}
    splits = {split for split in of.values() if split}
    unsaid = [path for path in files if of[path] is None]
    if not splits or len(splits) == 1 and not unsaid:
        return files, next(iter(splits), "")
    if unsaid:
        named = next(path for path in files if of[path])
        raise DataError(
            f"{folder}: {names_in(folder, [named])} names a split and "
            f"{names_in(folder, unsaid)} does not, so it is open which are meant; "
            "name one file, or put those of one split into a folder of their own"
        )
    if suite or "train" not in splits:
        raise DataError(
            f"{folder}: holds the splits {', '.join(sorted(splits))}; name the file that is "
            f"meant, such as {folder / _first(of, splits)}"
        )
    return [path for path in files if of[path] == "train"], "train"


def _first(of: dict[Path, str | None], named: set[str]) -> str:
    """A file of the test split, or of validation."""
    split = "test" if "test" in named else "validation"
    path = next(path for path, its_split in of.items() if its_split == split)
    return path.name


def _saved(folder: Path) -> list[Path]:
    """The files of a data set that `save_to_disk` wrote, in the order in which it is read."""
    try:
        state = read_json(folder / "state.json")
        files = [folder / Path(entry["filename"]).name for entry in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{folder / 'state.json'}: not as `save_to_disk` writes it; save the data set again"
        ) from None
    if missing := [path for path in files if not path.is_file()]:
        raise DataError(
            f"{missing[0]}: missing, though {folder / 'state.json'} names it; save the "
            "data set again"
        )
    return files


def _saved_splits(
    folder: Path, kinds: Collection[str], suite: bool
) -> tuple[list[Path], list[str]]:
    """The training split of several data sets that `save_to_disk` wrote together."""
    splits = [below for below in _visible(folder) if (below / "state.json").is_file()]
    if len(splits) == 1 and not suite:
        return _saved(splits[0]), []
    train = [below for below in splits if below.name == "train"]
    if suite or not train:
        named = ", ".join(str(below) for below in splits) or "none"
        raise DataError(f"{folder}: holds several data sets; name the one that is meant: {named}")
    aside = [below for below in splits if below not in train]
    return _saved(train[0]), [
        f"{folder}: read as its train split; left aside: {names_in(folder, aside)}"
    ]


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _readable(path: Path, kinds: Collection[str]) -> bool:
    return path.is_file() and kind_of(path) in kinds and path.name not in ABOUT


def names_in(folder: Path, paths: list[Path]) -> str:
    """Paths in a folder, for a note."""
    names = [str(path.relative_to(folder)) + "/" * path.is_dir() for path in paths]
    others = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + others
