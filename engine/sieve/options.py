"""The recipe sections of SIEVE: `teacher:`, `budget:`, `student:`, `loop:` and `filter:`.

Left out: what the keys do (the modules named after the sections). Light: it imports neither torch nor ray. Called by
the recipe classes of `jobs`.
"""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from engine.config import Section, knob

URL = "https://api.openai.com/v1"


class TeacherOptions(Section):
    """Who labels, and how it is asked."""

    kind: Literal["labels", "endpoint", "vllm", "scorer"]
    """The column named in `truth`; an OpenAI-compatible endpoint; a local causal LM that writes a verdict; one that
    scores words."""
    passes: list[str] = Field(default_factory=list)
    """scorer: the words that stand for pass."""
    fails: list[str] = Field(default_factory=list)
    """scorer: the words that stand for fail."""
    model: str = "pkg:smollm2-135m"
    """vllm and scorer: a model reference; endpoint: the name the endpoint knows the model by."""
    prompt: str | None = None
    """The question, with {snippet} and {criterion}; unset: one that asks for a short reasoning and PASS or FAIL, for
    the scorer `{snippet}`, a blank line and `Topic of this article (WORDS):`."""
    max_tokens: int = Field(256, ge=1)
    """endpoint and vllm: longest answer."""
    calibration: int = Field(64, ge=0)
    """scorer: unlabelled snippets over which each word's mean log-probability is taken off; 0 leaves it on."""
    recheck: int = Field(0, ge=0)
    """Validation snippets asked about a second time, out of the same budget, to see whether the teacher agrees with
    itself: no student can follow it further than that."""
    at_once: int = knob(16, ge=1)
    """Snippets asked about at a time (requests in flight, or the size of a batch)."""
    url: str = URL
    """endpoint: its base URL."""
    key_env: str = knob("OPENAI_API_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """endpoint: the environment variable that holds the key; a local endpoint may need none."""
    timeout_seconds: float = knob(60, gt=0)
    """endpoint: the longest wait for an answer."""
    actors: int = knob(1, ge=1)
    """vllm and scorer: actors that hold the model."""
    cpus: float = knob(0.5, gt=0)
    """vllm and scorer: logical cores of each."""
    gpus: float = knob(0, ge=0)
    """vllm and scorer: GPUs of each."""

    @field_validator("prompt")
    @classmethod
    def _has_snippet(cls, prompt: str | None) -> str | None:
        if prompt is not None and "{snippet}" not in prompt:
            raise ValueError("needs {snippet}, the place of the text")
        return prompt

    @field_validator("url")
    @classmethod
    def _plain_url(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port  # raises for one that is no number
        except ValueError:
            raise ValueError("needs a URL such as http://localhost:8000/v1") from None
        # Recipes are kept and shown: whatever is in a URL is no secret.
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError("needs a URL such as http://localhost:8000/v1, without credentials or a query")
        return url

    @model_validator(mode="after")
    def _words(self) -> "TeacherOptions":
        if self.kind == "scorer" and not (self.passes and self.fails):
            raise ValueError("a scorer needs words in both passes and fails")
        if both := set(self.passes) & set(self.fails):
            raise ValueError(f"passes and fails both hold {min(both)!r}; take it out of one")
        return self


class TruthOptions(Section):
    """A column that says what is so: the labels teacher's answers, and what the report holds the teacher against."""

    column: str
    """The column; `source_part`, the name of the file a text came from, will do."""
    passes: list[str] = Field(min_length=1)
    """Values that pass, as text: globs such as `sport/*`, in any case."""


class BudgetOptions(Section):
    """What the teacher may cost; whatever is reached first ends the labelling. No limit is ever exceeded."""

    queries: int = Field(600, ge=0)
    """Questions, those without a usable answer included."""
    tokens: int | None = Field(None, ge=0)
    """Tokens read and written together."""
    money: float | None = Field(None, ge=0)
    """Money, in the currency of the prices."""
    price_in: float = Field(0.0, ge=0)
    """Price of a million tokens read."""
    price_out: float = Field(0.0, ge=0)
    """Price of a million tokens written."""
    price_core_hour: float = knob(0.0, ge=0)
    """Price of an hour of a core (of a GPU where the filter has one), for the report's projections."""

    @model_validator(mode="after")
    def _priced(self) -> "BudgetOptions":
        if self.money is not None and not (self.price_in or self.price_out):
            raise ValueError("money needs price_in or price_out, the price of a million tokens")
        return self


class StudentOptions(Section):
    """The light classifier that learns from the teacher."""

    kind: Literal["encoder", "frozen"] = "encoder"
    """Fine-tune the whole encoder, or learn a head on its frozen features."""
    model: str = "pkg:minilm"
    """The encoder: a model reference (a BERT-like encoder, or T5, of which the encoder half is taken)."""
    max_tokens: int = Field(128, ge=8)
    """Length of a snippet; a longer text is cut by the rule in `long`."""
    long: Literal["split", "truncate"] = "split"
    """A longer text becomes several snippets, or its beginning stands for it."""
    join: Literal["mean", "max"] = "mean"
    """The score of a text of several snippets."""
    pooling: Literal["mean", "first"] = "mean"
    """What of the encoder's last layer goes into the head: the mean over tokens, or the first token."""
    gamma: float | None = Field(None, ge=0)
    """Focal loss: how much less a snippet counts that is already right; unset: 2, for a frozen encoder 0."""
    folds: int | None = Field(None, ge=2)
    """Parts of the labels, each scored by a student that has not seen it, to learn what scores mean; unset: 2, for a
    frozen encoder 5."""
    epochs: int = Field(4, ge=1)
    """encoder: passes over all labels each time it is trained."""
    learning_rate: float = Field(1e-4, gt=0)
    """encoder: peak learning rate of AdamW; the head's is ten times that."""
    batch: int = Field(16, ge=1)
    """encoder: snippets per optimiser step."""
    l2: float = Field(0.01, ge=0)
    """frozen: weight of the squared norm of the head."""
    noise: float = Field(0.0, ge=0)
    """frozen: standard deviation of the noise added to features read for training, in units of their own."""
    token_drop: float = Field(0.0, ge=0, lt=1)
    """frozen: share of tokens left out of the mean as features are read for training; keeps features of every token."""
    workers: int = knob(1, ge=1)
    """encoder: training workers; more than one train through Ray Train."""
    scorers: int = knob(1, ge=1)
    """Actors that score the stream while the loop runs."""
    cpus: float = knob(0.5, gt=0)
    """Logical cores of each trainer and scorer."""
    gpus: float = knob(0, ge=0)
    """GPUs of each trainer and scorer."""


class LoopOptions(Section):
    """How the snippets to ask about are chosen."""

    rule: Literal["band", "published", "uncertainty", "random"] = "band"
    """band: near the threshold of least error, from the calibrated student on; published: the paper's as we read it,
    whose band starts as everything; uncertainty: near 0.5; random: whatever comes."""
    warm_start: int = Field(100, ge=2)
    """Random snippets asked about first."""
    validation: int = Field(100, ge=0)
    """Random snippets, out of the budget, that are never trained on and on which every round is judged."""
    batch: int = Field(100, ge=1)
    """Labels between two trainings."""
    ahead: float = Field(0.25, ge=0, le=1)
    """Share of a batch that is asked for with the old student while the new one is trained."""
    share: float = Field(0.1, gt=0, le=1)
    """band and uncertainty: the share of the stream that the band holds when a batch begins."""
    every: int = Field(25, ge=1)
    """Labels between two attempts to narrow the band."""
    confidence: float = Field(0.05, gt=0, lt=1)
    """Chance that any pair of thresholds is judged wrongly (delta of the empirical Bernstein bound)."""
    grid: int = Field(33, ge=3)
    """Thresholds compared within the band."""
    starved: float = Field(0.002, ge=0, lt=1)
    """Stop when the band accepts less than this share of the stream."""
    settled: float = Field(0.002, ge=0, lt=1)
    """A training that changes the decision on less than this share of the stream has brought no gain ..."""
    patience: int = Field(3, ge=0)
    """... and this many of them in a row end the loop; 0: never."""
    sample: int = Field(1000, ge=1)
    """Unlabelled snippets by whose scores windows are laid and the stream's pass rate is estimated."""
    buffer: int = Field(20_000, ge=1)
    """Snippets held back to bring the stream into random order."""


class FilterOptions(Section):
    """What the finished student does to the corpus."""

    mode: Literal["keep", "tag"] = "keep"
    """Keep what passes, or keep everything with its `sieve_score`."""
    threshold: float | None = Field(None, ge=0, le=1)
    """Texts with a score above it pass; unset: the student's own."""
    batch_tokens: int = knob(1024, ge=64)
    """Tokens of a batch, padding included; a GPU wants a hundred times as many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the encoder. Measured on a CPU without AMX: bfloat16 takes 1.5 times as long as float32, ONNX
    Runtime 1.1 times as long as torch, and torch.compile saves 4 % once it has compiled for half a minute."""
    actors: int | None = knob(None, ge=1)
    """Filter actors; unset: as many as the cores have room for. With GPUs it has to be said."""
    cpus: float = knob(0.75, gt=0)
    """Logical cores of each filter actor."""
    gpus: float = knob(0, ge=0)
    """GPUs of each filter actor."""

    @model_validator(mode="after")
    def _counted(self) -> "FilterOptions":
        if self.gpus and not self.actors:
            raise ValueError("filter.gpus needs filter.actors, the number of actors that get them")
        return self
