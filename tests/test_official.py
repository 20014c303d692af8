"""The official weights give the outputs that others have published: `pytest -m official`.

It downloads 124M from both sources and 355M, 2.5 GB in all, into the cache folder, and asks the
servers for the sizes of all other files. Where the figures were published is said beside them.
"""

import numpy as np
import pytest
from make_checkpoints import assert_same_params

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.gpt2_np import map_leaves

pytestmark = pytest.mark.official

PARAMETERS = {"124M": 124439808, "355M": 354823168, "774M": 774030080, "1558M": 1557611200}

# picoGPT's README
TURING = "Alan Turing theorized that computers would one day become"
TURING_TOKENS = [36235, 39141, 18765, 1143, 326, 9061, 561, 530, 1110, 1716]
TURING_CONTINUED = (
    " the most powerful machines on the planet.\n\nThe computer is a machine that can perform "
    "complex calculations, and it can perform these calculations in a way that is very similar "
    "to the human brain."
)

# Greedy continuations of ten tokens: lm-evaluation-harness's tests; tinygrad's examples/gpt2.py
FOX = "The quick brown fox jumps over the lazy", ", lazy fox and they both fall to the ground"
MEDIUM = {
    "What is the answer to life, the universe, and everything?":
        "\n\nThe answer is that we are all one",
    "Hello.": " I'm a little late to the party, but",
}

# Hugging Face's blog "how to generate", a notebook: 50 tokens in all, greedy and by 5 beams, then
# all 5 beams of which none repeats two tokens in a row
WALKING = "I enjoy walking with my cute dog"
WALKING_GREEDY = (
    ", but I'm not sure if I'll ever be able to walk with my dog. I'm not sure if I'll ever be "
    "able to walk with my dog.\n\nI'm not sure if I'll"
)
WALKING_BEST = (
    ", but I'm not sure if I'll ever be able to walk with him again.\n\nI'm not sure if I'll ever "
    "be able to walk with him again. I'm not sure if I'll"
)
WALKING_NO_REPEAT = [
    f", but I'm not sure if I'll ever be able to walk with {whom} again.\n\nI've been thinking "
    f"about this for a while now, and I think it's time for me to {end}"
    for whom, end in (
        ("him", "take a break"), ("him", "get back to"), ("her", "take a break"),
        ("her", "get back to"), ("him", "take a step"),
    )
]  # fmt: skip

# transformers' tests/models/gpt2/test_modeling_gpt2.py: two tokens and their greedy continuation
DOG = [
    464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13,
    198, 198, 464, 3290
]  # fmt: skip

# llm.c's test_gpt2.c: the loss of 4 rows of 64 tokens, each predicting the next one in the list
PLAY_LOSS = 5.270007133483887
PLAY = [
    50256, 5962, 22307, 25, 198, 8421, 356, 5120, 597, 2252, 11, 3285, 502, 2740, 13, 628,
    50256, 3237, 25, 198, 5248, 461, 11, 2740, 13, 628, 50256, 5962, 22307, 25, 198, 1639, 389,
    477, 12939, 2138, 284, 4656, 621, 284, 1145, 680, 30, 628, 50256, 3237, 25, 198, 4965, 5634,
    13, 12939, 13, 628, 50256, 5962, 22307, 25, 198, 5962, 11, 345, 760, 327, 1872, 385, 1526,
    28599, 318, 4039, 4472, 284, 262, 661, 13, 628, 50256, 3237, 25, 198, 1135, 760, 470, 11,
    356, 760, 470, 13, 628, 50256, 5962, 22307, 25, 198, 5756, 514, 1494, 683, 11, 290, 356,
    1183, 423, 11676, 379, 674, 898, 2756, 13, 198, 3792, 470, 257, 15593, 30, 628, 50256, 3237,
    25, 198, 2949, 517, 3375, 319, 470, 26, 1309, 340, 307, 1760, 25, 1497, 11, 1497, 0, 628,
    50256, 12211, 22307, 25, 198, 3198, 1573, 11, 922, 4290, 13, 628, 50256, 5962, 22307, 25,
    198, 1135, 389, 17830, 3595, 4290, 11, 262, 1458, 1173, 1547, 922, 13, 198, 2061, 4934, 969,
    5036, 896, 319, 561, 26958, 514, 25, 611, 484, 198, 19188, 7800, 514, 475, 262, 48713, 414,
    11, 981, 340, 547, 198, 1929, 4316, 462, 11, 356, 1244, 4724, 484, 22598, 514, 31533, 306,
    26, 198, 4360, 484, 892, 356, 389, 1165, 13674, 25, 262, 10904, 1108, 326, 198, 2001, 42267,
    514, 11, 262, 2134, 286, 674, 24672, 11, 318, 355, 281, 198, 24807, 284, 1948, 786, 511,
    20038, 26, 674, 198, 82, 13712, 590, 318, 257, 4461, 284, 606, 3914, 514, 15827, 428, 351,
    198, 454, 279
]  # fmt: skip

