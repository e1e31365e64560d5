"""Digests of code: a user's file with the user's files that it imports, an installed file, our package as a whole."""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from inspect import unwrap
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

__all__ = ["bytecode", "class_sources", "file_digest", "folder_digest", "is_standard", "path_of", "source_digest"]

_OWN = "lightning_privacy"
"""Stands in every key as one digest of all its files."""
_OWN_FOLDER = Path(__file__).resolve().parents[1]
_STANDARD = frozenset(
    {
        *sys.stdlib_module_names,
        "torch",
        "lightning",
        "lightning_fabric",
        "lightning_utilities",
        "pytorch_lightning",
        "numpy",
    }
)
"""Stand in every key by their version, or do not train."""
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def path_of(thing: Any) -> str:
    """Return ``module:name`` of a class or function.

    Example:
        >>> path_of(Path)
        'pathlib:Path'
    """
    return f"{thing.__module__}:{thing.__qualname__}"


def is_standard(module: str | None) -> bool:
    """Return whether a module is Python's, torch's, Lightning's, NumPy's or ours.

    Args:
        module: Its dotted name; None counts as Python's.

    Example:
        >>> is_standard("torch.nn"), is_standard("torchvision")
        (True, False)
    """
    return (module or "builtins").split(".")[0] in {*_STANDARD, _OWN}


def class_sources(classes: Sequence[type]) -> dict[str, str]:
    """Return a digest of the source of each class and of its bases; those of `is_standard` are left out.

    Args:
        classes: Classes whose code takes part in training.

    Example:
        >>> class_sources([ast.NodeVisitor])
        {}
    """
    every = {base for cls in classes for base in cls.__mro__ if not is_standard(base.__module__)}
    return {path_of(cls): source_digest(cls) for cls in sorted(every, key=path_of)}


def source_digest(thing: Any) -> str:
    """Return a digest of the file that a class or function stands in, which may hold helpers that it calls.

    With a user's file go the user's files that it imports; comments and layout do not count. What was typed at a prompt
    has no file, and its instructions stand for it.

    Args:
        thing: A class or a function.
    """
    functions = [each for each in _functions(thing) if isinstance(each, FunctionType)]
    module = sys.modules.get(thing.__module__) if isinstance(thing, type) else None
    named = [each.__code__.co_filename for each in functions] + [getattr(module, "__file__", None) or ""]
    files = sorted({Path(name).resolve() for name in named if name and Path(name).is_file()})
    parts: list[Any] = [file_digest(file) for file in files]
    if len(files) < len(set(filter(None, named))) or not files:
        parts.append(bytecode(thing))
    return sha256(repr(parts).encode()).hexdigest()


def _functions(thing: Any) -> list[Any]:
    parts = vars(thing).values() if isinstance(thing, type) else [thing]
    return [unwrap(getattr(part, "__func__", part)) for part in parts]


def file_digest(file: Path) -> str:
    """Return the digest of a file, and of the user's files that it imports, wherever in it.

    Args:
        file: A Python file. An installed one stands for itself, with its package's version.
    """
    if _OWN_FOLDER in file.parents:
        return _OWN
    if _installed(file):
        top = file.parts[_depth(file)].removesuffix(".py")
        version = getattr(sys.modules.get(top), "__version__", "")
        return sha256(f"{version} {_installed_digest(file)}".encode()).hexdigest()
    seen: dict[Path, str] = {}
    waiting = [file]
    while waiting:
        here = waiting.pop()
        if here in seen or _installed(here) or _OWN_FOLDER in here.parents:
            continue
        state = here.stat()
        seen[here], imported = _parsed(here, state.st_mtime_ns, state.st_size)
        waiting += imported
    # Without their places: the same project in another folder is the same code.
    return sha256(repr([seen.pop(file), sorted(seen.values())]).encode()).hexdigest()


def folder_digest(folder: Path) -> str:
    """Return the digest of all Python files below a folder.

    Args:
        folder: Such as a package's.
    """
    files = sorted((file.relative_to(folder).as_posix(), file) for file in folder.rglob("*.py"))
    digest = sha256()
    for name, file in files:
        digest.update(f"{name} {sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _installed(file: Path) -> bool:
    return _depth(file) > 0


def _depth(file: Path) -> int:
    """Return how many parts of a file's path lead to the folder it was installed in; 0 for a user's file."""
    for name in ("site-packages", "dist-packages"):
        if name in file.parts:
            return len(file.parts) - file.parts[::-1].index(name)
    return max((len(folder.parts) for folder in _LIBRARIES if folder in file.parents), default=0)


@lru_cache(maxsize=4096)
def _installed_digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


@lru_cache(maxsize=4096)
def _parsed(file: Path, changed: int, size: int) -> tuple[str, tuple[Path, ...]]:
    """Return the digest of a user's file and the files that it may import; a changed file is parsed anew."""
    raw = file.read_bytes()
    try:
        tree = ast.parse(raw)
    except (SyntaxError, ValueError):  # compiled, or another language
        return sha256(raw).hexdigest(), ()
    found = {place for folder, name in _imports(tree, file) for place in _places(folder, name)}
    return sha256(ast.dump(tree).encode()).hexdigest(), tuple(sorted(found))


def _imports(tree: ast.Module, file: Path) -> Iterator[tuple[Path | None, str]]:
    """Yield every imported name: dotted, and the folder it is relative to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = file.parents[node.level - 1] if node.level else None
            yield from ((folder, f"{node.module or ''}.{alias.name}".strip(".")) for alias in node.names)


def _places(folder: Path | None, name: str) -> Iterator[Path]:
    """Yield the files that are run to import a dotted name, found by their places: nothing is imported for it."""
    top, *below = name.split(".")
    if folder is None:
        if top in {*_STANDARD, _OWN}:
            return
        try:
            spec = importlib.util.find_spec(top)
        except (ImportError, ValueError, AttributeError):  # optional, or a module without a specification
            return
        if spec is None:
            return
        if spec.origin and Path(spec.origin).is_file():
            yield Path(spec.origin).resolve()
        folders = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    else:
        folders, below = [folder], [top, *below]
        if (folder / "__init__.py").is_file():
            yield folder / "__init__.py"
    for part in below:
        files = [place / end for place in folders for end in (f"{part}.py", f"{part}/__init__.py")]
        yield from (file for file in files if file.is_file())
        folders = [place / part for place in folders if (place / part).is_dir()]


def bytecode(thing: Any) -> Any:
    """Return the instructions of a function, or of every function of a class, as far as Python shows them.

    Args:
        thing: A function, a class, or a part of one.
    """
    if isinstance(thing, type):
        return [(name, bytecode(part)) for name, part in sorted(vars(thing).items()) if not name.startswith("__")] + [
            bytecode(vars(thing).get("__init__"))
        ]
    if isinstance(thing, classmethod | staticmethod):
        return bytecode(thing.__func__)
    if isinstance(thing, property):
        return bytecode(thing.fget)
    # Unwrapped, because a checker of types makes wrappers with addresses in them.
    code = thing if isinstance(thing, CodeType) else getattr(unwrap(thing), "__code__", None)
    if code is None:
        plain = thing is None or isinstance(thing, bool | int | float | str)
        return thing if plain else path_of(type(thing))
    return code.co_code.hex(), code.co_names, code.co_varnames, [_constant(part) for part in code.co_consts]


def _constant(part: Any) -> Any:
    if isinstance(part, CodeType):
        return bytecode(part)
    # The order of a set differs from process to process.
    return sorted(map(repr, part)) if isinstance(part, frozenset) else repr(part)
