from .bpe_dropout import BpeDropout
from .job import FineTuningJob, FineTuningRun, run_fine_tuning
from .order import DataOrder
from .packing import pack, share
from .recipe import FineTuningRecipe, RewardRecipe, SftRecipe

__all__ = [
    "BpeDropout",
    "DataOrder",
    "FineTuningJob",
    "FineTuningRecipe",
    "FineTuningRun",
    "RewardRecipe",
    "SftRecipe",
    "pack",
    "run_fine_tuning",
    "share",
]
