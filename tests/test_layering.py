"""The arrows of the house point down: every import statement is read and held against the rooms' table."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# numpy: the interpreter computes in it; llvmlite: Numba's own compiler
LANGUAGES = {
    "triton": {"triton", "numpy"},
    "cuda": {"kernelzoo._cuda"},
    "cpp": {"kernelzoo._cpu"},
    "numba": {"numba", "numpy", "llvmlite"},
}
# what launchers share
SHARED = {
    f"kernelzoo.kernels.{name}"
    for name in (
        "memory",
        "batch_norm",
        "class_loss",
        "conv",
        "elementwise_loss",
        "gated",
        "pool",
        "product",
        "rnn",
    )
}
STANDARD = {
    "ctypes",
    "functools",
    "math",
    "mmap",
    "os",
    "sys",
    "threading",
    "warnings",
    "collections",
    "contextlib",
    "typing",
}
# room -> what of kernelzoo it may import besides itself
MAY = {
    "ops": {"ops"},
    "functional": {"ops"},
    "nn": {"ops", "functional"},
    "optim": {"ops"},
    "zoo": {"ops", "functional", "nn"},
    "data": set(),
    "verify": {"ops", "functional"},
    "ceilings": set(),
    "env": {"ops", "ceilings"},
    "train": {"ops", "functional", "nn", "optim", "zoo", "data"},
    "cli": None,  # anything
    "__init__": None,
    "__main__": None,
}


def imported(path, package):
    """Absolute names of the modules that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            if node.module is None or module in ("kernelzoo", "kernelzoo.kernels"):
                found |= {f"{module}.{alias.name}" for alias in node.names}
            else:
                found.add(module)
    return found


def files(folder, package):
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).parts[:-1]
        yield path, ".".join([package, *parts])


SOURCES = list(files("src/kernelzoo", "kernelzoo"))
KERNELS = list(files("kernels", "kernelzoo.kernels"))


@pytest.mark.parametrize(("path", "package"), SOURCES, ids=lambda v: v.name if isinstance(v, Path) else v)
def test_sources_import_downwards(path, package):
    relative = path.relative_to(ROOT / "src/kernelzoo")
    room = relative.parts[0].removesuffix(".py")
    assert room in MAY, f"{relative} is in no room of the table"
    if MAY[room] is None:
        return
    for name in imported(path, package):
        if name.startswith("kernelzoo.") and name.split(".")[1] != room:
            target = name.split(".")[1]
            allowed = MAY[room] | {"kernels"} if str(relative) == "ops/core/registry.py" else MAY[room]
            assert target in allowed, f"{relative} imports {name}"


@pytest.mark.parametrize(("path", "package"), KERNELS, ids=lambda v: v.name if isinstance(v, Path) else v)
def test_kernels_import_torch_their_language_and_their_own_folder(path, package):
    backend = package.removeprefix("kernelzoo.kernels").lstrip(".")
    allowed = {"torch", *SHARED, *LANGUAGES.get(backend, set())}
    for name in imported(path, package):
        ours = name.startswith("kernelzoo.kernels") and name.startswith(package)
        top = name.split(".")[0]
        assert ours or name in allowed or top in allowed | STANDARD, (
            f"{path.relative_to(ROOT)} imports {name}"
        )
        if path.name == "math.py":
            assert top not in ("torch", "kernelzoo") or name.startswith(package), (
                f"{path.name} imports {name}"
            )
    text = path.read_text()
    for word in ("torch.autograd", "os.environ", "getenv", "requires_grad"):
        assert word not in text, f"{path.relative_to(ROOT)} uses {word}"
