"""What every stage starts from: the data, the tokeniser, the model and the mesh of one config."""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from infalign_jax.data import dataset as datasets
from infalign_jax.data import tokenizer as tokenizers
from infalign_jax.data.tokenize import encode_pairs, encode_prompts
from infalign_jax.models import config as model_config
from infalign_jax.models import hf, transformer
from infalign_jax.models.sharding import logical_axes
from infalign_jax.sampling import retire, sampler
from infalign_jax.stages.architecture import architecture, check_weights
from infalign_jax.stages.classifier import PREFIX
from infalign_jax.stages.groups import in_groups
from infalign_jax.training import checkpoints
from infalign_jax.training import mesh as meshes
from infalign_jax.training import workdir as workdirs
from infalign_jax.training.distributed import many
from infalign_jax.training.seeds import key_for


class Experiment(NamedTuple):
    """The inputs of every stage, made by `open_experiment`."""

    config: Any
    workdir: epath.Path
    dataset: datasets.Dataset
    tokenizer: Any
    model: model_config.TransformerConfig
    mesh: jax.sharding.Mesh


class Prompts(NamedTuple):
    """Encoded prompts of a split."""

    texts: list
    groups: list
    tokens_PS: np.ndarray
    lengths_P: np.ndarray
    ids_P: np.ndarray  # position in the dataset: what the random bits of a rollout depend on


def open_experiment(config):
    """Loads the data, loads or trains the tokeniser, and builds the model config and the mesh.

    Args:
      config: a resolved ConfigDict with `workdir`.

    Raises:
      ValueError: anything in the config or data that cannot work, named, before any compile.
    """
    workdir, mesh = epath.Path(config.workdir), meshes.make_mesh(config.mesh)
    if config.sampling.at_once > 1 < mesh.size:
        raise ValueError(
            f"config.sampling.at_once is {config.sampling.at_once}; it must be 1 where, as here, {mesh.size} devices share "
            "the prompts of a call already"
        )
    if config.model.path:
        check_weights(config.model.path, "config.model.path")
    for key in ("reward", "judge"):
        if config[key].startswith(PREFIX):
            check_weights(config[key].removeprefix(PREFIX), f"config.{key}", reward_head=True)
    options = {name: config.data[name] for name in datasets.options_of(config.data.name)}
    dataset = datasets.load(config.data.name, path=config.data.path, seed=config.seed, **options)
    _check_data(config, dataset)
    _check_unchanged(workdir / "data.json", dataset)
    tokenizer = _open_tokenizer(config, workdir / "tokenizer", dataset)
    model = architecture(config, tokenizer.vocab_size)
    if model.attention == "splash":
        from infalign_jax.models import splash

        splash.check(mesh.devices.flat[0].platform)
    if tokenizer.vocab_size > model.vocab_size:
        raise ValueError(
            f"config.model.path is {config.model.path!r}: its tokenizer has {tokenizer.vocab_size} pieces, its model only "
            f"{model.vocab_size}"
        )
    return Experiment(config, workdir, dataset, tokenizer, model, mesh)


def _check_data(config, dataset):
    """Raises ValueError if the data lacks what some stage will need: said before the first one, not after hours."""
    learned = [key for key in ("reward", "judge") if config[key] == "learned"]
    needs = {
        "demonstrations (stage sft)": config.sft.steps == 0 or dataset.demonstrations,
        "training prompts (stages calibrate and align)": dataset.train_prompts,
        "held-out prompts (stage evaluate)": dataset.test_prompts,
        "preference pairs (config.reward is 'learned')": "reward" not in learned or dataset.preferences,
        "preference pairs for a judge (config.judge is 'learned')": "judge" not in learned or dataset.judge_preferences,
    }
    for what, rows in needs.items():
        if not rows:
            raise ValueError(f"data source {config.data.name!r} (config.data.path {config.data.path!r}) has no {what}")
    for key in ("reward", "judge"):
        if config[key] == "gold" and dataset.judge is None:
            other = "'learned' or 'module:function'" + (" or 'none'" if key == "judge" else "")
            raise ValueError(
                f"config.{key} is 'gold', and data source {config.data.name!r} has no gold reward; choose {other}"
            )


def _check_unchanged(path, dataset):
    """Raises ValueError if a workdir's data are not those its first stage saw: its results would not belong together."""
    digest = hashlib.sha256()
    for text in (*dataset.texts(), *(prompt.text for prompt in dataset.test_prompts)):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    found = {"sha256": digest.hexdigest()}
    if not workdirs.has(path):
        workdirs.write_json(path, found)
    elif workdirs.read_json(path) != found:
        raise ValueError(
            f"the data have changed since workdir {path.parent} was made; restore them, or choose another --workdir"
        )


