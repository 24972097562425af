"""Drives a headless Chromium through the pipe of its DevTools protocol: opens files, clicks, types, looks.

`--remote-debugging-pipe`: the browser reads commands from its file descriptor 3 and answers on 4, JSON objects that end
in a NUL byte. No port is opened and nothing but the standard library is needed.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 120.0  # seconds to wait for one answer; a busy machine starts a browser slowly
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # tests may run as root
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
)
KEYS = {  # name: DOM code, virtual key code, text it types
    "ArrowLeft": ("ArrowLeft", 37, ""),
    "ArrowUp": ("ArrowUp", 38, ""),
    "ArrowRight": ("ArrowRight", 39, ""),
    "ArrowDown": ("ArrowDown", 40, ""),
    "Backspace": ("Backspace", 8, ""),
    "Enter": ("Enter", 13, "\r"),
    "Tab": ("Tab", 9, ""),
}
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def executable() -> str:
    """The path of a browser, "" if there is none."""
    return next(filter(None, map(shutil.which, NAMES)), "")


class Browser:
    """One page of a browser and what happened in it.

    requests: URLs asked for. errors: console errors, uncaught exceptions and what the browser logged. dialogs: messages
    of alert, confirm and prompt, all of which are accepted.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.dialogs: list[str] = []
        self._commands, self._answers = commands, answers
        self._pending = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Page.addScriptToEvaluateOnNewDocument", source=WATCH)

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        """One command and its answer. Raises RuntimeError if the browser refuses it."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": values}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next(time.monotonic() + PATIENCE, f"{method} was not answered")
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def open(self, file: Path) -> None:
        """Load a file and wait until it is there."""
        self._events.clear()
        self.send("Page.navigate", url=file.resolve().as_uri())
        self._wait("Page.loadEventFired")

    def reload(self) -> None:
        self._events.clear()
        self.send("Page.reload")
        self._wait("Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for. Raises RuntimeError if it throws."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {json.dumps(answer['exceptionDetails'])}")
        return answer["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"not true: {expression}")
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What an element says, with single blanks."""
        return " ".join(str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")).split())

    def texts(self, selector: str) -> list[str]:
        """What every such element says."""
        found = self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.innerText)")
        return [" ".join(text.split()) for text in found]

    def click(self, selector: str) -> None:
        """Scroll to an element and press the mouse on its middle."""
        x, y = self.evaluate(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{block: "center", behavior: "instant"}});
              const box = element.getBoundingClientRect();
              return [box.left + box.width / 2, box.top + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Replace what a field holds."""
        self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.focus(); e.select(); }})()"
        )
        if text:
            self.send("Input.insertText", text=text)
        else:
            self.key("Backspace")

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list, or set a slider, as a user would: with its events."""
        self.evaluate(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.value = {json.dumps(value)};
              for (const name of ["input", "change"]) element.dispatchEvent(new Event(name, {{bubbles: true}}));
            }})()"""
        )

    def key(self, name: str) -> None:
        """Press a key on what has the focus."""
        code, number, text = KEYS.get(name) or (f"Key{name.upper()}", ord(name.upper()), name)
        same = {"key": name, "code": code, "windowsVirtualKeyCode": number}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **same)
        self.send("Input.dispatchKeyEvent", type="keyUp", **same)

    def put_file(self, selector: str, file: Path) -> None:
        """Give a file to a file input."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file.resolve())])

    def download(self, selector: str, folder: Path) -> Path:
        """Click on what downloads a file; returns the file when it is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        session, self._session = self._session, ""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)
        self._session = session
        self._events.clear()
        self.click(selector)
        name = self._wait("Browser.downloadWillBegin")["suggestedFilename"]
        while self._wait("Browser.downloadProgress")["state"] != "completed":
            pass
        return folder / str(name)

    def look(self, file: Path, *, width: int = 1280, dark: bool = False, whole: bool = True, height: int = 900) -> None:
        """A screenshot as PNG, of the whole page or of what is seen, in the light or the dark theme."""
        self.theme(dark)
        self.resize(width, height)
        picture = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(picture["data"]))

    def theme(self, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def allow_scripts(self, allowed: bool) -> None:
        """Whether pages opened from now on may run scripts."""
        self.send("Emulation.setScriptExecutionDisabled", value=not allowed)

    def _wait(self, method: str) -> dict[str, Any]:
        """The values of the next event of that name."""
        end = time.monotonic() + PATIENCE
        while True:
            for place, event in enumerate(self._events):
                if event["method"] == method:
                    values: dict[str, Any] = self._events.pop(place)["params"]
                    return values
            self._next(end, f"{method} did not come")

    def _next(self, end: float, complaint: str) -> dict[str, Any]:
        """The next message; events are noted."""
        while b"\0" not in self._pending:
            if not select.select([self._answers], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError(complaint)
            piece = os.read(self._answers, 1 << 20)
            if not piece:
                raise RuntimeError(f"the browser went away; {complaint}")
            self._pending += piece
        first, _, self._pending = self._pending.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if "method" in message:
            self._note(message)
        return message

    def _note(self, event: dict[str, Any]) -> None:
        values = event["params"]
        match event["method"]:
            case "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(json.dumps(values["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "assert"):
                self.errors.append(json.dumps(values["args"]))
            case "Log.entryAdded" if values["entry"]["level"] == "error":
                self.errors.append(values["entry"]["text"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(values["message"])
                self._number += 1  # its answer is not waited for: `send` skips what is not its own
                accept = {"id": self._number, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
                os.write(self._commands, json.dumps(accept | {"sessionId": self._session}).encode() + b"\0")
            case _:
                self._events.append(event)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser with a profile of its own, gone with all its processes when the block ends."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # The child's ends get numbers out of the way of 3 and 4, which they are copied to.
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (to_read, from_write)]

    def wire() -> None:
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [executable(), *FLAGS, f"--user-data-dir={profile}"],
            preexec_fn=wire,
            close_fds=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # it complains of a desktop that is not there
        )
        for fd in (to_read, from_write, *ends):
            os.close(fd)
        page = None
        try:
            page = Browser(to_write, from_read)
            yield page
        finally:
            if page is not None:
                page._session = ""
                page.send("Browser.close")
            process.terminate()
            process.wait(60)
            os.close(to_write)
            os.close(from_read)
