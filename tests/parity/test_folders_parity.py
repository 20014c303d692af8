"""Every kind of folder that people have: the ids and logits of transformers, or a reason why not.

The file runs under transformers 4 and 5, which write different files. Each kind is written by the
installed one where it can write it, and is judged by it.
"""
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import make_checkpoints as make
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from folder_oracle import (
    assert_same,
    assert_same_ids,
    assert_same_logits,
    has_tokenizer,
    load,
    their_model,
    their_tokenizer,
)
from make_folders import (
    END,
    N_BASE,
    V5,
    base_tokenizer,
    dump,
    in_turn,
    make_model,
    old_files,
    patched,
    quiet,
    read,
    remove,
    renamed,
    settings_of,
    token,
    tokenizer_with,
    vocabulary,
    with_tensors,
    write,
)
from tokenizers import ByteLevelBPETokenizer, normalizers, pre_tokenizers, processors

pytestmark = pytest.mark.parity


class Kind(NamedTuple):
    """A kind of folder.

    `write(folder)` makes it, and may return another folder that holds the same for transformers.
    `expect` is SAME or one of the functions below. `options` are those of their from_pretrained.
    """

    name: str
    write: Any
    expect: Any
    texts: tuple = ()
    options: tuple = ()


def same(outcome, folder, kind):
    """The ids, logits, greedy tokens of transformers, and no warning."""
    assert_same(outcome, folder, kind.texts, kind.options)
    assert not outcome.warned


def refused(pattern):
    """A refusal that names the setting, the tensor or the file."""

    def check(outcome, folder, kind):
        assert outcome.refusal, f"loaded, with the warnings {outcome.warned!r}"
        assert re.search(pattern, outcome.refusal), f"names no {pattern}: {outcome.refusal}"

    return check


def warned(pattern):
    """All of transformers' results, and a warning that names what was left out."""

    def check(outcome, folder, kind):
        assert_same(outcome, folder, kind.texts, kind.options)
        assert re.search(pattern, outcome.warned), f"names no {pattern}: {outcome.warned!r}"

    return check


def without_tokenizer(pattern):
    """The logits of transformers and no tokenizer, with a warning that says why."""

    def check(outcome, folder, kind):
        assert not outcome.refusal, f"refused: {outcome.refusal}"
        assert outcome.model.tokenizer is None, "a tokenizer that cannot be the one of transformers"
        assert re.search(pattern, outcome.warned), f"names no {pattern}: {outcome.warned!r}"
        assert_same_logits(outcome.model, their_model(folder))

    return check


def either(*checks):
    """One of several answers that the rule allows."""

    def check(outcome, folder, kind):
        failures = []
        for one in checks:
            try:
                return one(outcome, folder, kind)
            except AssertionError as failure:
                failures.append(str(failure).split("\n")[0])
        raise AssertionError(" ; ".join(failures))

    return check


def same_or_refused(pattern):
    return either(same, refused(pattern))


def same_or_no_tokenizer(pattern):
    return either(same, without_tokenizer(pattern))


def any_loss(pattern):
    """The results of transformers, perhaps with a warning; or a refusal that names the reason."""
    return either(same, warned(pattern), refused(pattern))


# --- tokenizers ------------------------------------------------------------------------------

SLOW = "GPT2Tokenizer"
CHAT = ("<|user|>", "<|startoftext|>")
FLAGS = ("lstrip", "rstrip", "single_word")
STRIPS = ("a <m> b", "a  <m>  b", "a\n<m>\tb", "<m>", " <m> ", "<m><m>", "<m> <m>", "x<m>y", "_<m>.",
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


WORDY = "Hello world, the user and the bot hi there. newword café naïve 猫 3.14 isn't they'll\n\n x y"


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
                                 "normalized": False, "single_word": False}}), same_or_no_tokenizer("lstrip"),
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
    Kind("byte-order marks", lambda f: marked(f), same),
]


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


# --- settings --------------------------------------------------------------------------------


def set_to(**settings):
    """Write a model that has the settings when it is made, and so knows what they mean."""
    return lambda folder: write(folder, **settings)


