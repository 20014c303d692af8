"""The encoder-decoder example: its masks, its searches, and what its toy model learned."""
import itertools
import math
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from examples import encoder_decoder as example
from examples.encoder_decoder import END, START, Translator, beam_search, decode, greedy
from examples.two_languages import language, measure
from gpt2_np.inference.beams import log_softmax

SENTENCES = [[5, 3, 6, 4], [7], [3, 4, 5, 6, 7, 8, 3]]
TARGETS = [[START, 4, 8], [START, 3, 7, 6, 4, 5], [START]]


def random_translator(d=16, n_head=2, n_layer=2, m=24, n_vocab=9, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(0, 0.5, shape).astype(np.float32)

    def linear(n_in, n_out):
        return {"w": normal(n_in, n_out), "b": normal(n_out)}

    def block(*attentions):
        made = {name: {"c_attn": linear(d, 3 * d), "c_proj": linear(d, d)} for name in attentions}
        made["mlp"] = {"c_fc": linear(d, m), "c_proj": linear(m, d)}
        return made | {f"ln_{i}": {"g": 1 + normal(d), "b": normal(d)}
                       for i in range(1, len(made) + 1)}

    params = {"wte": normal(n_vocab, d), "encoder": [block("attn") for _ in range(n_layer)],
              "decoder": [block("attn", "cross_attn") for _ in range(n_layer)]}
    return Translator(params, n_head, [f"word{i}" for i in range(n_vocab)], [])


@pytest.fixture(scope="module")
def model():
    return random_translator()


@pytest.fixture(scope="module")
def toy():
    """The model that is shipped, and 40 sentences of each kind that it has not seen."""
    model = example.load()
    pairs = [pair for kind in ("new sentence", "new pair")
             for pair in language.sentences(40, kind, seed=5)]
    return SimpleNamespace(model=model, pairs=pairs,
                           sources=[model.ids(english) for english, _ in pairs],
                           targets=[model.ids(mirro) for _, mirro in pairs])


def run(model, sentences, targets, tap=None):
    """Return the logits of each target at its own positions."""
    memory, lengths = model.read(sentences, tap)
    batch, n = example.padded(targets)
    logits = decode(model.params, model.n_head, batch, memory, lengths, tap=tap)
    return [row[:length] for row, length in zip(logits, n, strict=True)]


# The model


def test_every_activation_has_the_axes_that_the_walk_prints(model):
    seen = {}
    run(model, SENTENCES, TARGETS, seen.__setitem__)
    sizes = {"b": 3, "d": 16, "h": 2, "e": 8, "m": 24, "v": 9, "1": 1}
    assert len(seen) == 2 * 2 + 2 * (6 + 2 + 2 * 2) + 2 * (2 * 6 + 2 + 3 * 2) + 1
    for name, array in seen.items():
        [axes] = [row[0] for end, row in example.ACTIVATIONS.items() if name.endswith(end)]
        queries, keys = (7, 7) if name.startswith("encoder") else (6, 6)
        keys = 7 if "cross_attn" in name else keys
        assert array.shape == tuple((sizes | {"q": queries, "k": keys})[axis] for axis in axes)
        assert array.dtype == np.float32


def test_a_padded_batch_gives_the_logits_of_each_text_alone(model):
    for together, sentence, target in zip(run(model, SENTENCES, TARGETS), SENTENCES, TARGETS,
                                          strict=True):
        [alone] = run(model, [sentence], [target])
        np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


def test_cached_decoding_gives_the_logits_of_the_whole_text(model):
    [whole] = run(model, SENTENCES[:1], TARGETS[1:2])
    memory, lengths = model.read(SENTENCES[:1])
    cache, parts = model.new_cache(1), []
    for part in TARGETS[1][:1], TARGETS[1][1:4], TARGETS[1][4:]:
        logits = decode(model.params, model.n_head, np.array([part]), memory, lengths, cache)
        parts.append(logits[0])
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=0, atol=1e-5)


