# SPDX-License-Identifier: GPL-2.0-or-later
"""`_core.pyi` says what `_core` is: every public name, every signature, nothing else."""

from __future__ import annotations

import ast
import inspect
import pathlib

import pytest

from blkmig import _core

TREE = ast.parse(pathlib.Path(_core.__file__).with_name("_core.pyi").read_text())
FUNCTIONS = {node.name: node for node in TREE.body if isinstance(node, ast.FunctionDef)}
DEFINED = {node.name: node for node in TREE.body if isinstance(node, ast.ClassDef)}
ERRORS = {name: node for name, node in DEFINED.items() if node.bases}
CLASSES = {name: node for name, node in DEFINED.items() if not node.bases}
VALUES = {node.target.id: node for node in TREE.body if isinstance(node, ast.AnnAssign)}  # type: ignore[union-attr]
MEMBERS = [(name, node) for name, owner in CLASSES.items() for node in owner.body if isinstance(node, ast.FunctionDef)]
# What Cython gives every class for pickling, and refuses.
GIVEN = {"__reduce_cython__", "__setstate_cython__", "__reduce__", "__setstate__"}
SLOTS = {"__new__", "__doc__", "__pyx_vtable__", "__getattribute__", "__release_buffer__", *GIVEN}


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


def test_public_names() -> None:
    public = {name for name in vars(_core) if not name.startswith("_")} - {"os", "annotations"}
    assert public == FUNCTIONS.keys() | DEFINED.keys() | VALUES.keys()


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    """Exceptions are plain classes: their base, and that they say what they are."""
    assert [base.__name__ for base in getattr(_core, name).__bases__] == [ast.unparse(b) for b in ERRORS[name].bases]
    assert inspect.getdoc(getattr(_core, name))


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str) -> None:
    declared = VALUES[name]
    value = getattr(_core, name)
    if declared.value is not None:
        assert value == ast.literal_eval(declared.value)
    else:
        assert ast.unparse(declared.annotation).startswith(type(value).__name__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    function = getattr(_core, name)
    assert parameters(FUNCTIONS[name]) == compiled(function)
    assert inspect.getdoc(function), f"{name} has no docstring"


@pytest.mark.parametrize("name", CLASSES)
def test_class_members(name: str) -> None:
    """The same names, and final as the stub says."""
    real = {member for member in vars(getattr(_core, name)) if member not in SLOTS}
    declared = {node.name for node in CLASSES[name].body if isinstance(node, ast.FunctionDef)}
    assert real | {"__init__", "__buffer__"} == declared | {"__init__", "__buffer__"}
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("Derived", (getattr(_core, name),), {})
    assert "final" in [ast.unparse(each) for each in CLASSES[name].decorator_list]


@pytest.mark.parametrize(("owner", "node"), MEMBERS, ids=[f"{owner}.{node.name}" for owner, node in MEMBERS])
def test_methods(owner: str, node: ast.FunctionDef) -> None:
    """Signatures of methods; properties are properties. `__init__` cannot be inspected: see test_constructors."""
    if node.name in ("__init__", "__len__", "__buffer__"):
        return
    member = inspect.getattr_static(getattr(_core, owner), node.name)
    if any(ast.unparse(each) in ("property", f"{node.name}.setter") for each in node.decorator_list):
        assert inspect.isgetsetdescriptor(member) or inspect.ismemberdescriptor(member)
    else:
        assert parameters(node) == compiled(member)
        assert inspect.getdoc(member), f"{owner}.{node.name} has no docstring"


def test_constructors() -> None:
    """The parameters of the stubs' `__init__`, tried out."""
    accepted = {
        "Bitmap": ((8,), {}),
        "Mapping": ((0, 0), {}),
        "BlockBuffer": ((), {}),
        "WriteBehind": ((65536,), {}),
        "Gate": ((), {}),
        "Passage": ((_core.Gate(), None, 0, 0, True), {}),
        "OutputBuffer": ((1, 65536), {"wake_fd": -1}),
        "InputBuffer": ((0, 65536), {"wake_fd": -1, "begun": b""}),
    }
    assert accepted.keys() == CLASSES.keys()
    for name, (args, kwargs) in accepted.items():
        make = getattr(_core, name)
        make(*args, **kwargs)
        with pytest.raises(TypeError):
            make(*args, 1, **kwargs)
        with pytest.raises(TypeError):
            make(*args, **kwargs, other=1)
        node = next(each for owner, each in MEMBERS if owner == name and each.name == "__init__")
        declared = parameters(node)[1:]
        assert len([each for each in declared if each[1] is inspect.Parameter.POSITIONAL_ONLY]) == len(args)
        assert {each[0] for each in declared if each[1] is inspect.Parameter.KEYWORD_ONLY} == kwargs.keys()
