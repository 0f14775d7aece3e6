"""A proof as rows of a table, JSON, CSV and a SystemVerilog package of widths."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from intvit.files.records import write_csv
from intvit.proofs.claims import Claim, Clamp, Proof, Tie
from intvit.proofs.intervals import Interval, text

PACKAGE = "intvit_widths_pkg"
JSON, CSV, SYSTEMVERILOG = "prove.json", "prove.csv", f"{PACKAGE}.sv"
SHORT = frozenset((
    "sum", "square_sum", "variance", "exp", "product", "bias", "rounded", "residual_rounded", "total", "normalized", "y"
))  # fmt: skip
"""Signals of the short table: sums, products, and what is as wide."""
SHOWN = 2**63
"""What a table writes out; beyond it, a power of two that is not exceeded."""


def number(value: int) -> int | str:
    """For JSON: hexadecimal text beyond 256 bits."""
    return value if value.bit_length() <= 256 else text(value)


def ends(interval: Interval | None) -> list[int | str] | None:
    return None if interval is None else [number(interval.low), number(interval.high)]


def as_json(proof: Proof) -> dict[str, Any]:
    return {
        "format": "intvit.prove",
        "version": 1,
        "graph": proof.graph_hash,
        "claims": [
            {**claim_record(c), "observed": ends(c.observed), "witness": c.witness} for c in proof.claims
        ],
        "ties": [tie_record(t) for t in proof.ties],
        "clamps": [clamp_record(c) for c in proof.clamps],
        "notes": [vars(note) for note in proof.notes],
        "unproven": dict(proof.unproven),
    }  # fmt: skip


def claim_record(claim: Claim) -> dict[str, Any]:
    return {
        "site": claim.site,
        "operator": claim.operator,
        "signal": claim.name,
        "low": number(claim.interval.low),
        "high": number(claim.interval.high),
        "bits": claim.bits,
        "declared_bits": claim.declared,
        "slack": claim.slack,
        "how": claim.how,
    }


def tie_record(tie: Tie) -> dict[str, Any]:
    channel, x = tie.witness or (None, None)
    return {
        "site": tie.site,
        "operator": tie.operator,
        "signal": tie.name,
        "verdict": tie.verdict,
        "channels": tie.channels,
        "reachable": tie.reachable,
        "channel": channel,
        "x": x,
        "why": tie.why,
    }


def clamp_record(clamp: Clamp) -> dict[str, Any]:
    return {
        "site": clamp.site,
        "operator": clamp.operator,
        "signal": clamp.name,
        "before": ends(clamp.interval),
        "limits": ends(clamp.limits),
        "acts": clamp.acts,
        "witness": clamp.witness,
    }


def csv_record(claim: Claim) -> dict[str, Any]:
    seen = claim.observed
    observed = {"observed_low": None if seen is None else number(seen.low),
                "observed_high": None if seen is None else number(seen.high)}  # fmt: skip
    return claim_record(claim) | observed


def write_folder(folder: Path, proof: Proof) -> None:
    """prove.json, prove.csv and the package, into a folder that there is."""
    (folder / JSON).write_text(json.dumps(as_json(proof), indent=1) + "\n", encoding="ascii")
    write_csv(folder / CSV, (csv_record(claim) for claim in proof.claims))
    (folder / SYSTEMVERILOG).write_text(systemverilog(proof), encoding="ascii")


def identifiers(names: Iterable[str]) -> list[str]:
    """Upper-case identifiers of SystemVerilog, all different; none is a keyword, as those are in lower case.

    >>> identifiers(["blocks.0.fc1", "blocks.0_fc1", "0"])
    ['BLOCKS_0_FC1', 'BLOCKS_0_FC1_2', 'S_0']
    """
    found, taken = list[str](), set[str]()
    for name in names:
        plain = re.sub(r"[^A-Z0-9_]", "_", name.upper())
        plain = plain if plain[:1].isalpha() else f"S_{plain}"
        unique, count = plain, 1
        while unique in taken:
            count += 1
            unique = f"{plain}_{count}"
        taken.add(unique)
        found.append(unique)
    return found


def systemverilog(proof: Proof) -> str:
    """A package with the least two's complement width of every signal."""
    names = identifiers(f"{claim.site}.{claim.name}_BITS" for claim in proof.claims)
    lines = [
        "// Least two's complement widths, proven by intvit prove. Signals whose operator has no rule are as declared.",
        f"// Graph {proof.graph_hash}",
        f"package {PACKAGE};",
    ]
    for name, claim in zip(names, proof.claims, strict=True):
        low, high = (abridged(end) for end in (claim.interval.low, claim.interval.high))
        lines.append(f"  localparam int {name} = {claim.bits}; // {low} .. {high}, {claim.how}")
    return "\n".join([*lines, "endpackage", ""])


