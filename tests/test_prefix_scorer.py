"""The prefix scorer: its loss, the stage on the synthetic task, its report, and what configs may ask; decoding with it is slow."""

import functools

import jax
import numpy as np
import pytest

from infalign_jax import main
from infalign_jax.core import optimal, procedures, theory, transforms
from infalign_jax.core.bootstrap import mean_interval
from infalign_jax.core.calibration import calibrate
from infalign_jax.data import synthetic
from infalign_jax.data.tokenize import encode_responses
from infalign_jax.models import config as model_config
from infalign_jax.models import heads, transformer
from infalign_jax.stages import decoded, experiment, order, prefix_scorer, settings
from infalign_jax.stages.calibrate import provenance, write_arrays
from infalign_jax.training import checkpoints, workdir
from tests import tiny

SIZES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 32}
MODEL = model_config.from_dict({**SIZES, "vocab_size": 20})


def test_the_loss_is_the_mean_squared_error_of_every_prefix():
    variables = heads.add_head(MODEL, transformer.init(MODEL, jax.random.key(0)), jax.random.key(1), 0.4)
    rng = np.random.default_rng(0)
    batch = {
        "prompt_tokens": rng.integers(3, 20, (2, 4)), "prompt_lengths": np.array([4, 2]),
        "tokens": rng.integers(3, 20, (2, 3, 5)), "mask": np.arange(5) < rng.integers(1, 6, (2, 3, 1)),
        "targets": rng.random((2, 3)).astype(np.float32),
    }  # fmt: skip
    loss, _ = jax.jit(functools.partial(prefix_scorer.prefix_loss, MODEL))(variables, batch)
    texts, targets = [], []
    for b, r, c in np.argwhere(batch["mask"]):
        prompt = batch["prompt_tokens"][b, 4 - batch["prompt_lengths"][b] :]
        texts.append(np.concatenate([prompt, batch["tokens"][b, r, : c + 1]]))
        targets.append(batch["targets"][b, r])
    padded = np.stack([np.pad(text, (9 - len(text), 0)) for text in texts])
    values = jax.jit(functools.partial(heads.score, MODEL))(variables, padded, np.array(list(map(len, texts))))
    errors = np.square(values - np.array(targets))
    assert float(loss) == pytest.approx(float(np.mean(errors)), rel=1e-5)
    assert float(variables["params"]["reward_head"]["bias"]) == pytest.approx(0.4)


def config_for(folder, **changes):
    config = tiny.get_config()
    with config.unlocked():
        config.prefix_scorer.enabled, config.prefix_scorer.steps, config.prefix_scorer.learning_rate = True, 150, 1e-2
        config.data.test_prompts = 30
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (config[section] if section else config)[key] = value
    return settings.resolve(config, folder)


def speaker_rollouts(found, prompts, count):
    """As `make_examples`, of the task's own speaker: it stands in for a policy trained to speak like it."""
    texts = [text for text in prompts.texts for _ in range(count)]
    responses = synthetic.speak(texts, np.random.default_rng(len(texts)))
    tokens_NC, mask_NC = encode_responses(found.tokenizer, responses, found.config.data.response_tokens)
    rewards_PR = np.asarray(found.dataset.judge(texts, responses), np.float32).reshape(-1, count)
    examples = {"tokens": tokens_NC, "mask": mask_NC.astype(bool)}
    examples = {name: array.reshape(len(prompts.texts), count, -1) for name, array in examples.items()}
    return {"prompt_tokens": prompts.tokens_PS, "prompt_lengths": prompts.lengths_P, **examples}, rewards_PR


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A workdir with an untrained reference policy and the table of the task's own speaker."""
    folder = tmp_path_factory.mktemp("prefix_scorer")
    config = config_for(folder)
    found = experiment.open_experiment(config)
    checkpoints.save_variables(folder / "sft" / "variables", transformer.init(found.model, jax.random.key(0)))
    _, rewards = speaker_rollouts(found, experiment.encode_split(found, "train"), config.calibrate.rollouts)
    (found.workdir / "calibrate").mkdir(parents=True)
    arrays = {"rewards": np.sort(rewards, 1), "held_out": rewards[:, :4], "truncated": np.zeros(len(rewards))}
    write_arrays(found.workdir / "calibrate" / "table.npz", **arrays)
    workdir.write_json(found.workdir / "calibrate" / "provenance.json", provenance(config))
    return found


@pytest.fixture(scope="module")
def result(opened):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix_scorer, "make_examples", speaker_rollouts)
        return prefix_scorer.run(opened.config)


def test_the_scorer_beats_the_constant_on_prompts_it_has_not_seen(result, opened):
    assert 0 < result["explained_low"] < result["explained"] < result["explained_high"] < 1
    assert result["explained"] == pytest.approx(1 - result["error"] / result["constant_error"])
    assert result["constant_error"] == pytest.approx(1 / 12, rel=0.2)  # u is uniform
    assert list(result["explained_after"]) == ["1", "2", "4"] and result["explained_after"]["4"] > 0
    assert (result["target"], result["location"], result["scale"]) == ("calibrated", 0.0, 1.0)
    assert workdir.done(opened.workdir / "prefix_scorer") == result
    assert order.missing(opened.config, "prefix-scorer") == []


