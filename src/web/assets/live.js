// What the page knows, and how recent it is. Every part carries the version of its last change, and an older
// version never replaces a newer one. A gap in the stream's numbers, another epoch, or counts that differ from
// the agent's make the page fetch everything anew.
"use strict";

const REFETCH_PAUSE = 500, RETRY_PAUSE = 2000, SILENT_AFTER = 5000, MOST_KEPT_ALARMS = 500;
let epoch = null, streamName = null, frameNumber = -1, statusNumber = -1, source = null;
// When the agent was last heard; whether everything has been fetched since the stream was last lost.
let heardAt = 0, caughtUp = false, live = null;
// Versions below which an unknown machine or alarm is one that the agent has removed.
let lightsFloor = 0, alarmsFloor = 0, floodVersion = -1;

const timeOfDay = at => new Date(at).toTimeString().slice(0, 8);

// Another process of the agent: its versions begin anew.
function begin(newEpoch) {
  epoch = newEpoch;
  lightsFloor = alarmsFloor = 0;
  floodVersion = statusNumber = -1;
  machines.clear();
  lights.clear();
  alarms.clear();
  sorted = false;
  stale.alarms = stale.detail = stale.counts = stale.wall = true;
}

// Fetches a part of the agent's state. An answer of another epoch is not used.
async function fetchState(path) {
  const answer = await ask(path);
  if (epoch === null) epoch = answer.epoch;
  if (answer.epoch !== epoch) {
    refetchAll();
    throw new Error("the answer is of another epoch");
  }
  return answer;
}

async function fetchAll() {
  const [listed, all] = await Promise.all([fetchState("/api/v1/alarms?brief=true"), fetchState("/api/v1/lights")]);
  takeAlarms(listed);
  takeLights(all);
  await fetchPage();
  if (open) await fetchMachine(open);
}
// Soon, never twice at a time, and with a pause between.
const refetch = { wanted: false, running: false, timer: 0, next: 0 };
function refetchAll() {
  refetch.wanted = true;
  if (refetch.running || refetch.timer) return;
  refetch.timer = setTimeout(runRefetch, Math.max(0, refetch.next - performance.now()));
}
async function runRefetch() {
  Object.assign(refetch, { wanted: false, running: true, timer: 0, next: performance.now() + REFETCH_PAUSE });
  try {
    await fetchAll();
    caughtUp = true;
  } catch {
    // Nothing is asked for while a person is asked for the token.
    refetch.wanted = !$("sign-in").open;
    refetch.next = performance.now() + RETRY_PAUSE;
    caughtUp = false;
  }
  refetch.running = false;
  showLive();
  if (refetch.wanted) refetchAll();
}

