"""Pages in a real Chromium without a window, opened from the disk while the network is off."""
import os
import shutil

import pytest

CHROMIUM = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"


@pytest.fixture(scope="session")
def browser():
    """Playwright's Browser, which drives an installed Chromium. Playwright downloads nothing."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert program, "there is no Chromium: on Debian, apt-get install chromium"
    with sync_playwright() as playwright:
        # Root may not use the sandbox. A small /dev/shm would end the pages of a container.
        yield playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])


@pytest.fixture
def open_page(browser, request):
    """Return a function that opens a file as a page: Playwright's Page.

    Its options are those of Playwright's `Browser.new_context`: `viewport`, `color_scheme`,
    `reduced_motion` ... At the end of the test no page may have asked for anything but itself, nor
    have opened a dialog, nor have written an error or a warning to the console. Pages are closed
    then. PICTURES=folder in the environment saves a picture of each, as it was in the end.
    """
    opened = []

    def open_(path, **options):
        options = {"viewport": {"width": 1200, "height": 900}, **options}
        context = browser.new_context(offline=True, **options)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.problems = []
        address = path.resolve().as_uri()

        def note_request(asked):
            if asked.url.partition("#")[0] != address and not asked.url.startswith("data:"):
                page.problems.append(f"asked for {asked.url}")

        def note_console(message):
            if message.type in ("error", "warning"):
                page.problems.append(f"console: {message.text}")

        page.on("request", note_request)
        page.on("console", note_console)
        page.on("dialog", lambda one: (page.problems.append("a dialog"), one.dismiss()))
        page.on("pageerror", lambda error: page.problems.append(f"error: {error}"))
        opened.append((context, page))
        page.goto(address)
        return page

    yield open_
    problems = [problem for _, page in opened for problem in page.problems]
    for i, (context, page) in enumerate(opened):
        if folder := os.environ.get("PICTURES"):
            page.screenshot(path=f"{folder}/{request.node.name}_{i}.png", full_page=True)
        context.close()
    assert not problems