# lm-evaluation-harness's tests/test_models.py: log-probabilities after <|endoftext|>
LAWS = "We study empirical scaling laws for language model performance on the cross-entropy loss."
LAWS_LOG_P = [
    -4.9599953, -8.069298, -8.308624, -10.178513, -8.906924, -1.9318912, -7.745445, -7.146077,
    -5.2072, -3.5882986, -1.9957212, -8.044922, -0.20841774, -5.1096807, -0.099879116,
    -8.888423, -4.6180487
]  # fmt: skip

# Public test suites: the first 8 logits after "Hello"; the first 10 numbers of the final layer
# norm at the first position of "Hello world"
HELLO_LOGITS = [
    -35.236244, -35.326595, -38.975349, -39.390675, -37.653183, -38.672436, -36.024891,
    -36.484154
]  # fmt: skip
HELLO_NORM = [
    -9.0888e-06, -0.14020976, -0.2084512, -0.02811152, -0.0901782, -0.19850761, 4.07248306,
    -0.24899107, -0.17168567, -0.01689625
]  # fmt: skip


@pytest.fixture(scope="module")
def both(request):
    """The folders of 124M, each downloaded with the other source out of reach."""
    if request.config.getoption("--weights"):
        pytest.skip("--weights: nothing is downloaded")
    folders = {}
    cache = checkpoint.cache_folder()
    nowhere = "http://127.0.0.1:9"
    for name, own_cache, other in (
        ("openai", cache, "HF_ENDPOINT"),
        ("huggingface", cache / "official-tests", "GPT2_NP_URL"),
    ):
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("GPT2_NP_CACHE", str(own_cache))
            environment.setenv(other, nowhere)
            folders[name] = checkpoint.locate("124M")
    return folders


@pytest.fixture(scope="module", params=["openai", "huggingface"])
def model(request, load_official):
    if request.config.getoption("--weights"):
        if request.param == "huggingface":
            pytest.skip("--weights is one folder")
        return load_official("124M")
    return gpt2_np.load(request.getfixturevalue("both")[request.param])


@pytest.fixture(scope="module")
def medium(load_official):
    return load_official("355M")


# --- the files -------------------------------------------------------------------------


@pytest.mark.parametrize("size", PARAMETERS)
def test_both_sources_serve_every_file_with_its_pinned_size(size, request):
    import requests

    if request.config.getoption("--weights"):
        pytest.skip("--weights: no server is asked")
    openai, hub = checkpoint.sources_of(size)
    assert len(openai.pinned) == 5
    assert len(hub.pinned) == 4
    for source in openai, hub:
        for name, (pinned, _) in source.pinned.items():
            answer = requests.head(f"{source.url}/{name}", allow_redirects=True, timeout=30,
                                   headers={"Accept-Encoding": "identity"})
            assert answer.status_code == 200, answer.url
            length = int(answer.headers["Content-Length"])
            assert length == (pinned or length), answer.url
            if name.endswith(".data-00000-of-00001"):
                assert length == 4 * PARAMETERS[size]


def test_each_source_has_been_used_and_both_hold_the_same_arrays(both):
    assert {name: folder.name for name, folder in both.items()} == {name: name for name in both}
    openai, hub = (gpt2_np.load(folder) for folder in both.values())
    assert_same_params(openai.params, hub.params)
    assert openai.config == hub.config == gpt2_np.SIZES["124M"]
    assert openai.tokenizer.encode(TURING) == hub.tokenizer.encode(TURING) == TURING_TOKENS


