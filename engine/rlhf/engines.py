"""Engines that draw responses, behind one interface: vLLM, or the model's own forward in transformers.

    generate   continue prompts of token ids; what was drawn, and its log-probability under what it was drawn from
    logprobs   of a given text: how a sync is verified
    load       new weights, all or some, by the names that transformers gives them

Every prompt has a seed of its own, so what is drawn for it does not depend on its neighbours beyond rounding.

Left out: actors around them and who may be trusted (`engine.rlhf.rollouts`). Called by it.

Shapes: B prompts of a batch, T tokens, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from engine.models import load_causal_lm, load_tokenizer, resolve
from engine.models.generation import end_tokens, start_vllm

Weights = Iterable[tuple[str, Any]]
"""Names and tensors."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How responses are drawn; temperature 0 takes the likeliest token."""

    temperature: float = 1.0
    max_tokens: int = 64


@dataclass(frozen=True, slots=True)
class Written:
    """A response: its tokens, their natural log-probabilities, and whether it ended by itself (its last token then is
    the one that ends a text)."""

    ids: list[int]
    logprobs: list[float]
    finished: bool


class RolloutEngine(Protocol):
    """Draws responses from its weights; it holds a copy of its own."""

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """A response of one token at least to each prompt, in order."""

    def logprobs(self, ids: list[int]) -> list[float]:
        """The log-probability of each token but the first, at temperature 1."""

    def load(self, weights: Weights) -> None:
        """Take new weights; what is not named stays."""


