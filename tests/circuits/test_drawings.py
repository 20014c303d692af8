"""Results draw themselves in a notebook, and say the essentials where there is only text."""
import base64
import functools
import json
import re
import zlib
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from prompt_pair import CLEAN, CORRUPTED, METRIC, MODEL, TEXT

from gpt2_np import Model, bpe, circuits
from gpt2_np.circuits import drawings

PAIR = {"base": CLEAN, "source": CORRUPTED, "metric": METRIC}
BACK = {**PAIR, "base": CORRUPTED, "source": CLEAN}  # the metric is higher on CORRUPTED
RESULTS = {
    "lens": lambda: circuits.lens(MODEL, CLEAN),
    "lens of a position": lambda: circuits.lens(MODEL, CLEAN, position=3, top=1),
    "attention": lambda: circuits.heads(MODEL, CLEAN),
    "attribution": lambda: circuits.attribution(MODEL, CLEAN, 3),
    "sweep of heads": lambda: circuits.patching(MODEL, "z", **PAIR),
    "sweep of positions": lambda: circuits.patching(MODEL, "resid_pre", **PAIR),
    "sweep of heads and positions": lambda: circuits.patching(MODEL, "z", by_position=True, **PAIR),
    "sweep of layers": lambda: circuits.patching(MODEL, "mlp_out", by_position=False, **PAIR),
    "sweep of neurons": lambda: circuits.attribution_patching(MODEL, "post", **PAIR),
    "some layers": lambda: circuits.patching(MODEL, "z", layers=[1], **PAIR),
    "ablation": lambda: circuits.ablation(MODEL, base=CLEAN, metric=METRIC),
    "circuit": lambda: circuits.find(MODEL, 0.5, **BACK),
    "circuit of edges": lambda: circuits.find_edges(MODEL, 0.5, **BACK),
    "patterns": lambda: circuits.run(MODEL, CLEAN, "pattern"),
    "histogram": lambda: circuits.histogram(MODEL, list(CLEAN), "L1N3"),
    "survey": lambda: circuits.survey(MODEL, list(CLEAN)),
    "survey of checkpoints": lambda: circuits.Survey(
        circuits.survey(MODEL, list(CLEAN)).profiles * 25, 3),
}  # fmt: skip


@functools.cache
def result_of(name):
    return RESULTS[name]()


