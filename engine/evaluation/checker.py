"""Whether an untrusted function passes its tests, decided where it cannot reach.

    tester        runs the tests, which are trusted; one process for many checks
       |  calls: plain arguments
    checker       this process: passes them on, keeps the deadline
       |  returns: plain values
    candidate     the untrusted program, confined, new for each check

The tests hold a stand-in for the candidate; calling it sends the arguments over and waits for what comes back. The
candidate sees neither tests nor verdict: all it can do to pass is to return what the tests want. A value that is not
plain (`engine.evaluation.values`) fails, as does one that does not come in time.

Left out: confinement (`engine.evaluation.sandbox`). Called by `engine.evaluation`.
"""

import contextlib
import json
import os
import re
import selectors
import time
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.evaluation.grading import FAILED, PASSED, taken_apart
from engine.evaluation.sandbox import Running, Sandbox, SandboxOptions

_VALUES = Path(__file__).with_name("values.py")
_TESTER_SECONDS = 86_400.0
_LONGEST_LINE = 8 << 20


@dataclass(frozen=True)
class Task:
    """A function to be written and its tests: `tests` defines `check(candidate)`; `preamble` is what they rely on."""

    entry_point: str
    tests: str
    preamble: str = ""


@dataclass(frozen=True)
class Checked:
    """What became of a candidate: `why` is empty if it passed."""

    passed: bool
    why: str = ""
    """`test (NAME)`: a test raised NAME, mostly AssertionError; `raised NAME`: the candidate did; `time`; `syntax`;
    `missing`: no such function; `value`: it returned what is not plain; `died`."""
    tests: int = 0
    """Where tests were graded: how many there are (`engine.evaluation.grading`) ..."""
    tests_passed: int = 0
    """... and how many passed; what was not reached in time has failed."""


class Checker:
    """Checks candidates one at a time; a context manager, since its tester is a process. It may be entered again."""

    def __init__(self, options: SandboxOptions | None = None) -> None:
        self.sandbox = Sandbox(options)
        trusted = self.sandbox.options.model_copy(update={"seconds": _TESTER_SECONDS, "memory_mb": 2048})
        self._trusted = Sandbox(trusted)
        self._stack = contextlib.ExitStack()
        self._tester: _Peer | None = None

    def __enter__(self) -> "Checker":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_tester()

    def check(self, program: str, task: Task, *, graded: bool = False) -> Checked:
        """Run the tests against a program, whatever it does. Raises `HeadraceError` only where tests cannot be run.

        `graded` runs each test by itself and counts those that pass, which takes longer for a program that fails.
        """
        tests, count = taken_apart(task.tests) if graded else (task.tests, 0)
        checked = self._check(program, replace(task, tests=tests))
        # A test that reported twice, in whichever way, is no more than one.
        return replace(checked, tests=count, tests_passed=min(checked.tests_passed, count))

    def _check(self, program: str, task: Task) -> Checked:
        if not parses(program):
            return Checked(False, "syntax")
        passed = 0
        tester = self._testing()  # it starts on its own time, not on the program's
        with self.sandbox.start(_candidate(program, task.entry_point)) as running:
            candidate = _Peer(running)
            said = candidate.read(running.deadline)
            if said.get("ready") is not True:
                return Checked(False, _why(said))
            tester.write({"entry_point": task.entry_point, "tests": task.tests, "preamble": task.preamble})
            while True:
                asked = tester.read(running.deadline)
                if "one_passed" in asked:
                    passed += 1
                    continue
                if "call" not in asked:
                    break
                candidate.write(asked)
                answer = candidate.read(running.deadline)
                if "returned" not in answer and "raised" not in answer:
                    self._end_tester()  # its tests wait for a value that does not come
                    return Checked(False, _why(answer), tests_passed=passed)
                tester.write(answer)
            if "passed" not in asked:
                self._end_tester()
                return Checked(False, _why(asked), tests_passed=passed)
            return Checked(bool(asked["passed"]), str(asked.get("why", "")), tests_passed=passed)

    def _testing(self) -> "_Peer":
        if self._tester is None:
            running = self._stack.enter_context(self._trusted.start(_program(_TESTER)))
            self._tester = _Peer(running)
        return self._tester

    def _end_tester(self) -> None:
        self._stack.close()
        self._tester = None


