"""A value network beside a base of another tokenizer: what it reads, what the mix is, and which pairs are refused."""

import json
import sys

import pytest
import torch
from mixes import greedy
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.config import build_recipe
from engine.errors import SourceError
from engine.models import Sampling, load_causal_lm, load_tokenizer, save_model
from engine.value_network.bridge import load_bridge, make_bridge
from engine.value_network.card import Card, vocabulary_fingerprint
from engine.value_network.generate_recipe import GenerateRecipe
from engine.value_network.reference import Mixture
from engine.value_network.responses import make_generator, prepare_responses
from engine.value_network.retelling import Retelling
from jobs.cli import main

TEXTS = ["The old man saw a cat in the garden, and the cat saw the old man.", "Naïve cats: 猫 see 😀 often.\n\tSo."]


@pytest.fixture(scope="module")
def ours(small):
    return load_tokenizer(str(small))


@pytest.fixture(scope="module")
def theirs():
    """A byte-level vocabulary of other pieces, whose texts begin with a token."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "</s>", "<|im_start|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def value(theirs, tmp_path_factory):
    """A value network of that vocabulary, with a will of its own."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.5,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("value")
    save_model(LlamaForCausalLM(config), theirs, folder)
    Card(connection="residual", vocabulary=vocabulary_fingerprint(theirs)).write(folder)
    return folder


