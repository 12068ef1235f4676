"""Recipes: what is written is what is read, and an error names the file, the line, the field and
the fix.
"""

import re
from pathlib import Path

import pytest
import torch

import toolkit
from toolkit.recipe import RecipeError, dump_recipe, load_recipe, parse_recipe
from toolkit.recipe.conditions import DISTILLATION_KEYS, LoraCondition
from toolkit.recipe.models import FOLDER_NAME
from toolkit.train.optimise import Optimiser

HEAD = "base: embedded\ndata: {train: embedded}\n"
CONDITION = HEAD + "conditions:\n  lora: "
WHOLE = CONDITION + "{}\n"
ROOT = Path(toolkit.__file__).parent.parent
SHIPPED = sorted(
    [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "toolkit" / "recipe").glob("*.yaml")]
)
NO_RANKS = ("bogus", 0, 1.5, "true", "energy=0.0", "energy=1.1", "energy=x")


def error_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "my.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [("3e-4", 3e-4), ("1e5", 1e5), ("1E-2", 0.01), ("+1", 1), (".5", 0.5), ("5.", 5)],
)
def test_numbers_are_numbers(written, read):
    assert parse_recipe(CONDITION + f"{{lr: {written}}}").trained["lora"].lr == read


@pytest.mark.parametrize(
    "word", ["no", "on", "y", "010", "1_000", "2024-01-01", "3e-4", "null", "true"]
)
def test_keys_and_words_are_text_as_written(word):
    recipe = parse_recipe(
        f"base: '{word}'\ndata: {{train: x, suites: {{{word}: a}}}}\nconditions:\n  "
        f"{word}: {{targets: ['{word}']}}\n"
    )
    assert (
        recipe.base,
        *recipe.conditions,
        *recipe.data.suites,
        *recipe.trained[word].targets,
    ) == (word,) * 4
    assert parse_recipe(dump_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no", "should be a number (got 'no')"),
        ("true", "should be a number (got True)"),
        ("1_000", "should be a number (got '1_000')"),
        ("12:30", "should be a number (got '12:30')"),
        ("2024-01-01", "should be a number (got '2024-01-01')"),
        ("'3e-4'", "should be a number (got '3e-4')"),
        (".nan", "should be a finite number (got nan)"),
        (".inf", "should be a finite number (got inf)"),
        ("1e400", "should be a finite number (got inf)"),
        ("0", "should be greater than 0 (got 0)"),
        ("", "should be a number (got nothing)"),
    ],
)
def test_what_is_no_learning_rate(value, told):
    assert error_of(CONDITION + f"{{lr: {value}}}") == f"my.yaml:4: 'conditions.lora.lr': {told}"


