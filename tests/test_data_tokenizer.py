"""Tokenisers give back the text they were given; encoded arrays against arrays built by hand."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from infalign_jax.data import dataset, tokenize, tokenizer

SENTENCES = [
    f"\n\nHuman: tell me about {a} and {b}, number {i}\n\nAssistant: {b}s are {a}er than café {a}s."
    for i, (a, b) in enumerate((a, b) for a in ("tall", "quick", "bright") for b in ("tree", "river", "bird"))
] * 8
AWKWARD = [
    "",
    " ",
    "  two  spaces ",
    "\n\n\n",
    "\r\n\t",
    "▁ mark ▁▁",
    "<s></s><unk><0x0A><pad>",
    "a\x00b",
    "naïve e\u0301",
    "😀👩‍👩‍👧 漢字 \u3000\u00a0",
]


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def subwords(request):
    return tokenizer.train_sentencepiece(SENTENCES, model_type=request.param, vocab_size=400)


@pytest.fixture(scope="module")
def words():
    return tokenizer.train_sentencepiece(["red green blue", "blue sky :"], model_type="word", vocab_size=100)


@pytest.mark.parametrize("text", [*AWKWARD, SENTENCES[0]])
def test_subwords_are_lossless(subwords, text):
    assert subwords.decode(subwords.encode(text)) == text
    assert all(0 <= i < subwords.vocab_size for i in subwords.encode(text))


@hypothesis.given(st.text(max_size=40))
@hypothesis.settings(max_examples=150, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
def test_subwords_are_lossless_on_any_text(subwords, text):
    assert subwords.decode(subwords.encode(text)) == text


def test_training_is_deterministic_and_survives_saving(subwords, tmp_path):
    models = {
        tokenizer.train_sentencepiece(SENTENCES, model_type=kind, vocab_size=400).model_bytes
        for kind in ("bpe", "unigram", "bpe", "unigram")
    }
    assert len(models) == 2 and subwords.model_bytes in models
    subwords.save(tmp_path / "new")
    for path in (tmp_path / "new", tmp_path / "new" / tokenizer.MODEL_FILE):
        loaded = tokenizer.load(path)
        assert loaded.encode_batch(AWKWARD) == subwords.encode_batch(AWKWARD)
        assert (loaded.pad_id, loaded.eos_id, loaded.bos_id) == (0, 1, 2)


def test_word_pieces_are_words(words):
    assert words.vocab_size == 9  # red green blue sky : and 4 special pieces
    ids = words.encode("sky blue :")
    assert len(ids) == 3 and words.decode(ids) == "sky blue :"
    assert words.decode([words.bos_id, *ids, words.eos_id, words.pad_id]) == "sky blue :"
    assert len(words.encode("purple")) == 1  # the unknown piece


def test_batches_equal_single_calls(subwords):
    ids = subwords.encode_batch(AWKWARD)
    assert ids == [subwords.encode(text) for text in AWKWARD]
    assert subwords.decode_batch([np.array(row) for row in ids]) == AWKWARD


@pytest.mark.parametrize(
    ("texts", "model_type", "size", "message"),
    [
        (["a b"], "char", 400, "model_type is 'char'"),
        (["a b c"], "word", 6, "vocab_size .* is 6"),
        (["a b c"], "bpe", 100, "vocab_size is 100"),
        (["", " \n"], "bpe", 400, "no text"),
    ],
)
def test_bad_training_is_refused(texts, model_type, size, message):
    with pytest.raises(ValueError, match=message):
        tokenizer.train_sentencepiece(texts, model_type=model_type, vocab_size=size)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere"):
        tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "junk.model").write_bytes(b"not a model")
    with pytest.raises(ValueError, match=r"junk\.model.*not a SentencePiece model"):
        tokenizer.load(tmp_path / "junk.model")
    with pytest.raises(ValueError, match="text 1 is 3"):
        tokenizer.train_sentencepiece(["a b"], model_type="word", vocab_size=9).encode_batch(["a", 3])


def test_prompts_are_left_padded_and_begin_with_bos(words):
    red, green = words.encode("red green")
    encoded = tokenize.encode_prompts(words, ["red", "red green"], 4)
    assert encoded.tokens_NS.tolist() == [[0, 0, 2, red], [0, 2, red, green]]
    assert encoded.lengths_N.tolist() == [2, 3] and encoded.kept_N.tolist() == [0, 1]
    assert encoded.tokens_NS.dtype == encoded.lengths_N.dtype == np.int32


def test_long_prompts(words):
    red, green, blue, sky = words.encode("red green blue sky")
    texts = ["red", "red green blue sky", "sky"]
    with pytest.raises(ValueError, match=r"prompt 1 has 5 tokens, the limit is 3 \(1 of 3"):
        tokenize.encode_prompts(words, texts, 3)
    cut = tokenize.encode_prompts(words, texts, 3, "truncate_left")
    assert cut.tokens_NS[1].tolist() == [2, blue, sky] and cut.lengths_N.tolist() == [2, 3, 2]
    dropped = tokenize.encode_prompts(words, texts, 3, "drop")
    assert dropped.kept_N.tolist() == [0, 2] and dropped.tokens_NS.tolist() == [[0, 2, red], [0, 2, sky]]
    assert green != blue


def test_what_was_cut_is_said_aloud(words, caplog):
    tokenize.encode_prompts(words, ["red green blue sky", "red"], 2, "truncate_left")
    tokenize.encode_prompts(words, ["red green blue sky", "red"], 2, "drop")
    tokenize.encode_responses(words, ["red green", "red"], 2)
    tokenize.encode_prompts(words, ["red green blue sky", "red"], 2, "truncate_left", tell=False)
    said = [record.getMessage() for record in caplog.records]
    assert [message[:6] for message in said] == ["1 of 2"] * 3


def test_pairs_end_in_eos_unless_cut(words):
    red, green, blue = words.encode("red green blue")
    pairs = tokenize.encode_pairs(words, ["sky", "sky", "sky"], ["red", "red green", "red green blue"], 2, 3)
    assert pairs.response_tokens_NC.tolist() == [[red, 1, 0], [red, green, 1], [red, green, blue]]
    assert pairs.mask_NC.tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 1]]
    texts = tokenize.decode_completions(words, pairs.response_tokens_NC, pairs.mask_NC)
    assert texts == ["red", "red green", "red green blue"]


def test_pairs_drop_rows_together(words):
    (blue,) = words.encode("blue")
    pairs = tokenize.encode_pairs(words, ["sky sky sky", "sky"], ["red", "blue"], 2, 2, on_long="drop")
    assert pairs.kept_N.tolist() == [1] and pairs.response_tokens_NC.tolist() == [[blue, 1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["red"], 4, "shorten"), "on_long is 'shorten'"),
        ((["red"], 1), "max prompt tokens is 1"),
        ((["red green"], 2, "drop"), "nothing is left"),
    ],
)
def test_bad_prompt_limits_are_named(words, arguments, message):
    with pytest.raises(ValueError, match=message):
        tokenize.encode_prompts(words, *arguments)


def test_decoding_stops_at_the_first_eos(words):
    red, green = words.encode("red green")
    tokens, mask = np.array([[red, 1, green], [red, green, green]]), np.array([[1, 1, 1], [1, 1, 0]])
    assert tokenize.decode_completions(words, tokens, mask) == ["red", "red green"]


def test_the_synthetic_task_survives_the_round_trip():
    data = dataset.load(
        "synthetic", path="", seed=0, test_prompts=64, demonstrations_per_prompt=4, preferences_per_prompt=0
    )
    word_tokenizer = tokenizer.train_sentencepiece(data.texts(), model_type="word", vocab_size=64)
    assert word_tokenizer.vocab_size == 4 + 40 + 8 + 6 + 1
    prompts, responses = zip(*data.demonstrations, strict=True)
    pairs = tokenize.encode_pairs(word_tokenizer, prompts, responses, 5, 6)
    assert tokenize.decode_completions(word_tokenizer, pairs.response_tokens_NC, pairs.mask_NC) == list(responses)
    assert (pairs.prompt_lengths_N == 5).all()
