"""The results of `memcluster compare` for people: a table with a verdict, and a picture. Text only; no decisions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

from memcluster.launcher.output import format_bytes
from memcluster.launcher.table import folded
from memcluster.launcher.table import table as columns

Results = Sequence[dict[str, Any]]
HEADS = ("", "IOPS", "MB/s", "p50 ms", "p99 ms", "IN", "OUT", "MSG IN", "MSG OUT", "CPU µs")
COLOURS = ("#0969da", "#1a7f37", "#8250df", "#bc4c00", "#9a6700", "#57606a")
IMPORTANCE = ("IOPS", "p50 ms", "MB/s", "p99 ms", "CPU µs", "OUT", "IN", "MSG OUT", "MSG IN")
ALIKE = 0.05
"""Rates that differ by less say nothing: one run differs from the next by as much."""
WIDTH, NAMES, ROW, GAP = 760, 210, 20, 42


def case_name(case: dict[str, Any]) -> str:
    return ", ".join(word for word in (case["topology"], case["fan_out"], case["links"]) if word)


def table(results: Results, width: int = 0) -> str:
    """A block for each workload, in it each case, below it its processes: bytes and messages that each took in and
    gave out, and its processor time, per request of the clients; at the end what that says. Of at most `width` columns,
    if that is possible."""
    lines: list[str] = []
    for index, first in enumerate(results[0]["workloads"]):
        rows: list[tuple[str, ...]] = [HEADS]
        for case in results:
            found = case["workloads"][index]
            rows.append(
                (
                    case_name(case),
                    f"{found['iops']:,.0f}",
                    f"{found['bytes_per_second'] / 1e6:,.0f}",
                    f"{found['latency_us']['p50'] / 1000:.3f}",
                    f"{found['latency_us']['p99'] / 1000:.3f}",
                    *_work(found["processes"]),
                )
            )
            rows += [
                (f"  {process['name']} ({process['role']})", "", "", "", "", *_work([process]))
                for process in found["processes"]
            ]
        lines.append(folded(f"{first['workload']}; bytes, messages and CPU time per request", width))
        lines += [*columns(rows, right=HEADS[1:], importance=IMPORTANCE, width=width), ""]
    lines += [folded(sentence, width) for sentence in advice(results)]
    return "\n".join(lines).rstrip()


def advice(results: Results) -> list[str]:
    """A sentence a workload: who is fastest, and how much that is; none where nothing is compared."""
    if len(results) < 2:
        return []
    return [f"{first['workload']}: {_advice(results, index)}" for index, first in enumerate(results[0]["workloads"])]


def _advice(results: Results, index: int) -> str:
    rates = {case_name(case): case["workloads"][index]["iops"] for case in results}
    order = sorted(rates, key=lambda name: -rates[name])
    best, worst = rates[order[0]], rates[order[-1]]
    if worst >= best * (1 - ALIKE):
        return f"it makes no difference; all are within {ALIKE:.0%} of one another.".replace("%", " %")
    leaders = [name for name in order if rates[name] >= best * (1 - ALIKE)]
    are = "is" if len(leaders) == 1 else "are"
    how_much = f"{best / worst:.2g} times as fast as {order[-1]}" if worst else f"{order[-1]} answered nothing"
    return f"{' and '.join(leaders)} {are} fastest, {how_much}."


def _work(processes: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """What processes do for a request, added up."""
    total = {
        key: sum(process[key] for process in processes)
        for key in ("received", "sent", "messages_in", "messages_out", "cpu_us")
    }
    return (
        format_bytes(round(total["received"])),
        format_bytes(round(total["sent"])),
        f"{total['messages_in']:.2f}",
        f"{total['messages_out']:.2f}",
        f"{total['cpu_us']:.1f}",
    )


def picture(results: Results) -> str:
    """An SVG: for each workload a bar a case, its throughput; the colour is the topology's."""
    topologies = list(dict.fromkeys(case["topology"] for case in results))
    parts: list[str] = []
    y = GAP
    for index, first in enumerate(results[0]["workloads"]):
        rates = [case["workloads"][index]["iops"] for case in results]
        large = first["block"] >= 1 << 16
        parts.append(f'<text class="title" x="12" y="{y}">{escape(first["workload"])}</text>')
        y += 10
        for case, rate in zip(results, rates, strict=True):
            length = (WIDTH - NAMES - 130) * rate / max(rates)
            text = f"{rate * first['block'] / 1e6:,.0f} MB/s" if large else f"{rate:,.0f} requests/s"
            colour = COLOURS[topologies.index(case["topology"]) % len(COLOURS)]
            parts.append(
                f'<text x="{NAMES - 8}" y="{y + 14}" text-anchor="end">{escape(case_name(case))}</text>'
                f'<rect x="{NAMES}" y="{y + 3}" width="{length:.1f}" height="{ROW - 6}" fill="{colour}"/>'
                f'<text x="{NAMES + length + 6:.1f}" y="{y + 14}">{text}</text>'
            )
            y += ROW
        y += GAP
    style = "text { font: 12px system-ui, sans-serif; fill: #24292f; } .title { font-weight: 600; font-size: 14px; }"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#ffffff"/>{"".join(parts)}</svg>\n'
    )
