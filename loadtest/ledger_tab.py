"""The tab "Ledger" of Locust's web page: how a run stands, before there is a verdict on it."""

import json
from collections.abc import Callable

from flask import Response, request
from locust.web import WebUI

from loadtest.run import COLUMNS, Tally


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
