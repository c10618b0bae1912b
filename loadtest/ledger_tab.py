"""The tab "Ledger" of Locust's web page: how a run stands, before there is a verdict on it."""

import json
from collections.abc import Callable

from flask import Response, request
from locust.web import WebUI

from harness.proof.verify import Proof

COLUMNS = ("Requests", "Mirrored", "Missing", "Leaks")
"""What a tally counts."""


class Tally:
    """Counts tickets as their callers are answered, and looks again only at those without a copy."""

    def __init__(self, proof: Proof) -> None:
        self._proof = proof
        self._requests = self._mirrored = self._leaks = 0
        self._without_copy: dict[int, bool] = {}
        """Number → whether there must be one."""

    def add(self, number: int) -> None:
        """Count a ticket whose caller knows the outcome."""
        ledger, promise = self._proof.ledger, self._proof.promise(number)
        answered = ledger.answered(number)
        self._requests += 1
        self._leaks += answered and ledger.version(number) not in dict(promise.answers)
        self._without_copy[number] = answered and any(100 in percents for _, percents in promise.copies)

    def figures(self) -> dict[str, int]:
        """Return the figures of now; copies that are on their way are missing."""
        ledger = self._proof.ledger
        for number in list(self._without_copy):
            version = ledger.version(number)
            if any(found.counts[number] for name, found in ledger.arrivals.items() if name != version):
                del self._without_copy[number]
                self._mirrored += 1
        missing = sum(self._without_copy.values())
        return dict(zip(COLUMNS, (self._requests, self._mirrored, missing, self._leaks), strict=True))


def add_tab(web_ui: WebUI, tally: Callable[[], Tally | None]) -> None:
    """Add the tab; its figures travel with the statistics that the page asks for every other second."""
    web_ui.template_args["extended_tabs"] = [{"title": "Ledger", "key": "ledger"}]
    structure = [{"key": name.lower(), "title": name} for name in COLUMNS]
    web_ui.template_args["extended_tables"] = [{"key": "ledger", "structure": structure}]

    def add_figures(response: Response) -> Response:
        current = tally()
        if request.path.endswith("/stats/requests") and current and response.is_json:
            row = {name.lower(): f"{figure:,}" for name, figure in current.figures().items()}
            extended = [{"key": "ledger", "data": [row]}]
            response.set_data(json.dumps({**response.get_json(), "extended_stats": extended}))
        return response

    assert web_ui.app
    web_ui.app.after_request(add_figures)
