"""What a person does on the page of `zoo serve`, by Playwright, in whose environment ``serve_page.py`` runs it."""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

from playwright.sync_api import BrowserContext, Page, sync_playwright

ADDRESS, CHROMIUM, HOME, OUT = sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
FAKE_CAMERA = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
CONVERSATION = "Nina: I miss her. The house is so quiet now.\nOmar: <img src=x onerror=alert(1)>\nWhat a surprise!"
problems: list[str] = []
measured: list[tuple[str, float]] = []  # what was asked, seconds from the click to the answer


def watch(page: Page) -> None:
    """Note errors of the console, and requests to anywhere else."""
    page.on("console", lambda m: problems.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: problems.append(f"page: {error}"))
    page.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
    page.on(
        "request",
        lambda r: problems.append(f"left the machine: {r.url}") if not r.url.startswith((ADDRESS, "blob:")) else None,
    )


def opened(context: BrowserContext) -> Page:
    page = context.new_page()
    watch(page)
    page.goto(ADDRESS)
    page.wait_for_selector("#parts input")
    return page


def answered(page: Page) -> tuple[str, float]:
    """Press Answer; return what the status says then, and the seconds."""
    started = time.perf_counter()
    page.click("#go")
    page.wait_for_timeout(60)
    page.wait_for_selector("#go:not([disabled])", timeout=240_000)
    return page.inner_text("#status"), time.perf_counter() - started


def check(step: str, holds: bool, note: str = "") -> None:
    print(f"{'ok  ' if holds else 'FAIL'} {step}{': ' + note if note else ''}", flush=True)
    if not holds:
        problems.append(step)


def upload(page: Page) -> None:
    page.set_input_files("#file", str(HOME / "clip0.mp4"))
    page.fill("#text", "I miss her. The house is so quiet now.")
    status, seconds = answered(page)
    detail = page.inner_text("#detail")
    check("upload", status.startswith("Answered") and "Face" in detail and "Voice" in detail)
    measured.append(("a clip of 2 s with words, the first question", seconds))
    check("the words answer", "sadness" in page.inner_text("#detail .says >> nth=0"))
    check("a face is drawn", page.locator("#detail .faces canvas").count() > 0)
    check("the voice's curve is drawn", page.locator("#detail svg polyline").count() == 1)
    times = [answered(page)[1] for _ in range(5)]
    measured.append((f"the same again (median of {len(times)})", statistics.median(times)))
    page.uncheck("#parts input[value=face]")
    answered(page)
    check("a part switched off", "Face" not in page.inner_text("#detail"))
    page.check("#parts input[value=face]")


def film(page: Page) -> None:
    page.set_input_files("#file", str(HOME / "film.mp4"))
    page.fill("#text", "")
    page.check("#segments")
    status, seconds = answered(page)
    rows = page.locator("#timeline li").count()
    check("a film cut into utterances", status.startswith("Answered") and rows >= 3)
    measured.append((f"a film, cut into {rows} utterances", seconds))
    page.click("#timeline li:nth-child(2) button")
    check("a row is chosen", page.get_attribute("#timeline li:nth-child(2) button", "aria-current") == "true")
    page.uncheck("#segments")
    with page.expect_download() as download:
        page.click("#download")
    answer = json.loads(Path(download.value.path()).read_text())
    check("JSON to download", len(answer["utterances"]) == rows and answer["systems"][0]["name"] == "parts")
    canvases = "[...document.querySelectorAll('#detail .faces canvas')]"
    painted = f"{canvases}.filter(c => c.getContext('2d').getImageData(0, 0, 144, 144).data.some(Boolean)).length"
    page.wait_for_timeout(3000)
    before = page.evaluate(painted)
    page.set_input_files("#file", str(HOME / "clip1.mp4"))
    page.wait_for_timeout(3000)
    check("an answer is not drawn upon another film", before > 0 == page.evaluate(painted), f"{before} faces before")


def conversation(page: Page) -> None:
    page.check("input[value=lines]")
    page.fill("#lines", CONVERSATION)
    page.select_option("#other", "dialoguellm-sitcom")
    status, seconds = answered(page)
    labels = page.locator("#timeline .label").all_inner_texts()
    check("a conversation by two systems", len(labels) == 3 and all(" / " in x for x in labels))
    measured.append(("a conversation of 3 lines by two systems, one of them not loaded", seconds))
    check("HTML stays text", "<img src=x" in page.inner_text("#timeline") and not page.locator("#answer img").count())
    page.select_option("#other", "")


