"""`infalign generate`: responses of a policy to prompts from a file, chosen by an inference-time procedure, as JSON lines."""

import json
import sys

import numpy as np

from infalign_jax import flags
from infalign_jax.data.rows import read_rows

PAGE = """infalign generate --policy FOLDER --reward REWARD [--prompts FILE] [flags]

  Draws responses to each prompt, scores them, and writes one JSON object a prompt: the response that the procedure
  chooses, its reward, and all candidates with their rewards.

  --policy FOLDER          a workdir's sft or align/METHOD/seed_N folder, a Hugging Face folder, or a PEFT one
  --reward REWARD          module:function, called with (prompts, completions), or hf:FOLDER, a sequence classifier
  --prompts FILE           a .jsonl file whose rows have a 'prompt', or a text file with a prompt a line;
                           - (the default) reads lines of text from standard input
  --procedure NAME         standard (the default), best_of(N), worst_of(N)
  --reference FOLDER       a policy whose responses calibrate the rewards: u, the fraction of them that a response beats
  --rollouts K             reference responses a prompt (64)
  --max_tokens N           at which a response is cut (128)
  --temperature T          of policy and reference; 0 is greedy (1.0)
  --batch B                prompts sampled at once (8)
  --seed S                 same seed, same responses (0)
  --out FILE               where to write; - (the default) is standard output
"""
_FLAGS = {  # name -> (default, how its text is read)
    "policy": (None, str), "reward": (None, str), "prompts": ("-", str), "procedure": ("standard", str),
    "reference": ("", str), "rollouts": (64, int), "max_tokens": (128, int), "temperature": (1.0, float),
    "batch": (8, int), "seed": (0, int), "out": ("-", str),
}  # fmt: skip


def main(words):
    """The command: reads the flags, then writes an object for each prompt as soon as its batch is done."""
    if {"--help", "-h"} & set(words):
        return print(PAGE, end="")
    options = parse(words)
    prompts = read_prompts(options["prompts"])
    if options["out"] == "-":
        return _write(sys.stdout, prompts, options)
    with open(options["out"], "w", encoding="utf-8") as file:
        return _write(file, prompts, options)


def parse(words):
    """{flag: value} of the command's words. Raises ValueError naming the flag that is unknown, missing or out of range."""
    options = flags.parse("generate", words, _FLAGS)
    for name in ("rollouts", "max_tokens", "batch"):
        if options[name] < 1:
            raise ValueError(f"--{name} is {options[name]}; it must be at least 1")
    return options


def read_prompts(path):
    """The prompts of a `.jsonl` file (its rows' 'prompt'), of a text file (its lines) or of standard input ('-').

    Raises:
      ValueError: no such file, a row without a string 'prompt', or no prompt at all.
    """
    if path.endswith((".jsonl", ".jsonl.gz")):
        prompts = []
        for where, row in read_rows(path):
            if not isinstance(row.get("prompt"), str):
                raise ValueError(f"{where}: the row has no 'prompt' that is a string")
            prompts.append(row["prompt"])
    else:
        try:
            with sys.stdin if path == "-" else open(path, encoding="utf-8") as file:
                prompts = [line.rstrip("\n") for line in file]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts is {path!r}, which cannot be read: {error}") from error
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise ValueError(f"--prompts is {path!r}, which holds no prompt")
    return prompts


def _write(file, prompts, options):
    from infalign_jax.policy import load_policy

    kind, n = selection(options["procedure"])
    reward = open_reward(options["reward"])
    policy = load_policy(options["policy"])
    reference = load_policy(options["reference"]) if options["reference"] else None
    for first in range(0, len(prompts), options["batch"]):
        batch = prompts[first : first + options["batch"]]
        filled = (batch * options["batch"])[: options["batch"]] if len(prompts) > len(batch) else batch  # one shape
        for row in responses(policy, reward, filled, kind, n, reference=reference, first=first, **_sampling(options))[
            : len(batch)
        ]:
            print(json.dumps(row, ensure_ascii=False), file=file, flush=True)


def _sampling(options):
    return {name: options[name] for name in ("rollouts", "max_tokens", "temperature", "seed")}


def selection(name):
    """('standard' | 'best_of' | 'worst_of', n) of a procedure's name. Raises ValueError for any other."""
    from infalign_jax.core import procedures

    kind, _, n = procedures.from_name(name).name.partition("(")
    if kind not in ("standard", "best_of", "worst_of"):
        raise ValueError(f"--procedure is {name!r}; generate knows standard, best_of(N) and worst_of(N)")
    return kind, int(n.rstrip(")") or 1)


def open_reward(spec):
    """The reward `f(prompts, completions)` of 'module:function' or 'hf:FOLDER'."""
    import jax

    from infalign_jax.stages.classifier import PREFIX, classifier_reward
    from infalign_jax.stages.reward import python_reward
    from infalign_jax.training.mesh import make_mesh

    if spec.startswith(PREFIX):
        return classifier_reward(spec, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    if ":" not in spec:
        raise ValueError(f"--reward is {spec!r}; it must be 'module:function' or 'hf:FOLDER'")
    return python_reward(spec)


def responses(policy, reward, prompts, kind, n, *, reference=None, rollouts, max_tokens, temperature, seed, first=0):
    """For each prompt what the procedure chooses among n responses, and all of them.

    Args:
      policy: `Policy`.
      reward: `f(prompts, completions)`.
      prompts: texts.
      kind, n: as `selection` gives them.
      reference: `Policy` whose `rollouts` responses to each prompt calibrate the rewards; None leaves `calibrated` null.
      first: the place of the first prompt among all; with the seed it fixes the random numbers.

    Returns:
      A dict for each prompt: prompt, completion, reward, calibrated, candidates (each completion, reward, calibrated,
      ended).
    """
    from infalign_jax.core.calibration import calibrate

    rewards_Bn, texts, ended_Bn = _scored(policy, reward, prompts, n, max_tokens, temperature, [seed, first])
    u_Bn = np.full(rewards_Bn.shape, None)
    if reference is not None:
        table_BK, _, _ = _scored(reference, reward, prompts, rollouts, max_tokens, temperature, [seed, first, 1])
        u_Bn = np.asarray(calibrate(rewards_Bn, table_BK), np.float64)
    rows = []
    for b, prompt in enumerate(prompts):
        pick = {"standard": 0, "best_of": rewards_Bn[b].argmax(), "worst_of": rewards_Bn[b].argmin()}[kind]
        keys = ("completion", "reward", "calibrated", "ended")
        columns = zip(texts[b], rewards_Bn[b].tolist(), u_Bn[b].tolist(), ended_Bn[b].tolist(), strict=True)
        candidates = [dict(zip(keys, values, strict=True)) for values in columns]
        rows.append({"prompt": prompt, **candidates[pick], "candidates": candidates})
    return rows


def _scored(policy, reward, prompts, n, max_tokens, temperature, numbers):
    """(rewards [B, n], texts, ended [B, n]) of n responses to each prompt; the numbers fix the random bits."""
    from infalign_jax.stages.reward import score

    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 1)
    texts, ended_Bn = policy.rollouts(prompts, n, max_tokens=max_tokens, temperature=temperature, seed=seed)
    flat = [prompt for prompt in prompts for _ in range(n)], [text for row in texts for text in row]
    rewards = score(reward, *flat, ended_Bn.reshape(-1), truncated="as_is", penalty=0.0, where="generate")
    return rewards.reshape(len(prompts), n), texts, ended_Bn
