"""How a launch grows from 1 to 128 ranks in one task: until all are up, and until all their values are back; a section of launch.py.

The weakest case of this design: more ranks than any node has cores for, and nothing for them to do. torchrun is timed as far as it takes seconds.
With `--against PYTHON`, the interpreter of another checkout's environment, that checkout's launches are timed in turn with this one's.

    python tests/bench/launch_growth.py [--rounds 5] [--against PYTHON] [--picture FILE]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

WORLD_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
TORCHRUN_SIZES = (1, 2, 4, 8)
SECONDS = 300

HERE, BEFORE, TORCHRUN = "sparkgap", "before", "torchrun"
INK, MUTED, HAIRLINE = "#1f2933", "#64707d", "#d9dee4"
COLORS = {HERE: "#2166ac", BEFORE: "#7a8794", TORCHRUN: "#c0392b"}

Times = tuple[float, float]
"""Seconds from the call until the last rank runs its first line, and until all have ended and their values are known."""

Points = dict[str, dict[int, list[Times]]]

SCRIPT = "import sys, time, os; open(os.path.join(sys.argv[1], os.environ['RANK']), 'w').write(str(time.time()))"


def serve() -> None:
    """In a process of its own, for each checkout: a server, and a launch for each number that is asked for."""
    import warnings

    warnings.simplefilter("ignore")
    from pyspark.sql import SparkSession
    from sparkgap import TorchDistributor
    from sparkgap_server.local import LocalServer

    def first_line() -> float:
        import time

        return time.time()

    with LocalServer("local[8]", start_timeout=120) as server:
        spark = SparkSession.builder.remote(server.url).create()
        print("ready", flush=True)
        for line in sys.stdin:
            called = time.time()
            firsts = TorchDistributor(int(line), use_gpu=False, spark=spark, results="all").run(first_line)
            print(max(firsts) - called, time.time() - called, flush=True)
        spark.stop()


@contextmanager
def checkout(python: str) -> Iterator[Callable[[int], Times]]:
    """Launches by the sparkgap of another process's environment."""
    process = subprocess.Popen(
        [python, __file__, "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def launch(ranks: int) -> Times:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{ranks}\n")
        process.stdin.flush()
        up, back = process.stdout.readline().split()
        return float(up), float(back)

    try:
        assert process.stdout.readline() == "ready\n", f"{python} has started no server"
        yield launch
    finally:
        process.stdin.close()
        process.wait(60)


def torchrun(ranks: int) -> Times:
    """A new torchrun, whose ranks do the same."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(SCRIPT)
        answers = Path(folder, "answers")
        answers.mkdir()
        command = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            str(script),
            str(answers),
        ]
        called = time.time()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, timeout=SECONDS)
        back = time.time()
        return max(float(each.read_text()) for each in answers.iterdir()) - called, back - called


def growth(rounds: int, against: str | None, picture: Path) -> Points:
    """Time every size in turn, print a table and draw it."""
    with ExitStack() as cleanup:
        ways = {HERE: cleanup.enter_context(checkout(sys.executable))}
        if against is not None:
            ways[BEFORE] = cleanup.enter_context(checkout(against))
        ways[TORCHRUN] = torchrun
        for way in ways.values():
            way(2)  # the first of each is another matter
        points: Points = {name: {} for name in ways}
        print(f"\n{'ranks':>6}" + "".join(f"{name + ': all up':>20}{'all back':>12}{'ratio':>8}" for name in ways))
        for size in WORLD_SIZES:
            found: dict[str, list[Times]] = {name: [] for name in ways if name != TORCHRUN or size in TORCHRUN_SIZES}
            for _ in range(rounds):
                for name, times in found.items():
                    times.append(ways[name](size))
            for name, times in found.items():
                points[name][size] = times
            print(f"{size:>6}" + "".join(_cells(found[name], found[HERE]) for name in found), flush=True)
    draw(points, picture)
    return points


def _cells(times: list[Times], ours: list[Times]) -> str:
    up, back = medians(times)
    return f"{up:>18.3f} s{back:>10.3f} s{back / medians(ours)[1]:>8.1f}"


def medians(times: list[Times]) -> Times:
    up, back = (statistics.median(column) for column in zip(*times, strict=True))
    return up, back


def draw(points: Points, picture: Path) -> None:
    """One panel: the time until all values are back, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.6), dpi=150, facecolor="white")
    figure.text(0.09, 0.92, "Seconds until all ranks are back, by their number", size=14, weight="bold", color=INK)
    figure.text(0.09, 0.86, "ranks of one task that return at once, two cores", size=10, color=MUTED)
    axes = figure.add_axes((0.09, 0.11, 0.76, 0.68))
    for name, found in points.items():
        sizes = list(found)
        seconds = [medians(found[size])[1] for size in sizes]
        axes.plot(sizes, seconds, color=COLORS[name], linewidth=2, marker="o", markersize=5)
        axes.annotate(
            f"  {name}",
            (sizes[-1], seconds[-1]),
            color=COLORS[name],
            size=11,
            weight="bold",
            va="center",
            annotation_clip=False,
        )
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(WORLD_SIZES, [str(size) for size in WORLD_SIZES])
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_yticks([tick for tick in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if low < tick < high])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g} s")
    axes.yaxis.grid(True, color=HAIRLINE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10, labelcolor=MUTED, length=0)
    axes.spines[["left", "top", "right"]].set_visible(False)
    axes.spines["bottom"].set_color(HAIRLINE)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", metavar="PYTHON", help="of another checkout's environment")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_name("launch.png"), metavar="FILE")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
    else:
        growth(options.rounds, options.against, options.picture)


if __name__ == "__main__":
    main()
