"""Compare the results of two runs of the benchmarks, and keep results for later comparisons.

    python benchmarks/recovery.py --suite reference --activation g
    python benchmarks/compare.py --keep 0.4            # into benchmarks/history/0.4
    ... a change, benchmarks/results deleted, the same run ...
    python benchmarks/compare.py 0.4                   # that history against benchmarks/results
    python benchmarks/compare.py 0.3 0.4

Prints, by suite, how many tasks are in both, their median and longest seconds, the geometric mean
of the ratios of seconds, each task that was right and no longer is, and those that take twice as
long. Seconds compare on one machine, with nothing else beside both runs; verdicts compare
everywhere. The exit status is 1 where a task was lost or a suite is slower by more than
``--tolerance``.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from _resumable import RESULTS

HISTORY = Path(__file__).parent / "history"
VERDICTS = ("exact", "certified", "recovered", "same_sizes", "right_activation")
LEAST_SECONDS = 1.0  # shorter ones say more about the machine


def load(name):
    """Suite: task: its row, of a history or of the present results."""
    folder = RESULTS if name == RESULTS.name else HISTORY / name
    suites = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = map(json.loads, path.read_text().splitlines())
        suites[path.stem] = {row["name"]: row for row in rows if {"name", "seconds"} <= row.keys()}
    if not any(suites.values()):
        kept = ", ".join(sorted(path.name for path in HISTORY.glob("*"))) or "nothing"
        raise SystemExit(f"no results in {folder}: run benchmarks first. Kept are: {kept}")
    return suites


def keep(name):
    """Write verdicts and seconds of the present results into a history."""
    folder = HISTORY / name
    folder.mkdir(parents=True, exist_ok=True)
    for suite, tasks in load(RESULTS.name).items():
        rows = [
            {"name": row["name"], "seconds": round(row["seconds"], 2)}
            | {verdict: row[verdict] for verdict in VERDICTS if verdict in row}
            for row in tasks.values()
        ]
        if rows:
            (folder / f"{suite}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
    print(f"kept in {folder}")


def only_right_in(one, other, names):
    """The tasks and verdicts that one run got right, and the other did not."""
    return [
        f"{name}: {verdict}"
        for name in names
        for verdict in VERDICTS
        if one[name].get(verdict) and other[name].get(verdict) is False
    ]


def compare_suite(suite, before, after, tolerance):
    """Print how a suite changed; whether it got worse."""
    names = sorted(before.keys() & after.keys())
    if not names:
        return False
    old, new = (np.array([rows[name]["seconds"] for name in names]) for rows in (before, after))
    ratios = new / old
    mean_ratio = float(np.exp(np.mean(np.log(ratios))))
    lost, found = only_right_in(before, after, names), only_right_in(after, before, names)
    print(
        f"{suite:36s} {len(names):5d} {np.median(old):7.1f} {np.median(new):7.1f} {old.max():8.1f} "
        f"{new.max():8.1f} {mean_ratio:6.2f} {len(lost):5d} {len(found):6d}"
    )
    for line in lost:
        print(f"    {line} no more")
    for i in np.argsort(-ratios)[:5]:
        if ratios[i] > 2.0 and new[i] > LEAST_SECONDS:
            print(f"    {names[i]}: {old[i]:.1f} s, now {new[i]:.1f} s")
    return bool(lost) or mean_ratio > tolerance


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", nargs="?", help="name of a history")
    parser.add_argument("after", nargs="?", default=RESULTS.name, help="another, or results")
    parser.add_argument("--keep", metavar="NAME", help="keep benchmarks/results as a history")
    parser.add_argument("--tolerance", type=float, default=1.25, help="of a suite's mean ratio")
    arguments = parser.parse_args()
    if (arguments.before is None) == (arguments.keep is None):
        parser.error("give the name of a history to compare with, or --keep")
    return arguments


def main():
    arguments = parse_arguments()
    if arguments.keep:
        return keep(arguments.keep)
    before, after = load(arguments.before), load(arguments.after)
    if not before.keys() & after.keys():
        raise SystemExit("the two have no suite in common: run the same benchmarks")
    print(f"{'':36s}          median seconds  longest            ratio")
    print(f"{'suite':36s} tasks  before    now   before      now   mean  lost  found")
    worse = [
        compare_suite(suite, before[suite], after[suite], arguments.tolerance)
        for suite in sorted(before.keys() & after.keys())
    ]
    sys.exit(any(worse))


if __name__ == "__main__":
    main()
