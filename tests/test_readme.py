"""Every command and Python block of README.md and docs/howto is executed, in the order of the page.

Executed are fenced blocks marked bash, console (its lines after ``$``) and python (as a script of
its own, or as a doctest if it has ``>>>``). All run in one scratch folder beside a link to the
shared data, the README first, so a block may use what an earlier one has written. A comment on the
line before a block changes that:

    <!-- not executed: needs a network -->    skipped, with this reason
    <!-- slow -->                             with the slow tests only

A block that names ``../shared`` is skipped where that folder is not.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
README = REPOSITORY / "README.md"
PAGES = (README, *sorted((REPOSITORY / "docs" / "howto").glob("*.md")))
SHARED = REPOSITORY.parent / "shared"
EXECUTED = ("bash", "sh", "console", "python")
SECONDS = 900


@dataclass(frozen=True)
class Block:
    """A fenced block: language, source, line of its opening fence, what its comment asks, page."""

    language: str
    source: str
    line: int
    not_executed: str | None
    slow: bool
    page: str = "README.md"

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def needs_shared(self) -> bool:
        return "../shared" in self.source


def read_blocks(text: str, page: str = "README.md") -> list[Block]:
    """All fenced blocks of a Markdown text; an unclosed fence is an error."""
    blocks, comment, opened, lines = [], "", None, []
    for number, line in enumerate(text.splitlines(), start=1):
        fence = re.match(r"\s*```\s*([\w-]*)", line)
        if opened is None and fence:
            opened, lines = (fence[1], number, len(line) - len(line.lstrip())), []
        elif opened is not None and fence:
            assert not fence[1], f"{page}:{opened[1]}: the fence is not closed"
            reason = re.search(r"<!--\s*not executed:\s*(.+?)\s*-->", comment)
            blocks.append(
                Block(
                    language=opened[0],
                    source="\n".join(lines) + "\n",
                    line=opened[1],
                    not_executed=reason[1] if reason else None,
                    slow=bool(re.search(r"<!--\s*slow\b.*?-->", comment)),
                    page=page,
                )
            )
            opened, comment = None, ""
        elif opened is not None:
            lines.append(line[opened[2] :])
        else:
            comment = line
    assert opened is None, f"{page}:{opened and opened[1]}: the fence is not closed"
    return blocks


def readme_blocks() -> list[Block]:
    text = README.read_text("utf-8")
    return [block for block in read_blocks(text) if block.language in EXECUTED]


def all_blocks() -> list[Block]:
    found = []
    for page in PAGES:
        found += read_blocks(page.read_text("utf-8"), str(page.relative_to(REPOSITORY)))
    return [block for block in found if block.language in EXECUTED]


def shell_script(block: Block) -> str:
    """The commands of a bash or console block."""
    if block.language != "console":
        return block.source
    commands, more = [], False
    for line in block.source.splitlines():
        if line.startswith("$ ") or more:
            commands.append(line.removeprefix("$ ").removeprefix("> "))
            more = line.endswith("\\")
    assert commands, f"{block.place}: a console block without a line that starts with $"
    return "\n".join(commands) + "\n"


class Workshop:
    """The scratch folder of the page, and which of its blocks have run there."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "checkout"
        self.folder.mkdir()
        if SHARED.is_dir():
            (root / "shared").symlink_to(SHARED)
        if (REPOSITORY / "examples").is_dir():
            (self.folder / "examples").symlink_to(REPOSITORY / "examples")
        self.done: dict[Block, str] = {}

    def run(self, block: Block) -> str:
        """Run a block once and return what went wrong, or an empty string."""
        if block not in self.done:
            self.done[block] = self._run(block)
        return self.done[block]

    def _run(self, block: Block) -> str:
        if block.language == "python":
            script = self.folder / f"{Path(block.page).stem}_{block.line}.py"
            script.write_text(block.source, "utf-8")
            doctest = ["-m", "doctest"] if ">>> " in block.source else []
            command = [sys.executable, *doctest, script.name]
        else:
            command = ["bash", "-euo", "pipefail", "-c", shell_script(block)]
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
        }
        try:
            done = subprocess.run(
                command,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"not done after {SECONDS} s"
        if done.returncode == 0:
            return ""
        return f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("readme"))


