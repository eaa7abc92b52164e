// What the dashboard shows, made of what the server says: the same figures as engine/top makes for `infinite top`, held to
// the same examples (engine/top/testdata, by tools/clients/dashboard.mjs). Nothing here knows a page, a clock or a server.

const mostInstances = 1024;
const mostRequests = 100;
const mostSpans = 64;
const mostName = 64;
const mostLinks = 8;
const mostNumber = 2 ** 52;

const rateSpan = 900; // milliseconds, as are all times here
const keptSpan = 60_000;
const pointEvery = 1000;
const mostGap = 10_000;

const number = (x) => (typeof x === "number" && x > 0 ? Math.min(x, mostNumber) : 0);
const count = (x) => Math.trunc(number(x));
const list = (x) => (Array.isArray(x) ? x : []);

// name is text of a server as printable ASCII, so long that it can be drawn.
export function name(text, most = mostName) {
  let clean = "";
  for (const c of typeof text === "string" ? text : "") {
    clean += c < " " || c > "~" ? "?" : c;
    if (clean.length === most) break;
  }
  return clean;
}

// per is a / b, null where b is nothing.
const per = (a, b) => (b > 0 ? a / b : null);

// readTokens finds the API process's counters in the text of /metrics; null if one is missing.
export function readTokens(metrics) {
  const found = {};
  for (const line of metrics.split("\n")) {
    const [, key, value] = /^infinite_(prompt|generation)_tokens_total (\S+)$/.exec(line.trim()) ?? [];
    if (!key || key in found) continue;
    const x = { "+Inf": Infinity, NaN: 0 }[value] ?? Number(value);
    if (!Number.isNaN(x)) found[key] = number(x);
  }
  return "prompt" in found && "generation" in found ? [found.prompt, found.generation] : null;
}

// Series are the points of one source of counters since it started: [time, ...counters].
class Series {
  points = [];

  // add notes counters. If one of them is less than it was, all began at zero after the point before.
  add(point, gap) {
    const points = this.points;
    const last = points.at(-1);
    if (last) {
      if (point[0] <= last[0]) return;
      if (point[0] - last[0] > gap) points.length = 0;
      else if (point.some((x, i) => x < last[i])) this.points = [last.map((x, i) => (i ? 0 : x))];
    }
    this.points.push(point);
    if (this.points.length >= 3 && point[0] - this.points.at(-3)[0] < pointEvery) this.points.splice(-2, 1);
    while (this.points.length > 2 && point[0] - this.points[1][0] >= keptSpan) this.points.shift();
  }

  // since is what the counters grew by over at least span, or as long as they are known, behind the seconds that is.
  since(span) {
    const last = this.points.at(-1);
    const base = this.points.findLast((p) => last[0] - p[0] >= span) ?? this.points[0];
    const grown = last.map((x, i) => x - base[i]);
    grown[0] /= 1000;
    return grown;
  }
}

function poolOf(i) {
  const p = { total: count(i.kv_blocks_total), lent: count(i.kv_blocks_lent), shared: count(i.kv_blocks_shared) };
  p.free = Math.min(count(i.kv_blocks_free), p.total);
  p.cached = Math.min(count(i.kv_blocks_cached), p.free);
  p.hosted = Math.min(count(i.kv_blocks_hosted), p.total - p.free);
  p.own = p.total - p.free - p.hosted;
  return p;
}

const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);

// compareNames puts the shorter first where both begin alike up to a number: i2 before i10.
function compareNames(a, b) {
  const letters = (s) => s.replace(/[0-9]+$/, "");
  return (letters(a) === letters(b) && a.length - b.length) || compare(a, b);
}

function instancesOf(view) {
  const seen = new Map();
  for (const i of list(view.instances).slice(0, mostInstances)) {
    const id = name(i?.id);
    if (!seen.has(id)) seen.set(id, { ...i, id });
  }
  return [...seen.values()].sort((a, b) => compareNames(a.id, b.id));
}

function requestOf(r) {
  const q = { id: name(r?.id), home: name(r?.home), tokens: count(r?.tokens), blocks: 0, spans: [] };
  for (const s of list(r?.spans)) {
    const span = { instance: name(s?.instance), blocks: Math.min(count(s?.blocks), mostNumber - q.blocks) };
    if (!span.blocks) continue;
    q.blocks += span.blocks;
    const last = q.spans.at(-1);
    if (last?.instance === span.instance) last.blocks += span.blocks;
    else if (q.spans.length < mostSpans) q.spans.push(span);
    else q.spans[mostSpans - 1] = { instance: "", blocks: last.blocks + span.blocks };
  }
  return q;
}

function requestsOf(view) {
  const size = (r) => (typeof r?.tokens === "number" ? r.tokens : 0);
  const all = list(view.requests).toSorted((a, b) => size(b) - size(a) || compare(String(a?.id), String(b?.id)));
  return all.slice(0, mostRequests).map(requestOf);
}

function linksOf(links) {
  const out = {};
  for (const transport of Object.keys(links ?? {}).sort().slice(0, mostLinks)) out[name(transport)] = count(links[transport]);
  return out;
}

// History makes figures of samples that come one after the other.
export class History {
  #gap;
  #instances = new Map();
  #api = new Series();

  // interval is how often samples come, about.
  constructor(interval) {
    this.#gap = Math.max(mostGap, 3 * interval);
  }

