"""The scripts against a cloud that is not there: small programs stand in for it.

The stand-ins for gcloud and kubectl write down how they were called. That for gcloud
runs what is sent to a host in a folder of that host; that for curl is the metadata
server. The scripts on both sides are the real ones.
"""

import json
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

GCLOUD = r"""#!/usr/bin/env bash
printf '%s\n' "gcloud $*" >>"$CLOUD/calls"
on() { (cd "$CLOUD/$1" && HOME=$PWD HOST=$1 bash -c "$2"); }
words=" $* "
command=${!#}
case $words in
  *" list "*)
    [[ ! -s $CLOUD/states ]] || head -n 1 "$CLOUD/states"
    (($(wc -l <"$CLOUD/states") < 2)) || sed -i 1d "$CLOUD/states"
    ;;
  *" tpu-vm scp "*) for host in $HOSTS; do cp "$5" "$CLOUD/$host/${6#*:}"; done ;;
  *" --worker all "*)
    code=0
    for host in $HOSTS; do on "$host" "$command" || code=$?; done
    exit "$code"
    ;;
  *" --worker 0 "*) on 0 "$command" ;;
  *" delete "*) : >"$CLOUD/states" ;;
esac
"""
KUBECTL = r"""#!/usr/bin/env bash
printf '%s\n' "kubectl $*" >>"$CLOUD/calls"
case " $* " in
  *" apply "*) cat >"$CLOUD/applied.yaml" ;;
  *".command}"*) [[ ! -f $CLOUD/jobset ]] || sed -n 1p "$CLOUD/jobset" ;;
  *".type}"*) [[ ! -f $CLOUD/jobset ]] || sed -n 2p "$CLOUD/jobset" ;;
esac
"""
CURL = r"""#!/usr/bin/env bash
case ${!#} in
  */instance/attributes/worker-network-endpoints) printf '%s' "$ENDPOINTS" ;;
  */instance/attributes/agent-worker-number) printf '%s' "$HOST" ;;
  *) exit 22 ;;
esac
"""
# In the place of the program: says who it is; waits to be stopped; or ends as told.
PYTHON = r"""#!/usr/bin/env bash
trap 'exit 75' TERM
line="$* as $SMF_PROCESS_ID of $SMF_NUM_PROCESSES at $SMF_COORDINATOR"
echo "$line" | tee -a "$CLOUD/ran"
[[ $3 != wait ]] || while true; do read -r -t 0.05 <> <(:) || true; done
exit "$(cat "$CLOUD/code.$HOST" 2>/dev/null || echo 0)"
"""
ENDPOINTS = "n0:7:10.0.0.4,n1:8:10.0.0.5"
SLICE = {"TPU_NAME": "smf-16", "PROJECT": "mine", "ZONE": "us-west4-a"}
GKE = {
    **{"TPU_NAME": "smf", "PROJECT": "mine", "CLUSTER": "one", "LOCATION": "us-west4"},
    **{"ZONE": "us-west4-a", "IMAGE": "images/smf", "SMF_SHARE": "10.0.0.2:/smf"},
    **{"MACHINE_TYPE": "ct5lp-hightpu-4t", "TPU_TOPOLOGY": "4x4"},
    **{"TPU_ACCELERATOR": "tpu-v5-lite-podslice", "RUN": "runs/world"},
}
NEEDED = {
    "create.sh": [*SLICE, "TPU_TYPE"],
    "setup.sh": [*SLICE],
    "run.sh": [*SLICE],
    "fetch.sh": [*SLICE, "RUN"],
    "delete.sh": [*SLICE],
    "gke.sh create": [
        *("TPU_NAME", "PROJECT", "CLUSTER", "LOCATION", "ZONE"),
        *("MACHINE_TYPE", "TPU_TOPOLOGY"),
    ],
    "gke.sh setup": ["IMAGE"],
    "gke.sh run usage": ["IMAGE", "SMF_SHARE", "MACHINE_TYPE", "TPU_ACCELERATOR"],
    "gke.sh fetch": ["IMAGE", "SMF_SHARE", "RUN"],
    "slurm_gpu.sbatch usage": ["SMF_VENV"],
}
EVERYTHING = {**GKE, **SLICE, "TPU_TYPE": "v5litepod-16", "SMF_VENV": "/venv"}


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Cloud:
    """A folder with the stand-ins, and a folder for each host of a slice."""

    def __init__(self, folder: Path, hosts: int = 2):
        self.folder = folder
        for name, text in {"gcloud": GCLOUD, "kubectl": KUBECTL, "curl": CURL}.items():
            self.program(name, text)
        for host in range(hosts):
            (folder / str(host)).mkdir()
        (folder / "states").touch()
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CLOUD": str(folder),
            "HOSTS": " ".join(map(str, range(hosts))),
            "ENDPOINTS": ",".join(ENDPOINTS.split(",")[:hosts]),
            **{"USER": "me", "POLL_SECONDS": "0", "TMPDIR": str(folder)},
        }

    def program(self, name: str, text: str) -> None:
        executable(self.folder / "bin" / name, text)

    def installed(self) -> None:
        """Puts the scripts and the stand-in for the program on every host."""
        for host in self.environment["HOSTS"].split():
            home = self.folder / host / "smf_jax"
            shutil.copytree(FOLDER, home / "tpu_scripts")
            executable(home / ".venv/bin/python", PYTHON)

    def command(self, line: str, **variables: str) -> dict:
        script, *arguments = line.split()
        return {
            "args": ["bash", str(FOLDER / script), *arguments],
            "env": {**self.environment, **variables},
            **{"cwd": self.folder, "text": True, "stdin": subprocess.DEVNULL},
        }

    def __call__(self, line: str, **variables: str):
        done = subprocess.run(
            **self.command(line, **variables), capture_output=True, timeout=60
        )
        done.printed = done.stdout + done.stderr
        return done

    def begin(self, line: str, **variables: str) -> subprocess.Popen:
        """Runs a script of its own session; returns when every host has the command."""
        process = subprocess.Popen(
            **self.command(line, **variables),
            **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE},
            start_new_session=True,
        )
        while len(self.ran()) < len(self.environment["HOSTS"].split()):
            time.sleep(0.05)
        return process

    def calls(self, *words: str) -> list[str]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if all(f" {word}" in line for word in words)]

    def ran(self) -> list[str]:
        path = self.folder / "ran"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def cloud(tmp_path):
    """Returns a cloud with a slice of two hosts."""
    return Cloud(tmp_path)


