"""Responses on disk, offsets of tokens in their text, weights in parcels, and the word list."""

import numpy as np
import pytest
import torch
from upath import UPath

from engine.errors import HeadraceError
from engine.models import load_tokenizer
from engine.rlhf.experience import Experience, Response, read_held_out, read_step, text_offsets, write_step
from engine.rlhf.transport import InProcess, Parcel
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
    write_step(home, experience, held_out=True, scores={"reward": [1.0, 2.0, 3.0]})
    assert [row["score: reward"] for row in read_held_out(home, 3)] == [1, 2, 3]
    assert read_held_out(home, 4) == []


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


def test_a_tensor_that_is_lost_on_the_way_is_named():
    transport = InProcess()
    parcel = transport.pack(4, {"a": torch.ones(2), "b": torch.zeros(3)})
    assert dict(transport.unpack(parcel)).keys() == {"a", "b"}
    short = Parcel(4, parcel.names, {"a": torch.ones(2)})
    with pytest.raises(HeadraceError, match="b is missing in version 4 of the weights, 1 of 2"):
        dict(transport.unpack(short))


def test_the_word_list_tells_friendly_from_unfriendly():
    friendly, unfriendly = compound(
        ["", ""], ["I love this, it is wonderful!", "This is awful, I hate it."], [None, None]
    )
    assert friendly > 0.5 > -0.5 > unfriendly