  // add takes what /cluster and readTokens said at a time; tokens is null where /metrics did not tell.
  add(at, view, tokens) {
    const pool = { total: 0, own: 0, hosted: 0, free: 0, cached: 0, lent: 0, shared: 0 };
    const cluster = { instances: 0, instances_missing: count(view?.instances_missing), requests: list(view?.requests).length, running: 0, waiting: 0, ...this.#tokens(at, tokens), kv_blocks: pool };
    Object.assign(cluster, { preemptions: 0, recoveries: 0, parallel_prefills: 0, rehomed: count(view?.rehomed) });
    const instances = [];
    for (const i of instancesOf(view ?? {})) {
      const shown = this.#instance(at, i);
      instances.push(shown);
      for (const key of Object.keys(pool)) pool[key] += shown.kv_blocks[key];
      cluster.instances++;
      cluster.running += shown.running;
      cluster.waiting += shown.waiting;
      cluster.preemptions += count(i.preemptions);
      cluster.recoveries += count(i.recoveries);
      cluster.parallel_prefills += count(i.parallel_prefills);
    }
    const here = new Set(instances.map((i) => i.id));
    for (const id of this.#instances.keys()) if (!here.has(id)) this.#instances.delete(id);
    return {
      time: new Date(at).toISOString(), gmanager: name(view?.gmanager), block_size: count(view?.block_size), cluster, instances,
      requests: requestsOf(view ?? {}),
    };
  }

  #tokens(at, tokens) {
    let [seconds, prompt, generated] = [0, 0, 0];
    if (tokens) {
      this.#api.add([at, ...tokens], this.#gap);
      [seconds, prompt, generated] = this.#api.since(rateSpan);
    }
    return { prompt_tokens_per_second: per(prompt, seconds), generated_tokens_per_second: per(generated, seconds) };
  }

  #instance(at, i) {
    const point = [
      i.steps, i.step_seconds, i.remote_wait_seconds, i.kv_blocks_moved, i.prefix_queries, i.prefix_hits, i.shared_hits,
      i.preemptions, i.recoveries, // no rate is made of these, but they tell an instance that started anew
    ].map(number);
    if (!this.#instances.has(i.id)) this.#instances.set(i.id, new Series());
    const series = this.#instances.get(i.id);
    series.add([at, ...point], this.#gap);
    const [seconds, steps, stepSeconds, wait, moved] = series.since(rateSpan);
    let [queries, hits, shared] = series.since(keptSpan).slice(5);
    if (!queries) [queries, hits, shared] = point.slice(4); // none began: those since the instance did
    return {
      id: i.id, device: name(i.device), memory_only: i.memory_only === true, kv_blocks: poolOf(i),
      running: count(i.running), waiting: count(i.waiting), tokens_per_second: number(i.tokens_per_second),
      steps_per_second: per(steps, seconds), step_seconds: per(stepSeconds, steps),
      remote_wait_share: per(Math.min(wait, stepSeconds), stepSeconds), moved_blocks_per_second: per(moved, seconds),
      prefix_hit_share: per(Math.min(hits, queries), queries), shared_hit_share: per(Math.min(shared, queries), queries),
      links: linksOf(i.links), memory_total_bytes: count(i.memory_total_bytes), memory_used_bytes: count(i.memory_used_bytes),
    };
  }
}

// sharedBlocks is how many of the own blocks are used by others, at most: one may be used several times.
export const sharedBlocks = (pool) => Math.min(pool.shared, pool.own);

// segments are a pool's parts, which add up to it; the cluster's shared blocks are those of its instances.
export function segments(pool, shared = sharedBlocks(pool)) {
  return [["own", pool.own - shared], ["shared", shared], ["hosted", pool.hosted], ["cached", pool.cached], ["free", pool.free - pool.cached]];
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

// letter stands for an instance by its place, "+" for those beyond the letters and those that are no more there.
export const letter = (place) => letters[place] ?? "+";

// Track keeps a figure's values for some time.
export class Track {
  #span;
  points = [];

  constructor(span) {
    this.#span = span;
  }

  add(at, value) {
    if (value !== null) this.points.push([at, value]);
    while (this.points.length && at - this.points[0][0] > this.#span) this.points.shift();
  }

  most() {
    return this.points.reduce((most, p) => Math.max(most, p[1]), 0);
  }

  // lines are the values as points of SVG lines in a box, whose right side is now. A line breaks where nothing was told.
  lines(now, width, height) {
    const most = this.most() || 1;
    const lines = [];
    let before = -Infinity;
    for (const [at, value] of this.points) {
      if (at - before > mostGap) lines.push([]);
      before = at;
      const x = width * (1 - (now - at) / this.#span);
      lines.at(-1).push(`${x.toFixed(1)},${(height * (1 - value / most)).toFixed(1)}`);
    }
    return lines.map((l) => l.join(" "));
  }
}

// scaled is x over the largest power of base that it is above, in three digits, with the power's letter.
function scaled(x, base, powers) {
  let i = 0;
  for (; x >= base && i < powers.length - 1; i++) x /= base;
  return x.toFixed(x < 9.95 && i > 0 ? 1 : 0) + powers[i];
}

const thousands = ["", "k", "M", "G", "T", "P"];
const digits = (x) => x.toFixed(x > 0 && x < 9.95 ? 1 : 0);

// show are figures as text; null is not known.
export const show = {
  count: (n) => (n < 100_000 ? String(n) : scaled(n, 1000, thousands)),
  rate: (x) => (x === null ? "–" : x < 100_000 ? digits(x) : scaled(x, 1000, thousands)),
  percent: (x) => (x === null ? "–" : `${(100 * x).toFixed(0)} %`),
  bytes: (n) => scaled(n, 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB"]),
  time: (x) => {
    if (x === null) return "–";
    if (x >= 1) return `${digits(x)} s`;
    return x >= 1e-3 ? `${digits(x * 1e3)} ms` : `${digits(x * 1e6)} µs`;
  },
  links: (links) => Object.entries(links).map(([transport, n]) => `${transport} ${n}`).join(", ") || "–",
};
