"""Tables of the study: CSV and JSON for other tools, Markdown for docs/study.md, a figure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from real_weights import table, write_between

from intvit.files.records import plain, write_csv

DOCS = Path(__file__).resolve().parent.parent / "docs"
MARKS = "<!-- begin: python tools/study.py --write -->", "<!-- end -->"
Cells = Sequence[Any]


def write_results(cells: Cells, folder: Path, *, write: bool) -> None:
    """study.csv, study.json, tables.md, study.svg; with `write` the last two into docs/."""
    text = json.dumps(plain(cells), indent=1, sort_keys=True, allow_nan=False)
    (folder / "study.json").write_text(text + "\n")
    write_csv(folder / "study.csv", records(cells))
    makers = (choices, observers, correlations, searches, sensitivities)
    tables = "\n\n".join(part for make in makers if (part := make(cells)))
    (folder / "tables.md").write_text(tables + "\n")
    drawn = figure(cells, folder / "study.svg")
    if write:
        write_between(DOCS / "study.md", MARKS, tables)
        if drawn:
            (DOCS / "study.svg").write_bytes((folder / "study.svg").read_bytes())
    print(tables)


def records(cells: Cells) -> Iterable[dict[str, Any]]:
    """A line for every model that was measured."""
    for cell in cells:
        for each in cell["records"]:
            line = {key: cell[key] for key in ("model", "bits", "seed")}
            line |= {key: each[key] for key in ("name", "images", "sqnr")}
            for key in ("sqnr_gain", "top1_gain", "top1_less_float"):
                value, low, high = each.get(key, ("", "", ""))
                line |= {key: value, f"{key}_low": low, f"{key}_high": high}
            yield line | {"top1": each.get("top1", ""), "float_top1": each.get("float_top1", ""),
                          "changed": each.get("changed", ""), "graph": each.get("model", "")}  # fmt: skip


def groups(cells: Cells) -> dict[tuple[str, int], list[Any]]:
    found: dict[tuple[str, int], list[Any]] = {}
    for cell in cells:
        found.setdefault((cell["model"], cell["bits"]), []).append(cell)
    return found


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def spread(triples: Sequence[Sequence[float]]) -> str:
    """Mean of the seeds, and the lowest and highest end of their intervals."""
    if not triples:
        return ""
    return (
        f"{mean(t[0] for t in triples):+.2f} ({min(t[1] for t in triples):+.2f} to {max(t[2] for t in triples):+.2f})"
    )


def verdict(triples: Sequence[Sequence[float]]) -> str:
    """In how many seeds it is surely better or worse."""
    better, worse = sum(t[1] > 0 for t in triples), sum(t[2] < 0 for t in triples)
    words = [f"{n} {word}" for n, word in ((better, "better"), (worse, "worse")) if n]
    return ", ".join(words) or ("the same" if all(t[1] == t[2] == 0 for t in triples) else "even")


def rows_of(cells: Cells, wanted: Callable[[str], bool]) -> list[list[str]]:
    rows: list[list[str]] = []
    for (model, bits), group in groups(cells).items():
        names = dict.fromkeys(each["name"] for cell in group for each in cell["records"] if wanted(each["name"]))
        for name in names:
            found = [each for cell in group for each in cell["records"] if each["name"] == name]
            top1 = [each["top1"] for each in found if "top1" in each]
            changed = sorted({str(each["changed"]) for each in found if "changed" in each})
            rows.append([
                model, str(bits), name, "-".join(changed[:: max(1, len(changed) - 1)]),
                f"{mean(each['sqnr'] for each in found):.2f}", spread([each["sqnr_gain"] for each in found]),
                verdict([each["sqnr_gain"] for each in found]), f"{mean(top1):.2f}" if top1 else "",
                spread([each["top1_gain"] for each in found if "top1_gain" in each]),
            ])  # fmt: skip
    return rows


HEADERS = ["model", "bits", "", "sites changed", "SQNR, dB", "less best uniform, dB (95 %)", "seeds", "top-1 %",
           "less best uniform, %p (95 %)"]  # fmt: skip


def choices(cells: Cells) -> str:
    seeds = sorted({cell["seed"] for cell in cells})
    images = {cell["model"]: cell["images"]["test"] for cell in cells}
    title = f"**Ways to choose**, seeds {', '.join(map(str, seeds))}; test images: " + ", ".join(
        f"{model} {n:,}" for model, n in images.items()
    )
    lines = rows_of(cells, lambda name: not name.startswith("observer"))
    return f"{title}.\n\n{table(HEADERS, lines)}"


def observers(cells: Cells) -> str:
    lines = rows_of(cells, lambda name: name.startswith("observer"))
    title = "**Observers**, against the best uniform model by the preset's own."
    return f"{title}\n\n{table(HEADERS, lines)}" if lines else ""


def correlations(cells: Cells) -> str:
    rows = []
    for (model, bits), group in groups(cells).items():
        for name in dict.fromkeys(key for cell in group for key in cell["correlations"]):
            values = [v for cell in group if (v := cell["correlations"].get(name)) is not None]
            rows.append([model, str(bits), *name.split("/"), ", ".join(f"{value:+.2f}" for value in values)])
    title = (
        "**Which score predicts the outputs**: rank correlation, per seed, of a score's difference with what the "
        "single change of a site does to the noise of the outputs on test images (1: the score orders all changes "
        "rightly)."
    )
    return f"{title}\n\n{table(['model', 'bits', 'basis', 'rule', 'rank correlation'], rows)}" if rows else ""


def searches(cells: Cells) -> str:
    rows = []
    for cell in cells:
        for kind, said in cell["searches"].items():
            refused, losses = said["not_surely_better"], said["loss"]
            gain = "" if not refused else f"{10 * math.log10(losses['chosen'] / refused['loss']):+.2f}"
            fits = [f"{each['r2']:.2f} / {each['rank']:.2f}" if (each := said[key]) and each["r2"] is not None else ""
                    for key in ("independent", "quadratic")]  # fmt: skip
            won = f"{10 * math.log10(losses['base'] / losses['chosen']):+.2f}"
            of = [cell["model"], str(cell["bits"]), str(cell["seed"]), kind]
            rows.append([*of, str(said["mappings"]), won, gain, *fits])
    headers = ["model", "bits", "seed", "search", "mappings", "gain on its images, dB", "refused gain, dB",
               "singles predict pairs (R2 / rank)", "pairs predict more (R2 / rank)"]  # fmt: skip
    title = (
        "**Searches.** *Refused*: what the best mapping gains on the images searched on, where it is not surely better."
    )
    return f"{title}\n\n{table(headers, rows)}" if rows else ""


def sensitivities(cells: Cells) -> str:
    rows = []
    for (model, bits), group in groups(cells).items():
        for loss in group[0]["sensitivity"]:
            if not loss["site"]:
                gain = "" if loss["gain"] is None or math.isnan(loss["gain"]) else f"{loss['gain']:+.2f}"
                kind = [loss["what"], loss["kind"], loss["detail"], str(loss["n_parts"])]
                rows.append([model, str(bits), *kind, f"{loss['alone']:.1f}", gain])
    headers = ["model", "bits", "what", "of", "", "parts", "SQNR with only these quantized, dB", "gain if float, dB"]
    title = (
        "**Sensitivity** of the best uniform model, first seed: all parts of a kind together, as by `intvit doctor`."
    )
    return f"{title}\n\n{table(headers, rows)}" if rows else ""


def figure(cells: Cells, path: Path) -> bool:
    """Gain over the best uniform model, with intervals, of every way to choose. False without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "intvit", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    found = {of: group for of, group in groups(cells).items() if any("top1" in r for c in group for r in c["records"])}
    skipped = ("observer", "uniform", "rule uniform/sqnr_diff_signed", "rule isolated/sqnr_diff_signed")
    names = [n for n in dict.fromkeys(r["name"] for c in cells for r in c["records"]) if not n.startswith(skipped)]
    if not found or not names:
        return False
    drawn, axes = pyplot.subplots(1, len(found), figsize=(3.0 * len(found), 0.34 * len(names) + 1.3), sharey=True,
                                  squeeze=False)  # fmt: skip
    for axis, ((model, bits), group) in zip(axes[0], found.items(), strict=True):
        for row, name in enumerate(names):
            for shift, cell in enumerate(group):
                for each in cell["records"]:
                    if each["name"] == name:
                        value, low, high = each["sqnr_gain"]
                        y = row + 0.2 * (shift - (len(group) - 1) / 2)
                        colour = "#1a7f37" if low > 0 else "#cf222e" if high < 0 else "#57606a"
                        axis.plot([low, high], [y, y], color=colour, linewidth=1.2)
                        axis.plot([value], [y], "o", color=colour, markersize=3)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(f"{model}, {bits} bits", fontsize=9)
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(-20, 4)
        axis.set_xticks([-10, -3, -1, 0, 1, 3], ["-10", "-3", "-1", "0", "1", "3"])
        axis.minorticks_off()
        axis.grid(axis="x", linewidth=0.3)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    drawn.supxlabel("SQNR of the outputs less that of the best uniform model, dB, with 95 % intervals", fontsize=9)
    drawn.tight_layout()
    drawn.savefig(path, metadata={"Date": None})
    pyplot.close(drawn)
    return True
