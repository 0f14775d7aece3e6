"""A comparison as lines, as JSON and as JUnit XML."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from intvit.vectors.diagnosis.compare import EQUAL, EXTRA, MISSING, PROPAGATED, ROOT, Element, Report, Result
from intvit.vectors.diagnosis.kinds import Cause

MOST_CAUSES, MOST_GAPS = 8, 3
"""That one site shows, and sites of which the headline says what is missing; JSON has all."""
STATUSES = (EQUAL, ROOT, PROPAGATED, MISSING, EXTRA)


def headline(report: Report) -> str:
    """One line: the earliest root, or what spread from a site that was not dumped, or that all is equal."""
    for status in (ROOT, PROPAGATED):
        for result in report.results:
            if result.status == status:
                return str(result)
    there = f"{report.count(EQUAL)} sites equal"
    gaps = [f"{report.count(status)} {status}" for status in (MISSING, EXTRA) if report.count(status)]
    in_part = [result for result in report.results if result.status == MISSING and result.images]
    if in_part:
        which = "; ".join(f"{result.site}: {', '.join(_gaps(result))}" for result in in_part[:MOST_GAPS])
        more = f"; and {len(in_part) - MOST_GAPS} more" if len(in_part) > MOST_GAPS else ""
        gaps.append(f"{len(in_part)} of them in part ({which}{more})")
    return ", ".join([there, *gaps])


def _gaps(result: Result) -> list[str]:
    gone = [str(image) for image in result.by_image if image not in result.images]
    said = [f"image {' '.join(gone)} missing"] if gone else []
    return said + ([f"{result.n_missing} of {result.n_elements} elements missing"] if result.n_missing else [])


def lines(report: Report) -> Iterator[str]:
    """The headline, and of each root what explains it."""
    yield headline(report)
    for result in report.roots:
        yield f"{result.site}: {_amount(result)}"
        yield from (f"  {note}" for note in result.notes)
        yield from (f"  {line}" for line in cause_lines(result))
    yield summary(report)


def summary(report: Report) -> str:
    """How many sites are in which state."""
    return ", ".join(f"{report.count(status)} {status}" for status in STATUSES)


def rows(report: Report) -> list[list[str]]:
    """Of a table: site, status, images that fail or were dumped, elements, how many differ, how many are not known."""
    return [
        [plain(r.site if r.status != EXTRA else f"{r.case}/image{r.images[0]}/{r.tensor}"), r.status,
         " ".join(map(str, r.failing or r.images)) or "-", str(r.n_elements), str(r.n_different), str(r.n_missing)]
        for r in report.results if r.status != EQUAL
    ]  # fmt: skip


def _amount(result: Result) -> str:
    return f"{result.n_different} of {result.n_elements - result.n_missing} elements differ"


def cause_lines(result: Result) -> Iterator[str]:
    """What explains a root, first guess first."""
    found = result.explained
    if found is None:
        return
    if not found.causes:
        yield f"no single fault of the {found.tried} that were tried explains it"
        if found.closest is not None:
            yield f"closest, {_percent(found.share)} of the elements that differ: {_said(found.closest, result)}"
        return
    several = len(found.causes) > 1
    if several:
        yield f"{len(found.causes)} causes explain every element; these vectors do not tell them apart"
    for i, cause in enumerate(found.causes[:MOST_CAUSES]):
        yield f"{'first guess' if i == 0 and several else 'or' if several else 'cause'}: {_said(cause, result)}"
    if len(found.causes) > MOST_CAUSES:
        yield f"and {len(found.causes) - MOST_CAUSES} more (--json)"


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:.1f} %"


def _said(cause: Cause, result: Result) -> str:
    where = "" if cause.site == result.site else f"in {cause.site}: "
    return f"{where}{cause} ({cause.kind})"


# ----------------------------------------------------------------------------------------------------- JSON


def document(report: Report) -> dict[str, Any]:
    """Plain JSON values."""
    return {
        "differs": report.differs,
        "headline": headline(report),
        "images": list(report.images),
        "counts": {status: report.count(status) for status in STATUSES},
        "sites": [_site(result) for result in report.results],
    }


def _site(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {
        "case": result.case, "site": result.site, "tensor": result.tensor, "op": result.op, "status": result.status,
        "images": list(result.images), "failing": list(result.failing), "elements": result.n_elements,
        "missing": result.n_missing, "different": result.n_different, "undefined": result.n_undefined,
        "notes": list(result.notes),
    }  # fmt: skip
    if result.first is not None:
        found["first"] = _element(result.first)
    if result.explained is not None:
        found["causes"] = [_cause(cause) for cause in result.explained.causes]
        found["tried"] = result.explained.tried
        if result.explained.closest is not None:
            found["closest"] = {**_cause(result.explained.closest), "share": round(result.explained.share, 6)}
    return found


def _cause(cause: Cause) -> dict[str, Any]:
    return {"kind": cause.kind, "site": cause.site, "step": cause.step, "text": cause.text, "prior": cause.prior}


def _element(first: Element) -> dict[str, Any]:
    place = {} if first.place is None else {k: v for k, v in vars(first.place).items() if v is not None}
    return {
        "image": first.image, "index": list(first.index), "axes": list(first.axes), "expected": first.expected,
        "got": first.got, "expected_word": first.words[0], "got_word": first.words[1], "type": first.bits, **place,
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------- JUnit

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plain(text: str) -> str:
    """What XML 1.0 can hold: every other character as Python writes it, like \\x00.

    >>> plain("a\\x00b")
    'a\\\\x00b'
    """
    return NOT_XML.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def junit(report: Report) -> bytes:
    """JUnit XML: a testcase for each site and image; roots and what spread from them fail, what is missing or extra
    is skipped."""
    suite = ElementTree.Element("testsuite", {"name": "intvit golden compare"})
    tests = failures = skipped = 0
    for result in report.results:
        of_images = dict(result.by_image) if result.by_image else dict.fromkeys(result.images, result.status)
        for image, status in of_images.items():
            tests += 1
            name = f"{result.site if result.status != EXTRA else result.tensor} image {image}"
            case = ElementTree.SubElement(suite, "testcase", {"classname": plain(result.case), "name": plain(name)})
            if status in (ROOT, PROPAGATED):
                failures += 1
                failure = ElementTree.SubElement(
                    case, "failure", {"type": status, "message": plain(_message(result, image))}
                )
                failure.text = plain("\n".join([_amount(result), *result.notes, *cause_lines(result)]))
            elif status != EQUAL:
                skipped += 1
                said = ", ".join([status, *result.notes]) if status == MISSING and result.images else status
                ElementTree.SubElement(case, "skipped", {"message": plain(said)})
    counts = {"tests": str(tests), "failures": str(failures), "errors": "0", "skipped": str(skipped)}
    suite.attrib.update(counts)
    whole = ElementTree.Element("testsuites", counts)
    whole.append(suite)
    ElementTree.indent(whole)
    return (
        b'<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(whole, encoding="unicode").encode() + b"\n"
    )


def _message(result: Result, image: int) -> str:
    if result.first is not None and result.first.image == image:
        return str(result)
    return f"{result.site}: {result.by_image.get(image, result.status)}, image {image}"
