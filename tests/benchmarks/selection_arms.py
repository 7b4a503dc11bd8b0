"""The data of `bench_selection`, and its real trainings: `python -m tests.benchmarks.selection_arms HOME PART OF`.

Twenty-four tasks, sixteen of reasoning-gym and eight topics of ChatterBot's conversations, ROWS examples of each to
learn from; the target is a seventeenth task of reasoning-gym, whose rows fall into those that tasks are chosen by and
those that only the last comparison is made on. A training is what `headrace sft` does on a subset: the same examples,
packing, adapter, optimiser and schedule, from the same model, without Ray around it. What is wanted stands in
HOME/wanted.json, a list of [tasks, seed], of which a process with one thread does every OF-th; what is done goes to
HOME/trained.jsonl line by line and is not done again.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from upath import UPath

from engine.artifacts import read_dataset
from engine.config import load_recipe
from engine.corpus.gym import gym_files
from engine.corpus.readers.dialogues import DialogueReader
from engine.finetune.learner import Learner
from engine.finetune.loop import total_steps
from engine.finetune.order import DataOrder
from engine.finetune.store import TokenStore
from engine.finetune.tokenise import tokenizer_for
from engine.selection.margins import losses_of
from engine.selection.meta import MetaTraining, measured
from engine.selection.recipe import SelectRecipe

TARGET = "chain_sum"
GYM = (
    "basic_arithmetic", "decimal_chain_sum", "products", "gcd", "lcm", "simple_equations", "number_sequence",
    "fraction_simplification", "spell_backward", "letter_counting", "sentence_reordering", "caesar_cipher", "syllogism",
    "family_relationships", "calendar_arithmetic", "time_intervals",
)  # fmt: skip
TALK = ("ai", "botprofile", "conversations", "greetings", "humor", "literature", "science", "computers")
ROWS, HELD = 16, 0.45
RECIPE = {
    "name": "bench",
    "model": "pkg:smollm2-135m",
    "format": "responses",
    "target": TARGET,
    "tokens": {"window": 160, "held_out": HELD},
    "seed": 11,
    "training": {"steps": 24, "examples": 16, "measure_every": 4, "measured": 64},
    "optimiser": {"learning_rate": 5e-4},
    "parallel": {"tokens_per_device": 1024, "cpus": 2},
    "lora": {"rank": 8, "alpha": 16, "layers": 6},
}


def prepare(home):
    """Write HOME/rows and HOME/recipe.yaml."""
    from importlib.util import find_spec

    from engine.config import write_yaml
    from engine.finetune.tokenise import _share

    folder = home / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    talk = Path(find_spec("chatterbot_corpus").submodule_search_locations[0], "data", "english")
    for name in (TARGET, *GYM, *TALK):
        if name in TALK:
            reader = DialogueReader.__new__(DialogueReader)
            made = [row.values for row in reader.parse((talk / f"{name}.yml").read_bytes())]
            made = [{**row, "task": f"talk: {name}"} for row in made if len(row["prompt"] + row["response"]) < 300]
        else:
            (path,) = gym_files(f"reasoning-gym:{name}/300")
            made = [json.loads(line) for line in path.read_text().splitlines()]
            made = [{key: row[key] for key in ("prompt", "response", "task")} for row in made]
            made = [row for row in made if len(row["prompt"] + row["response"]) < 300]
        # As many to learn from of each, whichever side their prompts fall on.
        learnt = [row for row in made if _share(0, row["prompt"]) >= HELD]
        held = [row for row in made if _share(0, row["prompt"]) < HELD]
        kept = learnt[:64] + held[:128] if name == TARGET else learnt[:ROWS] + held[:1]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    data = {**RECIPE, "runs": str(home / "runs"), "source": {"paths": [str(folder)], "roots": [str(folder)]}}
    (home / "recipe.yaml").write_text(write_yaml(data))


def train_wanted(home, part, of):
    """Do what is wanted and not done, every `of`-th from `part` on."""
    recipe = load_recipe(SelectRecipe, home / "recipe.yaml")
    tokens = home / "runs" / "meta-training" / "bench" / "tokenise" / "bench" / "dataset"
    store = TokenStore.of(read_dataset(UPath(tokens)))
    tokenizer = tokenizer_for(recipe.model, recipe.format, recipe.tokens)
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    torch.distributed.init_process_group("gloo", f"file://{tempfile.mkdtemp()}/meet", rank=0, world_size=1)
    torch.set_num_threads(1)
    out = home / "trained.jsonl"
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {_key((line["tasks"], line["seed"])) for line in lines}
    wanted = [each for each in json.loads((home / "wanted.json").read_text()) if _key(each) not in done]
    for tasks, seed in wanted[part::of]:
        found = {"tasks": sorted(tasks), "seed": seed, **fine_tuned(recipe, store, tokenizer, sorted(tasks), seed)}
        with out.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(found, flush=True)


def _key(wanted):
    tasks, seed = wanted
    return (*sorted(tasks), seed)


def fine_tuned(recipe, store, tokenizer, tasks, seed):
    """Losses on the target after training on a subset, and what it took (CPU-seconds, evaluation left out)."""
    some = store.of_tasks(tasks or None, TARGET, "others")
    task = MetaTraining(some, recipe.model, tokenizer, recipe.parallel.tokens_per_device, lora=recipe.lora)
    torch.manual_seed(seed)
    started = time.process_time()
    learner, steps = None, total_steps(recipe.training, task.examples)
    model = task.load(None)
    learner = Learner(model, recipe.optimiser, recipe.parallel, steps)
    order, examples = DataOrder(task.examples, seed, True), recipe.training.examples
    for step in range(steps if tasks else 0):
        portion = task.portion(step, *order.take(step * examples, examples), 0, 1)
        learner.step(portion.rows, portion.weight, task.row_loss)
    seconds = time.process_time() - started
    found = {"cpu_seconds": seconds, "steps": steps if tasks else 0}
    for side in ("others", "held_out"):
        numbers = store.of_tasks(tasks or None, TARGET, side).held_out[:, 0].tolist()
        numbers = numbers[: recipe.training.measured] if side == "others" else numbers
        margins, nats = measured(learner, task._examples, numbers)
        found |= {
            f"{side} loss": float(losses_of(margins).mean()),
            f"{side} losses": losses_of(margins).round(4).tolist(),
        }
        found[f"{side} nats"] = float(nats.sum() / store.loss_tokens[numbers].sum())
    return found


if __name__ == "__main__":
    train_wanted(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
