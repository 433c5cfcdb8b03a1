"""What a config may say: every key's legal values, checked before anything is loaded or compiled."""

import pathlib

from ml_collections import ConfigDict

from infalign_jax.core import optimal, procedures
from infalign_jax.core.calibration import QUANTILES
from infalign_jax.core.finite_table import MOST_ROLLOUTS
from infalign_jax.data.dataset import SOURCES
from infalign_jax.data.tokenize import ON_LONG
from infalign_jax.data.tokenizer import MODEL_TYPES
from infalign_jax.models import lora
from infalign_jax.stages import methods, order
from infalign_jax.stages.amortize import SOURCES as SOURCES_OF_U
from infalign_jax.stages.architecture import architecture, from_folder
from infalign_jax.stages.classifier import PREFIX
from infalign_jax.stages.prefix_scorer import TARGETS
from infalign_jax.stages.reward import TRUNCATED, python_reward
from infalign_jax.stages.rules import devices, flag, one_of, real, steps, text, tuple_of, whole

_TRAINING = {
    "steps": whole(1),
    "batch_size": whole(1),
    "learning_rate": real(0, open_low=True),
    "clip_norm": real(0, open_low=True),
}
RULES = {
    "seed": whole(0),
    "reward": text(1),
    "judge": text(1),
    "workdir": text(1),
    "data": {
        "name": one_of(*SOURCES),
        "path": text(),
        "cache_dir": text(),
        "subset": text(),
        "test_fraction": real(0, 1),
        "judge_fraction": real(0, 1),
        "group_column": text(),
        "chat_template": text(),
        "train_prompts": whole(0),
        "test_prompts": whole(0),
        "demonstrations_per_prompt": whole(1),
        "preferences_per_prompt": whole(1),
        "prompt_tokens": whole(2),
        "response_tokens": whole(2),
        "long_prompts": one_of(*ON_LONG),
    },
    "tokenizer": {"path": text(), "kind": one_of(*MODEL_TYPES), "vocab_size": whole(4)},
    "model": {
        "path": text(),
        "num_layers": whole(1),
        "embed_dim": whole(1),
        "num_heads": whole(1),
        "num_kv_heads": whole(1),
        "head_dim": whole(2),
        "mlp_dim": whole(1),
        "tied_embeddings": flag(),
        "dtype": one_of("float32", "bfloat16"),
        "param_dtype": one_of("float32", "bfloat16"),
        "remat": one_of("none", "dots", "layer"),
        "attention": one_of("xla", "splash"),
    },
    "lora": {
        "rank": whole(0),
        "alpha": real(0, open_low=True),
        "targets": tuple_of(one_of(*lora.TARGETS), least=1),
    },
    "mesh": {"data": devices(), "fsdp": devices(), "tensor": devices()},
    "sft": {**_TRAINING, "steps": whole(0)},
    "reward_model": _TRAINING,
    "sampling": {"at_once": whole(1), "temperature": real(0, open_low=True), "truncated": one_of(*TRUNCATED), "penalty": real(0)},
    "calibrate": {"rollouts": whole(1, MOST_ROLLOUTS), "prompts_per_call": whole(1), "tails": one_of(*QUANTILES), "source": one_of(*SOURCES_OF_U), "held_out": whole(1), "mismatch": one_of("warn", "refuse", "ignore")},
    "amortize": {"enabled": flag(), "levels": whole(8), **_TRAINING, "held_out": whole(3), "leave_out": flag()},
    "prefix_scorer": {"enabled": flag(), "target": one_of(*TARGETS), "rollouts": whole(1), **_TRAINING, "held_out": whole(1)},
    "align": {
        "methods": tuple_of(text(1), least=1),
        "seeds": tuple_of(whole(0), least=1),
        "at_once": whole(1),
        "steps": whole(1),
        "prompts_per_step": whole(1),
        "microbatches": whole(1),
        "rollouts": whole(2),
        "learning_rate": real(0, open_low=True),
        "decay": real(0, 1),
        "clip_norm": real(0, open_low=True),
        "target_kl": real(0, open_low=True),
        "kl_margin": real(0.5, 2),
        "kl_rate": real(0),
        "kl_warmup": whole(0),
        "save_every": whole(1),
        "show_every": whole(0),
        "keep": whole(1),
        "keep_best": whole(0),
    },
    "baselines": {
        "ppo_epochs": whole(1),
        "ppo_minibatches": whole(1),
        "ppo_clip": real(0, open_low=True),
        "ppo_decay": real(0, 1),
        "bonbon_sft": real(0, 1),
        "bond_forward": real(0, 1),
    },
    "evaluate": {
        "samples": whole(2),
        "prompts_per_call": whole(1),
        "best_of": tuple_of(whole(1)),
        "worst_of": tuple_of(whole(1)),
        "headline": text(1),
        "curve": tuple_of(real(0, 1.1, open_low=True)),
        "kl_tolerance": real(0, 1, open_low=True),
        "show": whole(0),
    },
    "log": {"tensorboard": flag(), "profile_steps": steps()},
}  # fmt: skip


