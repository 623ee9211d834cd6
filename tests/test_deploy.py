"""The deployment pages: every command line in them is one that this version of medqa takes."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from medqa.cli import app

DOCS = Path(__file__).resolve().parents[1] / "docs"
DEPLOY = DOCS / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    return found


def command_lines() -> Iterator[tuple[str, list[str]]]:
    """Every command line of medqa's, without its first word, and where it stands."""
    for page in (DOCS / "deploy.md", DOCS / "reliability.md", DOCS / "queue.md"):
        text = page.read_text("utf-8")
        for block in re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r" #|[|;>]", line):
                    found = re.match(r"\s*(?:\S*/|sudo -u \S+ \S*)?medqa (.*)", part)
                    if found:
                        yield f"{page.name}: {part.strip()}", shlex.split(found[1])
        for inline in re.findall(r"`medqa ([a-z][^`]*)`", text):
            yield f"{page.name}: {inline}", shlex.split(inline)
    for unit in UNITS:
        [line] = re.findall(r"^ExecStart=\S+/medqa (.*)$", unit.read_text("utf-8"), re.MULTILINE)
        yield unit.name, shlex.split(line)
    for name, service in compose()["services"].items():
        if service["image"] == "medqa":
            yield f"compose.yaml: {name}", service["command"]
    for line in (DEPLOY / "Containerfile").read_text("utf-8").splitlines():
        if line.startswith("CMD "):
            yield "Containerfile", yaml.safe_load(line.removeprefix("CMD "))


LINES = list(command_lines())


@pytest.mark.parametrize("words", [one[1] for one in LINES], ids=[one[0] for one in LINES])
def test_every_command_line_is_one(words: list[str]) -> None:
    command: Any = get_command(app)
    words = [one for one in words if one != "…" and not one.startswith("$")]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, words[0]
        command, words = command.commands[words[0]], words[1:]
    known = {name: option for option in command.params for name in option.opts}
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    while words:
        word, words = words[0], words[1:]
        if not word.startswith("-"):
            assert arguments, word
            arguments = [one for one in arguments if one.nargs != 1] or arguments[1:]
            continue
        name, equals, _ = word.partition("=")
        assert name in known, word
        if not known[name].is_flag and not equals and words:
            words = words[1:]


def test_there_are_command_lines() -> None:
    assert {"deploy.md", "compose.yaml", "Containerfile"} <= {one[0].split(":")[0] for one in LINES}
    assert len(UNITS) == 4


@pytest.mark.parametrize("unit", UNITS, ids=[one.name for one in UNITS])
def test_units_are_taken_by_systemd(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze (apt-get install systemd)")
    text = unit.read_text("utf-8").replace("/opt/medqa/bin/medqa", "/bin/true")
    (tmp_path / unit.name).write_text(text, "utf-8")
    done = subprocess.run(  # noqa: S603
        ["systemd-analyze", "verify", tmp_path / unit.name],  # noqa: S607
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_whole() -> None:
    found = compose()
    for name, service in found["services"].items():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source.startswith("./") or source in found["volumes"], (name, volume)
        assert set(service.get("secrets", ())) <= set(found["secrets"]), name
        assert set(service.get("depends_on", ())) <= set(found["services"]), name
        if service["image"] == "medqa":
            assert "medqa:/var/lib/medqa" in service["volumes"], name
            assert "medqa.env" in service["env_file"], name
        else:
            assert re.fullmatch(r"docker\.io/\S+:\d[\d.]*", service["image"]), name
    for words in re.findall(r"/run/secrets/([\w.-]+)", (DEPLOY / "compose.yaml").read_text()):
        assert words in found["secrets"]
