"""Sphinx configuration.

What the code can tell about itself is made from it at every build, as Markdown substitutions:
the commands, the profiles, the networks, the fields of the record and the public names.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from typer.main import get_command
from typer.testing import CliRunner

import medqa
from medqa import thresholds
from medqa.assessment import MEASURE_WORDS, schema
from medqa.cli import app as medqa_command
from medqa.weights import BACKBONES

project = "medqa"
author = "the medqa developers"
project_copyright = f"2026, {author}"
version = release = medqa.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"medqa {release}"
html_copy_source = False
myst_enable_extensions = ["substitution"]
myst_heading_anchors = 3
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes and units, which types cannot

# Examples run in an empty folder, see nothing of the user's and leave nothing behind.
doctest_global_setup = f"""
import os, shutil, tempfile
_before, _folder = os.getcwd(), tempfile.mkdtemp()
os.environ |= {{"XDG_DATA_HOME": _folder, "TORCH_HOME": _folder, "MEDQA_KEY": "5a" * 32}}
for _name in ("MEDQA_DB", "MEDQA_SIGNING_KEY", "MEDQA_USER", "MEDQA_WEIGHTS"):
    os.environ.pop(_name, None)
shutil.copy({str(Path(__file__).parent / "site-ct.toml")!r}, _folder)
os.chdir(_folder)
"""
doctest_global_cleanup = """
os.chdir(_before)
shutil.rmtree(_folder)
"""


def commands() -> str:
    """Help of every command, under a heading each."""

    def walk(command: Any, words: list[str]) -> list[str]:
        shown = CliRunner().invoke(
            medqa_command, [*words, "--help"], prog_name="medqa", terminal_width=88
        )
        if shown.exit_code:
            raise RuntimeError(f"medqa {' '.join(words)} --help: {shown.output}")
        title = " ".join(["medqa", *words])
        found = [f"## {title}\n\n```text\n{shown.stdout.rstrip()}\n```"]
        for name, inner in getattr(command, "commands", {}).items():
            found += walk(inner, [*words, name])
        return found

    return "\n\n".join(walk(get_command(medqa_command), []))


def profiles() -> str:
    """Table of the shipped profiles and their limits."""
    rows = []
    for name in thresholds.names():
        one = thresholds.load(name)
        limits = [f"{limit.value:g}" for _, limit in one.limits]
        parts = f" ({', '.join(one.body_parts)})" if one.body_parts else ""
        images = (", ".join(one.modalities) or "any other") + parts
        rows.append([f"`{name}`", images, one.task, *limits, one.status])
    headings = ["profile", "images", "task", *thresholds.Limits.model_fields, "status"]
    return _table(headings, rows)


def displays() -> str:
    """Table of the shipped profiles, their displays and how their slices are aggregated."""
    found = [thresholds.load(name) for name in thresholds.names()]
    rows = [[f"`{one.name}`", _display(one), f"`{one.aggregate.slices}`"] for one in found]
    return _table(["profile", "display", "slices"], rows)


def _display(profile: thresholds.Profile) -> str:
    rule = profile.normalise
    if isinstance(rule, thresholds.Windows):
        windows = (f"{one.name} {one.centre:g}/{one.width:g}" for one in rule.windows)
        return f"{', '.join(windows)} {rule.unit}"
    if isinstance(rule, thresholds.FullRange):
        return "range of the stored format"
    percentiles = f"percentiles {rule.lower:g} to {rule.upper:g} of the reference"
    return (
        percentiles if rule.kind == "percentiles" else f"VOI of the reference, else {percentiles}"
    )


def networks() -> str:
    """Table of the networks, and what pins them."""
    rows, pins = [], []
    for name, one in BACKBONES.items():
        files = " or ".join(f"`{file}`" for file in one.files) or "ships with medqa"
        rows.append([f"`{name}`", one.version, str(one.smallest_side), files])
        pinned = {"trunk": one.trunk_sha256, "file": one.file_sha256, "heads": one.heads_sha256}
        pins += [f"{name:8}{what:6}{sha256}" for what, sha256 in pinned.items() if sha256]
    table = _table(["network", "version", "smallest side in pixels", "file of the trunk"], rows)
    return table + "\n\n```text\n" + "\n".join(pins) + "\n```"


def record() -> str:
    """Tables of the record's fields, one for each object in it, from its JSON Schema."""
    document = schema()
    objects = {document["title"]: document, **document["$defs"]}
    # In the order in which a reader meets them.
    order = [document["title"]]
    for name in order:
        found = re.findall(r'"#/\$defs/(\w+)"', json.dumps(objects[name]["properties"]))
        order += [one for one in dict.fromkeys(found) if one not in order]
    parts = []
    for name in order:
        fields = objects[name]["properties"]
        rows = [
            [f"`{field}`", _type(spec), _meaning(spec, objects)] for field, spec in fields.items()
        ]
        about = objects[name]["description"]
        parts.append(f"### {name}\n\n{about}\n\n" + _table(["field", "type", "meaning"], rows))
    return "\n\n".join(parts)


def measures() -> str:
    """Table of the companion measures as a record names them."""
    rows = [[f"`{name}`", words, better] for name, (words, better) in MEASURE_WORDS.items()]
    return _table(["name", "in words", "better"], rows)


def _type(spec: dict[str, Any]) -> str:
    """JSON Schema's type in words."""
    if "$ref" in spec:
        name = spec["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in spec:
        return " or ".join(map(_type, spec["anyOf"]))
    if "enum" in spec or "const" in spec:
        return " or ".join(f"`{one}`" for one in spec.get("enum", [spec.get("const")]))
    match spec["type"]:
        case "array" if "prefixItems" in spec:
            return f"{len(spec['prefixItems'])} × {_type(spec['prefixItems'][0])}"
        case "array":
            return f"list of {_type(spec['items'])}"
        case "object":
            return f"object of {_type(spec['additionalProperties'])}"
        case "string" if spec.get("format") == "date-time":
            return "date and time"
        case "string" if "pattern" in spec:
            return "64 hex digits"
        case name:
            return str(name)


def _meaning(spec: dict[str, Any], objects: dict[str, Any]) -> str:
    """Describe a field in its own words, else in those of the object that it holds."""
    if "description" in spec:
        return str(spec["description"])
    inner = [spec.get("items", {}), spec, *spec.get("anyOf", [])]
    names = [one["$ref"].rpartition("/")[2] for one in inner if "$ref" in one]
    return str(objects[names[0]]["description"]) if names else ""


def api() -> str:
    """Documentation of every public name but the errors, which have a section of their own."""
    parts = []
    for name in medqa.__all__:
        thing = getattr(medqa, name)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            # What pydantic and torch add is theirs; the fields are in the record's tables.
            members = [
                member
                for member, value in vars(thing).items()
                if not member.startswith(("_", "model_"))
                and (inspect.isroutine(value) or isinstance(value, (property, classmethod)))
            ]
            chosen = f"   :members: {', '.join(members)}\n" if members else ""
            parts.append(f".. autoclass:: medqa.{name}\n{chosen}")
        elif inspect.isfunction(thing):
            parts.append(f".. autofunction:: medqa.{name}\n")
    return "```{eval-rst}\n" + "\n".join(parts) + "```"


def _table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


myst_substitutions = {
    one.__name__: one() for one in (commands, profiles, displays, networks, record, measures, api)
}


def _publish_schema(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        text = json.dumps(schema(), indent=2) + "\n"
        (Path(app.outdir) / "assessment.schema.json").write_text(text, "utf-8")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", _publish_schema)
