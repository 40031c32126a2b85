"""A headless Chromium through the W3C WebDriver protocol, with the standard library alone."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "ArrowLeft": "\ue012", "ArrowRight": "\ue014"}


def missing():
    """Return what has to be installed before a browser can be driven, or nothing."""
    driver = shutil.which("chromedriver")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    return "" if driver and browser else "no chromedriver and chromium: apt-get install both"


class Browser:
    def __init__(self, address, capabilities):
        self._root = address
        self._root = f"{address}/session/{self._ask('POST', '/session', capabilities)['sessionId']}"

    def open(self, path):
        self._ask("POST", "/url", {"url": Path(path).resolve().as_uri()})

    def go(self, address):
        self._ask("POST", "/url", {"url": address})

    def run(self, script, *arguments):
        return self._ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script, *arguments):
        """Return the first true value of an expression, tried for 20 seconds."""
        poll = """
            const done = arguments[arguments.length - 1], start = performance.now();
            const values = [].slice.call(arguments, 0, -1);
            (function again() {
                const value = (function() { return %s; }).apply(null, values);
                if (value || performance.now() - start > 20000) done(value);
                else setTimeout(again, 20);
            })();
        """
        arguments = list(arguments)
        return self._ask("POST", "/execute/async", {"script": poll % script, "args": arguments})

    def enter(self, selector):
        """Make everything that follows happen inside a frame; nothing for the whole page."""
        frame = None
        if selector:
            frame = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", "/frame", {"id": frame})

    def press(self, *keys):
        actions = []
        for key in keys:
            value = KEYS.get(key, key)
            actions += [{"type": "keyDown", "value": value}, {"type": "keyUp", "value": value}]
        sequence = {"type": "key", "id": "keyboard", "actions": actions}
        self._ask("POST", "/actions", {"actions": [sequence]})

    def click(self, selector):
        using = {"using": "css selector", "value": selector}
        element = next(iter(self._ask("POST", "/element", using).values()))
        self._ask("POST", f"/element/{element}/click", {})

    def complaints(self):
        """Return what the console holds of warnings and errors."""
        return [
            f"{e['level']}: {e['message']}"
            for e in self._ask("POST", "/se/log", {"type": "browser"})
        ]

    def look(self, *, width, height, scheme="light"):
        """Make the window so large and the person prefer a colour scheme."""
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self._devtools("Emulation.setEmulatedMedia", features=media)
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def _devtools(self, command, **parameters):
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._root + path, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise RuntimeError(json.load(error)["value"]["message"]) from None

    def close(self):
        self._ask("DELETE", "")


@contextmanager
def opened():
    with tempfile.TemporaryDirectory(prefix="rb", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            ["chromedriver", "--port=0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            port = next(
                found.group(1)
                for line in driver.stdout
                if (found := re.search(r"started successfully on port (\d+)", line))
            )
            options = {"args": [*FLAGS, f"--user-data-dir={profile}"]}
            always = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            capabilities = {"capabilities": {"alwaysMatch": always}}
            browser = Browser(f"http://127.0.0.1:{port}", capabilities)
            try:
                yield browser
            finally:
                browser.close()
        finally:
            driver.terminate()
            driver.wait(timeout=20)
            driver.stdout.close()
