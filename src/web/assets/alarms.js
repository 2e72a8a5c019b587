// The alarm list: who calls, what was put aside and until when, why, and what people do about it.
"use strict";

const STATES = { unacknowledged: "Active", acknowledged: "Active, acknowledged", returned_unacknowledged: "Over, not acknowledged",
  latched_unacknowledged: "Latched", latched_acknowledged: "Latched, acknowledged", normal: "Over",
  shelved: "Shelved", suppressed: "Suppressed", out_of_service: "Out of service" };

// Where an alarm is listed.
const shelfOf = a => a.shelved_until || a.out_of_service_by || a.suppressed ? "aside" : "alarms";
const calling = a => a.active && shelfOf(a) !== "aside";
// Active alarms first, flood or not, of these the most severe first. The agent lists them in the same order.
function byUrgency(a, b) {
  const calls = calling(a);
  return Number(calling(b)) - Number(calls) || (calls ? 0 : Number(b.owed) - Number(a.owed)) || b.severity - a.severity ||
    Number(b.owed) - Number(a.owed) || (a.since < b.since ? 1 : a.since > b.since ? -1 : a.id < b.id ? 1 : -1);
}
const floodText = flood => "Flood of alarms: " + flood.raised + " so far, the first from " + flood.first;

function drawAlarms() {
  const all = [...alarms.values()].sort(byUrgency), stands = a => a.state !== "normal" || shelfOf(a) === "aside";
  const standing = all.filter(stands), list = [...standing, ...all.filter(a => !stands(a))].slice(0, MOST_ALARMS);
  $("alarms-more").hidden = standing.length <= MOST_ALARMS;
  put($("alarms-more"), t("and " + (standing.length - MOST_ALARMS) + " more alarms"));
  for (const place of ["alarms", "aside"]) {
    const mine = list.filter(a => shelfOf(a) === place), box = $(place);
    const rows = new Map([...box.children].map(r => [r.dataset.alarm, r]));
    mine.forEach((a, i) => {
      let row = rows.get(a.id);
      if (row) rows.delete(a.id); else row = makeAlarm(a.id);
      fillAlarm(row, a);
      if (box.children[i] !== row) {
        const focused = row.contains(document.activeElement) ? document.activeElement : null;
        box.insertBefore(row, box.children[i] || null);
        if (focused) focused.focus();
      }
    });
    rows.forEach(r => r.remove());
    const part = $(place + "-part");
    if (part) part.hidden = mine.length === 0;
    const count = $(place + "-count");
    if (count) put(count, String(mine.length));
  }
  const active = all.filter(calling).length;
  put($("alarm-count"), active ? t(active + " active") : list.length ? t("none active") : "");
  $("no-alarms").hidden = list.length > 0;
  const flood = status.flood;
  $("flood").hidden = !flood;
  if (flood) put($("flood"), t(floodText(flood)));
  $("ack-all").hidden = shownOwed().length < 2;
}

// The alarms in the list that are shown as not acknowledged.
const shownOwed = () => [...$("alarms").children].filter(row => !row.querySelector(".ack").hidden).map(row => row.dataset.alarm);
// Acknowledges these and no others, whatever comes meanwhile.
$("ack-all").addEventListener("click", async () => {
  const ids = shownOwed(), problems = [];
  $("ack-all").disabled = true;
  for (const id of ids) await ask("/api/v1/alarms/" + id + "/ack", { by: myName() }).catch(problem => problems.push(problem.message));
  $("ack-all").disabled = false;
  put($("ack-all-problem"), problems.length ? problems.length + " / " + ids.length + ": " + problems[0] : "");
});

