"""What ``explain`` says, as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from celery_resilience.cli.text import columns, screen, span, wrapped
from celery_resilience.messages.redact import printable
from celery_resilience.operate.explain import count

__all__ = ["as_text", "by_default"]

#: From so many seconds on it is mentioned that callers wait.
_WORTH_SAYING = 60.0
#: So many waits are listed one by one.
_FEW = 5

#: What the default policy makes of a failure, where no number belongs to it.
_BY_DEFAULT = {
    "control_flow": "nothing: it is control flow, not a failure",
    "discarded": "dropped and counted: neither a retry nor a dead letter",
    "snoozed": "run again after the delay that it names; that uses up no retry",
    "dead_letter": "a dead letter at once",
    "expected": "a stored failure, no retry and no dead letter",
}


def by_default(told: dict[str, Any]) -> str:
    """What the default policy makes of a failure: *told* is ``explain``'s description of that."""
    if told["is"] in _BY_DEFAULT:
        return _BY_DEFAULT[told["is"]]
    if told["is"] == "retries":
        waits = [span(wait) for wait in told["waits"]]
        number = count(len(waits), "retry", "retries")
        if len(waits) <= _FEW:
            return f"{number}, after up to {', '.join(waits)}; then a dead letter"
        return (
            f"{number}, after up to {', '.join(waits[:3])} ... {waits[-1]}: "
            f"{span(told['expected'])} in all on average; then a dead letter"
        )
    at_most = told["max_elapsed"]
    deadline = "for ever" if at_most is None else f"for {span(at_most)} at most"
    if told["is"] == "retried":
        return f"retried {deadline}"
    return (
        "retried after the wait that the server asks for, and never sooner than "
        f"{span(told['least_delay'])}; that uses up no retry, and goes on {deadline}"
    )


