"""DPO and IPO against the numbers of TRL's own trainer, on the same token log-probabilities.

pip install -e '.[test,trl]' && pytest -m peers -n 0 tests/peers/test_trl_losses.py
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from trl import DPOTrainer

from infalign_jax.core.masking import masked_sum
from infalign_jax.core.preference_losses import dpo_loss, ipo_loss

pytestmark = pytest.mark.peers
B, T = 3, 7  # pairs, and tokens of a completion


def pairs():
    """Log-probabilities [2B, T] of policy and reference, and masks: chosen responses first, then rejected ones."""
    rng = np.random.default_rng(0)
    policy, reference = (-rng.exponential(2.0, (2 * B, T)).astype(np.float32) for _ in range(2))
    mask = (np.arange(T) < rng.integers(1, T + 1, (2 * B, 1))).astype(np.float32)
    return policy, reference, mask


def peer(kind, beta, policy, reference, mask):
    """TRL's loss and its gradient in the policy's log-probabilities, from `DPOTrainer._compute_loss` itself.

    Its model is replaced by one that says the log-probabilities given; TRL masks by the labels, and so does this one.
    """
    log_probs = torch.tensor(policy * mask, requires_grad=True)
    watched = {name: torch.zeros(2 * B, T) for name in ("entropy", "mean_logits")}  # for TRL's metrics
    watched["is_top1"] = torch.zeros(2 * B, T, dtype=torch.bool)
    said = types.SimpleNamespace(log_probs=log_probs, loss=torch.zeros(()), **watched)
    trainer = types.SimpleNamespace(
        model=types.SimpleNamespace(training=True),
        accelerator=types.SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x),
        args=types.SimpleNamespace(gradient_checkpointing_kwargs=None),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=[kind],
        loss_weights=[1.0],
        beta=beta,
        label_smoothing=0.0,
        use_weighting=False,
        _metrics={"train": collections.defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    sums = torch.tensor((reference * mask).sum(1))
    completion = torch.tensor(np.pad(mask, ((0, 0), (1, 0)))).long()  # one prompt token before each completion
    inputs = {
        "input_ids": torch.ones(2 * B, T + 1, dtype=torch.long),
        "attention_mask": torch.ones(2 * B, T + 1, dtype=torch.long),
        "completion_mask": completion,
        "ref_chosen_logps": sums[:B],
        "ref_rejected_logps": sums[B:],
    }
    loss = DPOTrainer._compute_loss(trainer, lambda **_: said, inputs, return_outputs=False)
    loss.backward()
    return loss.item(), log_probs.grad.numpy() * mask


def ours(kind, beta, policy, reference, mask):
    def value(policy):
        log_ratios = masked_sum(policy - reference, mask)
        if kind == "ipo":  # TRL takes the mean over a response's tokens, we their sum
            log_ratios = log_ratios / mask.sum(-1)
        margins = log_ratios[:B] - log_ratios[B:]
        return (ipo_loss if kind == "ipo" else dpo_loss)(margins, beta)

    loss, gradient = jax.value_and_grad(value)(jnp.asarray(policy))
    return float(loss), np.asarray(gradient)


@pytest.mark.parametrize("beta", [0.05, 0.3, 2.0])
@pytest.mark.parametrize("kind", ["sigmoid", "ipo"])
def test_value_and_gradient_are_those_of_trl(kind, beta):
    arrays = pairs()
    (value, gradient), (peer_value, peer_gradient) = ours(kind, beta, *arrays), peer(kind, beta, *arrays)
    assert value == pytest.approx(peer_value, rel=1e-5)
    np.testing.assert_allclose(gradient, peer_gradient, rtol=1e-4, atol=1e-7)
