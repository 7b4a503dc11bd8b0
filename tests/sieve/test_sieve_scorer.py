"""The scoring teacher against a plain forward pass, one snippet and one word at a time."""

import pytest
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from upath import UPath

from engine.models import load_tokenizer
from engine.sieve.budget import BudgetLedger
from engine.sieve.options import BudgetOptions, TeacherOptions
from engine.sieve.scorer import ScorerTeacher
from engine.sieve.teacher import Snippet

TEXTS = [
    "Rates rose again.",
    "The home side won by three goals to one after extra time in a match that nobody who was there will forget soon.",
    "",
    "A chip, a phone and a network: what the fair showed this year to those who came.",
    "Half a pair \ud800 of a letter.",
]
WORDS = {"passes": ["sport", "antidisestablishmentarianism"], "fails": ["politics", "quantum chromodynamics", "tech"]}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("pkg:smollm2-135m")


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def folder(request, tokenizer, tmp_path_factory):
    """A random model of few dimensions: of rotary positions, of learned ones, and of layers that see a short window."""
    torch.manual_seed(0)
    size = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    layers = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    if request.param == "llama":
        model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, initializer_range=0.5, **layers, **size))
    elif request.param == "gpt2":
        model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=len(tokenizer)))
    else:
        kinds = ["sliding_attention", "full_attention"]
        window = {"sliding_window": 6, "layer_types": kinds, "head_dim": 8, "num_key_value_heads": 2}
        config = Gemma3TextConfig(initializer_range=0.5, **window, **layers, **size)
        model = Gemma3ForCausalLM(config)
    place = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


@pytest.fixture
def make(folder):
    return lambda **keys: ScorerTeacher(TeacherOptions(kind="scorer", model=folder, **{**WORDS, "at_once": 3, **keys}))


def _plain(teacher, tokenizer, text, word):
    """The word's log-probability by the whole sequence's logits, unpadded and without a cache."""
    words = ", ".join(teacher.words)
    prompt = f"{text}\n\nTopic of this article ({words}):".encode("utf-8", "replace").decode()
    before = tokenizer(prompt)["input_ids"]
    after = tokenizer(f" {word}", add_special_tokens=False)["input_ids"]
    assert tokenizer(f"{prompt} {word}")["input_ids"] == before + after
    with torch.no_grad():
        logits = teacher._model(input_ids=torch.tensor([before + after]), use_cache=False).logits[0]
    logp = logits.log_softmax(-1)
    return sum(float(logp[len(before) - 1 + at, token]) for at, token in enumerate(after)), len(before), len(after)


def test_scores_equal_a_plain_forward_pass(make, tokenizer):
    teacher = make()
    lengths = {len(tokenizer(f" {word}")["input_ids"]) for word in teacher.words}
    assert 1 in lengths
    assert max(lengths) >= 4
    scores_NW = teacher.log_probabilities(TEXTS)
    for text, scores_W in zip(TEXTS, scores_NW, strict=True):
        expected = [_plain(teacher, tokenizer, text, word)[0] for word in teacher.words]
        assert scores_W == pytest.approx(expected, abs=2e-4)


def test_what_is_read_is_counted(make, tokenizer):
    teacher = make()
    for at, verdict in teacher.judge([Snippet(text) for text in TEXTS]):
        lengths = [_plain(teacher, tokenizer, TEXTS[at], word)[1:] for word in teacher.words]
        expected = lengths[0][0] + sum(after - 1 for _, after in lengths)
        assert (verdict.tokens_in, verdict.tokens_out) == (expected, 0) == teacher.most_tokens(Snippet(TEXTS[at]))


def test_the_best_word_decides_and_the_batch_does_not_matter(make):
    one, three = make(at_once=1), make()
    alone, together = (dict(each.judge([Snippet(text) for text in TEXTS])) for each in (one, three))
    scores_NW = three.log_probabilities(TEXTS)
    for at, scores_W in enumerate(scores_NW):
        assert together[at].score == pytest.approx(alone[at].score, abs=2e-4)
        assert together[at].score == pytest.approx(scores_W[:2].max() - scores_W[2:].max(), abs=2e-4)
        assert together[at].passed is bool(scores_W.argmax() < 2)
        assert together[at].words == three.words[scores_W.argmax()]
    assert one.fingerprint == three.fingerprint


def test_calibration_takes_off_the_mean_and_changes_the_fingerprint(make):
    teacher = make()
    before, raw_NW = teacher.fingerprint, teacher.log_probabilities(TEXTS)
    teacher.calibrate(TEXTS[:3])
    assert teacher.log_probabilities(TEXTS) == pytest.approx(raw_NW - raw_NW[:3].mean(0), abs=2e-4)
    assert teacher.fingerprint != before
    again = make()
    again.calibrate(TEXTS[:3])
    assert again.fingerprint == teacher.fingerprint
    again.calibrate([])
    assert again.fingerprint == before
    assert again.log_probabilities(TEXTS) == pytest.approx(raw_NW, abs=2e-4)


def test_a_text_beyond_the_models_positions_is_counted_and_left_out_of_the_calibration(make):
    teacher = make()
    long = "word " * 100
    said = dict(teacher.judge([Snippet(long), Snippet("short")]))
    assert (said[0].passed, said[0].reason, said[0].tokens_in) == (None, "too long", 0)
    assert said[1].passed is not None
    teacher.calibrate([long, "short"])
    assert teacher.log_probabilities(["short"]) == pytest.approx(0.0, abs=1e-4)


def test_a_prompt_of_ones_own_may_end_in_a_space_and_name_the_criterion(folder):
    options = TeacherOptions(kind="scorer", model=folder, prompt="{criterion}? {snippet} Answer: ", **WORDS)
    same = TeacherOptions(kind="scorer", model=folder, prompt="good? {snippet} Answer:", **WORDS)
    one, two = ScorerTeacher(options, "good"), ScorerTeacher(same)
    assert one.log_probabilities(TEXTS) == pytest.approx(two.log_probabilities(TEXTS), abs=2e-4)
    assert one.fingerprint != two.fingerprint


def test_through_the_ledger(make, tmp_path):
    budget = BudgetLedger(UPath(tmp_path / "run"), UPath(tmp_path / "answers"), BudgetOptions())
    teacher = make()
    said = budget.ask(teacher, [Snippet(text) for text in TEXTS])
    assert said == budget.ask(teacher, [Snippet(text) for text in TEXTS])
    assert budget.queries == len(TEXTS)
    assert budget.tokens == sum(teacher.most_tokens(Snippet(text))[0] for text in TEXTS)
