"""A vLLM architecture that holds a base and a value network: one scheduler, one cache, and a beta for each request.

    tokens --base--> h_base --+
                              +-- [h_base | h_value | beta] --> z_base + beta * z_value --> vLLM's sampler
    tokens --value-> h_value -+

vLLM is started on the base's directory with this architecture in place of the base's own, as
`engine.value_network.serving` says; the value network's weights come from a directory of theirs. A request says
`value_beta` in its `extra_args` (`vllm_xargs` over HTTP), and 1 if it says nothing. The value network runs for every
token, also where beta is 0: what it leaves in the cache is shared between requests whatever their beta. Beta travels
with the hidden states, high and low part, because vLLM picks rows of those and not of anything beside them.

Left out: cascades, which cannot run before the base has (`engine.value_network.reference`), and speculative decoding,
pipeline parallelism and LoRA, which are refused: nobody has tested them. vLLM's newer runner, for GPUs, has never run
here. Loaded by vLLM through the entry point `engine.value_network.plugin`.

Shapes: N tokens of a step, R requests, V vocabulary.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import AutoWeightsLoader, init_vllm_registered_model

from engine.value_network.betas import BETAS
from engine.value_network.card import read_card
from engine.value_network.mixing import mix
from engine.value_network.networks import load_probe
from engine.value_network.serving import PROCESSOR

_COLUMNS = 2
"""Beta's high and low part: in bfloat16 one number holds eight bits only."""


class BaseWithValue(torch.nn.Module):
    """`z_base + beta * z_value`. Raises `ValueError` for what is not supported."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        _check(vllm_config)
        config = vllm_config.model_config.hf_config
        folder = Path(config.value_network)
        self.base = init_vllm_registered_model(
            vllm_config, prefix=f"{prefix}base", hf_config=config, architectures=config.base_architectures
        )
        self.value: Any = None
        self.probe: Any = None
        self.value_width = 0
        if read_card(folder).connection == "linear_probe":
            self.probe = load_probe(folder).to(vllm_config.device_config.device)
        else:
            value_config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            with set_model_tag("value"):
                self.value = init_vllm_registered_model(vllm_config, prefix=f"{prefix}value", hf_config=value_config)
            self.value_width = value_config.get_text_config().hidden_size
            self.secondary_weights = [DefaultModelLoader.Source(str(folder), revision=None, prefix=_VALUE)]

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The base's embedding: what vLLM knows a text model by."""
        embedded: torch.Tensor = self.base.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        betas_N: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of both and beta, (N, width + width + 2). `betas_N` comes from vLLM's newer runner."""
        hidden = [self.base(input_ids, positions, None, inputs_embeds)]
        if self.value is not None:
            hidden.append(self.value(input_ids, positions, None, inputs_embeds))
        if betas_N is None:
            betas_N = _betas_of_step(len(positions), hidden[0].device)
        high_N = betas_N.to(hidden[0].dtype)
        low_N = (betas_N - high_N.float()).to(high_N.dtype)
        return torch.cat([*hidden, high_N[:, None], low_N[:, None]], dim=-1)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Mixed logits, (N, V), in float32; None where another worker has them."""
        widths = [hidden_states.shape[-1] - self.value_width - _COLUMNS, self.value_width, _COLUMNS]
        base, value, betas = (each.contiguous() for each in torch.split(hidden_states, widths, dim=-1))
        base_NV = self.base.compute_logits(base)
        value_NV = self.probe(base_NV) if self.probe is not None else self.value.compute_logits(value)
        if base_NV is None or value_NV is None:
            return None
        base_NV = base_NV.float()
        missing = base_NV.shape[-1] - value_NV.shape[-1]
        if missing:  # rows that one of the two pads its vocabulary with
            value_NV = torch.nn.functional.pad(value_NV, (0, missing))
        return mix(base_NV, value_NV, betas.float().sum(-1, keepdim=True))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Give each its own."""
        named = ((name if name.startswith(_VALUE) else f"base.{name}", tensor) for name, tensor in weights)
        loaded: set[str] = AutoWeightsLoader(self).load_weights(named)
        return loaded | {name for name, _ in self.named_parameters() if name.startswith("probe.")}

    @staticmethod
    def get_model_state_cls() -> Any:
        """What vLLM's newer runner keeps of a step's requests."""
        from engine.value_network.betas_gpu import BetaState

        return BetaState


_VALUE = "value."


def _betas_of_step(tokens: int, device: torch.device) -> torch.Tensor:
    """The beta of each token of this step, (N,), in float32; of vLLM's older runner, which CPUs have."""
    metadata = get_forward_context().attn_metadata if is_forward_context_available() else None
    if not metadata:  # a step that only sees how much memory is needed
        return torch.ones(tokens, device=device)
    starts = next(iter(metadata.values())).query_start_loc
    counts_R = starts.diff()
    betas_R = torch.tensor(BETAS.of_batch(len(counts_R)), dtype=torch.float32, device=device)
    betas_N = betas_R.repeat_interleave(counts_R.to(device))
    return torch.nn.functional.pad(betas_N, (0, tokens - len(betas_N)), value=1.0)


def _check(vllm_config: VllmConfig) -> None:
    refused = {
        "speculative decoding": vllm_config.speculative_config is not None,
        "pipeline parallelism": vllm_config.parallel_config.pipeline_parallel_size > 1,
        "LoRA adapters": vllm_config.lora_config is not None,
    }
    for name, wanted in refused.items():
        if wanted:
            raise ValueError(f"A value network is not served with {name}: it is untested. Leave that out.")
    if PROCESSOR not in (vllm_config.model_config.logits_processors or []):
        raise ValueError(f"Give vLLM logits_processors={json.dumps([PROCESSOR])}: requests' betas need it.")
