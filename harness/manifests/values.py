"""Values of fields: numbers and texts, checked as Kubernetes' and Istio's own validation checks them."""

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import re2
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

NOT_HERE = "not_here"
"""The type of error of a field that clusters honour, and that the harness's own meshes do not."""

Named = TypeVar("Named")

# --- checks -----------------------------------------------------------------------------------------------


def check(holds: Callable[[Any], object], problem: str, kind: str = "value_error") -> AfterValidator:
    """Return a check of a value; ``problem`` says what is wrong with the value ``{}`` that does not hold."""

    def checked(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError(kind, problem.format(value))
        return value

    return AfterValidator(checked)


def one_of(*values: str) -> AfterValidator:
    """Return a check that a text is one of those that the harness's own meshes honour."""
    remedy = f"write {' or '.join(values)}, or run the step with MESH=cluster"
    return check(values.__contains__, f"only a cluster has '{{}}': {remedy}", NOT_HERE)


def matches(pattern: str, problem: str) -> AfterValidator:
    """Return a check that the whole of a text matches a pattern; ``problem`` says what it is if not."""
    return check(re.compile(pattern).fullmatch, f"'{{}}' {problem}")


# --- numbers ----------------------------------------------------------------------------------------------


def _number(value: Any) -> Any:
    """Return a number that is written as text as a number: protobuf's JSON allows either."""
    if isinstance(value, str):
        try:
            return int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise ValueError(f"'{value}' is not a number") from None
    return value


UINT32 = 2**32 - 1
Uint32 = Annotated[int, Field(ge=0, le=UINT32)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Percent = Annotated[float, BeforeValidator(_number), Field(ge=0, le=100)]
WholePercent = Annotated[int, BeforeValidator(_number), Field(ge=0, le=100)]


def seconds(duration: str) -> float:
    """Return a Go duration such as ``1m30s`` or ``250ms`` in seconds.

    :raises ValueError: it is not one, or shorter than the millisecond that Istio allows.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", duration):
        raise ValueError(f"'{duration}' is not a duration such as 2s or 250ms")
    total = sum(float(n) * units[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)(h|ms|m|s)", duration))
    if not 0.001 <= total < 2**63 / 1e9:
        raise ValueError(f"'{duration}' is shorter than 1ms, or longer than 292 years")
    if total < UINT32 and round(total * 1000, 6) % 1:
        raise ValueError(f"'{duration}' has parts of a millisecond: round it")
    return total


def _duration(text: str) -> str:
    seconds(text)
    return text


Duration = Annotated[str, AfterValidator(_duration)]

# --- names ------------------------------------------------------------------------------------------------

DNS = "[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
"""A part of a host's name."""
_NAME = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_HEADER = "[-!#$%&'*+.^_`|~0-9A-Za-z]+"

Name = Annotated[str, Field(max_length=253, pattern=rf"^{_NAME}(\.{_NAME})*$")]
HostName = Annotated[str, Field(max_length=63, pattern=rf"^{_NAME}$")]
"""A name that is part of a host's name, so without dots."""
Labels = dict[
    Annotated[str, Field(pattern=rf"^({DNS}(\.{DNS})*/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^({_LABEL})?$")],
]
GatewayName = Annotated[str, Field(pattern=rf"^({DNS}/)?{DNS}(\.{DNS})*$")]
SubsetName = Annotated[str, Field(pattern=rf"^{DNS}$")]
SubsetOrAll = Annotated[str, Field(pattern=rf"^({DNS})?$")]
HeaderName = Annotated[str, Field(pattern=rf"^{_HEADER}$")]
HeaderOrAuthority = Annotated[str, Field(pattern=rf"^(:authority|{_HEADER})$")]

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


def covers(wide: str, narrow: str) -> bool:
    """Say whether a host, or a wildcard such as ``*.example.com``, stands for another one too."""
    return wide == narrow or (wide.startswith("*") and narrow.endswith(wide[1:]))


def most_specific(found: Iterable[tuple[str, Named]], host: str) -> list[Named]:
    """Return what is for ``host``, of hosts or wildcards with what is for each: the most specific alone."""
    matching = [(name, each) for name, each in found if covers(name, host)]
    longest = max((len(name) for name, _ in matching), default=0)
    return [each for name, each in matching if len(name) == longest]


def is_authority(header: str) -> bool:
    """Say whether a header is the host of a request."""
    return header.lower() in (":authority", "host")


def _exported(to: list[str]) -> bool:
    known = all(re.fullmatch(rf"[.*]|{DNS}", name) for name in to)
    return known and len(set(to)) == len(to) and ("*" not in to or len(to) == 1)


ExportTo = Annotated[list[str], check(_exported, "is either '*', or '.' and names of namespaces, each once")]

# --- other texts ------------------------------------------------------------------------------------------

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


Regex = Annotated[str, AfterValidator(_regex)]
RegexOrAny = Annotated[str, AfterValidator(lambda text: text if text == "*" else _regex(text))]

_RETRIED = {
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx",
    "refused-stream", "retriable-status-codes", "retriable-headers", "envoy-ratelimited",
    "http3-post-connect-failure", "cancelled", "deadline-exceeded", "internal", "resource-exhausted",
    "unavailable",
}  # fmt: skip


def _retry_on(conditions: str) -> str:
    for word in conditions.split(",") if conditions else ():
        if word not in _RETRIED and not (word.isdigit() and int(word) in set(HTTPStatus)):
            raise ValueError(f"'{word}' is no condition of Envoy's such as 5xx or reset, and no status")
    return conditions


RetryOn = Annotated[str, AfterValidator(_retry_on)]


def _formats(value: str) -> bool:
    return "%" not in re.sub(r"%%|%[^%(]+(\(.*?\)[^%]*)?%", "", value)


HeaderValue = Annotated[
    str,
    Field(pattern=r"^[^\x00-\x08\x0a-\x1f\x7f]*$"),
    check(_formats, "has a % that begins nothing: write %% for %"),
]
