"""The keys of a `tune` recipe: which job, which of its keys are searched and how, and who is stopped early.

Left out: what the keys do (`tuning.space`, `tuning.schedulers`, `tuning.search`). Called by `jobs.tune`; light.
"""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from engine.config import Recipe, Section, knob

METRICS = {
    "sft": ("held_out/loss", "min"),
    "reward-model": ("held_out/loss", "min"),
    "value-network": ("held_out/loss", "min"),
    "rlhf": ("held_out/reward", "max"),
    "sieve": ("validation_balanced_accuracy", "max"),
}
"""What a job's trials are compared by unless the recipe says otherwise, and whether less or more of it is better."""

Whole = int
"""In `Range`, `int` is the name of a key."""


class Range(Section):
    """What one recipe key may be: exactly one of log, uniform, int, log_int and choice."""

    log: tuple[float, float] | None = None
    """Between two numbers, each factor as likely as any other."""
    uniform: tuple[float, float] | None = None
    """Between two numbers."""
    int: tuple[Whole, Whole] | None = None
    """A whole number from the first to the second."""
    log_int: tuple[Whole, Whole] | None = None
    """A whole number, each factor as likely as any other."""
    choice: list[Any] | None = Field(None, min_length=1)
    """One of these values; each may be anything that the key takes, a list or a section too."""
    when: dict[str, Any] = {}
    """Other keys and the value (or list of values) they must have; else the key stays as the base recipe has it."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Range":
        given = [name for name in ("log", "uniform", "int", "log_int", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"needs one of log, uniform, int, log_int and choice (there is {' and '.join(given) or 'none'})"
            )
        if given[0] == "choice":
            return self
        low, high = getattr(self, given[0])
        if low > high:
            raise ValueError(f"{given[0]} goes from {low} down to {high}; give the smaller number first")
        if given[0] in ("log", "log_int") and low <= 0:
            raise ValueError(f"{given[0]} needs numbers above 0")
        return self

    @property
    def kind(self) -> str:
        """Which of them."""
        return next(name for name in ("log", "uniform", "int", "log_int", "choice") if getattr(self, name) is not None)

    @property
    def ends(self) -> list[Any]:
        """Lowest and highest, or every choice."""
        return list(getattr(self, self.kind))


class SchedulerOptions(Section):
    """Who goes on (`tuning.schedulers`)."""

    kind: Literal["fifo", "asha", "pbt"] = "fifo"
    """fifo: all to their end; asha: the worse are stopped early; pbt: the worse go on from the better."""
    grace: int = Field(1, ge=1)
    """asha: steps before the first comparison."""
    reduction: float = Field(3.0, gt=1)
    """asha: one in so many goes on, and runs so many times as long until the next comparison."""
    most: int | None = Field(None, ge=1)
    """asha: steps of a whole trial; unset: as the job's recipe says."""
    interval: int = Field(1, ge=1)
    """pbt: steps between two comparisons; a multiple of the steps between two measurements."""
    quantile: float = Field(0.25, gt=0, le=0.5)
    """pbt: share of the trials that are taken from, and that take."""
    resample: float = Field(0.25, ge=0, le=1)
    """pbt: chance that a key is drawn anew and not only moved."""


class TuneRecipe(Recipe):
    """The keys of a `tune` recipe."""

    job: str
    """What is tuned: sft, reward-model, rlhf, value-network or sieve."""
    recipe: str | dict[str, Any]
    """The base recipe: a file, or its keys."""
    set: dict[str, Any] = {}
    """Keys of the base recipe (dotted) to change for all trials."""
    space: dict[str, Range] = {}
    """Keys of the base recipe (dotted) that are searched, each with log, uniform, int, log_int or choice."""
    metric: str = ""
    """What trials are compared by, a name in their metrics.jsonl; unset: the job's own measure of what is held out."""
    mode: Literal["min", "max", ""] = ""
    """Whether less or more of it is better; to be given with metric."""
    search: Literal["random", "optuna", "subsets"] = "random"
    """How values are proposed: at random, by Optuna's TPE from the trials so far, or subsets of tasks by estimates."""
    trials: int = knob(8, ge=1)
    """How many; raising it lets a finished search go on."""
    concurrent: int | None = knob(None, ge=1)
    """Trials at once, at most; unset: as many as fit."""
    scheduler: SchedulerOptions = Field(default_factory=SchedulerOptions)
    """Who goes on."""
    estimates: str | None = None
    """subsets: the run directory of the `select-tasks` that estimates them."""
    pool: int = Field(512, ge=2)
    """subsets: candidates looked at for each proposal."""

    @field_validator("job")
    @classmethod
    def _known(cls, job: str) -> str:
        if job not in METRICS:
            raise ValueError(f"should be one of {', '.join(METRICS)}")
        return job

    @model_validator(mode="after")
    def _makes_sense(self) -> "TuneRecipe":
        if bool(self.metric) != bool(self.mode):
            raise ValueError("metric and mode go together: give both or none")
        if not self.space and self.search != "subsets":
            raise ValueError("space names no key to search, for example {optimiser.learning_rate: {log: [1e-5, 1e-3]}}")
        if (self.search == "subsets") != (self.estimates is not None):
            raise ValueError("search: subsets and estimates (the run directory of a select-tasks) go together")
        if self.scheduler.kind == "pbt":
            if self.job == "sieve":
                raise ValueError(
                    "pbt is not for sieve: its student learns anew each round, so nothing can be handed on"
                )
            if self.search != "random":
                raise ValueError(
                    f"pbt draws its first trials at random and makes the others from them: not {self.search}"
                )
            if self.trials < 2:
                raise ValueError("pbt needs two trials at least")
        both = self.space.keys() & self.set.keys()
        if both:
            raise ValueError(f"{sorted(both)[0]} is both set and searched")
        return self

    @property
    def where(self) -> str:
        """What the base recipe is called."""
        return self.recipe if isinstance(self.recipe, str) else f"the recipe of {self.job} within this one"

    @property
    def measure(self) -> tuple[str, str]:
        """The metric and its mode."""
        return (self.metric, self.mode) if self.metric else METRICS[self.job]
