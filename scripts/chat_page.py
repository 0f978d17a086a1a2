#!/usr/bin/env python3
"""Drives the chat page in a headless Chromium, as a person with a keyboard would. Python 3.9, nothing else.

    scripts/chat_page.py --server target/debug/millpond [--screenshots FOLDER]

Exit status 0 if all is well, 1 if something is not, 77 if there is no Chromium to drive.
"""

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

BROWSERS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
SKIPPED = 77


class Browser:
    """Chromium, spoken to over a pair of pipes: one JSON value after the other, each ended by a zero byte."""

    def __init__(self, path, folder):
        to_browser, self.writer = os.pipe()
        self.reader, from_browser = os.pipe()

        def plumb():
            # Chromium reads at descriptor 3 and writes at 4.
            high_in, high_out = os.dup2(to_browser, 63), os.dup2(from_browser, 64)
            os.dup2(high_in, 3)
            os.dup2(high_out, 4)

        self.process = subprocess.Popen(
            [path, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
             "--disable-background-networking", "--disable-component-update", "--window-size=900,700",
             f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"],
            preexec_fn=plumb, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to_browser)
        os.close(from_browser)
        self.count, self.rest, self.events, self.session = 0, b"", [], None
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(domain + ".enable")

    def message(self):
        while b"\0" not in self.rest:
            piece = os.read(self.reader, 1 << 16)
            if not piece:
                raise SystemExit("the browser has ended")
            self.rest += piece
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **params):
        self.count += 1
        request = {"id": self.count, "method": method, "params": params}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.writer, json.dumps(request).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.count:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def run(self, script):
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, what, script, seconds=60):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            value = self.run(script)
            if value:
                return value
            time.sleep(0.05)
        raise SystemExit(f"never happened: {what}")

    def key(self, key, text=None, modifiers=0, code=0):
        fields = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        if text:
            fields["text"] = text
        self.call("Input.dispatchKeyEvent", type="keyDown", **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", **{k: v for k, v in fields.items() if k != "text"})

    def enter(self, modifiers=0):
        self.key("Enter", "\r", modifiers, 13)

    def screenshot(self, path):
        if path:
            with open(path, "wb") as file:
                file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self):
        """What the page or the browser found wrong."""
        found = []
        for event in self.events:
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(event["params"]["exceptionDetails"]["text"])
            if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def addresses(self):
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def close(self):
        self.process.kill()
        self.process.wait()


def serve(path, *arguments):
    process = subprocess.Popen([path, "serve", "--port", "0", *arguments], stderr=subprocess.PIPE, text=True,
                               env={"PATH": os.environ.get("PATH", "")})
    address = None
    for line in process.stderr:
        if "http://" in line:
            address = "http://" + line.strip().split("http://")[1].split(",")[0]
        if "serving" in line:
            return process, address
    raise SystemExit("the server has ended")


def check(what, fits, seen=None):
    print(("ok       " if fits else "NOT SO   ") + what + ("" if fits or seen is None else f": {seen}"))
    if not fits:
        check.failed = True


check.failed = False


def open_page(browser, address):
    browser.events.clear()
    browser.call("Page.navigate", url=address + "/")
    browser.until("the page is there", f"location.origin === '{address}' && document.readyState === 'complete' && "
                  "!!document.getElementById('text')")


ANSWERED = "!document.getElementById('send').hidden && document.querySelectorAll('article.assistant small').length === %d"


