"""Stage `sft`: the reference policy, by next-token training on demonstrations."""

import functools
import time

import jax.numpy as jnp
from absl import logging

from infalign_jax.core.masking import masked_mean
from infalign_jax.models import transformer
from infalign_jax.sampling.log_probs import completion_log_probs
from infalign_jax.stages.experiment import encode_examples, encode_split, load_base, open_experiment, variable_shardings
from infalign_jax.stages.policies import describe, export
from infalign_jax.training import workdir
from infalign_jax.training.seeds import key_for
from infalign_jax.training.supervised import fit, make_supervised_step


def response_loss(model, variables, batch):
    """Mean negative log-likelihood of the response tokens, in nats per token.

    Args:
      model: `TransformerConfig`.
      variables: of the policy.
      batch: prompt_tokens_BS (left-padded), prompt_lengths_B, response_tokens_BC (right-padded), mask_BC.

    Returns:
      The scalar loss and metrics.
    """
    targets_B1C = batch["response_tokens"][:, None]
    prompt = batch["prompt_tokens"], batch["prompt_lengths"]
    log_probs_B1C = completion_log_probs(model, variables, *prompt, targets_B1C, trained=True)
    loss = -masked_mean(log_probs_B1C[:, 0], batch["mask"])
    return loss, {"perplexity": jnp.exp(loss), "tokens": jnp.sum(batch["mask"])}


def make_step(model, optimizer):
    """The jitted, donated step `(state, batch) -> (state, metrics)` of this stage."""
    return make_supervised_step(functools.partial(response_loss, model), optimizer)


def run(config):
    """Trains the reference policy of a config; skips what is done. Returns the stage's numbers."""
    started = time.monotonic()
    experiment = open_experiment(config)
    folder, demonstrations = experiment.workdir / "sft", experiment.dataset.demonstrations
    if (result := workdir.done(folder)) is not None:
        return result
    if config.model.path:
        logging.warning(
            "model %s: %s; the sizes in config.model are not read", config.model.path, _words(experiment.model)
        )
    if config.sft.steps == 0:
        encode_split(experiment, "train"), encode_split(experiment, "test")
        describe(experiment, folder)
        return workdir.finish(folder, {"model": config.model.path, "steps": 0}, started)
    if not demonstrations:
        raise ValueError(f"data source {config.data.name!r} has no demonstrations; stage sft needs some")
    encoded = encode_examples(
        experiment, [row.prompt for row in demonstrations], [row.response for row in demonstrations]
    )
    if config.data.long_prompts == "error":  # said now, not when a later stage meets the prompt
        encode_split(experiment, "train"), encode_split(experiment, "test")
    arrays = {
        "prompt_tokens": encoded.prompt_tokens_NS,
        "prompt_lengths": encoded.prompt_lengths_N,
        "response_tokens": encoded.response_tokens_NC,
        "mask": encoded.mask_NC,
    }
    ended_N = ((encoded.response_tokens_NC == experiment.tokenizer.eos_id) & (encoded.mask_NC > 0)).any(1)
    variables, last = fit(
        functools.partial(make_step, experiment.model),
        lambda *start: start[0] if start else transformer.init(experiment.model, key_for(config.seed, "sft/init")),
        variable_shardings(experiment),
        arrays,
        start=(load_base(experiment),) if config.model.path else (),
        mesh=experiment.mesh,
        section=config.sft,
        seed=config.seed,
        name="sft",
        folder=folder,
        shown=("loss", "perplexity"),
        log=config.log,
    )
    describe(experiment, folder)
    export(experiment, variables, {}, folder)
    return workdir.finish(folder, {"examples": len(ended_N), "truncated": float(1 - ended_N.mean()), **last}, started)


def _words(model):
    return f"{model.num_layers} layers, width {model.embed_dim}, {model.vocab_size} pieces"
