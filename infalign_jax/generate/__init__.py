"""`infalign generate`: responses of a policy to prompts from a file, chosen by an inference-time procedure, as JSON lines."""

import json
import sys

from infalign_jax import flags
from infalign_jax.data.rows import read_rows

PAGE = """infalign generate --policy FOLDER [--reward REWARD] [--prompts FILE] [flags]

  Draws responses to each prompt, scores them, and writes one JSON object a prompt: the response that the procedure
  chooses, its reward, and all candidates with their rewards.

  --policy FOLDER          a workdir's sft or align/METHOD/seed_N folder, a Hugging Face folder, or a PEFT one
  --reward REWARD          module:function, called with (prompts, completions); hf:FOLDER, a sequence classifier; or
                           a workdir's reward_model or judge folder, whatever its tokeniser; without it rewards are
                           null, and nothing can be chosen or calibrated by them
  --prompts FILE           a .jsonl file whose rows have a 'prompt', or a text file with a prompt a line;
                           - (the default) reads lines of text from standard input
  --procedure NAME         standard (the default), best_of(N), worst_of(N), or "blockwise(K, M)": of K continuations
                           of M tokens the one that the scorer likes best, again and again
  --scorer FOLDER          a workdir's prefix_scorer folder, with the policy's tokeniser: what blockwise asks
  --table FOLDER           a workdir's calibrate folder, for calibrated rewards u, the fraction of reference responses
                           that a response beats: of prompts that are in it by their stored rewards
  --reference FOLDER       a policy whose responses calibrate the rewards of all other prompts; without it the head of
                           stage amortize does, if that workdir has one, and without that u is null
  --rollouts K             reference responses a prompt (64)
  --max_tokens N           at which a response is cut (128)
  --temperature T          of policy and reference; 0 is greedy (1.0)
  --stop TEXT              a response ends before this text, of policy and reference; not with blockwise
  --batch B                prompts sampled at once (8)
  --seed S                 same seed, same responses (0)
  --out FILE               where to write; - (the default) is standard output
"""
_FLAGS = {  # name -> (default, how its text is read)
    "policy": (None, str), "reward": ("", str), "prompts": ("-", str), "procedure": ("standard", str),
    "scorer": ("", str), "table": ("", str), "reference": ("", str), "rollouts": (64, int), "max_tokens": (128, int),
    "temperature": (1.0, float), "stop": ("", str), "batch": (8, int), "seed": (0, int), "out": ("-", str),
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
    options = flags.parse("infalign generate", words, _FLAGS)
    for name in ("rollouts", "max_tokens", "batch"):
        if options[name] < 1:
            raise ValueError(f"--{name} is {options[name]}; it must be at least 1")
    if options["stop"] and options["scorer"]:
        raise ValueError(
            f"--stop is {options['stop']!r}; blockwise decoding (--scorer) knows no stop text, leave it out"
        )
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
    from infalign_jax.generate import calibration, responses, rewards
    from infalign_jax.policy import load_policy

    procedure = responses.procedure(options["procedure"], options["scorer"])
    uses = {options["procedure"]: procedure.kind in ("best_of", "worst_of")}
    uses |= {f"--{name}": bool(options[name]) for name in ("table", "reference")}
    if not options["reward"] and (use := next((name for name, asked in uses.items() if asked), "")):
        raise ValueError(f"--reward is missing, and {use} has no use without one; see infalign generate --help")
    reward = rewards.open_reward(options["reward"]) if options["reward"] else None
    policy = load_policy(options["policy"])
    if options["scorer"]:
        procedure = procedure._replace(value=rewards.open_scorer(options["scorer"], policy, prompts))
    drawing = responses.Drawing(options["max_tokens"], options["temperature"], options["seed"], options["stop"])
    reference = load_policy(options["reference"]) if options["reference"] else None
    calibrator = calibration.open_calibrator(
        options["table"], options["reward"], prompts, reference=reference, rollouts=options["rollouts"]
    )
    for first in range(0, len(prompts), options["batch"]):
        batch = prompts[first : first + options["batch"]]
        filled = (batch * options["batch"])[: options["batch"]] if len(prompts) > len(batch) else batch  # one shape
        rows = responses.responses(policy, reward, filled, procedure, calibrator, drawing, first)
        for row in rows[: len(batch)]:
            print(json.dumps(row, ensure_ascii=False), file=file, flush=True)
