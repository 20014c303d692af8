"""The fixture itself: it must notice requests and errors, or the tests of pages prove nothing."""
import pytest

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("<img src='http://127.0.0.1:9/x.png'>", "asked for http://127.0.0.1:9/x.png"),
        ("<script src='beside.js'></script>", "asked for file://"),
        ("<script>nothing.here</script>", "error: nothing is not defined"),
        ("<script>console.error('bad')</script>", "console: bad"),
        ("<script>fetch('https://example.org/')</script>", "asked for https://example.org/"),
    ],
)
def test_what_a_page_does_wrong_is_noticed(open_page, tmp_path, page, problem):
    path = tmp_path / "page.html"
    path.write_text(page)
    opened = open_page(path)
    opened.wait_for_timeout(50)
    assert any(found.startswith(problem) for found in opened.problems), opened.problems
    opened.problems.clear()


def test_a_page_that_only_shows_itself_is_right(open_page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<p>ROMEO</p><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>")
    assert open_page(path).inner_text("p") == "ROMEO"
