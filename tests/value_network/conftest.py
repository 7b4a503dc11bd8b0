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


@pytest.fixture(scope="session")
def publish():
    """`publish(source, folder, connection, scale)`: a value network with a will of its own, since what a small random
    model adds would not change a token."""

    def published(source, folder, connection="residual", scale=4.0):
        import torch

        from engine.models import load_causal_lm, load_tokenizer, save_model
        from engine.value_network import Card, vocabulary_fingerprint
        from engine.value_network.networks import Probe, use_value_head

        tokenizer = load_tokenizer(str(source))
        if connection == "linear_probe":
            torch.manual_seed(5)
            probe = Probe(49152, 8)
            torch.nn.init.normal_(probe.down.weight, std=scale)
            probe.save(folder)
            tokenizer.save_pretrained(folder)
        else:
            model = use_value_head(load_causal_lm(str(source)), zero=True)
            torch.manual_seed(7)
            torch.nn.init.normal_(model.get_output_embeddings().weight, std=scale)
            save_model(model, tokenizer, folder)
        Card(connection=connection, vocabulary=vocabulary_fingerprint(tokenizer)).write(folder)
        return folder

    return published
