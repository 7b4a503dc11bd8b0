from .estimates import SubsetEstimates, estimate_subsets, rescaled
from .estimator import Budget, Estimator, read_estimates
from .job import run_selection
from .projection import Projection, narrowed
from .recipe import SelectRecipe

__all__ = [
    "Budget",
    "Estimator",
    "Projection",
    "SelectRecipe",
    "SubsetEstimates",
    "estimate_subsets",
    "narrowed",
    "read_estimates",
    "rescaled",
    "run_selection",
]
