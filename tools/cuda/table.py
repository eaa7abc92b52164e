"""Tables from the JSON lines of the GPU benches: python3 tools/cuda/table.py LINES.json >TABLE.md"""

import json
import shutil
import subprocess
import sys

lines, unread = [], 0
for line in open(sys.argv[1], errors="replace"):
    if line.startswith("{"):
        try:
            lines.append(json.loads(line))
        except ValueError:  # of a bench that was killed
            unread += 1


def of(bench, otherwise=False):
    """Lines of a bench, with everything as usual, or those for which something was set otherwise."""
    return [d for d in lines if d["bench"] == bench and ("set" in d) == otherwise]


def table(title, head, rows):
    if rows:
        print(f"\n{title}\n\n| {' | '.join(head)} |\n|{' --- |' * len(head)}")
        for row in rows:
            print("| " + " | ".join(str(c) for c in row) + " |")


def variants(order):
    """The lines of each case of decode attention, by variant."""
    cases = {}
    for d in of("decode"):
        if d["what"] == "variant" and d.get("order", "scattered") == order and "," not in d["case"]:
            cases.setdefault(d["case"], {}).setdefault(d["variant"], d)
    return cases


def taken():
    """The line of each case of decode attention that is of what the launcher takes; the first of older runs."""
    return {case: next((d for d in by.values() if d.get("taken")), next(iter(by.values())))
            for case, by in variants("scattered").items()}


def context(tokens):
    return f"{tokens // 1024}K"


copy = max([d["copy_gbs"] for d in of("memory")] or [0])
print(f"Copy bandwidth (read + written): {copy:.0f} GB/s" if copy else "Copy bandwidth: not measured (part decode)")
read = max([d["read_gbs"] for d in of("memory_read")] or [0])
if read:
    print(f"\nBandwidth of a kernel that only reads: {read:.0f} GB/s")


def fastest(bench, beside):
    """Of each batch and context, the line of what took the least time; of the runs that have lines of `beside`, if any."""
    best, runs = {}, {d.get("run") for d in of(beside)}
    for d in of(bench):
        if "ms" in d:
            key = (d["batch"], d["context"])
            best[key] = min(best.get(key, d), d, key=lambda d: (d.get("run") not in runs, d["ms"]))
    return best


def torch_name(d):
    return d["backend"].split("_")[0].lower()


def flashinfer_name(d):
    return f"{d['backend'].replace('_', ' ')}, {d.get('layout') or d['kv']}"


def against(peers, key, us, name):
    """How many times as fast as the best peer, and which that is."""
    return f"{peers[key]['ms'] * 1e3 / us:.2f} ({name(peers[key])})" if key in peers else ""


def decode():
    torch, flashinfer = fastest("torch_decode", "decode"), fastest("flashinfer_decode", "decode")
    rows = []
    eight = []
    first = taken()
    early = {d["case"]: d for d in of("decode") if d["what"] == "early" and d.get("taken")}
    for case, d in first.items():
        batch, _, length = case.partition(" x ")
        if length.endswith(" e4m3"):
            wide = first.get(case[:-5])
            eight.append([case[:-5], f"{d['us']:.1f}", f"{100 * d['share_of_copy']:.0f} %",
                          f"{wide['us'] / d['us']:.2f}" if wide else ""])
        if not length.endswith("K"):
            continue
        key = (int(batch), int(length[:-1]) * 1024)
        rows.append([case, f"{d['us']:.1f}"] + ([f"{early[case]['us']:.1f}" if case in early else ""] if early else [])
                    + [f"{100 * d['share_of_copy']:.0f} %", against(torch, key, d["us"], torch_name)]
                    + ([against(flashinfer, key, d["us"], flashinfer_name)] if flashinfer else []))
    table("Decode attention of one layer, Llama-3-8B's heads, bf16, paged",
          ["batch x context", "us"] + (["beginning early, us"] if early else []) + ["of copy", "x PyTorch's best backend"]
          + (["x FlashInfer"] if flashinfer else []), rows)
    table("The same with KV in fp8 (e4m3)", ["batch x context", "us", "of copy", "x bf16"], eight)
    for d in of("flashinfer") + of("flashinfer_check") + of("flashinfer_decode") + of("flashinfer_prefill"):
        if "error" in d:
            print("\nFlashInfer: " + ", ".join(f"{k} {v}" for k, v in d.items() if k != "bench"))


