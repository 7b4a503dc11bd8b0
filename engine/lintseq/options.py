"""The recipe keys of LintSeq.

Left out: where programs come from and where sequences go (the job's own keys). Called by the sampler, by the actor
and by the recipe of `jobs.lintseq`.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.config import Section


class LintSeqOptions(Section):
    """How edit sequences are sampled; everything here changes the output."""

    paths: int = Field(default=1, ge=1, le=1000)
    """Edit sequences drawn per program, each with a seed of its own."""
    distinct: bool = True
    """Draw anew where a path repeats an earlier one of its program; a program whose lines all hang together then has
    fewer than `paths`."""
    algorithm: Literal["lintseq", "randseq"] = "lintseq"
    """`randseq` is the paper's control: random lines in random chunks, no linter."""
    linter: Literal["fast", "pylint", "syntax"] = "fast"
    """`fast`: ours, in process, independent of what is installed. `pylint`: the oracle, some hundred times slower.
    `syntax`: any language that has a tree-sitter grammar, and nothing but its syntax."""
    language: str = "python"
    """The programs' language; any but Python needs `linter: syntax` and the package tree-sitter-LANGUAGE."""
    initial_errors: Literal["keep_to_last", "reject", "repair"] = "keep_to_last"
    """Programs that have errors as they stand: `keep_to_last` writes the erroneous lines in the last edit (as the
    reference does); `reject` drops the program (outside a job: a single insertion); `repair` leaves the erroneous
    lines out of the program, and what cannot stand without them."""
    undefined_names: Literal["given", "error"] = "given"
    """Names undefined in the whole program, such as the imports of a function cut out of its module: `given` takes
    them as defined elsewhere; `error` counts every line that uses one as erroneous (as the reference does)."""
    missing_imports: bool = False
    """Count an import that is not installed as an error; the output then depends on the machine."""
    min_edit_lines: int = Field(default=1, ge=1)
    """Draw on until an edit has this many lines (the last one of a program may have fewer)."""
    max_edit_lines: int | None = Field(default=None, ge=1)
    """Draw anew, up to 16 times, where an edit has more lines; then the smallest of them stands."""
    max_seconds: float = Field(default=20.0, gt=0)
    """A program that takes more CPU time, all paths together, is dropped (outside a job: a single insertion)."""
    tokenizer: str | None = None
    """Count the tokens of each training text with this model's tokenizer: a directory, a name on the hub, or
    `pkg:NAME`."""
    max_tokens: int = Field(default=1024, ge=1)
    """The length of training texts that the report of token counts looks at."""
    max_rounds: int = Field(default=512, ge=1)
    """Backward edits at most; what is left then becomes the first edit."""
    reference_compat: bool = False
    """Reproduce the reference's quirks: programs stripped, indentation of four spaces only, undefined names are
    errors, broken programs sampled, programs without code give no edits."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.language != "python" and self.linter != "syntax":
            raise ValueError(f"language: {self.language} has no linter but its syntax; add linter: syntax")
        if self.max_edit_lines is not None and self.max_edit_lines < self.min_edit_lines:
            raise ValueError("max_edit_lines is below min_edit_lines")
        return self
