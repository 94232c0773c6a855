# SPDX-License-Identifier: GPL-2.0-or-later
"""The stubs say what the compiled modules are: every public name, every signature, nothing else."""

from __future__ import annotations

import ast
import inspect
import pathlib
import types

import pytest

from blkmig import _core, _gate, _input, _leaving, _output, _storing

MODULES = {module.__name__.rpartition(".")[2]: module for module in (_core, _gate, _leaving, _output, _input, _storing)}
TREES = {
    name: ast.parse(pathlib.Path(str(module.__file__)).with_name(f"{name}.pyi").read_text())
    for name, module in MODULES.items()
}
DEFINED = [(MODULES[name], node) for name, tree in TREES.items() for node in tree.body]
FUNCTIONS = [(module, node) for module, node in DEFINED if isinstance(node, ast.FunctionDef)]
VALUES = [(module, node) for module, node in DEFINED if isinstance(node, ast.AnnAssign)]
ERRORS = [(module, node) for module, node in DEFINED if isinstance(node, ast.ClassDef) and node.bases]
CLASSES = [(module, node) for module, node in DEFINED if isinstance(node, ast.ClassDef) and not node.bases]
MEMBERS = [
    (getattr(module, owner.name), node)
    for module, owner in CLASSES
    for node in owner.body
    if isinstance(node, ast.FunctionDef)
]
# What Cython gives every class for pickling, and refuses.
GIVEN = {"__reduce_cython__", "__setstate_cython__", "__reduce__", "__setstate__"}
SLOTS = {"__new__", "__doc__", "__pyx_vtable__", "__getattribute__", "__release_buffer__", *GIVEN}

READS = {"read_ahead": 512, "most_lowat": 1 << 20, "linger_nbytes": 1 << 18, "linger_seconds": 0.0002}
READS |= {"least_useful": 4096, "most_chatter": 1 << 20}


def named(value: object) -> str | None:
    """Name a parameter by what it is: the module, the class, the node."""
    if isinstance(value, types.ModuleType | type):
        return value.__name__.rpartition(".")[2]
    if isinstance(value, ast.AnnAssign):
        return ast.unparse(value.target)
    return getattr(value, "name", None)


def parameters(function: ast.FunctionDef) -> list[tuple[str, object, object]]:
    """Return name, kind and default of each parameter of a stub."""
    kinds = inspect.Parameter
    args = function.args
    positional = [(arg, kinds.POSITIONAL_ONLY) for arg in args.posonlyargs]
    positional += [(arg, kinds.POSITIONAL_OR_KEYWORD) for arg in args.args]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    pairs = [*zip(positional, [*missing, *args.defaults], strict=True)]
    keywords = [(arg, kinds.KEYWORD_ONLY) for arg in args.kwonlyargs]
    pairs += [*zip(keywords, args.kw_defaults, strict=True)]
    return [
        (arg.arg, kind, kinds.empty if default is None else ast.literal_eval(default)) for (arg, kind), default in pairs
    ]


def compiled(function: object) -> list[tuple[str, object, object]]:
    signature = inspect.signature(function)  # type: ignore[arg-type]
    return [(each.name, each.kind, each.default) for each in signature.parameters.values()]


@pytest.mark.parametrize("name", MODULES)
def test_public_names(name: str) -> None:
    public = {each for each in vars(MODULES[name]) if not each.startswith("_")} - {"os", "annotations"}
    assert public == {named(node) for module, node in DEFINED if module is MODULES[name]} - {None}


@pytest.mark.parametrize(("module", "node"), ERRORS, ids=named)
def test_errors(module: types.ModuleType, node: ast.ClassDef) -> None:
    """Exceptions are plain classes: their base, and that they say what they are."""
    error = getattr(module, node.name)
    assert [base.__name__ for base in error.__bases__] == [ast.unparse(base) for base in node.bases]
    assert inspect.getdoc(error)


@pytest.mark.parametrize(("module", "node"), VALUES, ids=named)
def test_values(module: types.ModuleType, node: ast.AnnAssign) -> None:
    value = getattr(module, ast.unparse(node.target))
    if node.value is not None:
        assert value == ast.literal_eval(node.value)
    else:
        assert ast.unparse(node.annotation).startswith(type(value).__name__)


@pytest.mark.parametrize(("module", "node"), FUNCTIONS, ids=named)
def test_functions(module: types.ModuleType, node: ast.FunctionDef) -> None:
    function = getattr(module, node.name)
    assert parameters(node) == compiled(function)
    assert inspect.getdoc(function), f"{node.name} has no docstring"


@pytest.mark.parametrize(("module", "node"), CLASSES, ids=named)
def test_class_members(module: types.ModuleType, node: ast.ClassDef) -> None:
    """The same names, and final as the stub says."""
    real = {member for member in vars(getattr(module, node.name)) if member not in SLOTS}
    declared = {each.name for each in node.body if isinstance(each, ast.FunctionDef)}
    assert real | {"__init__", "__buffer__"} == declared | {"__init__", "__buffer__"}
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (getattr(module, node.name),), {})
    assert "final" in [ast.unparse(each) for each in node.decorator_list]


@pytest.mark.parametrize(("owner", "node"), MEMBERS, ids=named)
def test_methods(owner: type, node: ast.FunctionDef) -> None:
    """Signatures of methods; properties are properties. `__init__` cannot be inspected: see test_constructors."""
    if node.name in ("__init__", "__len__", "__buffer__"):
        return
    member = inspect.getattr_static(owner, node.name)
    if any(ast.unparse(each) in ("property", f"{node.name}.setter") for each in node.decorator_list):
        assert inspect.isgetsetdescriptor(member) or inspect.ismemberdescriptor(member)
    else:
        assert parameters(node) == compiled(member)
        assert inspect.getdoc(member), f"{owner.__name__}.{node.name} has no docstring"


def test_constructors() -> None:
    """The parameters of the stubs' `__init__`, tried out."""
    accepted = {
        "Bitmap": ((8,), {}),
        "Mapping": ((0, 0), {}),
        "BlockBuffer": (("own",), {}),
        "Gate": ((), {}),
        "Passage": ((_gate.Gate(), None, 0, 0, True), {}),
        "OutputBuffer": ((1, 65536), {"wake_fd": -1, "least_useful": 4096, "seal": None}),
        "InputBuffer": ((0, 65536), {"wake_fd": -1, "begun": b"", "unseal": None, **READS}),
        "StoringQueue": ((65536, 4, 2, 4), {}),
    }
    assert accepted.keys() == {node.name for _, node in CLASSES}
    for module, owner in CLASSES:
        args, kwargs = accepted[owner.name]
        make = getattr(module, owner.name)
        make(*args, **kwargs)
        with pytest.raises(TypeError):
            make(*args, 1, **kwargs)
        with pytest.raises(TypeError):
            make(*args, **kwargs, other=1)
        node = next(each for kind, each in MEMBERS if kind is make and each.name == "__init__")
        declared = parameters(node)[1:]
        assert len([each for each in declared if each[1] is inspect.Parameter.POSITIONAL_ONLY]) == len(args)
        assert {each[0] for each in declared if each[1] is inspect.Parameter.KEYWORD_ONLY} == kwargs.keys()
