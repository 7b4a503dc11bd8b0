"""Confines the process it runs in, then becomes the untrusted program; started by `engine.evaluation.sandbox`.

    gvisor        the whole process runs under `runsc` already; limits are set here as everywhere
    namespaces    no network, no other processes in sight, a file system of its own: Python's directories read-only and
                  an empty writable one in memory; no capabilities, no way to gain privileges
    rlimits       limits alone: it may read what the user may read, and open sockets

Everywhere the kernel refuses it what no limit counts (shared memory, files in memory) and what would undo the rest
(namespaces and mounts of its own, other processes' memory, tracing): `engine.evaluation.sandbox` needs a kernel with
seccomp.

Run as a script with nothing of ours on its path, `python -I -S confinement.py SETTINGS -- SOURCE`: SETTINGS is JSON.
It imports the standard library only. Left out: starting, feeding and ending it.
"""

import ctypes
import json
import os
import resource
import signal
import struct
import sys
from typing import Any

_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_RDONLY, _NOSUID, _NODEV, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
_DETACH = 2
_PDEATHSIG, _DUMPABLE, _NO_NEW_PRIVS, _CAPBSET_DROP = 1, 4, 38, 24
_USERS = 1 << 30
"""Where user ids begin that belong to nobody: each confined process of root's gets one of its own, as limits on
processes are counted by user."""
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache")
"""What an interpreter needs besides its own directories."""

_libc = ctypes.CDLL(None, use_errno=True)


