"""Rows as tokens: the prompt is what the model is asked, loss lies on what it has to say and nowhere else."""

import pytest

from engine.errors import SourceError
from engine.finetune.bpe_dropout import BpeDropout
from engine.finetune.formats import Example, chat_pieces, dropping, encoder, fit, program_pieces, to_example
from engine.models import load_tokenizer

TALK = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And 3 + 3?"},
    {"role": "assistant", "content": "That is 6."},
]


@pytest.fixture
def tokenizer():
    return load_tokenizer("pkg:smollm2-135m")


def learned(tokenizer, example):
    return [tokenizer.decode(example.ids[start:end]) for start, end in example.loss]


def test_loss_lies_on_what_the_assistant_says(tokenizer):
    example = to_example(chat_pieces(tokenizer, TALK), encoder(tokenizer))
    assert learned(tokenizer, example) == ["It is 4.<|im_end|>", "That is 6.<|im_end|>"]
    assert tokenizer.decode(example.ids) + "\n" == tokenizer.apply_chat_template(TALK, tokenize=False)


def test_the_prompt_is_the_one_the_model_is_asked_with(tokenizer):
    example = to_example(chat_pieces(tokenizer, TALK), encoder(tokenizer))
    for turn, (start, _) in zip((1, 3), example.loss, strict=True):
        asked = tokenizer.apply_chat_template(TALK[:turn], add_generation_prompt=True)["input_ids"]
        assert example.ids[:start] == asked


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.7])
def test_dropout_leaves_text_and_loss_as_they_are(tokenizer, rate):
    dropout = BpeDropout(tokenizer.backend_tokenizer)
    encode = dropping(dropout, rate, seed=1, row=2, epoch=3)
    plain, dropped = (to_example(chat_pieces(tokenizer, TALK), each) for each in (encoder(tokenizer), encode))
    assert learned(tokenizer, dropped) == learned(tokenizer, plain)
    assert tokenizer.decode(dropped.ids) == tokenizer.decode(plain.ids)
    assert (dropped.ids == plain.ids) == (rate == 0.0)
    again = to_example(chat_pieces(tokenizer, TALK), dropping(dropout, rate, seed=1, row=2, epoch=3))
    assert again == dropped


def test_a_program_may_mention_special_tokens(tokenizer):
    program = "end = '<|im_end|>'\n"
    example = to_example(program_pieces(tokenizer, "Write it.", program), encoder(tokenizer))
    assert learned(tokenizer, example) == [program + tokenizer.eos_token]
    assert example.ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("messages", [[], TALK[:1], [{"role": "assistant", "content": " "}]])
def test_a_conversation_without_an_answer(tokenizer, messages):
    with pytest.raises(ValueError, match="no turn of the assistant"):
        chat_pieces(tokenizer, messages)


def test_templates_that_will_not_do(tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(SourceError, match="has no chat template"):
        chat_pieces(tokenizer, TALK)
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(SourceError, match="writes earlier turns anew"):
        chat_pieces(tokenizer, TALK)
    tokenizer.chat_template = "{{ raise_exception('only users') }}"
    with pytest.raises(ValueError, match=r"refuses the conversation \(only users\)"):
        chat_pieces(tokenizer, TALK)


def test_what_is_too_long_is_dropped_or_cut():
    example = Example(list(range(10)), [(3, 5), (8, 10)])
    assert example.loss_tokens == 4
    assert fit(example, 10, "drop") == example
    assert fit(example, 9, "drop") == "longer than the window"
    assert fit(example, 9, "truncate") == Example(list(range(9)), [(3, 5), (8, 9)])
    assert fit(example, 4, "truncate") == Example(list(range(4)), [(3, 4)])
    assert fit(example, 3, "truncate") == "nothing to learn"
    assert fit(Example([1], [(0, 1)]), 9, "drop") == "nothing to learn"
