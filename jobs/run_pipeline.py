"""`pmm run` for a cluster: a recipe's stages, or one of them with `--only STAGE`.

python jobs/run_pipeline.py --recipe FILE [--only STAGE] [other options of `pmm run`]

The same line after `ray job submit --working-dir . --` or `python jobs/submit.py --` runs on a
cluster; see cluster/README.md. Exit codes are those of `pmm run`.
"""

import argparse

from pmm_ray.cli.app import app

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        allow_abbrev=False, epilog="All other options are those of `pmm run`; see `pmm run --help`."
    )
    parser.add_argument("--recipe", required=True, metavar="FILE", help="a YAML file of recipes/")
    given, options = parser.parse_known_args()
    app(["run", given.recipe, *options])
