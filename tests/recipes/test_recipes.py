"""The recipes: linted, their commands exist, and a stand-in for the scheduler plays its part."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparse_pipeline.commands import cli
from sparse_pipeline.shared.cache import open_cache, verify_cache
from sparse_pipeline.shared.config.yaml import load_yaml
from tests.recipes.scheduler import events

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
SCRIPTS = sorted([*RECIPES.rglob("*.sh"), *RECIPES.rglob("*.sbatch")])
DOCUMENTS = sorted(RECIPES.rglob("*.yaml"))


def name_of(path: Path) -> str:
    return str(path.relative_to(RECIPES))


@pytest.mark.parametrize("path", SCRIPTS, ids=name_of)
def test_scripts_are_linted(path: Path) -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    subprocess.run([shellcheck, "--severity=style", path], check=True)
    assert path.read_text().startswith("#!/usr/bin/env bash\n# ")


def commands_in(text: str) -> list[list[str]]:
    """The words of every `pipeline` command of a recipe, with an example in place of each variable."""
    text = re.sub(r'"\$\{resume\[@\]\}"', "--resume", text.replace("\\\n", " "))
    found = re.findall(
        r"(?:(?:^|[ ;&])pipeline|step\"|run|node.sh\"?|sparse_pipeline) (harvest|train|analyze)\b([^;&\n)]*)", text
    )
    named = {"$settings": "demo", "$SETTINGS": "demo", "$name": "demo", "$@": "", "$JOB_COMPLETION_INDEX": "0"}
    named["$SKYPILOT_NUM_GPUS_PER_NODE"] = "8"
    return [[command, *(named.get(word, word) for word in shlex.split(rest, comments=True))] for command, rest in found]


@pytest.mark.parametrize("path", [*SCRIPTS, *DOCUMENTS], ids=name_of)
def test_commands_of_recipes_exist_with_their_options(path: Path) -> None:
    found = commands_in(path.read_text())
    assert found or path.name in ("step.sbatch",), path
    for command, *words in found:
        cli.commands[command].make_context(command, [word for word in words if word])


def test_every_step_of_the_way_is_in_the_recipes() -> None:
    for folder in ("slurm", "kubernetes", "skypilot"):
        text = "".join(path.read_text() for path in (RECIPES / folder).iterdir())
        assert {command for command, *_ in commands_in(text)} == {"harvest", "train", "analyze"}, folder


def container(job: dict[str, Any]) -> dict[str, Any]:
    spec = job["spec"]["template"]["spec"]
    assert spec["restartPolicy"] == "Never"  # podFailurePolicy requires it
    (found,) = spec["containers"]
    volumes = {volume["name"] for volume in spec["volumes"]}
    assert {mount["name"] for mount in found["volumeMounts"]} <= volumes
    return found


@pytest.mark.parametrize("path", sorted((RECIPES / "kubernetes").glob("*.yaml")), ids=name_of)
def test_kubernetes_jobs(path: Path) -> None:
    job = load_yaml(path)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    one = container(job)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}
    # docs/commands.md: interrupted; settings or data. 143: SIGTERM before the program could handle it
    assert codes == {"Ignore": [130, 143], "FailJob": [2, 3]}
    assert all(rule["onExitCodes"]["containerName"] == one["name"] for rule in rules if "onExitCodes" in rule)
    (text,) = one["args"]
    subprocess.run(["bash", "-n", "-c", text], check=True)


def test_the_kubernetes_harvest_has_a_pod_for_each_process() -> None:
    spec = load_yaml(RECIPES / "kubernetes/harvest.yaml")["spec"]
    (text,) = container({"spec": spec})["args"]
    assert spec["completionMode"] == "Indexed"
    assert [spec["completions"], spec["parallelism"]] == [int(re.findall(r"--ranks (\d+)", text)[0])] * 2
    assert '--rank "$JOB_COMPLETION_INDEX"' in text


def test_skypilot_task() -> None:
    task = load_yaml(RECIPES / "skypilot/pipeline.yaml")
    known = {"name", "resources", "envs", "workdir", "file_mounts", "setup", "run", "num_nodes"}
    assert set(task) <= known
    assert set(task["resources"]) <= {"accelerators", "disk_size", "disk_tier", "cloud", "use_spot", "cpus", "memory"}
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[part]], check=True)
    (mount,) = task["file_mounts"]
    assert f"cp -r runs reports {mount}/" in task["run"]


# --- the scheduler's part --------------------------------------------------------------------------------------------

STUB = """#!/usr/bin/env bash
# Works until SIGTERM at its first start, then says what the pipeline says; does the rest at its second.
echo "$*" >> calls
if [[ ${SLURM_RESTART_COUNT} == 0 && ( ${SLURM_ARRAY_TASK_ID:-1} == 1 ) && $1 != analyze ]]; then
    if [[ $1 == train ]]; then mkdir -p runs/tiny; touch runs/tiny/config.yaml; fi
    trap 'sleep 0.3; echo "$1 saved" >> calls; exit 130' TERM
    touch "$1-begun"
    while :; do sleep 0.02; done