@pytest.fixture(scope="module")
def bridge(ours, theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bridge")
    make_bridge(ours, theirs, TEXTS, (49152, 320)).save(folder)
    return folder


@pytest.fixture(scope="module")
def mixture(small, value, bridge):
    made = Mixture(str(small), str(value), bridge=bridge)
    made.base.double(), made.value.double()
    return made


def test_a_text_is_spelt_anew(ours, theirs):
    retell = Retelling(ours, theirs)
    for text in TEXTS:
        assert retell.begun(ours(text)["input_ids"]) == theirs(text)["input_ids"]
    start, eos = ours.convert_tokens_to_ids("<|im_start|>"), ours.eos_token_id
    cat = theirs("cat")["input_ids"]
    assert retell([start, *ours("cat")["input_ids"], eos]) == [2, *cat, theirs.eos_token_id]
    assert retell([*ours("cat")["input_ids"], ours.convert_tokens_to_ids("<|endoftext|>")]) == cat, "it has none such"
    assert theirs("<s>")["input_ids"] != retell(ours("<s>", add_special_tokens=False)["input_ids"]), "a text is a text"
    smile = ours("😀")["input_ids"]
    assert len(smile) > 1
    assert retell(smile[:1]) == [], "no whole character yet"


def test_it_is_the_sum_after_each_token_however_they_come(mixture, ours, theirs, bridge):
    retell, across = Retelling(ours, theirs), load_bridge(bridge)
    ids = ours(TEXTS[1])["input_ids"]
    wanted = []
    with torch.inference_mode():
        base = mixture.base(torch.tensor([ids])).logits[0]
        for at in range(len(ids)):
            read = retell.begun(ids[: at + 1])
            after = across(mixture.value(torch.tensor([read])).logits[0, -1]) if read else torch.zeros(49152)
            wanted.append(base[at] + 1.5 * after)
    mixture.forget()
    at_once = mixture.logits(torch.tensor([ids]), None, 1.5)[0]
    torch.testing.assert_close(at_once, torch.stack(wanted), atol=1e-9, rtol=0)
    assert (at_once - base).abs().max() > 0.1
    mixture.forget()
    parts = [ids[:4], *([each] for each in ids[4:])]
    one_by_one = torch.cat([mixture.logits(torch.tensor([each]), None, 1.5)[0] for each in parts])
    torch.testing.assert_close(one_by_one, at_once, atol=1e-9, rtol=0)


def test_rows_that_are_padded_and_a_beta_for_each(mixture, ours):
    rows = [ours(text)["input_ids"][:9] for text in TEXTS]
    rows[1] = rows[1][:6]
    ids = torch.tensor([rows[0], [0, 0, 0, *rows[1]]])
    mask = torch.tensor([[1] * 9, [0] * 3 + [1] * 6])
    mixture.forget()
    parts = [mixture.logits(ids[:, :5], mask[:, :5], torch.tensor([0.0, 2.0]))]
    parts += [mixture.logits(ids[:, at : at + 1], mask[:, : at + 1], torch.tensor([0.0, 2.0])) for at in range(5, 9)]
    found = torch.cat(parts, 1)
    mixture.forget()
    alone = mixture.logits(torch.tensor([rows[1]]), None, 2.0)[0]
    torch.testing.assert_close(found[1, 3:], alone, atol=1e-9, rtol=0)
    mixture.forget()
    first = mixture.logits(ids[:, :5], mask[:, :5], 0.0)
    given = {"attention_mask": mask[:, :5], "position_ids": (mask[:, :5].cumsum(1) - 1).clamp(min=0)}
    with torch.inference_mode():
        assert first.equal(mixture.base(ids[:, :5], **given).logits), "bit for bit"
    assert parts[0][0].equal(first[0])


def test_responses_are_written_over_it(small, value, bridge, ours):
    """Of `headrace generate`: what is asked for, and the tokens of the sum, whatever the others in a batch are."""
    keys = {"name": "x", "source": {"paths": ["x"]}, "model": str(small), "value": str(value), "chat": False}
    recipe = build_recipe(GenerateRecipe, {**keys, "bridge": str(bridge), "beta": 2.0}, where="here")
    prepared = prepare_responses(recipe)
    assert prepared.engine == "transformers"
    assert set(prepared.uses) == {"model", "value", "bridge"}
    prompts = [ours(text)["input_ids"][:9] for text in TEXTS]
    written = make_generator(recipe, "transformers").generate(prompts, Sampling(max_tokens=6), [0, 1])
    mixture = Mixture(str(small), str(value), bridge=bridge)
    wanted = [greedy(mixture, ids, 2.0, 6) for ids in prompts]
    assert [each.text for each in written] == [ours.decode(ids, skip_special_tokens=True) for ids in wanted]
    assert wanted != [greedy(mixture, ids, 0.0, 6) for ids in prompts]


def test_what_a_response_is_worth(mixture, ours, theirs, bridge):
    prompt, response = ours("Say it: ")["input_ids"], ours("cat", add_special_tokens=False)["input_ids"]
    told = theirs("<|im_start|>the old man")["input_ids"]
    with torch.inference_mode():
        base = mixture.base(torch.tensor([prompt + response])).logits[0]
        after = mixture.value(torch.tensor([told])).logits[0, -1]
    mixed = (base[len(prompt) - 1] + load_bridge(bridge)(after)).float().log_softmax(-1)
    assert len(response) == 1
    found = mixture.logprobs(prompt, response, told=told)
    assert found == pytest.approx(float(mixed[response[0]]), abs=1e-5)
    assert mixture.logprobs(prompt, response) != pytest.approx(found, abs=1e-3)
    alone = base[len(prompt) - 1].float().log_softmax(-1)[response[0]]
    assert mixture.logprobs(prompt, response, beta=0.0) == pytest.approx(float(alone), abs=1e-6)


def test_a_bridge_of_a_vocabulary_to_itself_changes_nothing(small, start, ours, tmp_path):
    torch.manual_seed(0)
    save_model(load_causal_lm(str(start)), ours, tmp_path / "value")
    Card(connection="residual", vocabulary=vocabulary_fingerprint(ours)).write(tmp_path / "value")
    make_bridge(ours, ours, [], (49152, 49152)).save(tmp_path / "bridge")
    pair = str(small), str(tmp_path / "value")
    ids = torch.tensor([ours(TEXTS[0])["input_ids"]])
    plain, bridged = Mixture(*pair).logits(ids), Mixture(*pair, bridge=tmp_path / "bridge").logits(ids)
    torch.testing.assert_close(bridged, plain, atol=1e-5, rtol=0)


def test_pairs_that_do_not_belong_together_are_refused(small, value, bridge, theirs, tmp_path):
    with pytest.raises(SourceError, match="different tokenizers"):
        Mixture(str(small), str(value))
    with pytest.raises(SourceError, match="no bridge"):
        Mixture(str(small), str(value), bridge=tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    save_model(load_causal_lm(str(value)), theirs, other)
    Card(connection="residual", vocabulary=vocabulary_fingerprint(theirs)).write(other)
    # Two tokens change places: the size stays.
    kept, places = json.loads((other / "tokenizer.json").read_text()), theirs.get_vocab()
    kept["model"]["vocab"] |= {"!": places["?"], "?": places["!"]}
    (other / "tokenizer.json").write_text(json.dumps(kept))
    with pytest.raises(SourceError, match="not the one it was trained with"):
        Mixture(str(small), str(other), bridge=bridge)
    with pytest.raises(SourceError, match="other tokenizers"):
        Mixture(str(value), str(value), bridge=bridge)
    Card(connection="cascade", vocabulary=vocabulary_fingerprint(theirs)).write(other)
    with pytest.raises(SourceError, match="reads the logits of a base of its own tokens"):
        Mixture(str(small), str(other), bridge=bridge)


def test_the_command_makes_one_and_tells_its_coverage(small, value, bridge, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"said": "{text[:40]}"}}\n' for text in TEXTS))

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["headrace", "bridge", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    words = [small, value, tmp_path / "a.jsonl", "--column", "said", "-o", tmp_path / "made"]
    code, told, _ = call(*words)
    assert code == 0
    made = load_bridge(tmp_path / "made")
    assert str(made).partition(" left")[0] in " ".join(told.split())
    made.check(load_bridge(bridge).base, load_bridge(bridge).value)
    assert call(*words)[0] == 2, "it is there already"
    code, _, said = call(small, value, tmp_path / "none.jsonl", "-o", tmp_path / "again")
    assert code == 2
    assert "none.jsonl" in said
    Card(connection="linear_probe", vocabulary="v").write(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert call(small, tmp_path, tmp_path / "a.jsonl", "-o", tmp_path / "again")[0] == 2
