"""The scripts against a simulated cloud: small programs stand in for its tools.

The stand-ins for gcloud and kubectl record their calls. That for gcloud runs a command
for a host in the folder of that host; that for curl is the metadata server.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "tpu_scripts"
SCRIPTS = sorted([*FOLDER.rglob("*.sh"), *FOLDER.glob("*.sbatch")])
STAND_INS = {
    "gcloud": r"""
printf '%s\n' "gcloud $*" >>"$CLOUD/calls"
on() { (cd "$CLOUD/$1" && HOME=$PWD HOST=$1 bash -c "$2"); }
case " $* " in
  *" list "*)
    [[ ! -s $CLOUD/states ]] || head -n 1 "$CLOUD/states"
    (($(wc -l <"$CLOUD/states") < 2)) || sed -i 1d "$CLOUD/states"
    ;;
  *" tpu-vm scp "*) for host in 0 1; do cp "$5" "$CLOUD/$host/${6#*:}"; done ;;
  *" --worker all "*) on 0 "${!#}"; code=$?; on 1 "${!#}" && exit "$code" ;;
  *" --worker 0 "*) on 0 "${!#}" ;;
  *" delete "*) : >"$CLOUD/states" ;;
esac""",
    "kubectl": r"""
printf '%s\n' "kubectl $*" >>"$CLOUD/calls"
case " $* " in
  *" apply "*) cat >"$CLOUD/applied.yaml" ;;
  *".command}"*) [[ ! -f $CLOUD/jobset ]] || sed -n 1p "$CLOUD/jobset" ;;
  *".type}"*) [[ ! -f $CLOUD/jobset ]] || sed -n 2p "$CLOUD/jobset" ;;
esac""",
    "curl": r"""
case ${!#} in
  */instance/attributes/worker-network-endpoints) printf '%s' "$ENDPOINTS" ;;
  */instance/attributes/agent-worker-number) printf '%s' "$HOST" ;;
  *) exit 22 ;;
esac""",
    "uv": r"""