def resolve(config, workdir, files=True):
    """A checked, locked copy of a config with its workdir in it; `files` says whether the paths it names must be here.

    Raises:
      ValueError: names the first key that is missing, unknown or out of range, its value, and what is legal.
    """
    config = ConfigDict(config.to_dict())
    config.workdir = str(workdir)
    _check_section(config.to_dict(), RULES, "")
    _check_names(config)
    _check_together(config)
    if files:
        _check_files(config)
    return config.lock()


def _check_section(values, rules, prefix):
    for key in sorted({*values, *rules}):
        name = f"config.{prefix}{key}"
        if key not in rules:
            raise ValueError(
                f"{name} is not a key of configs/base.py; {f'config.{prefix}'[:-1]} has {', '.join(sorted(rules))}"
            )
        if key not in values:
            raise ValueError(f"{name} is missing; start the recipe from configs/base.py")
        if isinstance(rules[key], dict):
            if not isinstance(values[key], dict):
                raise ValueError(
                    f"{name} is {values[key]!r}; it is a section with the keys {', '.join(sorted(rules[key]))}"
                )
            _check_section(values[key], rules[key], f"{prefix}{key}.")
        elif not rules[key][0](values[key]):
            raise ValueError(f"{name} is {values[key]!r}; it must be {rules[key][1]}")


def _check_files(config):
    """Paths that are not there, told before a workdir is made for them; those of buckets are told when they are read."""
    for section, key in (("data", "path"), ("data", "chat_template"), ("tokenizer", "path")):
        path = config[section][key]
        if path and "://" not in path and not pathlib.Path(path).exists():
            raise ValueError(f"config.{section}.{key} is {path!r}, which does not exist")


def _check_names(config):
    """Names that are looked up: rewards, methods, procedures."""
    for key, legal in (("reward", ("gold", "learned")), ("judge", ("gold", "learned", "none"))):
        if config[key].startswith(PREFIX):
            from_folder(config[key].removeprefix(PREFIX), f"config.{key}, without {PREFIX!r},")
        elif ":" in config[key]:
            _named(key, config[key], python_reward)
        elif config[key] not in legal:
            legal = ", ".join(map(repr, legal))
            raise ValueError(f"config.{key} is {config[key]!r}; legal are {legal}, 'hf:FOLDER' and 'module:function'")
    kl, folders = config.align.target_kl * config.align.kl_margin, {}
    table = config.calibrate.source == "table"
    samples = config.calibrate.rollouts if table else config.amortize.levels
    for method in config.align.methods:
        if methods.is_baseline(method):
            _named(
                "align.methods",
                method,
                lambda m: methods.check(m, config.align.rollouts, config.calibrate.rollouts),
            )
        else:
            _named(
                "align.methods",
                method,
                lambda m: optimal.resolve(m, kl=kl, calibration_samples=samples),
            )
        other = folders.setdefault(order.align_folder(method, 0), method)
        if other != method:
            raise ValueError(
                f"config.align.methods has {other!r} and {method!r}, whose results would share a folder; keep one"
            )
    _named("evaluate.headline", config.evaluate.headline, procedures.from_name)


