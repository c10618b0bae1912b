"""The tab "Proof" of Locust's web page: each claim as it stands, and the verdict when a run has ended."""

import json
from collections.abc import Callable
from dataclasses import replace

from flask import Response, request
from locust.web import WebUI

from harness.proof.figures import Tally
from harness.proof.report import WORDS
from harness.proof.story import shape_of
from harness.proof.verdict import Verdict, judge
from harness.proof.watch import Watch

COLUMNS = ("State", "Claim", "Figures")
"""What the tab shows of each claim."""


def standing(watch: Watch) -> Verdict:
    """Judge a run that goes on; copies that are on their way are missing."""
    shapes = {shape: Tally(tally.count) for shape, tally in watch.evidence.shapes.items()}
    for story in watch.period.stories():
        if story.calls:
            shapes.setdefault(shape_of(story), Tally()).count += 1
    return judge(replace(watch.evidence, shapes=shapes))


def _rows(verdict: Verdict | None) -> list[dict[str, str]]:
    if not verdict:
        return []
    held = sum(claim.holds for claim in verdict.claims)
    rows = [(verdict.word, verdict.routes, f"{held} of {len(verdict.claims)} claims hold")]
    rows += [(WORDS[claim.state], claim.statement, claim.detail) for claim in verdict.claims]
    return [dict(zip(map(str.lower, COLUMNS), row, strict=True)) for row in rows]


def add_tab(web_ui: WebUI, current: Callable[[], Verdict | None]) -> None:
    """Add the tab; its rows travel with the statistics that the page asks for every other second."""
    web_ui.template_args["extended_tabs"] = [{"title": "Proof", "key": "proof"}]
    structure = [{"key": name.lower(), "title": name} for name in COLUMNS]
    web_ui.template_args["extended_tables"] = [{"key": "proof", "structure": structure}]

    def add_rows(response: Response) -> Response:
        if request.path.endswith("/stats/requests") and response.is_json:
            extended = [{"key": "proof", "data": _rows(current())}]
            response.set_data(json.dumps({**response.get_json(), "extended_stats": extended}))
        return response

    assert web_ui.app
    web_ui.app.after_request(add_rows)
