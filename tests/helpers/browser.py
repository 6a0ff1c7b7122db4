"""Headless Chromium driven over its debugging pipe, without any other package."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Self

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-quic "
    "--remote-debugging-pipe"
)
PATIENCE = 60.0  # seconds


class Browser:
    """One window: `evaluate` runs a program in it, `events` is what it said of itself."""

    def __init__(self, profile: Path, width: int, height: int = 900):
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        # It reads commands from descriptor 3 and answers to 4.
        redirect = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        command = [str(CHROMIUM), *OPTIONS.split(), f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *command],
            pass_fds=(read_commands, write_answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._unread = b""
        self._sent = 0
        self._session = ""
        self.events: list[dict] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1}
        self._call("Emulation.setDeviceMetricsOverride", **size, mobile=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)

    def open(self, page: Path) -> None:
        """Opens a page from disk and waits until it is loaded."""
        loaded = len(self.events)
        self._call("Page.navigate", url=page.as_uri())
        self._wait_for("Page.loadEventFired", loaded)

    def scripts_off(self) -> None:
        self._call("Emulation.setScriptExecutionDisabled", value=True)

    def evaluate(self, program: str):
        """The value of an expression, awaited if it is a promise."""
        answer = self._call(
            "Runtime.evaluate",
            expression=program,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[str]:
        """What it logged as a warning or an error, and what was thrown."""
        found = []
        for event in self.events:
            fields = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(fields["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                found.append(fields["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(str(fields["args"]))
        return found

    def requests(self) -> list[str]:
        """The addresses that it asked for, but for data within the page."""
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        urls = (event["params"]["request"]["url"] for event in sent)
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def _call(self, method: str, **params):
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _wait_for(self, method: str, since: int) -> None:
        while all(event["method"] != method for event in self.events[since:]):
            self.events.append(self._next())

    def _next(self) -> dict:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, *_ = select.select([self._answers], [], [], until - time.monotonic())
            data = os.read(self._answers, 1 << 16) if ready else b""
            assert data, "Chromium says nothing."
            self._unread += data
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
