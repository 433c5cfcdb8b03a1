"""Reward models of Hugging Face `*ForSequenceClassification` folders, as functions of texts.

Text stands between the policy and such a model: it has its own tokeniser, and its own chat template where the folder
holds one.
"""

import functools

import jax

from infalign_jax.data import chat
from infalign_jax.data import tokenizer as tokenizers
from infalign_jax.data.tokenize import encode_whole
from infalign_jax.models import heads, hf
from infalign_jax.models.sharding import logical_axes
from infalign_jax.stages.architecture import from_folder
from infalign_jax.training import mesh as meshes
from infalign_jax.training.calls import in_calls

PREFIX = "hf:"
_ROWS = 64  # texts in one call, whose hidden states lie in memory together


def classifier_reward(spec, mesh, *, dialogues=None, **how):
    """The reward `f(prompts, completions) -> float32 [n]`: the score of the one label at a text's last token.

    Args:
      spec: 'hf:FOLDER'.
      mesh: the device mesh over which its parameters and each call's texts are laid.
      dialogues: {prompt text: [{role, content}, ...]}; of other prompts the plain turns (`Human:`, `Assistant:`) are
        read, and one without them is a user's message. Matters only where the folder has a chat template.
      **how: fields of the model's config, such as dtype and param_dtype.

    Raises:
      ValueError: no such folder, a model or a template that is not supported, more than one label.
    """
    folder, dialogues = spec.removeprefix(PREFIX), dialogues or {}
    model = from_folder(folder, f"reward {spec!r}", **how, tied_embeddings=True)  # a classifier has no output head
    tokenizer, template = tokenizers.load(folder), chat.find_template(folder)
    shapes = jax.eval_shape(functools.partial(heads.init, model), jax.random.key(0))
    shardings = meshes.param_shardings(mesh, shapes, logical_axes(shapes))
    model, variables = hf.load(folder, reward_head=True, shardings=shardings, **how, tied_embeddings=True)
    score = jax.jit(functools.partial(heads.score, model))

    def text(prompt, completion):
        if template is None:
            return prompt + completion
        messages = [*(dialogues.get(prompt) or chat.messages_of(prompt)), chat.answer(completion)]
        try:
            return chat.apply_chat_template(template, messages, add_generation_prompt=False)
        except ValueError as error:
            raise ValueError(f"reward {spec!r}, prompt {prompt[:80]!r}: {error}") from error

    def reward(prompts, completions):
        rows = [text(*pair) for pair in zip(prompts, completions, strict=True)]
        encoded = encode_whole(tokenizer, rows)

        def call(index):
            batch = meshes.put_batch(mesh, (encoded.tokens_NS[index], encoded.lengths_N[index]))
            return meshes.fetch(score(variables, *batch))

        return in_calls(call, len(rows), min(_ROWS, len(rows)))

    reward.on_mesh = True
    return reward