def parses(program: str) -> bool:
    """Whether a text is Python that this interpreter compiles; empty text is."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody's code is no concern of the user
            compile(program, "candidate", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


class _Peer:
    """A confined process that is spoken to in lines of JSON."""

    def __init__(self, running: Running) -> None:
        process = running.process
        assert process.stdin
        assert process.stdout
        self._in, self._out = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(self._in, False)
        self._buffer = bytearray()

    def write(self, message: dict[str, Any]) -> None:
        """Send a message, as far as it is taken; whoever takes none will not answer either."""
        left = memoryview(json.dumps(message).encode() + b"\n")
        with selectors.DefaultSelector() as selector:
            selector.register(self._in, selectors.EVENT_WRITE)
            while left and selector.select(1.0):
                try:
                    left = left[os.write(self._in, left) :]
                except BrokenPipeError:
                    return

    def read(self, deadline: float) -> dict[str, Any]:
        """The next message; `{"silent": "time"}` or `{"silent": "died"}` where none comes."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                left = deadline - time.monotonic()
                if left <= 0 or not selector.select(left):
                    return {"silent": "time"}
                block = os.read(self._out, 1 << 16)
                if not block or len(self._buffer) > _LONGEST_LINE:
                    return {"silent": "died"}
                self._buffer += block
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer[:] = rest
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return {"silent": "died"}
        return message if isinstance(message, dict) else {"silent": "died"}


def _why(said: dict[str, Any]) -> str:
    return str(said.get("why") or said.get("silent") or "died")


def _candidate(program: str, entry_point: str) -> str:
    given = {"PROGRAM": ascii(program), "ENTRY": ascii(entry_point)}
    return _program(re.sub(r"\b(PROGRAM|ENTRY)\b", lambda match: given[match.group()], _CANDIDATE))


def _program(main: str) -> str:
    return f"{_VALUES.read_text()}\n{_CHANNEL}\n{main}"


_CHANNEL = """
import os, sys
_channel = os.fdopen(os.dup(1), "w", encoding="ascii")
_nothing = os.open("/dev/null", os.O_WRONLY)
os.dup2(_nothing, 1)
os.dup2(_nothing, 2)


def _tell(**message):
    _channel.write(json.dumps(message) + "\\n")
    _channel.flush()
"""

_CANDIDATE = """
_names = {"__name__": "candidate"}
try:
    exec(compile(PROGRAM, "candidate", "exec"), _names)
except BaseException as error:
    _tell(why=f"raised {type(error).__name__}")
    os._exit(1)
if not callable(_names.get(ENTRY)):
    _tell(why="missing")
    os._exit(1)
_tell(ready=True)
for _line in sys.stdin:
    _call = json.loads(_line)["call"]
    try:
        _packed = dumps(_names[ENTRY](*loads(_call[0]), **loads(_call[1])))
    except NotPlain:
        _tell(why="value")
    except BaseException as error:
        _tell(raised=type(error).__name__)
    else:
        _tell(returned=_packed)
os._exit(0)
"""

_TESTER = (
    (
        """
import builtins


def _stand_in(*arguments, **named):
    _tell(call=[dumps(list(arguments)), dumps(named)])
    answer = json.loads(sys.stdin.readline())
    if "returned" in answer:
        return loads(answer["returned"])
    kind = getattr(builtins, str(answer["raised"]), None)
    error = kind() if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(answer["raised"])
    error.raised_by_candidate = str(answer["raised"])
    raise error


def _why(error):
    raised = getattr(error, "raised_by_candidate", "")
    return f"raised {raised}" if raised else f"test ({type(error).__name__})"


for _line in sys.stdin:
    _task = json.loads(_line)
    _failed = []
    _names = {
        "__name__": "tests",
        "PASSED": lambda: _tell(one_passed=True),
        "FAILED": lambda error: _failed.append(_why(error)),
    }
    try:
        exec(compile(_task["preamble"], "preamble", "exec"), _names)
        exec(compile(_task["tests"], "tests", "exec"), _names)
        _names[_task["entry_point"]] = _stand_in
        _names["check"](_stand_in)
    except BaseException as error:
        _failed.append(_why(error))
    if _failed:
        _tell(passed=False, why=_failed[0])
    else:
        _tell(passed=True)
"""
    )
    .replace("PASSED", PASSED)
    .replace("FAILED", FAILED)
)
