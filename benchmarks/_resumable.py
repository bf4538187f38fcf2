"""Run many tasks in parallel and keep every result, so that an interrupted run can continue."""

import json
from pathlib import Path

from joblib import Parallel

RESULTS = Path(__file__).parent / "results"


def run_resumable(tasks, path, jobs):
    """Yield the results of named joblib tasks, those kept in a JSON lines file first.

    Each result is a dict with the task's ``name`` and is appended to the file as it arrives.
    """
    done = {}
    if path.exists():
        done = {r["name"]: r for r in map(json.loads, path.read_text().splitlines())}
    yield from (done[name] for name in tasks if name in done)
    todo = [task for name, task in tasks.items() if name not in done]
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        for result in Parallel(n_jobs=jobs, return_as="generator_unordered")(todo):
            file.write(json.dumps(result) + "\n")
            file.flush()
            yield result
