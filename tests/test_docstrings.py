"""Every name of the API reference says shapes, units, errors and source; the list is what lacks.

What is asked, and no more: what a parameter's name and type say needs no line of its own.

1. A docstring, of every name, method and property.
2. A shape such as ``(trial, voxel)``, of every array that goes in, comes out or is a field.
3. What it counts or its unit, of every number that goes in or is a field.
4. Every exception that the body raises, with its condition, under *Raises*.
5. The year or DOI of its source, where a published method or metric is what it implements.
6. Every parameter, where a section *Parameters* lists some.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import types
import warnings
from pathlib import Path

import pydantic
import pytest
from numpydoc.docscrape import NumpyDocString

from raybrain import config, decoders, diffusion, evaluation, simulation, training
from raybrain.evaluation.declarations import SOURCES

sys.path.append(str(Path(__file__).parents[1] / "docs" / "_ext"))

ARRAY = re.compile(r"\b(NDArray|ndarray|ArrayLike|Tensor|DataArray|Dataset|Array|Rows|Pictures)\b")
NUMBER = re.compile(r"\b(int|float)\b")
SHAPE = re.compile(
    r"\((?:\w+(?: [\w+*]+)*, ?)+(?:\w+(?: [\w+*]+)*|\.\.\.)?\)"  # (trial,), (image, ...)
    r"|\(\.\.\.\)|\bany shape\b|\b[Ss]hapes? of\b"
)
SOURCE = re.compile(r"\b(19|20)\d\d\b|\bdoi\b")
MEASURES = {
    "distance": evaluation.correlation_distance,
    "identification": evaluation.n_way,
    "pixcorr": evaluation.pixcorr,
    "ssim": evaluation.ssim,
}
"""Kind of a protocol's metric -> what measures it; LPIPS is a network, and `SOURCES` has it."""
PUBLISHED = (
    *config.BUILT_IN,
    *MEASURES.values(),
    config.Generator,
    config.GradientGuidance,
    config.Prior,
    config.Simulation,
    decoders.adapted_task,
    decoders.noise_ceiling,
    decoders.shared_task,
    diffusion.draw,
    evaluation.bootstrap,
    evaluation.nearest_first,
    evaluation.retrieval,
    evaluation.sign_flip_p,
    evaluation.two_way,
    simulation.GroundTruth.noise_ceiling,
    training.Contrast,
)
"""What implements a published method or metric: every decoder, every measure, and these."""
PUBLISHED_FIELDS = (
    (config.Generator, "image_adapter"),
    (config.KernelRidge, "weights"),
    (config.Reconstruct, "guidance"),
    (config.Reconstruct, "scheduler"),
    (config.Reconstruct, "strength"),
    (evaluation.Gain, "adjusted"),
)


def public():
    """Yield (name, object) of what the reference lists: functions, classes, members of classes."""
    from generated import PUBLIC

    seen = set()
    for module_name in PUBLIC:
        module = importlib.import_module(module_name)
        names = getattr(module, "__all__", None) or [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module_name
        ]
        for name in names:
            found = getattr(module, name)
            if not isinstance(found, types.FunctionType | type) or id(found) in seen:
                continue
            seen.add(id(found))
            yield f"{module_name}.{name}", found
            if inspect.isclass(found):
                yield from members(f"{module_name}.{name}", found)


def members(name, found):
    """Yield (name, function) of the public methods and properties that a class itself defines."""
    for key, value in vars(found).items():
        if isinstance(value, property):
            value = value.fget
        elif not inspect.isfunction(value):
            value = getattr(value, "__func__", None) or getattr(value, "func", None)
        if not key.startswith("_") and inspect.isfunction(value):
            yield f"{name}.{key}", inspect.unwrap(value)


