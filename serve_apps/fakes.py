"""An engine that needs no model: for tests of what stands before engines.

It repeats the prompt's words, one every `pause` seconds, and does what the first of them says: `die` ends its process,
`fail` raises; with `later` as the second word, after the first word has been sent.

Left out: everything vLLM does. Called by tests, in the place of `serve_apps.replica.ModelReplica`.
"""

import asyncio
import json
import os
from collections.abc import AsyncGenerator
from typing import Any

from engine.value_network.endpoint import ServedModel


class ScriptedReplica:
    """See above; `engine: {pause: seconds}` in the recipe is read here and nowhere else."""

    def __init__(self, served: ServedModel) -> None:
        self._pause = float(served.engine.get("pause", 0.0))

    async def answer(
        self, route: str, name: str, beta: float | None, body: dict[str, Any], arrived: float
    ) -> AsyncGenerator[Any, None]:
        """As `serve_apps.replica.ModelReplica.answer`."""
        words = body["prompt"].split()
        later = "later" in words[1:2]
        if not later:
            self._do(words[0])
        if not body.get("stream"):
            await asyncio.sleep(self._pause * len(words))
            yield 200, {"model": name, "beta": beta, "choices": [{"text": " ".join(words)}]}
            return
        yield 200, None
        for word in words:
            yield f"data: {json.dumps({'model': name, 'choices': [{'text': word}]})}\n\n"
            await asyncio.sleep(self._pause)
            if later:
                self._do(words[0])
        yield "data: [DONE]\n\n"

    def _do(self, word: str) -> None:
        if word == "die":
            os._exit(1)
        if word == "fail":
            raise ValueError("as the script says")
