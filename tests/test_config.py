import pytest

from engine.config import Field, Recipe, Section, describe, knob, load_recipe, write_yaml
from engine.errors import RecipeError


class Optimizer(Section):
    lr: float = 3e-4
    """Step size."""


class Tiny(Recipe):
    megabytes: float = 16
    optimizer: Optimizer = Field(default_factory=Optimizer)
    steps: int
    """Optimiser steps."""
    workers: int = knob(1)


def _recipe(tmp_path, text):
    path = tmp_path / "tiny.yaml"
    path.write_text(text)
    return path


def test_values_and_overrides(tmp_path):
    path = _recipe(tmp_path, "name: a\nsteps: 3\n")
    recipe = load_recipe(Tiny, path, ["optimizer.lr=1e-5", "seed=7"])
    assert (recipe.steps, recipe.optimizer.lr, recipe.seed) == (3, 1e-5, 7)


@pytest.mark.parametrize(
    ("text", "overrides", "says"),
    [
        ("name: a\nstep: 3\n", [], "unknown key 'step'; the nearest known key is 'steps'"),
        (
            "name: a\nsteps: 3\noptimizer: {lrr: 1}\n",
            [],
            "unknown key 'optimizer.lrr'; the nearest known key is 'optimizer.lr'",
        ),
        ("name: a\n", [], "the key 'steps' is missing"),
        ("name: a\nsteps: many\n", [], "'steps'"),
        ("name: ../up\nsteps: 1\n", [], "'name'"),
        ("name: a\nsteps: 1\nsteps: 2\n", [], "duplicate key"),
        ("- a\n", [], "holds no `key: value` pairs"),
        ("name: [\n", [], "not valid YAML"),
        ("name: a\nsteps: 1\n", ["steps"], "not of the form key=value"),
        ("name: a\nsteps: 1\n", ["steps.x=1"], "holds no keys"),
    ],
)
def test_wrong_recipes_say_what_is_wrong(tmp_path, text, overrides, says):
    with pytest.raises(RecipeError) as caught:
        load_recipe(Tiny, _recipe(tmp_path, text), overrides)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_names_the_nearest_file(tmp_path):
    _recipe(tmp_path, "name: a\n")
    with pytest.raises(RecipeError, match=r"tiny\.yaml"):
        load_recipe(Tiny, tmp_path / "tinny.yaml")


def test_knobs_do_not_change_the_fingerprint():
    one = Tiny(name="a", steps=1)
    assert one.fingerprint() == Tiny(name="a", steps=1, workers=9, runs="elsewhere").fingerprint()
    assert one.fingerprint() != Tiny(name="a", steps=2).fingerprint()
    assert one.fingerprint() != Tiny(name="a", steps=1, optimizer=Optimizer(lr=1)).fingerprint()


def test_a_resolved_recipe_reads_back_as_the_same(tmp_path):
    one = Tiny(name="a", steps=1)
    again = load_recipe(Tiny, _recipe(tmp_path, write_yaml(one.model_dump(mode="json"))))
    assert again == one
    assert again.fingerprint() == one.fingerprint()


def test_describe_flattens_sections():
    keys = {key.name: key for key in describe(Tiny)}
    assert keys["optimizer.lr"].help == "Step size."
    assert keys["steps"].default == "required"
    assert "optimizer" not in keys
