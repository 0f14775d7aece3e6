"""Rules: a choice for every site from its scores, with intervals that say what a choice is worth.

A rule gives a value to a method at a site; the least is chosen. Values are statistics over images, whose bootstrap says
how they would scatter over other images of the kind: a method whose value is not surely larger is a tie.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from intvit.analysis.sqnr import PAPER_FACTOR, mean_decibel
from intvit.errors import IntvitError
from intvit.graph.ir import LOGITS, Array
from intvit.mapping.scores import Key
from intvit.mapping.tables import Table

RESAMPLES, CONFIDENCE = 1000, 0.95
TIE_BREAK = "the least value of the rule; of equal ones the candidate that was named first"


@dataclass(frozen=True)
class Rule:
    """`value(asqnr_in, asqnr_out)`: what is to be least, of ASQNR in dB, elementwise on arrays. `text`: its sense."""

    name: str
    text: str
    value: Callable[[Array, Array], Array]


RULES: dict[str, Rule] = {}
"""By name; `add_rule` adds to them."""


def add_rule(rule: Rule) -> Rule:
    """Make a rule known: `intvit map --rule NAME`. IntvitError for a name that is taken.

    >>> def worst_case(before, after):
    ...     return -np.minimum(before, after)
    """
    if rule.name in RULES:
        raise IntvitError(f"rule: must have a name of its own, and {rule.name} is taken")
    RULES[rule.name] = rule
    return rule


for _rule in (
    Rule("sqnr_diff", "least |ASQNR out - ASQNR in|, Eq. 11 of the paper by magnitude", lambda a, b: np.abs(b - a)),
    Rule("sqnr_diff_signed", "least ASQNR out - ASQNR in, Eq. 11 of the paper with its sign", lambda a, b: b - a),
    Rule("sqnr_output", "largest ASQNR out", lambda a, b: -b),
):
    add_rule(_rule)


def rule_of(name: str) -> Rule:
    if name not in RULES:
        raise IntvitError(f"rule: must be one of {', '.join(RULES)}, not {name!r}")
    return RULES[name]


@dataclass(frozen=True)
class Score:
    """One method at one site over all images, in dB as in the paper (20 log10); `low`..`high`: 95 % interval of the
    difference `asqnr_out - asqnr_in`. `mean` and `max`: error of the output, real units. `saturated`: share of the
    codes of its input at an end of their type."""

    site: str
    operator: str
    method: str
    asqnr_in: float
    asqnr_out: float
    low: float
    high: float
    mean: float
    max: float
    saturated: float

    @property
    def sqnr_diff(self) -> float:
        """ASQNR(out) - ASQNR(in), Eq. 11."""
        return self.asqnr_out - self.asqnr_in


@dataclass(frozen=True)
class Decision:
    """What a rule chose for a site, and the methods that are not surely worse."""

    site: str
    operator: str
    method: str
    ties: tuple[str, ...]


@lru_cache(maxsize=1)  # the methods of a site follow each other
def resamples(site: str, n_images: int, seed: int = 0) -> Array:
    """Counts (RESAMPLES, n_images) of how often a resample has each image; the same for all methods of a site."""
    if n_images < 2:
        return np.ones((1, n_images))
    number = int.from_bytes(hashlib.sha256(site.encode()).digest()[:8], "little")
    rng = np.random.default_rng([seed, number])
    counts = rng.multinomial(n_images, np.full(n_images, 1 / n_images), size=RESAMPLES).astype(np.float64)
    counts.flags.writeable = False
    return counts


def interval(values: Array) -> tuple[float, float]:
    """The middle CONFIDENCE of resampled values; infinite and undefined ones as they come."""
    rest = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [rest, 1 - rest], method="closest_observation")
    return float(low), float(high)


def _decibels(ratios: Array, counts: Array) -> Array:
    """`mean_decibel` of every resample of `ratios` (n,), dB (RESAMPLES,)."""
    finite = np.isfinite(ratios)
    if not finite.any():
        return np.full(len(counts), math.inf)
    capped = np.minimum(ratios, ratios[finite].max())
    mean = (counts * capped).sum(axis=1) / counts.sum(axis=1)
    with np.errstate(divide="ignore"):
        return np.asarray(PAPER_FACTOR * np.log10(mean))


def by_site(table: Table[Key]) -> dict[str, list[Key]]:
    """Keys of single sites, in the table's order."""
    found: dict[str, list[Key]] = {}
    for key in table.rows:
        if key.site != LOGITS:
            found.setdefault(key.site, []).append(key)
    return found


def scores(table: Table[Key], sites: Sequence[str], methods: Sequence[str], seed: int = 0) -> Iterator[Score]:
    """A score for every site and method, in the order of `sites` and of `methods`."""
    keys = by_site(table)
    for site in sites:
        for key in sorted(keys.get(site, ()), key=lambda key: methods.index(key.method)):
            rows = table.rows[key]
            counts = resamples(site, len(rows), seed)
            low, high = interval(_decibels(rows["ratio_out"], counts) - _decibels(rows["ratio_in"], counts))
            yield Score(
                site, key.operator, key.method, mean_decibel(rows["ratio_in"]), mean_decibel(rows["ratio_out"]),
                low, high, float(np.mean(rows["mean_out"])), float(np.max(rows["max_out"])),
                float(np.mean(rows["saturated_in"])),
            )  # fmt: skip


