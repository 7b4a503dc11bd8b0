"""Text from a base with a value network, inside this process (a Ray actor, say), behind the interface of
`engine.models.generation`.

    ValueGenerator      vLLM, for the connections that it can run
    MixtureGenerator    transformers, for all of them: what `engine.value_network.reference` says, token by token

Left out: HTTP and streaming (`serve_apps`), bases by themselves. Called inside actors.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engine.models.generation import LONGEST, Draw, Stop, TransformersGenerator, VllmGenerator, window
from engine.value_network.card import BETA
from engine.value_network.reference import Mixture
from engine.value_network.serving import vllm_settings

if TYPE_CHECKING:
    import torch

_READ_AT_ONCE = 1024
"""Tokens of prompts, of all rows together, whose logits are in memory at a time."""


class ValueGenerator(VllmGenerator):
    """Starting it takes 20 to 100 seconds; `more` are keys of vLLM's own. Raises `SourceError` for a pair that does not
    fit. What it generates it generates with `beta`."""

    def __init__(
        self, base: str, value: str, beta: float = 1.0, *, at_once: int = 32, longest: int = LONGEST, **more: Any
    ) -> None:
        _, settings = vllm_settings(base, value)
        super().__init__(base, at_once=at_once, longest=longest, arguments=_arguments(beta), **settings, **more)

    def continued(self, prompts: Sequence[list[int]], betas: Sequence[float | None], tokens: int) -> list[list[int]]:
        """The likeliest so many tokens after each prompt, whatever they end; a beta for each, None for the default."""
        from vllm import SamplingParams

        asked = [
            SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, extra_args=_arguments(beta))
            for beta in betas
        ]
        outputs = self.engine.generate([{"prompt_token_ids": ids} for ids in prompts], asked, use_tqdm=False)
        return [list(each.outputs[0].token_ids) for each in outputs]

    def logprobs(self, ids: list[int], beta: float | None = None) -> list[float]:
        """Log-probability of each token of a text but the first, in nats."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, extra_args=_arguments(beta))
        (output,) = self.engine.generate([{"prompt_token_ids": ids}], asked, use_tqdm=False)
        return [float(each[token].logprob) for each, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]


class MixtureGenerator(TransformersGenerator):
    """The reference, which draws tokens. Raises `SourceError` for a pair that does not fit."""

    def __init__(
        self,
        base: str,
        value: str,
        beta: float = 1.0,
        *,
        at_once: int = 16,
        longest: int = LONGEST,
        dtype: str = "float32",
        device: str = "cpu",
        bridge: str | None = None,
    ) -> None:
        self._mixture, self._beta = Mixture(base, value, dtype, device, bridge), beta
        config = getattr(self._mixture.value, "config", None)  # a linear probe has no window
        longest = min(longest, window(config)) if config else longest
        super().__init__(base, at_once=at_once, longest=longest, model=self._mixture.base)

    def _continued(
        self, ids_BT: "torch.Tensor", mask_BT: "torch.Tensor", most: int, draw: Draw | None, stop: Stop
    ) -> "torch.Tensor":
        import torch

        width = ids_BT.shape[1]
        ends = torch.tensor(sorted(self._ends), device=ids_BT.device)
        done_B = torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)
        logits_BV = self._read(ids_BT, mask_BT)
        while True:
            next_B = (draw(ids_BT, logits_BV) if draw else logits_BV).argmax(-1)
            ids_BT = torch.cat([ids_BT, next_B.masked_fill(done_B, self._pad)[:, None]], 1)
            done_B = done_B | torch.isin(next_B, ends)
            if stop.stops:
                done_B = done_B | stop(ids_BT, None)
            if done_B.all() or ids_BT.shape[1] == width + most:
                return ids_BT[:, width:]
            mask_BT = torch.nn.functional.pad(mask_BT, (0, 1), value=1)
            logits_BV = self._mixture.logits(ids_BT[:, -1:], mask_BT, self._beta)[:, -1]

    def _read(self, ids_BT: "torch.Tensor", mask_BT: "torch.Tensor") -> "torch.Tensor":
        """Logits after the prompts, (B, V), from an empty cache."""
        self._mixture.forget()
        step = max(1, _READ_AT_ONCE // len(ids_BT))
        for start in range(0, ids_BT.shape[1], step):
            part = slice(start, start + step)
            logits_BTV = self._mixture.logits(ids_BT[:, part], mask_BT[:, : start + step], self._beta)
        return logits_BTV[:, -1]


def _arguments(beta: float | None) -> dict[str, Any] | None:
    return None if beta is None else {BETA: beta}
