"""Pictures of results in a notebook's page: alive side by side, and still there without scripts."""
import base64
import functools
import re

import numpy as np
import pytest

import gpt2_np
from gpt2_np import circuits

pytestmark = pytest.mark.browser

TEXT = "Now is the winter of our discontent. Now is the winter of our"
PICTURES = ("lens", "attention", "attribution", "sweep", "run", "another run")
INKS = {"light": ((11, 85, 159), (255, 255, 255)), "dark": ((125, 184, 245), (22, 25, 29))}


@functools.cache
def results():
    model = gpt2_np.load("shakespeare")
    task = circuits.repeated_tokens(model, 10, 2)
    pair = {"base": task.corrupted, "source": task.clean, "metric": task.metric(model)}
    return {
        "lens": circuits.lens(model, TEXT),
        "attention": circuits.heads(model, TEXT),
        "attribution": circuits.attribution(model, TEXT, " discont"[:4], bos=True),
        "sweep": circuits.patching(model, "z", **pair),
        "run": circuits.run(model, TEXT, "pattern"),
        "another run": circuits.run(model, TEXT[:20], "pattern"),
        "report": circuits.report(model, TEXT[:20]),
    }


@pytest.fixture
def show(open_page, tmp_path):
    """A function that opens a page with pictures, as a notebook shows them, and returns both."""

    def show(names, keep_scripts=True, body="", **options):
        html = "".join(f"<section>{results()[name]._repr_html_()}</section>" for name in names)
        if not keep_scripts:
            html = re.sub(r"<(script|style)>.*?</\1>", "", html, flags=re.DOTALL)
        path = tmp_path / "page.html"
        path.write_text(f"<!doctype html><meta charset=utf-8><body {body}>{html}", "utf-8")
        page = open_page(path, **options)
        page.wait_for_function("[...document.images].every((image) => image.complete)")
        return page, page.query_selector_all("section")

    return show


def areas_of(section):
    return section.evaluate("(s) => JSON.parse(s.firstChild.dataset.areas)")


def point_at(page, section, area, row, column, click=False):
    frame = section.query_selector("img").bounding_box()
    x, y = (frame[axis] + area[axis] + (i + 0.5) * size for axis, i, size in
            zip("xy", (column, row), area["cell"], strict=True))
    (page.mouse.click if click else page.mouse.move)(x, y)


def said(section):
    return section.query_selector(".said").inner_text()


def colours_at(page, element, points):
    """Return the colours [point, 3] of an element at points (x, y), read by the browser itself."""
    uri = "data:image/png;base64," + base64.b64encode(element.screenshot()).decode()
    return np.array(page.evaluate("""async ([uri, points]) => {
        const image = new Image(), canvas = document.createElement("canvas");
        image.src = uri;
        await image.decode();
        [canvas.width, canvas.height] = [image.width, image.height];
        const pen = canvas.getContext("2d", { willReadFrequently: true });
        pen.drawImage(image, 0, 0);
        return points.map(([x, y]) => [...pen.getImageData(x, y, 1, 1).data].slice(0, 3));
    }""", [uri, points]))


def middle(area, row, column):
    return [int(area[axis] + (i + 0.5) * size) for axis, i, size in
            zip("xy", (column, row), area["cell"], strict=True)]


def test_several_pictures_live_in_one_page_and_leave_each_other_alone(show):
    page, sections = show([*PICTURES, "lens"], viewport={"width": 1200, "height": 4000})
    begin = said(sections[0])
    for i, section in enumerate(sections):
        for area in areas_of(section):
            point_at(page, section, area, area["shape"][0] - 1, 0)
            assert said(section) != begin
        assert [said(later) for later in sections[i + 1 :]] == [begin] * (len(sections) - i - 1)
    assert len({said(section) for section in sections}) == 5  # two say the same head, two a point
    assert page.query_selector_all("[id]") == []  # nothing that two pictures could share


def test_a_report_lives_beside_pictures(show):
    page, sections = show(["lens", "report", "run", "report"],
                          viewport={"width": 1200, "height": 4000})
    frames = page.query_selector_all("iframe")
    assert len(frames) == 2
    for frame in frames:
        assert frame.content_frame().query_selector("#text-tokens .token") is not None
    for section in (sections[0], sections[2]):
        point_at(page, section, areas_of(section)[0], 1, 0)
        assert not said(section).startswith("Point at")


