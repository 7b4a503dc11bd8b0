"""What vLLM finds when it looks for plug-ins: that a base with a value network is an architecture.

An engine's process that was told its owner ends with it, also where the owner is killed: vLLM's own would go on for
ever, with the memory it has.

Left out: the architecture itself, which is imported when a model asks for it. Called by vLLM in each of its processes.
"""

import ctypes
import os
import signal
import sys

ARCHITECTURE = "HeadraceBaseWithValue"
OWNER = "HEADRACE_ENGINE_OWNER"
"""Environment variable with the id of the process whose end is to end vLLM's."""
_PR_SET_PDEATHSIG = 1


def register() -> None:
    """Tell vLLM."""
    if sys.platform == "linux" and os.environ.get(OWNER) == str(os.getppid()):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "engine.value_network.architecture:BaseWithValue")
