"""`memcluster simulate`: the whole cluster in one process, from one seed; and what became of a run that failed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from memcluster.client.console import EXIT_ERROR, EXIT_USAGE, PATH, Failure
from memcluster.node import topology as topologies

if TYPE_CHECKING:
    from memcluster.simulator.many import Sum
    from memcluster.simulator.plan import Plan, Wish
    from memcluster.simulator.run import Outcome

KINDS = ("kill", "pause", "partition", "slow", "clock", "full")
TOLD = 40
"""Operations of a history that are shown, at most: the last ones."""


def _seeds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> range | None:
    if text is None:
        return None
    first, dots, last = text.partition("..")
    if not (dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise click.BadParameter(f"{text!r} is not A..B, two whole numbers, the smaller first")
    return range(int(first), int(last) + 1)


def _faults(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[str, ...]:
    found = tuple(filter(None, text.split(",")))
    if unknown := [kind for kind in found if kind not in KINDS]:
        raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(KINDS)}")
    return found


@click.command()
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="One run.")
@click.option("--seeds", metavar="A..B", callback=_seeds, help="All runs from seed A to seed B.")
@click.option("--topology", type=click.Choice(topologies.names()), help="[default: any, by the seed]")
@click.option("--layout", type=click.Choice(["linear", "stripe"]), help="[default: any, by the seed]")
@click.option("--servers", type=click.IntRange(1, 16), default=3, show_default=True, help="That own memory.")
@click.option("--clients", type=click.IntRange(1, 64), default=3, show_default=True, help="At a time.")
@click.option("--requests", type=click.IntRange(1), default=60, show_default=True, help="Of all clients of a run.")
@click.option("--faults", metavar="KINDS", callback=_faults, default=",".join(KINDS), show_default=True,
              help="What is broken; '' is nothing.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Runs at a time, with --seeds.")
@click.option("--replay", "kept", metavar="FILE", type=PATH, help="Run what an earlier run that failed has written, "
              "and show each step.")  # fmt: skip
@click.option("--scenario", metavar="FILE", type=PATH, help="Carry out what the file tells, and draw it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def simulate(
    seed: int,
    seeds: range | None,
    topology: str | None,
    layout: str | None,
    servers: int,
    clients: int,
    requests: int,
    faults: tuple[str, ...],
    jobs: int,
    kept: Path | None,
    scenario: Path | None,
    as_json: bool,
) -> int:
    """Run the nodes' own code in a simulated world, and hold what clients see against what the README promises.

    Everything follows from a seed: the requests, what is broken when, and in what order all processes run. A run that
    fails is made smaller and written to files, here: its plan for --replay, its log, and its timeline. A scenario
    leaves its picture, its log and its timeline.
    """
    from memcluster.simulator.many import Sum, run_seeds
    from memcluster.simulator.plan import Wish, make_plan
    from memcluster.simulator.run import simulate as carry_out

    wish = Wish(topology or "", layout or "", servers, clients, requests, faults)
    began = time.monotonic()
    if scenario is not None:
        return _play(scenario, seed, as_json=as_json)
    if kept is not None:
        return _show(carry_out(_read(kept)), as_json=as_json, steps=True)
    if seeds is None:
        plan = make_plan(seed, wish)
        outcome = carry_out(plan)
        code = _show(outcome, as_json=as_json, steps=False)
        if code:
            _explain(seed, wish, as_json=as_json)
        return code
    total = Sum()
    for result in run_seeds(seeds, wish, jobs):
        total.add(result)
        if result.broken and not as_json:
            click.echo(f"seed {result.seed}, {result.topology}: {result.broken[0]}")
    _show_sum(total, time.monotonic() - began, as_json=as_json)
    if total.failed:
        _explain(min(result.seed for result in total.failed), wish, as_json=as_json)
    return EXIT_ERROR if total.failed else 0


def _read(path: Path) -> Plan:
    from memcluster.simulator.plan import Plan

    try:
        return Plan.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(f"{path} is not the plan of a run: {error}") from error
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error


def _play(path: Path, seed: int, *, as_json: bool) -> int:
    from memcluster.simulator.picture import draw
    from memcluster.simulator.play import play
    from memcluster.simulator.scenario import ScenarioError, read

    try:
        scenario = read(path)
    except ScenarioError as error:
        raise Failure(str(error), EXIT_USAGE, prefix="") from error
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}") from error
    played = play(scenario, seed)
    paths = _write(played.outcome, path.stem, picture=draw(played))
    if as_json:
        return _show(played.outcome, as_json=True, steps=False)
    click.echo(f"{scenario.title}\n\n{scenario.story}\n")
    for step, came in zip(scenario.steps, played.came, strict=False):
        click.echo(f"{came / 1e6:12.6f} ms  {step.text}")
    code = _show(played.outcome, as_json=False, steps=False)
    if scenario.question and not code:
        click.echo(f"\n{scenario.question}")
    click.echo(f"written: {', '.join(map(str, paths))}")
    return code


def _show(outcome: Outcome, *, as_json: bool, steps: bool) -> int:
    if as_json:
        click.echo(json.dumps(_document(outcome), indent=2))
        return EXIT_ERROR if outcome.broken else 0
    if steps:
        click.echo("\n".join(map(_time, outcome.trace)))
    plan, shape = outcome.plan, outcome.plan.shape
    layout = f"stripes of {shape.stripe}" if shape.stripe else "linear"
    acknowledged = sum(operation.acknowledged for operation in outcome.history)
    click.echo(f"seed {plan.seed}: {shape.topology}, {layout}, {shape.fan_out}, {len(shape.sizes)} servers with memory")
    for fault in plan.faults:
        click.echo(f"  {fault}")
    click.echo(
        f"  {len(outcome.history)} requests, {acknowledged} acknowledged, in {outcome.seconds:.3f} s of virtual time; "
        f"trace {outcome.digest}"
    )
    for sentence in outcome.broken:
        click.echo(f"BROKEN {sentence}")
    click.echo("no rule is broken" if not outcome.broken else f"{len(outcome.broken)} findings")
    return EXIT_ERROR if outcome.broken else 0


def _time(line: str) -> str:
    nanoseconds, _, what = line.partition(" ")
    return f"{int(nanoseconds) / 1e6:12.6f} ms  {what}"


def _document(outcome: Outcome) -> dict[str, Any]:
    return {
        "seed": outcome.plan.seed,
        "shape": asdict(outcome.plan.shape),
        "digest": outcome.digest,
        "requests": len(outcome.history),
        "acknowledged": sum(operation.acknowledged for operation in outcome.history),
        "faults": dict(outcome.faults),
        "seconds": outcome.seconds,
        "broken": outcome.broken,
    }


def _show_sum(total: Sum, seconds: float, *, as_json: bool) -> None:
    if as_json:
        document = {
            "seeds": total.runs,
            "requests": total.requests,
            "acknowledged": total.acknowledged,
            "faults": dict(total.faults),
            "virtual_seconds": total.seconds,
            "seconds": seconds,
            "failed": [{"seed": one.seed, "topology": one.topology, "broken": one.broken} for one in total.failed],
        }
        click.echo(json.dumps(document, indent=2))
        return
    faults = ", ".join(f"{count} {kind}" for kind, count in sorted(total.faults.items())) or "none"
    click.echo(
        f"{total.runs} seeds in {seconds:.1f} s: {total.requests} requests, {total.acknowledged} acknowledged, in "
        f"{total.seconds:.1f} s of virtual time; faults: {faults}; {len(total.failed)} runs broke a rule"
    )


def _explain(seed: int, wish: Wish, *, as_json: bool) -> None:
    """The story of a failure: the smallest plan that fails so, and what happened."""
    from memcluster.simulator.plan import make_plan
    from memcluster.simulator.run import simulate as carry_out
    from memcluster.simulator.shrink import shrink

    plan = make_plan(seed, wish)
    rule = carry_out(plan).rule
    small = shrink(plan, lambda smaller: carry_out(smaller).rule == rule)
    outcome = carry_out(small)
    paths = _write(outcome, f"simulate-{seed}", plan=True)
    if as_json:
        return
    click.echo(f"\nThe smallest run that breaks this rule ({plan.requests} requests and {len(plan.faults)} faults at "
               f"first, {small.requests} and {len(small.faults)} now):")  # fmt: skip
    _show(outcome, as_json=False, steps=False)
    click.echo("\n".join(_history(outcome)))
    click.echo(f"written: {', '.join(map(str, paths))}\nagain: memcluster simulate --replay {paths[0]}")


def _history(outcome: Outcome) -> list[str]:
    """The last operations, and what was broken, in the order of their beginnings."""
    from memcluster.simulator.world import BEGINNING

    last = sorted(outcome.history, key=lambda operation: operation.invoked)[-TOLD:]
    lines = [
        (operation.invoked - BEGINNING,
         f"{operation.client} {operation.kind} {operation.length} bytes at {operation.offset:#x}: {operation.outcome} "
         f"after {(operation.returned - operation.invoked) / 1e6:.3f} ms {operation.why}".rstrip())
        for operation in last
    ]  # fmt: skip
    first = lines[0][0] if lines else 0
    for line in outcome.trace:
        moment, _, what = line.partition(" ")
        if int(moment) >= first and (what.startswith("fault:") or " ends: " in what):
            lines.append((int(moment), what))
    return [f"{at / 1e6:12.6f} ms  {what}" for at, what in sorted(lines)]


def _write(outcome: Outcome, name: str, *, plan: bool = False, picture: str = "") -> Sequence[Path]:
    from memcluster.launcher.log.timeline import make_page
    from memcluster.node.log.text import LogEntry, format_text

    entries = [LogEntry(server, record) for server, record in outcome.log]
    shape = outcome.plan.shape
    files = {
        **({f"{name}.json": json.dumps(outcome.plan.to_json(), indent=1) + "\n"} if plan else {}),
        **({f"{name}.svg": picture} if picture else {}),
        f"{name}.log": "".join(format_text(entry) + "\n" for entry in entries),
        f"{name}.html": make_page(name, shape.topology, entries, shape.fan_out),
    }
    for path, content in files.items():
        try:
            Path(path).write_text(content)
        except OSError as error:
            raise Failure(f"{path}: {error.strerror}") from error
    return [Path(path) for path in files]