def test_attention_is_shared_among_visible_positions(model):
    seen = {}
    run(model, SENTENCES, TARGETS, seen.__setitem__)
    patterns = {name: array for name, array in seen.items() if name.endswith("pattern")}
    assert len(patterns) == 2 + 4
    for name, pattern in patterns.items():
        np.testing.assert_allclose(pattern.sum(axis=-1), 1, atol=1e-6)
        queries, keys = np.indices(pattern.shape[-2:])
        if name.startswith("decoder") and "cross" not in name:
            visible = np.broadcast_to(keys <= queries, pattern.shape)
        else:
            lengths = np.array([len(sentence) for sentence in SENTENCES])
            visible = np.broadcast_to(keys < lengths[:, None, None, None], pattern.shape)
        assert (pattern[visible] > 0).all() and (pattern[~visible] == 0).all()


def test_a_later_word_changes_no_earlier_logits_and_every_source_word_changes_all(model):
    [before] = run(model, SENTENCES[:1], [[START, 3, 4, 5]])
    [after] = run(model, SENTENCES[:1], [[START, 3, 8, 5]])
    np.testing.assert_array_equal(before[:2], after[:2])
    assert (abs(before[2:] - after[2:]).max(axis=-1) > 1e-3).all()
    for i in range(4):
        changed = [*SENTENCES[0]]
        changed[i] = 8
        [after] = run(model, [changed], [[START, 3, 4, 5]])
        assert (abs(before - after).max(axis=-1) > 1e-3).all()


