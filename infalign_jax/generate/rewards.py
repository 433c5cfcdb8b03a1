"""What `infalign generate` scores with: rewards of finished responses, and the scorer of unfinished ones."""

import functools

import jax
import numpy as np
from etils import epath

from infalign_jax.data import tokenizer as tokenizers
from infalign_jax.data.tokenize import SLOTS, encode_responses, encode_whole, round_up
from infalign_jax.models import config as model_config
from infalign_jax.models import heads, transformer
from infalign_jax.stages.classifier import PREFIX, classifier_reward
from infalign_jax.stages.policies import CARD
from infalign_jax.stages.reward import python_reward
from infalign_jax.training import checkpoints, workdir
from infalign_jax.training.calls import in_calls
from infalign_jax.training.mesh import make_mesh

_ROWS = 64  # texts in one call


def open_reward(spec):
    """The reward `f(prompts, completions)` of 'module:function', 'hf:FOLDER' or the folder of a reward model of ours.

    Raises:
      ValueError: none of these.
    """
    if spec.startswith(PREFIX):
        return classifier_reward(spec, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    if epath.Path(spec).is_dir():
        return learned_reward(spec)
    if ":" not in spec:
        raise ValueError(
            f"--reward is {spec!r}; it must be 'module:function', 'hf:FOLDER' or a workdir's reward_model folder"
        )
    return python_reward(spec)


def learned_reward(folder):
    """A reward model that stage `reward-model` trained, as a function of texts, which its own tokeniser reads.

    The same numbers as in the run that made it, except that nothing is cut: prompts and responses may be longer than its
    config's limits.
    """
    config, variables, tokenizer = open_head(folder, "--reward", add_scalar_head)
    apply = jax.jit(functools.partial(heads.reward, config))

    def reward(prompts, completions):
        encoded = encode_whole(tokenizer, prompts)
        slots = round_up(1 + max(map(len, tokenizer.encode_batch(completions))), SLOTS)
        tokens_NC, mask_NC = encode_responses(tokenizer, completions, slots)
        lengths_N = mask_NC.sum(1).astype(np.int32)

        def call(rows):
            prompt = encoded.tokens_NS[rows], encoded.lengths_N[rows]
            return np.asarray(apply(variables, *prompt, tokens_NC[rows, None], lengths_N[rows, None]))[:, 0]

        return in_calls(call, len(prompts), min(_ROWS, len(prompts)))

    return reward


def open_scorer(folder, policy, prompts):
    """What `sampling.blockwise` asks: the head of stage `prefix-scorer`, on tokens of the policy.

    Raises:
      ValueError: no scorer in the folder, or one that reads another tokeniser's tokens.
    """
    config, variables, tokenizer = open_head(folder, "--scorer", add_scalar_head)
    sizes = tokenizer.vocab_size, policy.tokenizer.vocab_size
    if sizes[0] != sizes[1] or tokenizer.encode_batch(prompts) != policy.tokenizer.encode_batch(prompts):
        raise ValueError(
            f"--scorer is {str(folder)!r}, which reads tokens of another tokeniser than the policy's; train one for it"
        )
    return functools.partial(jax.jit(functools.partial(heads.reward, config)), variables)


def add_scalar_head(config, variables):
    """A trunk with the head of a reward model or a prefix scorer, for its shapes."""
    return heads.add_head(config, variables, jax.random.key(0))


def open_head(folder, flag, add_head):
    """(config, variables, tokenizer) of a trunk with a head that some stage left in a folder of a workdir.

    Args:
      folder: `<workdir>/reward_model`, say; what the model is stands in `<workdir>/sft/model.json`.
      flag: for errors.
      add_head: `(config, trunk) -> variables`, for their shapes.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    folder = epath.Path(folder)
    reference = folder.parent / "sft"
    for path in (folder / "done.json", folder / "variables", reference / CARD):
        if not path.exists():
            raise ValueError(
                f"{flag} is {str(folder)!r}, and {path} does not exist; give a finished folder of a whole workdir"
            )
    card = workdir.read_json(reference / CARD)
    config = model_config.from_dict(card["config"])
    shapes = jax.eval_shape(lambda key: add_head(config, transformer.init(config, key)), jax.random.key(0))
    here = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    variables = checkpoints.load_variables(folder / "variables", checkpoints.abstract(shapes, here))
    return config, variables, tokenizers.load((reference / card["tokenizer"]).resolve())
