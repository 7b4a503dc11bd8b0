"""Runs untrusted Python in a process of its own: no network, a private directory, limits, ended as a group.

    gvisor        under runsc, where it is installed
    namespaces    own network, processes and file system (Linux, as root or with user namespaces)
    rlimits       limits alone: it may read files and open sockets

The strongest there is is used; `Sandbox` refuses to start with less than it is asked for. What confines the child is in
`engine.evaluation.confinement`. What a program prints can say anything: whether it is right is decided elsewhere, from
the values it returns (`engine.evaluation.checker`).

Left out: what is run. Called by `engine.evaluation`.
"""

import contextlib
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from engine.config import Section
from engine.errors import HeadraceError

Isolation = Literal["rlimits", "namespaces", "gvisor"]
LEVELS: tuple[Isolation, ...] = ("rlimits", "namespaces", "gvisor")
_CONFINEMENT = Path(__file__).with_name("confinement.py")
_START_SECONDS = 20.0
_TAKEN = 1 << 16


class SandboxOptions(Section):
    """What untrusted code may use."""

    isolation: Isolation = "namespaces"
    """The least isolation that will do; where there is less, nothing is run."""
    seconds: float = 5.0
    """Seconds a program may take, by the clock and of CPU time."""
    memory_mb: int = 512
    """Address space of each of its processes."""
    disk_mb: int = 16
    """Its private directory."""
    processes: int = 8
    """Processes and threads at a time."""
    output_kb: int = 256
    """What it may print."""


@dataclass(frozen=True)
class Finished:
    """How a program ended: `why` is `exit`, `signal`, `time`, `output` or `closed`; `code` an exit code or a signal."""

    why: str
    code: int
    out: str
    err: str
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return (self.why, self.code) == ("exit", 0)


class Sandbox:
    """Starts programs under the options. Raises `HeadraceError` where this machine isolates less than they ask for."""

    def __init__(self, options: SandboxOptions | None = None) -> None:
        self.options = options or SandboxOptions()
        self.isolation = strongest()
        if LEVELS.index(self.isolation) < LEVELS.index(self.options.isolation):
            raise HeadraceError(
                f"Untrusted code asks for isolation by {self.options.isolation}; this machine gives {self.isolation}.",
                "Run where user namespaces are allowed (or as root), or set sandbox.isolation=rlimits if you trust it.",
            )

    def run(self, source: str, stdin: str = "") -> Finished:
        """Run a program to its end, or end it when it has used up what it may use."""
        with self.start(source) as running:
            return running.finish(stdin.encode())

    @contextlib.contextmanager
    def start(self, source: str) -> "Iterator[Running]":
        """A program at work, confined before its first line runs; leaving the block ends it and all it started."""
        with tempfile.TemporaryDirectory(prefix="hrsandbox-") as folder:
            running = Running(self.isolation, self.options, source, Path(folder))
            try:
                yield running
            finally:
                running.end()


