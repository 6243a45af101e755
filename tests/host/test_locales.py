"""The names and tooltips in the page's languages: English as the nodes have them, Chinese whole, both as served."""

import asyncio
import re
import shutil

import folder_paths
import pytest
from app.custom_node_manager import CustomNodeManager
from pack.nodes import CogVideoXExtension
from pack.tools import make_locales
from pack.tools.make_locales import LOCALES, SYNTAX, readable, texts

NODES = asyncio.run(CogVideoXExtension().get_node_list())
LIVE = make_locales.definitions(NODES)
ENGLISH = dict(texts(LIVE))
CHINESE = dict(texts(make_locales.read("zh")))
CJK = re.compile(r"[\u4e00-\u9fff]")
NUMBER = re.compile(r"\d+(?:\.\d+)*")
# Display names that are a name alone, the same in every language.
NAMES = {"CogVideoXRIFLEx.display_name"}


def option_values():
    """Return the option values written in tooltips as `value: what it does`, by the key of the tooltip."""
    for node in NODES:
        schema = node.GET_SCHEMA()
        for one in schema.inputs:
            options = getattr(one, "options", None) or ()
            named = [str(option) for option in options if f"{option}: " in (one.tooltip or "")]
            if named:
                yield f"{schema.node_id}.inputs.{one.id}.tooltip", named


def test_english_is_what_the_nodes_say():
    assert make_locales.read("en") == readable(LIVE), "run tools/make_locales.py"


def test_english_leaves_out_only_what_the_page_would_misread():
    left_out = ENGLISH.keys() - dict(texts(make_locales.read("en"))).keys()
    assert left_out == {key for key, text in ENGLISH.items() if SYNTAX.search(text)}
    assert all(key.endswith(".tooltip") for key in left_out)  # the page loads no node after a bad name or description


def test_chinese_has_every_text_and_no_other():
    assert sorted(CHINESE) == sorted(ENGLISH)


@pytest.mark.parametrize("name", ["nodeDefs", "main"])
def test_chinese_is_chinese_that_the_page_can_read(name):
    found = dict(texts(make_locales.read("zh", name)))
    assert not [key for key, text in found.items() if not CJK.search(text) and key not in NAMES]
    assert not [key for key, text in found.items() if SYNTAX.search(text)]


def test_chinese_keeps_the_numbers():
    lost = {
        key: missing
        for key, text in ENGLISH.items()
        if (missing := set(NUMBER.findall(text)) - set(NUMBER.findall(CHINESE[key])))
    }
    assert not lost


def test_chinese_keeps_the_option_values():
    values = dict(option_values())
    assert len(values) > 10
    lost = {key: [v for v in named if f"{v}：" not in CHINESE[key]] for key, named in values.items()}
    assert not {key: missing for key, missing in lost.items() if missing}


def test_categories_are_ours():
    ours = {part for node in NODES for part in node.GET_SCHEMA().category.split("/")}
    assert make_locales.read("zh", "main")["nodeCategories"].keys() <= ours


def test_host_serves_them(tmp_path, monkeypatch):
    """GET /i18n answers with what build_translations gives."""
    shutil.copytree(LOCALES, tmp_path / "ComfyUI-CogVideoX" / "locales")
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "custom_nodes", ([str(tmp_path)], set()))
    served = CustomNodeManager().build_translations()
    assert served.keys() == {"en", "zh"}
    assert served["en"] == {"nodeDefs": make_locales.read("en")}
    assert served["zh"] == {"nodeDefs": make_locales.read("zh"), **make_locales.read("zh", "main")}
