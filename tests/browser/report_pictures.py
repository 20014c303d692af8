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
PICTURES = {  # name: the section that it begins with, height, colour scheme
    "report.png": ("#text", 890, "light"),
    "report_attention.png": ("#attention", 815, "dark"),
}


def main(folder):
    program = next(filter(None, map(shutil.which, CHROMIUM)))
    model = gpt2_np.load("shakespeare", "cpu")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        path = Path(scratch) / "report.html"
        circuits.report(model, TEXT, path, title="shakespeare")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for name, (selector, height, scheme) in PICTURES.items():
            page = browser.new_page(viewport={"width": 1100, "height": height},
                                    color_scheme=scheme, reduced_motion="reduce")
            page.goto(path.as_uri())
            page.locator("#text-tokens .token").nth(23).click()
            page.evaluate(f"document.querySelector('{selector}').scrollIntoView()")
            page.mouse.move(0, 0)
            page.wait_for_timeout(500)
            page.screenshot(path=Path(folder) / name)
        page = browser.new_page(viewport={"width": 1240, "height": 840}, color_scheme="light")
        explorer = Path(__file__).parents[2] / "explorer" / "index.html"
        page.goto(f"{explorer.as_uri()}#model=Mixtral-8x7B")
        page.screenshot(path=Path(folder) / "explorer.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
