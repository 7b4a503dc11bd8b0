"""Every failure a user can meet, as one tree; catch by meaning.

    HeadraceError                 one plain sentence and the remedy; exit code 2
    |-- RecipeError               the recipe cannot be read, names an unknown key or holds a wrong value
    |-- SourceError               an input is missing, unreadable, of a forbidden scheme or outside its roots
    |   `-- SchemaError           an input lacks a column or has one of the wrong type
    |-- ArtifactError             a manifest is missing, damaged or of another schema; nothing is published yet
    |-- StorageError              an output cannot be written: read-only, full, no permission
    |-- RunBusy                   another live run owns this run directory
    |-- Superseded                this process outlived its run: a newer run has taken over the ledger
    |-- ResumeRefused             the committed work cannot be built upon
    |   `-- Outdated              it was made from other inputs or another recipe
    |-- QuarantineExceeded        more poison rows than the recipe allows
    |-- ResourceError             the job could never be scheduled on this machine or cluster
    |-- ClusterError              Ray cannot be reached, started or trusted
    |-- DeadlineExceeded          a wait ran out of time; the message names what was waited for
    `-- Interrupted               the user stopped the job (exit code 130); what is committed is kept

Left out: programming errors. Those stay ordinary exceptions, and an `assert` guards an invariant.
Called by every room; shown by `jobs.cli`.
"""

import re


class HeadraceError(Exception):
    """A failure the user can act on.

    `problem` says what is wrong in one plain sentence, `remedy` what to do about it. Both survive pickling, so an
    error raised in a Ray worker reaches the driver as it was.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}".strip()


class RecipeError(HeadraceError):
    """The recipe cannot be read, names an unknown key or holds a wrong value."""


class SourceError(HeadraceError):
    """An input is missing, unreadable, of a forbidden scheme or outside the roots the recipe names."""


class SchemaError(SourceError):
    """An input lacks a column or has one of the wrong type."""


class ArtifactError(HeadraceError):
    """A manifest is missing, damaged or of another schema, or the artifact is not published yet."""


class StorageError(HeadraceError):
    """An output cannot be written: read-only, full, or not permitted."""


class RunBusy(HeadraceError):
    """Another live run owns this run directory."""


class Superseded(HeadraceError):
    """This process outlived its run: a newer run has taken over the ledger."""


class ResumeRefused(HeadraceError):
    """The committed work cannot be built upon."""


class Outdated(ResumeRefused):
    """The committed work was made from other inputs or another recipe."""


class QuarantineExceeded(HeadraceError):
    """More poison rows than the recipe allows."""


class ResourceError(HeadraceError):
    """The job could never be scheduled on this machine or cluster."""


class ClusterError(HeadraceError):
    """Ray cannot be reached, started or trusted."""


class DeadlineExceeded(HeadraceError):
    """A wait ran out of time; the message names what was waited for."""


class Interrupted(HeadraceError):
    """The user stopped the job; what is committed is kept."""

    exit_code = 130


def redact(uri: str) -> str:
    """A URI fit for a log: user names, passwords and query strings taken out."""
    return re.sub(r"//[^/@]*@", "//***@", uri).partition("?")[0]