@pytest.fixture
def slice_(cloud):
    """Returns a cloud whose hosts have been set up; ends what still runs on them."""
    cloud.installed()
    yield cloud
    cloud("run.sh --stop", **SLICE)


# --- all scripts ---


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound_to_bash_and_shellcheck(path):
    where = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=where)
    for command in (["bash", "-n"], [shellcheck or "shellcheck"]):
        done = subprocess.run([*command, path], capture_output=True, text=True)
        assert done.stdout + done.stderr == ""
        assert done.returncode == 0


@pytest.mark.parametrize("line", NEEDED)
def test_a_script_without_a_variable_names_it_and_calls_nothing(cloud, line):
    for name in NEEDED[line]:
        others = {key: text for key, text in EVERYTHING.items() if key != name}
        script, *rest = line.split()
        done = cloud(f"{script} --dry-run {' '.join(rest)}", **others)
        assert done.returncode != 0
        assert f"set {name}" in done.stderr
    assert cloud.calls() == []


@pytest.mark.parametrize("line", NEEDED)
def test_an_unknown_argument_is_refused(cloud, line):
    script, *rest = line.split()
    done = cloud(f"{script} --dryrun {' '.join(rest)}", **EVERYTHING)

    assert done.returncode == 2
    assert "unknown argument '--dryrun'" in done.stderr


