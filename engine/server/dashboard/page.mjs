// The dashboard: asks the server it came from, and draws. Text of the server is only ever put in as text.
import { History, Track, letter, name, readTokens, segments, sharedBlocks, show } from "./figures.mjs";

const every = 2000; // milliseconds between two looks
const patience = 5000; // that an answer may take
const kept = 5 * 60_000; // that sparklines are of
const mostAnswer = 64 << 20; // characters of an answer that are read
const mostShown = 20; // requests
const mostMessage = 200; // characters of an error
const keyName = "infinite-api-key";
const colours = 8; // of instances, in page.css

// clock is the time of day, but never goes back.
const clock = () => performance.timeOrigin + performance.now();

const at = (id) => document.getElementById(id);

// make is an element with children, of which strings become text.
function make(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes ?? {})) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

// key is what the server wants; it is kept for this tab, where the browser keeps anything.
const key = {
  value: "",
  load() {
    try {
      this.value = sessionStorage.getItem(keyName) ?? "";
    } catch {
      // not kept
    }
  },
  set(value) {
    this.value = value;
    try {
      sessionStorage.setItem(keyName, value);
    } catch {
      // not kept
    }
  },
};

class Refused extends Error {}

// No header can say a key with characters beyond Latin-1, so no server has it.
function authorization() {
  try {
    return new Headers(key.value ? { Authorization: `Bearer ${key.value}` } : {});
  } catch (e) {
    throw new Refused(e.message);
  }
}

async function ask(path) {
  const answer = await fetch(path, { headers: authorization(), cache: "no-store", signal: AbortSignal.timeout(patience) });
  const text = await read(answer);
  if (answer.status === 401) throw new Refused(text);
  if (!answer.ok) throw new Error(`the server answers ${answer.status}: ${message(text)}`);
  return text;
}

async function read(answer) {
  let text = "";
  const decoder = new TextDecoder();
  const reader = answer.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return text + decoder.decode();
    text += decoder.decode(value, { stream: true });
    if (text.length > mostAnswer) {
      await reader.cancel();
      throw new Error("the server's answer is too long");
    }
  }
}

function message(text) {
  try {
    return name(JSON.parse(text).error.message, mostMessage);
  } catch {
    return "no reason";
  }
}

function pool(p, label, parts = segments(p)) {
  const words = parts.map(([what, n]) => `${what} ${n}`).join(", ");
  const bar = make("div", { class: "bar", role: "img", "aria-label": `${label}: ${words} of ${p.total} blocks`, title: words });
  for (const [what, n] of parts) {
    if (!n) continue;
    const s = make("span", { class: what });
    s.style.flexGrow = n;
    bar.append(s);
  }
  return bar;
}

const inUse = (p) => show.percent(p.total ? (p.total - p.free) / p.total : null);

const svg = "http://www.w3.org/2000/svg";

function sparkline(track, now, label) {
  const [width, height] = [120, 24];
  const e = document.createElementNS(svg, "svg");
  const most = show.rate(track.most());
  for (const [k, v] of Object.entries({
    viewBox: `0 -2 ${width} ${height + 4}`, class: "spark", role: "img", preserveAspectRatio: "none",
    "aria-label": `${label} over the last minutes, at most ${most}`,
  })) e.setAttribute(k, v);
  for (const points of track.lines(now, width, height)) {
    const line = document.createElementNS(svg, "polyline");
    line.setAttribute("points", points);
    e.append(line);
  }
  return make("div", { title: `at most ${most}` }, e);
}

// table replaces the rows of a table; cells are those of a row, with the titles as labels for narrow screens. There rows are
// no rows for a browser, hence the roles.
function table(id, titles, rows) {
  const t = at(id);
  if (!t.tHead.rows.length) t.tHead.append(make("tr", { role: "row" }, ...titles.map(([title, why]) => make("th", { scope: "col", role: "columnheader", title: why ?? title }, title))));
  t.tBodies[0].replaceChildren(...rows.map((cells) => make("tr", { role: "row" }, ...cells.map((cell, i) => {
    const attributes = { "data-label": titles[i][0], class: typeof cell === "string" && i > 0 ? "figure" : "" };
    return i ? make("td", { role: "cell", ...attributes }, cell) : make("th", { scope: "row", role: "rowheader", ...attributes }, cell);
  }))));
}

const mark = (place) => make("span", { class: `mark of${place >= 0 ? place % colours : "none"}`, "aria-hidden": "true" }, letter(place));

const named = (i, place) => make("span", {}, mark(place), " ", i.id, i.memory_only ? " (memory)" : "");

const poolTitles = [["Instance"], ["KV pool"], ["In use"], ["Blocks"], ["Free", "blocks that are not in use, those in the cache too"],
  ["Cached", "free blocks with KV that requests may begin with"], ["Hosted", "blocks of others in this pool"],
  ["Lent", "blocks of requests here that lie with others"], ["Shared", "uses of blocks here by requests of others, where they lie"], ["Memory", "of the device, in use"]];
const workTitles = [["Instance"], ["Running"], ["Waiting"], ["Tokens/s"], ["Last minutes"], ["Steps/s"], ["Step", "mean time of a step"],
  ["Remote wait", "share of the time of steps in which partials of others were waited for"], ["Moved/s", "blocks sent to others"],
  ["Prefix hits", "share of the tokens of requests that began in the last minute, or else so far, whose KV was there"],
  ["Shared hits", "those used at other instances"], ["Device"], ["Links", "peers by transport"]];
const requestTitles = [["Request"], ["Home"], ["Tokens"], ["Blocks"], ["Where its KV lies, from the first token on"]];

