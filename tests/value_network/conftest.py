"""Small bases and value networks, and rows to train them on."""

import json

import pytest


@pytest.fixture(scope="session")
def start(make_llama):
    """What value networks start from: another size than the base, the same tokens."""
    return make_llama(hidden_size=24, num_hidden_layers=2)


@pytest.fixture
def rows(tmp_path):
    """A file of demonstrations: the answer is what the question ends in."""
    words = ["red", "green", "blue", "white"]
    made = [{"prompt": f"Number {at}: say {words[at % 4]}", "response": words[at % 4]} for at in range(80)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path
