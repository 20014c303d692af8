"""Folders of GPT-2 as people have them, written by the installed transformers.

`write` saves a tiny model and its tokenizer. Its keyword arguments change the folder afterwards:
the settings, the names and types of the tensors, the files of the tokenizer.
"""
import contextlib
import functools
import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import safetensors.torch
import torch
import transformers

from gpt2_np import bpe

torch.set_num_threads(1)  # tiny matrices: threads would only wait for each other
V5 = int(transformers.__version__.split(".")[0]) >= 5
END = "<|endoftext|>"
CHAT = ("<|user|>", "<|startoftext|>")  # tokens that people add
WORDS = (
    "Hello world, hello there! The user said: hi world; user 12 and 3 words\n\n newword café naïve "
    "they'll see the theory, isn't it? The bot answers the user in the café: 3.14 words\n"
)  # fmt: skip
N_BASE = 320  # 256 bytes, 63 merges and <|endoftext|>


@contextlib.contextmanager
def quiet():
    """Ignore the warnings and messages of the peers: only ours are judged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@functools.cache
def vocabulary():
    """Return the folder of a small vocabulary: vocab.json and merges.txt, as OpenAI's in form."""
    folder = tempfile.TemporaryDirectory(prefix="vocabulary")
    bpe.train(WORDS * 3, N_BASE).save(folder.name, names=("merges.txt", "vocab.json"))
    return folder


def read(file):
    return json.loads(Path(file).read_text(encoding="utf-8"))


def dump(file, value):
    Path(file).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def token(content, **flags):
    """Return an added token. Not special unless asked for."""
    return transformers.AddedToken(content, **flags)


def base_tokenizer(cls="GPT2TokenizerFast", **settings):
    with quiet():
        kind = getattr(transformers, cls)
        return kind.from_pretrained(vocabulary().name, **settings)


def tokenizer_with(special=(), plain=(), pad=None, cls="GPT2TokenizerFast", **settings):
    """Return a tokenizer of transformers with tokens added after the vocabulary."""
    tokenizer = base_tokenizer(cls, **settings)
    if pad:
        tokenizer.add_special_tokens({"pad_token": pad})
    if plain:
        tokenizer.add_tokens(list(plain))
    if special:
        tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer


def old_files(folder, added=None, special=None, settings=None):
    """Write the files that transformers 2 and 3 wrote: two of the vocabulary and small ones."""
    folder = Path(folder)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(Path(vocabulary().name, name), folder)
    if added is not None:
        dump(folder / "added_tokens.json", added)
    if special is not None:
        dump(folder / "special_tokens_map.json", special)
    if settings is not None:
        dump(folder / "tokenizer_config.json", settings)


def settings_of(n_vocab, **changes):
    ends = {"bos_token_id": N_BASE - 1, "eos_token_id": N_BASE - 1}
    sizes = {"vocab_size": n_vocab, "n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 2}
    return ends | sizes | {"initializer_range": 0.3} | changes


def make_model(cls="GPT2LMHeadModel", seed=0, **settings):
    """Return a model whose biases and gains are random too, so that a lost one is noticed."""
    torch.manual_seed(seed)
    with quiet():
        model = getattr(transformers, cls)(transformers.GPT2Config(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write(
    folder, tokenizer=None, cls="GPT2LMHeadModel", dtype=torch.float32, rows=None, shards=False,
    tensors=None, config=None, files=None, seed=0, **settings,
):  # fmt: skip
    """Save a model and, unless it is False, a tokenizer. Return the folder.

    `rows` are those of the embedding, by default one per token. `tensors`, `config` and `files`
    are functions of what was saved: the dict of tensors, config.json's dict, the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is None:
        tokenizer = base_tokenizer()
    if rows is None:
        rows = len(tokenizer) if tokenizer else N_BASE
    model = make_model(cls, seed, **settings_of(rows, **settings)).to(dtype)
    with quiet():
        model.save_pretrained(folder, max_shard_size="8KB" if shards else "5GB")
        if tokenizer:
            tokenizer.save_pretrained(folder)
    if tensors:
        change_tensors(folder, tensors)
    if config:
        found = read(folder / "config.json")
        dump(folder / "config.json", config(found) or found)
    if files:
        files(folder)
    return folder


def change_tensors(folder, function, name="model.safetensors"):
    """Rewrite the weights. `function` alters the dict of tensors, or returns another one."""
    file = Path(folder, "model.safetensors")
    found = safetensors.torch.load_file(file)
    changed = function(found) or found
    file.unlink()
    whole = {key: value.contiguous().clone() for key, value in changed.items()}
    safetensors.torch.save_file(whole, Path(folder, name), {"format": "pt"})


def renamed(function):
    """Return a change of tensors that renames each."""
    return lambda tensors: {function(name): value for name, value in tensors.items()}


def with_tensors(**shapes):
    """Return a change of tensors that adds some; "__" in a name is a dot."""
    made = {name.replace("__", "."): shape for name, shape in shapes.items()}
    return lambda tensors: tensors | {
        name: torch.ones(shape) * 0.5 for name, shape in made.items()
    }


def patched(name, **changes):
    """Return a change of files that sets keys of a JSON file."""

    def change(folder):
        file = Path(folder, name)
        dump(file, (read(file) if file.exists() else {}) | changes)

    return change


def remove(*names):
    """Return a change of files that removes some."""

    def change(folder):
        for name in names:
            Path(folder, name).unlink(missing_ok=True)

    return change


def in_turn(*changes):
    """Return the changes as one."""

    def change(folder):
        for one in changes:
            one(folder)

    return change