def conversation(browser, address, folder):
    open_page(browser, address)
    check("the message field has the focus", browser.run("document.activeElement.id") == "text")
    browser.call("Input.insertText", text="Tell me about")
    browser.enter(modifiers=8)
    browser.call("Input.insertText", text="a dragon.")
    check("Shift+Enter starts a new line", browser.run("document.getElementById('text').value") == "Tell me about\na dragon.",
          browser.run("document.getElementById('text').value"))
    browser.enter()
    browser.until("the answer is there", ANSWERED % 1)
    said = browser.run("document.querySelector('article.assistant').innerText")
    figures = browser.run("document.querySelector('article.assistant small').innerText")
    check("an answer came", len(said) > len(figures) + 5, said)
    check("figures tell tokens/s and cached tokens", "tokens/s" in figures and "cached" in figures, figures)
    check("the field is empty and has the focus again",
          browser.run("document.activeElement.id + document.getElementById('text').value") == "text")
    browser.screenshot(folder and os.path.join(folder, "light.png"))
    browser.call("Input.insertText", text="And then?")
    browser.enter()
    browser.until("the second answer is there", ANSWERED % 2)
    figures = browser.run("[...document.querySelectorAll('article.assistant small')].at(-1).innerText")
    cached = int(figures.split("(")[1].split()[0])
    check("the second turn reuses the first", cached > 20, figures)
    browser.call("Input.insertText", text="<img src=x onerror=alert(1)> **bold**")
    browser.enter()
    browser.until("it runs", "!document.getElementById('stop').hidden")
    browser.key("Escape", code=27)
    browser.until("Escape stops it", "!document.getElementById('send').hidden", 10)
    check("what people write is never markup", browser.run("document.querySelectorAll('main img').length") == 0)
    background = "getComputedStyle(document.documentElement).backgroundColor + getComputedStyle(document.body).color"
    colours = []
    for scheme in ["light", "dark"]:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        colours.append(browser.run(background))
    check("dark and light differ", colours[0] != colours[1], colours)
    browser.screenshot(folder and os.path.join(folder, "dark.png"))
    browser.run("document.getElementById('reset').click()")
    check("a new chat is empty", browser.run("document.querySelectorAll('article').length") == 0)
    browser.call("Input.insertText", text="Hello!")
    browser.enter()
    browser.until("it answers again", ANSWERED % 1)
    foreign = [url for url in browser.addresses() if not url.startswith((address, "data:"))]
    check("nothing was fetched from elsewhere", not foreign, foreign)
    check("the browser complained of nothing", not browser.complaints(), browser.complaints())
    unnamed = browser.run("[...document.querySelectorAll('input,textarea,button')].filter(e => "
                          "!(e.labels && e.labels.length) && !e.ariaLabel && !e.innerText.trim() && !e.hidden).length")
    check("every control has a name", unnamed == 0, unnamed)
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    check("it fits a narrow screen", browser.run("document.documentElement.scrollWidth <= 360"),
          browser.run("document.documentElement.scrollWidth"))
    browser.screenshot(folder and os.path.join(folder, "narrow.png"))
    browser.call("Emulation.clearDeviceMetricsOverride")


def say(browser, text):
    browser.run("document.getElementById('text').focus()")
    browser.call("Input.insertText", text=text)
    browser.enter()


def several_models(browser, address):
    open_page(browser, address)
    browser.until("the models are listed", "!document.getElementById('model').hidden")
    names = browser.run("[...document.getElementById('model').options].map(o => o.value).join()")
    check("the page lists the models", names == "first,second", names)
    browser.run("document.getElementById('model').value = 'second'")
    say(browser, "Hello!")
    browser.until("the second model answers", ANSWERED % 1)
    check("the chosen model answers", True)


def with_key(browser, address):
    open_page(browser, address)
    say(browser, "Hello!")
    browser.until("the refusal shows", "!!document.querySelector('article.error')")
    check("without a key, the page says so", "key" in browser.run("document.querySelector('.error').innerText").lower())
    browser.run("document.getElementById('key').focus()")
    browser.call("Input.insertText", text="secret")
    say(browser, "Hello!")
    browser.until("with the key, it answers", ANSWERED % 1)
    check("with the key, it answers", True)
    check("the key is shown to nobody", browser.run("document.getElementById('key').type") == "password")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True, help="the program millpond")
    parser.add_argument("--model", help="a GGUF file, to see the page with several models")
    parser.add_argument("--screenshots", help="folder to put screenshots in")
    args = parser.parse_args()
    path = next((found for found in map(shutil.which, BROWSERS) if found), None)
    if not path:
        print("skipped: no Chromium on the path (looked for " + ", ".join(BROWSERS) + ")")
        return SKIPPED
    with tempfile.TemporaryDirectory() as models, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(path, folder)
        servers = []
        try:
            visits = [([], lambda a: conversation(browser, a, args.screenshots)),
                      (["--api-key", "secret"], lambda a: with_key(browser, a))]
            if args.model:
                for name in ["first", "second"]:
                    os.symlink(os.path.abspath(args.model), os.path.join(models, name + ".gguf"))
                visits.append((["--models-dir", models], lambda a: several_models(browser, a)))
            for arguments, visit in visits:
                process, address = serve(args.server, "--predict", "60", *arguments)
                servers.append(process)
                visit(address)
        finally:
            browser.close()
            for process in servers:
                process.kill()
                process.wait()
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