class VllmRollout:
    """vLLM in this process (`engine.models.generation.start_vllm`); at a temperature, log-probabilities are those of
    the distribution it draws from. `native` prepares it for vLLM's own transfer of weights (`engine.rlhf.native`)."""

    def __init__(self, model: str, *, at_once: int, longest: int, native: str | None = None) -> None:
        tokenizer, folder = load_tokenizer(model), resolve(model)
        self._ends = sorted(end_tokens(folder, tokenizer))
        more: dict[str, Any] = {"weight_transfer_config": {"backend": native}} if native else {}
        self.engine, self.longest = start_vllm(
            folder, at_once=at_once, longest=longest, logprobs_mode="processed_logprobs", **more
        )

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """See `RolloutEngine`."""
        from vllm import SamplingParams

        asked = [
            SamplingParams(
                temperature=drawing.temperature,
                max_tokens=min(drawing.max_tokens, self.longest - len(prompt)),
                seed=seed % (1 << 63) if drawing.temperature else None,
                stop_token_ids=self._ends,
                logprobs=0,
                detokenize=False,
            )
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        found = self.engine.generate([{"prompt_token_ids": each} for each in prompts], asked, use_tqdm=False)
        return [self._written(each.outputs[0]) for each in found]

    def logprobs(self, ids: list[int]) -> list[float]:
        """See `RolloutEngine`."""
        from vllm import SamplingParams

        asked = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        found = self.engine.generate([{"prompt_token_ids": ids}], [asked], use_tqdm=False)[0]
        return [each[token].logprob for each, token in zip(found.prompt_logprobs[1:], ids[1:], strict=True)]

    def load(self, weights: Weights) -> None:
        """See `RolloutEngine`. What is packed for the CPU's kernels is packed anew, a tied head included: vLLM's own
        reload leaves that one as it was."""
        given = [(name, tensor) for name, tensor in weights]
        embeds = any(name.endswith("embed_tokens.weight") for name, _ in given)

        def reload(worker: Any) -> None:
            worker.model_runner.reload_weights(weights_iterator=iter(given))
            model = worker.model_runner.get_model()
            if embeds and getattr(model.config.get_text_config(), "tie_word_embeddings", False):
                head = model.lm_head
                head.quant_method.process_weights_after_loading(head)

        self.engine.collective_rpc(reload)
        self.engine.reset_prefix_cache()

    def _written(self, output: Any) -> Written:
        ids = list(output.token_ids)
        logprobs = [each[token].logprob for each, token in zip(output.logprobs, ids, strict=True)]
        return Written(ids, logprobs, output.finish_reason == "stop")


class TransformersRollout:
    """The model's forward with a cache, `at_once` prompts at a time, padded on the left."""

    def __init__(self, model: str, *, at_once: int, longest: int, dtype: str = "float32", device: str = "cpu") -> None:
        self.model: Any = load_causal_lm(model, dtype).to(device)
        tokenizer = load_tokenizer(model)
        self._ends = np.array(sorted(end_tokens(resolve(model), tokenizer)), np.int64)
        self._at_once, self.longest = at_once, longest

    def generate(self, prompts: Sequence[list[int]], seeds: Sequence[int], drawing: Drawing) -> list[Written]:
        """See `RolloutEngine`."""
        found: list[Written | None] = [None] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda at: (len(prompts[at]), at))
        for first in range(0, len(order), self._at_once):
            rows = order[first : first + self._at_once]
            some = self._batch([prompts[at] for at in rows], [seeds[at] for at in rows], drawing)
            for at, each in zip(rows, some, strict=True):
                found[at] = each
        return [each for each in found if each is not None]

    def _batch(self, prompts: list[list[int]], seeds: list[int], drawing: Drawing) -> list[Written]:
        import torch
        from transformers import DynamicCache

        device, width = self.model.device, max(map(len, prompts))
        ids_BT = torch.tensor([[0] * (width - len(each)) + each for each in prompts], device=device)
        mask_BT = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in prompts], device=device)
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
        most = min(drawing.max_tokens, self.longest - width)
        # Drawn beforehand, a stream for each row: by the inverse of the distribution function one number is enough.
        uniform_BT = np.stack([np.random.default_rng(seed % (1 << 63)).random(most) for seed in seeds])
        drawn_TB, logp_TB, cache = [], [], DynamicCache(config=self.model.config)
        done_B = np.zeros(len(prompts), bool)
        with torch.inference_mode():
            for at in range(most):
                logits_BV = self.model(
                    input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_BT, past_key_values=cache,
                    use_cache=True, logits_to_keep=1,
                ).logits[:, -1].float()  # fmt: skip
                if drawing.temperature:
                    logp_BV = (logits_BV / drawing.temperature).log_softmax(-1)
                    sums_BV = logp_BV.exp().cumsum(-1)
                    wanted_B1 = torch.from_numpy(uniform_BT[:, at, None]).to(sums_BV) * sums_BV[:, -1:]
                    token_B = torch.searchsorted(sums_BV, wanted_B1, right=True)[:, 0].clamp(max=logp_BV.shape[1] - 1)
                else:
                    logp_BV = logits_BV.log_softmax(-1)
                    token_B = logits_BV.argmax(-1)
                drawn_TB.append(token_B.cpu().numpy())
                logp_TB.append(logp_BV.gather(1, token_B[:, None])[:, 0].cpu().numpy())
                done_B |= np.isin(drawn_TB[-1], self._ends)
                if done_B.all():
                    break
                ids_BT, position_BT = token_B[:, None], position_BT[:, -1:] + 1
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones((len(prompts), 1))], 1)
        drawn_BT, logprobs_BT = np.stack(drawn_TB, 1), np.stack(logp_TB, 1)
        ends_BT = np.isin(drawn_BT, self._ends)
        lengths = np.where(ends_BT.any(1), ends_BT.argmax(1) + 1, drawn_BT.shape[1])
        return [
            Written(drawn_BT[row, :count].tolist(), logprobs_BT[row, :count].tolist(), bool(ends_BT[row, count - 1]))
            for row, count in enumerate(lengths)
        ]

    def logprobs(self, ids: list[int]) -> list[float]:
        """See `RolloutEngine`."""
        import torch

        with torch.inference_mode():
            ids_1T = torch.tensor([ids], device=self.model.device)
            logp_TV = self.model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            found: list[float] = logp_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist()
        return found

    def load(self, weights: Weights) -> None:
        """See `RolloutEngine`."""
        self.model.load_state_dict(dict(weights), strict=False)


def make_engine(
    kind: str, model: str, *, at_once: int, longest: int, gpus: float = 0, native: str | None = None
) -> RolloutEngine:
    """The engine that the options ask for, loaded in this process. Raises `SourceError`."""
    if kind == "vllm":
        return VllmRollout(model, at_once=at_once, longest=longest, native=native)
    placed = {"dtype": "bfloat16", "device": "cuda"} if gpus else {}
    return TransformersRollout(model, at_once=at_once, longest=longest, **placed)