DRY = {
    "create.sh --dry-run": ["queued-resources list", "queued-resources create smf-16"],
    "setup.sh --dry-run": ["git archive", "tpu-vm scp", "on_worker/setup.sh"],
    "run.sh --dry-run usage runs/world": [
        "job.sh status",
        "--worker all",
        "SMF_COORDINATOR=$coordinator SMF_NUM_PROCESSES=$processes SMF_PROCESS_ID=",
        "job.sh start usage runs/world",
        "--worker 0",
        "job.sh follow",
    ],
    "fetch.sh --dry-run": ["--worker 0", "find", "tar"],
    "delete.sh --dry-run": ["queued-resources list", "queued-resources delete smf-16"],
    "gke.sh --dry-run create": ["node-pools list", "node-pools create smf-16"],
    "gke.sh --dry-run setup": ["git archive", "docker build", "docker push"],
    "gke.sh --dry-run run usage runs/world": ["get jobset", "kind: JobSet", "apply"],
    "gke.sh --dry-run logs": ["kubectl", "logs --follow", "get jobset"],
    "gke.sh --dry-run fetch": ["kind: Pod", "apply", "wait", "exec", "delete pod"],
    "gke.sh --dry-run delete": ["delete jobset smf-16", "node-pools delete smf-16"],
    "slurm_gpu.sbatch --dry-run usage runs/world": [
        "srun --ntasks-per-node=1",
        "/venv/bin/python -m smf_jax usage runs/world",
    ],
}


@pytest.mark.parametrize("line", DRY)
def test_a_dry_run_prints_the_commands_in_order_and_runs_none(cloud, line):
    done = cloud(line, **EVERYTHING)

    assert done.returncode == 0
    rest = done.printed
    for words in DRY[line]:
        assert words in rest
        rest = rest.partition(words)[2]
    assert cloud.calls() == []


# --- a slice comes and goes ---

CREATE = {**SLICE, "TPU_TYPE": "v5litepod-16"}


@pytest.mark.parametrize("spot", ["yes", "no"])
def test_create_asks_once_and_waits_until_the_slice_is_there(cloud, spot):
    states = "\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\tv5litepod-16\n"
    (cloud.folder / "states").write_text(states)

    first = cloud("create.sh", **CREATE, TPU_SPOT=spot)
    second = cloud("create.sh", **CREATE, TPU_SPOT=spot)

    assert first.returncode == second.returncode == 0
    assert "PROVISIONING" in first.stderr
    assert "is there already" in second.stderr
    (call,) = cloud.calls("create", "smf-16")
    assert "--node-id smf-16 --accelerator-type v5litepod-16" in call
    assert "--runtime-version v2-alpha-tpuv5-lite" in call
    assert ("--spot" in call) == (spot == "yes")


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_create_says_why_there_is_no_slice_and_removes_nothing(cloud, state):
    (cloud.folder / "states").write_text(f"{state}\tv5litepod-16\n")

    done = cloud("create.sh", **CREATE)

    assert done.returncode == 1
    assert f"smf-16 is {state}" in done.stderr
    assert cloud.calls("describe", "smf-16") != []
    assert cloud.calls("create") == cloud.calls("delete") == []


def test_create_refuses_a_slice_of_another_type(cloud):
    (cloud.folder / "states").write_text("ACTIVE\tv5litepod-8\n")

    done = cloud("create.sh", **CREATE)

    assert done.returncode == 2
    assert "as v5litepod-8, not as TPU_TYPE=v5litepod-16" in done.stderr


@pytest.mark.parametrize(
    ("kind", "said"),
    [("v5litepod-16", "16 chips x 1.5 = 24.00"), ("v5p-16", "8 chips x 1.5 = 12.00")],
)
def test_create_tells_what_an_hour_costs(cloud, kind, said):
    price = {"PRICE_PER_CHIP_HOUR": "1.5", "TPU_TYPE": kind}

    assert said in cloud("create.sh --dry-run", **SLICE, **price).stderr


