"""What a search measured beside its choice: how changes act together, and what mappings cost."""

from __future__ import annotations

import math

from intvit.errors import IntvitError
from intvit.graph.ir import FloatGraph
from intvit.report.data import Interaction, Point, Search, SearchOf


def searched(search: SearchOf, graph: FloatGraph) -> Search:
    """What a search says about interactions and costs. IntvitError for a site that the model does not have."""
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    losses: dict[tuple[tuple[str, str], ...], float] = {}
    for each in search.measured:
        for site in each.changes.keys() - order.keys():
            raise IntvitError(f"search: must be of this model, which has no site {site}")
        if each.loss is not None and math.isfinite(each.loss):
            losses[tuple(sorted(each.changes.items(), key=lambda change: order[change[0]]))] = each.loss
    start = losses.get(())
    interactions: list[Interaction] = []
    for changes, loss in losses.items():
        alone = [losses.get((change,)) for change in changes]
        if len(changes) == 2 and start and None not in alone:
            (a, one), (b, other) = changes
            value = (loss - math.fsum(filter(None, alone)) + start) / start
            interactions.append(Interaction(sites=(a, b), methods=(one, other), value=value))
    return Search(
        kind=search.kind, objective=search.objective, measured=len(search.measured), spent=search.spent,
        base_loss=search.loss.base, chosen_loss=search.loss.chosen, changes=search.chosen, bound=search.bound,
        independent=search.independent, quadratic=search.quadratic, interactions=interactions, points=_points(search),
    )  # fmt: skip


def _points(search: SearchOf) -> list[Point]:
    if not any(each.cost for each in search.measured):
        return []
    return [
        Point(loss=each.loss, cost=each.cost or 0.0, changes=len(each.changes),
              role="chosen" if each.changes == search.chosen else "" if each.changes else "base")
        for each in search.measured if each.loss is not None
    ]  # fmt: skip
