"""The documentation: its examples run, and its links, includes and names lead somewhere."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    *REPOSITORY.glob("*.md"),
    *(page for page in (REPOSITORY / "docs").rglob("*.md") if "build" not in page.parts),
]
FILE = re.compile(r"\b(?:(?:convex_heads|extractors|tasks|tests|docs|examples)/[\w/]+\.\w+)\b")
NAMED = re.compile(r"\{py:(mod|func)\}`([\w.]+)`")


@pytest.mark.slow
def test_the_tutorial_runs():
    tutorial = REPOSITORY / "docs" / "tutorial.md"
    failed, tried = doctest.testfile(str(tutorial), module_relative=False)
    assert tried > 20 and not failed


@pytest.mark.slow
@pytest.mark.parametrize("package", ["convex_heads", "extractors", "tasks"])
def test_examples_in_docstrings_run(package):
    command = [sys.executable, "-m", "pytest", "-q", "--doctest-modules", package]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_includes_and_names_lead_somewhere(page):
    text = page.read_text("utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", prose):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"\{doc\}`([\w/-]+)`", text):
        assert (page.parent / f"{target}.md").is_file(), f"{page.name} refers to {target}"
    for name in FILE.findall("" if page.name == "CHANGELOG.md" else text):
        assert (REPOSITORY / name).is_file(), f"{page.name} names {name}"
    for kind, name in NAMED.findall(text):
        module = name if kind == "mod" else name.rpartition(".")[0]
        path = REPOSITORY / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or path.is_dir(), f"{page.name} names {name}"
    for source, options in re.findall(r"```\{include\} (\S+)\n(.*?)```", text, flags=re.S):
        included = (page.parent / source).read_text("utf-8")
        for end in re.findall(r':(?:start-after|end-before): "(.*)"', options):
            end = end.replace("\\n", "\n").replace('\\"', '"')
            assert end in included, f"{page.name}: {source} has no {end}"