def test_delete_deletes_what_is_there_and_is_content_with_nothing(cloud):
    (cloud.folder / "states").write_text("ACTIVE\n")

    assert cloud("delete.sh", **SLICE).returncode == 0
    done = cloud("delete.sh", **SLICE)

    assert done.returncode == 0
    assert "there is no smf-16" in done.stderr
    assert len(cloud.calls("delete", "smf-16")) == 1


# --- who is who ---


@pytest.mark.parametrize("endpoints", [ENDPOINTS, "10.0.0.4,10.0.0.5"])
def test_a_host_learns_from_the_metadata_who_it_is(cloud, endpoints):
    line = f'. {FOLDER}/on_worker/who.sh && echo "$coordinator $processes $process"'
    environment = {**cloud.environment, "ENDPOINTS": endpoints, "HOST": "1"}

    got = subprocess.check_output(["bash", "-c", line], env=environment, text=True)

    assert got == "10.0.0.4:8476 2 1\n"


def test_a_host_without_metadata_starts_nothing(slice_):
    slice_.program("curl", "#!/bin/sh\nexit 22\n")

    assert slice_("run.sh usage", **SLICE).returncode == 3
    assert slice_.ran() == []


# --- a command on a slice ---


def test_run_gives_every_host_the_command_and_its_own_number(slice_):
    done = slice_("run.sh usage runs/world --documents 5", **SLICE)

    assert done.returncode == 0
    want = "-m smf_jax usage runs/world --documents 5 as {} of 2 at 10.0.0.4:8476"
    assert sorted(slice_.ran()) == [want.format(0), want.format(1)]
    assert want.format(0) in done.stdout  # its log, followed


def test_run_starts_no_command_again_that_has_ended_well_unless_told_to(slice_):
    assert slice_("run.sh usage runs/a", **SLICE).returncode == 0

    done = slice_("run.sh usage runs/a", **SLICE)
    assert done.returncode == 0
    assert "ended well" in done.stderr
    assert len(slice_.ran()) == 2

    assert slice_("run.sh --again usage runs/a", **SLICE).returncode == 0
    assert len(slice_.ran()) == 4


def test_run_tells_the_exit_code_of_a_command_that_failed_and_goes_on(slice_):
    (slice_.folder / "code.1").write_text("69")

    assert slice_("run.sh usage", **SLICE).returncode == 69
    assert slice_("run.sh", **SLICE).returncode == 69  # tells it, starts nothing
    assert len(slice_.ran()) == 2
    (slice_.folder / "code.1").unlink()
    assert slice_("run.sh usage", **SLICE).returncode == 0
    assert len(slice_.ran()) == 4


def test_run_does_not_start_what_runs_and_outlives_the_one_who_follows(slice_):
    first = slice_.begin("run.sh wait", **SLICE)
    os.killpg(first.pid, signal.SIGKILL)  # the connection drops
    first.communicate()

    other = slice_("run.sh usage", **SLICE)
    second = slice_.begin("run.sh wait", **SLICE)
    while "running: wait" not in second.stderr.readline():
        pass
    stopped = slice_("run.sh --stop", **SLICE)
    second.communicate()

    assert other.returncode == 2
    assert "another command is running: wait" in other.stderr
    assert second.returncode == stopped.returncode == 75
    assert len(slice_.ran()) == 2


def test_before_anything_was_started_run_says_so(slice_):
    done = slice_("run.sh", **SLICE)

    assert done.returncode == 0
    assert "nothing was started" in done.stderr


# --- setting up ---

UV = r"""#!/usr/bin/env bash
printf '%s\n' "uv $*" >>"$CLOUD/calls"
[[ $1 != venv ]] || { mkdir -p .venv/bin && cp /bin/true .venv/bin/python; }
"""


