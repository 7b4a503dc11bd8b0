"""Models made from other models and published: converted, pruned to fewer layers, healed after that.

A pruned model is a smaller relative for experiments and never passes for a released size: its manifest says what it was
made from and how many layers it kept.

Left out: which layers stay (`engine.models.pruning`), how files are written anew (`engine.models.copying`,
`engine.models.gguf_files`), and the healing itself, which is a job. Called by `jobs.models`.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from engine.artifacts import Model, Parent, is_model, publish_model, read_model
from engine.errors import ArtifactError, HeadraceError, SourceError, StorageError
from engine.models.copying import copy_settings, copy_weights
from engine.models.gguf_files import GGUF_NEEDS, convert_gguf, errno_of, first_line
from engine.models.inventory import describe_model
from engine.models.loading import load_causal_lm
from engine.models.pruning import kept_layers, prune_layers
from engine.models.quiet import save_model
from engine.models.references import fingerprint, resolve
from engine.storage import is_local, names, writable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PROBE = 12
"""Token ids of the text on which a saved model has to agree with the one in memory."""


def free_place(output: str) -> UPath:
    """The location of an output that is not there yet. Raises `ArtifactError` if it is."""
    place = writable(output)
    if (is_local(place) and place.exists()) or names(place):
        raise ArtifactError(f"{place} exists already.", "Remove it or choose another name.")
    return place


def convert_model(reference: str, output: str, dtype: str | None = None) -> Model:
    """Publish any model, a path to a GGUF file included, as a directory of safetensors at `output`.

    `dtype` is float32, bfloat16 or float16; None leaves weights as they are stored (GGUF: bfloat16). Raises
    `SourceError` for a model that cannot be read or whose weights do not fit the type, `ArtifactError` if the output
    exists, `StorageError` if it cannot be written.
    """
    place = free_place(output)
    gguf = Path(os.path.expanduser(reference))
    with _made(reference, place) as folder:
        if reference.lower().endswith(".gguf"):
            if not gguf.is_file():
                raise SourceError(f"There is no file {reference}.", "Give the path of a GGUF file.")
            convert_gguf(gguf, folder, dtype=dtype or "bfloat16")
            with gguf.open("rb") as stream:
                held = hashlib.file_digest(stream, "sha256").hexdigest()[:16]
        else:
            source = resolve(reference)
            what = describe_model(source)
            _require_space(place, what.parameters * _BYTES[dtype] if dtype else what.bytes)
            copy_settings(source, folder)
            copy_weights(source, folder, dtype, reference)
            held = fingerprint(source)
        recipe = {"model": reference, "dtype": dtype, "made": f"converted from {reference}"}
        return _publish(folder, place, "models-convert", recipe, [Parent(uri=_origin(reference), fingerprint=held)])


def prune_model(reference: str, output: str, layers: int, *, reuse: bool = False) -> Model:
    """Publish a decoder with `layers` of its layers (`engine.models.pruning` says which) at `output`; unhealed.

    With `reuse` an output that an equal call has published is taken as it is. Raises `RecipeError` for a wrong number
    of layers, `SourceError` for a model without such layers or whose layers cannot change places, `ArtifactError` if
    the output exists, `StorageError` if it cannot be written.
    """
    source = resolve(reference)
    what = describe_model(source)
    held = fingerprint(source)
    recipe = {"model": reference, "layers": layers}
    if reuse and is_model(writable(output)):
        there = read_model(writable(output))
        if there.manifest.recipe_fingerprint == _hash(recipe) and there.manifest.inputs_fingerprint == held:
            return there
    place = free_place(output)
    _require_decoder(source, reference)
    if what.layers:
        kept_layers(what.layers, layers)  # a wrong number is told before the weights are loaded
    with _made(reference, place) as folder:
        _require_space(place, what.bytes)
        model = load_causal_lm(reference, _STORED.get(what.dtype, "float32"))
        kept = prune_layers(model, layers)
        copy_settings(source, folder)
        save_model(model, None, folder)
        _require_same(model, folder, reference)
        total = kept[-1] + 1
        noted = {**recipe, "made": f"pruned from {reference} ({layers} of {total} layers)", "kept": kept}
        counts = {"layers_kept": layers, "layers_of": total}
        parents = [Parent(uri=_origin(reference), fingerprint=held)]
        return _publish(folder, place, "models-prune", noted, parents, counts=counts, identity=recipe)


def publish_healed(pruned: Model, healed: UPath, recipe: Mapping[str, Any], output: str) -> Model:
    """Publish at `output` what fine-tuning by `recipe` has made of a pruned model, named as pruned and healed.

    Raises `ArtifactError` if nothing is published at `healed` or if the output exists.
    """
    place, model = free_place(output), read_model(healed)
    before, after = pruned.manifest, model.manifest
    with _made(str(healed), place) as folder:
        source = model.local()
        for file in after.files:
            (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file.name, folder / file.name)
        noted = {**before.recipe, "made": f"{before.recipe['made']}, then healed", "heal": dict(recipe)}
        parents = [*before.parents, Parent(uri=str(healed), fingerprint=model.fingerprint)]
        counts = {**before.counts, **after.counts}
        return _publish(folder, place, "models-prune", noted, parents, counts=counts, metrics=after.metrics)


@contextlib.contextmanager
def _made(reference: str, place: UPath) -> Iterator[Path]:
    """An empty directory beside the output, or on this machine for a store; whatever goes wrong is one sentence."""
    near = Path(str(place.parent)) if is_local(place) else None
    try:
        if near:
            near.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=near, prefix=f".{place.name}.", suffix=".partial", ignore_cleanup_errors=True
        ) as around:
            folder = Path(around) / "model"
            folder.mkdir()
            yield folder
    except HeadraceError:
        raise
    except ImportError as error:
        raise SourceError(f"{reference} cannot be converted ({error}).", GGUF_NEEDS) from error
    # A damaged file raises whatever its bytes lead to.
    except Exception as error:
        number = errno_of(error)
        if number is not None:
            raise StorageError(
                f"{place} cannot be written ({os.strerror(number)}).", "Free some space there or choose another place."
            ) from error
        raise SourceError(
            f"{reference} cannot be converted ({first_line(error)}).", "Get the model again: its files are damaged."
        ) from error


def _publish(
    folder: Path,
    place: UPath,
    job: str,
    recipe: dict[str, Any],
    parents: list[Parent],
    *,
    counts: Mapping[str, int] | None = None,
    metrics: Mapping[str, float] | None = None,
    identity: dict[str, Any] | None = None,
) -> Model:
    return publish_model(
        folder,
        place,
        job=job,
        recipe=recipe,
        recipe_fingerprint=_hash(identity or recipe),
        inputs_fingerprint=parents[0].fingerprint,
        seed=0,
        parents=parents,
        models={"base": parents[0].fingerprint},
        counts=counts,
        metrics=metrics,
    )


def _hash(recipe: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def _origin(reference: str) -> str:
    path = Path(os.path.expanduser(reference))
    return str(path.resolve()) if path.exists() else reference


def _require_space(place: UPath, needed: int) -> None:
    if not is_local(place):
        return
    free = shutil.disk_usage(str(place.parent)).free
    if free < needed:
        raise StorageError(
            f"{place} needs {needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free there.",
            "Free some space there or choose another place.",
        )


def _require_decoder(source: Path, reference: str) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise SourceError(
            f"The config.json of {reference} cannot be read ({first_line(error)}).", "Get the model again."
        ) from error
    decodes = type(config) in AutoModelForCausalLM._model_mapping
    encodes = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
    if not decodes or encodes or config.is_encoder_decoder:
        raise SourceError(
            f"{reference} is no decoder: its kind is {config.model_type!r}.",
            "Prune a decoder like Llama, Qwen2, Gemma 3 or GPT-2.",
        )


def _require_same(model: "PreTrainedModel", folder: Path, reference: str) -> None:
    """Load what was saved and compare it with what is in memory.

    Some families give a layer by its place what is not in its weights (a scale, a window, experts). A layer that has
    moved would be another one when it is loaded, and nobody would be told.
    """
    import torch

    moved = SourceError(
        f"The layers of {reference} cannot change places: what they do depends on where they stand.",
        "Prune a decoder like Llama, Qwen2, Gemma 3 or GPT-2.",
    )
    try:
        again = load_causal_lm(str(folder), str(model.dtype).removeprefix("torch."))
    except SourceError as error:
        raise moved from error
    ids_BT = torch.arange(_PROBE)[None] % model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        same = torch.allclose(
            model(ids_BT, use_cache=False).logits, again(ids_BT, use_cache=False).logits, 1e-3, 1e-3, equal_nan=True
        )
    if not same or _settings_of(model) != _settings_of(again):
        raise moved


def _settings_of(model: "PreTrainedModel") -> dict[str, Any]:
    """What modules inside the decoder know besides their weights: numbers, words, yes and no."""
    return {
        f"{name}.{key}": value
        for name, module in model.get_decoder().named_modules()
        if name
        for key, value in vars(module).items()
        if isinstance(value, int | float | str)
    }
