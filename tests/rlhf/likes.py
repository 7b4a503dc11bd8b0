"""Rewards for the tests, as a user would write them."""


def letters(prompts, responses, references):
    """The share of the letter e."""
    return [response.count("e") / max(len(response), 1) for response in responses]


def broken(prompts, responses, references):
    """Raises at its second step's responses."""
    raise ValueError("no opinion")