def _parameters() -> list:
    return [
        pytest.param(
            block,
            id=f"{Path(block.page).stem}-line{block.line}-{block.language}",
            marks=[pytest.mark.slow] if block.slow else [],
        )
        for block in all_blocks()
    ]


@pytest.mark.parametrize("block", _parameters())
def test_block(block: Block, workshop: Workshop) -> None:
    if block.not_executed:
        pytest.skip(f"not executed: {block.not_executed}")
    if block.needs_shared and not SHARED.is_dir():
        pytest.skip(f"needs {SHARED}")
    # What stands above may have written what this block reads, also if it was not selected.
    for earlier in all_blocks():
        if earlier == block:
            break
        if earlier.page in (block.page, "README.md") and not earlier.not_executed:
            too_slow = earlier.slow and not block.slow
            at_hand = SHARED.is_dir() or not earlier.needs_shared
            if at_hand and not too_slow:
                workshop.run(earlier)
    failure = workshop.run(block)
    assert not failure, f"{block.place}\n{block.source}\n{failure}"


def test_readme_shows_the_commands_and_the_python_interface() -> None:
    blocks = readme_blocks()
    commands = "".join(b.source for b in blocks if b.language != "python")
    for words in ("make demo", "make test", "convex-heads fit", "convex-heads predict"):
        assert words in commands, f"README.md does not show `{words}`"
    python = "".join(b.source for b in blocks if b.language == "python")
    for words in ("ConvexHeadClassifier", "ConvexHeadPipeline"):
        assert words in python, f"README.md does not show {words}"
    # Most of the page is executed: the comments are for exceptions.
    executed = [b for b in blocks if not b.not_executed]
    assert len(executed) >= len(blocks) / 2


def test_readme_links_lead_somewhere() -> None:
    text = README.read_text("utf-8")
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.M)
    }
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("#"):
            assert target[1:] in anchors, f"README.md has no section {target}"
        elif "://" not in target:
            assert (REPOSITORY / target.partition("#")[0]).exists(), f"README.md: no file {target}"


def test_blocks_are_read_as_written() -> None:
    text = (
        "# T\n```bash\na \\\n  b\n```\n"
        "<!-- not executed: needs a network -->\n```console\n$ c \\\n>   d\nout\n$ e\n```\n"
        "<!-- slow -->\n```python\nimport x\n```\n"
        "- item\n  ```sh\n  f\n  ```\n"
        "```\nplain\n```\n"
    )
    a, b, c, d, e = read_blocks(text)
    assert (a.language, a.source, a.line) == ("bash", "a \\\n  b\n", 2)
    assert not a.slow
    assert a.not_executed is None
    assert b.not_executed == "needs a network"
    assert shell_script(b) == "c \\\n  d\ne\n"
    assert c.slow
    assert d.source == "f\n"
    assert e.language == ""
    with pytest.raises(AssertionError, match="not closed"):
        read_blocks("```bash\na\n")


def test_blocks_run_as_a_reader_would(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path)
    good = read_blocks(
        "```bash\necho 1 > a.txt\n```\n```python\nassert open('a.txt').read()\n```\n"
    )
    assert [workshop.run(block) for block in good] == ["", ""]
    bad = read_blocks("```bash\nfalse\ntrue\n```\n```python\n>>> 1 + 1\n3\n```\n")
    for i, block in enumerate(bad):
        failure = Workshop(_folder(tmp_path / f"bad{i}")).run(block)
        assert "exit code 1" in failure


def _folder(path: Path) -> Path:
    path.mkdir()
    return path
