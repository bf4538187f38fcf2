"""Compare the results of two runs of the benchmarks, and keep results for later comparisons.

    python benchmarks/recovery.py --suite reference --activation g
    python benchmarks/compare.py --keep 0.4            # into benchmarks/history/0.4.json
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


def kept_of(results):
    """Suite: task: its verdicts and seconds, from a folder of JSON lines."""
    suites = {}
    for path in sorted(results.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        suites[path.stem] = {
            row["name"]: {"seconds": round(row["seconds"], 2)}
            | {key: row[key] for key in VERDICTS if key in row}
            for row in rows
            if "seconds" in row and "name" in row
        }
    return {suite: tasks for suite, tasks in suites.items() if tasks}


def load(name):
    if name == RESULTS.name:
        return kept_of(RESULTS)
    path = HISTORY / f"{name}.json"
    if not path.exists():
        kept = ", ".join(sorted(p.stem for p in HISTORY.glob("*.json"))) or "nothing"
        raise SystemExit(f"no history {name!r} in {HISTORY}; kept are: {kept}")
    return json.loads(path.read_text())


def keep(name):
    """Write the present results into a history, in the place of older ones of the same tasks."""
    path = HISTORY / f"{name}.json"
    suites = json.loads(path.read_text()) if path.exists() else {}
    for suite, tasks in kept_of(RESULTS).items():
        suites[suite] = suites.get(suite, {}) | tasks
    path.parent.mkdir(exist_ok=True)
    tasks = {
        suite: ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        for suite, rows in suites.items()
    }
    lines = ",\n".join(f" {json.dumps(suite)}: {{\n{rows}\n }}" for suite, rows in tasks.items())
    path.write_text(f"{{\n{lines}\n}}\n")
    print(f"{path}: {sum(map(len, suites.values()))} tasks of {len(suites)} suites")


def compare_suite(suite, before, after, tolerance):
    """Print how a suite changed; whether it got worse."""
    names = sorted(before.keys() & after.keys())
    if not names:
        return False
    old, new = (np.array([rows[name]["seconds"] for name in names]) for rows in (before, after))
    ratios = new / old
    mean_ratio = float(np.exp(np.mean(np.log(ratios))))
    lost = [
        f"{name}: {verdict} no more"
        for name in names
        for verdict in VERDICTS
        if before[name].get(verdict) and not after[name].get(verdict)
    ]
    found = sum(
        not before[name].get(verdict, True) and after[name].get(verdict, False)
        for name in names
        for verdict in VERDICTS
    )
    print(
        f"{suite:36s} {len(names):5d} {np.median(old):7.1f} {np.median(new):7.1f} {old.max():8.1f} "
        f"{new.max():8.1f} {mean_ratio:6.2f} {len(lost):5d} {found:6d}"
    )
    for line in lost:
        print(f"    {line}")
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
