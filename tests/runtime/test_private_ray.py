"""Every private part of Ray that we touch, by name: Ray is pinned to the version that has them."""

from __future__ import annotations

import ast
import importlib
import inspect
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import ray

from pmm_ray.runtime.cluster.submit import JOB_ENVIRONMENT
from pmm_ray.runtime.core.resources import ClusterResources

ROOT = Path(__file__).resolve().parents[2]

MODULES = {
    "ray._private.worker": ("_global_node", "print_to_stdstream"),
    "ray._private.runtime_env.packaging": ("_dir_travel",),
    "ray._private.state": ("state",),
    "ray._private.runtime_env.constants": (JOB_ENVIRONMENT,),
    "ray.data._internal.execution.streaming_executor": ("StreamingExecutor",),
    "ray.data._internal.execution.execution_callback": ("ExecutionCallback",),
}
STATE_ACCESS = "get_draining_nodes"
CALLBACK = ("before_execution_starts", "on_execution_step")
EXECUTOR = ("_backpressure_policies", "_output_node", "_topology")
POLICY = "_concurrency_caps"
"""Of the one that limits tasks."""
ACTOR_POOL = ("_config", "min_size", "max_size")
OPERATOR = (
    "_in_task_output_backpressure",
    "_in_task_submission_backpressure",
    "_task_output_backpressure_policy",
    "_task_submission_backpressure_policy",
    *("input_dependencies", "num_active_tasks", "has_completed", "get_actor_info"),
    "get_autoscaling_actor_pools",
)
METRICS = ("num_outputs_taken", "num_tasks_finished")
STATE = ("total_enqueued_input_blocks",)
WRAPPED = "_base_exc"
"""Of what Ray Train wraps a worker's exception in."""

INSTEAD = "Ray {0} lacks {1}: keep the version of constraints.txt, or mend what uses it"


def lacks(name: str) -> str:
    return INSTEAD.format(version("ray"), name)


@pytest.mark.parametrize("module", MODULES)
def test_modules_have_them(module: str) -> None:
    try:
        found = importlib.import_module(module)
    except ImportError:
        pytest.fail(lacks(module))
    for name in MODULES[module]:
        assert hasattr(found, name), lacks(f"{module}.{name}")


class Same:
    def __call__(self, batch: Any) -> Any:
        return batch


@pytest.mark.usefixtures("pickled_by_value")
def test_a_running_plan_has_them(ray_session: ClusterResources) -> None:
    from ray.data import DataContext
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    for name in CALLBACK:
        assert hasattr(ExecutionCallback, name), lacks(f"ExecutionCallback.{name}")

    class Look(ExecutionCallback):
        missing: list[str] | None = None
        actor_pools = 0

        def on_execution_step(self, executor: Any) -> None:
            missing = [f"StreamingExecutor.{n}" for n in EXECUTOR if not hasattr(executor, n)]
            caps = [getattr(policy, POLICY, {}) for policy in executor._backpressure_policies]
            for operator, state in executor._topology.items():
                pools = operator.get_autoscaling_actor_pools()
                missing += [
                    f"pool.{n}" for pool in pools for n in ACTOR_POOL if not hasattr(pool, n)
                ]
                type(self).actor_pools += len(pools)
                if not any(operator in one for one in caps):
                    missing.append(f"policy.{POLICY}")
                missing += [f"operator.{n}" for n in OPERATOR if not hasattr(operator, n)]
                missing += [f"metrics.{n}" for n in METRICS if not hasattr(operator.metrics, n)]
                missing += [f"state.{n}" for n in STATE if not hasattr(state, n)]
                info = operator.get_actor_info()
                missing += [f"info.{n}" for n in ("pending", "restarting") if not hasattr(info, n)]
            assert executor._output_node[0] in executor._topology
            type(self).missing = missing

    context = DataContext.get_current()
    before = context.custom_execution_callback_classes
    seen: list[list[str] | None] = []
    context.custom_execution_callback_classes = [Look]
    try:
        rows = ray.data.range(2, override_num_blocks=2).map_batches(lambda batch: batch)
        pool = ray.data.ActorPoolStrategy(size=1)
        assert rows.map_batches(Same, compute=pool, num_cpus=0.1).count() == 2
        assert Look.actor_pools
        seen.append(Look.missing)
    finally:
        context.custom_execution_callback_classes = before
    assert seen == [[]], lacks(", ".join(seen[0] or ["ExecutionCallback.on_execution_step"]))


def test_the_clusters_state_tells_drains(ray_session: ClusterResources) -> None:
    state = ray._private.state.state
    assert hasattr(state, STATE_ACCESS), lacks(f"state.{STATE_ACCESS}")
    assert state.get_draining_nodes() == {}


def test_the_wrapper_of_a_workers_exception_has_its_cause() -> None:
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

    cause = ValueError("inside")
    assert getattr(UserExceptionWithTraceback(cause, ""), WRAPPED, None) is cause, lacks(WRAPPED)
    assert "worker_failures" in inspect.signature(ray.train.WorkerGroupError).parameters


def private_names(path: Path) -> set[str]:
    """Private modules of Ray that a file imports or names, and private attributes of its plans."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray"):
            names = {f"{node.module}.{name.name}" for name in node.names}
            found |= {name for name in names if "._" in name}
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            chain = ast.unparse(node)
            if chain.startswith(("ray.", "executor.", "operator.", "worker._", "policy.", "pool.")):
                found.add(chain)
    return found


def test_no_other_private_part_is_used() -> None:
    allowed = {f"{module}.{name}" for module, names in MODULES.items() for name in names}
    allowed |= {f"executor.{n}" for n in EXECUTOR} | {f"operator.{n}" for n in OPERATOR}
    allowed |= {f"pool.{n}" for n in ACTOR_POOL} | {f"policy.{POLICY}"}
    allowed |= {"ray._private", "ray._private.worker"}
    used = {
        name: str(path.relative_to(ROOT))
        for path in (ROOT / "pmm_ray").rglob("*.py")
        for name in private_names(path)
    }
    others = {name: path for name, path in used.items() if name not in allowed}
    assert not others, f"name these in this file, or do without: {others}"
    # the search finds those that we know of
    known = {"executor._output_node", "ray._private.worker._global_node", "pool._config"}
    assert known <= used.keys()


def test_ray_is_pinned_to_what_was_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [wanted] = [line for line in project["dependencies"] if line.startswith("ray[")]
    [pinned] = [
        line for line in (ROOT / "constraints.txt").read_text().splitlines() if "ray==" in line
    ]
    assert wanted.split("]")[1] == pinned.removeprefix("ray") == f"=={version('ray')}"
