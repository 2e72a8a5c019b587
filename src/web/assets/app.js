// The dashboard: what is common to its parts, status, plots and what is drawn when.
// Names come from the plant's network, so text is only ever set as textContent.
"use strict";

const MOST_ALARMS = 100, PLOT_EVERY = 3000, RESYNC_EVERY = 60000;
const WORDS = { green: "normal", amber: "attention", red: "alarm", white: "not judged", off: "off" };
const ORDER = { red: 0, amber: 1, white: 2, green: 3, off: 4 };
const alarms = new Map();
let status = {}, open = null, shown = null, opener = null;
// What has to be drawn anew.
const stale = { alarms: false, detail: false, counts: false, wall: false };

const $ = id => document.getElementById(id);
function el(tag, className, text) {
  const e = document.createElement(tag);
  if (className) e.className = className;
  if (text !== undefined) e.textContent = text;
  return e;
}
// Makes a list as long as it should be.
function fit(box, length, tag, parts) {
  while (box.children.length > length) box.lastChild.remove();
  while (box.children.length < length) {
    const row = el(tag);
    row.append(...parts());
    box.append(row);
  }
}
function put(e, text) { if (e.textContent !== text) e.textContent = text; }
function mark(e, key, value) { if (e.dataset[key] !== value) e.dataset[key] = value; }

function num(v) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return v.toExponential(2);
  if (size >= 1000) return v.toLocaleString("en", { maximumFractionDigits: 1 });
  return String(Number(v.toPrecision(4)));
}
// Behind a number; what is counted has the unit 1, which is not said.
const unitOf = unit => unit && unit !== "1" ? " " + unit : "";
function age(s) {
  if (s < 10) return s.toFixed(1) + " s";
  if (s < 120) return Math.round(s) + " s";
  if (s < 7200) return Math.round(s / 60) + " min";
  if (s < 172800) return Math.round(s / 3600) + " h";
  return Math.round(s / 86400) + " d";
}
function bytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  while (n >= 1024 && i < 4) { n /= 1024; i++; }
  return num(Math.round(n * 10) / 10) + " " + units[i];
}
const clock = at => { const d = new Date(at); return isNaN(d) ? "" : d.toLocaleString(language === "zh" ? "zh-CN" : [], { dateStyle: "short", timeStyle: "medium" }); };
// A p-value, and how often as much is expected while the machine is normal.
const rare = p => p >= 0.5 ? num(p) : num(p) + " · expected once in " + num(Number((1 / Math.max(p, 1e-12)).toPrecision(2)));

async function ask(path, body) {
  const options = body ? { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) } : {};
  const reply = await fetch(path, options);
  const answer = await reply.json().catch(() => ({}));
  if (reply.status === 401 && path !== "/api/v1/session") signIn();
  if (!reply.ok) throw new Error(answer.error || "HTTP " + reply.status);
  return answer;
}

// What is known of a signal right now: unchanged is not the same as not heard.
function signalState(s, since) {
  const plus = (performance.now() - since) / 1000;
  if (s.heard_seconds === null) return { text: s.cause === "none" ? "not heard yet" : "not heard: " + s.cause.replaceAll("_", " "), kind: "gone" };
  const heard = s.heard_seconds + plus;
  if (s.quality === "good") {
    const rests = s.unchanged_seconds === null ? 0 : s.unchanged_seconds + plus;
    return { text: rests > 60 ? "unchanged for " + age(rests) : "good", kind: "" };
  }
  const why = s.cause === "none" ? s.quality : s.cause.replaceAll("_", " ");
  const silent = ["held", "timeout", "exception", "disconnected"].includes(s.cause) || s.quality === "stale";
  return silent ? { text: "not heard for " + age(heard) + (s.cause === "held" || s.cause === "none" ? "" : ": " + why), kind: "gone" }
    : { text: s.quality + ": " + why, kind: "not-good" };
}

// How many machines are in which state, from the map that the cards and the wall are drawn from.
function tally() {
  const n = { red: 0, amber: 0, white: 0, green: 0, off: 0 };
  for (const s of lights.values()) n[s.light]++;
  return n;
}
function drawCounts() {
  const n = tally(), health = status.health || "starting", ill = health !== "up";
  drawChips(n);
  document.title = (live === false ? "(?) " : n.red ? "(" + n.red + ") " : "") + (status.site ? status.site + " · " : "") + "andon";
  const light = live === false ? "off" : n.red || health === "down" ? "red" : n.amber || ill ? "amber" : n.white || !lights.size ? "white" : n.green ? "green" : "off";
  const text = live === false ? "not live" : n.red ? n.red + " in alarm" : ill ? "agent " + health : n.amber ? n.amber + " need attention"
    : n.white ? n.white + " not judged" : n.green ? "all normal" : lights.size ? "all off" : "no machines";
  mark($("overall"), "light", light);
  put($("overall"), t(text));
}

