"""Figures in the documents: which of them lack a command, a commit, or are older than what they measure."""

from __future__ import annotations

from pathlib import Path

from benchmarks.claims import measured_by, problem_of, sections_of

TEXT = """# Speed

`python -m benchmarks.scoring` at 1a2b3c4:

| what | seconds |
|---|---|
| one | 1.5 |
| two | 3 |

## Deeper

| what | MB |
|---|---|
| peak | 440 |

# Words

| file | what it is |
|---|---|
| `a.csv` | the 30 strongest |

# Nowhere

The decade 1999999 is no commit, nor is deadbeef.

| what | AUC |
|---|---|
| x | **0.96** |
"""


def test_a_table_belongs_to_the_command_and_commit_of_its_section_or_the_one_above() -> None:
    _, speed, deeper, words, nowhere = sections_of(TEXT)
    assert (speed.tables, speed.commands, speed.commits) == ([7], ["scoring"], ["1a2b3c4"])
    assert (deeper.tables, deeper.commands, deeper.commits) == ([14], ["scoring"], ["1a2b3c4"])
    assert words.tables == []  # no cell begins with a number
    assert (nowhere.tables, nowhere.commands, nowhere.commits) == ([28], [], [])


def test_what_a_benchmark_measures_is_what_it_imports(tmp_path: Path) -> None:
    for name, text in {
        "benchmarks/a.py": "from benchmarks.common import x\nfrom wsi.slides import slide\nimport numpy\n",
        "benchmarks/common.py": "",
        "wsi/slides/__init__.py": "",
        "wsi/slides/slide.py": "def f():\n    from wsi import text\n",
        "wsi/__init__.py": "",
        "wsi/text.py": "",
        "wsi/other.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert measured_by("a", tmp_path) == {
        "benchmarks/a.py",
        "benchmarks/common.py",
        "wsi/slides/__init__.py",
        "wsi/slides/slide.py",
        "wsi/__init__.py",
        "wsi/text.py",
    }


def test_missing_commands_and_commits_are_said() -> None:
    assert problem_of("nothing_of_this_name", []) == (True, "there is no command nothing_of_this_name")
    assert problem_of("scoring", []) == (False, "no commit is named")
    assert problem_of("scoring", ["0a0a0a0a0a"]) == (False, "commits 0a0a0a0a0a are not in this repository")
    assert problem_of("bench", ["0a0a0a0"]) == (False, "")