def sections(text):
    """Return a docstring parsed; what numpydoc warns of is a fault of the docstring."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return NumpyDocString(text)


def listed(entries):
    """Return name -> words of the entries of a section."""
    return {
        one.strip().lstrip("*"): " ".join([entry.type, *entry.desc])
        for entry in entries
        for one in entry.name.split(",")
    }


def described(entries):
    """Return name -> description of the entries of a section, without their types."""
    return {
        one.strip().lstrip("*"): " ".join(entry.desc)
        for entry in entries
        for one in entry.name.split(",")
    }


def is_number(annotation):
    """Return whether values of a type are numbers, or hold them; a name that may be one is not."""
    return bool(NUMBER.search(annotation.replace("int | str", ""))) and "Callable" not in annotation


def spelled_out(annotation, *, module):
    """Return an annotation, as it is written, with the aliases of its module in full."""
    known = vars(sys.modules[module])
    aliases = {word: known.get(word) for word in re.findall(r"\w+", str(annotation))}
    for word, value in aliases.items():
        if value is not None and not isinstance(value, type | types.ModuleType):
            annotation = re.sub(rf"\b{word}\b", lambda _, to=value: str(to), str(annotation))
    return str(annotation)


def faults_of_values(wanted, *, words, descriptions):
    """Yield what is missing of values: ``wanted`` are name -> annotation."""
    for name, annotation in wanted.items():
        if ARRAY.search(annotation):
            if not SHAPE.search(words.get(name, "")):
                yield f"{name}: no shape"
        elif is_number(annotation) and not descriptions.get(name, "").strip():
            yield f"{name}: not said what it counts, or its unit"


def faults_of_function(function, text):
    """Yield what the docstring of a function, or of a class about its ``__init__``, leaves out."""
    doc = sections(text)
    entries = doc["Parameters"] + doc["Other Parameters"]
    words = listed(entries)
    wanted = {
        name: spelled_out(one.annotation, module=function.__module__)
        for name, one in inspect.signature(function).parameters.items()
        if name not in ("self", "cls")
    }
    yield from faults_of_values(wanted, words=words, descriptions=described(entries))
    if words and set(words) != set(wanted):
        for name in wanted.keys() - words.keys():
            yield f"{name}: not in Parameters, which lists others"
        for name in words.keys() - wanted.keys():
            yield f"{name}: in Parameters, but no parameter"
    result = inspect.signature(function).return_annotation
    if ARRAY.search(spelled_out(result, module=function.__module__)):
        told = " ".join([*listed(doc["Returns"] + doc["Yields"]).values()])
        told += " ".join([*doc["Summary"], *doc["Extended Summary"]])
        if not SHAPE.search(told):
            yield "result: no shape"
    told = described(doc["Raises"])
    told |= {entry.type.rpartition(".")[2]: " ".join(entry.desc) for entry in doc["Raises"]}
    for error in sorted(raised(function)):
        if not told.get(error, "").strip():
            yield f"raises {error}: not said when"


def is_protocol(found):
    """Return whether a class only says what others can do, so that it is never made."""
    return getattr(found, "_is_protocol", False)


def raised(function):
    """Return the names of the exceptions that a body raises; what was caught is raised on."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    errors = [one.exc for one in ast.walk(tree) if isinstance(one, ast.Raise) and one.exc]
    names = {ast.unparse(one.func if isinstance(one, ast.Call) else one) for one in errors}
    names = {name.rpartition(".")[2] for name in names}
    return {name for name in names if name[0].isupper() and name.isidentifier()}


def written(found):
    """Return field -> (annotation, string under it), bases of this package included."""
    fields = {}
    for base in reversed(found.__mro__):
        if base.__module__.split(".")[0] not in ("raybrain", __name__.split(".")[0]):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for one, after in zip(tree.body, [*tree.body[1:], None], strict=True):
            if not isinstance(one, ast.AnnAssign) or one.target.id.startswith("_"):
                continue
            below = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            text = after.value.value if below else fields.get(one.target.id, ("", ""))[1]
            annotation = spelled_out(ast.unparse(one.annotation), module=base.__module__)
            fields[one.target.id] = annotation, text
    return fields


