// The charts, drawn as SVG by hand: no chart library small enough to ship as a file is kept well on PyPI.
// They know points and pixels; not where points come from.

import { el, svg } from "./dom.js";
import {
  BUCKET_MS,
  LABELS,
  formatBucket,
  formatCount,
  formatDay,
  formatPercent,
  formatScore,
  formatShort,
  formatTime,
  movingMean,
} from "./numbers.js";

const LEFT = 46;
const RIGHT = 14;
const TOP = 26;
const PANEL_GAP = 34;
const BOTTOM = 26;
// Above this many buckets a dot each is a smear; a thin line through the means says the same.
const MAX_DOTS = 400;
export const SPARK_STEPS = 80;
const TICK_STEPS = [1, 5, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10_080, 20_160, 43_200].map(
  (minutes) => minutes * 60_000,
);

const round = (value) => Math.round(value * 10) / 10;

function linePath(points) {
  let path = "";
  let pen = "M";
  for (const point of points) {
    if (point === null) {
      pen = "M";
      continue;
    }
    path += `${pen}${round(point[0])} ${round(point[1])}`;
    pen = "L";
  }
  return path;
}

function areaPath(points, base) {
  let path = "";
  let run = [];
  for (const point of [...points, null]) {
    if (point !== null) {
      run.push(point);
      continue;
    }
    if (run.length > 1) {
      path += `${linePath(run)}L${round(run.at(-1)[0])} ${base}L${round(run[0][0])} ${base}Z`;
    }
    run = [];
  }
  return path;
}

const bar = (x, y, width, height) =>
  height <= 0 ? "" : `M${round(x)} ${round(y)}h${round(width)}v${round(height)}h${round(-width)}z`;

let clipIds = 0;

/** A line over time, blue above zero and orange below, with its area; used large and as a sparkline. */
function moodLine(curve, x, y, left, right, top, bottom, { strokeWidth }) {
  const points = curve.map(({ t, score }) => (score === null ? null : [x(t), y(score)]));
  const zero = round(y(0));
  const id = `half-${clipIds++}`;
  const half = (name, from, to) => [
    svg("clipPath", { id: `${id}-${name}` }, svg("rect", { x: left, y: from, width: right - left, height: Math.max(0, to - from) })),
    svg(
      "g",
      { "clip-path": `url(#${id}-${name})` },
      svg("path", { d: areaPath(points, zero), class: `area ${name}` }),
      svg("path", { d: linePath(points), class: `line ${name}`, "stroke-width": strokeWidth }),
    ),
  ];
  return [...half("positive", top - 4, zero), ...half("negative", zero, bottom + 4)];
}

function timeTicks(start, end, width) {
  const step = TICK_STEPS.find((candidate) => (end - start) / candidate <= width / 74) ?? TICK_STEPS.at(-1);
  const ticks = [];
  for (let t = Math.ceil(start / step) * step; t < end; t += step) ticks.push(t);
  return ticks;
}

/**
 * The large chart: score, shares and volume over one time axis.
 *
 * root: an element it may fill. onSelect(t): a bucket was chosen. Returns draw({points, start, end, bucket, turn,
 * selected, alerts}); call it again whenever any of them changes.
 */