function lies(r, places) {
  const bar = make("div", { class: "bar", "aria-hidden": "true" });
  const words = make("span", { class: "lies" });
  for (const [n, s] of r.spans.entries()) {
    const place = places.get(s.instance) ?? -1;
    const part = make("span", { class: `of${place >= 0 ? place % colours : "none"}` }, letter(place));
    part.style.flexGrow = s.blocks;
    bar.append(part);
    words.append(n ? ", " : "", `${s.instance || "others"} ${show.count(s.blocks)}`);
  }
  return make("div", {}, bar, words);
}

const tracks = { in: new Track(kept), out: new Track(kept), instances: new Map() };

function follow(f, now) {
  tracks.in.add(now, f.cluster.prompt_tokens_per_second);
  tracks.out.add(now, f.cluster.generated_tokens_per_second);
  const here = new Set();
  for (const i of f.instances) {
    here.add(i.id);
    if (!tracks.instances.has(i.id)) tracks.instances.set(i.id, new Track(kept));
    tracks.instances.get(i.id).add(now, i.tokens_per_second);
  }
  for (const id of tracks.instances.keys()) if (!here.has(id)) tracks.instances.delete(id);
}

function draw(f, now) {
  const c = f.cluster;
  const p = c.kv_blocks;
  const card = (what, figure, ...more) => make("div", {}, make("dt", {}, what), make("dd", {}, figure, ...more));
  at("totals").replaceChildren(
    card("Instances", show.count(c.instances), ...(c.instances_missing ? [make("small", { class: "alarm" }, `${show.count(c.instances_missing)} missing`)] : [])),
    card("Requests running", show.count(c.running)),
    card("Requests waiting", show.count(c.waiting)),
    card("Prompt tokens/s", show.rate(c.prompt_tokens_per_second), sparkline(tracks.in, now, "Prompt tokens per second")),
    card("Generated tokens/s", show.rate(c.generated_tokens_per_second), sparkline(tracks.out, now, "Generated tokens per second")),
    card("KV pool in use", inUse(p), make("small", {}, `${show.count(p.total - p.free)} of ${show.count(p.total)} blocks of ${f.block_size} tokens`)),
  );
  const parts = segments(p, f.instances.reduce((sum, i) => sum + sharedBlocks(i.kv_blocks), 0));
  at("pool").replaceChildren(pool(p, "The cluster's pool", parts), make("ul", { class: "legend" }, ...parts
    .map(([what, n]) => make("li", {}, make("span", { class: `swatch ${what}` }), `${what} ${show.count(n)}`)), make("li", {}, `lent ${show.count(p.lent)}`)));
  at("so-far").textContent = `So far: parallel prefills ${show.count(c.parallel_prefills)}, preemptions ${show.count(c.preemptions)}, recoveries ${show.count(c.recoveries)}, rehomed ${show.count(c.rehomed)}. gManager ${f.gmanager || "–"}.`;
  table("pools", poolTitles, f.instances.map((i, n) => {
    const q = i.kv_blocks;
    return [named(i, n), pool(q, i.id), inUse(q), ...[q.total, q.free, q.cached, q.hosted, q.lent, q.shared].map(show.count),
      i.memory_total_bytes ? `${show.bytes(i.memory_used_bytes)} of ${show.bytes(i.memory_total_bytes)}` : "–"];
  }));
  table("work", workTitles, f.instances.map((i, n) => [
    named(i, n), show.count(i.running), show.count(i.waiting), show.rate(i.tokens_per_second),
    sparkline(tracks.instances.get(i.id), now, `Tokens per second of ${i.id}`), show.rate(i.steps_per_second), show.time(i.step_seconds),
    show.percent(i.remote_wait_share), show.rate(i.moved_blocks_per_second), show.percent(i.prefix_hit_share), show.percent(i.shared_hit_share),
    i.device || "–", show.links(i.links),
  ]));
  const places = new Map(f.instances.map((i, n) => [i.id, n]));
  const shown = f.requests.slice(0, mostShown);
  table("requests", requestTitles, shown.map((r) => [r.id, r.home, show.count(r.tokens), show.count(r.blocks), lies(r, places)]));
  at("more").textContent = !c.requests ? "No requests." : c.requests > shown.length ? `The ${shown.length} largest of ${show.count(c.requests)}.` : "";
  at("main").hidden = false;
}

function say(alarm) {
  at("alarm").textContent = alarm;
  at("alarm").hidden = !alarm;
}

const history = new History(every);
let timer = 0;
let awaySince = 0;

async function look() {
  clearTimeout(timer);
  timer = 0;
  try {
    const view = JSON.parse(await ask("cluster"));
    const now = clock();
    const tokens = await ask("metrics").then(readTokens, () => null);
    const f = history.add(now, view, tokens);
    follow(f, now);
    draw(f, now);
    awaySince = 0;
    say("");
    at("key").hidden = true;
    at("status").textContent = `As of ${new Date(now).toLocaleTimeString()}`;
  } catch (e) {
    if (e instanceof Refused) {
      wantKey();
      return; // no look until there is another one
    }
    awaySince ||= clock();
    const below = at("main").hidden ? "" : " Below is what it last said.";
    say(`The server is away since ${new Date(awaySince).toLocaleTimeString()} (${name(e.message, mostMessage)}).${below}`);
  }
  if (!document.hidden) timer = setTimeout(look, every);
}

function wantKey() {
  at("main").hidden = true;
  say(key.value ? "The server does not take this API key." : "The server wants its API key.");
  at("status").textContent = "";
  at("key").hidden = false;
  at("key-value").focus();
}

at("key").addEventListener("submit", (e) => {
  e.preventDefault();
  key.set(at("key-value").value);
  at("key-value").value = "";
  look();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && timer === 0 && at("key").hidden) timer = setTimeout(look, 0);
});
key.load();
look();
