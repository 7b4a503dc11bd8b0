"""A small process that outlives a driver just long enough to clear away its private Ray.

Ray ties its servers to the driver (they die with it, even by SIGKILL), but their agents go on for a minute, holding
ports and memory. The driver starts this file with a pipe as its standard input and the session's directory as its
argument; when the pipe closes or the driver is gone, every process that still writes a file of that directory is
killed and the directory removed. Open files are what identifies them: Ray overwrites its processes' names, command
lines and environments.

Left out: everything else; it imports nothing of the package so that it starts in a moment. Started by
`engine.cluster.private`, which also calls `clear` for sessions whose reaper died too.
"""

import os
import select
import shutil
import sys
import time

import psutil

INNER = "r"
"""Ray's directory in the session's: Ray opens its own to everybody, so it lies in one that stays closed."""
PATIENCE = 10.0
"""Seconds to go on looking for survivors: killed processes take a moment to go, and parents may start others."""


def main() -> None:
    driver, directory = int(sys.argv[1]), sys.argv[2]
    # The pipe alone would not do: a process the driver forked holds its other end open.
    while os.getppid() == driver and not select.select([sys.stdin], [], [], 1.0)[0]:
        pass
    clear(directory, spare=driver)


def clear(directory: str, spare: int = 0) -> None:
    """Kill the processes that write a file below the directory, then remove it.

    `spare` is the driver: when it ends its session in good order it lives on, Ray's log of it still open.
    """
    end = time.monotonic() + PATIENCE
    while survivors := [each for each in writers(directory) if each.pid not in (os.getpid(), spare)]:
        for process in survivors:
            try:
                process.kill()
            except psutil.Error:
                continue
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    shutil.rmtree(directory, ignore_errors=True)


def writers(directory: str) -> list[psutil.Process]:
    """Processes with a Ray file below the directory open for writing (not a user's `tail`)."""
    inside = f"{directory.rstrip('/')}/{INNER}/"
    found = []
    for process in psutil.process_iter():
        try:
            files = process.open_files()
        except (psutil.Error, OSError):
            continue
        if any(file.path.startswith(inside) and getattr(file, "mode", "w") != "r" for file in files):
            found.append(process)
    return found


if __name__ == "__main__":
    main()
