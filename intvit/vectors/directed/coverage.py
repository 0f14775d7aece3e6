"""What directed stimuli reach: classes of a site, each hit, proven unreachable, open or missed. docs/directed.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from intvit.graph.ir import Array

FORMAT, VERSION = "intvit.directed", 1
HIT, UNREACHABLE, OPEN, MISSED = "hit", "unreachable", "open", "missed"
STATUSES = (HIT, UNREACHABLE, OPEN, MISSED)


@dataclass(frozen=True)
class Class:
    """One class of one group of constants (a channel), or of the site (`group` -1).

    `image`, `element`: of a hit, where it is in the tensor `of`. `value`: the integer that makes it the class, where
    the class is an extreme. `reason`: why it is unreachable, open or missed. `proof`: numbers from which a program
    derives `unreachable` again.
    """

    name: str
    status: str
    group: int = -1
    image: int | None = None
    element: tuple[int, ...] = ()
    value: int | None = None
    reason: str = ""
    proof: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Signal:
    """An intermediate: what is proven of it, if anything is, and what the stimuli show."""

    name: str
    proven: tuple[int, int] | None
    how: str
    seen: tuple[int, int] | None


@dataclass(frozen=True)
class Coverage:
    """Of one site. `groups`: what a group is, "channel" or nothing; `of`: the tensor that `element` indexes."""

    site: str
    operator: str
    seed: int
    level: int
    images: int
    of: str
    classes: tuple[Class, ...]
    groups: str = ""
    signals: tuple[Signal, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """Status -> how many classes, each group for itself."""
        found = dict.fromkeys(STATUSES, 0)
        for each in self.classes:
            found[each.status] += 1
        return found

    def of_status(self, status: str) -> tuple[Class, ...]:
        return tuple(each for each in self.classes if each.status == status)

    def __getitem__(self, name: str) -> tuple[Class, ...]:
        """The class of that name in every group; none for an unknown name."""
        return tuple(each for each in self.classes if each.name == name)

    def value(self) -> dict[str, Any]:
        """JSON values: a list of classes, in each the groups by status."""
        return {
            "format": FORMAT, "version": VERSION, "site": self.site, "operator": self.operator, "seed": self.seed,
            "level": self.level, "images": self.images, "element_of": self.of, "groups": self.groups,
            "counts": self.counts,
            "signals": [_signal(each) for each in self.signals],
            "classes": [_class(name, list(found)) for name, found in _by_name(self.classes).items()],
        }  # fmt: skip


@dataclass(frozen=True)
class Directed:
    """Stimuli (N, *shape) by tensor, and what they cover."""

    stimuli: Mapping[str, Array]
    coverage: Coverage

    @property
    def images(self) -> int:
        return self.coverage.images


def _by_name(classes: Iterable[Class]) -> dict[str, list[Class]]:
    found: dict[str, list[Class]] = {}
    for each in classes:
        found.setdefault(each.name, []).append(each)
    return found


def _signal(each: Signal) -> dict[str, Any]:
    value: dict[str, Any] = {"name": each.name, "how": each.how}
    if each.proven is not None:
        value["proven"] = [_number(v) for v in each.proven]
    if each.seen is not None:
        value["seen"] = [_number(v) for v in each.seen]
    return value


def _number(value: int) -> int | str:
    """As a number where every reader of JSON keeps it exact, else in hexadecimal."""
    return value if abs(value) < 1 << 53 else hex(value)


def _class(name: str, found: Sequence[Class]) -> dict[str, Any]:
    """Of a site without groups one flat entry; else the groups of each status."""
    counts = {status: sum(each.status == status for each in found) for status in STATUSES}
    status = next(s for s in (MISSED, OPEN, HIT, UNREACHABLE) if counts[s])
    entry: dict[str, Any] = {"name": name, "status": status}
    if len(found) == 1 and found[0].group < 0:
        return {**entry, **_details(found[0])}
    entry["count"] = {s: n for s, n in counts.items() if n}
    entry["groups"] = [{"group": each.group, "status": each.status, **_details(each)} for each in found]
    return entry


def _details(each: Class) -> dict[str, Any]:
    value: dict[str, Any] = {}
    if each.image is not None:
        value |= {"image": each.image, "element": list(each.element)}
    if each.value is not None:
        value["value"] = _number(each.value)
    if each.reason:
        value["reason"] = each.reason
    if each.proof is not None:
        value["proof"] = {key: _number(v) if isinstance(v, int) else v for key, v in each.proof.items()}
    return value


@dataclass
class Ledger:
    """Collects what is decided of classes before stimuli are known: (group, class) -> why it cannot be reached."""

    reasons: dict[tuple[int, str], tuple[str, str, Mapping[str, Any] | None]] = field(default_factory=dict)

    def unreachable(self, group: int, name: str, reason: str, proof: Mapping[str, Any] | None = None) -> None:
        self.reasons[group, name] = UNREACHABLE, reason, proof

    def open(self, group: int, name: str, reason: str) -> None:
        self.reasons.setdefault((group, name), (OPEN, reason, None))
