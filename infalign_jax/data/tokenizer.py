"""Tokenisers: one small protocol, SentencePiece or a Hugging Face `tokenizer.json` behind it."""

import io
from typing import Protocol

import sentencepiece
from etils import epath

from infalign_jax.data import hf_tokenizer
from infalign_jax.data.dataset import require_count
from infalign_jax.json_object import parse_object

MODEL_TYPES = ("word", "bpe", "unigram")
MODEL_FILE = "tokenizer.model"
_SPACE_MARK = "\u2581"  # how SentencePiece writes a space; in a text it would decode to one
_TRAINING_TEXTS = 200_000  # SentencePiece gains nothing from more, and its memory grows with them


class Tokenizer(Protocol):
    """What the stages ask of a tokeniser. `bos_id` is None where there is none; `pad_id` is never read back as text."""

    vocab_size: int
    pad_id: int
    bos_id: int | None
    eos_id: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no BOS, no EOS."""

    def decode(self, ids: list[int]) -> str:
        """The text of the ids; control ids (padding, BOS, EOS) leave no trace in it."""

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each text."""

    def decode_batch(self, ids: list[list[int]]) -> list[str]:
        """`decode` of each list of ids."""

    def save(self, folder) -> None:
        """Writes the tokeniser into the folder, from where `load(folder)` reads it."""


class SentencePieceTokenizer:
    """A `Tokenizer` over a serialised SentencePiece model; `add_bos`: whether prompts begin with its BOS.

    Raises ValueError for bytes that are no model or have no EOS.
    """

    def __init__(self, model_bytes, add_bos=True):
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
        except RuntimeError as error:
            raise ValueError("the bytes given are not a SentencePiece model") from error
        self.model_bytes = model_bytes
        self.vocab_size = self._model.vocab_size()
        self.eos_id = self._model.eos_id()
        if self.eos_id < 0:
            raise ValueError("the SentencePiece model has no end-of-sequence piece; train it with an eos_id")
        self.bos_id = self._model.bos_id() if add_bos and self._model.bos_id() >= 0 else None
        self.pad_id = next((i for i in (self._model.pad_id(), self._model.unk_id()) if i >= 0), 0)
        byte_ids = [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        has_bytes = all(self._model.is_byte(i) for i in byte_ids)
        self._space_mark_ids = byte_ids if has_bytes else None

    def encode(self, text):
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {index} is {text!r}; a tokeniser encodes strings")
        rows = self._model.encode(list(texts), num_threads=1)
        if self._space_mark_ids is not None:
            for index, text in enumerate(texts):
                if _SPACE_MARK in text:
                    rows[index] = self._encode_around_space_marks(text)
        return rows

    def _encode_around_space_marks(self, text):
        ids = []
        for index, part in enumerate(text.split(_SPACE_MARK)):
            ids.extend(self._space_mark_ids if index else [])
            ids.extend(self._model.encode(part))
        return ids

    def decode(self, ids):
        return self.decode_batch([ids])[0]

    def decode_batch(self, ids):
        # A model's vocabulary may be padded beyond the tokeniser's; such ids have no text.
        rows = [[int(i) for i in row if i < self.vocab_size] for row in ids]
        return self._model.decode(rows, num_threads=1)

    def save(self, folder):
        folder = epath.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{MODEL_FILE}.partial"
        partial.write_bytes(self.model_bytes)
        partial.replace(folder / MODEL_FILE)  # a run killed here leaves no half-written model


def train_sentencepiece(texts, *, model_type, vocab_size):
    """A SentencePiece tokeniser trained on the texts, the same for the same texts; nothing is written to disk.

    Args:
      texts: training texts (the first 200,000 are used); newlines are part of the text.
      model_type: 'word' for closed vocabularies (every word seen is one piece, runs of spaces are not kept), or 'bpe'
        or 'unigram' with byte fallback, where `decode(encode(x)) == x` for every text: no normalisation, spaces and
        newlines kept.
      vocab_size: pieces in all, an upper bound: a small corpus gives fewer.

    Returns:
      `SentencePieceTokenizer` with ids 0 padding, 1 EOS, 2 BOS, 3 unknown.

    Raises:
      ValueError: unknown model type, no text, a vocabulary too small for the special pieces or, for 'word', the words.
    """
    if model_type not in MODEL_TYPES:
        raise ValueError(f"tokenizer model_type is {model_type!r}; it is one of {', '.join(MODEL_TYPES)}")
    texts = [text for text in texts[:_TRAINING_TEXTS] if text.strip()]
    if not texts:
        raise ValueError("there is no text to train a tokenizer on")
    specials = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3)
    if model_type == "word":
        words = len({word for text in texts for word in text.split()})
        require_count("tokenizer vocab_size (the words of the data and 4 special pieces)", vocab_size, words + 4)
        shape = dict(use_all_vocab=True, vocab_size=words + 4, character_coverage=1.0)
    else:
        require_count("tokenizer vocab_size", vocab_size, 300)  # 256 bytes, 4 specials, 2 newline pieces, some letters
        shape = dict(vocab_size=int(vocab_size), hard_vocab_limit=False, byte_fallback=True, split_digits=True)
        shape |= dict(add_dummy_prefix=False, remove_extra_whitespaces=False, character_coverage=0.9995)
        shape |= dict(user_defined_symbols=["\n\n", "\n"])
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=model_type,
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,
            num_threads=1,
            minloglevel=2,
            **specials,
            **shape,
        )
    except RuntimeError as error:
        raise ValueError(
            f"tokenizer vocab_size is {vocab_size}; SentencePiece could not train on {len(texts)} texts: {error}"
        ) from error
    return SentencePieceTokenizer(model.getvalue())


def load(path):
    """The tokeniser of a file (SentencePiece `.model`, HF `tokenizer.json`) or of a folder that holds one.

    A folder with both is read by its `tokenizer.json`, which also knows the added tokens of chat models. Raises
    ValueError where there is none, or where it cannot be used.
    """
    path = epath.Path(path)
    if path.suffix == ".json" or (path / hf_tokenizer.TOKENIZER_FILE).is_file():
        return hf_tokenizer.HFTokenizer.from_folder(path.parent if path.suffix == ".json" else path)
    file = path / MODEL_FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"tokenizer path {str(path)!r} holds no tokenizer; give a SentencePiece .model or a folder of {MODEL_FILE}"
        )
    config = file.parent / "tokenizer_config.json"
    try:
        options = parse_object(config.read_bytes(), config.name) if config.is_file() else {}
        return SentencePieceTokenizer(file.read_bytes(), add_bos=options.get("add_bos_token") is not False)
    except ValueError as error:
        raise ValueError(f"tokenizer file {str(file)!r} cannot be used: {error}") from error
