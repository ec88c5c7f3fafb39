// The page: what is shown is a query in the address, and everything on the page follows from it and from the API.

import { SPARK_STEPS, moodChart, shareBar, sparkline } from "./charts.js";
import { byId, el } from "./dom.js";
import {
  BUCKET_MS,
  LABELS,
  autoGrain,
  changeOverHalves,
  formatBucket,
  formatCount,
  formatMoment,
  formatPercent,
  formatScore,
  formatShort,
  merge,
  movingMean,
  parsePoint,
  totals,
  turningPoint,
  view,
  windowMs,
  INTERVAL_MS,
} from "./numbers.js";
import { postList } from "./posts.js";

const PAGE_SIZE = 20;
const COMPARED_MAX = 24;
const POSTS_REFRESH_MS = 1_500;
const COMPARE_REFRESH_MS = 4_000;
// Windows are judged seconds after their posts were counted, when nothing else need be new.
const ALERTS_REFRESH_MS = 4_000;
const ALERTS_SHOWN = 6;
const CHOICES_REFRESH_MS = 30_000;
const SERVICES_REFRESH_MS = 2_000;
const RETRY_MS = 2_000;
// Twice the longest default heartbeat and a bit: one lost report is not yet a stale process.
const STALE_S = 6;
// A process that ended stays in the table for so long, marked.
const GONE_S = 60;

const DEFAULTS = { topic: "*", interval: "48h", grain: "", platform: "", language: "", label: "", bucket: "" };

let query = readQuery();
let choices = null; // what the API offers; null until it has answered
let alerts = []; // of the topic and interval shown, newest first
let points = null; // of the open stream; null until its first answer
let extent = null; // {earliest, latest} in ms, of all posts
let nextPageToken = "";
let stream = null;
let streamGrain = "";
let awake = true;

const list = postList(byId("list"));
const drawMood = moodChart(byId("chart"), { onSelect: (t) => change({ bucket: query.bucket === iso(t) ? "" : iso(t) }) });

// ---- the query in the address

function readQuery() {
  const params = new URLSearchParams(location.search);
  const found = Object.fromEntries(Object.entries(DEFAULTS).map(([name, fallback]) => [name, params.get(name) ?? fallback]));
  if (!(found.interval in INTERVAL_MS)) found.interval = DEFAULTS.interval;
  if (found.grain && !(found.grain in BUCKET_MS)) found.grain = "";
  if (found.label && !LABELS.includes(found.label)) found.label = "";
  if (Number.isNaN(Date.parse(found.bucket))) found.bucket = "";
  return found;
}

function address() {
  const params = new URLSearchParams(Object.entries(query).filter(([name, value]) => value !== DEFAULTS[name]));
  return params.size > 0 ? `?${String(params).replaceAll("%3A", ":")}` : location.pathname;
}

function change(changes) {
  const trendsStay = Object.keys(changes).every((name) => name === "label" || name === "bucket");
  query = { ...query, ...changes };
  if (!trendsStay && !("bucket" in changes)) query.bucket = "";
  history.pushState(null, "", address());
  follow({ trendsStay });
}

function follow({ trendsStay }) {
  renderQuestion();
  if (trendsStay) renderTrends();
  else {
    alerts = []; // those were of another topic or interval
    openStream();
  }
  void loadAlerts();
  void loadPosts();
}

// ---- asking

const iso = (t) => new Date(t).toISOString().replace(/(:00)?\.000Z$/, "Z");

async function ask(path, params = {}) {
  const filled = Object.entries(params).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const response = await fetch(`${path}?${new URLSearchParams(filled)}`);
  const body = await response.json().catch(() => ({}));
  if (!response.ok) {
    const error = new Error(body.error ?? `${response.status} ${response.statusText}`);
    // Asking again will not help: there is no such topic, or too much was asked for.
    error.refused = response.status === 400 || response.status === 404;
    throw error;
  }
  return body;
}

