"""What the viewer's page costs with very many objects: script of a frame, of a click, of a decision; in Chromium."""

from __future__ import annotations

import argparse
import subprocess

from benchmarks.common import COMMAND, header, scratch, wsi
from tests.browser import Browser

FRAMES = 60
MAKE = """((n, width, height) => {{
  let seed = 7;
  const draw = () => (seed = (seed * 48271) % 2147483647) / 2147483647; // the same places each time
  review.machine = Array.from({{ length: n }}, (_, i) => {{
    const x = draw() * (width - 40), y = draw() * (height - 40);
    return [x, y, x + 10 + 20 * draw(), y + 10 + 20 * draw(), Number(draw() < 0.3), draw(), String(i), ""];
  }});
  const start = performance.now();
  apply();
  return performance.now() - start;
}})({count}, state.slide.width, state.slide.height)"""
FRAME = """(() => {{
  const times = [];
  for (let i = 0; i < {frames}; i += 1) {{
    goTo(state.slide.width * (0.3 + 0.4 * i / {frames}), state.slide.height * 0.5, {zoom});
    const start = performance.now();
    draw();
    times.push(performance.now() - start);
  }}
  return times.sort((a, b) => a - b)[Math.floor({frames} * 0.95)];
}})()"""
CLICK = """(() => {
  const start = performance.now();
  for (let i = 0; i < 1000; i += 1) state.grid.inside(37.7 * i % state.slide.width, 91.3 * i % state.slide.height, 37.7 * i % state.slide.width, 91.3 * i % state.slide.height);
  return (performance.now() - start) / 1000;
})()"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    args = parser.parse_args()
    header("the viewer's page: milliseconds of script, without a GPU")
    with scratch() as folder:
        wsi("phantom", "kidney", "--count", 1, "--seed", 906, "--size", "8192x6144", "--out", folder / "in")
        command = [COMMAND, "view", folder / "in", "--no-browser", "--read-only"]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"}
        )
        assert process.stdout is not None
        address = process.stdout.readline().split("open ")[1].strip()
        try:
            with Browser(folder / "profile") as browser:
                browser.open(address)
                browser.wait("typeof state !== 'undefined' && state.slide !== null && zoomNow() > 0")
                browser.wait("!state.viewer.isAnimating()")
                for count in args.objects:
                    applied = browser.value(MAKE.format(count=count))
                    browser.value("draw()")
                    far, near = (browser.value(FRAME.format(frames=FRAMES, zoom=zoom)) for zoom in (0.1, 2.0))
                    click = browser.value(CLICK)
                    print(
                        f"  {count:>9,} objects: a frame of the whole slide {far:.1f} ms, near {near:.1f} ms (19 frames of 20 take no longer); "
                        f"to find what lies under a click {click:.3f} ms; all anew after a decision {applied:.0f} ms"
                    )
        finally:
            process.kill()
            process.wait(20)


if __name__ == "__main__":
    main()
