#!/usr/bin/env python3
"""Compare the training speed of `fl bench train` with PyTorch's, on one machine and on the same network.

    bench_pytorch.py --model mcmahan_cnn --threads 2
    bench_pytorch.py --model examples/specs/strided.json --rounds 9
    bench_pytorch.py --all --seconds 2

Needs torch. The network comes from `fl bench train --print-spec` and is built by fl_torch.py, so a preset or any
file of a network can be compared. Both programs take plain SGD steps on one batch of noise, with the loss of the
network's task, and take turns, ROUNDS times. PyTorch runs in a process of its own each time; for images the
faster of its two memory layouts (contiguous and channels last) counts, chosen before the first round.

`ratio` is the median of the rounds' ratios of samples per second (above 1: fl is faster), `cpu_ratio` that of
processor time per sample, which is meaningful on a busy machine too. Set OMP_WAIT_POLICY=passive for the latter:
otherwise PyTorch's threads are charged for waiting, and where cores are contended they delay each other so much that
at two threads `ratio` says nothing either. Sizes are the peak resident sizes of the processes; PyTorch's
without a network is in `pytorch_import_mb`.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPECS = ROOT / "examples" / "specs"
ALL = ["vgg11", "resnet20", "mobilenet_small", str(SPECS / "strided.json"), str(SPECS / "mlp_wide.json")]
ALL += ["char_lstm", "tiny_transformer", "mlp", "cnn", "mcmahan_cnn"]
BATCH_SIZES = {"char_lstm": 32, "tiny_transformer": 16}
LEARNING_RATE = 0.05
WARM_UP, LEAST_STEPS = 5, 5


def memory_mb(key):
    """A size from /proc/self/status, or nothing on systems without it."""
    try:
        for line in open("/proc/self/status"):
            if line.startswith(key + ":"):
                return round(int(line.split()[1]) / 1024, 1)
    except OSError:
        pass
    return None


def child():
    """Measures PyTorch: reads a job on stdin and prints the result."""
    import torch
    from fl_torch import build, loss, noise

    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    torch.manual_seed(42)
    imported = memory_mb("VmHWM")
    spec = job["spec"]
    network = build(spec)
    x, y = noise(spec, job["batch_size"])
    if job["layout"] == "channels_last":
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    times, began, cpu = [], 0.0, 0.0
    while len(times) < WARM_UP + LEAST_STEPS or time.perf_counter() - began < job["seconds"]:
        if len(times) == WARM_UP:
            began, cpu = time.perf_counter(), time.process_time()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss(spec, network(x), y).backward()
        optimizer.step()
        times.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    times = times[WARM_UP:]
    result = {"samples_per_s": job["batch_size"] / statistics.median(times), "step_cpu_ms": 1e3 * cpu / len(times)}
    result["params"] = sum(tensor.numel() for tensor in network.state_dict().values())
    result["rss_mb"], result["import_mb"] = memory_mb("VmHWM"), imported
    print(json.dumps(result))


def output_of(command, given=None):
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"{pathlib.Path(command[0]).name}: {lines[-1]}")
    return json.loads(done.stdout)


def pytorch(spec, args, batch_size, layout):
    job = {"spec": spec, "threads": args.threads, "batch_size": batch_size, "seconds": args.seconds, "layout": layout}
    return output_of([sys.executable, __file__, "--child"], json.dumps(job))


def compare(model, args):
    """A row of results for one network."""
    batch_size = args.batch_size or BATCH_SIZES.get(model, 64)
    command = [args.fl, "bench", "train", "--model", model, "--model-dim", str(args.model_dim)]
    spec = output_of(command + ["--print-spec"])
    command += ["--json", "--skip-burn", "--threads", str(args.threads)]
    command += ["--batch-size", str(batch_size), "--seconds", str(args.seconds)]
    # A text has one layout; so has a vector.
    layouts = ["contiguous"]
    if (spec.get("input") or {"kind": "image"})["kind"] == "image" and "conv2d" in json.dumps(spec):
        tried = {name: pytorch(spec, args, batch_size, name) for name in ("contiguous", "channels_last")}
        layouts = sorted(tried, key=lambda name: -tried[name]["samples_per_s"])
    ours, theirs = [], []
    for _ in range(args.rounds):
        theirs.append(pytorch(spec, args, batch_size, layouts[0]))
        ours.append(output_of(command))
        if ours[-1]["params"] != theirs[-1]["params"]:
            raise RuntimeError(f"fl has {ours[-1]['params']} parameters, PyTorch {theirs[-1]['params']}")

    def median(numbers, digits):
        numbers = list(numbers)
        return None if None in numbers else round(statistics.median(numbers), digits)

    def cpu_ratio(a, b):
        return b["step_cpu_ms"] / a["step_cpu_ms"] if a["step_cpu_ms"] else None

    row = {"model": spec["name"], "backend": ours[0]["backend"], "threads": args.threads}
    row |= {"batch_size": batch_size, "params": ours[0]["params"]}
    row["fl_samples_per_s"] = median((a["images_per_s"] for a in ours), 1)
    row["pytorch_samples_per_s"] = median((b["samples_per_s"] for b in theirs), 1)
    row["pytorch_layout"] = layouts[0]
    row["ratio"] = median((a["images_per_s"] / b["samples_per_s"] for a, b in zip(ours, theirs)), 3)
    row["cpu_ratio"] = median((cpu_ratio(a, b) for a, b in zip(ours, theirs)), 3)
    row["fl_rss_mb"] = median((a["peak_rss_mb"] for a in ours), 1)
    row["pytorch_rss_mb"] = median((b["rss_mb"] for b in theirs), 1)
    row["pytorch_import_mb"] = median((b["import_mb"] for b in theirs), 1)
    return row


COLUMNS = [("model", 16), ("backend", 8), ("threads", 7), ("fl_samples_per_s", 10), ("pytorch_samples_per_s", 10)]
COLUMNS += [("ratio", 7), ("cpu_ratio", 9), ("fl_rss_mb", 9), ("pytorch_rss_mb", 11)]
TITLES = {"fl_samples_per_s": "fl /s", "pytorch_samples_per_s": "PyTorch /s", "cpu_ratio": "cpu ratio"}
TITLES |= {"fl_rss_mb": "fl MB", "pytorch_rss_mb": "PyTorch MB"}


def print_line(cells):
    first, *rest = (f"{str(cell):>{width}}" for cell, (_, width) in zip(cells, COLUMNS))
    print(f"{first.strip():<{COLUMNS[0][1]}}", *rest, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mlp", help="preset or path of a network ending in .json")
    parser.add_argument("--all", action="store_true", help="a table of ten networks at --thread-list")
    parser.add_argument("--thread-list", default="1,2", help="threads of --all")
    parser.add_argument("--model-dim", type=int, default=100_000, help="parameter budget of mlp")
    parser.add_argument("--threads", type=int, default=1, help="of both programs")
    parser.add_argument("--batch-size", type=int, help="default: 64, char_lstm 32, tiny_transformer 16")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fl", default=str(ROOT / "target/release/fl"), help="path of the fl binary")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if not args.all:
        try:
            return print(json.dumps(compare(args.model, args)))
        except RuntimeError as error:
            sys.exit(f"{args.model}: {error}")
    print_line(TITLES.get(key, key) for key, _ in COLUMNS)
    failed = False
    for args.threads in map(int, args.thread_list.split(",")):
        for model in ALL:
            # One network that fails must not cost the others.
            try:
                row = compare(model, args)
                print_line(row[key] for key, _ in COLUMNS)
            except RuntimeError as error:
                failed = True
                print(f"{pathlib.Path(model).stem}, {args.threads} threads: {error}", flush=True)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    main()
