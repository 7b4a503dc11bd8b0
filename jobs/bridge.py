"""The command `headrace bridge`: from a value network's vocabulary to that of a base of another family.

    headrace bridge pkg:gemma3-270m runs/value-network/mine/model "data/*.jsonl" --output bridges/gemma

Left out: how tokens are matched (`engine.value_network.bridge`) and using it (`engine.value_network.reference`). Called
by `jobs.cli`; it is no job, and has no recipe.
"""

from pathlib import Path

import click

from jobs.show import show_facts


@click.command()
@click.argument("base")
@click.argument("value")
@click.argument("texts", nargs=-1, required=True)
@click.option("--output", "-o", required=True, metavar="DIR", help="Where it is written; must not be there yet.")
@click.option("--most", default=10_000, show_default=True, metavar="N", help="Texts that are looked at, at most.")
@click.option("--column", default="text", show_default=True, metavar="NAME", help="The column that holds them.")
@click.option("--format", "form", default="auto", show_default=True, help="Format of the files, as in a recipe.")
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of text and CSV files.")
def bridge(
    base: str, value: str, texts: tuple[str, ...], output: str, most: int, column: str, form: str, encoding: str
) -> None:
    """Let VALUE be put beside a BASE of other tokens.

    BASE and VALUE are models; what only one of the two vocabularies holds is aligned by TEXTS (files, directories,
    globs). The bridge is one place and one weight for each token of the base, and belongs to this pair of tokenizers.
    """
    from engine.config import build_recipe
    from engine.models import free_place
    from engine.value_network import BridgeTexts, bridge_models

    folder = Path(str(free_place(output)))
    source = {"paths": list(texts), "format": form, "encoding": encoding, "roots": ["/"], "columns": {"text": column}}
    read = build_recipe(BridgeTexts, {"source": source, "most": most}, where="headrace bridge")
    made = bridge_models(base, value, read)
    made.save(folder)
    show_facts(f"Bridge: {folder}", {"coverage": str(made), "tokenizers": f"{made.base} (base), {made.value} (value)"})
