"""What the tests of evaluation share: tiny random models over bytes, saved as any model is."""

import pytest

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
}


def _tokenizer(template):
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import PreTrainedTokenizerFast

    letters = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({letter: at for at, letter in enumerate(letters)}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"eos_token": "<|end|>", "pad_token": "<|pad|>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **special)


def _save(kind, folder, seed, template=TEMPLATE, **keys):
    import torch
    from transformers import LlamaConfig

    torch.manual_seed(seed)
    tokenizer = _tokenizer(template)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    kind(LlamaConfig(vocab_size=len(tokenizer), **SIZES, **ids, **keys)).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory):
    """A random Llama over bytes with a chat template."""
    from transformers import LlamaForCausalLM

    return _save(LlamaForCausalLM, tmp_path_factory.mktemp("lm"), 0)


@pytest.fixture(scope="session")
def tiny_bare_lm(tmp_path_factory):
    """Another, without a chat template."""
    from transformers import LlamaForCausalLM

    return _save(LlamaForCausalLM, tmp_path_factory.mktemp("bare"), 1, template=None)


@pytest.fixture(scope="session")
def tiny_reward(tmp_path_factory):
    """A random reward model."""
    from transformers import LlamaForSequenceClassification

    return _save(LlamaForSequenceClassification, tmp_path_factory.mktemp("reward"), 2, num_labels=1)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Threads that wait for one another make tiny models slow where other work shares the cores."""
    import torch

    torch.set_num_threads(1)
