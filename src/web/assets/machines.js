// The machines: every light of the plant at a glance, a page of cards, and one machine in full. Only what is
// in sight is told of by the agent and drawn; a thousand machines cost no more than the sixty on the page.
"use strict";

const PAGE = 60, CARD_SIGNALS = 4, MOST_LIGHTS = 5000, REFETCH_EVERY = 2000;
// Values of the machines on the page; the state of every machine; what of them is to be drawn anew.
const machines = new Map(), lights = new Map(), freshCards = new Set(), freshLights = new Set(), watchedFor = new Set();
const UNKNOWN = { light: "amber", why: "not heard yet", since: null, version: -1 };
const stateOf = id => lights.get(id) || UNKNOWN;
const page = { offset: 0, light: "", order: [], found: 0, asked: 0 };
let stream = null, told = "", telling = 0, turning = 0, sorted = false, lightsShown = 0;

// Cards that can be seen, or nearly.
const visible = new Set();
const inSight = "IntersectionObserver" in window ? new IntersectionObserver(seen => {
  for (const s of seen) { if (s.isIntersecting) visible.add(s.target.dataset.machine); else visible.delete(s.target.dataset.machine); }
  for (const id of visible) freshCards.add(id);
  tellWatched();
}, { rootMargin: "200px" }) : null;

// Tells the agent which machines this page shows: it sends the steps of no others.
function tellWatched(afresh) {
  if (afresh) told = "";
  clearTimeout(telling);
  telling = setTimeout(() => {
    const here = $("overview-page").hidden ? [] : inSight ? page.order.filter(id => visible.has(id)) : page.order;
    const list = [...new Set([...(open ? [open] : []), ...watchedFor, ...here])].slice(0, 200), text = JSON.stringify({ machines: list });
    if (!stream || text === told) return;
    told = text;
    ask("/api/v1/events/" + stream, { machines: list }).catch(() => { told = ""; });
  }, 100);
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
  meter.setAttribute("aria-label", "Level relative to the alarm limit");
  score.append(meter, el("span"));
  card.append(top, el("span", "as-of"), el("span", "why"), el("span", "values"), score);
  card.addEventListener("click", () => { opener = card; location.hash = "machine=" + encodeURIComponent(id); });
  if (inSight) inSight.observe(card);
  return card;
}

function fillCard(card, m) {
  const { light, why } = stateOf(m.id), asOf = card.querySelector(".as-of");
  mark(card, "light", light);
  const pill = card.querySelector(".pill");
  mark(pill, "light", light);
  put(pill, t(WORDS[light]));
  asOf.hidden = live !== false;
  put(asOf, live === false ? t("not live, as of " + (heardAt ? timeOfDay(heardAt) : "–")) : "");
  const late = m.behind_seconds ? " · data is " + age(m.behind_seconds) + " behind" : "";
  put(card.querySelector(".why"), t(why || "") + late);
  const values = card.querySelector(".values");
  const list = contributorsFirst(m).slice(0, CARD_SIGNALS);
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
    put(score.lastChild, v.level >= 1 ? t("over the limit") : t(Math.floor(v.level * 100) + " % of limit"));
  }
}
// The signals that matter most come first on a card, otherwise by name.
function contributorsFirst(m) {
  if (stateOf(m.id).light !== "red" || !m.verdict) return m.signals;
  const rank = new Map(m.verdict.contributions.map((c, i) => [c.name, i]));
  const at = s => rank.has(s.name) ? rank.get(s.name) : 999;
  return [...m.signals].sort((a, b) => at(a) - at(b));
}

function drawMachines() {
  if ($("overview-page").hidden) return;
  if (sorted) { for (const id of freshCards) redraw(id); freshCards.clear(); return; }
  sorted = true;
  freshCards.clear();
  const list = page.order.map(id => machines.get(id)).filter(Boolean);
  list.sort((a, b) => ORDER[stateOf(a.id).light] - ORDER[stateOf(b.id).light] || (a.id < b.id ? -1 : 1));
  const box = $("machines"), cards = new Map([...box.children].map(c => [c.dataset.machine, c]));
  list.forEach((m, i) => {
    let card = cards.get(m.id);
    if (card) cards.delete(m.id); else card = makeCard(m.id);
    fillCard(card, m);
    if (box.children[i] !== card) {
      const focused = document.activeElement === card;
      box.insertBefore(card, box.children[i] || null);
      if (focused) card.focus();
    }
  });
  cards.forEach(c => { if (inSight) inSight.unobserve(c); visible.delete(c.dataset.machine); c.remove(); });
  $("more").hidden = list.length > 0;
  put($("more"), t($("filter").value || page.light ? "No machine of that name." : "No machine has been heard yet."));
  const last = Math.min(page.offset + PAGE, page.found);
  $("pager").hidden = page.found <= PAGE;
  put($("pager-where"), (page.offset + 1) + " – " + last + " / " + page.found);
  $("pager-back").disabled = page.offset === 0;
  $("pager-on").disabled = last >= page.found;
  tellWatched();
}
function redraw(id) {
  const m = machines.get(id), card = m && $("machines").querySelector("[data-machine=\"" + CSS.escape(id) + "\"]");
  if (card) fillCard(card, m);
}

