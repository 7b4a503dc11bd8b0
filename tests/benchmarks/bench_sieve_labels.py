"""Labels that active learning needs, against random sampling, to come near a student that has seen every label.

BBC snippets by `tests.benchmarks.bbc`; each of five topics in turn is made rare (4 % of the stream), five seeds each;
the teacher is the editors' labels. Students are heads on frozen MiniLM features. A rule has arrived when its balanced
accuracy on the test articles is within two points of the fully supervised student's (same trainer, same calibration of
the threshold, all labels of the stream), for the mean over seeds and in nine of ten later rounds. Every label counts,
the warm start's too; nothing else is known to any rule. Batches are small and nothing is asked ahead, so that the
curves are fine. Intervals are bootstrapped over seeds.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from upath import UPath

from engine.sieve import ActiveLoop, BudgetLedger, BudgetOptions, LoopOptions, SnippetStream, balanced_accuracy
from engine.sieve.calibration import sigmoid
from engine.sieve.encoder import Encoder
from engine.sieve.inline import InlineLearners
from engine.sieve.labels_teacher import LabelsTeacher
from engine.sieve.options import StudentOptions
from engine.sieve.training import FrozenTrainer, Labelled
from tests.benchmarks.bbc import TOPICS, snippets, split

SEEDS = range(5)
RULES = ("band", "uncertainty", "published", "random")
STUDENT = StudentOptions(kind="frozen")
LOOP = {"validation": 0, "warm_start": 60, "batch": 30, "ahead": 0.0, "patience": 0, "sample": 1000}
QUERIES = {"band": 420, "uncertainty": 420, "published": 780, "random": 780}
WITHIN = 0.02


def main():
    """All topics, rules and seeds."""
    torch.set_num_threads(1)
    found = list(snippets())
    memory = Memory([text for _, _, text in found])
    topics = {topic: _topic(found, memory, topic) for topic in TOPICS}
    return {
        "snippets": len(found),
        "seeds": list(SEEDS),
        "loop": LOOP,
        "student": STUDENT.model_dump(),
        "topics": topics,
        "summary": summary(topics),
    }


def summary(topics):
    """Labels needed by topic and rule, and each rule's share of what random sampling needs, averaged over topics."""
    needed = {topic: each["needed"] for topic, each in topics.items()}
    shares = {rule: [each[rule] / each["random"] for each in needed.values() if each[rule]] for rule in RULES}
    return {
        "labels_needed": needed,
        "share_of_random": {rule: round(float(np.mean(each)), 3) for rule, each in shares.items()},
        "band_to_random_95": {topic: each["band_to_random_95"] for topic, each in topics.items()},
        "supervised": {topic: round(float(np.mean(each["supervised"])), 4) for topic, each in topics.items()},
    }


class Memory:
    """Features of all snippets, computed once; stands in for the feature cache."""

    def __init__(self, texts):
        encoder = Encoder(STUDENT.model, max_tokens=STUDENT.max_tokens, pooling=STUDENT.pooling)
        self.known = dict(zip(texts, encoder.features(texts), strict=True))

    def features(self, texts, compute):
        """What is known; nothing is ever missing."""
        return [self.known[text] for text in texts]


class Judged(InlineLearners):
    """Learners whose every student is tried on the test articles."""

    def __init__(self, memory, test):
        super().__init__(FrozenTrainer(STUDENT, memory), STUDENT)
        self.test = test
        self.curve = {}

    def adopt(self, training):
        """Adopt, then test."""
        fitted, card = super().adopt(training)
        self.curve[card.labels] = self.judge(card.threshold)
        return fitted, card

    def judge(self, threshold):
        """Balanced accuracy on the test articles."""
        scores = sigmoid(self.logits(self.score([each.text for each in self.test])))
        return balanced_accuracy(scores > threshold, [each.truth for each in self.test])


def _topic(found, memory, topic):
    splits = [split(found, topic, seed) for seed in SEEDS]
    supervised = [_supervised(memory, each, seed) for seed, each in zip(SEEDS, splits, strict=True)]
    curves = {
        rule: [_run(memory, each, rule, seed) for seed, each in zip(SEEDS, splits, strict=True)] for rule in RULES
    }
    return {
        "stream": len(splits[0].stream),
        "test_passes": sum(each.truth for each in splits[0].test),
        **_judged(curves, supervised),
        "supervised": [round(each, 4) for each in supervised],
        "curves": {rule: [{str(n): round(v, 4) for n, v in curve.items()} for curve in curves[rule]] for rule in RULES},
    }


def _judged(curves, supervised):
    """Labels each rule needs, and the 95 % interval over seeds of the band's share of what random sampling needs."""
    needed = {rule: _needed(curves[rule], supervised, range(len(supervised))) for rule in RULES}
    rng = np.random.default_rng(0)
    drawn = [rng.integers(len(supervised), size=len(supervised)) for _ in range(500)]
    both = [[_needed(curves[rule], supervised, each) for rule in ("band", "random")] for each in drawn]
    ratios = [band / random for band, random in both if band and random]
    return {"needed": needed, "band_to_random_95": [round(float(np.quantile(ratios, q)), 3) for q in (0.025, 0.975)]}


def _needed(curves, supervised, seeds):
    """The fewest labels from which on the mean over these seeds stays within reach; None if it never does.

    Curves are read between their trainings by straight lines, on a grid of ten labels.
    """
    points = [sorted(curves[seed].items()) for seed in seeds]
    grid = np.arange(max(each[0][0] for each in points), min(each[-1][0] for each in points) + 1, 10)
    mean = np.mean([np.interp(grid, *zip(*each, strict=True)) for each in points], axis=0)
    reached = mean >= np.mean([supervised[seed] for seed in seeds]) - WITHIN
    for at, count in enumerate(grid):
        # A rule that has arrived may still waver by what a hundred test passes decide.
        if reached[at] and reached[at:].mean() >= 0.9:
            return int(count)
    return None


def _supervised(memory, each, seed):
    learners = Judged(memory, each.test)
    labels = np.array([snippet.truth for snippet in each.stream])
    texts = [snippet.text for snippet in each.stream]
    _, card = learners.adopt(learners.start(Labelled(texts, labels, float(labels.mean())), texts[:2000], seed))
    return learners.curve[card.labels]


def _run(memory, each, rule, seed):
    with tempfile.TemporaryDirectory(prefix="hrbench-") as folder:
        learners = Judged(memory, each.test)
        ledger = BudgetLedger(UPath(folder), UPath(Path(folder) / "cache"), BudgetOptions(queries=QUERIES[rule]))
        stream = SnippetStream(iter(each.stream), buffer=1, seed=seed)
        options = LoopOptions(rule=rule, **LOOP)
        ActiveLoop(stream, LabelsTeacher(["bbc"]), ledger, learners, options, seed=seed).run()
    return learners.curve
