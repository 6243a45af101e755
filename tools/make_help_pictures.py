"""Take the picture of each node for its help pages, in the page of a running server, as web/docs/<id>/<locale>.webp.

    python tools/make_help_pictures.py http://127.0.0.1:8188 [id ...]

It needs Chromium with its driver, Selenium, and a font with Chinese letters. The server sets the language of its page,
which is English afterwards. What lists of files show is what the server has.
"""

from __future__ import annotations

import base64
import json
import shutil
import sys
import time
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

DOCS = Path(__file__).resolve().parents[1] / "web" / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--no-proxy-server", "--window-size=1280,1600", "--hide-scrollbars")
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False, "Comfy.VueNodes.Enabled": False}
WIDTH, ZOOM, MARGIN = 420, 1.1, 6  # of a node in the canvas's units, pixels for one of them, pixels around it
QUALITY = 80
SECONDS = 60
# What is picked where the first file of the list would mislead, by a part of its name.
PICKED = {
    "CogVideoXLoadPipeline": "CogVideoX-5b",
    "CogVideoXLoadModel": "1_0_5b_I2V_bf16",
    "CogVideoXLoadTextEncoder": "t5xxl",
    "CogVideoXLoadTora": "Tora_T2V",
    "CogVideoXLoadDiffusionAsShader": "Shader",
    "CogVideoXLoadConsisID": "ConsisID",
}
READY = "return !!(window.app && app.extensionManager && window.LiteGraph?.registered_node_types.CogVideoXSampler)"
SHOW = """
const [type, width, zoom, picked] = arguments;
app.graph.clear();
const node = LiteGraph.createNode(type);
app.graph.add(node);
const list = node.widgets?.find(widget => widget.type === "combo");
if (picked) list.value = list.options.values.find(name => name.includes(picked)) ?? list.value;
const size = node.computeSize();
node.setSize([Math.max(width, size[0]), size[1]]);
node.pos = [0, 0];
node.badges = [];
app.canvas.ds.scale = zoom;
app.canvas.ds.offset = [100, 120];
app.canvas.background_image = null;
app.canvas.setDirty(true, true);
const place = app.canvas.canvas.getBoundingClientRect();
return [place.left + 100 * zoom, place.top + (120 - LiteGraph.NODE_TITLE_HEIGHT) * zoom,
        node.size[0] * zoom, (node.size[1] + LiteGraph.NODE_TITLE_HEIGHT) * zoom];
"""


def set_on(server: str, values: dict) -> None:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/settings", json.dumps(values).encode(), headers)
    with urllib.request.urlopen(request, timeout=SECONDS):
        pass


def open_page(page, server: str) -> None:
    page.get(server)
    end = time.monotonic() + SECONDS
    while not page.execute_script(READY):
        if time.monotonic() > end:
            raise SystemExit(f"The page of {server} was not ready in {SECONDS} s.")
        time.sleep(0.2)
    time.sleep(2)  # the page goes on to open what it last showed


def picture(page, node_id: str) -> bytes:
    """Return one node as it is when it is added, as WEBP."""
    x, y, width, height = page.execute_script(SHOW, node_id, WIDTH, ZOOM, PICKED.get(node_id))
    time.sleep(0.7)  # text boxes are laid out over some frames
    clip = {"x": x - MARGIN, "y": y - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN, "scale": 1}
    shot = page.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": QUALITY, "clip": clip})
    return base64.b64decode(shot["data"])


def main(server: str, *ids: str) -> None:
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    page = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        for locale in ("zh", "en"):
            set_on(server, SETTINGS | {"Comfy.Locale": locale})
            open_page(page, server)
            for node_id in ids or sorted(path.stem for path in DOCS.glob("*.md")):
                file = DOCS / node_id / f"{locale}.webp"
                file.write_bytes(picture(page, node_id))
                print(f"{file.relative_to(DOCS)}: {file.stat().st_size / 1000:.1f} kB")
    finally:
        page.quit()


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), *sys.argv[2:])