// The newest question wins: an answer that was overtaken is dropped.
const asked = {};
async function askLatest(what, path, params) {
  const mine = (asked[what] = (asked[what] ?? 0) + 1);
  const answer = await ask(path, params);
  return asked[what] === mine ? answer : null;
}

function away(error) {
  const banner = byId("banner");
  // fetch itself fails with a TypeError when nobody listens.
  const what = error instanceof TypeError ? "The dashboard's server does not answer." : sentence(error.message);
  banner.textContent = `${what} Trying again; what is shown may be old.`;
  banner.hidden = false;
  setLive("away", "not connected");
}

function sentence(reason) {
  const text = reason === "the API is away" ? "the API is away. Is it running? `crowdtone run api` starts it" : reason;
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function answered() {
  byId("banner").hidden = true;
}

function setLive(state, text) {
  byId("live").dataset.state = state;
  byId("live-text").textContent = text;
}

const filters = () => ({ platform: query.platform, language: query.language });

function grain() {
  if (query.grain) return query.grain;
  return autoGrain(Math.min(INTERVAL_MS[query.interval], extent.latest - extent.earliest));
}

const inView = () => view(extent.earliest, extent.latest, query.interval, BUCKET_MS[grain()]);

// ---- choices: topics, span, platforms, languages

async function loadChoices() {
  try {
    const answer = await askLatest("choices", "/api/choices");
    if (answer === null) return;
    const wasEmpty = extent === null;
    choices = answer;
    answered();
    if (answer.latest !== null) {
      const latest = Math.max(Date.parse(answer.latest), extent?.latest ?? -Infinity);
      extent = { earliest: Date.parse(answer.earliest), latest };
    }
    renderQuestion();
    if (extent === null) {
      renderEmpty();
      setLive("live", "connected");
      setTimeout(loadChoices, RETRY_MS);
    } else if (wasEmpty) {
      follow({ trendsStay: false });
    }
  } catch (error) {
    away(error);
    if (choices === null || extent === null) setTimeout(loadChoices, RETRY_MS);
  }
}

// ---- trends, live

const trendsQuery = () => ({ topic: query.topic, start: iso(inView().start), grain: grain(), ...filters() });

function openStream() {
  stream?.close();
  if (extent === null || !awake) return;
  points = null;
  streamGrain = grain();
  const params = new URLSearchParams(trendsQuery());
  const mine = new EventSource(`/api/trends/stream?${params}`);
  stream = mine;
  mine.addEventListener("snapshot", (event) => {
    points = merge([], JSON.parse(event.data).points.map(parsePoint));
    answered();
    setLive("live", "live");
    arrived();
    refreshCompare.now();
  });
  mine.addEventListener("points", (event) => {
    points = merge(points, JSON.parse(event.data).points.map(parsePoint));
    setLive("live", "live");
    pulse();
    arrived();
    refreshPosts.soon();
    refreshCompare.soon();
  });
  mine.addEventListener("away", (event) => away(new Error(JSON.parse(event.data).error)));
  mine.addEventListener("error", () => {
    if (stream !== mine) return;
    // The browser gives up on an answer that is not 200; so reconnecting is done here, and asks why first.
    mine.close();
    setLive("away", "reconnecting");
    setTimeout(async () => {
      if (stream !== mine) return;
      try {
        await ask("/api/trends", trendsQuery());
      } catch (error) {
        if (error.refused) {
          renderRefused(error);
          return;
        }
        away(error);
      }
      if (stream === mine) openStream();
      refreshPosts.soon();
    }, RETRY_MS);
  });
}

function arrived() {
  const newest = points.at(-1);
  // A bucket further on than any post we knew: the view moves with it.
  if (newest !== undefined && newest.t > extent.latest) extent.latest = newest.t;
  if (grain() === streamGrain) {
    renderTrends();
  } else {
    // So much came that another grain shows it better.
    openStream();
    void loadPosts();
  }
}

function pulse() {
  const dot = byId("live").firstElementChild;
  dot.classList.remove("pulse");
  void dot.offsetWidth; // starts the animation again
  dot.classList.add("pulse");
}

/** Runs `work` at most once per `interval`, the last request never lost. */
function throttled(work, interval) {
  let timer = null;
  let last = -Infinity;
  const now = () => {
    clearTimeout(timer);
    timer = null;
    last = performance.now();
    void work();
  };
  return {
    now,
    soon() {
      if (timer === null) timer = setTimeout(now, Math.max(50, last + interval - performance.now()));
    },
  };
}

// ---- posts

function postsQuery(pageToken) {
  const bucket = BUCKET_MS[grain()];
  const from = query.bucket ? Date.parse(query.bucket) : inView().start;
  return {
    topic: query.topic,
    ...filters(),
    label: query.label,
    start: iso(from),
    end: query.bucket ? iso(from + bucket) : "",
    page_size: PAGE_SIZE,
    page_token: pageToken,
  };
}

async function loadPosts() {
  if (extent === null) return;
  renderPostFilters();
  try {
    const page = await askLatest("posts", "/api/posts", postsQuery(""));
    if (page === null) return;
    list.reset(page.posts);
    pageShown(page.next_page_token);
    asked.posts++; // what an older list asked for must not be put into this one
  } catch (error) {
    if (!error.refused) away(error); // the stream was refused too, and says so
  }
}

async function loadMore() {
  const button = byId("more");
  button.disabled = true;
  try {
    const page = await askLatest("more", "/api/posts", postsQuery(nextPageToken));
    if (page === null) return;
    list.append(page.posts);
    pageShown(page.next_page_token);
  } catch (error) {
    away(error);
  } finally {
    button.disabled = false;
  }
}

function pageShown(token) {
  nextPageToken = token;
  byId("more").hidden = token === "";
  byId("no-posts").hidden = list.size > 0;
  byId("no-posts").textContent = "No post here matches.";
}

const refreshPosts = throttled(async () => {
  if (extent === null) return;
  try {
    const page = await askLatest("posts", "/api/posts", postsQuery(""));
    if (page === null) return;
    const wasEmpty = list.size === 0;
    if (wasEmpty || !list.refresh(page.posts)) {
      list.reset(page.posts);
      pageShown(page.next_page_token);
    }
    byId("no-posts").hidden = list.size > 0;
  } catch (error) {
    if (!error.refused) away(error);
  }
}, POSTS_REFRESH_MS);

// ---- all topics

const refreshCompare = throttled(async () => {
  if (extent === null || choices.topics.length === 0) return;
  try {
    const { start } = inView();
    const answer = await askLatest("compare", "/api/compare", { start: iso(start), grain: grain(), ...filters() });
    if (answer !== null) renderCompare(answer.topics);
  } catch (error) {
    if (!error.refused) away(error);
  }
}, COMPARE_REFRESH_MS);

// ---- alerts

async function loadAlerts() {
  if (extent === null || !awake) return;
  try {
    const answer = await askLatest("alerts", "/api/alerts", { topic: query.topic, start: iso(inView().start) });
    if (answer === null) return;
    const found = answer.alerts.map((alert) => ({
      ...alert,
      t: Date.parse(alert.window_start),
      until: Date.parse(alert.window_start) + alert.window_s * 1000,
    }));
    if (JSON.stringify(found) === JSON.stringify(alerts)) return;
    alerts = found;
    renderTrends();
  } catch {
    // The page is whole without them, and whatever is away is told by those who cannot do without it.
  }
}

/** Windows in a row with the same alert as one: {topic, kind, t, until, value, baseline, count}, newest first. */
function episodes(found) {
  const all = [];
  for (const alert of [...found].sort((a, b) => a.t - b.t)) {
    const last = all.findLast(({ topic, kind }) => topic === alert.topic && kind === alert.kind);
    if (last !== undefined && last.until === alert.t) {
      last.until = alert.until;
      if (Math.abs(alert.deviation) > Math.abs(last.deviation)) Object.assign(last, { ...alert, t: last.t });
    } else {
      all.push({ ...alert });
    }
  }
  return all.sort((a, b) => b.t - a.t);
}

// ---- rendering

function fillSelect(id, options, value) {
  const select = byId(id);
  const known = options.some(([option]) => option === value) ? options : [...options, [value, value]];
  const wanted = JSON.stringify(known);
  // Rebuilt only when it differs: an open list must not close under the finger.
  if (select.dataset.options !== wanted) {
    select.dataset.options = wanted;
    select.replaceChildren(...known.map(([option, name]) => el("option", { value: option }, name)));
  }
  select.value = value;
}

const languageNames = new Intl.DisplayNames("en", { type: "language", fallback: "code" });
function languageName(code) {
  if (code === "und") return "an unknown language";
  try {
    return languageNames.of(code);
  } catch {
    return code;
  }
}

const topicName = (name) => choices?.topics.find((topic) => topic.name === name)?.display_name ?? (name === "*" ? "everything" : name);

function renderQuestion() {
  const topics = (choices?.topics ?? []).map((topic) => [topic.name, topic.display_name]);
  fillSelect("topic", [["*", "everything"], ...topics], query.topic);
  fillSelect("platform", [["", "every platform"], ...(choices?.platforms ?? []).map((name) => [name, name])], query.platform);
  fillSelect("language", [["", "every language"], ...(choices?.languages ?? []).map((code) => [code, languageName(code)])], query.language);
  byId("interval").value = query.interval;
  byId("grain").value = query.grain;
  if (extent !== null) byId("grain").firstElementChild.textContent = `by the ${autoGrain(Math.min(INTERVAL_MS[query.interval], extent.latest - extent.earliest))} (auto)`;
  document.title = `${topicName(query.topic)} · Crowdtone`;
}

function renderEmpty() {
  const noPosts = extent === null;
  byId("empty").hidden = false;
  byId("filled").hidden = true;
  byId("posts").hidden = true;
  byId("empty-title").textContent = noPosts ? "No posts yet" : "No post matches";
  byId("empty-text").textContent = noPosts
    ? "Feed it some, and this page fills by itself:"
    : `Nobody wrote about ${topicName(query.topic)} in this interval, on this platform, in this language.`;
  byId("empty-command").hidden = !noPosts;
  byId("empty-command").textContent = "crowdtone ingest jsonl demo/feed.jsonl --media demo/media";
  byId("empty-clear").hidden = noPosts;
}

function renderRefused(error) {
  renderEmpty();
  answered();
  setLive("live", "connected");
  byId("empty-title").textContent = "This cannot be shown";
  byId("empty-text").textContent = sentence(error.message);
}

function renderTrends() {
  if (points === null) return; // an answer is on its way, and brings us here
  const bucket = BUCKET_MS[grain()];
  const { start, end } = inView();
  // A bucket whose posts were all taken back comes with zero.
  const shown = points.filter((point) => point.posts > 0 && point.t >= start && point.t < end);
  if (shown.length === 0) {
    renderEmpty();
    return;
  }
  byId("empty").hidden = true;
  byId("filled").hidden = false;
  byId("posts").hidden = false;
  const sum = totals(shown);
  const turn = turningPoint(shown);
  renderHeadline(sum, changeOverHalves(shown, start, end), turn, bucket);
  const selected = query.bucket ? Date.parse(query.bucket) : null;
  drawMood({ points: shown, start, end, bucket, turn, selected, alerts: alerts.filter(({ t, until }) => until > start && t < end) });
  renderAlerts(bucket);
  const reach = windowMs(start, end, bucket);
  byId("explains").textContent = `dot: mean of one ${grain()}, larger with more posts · line: moving mean, ±${span(reach)}`;
  renderTable(shown, bucket);
  renderLabels(sum);
  renderPostFilters();
}

const ALERT_NAMES = { mood_drop: "▼ mood drop", mood_rise: "▲ mood rise", volume_spike: "▮ volume spike" };
const ALERT_TONES = { mood_drop: "negative", mood_rise: "positive", volume_spike: "neutral" };

function renderAlerts(bucket) {
  const shown = episodes(alerts).slice(0, ALERTS_SHOWN);
  const root = byId("alerts");
  root.hidden = shown.length === 0;
  root.replaceChildren(
    ...shown.map(({ topic, kind, t, until, value, baseline }) => {
      const number = (one) => (kind === "volume_spike" ? `${formatCount(one)} posts` : formatScore(one));
      // Judged by labels (−1, 0, 1), which the chart's scores are not.
      const what = kind === "volume_spike" ? "" : "mean label ";
      const elsewhere = topic === query.topic ? {} : { topic };
      const select = () => change({ ...elsewhere, bucket: iso(Math.floor(t / bucket) * bucket) });
      return el(
        "li",
        { "data-kind": kind },
        el(
          "button",
          { type: "button", class: `alert ${ALERT_TONES[kind] ?? ""}`, onclick: select },
          el("b", {}, ALERT_NAMES[kind] ?? kind),
          query.topic === "*" ? el("span", {}, topicName(topic)) : null,
          el("span", {}, `${formatMoment(t)}–${formatMoment(until).split(", ").at(-1)}`),
          el("span", { class: "alert-values" }, `${what}${number(value)}, usual ${number(baseline)}`),
        ),
      );
    }),
  );
}

function span(ms) {
  const [unit, name] = ms >= 2 * BUCKET_MS.day ? [BUCKET_MS.day, "d"] : ms >= 2 * BUCKET_MS.hour ? [BUCKET_MS.hour, "h"] : [BUCKET_MS.minute, "min"];
  return `${Math.round((ms / unit) * 10) / 10} ${name}`;
}

function figure(value, name, { tone = "", note = "" } = {}) {
  return el(
    "div",
    { class: `figure ${tone}` },
    el("dd", {}, value, note ? el("span", { class: "figure-note" }, note) : null),
    el("dt", {}, name),
  );
}

// Closer to zero than this is neither.
const tone = (score) => (score === null || Math.abs(score) < 0.05 ? "" : score < 0 ? "negative" : "positive");

function renderHeadline(sum, changed, turn, bucket) {
  const share = (label) => formatPercent(sum.posts > 0 ? sum[label] / sum.posts : 0);
  const arrow = changed === null ? "" : { positive: "↗ ", negative: "↘ ", "": "→ " }[tone(changed)];
  byId("headline").replaceChildren(
    el(
      "dl",
      {},
      figure(formatScore(sum.mean), "mean score, −1 to 1", { tone: `first ${tone(sum.mean)}` }),
      figure(`${arrow}${formatScore(changed)}`, "second half against first", { tone: tone(changed) }),
      figure(formatCount(sum.posts), sum.posts === 1 ? "post" : "posts"),
      LABELS.map((label) => figure(share(label), label, { tone: `keyed ${label}`, note: formatShort(sum[label]) })),
    ),
    shareBar(LABELS.map((label) => [label, sum[label]])),
    turn === null
      ? el("p", { class: "turned" }, "No clear turn in the mood.")
      : el(
          "p",
          { class: "turned" },
          "The mood turned ",
          el("b", { class: tone(turn.after - turn.before) }, turn.after > turn.before ? "up" : "down"),
          ` at ${formatMoment(turn.t)} UTC: from `,
          el("b", {}, formatScore(turn.before)),
          " before to ",
          el("b", {}, formatScore(turn.after)),
          " since.",
        ),
  );
}

function renderTable(shown, bucket) {
  const head = ["time (UTC)", "mean score", "posts", ...LABELS];
  byId("table").setAttribute("aria-label", `Mood about ${topicName(query.topic)} over time`);
  byId("table").replaceChildren(
    el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, name)))),
    el(
      "tbody",
      {},
      shown.map((point) =>
        el(
          "tr",
          {},
          el("th", { scope: "row" }, el("time", { datetime: point.bucket_start }, formatBucket(point.t, bucket))),
          el("td", {}, point.posts > point.unscored ? formatScore(point.mean_score) : "–"),
          el("td", {}, formatCount(point.posts)),
          LABELS.map((label) => el("td", {}, formatCount(point[label]))),
        ),
      ),
    ),
  );
}