// How many show which light; each is a filter.
function drawChips(n) {
  const chips = Object.keys(ORDER).map(light => [light, n[light], WORDS[light]]);
  const box = $("counts");
  fit(box, chips.length, "button", () => []);
  chips.forEach(([light, count, word], i) => {
    const chip = box.children[i];
    if (!chip.dataset.light) {
      chip.type = "button";
      chip.className = "pill";
      chip.addEventListener("click", () => turnTo(0, page.light === light ? "" : light));
    }
    mark(chip, "light", light);
    put(chip, count + " " + t(word));
    chip.hidden = !count && page.light !== light;
    chip.setAttribute("aria-pressed", String(page.light === light));
  });
}

// A square for every machine: the whole plant at a glance. The cards say the same in words.
function drawWall() {
  const wall = $("wall");
  wall.hidden = lights.size <= PAGE || lights.size > MOST_LIGHTS;
  if (wall.hidden) { freshLights.clear(); return; }
  if (stale.wall || lightsShown !== lights.size) {
    stale.wall = false;
    lightsShown = lights.size;
    wall.replaceChildren(...[...lights.keys()].map(id => {
      const a = el("a");
      a.dataset.machine = id;
      a.href = "#machine=" + encodeURIComponent(id);
      a.tabIndex = -1;
      return a;
    }));
    for (const a of wall.children) paintLight(a);
  } else for (const id of freshLights) { const a = wall.querySelector("[data-machine=\"" + CSS.escape(id) + "\"]"); if (a) paintLight(a); }
  freshLights.clear();
}
function paintLight(a) {
  const { light } = stateOf(a.dataset.machine);
  if (a.dataset.light === light) return;
  a.dataset.light = light;
  a.title = a.dataset.machine + ": " + t(WORDS[light]);
}

async function fetchPage() {
  const asked = ++page.asked;
  const answer = await fetchState("/api/v1/machines?limit=" + PAGE + "&offset=" + page.offset + "&q=" + encodeURIComponent($("filter").value) +
    (page.light ? "&light=" + page.light : ""));
  if (asked !== page.asked) return;
  if (!answer.machines.length && page.offset) { page.offset = 0; return fetchPage(); }
  answer.machines.forEach(keep);
  page.order = answer.machines.map(m => m.id);
  page.found = answer.found;
  const kept = new Set([open, ...watchedFor, ...page.order]);
  for (const id of machines.keys()) if (!kept.has(id)) machines.delete(id);
  // The state of one is newer than this answer: its reason is still to come.
  if (page.order.some(id => stateOf(id).why === undefined)) refetchAll();
  sorted = false;
  draw();
}
async function fetchMachine(id) { keep(await fetchState("/api/v1/machines/" + encodeURIComponent(id))); }
// The machines of this page may be others now. Soon, and not again and again.
function refetchPage() {
  if (!turning) turning = setTimeout(() => { fetchPage().catch(() => refetchAll()).finally(() => { turning = 0; }); }, page.order.length ? REFETCH_EVERY : 300);
}
function turnTo(offset, light) {
  page.offset = offset;
  page.light = light;
  drawChips(tally());
  fetchPage().catch(() => refetchAll());
}

// Takes a machine as the agent gives it in an answer, each part where it is newer than what is known.
function keep(m) {
  const v = m.versions, known = machines.get(m.id) || { id: m.id, signals: [], verdict: null, versions: { step: -1, verdict: -1, opinion: -1 } };
  machines.set(m.id, known);
  if (!takeState(m.id, { light: m.light, why: m.why, since: m.since, version: v.state }) && !lights.has(m.id)) machines.delete(m.id);
  part(known, "step", v.step, { at: m.at, behind_seconds: m.behind_seconds, signals: m.signals, since_seen: performance.now() });
  part(known, "verdict", v.verdict, { verdict: m.verdict });
  part(known, "opinion", v.opinion, { second_opinion: m.second_opinion });
  for (const key of ["bands", "plots", "course"]) if (key in m) known[key] = m[key];
  fresh(m.id);
}
function part(m, name, version, values) {
  if (version <= m.versions[name]) return;
  m.versions[name] = version;
  Object.assign(m, values);
}
function fresh(id) { freshCards.add(id); if (id === open) stale.detail = true; if (watchedFor.has(id)) stale.alarms = true; }
function stepTold(s) {
  const m = machines.get(s.machine);
  if (m) part(m, "step", s.version, { at: s.at, behind_seconds: s.behind_seconds, signals: s.signals, since_seen: performance.now() });
  else if (watchedFor.has(s.machine)) fetchMachine(s.machine).catch(() => {});
  fresh(s.machine);
}
function verdictTold(v) {
  const m = machines.get(v.machine);
  if (m) part(m, "verdict", v.version, { verdict: v.verdict });
  fresh(v.machine);
}
function opinionTold(o) {
  const m = machines.get(o.machine);
  if (m) part(m, "opinion", o.version, { second_opinion: o.second_opinion });
  fresh(o.machine);
}
function stateTold(s) {
  const changed = takeState(s.machine, s);
  // On another page, or no longer on this one.
  if (changed && (!machines.has(s.machine) || page.light || page.found > PAGE)) refetchPage();
}
// Once a second: ages go on.
function machinesTold() {
  for (const id of visible) freshCards.add(id);
  stale.detail = true;
}

