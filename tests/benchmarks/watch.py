"""Watches a tree of processes from the side: peak private memory by kind of process, and CPU time.

Private memory is resident minus shared pages: what the object store maps into every worker is counted nowhere.
"""

import os
import threading
import time
from collections import defaultdict

import psutil

PAGE = os.sysconf("SC_PAGE_SIZE")


class Watch:
    """Samples every descendant of a process (and the process itself) until the block ends."""

    def __init__(self, pid=None, period=0.2):
        self.root = psutil.Process(pid or os.getpid())
        self.period = period
        self.peaks = defaultdict(int)
        """Kind of process -> peak private bytes of one such process."""
        self.cpu = {}
        """(pid, start) -> CPU seconds when last seen."""
        self.kinds = {}

    def __enter__(self):
        self._before = self._sample()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._over.set()
        self._thread.join()
        self._sample()
        self.wall = time.perf_counter() - self._started

    @property
    def cpu_seconds(self):
        """CPU seconds of all watched processes inside the block; one that lived between two samples is missed."""
        return sum(seconds - self._before.get(key, 0.0) for key, seconds in self.cpu.items())

    @property
    def cpu_by_kind(self):
        """The same by kind of process."""
        total = defaultdict(float)
        for key, seconds in self.cpu.items():
            total[self.kinds[key]] += seconds - self._before.get(key, 0.0)
        return {kind: round(seconds, 2) for kind, seconds in total.items() if seconds >= 0.01}

    def _run(self):
        while not self._over.wait(self.period):
            self._sample()

    def _sample(self):
        try:
            processes = [self.root, *self.root.children(recursive=True)]
        except psutil.NoSuchProcess:  # it has ended
            processes = []
        for process in processes:
            try:
                with open(f"/proc/{process.pid}/statm") as file:
                    _, resident, shared, *_ = map(int, file.read().split())
                times = process.cpu_times()
                kind = self._kind(process)
                key = (process.pid, process.create_time())
                self.cpu[key], self.kinds[key] = times.user + times.system, kind
            except (psutil.Error, OSError, ValueError):
                continue
            self.peaks[kind] = max(self.peaks[kind], (resident - shared) * PAGE)
        return dict(self.cpu)

    def _kind(self, process):
        if process.pid == self.root.pid:
            return "driver"
        words = process.cmdline()
        name = words[0] if words else process.name()
        if name.startswith("ray::"):
            return "worker"
        for part in ("raylet", "gcs_server", "dashboard", "log_monitor", "agent"):
            if any(part in word for word in words[:6]):
                return part
        return "other"
