"""A YAML recipe becomes checked values, then built objects, then a run."""

from tts_verifier.recipe.recipe import Recipe, load_recipe, run_recipe

__all__ = ["Recipe", "load_recipe", "run_recipe"]
