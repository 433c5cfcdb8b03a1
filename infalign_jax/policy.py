"""`load_policy(folder)`: a policy for notebooks and scripts, over the same pure functions as the stages."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from infalign_jax.core.masking import masked_sum
from infalign_jax.data import tokenizer as tokenizers
from infalign_jax.data.tokenize import decode_completions, encode_responses, encode_whole, round_up
from infalign_jax.json_object import read_object
from infalign_jax.models import config as model_config
from infalign_jax.models import hf, lora, transformer
from infalign_jax.sampling import retire
from infalign_jax.sampling import stop as stops
from infalign_jax.sampling.log_probs import completion_log_probs
from infalign_jax.stages.policies import CARD
from infalign_jax.training import checkpoints, workdir
from infalign_jax.training.seeds import key_for

SLOTS = 32  # prompts and responses are padded to a multiple of this, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Policy:
    """A language model ready to use.

    config: `TransformerConfig`.
    variables: {'params': ...}, and {'lora': ...} if it has adapters.
    tokenizer: see `data.tokenizer.Tokenizer`.
    end_ids: tokens that end a response.
    """

    config: model_config.TransformerConfig
    variables: Any
    tokenizer: Any
    end_ids: tuple

    @property
    def params(self):
        """The parameters, adapters merged into them."""
        return lora.merge(self.config, self.variables)["params"]

    def logits(self, tokens_BT, lengths_B=None):
        """Logits, float32 `[B, T, V]`: those at slot t predict token t + 1.

        tokens_BT: ids, BOS included if the model wants one. lengths_B: real tokens of each row, the rest on the LEFT is
        padding; by default every token is real.
        """
        tokens_BT = jnp.asarray(tokens_BT, jnp.int32)
        lengths_B = jnp.full(tokens_BT.shape[:1], tokens_BT.shape[1]) if lengths_B is None else jnp.asarray(lengths_B)
        return _logits(self.config, self.variables, tokens_BT, lengths_B)

    def log_probs(self, prompts, completions):
        """log π(completion, EOS | prompt), float32 `[n]` nats, at temperature 1: one completion for each prompt."""
        if len(prompts) != len(completions):
            raise ValueError(f"{len(prompts)} prompts and {len(completions)} completions; the counts must be equal")
        prompt = self._encode(prompts)
        slots = round_up(max(map(len, self.tokenizer.encode_batch(list(completions)))) + 1, SLOTS)
        tokens_NC, mask_NC = encode_responses(self.tokenizer, completions, slots)
        batch = prompt.tokens_NS, prompt.lengths_N, tokens_NC[:, None], mask_NC
        return np.asarray(_log_probs(self.config, self.variables, *map(jnp.asarray, batch)))

    def generate(self, prompts, n=1, *, max_tokens=128, seed=0, stop=(), **options):
        """`n` responses to each prompt: a list of n texts for each.

        The tokens of a response depend on the seed, the place of its prompt and its number alone.

        Args:
          prompts: texts. For a chat model, what its template makes of the messages (`data.chat`).
          n: responses a prompt.
          max_tokens: at which a response is cut.
          seed: int.
          stop: a text, or several, at which a response ends: what is returned is the text before it, as serving
            programs do it (`transformers` itself leaves the stop string in the text). It is looked for in the text, so
            it does not matter how the tokeniser splits it.
          **options: temperature (0 is greedy), top_k, top_p, min_p.

        Raises:
          ValueError: an empty prompt, an empty stop string, or an option out of range.
        """
        return self.rollouts(prompts, n, max_tokens=max_tokens, seed=seed, stop=stop, **options)[0]

    def rollouts(self, prompts, n=1, *, max_tokens=128, seed=0, stop=(), **options):
        """As `generate`, with whether each response ended by itself or at a stop string: (texts, ended bool `[B, n]`)."""
        strings, encoded = stops.check(stop), self._encode(prompts)
        drawn = retire.sample(
            self.config, self.variables, jnp.asarray(encoded.tokens_NS), jnp.asarray(encoded.lengths_N),
            jnp.arange(len(prompts)), key_for(seed, "generate"), rollouts=n, max_tokens=max_tokens,
            eos_ids=self.end_ids, pad_id=self.tokenizer.pad_id, stop=stops.stopper(self.tokenizer.decode, strings),
            **options,
        )  # fmt: skip
        tokens, mask = (x.reshape(-1, max_tokens) for x in (drawn.tokens_BRC, drawn.mask_BRC))
        texts = [stops.cut(text, strings) for text in decode_completions(self.tokenizer, tokens, mask)]
        return [texts[i : i + n] for i in range(0, len(texts), n)], drawn.ended_BR

    def _encode(self, prompts):
        if isinstance(prompts, str):
            raise ValueError("prompts is one string; give a list of prompts")
        if not len(prompts):
            raise ValueError("prompts is empty; give at least one")
        return encode_whole(self.tokenizer, prompts, SLOTS)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, variables, tokens_BT, lengths_B):
    return transformer.unembed(config, variables, transformer.forward(config, variables, tokens_BT, lengths_B))


@functools.partial(jax.jit, static_argnums=0)
def _log_probs(config, variables, prompt_tokens_BS, prompt_lengths_B, tokens_B1C, mask_BC):
    log_probs_B1C = completion_log_probs(config, variables, prompt_tokens_BS, prompt_lengths_B, tokens_B1C)
    return masked_sum(log_probs_B1C[:, 0], mask_BC)


def load_policy(folder, **changes):
    """The `Policy` in a folder.

    Args:
      folder: `<workdir>/sft`, `<workdir>/align/METHOD/seed_N`, a Hugging Face folder of a model, or a PEFT folder whose
        base is one.
      **changes: fields of the model's config, e.g. dtype='bfloat16', param_dtype='bfloat16'.

    Raises:
      ValueError: the folder holds none of these, or one that is damaged or not supported; names it.
    """
    folder = epath.Path(folder).expanduser()
    if (folder / CARD).is_file():
        card = workdir.read_json(folder / CARD)
        config = model_config.from_dict({**card["config"], **changes})
        where = (folder / card["tokenizer"]).resolve()  # an absolute path stands for itself
        variables = _read_variables(folder, config)
    elif (folder / lora.CONFIG_FILE).is_file():
        base = read_object(folder / lora.CONFIG_FILE).get("base_model_name_or_path")
        if not base or not (epath.Path(base) / "config.json").is_file():
            raise ValueError(
                f"{folder / lora.CONFIG_FILE} has base_model_name_or_path = {base!r}, which is no Hugging Face folder here"
            )
        where = epath.Path(base)
        config, base = hf.load(where, **changes)
        config, adapters = lora.load(folder, config)
        variables = {**base, **adapters}
    elif (folder / "config.json").is_file() and "model_type" in read_object(folder / "config.json"):
        where, (config, variables) = folder, hf.load(folder, **changes)
    else:
        raise ValueError(
            f"{folder} holds no policy; give a workdir's sft or align/METHOD/seed_N folder, or a Hugging Face one"
        )
    tokenizer = tokenizers.load(where)
    return Policy(config, variables, tokenizer, hf.end_ids(where, tokenizer.eos_id))


def _read_variables(folder, config):
    """The variables of one of our folders; adapters bring the parameters of their reference."""
    card, reference = workdir.read_json(folder / CARD), None
    if card["from"] and card["reference"] == ".":  # stage sft took a model as it came
        return hf.load(card["from"], dtype=config.dtype, param_dtype=config.param_dtype)[1]
    if card["lora"]:
        rank, targets = card["lora"]["rank"], card["lora"]["targets"]
        shapes = jax.eval_shape(lambda key: lora.init(config, key, rank, targets), jax.random.key(0))
        reference = _read_variables((folder / card["reference"]).resolve(), config)
    else:
        shapes = jax.eval_shape(lambda key: transformer.init(config, key), jax.random.key(0))
    here = jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), shapes)
    trained = checkpoints.load_variables(folder / "variables", checkpoints.abstract(shapes, here))
    return {**(reference or {}), **trained}
