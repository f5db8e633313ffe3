"""The pictures of `gpt2c bench kernels`, from its report's results."""

from __future__ import annotations

from functools import partial

from gpt2c.bench.case import BOTH, FORWARD, OURS
from gpt2c.bench.plots import FLOOR, Pictures, bars, count_axis, legend_below, line, panels, png
from gpt2c.bench.report import Report

OP_COLOURS = ("tab:red", "tab:blue", "tab:cyan", "tab:green", "tab:olive", "tab:purple", "tab:pink", "tab:brown",
              "tab:orange", "tab:gray", "black")  # fmt: skip


def draw(report: Report) -> Pictures:
    """Those for which there are results."""
    parts: dict[str, list[dict]] = {}
    for result in report.results:
        parts.setdefault(result["part"], []).append(result)
    drawn: Pictures = {}
    if "sizes" in parts:
        drawn["kernels-roofline.png"] = partial(roofline, report, parts["sizes"])
        drawn["kernels-peers.png"] = partial(peers, report, parts["sizes"])
    if "lengths" in parts:
        drawn["kernels-lengths.png"] = partial(lengths, report, parts["lengths"], parts["memory"])
    if "threads" in parts:
        drawn["kernels-threads.png"] = partial(threads, report, parts["threads"])
    return drawn


def roofline(report: Report, results: list[dict]) -> bytes:
    """Each measurement's rate over its operations per byte, under the roofs of memory and of the matrix product."""
    figure, (ax,) = panels(1, (9, 5.5))
    floors = report.floors
    ops = list(dict.fromkeys(r["op"] for r in results))
    for r in results:
        ours, work = r["seconds"][OURS]["median"], r["work"]
        colour = OP_COLOURS[ops.index(r["op"]) % len(OP_COLOURS)]
        ax.plot(work["flops"] / work["bytes"], work["flops"] / ours / 1e9, "o" if r["way"] == FORWARD else "^",
                color=colour, markersize=6, alpha=0.8)  # fmt: skip
    for op, colour in zip(ops, OP_COLOURS, strict=False):
        ax.plot([], [], "s", color=colour, label=op)
    ax.plot([], [], "ok", label=FORWARD)
    ax.plot([], [], "^k", label="backward, or both")
    ends = (0.5 * min(r["work"]["flops"] / r["work"]["bytes"] for r in results), 1000.0)
    for bandwidth, style in {floors.bandwidth(float("inf")): "-", max(floors.cached.values(), default=0): ":"}.items():
        if bandwidth:
            points = (ends[0], floors.gemm / bandwidth, ends[1])
            rates = [min(x * bandwidth, floors.gemm) / 1e9 for x in points]
            name = f"{bandwidth / 1e9:.0f} GB/s from {'memory' if style == '-' else 'the caches'}"
            ax.plot(points, rates, style, color="0.4", linewidth=1.2, label=name)
    ax.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GFLOP/s", xlim=ends)
    ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return png(figure, f"Ops of gpt2c under the roofs of this machine; matrix product {floors.gemm / 1e9:.0f} GFLOP/s",
               report.machine)  # fmt: skip


def peers(report: Report, results: list[dict]) -> bytes:
    """Each peer's time over ours."""
    groups = [[r for r in results if r["way"] == FORWARD], [r for r in results if r["way"] != FORWARD]]
    groups = [group for group in groups if group]
    figure, axes = panels(len(groups), (7, 1.5 + 0.2 * max(map(len, groups))))
    names = list(dict.fromkeys(name for r in results for name in r["ratios"]))
    for ax, group in zip(axes, groups, strict=True):
        words = [f"{r['op']} {r['label']}" + f", {r['way']}" * (r["way"] != FORWARD) for r in group]
        bars(ax, words, {name: [r["ratios"].get(name) for r in group] for name in names})
        ax.axvline(1, **FLOOR)
        ax.set_xlabel("peer's time / gpt2c's time: beyond 1 gpt2c is faster")
    legend_below(figure, axes[0])
    return png(figure, "Ops of gpt2c beside their peers", report.machine)


def lengths(report: Report, results: list[dict], memory: list[dict]) -> bytes:
    """Attention's time, rate and peak memory over the context's length."""
    figure, axes = panels(3, (4.6, 4.2))
    both = [r for r in results if r["way"] == BOTH]
    T_of = [r["T"] for r in both]
    for side in both[0]["seconds"]:
        times = [(r["T"], r["seconds"][side]["median"]) for r in both if side in r["seconds"]]
        flops = {r["T"]: r["work"]["flops"] for r in both}
        line(axes[0], [(T, 1e3 * seconds) for T, seconds in times], side)
        line(axes[1], [(T, flops[T] / seconds / 1e9) for T, seconds in times], side)
        line(axes[2], [(r["T"], r["peak_bytes"][side] / 1e6) for r in memory if side in r["peak_bytes"]], side)
    axes[0].plot(T_of, [1e3 * r["floor"] for r in both], label="floor", **FLOOR)
    for ax, label in zip(axes, ("ms", "GFLOP/s", "peak memory beyond imports, MB"), strict=True):
        count_axis(ax, T_of, "tokens, T")
        ax.set_ylabel(label)
        ax.tick_params(axis="x", labelsize=7)
    axes[0].set_yscale("log")
    axes[2].set_yscale("log")
    axes[0].legend(frameon=False, fontsize=8)
    return png(figure, "Causal attention, forward + backward, B1 H12 D64", report.machine)


def threads(report: Report, results: list[dict]) -> bytes:
    """How much faster all threads are than one."""
    most = max(r["threads"] for r in results)
    times = {(r["op"], r["way"], r["label"], r["threads"]): r["seconds"] for r in results}
    keys = list(dict.fromkeys(key[:3] for key in times))
    figure, (ax,) = panels(1, (8, 1.5 + 0.28 * len(keys)))
    gains: dict[str, list[float | None]] = {}
    for side in (OURS, "torch"):
        pairs = [(times[(*key, 1)].get(side), times[(*key, most)].get(side)) for key in keys]
        gains[side] = [one["median"] / all_["median"] if one and all_ else None for one, all_ in pairs]
    bars(ax, [" ".join(key) for key in keys], gains)
    ax.axvline(most, label=f"{most} threads", **FLOOR)
    ax.set_xlabel(f"time with one thread / time with {most}")
    legend_below(figure, ax)
    return png(figure, "One thread against several", report.machine | {"threads": f"1 to {most}"})
