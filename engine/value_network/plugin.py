"""What vLLM finds when it looks for plug-ins: that a base with a value network is an architecture.

Left out: the architecture itself, which is imported when a model asks for it. Called by vLLM in each of its processes.
"""

ARCHITECTURE = "HeadraceBaseWithValue"


def register() -> None:
    """Tell vLLM."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, "engine.value_network.architecture:BaseWithValue")
