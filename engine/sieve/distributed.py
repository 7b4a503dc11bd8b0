"""Fine-tuning a student on several workers, through Ray Train: the same steps on the same batches, gradients averaged.

Left out: the steps themselves (`engine.sieve.training.fine_tune`). Called by `engine.sieve.training` where a recipe
asks for more than one worker.
"""

import tempfile
from typing import Any

import numpy as np

from engine.errors import HeadraceError
from engine.sieve.encoder import Encoder
from engine.sieve.options import StudentOptions
from engine.sieve.training import Labelled, State, fine_tune, state_of


def fine_tune_on_many(labelled: Labelled, options: StudentOptions, seed: int) -> State:
    """Train from the pre-trained checkpoint on `options.workers` workers; the weights of the first of them.

    A worker that dies ends the attempt, which is repeated twice. Raises `HeadraceError` if none comes through.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    resources = {"CPU": options.cpus} | ({"GPU": options.gpus} if options.gpus else {})
    with tempfile.TemporaryDirectory(prefix="headrace-train-", ignore_cleanup_errors=True) as scratch:
        trainer = TorchTrainer(
            _work,
            train_loop_config={"labelled": labelled, "options": options, "seed": seed},
            scaling_config=ScalingConfig(
                num_workers=options.workers, use_gpu=options.gpus > 0, resources_per_worker=resources
            ),
            run_config=RunConfig(storage_path=scratch, failure_config=FailureConfig(max_failures=2)),
        )
        result = trainer.fit()
    if result.error or result.return_value is None:
        why = str(result.error).strip().partition("\n")[0][:200]
        raise HeadraceError(f"The student's training workers failed ({why}).", "Set student.workers to 1 to see more.")
    state: State = result.return_value
    return state


def _work(config: dict[str, Any]) -> State | None:
    """One worker's part; the first returns what they trained together."""
    from ray import train
    from ray.train.torch import prepare_model

    options: StudentOptions = config["options"]
    context = train.get_context()
    encoder = Encoder(options.model, max_tokens=options.max_tokens, pooling=options.pooling)
    head = fine_tune(
        encoder,
        config["labelled"],
        options,
        config["seed"],
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        wrap=lambda module: prepare_model(module, parallel_strategy_kwargs={"find_unused_parameters": True}),
    )
    return {name: np.asarray(array) for name, array in state_of(encoder, head).items()}
