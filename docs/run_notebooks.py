"""Executes notebooks in place: `python docs/run_notebooks.py [NAME ...]`."""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parent / "tutorials"


def main(names: list[str]) -> None:
    """Executes the notebooks of these names, by default all."""
    # Commands in a notebook find `smf` as in an active environment.
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    paths = [TUTORIALS / f"{name}.ipynb" for name in names]
    for path in paths or sorted(TUTORIALS.glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=None,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(TUTORIALS)}},
        ).execute()
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
