"""Runs kustomize, if there is one."""

import shutil
import subprocess


def command():
    """The command before the folder, or None."""
    if shutil.which("kustomize"):
        return ["kustomize", "build"]
    if shutil.which("kubectl"):
        return ["kubectl", "kustomize"]
    return None


def build(folder):
    done = subprocess.run(command() + [str(folder)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{folder}: {done.stderr}")
    return done.stdout