OUT_OF_RANGE = {
    **dict.fromkeys(
        ("alpha", "lr", "lr_ratio_B", "eps", "temperature", "weight_decay", "clip"),
        (".inf", ".nan", "-1", "1e300", "1e-300"),
    ),
    **dict.fromkeys(("dropout", "label_smoothing"), (".inf", ".nan", "-1", "1.0", "1e300")),
    **dict.fromkeys(("layer_lr_decay", "ema_decay"), (".inf", ".nan", "0", "1.5")),
    **dict.fromkeys(
        ("rank", "batch_size", "gradient_accumulation", "replicas", "lawa_last"),
        (".inf", "0", "-1", "1000000000"),
    ),
    "rows": ("0", "1000000000000"),
    "epochs": (".inf", ".nan", "0", "-1", "1e300"),
    "warmup": (".inf", ".nan", "-0.1", "1e300"),
    "mix": (".nan", "-0.1", "1.1"),
    "betas": ("[1, 1]", "[0.9, 1.0]", "[-0.1, 0.9]", "[.nan, 0.9]", "[0.9]", "[0.9, 0.99, 0.999]"),
    "lookahead": ("{k: 0}", "{k: 1000000000}", "{alpha: 0}", "{alpha: 1.5}", "{alpha: .nan}"),
    "snapshots": ("{count: 0}", "{count: 1000000000}", "{start: 1.5}", "{start: .nan}"),
    "stack": ("0", "1000000000"),
    "threads": ("0", "1000000000"),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_number_that_training_cannot_take_is_told_at_its_key(key, value):
    teacher = "teacher: {condition: other, ensemble: probabilities, k: 2}"
    method = f"method: distill, {teacher}, " if key in DISTILLATION_KEYS else ""
    told = error_of(CONDITION + f"{{{method}{key}: {value}}}")
    assert (
        told.startswith(f"my.yaml:4: 'conditions.lora.{key}")
        and "should be " in told
        and told.count("(got ") <= 1
    )


@pytest.mark.parametrize(
    "extreme",
    [
        "{betas: [0, 0], eps: 1e-30, lr: 1e-30, clip: 1e-30}",
        "{eps: 1e6, lr: 1e6, clip: 1e+30, weight_decay: 1e4}",
    ],
)
def test_the_optimiser_takes_the_ends_of_every_range(extreme):
    condition = parse_recipe(CONDITION + extreme).trained["lora"]
    weights = {
        "0": (torch.ones(1, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, requires_grad=True))
    }
    optimiser = Optimiser(torch.nn.Sequential(torch.nn.Linear(2, 2)), weights, condition)
    for x in weights["0"]:
        x.grad = torch.tensor([[[0.0, 1.0], [1e-9, -1.0]]])
    optimiser.step(condition.lr, 1, True)
    assert all(x.isfinite().all() for x in weights["0"])


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD + "seed: 010\n", "my.yaml:3: number '010' has a leading zero: write it without"),
        (HEAD + "seed: !!int x\n", "my.yaml:3: 'x' is no number"),
        (HEAD + "seed: 1\nbase: x\n", "my.yaml:4: key 'base' stands on line 1 already"),
        (CONDITION + "\n    lr: 1\n    lr: 2\n", "my.yaml:6: key 'lr' stands on line 5 already"),
        (HEAD + "? [a]\n: 3\n", "my.yaml:3: a key is a word, not a list or a block"),
        ("a: &x [*x]", "my.yaml:1: a block contains itself"),
        ("a: b: c", "my.yaml:1: mapping values are not allowed here"),
        ("base: \0", "my.yaml: not YAML: "),
        (
            "",
            "my.yaml:1: a recipe is a mapping with `base`, `data` and `conditions`; `ftk "
            "init` writes one",
        ),
        ("- a", "my.yaml:1: a recipe is a mapping"),
    ],
)
def test_broken_documents(text, told):
    assert error_of(text).startswith(told)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("bas: x\n" + WHOLE, "1: unknown key 'bas'; did you mean 'base'?"),
        (
            HEAD + "epochs: 2\nconditions: {lora: {}}\n",
            "3: unknown key 'epochs'; it belongs in 'conditions.NAME'",
        ),
        (
            WHOLE.replace("embedded}", "embedded, suite: {}}"),
            "2: unknown key 'suite' in 'data'; did you mean 'suites'?",
        ),
        (
            CONDITION + "\n    lr: 1\n    epoch: 2\n",
            "6: unknown key 'epoch' in 'conditions.lora'; did you mean 'epochs'?",
        ),
        (
            CONDITION + "{learning_rate: 1}",
            "4: unknown key 'learning_rate' in 'conditions.lora'; did you mean 'lr'?",
        ),
        (
            CONDITION + "{form: x}",
            "4: unknown key 'form' in 'conditions.lora'; did you mean 'from'?",
        ),
        (
            CONDITION + "{seed: 1}",
            "4: unknown key 'seed' in 'conditions.lora'; it belongs at the top level",
        ),
        (
            CONDITION + "\n    snapshots:\n      coun: 3\n",
            "6: unknown key 'coun' in 'conditions.lora.snapshots'; did you mean 'count'?",
        ),
        (
            WHOLE + "mitigations:\n  - {merge: mean, k: 2}\n  - {merg: mean, k: 3}\n",
            "7: unknown key 'merg' in 'mitigations.1'; did you mean",
        ),
        (
            WHOLE + "mitigations:\n  - {merge: ties, k: 2, densty: 0.5}\n",
            "6: unknown key 'densty' in 'mitigations.0'; did you mean 'density'?",
        ),
        (
            WHOLE + "evaluation:\n  answr: text\n",
            "6: unknown key 'answr' in 'evaluation'; did you mean 'answer'?",
        ),
        (
            WHOLE + "evaluation: {zzz: 1}\n",
            "5: unknown key 'zzz' in 'evaluation'; known: answer, choices, "
            "max_new_tokens, stop, token_scores, top_k",
        ),
    ],
)
def test_unknown_keys_are_named_with_line_and_neighbour(text, told):
    assert error_of(text).startswith(f"my.yaml:{told}")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (HEAD, "my.yaml:1: missing key 'conditions'"),
        ("data: {}\nconditions: {}\nbase: x\n", "my.yaml:1: missing key 'data.train' (and 1 more)"),
        (WHOLE + "mitigations:\n  - {merge: mean}\n", "my.yaml:6: missing key 'mitigations.0.k'"),
        (HEAD + "conditions: {}\n", "my.yaml:3: 'conditions': should be 1 or more entries"),
        (CONDITION + "8", "my.yaml:4: 'conditions.lora': should be a block of keys (got 8)"),
        (
            CONDITION + "{rank: 4.0}",
            "my.yaml:4: 'conditions.lora.rank': should be a whole number (got 4.0)",
        ),
        (
            CONDITION + "{targets: q_proj}",
            "my.yaml:4: 'conditions.lora.targets': should be 'all-linear' or a list (got 'q_proj')",
        ),
        (
            CONDITION + "{targets: [q, 3]}",
            "my.yaml:4: 'conditions.lora.targets.1': should be text (got 3)",
        ),
        (
            CONDITION + "{vary: [ini]}",
            "my.yaml:4: 'conditions.lora.vary.0': should be 'init', 'order' or 'dropout' "
            "(got 'ini')",
        ),
        (
            CONDITION + "{averages: [swa]}",
            "my.yaml:4: 'conditions.lora': 'averages' needs 'snapshots': add `snapshots: "
            "{count: 8}`",
        ),
        (
            HEAD + "conditions:\n  a: {}\n  a b: {}\n",
            "my.yaml:5: 'conditions.a b': a condition names a folder: letters, digits",
        ),
        (
            HEAD + "conditions: {base: {}}\n",
            "my.yaml:3: 'conditions.base': a condition names a folder",
        ),
        (
            WHOLE + "evaluation:\n  answer: 'regex:('\n",
            "my.yaml:6: 'evaluation.answer': the pattern is broken: missing )",
        ),
        (
            WHOLE + "evaluation: {stop: ''}\n",
            "my.yaml:5: 'evaluation.stop': should be text of 1 or more characters (got '')",
        ),
        (
            WHOLE + "evaluation: {answer: txt}\n",
            "my.yaml:5: 'evaluation.answer': should be text, first-line, embedded or regex:PATTERN",
        ),
        (
            WHOLE + "replicas: 1\n",
            "my.yaml:5: 'replicas': should be greater than or equal to 2 (got 1)",
        ),
    ],
)
def test_wrong_values_say_what_is_wanted(text, told):
    assert error_of(text).startswith(told)


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ("{k: 2}", "a mitigation is either `merge: METHOD` or `ensemble: METHOD`"),
        ("{merge: mean, ensemble: vote, k: 2}", "a mitigation is either"),
        ("{merge: slerp, k: 2}", "unknown merge method 'slerp'; did you mean 'multislerp'?"),
        ("{merge: mean, k: 2, density: 0.5}", "'density' belongs to `merge: ties`"),
        ("{ensemble: vote, k: 2, rank: same}", "'rank' belongs to a merge"),
        ("{ensemble: vote, k: 1}", "an ensemble has k of 2 or more"),
        ("{ensemble: gated, k: 2}", "`ensemble: gated` goes with `threshold`: nats"),
        ("{ensemble: vote, k: 2, threshold: 1.0}", "`ensemble: gated` goes with `threshold`"),
        ("{ensemble: gated, k: 2, threshold: -1.0}", "greater than or equal to 0"),
        ("{ensemble: mbr, k: 2}", "`ensemble: mbr` goes with `similarity`: exact, edit or chrf"),
        ("{merge: mean, k: 2, similarity: edit}", "`ensemble: mbr` goes with `similarity`"),
        (
            "{ensemble: median, k: 2, weights: 'accuracy:typical'}",
            "belongs to an ensemble by probabilities, logits, token-vote, vote, mbr",
        ),
        (
            "{ensemble: probabilities, k: 2, weights: confidence}",
            "belongs to an ensemble by vote, mbr",
        ),
        ("{ensemble: vote, k: 2, weights: accuracy}", "should be confidence, or accuracy:SUITE"),
        ("{ensemble: vote, k: 2, weights: 'accuracy:tipical'}", "names no suite"),
        (
            "{merge: swa, k: 2}",
            "add `snapshots: {count: 8}` and `averages: [swa]` to condition 'lora'",
        ),
        ("{merge: mean, k: 8}", "mean-k8 is listed twice"),
        (
            "{ensemble: vote, k: 2, density: 0.5}",
            "'density' belongs to `merge: ties`, `merge: dare`",
        ),
        (
            "{merge: ties, k: 2, density: 0}",
            "density 0 is impossible: a share above 0 and at most 1",
        ),
        ("{merge: dare, k: 2, seed: 1.5}", "seed 1.5 is impossible: a whole number from 0"),
        ("{merge: ties, k: 2, density: true}", "density True is impossible"),
        ("{merge: lawa, k: 2}", "add `snapshots: {count: 8, save: true}` to condition 'lora'"),
        (
            "{merge: ema, k: 2, decay: 0.5}",
            "add `snapshots: {count: 8, save: true}` to condition 'lora'",
        ),
        ("{merge: greedy_soup, k: 2}", "greedy_soup needs prompts of its own"),
        *[
            (
                f"{{merge: mean, k: 2, rank: {rank}}}",
                "should be full, same, a number from 1, or energy=0.99",
            )
            for rank in NO_RANKS
        ],
    ],
)
def test_mitigations_that_cannot_be(item, told):
    error = error_of(WHOLE + f"mitigations:\n  - {{merge: mean, k: 8}}\n  - {item}\n")
    assert error.startswith("my.yaml:7: 'mitigations.1") and told in error


