"""Wait for an actor's answer, no longer than a deadline; whatever comes instead is said in one sentence.

Left out: engines, which come and go (`engine.rlhf.fleet`). Called for the rewards' actor by `engine.rlhf.work`, for
those that compute gradients by `engine.selection.gradients`.
"""

from collections.abc import Sequence
from typing import Any

from engine.errors import DeadlineExceeded, HeadraceError

_STAYS = "What is done stays: the same command goes on from it."


def first_answer(refs: Sequence[Any], seconds: float, *, who: str, task: str, key: str) -> tuple[Any, Any]:
    """The first of some calls to come back, and what it returns; as `answer`."""
    import ray

    ready, _ = ray.wait(list(refs), timeout=seconds)
    if not ready:
        raise _late(seconds, who, task, key)
    return ready[0], answer(ready[0], seconds, who=who, task=task, key=key)


def answer(ref: Any, seconds: float, *, who: str, task: str, key: str) -> Any:
    """What an actor's call returns. `who` is to do `task`, an infinitive; `key` is the recipe's that holds `seconds`.

    Raises the `HeadraceError` that was raised there, else one that names the actor: it takes too long
    (`DeadlineExceeded`), has failed, or has died.
    """
    import ray

    try:
        return ray.get(ref, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        raise _late(seconds, who, task, key) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HeadraceError):
            raise error.cause from None
        raise HeadraceError(f"{who} failed to {task} ({str(error.cause)[:300]}).", _STAYS) from None
    except ray.exceptions.RayActorError as error:
        raise HeadraceError(f"{who} died and did not {task} ({reason(error)}).", _STAYS) from None


def _late(seconds: float, who: str, task: str, key: str) -> DeadlineExceeded:
    return DeadlineExceeded(f"{who} took longer than {seconds:g} s to {task}.", f"Raise {key} if that may be. {_STAYS}")


def reason(error: Exception) -> str:
    """Why an actor died, in a line: what stands last is after any traceback."""
    return str(error).strip().rpartition("\n")[2][:300].rstrip(".")