@pytest.fixture
def share(cloud, tmp_path):
    """Returns the folder that the hosts take for the mounted share."""
    cloud.program("uv", UV)
    cloud.program("mountpoint", '#!/bin/sh\n[ -e "$2" ]\n')
    cloud.environment["SHARE_MOUNT"] = str(tmp_path / "share")
    for name in ("runs", "data"):
        (tmp_path / "share" / name).mkdir(parents=True)
    return tmp_path / "share"


def test_setup_puts_the_committed_state_on_every_host(cloud, share):
    home = cloud.folder / "1" / "smf_jax"
    home.mkdir()
    (home / "old.py").touch()  # of an earlier commit
    (home / ".sent").write_text("./old.py\n")
    (home / "mine.jsonl").touch()

    done = cloud("setup.sh", **SLICE, SMF_SHARE="10.0.0.2:/smf")

    assert done.returncode == 0, done.printed
    assert done.stdout.splitlines() == [f"host {n} of 2: ready" for n in range(2)]
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    assert (home / "pyproject.toml").exists()
    assert {*(home / ".sent").read_text().split()} <= {
        f"./{name}" for name in listed.split()
    }
    assert not (home / "old.py").exists()
    assert (home / "mine.jsonl").exists()
    assert (home / "runs").resolve() == share / "runs"
    assert len(cloud.calls("--editable .[tpu]", "--constraint constraints.txt")) == 2


def test_setup_again_is_the_same_setup(cloud, share):
    for _ in range(2):
        assert cloud("setup.sh", **SLICE).returncode == 0

    assert len(cloud.calls("venv --quiet")) == 2  # one a host


def test_several_hosts_without_a_share_are_refused(cloud, share):
    shutil.rmtree(share)

    done = cloud("setup.sh", **SLICE)

    assert done.returncode == 2
    assert "2 hosts need one file system: set SMF_SHARE" in done.stderr


def test_one_host_needs_no_share(tmp_path):
    cloud = Cloud(tmp_path, hosts=1)
    cloud.program("uv", UV)

    done = cloud("setup.sh", **SLICE, SHARE_MOUNT=str(tmp_path / "nothing"))

    assert done.returncode == 0
    assert "end with it" in done.stdout


def test_setup_does_not_change_the_code_of_what_runs(slice_, share):
    running = slice_.begin("run.sh wait", **SLICE)
    done = slice_("setup.sh", **SLICE)
    slice_("run.sh --stop", **SLICE)
    running.communicate()

    assert done.returncode == 2
    assert "a command is running" in done.stderr


# --- bringing a run home ---


def test_fetch_copies_a_run_and_sends_again_only_what_is_new(cloud):
    there = cloud.folder / "0/smf_jax/runs/world"
    for number in range(150):  # more than go into one command
        path = there / f"checkpoints/{number}/a name"
        path.parent.mkdir(parents=True)
        path.write_text(str(number))
    here = cloud.folder / "fetched/runs/world"
    variables = {**SLICE, "RUN": "runs/world"}

    assert "150 files were sent" in cloud("fetch.sh", **variables).stderr
    assert (here / "checkpoints/149/a name").read_text() == "149"
    assert " 0 files were sent" in cloud("fetch.sh", **variables).stderr
    (here / "checkpoints/7/a name").write_text("")  # cut short
    (there / "metrics.jsonl").write_text("{}")
    assert " 2 files were sent" in cloud("fetch.sh", **variables).stderr
    assert (here / "checkpoints/7/a name").read_text() == "7"


def test_fetch_refuses_a_run_that_is_not_there(cloud):
    (cloud.folder / "0/smf_jax").mkdir()

    assert cloud("fetch.sh", **SLICE, RUN="runs/nothing").returncode != 0


# --- GKE ---


