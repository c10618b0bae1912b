"""Texts in Istio's objects, checked as Istio's own validation checks them."""

import re
from http import HTTPStatus
from typing import Annotated

import re2
from pydantic import AfterValidator, Field

from harness.manifests.base import DNS, check, matches

_OPTIONS = re2.Options()
_OPTIONS.log_errors = False


def _regex(pattern: str) -> str:
    if not 0 < len(pattern) <= 1024:
        raise ValueError("a regular expression has 1 to 1024 characters")
    try:
        re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else error.args[0]
        raise ValueError(f"'{pattern}' is not a regular expression of RE2: {reason}") from None
    return pattern


def _exported(to: list[str]) -> bool:
    known = all(re.fullmatch(rf"[.*]|{DNS}", name) for name in to)
    return known and len(set(to)) == len(to) and ("*" not in to or len(to) == 1)


def _retry_on(conditions: str) -> str:
    for word in conditions.split(",") if conditions else ():
        if word not in _RETRIED and not (word.isdigit() and int(word) in set(HTTPStatus)):
            raise ValueError(f"'{word}' is no condition of Envoy's such as 5xx or reset, and no status")
    return conditions


_RETRIED = {
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx",
    "refused-stream", "retriable-status-codes", "retriable-headers", "envoy-ratelimited",
    "http3-post-connect-failure", "cancelled", "deadline-exceeded", "internal", "resource-exhausted",
    "unavailable",
}  # fmt: skip


def _formats(value: str) -> bool:
    return "%" not in re.sub(r"%%|%[^%(]+(\(.*?\)[^%]*)?%", "", value)


Regex = Annotated[str, AfterValidator(_regex)]
RegexOrAny = Annotated[str, AfterValidator(lambda text: text if text == "*" else _regex(text))]
_host = matches(
    rf"(?=.{{0,255}}$)(\*|(\*-?)?{DNS})(\.{DNS})*", "is not a host such as recommendation or *.example.com"
)
Host = Annotated[str, _host]
OneHost = Annotated[str, matches("[^*]*", "stands for many hosts: name one"), _host]
ServedHost = Annotated[
    str,
    matches(
        rf"(([.*]|{DNS})/)?(\*|(\*|{DNS})(\.{DNS})+)",
        "is not '*' or a whole host such as shop.example.com, or namespace/host",
    ),
]
RetryOn = Annotated[str, AfterValidator(_retry_on)]
GatewayName = Annotated[str, Field(pattern=rf"^({DNS}/)?{DNS}(\.{DNS})*$")]
SubsetName = Annotated[str, Field(pattern=rf"^{DNS}$")]
SubsetOrAll = Annotated[str, Field(pattern=rf"^({DNS})?$")]
ExportTo = Annotated[list[str], check(_exported, "is either '*', or '.' and names of namespaces, each once")]
_HEADER = "[-!#$%&'*+.^_`|~0-9A-Za-z]+"
HeaderName = Annotated[str, Field(pattern=rf"^{_HEADER}$")]
HeaderOrAuthority = Annotated[str, Field(pattern=rf"^(:authority|{_HEADER})$")]
HeaderValue = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$"),
    check(_formats, "has a % that begins nothing: write %% for %"),
]


def is_authority(header: str) -> bool:
    """Say whether a header is the host of a request."""
    return header.lower() in (":authority", "host")
