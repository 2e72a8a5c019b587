// The dashboard: fetches everything once, then lives on server-sent events.
// Names come from the plant's network, so text is only ever set as textContent.
"use strict";

const MOST_CARDS = 120, MOST_KEPT = 800, MOST_ALARMS = 100, CARD_SIGNALS = 4, PLOT_EVERY = 2000, RESYNC_EVERY = 60000;
const WORDS = { green: "well", amber: "look", red: "alarm", grey: "off" };
const ORDER = { red: 0, amber: 1, green: 2, grey: 3 };
const machines = new Map(), alarms = new Map();
let status = {}, found = 0, open = null, shown = null, heardAt = 0, dirty = false, opener = null;

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
const rare = p => p >= 0.5 ? "usual" : p < 1e-6 ? "rarer than 1 in a million" : "1 in " + num(Number((1 / Math.max(p, 1e-12)).toPrecision(2)));

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

function makeCard(id) {
  const card = el("button", "card");
  card.type = "button";
  card.dataset.machine = id;
  const top = el("span", "top");
  top.append(el("span", "name", id), el("span", "pill"));
  const score = el("span", "score");
  const meter = el("meter");
  Object.assign(meter, { min: 0, max: 1, low: 0.7, high: 0.999, optimum: 0 });
  meter.setAttribute("aria-label", "On its way to the alarm limit");
  score.append(meter, el("span"));
  card.append(top, el("span", "why"), el("span", "values"), score);
  card.addEventListener("click", () => { opener = card; location.hash = "machine=" + encodeURIComponent(id); });
  return card;
}

function fillCard(card, m) {
  mark(card, "light", m.light);
  const pill = card.querySelector(".pill");
  mark(pill, "light", m.light);
  put(pill, t(WORDS[m.light]));
  const late = m.behind_seconds ? " · data is " + age(m.behind_seconds) + " behind" : "";
  put(card.querySelector(".why"), t(m.why) + late);
  const values = card.querySelector(".values");
  const list = loudest(m).slice(0, CARD_SIGNALS);
  fit(values, list.length, "span", () => [el("span", "signal"), el("span", "value"), el("span", "how")]);
  list.forEach((s, i) => {
    const row = values.children[i], state = signalState(s, m.since_seen);
    mark(row, "signal", s.name);
    mark(row, "quality", s.quality);
    const [name, value, how] = row.children;
    put(name, s.name);
    value.className = "value " + state.kind;
    put(value, num(s.value));
    how.hidden = !state.kind;
    how.className = "how " + state.kind;
    put(how, state.kind ? t(state.text) : "");
  });
  const v = m.verdict, score = card.querySelector(".score");
  score.hidden = !v || v.level === null;
  if (!score.hidden) {
    score.firstChild.value = v.level;
    put(score.lastChild, v.level >= 1 ? t("over the limit") : Math.floor(v.level * 100) + " % " + t("of limit"));
  }
}
// The signals that matter most come first on a card, otherwise by name.
function loudest(m) {
  if (m.light !== "red" || !m.verdict) return m.signals;
  const rank = new Map(m.verdict.contributions.map((c, i) => [c.name, i]));
  const at = s => rank.has(s.name) ? rank.get(s.name) : 999;
  return [...m.signals].sort((a, b) => at(a) - at(b));
}

function drawMachines() {
  const wanted = $("filter").value.toLowerCase();
  const list = [...machines.values()].filter(m => m.id.toLowerCase().includes(wanted));
  list.sort((a, b) => ORDER[a.light] - ORDER[b.light] || (a.id < b.id ? -1 : 1));
  const box = $("machines"), cards = new Map([...box.children].map(c => [c.dataset.machine, c]));
  const now = list.slice(0, MOST_CARDS);
  now.forEach((m, i) => {
    let card = cards.get(m.id);
    if (card) cards.delete(m.id); else card = makeCard(m.id);
    fillCard(card, m);
    if (box.children[i] !== card) {
      const focused = document.activeElement === card;
      box.insertBefore(card, box.children[i] || null);
      if (focused) card.focus();
    }
  });
  cards.forEach(c => c.remove());
  const total = status.machines ? status.machines.total : machines.size;
  const rest = (wanted ? Math.max(found, list.length) : Math.max(total, list.length)) - now.length;
  $("more").hidden = rest <= 0 && list.length > 0;
  put($("more"), list.length === 0 ? (wanted ? t("No machine of that name.") : t("No machine has been heard yet."))
    : t("and " + rest + " more; type a part of a name to find one"));
}