def faults_of_class(found, text):
    """Yield what the docstrings of a class and its fields leave out."""
    doc = sections(text)
    entries = doc["Parameters"] + doc["Attributes"]
    has_fields = dataclasses.is_dataclass(found) or issubclass(found, pydantic.BaseModel | tuple)
    if not has_fields:
        if inspect.isfunction(vars(found).get("__init__")) and not is_protocol(found):
            yield from faults_of_function(found.__init__, text)
        return
    fields = written(found)
    below = {name: words for name, (_, words) in fields.items() if words}
    yield from faults_of_values(
        {name: annotation for name, (annotation, _) in fields.items()},
        words=listed(entries) | below,
        descriptions=described(entries) | below,
    )
    for name in listed(entries).keys() - fields.keys():
        if not hasattr(found, name):
            yield f"{name}: listed, but no field"
    if doc["Parameters"]:
        for name in fields.keys() - listed(entries).keys() - below.keys():
            yield f"{name}: not in Parameters, which lists others"


def faults(name, found):
    """Return what the docstring of one name leaves out, a line each."""
    text = inspect.getdoc(found) if not inspect.isclass(found) else vars(found).get("__doc__")
    if not text or (dataclasses.is_dataclass(found) and text.startswith(f"{found.__name__}(")):
        return [f"{name}: no docstring"]
    look = faults_of_class if inspect.isclass(found) else faults_of_function
    return [f"{name}: {fault}" for fault in look(found, inspect.cleandoc(text))]


def forgetful(betas: "NDArray", *, seed: int, name: str = "") -> "NDArray":  # noqa: F821
    """Return betas.

    Parameters
    ----------
    betas : ndarray
    """
    if not name:
        raise ValueError("no name")
    return betas


@dataclasses.dataclass
class Sparse:
    """Little."""

    rows: int
    values: "NDArray"  # noqa: F821
    whole: bool = True
    """Said."""


def test_what_is_left_out_is_found():
    assert sorted(faults("forgetful", forgetful)) == [
        "forgetful: betas: no shape",
        "forgetful: name: not in Parameters, which lists others",
        "forgetful: raises ValueError: not said when",
        "forgetful: result: no shape",
        "forgetful: seed: not in Parameters, which lists others",
        "forgetful: seed: not said what it counts, or its unit",
    ]
    assert faults("Sparse", Sparse) == [
        "Sparse: rows: not said what it counts, or its unit",
        "Sparse: values: no shape",
    ]
    assert faults("public", public) == []
    assert faults("Other", type("Other", (), {})) == ["Other: no docstring"]


@pytest.mark.parametrize("text", ["(trial,)", "(image, ...)", "(row, 1 + widest)", "(y, x, rgb)"])
def test_a_shape_is_told_from_prose(text):
    assert SHAPE.search(f"Betas {text}.")
    assert not SHAPE.search("Betas (z-scored) of a session (a number) or more.")


def test_every_public_name_says_shapes_units_and_errors():
    names = list(public())
    assert len(names) > 400
    missing = [fault for name, found in names for fault in faults(name, found)]
    assert not missing, "\n".join([f"{len(missing)} faults of {len(names)} names:", *missing])


@pytest.mark.parametrize("found", PUBLISHED, ids=lambda found: found.__qualname__)
def test_what_implements_a_published_method_names_its_source(found):
    assert SOURCE.search(found.__doc__), inspect.getdoc(found)


@pytest.mark.parametrize(
    ("section", "name"), PUBLISHED_FIELDS, ids=lambda one: getattr(one, "__name__", one)
)
def test_a_setting_of_a_published_method_names_its_source(section, name):
    words = written(section)[name][1]
    assert SOURCE.search(words), words


def test_every_metric_and_network_of_a_protocol_has_a_source():
    protocols = evaluation.PROTOCOLS.values()
    kinds = {metric.kind for protocol in protocols for metric in protocol.metrics}
    assert kinds <= {*MEASURES, "lpips"}
    networks = {network.architecture for protocol in protocols for network in protocol.networks}
    assert [one for one in sorted(networks) if not SOURCE.search(SOURCES[one])] == []
