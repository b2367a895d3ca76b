"""Opens a report in headless Chromium, uses everything in it, and exits 1 on a console error or a wrong answer.

    python tests/benchmarks/check_report.py [--report bench/report.html] [--shots FOLDER]

Without ``--report`` one is made up, with hostile texts. Needs Chromium (Debian: ``apt-get install chromium``) and
nothing else: it is driven through its debugging pipe. Clicks every heading of every table, every cost, every filter and
every page, in a wide, a narrow and a dark window; prints the page; fails on any request but that for the file itself.
``--shots`` leaves pictures of every section.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmark.made_up import hostile, made_up  # noqa: E402 (the repository is not installed as `tests`)
from zoo.benchmark.report import write_report  # noqa: E402

WINDOWS = {"wide": (1440, 900, "light"), "dark": (1440, 900, "dark"), "narrow": (400, 850, "light")}
# the report's own sections, in its own order
SECTIONS = ("failed", "ranking", "cost", "confusion", "curves", "utterances", "papers", "method")


class Browser:
    """A headless Chromium with one tab.

    Attributes:
        events: everything it reported unasked, (method, parameters).
    """

    def __init__(self, binary: str, profile: str) -> None:
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for pipe in (os.pipe(), os.pipe()) for fd in pipe]
        read, self.write, self.read, write = ends
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        command = [binary, *options, "--no-first-run", "--disable-component-update", f"--user-data-dir={profile}"]
        # Chromium reads commands from descriptor 3 and writes to 4
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{read} 4>&{write}', *command, "about:blank"]
        self.process = subprocess.Popen(shell, pass_fds=(read, write), stderr=subprocess.DEVNULL)
        self.events: list[tuple[str, dict]] = []
        self.number, self.buffer, self.session = 0, b"", None
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **parameters: Any) -> dict:
        """One command of the DevTools protocol and its result; RuntimeError if the browser refuses it."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def receive(self, timeout: float = 60) -> dict:
        while b"\0" not in self.buffer:
            if not select.select([self.read], [], [], timeout)[0]:
                raise RuntimeError(f"Chromium has not answered for {timeout} s")
            self.buffer += os.read(self.read, 1 << 20)
        line, self.buffer = self.buffer.split(b"\0", 1)
        answer = json.loads(line)
        if "method" in answer:
            self.events.append((answer["method"], answer["params"]))
            if answer["method"] == "Page.javascriptDialogOpening":  # nothing goes on until it is closed
                self.number += 1
                message = {"id": self.number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self.write, json.dumps(message | {"sessionId": self.session}).encode() + b"\0")
        return answer

    def open(self, address: str, width: int, height: int, scheme: str) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self("Page.navigate", url="about:blank")
        before = sum(method == "Page.loadEventFired" for method, _ in self.events)
        self("Page.navigate", url=address)
        end = time.monotonic() + 30
        while sum(method == "Page.loadEventFired" for method, _ in self.events) <= before or not self.js(
            "document.readyState === 'complete' && location.href !== 'about:blank'"
        ):
            if time.monotonic() > end:
                raise RuntimeError(f"{address} did not load in 30 s")
            self.js("1")

    def js(self, code: str) -> Any:
        """The value of an expression in the page; RuntimeError if it throws."""
        answer = self("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{code[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def shoot(self, file: Path, selector: str | None = None, most: int = 2600) -> None:
        """A picture of an element (at most that many pixels high) or of the window."""
        clip = {}
        if selector:
            box = self.js(
                f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
                " return [b.top + scrollY, b.height, innerWidth]; })()"
            )
            area = {"x": 0, "y": max(0, box[0] - 12), "width": box[2], "height": min(box[1] + 24, most), "scale": 1}
            clip = {"clip": area, "captureBeyondViewport": True}
        file.write_bytes(base64.b64decode(self("Page.captureScreenshot", format="png", **clip)["data"]))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Data(HTMLParser):
    """The JSON of the page's data element, read without a browser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inside, self.parts = False, []
        self.feed(text)
        self.value = json.loads("".join(self.parts)) if self.parts else None

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.inside = tag == "script" and dict(attrs).get("id") == "data"

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.parts.append(data)


# ---- what is checked
class Failures(list):
    def expect(self, right: bool, what: str) -> None:
        if not right:
            self.append(what)


CLICK_ALL = """[...document.querySelectorAll('table.sortable')].map((table) => {
  const head = [...table.tHead.rows[0].cells], rows = () => [...table.tBodies[0].rows];
  const before = rows().map((row) => row.textContent).sort();
  const clicks = head.flatMap((cell, column) => [1, 2].map((turn) => {
    if (!cell.querySelector('button')) return null;
    cell.querySelector('button').click();
    return {
      column, turn, first: cell.dataset.first, name: cell.querySelector('button').textContent,
      values: rows().map((row) => row.cells[column].dataset.v), sorted: head.map((c) => c.getAttribute('aria-sort')),
    };
  })).filter(Boolean);
  return { clicks, kept: JSON.stringify(before) === JSON.stringify(rows().map((row) => row.textContent).sort()) };
})"""


def check_sorting(browser: Browser, failures: Failures) -> int:
    """Every heading twice: the order follows the values, both ways, empty ones last, and no row is lost."""
    clicks = 0
    for t, table in enumerate(browser.js(CLICK_ALL)):
        failures.expect(table["kept"], f"table {t}: rows were lost or changed")
        for click in table["clicks"]:
            clicks += 1
            values, first = click["values"], click["first"]
            direction = first if click["turn"] == 1 else {"ascending": "descending", "descending": "ascending"}[first]
            full = [v for v in values if v != ""]
            try:
                keys = [float(v) for v in full]
                right = keys == sorted(keys, reverse=direction == "descending")
            except ValueError:  # names: as the reader's language sorts them
                order = "a.localeCompare(b)" if direction == "ascending" else "b.localeCompare(a)"
                right = full == browser.js(f"{json.dumps(full)}.sort((a, b) => {order})")
            where = f"table {t}, heading {click['name']!r}, click {click['turn']}"
            failures.expect(right, f"{where}: order is {values}")
            failures.expect(values[: len(full)] == full, f"{where}: an empty value is not last: {values}")
            now = click["sorted"]
            expected = [
                direction if i == click["column"] else "none" if a is not None else None for i, a in enumerate(now)
            ]
            failures.expect(now == expected, f"{where}: aria-sort is {now}")
    failures.expect(clicks > 40, f"only {clicks} headings could be clicked")
    # from the keyboard
    browser.js("document.querySelector('#ranked th.score button, #ranked th.number button').focus()")
    was = browser.js("document.activeElement.closest('th').getAttribute('aria-sort')")
    for kind in ("keyDown", "keyUp"):
        browser("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    now = browser.js("document.activeElement.closest('th').getAttribute('aria-sort')")
    failures.expect(now != was and now != "none", f"Enter on a heading changed aria-sort from {was} to {now}")
    return clicks


def shown(browser: Browser) -> list[str]:
    """Ids of all utterances found, page by page."""
    ids: list[str] = []
    while True:
        ids += browser.js("[...document.querySelectorAll('#cards .id')].map((e) => e.textContent)")
        if browser.js("document.querySelector('.next').disabled"):
            return ids
        browser.js("document.querySelector('.next').click()")


def check_filters(browser: Browser, data: dict, failures: Failures) -> int:
    """Every choice of every filter, and searches, against the same question asked of the data here."""
    names = [s["name"] for s in data["systems"]]

    def wrong(one: dict, name: str) -> bool:
        return name in one["systems"] and one["systems"][name]["predicted"] != one["label"]

    questions: dict[str, Callable[[dict], bool]] = {
        "all": lambda one: True,
        "disagree": lambda one: len({s["predicted"] for s in one["systems"].values()}) > 1,
        "all-wrong": lambda one: bool(one["systems"]) and all(wrong(one, name) for name in one["systems"]),
    }
    questions |= {f"wrong:{i}": (lambda one, name=name: wrong(one, name)) for i, name in enumerate(names)}

    def choose(field: str, value: str) -> None:
        browser.js(
            f"(() => {{ const e = document.getElementById('{field}'); e.value = {json.dumps(value)};"
            " e.dispatchEvent(new Event('input', { bubbles: true })); })()"
        )

    def compare(expected: list[dict], what: str) -> None:
        got = shown(browser)
        failures.expect(got == [one["id"] for one in expected], f"{what}: {len(got)} shown, {len(expected)} expected")
        words = browser.js("document.getElementById('found').textContent")
        failures.expect(words.split()[0] == str(len(expected)), f"{what}: says {words!r}, expected {len(expected)}")

    offered = browser.js("[...document.querySelectorAll('#view option')].map((o) => o.value)")
    failures.expect(offered == list(questions), f"filters offered are {offered}")
    every = data["utterances"]
    for view, question in questions.items():
        choose("view", view)
        compare([one for one in every if question(one)], f"show {view}")
    choose("view", "disagree")
    for label in data["labels"]:
        choose("truth", label)
        compare([one for one in every if questions["disagree"](one) and one["label"] == label], f"disagree and {label}")
    choose("truth", "")
    choose("view", "all")
    for words in ("kitchen", "MIA", "dia1", "no such words"):
        choose("search", words)
        texts = [
            "\n".join([o["id"], o["speaker"], o["text"], *o["descriptions"].values()]).lower().find(words.lower())
            for o in every
        ]
        compare([one for one, at in zip(every, texts, strict=True) if at >= 0], f"search {words!r}")
    choose("search", "")
    browser.js("Promise.all([...document.querySelectorAll('.face[src]')].map((face) => face.decode()))")
    # a card says what the data say, as text
    for i, one in enumerate(every[:25]):
        card = f"document.querySelectorAll('#cards > li')[{i}]"
        got = browser.js(
            f"[{card}.querySelector('.turn q').textContent, {card}.querySelectorAll('.answers > li').length,"
            f" {card}.querySelectorAll('.answers > .right').length, {card}.querySelectorAll('.history li').length,"
            f" {card}.querySelector('.face').naturalWidth > 0,"
            f" {card}.querySelector('.voice').getClientRects().length > 0,"
            f" {card}.querySelectorAll('details:not([hidden])').length]"
        )
        right = sum(s["predicted"] == one["label"] for s in one["systems"].values())
        why = sum(s["why"] is not None for s in one["systems"].values())
        senses = [one["face"] is not None, bool(one["voice"])]
        expected = [one["text"], len(names), right, len(one["history"]), *senses, why]
        failures.expect(got == expected, f"card {one['id']}: {got} instead of {expected}")
    return len(questions) + len(data["labels"]) + 4


def check_costs(browser: Browser, failures: Failures) -> None:
    for i in range(browser.js("document.querySelectorAll('#cost-choice input').length")):
        browser.js(f"document.querySelectorAll('#cost-choice input')[{i}].click()")
        cost = browser.js(f"document.querySelectorAll('#cost-choice input')[{i}].value")
        seen = browser.js(
            "[...document.querySelectorAll('figure.picture')].filter((f) => f.offsetHeight).map((f) => f.dataset.cost)"
        )
        failures.expect(seen == [cost], f"cost {cost}: shown are {seen}")
        overlaps = browser.js("""(() => {
          const names = [...document.querySelectorAll('figure.picture:not([hidden]) .name')];
          const boxes = names.map((e) => e.getBoundingClientRect()).filter((b) => b.width);
          const found = [];
          boxes.forEach((a, i) => boxes.slice(i + 1).forEach((b) => {
            const w = Math.min(a.right, b.right) - Math.max(a.left, b.left);
            const h = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
            if (w > 2 && h > 3) found.push(Math.round(w * h));
          }));
          return found;
        })()""")
        if overlaps:
            print(f"{cost}: {len(overlaps)} pairs of labels touch, areas {overlaps} square pixels")
    browser.js("document.querySelectorAll('#cost-choice input')[0].click()")


def check(report: Path, browser: Browser, shots: Path | None) -> Failures:
    """Everything, in every window; see the top of this file."""
    failures = Failures()
    data = Data(report.read_text(encoding="utf-8")).value
    address = report.resolve().as_uri()
    for window, (width, height, scheme) in WINDOWS.items():
        browser.open(address, width, height, scheme)
        wide = browser.js("document.documentElement.scrollWidth")
        failures.expect(wide <= width, f"{window}: the page is {wide} pixels wide in a window of {width}")
        failures.expect(browser.js("document.title.length > 0"), f"{window}: no title")
        if shots:
            browser.shoot(shots / f"{window}-top.png")
            browser.js("document.querySelectorAll('details.paper').forEach((d, i) => { d.open = i < 2; })")
            for section in SECTIONS:
                if browser.js(f"document.getElementById('{section}') !== null"):
                    browser.shoot(shots / f"{window}-{section}.png", f"#{section}")
        clicks = check_sorting(browser, failures)
        check_costs(browser, failures)
        filters = check_filters(browser, data, failures) if data else 0
        failures.expect(browser.js("window.pwned === undefined"), f"{window}: a text of the data was run as a script")
        print(f"{window}: {clicks} clicks on headings, {filters} filters", flush=True)
    failures.expect(len(browser("Page.printToPDF")["data"]) > 10_000, "the page does not print")
    for method, parameters in browser.events:
        if method == "Runtime.exceptionThrown":
            failures.append(f"exception: {parameters['exceptionDetails'].get('exception', {}).get('description')}")
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning", "assert"):
            failures.append(f"console: {parameters['args']}")
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            failures.append(f"log: {parameters['entry']['text']}")
        elif method == "Page.javascriptDialogOpening":
            failures.append(f"a dialog opened: {parameters['message']}")
        elif method == "Network.requestWillBeSent":
            url = parameters["request"]["url"]
            failures.expect(url.split("#")[0] == address or url.startswith(("data:", "about:")), f"request for {url}")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, help="report.html to open; made up if left out")
    parser.add_argument("--shots", type=Path, help="folder for pictures")
    parser.add_argument("--chromium", default=shutil.which("chromium") or shutil.which("chromium-browser"))
    given = parser.parse_args()
    if not given.chromium:
        print("no chromium found: install it (apt-get install chromium) or name it with --chromium")
        return 1
    if given.shots:
        given.shots.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        reports = [given.report]
        if not given.report:
            reports = []
            for name, (results, utterances) in {"plain": made_up(), "hostile": hostile()}.items():
                (Path(folder) / name).mkdir()
                write_report(results, Path(folder) / name, utterances)
                reports.append(Path(folder) / name / "report.html")
        failures = []
        for report in reports:
            with tempfile.TemporaryDirectory() as profile:
                browser = Browser(given.chromium, profile)
                try:
                    shots = given.shots if report == reports[0] else None
                    failures += check(report, browser, shots)
                finally:
                    browser.close()
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"{len(reports)} report(s), {len(failures)} failure(s)")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
