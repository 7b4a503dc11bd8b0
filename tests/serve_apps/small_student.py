"""A small real student for the tests of the endpoint: a random BERT, a WordPiece tokenizer and a random head."""

import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast
from upath import UPath

from engine.artifacts import Model, publish_model
from engine.sieve.encoder import Encoder
from engine.sieve.student import Card, Head, Student

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "mill", "##er", "##s", "goal", "cup", "bank", "rate", "."]


def publish_small(folder: Path) -> Model:
    """A student that has seen nothing, published in `folder`; its threshold lies among its scores."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **sizes)).save_pretrained(folder / "bert")
    made = Tokenizer(WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokens = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **tokens).save_pretrained(folder / "bert")
    card = Card(
        kind="frozen", criterion="It is about mills.", base="small", base_fingerprint="b", max_tokens=16, long="split",
        join="mean", pooling="mean", slope=1.0, offset=0.0, rate=0.5, threshold=0.1, labels=7,
    )  # fmt: skip
    head = Head(np.random.default_rng(0).normal(size=32).astype(np.float32), 0.0)
    Student(Encoder(str(folder / "bert"), max_tokens=16), head, card).save(folder / "staging")
    return publish_model(
        folder / "staging", UPath(folder / "student"), job="sieve", recipe={}, recipe_fingerprint="r",
        inputs_fingerprint="i", seed=0,
    )  # fmt: skip


class Slowed:
    """A student that takes its time and writes down how many texts came together."""

    def __init__(self, student: Student, seconds: float, diary: Path) -> None:
        self._student, self._seconds, self._diary = student, seconds, diary
        self.card, self.passes = student.card, student.passes

    def scores(self, texts, batch_tokens=4096):
        time.sleep(self._seconds)
        with self._diary.open("a") as diary:
            diary.write(f"{len(texts)}\n")
        return self._student.scores(texts, batch_tokens)