def says(**settings):
    """Write a model, and set keys of config.json afterwards. None is null."""
    return lambda folder: write(folder, config=lambda found: found.update(settings))


def without_keys(*names):
    return lambda folder: write(
        folder, config=lambda found: {k: v for k, v in found.items() if k not in names}
    )


def bare_settings(folder):
    """The keys that have no default here; the rest is left to the reader."""
    needed = ("model_type", "vocab_size", "n_positions", "n_embd", "n_head", "n_layer")
    return write(folder, config=lambda found: {k: found[k] for k in needed})


def default_layers(folder):
    keep = ("model_type", "vocab_size", "n_embd", "n_positions")
    return write(folder, n_layer=12, n_embd=24, n_head=12,
                 config=lambda found: {k: found[k] for k in keep})  # fmt: skip


def nulls(folder):
    """Settings of null where 4 takes the default. 5 refuses some: it reads the folder without."""
    names = ("n_inner", "n_ctx", "reorder_and_upcast_attn", "scale_attn_by_inverse_layer_idx",
             "add_cross_attention", "summary_activation", "pad_token_id", "task_specific_params",
             "quantization_config")  # fmt: skip
    write(folder, config=lambda found: found.update(dict.fromkeys(names)))
    return write(folder.with_name("twin"))


ACTIVATIONS = ["gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh"]
OTHER_ACTIVATIONS = ["gelu", "relu", "quick_gelu", "silu", "gelu_python", "gelu_10", "tanh"]

SETTINGS = [
    *[Kind(f"activation {name}", set_to(activation_function=name), same)
      for name in ACTIVATIONS if name in transformers.activations.ACT2FN],
    *[Kind(f"activation {name}", set_to(activation_function=name),
           same_or_refused("activation_function")) for name in OTHER_ACTIVATIONS],
    Kind("reorder_and_upcast_attn", set_to(reorder_and_upcast_attn=True), same),
    Kind("scale by layer", set_to(scale_attn_by_inverse_layer_idx=True),
         same_or_refused("scale_attn_by_inverse_layer_idx")),
    Kind("scale by layer, upcast", set_to(
        scale_attn_by_inverse_layer_idx=True, reorder_and_upcast_attn=True),
        same_or_refused("scale_attn_by_inverse_layer_idx")),
    Kind("no scale", set_to(scale_attn_weights=False), same_or_refused("scale_attn_weights")),
    Kind("epsilon 1e-6", set_to(layer_norm_epsilon=1e-6), same_or_refused("layer_norm_epsilon")),
    Kind("epsilon 1e-12", set_to(layer_norm_epsilon=1e-12), same_or_refused("layer_norm_epsilon")),
    Kind("cross-attention", set_to(add_cross_attention=True),
         same_or_refused("add_cross_attention|crossattention|ln_cross_attn")),
    Kind("cross-attention in the weights alone", lambda f: write(
        f, add_cross_attention=True, config=lambda c: c.update(add_cross_attention=False)),
        any_loss("crossattention|ln_cross_attn|q_attn")),
    Kind("narrow MLP", set_to(n_inner=24), same_or_refused("n_inner")),
    Kind("n_inner as by default", set_to(n_inner=64), same),
    Kind("n_ctx above n_positions", says(n_ctx=1024), same),
    Kind("n_ctx under n_positions", says(n_ctx=16), same),
    Kind("no n_ctx", without_keys("n_ctx"), same),
    Kind("null for defaults", nulls, same),
    Kind("no setting but the sizes", bare_settings, same),
    Kind("sizes by default", default_layers, same),
    Kind("sizes under their common names", lambda f: write(f, config=lambda found: {
        {"n_embd": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers",
         "n_positions": "max_position_embeddings"}.get(k, k): v for k, v in found.items()}),
        same_or_refused("n_embd|n_head|n_layer|n_positions|hidden_size")),
    Kind("dropout rates", set_to(attn_pdrop=0.0, resid_pdrop=0.3, embd_pdrop=0.2), same),
    Kind("settings of other tasks", says(
        num_labels=5, id2label={"0": "a"}, label2id={"a": 0}, summary_type="cls_index",
        task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
        use_cache=False, gradient_checkpointing=False, finetuning_task="x",
        _name_or_path="gpt2", transformers_version="4.2.0", resid_pdrop=0.1,
        architectures=["GPT2LMHeadModel"], torch_dtype="float16", pad_token_id=0), same),
    Kind("tied by null", says(tie_word_embeddings=True), same),
    Kind("untied, another head", lambda f: write(f, tie_word_embeddings=False),
         same_or_refused("tie_word_embeddings|lm_head")),
    Kind("untied, the same head", lambda f: write(
        f, config=lambda c: c.update(tie_word_embeddings=False),
        tensors=lambda t: t | {"lm_head.weight": t["transformer.wte.weight"]}), same),
    Kind("untied, no head", says(tie_word_embeddings=False),
         refused("tie_word_embeddings|lm_head")),
    Kind("quantized", says(quantization_config={"load_in_8bit": True, "quant_method":
         "bitsandbytes"}), refused("quantization_config|quantiz")),
    Kind("another model", says(model_type="gpt_neo"), refused("model_type.*gpt_neo")),
    Kind("more rows said than there are", says(vocab_size=N_BASE + 7), refused("wte|vocab_size")),
]


