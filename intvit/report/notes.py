"""What a reader must not overlook, in words: where a mapping is not better, and what numbers do not say."""

from __future__ import annotations

from collections.abc import Sequence

from intvit.report.data import MIXED, SEARCHED, Estimate, MappingFile, Model, Site, Source

FEW_IMAGES = 100


def interval(found: Estimate, factor: float = 1, digits: int = 2, unit: str = "dB") -> str:
    """
    >>> interval(Estimate(value=0.5, low=-0.25, high=1.0))
    '+0.50 dB, 95 % interval -0.25 to +1.00'
    """
    value, low, high = ("-" if v is None else f"{factor * v:+.{digits}f}" for v in (found.value, found.low, found.high))
    return f"{value} {unit}" if found.low is None is found.high else f"{value} {unit}, 95 % interval {low} to {high}"


def notes(
    mapping: MappingFile, models: Sequence[Model], sites: Sequence[Site], sources: Sequence[Source], best: str
) -> list[str]:
    """A sentence each, the weightiest first."""
    chosen = next(model for model in models if model.name == MIXED)
    found = [*_then(mapping), *_now(chosen, best, mapping)]
    used = {source.role: source for source in sources}
    if used["test images"].sha256 == used["calibration images"].sha256:
        found.append("The test images are those that were calibrated on: other images tell more.")
    n_images = used["test images"].images or 0
    if n_images < 2:
        found.append("One test image has no intervals, and tells next to nothing.")
    elif n_images < FEW_IMAGES:
        found.append(f"{n_images} test images are few: mind the intervals.")
    if chosen.top1 is None:
        found.append("The test images have no labels, or the outputs no classes: there is no top-1.")
    differing = sum(site.here is not None and site.rule is not None and site.here != site.rule for site in sites)
    if differing:
        found.append(
            f"At {differing} of {len(sites)} sites the rule {mapping.rule} would choose another method on the test "
            "images than on those of the mapping."
        )
    undefined = [f"{method} at {site.site}" for site in sites for method in site.undefined]
    if undefined:
        more = f" and {len(undefined) - 3} more" if len(undefined) > 3 else ""
        found.append(
            f"Undefined, so that another method stands there in the uniform model: {', '.join(undefined[:3])}{more}."
        )
    return found


def _then(mapping: MappingFile) -> list[str]:
    """What was known when the mapping was made."""
    found: list[str] = []
    best = mapping.gain_over_uniform.get("uniform")
    ruled, searched = mapping.gain(MIXED), mapping.gain(SEARCHED)
    refused = mapping.search.not_surely_better if mapping.search else None
    if mapping.search and refused and refused.loss and mapping.search.loss.chosen:
        less = 1 - refused.loss / mapping.search.loss.chosen
        found.append(
            f"Search {mapping.search.kind} found a mapping that loses {less:.1%} less on the images of the mapping, "
            "not surely so on others, and did not take it: more images tell."
        )
    if ruled is not None and ruled.value is not None and ruled.value < 0 and searched is None:
        worse = f"The choice of rule {mapping.rule} was worse than uniform {best} on the images of the mapping"
        kept = f"the mapping holds uniform {mapping.fallback}" if mapping.fallback else "it was kept all the same"
        found.append(f"{worse} ({interval(ruled)}): {kept}.")
    if searched is not None and searched.value is not None and searched.value < 0:
        found.append(f"The search found nothing better than uniform {best} on its own images ({interval(searched)}).")
    if mapping.search is not None and mapping.search.spent:
        found.append(f"The budget ended the search after {len(mapping.search.measured)} mappings.")
    return found


def _now(chosen: Model, best: str, mapping: MappingFile) -> list[str]:
    """What the test images say about the mapping; of one that is a uniform model nothing."""
    gain = chosen.sqnr_gain
    if mapping.fallback is not None or gain is None or gain.high is None or gain.low is None:
        return []
    if gain.high < 0:
        return [f"On the test images the mapping is worse than uniform {best}: {interval(gain)} at the outputs."]
    if gain.low <= 0:
        return [f"On the test images the mapping is not surely better than uniform {best}: {interval(gain)}."]
    return []