def abridged(value: int) -> str:
    """Digits, or of long ones the power of two that the magnitude reaches."""
    if -SHOWN <= value < SHOWN:
        return str(value)
    return f"{'-' if value < 0 else ''}~2^{abs(value).bit_length() - 1}"


def widest(claims: Iterable[Claim]) -> list[tuple[Claim, int]]:
    """Of the `SHORT` signals of every operator the widest claim, and how many sites have the signal."""
    found: dict[tuple[str, str], list[Claim]] = {}
    for claim in claims:
        if claim.name in SHORT:
            found.setdefault((claim.operator, claim.name), []).append(claim)
    return [(max(each, key=lambda c: c.bits), len(each)) for each in found.values()]


def claim_rows(proof: Proof, everything: bool) -> list[list[str]]:
    """Of a table: all claims, or the widest of each signal."""
    shown = [(claim, 1) for claim in proof.claims] if everything else widest(proof.claims)
    rows = []
    for claim, count in shown:
        seen = "" if claim.observed is None else str(claim.observed.bits)
        slack = "" if claim.slack is None else str(claim.slack)
        rows.append([
            claim.operator, claim.name, claim.site if everything else f"{claim.site} of {count}",
            abridged(claim.interval.low), abridged(claim.interval.high), claim.how, str(claim.bits),
            "" if claim.declared is None else str(claim.declared), slack, seen,
        ])  # fmt: skip
    return rows


def tie_lines(proof: Proof, everything: bool) -> list[str]:
    """What is said of ties: of requantizations in sum and one line for each that has one, of others by operator."""
    terms = [t for t in proof.ties if t.operator == "requantize"]
    met = [t for t in terms if t.reachable != 0]
    channels, sites = sum(t.channels for t in terms), len({t.site for t in terms})
    lines = [
        f"Ties that matter: {len(met)} of {len(terms)} rounded terms of {sites} requantizations ({channels} constants)"
    ]
    if terms and not met:
        lines[0] += ": half_even, half_up and half_away give the same codes, RTL may add half and shift"
    for tie in met:
        where = f", channel {tie.witness[0]}: x = {tie.witness[1]}" if tie.witness else f": {tie.why}"
        count = "" if tie.reachable is None else f", {tie.reachable} of {tie.channels}"
        lines.append(f"  {tie.site} {tie.name}: {tie.verdict}{count}{where}")
    others: dict[tuple[str, str, str, str], list[Tie]] = {}
    for tie in proof.ties:
        if tie.operator != "requantize":
            why = "" if everything else re.sub(r"-?\d{3,}", "...", tie.why)
            others.setdefault((tie.operator, tie.name, tie.verdict, why), []).append(tie)
    lines += [
        f"  {operator} {name}: {verdict}, {len(each)} sites{f' ({why})' if why else ''}"
        for (operator, name, verdict, why), each in others.items()
    ]
    return lines


def clamp_lines(proof: Proof, everything: bool) -> list[str]:
    """Every clamp; or how many of each name never act, can, or are not excluded."""
    if everything:
        return [
            f"  {c.site} {c.operator} {c.name}: {c.acts}{f' ({c.witness})' if c.witness else ''}" for c in proof.clamps
        ]
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for clamp in proof.clamps:
        each = counts.setdefault((clamp.operator, clamp.name), {})
        each[clamp.acts] = each.get(clamp.acts, 0) + 1
    return [
        f"  {operator} {name}: {', '.join(f'{acts} {count}' for acts, count in sorted(each.items()))}"
        for (operator, name), each in counts.items()
    ]


def note_lines(proof: Proof, everything: bool) -> list[str]:
    """Notes, those of the same words but for numbers as one."""
    if everything:
        return [f"  {note.site} {note.operator}: {note.text}" for note in proof.notes]
    found: dict[tuple[str, str], list[str]] = {}
    for note in proof.notes:
        found.setdefault((note.operator, re.sub(r"-?\d+(\.\.\d+)?", "#", note.text)), []).append(note.text)
    return [
        f"  {operator}: {each[0]}{f', and {len(each) - 1} sites alike' if len(each) > 1 else ''}"
        for (operator, _), each in found.items()
    ]
