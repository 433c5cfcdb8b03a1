"""Amortised calibration: the head, what it learns on the synthetic task, the report on it, and what configs may ask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from infalign_jax import main
from infalign_jax.core.calibration import calibrate
from infalign_jax.data import synthetic
from infalign_jax.models import config as model_config
from infalign_jax.models import heads, transformer
from infalign_jax.stages import align, amortize, experiment, order, settings
from infalign_jax.stages.calibrate import provenance, write_arrays
from infalign_jax.training import checkpoints, workdir
from tests import tiny

SIZES = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "num_kv_heads": 1, "head_dim": 8, "mlp_dim": 32}
MODEL = model_config.from_dict({**SIZES, "vocab_size": 20})
QUANTILES = jax.jit(functools.partial(heads.quantiles, MODEL))
LOSS = jax.jit(jax.value_and_grad(functools.partial(amortize.quantile_loss, MODEL), has_aux=True))
TOKENS, LENGTHS = np.array([[0, 0, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]], np.int32), np.array([2, 4, 2], np.int32)


def head(quantiles, scale=1.0):
    return heads.add_quantile_head(MODEL, transformer.init(MODEL, jax.random.key(0)), quantiles, scale)


def random_kernel(variables, size):
    kernel = variables["params"]["quantile_head"]["kernel"]
    variables["params"]["quantile_head"]["kernel"] = size * jax.random.normal(jax.random.key(1), kernel.shape)
    return variables


@pytest.mark.parametrize("scale", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("count", [8, 9])
def test_a_fresh_head_says_the_quantiles_it_was_given(count, scale):
    given = scale * np.sort(np.random.default_rng(0).normal(5, 1, count))
    said = np.asarray(QUANTILES(head(given, scale), TOKENS, LENGTHS))
    np.testing.assert_allclose(said, np.tile(given, (3, 1)), atol=1e-3 * scale)


def test_quantiles_ascend_differ_by_prompt_and_ignore_padding():
    variables = random_kernel(head(np.linspace(-2, 2, 9)), 0.5)
    said = np.asarray(QUANTILES(variables, TOKENS, LENGTHS))
    assert said.shape == (3, 9) and (np.diff(said) > 0).all()
    assert np.abs(said[0] - said[1]).max() > 0.1
    np.testing.assert_allclose(said[0], said[2], rtol=1e-5, atol=1e-5)  # the same two tokens, other padding


def batch_of(unit):
    rewards = unit * np.random.default_rng(1).normal(size=(3, 6)).astype(np.float32)
    return {"prompt_tokens": TOKENS, "prompt_lengths": LENGTHS, "rewards": rewards}


def test_location_and_scale_are_constants_and_all_else_learns():
    variables = random_kernel(head(np.linspace(-2, 2, 8), 3.0), 0.1)
    gradient = LOSS(variables, batch_of(1.0))[1]["params"]
    fixed, learned = ("location", "scale"), ("kernel", "bias")
    assert all(np.abs(gradient["quantile_head"][name]).max() == 0 for name in fixed)
    assert all(np.abs(gradient["quantile_head"][name]).max() > 0 for name in learned)
    assert np.abs(gradient["layers"]["q"]["kernel"]).max() > 0


def test_rows_whose_rewards_are_all_equal_teach_without_moving_the_constants():
    batch = {**batch_of(1.0), "rewards": np.full((3, 6), 2.0, np.float32)}
    (loss, _), gradient = LOSS(head(np.linspace(-2, 2, 8)), batch)
    assert np.isfinite(loss) and loss > 0
    assert gradient["params"]["quantile_head"]["scale"] == 0


def test_the_loss_does_not_know_the_unit_of_a_prompt():
    def loss(unit):
        return float(LOSS(head(unit * np.linspace(-1, 1, 8), unit), batch_of(unit))[0][0])

    assert loss(1000.0) == pytest.approx(loss(1.0), rel=1e-3)


def test_a_row_of_expected_order_statistics_calibrates_like_the_distribution_it_is_of():
    levels = amortize.levels(32)
    row, rewards = stats.norm.ppf(levels), np.linspace(-4, 4, 401)
    u = np.asarray(calibrate(rewards, row, is_sorted=True, tails="exponential"))
    assert np.abs(u - stats.norm.cdf(rewards)).max() < 0.01
    inside = np.abs(rewards) < row[-1]
    np.testing.assert_allclose(u[inside], np.interp(rewards, row, levels)[inside], atol=1e-5)


# --- the stage -----------------------------------------------------------------------------------------------------


def config_for(folder, **changes):
    config = tiny.get_config()
    with config.unlocked():
        config.amortize.enabled, config.amortize.steps, config.amortize.learning_rate = True, 150, 1e-2
        config.amortize.held_out, config.amortize.levels, config.data.test_prompts = 24, 16, 30
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (config[section] if section else config)[key] = value
    return settings.resolve(config, folder)


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """A workdir with an untrained reference policy and the table of the task's own speaker."""
    folder = tmp_path_factory.mktemp("amortize")
    config = config_for(folder, calibrate__source="amortized", calibrate__tails="exponential")
    found = experiment.open_experiment(config)
    variables = transformer.init(found.model, jax.random.key(0))
    checkpoints.save_variables(folder / "sft" / "variables", variables)
    prompts = experiment.encode_split(found, "train")
    rewards = speaker_rewards(found, prompts, config.calibrate.rollouts, 0)
    calibration = found.workdir / "calibrate"
    calibration.mkdir(parents=True)
    zeros = np.zeros(len(rewards))
    write_arrays(calibration / "table.npz", rewards=np.sort(rewards, 1), held_out=rewards[:, :4], truncated=zeros)
    workdir.write_json(calibration / "provenance.json", provenance(config))
    return found


