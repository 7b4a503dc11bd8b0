"""Which token of a step has which beta, for vLLM's newer runner, the one GPUs have. Never run on one yet.

The runner tells a model's state of each request as it comes, and asks it before each step for what the model's forward
is to be given: here the beta of every token, always in the same memory, so that CUDA graphs can read it.

Left out: what beta does (`engine.value_network.architecture`).
"""

from typing import Any

import torch
from vllm.v1.worker.gpu.model_states.default import DefaultModelState

from engine.value_network.betas import DEFAULT, beta_of


class BetaState(DefaultModelState):  # type: ignore[misc]
    """vLLM's usual state of a text model, and betas."""

    def __init__(self, vllm_config: Any, model: Any, encoder_cache: Any, device: torch.device) -> None:
        super().__init__(vllm_config, model, encoder_cache, device)
        self._by_slot = torch.full((self.max_num_reqs,), DEFAULT, device=device)
        self._by_token = torch.full((self.max_num_tokens,), DEFAULT, device=device)

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        """Note a request's beta."""
        super().add_request(req_index, new_req_data)
        self._by_slot[req_index] = beta_of(new_req_data.sampling_params)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """The arguments of the model's next forward."""
        counts = input_batch.query_start_loc[: input_batch.num_reqs + 1].diff()
        betas = self._by_slot[input_batch.idx_mapping].repeat_interleave(counts, output_size=input_batch.num_tokens)
        self._by_token[: input_batch.num_tokens] = betas
        found = {"betas_N": self._by_token[: input_batch.num_tokens_after_padding]}
        return {**super().prepare_inputs(input_batch, req_states), **found}

    def prepare_dummy_inputs(self, num_reqs: int, num_tokens: int) -> dict[str, Any]:
        """The same for steps that only measure or record."""
        return {**super().prepare_dummy_inputs(num_reqs, num_tokens), "betas_N": self._by_token[:num_tokens]}