def recording(page: Page) -> None:
    page.check("input[value=clip]")
    page.click("#record")
    page.wait_for_timeout(2500)
    page.click("#record")
    page.wait_for_selector("#preview:not([hidden])")
    page.fill("#text", "Can you hear me?")
    status, seconds = answered(page)
    check("a recording by camera and microphone", status.startswith("Answered"), status)
    measured.append(("a recording of 2.5 s", seconds))


def errors(page: Page) -> None:
    page.set_input_files("#file", str(HOME / "notes.mp4"))
    page.fill("#text", "")
    status, _ = answered(page)
    detail = page.inner_text("#detail")
    check("a text named .mp4", "could be used" in detail or "cannot" in status, detail[:90].replace("\n", " "))
    (HOME / "large.mp4").write_bytes(b"\0" * 21 * 2**20)
    page.set_input_files("#file", str(HOME / "large.mp4"))
    check("a file that is too large", "20 MB at most" in answered(page)[0])
    page.click("#forget")
    check("nothing at all", "Choose a clip" in answered(page)[0])
    page.set_input_files("#file", str(HOME / "film.mp4"))
    page.check("#segments")
    page.click("#go")
    page.wait_for_timeout(200)
    page.click("#cancel")
    page.wait_for_selector("#go:not([disabled])")
    check("a cancelled question", page.inner_text("#status") == "Cancelled.")
    page.uncheck("#segments")


def two_users(contexts: list[BrowserContext]) -> None:
    pages = [opened(context) for context in contexts]
    for page in pages:
        page.check("input[value=lines]")
        page.fill("#lines", CONVERSATION)
    for page in pages:
        page.click("#go")
    for page in pages:
        page.wait_for_timeout(60)
        page.wait_for_selector("#go:not([disabled])", timeout=120_000)
    check("two users at once", all(page.locator("#timeline li").count() == 3 for page in pages))
    for page in pages:
        page.close()


def keyboard(page: Page) -> None:
    """From the top of the page to an answer by Tab, Space and Enter alone."""
    page.goto(ADDRESS)
    page.wait_for_selector("#parts input")
    page.keyboard.press("Tab")
    check("the skip link comes first", page.evaluate_handle("document.activeElement").as_element().inner_text() != "")
    page.focus("input[value=clip]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")
    page.keyboard.type("You scared me half to death!")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.locator("#go:focus").count():
            break
    page.keyboard.press("Enter")
    page.wait_for_timeout(60)
    page.wait_for_selector("#go:not([disabled])", timeout=120_000)
    check("by keyboard alone", "Answered" in page.inner_text("#status") and page.locator("#answer:focus").count() == 1)


def main() -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FAKE_CAMERA)
        wide = {"width": 1400, "height": 1000}
        contexts = [
            browser.new_context(viewport=wide, color_scheme=scheme, permissions=["camera", "microphone"])
            for scheme in ("light", "dark")
        ]
        page = opened(contexts[0])
        for step in (upload, film, conversation, recording, errors):
            step(page)
        keyboard(page)
        two_users(contexts)
        for context, scheme in zip(contexts, ("light", "dark"), strict=True):
            page = opened(context)
            page.set_input_files("#file", str(HOME / "film.mp4"))
            page.check("#segments")
            page.select_option("#other", "merit-sitcom")
            answered(page)
            page.wait_for_timeout(2500)
            for width in (1400, 420):
                page.set_viewport_size({"width": width, "height": 1000})
                page.screenshot(path=str(OUT / f"{scheme}_{width}.png"), full_page=True)
                over = page.evaluate_handle("document.documentElement").get_property("scrollWidth").json_value()
                check(f"nothing stands out at {width} pixels, {scheme}", over <= width, f"{over} pixels")
        browser.close()
    print("\n| question | s until it is answered |\n|---|---|")
    print("\n".join(f"| {what} | {seconds:.1f} |" for what, seconds in measured) + "\n")
    print("\n".join(problems) or "no error on the console, no request left the machine")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
