"""Students: cutting, batching, training, saving; a tiny BERT and a tiny T5 made here stand for the real ones."""

import numpy as np
import pytest
import torch
from tiny_student import WORDS, labelled, save_bert, tokenizer
from transformers import BertModel, T5Config, T5EncoderModel, T5Model
from upath import UPath

from engine.corpus import FeatureCache
from engine.errors import ArtifactError, SourceError
from engine.sieve import Student, StudentOptions, trm_threshold
from engine.sieve.calibration import sigmoid
from engine.sieve.cutting import load_cutter, pieces
from engine.sieve.encoder import Encoder
from engine.sieve.training import EncoderTrainer, FrozenTrainer, make_card, make_trainer, train

PLAIN = {"max_tokens": 16, "epochs": 12, "learning_rate": 2e-3, "batch": 8}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return save_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    sizes = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    T5Model(T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def test_pieces_lose_nothing_and_fit(bert, tmp_path):
    made = tokenizer()
    text = "  goal match  team cup the a of .\n bank share rate tax ."
    made.save_pretrained(tmp_path)
    made.backend_tokenizer.enable_truncation(4)
    made.backend_tokenizer.enable_padding()
    made.backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    cutter = load_cutter(str(tmp_path))
    cut = pieces(cutter, [text, "goal", ""], max_tokens=6)
    assert "".join(cut[0]) == text
    assert len(cut[0]) == 4
    assert all(len(made(piece)["input_ids"]) <= 6 for piece in cut[0])
    assert cut[1:] == [["goal"], [""]]
    assert pieces(cutter, [text], 6, "truncate") == [cut[0][:1]]
    assert pieces(cutter, [], 6) == []


def test_batches_hold_every_text_once_within_the_limit(bert):
    encoder = Encoder(bert, max_tokens=16)
    texts = [" ".join(["goal"] * (1 + at % 20)) for at in range(57)]
    seen = []
    for batch in encoder.batches(texts, batch_tokens=64):
        seen += batch.texts
        assert batch.ids_BT.shape == batch.mask_BT.shape
        assert batch.ids_BT.numel() <= 64 or len(batch.texts) == 1
    assert sorted(seen) == list(range(57))


def test_padding_changes_no_feature(bert):
    encoder = Encoder(bert, max_tokens=16)
    texts = ["goal", "goal match team of the cup bank share", "tax ."]
    together = encoder.features(texts)
    alone = [encoder.features([text])[0] for text in texts]
    assert np.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
@pytest.mark.parametrize("family", ["bert", "t5"])
def test_a_fine_tuned_student_learns_and_survives_saving(request, tmp_path, family, pooling):
    options = StudentOptions(model=request.getfixturevalue(family), pooling=pooling, **PLAIN)
    trainer = make_trainer(options)
    assert isinstance(trainer, EncoderTrainer)
    data = labelled()
    stream = labelled(50, seed=1)
    fitted = train(trainer, data, stream.texts, options, seed=0)
    student = trainer.student(make_card(options, "sport", fitted, 80))
    student.save(tmp_path / "student")
    again = Student.load(tmp_path / "student")
    scores = again.scores(stream.texts)
    assert np.allclose(scores, student.scores(stream.texts), atol=1e-6)
    assert (again.passes(scores) == stream.labels).mean() > 0.9
    assert np.isfinite(trm_threshold(scores, stream.labels))
    if family == "t5":
        assert isinstance(again.encoder.module, T5EncoderModel)


def test_training_starts_from_the_checkpoint_each_time(bert):
    trainer = make_trainer(StudentOptions(model=bert, **PLAIN))
    trainer.fit(labelled(40, seed=3), 0)
    trainer.fit(labelled(), 0)
    once = trainer.logits(["goal match", "bank"])
    fresh = make_trainer(StudentOptions(model=bert, **PLAIN))
    fresh.fit(labelled(), 0)
    assert np.allclose(once, fresh.logits(["goal match", "bank"]), atol=1e-5)
    other = make_trainer(StudentOptions(model=bert, **PLAIN))
    other.restore(trainer.state())
    assert np.allclose(once, other.logits(["goal match", "bank"]), atol=1e-6)


@pytest.mark.parametrize("changed", [{}, {"noise": 0.05}, {"token_drop": 0.3}])
def test_a_frozen_student_learns_and_meets_its_encoder_once(bert, tmp_path, monkeypatch, changed):
    options = StudentOptions(kind="frozen", model=bert, max_tokens=16, **changed)
    pooling = "tokens" if options.token_drop else "mean"
    cache = FeatureCache(UPath(tmp_path), encoder="tiny", layer=-1, pooling=pooling, dtype="float16", max_tokens=16)
    trainer = make_trainer(options, cache)
    assert isinstance(trainer, FrozenTrainer)
    stream = labelled(50, seed=1)
    fitted = train(trainer, labelled(), stream.texts, options, seed=0)
    calls = []
    monkeypatch.setattr(trainer._encoder, "features", lambda *args, **keys: calls.append(args))
    again = train(trainer, labelled(), stream.texts, options, seed=0)
    assert not calls, "known texts met the encoder again"
    assert again == fitted
    monkeypatch.undo()
    student = trainer.student(make_card(options, "sport", fitted, 80))
    assert (student.passes(student.scores(stream.texts)) == stream.labels).mean() > 0.9


def test_long_texts_are_joined(bert):
    options = StudentOptions(kind="frozen", model=bert, max_tokens=8)
    trainer = make_trainer(options)
    fitted = train(trainer, labelled(), labelled(50, seed=1).texts, options, seed=0)
    card = make_card(options, "sport", fitted, 80)
    text = " ".join(["goal match team cup of the"] + ["bank share rate tax of the"] * 2)
    parts = sigmoid(trainer.logits(pieces(tokenizer().backend_tokenizer, [text], 8)[0]))
    assert len(parts) == 3
    for join, expected in (("mean", parts.mean()), ("max", parts.max())):
        student = trainer.student(card.model_copy(update={"join": join}))
        assert student.scores([text, "goal"])[0] == pytest.approx(expected, abs=1e-5)
    assert len(student.scores([])) == 0
    assert 0 <= student.scores([""])[0] <= 1


def test_a_limit_past_the_encoder_s_is_refused(bert):
    with pytest.raises(SourceError, match="at most 64 tokens"):
        Encoder(bert, max_tokens=128)


def test_a_tokenizer_of_another_model_is_refused(bert, tmp_path):
    BertModel.from_pretrained(bert).save_pretrained(tmp_path)
    made = tokenizer()
    made.add_tokens(["one", "two"])
    made.save_pretrained(tmp_path)
    with pytest.raises(SourceError, match="knows 18 tokens, its encoder 16"):
        Encoder(str(tmp_path), max_tokens=16)


def test_a_damaged_student_is_told(bert, tmp_path):
    with pytest.raises(ArtifactError, match="is no student"):
        Student.load(tmp_path)
    options = StudentOptions(kind="frozen", model=bert, max_tokens=16)
    trainer = make_trainer(options)
    fitted = train(trainer, labelled(), ["goal"], options, seed=0)
    trainer.student(make_card(options, "x", fitted, 80)).save(tmp_path)
    (tmp_path / "student.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        Student.load(tmp_path)
