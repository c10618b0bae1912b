"""The tab "Ledger" of Locust's web page: how a run stands, before there is a verdict on it."""

import json
from collections.abc import Callable
from dataclasses import replace

from flask import Response, request
from locust.web import WebUI

from harness.proof.figures import Tally
from harness.proof.story import shape_of
from harness.proof.verdict import judge
from harness.proof.watch import Watch

COLUMNS = ("Requests", "Mirrored", "Missing", "Leaks")
"""What the tab shows."""


def figures(watch: Watch) -> dict[str, int]:
    """Return the figures of now; copies that are on their way are missing."""
    shapes = {shape: Tally(tally.count) for shape, tally in watch.evidence.shapes.items()}
    for story in watch.unjudged_stories():
        if story.calls:
            shapes.setdefault(shape_of(story), Tally()).count += 1
    verdict = judge(replace(watch.evidence, shapes=shapes))

    def total(name: str) -> int:
        return sum(claim.figures.get(name, 0) for claim in verdict.claims if claim.id in _CLAIMS)

    counts = (verdict.requests, total("received"), total("missing"), total("leaks"))
    return dict(zip(COLUMNS, counts, strict=True))


_CLAIMS = ("exactly-once", "sampled", "answered-by")


def add_tab(web_ui: WebUI, current: Callable[[], Watch | None]) -> None:
    """Add the tab; its figures travel with the statistics that the page asks for every other second."""
    web_ui.template_args["extended_tabs"] = [{"title": "Ledger", "key": "ledger"}]
    structure = [{"key": name.lower(), "title": name} for name in COLUMNS]
    web_ui.template_args["extended_tables"] = [{"key": "ledger", "structure": structure}]

    def add_figures(response: Response) -> Response:
        watch = current()
        if request.path.endswith("/stats/requests") and response.is_json:
            now = figures(watch) if watch else dict.fromkeys(COLUMNS, 0)
            row = {name.lower(): f"{figure:,}" for name, figure in now.items()}
            extended = [{"key": "ledger", "data": [row]}]
            response.set_data(json.dumps({**response.get_json(), "extended_stats": extended}))
        return response

    assert web_ui.app
    web_ui.app.after_request(add_figures)
