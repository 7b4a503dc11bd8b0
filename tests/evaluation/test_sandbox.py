"""Escape attempts: what an untrusted program may try, and that none of it reaches further than the program."""

import os
from pathlib import Path

import psutil
import pytest

from engine.errors import HeadraceError
from engine.evaluation import Sandbox, SandboxOptions, sandbox, strongest

OPTIONS = SandboxOptions(seconds=1, memory_mb=256, disk_mb=4, output_kb=64)
needs_namespaces = pytest.mark.skipif(strongest() == "rlimits", reason="no namespaces on this machine")


def run(source, stdin="", **changes):
    return Sandbox(OPTIONS.model_copy(update=changes)).run(source, stdin)


def test_a_program_runs_and_says_how_it_ended():
    done = run("import sys; print(sys.stdin.read()[::-1]); print('to err', file=sys.stderr)", "olleh")
    assert (done.out, done.err, done.ok) == ("hello\n", "to err\n", True)
    assert (run("raise SystemExit(3)").why, run("raise SystemExit(3)").code) == ("exit", 3)
    crashed = run("import ctypes; ctypes.string_at(0)")
    assert (crashed.why, crashed.code) == ("signal", 11)
    assert "ZeroDivisionError" in run("1 / 0").err
    assert not run("def f(:").ok


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True: pass",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "from threading import Thread\nwhile True:\n    try: Thread(target=lambda: list(iter(int, 1))).start()\n"
        "    except BaseException: pass",
    ],
    ids=["loop", "sleep", "deaf to signals", "fork bomb", "thread bomb"],
)
def test_what_does_not_end_is_ended(source):
    before = {each.pid for each in psutil.process_iter()}
    done = run(source)
    assert done.why == "time"
    assert not survivors(before)


def survivors(before):
    """Processes of the confinement that are new and stay; those of tests beside this one come and go."""
    new = [each for each in psutil.process_iter(["cmdline"]) if each.pid not in before]
    confined = [each for each in new if "confinement.py" in " ".join(each.info["cmdline"] or [])]
    _, left = psutil.wait_procs(confined, timeout=30)
    return left


def test_memory_disk_and_output_are_bounded():
    assert "MemoryError" in run("x = []\nwhile True: x.append(bytearray(10**7))").err
    assert not run("f = open('big', 'wb')\nfor _ in range(100): f.write(b'x' * 10**6)").ok
    endless = run("while True: print('x' * 1000)")
    assert endless.why == "output"
    assert len(endless.out) <= OPTIONS.output_kb << 10
    assert run("import sys\nwhile True: sys.stderr.write('x' * 1000)").why == "output"


def test_a_child_that_goes_on_alone_is_ended():
    before = {each.pid for each in psutil.process_iter()}
    source = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(30)\n    os._exit(0)"
    )
    run(source + "\nprint('left')")
    assert not survivors(before)


@needs_namespaces
def test_files_outside_cannot_be_read_or_written(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("the key")
    assert "FileNotFoundError" in run(f"print(open({str(secret)!r}).read())").err
    for path in (str(tmp_path / "new"), "/etc/passwd", "/usr/new", str(Path.home() / "new"), "/new"):
        assert not run(f"open({path!r}, 'w')").ok, path
    assert run("open('mine', 'w').write('x'); print(open('mine').read())").out == "x\n"
    assert run("import os; print(os.listdir('.'))").out == "[]\n", "nothing is left from one program to the next"


@needs_namespaces
@pytest.mark.parametrize(
    "address", ["('127.0.0.1', {port})", "('8.8.8.8', 53)", "('localhost', {port})"], ids=["here", "there", "by name"]
)
def test_there_is_no_network(head, address):
    port = head.address.rpartition(":")[2]
    source = f"import socket; socket.create_connection({address.format(port=port)}, timeout=1); print('connected')"
    done = run(source)
    assert not done.ok
    assert "connected" not in done.out


@needs_namespaces
def test_other_processes_are_out_of_reach():
    source = f"""
import os, signal
for pid in ({os.getpid()}, {os.getppid()}, os.getppid()):
    try: os.kill(pid, signal.SIGKILL)
    except OSError as error: print(type(error).__name__)
print(os.path.exists('/proc/{os.getpid()}'))
"""
    done = run(source)
    assert done.ok, done
    assert done.out.splitlines()[0] == "ProcessLookupError"
    assert done.out.splitlines()[-1] == "False"


@needs_namespaces
def test_no_privileges_can_be_had():
    source = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
print(libc.setuid(0), libc.mount(b'x', b'/tmp', b'tmpfs', 0, None), libc.ptrace(16, 1, 0, 0), libc.chroot(b'/usr'))
print(libc.mount(None, b'/', None, 32 | 4096, None), libc.umount2(b'/usr', 2), os.getuid() == 0)
"""
    assert run(source).out == "-1 -1 -1 -1\n-1 -1 False\n"


def test_the_environment_holds_nothing_of_ours(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    assert "secret" not in run("import os; print(dict(os.environ))").out


def test_less_isolation_than_asked_for_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "strongest", lambda: "rlimits")
    with pytest.raises(HeadraceError, match="asks for isolation by namespaces; this machine gives rlimits"):
        Sandbox(OPTIONS)
    trusted = Sandbox(OPTIONS.model_copy(update={"isolation": "rlimits"}))
    assert trusted.run("print(1)").out == "1\n"
    assert trusted.run("while True: pass").why == "time"
    assert "MemoryError" in trusted.run("x = []\nwhile True: x.append(bytearray(10**7))").err


ATTEMPTS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def told(result):
    return os.strerror(ctypes.get_errno()) if result < 0 else f"got {result}"
def memfd():
    try: return f"got {os.memfd_create('x')}"
    except OSError as error: return error.strerror
print(*(
    told(libc.shmget(0, 1 << 24, 0o1600)),
    memfd(),
    told(libc.unshare(0x10000000)),
    told(libc.syscall({"x86_64": 56, "aarch64": 220}[os.uname().machine], 0x10000000 | 17, 0, 0, 0, 0)),
    told(libc.mount(b"x", b"/tmp", b"tmpfs", 0, None)),
    told(libc.ptrace(0, 0, 0, 0)),
), sep="\\n")
"""


@pytest.mark.parametrize("isolation", ["rlimits", pytest.param("namespaces", marks=needs_namespaces)])
def test_memory_that_no_limit_counts_and_namespaces_are_refused(isolation, tmp_path):
    running = sandbox.Running(isolation, OPTIONS, ATTEMPTS, tmp_path)
    try:
        done = running.finish(b"")
    finally:
        running.end()
    assert done.out.split("\n")[:6] == ["Operation not permitted"] * 6, done
    assert run("import subprocess, sys; print(subprocess.run([sys.executable, '-c', 'print(5)']).returncode)").out


@needs_namespaces
def test_installed_packages_are_out_of_sight():
    places = sandbox._packages()
    done = run(f"import os\nfor each in {places!r}:\n    if os.path.isdir(each): print(os.listdir(each))")
    assert set(done.out.split()) == {"[]"}, done