printf '%s\n' "uv $*" >>"$CLOUD/calls"
[[ $1 != venv ]] || { mkdir -p .venv/bin && cp /bin/true .venv/bin/python; }""",
    "mountpoint": "[[ -e $2 ]]",
}
# Stands in for the program: prints its rank, and waits for a signal or ends.
PYTHON = r"""
trap 'exit 75' TERM
line="$* as $SMF_PROCESS_ID of $SMF_NUM_PROCESSES at $SMF_COORDINATOR"
echo "$line" | tee -a "$CLOUD/ran"
[[ $3 != slow || $HOST == 0 ]] || sleep 1
[[ $3 != wait ]] || while true; do read -r -t 0.05 <> <(:) || true; done
exit "$(cat "$CLOUD/code.$HOST" 2>/dev/null || echo 0)" """
SLICE = {"TPU_NAME": "smf-16", "PROJECT": "mine", "ZONE": "us-west4-a"}
CREATE = {**SLICE, "TPU_TYPE": "v5litepod-16"}
GKE = {
    **{**SLICE, "CLUSTER": "one", "LOCATION": "us-west4", "IMAGE": "images/smf"},
    **{"SMF_SHARE": "10.0.0.2:/smf", "MACHINE_TYPE": "ct5lp-hightpu-4t"},
    **{"TPU_TOPOLOGY": "4x4", "TPU_ACCELERATOR": "tpu-v5-lite-podslice"},
}
EVERYTHING = {**GKE, **CREATE, "RUN": "runs/world", "SMF_VENV": "/venv"}


class Cloud:
    """A folder with the stand-ins, and a folder for each host of a slice of two."""

    def __init__(self, folder: Path):
        self.folder, self.share = folder, folder / "share"
        for name, text in STAND_INS.items():
            self.program(f"bin/{name}", text)
        for host in "01":
            shutil.copytree(FOLDER, folder / host / "smf_jax/tpu_scripts")
            self.program(f"{host}/smf_jax/.venv/bin/python", PYTHON)
        for name in ("runs", "data"):
            (self.share / name).mkdir(parents=True)
        for name in ("states", "calls", "ran"):
            self.write(name, "")
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            **{"CLOUD": str(folder), "TMPDIR": str(folder), "POLL_SECONDS": "0"},
            **{"USER": "me", "SHARE_MOUNT": str(self.share)},
            "ENDPOINTS": "n0:7:10.0.0.4,n1:8:10.0.0.5",
        }

    def write(self, path: str, text: str) -> Path:
        path = self.folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def program(self, path: str, text: str) -> None:
        self.write(path, f"#!/usr/bin/env bash\n{text}\n").chmod(0o755)

    def start(self, line: str, **variables: str) -> subprocess.Popen:
        script, *arguments = line.split()
        return subprocess.Popen(
            ["bash", str(FOLDER / script), *arguments],
            **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True},
            **{"stdin": subprocess.DEVNULL, "start_new_session": True},
            env={**self.environment, **variables},
            cwd=self.folder,
        )

    def __call__(self, line: str, **variables: str) -> tuple[int, str]:
        """Returns the exit code and the output of a script."""
        process = self.start(line, **variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def lines(self, name: str, words: str = "") -> list[str]:
        lines = (self.folder / name).read_text().splitlines()
        return [line for line in lines if words in line]


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    cloud("run.sh --stop", **SLICE)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_bash_and_shellcheck_accept_a_script(path):
    where = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=where)
    for command in (["bash", "-n"], [shellcheck or "shellcheck"]):
        done = subprocess.run([*command, path], capture_output=True, text=True)
        assert (done.stdout + done.stderr, done.returncode) == ("", 0)


# The variables that a command needs, and what a dry run prints, in this order.
COMMANDS = {
    "create.sh": ("TPU_NAME PROJECT ZONE TPU_TYPE", "resources list|resources create"),
    "setup.sh": ("TPU_NAME PROJECT ZONE", "git archive|tpu-vm scp|on_worker/setup.sh"),
    "run.sh usage a": ("TPU_NAME PROJECT ZONE", "status|start usage a|0 |follow"),
    "fetch.sh": ("TPU_NAME PROJECT ZONE RUN", "--worker 0|find|tar"),
    "delete.sh": ("TPU_NAME PROJECT ZONE", "resources list|resources delete smf-16"),
    "gke.sh create": ("ZONE MACHINE_TYPE TPU_TOPOLOGY", "pools list|pools create smf"),
    "gke.sh setup": ("IMAGE", "git archive|docker build|docker push"),
    "gke.sh run usage": ("SMF_SHARE TPU_ACCELERATOR", "get jobset|kind: JobSet|apply"),
    "gke.sh logs": ("CLUSTER LOCATION", "logs --follow|get jobset"),
    "gke.sh fetch": ("IMAGE SMF_SHARE RUN", "kind: Pod|apply|exec|delete pod"),
    "gke.sh delete": ("PROJECT CLUSTER", "delete jobset smf-16|pools delete smf-16"),
    "slurm_gpu.sbatch usage": ("SMF_VENV", "srun|/venv/bin/python -m smf_jax usage"),
}


@pytest.mark.parametrize("line", COMMANDS)
def test_a_dry_run_prints_the_commands_and_refuses_what_is_missing(cloud, line):
    (script, *rest), (needed, printed) = line.split(), COMMANDS[line]
    dry_run = " ".join([script, "--dry-run", *rest])

    code, output = cloud(dry_run, **EVERYTHING)
    assert code == 0
    for words in printed.split("|"):
        assert words in output
        output = output.partition(words)[2]

    for name in needed.split():
        code, output = cloud(dry_run, **{**EVERYTHING, name: ""})
        assert code != 0
        assert f"set {name}" in output
    code, output = cloud(dry_run.replace("dry-run", "dryrun"), **EVERYTHING)
    assert code == 2
    assert "unknown argument '--dryrun'" in output
    assert cloud.lines("calls") == []


def test_create_requests_a_slice_once_and_delete_deletes_it_once(cloud):
    states = "\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\tv5litepod-16\n"
    cloud.write("states", states)
    variables = {**CREATE, "TPU_SPOT": "yes", "PRICE_PER_CHIP_HOUR": "1.5"}

    code, output = cloud("create.sh", **variables)
    assert code == 0
    assert "16 chips x 1.5 = 24.00 per hour" in output
    assert "PROVISIONING" in output
    assert "exists already" in cloud("create.sh", **variables)[1]
    assert cloud("delete.sh", **SLICE)[0] == 0
    code, output = cloud("delete.sh", **SLICE)
    assert code == 0
    assert "smf-16 does not exist" in output

    (call,) = cloud.lines("calls", "create smf-16")
    assert "--node-id smf-16 --accelerator-type v5litepod-16" in call
    assert "--runtime-version v2-alpha-tpuv5-lite --spot" in call
    assert len(cloud.lines("calls", "delete smf-16")) == 1


def test_create_reports_an_unusable_slice_and_keeps_it(cloud):
    cloud.write("states", "FAILED\tv5litepod-16\n")
    code, output = cloud("create.sh", **CREATE)
    assert code == 1
    assert "smf-16 is FAILED" in output

    cloud.write("states", "ACTIVE\tv5litepod-8\n")
    code, output = cloud("create.sh", **CREATE)
    assert code == 2
    assert "v5litepod-8, not TPU_TYPE=v5litepod-16" in output
    assert cloud.lines("calls", " create ") == cloud.lines("calls", " delete ") == []


@pytest.mark.parametrize("endpoints", ["n0:7:10.0.0.4,n1:8:10.0.0.5", "10.0.0.4,b"])
def test_run_gives_every_host_the_command_and_waits_for_all(cloud, endpoints):
    code, output = cloud("run.sh slow --seed 5", **SLICE, ENDPOINTS=endpoints)

    assert code == 0
    want = "-m smf_jax slow --seed 5 as {} of 2 at 10.0.0.4:8476"
    assert sorted(cloud.lines("ran")) == [want.format(0), want.format(1)]
    assert want.format(0) in output  # the log of the first host


def test_run_repeats_a_command_only_if_it_failed_or_if_told_to(cloud):
    cloud.write("code.1", "69")
    assert cloud("run.sh usage", **SLICE)[0] == 69
    assert cloud("run.sh", **SLICE)[0] == 69  # starts nothing
    assert len(cloud.lines("ran")) == 2

    cloud.write("code.1", "0")
    assert cloud("run.sh usage", **SLICE)[0] == 0
    code, output = cloud("run.sh usage", **SLICE)
    assert code == 0
    assert "it has succeeded" in output
    assert len(cloud.lines("ran")) == 4
    assert cloud("run.sh --again usage", **SLICE)[0] == 0
    assert len(cloud.lines("ran")) == 6


def test_a_command_survives_a_lost_connection_and_is_not_started_twice(cloud):
    first = cloud.start("run.sh wait", **SLICE)
    while len(cloud.lines("ran")) < 2:
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()

    code, output = cloud("run.sh usage", **SLICE)
    assert code == 2
    assert "another command is running: wait" in output
    code, output = cloud("setup.sh", **SLICE)
    assert code == 2
    assert "a command is running" in output
    second = cloud.start("run.sh wait", **SLICE)
    while "running: wait" not in second.stdout.readline():
        pass
    assert cloud("run.sh --stop", **SLICE)[0] == 75
    second.communicate()
    assert second.returncode == 75
    assert len(cloud.lines("ran")) == 2


def test_setup_installs_the_commit_on_every_host_and_keeps_other_files(cloud):
    home = cloud.folder / "1" / "smf_jax"
    cloud.write("1/smf_jax/old.py", "")  # of an earlier commit
    cloud.write("1/smf_jax/.sent", "./old.py\n")
    cloud.write("1/smf_jax/mine.jsonl", "")
    shutil.rmtree(home / ".venv")

    for _ in range(2):
        code, output = cloud("setup.sh", **SLICE, SMF_SHARE="10.0.0.2:/smf")
        assert code == 0, output
        assert "host 0 of 2: ready\nhost 1 of 2: ready\n" in output

    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()
    sent = {name.removeprefix("./") for name in (home / ".sent").read_text().split()}
    assert "pyproject.toml" in sent <= {*listed}
    assert not (home / "old.py").exists()
    assert (home / "mine.jsonl").exists()
    assert (home / "runs").resolve() == cloud.share / "runs"
    assert len(cloud.lines("calls", "uv venv --quiet")) == 1  # kept the second time
    assert len(cloud.lines("calls", "--editable .[tpu]")) == 4


def test_setup_refuses_several_hosts_without_a_share(cloud):
    shutil.rmtree(cloud.share)
    code, output = cloud("setup.sh", **SLICE)
    assert code == 2
    assert "2 hosts need a shared file system: set SMF_SHARE" in output


def test_fetch_copies_a_run_and_later_only_what_changed(cloud):
    for number in range(150):  # more than one batch
        cloud.write(f"0/smf_jax/runs/world/{number}/a name", str(number))
    local = cloud.folder / "fetched/runs/world"
    variables = {**SLICE, "RUN": "runs/world"}

    assert "150 files were sent" in cloud("fetch.sh", **variables)[1]
    assert (local / "149/a name").read_text() == "149"
    assert " 0 files were sent" in cloud("fetch.sh", **variables)[1]
    (local / "7/a name").write_text("")  # truncated
    cloud.write("0/smf_jax/runs/world/metrics.jsonl", "{}")
    assert " 2 files were sent" in cloud("fetch.sh", **variables)[1]
    assert (local / "7/a name").read_text() == "7"
    assert cloud("fetch.sh", **SLICE, RUN="runs/nothing")[0] != 0


def test_gke_runs_one_command_on_every_host_of_the_slice(cloud):
    assert cloud('gke.sh run pretrain c.py --name "a\\b"', **GKE)[0] == 0

    jobset = yaml.safe_load((cloud.folder / "applied.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"][3:] == ["pretrain", "c.py", "--name", '"a\\b"']
    environment = {one["name"]: one for one in container["env"]}
    assert environment["SMF_COORDINATOR"]["value"] == "smf-16-worker-0-0.smf-16:8476"
    assert jobset["spec"]["network"]["subdomain"] == "smf-16"
    assert environment["SMF_NUM_PROCESSES"]["value"] == "4"
    assert "job-completion-index" in str(environment["SMF_PROCESS_ID"])
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"][0]["nfs"] == {"server": "10.0.0.2", "path": "/smf"}
    assert "@" not in str(pod)


@pytest.mark.parametrize(
    ("command", "state", "code", "applied", "message"),
    [
        ("usage", "", 0, False, "running already"),
        ("evaluate", "", 2, False, "another command is running"),
        ("usage", "Completed", 0, False, "has completed"),
        ("evaluate", "Completed", 0, True, ""),
        ("usage", "Failed", 0, True, ""),
    ],
)
def test_gke_run_starts_a_command_that_neither_runs_nor_has_completed(
    cloud, command, state, code, applied, message
):
    cloud.write("jobset", f'["python","-m","smf_jax","usage"]\n{state}\n')

    returned, output = cloud(f"gke.sh run {command}", **GKE)

    assert returned == code
    assert message in output
    applies, deletes = (
        cloud.lines("calls", f" {word} ") for word in ("apply", "delete")
    )
    assert bool(applies) == bool(deletes) == applied


def test_gke_creates_a_node_pool_once_and_deletes_it_once(cloud):
    code, output = cloud("gke.sh create", **{**GKE, "TPU_TOPOLOGY": "1x2"})
    assert code == 2
    assert "2 chips, not a multiple of the 4 per host" in output

    assert cloud("gke.sh create", **GKE)[0] == 0
    cloud.write("states", "RUNNING\n")
    assert "exists already" in cloud("gke.sh create", **GKE)[1]
    assert cloud("gke.sh delete", **GKE)[0] == 0
    assert "does not exist" in cloud("gke.sh delete", **GKE)[1]

    (call,) = cloud.lines("calls", "node-pools create")
    assert "--num-nodes 4 --tpu-topology 4x4" in call
    assert len(cloud.lines("calls", "node-pools delete")) == 1


@pytest.mark.parametrize(
    ("code", "state", "requeued"),
    [
        *((0, "RUNNING", False), (2, "RUNNING", False), (75, "RUNNING", True)),
        *((69, "RUNNING", True), (75, "COMPLETING", False)),
    ],
)
def test_a_slurm_job_is_requeued_if_it_was_interrupted(cloud, code, state, requeued):
    cloud.program("venv/bin/python", "")
    cloud.program("bin/srun", f'echo "srun $*" >>"$CLOUD/calls"; exit {code}')
    cloud.program("bin/scontrol", 'echo "scontrol $*" >>"$CLOUD/calls"')
    cloud.program("bin/squeue", f"echo {state}")
    variables = {"SMF_VENV": str(cloud.folder / "venv"), "SLURM_JOB_ID": "12"}

    assert cloud("slurm_gpu.sbatch pretrain c.py", **variables)[0] == code
    assert len(cloud.lines("calls", "-m smf_jax pretrain c.py")) == 1
    assert len(cloud.lines("calls", "scontrol requeue 12")) == requeued
