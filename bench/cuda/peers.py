"""The same work by PyTorch, on the same GPU in the same run: copy bandwidth, matrix products, and
scaled_dot_product_attention by each of its backends, for decode and for prefill at Llama-3-8B's shape. The part
flashinfer, which is not among the default ones, is FlashInfer's attention over a paged KV cache (tools/cuda/peers.sh).
Prints JSON lines; errors of a backend are a line too, so that a missing figure has its reason."""

import itertools
import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 32, 8, 128
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
DECODE = [(b, c) for b in (1, 8, 64) for c in (1024, 8192, 32768, 131072, 1048576)]
PREFILL = [1024, 4096, 16384, 32768]
DEVICE = "cuda"
# Of FlashInfer: tokens a page, and by how much an output in bf16 may differ from PyTorch's in f32.
PAGE, MOST_DIFFERENCE = 16, 0.02


def emit(**fields):
    print(json.dumps(fields), flush=True)


def median_ms(run, repeat=9, inner=1):
    """Median time of run(i), of which `inner` are captured into one graph, so that the time to launch does not
    count; i tells them apart, so that their inputs are not the ones in the cache."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())  # of the inputs
    with torch.cuda.stream(side):
        for i in range(3):
            run(i)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(inner):
            run(i)
    graph.replay()
    times = []
    for _ in range(repeat):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / inner)
    return sorted(times)[len(times) // 2]


def copy():
    a = torch.empty(1 << 30, dtype=torch.int32, device="cuda").random_()
    b = torch.empty_like(a)
    ms = median_ms(lambda i: b.copy_(a))
    emit(bench="torch_copy", gb_per_s=round(2 * a.nbytes / ms * 1e-6, 1))
    del a, b
    read = torch.empty(1 << 31, dtype=torch.bfloat16, device="cuda").normal_()
    ms = median_ms(lambda i: read.view(torch.int32).amax())
    emit(bench="torch_read", gb_per_s=round(read.nbytes / ms * 1e-6, 1))


def matmul():
    n = 8192
    a = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
    b = torch.randn(n, n, dtype=torch.bfloat16, device="cuda")
    ms = median_ms(lambda i: a @ b)
    emit(bench="torch_matmul", n=n, tflops=round(2 * n**3 / ms * 1e-9, 1))


def sets_of(kv_bytes, room):
    """How many sets of KV the runs of a graph take in turn: more than 256 MiB, which no GPU's cache holds, and some
    more of those that are not much larger, as a cache need not forget first what was read first."""
    wanted = max((256 << 20) // kv_bytes + 1, min(8, (4 << 30) // kv_bytes + 1))
    return max(1, min(wanted, int(room // kv_bytes)))


def decode_ms(run, sets, kv_bytes):
    """A graph is over all sets, and long enough that its own launch does not show."""
    repeat, inner = (9, 16) if kv_bytes < 1 << 30 else (5, 2)
    return median_ms(run, repeat, max(inner, sets))


def speed(what, kv_bytes, tokens, ms):
    """The fields of a time: bytes of KV read per second in decode, operations per second in causal prefill."""
    if what == "decode":
        return dict(ms=round(ms, 5), gb_per_s=round(kv_bytes / ms * 1e-6, 1))
    return dict(ms=round(ms, 5), tflops=round(4 * HEADS * DIM * tokens * (tokens + 1) / 2 / ms * 1e-9, 1))


def random_bf16(*shape):
    return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE)


def reason(error):
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def attention(what, batch, context, q_len, causal):
    kv_bytes = 2 * batch * KV_HEADS * context * DIM * 2
    room = torch.cuda.mem_get_info()[0] * 0.8
    if kv_bytes > room:
        return
    sets = sets_of(kv_bytes, room) if what == "decode" else 1
    data = [
        (
            random_bf16(batch, HEADS, q_len, DIM),
            random_bf16(batch, KV_HEADS, context, DIM),
            random_bf16(batch, KV_HEADS, context, DIM),
        )
        for _ in range(sets)
    ]
    for backend in BACKENDS:
        fields = dict(bench=f"torch_{what}", backend=backend.name, batch=batch, context=context, sets=sets)

        def run(i):
            q, k, v = data[i % sets]
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

        try:
            with sdpa_kernel(backend):
                ms = decode_ms(run, sets, kv_bytes) if what == "decode" else median_ms(run, 9, 16)
        except RuntimeError as error:
            emit(**fields, error=reason(error))
            continue
        emit(**fields, **speed(what, kv_bytes, q_len, ms))


class Paged:
    """A pool of pages that takes most of the GPU's memory, as a server's does, laid out as in bench_decode: all layers
    of a page together, and a request's pages anywhere."""

    def __init__(self):
        free = torch.cuda.mem_get_info()[0] - (6 << 30)
        self.page_bytes = 2 * PAGE * KV_HEADS * DIM * 2
        self.pages = torch.empty(free // self.page_bytes, self.page_bytes // 2, dtype=torch.bfloat16, device=DEVICE)
        self.pages.normal_()
        self.bytes = self.pages.nbytes
        # Where FlashInfer keeps partial results.
        self.workspace = torch.zeros(1 << 30, dtype=torch.uint8, device=DEVICE)

    def caches(self, layers, layout):
        """The KV cache of each layer."""
        each = len(self.pages) // layers
        inner = (PAGE, KV_HEADS) if layout == "NHD" else (KV_HEADS, PAGE)
        pool = self.pages[: each * layers].view(each, layers, 2, *inner, DIM)
        return [pool[:, i] for i in range(layers)]

    @staticmethod
    def tables(lengths, pages):
        """FlashInfer's form: where each request's pages begin, the pages, and the tokens in each last one."""
        counts = [-(-n // PAGE) for n in lengths]
        begins = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32)
        scattered = torch.randperm(pages, device=DEVICE)[: sum(counts)].to(torch.int32)
        last = torch.tensor([(n - 1) % PAGE + 1 for n in lengths], dtype=torch.int32)
        return begins, scattered, last

    @staticmethod
    def gathered(cache, layout, pages, tokens):
        """K and V of a request: [1, KV_HEADS, tokens, DIM], in f32."""
        mine = cache[pages.long()].float()
        if layout == "NHD":
            mine = mine.transpose(2, 3)
        return [mine[:, i].transpose(0, 1).reshape(1, KV_HEADS, -1, DIM)[:, :, :tokens] for i in (0, 1)]


# What FlashInfer offers for decode: its kernel for CUDA cores or the one for tensor cores, the two layouts of a page,
# and a plan as for graphs that are replayed with other lengths (a grid for the most work) or for these lengths alone.
DECODE_WAYS = list(itertools.product(("cuda_cores", "tensor_cores"), ("NHD", "HND"), (False, True)))
PREFILL_WAYS = list(itertools.product(("fa3", "fa2"), ("paged", "ragged")))


def decode_fields(way):
    return dict(zip(("backend", "layout", "for_any_length"), way))


def prefill_fields(way):
    return dict(zip(("backend", "kv"), way))


def planned_decode(fi, paged, way, tables):
    backend, layout, any_length = way
    begins, pages, last = tables
    buffers = {}
    if any_length:
        names = ("paged_kv_indptr_buffer", "paged_kv_indices_buffer", "paged_kv_last_page_len_buffer")
        buffers = dict(zip(names, (t.to(DEVICE, copy=True) for t in tables)))
    wrapper = fi.BatchDecodeWithPagedKVCacheWrapper(
        paged.workspace, layout, use_cuda_graph=any_length, use_tensor_cores=backend == "tensor_cores", **buffers
    )
    bf16 = torch.bfloat16
    wrapper.plan(begins, pages, last, HEADS, KV_HEADS, DIM, PAGE, q_data_type=bf16, kv_data_type=bf16)
    return wrapper


def difference(got, want):
    """The largest one, as a share of what is larger than 1; not a number if an output is none."""
    return ((got.float() - want).abs() / want.abs().clamp(min=1)).max()


def check_decode(fi, paged, way):
    """Two requests of odd lengths."""
    lengths, layout = [1000, 37], way[1]
    cache = paged.caches(3, layout)[1]
    begins, pages, _ = tables = paged.tables(lengths, len(cache))
    q = random_bf16(len(lengths), HEADS, DIM)
    got = planned_decode(fi, paged, way, tables).run(q, cache)
    found = []
    for i, tokens in enumerate(lengths):
        k, v = paged.gathered(cache, layout, pages[begins[i] : begins[i + 1]], tokens)
        want = F.scaled_dot_product_attention(q[i].float()[None, :, None], k, v, enable_gqa=True)
        found.append(difference(got[i], want[0, :, 0]))
    return torch.stack(found).max().item()


def planned_prefill(fi, paged, way, tokens):
    """The causal prefill of one prompt as a call, its q, and a call that returns its k and v in PyTorch's form."""
    backend, how = way
    q = random_bf16(tokens, HEADS, DIM)
    ends = torch.tensor([0, tokens], dtype=torch.int32)
    common = dict(causal=True, q_data_type=torch.bfloat16, kv_data_type=torch.bfloat16)
    if how == "ragged":
        k, v = random_bf16(tokens, KV_HEADS, DIM), random_bf16(tokens, KV_HEADS, DIM)
        wrapper = fi.BatchPrefillWithRaggedKVCacheWrapper(paged.workspace, "NHD", backend=backend)
        wrapper.plan(ends, ends, HEADS, KV_HEADS, DIM, **common)
        return lambda: wrapper.run(q, k, v), q, lambda: [t.float().transpose(0, 1)[None] for t in (k, v)]
    (cache,) = paged.caches(1, "NHD")
    tables = paged.tables([tokens], len(cache))
    wrapper = fi.BatchPrefillWithPagedKVCacheWrapper(paged.workspace, "NHD", backend=backend)
    wrapper.plan(ends, *tables, HEADS, KV_HEADS, DIM, PAGE, **common)
    return lambda: wrapper.run(q, cache), q, lambda: paged.gathered(cache, "NHD", tables[1], tokens)


def check_prefill(fi, paged, way):
    run, q, kv = planned_prefill(fi, paged, way, 613)
    want = F.scaled_dot_product_attention(q.float().transpose(0, 1)[None], *kv(), is_causal=True, enable_gqa=True)
    return difference(run(), want[0].transpose(0, 1)).item()


def right(check, fi, paged, way, **fields):
    """Whether a way may be timed: only what agrees with PyTorch is."""
    fields = dict(bench="flashinfer_check", **fields)
    try:
        worst = check(fi, paged, way)
    except Exception as error:
        emit(**fields, error=reason(error))
        return False
    agrees = worst <= MOST_DIFFERENCE
    emit(**fields, largest_difference=round(worst, 5), **({} if agrees else {"error": "differs from PyTorch"}))
    return agrees


def flashinfer_decode(fi, paged, ways, batch, context):
    """All sets have one table, as a model's layers do; plan() is not timed."""
    kv_bytes = batch * context // PAGE * paged.page_bytes
    if kv_bytes > paged.bytes:
        return
    sets = sets_of(kv_bytes, paged.bytes)
    q = random_bf16(batch, HEADS, DIM)
    out = torch.empty_like(q)
    for way in ways:
        fields = dict(bench="flashinfer_decode", **decode_fields(way), batch=batch, context=context, sets=sets)
        try:
            caches = paged.caches(sets, way[1])
            wrapper = planned_decode(fi, paged, way, paged.tables([context] * batch, len(caches[0])))
            ms = decode_ms(lambda i: wrapper.run(q, caches[i % sets], out=out), sets, kv_bytes)
        except Exception as error:
            emit(**fields, error=reason(error))
            continue
        emit(**fields, **speed("decode", kv_bytes, 1, ms))


def flashinfer_prefill(fi, paged, ways, tokens):
    for way in ways:
        fields = dict(bench="flashinfer_prefill", **prefill_fields(way), batch=1, context=tokens)
        try:
            run, _, _ = planned_prefill(fi, paged, way, tokens)
            ms = median_ms(lambda i: run(), 9, 16)
        except Exception as error:
            emit(**fields, error=reason(error))
            continue
        emit(**fields, **speed("prefill", 0, tokens, ms))


def flashinfer():
    try:
        import flashinfer as fi
    except Exception as error:
        emit(bench="flashinfer", error=reason(error))
        return
    emit(bench="flashinfer", version=fi.__version__)
    paged = Paged()
    ways = [w for w in DECODE_WAYS if right(check_decode, fi, paged, w, what="decode", **decode_fields(w))]
    for batch, context in DECODE:
        flashinfer_decode(fi, paged, ways, batch, context)
    ways = [w for w in PREFILL_WAYS if right(check_prefill, fi, paged, w, what="prefill", **prefill_fields(w))]
    for tokens in PREFILL:
        flashinfer_prefill(fi, paged, ways, tokens)


def main():
    torch.manual_seed(0)
    emit(bench="torch", version=torch.__version__, device=torch.cuda.get_device_name())
    parts = sys.argv[1:] or ["copy", "matmul", "decode", "prefill"]
    if "copy" in parts:
        copy()
    torch.cuda.empty_cache()
    if "matmul" in parts:
        matmul()
    if "decode" in parts:
        for batch, context in DECODE:
            attention("decode", batch, context, 1, False)
            torch.cuda.empty_cache()
    if "prefill" in parts:
        for tokens in PREFILL:
            attention("prefill", 1, tokens, tokens, True)
            torch.cuda.empty_cache()
    if "flashinfer" in parts:
        flashinfer()


if __name__ == "__main__":
    main()
