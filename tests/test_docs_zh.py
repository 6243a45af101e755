"""The Chinese help pages against the English ones: the same tables with the same ids, values, numbers and messages.

No host is needed. ComfyUI looks for `web/docs/<id>/zh.md` under the locale zh and shows `web/docs/<id>.md` without it.
"""

import re
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "web" / "docs"
TITLES = {"Inputs": "输入", "Outputs": "输出", "Typical values": "常用值", "What goes wrong and why": "常见问题与原因"}
INPUT_COLUMNS = ["输入", "作用", "范围", "常用"]
OUTPUT_COLUMNS = ["输出", "类型", "说明"]
MESSAGE_COLUMNS = ["消息或现象", "原因", "解决办法"]

PAGES = sorted(path.stem for path in DOCS.glob("*.md"))
TRANSLATED = sorted(path.parent.name for path in DOCS.glob("*/zh.md"))
MISSING = set(PAGES) - set(TRANSLATED)


def sections(text: str) -> list[tuple[str, str]]:
    """Return (title, body) of every section; the lead comes first and has no title."""
    lead, *rest = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return [("", lead), *zip(rest[::2], rest[1::2], strict=True)]


def rows(body: str) -> list[list[str]]:
    """Return the cells of every row of a section's table, the heads included and the rule under them left out."""
    lines = [line for line in body.splitlines() if line.startswith("|") and not re.fullmatch(r"[| -]+", line)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def prose(body: str) -> str:
    return "\n".join(line for line in body.splitlines() if not line.startswith("|"))


def quoted(text: str) -> list[str]:
    return re.findall(r'"[^"]+"', text)


def literals(text: str) -> tuple[Counter, Counter]:
    """Count what a translation keeps: the values in backticks and the numbers, those inside backticks included."""
    return Counter(re.findall(r"`[^`]*`", text)), Counter(re.findall(r"\d+(?:\.\d+)?", text))


def pair(page: str) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    english = sections((DOCS / f"{page}.md").read_text("utf-8"))
    chinese = sections((DOCS / page / "zh.md").read_text("utf-8"))
    assert [title for title, _ in chinese] == [TITLES.get(title, title) for title, _ in english]
    return list(zip(english, chinese, strict=True))


def test_every_page_has_a_chinese_one():
    assert MISSING == set()


def test_every_chinese_page_has_an_english_one():
    assert set(TRANSLATED) <= set(PAGES)


@pytest.mark.parametrize("page", TRANSLATED)
def test_tables_have_the_same_rows_values_and_messages(page):
    for (title, english), (_, chinese) in pair(page):
        ours, theirs = rows(chinese), rows(english)
        assert [len(row) for row in ours] == [len(row) for row in theirs], title
        for one, other in zip(ours, theirs, strict=True):
            assert all(one), f"{title}: an empty cell in {one}"
            for cell, source in zip(one, other, strict=True):
                assert quoted(cell) == quoted(source), title
                assert literals(cell) == literals(source), f"{title}: {cell!r} stands for {source!r}"


@pytest.mark.parametrize("page", TRANSLATED)
def test_ids_stand_in_the_same_order(page):
    for (title, english), (_, chinese) in pair(page)[1:3]:
        ids = [row[0] for row in rows(chinese)[1:]]
        assert ids == [row[0] for row in rows(english)[1:]], title
        assert all(re.fullmatch(r"`\w+`", one) for one in ids), title


@pytest.mark.parametrize("page", TRANSLATED)
def test_text_beside_the_tables_keeps_values_numbers_and_messages(page):
    for (title, english), (_, chinese) in pair(page):
        ours, theirs = prose(chinese), prose(english)
        assert quoted(ours) == quoted(theirs), title
        assert literals(ours) == literals(theirs), title
        paragraphs = [len([part for part in re.split(r"\n\s*\n", text) if part.strip()]) for text in (ours, theirs)]
        assert paragraphs[0] == paragraphs[1], title


@pytest.mark.parametrize("page", TRANSLATED)
def test_columns_are_named_in_chinese(page):
    tables = dict(sections((DOCS / page / "zh.md").read_text("utf-8")))
    assert rows(tables["输入"])[0] == INPUT_COLUMNS
    assert rows(tables["输出"])[0] == OUTPUT_COLUMNS
    assert rows(tables["常见问题与原因"])[0] == MESSAGE_COLUMNS


@pytest.mark.parametrize("page", TRANSLATED)
def test_no_sentence_is_left_in_english(page):
    text = re.sub(r'"[^"]+"|`[^`]*`', "", (DOCS / page / "zh.md").read_text("utf-8"))
    assert not re.findall(r"(?:\b[a-z]+[ ,]+){3,}[a-z]+\b", text)  # four small words in a row; names have capitals