def test_report_of_known_values_gives_known_errors(opened):
    """Values that are all the same number are a constant predictor: nothing is explained, or less than nothing."""
    held_out, rewards = speaker_rollouts(opened, experiment.encode_split(opened, "test"), 8)
    held_out["targets"] = prefix_scorer.targets(rewards, np.sort(rewards, 1), opened.config, 0.0, 1.0)
    trunk = transformer.init(opened.model, jax.random.key(0))
    variables = heads.add_head(opened.model, trunk, jax.random.key(0), 0.7)
    variables["params"]["reward_head"]["kernel"] *= 0
    same = prefix_scorer.report(opened, variables, held_out, 0.7)
    assert same["explained"] == pytest.approx(0, abs=1e-6) and same["explained_high"] == pytest.approx(0, abs=1e-6)
    worse = prefix_scorer.report(opened, variables, held_out, 0.5)
    assert worse["explained_high"] < 0
    lengths = held_out["mask"].sum(-1)
    squares = np.array(
        [np.average((t - 0.7) ** 2, weights=n) for t, n in zip(held_out["targets"], lengths, strict=True)]
    )
    assert worse["error"] == pytest.approx(squares.mean(), rel=1e-5)


def test_rewards_as_targets_are_standardised():
    rewards = np.array([[1.0, 3.0], [5.0, 7.0]], np.float32)
    config = config_for("nowhere", prefix_scorer__target="reward")
    np.testing.assert_allclose(
        prefix_scorer.targets(rewards, None, config, 4.0, 2.0), [[-1.5, -0.5], [0.5, 1.5]], rtol=1e-6
    )
    u = prefix_scorer.targets(rewards, np.array([[0.0, 2.0], [6.0, 8.0]], np.float32), config_for("nowhere"), 4.0, 2.0)
    np.testing.assert_allclose(u, [[0.5, 1.0], [0.0, 0.5]])


def test_the_stage_runs_only_where_asked(tmp_path):
    config = config_for(tmp_path, prefix_scorer__enabled=False)
    assert order.outputs(config, "prefix-scorer") == {} and order.state(config, "prefix-scorer") == "nothing to do"
    with pytest.raises(ValueError, match="stage prefix-scorer needs stage sft first"):  # named, it is asked for
        main.run("prefix-scorer", config_for(tmp_path, prefix_scorer__enabled=False), tmp_path)


def test_a_workdir_made_before_the_stage_can_be_taken_up(tmp_path):
    config = config_for(tmp_path).to_dict()
    old = {key: value for key, value in config.items() if key != "prefix_scorer"}
    for values in (old, config, {**config, "prefix_scorer": {**config["prefix_scorer"], "enabled": False}}):
        with workdir.claim(values):
            pass
    assert order.outputs({**old, "workdir": str(tmp_path)}, "prefix-scorer") == {}
    with (
        pytest.raises(ValueError, match=r"prefix_scorer\.steps: 150 -> 151"),
        workdir.claim({**config, "prefix_scorer": {**config["prefix_scorer"], "steps": 151}}),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"prefix_scorer__target": "u"},
            "config.prefix_scorer.target is 'u'; it must be one of 'calibrated', 'reward'",
        ),
        ({"prefix_scorer__rollouts": 0}, "config.prefix_scorer.rollouts is 0"),
        ({"prefix_scorer__held_out": 0}, "config.prefix_scorer.held_out is 0"),
        ({"prefix_scorer__steps": 0}, "config.prefix_scorer.steps is 0"),
        (
            {"sampling__truncated": "lowest", "prefix_scorer__target": "reward"},
            "config.sampling.truncated is 'lowest' (lowest calibrated reward), and config.prefix_scorer.target is 'reward'",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError) as caught:
        config_for("nowhere", **changes)
    assert words in str(caught.value)


# --- decoding with a trained scorer ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_blockwise_decoding_beats_sampling_and_its_law_has_an_optimal_transform(tmp_path):
    """On the synthetic task, reference policy and scorer trained: u of the responses, and what is to be done with it."""
    config = tiny.get_config()
    with config.unlocked():
        config.model.num_layers, config.model.embed_dim, config.model.mlp_dim = 2, 48, 96
        config.sft.steps, config.sft.batch_size, config.data.demonstrations_per_prompt = 300, 256, 40
        config.data.test_prompts, config.calibrate.rollouts, config.evaluate.samples = 48, 64, 128
        config.prefix_scorer.steps, config.prefix_scorer.learning_rate = 300, 3e-3
    for stage in ("sft", "calibrate", "prefix-scorer"):
        main.run(stage, config, tmp_path)
    found = experiment.open_experiment(settings.resolve(config, tmp_path))
    assert workdir.done(tmp_path / "prefix_scorer")["explained_low"] > 0.1
    scorer, reference = decoded.open_scorer(found), experiment.load_reference(found)
    test, judges = experiment.encode_split(found, "test"), {"gold": found.dataset.judge}
    _, table_PK = prefix_scorer.make_examples(found, test, 400)

    def calibrated(candidates):
        """u of the responses, [P, 128 / candidates]: each prompt decoded several times."""
        rewards_PD = decoded.rewards(found, reference, test, judges, scorer, candidates, 2, "test")["gold"]
        return np.asarray(calibrate(rewards_PD, table_PK), np.float64)

    plain, chosen = calibrated(1), calibrated(4)
    (_, low, high), (mean, above, _) = (mean_interval(u.mean(1)) for u in (plain, chosen))
    print(
        f"win rate against the reference: sampling {plain.mean():.3f} [{low:.3f}, {high:.3f}], blockwise(4, 2) {mean:.3f}"
    )
    assert low < 0.5 < high and above > 0.7

    law = procedures.from_samples(chosen.ravel(), degree=12)
    found = optimal.optimal_transform(law, kl=0.5)
    identity = theory.win_rate(law, transforms.identity(), theory.beta_for_kl(transforms.identity(), 0.5))
    print(f"KL 0.5, win rate after blockwise: {identity:.4f} by identity, {found.win_rate:.4f} by {found.phi.name}")
    assert found.kl == pytest.approx(0.5, rel=1e-3) and found.residual < 1e-6
    assert found.win_rate > identity > 0.5
