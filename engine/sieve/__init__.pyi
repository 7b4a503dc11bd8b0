from .budget import BudgetLedger
from .calibration import Calibration, calibrate
from .distillation import demands, distil
from .endpoint import check_key
from .filter import SCORE, SieveFilter, filter_stages, statistics
from .loop import ActiveLoop, LoopState, Round
from .losses import focal_loss
from .options import BudgetOptions, FilterOptions, LoopOptions, StudentOptions, TeacherOptions, TruthOptions
from .recipe import SieveRecipe
from .report import describe_scores, narrate
from .rules import Band, QueryRule, empirical_bernstein, make_rule
from .snippets import SnippetStream
from .student import Student
from .teacher import Snippet, Teacher, Verdict
from .threshold import Confusion, balanced_accuracy, balanced_threshold, confusion, trm_threshold

__all__ = [
    "SCORE",
    "ActiveLoop",
    "Band",
    "BudgetLedger",
    "BudgetOptions",
    "Calibration",
    "Confusion",
    "FilterOptions",
    "LoopOptions",
    "LoopState",
    "QueryRule",
    "Round",
    "SieveFilter",
    "SieveRecipe",
    "Snippet",
    "SnippetStream",
    "Student",
    "StudentOptions",
    "Teacher",
    "TeacherOptions",
    "TruthOptions",
    "Verdict",
    "balanced_accuracy",
    "balanced_threshold",
    "calibrate",
    "check_key",
    "confusion",
    "demands",
    "describe_scores",
    "distil",
    "empirical_bernstein",
    "filter_stages",
    "focal_loss",
    "make_rule",
    "narrate",
    "statistics",
    "trm_threshold",
]
