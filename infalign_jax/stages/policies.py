"""The trained policy: which of its variables train, where they lie, and what a finished folder says about itself."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from infalign_jax.models import hf, hf_config, hf_save, lora
from infalign_jax.models.sharding import logical_axes
from infalign_jax.stages.experiment import load_policy_variables, variable_shardings
from infalign_jax.training import checkpoints, workdir
from infalign_jax.training import mesh as meshes
from infalign_jax.training.seeds import key_for

CARD = "model.json"


def begin(experiment, reference, seed):
    """What stage `align` trains, at its start: all parameters of the reference, or adapters that do nothing yet.

    A policy is `{**reference, **trained}` in both cases. Pure: for jit and eval_shape.
    """
    config = experiment.config
    if not config.lora.rank:
        return jax.tree.map(jnp.copy, reference)  # buffers of its own: the train step gives its state's away
    key = key_for(config.seed, f"align/{seed}/lora")
    return lora.init(experiment.model, key, config.lora.rank, config.lora.targets)


def trained_shardings(experiment):
    """Where each of the variables of `begin` lies on the mesh."""
    if not experiment.config.lora.rank:
        return variable_shardings(experiment)
    abstract = _adapter_shapes(experiment)
    return meshes.param_shardings(experiment.mesh, abstract, logical_axes(abstract))


def load_trained(experiment, folder):
    """The trained variables that stage `align` left in `folder`, sharded over the mesh."""
    if not experiment.config.lora.rank:
        return load_policy_variables(experiment, folder)
    return checkpoints.load_variables(
        folder, checkpoints.abstract(_adapter_shapes(experiment), trained_shardings(experiment))
    )


def _adapter_shapes(experiment):
    return jax.eval_shape(lambda: begin(experiment, None, 0))


def interpolate(reference, trained, alpha):
    """The policy `reference + alpha * (policy - reference)`, parameter by parameter, for parameters or adapters."""
    alpha = np.float32(alpha)
    if "lora" in trained:
        return {**reference, "lora": _scale(trained["lora"], alpha)}
    return _mix(reference, trained, alpha)


_scale = jax.jit(lora.scale)


@jax.jit
def _mix(reference, trained, alpha):
    return jax.tree.map(lambda p, q: (p + alpha * (q - p)).astype(p.dtype), reference, trained)


def describe(experiment, folder):
    """Writes `model.json` beside the variables in `folder`: all that `infalign_jax.load_policy` needs to read them.

    Paths in the workdir are relative to `folder`, so that a workdir can be moved.
    """
    config = experiment.config
    given = config.tokenizer.path or config.model.path
    own = os.path.relpath(experiment.workdir / "tokenizer", folder)
    reference = os.path.relpath(experiment.workdir / "sft", folder)
    card = {
        "config": dataclasses.asdict(experiment.model.replace(attention="xla")),  # to be read on any device
        "tokenizer": os.path.abspath(given) if given else own,
        "lora": config.lora.to_dict() if config.lora.rank and reference != "." else None,
        "reference": reference,
        "from": os.path.abspath(config.model.path) if config.sft.steps == 0 else "",
    }
    workdir.write_json(folder / CARD, card)


def export(experiment, reference, trained, folder):
    """Writes the policy as a Hugging Face folder `hf`, and its adapters as a PEFT folder `adapter`, under `folder`.

    Only for models that came from a Hugging Face folder: the architecture of others has no name there; and adapters only
    where their base is a text model. All processes of a pod write; none holds the whole model.
    """
    source = experiment.config.model.path
    if not source:
        return
    merged = jax.jit(lora.merge, static_argnums=0)(experiment.model, {**reference, **trained})
    with workdir.on_disk(folder / "hf") as place:
        hf_save.save(place, experiment.model, merged, source)
    adapters = meshes.fetch(trained) if "lora" in trained else {}
    values = hf.read_config(source)
    sees_images = (
        hf_config.text_config(values) is not values
    )  # its layers have other names in PEFT than the text model's
    if adapters and jax.process_index() == 0 and not (sees_images and experiment.config.sft.steps == 0):
        base = source if experiment.config.sft.steps == 0 else experiment.workdir / "sft" / "hf"
        with workdir.on_disk(folder / "adapter") as place:
            lora.save(place, experiment.model, adapters["lora"], os.path.abspath(base))
