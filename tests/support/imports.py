"""Which module imports which, read from the source: lazy imports and those for type checkers count."""

import ast
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path


def modules(package: str) -> dict[str, Path]:
    """The modules of an installed package by their dotted names; a package's name stands for its ``__init__``."""
    (root,) = find_spec(package).submodule_search_locations
    paths = sorted(Path(root).rglob("*.py"))
    return {
        ".".join([package, *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in paths
    }


def imported(source: str, known: Iterable[str]) -> Iterator[str]:
    """The known modules that a source imports, wherever in it; a name that is imported from one counts as that one."""
    known = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "relative imports aren't used here"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            names = [ast.unparse(node.args[0]).strip("'")]
        else:
            continue
        for name in names:
            parts = name.split(".")
            prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            yield from (
                [next((prefix for prefix in prefixes if prefix in known), "")] if parts[0] in roots(known) else []
            )


def roots(known: Iterable[str]) -> set[str]:
    """The top-level packages of modules."""
    return {name.split(".")[0] for name in known}


def graph(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Each module with the modules that it imports, of those that are given with their sources."""
    return {
        name: {other for other in imported(source, sources) if other and other != name}
        for name, source in sources.items()
    }


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Some circle of imports, its first module at both ends; empty where there is none."""
    done: set[str] = set()
    for start in edges:
        path: list[str] = []
        stack = [(start, iter(sorted(edges[start])))] if start not in done else []
        path += [start] if stack else []
        while stack:
            name, others = stack[-1]
            other = next(others, None)
            if other is None:
                done.add(name)
                stack.pop()
                path.pop()
            elif other in path:
                return [*path[path.index(other) :], other]
            elif other not in done:
                stack.append((other, iter(sorted(edges[other]))))
                path.append(other)
    return []
