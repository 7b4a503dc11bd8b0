"""The recipe keys of LintSeq.

Left out: where programs come from and where sequences go (the job's own keys). Called by the sampler, by the actor
and by the recipe of `jobs.lintseq`.
"""

from typing import Literal

from pydantic import Field

from engine.config import Section


class LintSeqOptions(Section):
    """How edit sequences are sampled; everything here changes the output."""

    paths: int = Field(default=1, ge=1, le=1000)
    """Edit sequences drawn per program, each with a seed of its own."""
    linter: Literal["fast", "pylint"] = "fast"
    """`fast`: ours, in process, independent of what is installed. `pylint`: the oracle, some hundred times slower."""
    initial_errors: Literal["keep_to_last", "reject"] = "keep_to_last"
    """Programs that have errors as they stand: `keep_to_last` writes the erroneous lines in the last edit (as the
    reference does); `reject` drops the program (outside a job: a single insertion)."""
    undefined_names: Literal["given", "error"] = "given"
    """Names undefined in the whole program, such as the imports of a function cut out of its module: `given` takes
    them as defined elsewhere; `error` counts every line that uses one as erroneous (as the reference does)."""
    # Of 4,353 standard-library functions with a docstring (5 to 40 lines), 59 % use a name of their module. Under
    # `error` their last edit is a heap: 47 % of a program's lines on average, 3.3 edits a program, 17 % of the programs
    # a single insertion. Under `given` it is 32 %, 4.0 edits and 11 %.
    missing_imports: bool = False
    """Count an import that is not installed as an error; the output then depends on the machine."""
    max_rounds: int = Field(default=512, ge=1)
    """Backward edits at most; what is left then becomes the first edit."""
    reference_compat: bool = False
    """Reproduce the reference's quirks: programs stripped, indentation of four spaces only, undefined names are
    errors, broken programs sampled, programs without code give no edits."""
