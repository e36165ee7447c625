"""Submit a job, follow its log, end with its exit code (0, 1, 2, 3, 75; 130 if it was stopped).

python jobs/submit.py [options] -- python jobs/run_pipeline.py --recipe FILE --run-dir URI ...

The cluster is the one of RAY_API_SERVER_ADDRESS or RAY_ADDRESS; without one the command runs here.
"""

import argparse
import sys

from pmm_ray.runtime.cluster.submit import submit
from pmm_ray.runtime.core.errors import EXIT_CANNOT_RUN, CannotRunError
from pmm_ray.runtime.core.progress import lenient_stdout

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--working-dir", default=".", help="folder sent to every node")
    parser.add_argument("--submission-id", help="the job's name; a known one is followed")
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--no-wait", action="store_true", help="end once it is submitted")
    parser.add_argument("command", nargs="+", help="after --: the program and its arguments")
    given = parser.parse_args()
    for pair in given.env:
        if "=" not in pair:
            parser.error(f"--env {pair}: write it as KEY=VALUE")
    lenient_stdout()
    try:
        code = submit(
            given.command,
            working_dir=given.working_dir,
            submission_id=given.submission_id,
            env=dict(pair.split("=", 1) for pair in given.env),
            wait=not given.no_wait,
        )
    except CannotRunError as error:
        print(f"pmm: {error}", file=sys.stderr)
        code = EXIT_CANNOT_RUN
    sys.exit(code)
