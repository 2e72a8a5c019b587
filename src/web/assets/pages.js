// The pages beside the overview: the data path from sources to sinks with what was lost, and the models.
"use strict";

const LOSSES = { andon_readings_dropped_total: "readings not used", andon_rejected_payloads_total: "payloads set aside",
  andon_store_dropped_total: "records dropped", andon_forward_dead_letters_total: "dead letters",
  andon_publish_dropped_messages_total: "dashboard messages left out", andon_inference_errors_total: "model runs that failed" };

const LANES = { journal: "readings", priority: "alarms, audit", routine: "verdicts", dead: "dead letters" };

// The sum of a count over all labels that fit.
function counted(name, labels) {
  const fits = c => c.name === name && Object.entries(labels).every(([k, v]) => c.labels[k] === v);
  return (status.counts || []).filter(fits).reduce((sum, c) => sum + c.value, 0);
}
function rows(id, list) {
  const body = $(id);
  fit(body, list.length, "tr", () => []);
  list.forEach((cells, i) => {
    const row = body.children[i];
    while (row.children.length > cells.length) row.lastChild.remove();
    while (row.children.length < cells.length) row.append(el("td"));
    cells.forEach((cell, j) => {
      const td = row.children[j], plain = typeof cell !== "object";
      if (!plain && cell.health) {
        if (!td.firstElementChild) td.replaceChildren(el("span", "dot"));
        mark(td.firstElementChild, "health", cell.health);
        put(td.firstElementChild, cell.text || t(cell.health));
      } else put(td, String(cell));
    });
  });
  return list.length;
}
function lastGood(c) {
  if (c.last_good_seconds === null) return t("has not worked yet");
  return c.last_good_seconds <= 5 ? t("just now") : age(c.last_good_seconds) + (language === "zh" ? t("ago") : " ago");
}

// How much of the last ten seconds or so a source spent asking its device and waiting for it.
const busy = new Map();
function busUse(source) {
  const now = Date.parse(status.now), sum = counted("andon_modbus_request_seconds_sum", { source });
  if (!sum) return "–";
  const past = (busy.get(source) || []).filter(p => p.at <= now && now - p.at < 12000);
  busy.set(source, past);
  if (!past.length || past[past.length - 1].at < now) past.push({ at: now, sum });
  const seconds = (now - past[0].at) / 1000;
  return seconds < 2 ? "…" : Math.min(Math.round((sum - past[0].sum) / seconds * 100), 100) + " %";
}

function drawPath() {
  if ($("path-page").hidden || !status.components) return;
  const parts = Object.entries(status.components), of = kind => parts.filter(([n]) => n === kind || n.startsWith(kind + "/"));
  const bare = name => name.slice(name.indexOf("/") + 1);
  rows("path-sources", of("source").map(([n, c]) => [bare(n), { health: c.health }, lastGood(c), num(counted("andon_readings_total", { source: bare(n) })), busUse(bare(n)), c.detail]));
  const sinks = [...of("cloud"), ...of("sink"), ...of("publish")];
  $("no-sinks").hidden = sinks.length > 0;
  $("path-sinks").parentElement.hidden = !$("no-sinks").hidden;
  rows("path-sinks", sinks.map(([n, c]) => {
    const of = outcome => counted("andon_forward_requests_total", { sink: bare(n), ...outcome });
    const ok = ["200", "202", "ok"].reduce((sum, outcome) => sum + of({ outcome }), 0), all = of({});
    return [n, { health: c.health }, lastGood(c), all > 0 ? num(ok) + " / " + num(all) : "", c.detail];
  }));
  rows("path-parts", parts.filter(([n]) => !/^(source|cloud|sink|publish)(\/|$)/.test(n)).map(([n, c]) => [n, { health: c.health }, lastGood(c), c.detail]));
  pairs($("path-store"), [[t("records waiting"), num(status.records_waiting)], [t("records sent"), num(status.records_forwarded_total)],
    ...Object.entries(status.store || {}).filter(([, v]) => typeof v === "number").map(([k, v]) => [t(k.replaceAll("_", " ")), k.endsWith("bytes") ? bytes(v) : num(v)])]);
  rows("path-lanes", Object.entries((status.store || {}).lanes || {}).map(([n, l]) => [t(LANES[n] || n), num(l.records), bytes(l.disk_bytes), l.oldest ? clock(l.oldest) : "–", num(l.dropped)]));
  const lost = (status.counts || []).filter(c => LOSSES[c.name]);
  $("path-lost").parentElement.hidden = lost.length === 0;
  $("path-nothing-lost").hidden = lost.length > 0;
  rows("path-lost", lost.map(c => [t(LOSSES[c.name]), Object.values(c.labels).map(t).join(", "), num(c.value)]));
}
function drawModels() {
  if ($("models-page").hidden) return;
  const list = Array.isArray(status.models) ? status.models : [];
  $("models-list").parentElement.hidden = list.length === 0;
  $("no-models").hidden = list.length > 0;
  rows("models-list", list.map(m => {
    const part = (status.components || {})["model/" + m.name] || { health: "up" }, runs = counted("andon_inference_seconds_count", { model: m.name });
    const each = runs ? num(counted("andon_inference_seconds_sum", { model: m.name }) / runs * 1000) + " ms" : "–";
    return [m.name, m.version, m.stage === "active" ? t("in use") : t(m.stage || ""), { health: part.health }, candidateOf(m), drifted(m), num(counted("andon_windows_total", { model: m.name })),
      num(counted("andon_inference_errors_total", { model: m.name })), each, num(m.reference_scores), (m.channels || []).join(", "), String(m.digest || "").slice(0, 12)];
  }));
}
// The candidate version, or what became of the last one.
function candidateOf(m) {
  const c = m.candidate, l = m.last_step;
  if (c) return c.version + ": " + t(c.stage) + ", " + num(c.figures.windows) + " " + t("windows") + " · " + t("anomalies") + ": " + num(c.figures.anomalies) + ", " + t("in use") + ": " + num(c.figures.incumbent_anomalies);
  return l && l.stage !== "active" ? l.version + " " + t(l.stage) + ": " + l.reason : "–";
}
// How far the plant has moved from what the model was made from, and alarms beside their budget.
function drifted(m) {
  const d = m.drift;
  if (!d) return "–";
  const said = [d.warning || (d.worst ? d.worst.name + " PSI " + num(Math.round(d.worst.psi * 100) / 100) : t("no reference"))];
  const rate = v => num(Math.round(v * 100) / 100);
  if (d.alarms_per_machine_day !== null) said.push(t("alarms a day") + ": " + rate(d.alarms_per_machine_day) + ", " + t("promised") + ": " + rate(d.false_alarms_promised_per_machine_day));
  return d.warning ? { health: "degraded", text: said.join(" · ") } : said.join(" · ");
}
// Which page is open.
function turnPage() {
  const page = ["#path", "#models"].includes(location.hash) ? location.hash.slice(1) : "overview";
  for (const name of ["overview", "path", "models"]) {
    $(name + "-page").hidden = name !== page;
    const link = document.querySelector("nav a[data-page=" + name + "]");
    if (name === page) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  drawPath();
  drawModels();
  stale.alarms = true;
  sorted = false;
  tellWatched();
}
$("language").addEventListener("change", e => {
  setLanguage(e.target.value);
  drawStatus();
  sorted = false;
  stale.alarms = stale.detail = true;
  drawPath();
  drawModels();
  drawPlots();
});
$("language").value = language;
