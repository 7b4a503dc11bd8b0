"""Text from models: greedy is the likeliest, draws follow their seeds and the distribution, vLLM agrees."""

from collections import Counter

import pytest

from engine.models import Sampling, TransformersGenerator, load_causal_lm, load_tokenizer

PROMPTS = [[5, 6, 7], [70], [80, 81, 82, 83, 84, 85], [9, 10]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import torch
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lm")
    backend = Tokenizer(BPE({letter: at for at, letter in enumerate(sorted(ByteLevel.alphabet()))}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=64, **sizes, **ids)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def generator(folder):
    return TransformersGenerator(folder, at_once=3)


def greedy_ids(folder, prompt, count):
    import torch

    model, ids = load_causal_lm(folder), list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def greedy(folder, prompt, count):
    return load_tokenizer(folder).decode(greedy_ids(folder, prompt, count))


def test_greedy_takes_the_likeliest_token_whoever_shares_the_batch(folder, generator):
    found = generator.generate(PROMPTS, Sampling(max_tokens=8), [0] * 4)
    assert [each.text for each in found] == [greedy(folder, prompt, 8) for prompt in PROMPTS]
    assert {(each.tokens, each.finished) for each in found} == {(8, False)}


def test_a_draw_depends_on_its_seed_and_on_nothing_else(generator):
    sampling, seeds = Sampling(temperature=1.0, max_tokens=12), [11, 12, 13, 2**62]
    together = generator.generate(PROMPTS, sampling, seeds)
    for at in range(4):
        assert generator.generate([PROMPTS[at]], sampling, [seeds[at]]) == [together[at]]
    assert generator.generate(PROMPTS[::-1], sampling, seeds[::-1]) == together[::-1]
    assert generator.generate(PROMPTS, sampling, [1, 2, 3, 4]) != together


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.3, 1.0), (1.0, 0.5)])
def test_draws_follow_the_distribution(folder, generator, temperature, top_p):
    import torch

    with torch.inference_mode():
        logits = load_causal_lm(folder)(input_ids=torch.tensor([[5, 6]])).logits[0, -1]
    chances, order = (logits / temperature).softmax(-1).sort(descending=True)
    inside = chances.cumsum(0) - chances < top_p
    kept = {
        int(token): float(p / chances[inside].sum()) for token, p in zip(order[inside], chances[inside], strict=True)
    }
    letters = {load_tokenizer(folder).decode([token]): p for token, p in kept.items()}
    count = 600
    sampling = Sampling(temperature, top_p, max_tokens=1)
    drawn = Counter(each.text for each in generator.generate([[5, 6]] * count, sampling, range(count)))
    assert set(drawn) <= {*letters, ""}
    best = max(letters, key=letters.get)
    assert drawn[best] / count == pytest.approx(letters[best], abs=0.09)
    assert len(drawn) > 1


def test_it_ends_before_a_stop_string_and_at_the_window(generator):
    whole = generator.generate([PROMPTS[0]], Sampling(max_tokens=20), [0])[0]
    stop = whole.text[4:6]
    first = whole.text.index(stop)
    cut = generator.generate([PROMPTS[0], PROMPTS[1]], Sampling(max_tokens=20, stop=(stop, "\0never")), [0, 0])[0]
    assert (cut.text, cut.finished) == (whole.text[:first], True)
    assert cut.tokens < whole.tokens
    long = generator.generate([[5] * 60], Sampling(max_tokens=20), [0])[0]
    assert (long.tokens, long.finished) == (4, False)
    for prompt in ([], [5] * 64):
        with pytest.raises(ValueError, match="leaves no room"):
            generator.generate([prompt], Sampling(), [0])


def test_it_ends_at_the_end_of_sequence(folder):
    generator = TransformersGenerator(folder)
    ids = greedy_ids(folder, PROMPTS[0], 3)
    generator._ends = {ids[2]}
    found = generator.generate([PROMPTS[0], PROMPTS[1]], Sampling(max_tokens=9), [0, 0])[0]
    before = ids[: ids.index(ids[2])]
    assert (found.text, found.tokens) == (load_tokenizer(folder).decode(before), len(before) + 1)
    assert found.finished


@pytest.mark.vllm
def test_vllm_writes_what_transformers_writes(cluster):
    import ray

    from engine.models import VllmGenerator

    model = "pkg:smollm2-135m"
    tokenizer = load_tokenizer(model)
    prompts = [
        tokenizer(text)["input_ids"] for text in ("def add(a, b):\n    return", "The capital of France", "1, 2, 3,")
    ]
    # In a process of its own: it takes over how torch counts threads.
    actor = ray.remote(num_cpus=1)(VllmGenerator).remote(model, at_once=20, longest=256)

    def written(sampling, seeds, asked=prompts):
        return ray.get(actor.generate.remote(asked, sampling, seeds), timeout=300)

    try:
        greedy = Sampling(max_tokens=24, stop=("\n\n\n",))
        ours = TransformersGenerator(model, longest=256).generate(prompts, greedy, [0, 0, 0])
        assert written(greedy, [0, 0, 0]) == ours
        drawing = Sampling(temperature=0.9, top_p=0.9, max_tokens=16)
        together = written(drawing, [1, 2, 3])
        assert written(drawing, [1, 2, 3]) == together
        assert written(drawing, [3], prompts[2:]) == together[2:]
        assert written(drawing, [4, 5, 6]) != together
        # More prompts than it reads in one step: none may be drawn from before it has been read to its end.
        many = [(prompts[0] * 40)[:250]] * 20
        assert written(drawing, range(20), many)[7:9] == written(drawing, [7, 8], many[:2])
        long = written(Sampling(max_tokens=99), [0], [(prompts[0] * 40)[:250]])[0]
        assert 0 < long.tokens <= 6
    finally:
        ray.kill(actor)
