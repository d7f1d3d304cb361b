"""A headless Chromium spoken to over a pipe by the DevTools protocol: load a page, look, measure, take a picture.

python -m tests.launcher.report.browser REPORT.html FOLDER      pictures in light and dark, narrow and wide
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT_S = 60.0


class Browser:
    """One page. `troubles` are what its console said by way of errors, and what it tried to load."""

    def __init__(self) -> None:
        assert CHROMIUM is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        to_read, self._to = os.pipe()
        self._from, from_write = os.pipe()
        child_reads, child_writes = os.dup(to_read), os.dup(from_write)
        switches = "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-dev-shm-usage"
        words = [CHROMIUM, *switches.split(), f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe"]
        script = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # it reads from 3 and writes to 4
        self._process = subprocess.Popen(
            ["bash", "-c", script, str(child_reads), str(child_writes), *words],
            pass_fds=(child_reads, child_writes),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (to_read, from_write, child_reads, child_writes):
            os.close(fd)
        self._numbers = itertools.count(1)
        self._rest = b""
        self._session: str | None = None
        self._seen: list[dict[str, Any]] = []
        self.troubles: list[str] = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to)
        self._process.terminate()
        self._process.wait(10)
        os.close(self._from)
        self._profile.cleanup()

    def open(self, path: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Load a file and wait until it is there."""
        self("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self._seen.clear()
        self("Page.navigate", url=path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self._seen):
            self._seen.append(self._read())

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON."""
        found = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG."""
        self("Page.bringToFront")
        found = self("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        path.write_bytes(base64.b64decode(found["data"]))

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._seen.append(answer)

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._rest:
            assert select.select([self._from], [], [], max(0.0, deadline - time.monotonic()))[0], (
                "chromium says nothing"
            )
            more = os.read(self._from, 1 << 20)
            assert more, "chromium is gone"
            self._rest += more
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        self._watch(message.get("method"), message.get("params", {}))
        return message

    def _watch(self, method: str | None, told: dict[str, Any]) -> None:
        if method == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.troubles.append(told["entry"]["text"])
        if method == "Runtime.exceptionThrown":
            self.troubles.append(str(told["exceptionDetails"].get("text")))
        if method == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.troubles.append(str(told["args"]))
        if method == "Network.requestWillBeSent" and not told["request"]["url"].startswith(("file:", "data:")):
            self.troubles.append(f"loads {told['request']['url']}")


def main(report: str, folder: str) -> None:
    with Browser() as browser:
        for width, dark in itertools.product((400, 1400), (False, True)):
            browser.open(Path(report), width, dark=dark)
            path = Path(folder) / f"{Path(report).parent.name}-{width}-{'dark' if dark else 'light'}.png"
            browser.picture(path)
            print(path, *browser.troubles)


if __name__ == "__main__":
    main(*sys.argv[1:])