def as_text(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """*told*, made by ``operate.explain``, as blocks of text, each under a title."""
    yield "", printable(told["name"])
    if told["is"] == "exception":
        at_most = told["max_retries"]
        asked = told["retry_after"]
        yield (
            "",
            _facts(
                {
                    "Verdict": told["verdict"],
                    "Rule": told["rule"],
                    "Category": told["category"],
                    "Hint": told["hint"],
                    "Server asks": "" if asked is None else f"for {span(asked)}",
                    "Retries": "" if at_most is None else f"{at_most} at most, whatever the policy",
                    "By default": told["by_default"],
                }
            ),
        )
        return
    if "rules" not in told:
        yield "", _facts({"Decides": told["decides"], "To change": told["to_change_that"]})
        return
    yield (
        "",
        _facts(
            {
                "Decides": told["decides"],
                "To change": told["to_change_that"] or "",
                **_said_limits(told),
                "Expected": ", ".join(told["expected"])
                and f"{', '.join(told['expected'])} (throws): neither a retry nor a dead letter",
                "Dead letters": f"in {told['dead_letter_queue']}",
                "Acks": "" if told["acks_late"] else "early: what a dying worker runs is lost",
            }
        ),
    )
    if told["rules"]:
        yield "Rules: the first that matches decides", _rules(told)
    for one in told["schedules"]:
        yield f"Schedule: {printable(one['for'])}", _schedule_text(one, told["tasks"])


def _said_limits(told: dict[str, Any]) -> dict[str, str]:
    if told["unmatched"] == "give_up":
        return {}
    limits, of_unknown = _said(told["limits"]), _said(told["limits_of_unknown"])
    if limits == of_unknown:
        return {"Limits": limits}
    return {"Transient": limits, "Unknown": of_unknown}


def _facts(facts: dict[str, str]) -> str:
    return "\n".join(
        wrapped(f"{name:<13} {printable(fact)}", screen(), "  ", " " * 16)
        for name, fact in facts.items()
        if fact
    )


def _rules(told: dict[str, Any]) -> str:
    lines = []
    for rule in told["rules"]:
        treatment = {"retry": "retry", "dead_letter": "dead letter", "discard": "discard"}
        does = treatment[rule["treatment"]]
        if "limits" in rule:
            does += f": {_said(rule['limits'])}"
        if "queue" in rule:
            does += f" in {rule['queue']}"
        if "why" in rule:
            does += f": {rule['why']}"
        if "except_for" in rule:
            does += f"; not {', '.join(rule['except_for'])}"
        lines.append((rule["rule"], does))
    if told["unmatched"] == "classify":
        lines.append(("else", "the classifier decides, under the limits above"))
    else:
        lines.append(("else", "dead letter: no retry is asked for"))
    return "\n".join(
        wrapped(f"{printable(title)}: {printable(does)}", screen(), "  ", "      ")
        for title, does in lines
    )


def _said(limits: dict[str, Any]) -> str:
    retries = limits["max_retries"]
    if limits["counted"] is False:
        said = "uncounted retries"
    elif retries is None:
        said = "any number of retries"
    else:
        attempts = count(retries + 1, "attempt", "attempts")
        said = f"{count(retries, 'retry', 'retries')} ({attempts})"
    if retries != 0:
        said += f", {_waits(limits)}"
    elapsed = limits["max_elapsed"]
    return said + ("" if elapsed is None else f", within {span(elapsed)}")


def _waits(limits: dict[str, Any]) -> str:
    delay, shape = limits["delay"], limits["shape"]
    if isinstance(delay, str):
        return f"waits of what {delay} says"
    if delay is not None:
        return f"waits of {span(delay)}"
    backoff, most = span(limits["backoff"]), span(limits["backoff_max"])
    said = {
        "exponential": f"waits from {backoff} to {most}, times {limits['factor']:g} each",
        "linear": f"waits from {backoff} to {most}, {backoff} longer each",
        "fixed": f"waits of {backoff}",
    }.get(shape, f"waits of what {shape} says, up to {most}")
    jitter = limits["jitter"]
    if isinstance(jitter, float):
        return f"{said}, ±{jitter:.0%} jitter"
    return f"{said}, {'no' if jitter == 'none' else jitter} jitter"


def _schedule_text(one: dict[str, Any], tasks: int) -> str:
    if not one["retries"]:
        return "  no retry"
    rows = [["RETRY", "CEILING", "P50", "P95", "WORST", "WORST IN ALL", "PEAK"]]
    for retry in one["retries"]:
        times = [retry[n] for n in ("ceiling", "p50", "p95", "worst", "worst_so_far")]
        rows.append(
            [
                str(retry["retry"]),
                *("for ever" if t is None else span(t) for t in times),
                f"{retry['peak_per_second']:,.{0 if retry['peak_per_second'] >= 10 else 1}f}/s",
            ]
        )
    text = "\n".join("  " + line for line in columns(rows, screen() - 2, numbers=range(7)))
    notes = []
    limit = one["max_retries"]
    if limit is None:
        notes.append("There is no limit on the retries: these are the first.")
    elif limit > len(one["retries"]):
        notes.append(f"These are the first of {limit:,} retries.")
    if one["delay_is_a_function"]:
        notes.append("Its delay= answers for each exception; the backoff stands in for it here.")
    if horizon := one["horizon"]:
        sure, nearly, expected, worst = (
            "for ever" if horizon[n] is None else span(horizon[n])
            for n in ("certain", "nearly_certain", "expected", "worst")
        )
        notes.append(
            f"Horizon: survives an outage of {expected}."
            if sure == worst
            else f"Horizon: survives an outage of {expected} on average ({nearly} in 99 of 100 "
            f"cases, {sure} for certain, never more than {worst})."
        )
        if horizon["worst"] is None or horizon["worst"] >= _WORTH_SAYING:
            notes.append("Whatever waits for the result (.get(), a chord) may wait as long.")
    peak = max(retry["peak_per_second"] for retry in one["retries"])
    notes.append(
        f"Peak: when {tasks:,} tasks fail at once, {peak:,.0f} come back in the busiest second."
    )
    return text + "\n" + "\n".join(wrapped(note, screen(), "  ") for note in notes)
