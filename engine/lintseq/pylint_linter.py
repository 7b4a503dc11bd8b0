"""The oracle: pylint in process, built once, with the reference's choice of messages.

Errors (E), fatal ones (F) and super-init-not-called (W0231) count; with `strict_indentation` bad-indentation (W0311)
too. That is what is left of `--disable=C,R` when of the warnings only those two are kept. Checkers without such
messages are never loaded, which together with building pylint once saves most of the reference's time.

Comments in the program cannot silence it (`# pylint: disable`, `skip-file`). Modules that are not installed are no
errors unless `missing_imports` says so; what pylint infers about modules that *are* installed still depends on the
machine. Left out: everything about sampling. Called through `engine.lintseq.linting.linter_for`.
"""

import gc
import re
import threading
import tokenize
from collections.abc import Sequence

import astroid
from astroid.builder import AstroidBuilder
from pylint.checkers import BaseRawFileChecker, BaseTokenChecker
from pylint.checkers.clear_lru_cache import clear_lru_caches
from pylint.lint import PyLinter
from pylint.reporters import CollectingReporter
from pylint.utils import ASTWalker, FileState

from engine.lintseq.linting import (
    NAME_CODES,
    SYNTAX_ERROR,
    Finding,
    LineNumbers,
    Unlintable,
    blamed_line,
    no_warnings,
    without_mark,
)

_MODULE = "headrace_lintseq_program"
# Parsed modules and inference results pile up in astroid; dropping them costs about one lint.
_LINTS_BETWEEN_CLEARINGS = 200
_HOPELESS = (ValueError, RecursionError, MemoryError, astroid.AstroidError, tokenize.TokenError)


class _Deaf(PyLinter):  # type: ignore[misc]
    """A pylint that does not read the pragmas in comments."""

    def process_tokens(self, tokens: list[tokenize.TokenInfo]) -> None:
        """Nothing: a program must not choose what it is checked for."""


class PylintLinter:
    """Pylint as a `Linter`; one lint at a time per process, a lock sees to that."""

    def __init__(self, *, missing_imports: bool = False, strict_indentation: bool = False) -> None:
        self._linter = _Deaf(reporter=CollectingReporter())
        self._linter.load_default_plugins()
        self._linter.disable("all")
        for message in ("E", "F", "W0231"):
            self._linter.enable(message)
        if strict_indentation:
            self._linter.enable("W0311")
        if not missing_imports:
            self._linter.disable("E0401")
            self._linter.disable("E0611")
        self._linter.config.generated_members = ("cv2.*",)
        self._linter.config.reports = False
        self._linter.open()
        checkers = self._linter.prepare_checkers()
        self._walker = ASTWalker(self._linter)
        for checker in checkers:
            checker.open()
            self._walker.add_checker(checker)
        self._raw = [each for each in checkers if isinstance(each, BaseRawFileChecker)]
        self._token = [each for each in checkers if isinstance(each, BaseTokenChecker)]
        self._lints = 0

    def check(self, lines: Sequence[str]) -> list[Finding]:
        """The errors of the program; see `Linter.check`."""
        with _lock, no_warnings():
            self._lints += 1
            if self._lints % _LINTS_BETWEEN_CLEARINGS == 0:
                clear_lru_caches()
                astroid.MANAGER.clear_cache()
                gc.collect()
            return self._check(without_mark(lines))

    def _check(self, lines: Sequence[str]) -> list[Finding]:
        """One lint, by an oracle that nobody else is using."""
        numbers = LineNumbers(lines)
        linter = self._linter
        linter.reporter.messages = []
        linter.set_current_module(_MODULE, f"{_MODULE}.py")
        linter.file_state = FileState(_MODULE, linter.msgs_store, is_base_filestate=True)
        try:
            tree = AstroidBuilder(astroid.MANAGER).string_build("\n".join(lines), _MODULE, f"{_MODULE}.py")
        except astroid.AstroidSyntaxError as error:
            if not isinstance(error.error, SyntaxError):
                raise Unlintable(str(error.error)) from error
            return [Finding(numbers.index(blamed_line(error.error.msg, error.error.lineno)), SYNTAX_ERROR)]
        except _HOPELESS as error:
            raise Unlintable(str(error)) from error
        try:
            linter.check_astroid_module(tree, self._walker, self._raw, self._token)
        except _HOPELESS as error:
            raise Unlintable(str(error)) from error
        finally:
            astroid.MANAGER.astroid_cache.pop(_MODULE, None)
        return [
            Finding(numbers.index(each.line), each.symbol, _name_in(each.msg) if each.symbol in NAME_CODES else "")
            for each in linter.reporter.messages
        ]


_lock = threading.Lock()


def _name_in(message: str) -> str:
    """The variable a message is about."""
    quoted = re.search(r"variable (?:name )?'([^']*)'", message)
    return quoted[1] if quoted else ""
