"""Tests marked gpu run where there is one, and say elsewhere why they don't."""

import shutil
import subprocess

import pytest


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and (reason := no_gpu()):
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {reason}"))


def no_gpu():
    """Why there is no GPU here, or None. The driver's own tool is asked, since torch is not in the workflow's environment."""
    if shutil.which("nvidia-smi") is None:
        return "nvidia-smi is not installed"
    found = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True)
    return None if found.returncode == 0 and found.stdout.strip() else "nvidia-smi lists none"
