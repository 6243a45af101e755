// Opens graphs of the older CogVideoX wrapper as native ones, where that pack is not installed.
//
// The server converts; this asks it before the page builds the graph, says what came of it, and puts the graph as it
// was into the undo history. A graph in the API format has no such history: its old nodes cannot be shown.

import { app } from "../../../scripts/app.js";
import { api } from "../../../scripts/api.js";

const OLD = /^(CogVideo(?!X(Load|TextEncode|ImageToVideo|Sampler|Scheduler|Native))|DownloadAndLoad(CogVideo|Tora)|ToraEncode)/;
const TOAST_MS = 20000;
const NOTES_SHOWN = 6;
const HISTORY_TRIES = 100;
const HISTORY_WAIT_MS = 100;

function graphsOf(graph) {
  const parts = [graph, ...(graph?.definitions?.subgraphs ?? []), ...Object.values(graph?.extra?.groupNodes ?? {})];
  return parts.filter((part) => Array.isArray(part?.nodes));
}

function isOldType(type) {
  const registered = window.LiteGraph?.registered_node_types ?? {};
  return typeof type === "string" && OLD.test(type) && !(type in registered);
}

function isOld(graph) {
  return graphsOf(graph).some((part) => part.nodes.some((node) => isOldType(node?.type)));
}

async function convert(graph) {
  const reply = await api.fetchApi("/cogvideox/convert", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(graph),
  });
  return reply.ok ? reply.json() : null;
}

function tracker() {
  return app.extensionManager?.workflow?.activeWorkflow?.changeTracker;
}

function shape(graph) {
  return JSON.stringify((graph?.nodes ?? []).map((node) => `${node.id} ${node.type}`).sort());
}

// The page makes the history of a graph only after it has built it.
async function remember(original, converted) {
  for (let left = HISTORY_TRIES; left > 0; left--) {
    await new Promise((done) => setTimeout(done, HISTORY_WAIT_MS));
    const history = tracker();
    if (history && shape(history.activeState) === shape(converted)) {
      history.undoQueue?.push(original);
      return;
    }
  }
}

// Group nodes that were unfolded: the page has already complained of what they held.
function forgive(missing, converted) {
  const kept = converted.extra?.groupNodes ?? {};
  const isGone = (entry) => {
    const name = /workflow>([^']*)/.exec(entry?.hint ?? entry?.type ?? entry)?.[1];
    return name !== undefined && !(name in kept);
  };
  for (let i = missing.length - 1; i >= 0; i--) if (isGone(missing[i])) missing.splice(i, 1);
}

function tell(report, more = []) {
  const notes = report.notes.slice(0, NOTES_SHOWN);
  const left = report.notes.length - notes.length;
  const lines = [...notes, ...(left > 0 ? [`… and ${left} more, in the browser's console.`] : [])];
  if (report.notes.length) console.info("CogVideoX:", report.summary, report.notes);
  app.extensionManager?.toast?.add({
    severity: report.notes.length ? "warn" : "info",
    summary: report.summary || "An old CogVideoX workflow was not converted.",
    detail: [...lines, ...more].join("\n"),
    life: TOAST_MS,
  });
}

app.registerExtension({
  name: "CogVideoX.OldWorkflows",

  async beforeConfigureGraph(graph, missing) {
    const history = tracker();
    const undoing = history?._restoringState ?? history?.restoringState;
    if (undoing || !isOld(graph)) return;
    const original = JSON.parse(JSON.stringify(graph));
    const answer = await convert(original);
    if (!answer) return;
    const { graph: converted, report } = answer;
    if (converted) {
      for (const key of Object.keys(graph)) delete graph[key];
      Object.assign(graph, converted);
      if (Array.isArray(missing)) forgive(missing, converted);
      remember(original, converted);
    }
    if (converted || report.notes.length) tell(report, converted ? ["Undo brings the original back."] : []);
  },

  // The page has no hook before it builds a graph in the API format: it complains of missing nodes and leaves them out.
  setup() {
    const load = app.loadApiJson;
    if (typeof load !== "function") return;
    app.loadApiJson = function (prompt, ...rest) {
      const old = Object.values(prompt ?? {}).some((node) => isOldType(node?.class_type));
      if (!old) return load.call(this, prompt, ...rest);
      const open = async () => {
        const answer = await convert(prompt).catch(() => null);
        const opened = await load.call(this, answer?.graph ?? prompt, ...rest);
        if (answer) tell(answer.report);
        return opened;
      };
      return open();
    };
  },
});