function button(name, label, then) {
  const b = el("button", name, t(label));
  b.type = "button";
  b.dataset.t = label;
  b.addEventListener("click", then);
  return b;
}
function makeAlarm(id) {
  const row = el("li");
  row.dataset.alarm = id;
  const what = el("span", "what"), name = el("a", "machine"), deeds = el("span", "deeds"), why = el("details", "why-so");
  const summary = el("summary", "", t("Why, and what to check"));
  summary.dataset.t = "Why, and what to check";
  what.append(name, el("span", "state"), el("span", "tags"));
  const act = (action, body) => async e => {
    e.target.disabled = true;
    put(row.querySelector(".problem"), "");
    try { await ask("/api/v1/alarms/" + id + "/" + action, { by: myName(), ...body }); }
    catch (problem) { put(row.querySelector(".problem"), problem.message); }
    e.target.disabled = false;
  };
  deeds.append(button("ack", "Acknowledge", act("ack")), button("reset", "Reset", act("reset")),
    button("shelve", "Shelve", () => askShelf(id)), button("unshelve", "Take back", act("unshelve")),
    button("in-service", "Back in service", act("in_service")));
  why.append(summary, el("div", "explanation"));
  why.addEventListener("toggle", () => { const a = alarms.get(id); watchOpen(); if (a) explain(row, a); });
  row.append(what, el("span", "message"), el("span", "second"), el("span", "when"), el("span", "aside-until"), deeds, why, el("span", "problem not-good"));
  row.querySelector(".problem").setAttribute("role", "alert");
  return row;
}
// What a larger model says.
const second = o => t(o.anomaly ? "an anomaly" : "no anomaly") + " (" + o.model + ", " + t("score") + " " + num(o.score) + ", " + t("limit") + " " + num(o.threshold) + ")";
function fillAlarm(row, a) {
  mark(row, "state", a.state);
  mark(row, "shown", a.shown_state);
  mark(row, "priority", a.priority);
  mark(row, "active", String(calling(a)));
  const name = row.querySelector(".machine");
  put(name, a.machine);
  name.href = "#machine=" + encodeURIComponent(a.machine);
  put(row.querySelector(".state"), t(STATES[a.shown_state] || a.shown_state));
  const others = [...alarms.values()].some(o => o.active && o.id !== a.id);
  put(row.querySelector(".tags"), [a.first_out && a.active && others ? t("first out") : "", a.chattering && a.active ? t("chattering") : "",
    a.grouped ? t("announced together") : ""].filter(Boolean).join(" · "));
  put(row.querySelector(".message"), t(a.message));
  put(row.querySelector(".when"), t(a.priority) + " · " + t("severity") + " " + a.severity + " · " + t("since") + " " + clock(a.since) +
    (a.acknowledged_by ? " · " + t("seen by") + " " + a.acknowledged_by : "") + (a.repeats ? " · " + t("repeated") + " " + a.repeats + "×" : ""));
  put(row.querySelector(".second"), a.second_opinion ? t("second opinion") + ": " + second(a.second_opinion) : "");
  row.querySelector(".second").hidden = !a.second_opinion;
  const aside = [];
  if (a.shelved_until) {
    const left = (new Date(a.shelved_until) - Date.now()) / 1000;
    aside.push(t("Shelved") + " " + t("until") + " " + clock(a.shelved_until) + " (" + t("left") + " " + age(Math.max(left, 0)) + ") · " + a.shelved_by + (a.shelved_comment ? ": " + a.shelved_comment : ""));
  }
  if (a.out_of_service_by) aside.push(t("Out of service") + " · " + a.out_of_service_by);
  if (a.suppressed) aside.push(t("Suppressed"));
  put(row.querySelector(".aside-until"), aside.join(" · "));
  row.querySelector(".aside-until").hidden = !aside.length;
  const show = (name, yes) => { row.querySelector("." + name).hidden = !yes; };
  show("ack", a.owed);
  show("reset", a.state === "latched_acknowledged");
  show("shelve", a.can_shelve && !a.shelved_until && (a.active || a.owed));
  show("unshelve", Boolean(a.shelved_until));
  show("in-service", Boolean(a.out_of_service_by));
  show("why-so", a.explained);
  for (const b of row.querySelectorAll(".deeds button")) {
    b.setAttribute("aria-label", b.textContent + ": " + a.machine);
  }
  if (row.querySelector(".why-so").open) explain(row, a);
}

// Why alarms were raised, fetched when somebody wants to know.
const explanations = new Map();
function fetchExplanation(id) {
  if (explanations.has(id)) return;
  if (explanations.size >= 50) explanations.clear();
  explanations.set(id, null);
  ask("/api/v1/alarms/" + id).then(a => { explanations.set(id, a.explanation); stale.alarms = stale.detail = true; }, () => explanations.delete(id));
}
// The machines whose present values stand in an explanation.
function watchOpen() {
  watchedFor.clear();
  for (const row of document.querySelectorAll(".alarms > li")) {
    const a = alarms.get(row.dataset.alarm);
    if (a && row.querySelector(".why-so").open && watchedFor.size < 50) watchedFor.add(a.machine);
  }
  tellWatched();
}

