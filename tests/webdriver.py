"""A headless Chromium for tests, through the WebDriver protocol (https://www.w3.org/TR/webdriver2/)."""

import contextlib
import json
import shutil
import subprocess
from pathlib import Path

import urllib3

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of an element in the protocol


class Browser:
    """One session. url: of the session at the driver."""

    def __init__(self, url):
        self.url, self.http = url, urllib3.PoolManager(retries=False)

    def call(self, method, path="", **body):
        """The value that the driver answers; AssertionError for an error."""
        sent = json.dumps(body).encode() if method == "POST" else None
        answer = self.http.request(method, self.url + path, body=sent, headers={"Content-Type": "application/json"}, timeout=60)
        value = json.loads(answer.data)["value"]
        assert answer.status == 200, value
        return value

    def open(self, path):
        self.call("POST", "/url", url=Path(path).as_uri())

    def find(self, css):
        """The path of each element that a selector finds."""
        return [f"/element/{e[ELEMENT]}" for e in self.call("POST", "/elements", using="css selector", value=css)]

    def texts(self, css):
        """The text of each element that a selector finds, as it is shown; empty for a hidden one."""
        return [self.call("GET", f"{e}/text") for e in self.find(css)]

    def click(self, element):
        self.call("POST", f"{element}/click")

    def log(self, kind):
        return self.call("POST", "/se/log", type=kind)

    def requests(self):
        """The URLs that the page has asked for since the last call."""
        events = (json.loads(entry["message"])["message"] for entry in self.log("performance"))
        return [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]


@contextlib.contextmanager
def browser(home, javascript=True):
    """A Browser with a new profile in the folder `home`."""
    options = {"binary": BROWSER, "args": [*FLAGS, f"--user-data-dir={home}"]}
    options["prefs"] = {"profile.managed_default_content_settings.javascript": 1 if javascript else 2}
    wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"}}
    process = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        port = next(line for line in process.stdout if "started successfully on port" in line).strip(".\n").split()[-1]
        driver = Browser(f"http://127.0.0.1:{port}")
        session = driver.call("POST", "/session", capabilities={"alwaysMatch": wanted})["sessionId"]
        driver.url += f"/session/{session}"
        try:
            yield driver
        finally:
            driver.call("DELETE")
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()
