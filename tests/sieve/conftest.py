"""What the tests of SIEVE share: a scripted endpoint, and one thread for their tiny models."""

from collections.abc import Iterator

import pytest
from scripted_endpoint import Endpoint


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads that wait for one another make tiny models slow where other work shares the cores."""
    import torch

    torch.set_num_threads(1)
