"""The record of what made an output: settings, weights, code, machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("wsi", "models", "pipelines")
LIBRARIES = ("openslide-bin", "tiffslide", "torch", "openvino", "zarr", "numpy", "opencv-python-headless")
_ROOT = Path(__file__).resolve().parents[2]


@lru_cache(maxsize=1)
def version() -> str:
    """The installed version of slidewright."""
    return metadata.version("slidewright")


@lru_cache(maxsize=1)
def code_hash() -> str:
    """Hash of every source file of the three packages."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((_ROOT / package).rglob("*.py")):
            digest.update(str(path.relative_to(_ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(**parts: Any) -> str:
    """A short hash of settings; their order does not matter."""
    text = json.dumps(parts, sort_keys=True, default=str, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def commit() -> str | None:
    """The source tree's commit, with ``+`` if it was changed; None outside a git checkout."""
    if not (_ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    process = subprocess.run(
        ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return process.stdout.strip()


def machine() -> dict[str, Any]:
    """Operating system, processor, cores and Python; no host or user name."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name and the instructions that matter for scoring."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    values = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    facts = {key.strip(): value.strip() for key, value in values.items()}
    flags = facts.get("flags", "").split()
    useful = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512_vnni", "avx2") if flag in flags]
    return f"{facts.get('model name', platform.machine())} ({', '.join(useful) or 'no vector extensions'})"


def libraries() -> dict[str, str]:
    """Versions of the libraries whose change can change a result."""
    return {name: metadata.version(name) for name in LIBRARIES}


def run_record(
    settings: dict[str, Any], models: list[dict[str, Any]], engine: str, settings_fingerprint: str
) -> dict[str, Any]:
    """The record of what made a run's outputs, for ``run.json``.

    Args:
        settings: settings of the whole run.
        models: name, sha256 and demonstration of each model.
        engine: description of the engine that ran the models.
        settings_fingerprint: hash of everything that is the same for every slide of the run.
    """
    return {
        "program": f"slidewright {version()}",
        "intended_use": "research use only",
        "settings_fingerprint": settings_fingerprint,
        "settings": settings,
        "models": models,
        "engine": engine,
        "code": code_hash(),
        "commit": commit(),
        "libraries": libraries(),
        "machine": machine(),
    }
