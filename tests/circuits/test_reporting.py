"""The file of a report: what it holds, where it is written, and what it refuses.

The page itself is opened in tests/browser/.
"""
import base64
import json
import re

import numpy as np
import pytest
from random_model import random_model

import gpt2_np
from gpt2_np import Config, Error, circuits
from gpt2_np.circuits import reporting
from gpt2_np.circuits.__main__ import main


def data_of(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1]
    return json.loads(text)


def numbers(packed):
    array = np.frombuffer(base64.b64decode(packed["data"]), "<" + packed["type"])
    return array.reshape(packed["shape"]) / 10 ** packed.get("decimals", 0)


@pytest.fixture(scope="module")
def shakespeare():
    return gpt2_np.load("shakespeare", "cpu")


def test_the_numbers_are_those_of_the_tools(speaking):
    text = "the cat and the dog"
    data = data_of(circuits.report(speaking, text, answer=" the", wrong=" and").page)
    seen = circuits.run(speaking, text, "pattern")
    tokens, n = seen.tokens[0], seen.tokens.shape[1]
    rows, columns = np.tril_indices(n)
    for layer in range(2):
        for head in range(3):
            stored = np.frombuffer(base64.b64decode(data["patterns"][layer][head]), np.uint8)
            pattern = seen[f"blocks.{layer}.attn.hook_pattern"][0, head]
            assert np.abs(stored / 255 - pattern[rows, columns]).max() <= 0.5001 / 255

    lens = circuits.lens(speaking, text, " the", top=1)
    points = [i for i, point in enumerate(lens.points) if not point.endswith("_mid")]
    found = {name: numbers(data["lens"][name]) for name in ("best", "p", "entropy", "counts")}
    assert np.abs(found["p"] / 1e4 - lens.top_probability[points, 0, :, 0]).max() < 1e-4
    assert np.abs(found["entropy"] / 10 - lens.entropy[points, 0]).max() < 0.051
    starts = np.append(0, np.cumsum(found["counts"])).astype(int)
    candidates = numbers(data["lens"]["candidates"])
    best = candidates[starts[:-1] + found["best"].astype(int)]
    assert (best == lens.top[points, 0, :, 0]).all()

    following = circuits.lens(speaking, text)
    surprise = -np.log(following.probability[-1, 0, :-1])
    assert np.abs(np.array(data["surprise"][:-1]) - surprise).max() < 0.006
    assert data["ranks"][:-1] == following.rank[-1, 0, :-1].tolist()
    assert data["tokens"] == tokens.tolist() and data["next"] == lens.targets[0, -1]


def test_effects_are_those_of_attribution(speaking):
    text = "the cat and the dog"
    data = data_of(circuits.report(speaking, text, answer=" the", wrong=" and").page)
    parts, effects = data["parts"], numbers(data["effects"])
    expected = circuits.attribution(speaking, text, " the", " and")
    digit = 0.5001 * 10.0 ** -data["effects"]["decimals"]
    for label, value in zip(expected.labels, expected.values[:, 0], strict=True):
        if not label.startswith("b_O"):
            assert abs(effects[parts.index(label), -1] - value) <= digit
    assert abs(data["totals"][-1] - expected.total[0]) < 0.006

    tokens = expected.tokens[0]  # at an earlier position: the logit of the next token
    logits = circuits.run(speaking, text).logits[0, 3, : speaking.n_vocab]
    assert abs(data["totals"][3] - (logits[tokens[4]] - logits.mean())) < 0.006
    assert np.abs(effects.sum(axis=0) - data["totals"]).max() < 0.006 + len(parts) * digit


def test_neurons_are_the_strongest_of_each_layer(speaking):
    text = "the cat and the dog"
    data = data_of(circuits.report(speaking, text, answer=" the", wrong=" and").page)
    expected = circuits.attribution(speaking, text, " the", " and", neurons=[0, 1])
    for layer in range(2):
        by_neuron = np.array([expected[f"L{layer}N{i}"][0] for i in range(96)])
        strongest = np.argsort(-np.abs(by_neuron), kind="stable")[:8]
        assert numbers(data["neurons"])[layer, -1].tolist() == strongest.tolist()
        stored = numbers(data["neuron_effects"])[layer, -1]
        assert np.abs(stored - by_neuron[strongest]).max() < 1e-3