def speaker_rewards(found, prompts, count, seed):
    texts = [text for text in prompts.texts for _ in range(count)]
    rewards = found.dataset.judge(texts, synthetic.speak(texts, np.random.default_rng(seed)))
    return rewards.reshape(-1, count)


@pytest.fixture(scope="module")
def result(opened):
    with pytest.MonkeyPatch.context() as patch:
        # The speaker stands in for a policy trained to speak like it, which would take longer than the head.
        count = opened.config.calibrate.rollouts + opened.config.amortize.held_out
        patch.setattr(amortize, "reference_rewards", lambda e, prompts: speaker_rewards(e, prompts, count, 1))
        return amortize.run(opened.config)


def test_the_trained_head_beats_the_prompt_blind_row_and_a_small_table(result):
    error = result["error"]
    assert error["amortized"]["high"] < error["pooled"]["low"]
    assert error["amortized"]["absolute"] < error["table(4)"]["absolute"]
    assert error["table(16)"]["absolute"] < error["table(4)"]["absolute"]


def test_the_report_has_every_calibration_overall_and_by_group(result, opened):
    names = {"amortized", "pooled", "table(4)", "table(16)"}
    assert set(result["error"]) == names
    assert all(0 <= e["low"] <= e["absolute"] <= e["high"] < 0.5 for e in result["error"].values())
    assert set(result["error_by_group"]) == set(synthetic.TONES)
    assert all(set(row) == names for row in result["error_by_group"].values())
    assert result["calibration_error"] == result["error"]["amortized"]["absolute"]
    assert result["equivalent_rollouts"] >= 4
    assert workdir.done(opened.workdir / "amortize") == result
    assert order.missing(opened.config, "amortize") == []


def test_the_saved_head_makes_a_table_that_align_can_read(result, opened):
    prompts = experiment.encode_split(opened, "train")
    rows = amortize.predicted_table(opened, prompts)
    assert rows.shape == (len(prompts.texts), 16) and rows.dtype == np.float32 and (np.diff(rows) > 0).all()
    fresh = speaker_rewards(opened, prompts, 64, 2)
    rule, _ = align.score_rule("exponential(10)", rows, 0.5)
    scores, u = align.score_rewards(jnp.asarray(fresh), jnp.asarray(rows), rule, "exponential")
    assert float(u.mean()) == pytest.approx(0.5, abs=0.03) and float(u.std()) == pytest.approx(12**-0.5, abs=0.03)
    assert np.isfinite(scores).all()


def test_report_of_known_rows_gives_known_errors():
    """The true quantiles of normal rewards have almost no error; ranks among K have 0.313/√K."""
    config = config_for("nowhere")
    rewards = np.random.default_rng(0).normal(size=(400, 16 + 24))
    true = np.tile(stats.norm.ppf(amortize.levels(32)), (400, 1))
    found = amortize.report({"amortized": true}, rewards, ["a"] * 399 + ["b"], config)
    assert found["error"]["amortized"]["absolute"] < 0.02
    assert found["error"]["table(16)"]["absolute"] == pytest.approx(0.313 / 4, rel=0.1)
    assert list(found["error_by_group"]) == ["a"]  # one prompt has no interval


def test_leaving_out_a_group_predicts_it_with_a_head_that_never_saw_it(opened, monkeypatch):
    train, test = (experiment.encode_split(opened, split) for split in ("train", "test"))
    seen = {}

    def train_head(found, examples, folder, name):
        seen[name] = {train.groups[i] for i in examples["row"]}
        return len(seen), {}

    monkeypatch.setattr(amortize, "train_head", train_head)
    monkeypatch.setattr(amortize, "predict", lambda e, number, prompts: np.full((len(prompts.texts), 16), number))
    rows = amortize._leave_out(opened, {"row": np.arange(len(train.texts))}, train.groups, test, opened.workdir)
    for number, tone in enumerate(dict.fromkeys(test.groups), 1):
        assert seen[f"amortize without {tone}"] == set(synthetic.TONES) - {tone}
        assert (rows[np.array(test.groups) == tone] == number).all()
    with pytest.raises(ValueError, match="all training prompts are of group 'bold'"):
        amortize._leave_out(opened, {}, ["bold"] * 3, test._replace(groups=["bold"]), opened.workdir)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"amortize__levels": 4}, "config.amortize.levels is 4; it must be an integer of at least 8"),
        ({"amortize__held_out": 2}, "config.amortize.held_out is 2"),
        ({"amortize__learning_rate": 0.0}, "config.amortize.learning_rate is 0.0"),
        ({"calibrate__source": "guess"}, "config.calibrate.source is 'guess'; it must be one of 'table', 'amortized'"),
        ({"calibrate__source": "amortized"}, "needs config.calibrate.tails to be 'exponential', not 'flat'"),
        (
            {"calibrate__source": "amortized", "calibrate__tails": "exponential", "amortize__enabled": False},
            "needs config.amortize.enabled to be True, not False",
        ),
        ({"sampling__truncated": "lowest"}, "config.sampling.truncated is 'lowest', a reward no quantile head"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError) as caught:
        config_for("nowhere", **changes)
    assert words in str(caught.value)


def test_the_stage_runs_only_where_asked(tmp_path):
    config = config_for(tmp_path, amortize__enabled=False)
    assert order.outputs(config, "amortize") == {} and order.state(config, "amortize") == "nothing to do"
    with pytest.raises(ValueError, match="stage amortize needs stage sft first"):  # named, it is asked for
        main.run("amortize", config_for(tmp_path, amortize__enabled=False), tmp_path)
