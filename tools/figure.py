#!/usr/bin/env python3
"""Draw docs/demo.png from a demo's output folder: accuracy of every model, ASQNR of every site.

make demo && .venv/bin/python tools/figure.py demo-output
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"ibert": "#4477aa", "fqvit": "#ee6677", "ivit": "#228833", "mixed": "#aa3377"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "demo.png")
    args = parser.parse_args()
    demo = json.loads((args.folder / "demo.json").read_text())
    mapping = json.loads((args.folder / "mapping_8bit.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4.6), width_ratios=[1, 2.4], layout="constrained")
    bars(left, demo)
    sites(right, mapping)
    figure.savefig(args.output, dpi=110)
    print(f"wrote {args.output}")


def bars(axes: plt.Axes, demo: dict) -> None:
    names = list(dict.fromkeys(row[0] for row in demo["integer"]))
    for offset, bits in ((-0.2, "8"), (0.2, "6")):
        values = [float(v) for name in names for n, b, v, _ in demo["integer"] if (n, b) == (name, bits)]
        drawn = axes.bar(
            [i + offset for i in range(len(names))], values, 0.38, color=[COLOURS[n] for n in names],
            alpha=1 if bits == "8" else 0.5, label=f"{bits} bits",
        )  # fmt: skip
        axes.bar_label(drawn, fmt="%.1f", fontsize=7)
    axes.axhline(100 * demo["float"], color="black", linewidth=0.8, linestyle="--", label="float")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("top-1, %")
    axes.set_title("8 bits (solid) and 6 bits (pale)", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")


def sites(axes: plt.Axes, mapping: dict) -> None:
    order = list(dict.fromkeys(s["site"] for s in mapping["scores"]))
    chosen = {site: choice["method"] for site, choice in mapping["recipe"]["sites"].items()}
    for method in ("ibert", "fqvit", "ivit"):
        points = [(order.index(s["site"]), s["asqnr_out"]) for s in mapping["scores"] if s["method"] == method]
        axes.plot(*zip(*points, strict=True), "o", color=COLOURS[method], markersize=4, label=method)
        picked = [p for p in points if chosen[order[p[0]]] == method]
        if picked:
            axes.plot(*zip(*picked, strict=True), "o", color=COLOURS[method], markersize=11, fillstyle="none")
    axes.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
    axes.set_ylabel("ASQNR of the output, dB")
    uniform = mapping["fallback"]
    rule = mapping["rule"]
    chosen = f"uniform {uniform}, measured better than {rule}'s" if uniform else f"chosen by {rule}"
    axes.set_title(f"per site; circled: {chosen}", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)


if __name__ == "__main__":
    main()
