"""The recipe sections of an evaluation: what is asked, how answers are drawn, and what is measured of them.

Left out: what the keys do (the modules named after the sections), and who judges (`jobs.evaluate`). Light: it imports
neither torch nor ray. Called by the recipe class of `jobs.evaluate`.
"""

from typing import Literal

from pydantic import Field, model_validator

from engine.config import Section, knob
from engine.corpus.config import SourceConfig

Style = Literal["plain", "program", "edits", "chat"]
Perturbation = Literal["characters", "tokens", "order"]


class HumanEvalOptions(Section):
    """HumanEval: functions to be written, and run against their tests in the sandbox."""

    styles: list[Style] = Field(["plain"], min_length=1)
    """How it is asked: `plain` continues the prompt, `program` follows an instruction with a whole program, `edits`
    writes LintSeq's edit sequence, `chat` answers a request through the chat template."""
    problems: int | None = Field(None, ge=1)
    """The first so many of the 164; all if not given."""
    only: list[str] = Field(default_factory=list)
    """These alone, by name: `HumanEval/0`."""
    samples: int = Field(1, ge=1)
    """Answers drawn for each problem and style."""
    k: list[int] = Field([1], min_length=1)
    """pass@k for each of these; none larger than samples."""
    instruction: str = "{docstring}\n\n{signature}"
    """program and edits: what the model is told; {docstring}, {signature} and {prompt} are filled in."""
    request: str = "Complete this Python function. Answer with the whole function in one code block.\n\n{prompt}"
    """chat: what the user says; {prompt} is filled in."""

    @model_validator(mode="after")
    def _enough(self) -> "HumanEvalOptions":
        if min(self.k) < 1 or max(self.k) > self.samples:
            raise ValueError(f"k {self.k} needs numbers from 1 to humaneval.samples, which is {self.samples}")
        if len(set(self.styles)) < len(self.styles):
            raise ValueError("humaneval.styles names a style twice")
        return self


class PromptOptions(Section):
    """Prompts whose answers a reward model scores or a judge compares."""

    source: SourceConfig
    """`prompts` (`prompt`, perhaps `reference`) or `demonstrations` (`messages`, the last answer left out)."""
    rows: Literal["prompts", "demonstrations"] = "prompts"
    """Which of the two it holds."""
    limit: int = Field(100, ge=1)
    """Rows taken, drawn with the recipe's seed."""
    samples: int = Field(1, ge=1)
    """Answers drawn for each prompt."""
    chat: bool = True
    """Ask through the chat template; otherwise the model continues the bare prompt."""


class HeldoutOptions(Section):
    """Texts on which the model's perplexity is measured; nothing may have trained on them."""

    source: SourceConfig
    """Where they are."""
    rows: Literal["documents", "instructions", "edit_sequences", "demonstrations", "responses"] = "documents"
    """What they are: of documents every token counts, of the others what a model learns to write."""
    limit: int = Field(100, ge=1)
    """Rows taken, drawn with the recipe's seed."""
    window: int = Field(1024, ge=2)
    """Tokens of a text that are looked at, from its beginning."""


class SamplingOptions(Section):
    """How answers are drawn."""

    temperature: float = Field(0.0, ge=0)
    """0 takes the likeliest token each time."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that have this much of the probability."""
    max_tokens: int = Field(256, ge=1)
    """An answer is cut off here."""


class RobustnessOptions(Section):
    """The same questions again with their wording disturbed; code and signatures stay as they are."""

    kinds: list[Perturbation] = Field(["characters", "tokens", "order"], min_length=1)
    """`characters` are swapped, dropped, doubled or mistyped, `tokens` (words) dropped or doubled, at `rate`; `order`
    shuffles sentences or lines."""
    rate: float = Field(0.1, gt=0, le=1)
    """Share of the words (or of their letters) that are disturbed."""
    samples: int = Field(1, ge=1)
    """Answers drawn for each disturbed question, with the seeds of the clean question's first answers."""


class RewardOptions(Section):
    """A reward model that scores answers to the prompts."""

    model: str
    """A model reference: a sequence classifier with one output, as `headrace reward-model` publishes it."""
    window: int = Field(1024, ge=2)
    """Tokens of prompt and answer that it reads, from the beginning, as in training."""


class JudgeOptions(Section):
    """Pairwise comparison with other answers, each pair in both orders."""

    against: str
    """RUN/dataset of another evaluation with the same questions; or `reference`, each row's own reference answer."""
    by: Literal["teacher", "reward"] = "teacher"
    """Who compares: the section `teacher`, or the reward model of the section `reward`."""
    pairs: int = Field(100, ge=1)
    """Pairs compared at the most; each costs two questions."""
    criterion: str = "Answer A is better than answer B: more correct, more helpful, and clearer."
    """What a teacher is asked about a text that holds a prompt and the answers A and B."""
    margin: float = Field(0.0, ge=0)
    """reward: scores no further apart than this are a tie."""


class EngineOptions(Section):
    """What generates, and on what."""

    kind: Literal["vllm", "transformers"] = "vllm"
    """vLLM, or the model's own forward in transformers."""
    window: int = Field(4096, ge=16)
    """Most tokens of a question and its answer together; the model's own window if that is smaller."""
    shard: int = Field(32, ge=1)
    """Rows of a shard: a kill costs at most one for each actor."""
    at_once: int = knob(32, ge=1)
    """Sequences worked on at a time."""
    actors: int = knob(1, ge=1)
    """Actors that each hold the model."""
    cpus: float | None = knob(None, gt=0)
    """Logical cores of each, and as many threads; all there are divided by the actors if not given, beside a GPU 1."""
    gpus: float = knob(0, ge=0)
    """GPUs of each; as many again for perplexity and for a reward model, which then have actors of their own."""
    tokens_per_second: float = knob(100, gt=0)
    """What an actor writes, for the forecast of the time: about 100 for SmolLM2-135M on one core."""