function drawDetail() {
  const m = machines.get(open);
  if (!m) { put($("detail-why"), t("This machine has not been heard.")); return; }
  mark($("detail"), "machine", m.id);
  const s = stateOf(m.id);
  mark($("detail-light"), "light", s.light);
  put($("detail-light"), t(WORDS[s.light]));
  put($("detail-why"), (live === false ? t("not live, as of " + timeOfDay(heardAt)) + " · " : "") + t(s.why || "") + " · " + t("since") + " " + clock(s.since) + (m.behind_seconds ? " · data is " + age(m.behind_seconds) + " behind" : ""));
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
    [t("p-value"), v.p_value === null ? "–" : t(rare(v.p_value))],
    [t("limit"), v.held_against === "p_value" ? t(rare(v.threshold)) : num(v.threshold)],
    [t("health"), v.health === null ? "–" : Math.round(v.health * 100) + " %"],
    ...(v.rul ? [[t("useful life left"), num(v.rul.median) + " (" + num(v.rul.low) + " to " + num(v.rul.high) + ")"]] : []),
    ...(v.class ? [[t("class"), v.class]] : []), [t("model"), v.model], [t("window ends"), clock(v.at)],
    ...(m.second_opinion ? [[t("second opinion"), second(m.second_opinion)]] : []),
  ] : [["", t("no verdict yet")]]);
  const body = $("detail-signals");
  fit(body, m.signals.length, "tr", () => [el("td"), el("td", "value"), el("td", "value"), el("td")]);
  m.signals.forEach((s, i) => {
    const [name, value, normal, how] = body.children[i].children, state = signalState(s, m.since_seen);
    const band = (m.bands || {})[s.name] || {}, unit = unitOf(band.unit), n = band.normal;
    mark(body.children[i], "signal", s.name);
    put(name, s.name);
    put(value, num(s.value) + unit);
    value.className = n && s.value !== null && (s.value < n[0] || s.value > n[1]) ? "value not-good" : "value";
    put(normal, n ? num(n[0]) + " … " + num(n[1]) + unit : "");
    how.className = state.kind;
    put(how, t(state.text));
  });
  const mine = [...alarms.values()].filter(a => a.machine === m.id && a.explained && a.state !== "normal").sort(byUrgency)[0];
  $("detail-alarm").hidden = !mine;
  const resting = [...alarms.values()].some(a => a.machine === m.id && a.out_of_service_by);
  $("detail-out").hidden = resting;
  $("detail-in").hidden = !resting;
  if (mine) {
    put($("detail-alarm-state"), t(STATES[mine.shown_state] || mine.shown_state) + " · " + t("since") + " " + clock(mine.since));
    explain($("detail-alarm"), mine);
  }
}

function route() {
  const id = location.hash.startsWith("#machine=") ? decode(location.hash.slice(9)) : null;
  const dialog = $("detail");
  open = id;
  if (id === null) { if (dialog.open) dialog.close(); shown = null; return; }
  if (shown !== id) {
    shown = id;
    put($("detail-name"), id);
    for (const img of [$("plot-score"), $("plot-signals"), $("plot-health")]) { img.hidden = true; img.removeAttribute("src"); }
    tellWatched();
    fetchMachine(id).then(() => { drawDetail(); drawPlots(); }, () => drawDetail());
  }
  if (!dialog.open) dialog.showModal();
  drawDetail();
}
function decode(text) { try { return decodeURIComponent(text); } catch { return text; } }
// For work on the machine: its alarms are not announced until it is back.
for (const [id, action] of [["detail-out", "out_of_service"], ["detail-in", "in_service"]]) {
  $(id).addEventListener("click", async e => {
    e.target.disabled = true;
    put($("detail-problem"), "");
    try { await ask("/api/v1/machines/" + encodeURIComponent(open) + "/" + action, { by: myName() }); }
    catch (problem) { put($("detail-problem"), problem.message); }
    e.target.disabled = false;
  });
}
let typing = 0;
$("filter").addEventListener("input", () => {
  clearTimeout(typing);
  typing = setTimeout(() => turnTo(0, page.light), 250);
});
$("pager-back").addEventListener("click", () => turnTo(Math.max(page.offset - PAGE, 0), page.light));
$("pager-on").addEventListener("click", () => turnTo(page.offset + PAGE, page.light));
$("wall").addEventListener("click", e => { opener = e.target.closest("a"); });