function renderLabels(sum) {
  const buttons = [["", "all", sum.posts], ...LABELS.map((label) => [label, label, sum[label]])];
  const root = byId("labels");
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.label : null;
  root.replaceChildren(
    ...buttons.map(([label, name, count]) =>
      el(
        "button",
        { type: "button", class: "label", "data-label": label, "aria-pressed": String(query.label === label), onclick: () => change({ label }) },
        label ? el("i", { class: `key ${label}` }) : null,
        name,
        // Counts are of the whole interval, so they would not fit a list of one bucket.
        query.bucket ? null : el("b", {}, formatShort(count)),
      ),
    ),
  );
  if (focused !== null) root.querySelector(`[data-label="${focused}"]`)?.focus();
}

function renderPostFilters() {
  const button = byId("bucket");
  button.hidden = !query.bucket;
  if (query.bucket) {
    button.textContent = `${formatBucket(Date.parse(query.bucket), BUCKET_MS[grain()])} ✕`;
    button.setAttribute("aria-label", `Only ${button.textContent}; show the whole interval again`);
  }
  for (const label of byId("labels").children) label.setAttribute("aria-pressed", String(label.dataset.label === query.label));
}

function renderCompare(topics) {
  const bucket = BUCKET_MS[grain()];
  const { start, end } = inView();
  const trends = topics
    .map((topic) => ({ ...topic, points: topic.points.map(parsePoint).filter((point) => point.t >= start && point.t < end) }))
    .map((topic) => ({ ...topic, sum: totals(topic.points) }))
    .sort((a, b) => b.sum.posts - a.sum.posts)
    .slice(0, COMPARED_MAX);
  // One scale for all, so that a flat line is a calm topic.
  const curves = trends.flatMap((topic) => movingMean(topic.points, start, end, bucket, { steps: SPARK_STEPS }));
  const limit = Math.min(1, Math.max(0.5, ...curves.map(({ score }) => Math.abs(score ?? 0))));
  const mentions = trends.reduce((total, topic) => total + topic.sum.posts, 0);
  const root = byId("compare");
  const focused = root.contains(document.activeElement) ? document.activeElement.dataset.topic : null;
  root.replaceChildren(
    ...trends.map(({ name, display_name: shownName, points: trend, sum }) => {
      const voice = mentions > 0 ? sum.posts / mentions : 0;
      const bar = el("i", {});
      bar.style.width = `${voice * 100}%`;
      const chosen = query.topic === name;
      return el(
        "button",
        {
          type: "button",
          class: "card topic",
          "data-topic": name,
          "aria-pressed": String(chosen),
          onclick: () => change({ topic: chosen ? "*" : name }),
        },
        el("span", { class: "topic-name" }, shownName),
        el("span", { class: `topic-score ${tone(sum.mean)}` }, formatScore(sum.mean)),
        trend.length > 0 ? sparkline(trend, start, end, bucket, limit) : el("span", { class: "note" }, "no posts here"),
        el("span", { class: "voice", "aria-hidden": "true" }, bar),
        el("span", { class: "topic-note" }, `${formatPercent(voice)} of the voice · ${formatShort(sum.posts)} posts`),
      );
    }),
  );
  if (focused !== null) root.querySelector(`[data-topic="${CSS.escape(focused)}"]`)?.focus();
}

