"""A `Tokenizer` over a Hugging Face `tokenizer.json` (the `tokenizers` library, an optional dependency)."""

import pathlib

from infalign_jax.json_object import parse_object

TOKENIZER_FILE = "tokenizer.json"
# What belongs to a tokeniser in an HF folder: read where present, and written back byte for byte.
FILES = (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model")


class HFTokenizer:
    """See `tokenizer.Tokenizer`. Special tokens written in a text are read as such, as chat templates need.

    Args:
      files: name -> bytes of the files of `FILES` that the folder has; `tokenizer.json` at least.

    Raises:
      ValueError: no `tokenizers` library, an unreadable `tokenizer.json`, or no EOS token named in the config.
    """

    def __init__(self, files):
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ValueError("a tokenizer.json needs the tokenizers library; install infalign-jax[hf]") from error
        try:
            self._model = Tokenizer.from_str(files[TOKENIZER_FILE].decode("utf-8"))
        except Exception as error:  # the library raises a bare Exception
            raise ValueError(f"{TOKENIZER_FILE} cannot be read: {error}") from error
        self._model.no_padding()
        self._model.no_truncation()  # the file may carry limits of the run that wrote it
        self.files = files
        config = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            config |= parse_object(files.get(name, b"{}"), name)
        self.vocab_size = self._model.get_vocab_size(with_added_tokens=True)
        self.eos_id = self._special_id(config, "eos_token")
        if self.eos_id is None:
            raise ValueError("tokenizer_config.json names no eos_token that the tokenizer knows")
        self.bos_id = self._special_id(config, "bos_token") if self._adds_bos(config) else None
        if config.get("add_bos_token") and self.bos_id is None:
            raise ValueError(
                "tokenizer_config.json has add_bos_token = true, but no bos_token that the tokenizer knows"
            )
        pad_id = self._special_id(config, "pad_token")
        self.pad_id = self.eos_id if pad_id is None else pad_id

    @classmethod
    def from_folder(cls, folder):
        """The tokeniser of an HF folder. Raises ValueError naming the folder where it cannot be used."""
        folder = pathlib.Path(folder)
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        if TOKENIZER_FILE not in files:
            raise ValueError(f"tokenizer folder {str(folder)!r} holds no {TOKENIZER_FILE}")
        try:
            return cls(files)
        except ValueError as error:
            raise ValueError(f"tokenizer folder {str(folder)!r} cannot be used: {error}") from error

    def _special_id(self, config, key):
        token = config.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(token, str):
            raise ValueError(f"tokenizer_config.json has {key} = {token!r}; it must be a string")
        return None if token is None else self._model.token_to_id(token)

    def _adds_bos(self, config):
        """Whether a sequence of this tokeniser begins with BOS: as its config says, else as it does it itself."""
        if config.get("add_bos_token") is not None:
            return bool(config["add_bos_token"])
        return self._model.encode("", add_special_tokens=True).ids[:1] == [self._special_id(config, "bos_token")]

    def encode(self, text):
        return self._model.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts):
        for index, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"text {index} is {text!r}; a tokeniser encodes strings")
        return [encoding.ids for encoding in self._model.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids):
        return self._model.decode([int(i) for i in ids], skip_special_tokens=True)

    def decode_batch(self, ids):
        return self._model.decode_batch([[int(i) for i in row] for row in ids], skip_special_tokens=True)

    def save(self, folder):
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
