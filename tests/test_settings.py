"""Every key of a config has a legal range; whatever is outside it is refused in one sentence that names the key."""

import time

import pytest
from ml_collections import ConfigDict

from configs import base, hh_harmless_tiny, quickstart
from infalign_jax import errors
from infalign_jax.stages import rules, settings
from tests import tiny

NAN, INF = float("nan"), float("inf")
COUNTS = ("integer of at least 1", (0, -1, 1.5, 64.0, True, "8", None, NAN, 2**31))
BAD = {  # key: (words of the message, illegal values)
    "seed": ("integer of at least 0", (-1, 0.5, True, "0", None, 2**40)),
    "reward": ("", (1, None, "", "golden", "gold ", "a\0b")),
    "judge": ("", (0, "", "no", "Gold")),
    "data.name": ("'synthetic'", ("hh", "", 3, None, ("jsonl",))),
    "data.path": ("a string", (None, 5, "a\0b")),
    "data.test_fraction": ("at most 1", (-0.1, 1.1, NAN, INF, "0.1", True)),
    "data.judge_fraction": ("at most 1", (-1, 2, NAN, None)),
    "data.train_prompts": ("integer of at least 0", (-1, 1.0, "all")),
    "data.prompt_tokens": ("integer of at least 2", (0, 1, 7.5, "8")),
    "data.response_tokens": ("integer of at least 2", (1, -8, INF)),
    "data.long_prompts": ("'truncate_left'", ("truncate", "", None, True)),
    "tokenizer.path": ("a string", (False, 3)),
    "tokenizer.kind": ("'unigram'", ("wordpiece", None)),
    "tokenizer.vocab_size": ("integer of at least 4", (0, 3, 4096.0)),
    "model.num_layers": COUNTS,
    "model.dtype": ("'bfloat16'", ("float16", "fp32", None)),
    "model.remat": ("'layer'", ("all", True)),
    "model.attention": ("'splash'", ("flash", "splash_interpreted", None)),
    "model.tied_embeddings": ("True or False", (1, "yes", None)),
    "mesh.data": ("-1 or an integer of at least 1", (0, -2, True, 1.0, "2")),
    "sft.steps": ("integer of at least 0", (-1, 1.5, True, "8", None)),
    "model.path": ("a string", (None, 5)),
    "model.param_dtype": ("'bfloat16'", ("float16", None)),
    "lora.rank": ("integer of at least 0", (-1, 2.0, None)),
    "lora.alpha": ("finite number above 0", (0.0, INF)),
    "lora.targets": ("'gate'", ((), ("q", "q"), ("w",), "q")),
    "sft.learning_rate": ("finite number above 0", (0, 0.0, -1e-3, NAN, INF, "1e-3", True)),
    "reward_model.clip_norm": ("finite number above 0", (0.0, -INF)),
    "sampling.at_once": COUNTS,
    "sampling.temperature": ("finite number above 0", (0.0, -1.0, NAN)),
    "sampling.truncated": ("'as_is'", ("drop", "")),
    "sampling.penalty": ("finite number of at least 0", (-0.5, INF)),
    "calibrate.rollouts": ("integer of at least 1 and at most 4096", (*COUNTS[1], 4097, 10**9)),
    "calibrate.tails": ("'flat'", ("gaussian", None)),
    "align.methods": ("one or more different values", ((), ("raw", "raw"), "raw", (3,), (["raw"],), None, ("",), ({},))),
    "align.rollouts": ("integer of at least 2", (1, 0, 4.0)),
    "align.at_once": COUNTS,
    "align.decay": ("at most 1", (-0.1, 1.5, NAN)),
    "align.target_kl": ("finite number above 0", (0.0, -0.5, NAN, INF)),
    "align.kl_margin": ("at most 2", (0.1, 3.0)),
    "align.kl_rate": ("of at least 0", (-0.1, NAN)),
    "align.kl_warmup": ("integer of at least 0", (-1, 2.5)),
    "align.save_every": COUNTS,
    "align.show_every": ("integer of at least 0", (-1, 1.5, None, "often")),
    "evaluate.samples": ("integer of at least 2", (1, 0, 16.0)),
    "evaluate.best_of": ("different values", ((0,), (-2,), (2.0,), (2, 2), 4, "4", ("4",))),
    "evaluate.curve": ("at most 1.1", ((0.0,), (1.2,), (NAN,), (0.5, 0.5), 0.5)),
    "evaluate.headline": ("", (4, "", "best", "best_of", "best_of()", "best_of(0)", "best_of(4", "best_of(3)", "best_of(2.5)")),
    "evaluate.kl_tolerance": ("at most 1", (0.0, 2.0)),
    "log.tensorboard": ("True or False", (1, "true")),
    "align.keep_best": ("integer of at least 0", (-1, 1.0, None)),
    "log.profile_steps": ("FIRST <= LAST", ((3,), (3, 2), (-1, 2), 3, (0, 1.5), (1, 2, 3), "1,2", None)),
}  # fmt: skip
METHODS = {  # method: words of the message
    "exponentail(10)": "unknown transform 'exponentail(10)'; legal are identity, log, exponential(t), optimal(procedure)",
    "exponential(0)": "other than 0",
    "exponential()": "takes 1 number",
    "exponential(1,2)": "takes 1 number",
    "exponential(x)": "exponential",
    "exponential(1e400)": "finite",
    "exponential": "takes 1 number",
    "exponential(10": "not of the form",
    "Raw": "legal are",
    "raw, identity": "not of the form",
    "log(2)": "takes 0 number",
    "optimal": "best_of(8)",
    "optimal()": "best_of(8)",
    "optimal(4)": "best_of(8)",
    "optimal(best_of(0))": "best_of",
    "optimal(best(4))": "unknown procedure",
    "__import__('os')": "not of the form",
    "идентичность": "unknown transform",
    "🙂": "not of the form",
}
TOGETHER = {  # what is wrong: (changes, words of the message)
    "odd head": ({"model.head_dim": 7}, "config.model.head_dim is 7"),
    "heads that do not divide": ({"model.num_kv_heads": 3, "model.num_heads": 4}, "config.model.num_kv_heads is 3"),
    "two free axes": ({"mesh.data": -1, "mesh.tensor": -1}, "config.mesh.data and config.mesh.tensor are -1"),
    "N over samples": ({"evaluate.best_of": (2, 4, 32), "evaluate.samples": 16}, "config.evaluate.best_of has 32"),
    "worst N over samples": ({"evaluate.worst_of": (64,), "evaluate.samples": 16}, "config.evaluate.worst_of has 64"),
    "headline elsewhere": ({"evaluate.headline": "best_of(16)"}, "'standard', 'best_of(2)'"),
    "headline of no N": ({"evaluate.headline": "worst_of(4)", "evaluate.worst_of": ()}, "config.evaluate.headline"),
    "headline without law": ({"evaluate.headline": "soft_best_of(4,1)"}, "config.evaluate.headline"),
    "lowest without ranks": ({"sampling.truncated": "lowest"}, "config.sampling.truncated"),
    "KL out of reach": ({"align.target_kl": 500.0}, "config.align.methods has 'identity'"),
    "same folder": ({"align.methods": ("exponential(10)", "exponential( 10 )", "exponential(10 )")}, "keep one"),
    "reward of no module": ({"reward": "no_such_module_at_all:f"}, "config.reward has 'no_such_module_at_all:f'"),
    "reward of no function": ({"reward": "math:no_such"}, "no_such"),
    "reward that is no function": ({"judge": "math:pi"}, "config.judge has 'math:pi': 'math:pi' is float"),
    "reward without name": ({"reward": ":"}, "config.reward"),
    "reward of a broken module": ({"reward": "tests.broken_reward:f"}, "ZeroDivisionError"),
}