def _open_tokenizer(config, folder, dataset):
    section = config.tokenizer
    if path := section.path or config.model.path:
        return tokenizers.load(path)
    if not workdirs.has(folder / tokenizers.MODEL_FILE):
        trained = tokenizers.train_sentencepiece(
            dataset.texts(), model_type=section.kind, vocab_size=section.vocab_size
        )
        workdirs.write_bytes(folder / tokenizers.MODEL_FILE, trained.model_bytes)
    return tokenizers.load(folder)


def encode_split(experiment, split):
    """The `Prompts` of 'train' or 'test'. Raises ValueError if the split is empty or a prompt is too long."""
    data = experiment.config.data
    rows = experiment.dataset.train_prompts if split == "train" else experiment.dataset.test_prompts
    if not rows:
        raise ValueError(f"data source {data.name!r} has no {split} prompts; this stage needs at least one")
    encoded = encode_prompts(
        experiment.tokenizer, [row.text for row in rows], data.prompt_tokens, on_long=data.long_prompts
    )
    rows = [rows[i] for i in encoded.kept_N]
    ids = encoded.kept_N + (0 if split == "train" else 1_000_000_000)
    return Prompts([r.text for r in rows], [r.group for r in rows], encoded.tokens_NS, encoded.lengths_N, ids)


def encode_examples(experiment, prompts, responses):
    """Pairs of texts as the `EncodedPairs` of this config's limits."""
    data = experiment.config.data
    return encode_pairs(
        experiment.tokenizer, prompts, responses, data.prompt_tokens, data.response_tokens, on_long=data.long_prompts
    )


def variable_shardings(experiment):
    """Where each parameter of the policy lies on the mesh."""
    abstract = jax.eval_shape(lambda key: transformer.init(experiment.model, key), jax.random.key(0))
    return meshes.param_shardings(experiment.mesh, abstract, logical_axes(abstract))


def load_policy_variables(experiment, folder):
    """The policy parameters a stage left in `folder`, sharded over the mesh."""
    abstract = jax.eval_shape(lambda key: transformer.init(experiment.model, key), jax.random.key(0))
    return checkpoints.load_variables(folder, checkpoints.abstract(abstract, variable_shardings(experiment)))


def load_base(experiment):
    """The parameters in `config.model.path`, each process reading only its own shards of them."""
    section, shardings = experiment.config.model, variable_shardings(experiment)
    how = {name: section[name] for name in model_config.HOW}
    return hf.load(section.path, shardings=shardings, **how)[1]


def load_reference(experiment):
    """The parameters of the reference policy: those stage `sft` trained, or its model as it came."""
    if experiment.config.sft.steps == 0:
        return load_base(experiment)
    return load_policy_variables(experiment, experiment.workdir / "sft" / "variables")


def lets_go(experiment):
    """Whether `draw` lets go of rollouts that have ended, and so waits for the others: not for a few tokens.

    Nor where parameters are split over `fsdp`, which the one compiled loop lays out for decoding first, or devices over
    processes.
    """
    here = experiment.mesh.shape["fsdp"] == 1 and not many()
    return here and experiment.config.data.response_tokens > retire.STRETCH


def draw(experiment, variables, prompts, index, *, rollouts, purpose, step=0):
    """Rollouts of a policy for the prompts `index`: random bits depend on (seed, purpose, step, prompt, rollout) alone.

    Returns:
      `Rollouts`, leading axis `len(index)`, split over the mesh by prompt.
    """
    config, mesh = experiment.config, experiment.mesh
    retiring, at_once = lets_go(experiment), config.sampling.at_once

    def draw_group(*arrays):
        return (retire if retiring else sampler).sample(
            experiment.model,
            variables,
            *meshes.put_batch(mesh, arrays),
            key_for(config.seed, purpose, step),
            rollouts=rollouts,
            max_tokens=config.data.response_tokens,
            temperature=config.sampling.temperature,
            eos_ids=hf.end_ids(config.model.path, experiment.tokenizer.eos_id),
            pad_id=experiment.tokenizer.pad_id,
        )

    rows = prompts.tokens_PS[index], prompts.lengths_P[index], prompts.ids_P[index].astype(np.int32)
    drawn = in_groups(draw_group, at_once, *rows)
    return meshes.put_batch(mesh, drawn) if retiring or at_once > 1 else drawn
