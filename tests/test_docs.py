"""Documentation that runs: docs/commands.md holds what --help really says."""

import argparse
import re
from pathlib import Path

import pytest

from flawflow.cli.parser import build_parser

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
ROOT = PAGE.parents[1]


def help_texts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    parser = build_parser()
    texts = {"flawflow": parser.format_help()}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            texts |= {f"flawflow {name}": sub.format_help() for name, sub in action.choices.items()}
    return texts


def without_layout(text: str) -> str:
    """Words only: Python versions wrap and word option lists differently."""
    return re.sub(r"\s+", " ", text.replace("options:", "").replace("optional arguments:", "")).strip()


def test_every_command_stands_in_the_page_as_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    for command, text in help_texts(monkeypatch).items():
        block = re.search(rf"\n    \$ {command} --help\n\n((?:    .*\n|\n)+)", page)
        assert block, f"docs/commands.md has no block for {command} --help"
        assert without_layout(block.group(1)) == without_layout(text), command


def test_links_between_the_documents_lead_somewhere() -> None:
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file.name} links to {target}"
