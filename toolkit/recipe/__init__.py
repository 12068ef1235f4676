"""What is asked: one YAML file, read into strict models. An error names the file, the line, the
field and the fix.
"""

from toolkit.recipe.conditions import (
    AdapterCondition,
    Condition,
    DistilledCondition,
    FullCondition,
    Given,
    Lookahead,
    LoraCondition,
    Snapshots,
)
from toolkit.recipe.criteria import Criteria, Criterion, Thresholds, Zone
from toolkit.recipe.load import (
    RecipeError,
    dump_recipe,
    load_criteria,
    load_recipe,
    parse_recipe,
    read_document,
    read_recipe,
    with_replicas,
    with_suites,
    write_recipe,
)
from toolkit.recipe.mitigations import EnsembleMethod, Mitigation, Similarity, Teacher
from toolkit.recipe.models import SHIFTS, Data, Evaluation, Recipe, Sequential, Target

__all__ = [
    "SHIFTS",
    "AdapterCondition",
    "Condition",
    "Criteria",
    "Criterion",
    "Data",
    "DistilledCondition",
    "EnsembleMethod",
    "Evaluation",
    "FullCondition",
    "Given",
    "Lookahead",
    "LoraCondition",
    "Mitigation",
    "Recipe",
    "RecipeError",
    "Sequential",
    "Similarity",
    "Snapshots",
    "Target",
    "Teacher",
    "Thresholds",
    "Zone",
    "dump_recipe",
    "load_criteria",
    "load_recipe",
    "parse_recipe",
    "read_document",
    "read_recipe",
    "with_replicas",
    "with_suites",
    "write_recipe",
]
