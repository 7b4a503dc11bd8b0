"""Tiny real models for the tests of SIEVE: an encoder over sixteen words, and a student that tells two kinds apart."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from upath import UPath

from engine.artifacts import Model, publish_model
from engine.sieve import StudentOptions
from engine.sieve.training import Labelled, make_card, make_trainer, train

GOOD, BAD = ["goal", "match", "team", "cup"], ["bank", "share", "rate", "tax"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *GOOD, *BAD, "the", "a", "of", "."]


def tokenizer():
    made = Tokenizer(WordLevel({word: at for at, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    )  # fmt: skip


def save_bert(folder: Path) -> str:
    """A random BERT of two layers and its tokenizer; the folder."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def labelled(count=80, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.uniform(size=count) < 0.3
    texts = [" ".join(rng.choice(GOOD if good else BAD, 3)) + " of the ." for good in labels]
    return Labelled(texts, labels, 0.3)


def publish_tiny(output: UPath) -> Model:
    """A student of frozen features, trained on eighty labels and published."""
    with TemporaryDirectory() as base, TemporaryDirectory() as made:
        options = StudentOptions(kind="frozen", model=save_bert(Path(base)), max_tokens=16)
        trainer = make_trainer(options)
        fitted = train(trainer, labelled(), labelled(50, seed=1).texts, options, seed=0)
        staging = Path(made) / "student"
        trainer.student(make_card(options, "It is about sport.", fitted, 80)).save(staging)
        return publish_model(
            staging, output, job="sieve", recipe={}, recipe_fingerprint="r", inputs_fingerprint="i", seed=0
        )