def test_text_in_a_page_is_never_markup(shakespeare):
    text = "</script><img src=x onerror=alert(1)><!-- [[data]] --> & \u2028 é 🦊"
    page = circuits.report(shakespeare, text, title="<b>[[script]]</b>").page
    assert "<img src=x" not in page and "<b>" not in page
    assert page.count("</script>") == 2 and "<title>&lt;b&gt;[[script]]&lt;/b&gt;" in page
    data = data_of(page)
    labels = dict(zip(numbers(data["ids"]).astype(int).tolist(), data["labels"], strict=True))
    shown = [labels[token] for token in data["tokens"][1:]]
    assert b"".join(bytes(one) if isinstance(one, list) else one.encode() for one in shown
                    ).decode() == text
    assert any(isinstance(one, list) for one in shown)  # parts of 🦊


def test_the_policy_names_the_script_and_the_style_and_forbids_the_rest(speaking):
    page = circuits.report(speaking, "the cat").page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    assert reporting.hash_of(script) in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", page.partition('id="data"')[0])


def test_a_report_is_written_over_a_report_and_over_nothing_else(speaking, tmp_path):
    path = tmp_path / "report.html"
    first = circuits.report(speaking, "the cat", path)
    assert path.read_text(encoding="utf-8") == first.page
    circuits.report(speaking, "the dog", str(path))
    assert path.read_text(encoding="utf-8") != first.page
    path.write_text("<!doctype html>mine")
    with pytest.raises(Error, match="exists and is not a report: choose another name"):
        first.save(path)
    assert path.read_text() == "<!doctype html>mine"


def test_a_title_of_any_characters_is_shown_and_written(speaking, tmp_path):
    path = tmp_path / "report.html"
    circuits.report(speaking, "the cat", path, title="half \ud800, NUL \0, line\nend")
    page = path.read_text(encoding="utf-8")
    shown = "half \\ud800, NUL \\x00, line\\nend"
    assert f"<title>{shown}: a report" in page and data_of(page)["title"] == shown


def test_a_page_that_cannot_be_written_leaves_the_file_as_it_was(speaking, tmp_path):
    path, link = tmp_path / "report.html", tmp_path / "link.html"
    first = circuits.report(speaking, "the cat", path)
    with pytest.raises(Error, match="is not the name of a file"):
        circuits.Report(first.page + "\ud800").save(path)
    assert path.read_text(encoding="utf-8") == first.page
    link.symlink_to(path)
    second = circuits.report(speaking, "the dog", link)
    assert link.is_symlink() and path.read_text(encoding="utf-8") == second.page
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_a_page_too_large_for_a_notebook_says_how_to_save_it():
    shown = circuits.Report("<" * (9 << 20))._repr_html_()
    assert len(shown) < 200 and "9.44 MB: save(path) writes it to a file" in shown


def test_the_page_says_how_large_the_model_is_and_how_it_is_made_again(speaking):
    data = data_of(circuits.report(speaking, "the cat", answer=" the", title="mine").page)
    arrays, found = [speaking.params], []
    while arrays:
        one = arrays.pop()
        if isinstance(one, np.ndarray):
            found.append(one)
        else:
            arrays += one.values() if isinstance(one, dict) else one
    assert data["n_parameters"] == sum(array.size for array in found)
    assert data["n_bytes"] == sum(array.nbytes for array in found)
    assert data["dtype"] == str(found[0].dtype)
    assert data["command"] == "circuits.report(model, 'the cat', answer=' the', title='mine')"