def _named(key, name, parse):
    try:
        parse(name)
    except ValueError as error:
        baselines = f"; baselines are {', '.join(methods.legal())}" if key == "align.methods" else ""
        raise ValueError(f"config.{key} has {name!r}: {error}{baselines}") from error


def _check_together(config):
    """Keys that must fit each other."""
    architecture(config, config.tokenizer.vocab_size)
    if config.model.path and config.tokenizer.path:
        raise ValueError(
            f"config.tokenizer.path is {config.tokenizer.path!r}, and config.model.path brings a tokenizer of its own; "
            "leave one of them ''"
        )
    if config.sft.steps == 0 and not config.model.path:
        raise ValueError(
            "config.sft.steps is 0, and config.model.path names no model to take as it is; train at least 1"
        )
    if (free := [axis for axis, size in config.mesh.items() if size == -1])[1:]:
        raise ValueError(
            f"config.mesh.{free[0]} and config.mesh.{free[1]} are -1; only one axis can take all devices left"
        )
    if config.align.prompts_per_step % config.align.microbatches:
        raise ValueError(
            f"config.align.microbatches is {config.align.microbatches}; it must divide config.align.prompts_per_step "
            f"({config.align.prompts_per_step})"
        )
    if "ppo" in config.align.methods and config.align.prompts_per_step % config.baselines.ppo_minibatches:
        raise ValueError(
            f"config.baselines.ppo_minibatches is {config.baselines.ppo_minibatches}; it must divide "
            f"config.align.prompts_per_step ({config.align.prompts_per_step})"
        )
    offline = [m for m in config.align.methods if methods.module(m) == methods.OFFLINE]
    if config.align.keep_best and offline:
        raise ValueError(
            f"config.align.keep_best is {config.align.keep_best}, and {offline[0]!r} in config.align.methods draws no "
            "rollouts to rank its checkpoints by; set it to 0"
        )
    section = config.evaluate
    for key in ("best_of", "worst_of"):
        for n in section[key]:
            if n > section.samples:
                raise ValueError(
                    f"config.evaluate.{key} has {n}, but config.evaluate.samples draws only {section.samples} responses"
                )
    evaluated = [f"{key}({n})" for key in ("best_of", "worst_of") for n in section[key]]
    if procedures.from_name(section.headline).name not in ("standard", *evaluated):
        legal = ", ".join(map(repr, ("standard", *evaluated)))
        raise ValueError(
            f"config.evaluate.headline is {section.headline!r}; it must be among the procedures evaluated: {legal}"
        )
    if config.calibrate.source == "amortized":
        for key, legal in (("amortize.enabled", True), ("calibrate.tails", "exponential")):
            section, name = key.split(".")
            if config[section][name] != legal:
                raise ValueError(
                    f"config.calibrate.source is 'amortized', which needs config.{key} to be {legal!r}, not "
                    f"{config[section][name]!r}"
                )
    if config.sampling.truncated == "lowest":
        _check_lowest(config)


def _check_lowest(config):
    """Keys that want a reward of every response, where a cut one has a rank only."""
    if config.amortize.enabled:
        raise ValueError(
            "config.sampling.truncated is 'lowest', a reward no quantile head can learn (config.amortize.enabled is "
            "True); choose 'as_is' or 'penalty'"
        )
    words = "config.sampling.truncated is 'lowest' (lowest calibrated reward), and"
    if config.prefix_scorer.enabled and config.prefix_scorer.target == "reward":
        raise ValueError(
            f"{words} config.prefix_scorer.target is 'reward'; choose 'calibrated', or 'as_is' or 'penalty'"
        )
    if raw := [m for m in config.align.methods if not methods.by_rank(m)]:
        raise ValueError(
            f"{words} {raw[0]!r} in config.align.methods has no calibrated reward; choose 'as_is' or 'penalty'"
        )
