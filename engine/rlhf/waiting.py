"""Wait for an actor's answer, no longer than a deadline; whatever comes instead is said in one sentence.

Left out: engines, which come and go (`engine.rlhf.fleet`). Called for the rewards' actor by `engine.rlhf.work`.
"""

from typing import Any

from engine.errors import DeadlineExceeded, HeadraceError


def answer(ref: Any, seconds: float, *, who: str, task: str, key: str) -> Any:
    """What an actor's call returns. `who` is to do `task`, an infinitive; `key` is the recipe's that holds `seconds`.

    Raises the `HeadraceError` that was raised there, else one that names the actor: it takes too long
    (`DeadlineExceeded`), has failed, or has died.
    """
    import ray

    stays = "The last checkpoint stays: the same command goes on from it."
    try:
        return ray.get(ref, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        said, remedy = f"took longer than {seconds:g} s to {task}.", f"Raise {key} if that may be. {stays}"
        raise DeadlineExceeded(f"{who} {said}", remedy) from None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HeadraceError):
            raise error.cause from None
        raise HeadraceError(f"{who} failed to {task} ({str(error.cause)[:300]}).", stays) from None
    except ray.exceptions.RayActorError as error:
        raise HeadraceError(f"{who} died and did not {task} ({reason(error)}).", stays) from None


def reason(error: Exception) -> str:
    """Why an actor died, in a line: what stands last is after any traceback."""
    return str(error).strip().rpartition("\n")[2][:300].rstrip(".")