def test_the_pointer_tells_the_value_of_a_cell(show):
    page, sections = show(["sweep", "run", "lens"])
    [area] = areas_of(sections[0])
    point_at(page, sections[0], area, 1, 2)
    sweep = results()["sweep"]
    assert said(sections[0]).startswith(f"L1H2: metric {sweep.values[1, 2]:.4g}, changed by ")
    large, _ = areas_of(sections[1])
    pattern = results()["run"]["blocks.0.attn.hook_pattern"][0, 0]
    for query, key in ((3, 2), (9, 8), (9, 3), (2, 9)):
        point_at(page, sections[1], large, query, key)
        found = re.fullmatch(rf"L0H0: “.*” \({query}\) attends (.*) to “.*” \({key}\)",
                             said(sections[1]))
        assert abs(float(found[1]) - pattern[query, key]) < 0.01
    [area] = areas_of(sections[2])
    point_at(page, sections[2], area, 0, area["shape"][1] - 1)
    assert said(sections[2]).startswith("final_post, after “ our”: “")


def test_a_click_chooses_a_head_and_its_picture_shows_its_attention(show):
    page, [section, other] = show(["run", "another run"])
    large, heads = areas_of(section)
    image, untouched = (one.query_selector("img") for one in (section, other))
    unchanged = untouched.get_attribute("src")
    point_at(page, section, heads, 1, 1, click=True)
    page.wait_for_timeout(100)
    page.mouse.move(0, 0)
    pattern = results()["run"]["blocks.1.attn.hook_pattern"][0, 1]
    ink, paper = map(np.array, INKS["light"])
    shown = colours_at(page, image, [middle(large, *at) for at in np.ndindex(pattern.shape)])
    t = np.sqrt(pattern).reshape(-1, 1)
    assert np.abs(shown - t * ink - (1 - t) * paper).max() < 4
    point_at(page, section, large, 10, 4)
    assert said(section).startswith("L1H1: ")
    assert untouched.get_attribute("src") == unchanged


def test_the_keyboard_does_what_the_pointer_does(show):
    page, [section] = show(["run"])
    page.keyboard.press("Tab")
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert said(section) == "L1H3"  # the end of the row
    page.keyboard.press("Enter")
    page.wait_for_timeout(100)
    large, _ = areas_of(section)
    point_at(page, section, large, 1, 0)
    assert said(section).startswith("L1H3: ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_line_under_a_picture_is_readable_on_a_page_that_ignores_the_scheme(show, scheme):
    _, [section] = show(["attention"], color_scheme=scheme, body='style="background:#fff"')
    line = section.query_selector(".said")
    ink, sheet = (line.evaluate(f"(line) => getComputedStyle(line).{name}")
                  for name in ("color", "backgroundColor"))
    assert sheet == "rgb({}, {}, {})".format(*INKS[scheme][1])
    assert (int(re.search(r"\d+", ink)[0]) > 200) == (scheme == "dark")


@pytest.mark.parametrize("name", ["lens", "attention", "attribution", "sweep", "run"])
def test_without_scripts_and_styles_the_picture_is_the_same(name, show):
    _, [section] = show([name], keep_scripts=False)
    assert section.query_selector(".said") is None
    bare = section.query_selector("img").screenshot()
    _, [alive] = show([name])
    assert bare == alive.query_selector("img").screenshot()
    assert len(bare) > 3000


@pytest.mark.parametrize(
    ("paper", "body", "scheme"),
    [("light", "", "light"), ("dark", "", "dark"),
     ("dark", 'data-jp-theme-light="false"', "light"),
     ("light", 'data-jp-theme-light="true"', "dark"),
     ("dark", 'class="vscode-dark"', "light")],
)
def test_pictures_follow_the_theme_of_the_notebook(paper, body, scheme, show):
    page, [section] = show(["attention"], body=body, color_scheme=scheme)
    ink, sheet = map(np.array, INKS[paper])
    at = [[1, 1], middle(areas_of(section)[0], 0, 0)]
    corner, cell = colours_at(page, section.query_selector("img"), at)
    t = np.sqrt(results()["attention"].previous_token[0, 0])
    assert corner.tolist() == sheet.tolist()
    assert np.abs(cell - t * ink - (1 - t) * sheet).max() < 4


def test_a_narrow_page_scales_the_picture_and_still_finds_the_cell(show):
    page, [section] = show(["lens"], viewport={"width": 500, "height": 600})
    frame, [area] = section.query_selector("img").bounding_box(), areas_of(section)
    scale = frame["width"] / int(section.query_selector("img").get_attribute("width"))
    assert scale < 0.6
    x, y = (frame[axis] + scale * (area[axis] + (i + 0.5) * size)
            for axis, i, size in zip("xy", (7, 2), area["cell"], strict=True))
    page.mouse.move(x, y)
    assert said(section) == area["said"][2 * area["shape"][1] + 7]
