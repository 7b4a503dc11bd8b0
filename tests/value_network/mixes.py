"""Small pairs of a base and a value network, prompts for them, and the tokens that the reference answers with."""

import torch

from engine.models import load_causal_lm, load_tokenizer, save_model
from engine.value_network.card import Card, vocabulary_fingerprint
from engine.value_network.networks import Probe, use_value_head

BETAS = [0.0, 0.5, 1.0, 2.0]


def publish(source, folder, connection="residual", scale=4.0):
    """A value network with a will of its own: what a small random model adds would not change a token."""
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


def make_pair(make_llama, folder):
    """A base, and a value network of other depth, width and heads: two directories."""
    base = make_llama(hidden_size=64, intermediate_size=128, num_hidden_layers=2, initializer_range=0.2)
    other = make_llama(
        hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    return str(base), str(publish(other, folder))


def make_prompts(count):
    """Token ids of prompts; every third begins as the others of its kind, with 80 tokens."""
    torch.manual_seed(3)
    lengths = torch.randint(2, 40, (count,)).tolist()
    made = [torch.randint(100, 40000, (length,)).tolist() for length in lengths]
    shared = torch.randint(100, 40000, (80,)).tolist()
    return [shared + ids[:5] if at % 3 == 0 else ids for at, ids in enumerate(made)]


def greedy(mixture, prompt, beta, count):
    """So many of the likeliest tokens of a `Mixture`, each alone in its batch."""
    mixture.forget()
    ids, found = torch.tensor([prompt]), []
    for _ in range(count):
        found.append(int(mixture.logits(ids, None, beta)[0, -1].argmax()))
        ids = torch.tensor([[found[-1]]])
    return found
