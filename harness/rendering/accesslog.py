"""The access log: Istio's default format, and how a line of it is read, in either of its encodings.

https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format
"""

import json
import re
from typing import NamedTuple

from harness import Json

ACCESS_LOG_FORMAT = (
    '[%START_TIME%] "%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%" %RESPONSE_CODE%'
    " %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS%"
    ' "%UPSTREAM_TRANSPORT_FAILURE_REASON%" %BYTES_RECEIVED% %BYTES_SENT% %DURATION%'
    ' %RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% "%REQ(X-FORWARDED-FOR)%" "%REQ(USER-AGENT)%"'
    ' "%REQ(X-REQUEST-ID)%" "%REQ(:AUTHORITY)%" "%UPSTREAM_HOST%" %UPSTREAM_CLUSTER_RAW%'
    " %UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS%"
    " %REQUESTED_SERVER_NAME% %ROUTE_NAME%\n"
)

VIA_UPSTREAM = "via_upstream"
"""The details of a status that the other side of a proxy answered with."""

# A path may have quotes, but no spaces.
_QUOTED_PATH = re.compile(r'(\[[^ ]+\] "[^ "]+ )([^ ]*"[^ ]*)( [^ "]+" .*)', re.DOTALL)


class Unreadable(ValueError):
    """A line that a proxy logged of a request, in a form that is not Istio's default."""


class Hop(NamedTuple):
    """One request that passed a proxy, as the proxy logged it; ``-`` stands for what it did not know."""

    start: str
    """When the request's first byte came (RFC 3339, UTC)."""
    method: str
    path: str
    status: int
    """What was answered; 0: nothing."""
    flags: str
    """Envoy's response flags, which say what went wrong."""
    details: str
    """Why this status: ``via_upstream`` where the other side answered, else the proxy's own reason."""
    received: int
    """The size of the request's body, in bytes."""
    sent: int
    """The size of the answer's body, in bytes."""
    duration: int
    """Milliseconds from the request's first byte to the answer's last."""
    agent: str
    """The header User-Agent."""
    request_id: str
    """The header x-request-id."""
    authority: str
    """The host that was asked, with its port where the caller named one."""
    upstream: str
    """IP address and port of who got it."""
    cluster: str
    """Envoy's cluster: ``outbound|PORT|SUBSET|HOST`` at the caller, ``inbound|PORT||`` where it arrived."""
    route: str
    """The name of the route that it took."""

    @property
    def answered(self) -> bool:
        """Whether the other side of the proxy answered, rather than the proxy itself."""
        return self.details == VIA_UPSTREAM and self.status > 0


def parse_line(line: str) -> Hop | None:
    """Return what a line of a proxy's log says of a request; None if it is about something else.

    :raises Unreadable: it is about a request, but not in Istio's default format.
    """
    return _text(line) if line.startswith("[") else _json(line) if line.startswith("{") else None


def _text(line: str) -> Hop | None:
    parts = line.split('"')
    start = parts[0]
    # Envoy's own messages begin with [2026-11-25 12:00:00.000][...], a request's with [2026-11-25T12:00...].
    if start[11:12] != "T" or not start.endswith("] "):
        return None
    try:
        # A quote can only stand in what callers choose: in X-Forwarded-For and User-Agent, in the middle.
        method, path, _ = parts[1].split(" ")
        status, flags, details, _ = parts[2].split()
        received, sent, duration, _ = parts[4].split()
        cluster, _, _, _, _, route = parts[-1].split(None, 5)
        if len(parts) < 15 or (len(parts) > 15 and any(map(_is_like_a_status, parts[5:-7]))):
            raise Unreadable(line)
        return Hop(
            start[1:-2], method, path, int(status), flags, details, int(received), int(sent),
            0 if duration == "-" else int(duration), '"'.join(parts[7:-7]), parts[-6], parts[-4], parts[-2],
            cluster, route.rstrip(),
        )  # fmt: skip
    except (ValueError, IndexError):
        if quoted := _QUOTED_PATH.fullmatch(line):
            before, path, behind = quoted.groups()
            hop = _text(f"{before}/{behind}")
            return hop and hop._replace(path=path)
        raise Unreadable(line) from None


def _is_like_a_status(part: str) -> bool:
    """Say whether what stands between two quotes could be the status: a header may forge what precedes."""
    words = part.split()
    return len(words) == 4 and words[0].isdecimal() and len(words[0]) <= 3


def _json(line: str) -> Hop | None:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None  # an application's, perhaps, or cut off
    if not isinstance(fields, dict) or "response_code" not in fields:
        return None

    def text(name: str) -> str:
        value = fields[name]
        return "-" if value is None or value == "" else str(value)

    try:
        return Hop(
            text("start_time"), text("method"), text("path"), int(fields["response_code"] or 0),
            text("response_flags"), text("response_code_details"), int(fields["bytes_received"]),
            int(fields["bytes_sent"]), int(fields["duration"] or 0), text("user_agent"), text("request_id"),
            text("authority"), text("upstream_host"), text("upstream_cluster"), text("route_name"),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        raise Unreadable(line) from None


def is_written(listeners: list[Json]) -> bool | None:
    """Say whether a sidecar with these listeners logs what arrives; None: it is not known."""
    inbound = [each for each in listeners if each.get("name") == "virtualInbound"]
    return '"/dev/stdout"' in json.dumps(inbound) if inbound else None