def orders():
    scattered = variants("scattered")
    rows = []
    for case, ordered in variants("ordered").items():
        for variant, d in ordered.items():
            s = scattered.get(case, {}).get(variant)
            if s is None:
                continue
            rows.append([case, variant, f"{s['us']:.1f}", f"{100 * s['share_of_copy']:.0f} %",
                         f"{100 * s['gbs'] / read:.0f} %" if read else "", f"{d['us']:.1f}", f"{s['us'] / d['us']:.3f}"])
    table("Decode attention by each of its kernels, blocks scattered over the pool and in order; the first is what is"
          " launched", ["batch x context", "kernel", "us", "of copy", "of reading", "us in order", "scattered / in order"], rows)


def layouts():
    """Decode attention by the layout of blocks: the kernel that is launched, and the fastest."""
    cases = {}
    for d in of("decode"):
        if d["what"] == "variant" and "," in d["case"]:
            cases.setdefault(tuple(d["case"].split(", blocks of ", 1)), []).append(d)
    rows = []
    for (case, layout), ds in cases.items():
        best = min(ds, key=lambda d: d["us"])
        launched = next((d for d in ds if d["taken"]), best)
        rows.append([case, layout, f"{launched['us']:.1f}", f"{launched['gbs']:.0f}", best["variant"], f"{best['us']:.1f}",
                     f"{best['gbs']:.0f}"])
    table("Decode attention by the layout of blocks, which lie anywhere, a block's layers together, unless it says otherwise",
          ["batch x context", "tokens of a block", "us", "GB/s", "fastest kernel", "us", "GB/s"], rows)


def prefill():
    torch, flashinfer = fastest("torch_prefill", "prefill"), fastest("flashinfer_prefill", "prefill")
    rows = []
    for d in of("prefill"):
        if d["cut"] == "plan":
            key = (1, d["rows"]) if d["before"] == 0 else None
            rows.append([d["variant"], d["rows"], d["before"], f"{d['us']:.0f}", f"{d['tflops']:.0f}",
                         against(torch, key, d["us"], torch_name)]
                        + ([against(flashinfer, key, d["us"], flashinfer_name)] if flashinfer else []))
    table("Prefill attention, causal", ["kernel", "rows", "keys before", "us", "TFLOP/s", "x PyTorch's best"]
          + (["x FlashInfer"] if flashinfer else []), rows)


def steps():
    rows = []
    for d in of("step_decode"):
        floor = (d["weight_bytes"] + d["kv_bytes"]) / copy * 1e-6 if copy else 0
        rows.append([d["batch"], context(d["context"]), f"{d['ms']:.2f}"]
                    + ([f"{floor:.2f}", f"{100 * floor / d['ms']:.0f} %"] if copy else ["", ""]))
    table("Whole decode step, Llama-3-8B's shape, random weights, bf16",
          ["batch", "context", "ms", "floor: bytes over copy bandwidth", "of floor"], rows)
    rows = [[d["tokens"], d["context"], f"{d['ms']:.1f}", f"{d['tflops']:.0f}"] for d in of("step_prefill")]
    table("Whole prefill step, same model", ["tokens", "keys before", "ms", "TFLOP/s"], rows)
    rows = []
    for d in of("step_pair"):
        local, spread = d["local_ms"], d["spread_ms"]
        fetched = d.get("move_ms", 0) + local
        rows.append([d["shape"], d.get("kv", "bf16"), d["batch"], context(d["context"]),
                     f"{local:.2f}" if local else "does not fit", f"{spread:.2f}", f"{spread / local:.2f}" if local else "",
                     f"{d['move_ms']:.1f}" if "move_ms" in d else "",
                     f"{fetched / spread:.1f}" if local and "move_ms" in d else ""])
    table("Decode step of one instance, half of its KV with another on the same GPU, over shm. Fetching that half"
          " for a step: the time to move it, plus a local step, over the step that sends queries",
          ["shape", "KV", "batch", "context", "local ms", "spread ms", "spread / local", "to move the half, ms",
           "fetching / sending"], rows)
    merges = [d for d in of("rows") if d["name"] == "merge of a partial"]
    whole = {case: d["us"] for case, d in taken().items()}
    rows = [[case, f"{d['us']:.1f}", f"{whole[case]:.1f}", f"{100 * d['us'] / whole[case]:.2f} %"]
            for d in merges if d["rows"] == 1
            for case in whole if case.startswith("1 x ") and case.endswith("K")]
    table("Merge of another instance's partial, which lies in pinned host memory", ["batch x context", "us",
          "decode attention, us", "share"], rows)


