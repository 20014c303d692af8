"""A survey's numbers are those of NumPy by hand, one model after another, in one table."""
import functools
import gc
import re
import weakref

import numpy as np
import pytest
from prompt_pair import MODEL, close
from random_model import TINY, map_params, random_model
from reference import gelu

import gpt2_np
from gpt2_np import Config, Error, Model, circuits
from gpt2_np.circuits import pictures

TEXTS = [np.random.default_rng(i).integers(0, TINY.n_vocab, n).tolist() for i, n in
         enumerate((9, 24, 5))]
LONG = np.random.default_rng(9).integers(0, TINY.n_vocab, 61).tolist()


def normalized(x, g, b):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * g + b


def by_hand(model, tokens):
    """Return streams [point, q, d], what is written and what is read [2, layer, q, d], and the
    entropy of attention [layer, head, q], of one window in float64."""
    params, n_head = map_params(lambda a: a.astype(float), model.params), model.config.n_head
    x = params["wte"][tokens] + params["wpe"][: len(tokens)]
    streams, written, read, entropy = [x], [[], []], [[], []], []
    for block in params["blocks"]:
        read[0].append(normalized(x, **block["ln_1"]))
        qkv = read[0][-1] @ block["attn"]["c_attn"]["w"] + block["attn"]["c_attn"]["b"]
        q, k, v = (a.reshape(len(x), n_head, -1).swapaxes(0, 1) for a in np.split(qkv, 3, axis=-1))
        scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])
        p = np.exp(np.where(np.tri(len(x), dtype=bool), scores, -np.inf))
        p /= p.sum(axis=-1, keepdims=True)
        entropy.append(-(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1))
        z = (p @ v).swapaxes(0, 1).reshape(x.shape)
        written[0].append(z @ block["attn"]["c_proj"]["w"] + block["attn"]["c_proj"]["b"])
        x = x + written[0][-1]
        read[1].append(normalized(x, **block["ln_2"]))
        hidden = gelu(read[1][-1] @ block["mlp"]["c_fc"]["w"] + block["mlp"]["c_fc"]["b"])
        written[1].append(hidden @ block["mlp"]["c_proj"]["w"] + block["mlp"]["c_proj"]["b"])
        x = x + written[1][-1]
        streams.append(x)
    return [np.array(one) for one in (streams, written, read, entropy)]


@functools.cache
def surveyed():
    """The same model, but with gains that make one dimension of layers 1 and 2 an outlier."""
    params = map_params(np.copy, MODEL.params)
    for layer, norm in (1, "ln_1"), (2, "ln_2"):
        params["blocks"][layer][norm]["g"][3] = 40
    model = Model(TINY, params)
    return model, circuits.survey(model, [*TEXTS, LONG]).profiles[0]


@pytest.fixture(scope="module")
def oracle():
    """What by_hand returns of all windows, with only the positions that count."""
    model, parts, firsts = surveyed()[0], [], []
    windows = [(text, 1) for text in TEXTS]
    windows += [(LONG[:24], 1), (LONG[12:36], 12), (LONG[24:48], 12), (LONG[36:60], 12),
                (LONG[48:61], 12)]
    for i, (tokens, first) in enumerate(windows):
        found = by_hand(model, tokens)
        parts.append([found[0][:, first:], found[1][:, :, first:], found[2][:, :, first:],
                      found[3][:, :, first:]])
        if i < 4:
            firsts.append(np.linalg.norm(found[0][:, 0], axis=-1))
    joined = [np.concatenate(one, axis=2 if i else 1) for i, one in
              enumerate(zip(*parts, strict=True))]
    assert joined[0].shape[1] == sum(map(len, TEXTS)) + len(LONG) - 4  # but for first positions
    return [*joined, np.mean(firsts, axis=0)]


def test_norms_and_magnitudes_are_those_of_numpy_in_float64(oracle):
    streams, written, _, _, firsts = oracle
    found, norms = surveyed()[1], np.linalg.norm(streams, axis=-1).mean(axis=1)
    close(found.norm, norms)
    close(found.first_norm, firsts)
    close(found.largest, np.abs(streams).max(axis=(1, 2)))
    close(found.attn_norm, np.linalg.norm(written[0], axis=-1).mean(axis=1))
    close(found.mlp_norm, np.linalg.norm(written[1], axis=-1).mean(axis=1))
    assert found.growth == pytest.approx((norms[3] / norms[0]) ** (1 / 3), rel=1e-5)


def test_entropy_of_attention_is_that_of_numpy_in_float64(oracle):
    close(surveyed()[1].entropy, oracle[3].mean(axis=2))


def test_a_dimension_that_is_often_large_in_a_quarter_of_layers_is_an_outlier(oracle):
    found = surveyed()[1]
    close(found.outlier_share, (np.abs(oracle[2]) >= 6).mean(axis=2).max(axis=0))
    assert found.outliers == [3]
    assert found.by_layer["outliers"].tolist() == [0, 1, 1]
    assert circuits.survey(MODEL, TEXTS).profiles[0].outliers == []


