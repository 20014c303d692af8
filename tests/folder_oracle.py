"""Judge our reading of a folder by that of transformers."""
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from make_folders import END, quiet

import gpt2_np
from gpt2_np.checkpoint import CheckpointWarning

TEXTS = (
    "Hello world", " Hello world", "hello  the\tcafé 🦙 isn't 3.14!\n\n  newword", END,
    f"the user{END}said {END} hi{END}{END}", "Hello\u00a0naïve ı 猫", "   ", "x" * 9,
)  # fmt: skip


class Outcome(NamedTuple):
    """Our reading of a folder: a model, or the refusal; and the warnings."""

    model: Any
    refusal: str
    warned: str


def load(path):
    """Return the outcome of `gpt2_np.load`. Anything but an Error passes through."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model, refusal = gpt2_np.load(path), ""
        except gpt2_np.Error as error:
            model, refusal = None, str(error)
    strange = [w for w in caught if not issubclass(w.category, CheckpointWarning)]
    assert not strange, f"other warnings: {[str(w.message) for w in strange]}"
    warned = " | ".join(str(w.message) for w in caught)
    for message in (refusal, *(str(w.message) for w in caught)):
        assert "\n" not in message and len(message) < 600, f"not one sentence: {message!r}"
    return Outcome(model, refusal, warned)


def their_tokenizer(folder):
    with quiet():
        return transformers.AutoTokenizer.from_pretrained(folder)


def their_model(folder, **options):
    """Return the model in float32. Only eager attention computes all settings of a GPT-2."""
    options["dtype"] = torch.float32
    with quiet():
        kind = transformers.AutoModelForCausalLM
        model = kind.from_pretrained(folder, attn_implementation="eager", **options)
    return model.eval()


def texts_with(names):
    """Return texts that hold the names of added tokens alone, beside each other and in words."""
    around = ["{0}", "the {0} user", "the{0}user", "{0}{0}", "  {0}\n {0} ", "a_{0}_1", "é{0}é"]
    texts = [form.format(name) for name in names for form in around]
    return [*texts, "".join(names), " ".join(names)] if names else texts


def their_ids(tokenizer, text):
    """Return the ids of a text, or None if the library panics: it does on some added tokens."""
    try:
        return tokenizer(text)["input_ids"]
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        return None


def assert_same_ids(ours, theirs, texts=()):
    """Hold our ids equal to those of transformers, on texts that exercise the added tokens."""
    for text in [*TEXTS, *texts_with(list(theirs.get_added_vocab())[:12]), *texts]:
        expected = their_ids(theirs, text)
        if expected is None:
            continue
        found = ours.encode(text, allowed_special="all")
        assert found == expected, f"ids of {text!r}: ours {found}, theirs {expected}"
        for id, name in zip(expected, theirs.convert_ids_to_tokens(expected), strict=True):
            if id in theirs.added_tokens_decoder and name.isascii():  # "é" spells a byte too
                assert ours.decode([id]) == name, f"decode([{id}]) of {name!r}"


def their_logits(model, ids):
    with torch.no_grad(), quiet():
        return model(torch.tensor([list(ids)])).logits[0].numpy()


def relative_error(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


def assert_same_logits(model, theirs, seed=0, n_new=6):
    """Hold logits, greedy tokens and log-probabilities equal to those of transformers."""
    config = model.config
    n_vocab, n_ctx = theirs.config.vocab_size, theirs.config.n_positions
    assert (config.n_vocab, config.n_ctx) == (n_vocab, n_ctx)
    known = n_vocab if model.tokenizer is None else min(n_vocab, model.tokenizer.n_vocab)
    ids = np.random.default_rng(seed).integers(known, size=min(n_ctx, 24))
    expected = their_logits(theirs, ids)
    error = relative_error(gpt2_np.forward(model.params, config, ids), expected)
    assert error <= 1e-5, f"logits differ by {error:.1e}"
    rest = expected[:-1, :known].astype(np.float64)  # rows without a token are never drawn
    rest -= np.log(np.exp(rest).sum(-1, keepdims=True))
    wanted = rest[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(gpt2_np.score(model, list(ids)), wanted, atol=2e-4)
    prompt = list(map(int, ids[:5]))
    text = prompt + list(gpt2_np.generate(model, prompt, n_new))
    best = their_logits(theirs, text[:-1])[4:, :known].argmax(-1)
    assert text[5:] == best.tolist(), "greedy tokens"


def assert_same(outcome, folder, texts=(), options=()):
    """Hold our model and tokenizer equal to those that transformers loads from `folder`."""
    assert not outcome.refusal, f"refused: {outcome.refusal}"
    assert_same_logits(outcome.model, their_model(folder, **dict(options)))
    theirs = their_tokenizer(folder) if has_tokenizer(folder) else None
    if theirs is None:
        assert outcome.model.tokenizer is None
    else:
        assert outcome.model.tokenizer is not None, f"no tokenizer: {outcome.warned}"
        assert_same_ids(outcome.model.tokenizer, theirs, texts)


def has_tokenizer(folder):
    names = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
    return any(Path(folder, name).exists() for name in names)


# --- what may be expected of a kind of folder -------------------------------------------------


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


def judge(kind, folder):
    """Write a folder of the kind, load it, and hold the outcome to what is expected."""
    twin = kind.write(folder)
    kind.expect(load(folder), twin or folder, kind)
