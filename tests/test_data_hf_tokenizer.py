"""HF tokenisers on `tokenizer.json` files made on the spot, in the layouts of the families (byte level, Metaspace
with bytes).
"""

import json

import numpy as np
import pytest

tokenizers = pytest.importorskip("tokenizers")

from infalign_jax.data import tokenize, tokenizer

TEXTS = ["The quick brown fox\n\njumps over", "a lazy dog, naïve café 😀", "quick quick dog"] * 20
SPECIAL = ["<pad>", "<eos>", "<bos>", "<turn>"]


def byte_level():
    """As Llama 3 and Qwen: BPE on bytes."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    model.train_from_iterator(
        TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    return model


def space_mark():
    """As Gemma: spaces written as a mark, unknown characters as bytes."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True))
    model.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    model.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    )
    model.train_from_iterator(TEXTS, tokenizers.trainers.BpeTrainer(vocab_size=100, special_tokens=SPECIAL))
    layout = json.loads(model.to_str())
    for byte in range(256):
        layout["model"]["vocab"][f"<0x{byte:02X}>"] = len(layout["model"]["vocab"])
    return tokenizers.Tokenizer.from_str(json.dumps(layout))


def add_bos(model):
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", model.token_to_id("<bos>"))]
    )
    return model


def write(folder, model, config):
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


CONFIG = {"eos_token": "<eos>", "bos_token": {"content": "<bos>"}, "pad_token": "<pad>"}


@pytest.mark.parametrize("make", [byte_level, space_mark])
def test_texts_survive(tmp_path, make):
    loaded = tokenizer.load(write(tmp_path, add_bos(make()), CONFIG))
    for text in [*TEXTS[:3], "", "  two  spaces\n", "漢字"]:
        assert loaded.decode(loaded.encode(text)) == text
    assert loaded.decode_batch(loaded.encode_batch(TEXTS[:3])) == TEXTS[:3]
    assert loaded.encode_batch(TEXTS[:3]) == [loaded.encode(text) for text in TEXTS[:3]]
    assert (loaded.pad_id, loaded.eos_id, loaded.bos_id) == (0, 1, 2)
    assert loaded.decode([2, *loaded.encode("quick dog"), 1, 0]) == "quick dog"


def test_ids_equal_the_library(tmp_path):
    model = byte_level()
    loaded = tokenizer.load(write(tmp_path, model, CONFIG) / "tokenizer.json")
    assert loaded.encode(TEXTS[1]) == model.encode(TEXTS[1], add_special_tokens=False).ids
    assert loaded.vocab_size == model.get_vocab_size()
    assert loaded.encode("<turn>dog")[0] == model.token_to_id("<turn>")


@pytest.mark.parametrize(
    ("post_processor", "flag", "expected"),
    [(True, None, 2), (False, None, None), (False, True, 2), (True, False, None)],
)
def test_bos_is_used_where_the_model_expects_it(tmp_path, post_processor, flag, expected):
    model = add_bos(byte_level()) if post_processor else byte_level()
    config = CONFIG if flag is None else {**CONFIG, "add_bos_token": flag}
    assert tokenizer.load(write(tmp_path, model, config)).bos_id == expected


def test_a_prompt_that_brings_its_bos_gets_no_second(tmp_path):
    loaded = tokenizer.load(write(tmp_path, add_bos(byte_level()), CONFIG))
    plain, own = (tokenize.encode_prompts(loaded, [text], 12) for text in ("quick dog", "<bos>quick dog"))
    assert np.array_equal(plain.tokens_NS, own.tokens_NS) and plain.lengths_N == own.lengths_N


def test_saving_writes_the_same_files(tmp_path):
    folder = write(tmp_path / "a", byte_level(), CONFIG)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer.load(folder).save(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


def test_limits_stored_in_the_file_are_lifted(tmp_path):
    model = byte_level()
    model.enable_truncation(4)
    model.enable_padding(length=8)
    loaded = tokenizer.load(write(tmp_path, model, CONFIG))
    assert loaded.decode(loaded.encode(TEXTS[0])) == TEXTS[0]


def test_missing_pad_falls_back_to_eos_and_missing_eos_is_refused(tmp_path):
    assert tokenizer.load(write(tmp_path / "a", byte_level(), {"eos_token": "<eos>"})).pad_id == 1
    with pytest.raises(ValueError, match=r"b' cannot be used: tokenizer_config\.json names no eos_token"):
        tokenizer.load(write(tmp_path / "b", byte_level(), {}))
    (tmp_path / "b" / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"b' cannot be used: tokenizer\.json cannot be read"):
        tokenizer.load(tmp_path / "b")
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        tokenizer.load(tmp_path / "c" / "tokenizer.json")
    with pytest.raises(ValueError, match="text 1 is None"):
        tokenizer.load(tmp_path / "a").encode_batch(["x", None])