def test_sinusoids_are_the_formula_and_a_shift_rotates_them():
    d = 6
    made = example.sinusoids(np.arange(30), d)
    for position, i in itertools.product((0, 1, 7, 29), range(d // 2)):
        angle = position / 10000 ** (2 * i / d)
        assert made[position, 2 * i : 2 * i + 2] == pytest.approx((math.sin(angle),
                                                                   math.cos(angle)))
    shift, *_ = np.linalg.lstsq(made[:10], made[5:15], rcond=None)  # section 3.5
    np.testing.assert_allclose(made[12:20] @ shift, made[17:25], atol=1e-9)


# The searches


@pytest.mark.parametrize("length_penalty", [-0.5, 0, 0.6, 2])
def test_beam_search_with_enough_beams_is_exhaustive_search(length_penalty):
    def score(text, log_p):
        return log_p / ((5 + len(text)) / 6) ** length_penalty

    for seed in range(2):
        model, most = random_translator(n_layer=1, n_vocab=5, seed=seed), 4
        texts = [[*text, *end] for n in range(most + 1)
                 for text in itertools.product([0, 1, 3, 4], repeat=n)
                 for end in ([[END]] if n < most else [[]])]
        logits = run(model, [[3, 4]] * len(texts), [[START, *text[:-1]] for text in texts])
        log_p = [float(log_softmax(rows)[np.arange(len(text)), text].sum())
                 for rows, text in zip(logits, texts, strict=True)]
        best = max(range(len(texts)), key=lambda i: score(texts[i], log_p[i]))
        found, total = beam_search(model, [3, 4], 4 ** most, length_penalty, most)
        assert (found, total) == (texts[best], pytest.approx(log_p[best], abs=1e-4))


def test_one_beam_without_a_penalty_is_no_less_probable_than_greedy(model):
    for sentence in SENTENCES:
        [text] = greedy(model, [sentence], most=6)
        [logits] = run(model, [sentence], [[START, *text]])
        tokens = [*text, END][:6]
        log_p = log_softmax(logits)[np.arange(len(tokens)), tokens].sum()
        assert beam_search(model, sentence, 1, 0, most=6)[1] >= log_p - 1e-5


# The toy model


TRANSLATED_BY_HAND = {
    "a bird did not leave two quiet dogs": "piti keru shomo du na yako ta ni",
    "the cats waited under the three girls": "tesa tiro lo suba nasi mi lo teno ta",
    "a small white girl leaves two old girls": "tesa lano piko tesa veto du na yako",
    "a house does not sleep": "domu dumi ni",
    "the house finds the two small dogs": "domu lo keru piko du lo na falu",
    "the three white cats sang": "nasi lano tiro lo lalo ta",
}


def test_the_rules_translate_as_a_reader_of_their_description_would():
    rng = np.random.default_rng(0)
    found = dict(map(" ".join, language.sentence(rng)) for _ in range(14))
    assert found.items() >= TRANSLATED_BY_HAND.items()


def test_a_sentence_is_learned_from_unless_its_pair_or_its_checksum_is_held_out():
    def kind(text):
        return language.kind(text.split())

    kinds = [language.kind(english) for english, _ in
             map(language.sentence, [np.random.default_rng(1)] * 300)]
    assert 10 < kinds.count("new sentence") < 40 < kinds.count("new pair") < 100
    assert kind("the old red dog sleeps") == "new pair"
    assert kind("the dog finds a red house") == "new pair"
    assert kind("the red king finds the old dog") != "new pair"


def test_words_that_mean_the_same_are_aligned():
    texts = "the two old kings see a bird", "karu veto du lo piti na mito"
    assert language.alignment(*map(str.split, texts)) == [(0, 3), (1, 2), (2, 1), (4, 6), (6, 4)]


def test_the_toy_model_translates_sentences_it_has_not_seen(toy):
    found = greedy(toy.model, toy.sources)
    right = [text == target for text, target in zip(found, toy.targets, strict=True)]
    assert sum(right[:40]) >= 39 and sum(right[40:]) >= 36


def test_heads_of_the_last_layer_look_at_the_word_that_they_translate(toy):
    shares = measure.aligned(toy.model, toy.pairs)
    assert shares.shape == (2, 5)
    assert shares[1, -1] > 0.9 and shares[1, :4].min() > 0.75
    backwards = [(english[::-1], mirro) for english, mirro in toy.pairs]
    assert measure.aligned(toy.model, backwards)[1, -1] < 0.8


def test_beam_search_finds_translations_at_least_as_probable_as_greedy(toy):
    some = toy.sources[::8]
    greedy_logits = run(toy.model, some, [[START, *text] for text in greedy(toy.model, some)])
    for sentence, logits in zip(some, greedy_logits, strict=True):
        log_p = log_softmax(logits).max(axis=-1).sum()
        assert beam_search(toy.model, sentence, length_penalty=0)[1] >= log_p - 1e-5


def test_the_log_probability_of_a_beam_is_that_of_its_text_in_one_pass(toy):
    rng = np.random.default_rng(0)
    for _ in range(12):  # of random words the model is unsure: beams change places
        sentence = toy.model.ids(rng.choice(toy.model.english, 6).tolist())
        text, total = beam_search(toy.model, sentence)
        [logits] = run(toy.model, [sentence], [[START, *text[:-1]]])
        log_p = log_softmax(logits)[np.arange(len(text)), text].sum()
        assert total == pytest.approx(log_p, abs=1e-4)


def test_the_files_of_the_toy_model_are_small():
    files = [path for path in example.TOY.iterdir() if path.suffix in (".safetensors", ".json")]
    assert len(files) == 2 and sum(path.stat().st_size for path in files) <= 300_000


def test_the_toy_models_readme_shows_what_its_program_and_the_example_print(capsys, monkeypatch):
    monkeypatch.chdir(example.TOY.parent.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    readme = (example.TOY / "README.md").read_text(encoding="utf-8")
    [(program, printed)] = re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL)
    exec(program, {})
    assert capsys.readouterr().out == printed
    [drawn] = re.findall(r"```\n(Cross.*?)```", readme, re.DOTALL)
    example.main([])
    assert drawn in capsys.readouterr().out
