"""Documentation that runs: docs/commands.md holds what --help really says."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest

from flawflow.calibration import Budget, decide, normals_needed, promise
from flawflow.cli.parser import build_parser

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
ROOT = PAGE.parents[1]


def help_texts(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    parser = build_parser()
    texts = {"flawflow": parser.format_help()}
    add_subcommands(parser, "flawflow", texts)
    return texts


def add_subcommands(parser: argparse.ArgumentParser, command: str, texts: dict[str, str]) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                texts[f"{command} {name}"] = sub.format_help()
                add_subcommands(sub, f"{command} {name}", texts)


def without_layout(text: str) -> str:
    """Words only: Python versions wrap and word option lists differently."""
    return re.sub(r"\s+", " ", text.replace("options:", "").replace("optional arguments:", "")).strip()


def test_every_command_stands_in_the_page_as_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    for command, text in help_texts(monkeypatch).items():
        block = re.search(rf"\n    \$ {command} --help\n\n((?:    .*\n|\n)+)", page)
        assert block, f"docs/commands.md has no block for {command} --help"
        assert without_layout(block.group(1)) == without_layout(text), command


def anchors(page: str) -> set[str]:
    """What headings can be linked by: small letters, blanks as hyphens, and of the rest what belongs to words."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", page, re.M)}


def test_links_between_the_documents_lead_somewhere() -> None:
    for file in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]+))?\)", file.read_text()):
            other = file.parent / target if target else file
            assert other.exists(), f"{file.name} links to {target}"
            assert not anchor or anchor in anchors(other.read_text()), f"{file.name} links to {target}#{anchor}"


def test_every_promise_in_the_page_is_the_sentence_that_is_printed() -> None:
    budgets = [Budget(rate, sure) for rate in (1 / 50, 1 / 1000) for sure in (0.9, None)]
    sentences = {promise(decide(np.arange(float(n)), budget)) for n in (10, 119) for budget in budgets}
    told = re.findall(r"\n    promise: (.*)", (ROOT / "docs" / "decisions.md").read_text())
    assert len(told) == 4 and set(told) <= sentences


def test_the_table_of_promises_counts_right() -> None:
    page = (ROOT / "docs" / "decisions.md").read_text()
    for text, confidence in (("average", None), ("0.9", 0.9), ("0.95", 0.95)):
        row = re.search(rf"\n\| `{text}`.*\| (\d+) \| (\d+) \|", page)
        assert row is not None
        assert [int(n) for n in row.groups()] == [normals_needed(Budget(rate, confidence)) for rate in (0.01, 0.001)]
