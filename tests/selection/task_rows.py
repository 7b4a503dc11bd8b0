"""Rows of five small tasks."""

ANSWERS = {
    "sums": lambda at: f"{at} and 2 are {at + 2}.",
    "more sums": lambda at: f"{at} and 3 are {at + 3}.",
    "letters": lambda at: "abc " * (at % 4 + 1),
    "silence": lambda at: "-",
    "target": lambda at: f"{at} and 4 are {at + 4}.",
}


def rows(tasks=tuple(ANSWERS), count=20):
    return [
        {"prompt": f"{task} {at}", "response": ANSWERS[task](at), "task": task} for task in tasks for at in range(count)
    ]
