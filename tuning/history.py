"""What a search knows of its trials: RUN/trials.jsonl, one event a line, appended before it takes effect.

    start     trial 3 begins with these values (again with each generation, naming the checkpoint it goes on from)
    result    its metric after a step
    end       finished, stopped by the scheduler, or failed and why

All else (what Ray Tune and Optuna hold in memory) is made from it when a search goes on, so a kill at any moment loses
nothing: a line cut short is dropped, and what it would have told happens again.

Left out: what is made of it (`tuning.outputs`). Called by `tuning.search`.
"""

import json
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from engine.storage import storage_errors

FILE = "trials.jsonl"
End = Literal["finished", "stopped", "failed"]


@dataclass
class Trial:
    """One trial, as far as it is known."""

    number: int
    values: dict[str, Any]
    minimise: bool
    generation: int = 0
    donor: str = ""
    """Directory of the checkpoint that its last generation began with."""
    results: dict[int, float] = field(default_factory=dict)
    """Step -> metric; of a generation that took another's checkpoint, only what came after."""
    state: End | Literal["running"] = "running"
    why: str = ""
    seconds: float = 0.0
    lineage: list[dict[str, Any]] = field(default_factory=list)
    """Generations before: values and results, and the trial and step that were taken from then."""
    told: dict[str, Any] = field(default_factory=dict)
    """What a searcher noted down with its proposal."""

    @property
    def ended(self) -> bool:
        return self.state != "running"

    @property
    def best(self) -> float | None:
        """Its best result."""
        found = [value for value in self.results.values() if math.isfinite(value)]
        return (min(found) if self.minimise else max(found)) if found else None

    @property
    def name(self) -> str:
        """What its run is called."""
        return f"{self.number:03d}" + (f"-g{self.generation}" if self.generation else "")


class History:
    """All trials of a search; every change is in the file before the method returns."""

    def __init__(self, home: Path, *, minimise: bool) -> None:
        self._path, self._minimise = home / FILE, minimise
        self.trials: dict[int, Trial] = {}
        lines = self._path.read_bytes().splitlines(keepends=True) if self._path.exists() else []
        whole = 0
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            self._apply(event)
        if self._path.exists() and whole < self._path.stat().st_size:
            with storage_errors(UPath(self._path)):
                os.truncate(self._path, whole)

    def start(self, number: int, values: dict[str, Any], **more: Any) -> Trial:
        """A trial, or a generation of it, is about to begin."""
        self._write({"event": "start", "trial": number, "values": values, **more})
        return self.trials[number]

    def result(self, number: int, step: int, value: float, seconds: float) -> None:
        """A trial has been measured."""
        shown = value if math.isfinite(value) else None
        self._write({"event": "result", "trial": number, "step": step, "value": shown, "seconds": round(seconds, 2)})

    def end(self, number: int, state: End, why: str = "") -> None:
        """A trial has come to its end."""
        self._write({"event": "end", "trial": number, "state": state, "why": why})

    def ranked(self) -> list[Trial]:
        """All trials, the best first, those without a result last."""
        sign = 1 if self._minimise else -1
        return sorted(
            self.trials.values(),
            key=lambda each: (each.state == "failed" or each.best is None, sign * (each.best or 0.0), each.number),
        )

    def _write(self, event: dict[str, Any]) -> None:
        with storage_errors(UPath(self._path)), open(self._path, "ab") as file:
            file.write(json.dumps(event, ensure_ascii=False).encode() + b"\n")
        self._apply(event)

    def _apply(self, event: dict[str, Any]) -> None:
        number = event["trial"]
        if event["event"] == "start":
            before = self.trials.get(number)
            trial = Trial(number, event["values"], self._minimise, told=event.get("told", {}))
            if before:
                trial.seconds, trial.told = before.seconds, before.told
                taken = {
                    "values": before.values,
                    "from": event["taken"],
                    "step": event["step"],
                    "results": before.results,
                }
                trial.lineage = [*before.lineage, taken]
                trial.generation, trial.donor = event["generation"], event["donor"]
            self.trials[number] = trial
            return
        trial = self.trials[number]
        if event["event"] == "result":
            trial.results[event["step"]] = math.nan if event["value"] is None else event["value"]
            trial.seconds = event["seconds"]
        else:
            trial.state, trial.why = event["state"], event["why"]