// ---- services

// In the order data flows; others after them.
const FLOW = ["ingest", "text_encoder", "image_encoder", "audio_encoder", "fusion", "alerts", "api"];
const processes = new Map(); // by service and instance, with when the API last named it

function formatMemory(bytes) {
  const mebibytes = bytes / 1024 ** 2;
  return mebibytes >= 1024 ? `${(mebibytes / 1024).toFixed(1)} GB` : `${Math.round(mebibytes)} MB`;
}

function formatAge(seconds) {
  return seconds < 90 ? `${Math.round(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

function renderServices(trouble) {
  const now = performance.now();
  for (const [key, { at }] of processes) if ((now - at) / 1000 > GONE_S) processes.delete(key);
  const place = ({ status }) => (FLOW.indexOf(status.service) + FLOW.length + 1) % (FLOW.length + 1);
  const name = ({ status }) => `${status.service} ${status.instance}`;
  const rows = [...processes.values()].sort((a, b) => place(a) - place(b) || name(a).localeCompare(name(b)));
  byId("service-table").tBodies[0].replaceChildren(
    ...rows.map(({ status, at }) => {
      const age = status.age_s + (now - at) / 1000;
      const stale = age > STALE_S;
      return el(
        "tr",
        { class: stale ? "stale" : "", "data-service": status.service },
        el("th", { scope: "row", title: status.instance }, el("i", { class: "pip" }), status.service.replaceAll("_", " ")),
        el("td", {}, status.posts_per_s < 10 ? status.posts_per_s.toFixed(1) : formatShort(Math.round(status.posts_per_s))),
        el("td", { class: status.lag_records > 0 ? "some" : "" }, formatShort(status.lag_records)),
        el("td", {}, formatShort(status.posts)),
        el("td", { class: status.dead_letters > 0 ? "bad" : "" }, formatShort(status.dead_letters)),
        el("td", {}, formatMemory(status.memory_bytes)),
        el("td", {}, stale ? el("span", { class: "bad" }, `silent ${formatAge(age)}`) : formatAge(age)),
      );
    }),
  );
  byId("service-table").hidden = rows.length === 0;
  byId("no-services").hidden = rows.length > 0 && trouble === "";
  byId("no-services").textContent = trouble || "No process reports. `crowdtone run all` starts them.";
}

async function loadServices() {
  if (awake) {
    let trouble = "";
    try {
      const { services } = await ask("/api/services");
      const at = performance.now();
      for (const status of services) processes.set(`${status.service} ${status.instance}`, { status, at });
      if (choices !== null && extent === null) answered();
    } catch (error) {
      // What was known stays, its ages count on.
      trouble = error instanceof TypeError ? "The dashboard's server does not answer." : sentence(error.message);
    }
    renderServices(trouble);
  }
  setTimeout(loadServices, SERVICES_REFRESH_MS);
}

// ---- wiring

byId("question").addEventListener("change", (event) => change({ [event.target.name]: event.target.value }));
byId("question").addEventListener("submit", (event) => event.preventDefault());
byId("bucket").addEventListener("click", () => change({ bucket: "" }));
byId("more").addEventListener("click", () => void loadMore());
byId("empty-clear").addEventListener("click", () => change({ ...DEFAULTS, interval: "all" }));
addEventListener("popstate", () => {
  query = readQuery();
  follow({ trendsStay: false });
});
document.addEventListener("visibilitychange", () => {
  // A hidden tab asks for nothing: browsers allow six connections to a server, and a stream holds one.
  awake = !document.hidden;
  if (awake) openStream();
  else stream?.close();
});
setInterval(() => awake && extent !== null && loadChoices(), CHOICES_REFRESH_MS);
setInterval(loadAlerts, ALERTS_REFRESH_MS);

renderQuestion();
void loadChoices();
void loadServices();
