"""Reports of a verdict: a table for people, JUnit XML for machines."""

import re
import shlex
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator

from harness.meshes.mesh import in_clone
from harness.proof.evidence import State
from harness.proof.figures import Comparison
from harness.proof.verdict import Side, Verdict

WORDS: dict[State, str] = {"holds": "ok", "fails": "FAIL", "unproven": "?"}

WIDTH = 80
"""How many columns a terminal has at least, on a projector too."""

BROAD = 18
"""How many columns the name of a version's proxy has at most, in one line with its figures."""


def harmless(text: str) -> str:
    """Return a text without what could steer a terminal: replies and logs are anybody's."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def wrap(text: str, hang: int = 2) -> str:
    """Return a text in lines that fit a terminal; ``hang`` columns indent what does not fit a line.

    No word is cut, and no short command in single quotes.
    """
    whole = re.sub(r"(?<!\w)'[^'\n]{1,60}'(?!\w)", lambda quoted: quoted[0].replace(" ", "\xa0"), text)
    wrapper = textwrap.TextWrapper(
        WIDTH, subsequent_indent=" " * hang, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(map(wrapper.fill, whole.split("\n"))).replace("\xa0", " ")


def table(verdict: Verdict, style: Callable[[str, State], str] = lambda word, state: word) -> str:
    """Return a verdict as a table; ``style`` may colour a word by what it says."""
    claims = [(claim, harmless(claim.statement), harmless(claim.detail)) for claim in verdict.claims]
    width = max((len(s) for _, s, detail in claims if len(s) + len(detail) <= WIDTH - 10), default=0)
    lines = [wrap(f"routes    {harmless(verdict.routes)}", 10), ""]
    for claim, statement, detail in claims:
        word = style(f"{WORDS[claim.state]:<4}", claim.state)
        line = f"{statement:<{width}}  {detail}"
        if len(line) > WIDTH - 8:
            line = wrap(" " * 8 + statement, 8)[8:] + "\n" + wrap(" " * 10 + detail, 10)
        lines.append(f"  {word}  {line}")
    seen = {side.version: harmless(f"{side.version} proxy") for side in verdict.sides}
    seen |= {"callers": "callers"}
    broad = max(10, *(len(name) for name in seen.values() if len(name) <= BROAD))
    lines += ["", f"  {'seen by':<{broad}}  requests   median      p99  reply size   status"]
    for side in (verdict.callers, *verdict.sides):
        lines.append(_row(side, seen[side.version], broad))
    for comparison in verdict.compared:
        lines += ["", *_compared(comparison)]
    held = sum(claim.holds for claim in verdict.claims)
    lines += ["", f"{style(verdict.word, verdict.state)}  {held} of {len(verdict.claims)} claims hold"]
    if verdict.unjudged:
        lines.append(f"      {verdict.unjudged:,} requests were under way, and are not judged")
    examples = dict.fromkeys(e for c in verdict.claims if c.state == "fails" for e in c.examples)
    trace = "make trace T=" if in_clone() else "dark-launch trace "
    told = [f"see one of them: {trace}{shlex.quote(harmless(e))}" for e in list(examples)[:3]]
    lines += [wrap(f"      {line}", 8) for line in (*told, *map(harmless, verdict.findings))]
    return "\n".join(lines)


def _compared(comparison: Comparison) -> Iterator[str]:
    """Yield how a dark version answered, line by line."""
    version, against = map(harmless, (comparison.version, comparison.against))
    label = f"  {against} x {version}   "
    status = ", ".join(f"{pair}: {count:,}".replace(" ", "\xa0") for pair, count in comparison.status.items())
    yield wrap(f"{label}status  {status}", 20)
    sizes = f"the same: {comparison.same_size:,}"
    if comparison.other_size:
        by = f"-{comparison.smaller:,} to +{comparison.larger:,} B"
        sizes += f"; another: {comparison.other_size:,} ({by})"
    yield wrap(f"{' ' * len(label)}size    {sizes}", 20)
    times = [
        f"{name}:\xa0{_ms(theirs)}\xa0x\xa0{_ms(ours)}".replace(" ms", "\xa0ms")
        for name, (theirs, ours) in comparison.times.items()
    ]
    yield wrap(f"{' ' * len(label)}time    {', '.join(times)}", 20)


def _row(side: Side, name: str, broad: int) -> str:
    status = ", ".join(f"{code}\xa0x\xa0{count:,}" for code, count in sorted(side.status.items()))
    size = "-" if side.size is None else f"{side.size:,.0f} B"
    cells = f"{side.requests:>9,} {_ms(side.median):>8} {_ms(side.p99):>8} {size:>11}"
    above, name = (f"  {name}\n", "") if len(name) > broad else ("", name)
    row = f"  {name:<{broad}} {cells}   "
    return above + wrap(row + status, len(row)).rstrip()


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def to_junit(verdict: Verdict) -> str:
    """Return a verdict as JUnit XML: a test case for each claim; unproven is an error."""
    states = [claim.state for claim in verdict.claims]
    suites = ET.Element("testsuites")
    suite = ET.SubElement(
        suites, "testsuite", name=f"dark-launch {verdict.target}", tests=str(len(states)),
        failures=str(states.count("fails")), errors=str(states.count("unproven")), skipped="0",
    )  # fmt: skip
    for claim in verdict.claims:
        case = ET.SubElement(suite, "testcase", classname=claim.id, name=harmless(claim.statement))
        if not claim.holds:
            kind = "failure" if claim.state == "fails" else "error"
            problem = ET.SubElement(case, kind, type=claim.state, message=harmless(claim.detail))
            problem.text = "\n".join(["", *(f"trace {harmless(example)}" for example in claim.examples)])
    ET.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"
