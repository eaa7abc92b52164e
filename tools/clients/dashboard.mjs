// The dashboard's figures are those of `infinite top`: both make the same of the same samples.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { History, Track, letter, name, readTokens, segments, show } from "../../engine/server/dashboard/figures.mjs";

const data = (file) => JSON.parse(readFileSync(new URL(`../../engine/top/testdata/${file}`, import.meta.url)));

// same compares, with numbers to nine digits: sums may be made in another order.
function same(got, want, where) {
  if (typeof want === "number" && typeof got === "number") {
    assert.ok(Math.abs(got - want) <= 1e-9 * Math.abs(want), `${where}: ${got}, want ${want}`);
  } else if (want === null || typeof want !== "object") {
    assert.equal(got, want, where);
  } else {
    assert.deepEqual(Object.keys(got ?? {}).sort(), Object.keys(want).sort(), where);
    for (const key of Object.keys(want)) same(got[key], want[key], `${where}.${key}`);
  }
}

const want = data("figures.json");
let compared = 0;
for (const example of data("samples.json")) {
  const history = new History(1000);
  for (const [i, s] of example.samples.entries()) {
    const figures = history.add(s.at_ms, s.cluster, readTokens(s.metrics));
    const expected = want[example.name][i];
    assert.equal(Date.parse(figures.time), Date.parse(expected.time));
    same({ ...figures, time: 0 }, { ...expected, time: 0 }, `${example.name} ${i}`);
    compared++;
  }
}
assert.ok(compared > 40, `${compared} samples`);

// What is no cluster at all is an empty one, and no error.
for (const view of [null, {}, [], { instances: 3, requests: "x" }, { instances: [null, 5, { id: 7 }], requests: [null, { spans: [null] }] }]) {
  assert.equal(new History(1000).add(0, view, null).cluster.kv_blocks.total, 0);
}
assert.equal(name("a\u0000\u202eb\u{1f600}<"), "a??b?<");
assert.deepEqual([name("x".repeat(1000)).length, name("x".repeat(1000), 5), name(7)], [64, "xxxxx", ""]);
assert.equal(readTokens("infinite_prompt_tokens_total 3\n"), null);

// Segments add up to the pool, and shared uses are no more than own blocks.
for (const pool of [{ total: 100, own: 40, hosted: 20, free: 40, cached: 10, shared: 300 }, { total: 10, own: 0, hosted: 0, free: 10, cached: 0, shared: 0 }]) {
  assert.equal(segments(pool).reduce((sum, [, n]) => sum + n, 0), pool.total);
  assert.ok(segments(pool).every(([, n]) => n >= 0));
}
assert.deepEqual([letter(0), letter(51), letter(52), letter(-1)], ["A", "z", "+", "+"]);

// A track forgets, and its line breaks where nothing was told. Now is at the right, the most at the top.
const track = new Track(100_000);
track.add(0, 1000);
for (const at of [50_000, 55_000, 60_000]) track.add(at, at / 1000);
track.add(95_000, null);
track.add(100_001, 0);
assert.deepEqual(track.points.map(([at]) => at), [50_000, 55_000, 60_000, 100_001]);
assert.deepEqual(track.lines(100_001, 100, 20), ["50.0,3.3 55.0,1.7 60.0,0.0", "100.0,20.0"]);
assert.deepEqual(new Track(1).lines(0, 100, 20), []);

assert.deepEqual([0, 99_999, 123_456, 2 ** 52].map(show.count), ["0", "99999", "123k", "4.5P"]);
assert.deepEqual([null, 0, 1.25, 38.4, 2e6].map(show.rate), ["–", "0", "1.3", "38", "2.0M"]);
assert.deepEqual([null, 0.0000125, 0.0225, 4.5].map(show.time), ["–", "13 µs", "23 ms", "4.5 s"]);
assert.deepEqual([0, 3 * 2 ** 30, 141 * 2 ** 30].map(show.bytes), ["0 B", "3.0 GiB", "141 GiB"]);
assert.deepEqual([null, 0.255].map(show.percent), ["–", "26 %"]);
assert.equal(show.links({}), "–");
console.log("clients: the dashboard's figures passed");
