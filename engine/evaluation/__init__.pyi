from .checker import Checked, Checker, Task
from .humaneval import Problem, given_away, problems
from .passk import interval, pass_at_k
from .sandbox import Finished, Sandbox, SandboxOptions, strongest

__all__ = [
    "Checked",
    "Checker",
    "Finished",
    "Problem",
    "Sandbox",
    "SandboxOptions",
    "Task",
    "given_away",
    "interval",
    "pass_at_k",
    "problems",
    "strongest",
]