def test_several_k_are_as_many_mitigations():
    short = (
        WHOLE
        + "mitigations:\n  - {merge: ties, k: [4, 8], density: 0.5}\n  - {ensemble: vote, k: 2}\n"
    )
    long = (
        WHOLE + "mitigations: [{merge: ties, k: 4, density: 0.5}, "
        "{merge: ties, k: 8, density: 0.5}, {ensemble: vote, k: 2}]"
    )
    assert parse_recipe(short) == parse_recipe(long)


@pytest.mark.parametrize(
    ("items", "line"),
    [
        ("  - {merge: mean, k: [2, 4]}\n  - {merge: mean, k: 0}\n", 7),
        ("  - {merge: mean, k: [2, 4]}\n  - merge: swa\n    k:\n    - 2\n    - 0\n", 8),
        ("  - {merge: mean, k: [2, 4]}\n  - {merge: mean, k: 4}\n", 7),
        ("  - {merge: mean, k: [2, two]}\n", 6),
        ("  - {merge: mean, k: []}\n", 6),
    ],
)
def test_what_is_wrong_after_several_k_is_told_by_its_own_line(items, line):
    assert error_of(WHOLE + f"mitigations:\n{items}").startswith(f"my.yaml:{line}: 'mitigations.")


@pytest.mark.parametrize("rank", ["full", "same", 16, "energy=0.99", "energy=.5", "energy=1"])
def test_ranks_of_a_merge(rank):
    assert (
        parse_recipe(WHOLE + f"mitigations: [{{merge: mean, k: 2, rank: {rank}}}]")
        .mitigations[0]
        .rank
        == rank
    )


