"""Turns a YAML recipe into checked values, then into built objects, then into a run."""

from tts_verifier.recipe.recipe import Recipe, load_recipe, verifier_of_recipe
from tts_verifier.recipe.run import Outcome, run_recipe
from tts_verifier.registry import recipe_folder

__all__ = ["Outcome", "Recipe", "load_recipe", "recipe_folder", "run_recipe", "verifier_of_recipe"]
