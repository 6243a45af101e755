// Plays the moving clip of a sampler in its node on the classic canvas, which draws the first frame of any preview.
//
// The page has a widget for images that move, and gives it to a node whose file's name says so. A preview has no name:
// what comes for a node is looked at here, and a node that got a clip answers for itself.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const HEAD = 21; // bytes of RIFF, size, WEBP, VP8X, size, flags
const ANIMATED = 0x02; // of the flags
const WIDGET = "$$comfy_animation_preview"; // the page's own name, under which it puts the image in
const STILL = "$$canvas-image-preview"; // the page's widget for images that do not move
const HEIGHT = 220; // as the page gives a still preview

const clips = new WeakSet(); // nodes whose last preview moves

async function isClip(blob) {
  const head = new Uint8Array(await blob.slice(0, HEAD).arrayBuffer());
  return String.fromCharCode(...head.slice(8, 16)) === "WEBPVP8X" && (head[20] & ANIMATED) !== 0;
}

// Of an id as the server gives it: "5", or "12:5" for node 5 in the subgraph of node 12.
function nodeAt(id) {
  let graph = app.rootGraph ?? app.graph;
  let node;
  for (const part of String(id).split(":")) {
    node = graph?.nodes.find((one) => String(one.id) === part);
    graph = node?.subgraph;
  }
  return node;
}

function play(node, size) {
  if (!clips.has(node)) {
    clips.add(node);
    let said = false;
    Object.defineProperty(node, "animatedImages", {
      configurable: true,
      get: () => said || clips.has(node),
      set: (value) => (said = value),
    });
    const still = node.widgets?.findIndex((widget) => widget.name === STILL) ?? -1;
    if (still >= 0) {
      // The page was quicker and has made room for a still image.
      node.widgets.splice(still, 1)[0].onRemove?.();
      node.setSize(size);
    }
  }
  if (node.widgets?.some((widget) => widget.name === WIDGET)) return;
  const options = { hideOnZoom: false, canvasOnly: true, serialize: false, getMinHeight: () => HEIGHT };
  const widget = node.addDOMWidget(WIDGET, "img", document.createElement("div"), options);
  widget.serialize = false;
  widget.element.style.pointerEvents = "none"; // the node is moved by it
}

api.addEventListener("b_preview_with_metadata", async ({ detail }) => {
  const node = nodeAt(detail.displayNodeId ?? detail.nodeId);
  if (!node) return;
  const size = [...node.size];
  if (await isClip(detail.blob)) play(node, size);
  else clips.delete(node);
});
