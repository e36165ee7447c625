"""What `pmm plan` said beside what the run took.

    pmm plan RECIPE --run-dir A && pmm run RECIPE --run-dir B
    python benchmarks/plan.py A/plan.json B

One line per stage that ran: seconds planned, seconds taken, their ratio; and the sums over them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pmm_ray.report.run_data import load_run


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("plan", type=Path, help="plan.json")
    parser.add_argument("run", help="folder of the run")
    options = parser.parse_args()
    planned = {s["stage"]: s for s in json.loads(options.plan.read_text())["stages"]}
    sums = [0.0, 0.0]
    print("stage                     planned s    taken s   ratio")
    for record in load_run(options.run, with_curves=False).stages:
        stage = planned.get(record.stage)
        if record.summary is None or stage is None or not stage["timed"]:
            continue
        pair = (stage["seconds"], record.summary.seconds)
        sums = [total + one for total, one in zip(sums, pair, strict=True)]
        print(f"{record.stage:24} {pair[0]:10.1f} {pair[1]:10.1f} {pair[1] / pair[0]:7.2f}")
    start = planned["start"]["seconds"]
    print(f"{'all, with starting Ray':24} {sums[0] + start:10.1f} {sums[1]:10.1f}", end=" ")
    print(f"{sums[1] / (sums[0] + start):7.2f}")


if __name__ == "__main__":
    main()