fi
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to submit from, with `sbatch` and `scontrol` on the path."""
    programs, state = tmp_path / "bin", tmp_path / "state"
    programs.mkdir()
    state.mkdir()
    for name in ("sbatch", "scontrol"):
        line = shlex.join([sys.executable, "-m", "tests.recipes.scheduler", name])
        (programs / name).write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}:$PYTHONPATH exec {line} "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("SCHEDULER_STATE", str(state))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return programs


def submit(*words: str) -> str:
    run = subprocess.run([RECIPES / "slurm/submit.sh", *words], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_slurm_requeues_what_was_stopped_and_training_resumes(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of the array and the training are each stopped once; they save before the script ends, and go on."""
    (cluster / "pipeline").write_text(STUB)
    (cluster / "pipeline").chmod(0o755)
    monkeypatch.setenv("SCHEDULER_KILL", "harvest 1 harvest-begun\ntrain 0 train-begun")
    assert submit("tiny", "3") == "harvest 1 (3 tasks), train 2, analyze 3\n"
    found = events(cluster.parent / "state")
    starts = [(event["name"], event["task"], event["code"]) for event in found]
    assert sorted(starts[:4]) == [("harvest-tiny", task, code) for task, code in ((0, 0), (1, 0), (1, 130), (2, 0))]
    assert starts[4:] == [("train-tiny", 0, 130), ("train-tiny", 0, 0), ("analyze-tiny", 0, 0)]
    calls = Path("calls").read_text().splitlines()
    assert calls.count("harvest -c tiny --ranks array") == 4
    assert "harvest saved" in calls
    assert calls[-4:] == [
        "train -c tiny --name tiny",
        "train saved",
        "train -c tiny --name tiny --resume",
        "analyze -c tiny tiny",
    ]


TOY = """
harvest: {tokens: 49_152, ctx: 64, batch_tokens: 2048, shard_rows: 2048, name: toy}
train:
  coder: {latents: 64, k: 8}
  data: {batch_size: 256, epochs: 20}
  min_steps: 20
  checkpoint_every: 20
analyze: {name: toy, reports: {correlation: null}}
"""


@pytest.mark.slow
def test_slurm_recipe_runs_the_pipeline(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands themselves: a task of the array and the training are stopped by signal, and the report is made."""
    (cluster / "pipeline").write_text(f'#!/bin/sh\nexec {sys.executable} -m sparse_pipeline "$@"\n')
    (cluster / "pipeline").chmod(0o755)
    Path("toy.yaml").write_text(TOY)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SCHEDULER_KILL", "harvest 1 cache/toy/commits/*.json\ntrain 0 runs/toy/checkpoints/step_*")
    submit("toy.yaml", "2")
    found = events(cluster.parent / "state")
    assert {(event["name"], event["code"]) for event in found if event["told"]} == {
        ("harvest-toy", 130),
        ("train-toy", 130),
    }
    assert verify_cache("cache/toy").ok
    assert open_cache("cache/toy").n_rows == 49_152
    assert json.loads(Path("reports/toy/report.json").read_text())["runs"]
    assert shutil.which("pipeline") == str(cluster / "pipeline")
