#!/usr/bin/env python3
"""Times the peers of our kernels and of a whole model on the GPU at hand, and sets them beside our own JSON reports.

  peers.py --json peers.json                                             the peers alone
  peers.py --kernels kernels.json --decode decode.json                   with ratios to what `switchyard bench` wrote
  peers.py --only attention,delta                                        some of: attention, delta, model

What is not installed is left out, and named. Peers: torch's SDPA (flash and cuDNN), fla's gated delta rule and KDA
(pip package fla-core), and a Mistral-shaped decoder in plain torch with a static cache, compiled by torch.compile and
replayed as CUDA graphs: what a user gets without a serving engine. Run it on an idle GPU, in the same session as
`switchyard bench`, so that both met the same clocks.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time


class Report:
    def __init__(self):
        self.rows = []
        self.missing = []

    def add(self, name, ms, ours=None, **facts):
        """`ours`: where our figure for the same work is: (report, name or (placement, batch, context))."""
        self.rows.append({"name": name, "ms": ms, "ours": ours, **facts})
        more = "  ".join(f"{key} {value:.0f}" if isinstance(value, float) else f"{key} {value}"
                         for key, value in facts.items())
        print(f"  {name:58} {ms:10.4f} ms  {more}", flush=True)

    def leave_out(self, name, why):
        self.missing.append({"name": name, "why": str(why)[:300]})
        print(f"  {name:58} left out: {str(why)[:160]}", flush=True)

    def attempt(self, name, function, *args):
        try:
            function(*args)
        except Exception as error:  # a peer that does not work here is a line of the report, not the end of it
            self.leave_out(name, f"{type(error).__name__}: {error}")


def timed(torch, function, sets=1, repeats=7, graph=True):
    """Median milliseconds of one function(i), i < sets; by replays of a CUDA graph, unless told that it can't be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            for i in range(sets):
                function(i)
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    calls = max(sets, 10) // sets * sets

    def run():
        for i in range(calls):
            function(i % sets)

    replay = run
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            run()
        replay = captured.replay
    replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        replay()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop) / calls)
    return statistics.median(times)


def attention(torch, report, _):
    """Causal prefill, and decode over a dense cache; 32 heads, 8 KV heads of 128, bf16."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    def tensors(batch, heads, tokens):
        return torch.randn(batch, heads, tokens, 128, device="cuda", dtype=torch.bfloat16)

    backends = {"flash": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}
    for backend, kind in backends.items():
        for tokens in (8192, 32768):
            def prefill():
                q, k, v = tensors(1, 32, tokens), tensors(1, 8, tokens), tensors(1, 8, tokens)
                with sdpa_kernel(kind):
                    ms = timed(torch, lambda _: scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
                               graph=False, repeats=5)
                report.add(f"attention prefill {tokens}, torch {backend}", ms, ("kernels", f"attention prefill {tokens} after 0"),
                           tflops=2 * 2 * 32 * 128 * tokens * tokens / 2 / ms / 1e9)
            report.attempt(f"attention prefill {tokens}, torch {backend}", prefill)
        for batch, tokens in ((1, 32768), (16, 32768), (64, 4096)):
            def decode():
                sets = max(1, min(4, 2**31 // (batch * tokens * 4096)))
                data = [(tensors(batch, 32, 1), tensors(batch, 8, tokens), tensors(batch, 8, tokens)) for _ in range(sets)]
                with sdpa_kernel(kind):
                    ms = timed(torch, lambda i: scaled_dot_product_attention(*data[i], enable_gqa=True), sets)
                report.add(f"attention decode {batch} x {tokens}, torch {backend}", ms,
                           ("kernels", f"attention decode {batch} x {tokens}"),
                           gbps=batch * tokens * 2 * 8 * 128 * 2 / ms / 1e6)
            report.attempt(f"attention decode {batch} x {tokens}, torch {backend}", decode)


def delta_inputs(torch):
    """(random normal, unit vectors along the last dimension), as fla takes them."""
    def normal(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device="cuda", dtype=dtype)

    def unit(*shape):
        return torch.nn.functional.normalize(normal(*shape, dtype=torch.float32), dim=-1).to(torch.bfloat16)
    return normal, unit


def delta_prefill(torch, report, _):
    """fla's chunked gated delta rule and KDA; 32 value heads of 128."""
    import fla  # noqa: F401
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    try:
        from fla.ops.kda import chunk_kda
    except ImportError as error:
        chunk_kda = None
        report.leave_out("chunk_kda, fla", error)
    normal, unit = delta_inputs(torch)

    for tokens in (8192, 32768):
        def gdn():
            q, k, v = unit(1, tokens, 32, 128), unit(1, tokens, 32, 128), normal(1, tokens, 32, 128)
            g = -torch.rand(1, tokens, 32, device="cuda")
            beta = torch.rand(1, tokens, 32, device="cuda").to(torch.bfloat16)
            with torch.no_grad():
                ms = timed(torch, lambda _: chunk_gated_delta_rule(q, k, v, g, beta, output_final_state=True))
            report.add(f"gdn prefill {tokens}, fla chunk", ms, ("kernels", f"gdn prefill 1 x {tokens}"))
        report.attempt(f"gdn prefill {tokens}, fla chunk", gdn)

        def kda():
            q, k, v = unit(1, tokens, 32, 128), unit(1, tokens, 32, 128), normal(1, tokens, 32, 128)
            g = -torch.rand(1, tokens, 32, 128, device="cuda")
            beta = torch.rand(1, tokens, 32, device="cuda").to(torch.bfloat16)
            with torch.no_grad():
                ms = timed(torch, lambda _: chunk_kda(q, k, v, g, beta, output_final_state=True))
            report.add(f"kda prefill {tokens}, fla chunk", ms, ("kernels", f"kda prefill 1 x {tokens}"))
        if chunk_kda is not None:
            report.attempt(f"kda prefill {tokens}, fla chunk", kda)


