"""Responses on disk, what they have gained, offsets of tokens in their text, and the word list."""

from dataclasses import replace

import numpy as np
import pytest
from upath import UPath

from engine.models import load_tokenizer
from engine.rlhf.experience import Experience, Response, read_step, text_offsets, write_step
from engine.rlhf.gains import gains
from engine.rlhf.vader import compound

RESPONSES = [
    Response(0, 7, 0, [1, 2, 3], [-0.1, -0.2, -0.3], True, "abc"),
    Response(0, 7, 1, [4], [-1.0], False, "d"),
    Response(1, 2, 0, [5, 6], [-2.0, -3.0], True, ""),
]


@pytest.fixture(params=["local", "memory"])
def home(request, tmp_path):
    return UPath(tmp_path) if request.param == "local" else UPath(f"memory://{tmp_path.name}")


def test_a_step_is_kept_whole(home):
    experience = Experience(3, 2, RESPONSES)
    assert read_step(home, 3) is None
    write_step(home, experience)
    assert read_step(home, 3) == experience
    assert Experience.from_json(experience.to_json()) == experience
    scored = replace(experience, scores={"reward": [1.0, 2.0, 3.0], "length": [3.0, 1.0, 2.0]})
    write_step(home, scored, held_out=True)
    assert read_step(home, 3, held_out=True) == Experience.from_json(scored.to_json()) == scored
    assert read_step(home, 4, held_out=True) is None
    assert read_step(home, 3) == experience


def test_gains_are_paired_by_prompt(tmp_path):
    home = UPath(tmp_path)
    before, after = [0.1, 0.3, 0.5], [1.1, 1.3, 1.7]  # prompt 7 was asked twice
    for step, scores in ((0, before), (5, after)):
        write_step(home, Experience(step, step, RESPONSES, {"reward": scores, "same": [1.0] * 3}), held_out=True)
    found = {each.name: each for each in gains(home, 5)}
    reward = found["reward"]
    assert (reward.before, reward.after, reward.prompts) == (pytest.approx(0.35), pytest.approx(1.45), 2)
    assert reward.low < 1.1 < reward.high
    assert 0 < reward.p < 0.1, "differences of 1.0 and 1.2"
    assert (found["same"].p, found["same"].low) == (1.0, 0.0)
    assert gains(home, 4) == []


def test_its_arrays():
    experience = Experience(3, 2, RESPONSES)
    assert experience.written().tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert experience.logprobs().tolist() == [[-0.1, -0.2, -0.3], [-1, 0, 0], [-2, -3, 0]]
    groups = experience.groups()
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize(
    "text", ["Hello there, world!", "  two  spaces\n\n", "naïve 東京 🙂🙂 end", "", "🙂", "a<|im_end|>b"]
)
def test_offsets_lie_where_the_text_has_them(text):
    tokenizer = load_tokenizer("pkg:smollm2-135m")
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    found, offsets = text_offsets(tokenizer, ids, len(ids) + 2)
    assert found == text
    assert (offsets[len(ids) :] == len(text)).all()
    assert (np.diff(offsets[:, 0]) >= 0).all()
    spans = sorted({(int(first), int(last)) for first, last in offsets[: len(ids)]})
    assert "".join(text[first:last] for first, last in spans) == text


def test_the_word_list_tells_friendly_from_unfriendly():
    friendly, unfriendly = compound(
        ["", ""], ["I love this, it is wonderful!", "This is awful, I hate it."], [None, None]
    )
    assert friendly > 0.5 > -0.5 > unfriendly
