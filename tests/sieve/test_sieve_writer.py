"""The writing teacher in an actor, as a job runs it: one engine, three snippets, every token counted."""

import pytest

from engine.models import load_tokenizer
from engine.sieve.actors import RemoteTeacher
from engine.sieve.options import TeacherOptions
from engine.sieve.teacher import PROMPT, Snippet, fill, parse_verdict


@pytest.mark.vllm
def test_verdicts_are_written_and_their_tokens_counted(cluster):
    options = TeacherOptions(kind="vllm", model="pkg:smollm2-135m", max_tokens=24, at_once=2)
    teacher = RemoteTeacher(options, "It is about sport.", [], 300)
    try:
        snippets = [Snippet("The home side won by three goals to one."), Snippet("Rates rose \ud800 again.")]
        said = dict(teacher.judge([*snippets, Snippet("word " * 5000)]))
        tokenizer = load_tokenizer(options.model)
        for at, snippet in enumerate(snippets):
            turns = [{"role": "user", "content": fill(PROMPT, "It is about sport.", snippet.text)}]
            ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert said[at].tokens_in == len(ids) <= teacher.most_tokens(snippet)[0]
            assert 0 < said[at].tokens_out <= 24 == teacher.most_tokens(snippet)[1]
            assert said[at].words
            assert said[at].passed in (None, parse_verdict(said[at].words))
            assert bool(said[at].reason) is (said[at].passed is None)
        assert (said[2].passed, said[2].reason, said[2].tokens_in) == (None, "too long", 0)
        assert dict(teacher.judge(snippets)) == {at: said[at] for at in (0, 1)}
    finally:
        teacher.close()
