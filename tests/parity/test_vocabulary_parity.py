"""The ids of transformers' AutoTokenizer, versions 4 and 5, for folders of every kind.

Run in an environment of either version: it compares with the one that is installed. A folder that
this version cannot load is skipped, and so is one that we refuse because the versions differ.
"""
import json
import random
import warnings

import pytest
import tokenizers
import transformers
from make_checkpoints import SMALL
from tokenizers import AddedToken
from transformers import AutoTokenizer, GPT2Tokenizer, GPT2TokenizerFast, PreTrainedTokenizerFast

from gpt2_np import bpe
from gpt2_np.checkpoint import CheckpointError
from gpt2_np.checkpoint.layouts import HUGGING_FACE, Checkpoint
from gpt2_np.checkpoint.saving import write_tokenizer
from gpt2_np.checkpoint.vocabulary import open_tokenizer

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

VERSION = int(transformers.__version__.split(".")[0])
END = "<|endoftext|>"
SENTENCE = "low lower lowest newest widest single words and the cat sat on the mat, naïve café 猫 "
TRAINED = bpe.train(SENTENCE * 10, 300)
CONFIG = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 16, "n_embd": 8, "n_head": 2,
          "n_layer": 1}  # fmt: skip
NAMES = [END, "[PAD]", "<s>", "</s>", "<|user|>", "the", "covfefe", " x", "é", "<mask>", "a>"]
PIECES = [*NAMES, "low", "the cat", " ", "  ", "\n", "\t ", "x", "É", "_", ".", "don't", "²",
          "\u0301", "\u200d", "文", "\x1c", "\u3000"]  # fmt: skip


def texts(seed, n=30):
    chance = random.Random(seed)
    return ["", *("".join(chance.choices(PIECES, k=chance.randrange(1, 9))) for _ in range(n))]


def base(folder):
    """Write merges.txt, vocab.json and config.json of a plain GPT-2."""
    folder.mkdir(exist_ok=True)
    TRAINED.save(folder, names=("merges.txt", "vocab.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def ours(folder):
    return open_tokenizer(Checkpoint(folder, HUGGING_FACE, SMALL, {}))


def theirs(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder)


def assert_same(tokenizer, peer, seed=0):
    for text in texts(seed):
        assert tokenizer.encode(text, "all") == peer(text)["input_ids"], text
    assert tokenizer.n_vocab == len(peer)


def with_added_tokens(tokenizer):
    tokenizer.add_special_tokens(
        {"pad_token": "[PAD]", "additional_special_tokens": ["<|user|>", "<s>"]}
        if VERSION == 4 else {"pad_token": "[PAD]", "extra_special_tokens": ["<|user|>", "<s>"]})
    tokenizer.add_tokens([
        "covfefe", AddedToken("the", single_word=True), AddedToken("<mask>", lstrip=True),
        AddedToken("a>", rstrip=True, normalized=False),
    ])  # fmt: skip
    return tokenizer


CLASSES = {"slow": GPT2Tokenizer, "fast": GPT2TokenizerFast}
OPTIONS = [{}, {"add_prefix_space": True}, {"add_bos_token": True}]


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", CLASSES)
def test_a_saved_tokenizer(tmp_path, kind, options, added):
    tokenizer = CLASSES[kind].from_pretrained(base(tmp_path / "base"), **options)
    if added:
        tokenizer = with_added_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_same(ours(tmp_path), theirs(tmp_path))
    if tokenizer.is_fast:  # AutoTokenizer takes this class, from files that the slow one wrote too
        assert_same(ours(tmp_path), tokenizer)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_tokenizer_saved_in_one_format(tmp_path, legacy):
    tokenizer = with_added_tokens(GPT2TokenizerFast.from_pretrained(base(tmp_path / "base")))
    tokenizer.save_pretrained(tmp_path, legacy_format=legacy)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_same(ours(tmp_path), theirs(tmp_path))


@pytest.mark.parametrize("special", [[], ["<s>", "<mask>"]])
def test_a_tokenizer_trained_anew(tmp_path, special):
    tokenizer = GPT2TokenizerFast.from_pretrained(base(tmp_path / "base"))
    trained = tokenizer.train_new_from_iterator([SENTENCE] * 10, 330, new_special_tokens=special)
    trained.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_same(ours(tmp_path), theirs(tmp_path))
    assert ours(tmp_path).end_of_text == trained.eos_token_id


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("special", [[], ["<s>", "</s>", END, "[PAD]"]])
def test_a_tokenizer_of_the_tokenizers_library(tmp_path, special, as_json):
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([SENTENCE] * 10, vocab_size=330, special_tokens=special)
    if as_json:
        trained.save(str(tmp_path / "tokenizer.json"))
    else:
        trained.save_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_same(ours(tmp_path), theirs(tmp_path))


def test_a_tokenizer_of_the_tokenizers_library_in_a_class_without_a_model(tmp_path):
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator([SENTENCE] * 10, vocab_size=330)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="</s>")
    wrapped.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert_same(ours(tmp_path), theirs(tmp_path))


@pytest.mark.parametrize("first", [True, False])
def test_a_token_of_no_merge_that_looks_like_two_tokens(tmp_path, first):
    """First of all, or after another token than those that merges make."""
    plain = [name for name in TRAINED.all_ids() if name != END]
    order = ["a>", *plain, END] if first else [*plain, END, "a>"]
    base(tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate(order)}))
    assert_same(ours(tmp_path), theirs(tmp_path))


# --- random folders ---------------------------------------------------------------------------