def test_gke_runs_one_command_on_every_host_of_the_slice(cloud):
    done = cloud('gke.sh run pretrain c.py --name "a\\b"', **GKE)

    assert done.returncode == 0
    jobset = yaml.safe_load((cloud.folder / "applied.yaml").read_text())
    assert (jobset["kind"], jobset["metadata"]["name"]) == ("JobSet", "smf")
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    container = pod["containers"][0]
    python = ["python", "-m", "smf_jax"]
    assert container["command"] == [*python, "pretrain", "c.py", "--name", '"a\\b"']
    environment = {one["name"]: one for one in container["env"]}
    address = environment["SMF_COORDINATOR"]["value"]
    assert address == "smf-worker-0-0.smf:8476"
    assert address.partition(".")[2] == f"{jobset['spec']['network']['subdomain']}:8476"
    assert environment["SMF_NUM_PROCESSES"]["value"] == "4"
    number = environment["SMF_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert "job-completion-index" in number
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4"
    assert pod["volumes"][0]["nfs"] == {"server": "10.0.0.2", "path": "/smf"}
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    assert "@" not in "".join(map(str, pod.values()))


@pytest.mark.parametrize(
    ("command", "state", "code", "applied", "said"),
    [
        ("usage", "StartupPolicyCompleted", 0, False, "runs already"),
        ("usage", "", 0, False, "runs already"),
        ("evaluate", "", 2, False, "another command is running"),
        ("usage", "Completed", 0, False, "ended well"),
        ("evaluate", "Completed", 0, True, ""),
        ("usage", "Failed", 0, True, ""),
    ],
)
def test_gke_run_starts_what_neither_runs_nor_has_ended_well(
    cloud, command, state, code, applied, said
):
    before = json.dumps(["python", "-m", "smf_jax", "usage"], separators=(",", ":"))
    (cloud.folder / "jobset").write_text(f"{before}\n{state}\n")

    done = cloud(f"gke.sh run {command}", **GKE)

    assert done.returncode == code
    assert said in done.stderr
    assert bool(cloud.calls("apply")) == bool(cloud.calls("delete jobset")) == applied


def test_gke_refuses_a_topology_of_no_whole_number_of_hosts(cloud):
    done = cloud("gke.sh create", **{**GKE, "TPU_TOPOLOGY": "1x2"})

    assert done.returncode == 2
    assert "no whole number of hosts of 4 chips" in done.stderr


def test_gke_creates_a_pool_once_and_deletes_it_once(cloud):
    assert cloud("gke.sh create", **GKE).returncode == 0
    (cloud.folder / "states").write_text("RUNNING\n")
    assert "there already" in cloud("gke.sh create", **GKE).stderr
    assert cloud("gke.sh delete", **GKE).returncode == 0
    assert "no node pool" in cloud("gke.sh delete", **GKE).stderr

    (call,) = cloud.calls("node-pools create")
    assert "--num-nodes 4 --tpu-topology 4x4" in call
    assert len(cloud.calls("node-pools delete")) == 1


# --- SLURM ---


@pytest.mark.parametrize(
    ("code", "state", "again"),
    [
        (0, "RUNNING", False),
        (75, "RUNNING", True),
        (69, "RUNNING", True),
        (2, "RUNNING", False),
        (75, "COMPLETING", False),
    ],
)
def test_a_slurm_job_that_was_told_to_stop_is_queued_again(cloud, code, state, again):
    executable(cloud.folder / "venv/bin/python", "")
    cloud.program("srun", f'#!/bin/sh\necho "srun $*"\nexit {code}\n')
    cloud.program("squeue", f"#!/bin/sh\necho {state}\n")
    cloud.program("scontrol", '#!/bin/sh\necho "scontrol $*"\n')
    variables = {"SMF_VENV": str(cloud.folder / "venv"), "SLURM_JOB_ID": "12"}

    done = cloud("slurm_gpu.sbatch pretrain c.py", **variables)

    assert done.returncode == code
    assert "python -m smf_jax pretrain c.py" in done.stdout
    assert ("scontrol requeue 12" in done.stdout) == again
