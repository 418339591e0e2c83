"""Peak memory of ``wsi score`` must not grow with the slide: one of 8192 px against one of 32768 px."""

from __future__ import annotations

from benchmarks.common import header, scratch, wsi, wsi_peak_mb

SIDES = (8192, 32768)  # 16 times the area


def main() -> None:
    header("Peak memory of wsi score")
    with scratch() as folder:
        for side in SIDES:
            wsi(
                "phantom",
                "lymph-node",
                "--count",
                1,
                "--seed",
                901,
                "--size",
                f"{side}x{side}",
                "--out",
                folder / f"{side}",
            )
        slides = {side: next((folder / f"{side}").glob("*_001.tif")) for side in SIDES}
        wsi(
            "score", slides[SIDES[0]], "--model", "lymph-node-demo", "--out", folder / "warm"
        )  # converts the model once
        peaks = {
            side: wsi_peak_mb(
                "score", slides[side], "--model", "lymph-node-demo", "--out", folder / f"out{side}"
            )
            for side in SIDES
        }
    for side, peak in peaks.items():
        print(f"  {side} x {side} px: {peak:.0f} MB")
    print(f"  ratio {peaks[SIDES[1]] / peaks[SIDES[0]]:.2f}")


if __name__ == "__main__":
    main()
