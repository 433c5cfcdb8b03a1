"""Write the small reference models that guard the default suite: `python -m tests.peers.make_reference`.

For each family a folder tests/hf_reference/NAME as `transformers` saves it, and the logits its PyTorch model gives.
Needs the peers environment; run again only when a family changes.
"""

from pathlib import Path

import numpy as np
import torch

from tests.peers.families import make

_TINY = dict(hidden_size=12, intermediate_size=10, vocab_size=23, num_attention_heads=2, num_key_value_heads=1)
_LAYERS = {"gemma2": 2, "gemma3": 6, "llama": 2, "qwen2_window": 3, "qwen3": 2}


def main():
    root = Path(__file__).parents[1] / "hf_reference"
    tokens = np.random.default_rng(0).integers(3, 23, size=(2, 20))
    for name, layers in _LAYERS.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        model = make(name, folder, num_hidden_layers=layers, head_dim=8, **_TINY)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(tokens)).logits.numpy()
        np.savez_compressed(folder / "logits.npz", tokens=tokens.astype(np.int32), logits=logits)
        (folder / "generation_config.json").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
