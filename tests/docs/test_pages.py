"""README and the pages of the documentation say what the package has."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

import smf_jax
from smf_jax.cli.commands import VERBS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "tpu_scripts/README.md")
NOTEBOOKS = sorted((ROOT / "docs/tutorials").glob("*.ipynb"))


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_stays_one_page():
    assert len(README.splitlines()) <= 160
    assert len(README.split()) <= 1100


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_lead_somewhere(page):
    path = ROOT / page
    links = re.findall(r'\]\(([^)#]+)|(?:src|srcset)="([^"]+)"', path.read_text())
    local = [a or b for a, b in links if "://" not in a + b]

    missing = [link for link in local if not (path.parent / link).exists()]

    assert missing == []


def test_no_page_holds_an_unresolved_merge():
    pages = [ROOT / page for page in PAGES]
    pages += (p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)

    conflict = re.compile("^(<{7}|>{7}) ", re.MULTILINE)
    assert [page for page in pages if conflict.search(page.read_text())] == []


def test_the_architecture_names_every_file_of_the_package():
    page = (ROOT / "docs/explanation/architecture.md").read_text()
    names = {path.name for path in (ROOT / "smf_jax").rglob("*.py")} - {"__init__.py"}

    assert {name for name in names if name not in page} == set()


def test_the_reference_lists_every_public_name():
    page = (ROOT / "docs/reference/api.md").read_text()
    listed = re.findall(r"\.\. auto\w+:: (?:smf_jax\.)?(\w+)", page)

    assert {*listed} >= {*smf_jax._PUBLIC}


def test_every_verb_and_every_field_has_its_place_in_the_reference(capsys):
    pages = load("generated_pages")

    command_line, configuration = pages.command_line(), pages.configuration()

    for verb in VERBS:
        assert f"\n## smf {verb}\n\n```text\nusage: smf {verb}" in command_line
    for row in (
        "| `top_t` | `int` | `500` | smf: slots updated per step and table |",
        "| `steps` | `int` | `150` | training steps |",
        "| `base` | `str` | required | run directory of the model to teach |",
        "| `mesh` | `MeshConfig` | [MeshConfig](#meshconfig) |  |",
    ):
        assert row in configuration


def test_blocks_of_a_page_become_one_script_in_order():
    page = """```bash
a=1
make test # all
```
words
```json
{}
```
```python
print(2)
```"""

    text = load("run_blocks").script(page, without="make test")

    assert text == "a=1\n\npython - <<'END'\nprint(2)\nEND\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_the_outputs_of_one_execution(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]

    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not any(
        output.output_type == "error" for cell in code for output in cell.outputs
    )


def test_the_notebook_of_a_flax_model_learns_new_facts_and_keeps_the_old_ones():
    cells = nbformat.read(ROOT / "docs/tutorials/own_flax_model.ipynb", as_version=4)
    names = {}

    for cell in cells.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)

    accuracy, model = names["accuracy"], names["model"]
    assert accuracy(model, names["new"]) > 0.95
    assert accuracy(model, names["old"]) > 0.95
