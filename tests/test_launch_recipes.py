"""The recipes of configs/launch: launchers know what they hold, and what they run runs.

Launchers are played by scripts of the same name that start processes here. `placed.py` takes the
place of the experiment: it says which process of how many it is told to be, and ends with 42 at
first.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from several import ROOT

RECIPES = ROOT / "configs" / "launch"
EXPERIMENT = re.compile(
    r"python -m experiments\.\w+ --config=\S+\s+(\\\s+)?--config\.mesh=\S+ --config\.rows=\S+"
)


@pytest.mark.parametrize("script", sorted(p.name for p in RECIPES.glob("*.sh")))
def test_scripts_are_clean(script: str) -> None:
    done = subprocess.run(["shellcheck", RECIPES / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(RECIPES / script, os.X_OK)


@pytest.mark.parametrize("recipe", sorted(p.name for p in RECIPES.iterdir()))
def test_a_recipe_is_edited_in_three_places_and_knows_42(recipe: str) -> None:
    text = (RECIPES / recipe).read_text()
    assert "42" in text
    if recipe != "again.sh":
        assert re.findall(r"^ *# (\d)\. ", text, re.MULTILINE) == ["1", "2", "3"]
        assert f"configs/launch/{recipe}" in text and EXPERIMENT.search(text)
        devices, rows = re.findall(r"--config\.mesh=data:(\d+) --config\.rows=(\d+)", text)[0]
        assert int(rows) % int(devices) == 0


def unknown(model: Any, value: Any, where: str) -> list[str]:
    """The fields of ``value`` that a pydantic model, generated from a public schema, lacks."""
    for argument in get_args(model):  # Optional[...], List[...], Dict[str, ...]
        if isinstance(value, list):
            return [x for i, v in enumerate(value) for x in unknown(argument, v, f"{where}[{i}]")]
        if found := unknown(argument, value, where):
            return found
    if not isinstance(value, dict) or not hasattr(model, "model_fields"):
        return []
    fields = {f.alias or n: f.annotation for n, f in model.model_fields.items()}
    found = [f"{where}.{name}" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        found += unknown(fields[name], value[name], f"{where}.{name}")
    return found


def test_the_jobset_is_one_of_its_schema() -> None:
    """That of JobSet and Kubernetes, as the package kubeflow-trainer-api has it."""
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet as JobSet

    made = yaml.safe_load((RECIPES / "jobset.yaml").read_text())
    job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    assert container["resources"].pop("limits") == {"google.com/tpu": 4}  # which it has no type of
    JobSet.model_validate(made)
    assert unknown(JobSet, made, "") == []
    environment = {e["name"]: e["value"] for e in container["env"]}
    assert str(job["parallelism"]) == str(job["completions"]) == environment["HOSTS"]
    rules = job["podFailurePolicy"]["rules"]
    assert rules[0]["onExitCodes"]["containerName"] == container["name"]
    name, jobs = made["metadata"]["name"], made["spec"]["replicatedJobs"][0]["name"]
    assert environment["COORDINATOR"] == f"{name}-{jobs}-0-0.{name}:8476"
    # The test sees what is misspelt, or of another type.
    job["paralelism"] = 4
    assert unknown(JobSet, made, "") == [".spec.replicatedJobs[0].template.spec.paralelism"]
    job.pop("paralelism")
    job["parallelism"] = "four"
    with pytest.raises(ValueError, match="parallelism"):
        JobSet.model_validate(made)


def players(folder: Path, **scripts: str) -> dict[str, str]:
    """An environment in which programs of these names are found first."""
    programs = folder / "bin"
    programs.mkdir()
    for name, text in scripts.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_"))}
    return {
        **kept,
        "PATH": f"{programs}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "SPECJAX_PAUSE": "0",
        "SPECJAX_CHECKOUT": str(ROOT),
    }


def edited(recipe: str, folder: Path) -> str:
    """A recipe with `placed.py` where the experiment was."""
    text = (RECIPES / recipe).read_text()
    return EXPERIMENT.sub(lambda _: f"python {ROOT}/tests/placed.py {folder}", text)


def together(commands: list[tuple[str, dict[str, str]]]) -> list[int]:
    """Runs shell commands at the same time: how each ended."""
    made = [subprocess.Popen(["bash", "-c", c], env=env, cwd=ROOT) for c, env in commands]
    return [p.wait(120) for p in made]


def attempts(folder: Path, num: int) -> list[list[dict[str, Any]]]:
    """What each process said of its place, attempt by attempt."""
    return [
        [json.loads(line) for line in (folder / f"{i}.jsonl").read_text().splitlines()]
        for i in range(num)
    ]


SRUN = """#!/usr/bin/env bash
# As Slurm's, for two nodes that are this one.
while [[ $1 == -* ]]; do shift; done
for i in 0 1; do
  SLURM_JOB_ID=70001 SLURM_STEP_NODELIST=node1,node2 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 \\
    SLURM_PROCID=$i SLURM_LOCALID=0 SLURM_STEP_TASKS_PER_NODE='1(x2)' SLURM_GPUS_ON_NODE=8 "$@" &
  pids+=($!)