class Page(HTMLParser):
    """The elements of a page, with their attributes, and the text between them."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.text = [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def opened(html):
    """Return the image's attributes, the SVG's root and the areas of a picture, checked."""
    page = Page(html)
    assert [tag for tag, _ in page.elements] == ["div", "img", "style", "script"]
    (_, box), (_, image) = page.elements[:2]
    svg = base64.b64decode(image["src"].removeprefix("data:image/svg+xml;base64,"))
    return image, ElementTree.fromstring(svg), json.loads(box["data-areas"])


def texts(svg):
    return [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]


def grey(uri):
    """Return the values of one of our PNGs, read by hand."""
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    width, height = (int.from_bytes(data[i : i + 4], "big") for i in (16, 20))
    start = data.index(b"IDAT")
    length = int.from_bytes(data[start - 4 : start], "big")
    rows = zlib.decompress(data[start + 4 : start + 4 + length])
    return np.frombuffer(rows, np.uint8).reshape(height, width + 1)[:, 1:] / 255


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_a_picture_with_a_word_for_every_cell_and_its_text_beside_it(name):
    result = result_of(name)
    image, svg, areas = opened(result._repr_html_())
    assert image["alt"] == repr(result)
    assert int(image["width"]) == int(svg.get("width")) < 1100
    assert areas and len(texts(svg)) >= 5
    for area in areas:
        rows, columns = area["shape"]
        assert area["does"] == "value" or len(area["said"]) == rows * columns
        assert area["x"] + columns * area["cell"][0] <= int(image["width"])
        assert area["y"] + rows * area["cell"][1] <= int(image["height"])


@pytest.mark.parametrize("name", RESULTS)
def test_a_picture_asks_for_nothing(name):
    html = result_of(name)._repr_html_()
    svg = ElementTree.tostring(opened(html)[1], encoding="unicode")
    found = re.findall(r"https?://[^\"' )]*", html + svg)
    assert set(found) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\((?!#)", html + svg)


def test_a_png_holds_its_values():
    t = np.random.default_rng(0).random((5, 7))
    t[0, :3] = np.nan, -0.5, 1.5
    expected = np.clip(np.nan_to_num(t), 0, 1)
    assert np.abs(grey(drawings.png(t)) - expected).max() <= 0.5 / 255


def test_the_map_of_patterns_is_the_root_of_every_layers_attention():
    run = circuits.run(MODEL, CLEAN, "pattern")
    _, svg, _ = opened(run._repr_html_())
    [mosaic] = [element for element in svg.iter() if element.get("id") == "mosaic"]
    values = grey(mosaic.get("href")) ** 2
    n = CLEAN.shape[1]
    for layer, head in np.ndindex(3, 4):
        found = values[layer * n : (layer + 1) * n, head * n : (head + 1) * n]
        expected = run[f"blocks.{layer}.attn.hook_pattern"][0, head]
        assert np.abs(found - expected).max() < 1 / 255


def test_cells_say_the_values_of_the_result():
    sweep = circuits.patching(MODEL, "z", **PAIR)
    [area] = opened(sweep._repr_html_())[2]
    assert area["said"][6].startswith("L1H2: metric ")
    assert f"changed by {sweep.effect[1, 2]:.4g}, {sweep.normalized[1, 2]:.1%}" in area["said"][6]
    lens = circuits.lens(MODEL, CLEAN)
    [area] = opened(lens._repr_html_())[2]
    last = area["said"][area["shape"][1] - 1]  # the final point stands on top
    assert last.startswith(f"final_post, after “{CLEAN[0, -1]}”: “{lens.top[-1, 0, -1, 0]}” ")


HOSTILE = ["</script><img src=x onerror=alert(1)>", "]]>", "\"'&<b>", "\x00\x1b", "\n", " ",
           "\ufffe"]


@pytest.fixture(scope="module")
def hostile(speaking):
    """A model with tokens that would be markup, if they were not data."""
    real = speaking.tokenizer

    class Tokenizer(bpe.Tokenizer):
        def __init__(self):
            self.__dict__.update(real.__dict__)

        def decode(self, tokens):
            return "".join(HOSTILE[int(token) % len(HOSTILE)] for token in tokens)

    return Model(speaking.config, speaking.params, Tokenizer())


@pytest.mark.parametrize("tool", ["lens", "run", "patching", "max_activating"])
def test_tokens_are_data(tool, hostile):
    ids = hostile.tokenizer.encode(TEXT)[:20]
    ids += list(range(len(HOSTILE)))
    if tool == "max_activating":
        html = circuits.max_activating(hostile, [ids], "L1N2")._repr_html_()
        assert not {tag for tag, _ in Page(html).elements} & {"img", "b", "script"}
        return
    result = {"lens": lambda: circuits.lens(hostile, ids),
              "run": lambda: circuits.run(hostile, ids, "pattern"),
              "patching": lambda: circuits.patching(
                  hostile, "resid_pre", base=ids, source=[5, *ids[1:]],
                  metric=circuits.log_probability(hostile, 7))}[tool]()  # fmt: skip
    _, svg, areas = opened(result._repr_html_())  # well-formed, and with no other element
    assert any(text.startswith("</scrip") for text in texts(svg))
    assert any("</script><img src=x onerror=alert(1)>" in said
               for area in areas for said in area["said"])


def luminance(colour):
    c = np.asarray(colour) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


def test_words_on_blue_have_the_contrast_of_wcag_in_both_schemes():
    fill = {name: (a, b or a) for name, a, b in re.findall(
        r"\.(faint|half|strong)\{fill:(?:light-dark\()?(#\w+)(?:,(#\w+)\))?\}", drawings.STYLE)}
    for scheme in range(2):
        paper, blue = (
            np.array([int(found[scheme][i : i + 2], 16) for i in (1, 3, 5)]) for found in
            (re.search(rf"--{name}: light-dark\((#\w+), (#\w+)\)", drawings.colours()).groups()
             for name in ("paper", "blue")))
        for t in np.linspace(0, 1, 1001):
            text = 1.0 if fill[drawings.text_class(t)][scheme] == "#fff" else 0.0
            low, high = sorted((text, luminance(paper + (blue - paper) * t)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (scheme, t)


def test_a_map_names_its_axes_and_the_value_of_its_full_colour():
    sweep = circuits.patching(MODEL, "z", **PAIR)
    _, svg, _ = opened(sweep._repr_html_())
    peak = np.abs(sweep.normalized).max()
    assert "layer" in texts(svg)
    assert any(re.fullmatch(rf"head · full colour: ±?{peak:.4g}", text) for text in texts(svg))


def test_a_bar_without_a_value_is_said_and_not_drawn():
    _, svg, [area] = opened(drawings.bars(["a", "b"], [np.nan, -1.0], "title", "about"))
    assert "no value" in texts(svg) and area["said"][0] == "a: no value"
    assert "nan" not in ElementTree.tostring(svg, encoding="unicode")


def test_a_run_without_patterns_has_no_picture():
    assert circuits.run(MODEL, CLEAN, "z")._repr_html_() is None
    assert circuits.attribution(MODEL, CLEAN)._repr_html_() is None  # of all logits


def test_a_long_text_is_drawn_within_bounds():
    """Positions beyond the last 16 are left out of the lens, heads beyond a million cells too."""
    lens = circuits.lens(MODEL, np.zeros((1, 24), int) + 3)
    assert opened(lens._repr_html_())[2][0]["shape"] == [7, 16]
    patterns = {layer: np.full((4, 300, 300), 1 / 300, np.float32) for layer in range(9)}
    run = circuits.run(MODEL, CLEAN)
    long = type(run)(**{**vars(run), "tokens": np.zeros((1, 300), int)})
    html = drawings.patterns_picture(long, patterns)
    _, svg, areas = opened(html)
    assert [area["shape"] for area in areas] == [[300, 300], [2, 4]]
    assert "8 heads (the first 2 of 9 layers): click one" in texts(svg)


ESSENTIALS = {
    "lens": [r"Lens of 3 prompts of 12 tokens", r"final_post +'\d+' 0\.\d{3}"],
    "attention": [r"Attention of 3 layers of 4 heads", r"induction +L\dH\d 0\.\d\d  L\dH\d"],
    "attribution": [r"Attribution in 3 prompts .* of \d+ parts", r"L\dH\d +[+-]\d"],
    "sweep of heads": [r"Sweep of z over layer, head.* metric \S+, source", r"L\dH\d +[+-]"],
    "circuit": [r"Circuit of \d+ of 15 parts, which keeps [\d.]+ \[", r"(MLP\d|L\dH\d) +[\d.]+ \["],
    "circuit of edges": [r"Circuit of", r"L0H\d → "],
}  # fmt: skip


@pytest.mark.parametrize("name", ESSENTIALS)
def test_the_text_of_a_result_says_the_essentials_in_ten_lines(name):
    text = repr(result_of(name))
    assert len(text.splitlines()) <= 10
    for pattern in ESSENTIALS[name]:
        assert re.search(pattern, text), text
