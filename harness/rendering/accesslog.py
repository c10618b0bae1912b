"""What Istio's proxies log of each request: the default format, and how to read it in either encoding.

https://istio.io/latest/docs/tasks/observability/logs/access-log/
"""

import json
import re
from dataclasses import dataclass

from harness.proof.tickets import Ticket, parse_ticket

# https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format
ACCESS_LOG_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE%'
    " %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%"
    ' "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION%'
    ' %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%"'
    ' "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW%'
    " %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS%"
    " %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)

_TEXT = re.compile(
    r'\[[^\]]*\] "(?P<method>\S+) (?P<path>\S+) [^"]*" (?P<response_code>\d+) (?P<response_flags>\S+) '
    r'.*?"[^"]*" (?P<bytes_received>\d+) \d+ (?P<duration>\d+|-) \S+ '
    r'"[^"]*" "(?P<user_agent>[^"]*)" "[^"]*" "[^"]*" "[^"]*" (?P<upstream_cluster>\S+) '
)

# Response flags of a request that the proxy could not hand to its application: connection failed, no
# healthy host. https://www.envoyproxy.io/docs/envoy/latest/configuration/observability/access_log/usage
_NOT_DELIVERED = {"UF", "UH"}


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One request that arrived at a proxy, as the proxy logged it."""

    ticket: Ticket
    method: str
    path: str
    bytes: int
    """The size of the request's body."""
    status: int
    delivered: bool
    """Whether the proxy could hand it to its application."""
    duration: int
    """Milliseconds from the request's first byte to the answer's last."""


def parse_line(line: str) -> LogEntry | None:
    """Return what a line says of an inbound request that bears a ticket; None for any other line."""
    if "dark-launch/" not in line:
        return None
    if line.startswith("{"):
        try:
            fields = json.loads(line)
        except ValueError:
            return None
    else:
        match = _TEXT.match(line)
        fields = match.groupdict() if match else {}
    try:
        ticket = parse_ticket(fields["user_agent"])
        if ticket is None or str(fields["upstream_cluster"]).startswith("outbound|"):
            return None
        return LogEntry(
            ticket=ticket,
            method=fields["method"],
            path=fields["path"],
            bytes=int(fields["bytes_received"]),
            status=int(fields["response_code"]),
            delivered=_NOT_DELIVERED.isdisjoint(str(fields["response_flags"]).split(",")),
            duration=int(str(fields["duration"]).replace("-", "0")),
        )
    except (KeyError, TypeError, ValueError):
        return None
