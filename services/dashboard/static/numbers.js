// What the page says about trend points. Pure: no document, no clock.
// A point is what the API gives for one bucket, with `t`, the bucket's start in ms; times are UTC.

export const LABELS = ["negative", "neutral", "positive", "unscored"];
export const BUCKET_MS = { minute: 60_000, hour: 3_600_000, day: 86_400_000 };
export const INTERVAL_MS = { "24h": 86_400_000, "48h": 172_800_000, "7d": 604_800_000, all: Infinity };

// To be told, a turn must have this share of the scored posts on each side, change the mean by this much, and be this
// many standard errors: the best of many moments is looked at, so two would often be chance.
const TURN_SHARE = 0.1;
const TURN_SCORE = 0.15;
const TURN_ERRORS = 3.5;

export const scoredOf = (point) => point.posts - point.unscored;

export function parsePoint(raw) {
  return { ...raw, t: Date.parse(raw.bucket_start) };
}

/** Points by bucket, with those that changed put in their place; oldest first. */
export function merge(points, changed) {
  const byTime = new Map(points.map((point) => [point.t, point]));
  for (const point of changed) byTime.set(point.t, point);
  return [...byTime.values()].sort((a, b) => a.t - b.t);
}

/** Sums over points: posts, each label, `scored`, and `mean`, the mean score of the scored posts (null for none). */
export function totals(points) {
  const sum = { posts: 0, negative: 0, neutral: 0, positive: 0, unscored: 0, scored: 0, mean: null };
  let score = 0;
  for (const point of points) {
    sum.posts += point.posts;
    for (const label of LABELS) sum[label] += point[label];
    sum.scored += scoredOf(point);
    score += point.mean_score * scoredOf(point);
  }
  if (sum.scored > 0) sum.mean = score / sum.scored;
  return sum;
}

/** Mean score of the later half of [start, end) less that of the earlier; null where a half has no scored post. */
export function changeOverHalves(points, start, end) {
  const middle = (start + end) / 2;
  const earlier = totals(points.filter((point) => point.t < middle)).mean;
  const later = totals(points.filter((point) => point.t >= middle)).mean;
  return earlier === null || later === null ? null : later - earlier;
}

/**
 * Where the mood changed most: the bucket at which splitting the interval in two explains most of the variance of the
 * bucket means, that is, where n1 n2 / n * (mean2 - mean1)^2 is largest (one step of binary segmentation; Scott and
 * Knott 1974). {t, before, after}, or null where no turn passes the limits above. The spread of single posts, for the
 * standard error, comes from how the bucket means scatter about the mean of their side.
 */
export function turningPoint(points) {
  const scored = points.filter((point) => scoredOf(point) > 0);
  const all = totals(scored);
  let best = null;
  let before = 0;
  let beforeSum = 0;
  for (let i = 0; i < scored.length - 1; i++) {
    before += scoredOf(scored[i]);
    beforeSum += scored[i].mean_score * scoredOf(scored[i]);
    const after = all.scored - before;
    if (Math.min(before, after) < TURN_SHARE * all.scored || after === 0) continue;
    const meanBefore = beforeSum / before;
    const meanAfter = (all.mean * all.scored - beforeSum) / after;
    const explained = ((before * after) / all.scored) * (meanAfter - meanBefore) ** 2;
    if (best === null || explained > best.explained) {
      best = { t: scored[i + 1].t, before: meanBefore, after: meanAfter, explained };
    }
  }
  if (best === null || Math.abs(best.after - best.before) < TURN_SCORE || scored.length < 4) return null;
  let scatter = 0;
  for (const point of scored) {
    scatter += scoredOf(point) * (point.mean_score - (point.t < best.t ? best.before : best.after)) ** 2;
  }
  const variance = scatter / (scored.length - 2);
  return best.explained >= TURN_ERRORS ** 2 * variance ? { t: best.t, before: best.before, after: best.after } : null;
}

/** How far the moving mean looks to either side: two buckets, or a 24th of the view where that is more. */
export function windowMs(start, end, bucket) {
  return Math.max(2 * bucket, (end - start) / 24);
}

/**
 * Moving mean of the score at `steps` + 1 evenly spaced times: every scored post within `halfWidth` counts, nearer ones
 * more (a triangle). [{t, score}], score null where no post is near.
 */
export function movingMean(points, start, end, bucket, { steps = 160, halfWidth = windowMs(start, end, bucket) } = {}) {
  const curve = [];
  let first = 0;
  for (let step = 0; step <= steps; step++) {
    const t = start + ((end - start) * step) / steps;
    let weight = 0;
    let sum = 0;
    while (first < points.length && points[first].t + bucket / 2 < t - halfWidth) first++;
    for (let i = first; i < points.length; i++) {
      const distance = Math.abs(points[i].t + bucket / 2 - t);
      if (points[i].t + bucket / 2 > t + halfWidth) break;
      const w = scoredOf(points[i]) * (1 - distance / halfWidth);
      weight += w;
      sum += w * points[i].mean_score;
    }
    curve.push({ t, score: weight > 1e-9 ? sum / weight : null });
  }
  return curve;
}

/** What lies in view: [start, end) in whole buckets, ending with the newest, never before the first post. */
export function view(earliest, latest, interval, bucket) {
  const end = (Math.floor(latest / bucket) + 1) * bucket;
  const first = Math.floor(earliest / bucket) * bucket;
  return { start: Math.max(first, end - INTERVAL_MS[interval]), end };
}

/** The grain that shows an interval best: about 20 to 400 buckets. */
export function autoGrain(spanMs) {
  if (spanMs <= 4 * BUCKET_MS.hour) return "minute";
  return spanMs <= 10 * BUCKET_MS.day ? "hour" : "day";
}

const signed = new Intl.NumberFormat("en", {
  signDisplay: "exceptZero",
  minimumFractionDigits: 2,
  maximumFractionDigits: 2,
});
const whole = new Intl.NumberFormat("en");
const percent = new Intl.NumberFormat("en", { style: "percent", maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

// A true minus sign: as wide as the plus, so that columns line up.
export const formatScore = (score) => (score === null ? "–" : signed.format(score).replace("-", "−"));
export const formatCount = (count) => whole.format(count);
export const formatShort = (count) => (count < 10_000 ? whole.format(count) : compact.format(count));
export const formatPercent = (share) => percent.format(share);

function parts(options) {
  const format = new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
  return (t) => format.format(t);
}
export const formatTime = parts({ hour: "2-digit", minute: "2-digit" });
export const formatDay = parts({ weekday: "short", day: "numeric", month: "short" });
export const formatMoment = (t) => `${formatDay(t)}, ${formatTime(t)}`;

/** "Sun 1 Mar, 08:00–09:00", or the day alone. */
export function formatBucket(t, bucket) {
  if (bucket >= BUCKET_MS.day) return formatDay(t);
  return bucket < BUCKET_MS.hour ? formatMoment(t) : `${formatMoment(t)}–${formatTime(t + bucket)}`;
}
