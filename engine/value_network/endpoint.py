"""What an endpoint serves: models by the names callers know them by, and the engines behind those names.

    models:
    - {name: tweets, base: pkg:smollm2-135m, value: runs/value-network/laptop/model, base_name: smollm2}
    - {name: plain, base: some/model}

An entry is one engine. With a value network it answers under two names: `name` mixes (`value_beta` in the request, or
`beta` here), `base_name` is the base alone, by the same engine at beta 0.

Left out: HTTP (`serve_apps`) and starting it (`jobs.serve`). Called by both; light until an engine's settings are asked
for.
"""

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple

from pydantic import Field, model_validator

from engine.config import Recipe, Section, knob
from engine.resources import Demand
from engine.value_network.card import MOST_BETA, checked_beta

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=100)]
_OURS = frozenset({"model", "served_model_name", "trust_remote_code", "hf_overrides", "logits_processors", "task",
                   "max_model_len", "max_num_seqs"})  # fmt: skip


class Offered(NamedTuple):
    """A name that callers may ask for; `beta` is None where there is no value network."""

    name: str
    beta: float | None
    fixed: bool
    """Whether a request may not choose another beta."""


class ServedModel(Section):
    """One engine and its names."""

    name: _Name
    """What callers ask for."""
    base: str = Field(min_length=1)
    """The model: pkg:..., a directory or a hub name."""
    value: str | None = None
    """A value network to put beside it: RUN/model of `headrace value-network`."""
    beta: float = Field(1.0, ge=0, le=MOST_BETA, allow_inf_nan=False)
    """How much of the value network's logits is added where a request does not say."""
    base_name: _Name | None = None
    """With a value network: a name for the base alone, answered by the same engine."""
    longest: int = Field(2048, ge=16)
    """Tokens of prompt and answer together; the model may bear fewer."""
    at_once: int = Field(16, ge=1)
    """Answers that the engine works on at a time."""
    max_queued: int = Field(32, ge=0)
    """Requests that wait for the engine, for each replica of the ingress; one more is answered with 429."""
    cpus: float = Field(1.0, gt=0)
    """CPUs of a replica; it computes with as many threads, but one at least."""
    gpus: int = Field(0, ge=0)
    """GPUs of a replica; the model is spread over them (tensor parallelism)."""
    replicas: int = Field(1, ge=1)
    """Engines of this kind, each with its CPUs and GPUs."""
    max_replicas: int = Field(1, ge=1)
    """Above `replicas`, Serve adds replicas when each has more than `target_ongoing` requests."""
    target_ongoing: float = Field(12.0, gt=0)
    """Requests of a replica, on average, that Serve aims at."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Keys of vLLM's own: dtype, quantization, gpu_memory_utilization, ..."""

    @model_validator(mode="after")
    def _goes_together(self) -> "ServedModel":
        if self.base_name is not None and self.value is None:
            raise ValueError("base_name is for a model with a value network; without one, name is the base")
        if self.max_replicas < self.replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than replicas {self.replicas}")
        taken = sorted(_OURS & self.engine.keys())
        if taken:
            raise ValueError(f"engine.{taken[0]} is set by the endpoint itself")
        return self

    def offered(self) -> Iterator[Offered]:
        """The names it answers to."""
        yield Offered(self.name, self.beta if self.value else None, fixed=False)
        if self.base_name:
            yield Offered(self.base_name, 0.0, fixed=True)

    def located(self) -> "ServedModel":
        """The same with paths that mean the same in any directory: replicas start in their own."""
        from engine.models import portable

        return self.model_copy(
            update={"base": portable(self.base), "value": portable(self.value) if self.value else None}
        )

    def vllm(self) -> dict[str, Any]:
        """What vLLM is started with. Raises `SourceError` for models that are not there or do not fit."""
        from pathlib import Path

        from engine.models import vllm_keys
        from engine.value_network.serving import checked_base, vllm_settings

        folder, settings = vllm_settings(self.base, self.value) if self.value else (checked_base(self.base), {})
        beside: list[Path] = settings.pop("beside", [])
        if self.gpus > 1:
            settings["tensor_parallel_size"] = self.gpus
        return vllm_keys(
            folder, at_once=self.at_once, longest=self.longest, beside=beside, **{**settings, **self.engine}
        )


class ServeRecipe(Recipe):
    """The keys of a `serve` recipe."""

    models: Annotated[list[ServedModel], Field(min_length=1)]
    """What is served, an engine each."""
    host: str = knob("127.0.0.1")
    """Address to listen on; beyond this machine only with a key (HEADRACE_API_KEY)."""
    port: int = knob(8000, ge=0, le=65535)
    """0: any free one."""
    ingress_replicas: int = knob(1, ge=1)
    """Processes that receive requests."""
    ingress_cpus: float = knob(0.2, gt=0)
    """CPUs that Ray counts for each of them."""
    retry_after: float = knob(1.0, gt=0)
    """Seconds after which a caller that was refused may try again."""
    max_body_bytes: int = knob(2_097_152, ge=1_024)
    """Bytes of a request."""
    request_seconds: float = knob(600.0, gt=0)
    """How long an answer may take, waiting included."""
    drain_seconds: float = knob(60.0, gt=0)
    """How long answers that have begun may take once the endpoint is told to stop."""
    start_seconds: float = knob(900.0, gt=0)
    """How long the engines may take to start."""
    playground: bool = knob(True)
    """Whether / is a page to try the models."""

    @model_validator(mode="after")
    def _one_of_each_name(self) -> "ServeRecipe":
        names = [each.name for model in self.models for each in model.offered()]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"the name {name} is given to two models")
        return self

    def fitted(self) -> "ServeRecipe":
        """The same with windows that the models bear. Raises `SourceError` for models that are not there or do not
        fit."""
        models = [each.model_copy(update={"longest": each.vllm()["max_model_len"]}) for each in self.models]
        return self.model_copy(update={"models": models})

    def demands(self) -> list[Demand]:
        """What it holds while it runs."""
        engines = [
            Demand(f"engines of {each.name}", each.replicas, each.cpus, each.gpus, key=f"models.{at}.replicas")
            for at, each in enumerate(self.models)
        ]
        return [Demand("ingress processes", self.ingress_replicas, self.ingress_cpus, key="ingress_replicas"), *engines]


def beta_for(offered: Offered, said: Any) -> float | None:
    """The beta of a request to a name that says `said` (None: nothing). Raises `ValueError`, a plain sentence, for
    what is no beta or one that this name does not take."""
    if said is None:
        return offered.beta
    beta = checked_beta(said)
    if offered.beta is None:
        raise ValueError(f"{offered.name} has no value network, so it takes no value_beta.")
    if offered.fixed and beta != offered.beta:
        raise ValueError(f"{offered.name} is the base alone; its value_beta is {offered.beta:g}.")
    return beta
