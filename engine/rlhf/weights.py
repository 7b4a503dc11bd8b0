"""A policy's weights outside of training: as the run keeps them, as engines and everybody else know them.

    RUN/checkpoints/STEP/weights/policy.safetensors    what learns, by the learner's names (with LoRA the adapter)
                                 critic.safetensors

Engines are given whole tensors by the names of transformers, the adapter added to what it adapts, and only those that
learn. Left out: how they get there (`engine.rlhf.transport`). Called by `engine.rlhf.work`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError, SourceError
from engine.rlhf.adapters import INNER, OUTER
from engine.rlhf.critic import Critic, ValueHead, ValueModel
from engine.rlhf.policy import Policy

POLICY, CRITIC = "policy.safetensors", "critic.safetensors"
_HEAD = "headrace-value-head"
_ADAPTED = "base_model.model."


def save_weights(policy: Policy, weights: Mapping[str, Any], critic: Mapping[str, Any] | None, folder: Path) -> None:
    """Write what learns; `weights` are the policy's, all of them, by the learner's names."""
    from safetensors.torch import save_file

    kept = {name: weights[name].detach().cpu().contiguous() for name in policy.trained()}
    save_file(kept, folder / POLICY)
    if critic is not None:
        save_file({name: each.detach().cpu().contiguous().clone() for name, each in critic.items()}, folder / CRITIC)


def load_weights(policy: Policy, critic: Critic | None, folder: Path) -> None:
    """Take what `save_weights` wrote. Raises `HeadraceError` for another policy's."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        kept = load_file(folder / POLICY)
        if kept.keys() != set(policy.trained()):
            raise KeyError(f"{len(kept)} tensors, {len(list(policy.trained()))} learn")
        policy.lm.load_state_dict(kept, strict=False)
        if critic is not None:
            critic.load_state_dict(load_file(folder / CRITIC), strict=not isinstance(critic, ValueModel))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise HeadraceError(
            f"The weights in {folder} do not belong to this training ({why}).",
            "Choose another name=..., or add --fresh to start over.",
        ) from error


def names_for_engines(policy: Policy, *, halves: bool = False) -> set[str]:
    """The learner's names of what `for_engines` reads."""
    names = set(policy.trained())
    if hasattr(policy.lm, "disable_adapter") and not halves:
        adapted = (name for name, module in policy.lm.named_modules() if hasattr(module, "lora_A"))
        names |= {f"{name}.base_layer.weight" for name in adapted}
    return names


def for_engines(policy: Policy, weights: Mapping[str, Any], *, halves: bool = False) -> dict[str, Any]:
    """The tensors that learn as transformers names them, an adapter's difference added, or with `halves` for the engine
    to add (`engine.rlhf.adapters`)."""
    if not hasattr(policy.lm, "disable_adapter"):
        return {name: weights[name].detach() for name in policy.trained()}
    found: dict[str, Any] = {}
    for name, module in policy.lm.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        for adapter, scaling in module.scaling.items():
            inner, outer = (weights[f"{name}.lora_{half}.{adapter}.weight"].detach() for half in "AB")
            whole = f"{name.removeprefix(_ADAPTED)}.weight"
            if halves:
                found |= {f"{whole}{INNER}": inner, f"{whole}{OUTER}": scaling * outer}
            else:
                base = weights[f"{name}.base_layer.weight"].detach()
                found[whole] = base + (scaling * outer @ inner).to(base.dtype)
    return found


def export_critic(critic: Critic, weights: Mapping[str, Any], tokenizer: Any, folder: Path) -> None:
    """Write a critic with these weights: a model as an ordinary Hugging Face directory; a head with what it needs to be
    used again."""
    from safetensors.torch import save_file

    from engine.models import save_model

    if isinstance(critic, ValueModel):
        save_model(
            critic.model, tokenizer, folder, {name.removeprefix("model."): each for name, each in weights.items()}
        )
        return
    hidden, width = weights["inner.weight"].shape
    save_file({name: each.detach().cpu().contiguous() for name, each in weights.items()}, folder / "model.safetensors")
    about = {"model_type": _HEAD, "width": width, "hidden": hidden, "reads": "last_hidden_state"}
    (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")


def load_value_head(folder: Path, width: int) -> ValueHead:
    """A head that `export_critic` wrote, for states of this width. Raises `SourceError` for anything else."""
    from safetensors.torch import load_file

    about = json.loads((folder / "config.json").read_text())
    if about.get("model_type") != _HEAD or about["width"] != width:
        raise SourceError(
            f"{folder} holds no head of a critic for hidden states of width {width:,}.",
            "Give the critic that a run with the same policy published, or set critic.kind: model.",
        )
    head = ValueHead(width, about["hidden"])
    head.load_state_dict(load_file(folder / "model.safetensors"))
    return head