# --- tensors ---------------------------------------------------------------------------------


def head_only(tensors):
    """What safetensors.torch.save_model may keep of tied weights."""
    return {"lm_head.weight": tensors.pop("transformer.wte.weight")} | tensors


def head_alone(folder):
    """transformers 4 does not read such a file itself."""
    write(folder, tensors=head_only)
    return write(folder.with_name("twin"))


def saved_by_save_model(wrap=lambda model: model):
    def make_it(folder):
        twin = write(folder.with_name("twin"), tokenizer_with(CHAT))
        write(folder, tokenizer_with(CHAT))
        with quiet():
            model = their_model(twin)
            safetensors.torch.save_model(wrap(model), str(folder / "model.safetensors"))
        return twin

    return make_it


def wrapped(function, **options):
    """Rename the tensors as a wrapper does. transformers reads the folder without."""

    def make_it(folder):
        write(folder, tensors=renamed(function), **options)
        return write(folder.with_name("twin"), **options)

    return make_it


def bare(name):
    return name.removeprefix("transformer.")


def older_masks(tensors):
    """Causal masks that transformers kept in the file before 4.30."""
    mask = torch.ones(64, 64, dtype=torch.bool).tril()[None, None]
    for layer in range(2):
        tensors[f"transformer.h.{layer}.attn.bias"] = mask
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


def byte_masks(tensors):
    return {k: v.to(torch.uint8) if v.dtype == torch.bool else v
            for k, v in older_masks(tensors).items()}  # fmt: skip


def head_in(dtype, of=torch.float32):
    """Write weights in one type, and the head beside them in another that holds the same."""

    def change(tensors):
        if of is torch.float32:  # values that both types hold
            tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"].to(dtype).float()
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"].to(dtype)
        return tensors

    return lambda folder: write(folder, dtype=of, tensors=change)


def mixed(tensors):
    kinds = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    return {name: value.to(kinds[i % 4]) for i, (name, value) in enumerate(tensors.items())}


def lfs_pointer(*names):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "4d7a" * 16 + "\nsize {}\n"
    return lambda folder: [Path(folder, n).write_text(text.format(548105171)) for n in names]


def pickled(*names):
    def files(folder):
        (folder / "model.safetensors").unlink()
        for name in names:
            (folder / name).write_bytes(b"PK\x03\x04" + bytes(60))

    return lambda folder: write(folder, files=files)


def trainer_output(folder):
    """A checkpoint of Trainer: much lies beside the model that is not read."""

    def files(f):
        for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
            (f / name).write_bytes(b"PK\x03\x04" + bytes(60))
        dump(f / "trainer_state.json", {"best_metric": None, "epoch": 3.0})
        (f / "chat_template.jinja").write_text("{{ messages }}")

    return write(folder, tokenizer_with(CHAT, pad="[PAD]"), files=files)


def checkpoints_inside(folder):
    write(folder / "checkpoint-500")
    write(folder / "checkpoint-1000")
    return folder