// A machine's state; true when it is another than before.
function takeState(id, s) {
  const known = lights.get(id);
  if (known ? s.version < known.version : s.version <= lightsFloor) return false;
  if (known && s.version === known.version && (s.why === undefined || known.why !== undefined)) return false;
  lights.set(id, { light: s.light, why: s.why, since: s.since, version: s.version });
  stale.counts = true;
  if (!known || known.light !== s.light) freshLights.add(id);
  if (known && known.light !== s.light) sorted = false;
  fresh(id);
  return !known || known.light !== s.light;
}
// A list is complete: what is not in it is gone, unless it is newer than the list.
function takeLights(answer) {
  if (answer.version < lightsFloor) return;
  const listed = new Set();
  for (const [id, light, version] of answer.lights) {
    listed.add(id);
    if (!lights.has(id)) { lights.set(id, { light, version }); freshLights.add(id); } else takeState(id, { light, version });
  }
  for (const [id, s] of lights) if (!listed.has(id) && s.version <= answer.version) { lights.delete(id); machines.delete(id); stale.wall = true; }
  lightsFloor = answer.version;
  stale.counts = true;
}
function takeAlarm(a) {
  const known = alarms.get(a.id);
  if (known ? a.version <= known.version : a.version <= alarmsFloor) return false;
  alarms.set(a.id, a);
  explanations.delete(a.id);
  while (alarms.size > MOST_KEPT_ALARMS) alarms.delete([...alarms.values()].sort(byUrgency).pop().id);
  stale.alarms = stale.detail = true;
  return true;
}
function takeAlarms(answer) {
  if (answer.version < alarmsFloor) return;
  const listed = new Set(answer.alarms.map(a => a.id));
  for (const a of answer.alarms) if (!alarms.has(a.id)) alarms.set(a.id, a); else takeAlarm(a);
  for (const [id, a] of alarms) if (!listed.has(id) && a.version <= answer.version) alarms.delete(id);
  alarmsFloor = answer.version;
  takeFlood(answer.flood, answer.flood_version);
  stale.alarms = stale.detail = true;
}
function takeFlood(flood, version) {
  if (version < floodVersion) return;
  if (flood && !status.flood) put($("said"), t(floodText(flood)));
  floodVersion = version;
  status.flood = flood;
  stale.alarms = true;
}
// The status comes once a second. Where nothing newer is known, the page has to show the same counts.
function takeStatus(s, number) {
  if (number < statusNumber) return;
  statusNumber = number;
  const flood = s.flood;
  status = { ...s, flood: status.flood };
  takeFlood(flood, s.flood_version);
  const newest = Math.max(0, ...[...lights.values()].map(l => l.version), ...[...alarms.values()].map(a => a.version));
  const n = tally(), of = s.machines, active = [...alarms.values()].filter(a => a.active).length;
  const differs = active !== s.alarms.active || lights.size !== of.total || Object.keys(n).some(light => n[light] !== of[light]);
  if (newest <= s.state_version && differs) refetchAll();
  drawStatus();
  machinesTold();
}

const handlers = {
  stream: s => { stream = s.id; tellWatched(true); },
  status: takeStatus,
  reset: () => refetchAll(),
  step: s => stepTold(s),
  verdict: v => verdictTold(v),
  state: s => stateTold(s),
  opinion: o => opinionTold(o),
  flood: f => takeFlood(f.flood, f.version),
  alarm: a => {
    const known = alarms.has(a.id);
    if (takeAlarm(a) && a.announced && a.active && (!known || a.change === "repeated")) put($("said"), t("alarm") + ": " + a.machine + ": " + t(a.message));
  },
};
function receive(kind, e) {
  const [from, name, number] = e.lastEventId.split("-");
  if (from !== epoch) {
    begin(from);
    refetchAll();
  }
  const n = Number(number);
  if (name !== streamName) {
    streamName = name;
    statusNumber = -1;
    if (n !== 0) refetchAll();
    frameNumber = n;
  } else if (n > frameNumber) {
    if (n !== frameNumber + 1) refetchAll();
    frameNumber = n;
  }
  heardAt = Date.now();
  handlers[kind](JSON.parse(e.data), n);
  showLive();
}

function connect() {
  if (source) source.close();
  source = new EventSource("/api/v1/events?watch=true");
  source.onopen = () => refetchAll();
  source.onerror = () => {
    caughtUp = false;
    showLive();
    // A refusal (no session, too many streams) ends an EventSource for good.
    if (source.readyState !== EventSource.CLOSED) return;
    ask("/api/v1/status").catch(() => {}).then(() => { if (!$("sign-in").open) setTimeout(connect, 3000); });
  };
  for (const kind of Object.keys(handlers)) source.addEventListener(kind, e => receive(kind, e));
}

// Says whether what is shown is live, and when the agent was last heard.
function showLive() {
  const now = caughtUp && Date.now() - heardAt <= SILENT_AFTER, at = heardAt ? timeOfDay(heardAt) : "";
  // While the page is opening it is neither.
  const opening = live === null && !now && performance.now() < SILENT_AFTER;
  put($("heard"), now ? t("live, last heard " + at) : opening || !at ? t("connecting") : t("not live, as of " + at));
  if (opening || now === live) return;
  live = now;
  document.body.dataset.live = String(live);
  $("lost").hidden = live;
  put($("lost-since"), at ? clock(heardAt) : t("before this page was opened"));
  sorted = false;
  stale.counts = stale.alarms = true;
}