class Running:
    """A confined process: bytes in, bytes out, under a deadline."""

    def __init__(self, isolation: Isolation, options: SandboxOptions, source: str, folder: Path) -> None:
        self._options = options
        folder.chmod(0o755)
        program = folder / "program.py"
        program.write_text(source, encoding="utf-8", errors="surrogatepass")
        told, tell = os.pipe()
        command = _command(isolation, options, program, tell)
        self._started = time.monotonic()
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(tell,),
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
        finally:
            os.close(tell)
        with open(told, "rb") as file:
            try:
                _confined(file.fileno())
            except BaseException:
                self.end()
                raise
        self.deadline = time.monotonic() + options.seconds

    def finish(self, stdin: bytes) -> Finished:
        """Feed it, read what it prints, and wait for its end; ends it at the deadline or when it prints too much."""
        out, err, why = self._exchange(stdin)
        if why:
            self.end()
        code = self.process.wait()
        if not why:
            # 128 and more is how the confinement tells of a signal; a signal of its own is the same.
            why, code = ("signal", code - 128) if code > 128 else ("signal", -code) if code < 0 else ("exit", code)
        seconds = time.monotonic() - self._started
        return Finished(why, code, out.decode(errors="replace"), err.decode(errors="replace"), seconds)

    def _exchange(self, stdin: bytes) -> tuple[bytes, bytes, str]:
        process, most = self.process, self._options.output_kb << 10
        assert process.stdin
        assert process.stdout
        assert process.stderr
        found = {process.stdout: bytearray(), process.stderr: bytearray()}
        left = memoryview(stdin)
        with selectors.DefaultSelector() as selector:
            for stream in found:
                selector.register(stream, selectors.EVENT_READ)
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            why = ""
            while len(selector.get_map()) and not why:
                ready = selector.select(max(self.deadline - time.monotonic(), 0))
                if not ready:
                    why = "time"
                for key, _ in ready:
                    if key.fileobj is process.stdin:
                        try:
                            left = left[os.write(key.fd, left[:_TAKEN]) :] if left else left
                        except BrokenPipeError:
                            left = memoryview(b"")
                        if not left:
                            selector.unregister(process.stdin)
                            process.stdin.close()
                        continue
                    block = os.read(key.fd, _TAKEN)
                    if not block:
                        selector.unregister(key.fileobj)
                    found[key.fileobj] += block  # type: ignore[index]
                    if sum(map(len, found.values())) > most:
                        why = "output"
        if not why:
            try:
                process.wait(max(self.deadline - time.monotonic(), 0.01))
            except subprocess.TimeoutExpired:
                why = "time"
        return bytes(found[process.stdout][:most]), bytes(found[process.stderr][:most]), why

    def end(self) -> None:
        """Kill it and everything it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()


@cache
def strongest() -> Isolation:
    """The strongest isolation there is on this machine, found out by trying."""
    kinds: tuple[Isolation, ...] = ("gvisor", "namespaces") if shutil.which("runsc") else ("namespaces",)
    for kind in kinds:
        with tempfile.TemporaryDirectory(prefix="hrsandbox-") as folder:
            try:
                running = Running(kind, SandboxOptions(), "pass", Path(folder))
            except HeadraceError:
                continue
            running.end()
            return kind
    return "rlimits"


def _command(isolation: Isolation, options: SandboxOptions, program: Path, tell: int) -> list[str]:
    # The clock ends it first, unless it works on several cores at a time.
    memory, cpu = options.memory_mb << 20, math.ceil(options.seconds) + 1
    limits = {
        "RLIMIT_CPU": cpu,
        "RLIMIT_AS": memory,
        "RLIMIT_FSIZE": options.disk_mb << 20,
        "RLIMIT_NPROC": options.processes,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    settings = {
        "isolation": isolation,
        "limits": limits,
        "writable_bytes": options.disk_mb << 20,
        "readable": [sys.base_prefix, str(program.parent), str(_CONFINEMENT.parent)],
        "hidden": _packages(),
        "told": tell,
    }
    # The base interpreter: a virtual environment's packages are none of the program's business.
    python = [sys._base_executable, "-I", "-S", "-X", "utf8"]  # type: ignore[attr-defined]
    inner = [*python, str(_CONFINEMENT), json.dumps(settings), str(program)]
    if isolation == "gvisor":
        return ["runsc", "--rootless", "--network=none", "do", *inner]
    return inner


@cache
def _packages() -> list[str]:
    """Where installed packages lie, some of which hold the solutions to what a program is asked."""
    roots = [Path(sys.base_prefix), Path("/usr"), Path("/usr/local")]
    return [str(each) for root in roots for each in root.glob("lib*/python*/*-packages") if each.is_dir()]


def _confined(told: int) -> None:
    """Wait until the child says that it is confined."""
    said = b""
    with selectors.DefaultSelector() as selector:
        selector.register(told, selectors.EVENT_READ)
        end = time.monotonic() + _START_SECONDS
        while b"confined" not in said and selector.select(max(end - time.monotonic(), 0)):
            block = os.read(told, 4096)
            if not block:
                break
            said += block
    if said != b"confined":
        why = said.decode(errors="replace") or "it did not start"
        raise HeadraceError(
            f"Untrusted code cannot be confined here ({why}).",
            "Run where user namespaces are allowed (or as root), or set sandbox.isolation=rlimits if you trust it.",
        )