function drawStatus() {
  const s = status, n = s.machines;
  if (!n) return;
  put($("site"), s.site);
  put($("agent"), s.agent + " · andon " + s.version);
  document.title = (n.red ? "(" + n.red + ") " : "") + s.site + " · andon";
  const light = n.red ? "red" : s.health === "down" ? "red" : n.amber || s.health !== "up" ? "amber" : n.green ? "green" : "grey";
  mark($("overall"), "light", light);
  put($("overall"), t(n.red ? n.red + " in alarm" : s.health !== "up" ? "agent " + s.health : n.amber ? n.amber + " to look at" : n.green ? "all well" : "nothing running"));
  put($("counts"), [[n.red, "in alarm"], [n.amber, "to look at"], [n.green, "well"], [n.grey, "off"]]
    .filter(c => c[0]).map(c => c[0] + " " + t(c[1])).join(" · "));
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

function drawDetail() {
  const m = machines.get(open);
  if (!m) { put($("detail-why"), "This machine has not been heard."); return; }
  mark($("detail"), "machine", m.id);
  mark($("detail-light"), "light", m.light);
  put($("detail-light"), t(WORDS[m.light]));
  put($("detail-why"), t(m.why) + " · " + t("since") + " " + clock(m.since) + (m.behind_seconds ? " · data is " + age(m.behind_seconds) + " behind" : ""));
  const v = m.verdict, list = v ? v.contributions.slice(0, 8) : [];
  const box = $("contributions");
  fit(box, list.length, "li", () => [el("span"), el("progress"), el("span", "share")]);
  list.forEach((c, i) => {
    const [name, bar, share] = box.children[i].children;
    mark(box.children[i], "channel", c.name);
    put(name, c.name);
    bar.max = 1;
    bar.value = Math.max(0, c.value);
    bar.setAttribute("aria-label", c.name);
    put(share, (c.value * 100).toFixed(1) + " %");
  });
  pairs($("verdict"), v ? [
    [t("reason"), t(v.reason.toLowerCase().replaceAll("_", " "))], [t("score"), num(v.score)],
    [t("how rare"), v.p_value === null ? "–" : t(rare(v.p_value))],
    [t("limit"), v.held_against === "p_value" ? t(rare(v.threshold)) : num(v.threshold)],
    [t("health"), v.health === null ? "–" : Math.round(v.health * 100) + " %"],
    ...(v.rul ? [[t("useful life left"), num(v.rul.median) + " (" + num(v.rul.low) + " to " + num(v.rul.high) + ")"]] : []),
    ...(v.class ? [[t("class"), v.class]] : []), [t("model"), v.model], [t("window ends"), clock(v.at)],
    ...(m.second_opinion ? [[t("second opinion"), second(m.second_opinion)]] : []),
  ] : [["", t("no verdict yet")]]);
  const body = $("detail-signals");
  fit(body, m.signals.length, "tr", () => [el("td"), el("td", "value"), el("td")]);
  m.signals.forEach((s, i) => {
    const [name, value, how] = body.children[i].children, state = signalState(s, m.since_seen);
    mark(body.children[i], "signal", s.name);
    put(name, s.name);
    put(value, num(s.value));
    how.className = state.kind;
    put(how, t(state.text));
  });
  const mine = [...alarms.values()].filter(a => a.machine === m.id && a.explanation && a.state !== "normal").sort(byUrgency)[0];
  $("detail-alarm").hidden = !mine;
  if (mine) {
    put($("detail-alarm-state"), t(STATES[mine.shown_state] || mine.shown_state) + " · " + t("since") + " " + clock(mine.since));
    explain($("detail-alarm"), mine);
  }
}

// Loads a plot aside and shows it only when it is whole, so that it never flickers or goes blank.
function plot(img, path) {
  const next = new Image();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const width = Math.round((img.parentElement.clientWidth || 600) - 34);
  next.onload = () => { img.src = next.src; img.hidden = false; };
  next.src = path + "?theme=" + dark + "&w=" + width + "&t=" + Date.now();
}
function drawPlots() {
  if (document.hidden || !heardAt) return;
  plot($("buffer"), "/plot/buffer.svg");
  if (!open || !machines.has(open)) return;
  const at = "/plot/machines/" + encodeURIComponent(open);
  plot($("plot-score"), at + "/score.svg");
  plot($("plot-signals"), at + "/signals.svg");
}

function route() {
  const id = location.hash.startsWith("#machine=") ? decode(location.hash.slice(9)) : null;
  const dialog = $("detail");
  open = id;
  if (id === null) { if (dialog.open) dialog.close(); shown = null; return; }
  if (shown !== id) {
    shown = id;
    put($("detail-name"), id);
    for (const img of [$("plot-score"), $("plot-signals")]) { img.hidden = true; img.removeAttribute("src"); }
    ask("/api/v1/machines/" + encodeURIComponent(id)).then(m => { keep(m); drawDetail(); drawPlots(); }, () => drawDetail());
  }
  if (!dialog.open) dialog.showModal();
  drawDetail();
}
function decode(text) { try { return decodeURIComponent(text); } catch { return text; } }
function keep(m) { machines.set(m.id, { ...machines.get(m.id), ...m, since_seen: performance.now() }); }

function signIn() { if (!$("sign-in").open) $("sign-in").showModal(); }

async function fetchMachines(afresh) {
  const q = $("filter").value;
  const answer = await ask("/api/v1/machines?limit=500&q=" + encodeURIComponent(q));
  if (afresh || machines.size > MOST_KEPT) {
    const mine = machines.get(open);
    machines.clear();
    if (mine) machines.set(open, mine);
  }
  answer.machines.forEach(keep);
  found = answer.found;
  dirty = true;
}
async function fetchAll() {
  const listed = await ask("/api/v1/alarms");
  alarms.clear();
  listed.alarms.forEach(a => alarms.set(a.id, a));
  await fetchMachines(true);
  if (open) keep(await ask("/api/v1/machines/" + encodeURIComponent(open)));
}

const heard = {
  status: s => { status = s; drawStatus(); },
  step: s => { const m = machines.get(s.machine); if (m) keep({ id: m.id, at: s.at, behind_seconds: s.behind_seconds, signals: s.signals }); else stranger(false); },
  verdict: v => { const m = machines.get(v.machine); if (m) m.verdict = v.verdict; },
  opinion: o => { const m = machines.get(o.machine); if (m) m.second_opinion = o.second_opinion; },
  state: s => { const m = machines.get(s.machine); if (m) Object.assign(m, { light: s.light, why: s.why, since: s.since }); else stranger(ORDER[s.light] < 2); },
  flood: f => {
    if (f && !status.flood) put($("said"), t("Flood of alarms: " + f.raised + " so far, the first from " + f.first));
    status.flood = f;
  },
  alarm: a => {
    if (a.announced && a.active && (!alarms.has(a.id) || a.change === "repeated")) put($("said"), t("alarm") + ": " + a.machine + ": " + t(a.message));
    alarms.set(a.id, a);
    if (alarms.size > 600) alarms.delete(alarms.keys().next().value);
  },
};
// A machine that is not on the page: fetched a moment later, many at a time.
let fetching = 0;
function stranger(urgent) {
  if (fetching || (!urgent && ($("filter").value || machines.size >= 500))) return;
  fetching = setTimeout(() => { fetchMachines().catch(() => {}).finally(() => { fetching = 0; }); }, 300);
}

let source = null;
function connect() {
  if (source) source.close();
  source = new EventSource("/api/v1/events");
  source.onopen = () => { fetchAll().catch(() => {}); };
  source.onerror = () => {
    lost();
    // A refusal (no session, too many streams) ends an EventSource for good.
    if (source.readyState !== EventSource.CLOSED) return;
    ask("/api/v1/status").catch(() => {}).then(() => { if (!$("sign-in").open) setTimeout(connect, 3000); });
  };
  for (const kind of Object.keys(heard)) {
    source.addEventListener(kind, e => { heardAt = Date.now(); $("lost").hidden = true; heard[kind](JSON.parse(e.data)); dirty = true; });
  }
}
function lost() {
  put($("lost-since"), heardAt ? clock(heardAt) : "before this page was opened");
  $("lost").hidden = false;
}

$("detail-close").addEventListener("click", () => $("detail").close());
$("detail").addEventListener("close", () => {
  if (location.hash.startsWith("#machine=")) history.replaceState(null, "", location.pathname);
  open = shown = null;
  if (opener && opener.isConnected) opener.focus();
});
let typing = 0;
$("filter").addEventListener("input", () => {
  dirty = true;
  clearTimeout(typing);
  typing = setTimeout(() => fetchMachines().catch(() => {}), 250);
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
setInterval(() => {
  if (heardAt && Date.now() - heardAt > 5000) lost();
  if (document.hidden || !dirty) return;
  dirty = false;
  drawMachines();
  drawAlarms();
  if (open) drawDetail();
}, 250);
setInterval(drawPlots, PLOT_EVERY);
setInterval(() => { if (!document.hidden && [...alarms.values()].some(a => a.shelved_until)) drawAlarms(); }, 1000);
setInterval(() => { if (!document.hidden && $("lost").hidden) fetchAll().catch(() => {}); }, RESYNC_EVERY);
addEventListener("DOMContentLoaded", () => { translatePage(); connect(); route(); turnPage(); });
