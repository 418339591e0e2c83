"""Headless Chromium by its DevTools protocol: pages, keys, scripts, pictures."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from PIL import Image
from websockets.sync.client import connect

needs_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="needs chromium (apt install chromium)"
)


class Browser:
    """One page of 1280 x 800; what it logs as an error is in ``errors``."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1280, 800)) -> None:
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        self._process = subprocess.Popen(
            ["chromium", *words, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.errors: list[str] = []
        self._number = 0
        port_file = profile / "DevToolsActivePort"
        page = self._until(lambda: self._page(port_file))
        self._socket = connect(page, max_size=1 << 28)
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        width, height = size
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What an expression gives; promises are waited for."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str, seconds: float = 20) -> None:
        """Until an expression is true."""
        self._until(lambda: self.value(script), seconds)

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                text=key if kind == "keyDown" and len(key) == 1 else "",
            )

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one place, move in steps, and release at another."""
        (x0, y0), (x1, y1) = start, end
        for kind, t in (
            ("mousePressed", 0.0),
            *(("mouseMoved", k / 8) for k in range(1, 9)),
            ("mouseReleased", 1.0),
        ):
            place = {"x": x0 + (x1 - x0) * t, "y": y0 + (y1 - y0) * t}
            self._call("Input.dispatchMouseEvent", type=kind, button="left", buttons=1, clickCount=1, **place)

    def picture(self) -> np.ndarray:
        """The page as it is shown: (height, width, 3)."""
        data = base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def _page(self, port_file: Path) -> str | None:
        if not port_file.exists():
            return None
        port = port_file.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [p for p in json.load(answer) if p["type"] == "page"]
        return pages[0]["webSocketDebuggerUrl"] if pages else None

    def _until(self, ready: Any, seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while True:
            value = ready()
            if value:
                return value
            assert time.monotonic() < end, "the page does not come"
            time.sleep(0.1)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.errors.append(message["params"]["entry"]["text"])
            if message.get("id") == self._number:
                assert "error" not in message, message
                return dict(message["result"])