// Ranked channels with their share, the present value beside the normal band, their course, and advice.
function explain(row, a) {
  const box = row.querySelector(".explanation"), x = explanations.get(a.id);
  const made = a.id + a.at + language;
  if (!x) { fetchExplanation(a.id); return; }
  if (box.dataset.made !== made) { box.dataset.made = made; buildExplanation(box, x); }
  // What it is now stands beside what it was when the alarm was raised.
  const m = machines.get(a.machine), signals = new Map(m && m.signals ? m.signals.map(s => [s.name, s.value]) : []);
  for (const line of box.querySelectorAll(".ranked > li")) {
    const value = signals.get(line.dataset.channel);
    put(line.querySelector(".live"), value === undefined ? "" : t("now") + " " + num(value));
  }
}
function buildExplanation(box, x) {
  box.replaceChildren();
  const advice = (x.advice || {})[language] || (x.advice || {}).en || [];
  if (advice.length) {
    const list = el("ol", "advice");
    list.append(...advice.map(text => el("li", "", text)));
    box.append(el("h3", "", t("Check first")), list);
  }
  if (x.channels.length) {
    box.append(el("h3", "", t("Main contributors")));
    const list = el("ol", "ranked");
    x.channels.forEach((c, i) => {
      const line = el("li"), head = el("span", "rank-head"), share = el("span", "share", Math.round(c.share * 100) + " %");
      line.dataset.channel = c.name;
      head.append(el("span", "", c.name), share);
      const unit = unitOf(c.unit);
      const outside = c.normal && c.value !== null && (c.value < c.normal[0] || c.value > c.normal[1]);
      const value = el("span", outside ? "not-good" : "", t("was") + " " + num(c.value) + unit);
      const figures = el("span", "figures");
      figures.append(value, el("span", "live"));
      if (c.normal) figures.append(el("span", "quiet", t("normal range") + " " + num(c.normal[0]) + " … " + num(c.normal[1]) + unit));
      // Within its range a signal can still be alone with its value, or move as it never did.
      if (c.normal && !outside && c.value !== null && (i === 0 || c.share >= 0.15)) figures.append(el("span", "quiet", t("unusual beside the others, or in how it moves")));
      line.append(head, figures);
      // The main contributor, and what is outside its range, with their course.
      if (c.trace.length > 1 && (i === 0 || outside || c.share >= 0.15)) line.append(course(c));
      list.append(line);
    });
    box.append(list);
  }
  const said = [t("model") + " " + x.model + " " + x.version, x.p_value === null ? "" : t("p-value") + ": " + t(rare(x.p_value))];
  box.append(el("p", "quiet", said.filter(Boolean).join(" · ")));
}
// A channel's course over the window before the alarm, with its normal band behind it.
function course(c) {
  const w = 240, h = 44, band = c.normal || [Math.min(...c.trace), Math.max(...c.trace)];
  const low = Math.min(band[0], ...c.trace), high = Math.max(band[1], ...c.trace), span = high - low || 1;
  const y = v => (h - 3 - (v - low) / span * (h - 6)).toFixed(1);
  const svg = $("course").cloneNode(true), [rect, line] = svg.children;
  svg.removeAttribute("id");
  svg.removeAttribute("hidden");
  svg.setAttribute("aria-label", c.name + ": " + num(c.trace[0]) + " → " + num(c.trace[c.trace.length - 1]));
  const set = (e, attributes) => { for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); };
  if (c.normal) set(rect, { x: 0, width: w, y: y(band[1]), height: (y(band[0]) - y(band[1])).toFixed(1) }); else rect.remove();
  set(line, { points: c.trace.map((v, i) => (i / (c.trace.length - 1) * w).toFixed(1) + "," + y(v)).join(" ") });
  return svg;
}

function myName() {
  try { return localStorage.getItem("andon-name") || "dashboard"; } catch { return "dashboard"; }
}
let shelving = null;
function askShelf(id) {
  const a = alarms.get(id);
  if (!a) return;
  shelving = id;
  put($("shelf-what"), a.machine + ": " + t(a.message));
  put($("shelf-problem"), "");
  $("shelf-name").value = myName() === "dashboard" ? "" : myName();
  $("shelf-comment").value = "";
  $("shelf").showModal();
}
$("shelf-form").addEventListener("submit", async e => {
  e.preventDefault();
  const name = $("shelf-name").value.trim();
  try { if (name) localStorage.setItem("andon-name", name); } catch { /* private windows keep nothing */ }
  const seconds = Math.round(Number($("shelf-minutes").value) * 60);
  try {
    await ask("/api/v1/alarms/" + shelving + "/shelve", { seconds, by: name || myName(), comment: $("shelf-comment").value });
    $("shelf").close();
  } catch (problem) { put($("shelf-problem"), problem.message); }
});
for (const b of document.querySelectorAll("#shelf-times button")) {
  b.addEventListener("click", () => { $("shelf-minutes").value = b.dataset.minutes; });
}
$("shelf-cancel").addEventListener("click", () => $("shelf").close());