class Refused(OSError):
    """The kernel does not let this process confine itself."""


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments) < 0:
        number = ctypes.get_errno()
        raise Refused(number, f"{name}: {os.strerror(number)}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    as_bytes = [None if each is None else str(each).encode() for each in (source, target, kind)]
    _call("mount", *as_bytes, ctypes.c_ulong(flags), None if data is None else data.encode())


def isolate(writable_bytes: int, readable: list[str], hidden: list[str]) -> None:
    """Leave the network, the other processes and the file system behind; returns in a process that has a new pid.

    `readable` are directories to be seen read-only, `hidden` some in them that look empty. Raises `Refused` before
    anything has changed for this process's children where namespaces cannot be had.
    """
    user, group = os.getuid(), os.getgid()
    spaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
    if user == 0:
        _call("unshare", spaces)
    else:
        _call("unshare", spaces | _NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1")
        _write("/proc/self/gid_map", f"{group} {group} 1")
    _private_root(writable_bytes, readable, hidden)
    if user == 0:  # root's own processes are not counted against any limit
        nobody = _USERS + os.getpid()
        os.setgroups([])
        os.setresgid(nobody, nobody, nobody)
        os.setresuid(nobody, nobody, nobody)
    _as_second_process()


def _private_root(writable_bytes: int, readable: list[str], hidden: list[str]) -> None:
    """A file system in memory that holds the readable directories, a writable one, and /dev/null."""
    _mount(None, "/", None, _REC | _PRIVATE)
    root = "/tmp"  # whatever is there is out of sight from here on
    _mount("root", root, "tmpfs", _NOSUID | _NODEV, "mode=755,size=1m")
    for path in (*_SYSTEM, *readable):
        if os.path.islink(path):
            target = root + path
            if not os.path.lexists(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.symlink(os.readlink(path), target)
        elif os.path.exists(path):
            _bind(path, root + path)
    for path in hidden:
        if os.path.isdir(root + path):
            _mount("hidden", root + path, "tmpfs", _NOSUID | _NODEV | _RDONLY, "mode=755,size=4k")
    for name in ("null", "urandom"):
        _bind(f"/dev/{name}", f"{root}/dev/{name}", readonly=False)
    os.makedirs(f"{root}/tmp", exist_ok=True)
    _mount("tmp", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, f"mode=1777,size={writable_bytes}")
    _mount(None, root, None, _REMOUNT | _RDONLY | _NOSUID | _NODEV, "mode=755,size=1m")
    os.chdir(root)
    _call("syscall", _PIVOT_ROOT, b".", b".")
    _call("umount2", b".", _DETACH)
    os.chdir("/tmp")


_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine, -1)


def _bind(source: str, target: str, *, readonly: bool = True) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "a").close()
    _mount(source, target, None, _BIND | _REC)
    if readonly:
        # Flags that a mount above has set may not be taken off in a user namespace, only added to.
        kept = os.statvfs(target).f_flag & (_NOSUID | _NODEV | 8 | 1024 | 2048)
        _mount(None, target, None, _REMOUNT | _BIND | _RDONLY | kept)


def _as_second_process() -> None:
    """Go on as a child of the new namespace's first process, whose end is the end of everything in it."""
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    first = os.fork()
    if first:
        os._exit(_exit_code(os.waitpid(first, 0)[1]))
    _call("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    second = os.fork()
    if second:
        while True:  # whatever the program leaves behind is buried here
            pid, status = os.wait()
            if pid == second:
                os._exit(_exit_code(status))


def _exit_code(status: int) -> int:
    """As shells tell it: 128 and the number of the signal that ended it."""
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def limit(settings: dict[str, Any]) -> None:
    """Set the limits, and give up every way to more privileges."""
    for name, value in settings["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    _call("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    _libc.capset(header, (ctypes.c_uint32 * 6)())
    _call("prctl", _DUMPABLE, 0, 0, 0, 0)
    _forbid()


_ARCHITECTURE = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
_CLONE = (56, 220)
_FORBIDDEN = {
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "bpf": (321, 280), "userfaultfd": (323, 282),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "add_key": (248, 217), "keyctl": (250, 219),
}  # fmt: skip
"""Numbers of system calls on x86-64 and on ARM64."""
_CLONE3 = 435
_SECCOMP, _FILTER = 22, 2
_LOAD, _EQUAL, _AT_LEAST, _ANY_OF, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _FAIL, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38


def _forbid() -> None:
    """Let the kernel refuse system calls, to this process and to all that come of it (seccomp)."""
    known = _ARCHITECTURE.get(os.uname().machine)
    if known is None:
        raise Refused(_ENOSYS, f"no system calls are known of {os.uname().machine}")
    architecture, column = known
    namespaces = _NEWNS | _NEWUTS | _NEWIPC | _NEWUSER | _NEWPID | _NEWNET
    refuse = (_RETURN, 0, 0, _FAIL | _EPERM)
    # Code, steps ahead if true, if false, and what is compared; 0, 4 and 16 are the places of number, architecture and
    # first argument. A call by another architecture's numbers ends the process.
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, 0x40000000), refuse]
    for each in _FORBIDDEN.values():
        steps += [(_EQUAL, 0, 1, each[column]), refuse]
    # libc falls back to clone, whose flags can be looked at.
    steps += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | _ENOSYS)]
    steps += [(_EQUAL, 0, 3, _CLONE[column]), (_LOAD, 0, 0, 16), (_ANY_OF, 0, 1, namespaces), refuse]
    steps += [(_RETURN, 0, 0, _ALLOW)]
    code = b"".join(struct.pack("HBBI", *each) for each in steps)
    kept = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(kept)))
    _call("prctl", _SECCOMP, _FILTER, program, 0, 0)


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w") as file:
            file.write(text)
    except OSError as error:
        raise Refused(error.errno, f"{path}: {error.strerror}") from None


def main() -> None:
    """Confine, say how far it came on the descriptor `settings.told`, and run the source."""
    settings = json.loads(sys.argv[1])
    with open(sys.argv[2]) as file:
        source = file.read()
    told = settings["told"]
    try:
        if settings["isolation"] == "namespaces":
            isolate(settings["writable_bytes"], settings["readable"], settings["hidden"])
        limit(settings)
    except OSError as error:
        os.write(told, f"refused {error.strerror or error}".encode())
        os._exit(1)
    os.write(told, b"confined")
    os.close(told)
    sys.argv = ["program"]
    names = {"__name__": "__main__", "__builtins__": __builtins__}
    del settings
    exec(compile(source, "program", "exec"), names)


if __name__ == "__main__":
    main()