def delta_decode(torch, report, _):
    """fla's gated delta rule token by token; 32 value heads of 128."""
    from fla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule
    normal, unit = delta_inputs(torch)

    for batch in (1, 16, 64, 256):
        def decode():
            sets = max(1, min(8, 256 // batch))
            data = [(unit(batch, 1, 32, 128), unit(batch, 1, 32, 128), normal(batch, 1, 32, 128),
                     -torch.rand(batch, 1, 32, device="cuda"), torch.rand(batch, 1, 32, device="cuda").to(torch.bfloat16),
                     normal(batch, 32, 128, 128, dtype=torch.float32)) for _ in range(sets)]

            def step(i):
                q, k, v, g, beta, state = data[i]
                fused_recurrent_gated_delta_rule(q, k, v, g, beta, initial_state=state, output_final_state=True)
            with torch.no_grad():
                ms = timed(torch, step, sets)
            report.add(f"gdn decode batch {batch}, fla recurrent", ms, ("kernels", f"gdn decode batch {batch}"),
                       gbps=2 * batch * 32 * 128 * 128 * 4 / ms / 1e6)
        report.attempt(f"gdn decode batch {batch}, fla recurrent", decode)


HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, MLP, VOCAB = 5120, 48, 32, 8, 128, 14336, 131072


def make_model(torch, batch, positions):
    """A Mistral-shaped decoder of 48 layers with a static cache; random bf16 weights; one token in, one token out."""
    nn, functional = torch.nn, torch.nn.functional

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            linear = lambda i, o: nn.Linear(i, o, bias=False)  # noqa: E731
            self.norm1, self.norm2 = nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)
            self.qkv = linear(HIDDEN, (HEADS + 2 * KV_HEADS) * HEAD)
            self.out, self.up, self.down = linear(HEADS * HEAD, HIDDEN), linear(HIDDEN, 2 * MLP), linear(MLP, HIDDEN)
            for name in ("keys", "values"):
                self.register_buffer(name, torch.zeros(batch, KV_HEADS, positions, HEAD))

        def forward(self, x, cos, sin, position, mask):
            q, k, v = self.qkv(self.norm1(x)).view(batch, 1, -1, HEAD).transpose(1, 2).split(
                (HEADS, KV_HEADS, KV_HEADS), dim=1)
            rotate = lambda t: t * cos + torch.cat((-t[..., HEAD // 2:], t[..., :HEAD // 2]), -1) * sin  # noqa: E731
            self.keys.index_copy_(2, position, rotate(k))
            self.values.index_copy_(2, position, v)
            a = functional.scaled_dot_product_attention(rotate(q), self.keys, self.values, attn_mask=mask, enable_gqa=True)
            x = x + self.out(a.transpose(1, 2).reshape(batch, 1, HEADS * HEAD))
            gate, up = self.up(self.norm2(x)).chunk(2, dim=-1)
            return x + self.down(functional.silu(gate) * up)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(VOCAB, HIDDEN)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm = nn.RMSNorm(HIDDEN)
            self.head = nn.Linear(HIDDEN, VOCAB, bias=False)
            self.register_buffer("inverse", 1e6 ** (-torch.arange(0, HEAD, 2).float() / HEAD))
            self.register_buffer("index", torch.arange(positions))

        def forward(self, tokens, position):
            angles = (position[:, None].float() * self.inverse.float()).repeat(1, 2)
            cos, sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
            mask = (self.index <= position)[None, None, None, :]
            x = self.embed(tokens)
            for layer in self.layers:
                x = layer(x, cos, sin, position, mask)
            return self.head(self.norm(x)).argmax(-1)

    with torch.device("meta"):
        model = Model()
    model = model.to(torch.bfloat16).to_empty(device="cuda")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02) if parameter.dim() > 1 else parameter.fill_(1)
        for layer in model.layers:
            layer.keys.normal_(0, 1)
            layer.values.normal_(0, 1)
        model.inverse.copy_(1e6 ** (-torch.arange(0, HEAD, 2).float() / HEAD))
        model.index.copy_(torch.arange(positions))
    return model.eval()


def whole_model(torch, report, options):
    """All 48 layers of the 15B shape, all attention, compiled as one graph; only the layers' cache is sized to the context."""
    for batch, context in (map(int, shape.split("x")) for shape in options.shapes.split(",")):
        name = f"15B shape, torch.compile, decode {batch} x {context}"

        def run():
            torch._dynamo.reset()
            model = make_model(torch, batch, context + 64)
            # One compiled layer serves all 48: inlining them into one graph takes minutes to compile, and the CUDA graph below
            # joins them in any case.
            for layer in model.layers:
                layer.compile(mode="max-autotune-no-cudagraphs" if options.autotune else None)
            tokens = torch.zeros(batch, 1, dtype=torch.long, device="cuda")
            position = torch.tensor([context - 1], device="cuda")
            begin = time.monotonic()
            with torch.no_grad():
                ms = timed(torch, lambda _: model(tokens, position), repeats=7)
            report.add(name, ms, ("decode", ("all-attention", batch, context)), layers=LAYERS,
                       seconds_to_compile=round(time.monotonic() - begin, 1))
        report.attempt(name, run)
        torch.cuda.empty_cache()


def find_ours(reports, where):
    """(our ms, our name) in the JSON of `switchyard bench`, or nothing."""
    if where is None or where[0] not in reports:
        return None
    kind, key = where
    if kind == "decode":
        for row in reports[kind]["results"]:
            if (row["placement"], row["batch"], row["context"]) == tuple(key):
                return row["median_ms"], f"bench decode {row['placement']} {row['batch']} x {row['context']}"
        return None
    for row in reports[kind]["times"]:
        if row["name"] == key:
            return row["us"] / 1e3, row["name"]
    return None


def print_ratios(rows, reports):
    print(f"\n{'peer':58} {'peer ms':>10} {'our ms':>10} {'faster by':>10}  our measurement")
    for row in rows:
        ours = find_ours(reports, row["ours"])
        if ours is None:
            print(f"{row['name']:58} {row['ms']:10.4f} {'-':>10} {'-':>10}")
            continue
        row["our_ms"], row["our_name"] = ours
        row["faster_by"] = row["ms"] / ours[0]
        print(f"{row['name']:58} {row['ms']:10.4f} {ours[0]:10.4f} {row['faster_by']:9.2f}x  {ours[1]}")


PIECES = {"attention": [attention], "delta": [delta_prefill, delta_decode], "model": [whole_model]}


def run_piece(piece, options, results):
    """In a process of its own: an illegal access of one peer ends no other's measurement."""
    import torch
    report = Report()
    report.attempt(piece.__doc__.split(";")[0], piece, torch, report, options)
    results.send((report.rows, report.missing))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="attention,delta,model", help="families to time")
    parser.add_argument("--shapes", default="1x2048,16x2048", help="BATCHxCONTEXT of the whole model's decode steps")
    parser.add_argument("--autotune", action="store_true", help="let torch.compile tune for longer")
    parser.add_argument("--kernels", help="JSON of `switchyard bench kernels`")
    parser.add_argument("--decode", help="JSON of `switchyard bench decode`")
    parser.add_argument("--json", help="where to write all of this as JSON")
    options = parser.parse_args()
    families = options.only.split(",")
    if not set(families) <= set(PIECES):
        parser.error(f"--only {options.only}: some of {', '.join(PIECES)} is wanted")

    reports = {}
    for kind in ("kernels", "decode"):
        if getattr(options, kind):
            with open(getattr(options, kind), encoding="utf-8") as file:
                reports[kind] = json.load(file)
    report = Report()
    device = None
    try:
        import torch
        if not torch.cuda.is_available():
            raise RuntimeError("torch sees no GPU")
        device = torch.cuda.get_device_name()
        print(f"{device}, torch {torch.__version__}", flush=True)
    except (ImportError, RuntimeError) as error:
        report.leave_out("every peer", error)
    if device is not None:
        processes = multiprocessing.get_context("spawn")
        for piece in (piece for family in families for piece in PIECES[family]):
            ours, theirs = processes.Pipe(duplex=False)
            child = processes.Process(target=run_piece, args=(piece, options, theirs))
            child.start()
            theirs.close()
            try:
                rows, missing = ours.recv()
                report.rows += rows
                report.missing += missing
            except EOFError:
                report.leave_out(piece.__doc__.split(";")[0], "its process ended early")
            child.join()
        print_ratios(report.rows, reports)
    for missing in report.missing:
        print(f"not timed: {missing['name']}: {missing['why']}")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"device": device, "times": report.rows, "missing": report.missing}, file, indent=1)
    return 0 if report.rows else 1


if __name__ == "__main__":
    sys.exit(main())
