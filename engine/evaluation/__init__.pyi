from .checker import Checked, Checker, Task
from .humaneval import Problem, given_away, problems
from .judging import Judge, Pair, RewardJudge, RuleJudge, TextJudge, WinRate, win_rate
from .measures import Measured
from .options import JudgeOptions
from .passk import interval, pass_at_k
from .perplexity import Perplexity
from .perturbation import perturb, perturb_function
from .planning import Planned, prepare
from .recipe import EvaluationRecipe
from .report import narrate
from .results import Judging, Results, conclude, read_results, statistics
from .reward import RewardModel
from .sandbox import Finished, Sandbox, SandboxOptions, strongest
from .styles import program_of, wording

__all__ = [
    "Checked",
    "Checker",
    "EvaluationRecipe",
    "Finished",
    "Judge",
    "JudgeOptions",
    "Judging",
    "Measured",
    "Pair",
    "Perplexity",
    "Planned",
    "Problem",
    "Results",
    "RewardJudge",
    "RewardModel",
    "RuleJudge",
    "Sandbox",
    "SandboxOptions",
    "Task",
    "TextJudge",
    "WinRate",
    "conclude",
    "given_away",
    "interval",
    "narrate",
    "pass_at_k",
    "perturb",
    "perturb_function",
    "prepare",
    "problems",
    "program_of",
    "read_results",
    "statistics",
    "strongest",
    "win_rate",
    "wording",
]