def test_a_condition_inherits_and_its_own_keys_win():
    text = (
        HEAD + "conditions:\n  c: {from: b, lr: 3}\n  b: {from: a, epochs: 9}\n  a: "
        "{lr: 1, epochs: 1, rank: 4}\n"
    )
    found = parse_recipe(text).conditions.values()
    found = [c for c in found if isinstance(c, LoraCondition)]
    assert [(c.lr, c.epochs, c.rank) for c in found] == [(3, 9, 4), (1, 9, 4), (1, 1, 4)]


@pytest.mark.parametrize(
    ("conditions", "told"),
    [
        ("  lora: {from: lra}\n", "4: 'from: lra' names no condition; did you mean 'lora'?"),
        ("  a: {from: a}\n", "4: 'from: a' leads back to itself"),
        ("  a: {from: b}\n  b: {from: a}\n", "5: 'from: a' leads back to itself"),
        ("  a: {from: [b]}\n  b: {}\n", "4: 'from: ['b']' names no condition"),
        ("  a: {from: b}\n  b: {lr: no}\n", "5: 'conditions.b.lr': should be a number (got 'no')"),
        (
            "  a: {from: b}\n  b: {epoch: 1}\n",
            "5: unknown key 'epoch' in 'conditions.b'; did you mean 'epochs'?",
        ),
        ("  a: {from: b}\n  b: 3\n", "5: 'conditions.b': should be a block of keys (got 3)"),
    ],
)
def test_inheritance_that_cannot_be(conditions, told):
    assert error_of(HEAD + "conditions:\n" + conditions).startswith(f"my.yaml:{told}")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_recipes_load_and_survive_a_round_trip(path):
    recipe = load_recipe(path)
    assert parse_recipe(dump_recipe(recipe), "other.yaml") == recipe
    if "train: embedded" in path.read_text():
        # though toolkit/embedded is a folder
        sources = {
            recipe.base,
            recipe.data.train,
            *recipe.data.suites.values(),
        }
        assert {re.split("[@:]", source)[0] for source in sources} == {"embedded"}


