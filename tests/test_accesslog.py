"""Reading access logs: the text encoding, the JSON one, and what is neither."""

import json

import pytest

from harness.proof.tickets import Ticket
from harness.rendering.accesslog import LogEntry, parse_line

TEXT = (
    '[2026-11-22T08:07:35.748Z] "POST /?item=7 HTTP/1.1" 200 - via_upstream - "-" 259 54 12 11 "10.244.0.1" '
    '"dark-launch/0a1b2c3d/7" "91caeb75-583d-4060-ace8-a2b6813c49b0" "recommendation:8080" "10.244.0.9:8080" '
    "inbound|8080|| 127.0.0.6:32800 10.244.0.9:8080 10.244.0.7:0 "
    "outbound_.8080_.v2_.recommendation.tutorial.svc.cluster.local default"
)
JSON = {
    "start_time": "2026-11-22T08:07:35.748Z",
    "method": "POST",
    "path": "/?item=7",
    "protocol": "HTTP/1.1",
    "response_code": 200,
    "response_flags": "-",
    "bytes_received": 259,
    "bytes_sent": 54,
    "duration": 12,
    "user_agent": "dark-launch/0a1b2c3d/7",
    "upstream_cluster": "inbound|8080||",
    "upstream_transport_failure_reason": None,
}
ENTRY = LogEntry(Ticket("0a1b2c3d", 7), "POST", "/?item=7", 259, 200, delivered=True, duration=12)


def test_text_and_json_say_the_same() -> None:
    assert parse_line(TEXT) == ENTRY
    assert parse_line(json.dumps(JSON)) == ENTRY


def test_a_request_that_was_not_delivered_is_told_from_one_that_was() -> None:
    for flags in ("UF", "UH", "UF,URX"):
        failed = parse_line(
            TEXT.replace("200 - via_upstream - ", f"503 {flags} upstream_reset_before delayed ")
        )
        assert failed is not None
        assert (failed.status, failed.delivered) == (503, False)
    cut = parse_line(TEXT.replace(" 200 - ", " 503 UC ").replace(" 12 11 ", " 12 - "))
    assert cut is not None
    assert cut.delivered


def test_a_failure_reason_with_spaces_does_not_disturb() -> None:
    line = TEXT.replace('via_upstream - "-"', 'upstream_reset - "delayed connect error: Connection refused"')
    assert parse_line(line) == ENTRY


@pytest.mark.parametrize(
    "line",
    [
        "",
        "2026-11-22T08:07:35Z\tinfo\tEnvoy proxy is ready",
        TEXT.replace("dark-launch/0a1b2c3d/7", "curl/8.0"),
        TEXT.replace("dark-launch/0a1b2c3d/7", "dark-launch/0a1b2c3d/seven"),
        TEXT.replace("dark-launch/0a1b2c3d/7", 'x" dark-launch/0a1b2c3d/7'),
        TEXT.replace("inbound|8080||", "outbound|8080|v1|recommendation.tutorial.svc.cluster.local"),
        TEXT[:200],
        json.dumps(JSON)[:-20],
        json.dumps({**JSON, "bytes_received": None}),
        json.dumps({**JSON, "user_agent": None, "path": "/dark-launch/0a1b2c3d/7"}),
        '["dark-launch/0a1b2c3d/7"]',
        '{"message": "dark-launch/0a1b2c3d/7"}',
    ],
)
def test_any_other_line_is_passed_over(line: str) -> None:
    assert parse_line(line) is None


def test_a_ticket_comes_back_as_it_was_sent() -> None:
    ticket = Ticket("0a1b2c3d", 7)
    entry = parse_line(TEXT.replace("dark-launch/0a1b2c3d/7", str(ticket)))
    assert entry is not None
    assert entry.ticket == ticket