export function moodChart(root, { onSelect }) {
  const canvas = svg("svg", { class: "mood", "aria-hidden": "true" });
  const tip = el("div", { class: "tip", hidden: true });
  const status = el("p", { class: "sr", role: "status" });
  const stage = el(
    "div",
    {
      class: "stage",
      tabindex: "0",
      role: "application",
      "aria-roledescription": "chart",
      "aria-label":
        "Mood over time. Left and right arrow keys read one bucket after the other, Enter lists its posts. The same numbers are in the table below.",
    },
    canvas,
    tip,
  );
  root.replaceChildren(stage, status);

  let drawn = null;
  let cursor = null; // index of the point under the crosshair
  let layout = null;

  function measure() {
    const width = Math.max(280, stage.clientWidth);
    const narrow = width < 560;
    const heights = narrow ? [170, 64, 48] : [236, 84, 64];
    const tops = [TOP, TOP + heights[0] + PANEL_GAP, TOP + heights[0] + heights[1] + 2 * PANEL_GAP];
    const panels = tops.map((top, i) => ({ top, bottom: top + heights[i], height: heights[i] }));
    return { width, height: panels[2].bottom + BOTTOM, panels };
  }

  function redraw() {
    if (drawn === null) return;
    const { points, start, end, bucket, turn, selected, alerts = [] } = drawn;
    const { width, height, panels } = measure();
    const [mood, share, volume] = panels;
    const right = width - RIGHT;
    const x = (t) => LEFT + ((t - start) / (end - start)) * (right - LEFT);
    const slot = ((right - LEFT) * bucket) / (end - start);
    const gap = Math.min(2, slot * 0.2);
    const curve = movingMean(points, start, end, bucket);
    const extent = Math.max(...points.map((p) => Math.abs(p.mean_score)), 0);
    const limit = Math.min(1, Math.max(0.5, Math.ceil(extent * 4) / 4));
    const y = (score) => mood.top + ((limit - score) / (2 * limit)) * mood.height;
    layout = { x, y, slot, mood, volume, width };

    canvas.setAttribute("viewBox", `0 0 ${width} ${height}`);
    canvas.setAttribute("width", width);
    canvas.setAttribute("height", height);
    const parts = [
      svg(
        "defs",
        {},
        svg(
          "pattern",
          { id: "hatch", width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
          svg("rect", { width: 5, height: 5, class: "hatch-ground" }),
          svg("line", { x1: 0, y1: 0, x2: 0, y2: 5, class: "hatch-line" }),
        ),
      ),
    ];

    if (selected !== null && selected >= start && selected < end) {
      parts.push(
        svg("rect", {
          class: "selected",
          x: round(x(selected)),
          y: mood.top,
          width: round(Math.max(3, slot)),
          height: volume.bottom - mood.top,
        }),
      );
    }

    // Time: a line down all three panels, so that the eye can go from the mood to what made it.
    let dayShown = "";
    for (const t of timeTicks(start, end, right - LEFT)) {
      const midnight = t % BUCKET_MS.day === 0;
      const position = round(x(t));
      parts.push(
        svg("line", { class: midnight ? "grid day" : "grid", x1: position, x2: position, y1: mood.top, y2: volume.bottom }),
      );
      const day = formatDay(t);
      const label = midnight || bucket >= BUCKET_MS.day ? day : formatTime(t);
      if (label === dayShown) continue;
      dayShown = day;
      parts.push(svg("text", { class: midnight ? "tick day" : "tick", x: position, y: height - 8, "text-anchor": "middle" }, label));
    }

    const title = (panel, text) => svg("text", { class: "panel-title", x: LEFT, y: panel.top - 9 }, text);

    // Score.
    parts.push(title(mood, "Mean score"));
    const step = limit === 1 ? 0.5 : 0.25;
    for (let score = -limit; score <= limit; score += step) {
      parts.push(
        svg("line", { class: score === 0 ? "zero" : "grid", x1: LEFT, x2: right, y1: round(y(score)), y2: round(y(score)) }),
        svg("text", { class: "tick", x: LEFT - 8, y: round(y(score)) + 4, "text-anchor": "end" }, score === 0 ? "0" : formatScore(score)),
      );
    }
    parts.push(...moodLine(curve, x, y, LEFT, right, mood.top, mood.bottom, { strokeWidth: 2.5 }));
    const scored = points.filter((point) => point.posts > point.unscored);
    const centre = (point) => x(point.t + bucket / 2);
    if (scored.length <= MAX_DOTS) {
      const most = Math.max(...scored.map((point) => point.posts), 1);
      for (const point of scored) {
        parts.push(
          svg("circle", {
            class: `dot ${point.mean_score < 0 ? "negative" : "positive"}`,
            cx: round(centre(point)),
            cy: round(y(point.mean_score)),
            r: round(1.6 + 3.4 * Math.sqrt(point.posts / most)),
            "data-t": point.t,
            "data-score": point.mean_score,
          }),
        );
      }
    } else {
      parts.push(svg("path", { class: "means", d: linePath(scored.map((point) => [centre(point), y(point.mean_score)])) }));
    }

    // Shares, stacked to the whole; a bucket without posts stays empty.
    parts.push(title(share, "Share by label"));
    for (const [at, text] of [[1, "100%"], [0.5, "50%"], [0, "0"]]) {
      parts.push(svg("text", { class: "tick", x: LEFT - 8, y: round(share.bottom - at * share.height) + 4, "text-anchor": "end" }, text));
    }
    const stacks = Object.fromEntries(LABELS.map((label) => [label, ""]));
    for (const point of points) {
      let base = share.bottom;
      for (const label of LABELS) {
        const part = (point[label] / Math.max(1, point.posts)) * share.height;
        stacks[label] += bar(x(point.t) + gap / 2, base - part, Math.max(0.6, slot - gap), part);
        base -= part;
      }
    }
    for (const label of LABELS) parts.push(svg("path", { class: `share ${label}`, d: stacks[label] }));

    // Volume.
    const most = Math.max(...points.map((point) => point.posts), 1);
    parts.push(
      title(volume, `Posts per ${Object.keys(BUCKET_MS).find((name) => BUCKET_MS[name] === bucket)}`),
      svg("text", { class: "tick", x: LEFT - 8, y: volume.top + 4, "text-anchor": "end" }, formatShort(most)),
      svg("text", { class: "tick", x: LEFT - 8, y: volume.bottom + 4, "text-anchor": "end" }, "0"),
      svg("path", {
        class: "volume",
        d: points
          .map((point) => {
            const tall = (point.posts / most) * volume.height;
            return bar(x(point.t) + gap / 2, volume.bottom - tall, Math.max(0.6, slot - gap), tall);
          })
          .join(""),
      }),
      svg("line", { class: "axis", x1: LEFT, x2: right, y1: volume.bottom, y2: volume.bottom }),
    );

    if (turn !== null) {
      const at = round(x(turn.t));
      const anchor = at > (LEFT + right) / 2 ? "end" : "start";
      const name = width < 560 ? "" : "turning point  ";
      parts.push(
        svg(
          "g",
          { class: "turn" },
          svg("line", { x1: at, x2: at, y1: mood.top - 4, y2: volume.bottom }),
          svg("circle", { cx: at, cy: mood.top - 4, r: 3.5 }),
          svg(
            "text",
            { x: at + (anchor === "end" ? -9 : 9), y: mood.top, "text-anchor": anchor },
            `${name}${formatScore(turn.before)} → ${formatScore(turn.after)}`,
          ),
        ),
      );
    }

    for (const { kind, t, until } of alerts) {
      const panel = kind === "volume_spike" ? volume : mood;
      const left = Math.max(LEFT, x(t));
      const wide = Math.max(3, Math.min(right, x(until)) - left);
      const tone = { mood_drop: "negative", mood_rise: "positive" }[kind] ?? "neutral";
      // The sign stands on the side the value went to.
      const [base, tip] = kind === "mood_drop" ? [panel.bottom - 9, panel.bottom - 2] : [panel.top + 9, panel.top + 2];
      const middle = left + wide / 2;
      parts.push(
        svg(
          "g",
          { class: `alert-mark ${tone}`, "data-kind": kind, "data-t": t },
          svg("rect", { x: round(left), y: panel.top, width: round(wide), height: panel.height }),
          svg("path", { d: `M${round(middle - 5)} ${base}h10L${round(middle)} ${tip}z` }),
        ),
      );
    }

    const crosshair = svg(
      "g",
      { class: "crosshair", visibility: "hidden" },
      svg("line", { y1: mood.top, y2: volume.bottom }),
      svg("circle", { r: 6 }),
    );
    parts.push(crosshair);
    layout.crosshair = crosshair;
    canvas.replaceChildren(...parts);
    if (cursor !== null && cursor < points.length) point(cursor, { speak: false });
  }

  function point(index, { speak }) {
    cursor = index;
    const { points, bucket } = drawn;
    const at = points[index];
    const { x, y, mood, crosshair, width } = layout;
    const middle = x(at.t + bucket / 2);
    const anyScored = at.posts > at.unscored;
    crosshair.setAttribute("visibility", "visible");
    const [line, ring] = crosshair.children;
    line.setAttribute("x1", middle);
    line.setAttribute("x2", middle);
    ring.setAttribute("cx", middle);
    ring.setAttribute("cy", y(at.mean_score));
    ring.setAttribute("visibility", anyScored ? "inherit" : "hidden");
    const score = anyScored ? formatScore(at.mean_score) : "none scored";
    tip.replaceChildren(
      el("div", { class: "tip-time" }, `${formatBucket(at.t, bucket)} UTC`),
      el("div", { class: `tip-score ${!anyScored ? "" : at.mean_score < 0 ? "negative" : "positive"}` }, score),
      el(
        "table",
        {},
        el(
          "tbody",
          {},
          [...LABELS].reverse().map((label) =>
            el(
              "tr",
              {},
              el("th", { scope: "row" }, el("i", { class: `key ${label}` }), label),
              el("td", {}, formatCount(at[label])),
              el("td", {}, formatPercent(at[label] / at.posts)),
            ),
          ),
          el("tr", { class: "sum" }, el("th", { scope: "row" }, "posts"), el("td", {}, formatCount(at.posts)), el("td")),
        ),
      ),
    );
    tip.hidden = false;
    const space = tip.offsetWidth + 18;
    const left = middle + space > width ? middle - space : middle + 18;
    tip.style.transform = `translate(${Math.max(0, Math.round(left))}px, ${mood.top + 6}px)`;
    if (speak) {
      status.textContent = `${formatBucket(at.t, bucket)}: mean score ${score}, ${at.posts} posts, ${LABELS.map((label) => `${at[label]} ${label}`).join(", ")}`;
    }
  }

  function leave() {
    cursor = null;
    tip.hidden = true;
    layout?.crosshair?.setAttribute("visibility", "hidden");
  }

  function nearest(event) {
    if (drawn === null || drawn.points.length === 0) return null;
    const { points, start, end, bucket } = drawn;
    const inside = (event.clientX - canvas.getBoundingClientRect().left - LEFT) / (layout.width - LEFT - RIGHT);
    const t = start + inside * (end - start) - bucket / 2;
    let low = 0;
    let high = points.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (points[middle].t < t) low = middle;
      else high = middle;
    }
    return Math.abs(points[low].t - t) <= Math.abs(points[high].t - t) ? low : high;
  }

  stage.addEventListener("pointermove", (event) => {
    const index = nearest(event);
    if (index !== null && index !== cursor) point(index, { speak: false });
  });
  stage.addEventListener("pointerleave", leave);
  stage.addEventListener("blur", leave);
  stage.addEventListener("click", (event) => {
    const index = nearest(event);
    if (index !== null) onSelect(drawn.points[index].t);
  });
  stage.addEventListener("keydown", (event) => {
    const last = (drawn?.points.length ?? 0) - 1;
    if (last < 0) return;
    const moves = {
      ArrowLeft: cursor === null ? last : Math.max(0, cursor - 1),
      ArrowRight: cursor === null ? 0 : Math.min(last, cursor + 1),
      Home: 0,
      End: last,
    };
    if (event.key in moves) point(moves[event.key], { speak: true });
    else if (event.key === "Enter" && cursor !== null) onSelect(drawn.points[cursor].t);
    else if (event.key === "Escape") leave();
    else return;
    event.preventDefault();
  });
  new ResizeObserver(redraw).observe(stage);

  return (next) => {
    drawn = next;
    if (cursor !== null && cursor >= next.points.length) leave();
    redraw();
  };
}