def test_a_dump_writes_every_default():
    written = dump_recipe(parse_recipe(WHOLE, "short.yaml"))
    assert all(
        re.search(rf"^ *{key}:", written, re.M)
        for key in ("name", "max_length", "rank", "betas", "top_k", "level")
    )


def test_paths_count_from_the_recipe_then_from_the_working_directory(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder, names in ((beside, ("both", "rows.jsonl")), (here, ("both", "suite.csv"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    monkeypatch.chdir(here)
    (beside / "r.yaml").write_text(
        "base: org/model\ndata: "
        "{train: rows.jsonl, suites: {a: suite.csv, b: both, c: no.csv}}\nconditions: "
        "{a: {}}"
    )
    recipe = load_recipe("../beside/r.yaml")
    assert (recipe.base, recipe.data.train) == ("org/model", str(beside / "rows.jsonl"))
    assert recipe.data.suites == {
        "a": str(here / "suite.csv"),
        "b": str(beside / "both"),
        "c": "no.csv",
    }


@pytest.mark.parametrize(
    ("make", "told"),
    [(None, "no such file; `ftk init`"), (b"\xff", "cannot be read"), ("folder", "cannot be read")],
)
def test_files_that_cannot_be_read(tmp_path, make, told):
    path = tmp_path / "r.yaml"
    if make == "folder":
        path.mkdir()
    elif make:
        path.write_bytes(make)
    with pytest.raises(RecipeError, match=told):
        load_recipe(path)


def test_parameters_of_a_merge_stand_beside_k_and_name_it():
    items = [
        "{merge: ties, k: 8, density: 2.0e-1}",
        "{merge: dare, k: 8, rank: 4}",
        "{merge: 'mergekit:dare_ties', k: 2, rescale: false}",
    ]
    text = WHOLE + "mitigations:\n" + "".join(f"  - {item}\n" for item in items)
    recipe = parse_recipe(text)
    assert [m.label for m in recipe.mitigations] == [
        "ties-density0.2-k8",
        "dare-density0.5-seed0-rank-4-k8",
        "mergekit-dare_ties-rescaleFalse-seed0-k2",
    ]
    assert (
        recipe.mitigations[0].title == "ties, density 0.2"
        and recipe.mitigations[1].title == "dare, density 0.5, seed 0, rank 4"
    )
    assert parse_recipe(dump_recipe(recipe)) == recipe
    assert "density: 0.5\n" in dump_recipe(recipe) and "parameters" not in dump_recipe(recipe)
    assert all(FOLDER_NAME.fullmatch(m.label) for m in recipe.mitigations)
