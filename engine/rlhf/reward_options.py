"""The recipe's `rewards:`, a list of who scores responses; their weighted sum is a response's score.

Left out: what the kinds do (`engine.rlhf.rewards`). Light: it imports neither torch nor ray. Called by the recipe.
"""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from engine.config import Section, knob
from engine.evaluation.sandbox import SandboxOptions

_NEEDS = {"model": "model", "function": "function", "http": "url", "verifier": "dataset"}


class RewardOptions(Section):
    """One of those who score."""

    kind: Literal["model", "function", "http", "code", "verifier"]
    """A sequence classifier with one output (a reward model, or an encoder); a Python function; an HTTP endpoint; tests
    that the response's program is run against; a verifier of reasoning-gym."""
    name: str = ""
    """What it is called in metrics; its kind if not given."""
    weight: float = 1.0
    """Its share in the sum."""
    clip: float | None = Field(None, gt=0)
    """Its scores are cut to +- this before they are weighted."""
    # Its weights decide, wherever they are: they are part of the fingerprint of the inputs.
    model: str | None = knob(None)
    """model: a model reference, as `headrace reward-model` publishes it."""
    reads: Literal["both", "response"] = "both"
    """model: prompt and response, or the response alone."""
    window: int = Field(512, ge=2)
    """model: tokens that it reads, from the beginning."""
    probability: bool = False
    """model: score by the probability that its output stands for (the logistic function of it), not by that output."""
    function: str | None = None
    """function: `package.module:name`, called with prompts, responses and references (lists), giving a number each."""
    url: str | None = None
    """http: takes {"prompts", "responses", "references"} by POST and answers {"scores"}, a number each."""
    key_env: str | None = knob(None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """http: the environment variable with a bearer key."""
    timeout_seconds: float = knob(30, gt=0)
    """http: the longest wait for one answer; it is asked again, for `patience_seconds` in all."""
    patience_seconds: float = knob(300, gt=0)
    """http: how long an endpoint that is down is waited for."""
    dataset: str | None = None
    """verifier: the task's name in reasoning-gym; references are its entries, as JSON."""
    sandbox: SandboxOptions = Field(default_factory=SandboxOptions)
    """code: what a program may use, each test anew."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str | None) -> str | None:
        parts = urlsplit(url or "http://localhost")
        # Recipes are kept and shown: whatever is in a URL is no secret.
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError("needs a URL such as http://localhost:8000/score, without credentials or a query")
        return url

    @field_validator("function")
    @classmethod
    def _path(cls, path: str | None) -> str | None:
        if path is not None and not all(part.isidentifier() for half in path.split(":") for part in half.split(".")):
            raise ValueError("needs package.module:name")
        if path is not None and path.count(":") != 1:
            raise ValueError("needs package.module:name")
        return path

    @model_validator(mode="after")
    def _complete(self) -> "RewardOptions":
        needed = _NEEDS.get(self.kind)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"a reward of kind {self.kind} needs {needed}")
        return self

    @property
    def label(self) -> str:
        """What it is called."""
        return self.name or self.kind
