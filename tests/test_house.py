"""The law of the house: imports go down the floors, files and functions stay small."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "smf_jax"
FLOORS = (
    ("config", "exits", "extras", "atomic", "cpu", "progress", "tree"),
    ("sharding",),
    ("kernels", "multihost"),
    ("model", "slots", "data"),
    ("optim", "evaluate", "checkpoint", "hf"),
    ("runs", "torch_baseline"),
    ("train",),
    ("verbs",),
    ("report", "plan", "bench", "demo", "doctor"),
    ("cli",),
    ("__main__",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILE_LINES, FUNCTION_LINES = 300, 70


def module_name(path: Path) -> str:
    parts = ("smf_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def imports(name: str) -> Iterator[str]:
    """Yields the modules of the package that a module imports, wherever it does so."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Either a module, or something in one: `from smf_jax.train import loop`.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            named = [part if part in MODULES else node.module for part in inside]
        else:
            continue
        yield from (part for part in named if part and part.split(".")[0] == "smf_jax")


def room(name: str) -> str:
    return [*name.split("."), "__init__"][1]


GRAPH = {name: set(imports(name)) for name in MODULES}


def test_every_room_has_a_floor():
    assert {room(name) for name in MODULES} - {"__init__"} <= FLOOR.keys()


def test_imports_go_down_the_floors():
    floor = FLOOR | {"__init__": -1}  # the package itself imports nothing of its own
    wrong = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in sorted(others)
        if room(name) != room(other)
        and floor.get(room(name), -1) <= floor.get(room(other), -1)
    ]
    assert wrong == []


def test_imports_name_files_that_exist():
    wrong = [f"{name} imports {o}" for name in GRAPH for o in GRAPH[name] - set(GRAPH)]
    assert wrong == []


def test_imports_are_absolute():
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
    ]
    assert wrong == []


def test_no_files_import_each_other_in_a_circle():
    graphlib.TopologicalSorter(GRAPH).prepare()  # its CycleError names the circle


def test_a_file_has_at_most_300_lines():
    sizes = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: size for name, size in sizes.items() if size > FILE_LINES} == {}


def test_a_function_has_at_most_70_lines():
    wrong = [
        f"{name}.{node.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
    ]
    assert wrong == []


def test_the_package_asserts_nothing():
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert wrong == []


def test_an_except_says_what_it_catches():
    wrong = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                kinds = ast.walk(node.type) if node.type else ()
                caught = {kind.id for kind in kinds if isinstance(kind, ast.Name)}
                if node.type is None or caught & {"Exception", "BaseException"}:
                    wrong.append(f"{name}:{node.lineno}")
    assert wrong == []


def test_nothing_is_left_to_do():
    wrong = [name for name, path in MODULES.items() if "TODO" in path.read_text()]
    assert wrong == []