def switches():
    """Decode steps and pairs, for which something was set otherwise, beside what they are with all as usual."""
    rows = []
    for bench, ms in (("step_decode", "ms"), ("step_pair", "spread_ms")):
        def case(d):
            return d["shape"], d.get("kv", "bf16"), d["batch"], d["context"]

        usual = {case(d): d[ms] for d in of(bench) + [d for d in of(bench, True) if d["set"] == "as it is"]}
        for d in of(bench, True):
            base = usual.get(case(d))
            rows.append([d["set"], bench.removeprefix("step_"), d["batch"], context(d["context"]), f"{d[ms]:.3f}",
                         f"{base:.3f}" if base else "", f"{d[ms] / base:.3f}" if base else ""])
    table("Decode steps, and such with half of the KV at a second instance, with something set otherwise",
          ["set", "step", "batch", "context", "ms", "ms as it is", "ratio"], rows)


def halves():
    """Prefill steps of a pair, by what was set; a step of half_rows twice or more is computed in halves."""
    rows = [[d.get("set", ""), d["shape"], d.get("kv", "bf16"), d["tokens"], context(d["context"]),
             "yes" if 0 < 2 * d["half_rows"] <= d["tokens"] else "no", f"{d['local_ms']:.1f}" if d["local_ms"] else "does not fit",
             f"{d['spread_ms']:.1f}", f"{d['spread_ms'] / d['local_ms']:.2f}" if d["local_ms"] else ""]
            for d in of("step_pair_prefill") + of("step_pair_prefill", True)]
    table("Prefill step of one instance, half of the KV before it with another on the same GPU, over shm",
          ["set", "shape", "KV", "tokens", "keys before", "in halves", "local ms", "spread ms", "spread / local"], rows)


def products():
    """Those of a shape and a number of rows side by side, in the order of the first run."""
    shapes = list(dict.fromkeys(d["shape"] for d in of("product")))

    def place(d):
        return shapes.index(d["shape"]), d["rows"]

    rows = [[d["shape"], d["rows"], d["by"], f"{d['us']:.1f}", f"{100 * d['gb_per_s'] / copy:.0f} %" if copy else ""]
            for d in sorted(of("product"), key=place)]
    table("Products of a decode step", ["product", "rows", "by", "us", "weights' bytes, of copy"], rows)


def demangled(names):
    """As in the source, without parameters; as they are where there is no c++filt."""
    text = "\n".join(names)
    if names and shutil.which("c++filt"):
        text = subprocess.run(["c++filt", "-p"], input=text, capture_output=True, text=True, check=True).stdout.rstrip("\n")
    return [name.removeprefix("void ").replace("|", "\\|")[:110] for name in text.split("\n")]


def gaps():
    off = {d["batch"]: d["off_ms"] for d in of("gaps_off")}
    rows = []
    for d in of("gaps"):
        shown = [d["batch"], context(d["context"]), f"{d['ms']:.2f}"]
        if "error" in d:
            print(f"\nA decode step of {d['batch']} was not traced ({d['ms']:.2f} ms): {d['error']}")
            continue
        rows.append(shown + [f"{off[d['batch']]:.2f}" if d["batch"] in off else "", f"{d['traced_ms']:.2f}", d["kernels"],
                             d["copies"], f"{d['span_us']:.0f}", f"{d['busy_us']:.0f}", f"{d['gaps_us']:.0f}",
                             f"{100 * d['gap_share']:.1f} %", f"{100 - d['busy_us'] / d['ms'] / 10:.1f} %", d["n_gaps"], f"{d['longest_gap_us']:.1f}",
                             d["outside"] + d["untimed"] + d["lost"]])
    table("Launch gaps of a decode step, traced by CUPTI: its time without a trace, also of the traced recordings after it,"
          " and with one; from the first kernel's begin to the last one's end, and of that what no kernel or copy ran in;"
          " what the busy time leaves of the untraced step, its host's part included",
          ["batch", "context", "ms", "after the trace", "traced", "kernels", "copies", "span, us", "busy, us", "gaps, us",
           "of span", "left of ms", "gaps", "longest, us", "records in doubt"], rows)
    kernels = of("gaps_kernel")
    rows = [[d["batch"], context(d["context"]), name, f"{d['calls']:g}", f"{d['us']:.1f}", f"{d['own_us']:.1f}",
             f"{d['gap_us']:.1f}"]
            for d, name in zip(kernels, demangled([d["name"] for d in kernels]))]
    table("Where the traced step's time goes: a kernel's time, what of it no earlier one ran in, and the gaps before it,"
          " per step", ["batch", "context", "kernel", "times", "us", "own, us", "gaps before, us"], rows)


decode()
orders()
layouts()
prefill()
steps()
switches()
halves()
gaps()
products()
if unread:
    print(f"\nLines left out, which are no JSON, as a bench that is killed leaves them: {unread}")
