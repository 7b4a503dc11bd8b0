"""Kept logits of frozen bases: the same loss as without, nothing computed twice, room asked for first."""

import os
import tempfile

import numpy as np
import pytest
import torch
from upath import UPath

from engine.config import build_recipe
from engine.errors import RecipeError, StorageError
from engine.finetune.batches import make_row
from engine.finetune.learner import Learner
from engine.finetune.loop import Plan, train
from engine.finetune.rows import PackedExamples
from engine.finetune.store import TokenStore
from engine.finetune.work import Assignment
from engine.models import load_tokenizer
from engine.value_network import cache, training
from engine.value_network.cache import Form, LogitCache, check_room
from engine.value_network.losses import Goal, dense_loss
from engine.value_network.networks import FrozenBase
from engine.value_network.recipe import CacheOptions, ValueRecipe

TRAIN, STEPS, A_STEP = 12, 9, 4
"""Three epochs."""


@pytest.fixture
def store(tmp_path):
    """Examples of 8 to 20 tokens, the first 2 to 4 without loss; three of fifteen are held out."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(8, 21, TRAIN + 3)
    firsts = rng.integers(2, 5, TRAIN + 3)
    arrays = {
        "ids": rng.integers(0, 2000, lengths.sum()).astype(np.int32),
        "ends": lengths.cumsum(),
        "loss": np.stack([firsts, lengths], 1).reshape(-1),
        "loss_ends": 2 * np.arange(1, TRAIN + 4),
        "loss_tokens": lengths - firsts,
        "labels": np.full(TRAIN + 3, np.nan, np.float32),
        "tasks": np.full(TRAIN + 3, -1),
        "train": np.arange(TRAIN)[:, None],
        "held_out": np.arange(TRAIN, TRAIN + 3)[:, None],
    }
    folder = tmp_path / "tokens"
    folder.mkdir()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    (folder / "tasks.json").write_text("[]")
    return TokenStore(folder)


@pytest.fixture
def trained(tmp_path, store, small, start, make_llama, monkeypatch):
    """Trains in this process, to the state it ends with; `asked` are the examples that bases are run on."""
    if not torch.distributed.is_initialized():
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
        where = f"file://{tempfile.mkdtemp(prefix='hrtest-')}/meet"
        torch.distributed.init_process_group("gloo", where, rank=0, world_size=1)
    other = make_llama(num_hidden_layers=1, initializer_range=0.3)
    tokenizer, asked = load_tokenizer(str(small)), []
    plainly = FrozenBase.logits

    def logits(self, row, at_L):
        asked.extend(row.numbers)
        return plainly(self, row, at_L)

    monkeypatch.setattr(FrozenBase, "logits", logits)

    def run(name, **keys):
        data = {
            "name": "a", "model": str(start), "bases": [str(small), str(other)], "source": {"paths": ["none"]},
            "format": "responses", "tokens": {"window": 32}, "optimiser": {"learning_rate": 1e-2},
            "training": {"steps": STEPS, "examples": A_STEP, "measure_every": 3},
            "parallel": {"tokens_per_device": 64},
        }  # fmt: skip
        recipe = build_recipe(ValueRecipe, data | keys)
        models = {"base": "0", "base 1": "1", "base 2": "2"}
        home = tmp_path / name
        given = Assignment("v", recipe, "", str(home), "", "", (), models, training.value_task)
        task = training.value_task(given, store, tokenizer, STEPS)
        plan = Plan(recipe.seed, STEPS, recipe.training, recipe.optimiser, recipe.parallel)
        return train(task, plan, UPath(home))

    run.asked = asked
    return run


@pytest.mark.parametrize(
    ("connection", "penalty", "curriculum"),
    [("residual", "all", "stages"), ("cascade_plus", "response", "alternate"), ("linear_probe", "all", "alternate")],
)
def test_full_is_the_same_training_and_runs_each_base_once(trained, connection, penalty, curriculum):
    keys = {"connection": connection, "curriculum": curriculum, "penalty": {"positions": penalty}, "probe_width": 4}
    plain = trained("plain", **keys)
    assert len(trained.asked) > STEPS * A_STEP
    trained.asked.clear()
    kept = trained("kept", cache={"keep": "full"}, **keys)
    for ours, theirs in zip(kept.measured, plain.measured, strict=True):
        assert ours.values == pytest.approx(theirs.values, rel=1e-5)
    # Every example once with each base that it is read with: not at any step, nor at any measurement.
    assert len(trained.asked) <= 2 * (TRAIN + 3)
    assert len(set(trained.asked)) == TRAIN + 3


def test_a_kill_costs_no_more_than_a_part(trained, monkeypatch):
    monkeypatch.setattr(cache, "_PART_TOKENS", 40)
    monkeypatch.setattr(cache, "_PARTS", 1 << 20)
    plain = trained("plain")
    trained.asked.clear()
    write, written = LogitCache._write, []

    def killed(self, part, records):
        if len(written) == 3:
            (self.folder / ".part-00009.npy.0badbabe").write_bytes(b"half of one")
            raise KeyboardInterrupt
        written.append(part)
        write(self, part, records)

    monkeypatch.setattr(LogitCache, "_write", killed)
    with pytest.raises(KeyboardInterrupt):
        trained("kept", cache={"keep": "full"})
    monkeypatch.setattr(LogitCache, "_write", write)
    lost = len(trained.asked) - len(set(trained.asked[:8]))
    step = Learner.step

    def tired(self, *arguments):
        if self.steps == STEPS - 2:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", tired)
    with pytest.raises(KeyboardInterrupt):
        trained("kept", cache={"keep": "full"})
    assert len(trained.asked) - lost <= 2 * (TRAIN + 3)
    trained.asked.clear()
    monkeypatch.setattr(Learner, "step", step)
    kept = trained("kept", cache={"keep": "full"})
    assert trained.asked == [], "a resume reads what is kept"
    assert [each.values for each in kept.measured] == [pytest.approx(each.values, rel=1e-5) for each in plain.measured]


def _kept(tmp_path, store, base, options, dtype="float32", vocabulary=49152):
    """A cache of all examples, and a row of some of them."""
    numbers = np.arange(len(store.loss_tokens))
    form = Form.of(CacheOptions(**options), 49152, dtype)
    made = LogitCache(tmp_path, "0", form, store, numbers, vocabulary=vocabulary, everywhere=False)
    examples = PackedExamples(store, 64)
    for part in made.missing():
        made.make(part, base, examples.of(made.examples(part), 0, 1).rows, torch.device("cpu"))
    return made, examples.of([7, 2, 11], 0, 1).rows[0]


def _losses(row, base, weight=2.0):
    """The loss of the base alone, and the loss and gradient of its mix with logits that are not even."""
    at_L = (row.targets_1T[0] != -100).nonzero()[:, 0]
    torch.manual_seed(2)
    value = torch.randn(len(at_L), 49152, requires_grad=True)
    alone, mixed = (
        dense_loss(scale * value, Goal(base.logits(row, at_L), row.targets_1T[0, at_L], 0.0, "l1"))
        for scale in (0.0, weight)
    )
    return alone.item(), mixed.item(), torch.autograd.grad(mixed, value)[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_is_what_the_base_said(tmp_path, store, small, dtype):
    kept, row = _kept(tmp_path, store, FrozenBase(str(small), dtype, 49152), {"keep": "full"}, dtype, 49160)
    base = FrozenBase(str(small), dtype, 49160)
    at_L = torch.tensor([*range(3, 20), 40])
    learnt_L = (row.targets_1T[0, at_L] != -100)[:, None]
    wanted, found = (each.logits(row, at_L)(slice(None)) for each in (base, kept))
    assert found.dtype == wanted.dtype
    unlike = (found - wanted)[:, :49152] * learnt_L
    assert unlike.abs().max() < (1e-6 if dtype == "float32" else 2e-3), "packed in other rows"
    assert (found[:, 49152:] == -torch.inf).all(), "columns that the base has not"
    nothing = make_row([])
    assert kept.logits(nothing, torch.tensor([0]))(slice(None)).shape == (1, 49160)


def test_fewer_logits_come_closer_the_more_there_are(tmp_path, store, make_llama):
    base = FrozenBase(str(make_llama(initializer_range=0.6)), "float32", 49152)
    off, apart = [], []
    _, row = _kept(tmp_path, store, base, {"keep": "full"})
    alone, mixed, gradient = _losses(row, base)
    for k in (4, 64, 4096, 49152):
        kept, row = _kept(tmp_path, store, base, {"keep": "top_k", "k": k})
        found = _losses(row, kept)
        assert found[0] == pytest.approx(alone, rel=1e-5), "the next token is always kept, and all of the mass"
        off.append(abs(found[1] - mixed) / mixed)
        apart.append(float((found[2] - gradient).norm() / gradient.norm()))
    assert apart == sorted(apart, reverse=True)
    assert max(off) == off[0] < 0.01
    assert off[-1] < 1e-6
    assert apart[-1] < 1e-5


def test_another_base_or_other_examples_have_a_place_of_their_own(tmp_path, store):
    def folder(base="0", dtype="float32", k=0, numbers=(1, 2), everywhere=False):
        form, numbers = Form(100, k, dtype), np.array(numbers)
        return LogitCache(tmp_path, base, form, store, numbers, vocabulary=100, everywhere=everywhere).folder

    asked = [{}, {"base": "1"}, {"dtype": "bfloat16"}, {"k": 3}, {"numbers": (1, 3)}, {"everywhere": True}]
    assert len({folder(**keys) for keys in asked}) == len(asked)
    assert folder() == folder()


def test_there_must_be_room(tmp_path):
    home = UPath(tmp_path) / "runs" / "a"
    check_room(10**9, CacheOptions(), home)
    with pytest.raises(RecipeError, match=r"would take 60.0 GB, more than cache.most_gb \(50\)"):
        check_room(60 * 10**9, CacheOptions(), home)
    with pytest.raises(StorageError, match=r"would take 10,000,000.0 GB, and .* left"):
        check_room(10**16, CacheOptions(most_gb=1e9), home)
    with pytest.raises(RecipeError, match="which memory://runs/a does not allow"):
        check_room(0, CacheOptions(), UPath("memory://runs/a"))
