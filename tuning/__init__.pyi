from .recipe import TuneRecipe
from .search import run_search

__all__ = ["TuneRecipe", "run_search"]
