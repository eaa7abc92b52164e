"""The same work by PyTorch, on the same GPU in the same run: copy bandwidth, matrix products, and
scaled_dot_product_attention by each of its backends, for decode and for prefill at Llama-3-8B's shape.
Prints JSON lines; errors of a backend are a line too, so that a missing figure has its reason."""

import json
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 32, 8, 128
BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
DECODE = [(b, c) for b in (1, 8, 64) for c in (1024, 8192, 32768, 131072, 1048576)]
PREFILL = [1024, 4096, 16384, 32768]


def emit(**fields):
    print(json.dumps(fields), flush=True)


def median_ms(run, repeat=9, inner=1):
    """Median time of run(i); i rotates so that inputs are not the ones in the cache. `inner` runs are captured
    into one graph, so that the time to launch does not count."""
    side = torch.cuda.Stream()
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


def attention(what, batch, context, q_len, causal):
    kv_bytes = 2 * batch * KV_HEADS * context * DIM * 2
    free = torch.cuda.mem_get_info()[0]
    if kv_bytes > free * 0.8:
        return
    # Several sets where one fits the cache.
    sets = max(1, min(8, (256 << 20) // kv_bytes)) if what == "decode" else 1
    data = []
    for _ in range(sets):
        q = torch.randn(batch, HEADS, q_len, DIM, dtype=torch.bfloat16, device="cuda")
        k = torch.randn(batch, KV_HEADS, context, DIM, dtype=torch.bfloat16, device="cuda")
        v = torch.randn(batch, KV_HEADS, context, DIM, dtype=torch.bfloat16, device="cuda")
        data.append((q, k, v))
    for backend in BACKENDS:
        fields = dict(bench=f"torch_{what}", backend=backend.name, batch=batch, context=context)

        def run(i):
            q, k, v = data[i % sets]
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

        try:
            with sdpa_kernel(backend):
                ms = median_ms(run, *((9, 16) if kv_bytes < 1 << 30 else (5, 2)))
        except RuntimeError as error:
            emit(**fields, error=str(error).split("\n")[0][:120])
            continue
        fields["ms"] = round(ms, 5)
        if what == "decode":
            fields["gb_per_s"] = round(kv_bytes / ms * 1e-6, 1)
        else:
            fields["tflops"] = round(4 * HEADS * DIM * q_len * (q_len + 1) / 2 * batch / ms * 1e-9, 1)
        emit(**fields)


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


if __name__ == "__main__":
    main()