/** A topic's mood in a few square centimetres: the moving mean on the scale -limit to limit. */
export function sparkline(points, start, end, bucket, limit) {
  const width = 240;
  const height = 56;
  const x = (t) => ((t - start) / (end - start)) * width;
  const y = (score) => 3 + ((limit - score) / (2 * limit)) * (height - 6);
  const curve = movingMean(points, start, end, bucket, { steps: SPARK_STEPS });
  return svg(
    "svg",
    { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("line", { class: "zero", x1: 0, x2: width, y1: y(0), y2: y(0) }),
    moodLine(curve, x, y, 0, width, 0, height, { strokeWidth: 2 }),
  );
}

/** A bar cut into shares. shares: [[name, value]]; each part has the class of its name. */
export function shareBar(shares) {
  const sum = shares.reduce((total, [, value]) => total + value, 0);
  return el(
    "div",
    { class: "share-bar", "aria-hidden": "true" },
    shares
      .filter(([, value]) => value > 0)
      .map(([name, value]) => {
        const part = el("i", { class: name });
        part.style.flexGrow = String(value / sum);
        return part;
      }),
  );
}

/**
 * How a score came about: each row starts where the one before ended, the last is the score.
 * rows: [{name, from, to, kind, note}]; `from` and `to` in [-1, 1], a `note` instead of a bar where there was nothing.
 */
export function waterfall(rows) {
  const percent = (score) => ((Math.max(-1, Math.min(1, score)) + 1) / 2) * 100;
  return el(
    "table",
    { class: "waterfall", "aria-label": "What each part of the post added to its score" },
    el(
      "tbody",
      {},
      rows.map(({ name, from, to, kind, note }) => {
        if (note) {
          return el("tr", { class: "absent" }, el("th", { scope: "row" }, name), el("td", { class: "note", colspan: "2" }, note));
        }
        const low = percent(Math.min(from, to));
        const high = percent(Math.max(from, to));
        const step = el("i", { class: `step ${kind ?? ""} ${to < from ? "negative" : "positive"}` });
        step.style.left = `${low}%`;
        step.style.width = `max(2px, ${high - low}%)`;
        return el(
          "tr",
          { class: kind ?? "" },
          el("th", { scope: "row" }, name),
          el("td", { class: "track" }, step),
          el("td", { class: "amount" }, formatScore(to - from)),
        );
      }),
    ),
  );
}