function drawStatus() {
  const s = status;
  if (!s.machines) return;
  put($("site"), s.site);
  put($("agent"), s.agent + " · andon " + s.version);
  drawCounts();
  put($("path-health"), t(s.health));
  const box = $("components"), names = Object.keys(s.components);
  fit(box, names.length, "li", () => [el("span"), el("span", "dot"), el("span", "detail")]);
  names.forEach((name, i) => {
    const c = s.components[name], [label, dot, detail] = box.children[i].children;
    mark(box.children[i], "component", name);
    put(label, name);
    mark(dot, "health", c.health);
    put(dot, t(c.health));
    const good = c.last_good_seconds === null ? t("has not worked yet") : c.last_good_seconds > 5 ? t("last good") + " " + lastGood(c) : "";
    put(detail, [c.detail, good].filter(Boolean).join(" · "));
  });
  const rows = [[t("records waiting"), num(s.records_waiting)], [t("records sent"), num(s.records_forwarded_total)],
    [t("readings per second"), num(s.readings_per_second)], [t("readings"), num(s.readings_total)]];
  if (s.view.events_lagged) rows.push(["events this page missed", num(s.view.events_lagged)]);
  if (s.view.events_not_shown) rows.push(["events not shown", num(s.view.events_not_shown)]);
  pairs($("store"), rows);
  put($("foot"), t("running for") + " " + age(s.uptime_seconds) + " · " + (s.ready ? t("ready") : s.missing.join("; ")));
  drawPath();
  drawModels();
}
function pairs(box, rows) {
  fit(box, rows.length, "div", () => [el("dt"), el("dd")]);
  rows.forEach(([key, value], i) => { put(box.children[i].firstChild, key); put(box.children[i].lastChild, value); });
}

// Loads a plot aside and shows it only when it is whole, so that it never flickers or goes blank.
function plot(img, path) {
  const next = new Image();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const width = Math.round((img.closest("dialog, .side section").clientWidth || 600) - 34);
  next.onload = () => { img.src = next.src; img.hidden = false; };
  next.src = path + "?theme=" + dark + "&lang=" + language + "&w=" + width + "&t=" + Date.now();
}
function drawPlots() {
  if (document.hidden || !heardAt) return;
  if (!open && !$("overview-page").hidden) plot($("buffer"), "/plot/buffer.svg");
  if (!open || !machines.has(open)) return;
  const at = "/plot/machines/" + encodeURIComponent(open);
  $("health-part").hidden = !machines.get(open).course;
  if (machines.get(open).course) plot($("plot-health"), at + "/health.svg");
  plot($("plot-score"), at + "/score.svg");
  plot($("plot-signals"), at + "/signals.svg");
}

function signIn() { if (!$("sign-in").open) $("sign-in").showModal(); }

$("detail-close").addEventListener("click", () => $("detail").close());
$("detail").addEventListener("close", () => {
  if (location.hash.startsWith("#machine=")) history.replaceState(null, "", location.pathname);
  open = shown = null;
  tellWatched();
  if (opener && opener.isConnected) opener.focus();
});
$("sign-in-form").addEventListener("submit", async e => {
  e.preventDefault();
  try {
    await ask("/api/v1/session", { token: $("token").value });
    $("token").value = "";
    put($("sign-in-error"), "");
    $("sign-in").close();
    connect();
  } catch (problem) { put($("sign-in-error"), problem.message); }
});
addEventListener("hashchange", () => { route(); turnPage(); });
// Cards, counts and alarms are drawn together, so that they say the same.
function draw() {
  if (document.hidden) return;
  drawMachines();
  if (stale.counts) { stale.counts = false; drawCounts(); }
  drawWall();
  if (stale.alarms) { stale.alarms = false; drawAlarms(); }
  if (stale.detail && open) { stale.detail = false; drawDetail(); }
}
setInterval(() => { showLive(); draw(); }, 250);
setInterval(drawPlots, PLOT_EVERY);
setInterval(() => { if ([...alarms.values()].some(a => a.shelved_until)) stale.alarms = true; }, 1000);
setInterval(() => { if (!document.hidden && live) refetchAll(); }, RESYNC_EVERY);
addEventListener("DOMContentLoaded", () => { translatePage(); connect(); route(); turnPage(); });
