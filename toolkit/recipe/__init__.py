"""What is asked: one YAML file, read into strict models. An error names the file, the line, the field and the fix."""

from toolkit.recipe.models import (
    SHIFTS,
    Condition,
    Criteria,
    Criterion,
    Data,
    Evaluation,
    Given,
    Mitigation,
    Recipe,
    Sequential,
    Snapshots,
    Target,
    Teacher,
    Thresholds,
    Zone,
)
from toolkit.recipe.reading import RecipeError, dump_recipe, load_criteria, load_recipe, parse_recipe, read_document

__all__ = [
    "SHIFTS",
    "Condition",
    "Criteria",
    "Criterion",
    "Data",
    "Evaluation",
    "Given",
    "Mitigation",
    "Recipe",
    "RecipeError",
    "Sequential",
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
]