done
worst=0
for pid in "${pids[@]}"; do
  wait "$pid"
  status=$?
  ((status > worst)) && worst=$status
done
exit "$worst"
"""


def test_slurm_starts_a_process_a_node_and_queues_again(tmp_path: Path) -> None:
    again = f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/queued\n'
    env = {**players(tmp_path, srun=SRUN, scontrol=again), "SLURM_JOB_ID": "70001"}
    for status in (42, 0):
        assert together([(edited("slurm.sh", tmp_path), env)]) == [status]
    assert (tmp_path / "queued").read_text() == "requeue 70001\n"
    for found in attempts(tmp_path, 2):
        assert len(found) == 2 and found[0] == found[1]
        assert found[0]["coordinator"].startswith("node1:") and found[0]["num"] == 2


GCLOUD = """#!/usr/bin/env bash
# As gcloud's ssh to all workers of a slice.
[[ "$1 $2 $3 $4" == "compute tpus tpu-vm ssh" ]] || exit 9
for word in "$@"; do
  [[ $word == --command=* ]] && command=${word#--command=}
done
command=${command/--coordinator=auto/--coordinator=10.0.0.1:8476 --num_processes=2}
for i in 0 1; do
  (bash -c "$command --process_id=$i") &
  pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit 1; done
"""


def test_a_tpu_vm_slice_starts_again_by_itself(tmp_path: Path) -> None:
    text = edited("tpu_vm.sh", tmp_path).replace("CHECKOUT=specjax", f"CHECKOUT={ROOT}")
    assert together([(text, players(tmp_path, gcloud=GCLOUD))]) == [0]
    for found in attempts(tmp_path, 2):
        assert [f["num"] for f in found] == [2, 2]
        assert found[0]["workdir"] == "/mnt/shared/runs/dflash"


def test_xpk_gets_one_line_whose_last_word_is_the_experiment(tmp_path: Path) -> None:
    shown = f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > {tmp_path}/asked\n'
    assert together([(edited("xpk.sh", tmp_path), players(tmp_path, xpk=shown))]) == [0]
    words = (tmp_path / "asked").read_text().splitlines()
    assert words[:2] == ["workload", "create"] and "--max-restarts=100" in words
    (command,) = (w.removeprefix("--command=") for w in words if w.startswith("--command="))
    assert command.startswith("exec python ")
    assert command.split()[-1] == "--workdir=/mnt/shared/runs/dflash"


def test_a_jobset_tells_every_pod_its_place(tmp_path: Path) -> None:
    made = yaml.safe_load(edited("jobset.yaml", tmp_path))
    pod = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["bash", "-c"]
    env = players(tmp_path) | {e["name"]: e["value"] for e in container["env"]}
    pods = [(container["args"][0], {**env, "JOB_COMPLETION_INDEX": str(i)}) for i in range(2)]
    assert together(pods) == [42, 42]
    for (found,) in attempts(tmp_path, 2):
        assert (found["coordinator"], found["num"]) == ("dflash-hosts-0-0.dflash:8476", 4)


def test_skypilot_tells_every_node_its_place(tmp_path: Path) -> None:
    made = yaml.safe_load(edited("skypilot.yaml", tmp_path))
    env = {**players(tmp_path), "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8"}
    env["SKYPILOT_NUM_NODES"] = str(made["num_nodes"])
    nodes = [(made["run"], {**env, "SKYPILOT_NODE_RANK": str(i)}) for i in range(2)]
    assert together(nodes) == [42, 42]
    for (found,) in attempts(tmp_path, 2):
        assert found == {"coordinator": "10.0.0.7:8476", "num": 2, "workdir": "/runs/dflash"}
    assert made["resources"]["job_recovery"]["recover_on_exit_codes"] == [42]