def test_a_notebook_shows_a_report_in_a_frame_of_its_own(speaking):
    shown = circuits.report(speaking, "the cat")._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and shown.count("<") == 2
    assert 'sandbox="allow-scripts allow-downloads"' in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_or_tokens": [[5, 6], [7, 8]]}, "about one text, not about 2: make one each"),
        ({"text_or_tokens": "the " * 60}, "n_ctx is 40"),
        ({"text_or_tokens": "", "bos": False}, "empty"),
        ({"wrong": " the"}, "wrong was given without answer"),
        ({"answer": " the cat"}, "tokens .* it must be one"),
        ({"path": 3.5}, "3.5 is not the name of a file"),
        ({"path": "a\0b"}, "'a.x00b' is not the name of a file"),
        ({"path": "\ud800.html"}, "'.ud800.html' is not the name of a file"),
        ({"title": 5}, "title is 5: give a text"),
        ({"path": "/nowhere/at/all.html"}, "cannot be written: No such file or directory. Name a"),
        ({"edits": {"ln_final.hook_scale": circuits.zero()}}, "report"),
    ],
)
def test_what_cannot_be_reported_is_one_sentence(speaking, arguments, message):
    with pytest.raises(Error, match=message) as caught:
        circuits.report(speaking, **{"text_or_tokens": "the cat", **arguments})
    assert "\n" not in str(caught.value)


def test_patterns_too_large_for_a_browser_are_refused_before_they_are_computed():
    config = Config(n_vocab=31, n_ctx=1024, n_embd=96, n_head=48, n_layer=24)
    with pytest.raises(Error, match="1152 heads on 1024 tokens takes 605 MB: shorten the text"):
        circuits.report(random_model(config), np.zeros(1024, int))


@pytest.mark.parametrize("tokens", [[5], [5, 5]])
def test_a_model_without_a_vocabulary_shows_ids(tokens):
    data = data_of(circuits.report(random_model(), tokens).page)
    assert data["tokens"] == tokens and "5" in data["labels"]


def test_the_command_writes_the_page_and_says_how_to_make_it_again(folder, tmp_path, capsys):
    path = tmp_path / "page.html"
    argv = ["report", "-m", folder, "--answer", " the", "-o", str(path), "The café at"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "with <|endoftext|> at the beginning" in out and str(path) in out
    command = data_of(path.read_text(encoding="utf-8"))["command"]
    assert command == (f"python -m gpt2_np.circuits report -m {folder} '--answer= the' "
                       f"--output={path} -- 'The café at'")
    before = path.read_text(encoding="utf-8")
    text = tmp_path / "text"
    text.write_text("The café at", encoding="utf-8")
    assert main(["report", "-m", folder, "-o", str(path), "--answer= the", "--file", str(text),
                 "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["file"] == str(path) and result["bytes"] == path.stat().st_size
    assert data_of(before)["tokens"] == data_of(path.read_text(encoding="utf-8"))["tokens"]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        ([], 2, "give a text or --file"),
        (["x", "--file", "y"], 2, "give a text or --file, and not both"),
        (["x", "--wrong", "y"], 2, "--wrong goes with --answer"),
        ([""], 1, "the prompt is empty"),
        (["--file", "/nowhere"], 1, "/nowhere cannot be read"),
        (["The", "-o", "/nowhere/x.html"], 1, "/nowhere/x.html cannot be written"),
    ],
)
def test_what_the_command_cannot_do_is_one_sentence(folder, argv, status, message, capsys):
    assert main(["report", *argv, "-m", folder]) == status
    error = capsys.readouterr().err
    assert message in error.splitlines()[-1] and "Traceback" not in error


def test_edits_are_seen_in_all_sections(speaking):
    text, edits = "the cat and the dog", {"z": circuits.zero(1), "resid_mid": lambda _, x: 1.1 * x}
    plain, edited = (data_of(circuits.report(speaking, text, answer=" the", edits=one).page)
                     for one in (None, edits))
    assert edited["edited"] and not plain["edited"]
    parts, effects = edited["parts"], numbers(edited["effects"])
    assert not effects[parts.index("L0H1")].any() and "edit_resid_mid1" in parts
    logits = circuits.run(speaking, text, edits=edits).logits[0, -1, : speaking.n_vocab]
    expected = logits[edited["answer"]] - logits.mean()
    assert abs(edited["totals"][-1] - expected) < 0.006
    assert edited["surprise"] != plain["surprise"] and edited["scores"] != plain["scores"]