class Folder:
    """A folder of random files that say the same, or not quite."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.ids = {name: id for name, id in TRAINED.all_ids().items() if name != END}
        inside = [name for name in self.sample(4) if name not in self.ids]
        if self.often(0.3):
            self.ids = {name: n for n, name in enumerate([*inside, *self.ids])}
        elif self.often(0.7):
            self.ids |= {name: len(self.ids) + n for n, name in enumerate(inside)}
        names = dict.fromkeys([*self.sample(5), *inside])
        new = [name for name in names if name not in self.ids]
        self.added = {name: self.ids[name] for name in names if name in self.ids}
        self.added |= {name: len(self.ids) + n for n, name in enumerate(new)}
        self.flagged = self.often(0.4)
        self.tokens = {name: self.token(name) for name in self.added}

    def often(self, probability):
        return self.chance.random() < probability

    def sample(self, most):
        return self.chance.sample(NAMES, self.chance.randrange(most))

    def token(self, name):
        flags = ["lstrip", "rstrip", "single_word", "normalized"]
        return {"content": name, "special": not (self.flagged and self.often(0.5))} | {
            flag: self.flagged and self.often(0.25) for flag in flags}  # fmt: skip

    def settings(self):
        settings = {"tokenizer_class": self.chance.choice(
            ["GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast"])}  # fmt: skip
        for name in ("add_prefix_space", "add_bos_token"):
            if self.often(0.3):
                settings[name] = self.often(0.7)
        for role in ("bos_token", "eos_token", "pad_token", "unk_token", "image_token"):
            if self.often(0.2):
                settings[role] = self.chance.choice([*NAMES, None])
            elif self.often(0.05):
                token = self.token(self.chance.choice(NAMES))
                settings[role] = {"__type": "AddedToken", **token}
        if self.often(0.2):
            settings["additional_special_tokens"] = self.sample(3)
        if self.often(0.1):
            settings["extra_special_tokens"] = self.chance.choice([{}, ["<x>"], {"i": "<i>"}])
        if self.often(0.5):
            settings["added_tokens_decoder"] = {
                str(id): self.tokens[name] for name, id in self.added.items()}  # fmt: skip
        return settings

    def special_map(self):
        roles = ("bos_token", "eos_token", "pad_token")
        return {role: self.token(name) if self.often(0.3) else name
                for role in roles for name in self.sample(2)}  # fmt: skip

    def json(self):
        template = [{"SpecialToken": {"id": name, "type_id": 0}} for name in [*self.added][:1]]
        template.append({"Sequence": {"id": "A", "type_id": 0}})
        post_processor = {
            "type": "TemplateProcessing", "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {name: {"id": name, "ids": [id], "tokens": [name]}
                               for name, id in self.added.items()},
        }  # fmt: skip
        byte_level = {"type": "ByteLevel", "add_prefix_space": self.often(0.2),
                      "trim_offsets": True, "use_regex": True}  # fmt: skip
        merges = TRAINED.merges_text().splitlines()[1:]
        fixed = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
        return {
            "version": "1.0", "truncation": fixed if self.often(0.1) else None, "padding": None,
            "added_tokens": [{"id": id} | self.tokens[name] for name, id in
                             sorted(self.added.items(), key=lambda item: item[1])],
            "normalizer": None, "pre_tokenizer": byte_level, "decoder": byte_level,
            "post_processor": self.chance.choice([None, byte_level, post_processor]),
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "fuse_unk": False,
                      "continuing_subword_prefix": "", "end_of_word_suffix": "", "vocab": self.ids,
                      "merges": [merge.split(" ") for merge in merges]},
        }  # fmt: skip

    def write(self, folder):
        files = {"config": CONFIG}
        if self.often(0.8):
            files["tokenizer_config"] = self.settings()
        if self.often(0.3):
            files["special_tokens_map"] = self.special_map()
        if self.often(0.3):
            files["added_tokens"] = {
                name: id for name, id in self.added.items() if name not in self.ids}  # fmt: skip
        in_json = self.often(0.6)
        if in_json:
            files["tokenizer"] = self.json()
        if not in_json or self.often(0.5):
            files["vocab"] = self.ids
            (folder / "merges.txt").write_text(TRAINED.merges_text(), encoding="utf-8")
        for stem, content in files.items():
            (folder / f"{stem}.json").write_text(json.dumps(content), encoding="utf-8")


def outcome(folder, seed):
    try:
        tokenizer = ours(folder)
    except CheckpointError:
        return "refused"
    try:
        peer = theirs(folder)
    except Exception:  # of any kind: this version cannot load what the other one can
        return "not loaded there"
    assert_same(tokenizer, peer, seed)
    return "same"


def test_random_folders_give_the_same_ids_or_are_refused(tmp_path):
    outcomes = []
    for seed in range(200):
        folder = tmp_path / str(seed)
        folder.mkdir()
        Folder(seed).write(folder)
        outcomes.append(outcome(folder, seed))
    assert outcomes.count("same") > 60  # so that refusals do not hide everything


# --- our own files ----------------------------------------------------------------------------


def test_what_we_write_is_read_there(tmp_path):
    n_written = 0
    for seed in range(60):
        folder, again = tmp_path / str(seed), tmp_path / f"{seed}-again"
        folder.mkdir()
        again.mkdir()
        Folder(seed).write(folder)
        try:
            tokenizer = ours(folder)
            write_tokenizer(tokenizer, again, 16)
        except (CheckpointError, bpe.TokenizerError):
            continue
        (again / "config.json").write_text(json.dumps(CONFIG))
        assert_same(tokenizer, theirs(again), seed)
        assert_same(ours(again), theirs(again), seed)
        n_written += 1
    assert n_written > 20
