"""What is in cluster/ is what Ray, KubeRay, Docker and Slurm take. No cloud is asked."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pmm_ray.config import load_recipe
from pmm_ray.runtime.core.resources import ACCELERATOR

from .shapes import SHAPES

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHERS = ("aws.yaml", "gcp.yaml")
MANIFESTS = {"raycluster.yaml": "ray.io_rayclusters.yaml", "rayjob.yaml": "ray.io_rayjobs.yaml"}
RAY_VERSION = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def launcher(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8")))


def manifest(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((CLUSTER / "kuberay" / name).read_text(encoding="utf-8")))


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is part of the extra `dev`"
    return found


class TestLaunchers:
    @pytest.mark.parametrize("name", LAUNCHERS)
    def test_ray_takes_them(self, name: str) -> None:
        from ray.autoscaler._private.util import prepare_config, validate_config

        validate_config(prepare_config(launcher(name)))
        # the check can fail: an unknown key and a head type that is not there are refused
        wrong = copy.deepcopy(launcher(name))
        wrong["available_node_types"]["cpu"]["max_worker"] = 3
        with pytest.raises(jsonschema.ValidationError):
            validate_config(prepare_config(wrong))
        wrong = launcher(name) | {"head_node_type": "none"}
        with pytest.raises(ValueError, match="head_node_type"):
            validate_config(prepare_config(wrong))

    @pytest.mark.parametrize("name", LAUNCHERS)
    def test_head_does_no_work_and_listens_to_itself_only(self, name: str) -> None:
        config = launcher(name)
        assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
        [start] = [line for line in config["head_start_ray_commands"] if "ray start" in line]
        for option in ("--num-cpus=0", "--dashboard-host=127.0.0.1"):
            assert option in shlex.split(start.replace(";", " "))
        starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
        for line in (line for line in starts if "ray start" in line):
            assert "--object-spilling-directory=" in line
        assert config["provider"]["use_internal_ips"] is True
        assert "0.0.0.0" not in (CLUSTER / name).read_text()

    @pytest.mark.parametrize("name", LAUNCHERS)
    def test_token_is_on_everywhere(self, name: str) -> None:
        config = launcher(name)
        assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        assert "/home/ray/.ray/auth_token" in config["file_mounts"]

    @pytest.mark.parametrize("name", LAUNCHERS)
    def test_cpu_pool_is_spot_and_head_is_not(self, name: str) -> None:
        types = launcher(name)["available_node_types"]
        spot = {
            kind: node["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
            or {"preemptible": True} in node["node_config"].get("scheduling", [])
            for kind, node in types.items()
        }
        assert spot == {"head": False, "cpu": True, "gpu": False}
        assert {kind: node.get("labels") for kind, node in types.items()} == {
            "head": None,
            "cpu": {"pool": "cpu"},
            "gpu": {"pool": "gpu"},
        }
        assert "GPU" in types["gpu"]["resources"]
        assert "GPU" not in types["cpu"]["resources"]

    def test_no_node_may_do_everything(self) -> None:
        for path in (CLUSTER / "iam").glob("*.json"):
            statements = json.loads(path.read_text())["Statement"]
            for statement in statements:
                actions = statement["Action"]
                actions = [actions] if isinstance(actions, str) else actions
                assert all("*" not in action for action in actions), path
                reads = all(
                    re.match(r"(ec2:Describe|ecr:GetAuthorizationToken)", a) for a in actions
                )
                assert reads or statement["Resource"] != "*", (path, actions)


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A CRD's OpenAPI schema as JSON schema in which an unknown field is an error."""
    out = {k: v for k, v in schema.items() if k in ("type", "enum", "minimum", "minItems")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "properties" in schema:
        out["properties"] = {k: strict(v) for k, v in schema["properties"].items()}
        out["additionalProperties"] = bool(schema.get("x-kubernetes-preserve-unknown-fields"))
        defaulted = {k for k, v in schema["properties"].items() if "default" in v}
        out["required"] = [k for k in schema.get("required", []) if k not in defaulted]
    elif isinstance(schema.get("additionalProperties"), dict):
        out["additionalProperties"] = strict(schema["additionalProperties"])
    if "items" in schema:
        out["items"] = strict(schema["items"])
    return out


@pytest.fixture(scope="module")
def crds(shared: Path) -> dict[str, dict[str, Any]]:
    """The strict schema of each kind of manifest."""
    schemas = {}
    for name, file in MANIFESTS.items():
        text = (shared / "data" / "kuberay" / file).read_text(encoding="utf-8")
        crd = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        [version] = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        schema = strict(version["schema"]["openAPIV3Schema"])
        # metadata is Kubernetes' own and not in the CRD
        schema["properties"]["metadata"] = {"type": "object"}
        schemas[name] = schema
    return schemas


def probes(node: Any) -> Iterator[dict[str, Any]]:
    for container in node["template"]["spec"]["containers"]:
        yield container["readinessProbe"]
        yield container["livenessProbe"]


class TestKubeRay:
    @pytest.mark.parametrize("name", MANIFESTS)
    def test_the_crd_takes_them(self, crds: dict[str, dict[str, Any]], name: str) -> None:
        # not jsonschema.validate, which holds the schema itself against its meta-schema for 20 s
        check = jsonschema.Draft202012Validator(crds[name]).validate
        check(manifest(name))
        wrong = manifest(name)
        spec = wrong["spec"].get("rayClusterSpec", wrong["spec"])
        spec["headGroupSpec"]["rayStartParms"] = {}
        with pytest.raises(jsonschema.ValidationError, match="rayStartParms"):
            check(wrong)
        wrong = manifest(name)
        spec = wrong["spec"].get("rayClusterSpec", wrong["spec"])
        spec["workerGroupSpecs"][0]["maxReplicas"] = "16"
        with pytest.raises(jsonschema.ValidationError, match="'16'"):
            check(wrong)

    def test_the_runbook_asks_for_a_version_that_knows_the_fields(self) -> None:
        """Definitions of an older one refuse or drop what they do not know."""
        since = {
            "preRunningDeadlineSeconds:": (1, 6),
            "secretName: pmm-ray-token": (1, 6),  # of authOptions
            "authOptions:": (1, 5),
            "submissionMode: SidecarMode": (1, 5),
            "labels: {pool: gpu}": (1, 5),  # of a group, not of its pods
        }
        text = (CLUSTER / "kuberay" / "rayjob.yaml").read_text()
        needed = max(version for field, version in since.items() if field in text)
        runbook = (CLUSTER / "README.md").read_text()
        stated = re.findall(r"KubeRay (\d+)\.(\d+)\S* or newer", runbook)
        assert [(int(major), int(minor)) for major, minor in stated] == [needed]

    def test_the_job_has_the_same_cluster(self) -> None:
        job, cluster = manifest("rayjob.yaml"), manifest("raycluster.yaml")
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]
        assert job["spec"]["backoffLimit"] > 0
        assert "--stop-job" in job["spec"]["entrypoint"]
        assert job["spec"]["shutdownAfterJobFinishes"] is True

    def test_its_nodes(self) -> None:
        spec = manifest("raycluster.yaml")["spec"]
        assert RAY_VERSION is not None
        assert spec["rayVersion"] == RAY_VERSION[1]
        assert spec["autoscalerOptions"]["version"] == "v2"
        assert spec["authOptions"]["mode"] == "token"
        head, groups = spec["headGroupSpec"], spec["workerGroupSpecs"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert head["serviceType"] == "ClusterIP"
        assert [group["labels"] for group in groups] == [{"pool": "cpu"}, {"pool": "gpu"}]
        for node in (head, *groups):
            pod = node["template"]["spec"]
            assert node["rayStartParams"]["object-spilling-directory"] == "/spill"
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert all("exec" in probe for probe in probes(node))
            for container in pod["containers"]:
                assert container["securityContext"]["allowPrivilegeEscalation"] is False
                gpu = "nvidia.com/gpu" in container["resources"]["limits"]
                assert gpu == (node.get("groupName") == "gpu")
                assert container["image"].endswith(":cuda" if gpu else ":cpu")

    def test_only_its_own_nodes_may_talk_to_it(self) -> None:
        policy = manifest("networkpolicy.yaml")["spec"]
        assert policy["podSelector"]["matchLabels"] == {"app": "pmm-ray"}
        spec = manifest("raycluster.yaml")["spec"]
        for node in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert node["template"]["metadata"]["labels"] == {"app": "pmm-ray"}

    def test_the_jobs_command_is_one_that_runs(self) -> None:
        entrypoint = manifest("rayjob.yaml")["spec"]["entrypoint"]
        words = shlex.split(entrypoint)
        # KubeRay's submitter runs it behind `ray job submit --`, in a shell; Ray joins it again
        assert not {"&&", ";", "|"} & {*words}
        assert shlex.split(subprocess.list2cmdline(words)) == words
        for path in (words[words.index("python") + 1], words[words.index("--recipe") + 1]):
            assert (ROOT / Path(path).relative_to("/opt/pmm-ray")).is_file()
        settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
        config = load_recipe(None, settings)
        assert config.runtime.cpu_labels == {"pool": "cpu"}
        [shape] = [shape for shape in SHAPES if shape.file == "rayjob.yaml"]
        assert [
            (kind.cpus, kind.gpus, kind.count, kind.labels)
            for kind in config.runtime.autoscaled_nodes
        ] == [
            (shape.cpu.cpus, 0, shape.most_cpu, {"pool": "cpu"}),
            (shape.gpu.cpus, shape.gpu.gpus, shape.most_gpu, {"pool": "gpu"}),
        ]

    def test_the_runbooks_nodes_are_those_of_the_launcher(self) -> None:
        text = (CLUSTER / "README.md").read_text()
        [setting] = re.findall(r"--set '(runtime\.autoscaled_nodes=[^']*)'", text)
        kinds = load_recipe(None, [setting]).runtime.autoscaled_nodes
        # the card of g6 and g2 machines, for `precision: auto`
        assert [kind.labels.get(ACCELERATOR) for kind in kinds] == [None, "L4"]
        for shape in (shape for shape in SHAPES if shape.file in LAUNCHERS):
            assert [(k.cpus, k.gpus, k.count) for k in kinds] == [
                (shape.cpu.cpus, 0, shape.most_cpu),
                (shape.gpu.cpus, shape.gpu.gpus, shape.most_gpu),
            ]


class TestImages:
    """What a file names must be able to run the Dockerfile's CUDA. No cloud is asked."""

    DRIVER_OF_CUDA_13 = 580

    def test_the_dockerfiles_cuda_is_the_one_the_images_are_for(self) -> None:
        text = (CLUSTER / "README.md").read_text()
        assert re.findall(r"TORCH=cu(\d+)", text) == ["130"]
        assert "cu130" in (CLUSTER / "Dockerfile").read_text()

    def test_google_names_one_image_with_a_driver_for_it(self) -> None:
        types = launcher("gcp.yaml")["available_node_types"].values()
        images = {n["node_config"]["disks"][0]["initializeParams"]["sourceImage"] for n in types}
        [image] = images
        driver = re.fullmatch(r"projects/.*-nvidia-(\d+)-v\d{8}", image)
        assert driver is not None
        assert int(driver[1]) >= self.DRIVER_OF_CUDA_13
        assert image.rsplit("/", 1)[-1] in (CLUSTER / "README.md").read_text()

    def test_amazons_image_is_never_rays_old_default(self) -> None:
        types = launcher("aws.yaml")["available_node_types"].values()
        assert {n["node_config"]["ImageId"] for n in types} == {"ami-ID"}
        text = (CLUSTER / "README.md").read_text()
        assert "ami-ID" in text
        assert "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu" in text
        # the account must have it before the first spot node is asked for
        assert "create-service-linked-role --aws-service-name spot.amazonaws.com" in text


class TestImageAndScripts:
    def test_the_linter_takes_the_dockerfile(self) -> None:
        answer = subprocess.run(
            [tool("hadolint"), str(CLUSTER / "Dockerfile")], capture_output=True, text=True
        )
        assert answer.returncode == 0, answer.stdout

    def test_the_linter_would_notice(self, tmp_path: Path) -> None:
        text = (CLUSTER / "Dockerfile").read_text().replace("USER 1000", "USER root")
        (tmp_path / "Dockerfile").write_text(text)
        answer = subprocess.run(
            [tool("hadolint"), str(tmp_path / "Dockerfile")], capture_output=True, text=True
        )
        assert answer.returncode == 1
        assert "root" in answer.stdout

    def test_the_image_pins_what_the_tests_ran_with(self) -> None:
        text = (CLUSTER / "Dockerfile").read_text()
        installs = re.findall(r"pip install [^\n]*", text)
        assert installs
        assert all("-c constraints.txt" in line for line in installs)
        assert "ARG TORCH=cpu" in text
        for line in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert (ROOT / source).exists(), source

    @pytest.mark.parametrize(
        ("nodes", "cpus", "head"), [(1, 64, 64), (4, 64, 60), (4, 6, 3), (2, 1, 1)]
    )
    def test_slurms_lead_node_works_on_its_gpus(
        self, tmp_path: Path, nodes: int, cpus: int, head: int
    ) -> None:
        """The script with stand-ins for Slurm's and our commands, which say what they are given."""
        commands = tmp_path / "venv" / "bin"
        commands.mkdir(parents=True)
        (commands / "activate").write_text(f'export PATH="{commands}:$PATH"\n')
        for name, text in (
            ("scontrol", "echo lead"),
            ("srun", 'echo "$@" >> "$0.said"; [[ $* == *hostname* ]] && echo 10.0.0.1; true'),
            ("sleep", "true"),
            # the driver takes some time: the other nodes' Ray is begun beside it
            (
                "python",
                "[[ $1 == -c ]] && echo token; [[ $1 == jobs/* ]] || exit 0; "
                "for _ in {1..600}; do "
                '[ "$SLURM_JOB_NUM_NODES" = 1 ] || grep -q exclude "${0%/*}/srun.said" && exit 3; '
                "command -p sleep 0.1; done",
            ),
        ):
            (commands / name).write_text(f"#!/bin/bash\n{text}\n")
            (commands / name).chmod(0o755)
        answer = subprocess.run(
            ["bash", str(CLUSTER / "slurm.sbatch"), "--recipe", "x"],
            env=os.environ
            | {
                "PMM_VENV": str(tmp_path / "venv"),
                "SLURM_SUBMIT_DIR": str(tmp_path),
                "SLURM_JOB_ID": "7",
                "SLURM_JOB_NODELIST": "all",
                "SLURM_JOB_NUM_NODES": str(nodes),
                "SLURM_CPUS_ON_NODE": str(cpus),
                "SLURM_GPUS_ON_NODE": "8",
            },
            capture_output=True,
            text=True,
        )
        assert answer.returncode == 3, answer.stderr  # the driver's
        lines = (commands / "srun.said").read_text().splitlines()
        [lead] = [line for line in lines if "--head" in line]
        others = [line for line in lines if "--exclude=lead" in line]
        assert f"--num-cpus={head} --num-gpus=8" in lead
        assert len(others) == (nodes > 1)
        assert all(f"--num-cpus={cpus} --num-gpus=8" in line for line in others)
        # the last that is done, on every node
        assert lines[-1] == f"--nodes={nodes} --ntasks={nodes} --overlap rm -rf /tmp/ray-7"

    def test_the_slurm_script(self) -> None:
        script = str(CLUSTER / "slurm.sbatch")
        assert subprocess.run(["bash", "-n", script]).returncode == 0
        answer = subprocess.run([tool("shellcheck"), script], capture_output=True, text=True)
        assert answer.returncode == 0, answer.stdout