def test_the_arrays_are_as_many_numbers_as_published(model, medium):
    for loaded, size in (model, "124M"), (medium, "355M"):
        sizes = []
        map_leaves(lambda _, array, sizes=sizes: sizes.append(array.size), loaded.params)
        assert sum(sizes) == PARAMETERS[size]


# --- 124M ------------------------------------------------------------------------------


def test_turing_is_continued_as_published(model):
    assert gpt2_np.complete(model, TURING, n_tokens=39) == TURING_CONTINUED


def test_the_command_line_continues_turing_as_published(both, capsys):
    assert gpt2_np.main([TURING]) == 0
    assert capsys.readouterr().out.startswith(TURING + TURING_CONTINUED)


def test_the_dog_is_found_again(model):
    assert list(gpt2_np.generate(model, DOG[:2], len(DOG) - 2)) == DOG[2:]


def test_the_fox_is_continued_as_published(model):
    prompt, continuation = FOX
    assert gpt2_np.complete(model, prompt, n_tokens=10) == continuation


def test_a_ragged_batch_continues_each_prompt_as_published(model):
    rows = gpt2_np.generate_batch(model, [TURING_TOKENS, DOG[:2]], 18)
    assert TURING_CONTINUED.startswith(model.tokenizer.decode(rows[0]))
    assert rows[1] == DOG[2:]


def test_beams_of_a_walk_are_as_published(model):
    tokens = model.tokenizer.encode(WALKING)
    n_tokens = 50 - len(tokens)
    options = {"n_results": 5, "early_stopping": True, "stop": model.tokenizer.end_of_text}
    found = gpt2_np.beam_search(model, tokens, n_tokens, **options)
    assert model.tokenizer.decode(found[0].tokens) == WALKING_BEST
    found = gpt2_np.beam_search(model, tokens, n_tokens, no_repeat_ngram=2, **options)
    assert [model.tokenizer.decode(beam.tokens) for beam in found] == WALKING_NO_REPEAT
    assert gpt2_np.complete(model, tokens, n_tokens) == WALKING_GREEDY


def test_the_loss_of_a_play_is_as_published(model):
    rows = [PLAY[i : i + 65] for i in range(0, 256, 64)]
    scores = [gpt2_np.score(model, row) for row in rows]
    assert -np.mean(scores) == pytest.approx(PLAY_LOSS, abs=1e-4)

    logits = gpt2_np.forward(model.params, model.config, np.reshape(PLAY[:256], (4, 64)))
    logits = logits.reshape(256, -1).astype(np.float64)
    log_p = logits[np.arange(256), PLAY[1:]] - np.log(np.exp(logits).sum(axis=-1))
    assert -log_p.mean() == pytest.approx(PLAY_LOSS, abs=1e-4)


def test_log_probabilities_are_as_published(model):
    tokens = [model.tokenizer.end_of_text, *model.tokenizer.encode(LAWS)]
    assert gpt2_np.score(model, tokens).tolist() == pytest.approx(LAWS_LOG_P, abs=1e-3)


def test_logits_are_as_published(model):
    (logits,) = gpt2_np.forward(model.params, model.config, [15496])
    assert logits[:8].tolist() == pytest.approx(HELLO_LOGITS, abs=2e-3)
    assert logits.argmax() == 11
    assert model.tokenizer.decode([15496, 11]) == "Hello,"


def test_the_final_layer_norm_is_as_published(model):
    seen = {}
    tokens = model.tokenizer.encode("Hello world")
    gpt2_np.forward(model.params, model.config, tokens, tap=seen.__setitem__)
    gain, bias = model.params["ln_f"]["g"], model.params["ln_f"]["b"]
    normalized = seen["ln_final.hook_normalized"][0, 0] * gain + bias
    assert normalized[:10].tolist() == pytest.approx(HELLO_NORM, abs=2e-4)


# --- 355M ------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", MEDIUM)
def test_355m_continues_as_published(medium, prompt):
    assert gpt2_np.complete(medium, prompt, n_tokens=10) == MEDIUM[prompt]
