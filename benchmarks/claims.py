"""Figures in README and docs: those without a command that exists, without a commit, or older than what they measure.

A table belongs to the section that it stands in; its commands and commits are those that the section names, or a section
above it. What a benchmark measures is what it imports of this project, and what those modules import. The exit code is
1 if a command is missing.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("wsi", "models", "pipelines", "benchmarks")
COMMAND = re.compile(r"(?:python -m )?benchmarks\.(\w+)|make (bench[\w-]*)")
COMMIT = re.compile(r"(?<![\w.])(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{7,12}(?![\w.])")
FIGURE = re.compile(r"\|\s*[*<+-]*\d[^|]*")  # a cell that begins with a number


@dataclass
class Section:
    """A heading and what stands under it, up to the next one.

    Attributes:
        line: of the heading, from 1.
        tables: lines where a table with figures begins.
        commands, commits: named in it or, where it names none, in the section above it.
    """

    title: str
    line: int
    level: int
    tables: list[int] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)


def sections_of(text: str) -> list[Section]:
    """The sections of a Markdown file."""
    sections = [Section("", 1, 0)]
    in_table = False
    for number, line in enumerate(text.splitlines(), start=1):
        heading = re.match(r"(#+) (.*)", line)
        if heading:
            sections.append(Section(heading[2], number, len(heading[1])))
        section = sections[-1]
        section.commands += [match[1] or match[2] for match in COMMAND.finditer(line)]
        section.commits += COMMIT.findall(line)
        is_row = line.startswith("|") and bool(FIGURE.search(line))
        if is_row and not in_table:
            section.tables.append(number)
        in_table = line.startswith("|") and (in_table or is_row)
    _inherit(sections)
    return sections


def _inherit(sections: list[Section]) -> None:
    above: list[Section] = []
    for section in sections:
        while above and above[-1].level >= section.level:
            above.pop()
        if above:
            section.commands = section.commands or above[-1].commands
            section.commits = section.commits or above[-1].commits
        above.append(section)


def measured_by(module: str, root: Path = ROOT) -> set[str]:
    """Files of this project that a benchmark imports, directly or not, relative to the root; itself among them."""
    files: set[str] = set()
    waiting = [f"benchmarks.{module}"]
    while waiting:
        name = waiting.pop()
        path = next((p for p in _places(name, root) if p.is_file()), None)
        if path is None or str(path.relative_to(root)) in files:
            continue
        files.add(str(path.relative_to(root)))
        waiting += _imports(path)
    return files


def _places(name: str, root: Path) -> Iterator[Path]:
    path = root / name.replace(".", "/")
    yield path.with_suffix(".py")
    yield path / "__init__.py"


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def problem_of(command: str, commits: list[str]) -> tuple[bool, str]:
    """Whether a command is missing, and a sentence about how old its figures are; empty where there is nothing to say."""
    if command.startswith("bench") and command in (ROOT / "Makefile").read_text(encoding="utf-8"):
        return False, "" if commits else "no commit is named"
    if not (ROOT / "benchmarks" / f"{command}.py").is_file():
        return True, f"there is no command {command}"
    if not commits:
        return False, "no commit is named"
    known = [commit for commit in commits if _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")]
    if not known:
        return False, f"commits {', '.join(sorted(set(commits)))} are not in this repository"
    files = sorted(measured_by(command))
    newest = min(known, key=lambda commit: int(_git("rev-list", "--count", f"{commit}..HEAD") or 0))
    changes = len(_git("log", "--format=%h", f"{newest}..HEAD", "--", *files).split())
    return False, f"measured at {newest}; {changes} commits since changed what it measures" if changes else ""


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def main() -> None:
    missing = False
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for section in sections_of(path.read_text(encoding="utf-8")):
            for line in section.tables:
                where = f"{path.relative_to(ROOT)}:{line}, {section.title}"
                if not section.commands:
                    print(f"{where}: figures without a command")
                for command in dict.fromkeys(section.commands):
                    is_missing, problem = problem_of(command, section.commits)
                    missing |= is_missing
                    if problem:
                        print(f"{where}: {command}: {problem}")
    raise SystemExit(1 if missing else 0)


if __name__ == "__main__":
    main()
