"""How long ranks take from the client's call to the first line of their code, and until the value of an all-reduce is back.

Sections, all of them without --only; the ways of each in turn, on this machine, on a server that keeps its runs on disk. The machine is
shared, so the ratios count, not the seconds:

    launch   2 ranks, function and script: sparkgap in a session that has run before and in a fresh one, pyspark's TorchDistributor, torchrun
    ranks    1, 2, 4 and 8 ranks: sparkgap and torchrun, with --peers-all pyspark too
    growth   1 to 128 ranks of one task that return at once, against torchrun as far as it goes; draws launch.png
    cold     the first run on a server, and in a session of pyspark, that have just started
    report   what a call of sparkgap.training.report costs in a rank
    logs     how fast ranks print, and what of it the client sees

    python tests/bench/launch.py [--rounds 5] [--only launch] [--peers-all] [--against PYTHON] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import launch_growth
import launch_output
from launch_ways import (
    MOST_ROUNDS,
    Launch,
    Times,
    pyspark,
    server,
    session,
    sparkgap,
    sparkgap_in_fresh_session,
    sparkgap_script,
    torchrun,
)

RANKS = 2
WORLD_SIZES = (1, 2, 4, 8)
FUNCTION, SCRIPT, TORCHRUN, PYSPARK = "sparkgap", "sparkgap, script", "torchrun", "pyspark TorchDistributor"

Rounds = dict[str, list[Times]]


def launch(options: argparse.Namespace) -> Rounds:
    with ExitStack() as cleanup:
        started = cleanup.enter_context(server())
        spark = cleanup.enter_context(session(started.url))
        peer = cleanup.enter_context(pyspark())
        ways = {
            FUNCTION: sparkgap(spark, RANKS),
            "sparkgap, fresh session": sparkgap_in_fresh_session(started.url, RANKS),
            SCRIPT: sparkgap_script(spark, RANKS),
            PYSPARK: peer.function(RANKS),
            f"{PYSPARK}, script": peer.script(RANKS),
            TORCHRUN: torchrun(RANKS),
        }
        for way in (FUNCTION, PYSPARK):
            ways[way]()  # the first run ever of each; the figures are for the second one onward
        found = in_turn("launch", ways, options.rounds)
    table(f"{RANKS} ranks, gloo all-reduce, median of {options.rounds} rounds", found)
    return found


def ranks(options: argparse.Namespace) -> dict[str, Rounds]:
    found = {}
    rounds = min(options.rounds, MOST_ROUNDS)
    with ExitStack() as cleanup:
        started = cleanup.enter_context(server())
        spark = cleanup.enter_context(session(started.url))
        peer = cleanup.enter_context(pyspark()) if options.peers_all else None
        sparkgap(spark, RANKS)()
        for count in WORLD_SIZES:
            ways = {
                FUNCTION: sparkgap(spark, count),
                SCRIPT: sparkgap_script(spark, count),
                TORCHRUN: torchrun(count),
            }
            if peer is not None:
                ways[PYSPARK] = peer.function(count)
            found[str(count)] = in_turn(f"{count} ranks", ways, rounds)
            table(f"{count} ranks, median of {rounds} rounds", found[str(count)])
    return found


def growth(options: argparse.Namespace) -> Any:
    rounds = min(options.rounds, MOST_ROUNDS)
    return launch_growth.growth(rounds, options.against, Path(__file__).with_name("launch.png"))


def cold(options: argparse.Namespace) -> Rounds:
    def ours() -> Times:
        with server() as started, session(started.url) as spark:
            return sparkgap(spark, RANKS)()

    def theirs() -> Times:
        with pyspark() as peer:
            return peer.function(RANKS)()

    rounds = min(options.rounds, MOST_ROUNDS)
    found = in_turn("cold", {FUNCTION: ours, PYSPARK: theirs}, rounds)
    table(f"{RANKS} ranks, the first run after the start, median of {rounds} rounds", found)
    return found


def report(options: argparse.Namespace) -> Any:
    return launch_output.report(options.rounds)


def logs(options: argparse.Namespace) -> Any:
    return launch_output.logs(options.rounds)


SECTIONS = {section.__name__: section for section in (launch, ranks, growth, cold, report, logs)}


def in_turn(what: str, ways: Mapping[str, Launch], rounds: int) -> Rounds:
    found: Rounds = {name: [] for name in ways}
    for number in range(1, rounds + 1):
        for name, way in ways.items():
            found[name].append(way())
        print(f"{what}: round {number} of {rounds}", file=sys.stderr)
    return found


def table(title: str, found: Rounds) -> None:
    """Medians, and how many times sparkgap's each is."""
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)] for name, times in found.items()
    }
    base = medians[FUNCTION]
    print(f"\n{title}\n\n{'':<34}{'first line':>12}{'ratio':>8}{'value back':>13}{'ratio':>8}")
    for name, (first, value) in medians.items():
        print(f"{name:<34}{first:>10.3f} s{first / base[0]:>8.1f}{value:>11.3f} s{value / base[1]:>8.1f}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help=f"all sections but launch have {MOST_ROUNDS} at most")
    parser.add_argument("--only", choices=SECTIONS, action="append", metavar="NAME", help="a section; may be repeated")
    parser.add_argument(
        "--peers-all", action="store_true", help="pyspark in the section ranks too, 10 to 70 s a launch"
    )
    parser.add_argument(
        "--against", metavar="PYTHON", help="of another checkout's environment, timed in the section growth too"
    )
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    results = {name: SECTIONS[name](options) for name in options.only or SECTIONS}
    if options.json is not None:
        options.json.write_text(json.dumps({"rounds": options.rounds, **results}, indent=2))


if __name__ == "__main__":
    main()
