"""Write README's pictures of pages: python tests/browser/report_pictures.py examples/pictures"""
import shutil
import sys
import tempfile
from pathlib import Path

from conftest import CHROMIUM
from playwright.sync_api import sync_playwright

import gpt2_np
from gpt2_np import circuits

TEXT = ("ROMEO:\nWhat, art thou hurt?\n\nMERCUTIO:\nWhat, art thou mad? I am hurt. "
        "A plague on both your houses!")
EXPLORER = Path(gpt2_np.__file__).parent / "explorer" / "index.html"
SECTIONS = {  # name of a report's picture: the section that it begins with, height, colour scheme
    "report.png": ("#text", 890, "light"),
    "report_attention.png": ("#attention", 815, "dark"),
}


def main(folder):
    folder, model = Path(folder), gpt2_np.load("shakespeare", "cpu")
    program = next(filter(None, map(shutil.which, CHROMIUM)))
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        path = Path(scratch) / "report.html"
        circuits.report(model, TEXT, path, title="shakespeare")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])

        def opened(uri, width, height, scheme="light"):
            page = browser.new_page(viewport={"width": width, "height": height},
                                    color_scheme=scheme, reduced_motion="reduce")
            page.goto(uri)
            page.wait_for_timeout(500)
            return page

        for name, (selector, height, scheme) in SECTIONS.items():
            page = opened(path.as_uri(), 1100, height, scheme)
            page.locator("#text-tokens .token").nth(23).click()
            page.evaluate(f"document.querySelector('{selector}').scrollIntoView()")
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            page.screenshot(path=folder / name)
        page = opened(f"{EXPLORER.as_uri()}#model=Mixtral-8x7B", 1240, 840)
        page.screenshot(path=folder / "explorer.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
