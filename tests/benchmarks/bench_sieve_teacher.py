"""What a student costs beside its teachers, and how well it does where the teacher is a small language model.

Cost, one thread each, batches of 16 snippets of 40 to 60 words: a MiniLM student, the scoring teacher (SmolLM2-135M,
five topic words) and the teacher that reasons (SmolLM2-135M in vLLM, with its default prompt and longest answer), in
CPU seconds per snippet. Quality: the active loop over the first hundred words of BBC articles (in the middle of an
article the small teacher is at a loss) with the scoring teacher; student and teacher are held against the editors'
labels on the same other articles. Three seeds, each with a split of its own.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from upath import UPath

from tests.benchmarks.bbc import articles, snippets, split

TOPIC = "sports"
WORDS = {"passes": ["sport"], "fails": ["business", "entertainment", "politics", "tech"]}
SEEDS = range(3)
QUERIES = 300
TEST = 300
BATCH = 16
TIMED = {"student": 640, "scorer": 96, "writer": 64}


def main():
    """Costs in processes of their own, then quality."""
    measured = {who: _alone(who) for who in TIMED}
    costs = {who: seconds for who, (seconds, _) in measured.items()}
    runs = [_quality(seed) for seed in SEEDS]
    gaps = [run["student"] - run["teacher"] for run in runs]
    return {
        "batch": BATCH,
        "cpu_seconds_per_snippet": costs,
        "tokens_per_answer": measured["writer"][1],
        "queries": QUERIES,
        "seeds": list(SEEDS),
        "quality": runs,
        "summary": {
            "scorer_to_student": round(costs["scorer"] / costs["student"], 1),
            "writer_to_student": round(costs["writer"] / costs["student"], 1),
            "teacher_balanced_accuracy": round(statistics.mean(run["teacher"] for run in runs), 4),
            "student_balanced_accuracy": round(statistics.mean(run["student"] for run in runs), 4),
            "student_minus_teacher": [round(gap, 4) for gap in gaps],
        },
    }


def _alone(who):
    """What `_cost` gives in a process with one thread."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_sieve_teacher", who]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    out = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def _cost(who):
    """CPU seconds per snippet of one of the three, after a warm-up, and the mean number of tokens written."""
    import torch

    from engine.sieve import Snippet, TeacherOptions

    torch.set_num_threads(1)
    texts = [text for _, _, text in snippets()]
    texts = [texts[at] for at in np.random.default_rng(0).permutation(len(texts))[: TIMED[who] + BATCH]]
    if who == "student":
        from engine.sieve.encoder import Encoder

        encoder = Encoder("pkg:minilm", max_tokens=128)

        def work(some):
            for first in range(0, len(some), BATCH):
                encoder.features(some[first : first + BATCH], batch_tokens=1 << 20)
            return 0

    else:
        options = TeacherOptions(kind="scorer" if who == "scorer" else "vllm", at_once=BATCH, **WORDS)
        if who == "scorer":
            from engine.sieve.scorer import ScorerTeacher as Teacher
        else:
            from engine.sieve.writer import WriterTeacher as Teacher
        teacher = Teacher(options, "The article is about sport.")

        def work(some):
            portions = [some[first : first + BATCH] for first in range(0, len(some), BATCH)]
            return sum(
                said.tokens_out for each in portions for _, said in teacher.judge([Snippet(one) for one in each])
            )

    work(texts[:BATCH])
    started = time.process_time()
    written = work(texts[BATCH:])
    return (time.process_time() - started) / TIMED[who], written / TIMED[who]


def _quality(seed):
    """Balanced accuracy of teacher and student against the editors, on the same test snippets."""
    from engine.sieve import (
        ActiveLoop,
        BudgetLedger,
        BudgetOptions,
        LoopOptions,
        SnippetStream,
        TeacherOptions,
        balanced_accuracy,
    )
    from engine.sieve.encoder import Encoder
    from engine.sieve.inline import InlineLearners
    from engine.sieve.options import StudentOptions
    from engine.sieve.scorer import ScorerTeacher
    from engine.sieve.training import FrozenTrainer

    beginnings = [(article, topic, " ".join(text.split()[:100])) for article, topic, text in articles()]
    parts = split(beginnings, TOPIC, seed, rate=0.2)
    rng = np.random.default_rng(seed)
    stream = parts.stream
    passes = [each for each in parts.test if each.truth]
    fails = [each for each in parts.test if not each.truth]
    test = [some[at] for some in (passes, fails) for at in rng.permutation(len(some))[: TEST // 2]]
    teacher = ScorerTeacher(TeacherOptions(kind="scorer", at_once=BATCH, **WORDS))
    teacher.calibrate([each.text for each in stream[:64]])
    said = {at: verdict.passed for at, verdict in teacher.judge(test)}
    student = StudentOptions(kind="frozen")
    memory = _Memory(Encoder("pkg:minilm", max_tokens=128))
    learners = InlineLearners(FrozenTrainer(student, memory), student)
    options = LoopOptions(validation=0, warm_start=100, batch=50, ahead=0.0, patience=0)
    with tempfile.TemporaryDirectory(prefix="hrbench-") as folder:
        ledger = BudgetLedger(UPath(folder), UPath(Path(folder) / "cache"), BudgetOptions(queries=QUERIES))
        loop = ActiveLoop(
            SnippetStream(iter(stream), buffer=1, seed=seed), teacher, ledger, learners, options, seed=seed
        )
        card, state = loop.run()
    logit = np.log(card.threshold / (1 - card.threshold))
    chosen = learners.logits(learners.score([each.text for each in test])) > logit
    truth = [each.truth for each in test]
    return {
        "seed": seed,
        "teacher": round(balanced_accuracy([bool(said[at]) for at in range(len(test))], truth), 4),
        "student": round(balanced_accuracy(chosen, truth), 4),
        "nearest_minority": [each.nearest_minority for each in state.rounds],
    }


class _Memory:
    """Features that have been computed, in memory."""

    def __init__(self, encoder):
        self.encoder, self.known = encoder, {}

    def features(self, texts, compute):
        """As the feature cache does."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        self.known.update(zip(new, compute(new), strict=True))
        return [self.known[text] for text in texts]


if __name__ == "__main__":
    print(json.dumps(_cost(sys.argv[1])))
