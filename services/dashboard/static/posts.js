// One post with its verdict, and the list that keeps them in place while new ones arrive.

import { shareBar, waterfall } from "./charts.js";
import { el } from "./dom.js";
import { LABELS, formatMoment, formatPercent, formatScore } from "./numbers.js";

const MODALITY_NAMES = { text: "Text", image: "Picture", audio: "Voice", speech: "Words spoken" };
const SIGNS = { negative: "▼", neutral: "●", positive: "▲", unscored: "○" };
const EMOTIONS_SHOWN = 3;
const EMOTION_MIN = 0.05;
// Beyond this a post is folded: a wall of text must not push the others off the page.
const LONG_TEXT = 480;

export function labelChip(post) {
  const score = post.label === "unscored" ? "" : ` ${formatScore(post.score)}`;
  return el("span", { class: `chip ${post.label}` }, el("span", { "aria-hidden": "true" }, SIGNS[post.label]), ` ${post.label}`, el("b", {}, score));
}

function text(post) {
  const body = el("p", { class: "text", dir: "auto", lang: post.language === "und" ? null : post.language }, post.text);
  if (post.text.length <= LONG_TEXT) return [body];
  body.classList.add("folded");
  const more = el("button", { type: "button", class: "quiet", "aria-expanded": "false" }, "Show all of it");
  more.addEventListener("click", () => {
    const folded = body.classList.toggle("folded");
    more.setAttribute("aria-expanded", String(!folded));
    more.textContent = folded ? "Show all of it" : "Show less";
  });
  return [body, more];
}

function missing(reason) {
  return el("div", { class: "missing" }, reason);
}

function picture(media, number, count) {
  if (!media.sha256) return missing("picture was never fetched");
  const source = `/media/${media.sha256}`;
  const image = el("img", {
    src: source,
    alt: count > 1 ? `Picture ${number} of ${count} of the post` : "Picture of the post",
    loading: "lazy",
    decoding: "async",
  });
  const link = el("a", { class: "picture", href: source, target: "_blank", rel: "noopener" }, image);
  image.addEventListener("error", () => link.replaceWith(missing("picture cannot be shown")));
  return link;
}

function sound(media) {
  if (!media.sha256) return missing("sound was never fetched");
  const player = el("audio", { controls: true, preload: "none", src: `/media/${media.sha256}`, "aria-label": "Sound of the post" });
  player.addEventListener("error", () => player.replaceWith(missing("sound cannot be played")));
  return player;
}

function verdict(post) {
  const rows = [];
  let at = 0;
  const heard = post.modalities.filter((modality) => !modality.absent_reason);
  if (post.label !== "unscored") {
    // The contributions and the prior sum to the score; the prior is what remains.
    at = post.score - heard.reduce((sum, modality) => sum + modality.contribution, 0);
    rows.push({ name: "Starting point", from: 0, to: at, kind: "prior" });
  }
  for (const { modality, contribution, absent_reason: note } of post.modalities) {
    const name = MODALITY_NAMES[modality] ?? modality;
    if (note) rows.push({ name, note });
    else rows.push({ name, from: at, to: (at += contribution) });
  }
  const parts = [];
  if (post.label === "unscored") {
    parts.push(el("p", { class: "note" }, "Nothing here that the model can judge."));
  } else {
    rows.push({ name: "Score", from: 0, to: post.score, kind: "score" });
  }
  parts.push(waterfall(rows));
  if (post.label !== "unscored") {
    const three = LABELS.slice(0, 3);
    parts.push(
      shareBar(three.map((label) => [label, post[label]])),
      el("p", { class: "probabilities" }, three.map((label) => el("span", {}, el("i", { class: `key ${label}` }), `${label} `, el("b", {}, formatPercent(post[label]))))),
    );
  }
  const emotions = post.emotions.filter((emotion) => emotion.probability >= EMOTION_MIN).slice(0, EMOTIONS_SHOWN);
  if (emotions.length > 0) {
    parts.push(el("p", { class: "emotions" }, emotions.map(({ name, probability }) => el("span", {}, `${name} `, el("b", {}, formatPercent(probability))))));
  }
  return parts;
}

export function postCard(post) {
  const pictures = post.media.filter((media) => media.kind === "image");
  const sounds = post.media.filter((media) => media.kind !== "image");
  const time = el("time", { datetime: post.event_time }, `${formatMoment(Date.parse(post.event_time))} UTC`);
  return el(
    "article",
    { class: "post", "data-id": post.post_id, "data-revision": post.revision, "data-label": post.label },
    el(
      "header",
      {},
      labelChip(post),
      post.complete ? null : el("span", { class: "chip waiting", title: "A modality is still being read; the verdict will follow it" }, "more to come"),
      el("span", { class: "source" }, post.platform, " · ", post.language, " · ", time),
      post.url ? el("a", { class: "permalink", href: post.url, target: "_blank", rel: "noopener noreferrer nofollow" }, "original ↗") : null,
    ),
    el(
      "div",
      { class: "said" },
      post.text ? text(post) : el("p", { class: "note" }, "No text."),
      pictures.length > 0 ? el("div", { class: "pictures" }, pictures.map((media, i) => picture(media, i + 1, pictures.length))) : null,
      sounds.map(sound),
      post.transcript ? el("blockquote", { dir: "auto" }, el("span", { class: "sr" }, "Words heard: "), post.transcript) : null,
    ),
    el("div", { class: "verdict" }, verdict(post)),
  );
}

const newestFirst = (a, b) => Date.parse(b.event_time) - Date.parse(a.event_time);

/**
 * The list of posts in `root`: reset(posts), append(posts), refresh(posts).
 *
 * refresh takes the newest page again: it puts new posts in their place and redraws those with a new revision, and
 * returns false when the page has nothing in common with the list, so that posts in between may be missing.
 */
export function postList(root) {
  let posts = [];

  const cardOf = (id) => root.querySelector(`[data-id="${CSS.escape(id)}"]`);

  function put(post, { fresh }) {
    const card = postCard(post);
    if (fresh) card.classList.add("fresh");
    const after = posts.findIndex((other) => newestFirst(post, other) < 0);
    if (after < 0) {
      posts.push(post);
      root.append(card);
    } else {
      cardOf(posts[after].post_id).before(card);
      posts.splice(after, 0, post);
    }
  }

  return {
    get size() {
      return posts.length;
    },
    reset(page) {
      posts = [...page];
      root.replaceChildren(...page.map(postCard));
    },
    append(page) {
      const known = new Set(posts.map((post) => post.post_id));
      for (const post of page.filter((candidate) => !known.has(candidate.post_id))) {
        posts.push(post);
        root.append(postCard(post));
      }
    },
    refresh(page) {
      const known = new Map(posts.map((post, index) => [post.post_id, index]));
      if (posts.length > 0 && page.length > 0 && !page.some((post) => known.has(post.post_id))) return false;
      for (const post of page) {
        const index = posts.findIndex((other) => other.post_id === post.post_id);
        if (index < 0) put(post, { fresh: true });
        else if (posts[index].revision !== post.revision) {
          const old = cardOf(post.post_id);
          if ([...old.querySelectorAll("audio")].some((player) => !player.paused)) continue; // let it finish
          posts[index] = post;
          old.replaceWith(postCard(post));
        }
      }
      return true;
    },
  };
}
