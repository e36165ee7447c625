"""`pmm run` for a cluster: a recipe's stages, or one of them with `--only STAGE`.

python jobs/run_pipeline.py --recipe FILE [--only STAGE] [other options of `pmm run`]

The same line after `ray job submit --working-dir . --` or `python jobs/submit.py --` runs on a
cluster; see cluster/README.md. Exit codes are those of `pmm run`.
"""

import argparse

from pmm_ray.cli import main
from pmm_ray.runtime.cluster.submit import stop_own_job
from pmm_ray.runtime.core.errors import EXIT_BUDGET, EXIT_CANNOT_RUN, EXIT_USAGE

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, epilog="All other options are those of `pmm run`; see `pmm run --help`."
    )
    parser.add_argument("--recipe", required=True, metavar="FILE", help="a YAML file of recipes/")
    parser.add_argument(
        "--stop-job",
        action="store_true",
        help="stop the Ray job where another attempt would fail in the same way: KubeRay tries a"
        " job again that failed, whatever its exit code, and leaves a stopped one",
    )
    given, options = parser.parse_known_args()
    try:
        main(["run", given.recipe, *options])
    except SystemExit as end:
        if given.stop_job and end.code in (EXIT_CANNOT_RUN, EXIT_USAGE, EXIT_BUDGET):
            stop_own_job()
        raise