def values(table: Table[Key], rule: Rule, methods: Sequence[str]) -> dict[str, dict[str, float]]:
    """Site -> method, in the order of `methods` -> its value under a rule."""
    found: dict[str, dict[str, float]] = {}
    for site, keys in by_site(table).items():
        for key in sorted(keys, key=lambda key: methods.index(key.method)):
            sides = (np.array(mean_decibel(table.column(key, f"ratio_{side}"))) for side in ("in", "out"))
            found.setdefault(site, {})[key.method] = float(rule.value(*sides))
    return found


def least(of: Mapping[str, float]) -> str:
    """The method with the least value; of equal ones the first, and one without a value last.

    >>> least({"a": math.nan, "b": 2.0, "c": 2.0})
    'b'
    """
    return min(of, key=lambda method: math.inf if math.isnan(of[method]) else of[method])


def decide(table: Table[Key], rule: Rule, methods: Sequence[str], seed: int = 0) -> dict[str, Decision]:
    """Site -> the method with the least value under a rule; of equal ones the first of `methods`.

    A method is a tie if its value is not larger than that of the chosen one in 97.5 % of the resamples.
    """
    found: dict[str, Decision] = {}
    keys = by_site(table)
    for site, of in values(table, rule, methods).items():
        columns = {key.method: [table.column(key, f"ratio_{side}") for side in ("in", "out")] for key in keys[site]}
        best = least(of)
        counts = resamples(site, len(columns[best][0]), seed)
        resampled = {method: rule.value(*(_decibels(ratios, counts) for ratios in columns[method])) for method in of}
        ties = [
            method for method in of
            if method != best and not np.mean(resampled[method] > resampled[best]) > (1 + CONFIDENCE) / 2
        ]  # fmt: skip
        found[site] = Decision(site, keys[site][0].operator, best, tuple(ties))
    return found


def output_powers(table: Table[Key]) -> dict[str, tuple[Array, Array]]:
    """Model -> signal and noise power of its outputs, an entry per image."""
    return {
        key.method: (rows["signal_out"], rows["noise_out"]) for key, rows in table.rows.items() if key.site == LOGITS
    }


@dataclass(frozen=True)
class Difference:
    """By how many dB one model is better than another, and the interval over images."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} dB, {100 * CONFIDENCE:.0f} % interval {self.low:+.2f} to {self.high:+.2f}"


def difference(noise: Array, other: Array, seed: int = 0) -> Difference:
    """Of two models' SQNR, from their noise powers on the same images: resampled in pairs.

    >>> difference(np.array([1.0, 2.0]), np.array([10.0, 20.0]))
    Difference(value=10.0, low=10.0, high=10.0)
    """
    counts = resamples(LOGITS, len(noise), seed)
    low, high = interval(_decibel_sums(other, counts) - _decibel_sums(noise, counts))
    ones = np.ones((1, len(noise)))
    return Difference(float((_decibel_sums(other, ones) - _decibel_sums(noise, ones))[0]), low, high)


def surely_less(values: Array, others: Array, of: int = 1, confidence: float = CONFIDENCE) -> bool:
    """Whether the mean of `values`, one per image, is surely less than that of others, after `of` were looked at.

    By Student's t of the differences in pairs, one-sided, at the level `confidence` for all of them together
    (Bonferroni); with one image nothing is sure. Confidence 0: whether it is less.
    """
    gains = np.asarray(others, np.float64) - values
    if not np.mean(gains) > 0 or not confidence or len(gains) < 2:
        return bool(np.mean(gains) > 0) and not (confidence and len(gains) < 2)
    error = float(np.std(gains, ddof=1)) / math.sqrt(len(gains))
    return error == 0 or beyond(float(np.mean(gains)) / error, len(gains) - 1) < (1 - confidence) / max(1, of)


def beyond(t: float, degrees: int) -> float:
    """The probability that a value of Student's t with so many degrees of freedom is above `t`, which is positive.

    By the finite sums for whole degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan2(t, math.sqrt(degrees))
    odd = degrees % 2
    steps = np.arange(2 + odd, degrees - 1, 2)
    terms = np.cumprod(np.r_[math.cos(angle) if odd else 1.0, math.cos(angle) ** 2 * (steps - 1) / steps])
    inside = math.sin(angle) * float(np.sum(terms)) * (degrees > 1)
    return (1 - (2 / math.pi * (angle + inside) if odd else inside)) / 2


def _decibel_sums(powers: Array, counts: Array) -> Array:
    """10 log10 of the sum of every resample."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10((counts * powers).sum(axis=1)))