def test_loss_calibration_and_heads_are_those_of_measure_and_heads():
    model, found = surveyed()
    measures, repeats = circuits.measure(model, [*TEXTS, LONG]), circuits.heads(model)
    assert found.measures.calibration_error == measures.calibration_error
    assert found.measures.loss == measures.loss
    close(found.repeats.induction, repeats.induction)
    assert found.overall["induction"] == repeats.induction.max()


def test_several_models_stand_in_one_table():
    """Models may differ in depth: layers that one of them has not got are blank."""
    other = random_model(Config(n_vocab=61, n_ctx=16, n_embd=8, n_head=2, n_layer=2), seed=1)
    found = circuits.survey({"deep": MODEL, 100: other}, TEXTS)
    _, header, *rows = str(found).splitlines()
    assert header.split()[:3] == ["model", "loss", "calibration"]
    assert [row.split()[0] for row in rows] == ["deep", "100"]
    for row, one in zip(rows, found.profiles, strict=True):
        assert float(row.split()[1]) == pytest.approx(one.measures.loss.value, abs=5e-4)
    layers = found.by_layer("norm")
    assert layers.shape == (3, 2) and np.isnan(layers[2, 1])
    close(layers[:2, 1], found.profiles[1].norm[1:])
    assert [one.name for one in circuits.survey([MODEL, other], TEXTS).profiles] == ["0", "1"]


def test_checkpoints_are_in_memory_one_at_a_time():
    alive = []

    def loaded(seed):
        gc.collect()
        assert not any(model() for model in alive)
        alive.append(weakref.ref(model := random_model(seed=seed)))
        return model

    found = circuits.survey({seed: functools.partial(loaded, seed) for seed in range(3)}, TEXTS)
    assert len(alive) == 3
    alone = circuits.survey(random_model(seed=2), TEXTS).profiles[0]
    close(found.profiles[2].norm, alone.norm)


def test_texts_are_read_with_end_of_text_first(speaking):
    found = circuits.survey(speaking, ["The cat sat", "on the mat"]).profiles[0]
    ids = [[speaking.tokenizer.end_of_text, *speaking.tokenizer.encode(text)]
           for text in ("The cat sat", "on the mat")]
    close(found.norm, circuits.survey(speaking, ids).profiles[0].norm)
    close(found.first_norm[0], np.linalg.norm(by_hand(speaking, ids[0])[0][0, 0]))
    assert found.measures.bos


def test_many_checkpoints_are_ten_lines_or_all_of_them_as_text():
    found = circuits.survey(MODEL, TEXTS)
    many = circuits.Survey(found.profiles * 30, 3)
    assert len(repr(many).splitlines()) == 10 and "..." in repr(many)
    assert len(str(many).splitlines()) == 32
    assert "growth" in repr(found) and re.search(r"^ +2 .* \d\.\d{3}$", repr(found), re.M)


def undefined():
    params = map_params(np.copy, MODEL.params)
    params["blocks"][1]["mlp"]["c_fc"]["w"][0, 0] = np.nan
    return Model(TINY, params)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: circuits.survey(MODEL, []), r"texts is \[\]: give a list of texts, at least one"),
        (lambda: circuits.survey(MODEL, "a text"), "texts is 'a text': give a list"),
        (lambda: circuits.survey(MODEL, iter(TEXTS)), "give a list of texts"),
        (lambda: circuits.survey(MODEL, [[1, 2], [3]]), "has no token that follows another"),
        (lambda: circuits.survey(MODEL, ["a text"]), "no vocabulary files"),
        (lambda: circuits.survey([], TEXTS), "no model to survey: give at least one"),
        (lambda: circuits.survey("124M", TEXTS), "models is '124M': give a Model, several, or"),
        (lambda: circuits.survey(5, TEXTS), "models is 5: give a Model"),
        (lambda: circuits.survey(["124M"], TEXTS), "model 0 is '124M': give a Model, or a func"),
        (lambda: circuits.survey({"a": lambda: 3}, TEXTS), "model a is 3: give a Model"),
        (lambda: circuits.survey(MODEL, TEXTS, bins=0), "bins is 0"),
        (lambda: circuits.survey(undefined(), TEXTS), r"NaN or infinity, as .*blocks\.1\.mlp"),
        (lambda: pictures.plot_survey(MODEL), "plot_survey takes the result of circuits"),
        (lambda: pictures.plot_reliability({}), "plot_reliability takes the result of"),
    ],
)
def test_what_cannot_be_surveyed_is_one_clear_sentence(make, message):
    with pytest.raises(Error, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_planted_previous_token_head_shows_in_the_embedded_model():
    """Its card says 0.98 for head 0 of layer 0, and 0.87 for the induction head L1H1."""
    model = gpt2_np.load("shakespeare", "cpu")
    found = circuits.survey(model, ["ROMEO:\nBut soft, what light through yonder window breaks?"])
    assert found.profiles[0].by_layer["previous"].argmax() == 0
    assert found.profiles[0].by_layer["induction"].argmax() == 1
