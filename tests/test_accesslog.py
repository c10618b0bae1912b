"""Reading access logs: the text encoding, the JSON one, and what is neither."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.rendering.accesslog import Hop, Unreadable, parse_line

TEXT = (
    '[2026-11-22T08:07:35.748Z] "POST /?item=7 HTTP/1.1" 200 - via_upstream - "-" 259 54 12 11 "10.244.0.1" '
    '"dark-launch/0a1b2c3d/7" "91caeb75-583d-4060-ace8-a2b6813c49b0" "recommendation:8080" "10.244.0.9:8080" '
    "inbound|8080|| 127.0.0.6:32800 10.244.0.9:8080 10.244.0.7:0 "
    "outbound_.8080_.v2_.recommendation.tutorial.svc.cluster.local default"
)
JSON: dict[str, Any] = {
    "start_time": "2026-11-22T08:07:35.748Z", "method": "POST", "path": "/?item=7", "protocol": "HTTP/1.1",
    "response_code": 200, "response_flags": "-", "response_code_details": "via_upstream",
    "bytes_received": 259, "bytes_sent": 54, "duration": 12, "user_agent": "dark-launch/0a1b2c3d/7",
    "request_id": "91caeb75-583d-4060-ace8-a2b6813c49b0", "authority": "recommendation:8080",
    "upstream_host": "10.244.0.9:8080", "upstream_cluster": "inbound|8080||",
    "downstream_remote_address": "10.244.0.7:0", "route_name": "default",
    "upstream_transport_failure_reason": None,
}  # fmt: skip
HOP = Hop(
    start="2026-11-22T08:07:35.748Z", method="POST", path="/?item=7", status=200, flags="-",
    details="via_upstream", received=259, sent=54, duration=12, agent="dark-launch/0a1b2c3d/7",
    request_id="91caeb75-583d-4060-ace8-a2b6813c49b0", authority="recommendation:8080",
    upstream="10.244.0.9:8080", cluster="inbound|8080||", route="default",
)  # fmt: skip


def test_text_and_json_say_the_same() -> None:
    assert parse_line(TEXT) == HOP
    assert parse_line(json.dumps(JSON)) == HOP
    assert HOP.answered


def test_what_the_proxy_answered_itself_is_told_from_what_it_passed_on() -> None:
    for status, flags, details in (
        ("503", "UF,URX", "upstream_reset_before_response_started{delayed_connect_error}"),
        ("403", "-", "rbac_access_denied_matched_policy[none]"),
        ("0", "DC", "downstream_remote_disconnect"),
    ):
        found = parse_line(TEXT.replace("200 - via_upstream", f"{status} {flags} {details}"))
        assert found is not None
        assert (found.status, found.flags, found.details) == (int(status), flags, details)
        assert not found.answered


def test_a_request_without_an_end_has_no_duration() -> None:
    cut = parse_line(TEXT.replace(" 12 11 ", " - - "))
    assert cut is not None
    assert cut.duration == 0


def test_a_failure_reason_with_spaces_does_not_disturb() -> None:
    line = TEXT.replace('via_upstream - "-"', 'via_upstream - "delayed connect error: Connection refused"')
    assert parse_line(line) == HOP


@pytest.mark.parametrize("path", ['/?q="x"', '/"', '/"200', '/?a="&b="HTTP/1.1"'])
def test_a_path_may_have_quotes(path: str) -> None:
    assert parse_line(TEXT.replace("/?item=7", path)) == HOP._replace(path=path)


def test_a_user_agent_cannot_forge_the_fields_behind_it() -> None:
    forged = 'x" "other-id" "other:80" "1.2.3.4:80" outbound|80||other - - - - other'
    found = parse_line(TEXT.replace("dark-launch/0a1b2c3d/7", forged))
    assert found == HOP._replace(agent=forged)


def test_a_path_cannot_forge_the_status_behind_it() -> None:
    forged = TEXT.replace("/?item=7", '/ HTTP/1.1" 200 - via_upstream - "-" 0 0 0 0 "').replace(
        " 200 -", " 500 -"
    )
    with pytest.raises(Unreadable):
        parse_line(forged)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "2026-11-22T08:07:35Z\tinfo\tEnvoy proxy is ready",
        "[2026-11-22 08:07:35.748][12][warning][config] gRPC config update rejected",
        '["a list"]',
        '{"message": "an application\'s"}',
        json.dumps(JSON)[:-20],
        "{" * 100_000,
    ],
)
def test_a_line_on_something_else_is_passed_over(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    "line",
    [
        TEXT[:200],
        TEXT.replace(" 200 - ", " two hundred - "),
        TEXT.replace("POST /?item=7", 'POST /" ?item=7'),
        '[2026-11-22T08:07:35.748Z] "GET / HTTP/1.1" 200 12ms',
        json.dumps({**JSON, "bytes_received": None}),
        json.dumps({k: v for k, v in JSON.items() if k != "request_id"}),
    ],
)
def test_a_request_in_another_format_is_unreadable(line: str) -> None:
    with pytest.raises(Unreadable):
        parse_line(line)


@given(st.text())
def test_any_line_is_read_passed_over_or_unreadable(text: str) -> None:
    for line in (text, "[2026-11-22T08:07:35.748Z] " + text, TEXT.replace("recommendation:8080", text)):
        with contextlib.suppress(Unreadable):
            parse_line(line)


@given(st.dictionaries(st.sampled_from(sorted(JSON)), st.none() | st.integers() | st.floats() | st.text()))
def test_any_json_is_read_passed_over_or_unreadable(fields: dict[str, Any]) -> None:
    with contextlib.suppress(Unreadable):
        parse_line(json.dumps({**JSON, **fields}))