def changed(changes):
    """The tiny recipe with some dotted keys changed, types unchecked, as a recipe could return it."""
    values = tiny.get_config().to_dict()
    values["align"]["methods"] = ("raw", "identity")
    for name, value in changes.items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    return ConfigDict(values)


def refusal(changes):
    """The one line with which a config is refused."""
    with pytest.raises(ValueError) as caught:
        settings.resolve(changed(changes), "runs/x")
    line = errors.sentence(caught.value)
    assert line is not None, "a bug, not a sentence"
    assert "\n" not in line and len(line) < 600
    return line


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [(key, value, words) for key, (words, values) in BAD.items() for value in values],
    ids=lambda x: repr(x)[:40],
)
def test_values_of_every_type_and_range(key, value, words):
    line = refusal({key: value})
    assert f"config.{key}" in line and words in line
    if not isinstance(value, (tuple, dict)):
        assert repr(value) in line


@pytest.mark.parametrize(("method", "words"), METHODS.items())
def test_methods(method, words):
    line = refusal({"align.methods": ("raw", method)})
    assert line.startswith(f"config.align.methods has {method!r}") and words in line and "raw_group_std" in line


@pytest.mark.parametrize(("changes", "words"), TOGETHER.values(), ids=TOGETHER)
def test_keys_that_must_fit_each_other(changes, words):
    assert words in refusal(changes)


def test_keys_unknown_missing_or_of_the_wrong_kind():
    assert "config.stpes is not a key" in refusal({"stpes": 3})
    assert "config.sft.step is not a key of configs/base.py; config.sft has batch_size" in refusal({"sft.step": 3})
    assert "config.sft is 5; it is a section" in refusal({"sft": 5})
    assert "config.seed is {'a': 1}" in refusal({"seed": {"a": 1}})
    values = changed({}).to_dict()
    del values["align"]["steps"]
    with pytest.raises(ValueError, match=r"config\.align\.steps is missing"):
        settings.resolve(ConfigDict(values), "x")
    with pytest.raises(ValueError, match=r"config\.align is missing"):
        settings.resolve(ConfigDict({k: v for k, v in values.items() if k != "align"}), "x")


@pytest.mark.parametrize("workdir", ["", "  ", "a\0b"])
def test_workdirs_no_system_can_hold(workdir):
    with pytest.raises(ValueError, match=r"config\.workdir"):
        settings.resolve(changed({}), workdir)


@pytest.mark.parametrize("recipe", [base, quickstart, hh_harmless_tiny, tiny], ids=lambda recipe: recipe.__name__)
def test_recipes_of_the_project_are_legal_and_every_key_has_a_rule(recipe):
    config = settings.resolve(recipe.get_config(), "runs/x")
    assert config.is_locked and config.workdir == "runs/x"


def test_a_rule_accepts_its_own_edges():
    for rule, legal in (
        (rules.whole(1), (1, rules.LARGEST)),
        (rules.real(0, 1), (0, 1, 0.0, 1.0)),
        (rules.real(0, open_low=True), (5e-324, 1)),
        (rules.tuple_of(rules.whole(1)), ((), (1, 2), [3])),
        (rules.devices(), (-1, 1, 8)),
        (rules.text(), ("", "ü 🙂")),
    ):
        assert all(rule[0](value) for value in legal), rule[1]


def test_a_bad_config_is_refused_at_once():
    began = time.monotonic()
    refusal({"log.tensorboard": 1})
    assert time.monotonic() - began < 1