def variant(name):
    return lambda folder: write(folder, files=lambda f: (f / "model.safetensors").rename(f / name))


def adapter(folder):
    folder.mkdir()
    dump(folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "gpt2"})
    tensors = {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 16)}
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")


def nano_gpt(tensors):
    """nanoGPT keeps the weights of nn.Linear: [out, in]."""
    kinds = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {"_orig_mod." + k: v.T if k.endswith(kinds) else v for k, v in tensors.items()}


HEADS = ["GPT2Model", "GPT2ForSequenceClassification", "GPT2DoubleHeadsModel",
         "GPT2ForTokenClassification", "GPT2ForQuestionAnswering"]  # fmt: skip

TENSORS = [
    Kind("GPT2Model", lambda f: write(f, cls="GPT2Model"), same),
    Kind("sequence classification", lambda f: write(
        f, cls="GPT2ForSequenceClassification", pad_token_id=0), warned(r"score\.weight")),
    Kind("double heads", lambda f: write(f, cls="GPT2DoubleHeadsModel", summary_proj_to_labels=
         True, num_labels=1), warned("multiple_choice_head")),
    Kind("token classification", lambda f: write(f, cls="GPT2ForTokenClassification"),
         warned(r"classifier\.(weight|bias)")),
    Kind("question answering", lambda f: write(f, cls="GPT2ForQuestionAnswering"),
         warned("qa_outputs")),
    Kind("value head of TRL", lambda f: write(f, tensors=with_tensors(
        v_head__summary__weight=(1, 16), v_head__summary__bias=(1,))), warned("v_head")),
    Kind("several heads", lambda f: write(f, tensors=with_tensors(
        v_head__summary__weight=(1, 16), score__weight=(2, 16))), warned("score.*v_head|v_head.*score")),
    Kind("tensors of no known head", lambda f: write(f, tensors=with_tensors(foo__weight=(3,))),
         any_loss("foo")),
    Kind("one layer more than said", lambda f: write(
        f, n_layer=3, config=lambda c: c.update(n_layer=2)), any_loss(r"h\.2\.")),
    Kind("one layer less than said", says(n_layer=3), refused(r"h\.2\.")),
    Kind("a tensor is missing", lambda f: write(f, tensors=lambda t: {
        k: v for k, v in t.items() if not k.endswith("h.1.mlp.c_fc.bias")}),
        refused(r"h\.1\.mlp\.c_fc\.bias")),
    Kind("a transposed tensor", lambda f: write(f, tensors=lambda t: {
        k: v.T if k.endswith("c_attn.weight") else v for k, v in t.items()}), refused("c_attn")),
    Kind("nanoGPT's weights", lambda f: write(f, tensors=nano_gpt), refused("c_attn|c_fc")),
    Kind("the head alone of tied weights", head_alone, same),
    Kind("save_model", saved_by_save_model(), same),
    Kind("the head alone, no prefix", wrapped(
        lambda n: "lm_head.weight" if n.endswith("wte.weight") else bare(n)), same),
    Kind("both of tied weights", lambda f: write(f, tensors=lambda t: t | {
        "lm_head.weight": t["transformer.wte.weight"]}), same),
    Kind("a head that differs", lambda f: write(f, tensors=lambda t: t | {
        "lm_head.weight": t["transformer.wte.weight"] + 0.5}), same_or_refused("lm_head")),
    Kind("a head that differs in one value", lambda f: write(f, tensors=lambda t: t | {
        "lm_head.weight": t["transformer.wte.weight"] + torch.eye(N_BASE, 16) * 1e-3}),
        same_or_refused("lm_head")),
    Kind("float16 head beside float32", head_in(torch.float16), same),
    Kind("bfloat16 head beside float32", head_in(torch.bfloat16), same),
    Kind("float32 head beside float16", head_in(torch.float32, of=torch.float16), same),
    Kind("float32 head beside bfloat16", head_in(torch.float32, of=torch.bfloat16), same),
    Kind("float16", lambda f: write(f, dtype=torch.float16), same),
    Kind("bfloat16", lambda f: write(f, dtype=torch.bfloat16), same),
    Kind("float64", lambda f: write(f, dtype=torch.float64), same),
    Kind("all types", lambda f: write(f, tensors=mixed), same),
    Kind("shards", lambda f: write(f, shards=True), same),
    Kind("shards of float16 with a head", lambda f: write(
        f, shards=True, dtype=torch.float16, cls="GPT2ForTokenClassification"),
        warned("classifier")),
    Kind("no prefix", lambda f: write(f, tensors=renamed(bare)), same),
    *[Kind(f"prefix {p!r}", wrapped(lambda n, p=p: p + n), same)
      for p in ("_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod.")],
    *[Kind(f"prefix {p!r} before bare names", wrapped(lambda n, p=p: p + bare(n)), same)
      for p in ("_orig_mod.", "module.", "transformer.module.", "transformer._orig_mod.",
                "module.transformer._orig_mod.")],
    Kind("a wrapped head alone", wrapped(lambda n: "_orig_mod." + (
        "lm_head.weight" if n.endswith("wte.weight") else n)), same),
    Kind("causal masks of older files", lambda f: write(f, tensors=older_masks), same),
    Kind("causal masks as bytes", lambda f: write(f, tensors=byte_masks), same),
    Kind("wrapped causal masks", lambda f: (
        write(f, tensors=lambda t: renamed(lambda n: "module." + n)(older_masks(t))),
        write(f.with_name("twin")))[1], same),
    Kind("rows to a multiple of 64", lambda f: write(f, rows=384), same),
    Kind("rows to a multiple of 64, added tokens", lambda f: write(
        f, tokenizer_with(CHAT, pad="[PAD]"), rows=384), same),
    Kind("six layers", lambda f: write(f, n_layer=6, n_embd=24, n_head=12), same),
    Kind("Trainer's folder", trainer_output, same),
    Kind("a folder of checkpoints", checkpoints_inside, refused("config.json|checkpoint-")),
    Kind("model.fp16.safetensors alone", lambda f: write(
        f, dtype=torch.float16,
        files=lambda f: (f / "model.safetensors").rename(f / "model.fp16.safetensors")),
        same, options=(("variant", "fp16"),)),
    Kind("pytorch_model.bin alone", pickled("pytorch_model.bin"),
         refused(r"pytorch_model\.bin.*convert")),
    Kind("pickled shards alone", pickled(
        "pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json"), refused(r"pytorch_model.*convert")),
    Kind("ckpt.pt alone", pickled("ckpt.pt"), refused(r"safetensors")),
    Kind("tf_model.h5 alone", pickled("tf_model.h5"), refused(r"tf_model\.h5|safetensors")),
    Kind("pytorch_model.bin beside", lambda f: write(f, files=lambda f: (
        f / "pytorch_model.bin").write_bytes(b"PK\x03\x04")), same),
    Kind("git-lfs pointer for the weights", lambda f: write(
        f, files=lfs_pointer("model.safetensors")), refused("git.?lfs")),
    Kind("git-lfs pointer for the tokenizer", lambda f: write(
        f, files=in_turn(remove("merges.txt", "vocab.json"), lfs_pointer("tokenizer.json"))),
        either(refused("git.?lfs"), pointer_warning := lambda outcome, folder, kind: (
            _assert_pointer(outcome)))),
    Kind("git-lfs pointers for everything", lambda f: write(f, files=lfs_pointer(
        "model.safetensors", "config.json", "tokenizer.json")), refused("git.?lfs")),
    Kind("an adapter", adapter, refused("adapter|config.json")),
    Kind("no tokenizer", lambda f: write(f, False), same),
]


def _assert_pointer(outcome):
    assert outcome.model is not None and outcome.model.tokenizer is None
    assert re.search("git.?lfs", outcome.warned), outcome.warned


KINDS = TOKENIZERS + SETTINGS + TENSORS


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_a_folder_of_each_kind_is_read_as_transformers_reads_it(tmp_path, kind):
    folder = tmp_path / "model"
    twin = kind.write(folder)
    outcome = load(folder)
    kind.expect(outcome, twin or folder, kind)
