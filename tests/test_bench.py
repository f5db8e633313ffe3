"""The benchmarks: what they measure is what they say, and their output's form. Never a time."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys
import time
from pathlib import Path

import pytest
import torch

import gpt2c
from gpt2c import ops
from gpt2c.bench import (
    account,
    benchmark,
    case,
    docs,
    floors,
    generate,
    kernel_plots,
    machine,
    recipes,
    report,
    timing,
    train,
)
from gpt2c.bench.case import BOTH, OURS, Case, Effort, Measured, Work
from gpt2c.bench.floors import Floors
from gpt2c.bench.kernels import Kernels
from gpt2c.bench.ops import OPS, Setting, Sizes, cases
from gpt2c.bench.report import Report, Table
from gpt2c.bench.side import SideError
from gpt2c.bench.timing import Timing
from gpt2c.cli import main

SIZES = Sizes(B=2, T=6, H=2, D=4, V=11, L=1)
FLOORS = Floors(copy=1e9, update=2e9, read=1e9, gemm=1e9, cached={1000: 8e9, 10_000: 4e9})
PNG = b"\x89PNG"


def measured(tmp_path: Path, capsys: pytest.CaptureFixture, *args: str) -> tuple[str, dict, list[Path]]:
    """`gpt2c bench ARGS` tiny: what it prints, its JSON and its pictures."""
    flags = ["--quick", "--json", str(tmp_path / "sub" / "out.json"), "--plots", str(tmp_path / "plots")]
    assert main(["bench", *args, *flags]) == 0
    text = (tmp_path / "sub" / "out.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    pictures = sorted((tmp_path / "plots").iterdir())
    assert all(path.read_bytes().startswith(PNG) and path.stat().st_size > 5000 for path in pictures)
    assert {"threads", "torch", "processor"} <= found["machine"].keys()
    assert all(found["floors"][name] > 0 for name in ("copy", "update", "read", "gemm"))
    return capsys.readouterr().out, found, pictures


def sentence(capsys: pytest.CaptureFixture, *args: str) -> str:
    """What the user is told of a mistake."""
    assert main(["bench", *args]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    return told


# ---- what is measured


def test_every_case_computes_what_its_peers_do() -> None:
    found = cases(Setting(SIZES))
    assert {c.op for c in found} == set(OPS)
    for c in found:
        torch.manual_seed(0)
        run = c.prepare()
        assert c.work.bytes > 0 and c.work.flops > 0 and set(run) == {OURS, "torch"}
        if c.op == "adamw":
            continue  # changes its parameters, each side in its turn
        results = {name: [r] if isinstance(r := call(), torch.Tensor) else r for name, call in run.items()}
        for got, expected in zip(results[OURS], results["torch"], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=f"{c.op} {c.way} {c.label}")


@pytest.mark.parametrize("way", ["update", "clip + update"])
def test_both_sides_of_the_optimizer_change_every_parameter(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    made: list[torch.Tensor] = []
    monkeypatch.setattr(Setting, "new", lambda self, *shape: made.append(torch.randn(shape)) or made[-1])
    (step,) = (c for c in cases(Setting(SIZES), ("adamw",)) if c.way == way)
    run = step.prepare()
    for name, call in run.items():
        before = [p.detach().clone() for p in made]
        call()
        assert not any(torch.equal(p, old) for p, old in zip(made, before, strict=True)), name


def test_bytes_and_operations_are_those_of_the_contracts() -> None:
    work = {(c.op, c.way, c.label): c.work for c in cases(Setting(Sizes(B=4, T=64)))}
    rows, wide = 4 * 64 * 768, 4 * 64 * 3072
    assert work["residual_layernorm", "forward", "256 x 768"].bytes == 4 * 4 * rows
    assert work["gelu", "backward", "256 x 3072"].bytes == 3 * 4 * wide
    assert work["attention", "forward", "B4 H12 T64 D64 full"].flops == 4 * 4 * 12 * 64 * 64 * 64
    causal = work["attention", "backward", "B4 H12 T64 D64 causal"].flops
    assert causal == 10 * 4 * 12 * 64 * 64 * 65 // 2
    documents = work["attention", "backward", "B4 H12 T64 D64 causal, documents of 8"].flops
    assert documents == 10 * 4 * 12 * 64 * 8 * 8 * 9 // 2
    # The tables as the model stores them: padded, and with at least 1024 positions.
    count = gpt2c.GPT2Config().padded_vocab_size * 768 + 1024 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert work["adamw", "update", f"{count:,} parameters"].bytes == 28 * count


def test_a_side_that_cannot_run_is_left_out() -> None:
    def broken() -> None:
        raise RuntimeError("No available kernel.\nAborting execution.")

    c = Case("gelu", "forward", "", lambda: {OURS: int, "broken": broken}, Work(4e9, 1e9))
    found = case.measure(c, FLOORS, Effort(0.0))
    assert list(found.seconds) == [OURS] and found.unavailable == {"broken": "No available kernel"}
    assert found.floor == 2.0  # seconds: 4e9 bytes at 2e9 a second take longer than 1e9 operations
    with pytest.raises(RuntimeError, match="No available kernel"):
        case.measure(Case("gelu", "forward", "", lambda: {OURS: broken}, Work(1, 1)), FLOORS, Effort(0.0))


def test_without_a_compiler_torch_compile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(function: object, **_: object) -> object:
        def run(*_: object) -> None:
            raise RuntimeError("No working C++ compiler found")

        return run

    monkeypatch.setattr(torch, "compile", no_compiler)
    (forward, _) = cases(Setting(SIZES, compiled=True), ("gelu",))
    found = case.measure(forward, FLOORS, Effort(0.0))
    assert set(found.seconds) == {OURS, "torch"}
    assert found.unavailable == {"torch.compile": "No working C++ compiler found"}


def test_ratios_are_the_peers_times_over_ours() -> None:
    times = {name: Timing(t, t, t, 1) for name, t in {OURS: 2.0, "torch": 6.0, "torch.compile": 1.0}.items()}
    found = Measured("gelu", "forward", "", times, Work(1, 1), floor=1.0)
    assert found.ratios == {"torch": 3.0, "torch.compile": 0.5}
    assert (found.speedup, found.of_floor) == (0.5, 0.5)


# ---- how


def test_sides_take_turns_and_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock) ** 2)  # so that each call seems slower
    called: list[str] = []
    run = {"a": lambda: called.append("a"), "b": lambda: called.append("b")}
    found = timing.interleaved(run, repeats=3)
    assert called == ["a", "b", "b", "a", "a", "b", "b", "a"]
    # The n-th call lasts (2 n + 1)^2 - (2 n)^2 = 4 n + 1; a's are 0, 3, 4, 7, of which the first is the warm-up.
    assert found["a"] == Timing(17.0, pytest.approx(13.8), pytest.approx(26.6), 3)
    assert found["b"].median == 4 * 5 + 1


def test_cold_calls_come_after_the_caches_were_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = torch.zeros(8, dtype=torch.uint8)
    monkeypatch.setattr(timing, "_evict_buffer", lambda: buffer)
    seen: list[int] = []
    timing.interleaved({"a": lambda: seen.append(int(buffer[0]))}, repeats=2, cold=True)
    assert seen == [1, 2, 3]


def test_calls_in_a_row_are_divided_by(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 8.0] * 10)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    called: list[int] = []
    found = timing.interleaved({"a": lambda: called.append(1)}, repeats=1, calls=4)
    assert found["a"].median == 2.0 and len(called) == 4 * (1 + timing.WARM_UP)


def test_floors_know_the_caches() -> None:
    assert [FLOORS.bandwidth(size) for size in (10, 1000, 1001, 1e6)] == [8e9, 8e9, 4e9, 2e9]
    assert FLOORS.seconds(bytes=1e6, flops=1e6) == 1e-3


def test_floors_are_measured() -> None:
    found = floors.measure_floors(quick=True)
    assert all(1e5 < rate < 1e14 for rate in (found.copy, found.update, found.read, found.gemm))


def test_peak_memory_is_this_process_own() -> None:
    before = machine.peak_bytes()
    kept = torch.ones(64 << 20)
    assert machine.peak_bytes() > before + 0.7 * kept.nbytes or before > 2 * kept.nbytes


def test_what_others_took_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = machine.ProcessorTime(100, 40, 10), machine.ProcessorTime(120, 55, 20)
    assert after.others_since(before) == 0.25
    monkeypatch.setattr(machine.ProcessorTime, "now", classmethod(lambda cls: after))
    found = Report({}, FLOORS)
    benchmark._note_others(found, before)
    assert found.machine == {"other processes": "25% of the processors' time"}
    assert found.notes == ["the machine was busy: other processes took 25% of its processors; measure again"]
    benchmark._note_others(quiet := Report({}, FLOORS), machine.ProcessorTime(100, 45.5, 10))
    assert quiet.machine == {"other processes": "0% of the processors' time"} and not quiet.notes


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="the system does not tell")
def test_processor_time_goes_on() -> None:
    before = machine.ProcessorTime.now()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    after = machine.ProcessorTime.now()
    assert after.own - before.own > 0.1 and after.all - before.all > 0.1 and after.capacity > before.capacity
    assert 0 <= after.others_since(before) <= 1.1


# ---- how it is shown


def test_tables_in_both_forms() -> None:
    table = Table("Ops", ("op", "time"), [("gelu", "1.5 ms"), ("layernorm", "12 us")])
    assert table.plain() == "Ops\nop           time\ngelu       1.5 ms\nlayernorm   12 us"
    assert table.markdown().splitlines()[1:3] == ["| --- | ---: |", "| gelu | 1.5 ms |"]


def test_a_report_survives_json() -> None:
    given = Report({"threads": "2"}, FLOORS, [{"part": "x"}], [Table("t", ["a"], [["b"]])], ["no"], {"quick": "True"})
    text = json.dumps(given.to_dict())
    again = Report.from_dict(json.loads(text))
    assert json.dumps(again.to_dict()) == text and again.floors == FLOORS
    assert again.markdown() == given.markdown() and "- no" in given.markdown()


@pytest.mark.parametrize(("seconds", "shown"), [(12.345, "12.3 s"), (0.0012345, "1.23 ms"), (4.5678e-6, "4.57 us")])
def test_durations(seconds: float, shown: str) -> None:
    assert report.duration(seconds) == shown


def test_a_page_gets_its_tables() -> None:
    page = "a\n<!-- bench x -->\nold\n<!-- /bench -->\nb\n<!-- bench y -->\n<!-- /bench -->\n"
    once = docs.put(page, "x", r"new \1")
    assert once.startswith("a\n<!-- bench x -->\n\nnew \\1\n\n<!-- /bench -->\nb\n") and "old" not in once
    assert docs.put(once, "x", r"new \1") == once


def test_the_page_has_a_place_for_every_run() -> None:
    page = (Path(__file__).parent.parent / "docs" / docs.PAGE).read_text()
    assert all(f"<!-- bench {name} -->" in page for name in docs.RUNS)


# ---- whole runs


def test_kernels(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    only = ("attention", "gelu", "adamw")
    out, found, pictures = measured(tmp_path, capsys, "kernels", "--only", *only, "--threads", "2", "--cold")
    assert [path.name for path in pictures] == [
        "kernels-lengths.png", "kernels-peers.png", "kernels-roofline.png", "kernels-threads.png",
    ]  # fmt: skip
    by_part: dict[str, list[dict]] = {}
    for result in found["results"]:
        by_part.setdefault(result["part"], []).append(result)
    assert set(by_part) == {"sizes", "overhead", "threads", "lengths", "memory"}
    assert {r["op"] for r in by_part["sizes"]} == set(only)
    for result in [r for part, results in by_part.items() if part != "memory" for r in results]:
        times = [s for taken in result["seconds"].values() for s in (taken["low"], taken["median"], taken["high"])]
        assert all(0 < s < math.inf for s in [*times, result["floor"], result["of_floor"]])
        assert result["ratios"]["torch"] == pytest.approx(
            result["seconds"]["torch"]["median"] / result["seconds"][OURS]["median"]
        )
    assert {r["threads"] for r in by_part["threads"]} == {1, 2}
    assert all(set(r["peak_bytes"]) == {OURS, "torch", "T x T matrix"} for r in by_part["memory"])
    assert found["settings"]["cold"] == "True" and found["floors"]["cached"] == {}
    assert all(title in out for title in ("Ops\n", "Cost of a call at 8 x 8\n", "One thread against several\n"))
    assert torch.get_num_threads() == 2
    check_pictures(Report.from_dict(found))


def check_pictures(whole: Report) -> None:
    """Of each choice of parts those that it has the results for."""
    of_part = {"sizes": ["peers", "roofline"], "overhead": [], "threads": ["threads"], "lengths": ["lengths"]}
    for count in range(len(of_part) + 1):
        for parts in itertools.combinations(of_part, count):
            kept = {*parts, "memory"} if "lengths" in parts else {*parts}
            some = dataclasses.replace(whole, results=[r for r in whole.results if r["part"] in kept])
            drawn = Kernels(parts=parts).draw(some)
            assert set(drawn) == {f"kernels-{name}.png" for part in parts for name in of_part[part]}
            if count == 1:
                assert all(draw().startswith(PNG) for draw in drawn.values())


GELU = ["bench", "kernels", "--quick", "--only", "gelu", "--threads", "1"]


def test_a_picture_that_fails_takes_nothing_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise KeyError("sizes")

    monkeypatch.setattr(kernel_plots, "roofline", fail)
    places = ["--json", str(tmp_path / "x.json"), "--plots", str(tmp_path / "plots")]
    assert main([*GELU, "--parts", "sizes", "threads", "lengths", *places]) == 0
    out, err = capsys.readouterr()
    assert "gelu forward" in out and "note: " in err and "kernels-roofline.png is not drawn (KeyError: 'sizes')" in err
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["kernels-peers.png"]
    found = json.loads((tmp_path / "x.json").read_text())
    assert {r["part"] for r in found["results"]} == {"sizes"}
    assert found["notes"][:2] == [
        "threads are not compared: there is one", "lengths are not measured: they are attention's",
    ]  # fmt: skip


def test_what_has_no_picture_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([*GELU, "--parts", "overhead", "--plots", str(tmp_path / "plots")]) == 0
    assert "there is no picture of what was measured" in capsys.readouterr().err


def test_a_benchmark_that_ends_early_keeps_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Kernels, report: Report) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Kernels, "_overhead", interrupt)
    flags = {"quick": True, "only": ("gelu",), "threads": 1, "json": tmp_path / "x.json"}
    with pytest.raises(KeyboardInterrupt):
        Kernels(**flags).run()
    found = json.loads((tmp_path / "x.json").read_text())
    assert len(found["results"]) >= 2 and "the benchmark ended before all was measured" in found["notes"]


@pytest.mark.parametrize(("flag", "place"), [("--json", "folder"), ("--json", "file/x"), ("--plots", "file")])
def test_a_place_that_cannot_be_written_is_told_before(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, flag: str, place: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(Kernels, "measure", lambda *_: pytest.fail("it measures"))
    assert "cannot write" in sentence(capsys, "kernels", "--quick", flag, str(tmp_path / place))


def test_only_some_parts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, found, pictures = measured(tmp_path, capsys, "kernels", "--only", "gelu", "--parts", "sizes", "lengths")
    assert {r["part"] for r in found["results"]} == {"sizes"}  # lengths are attention's
    assert [path.name for path in pictures] == ["kernels-peers.png", "kernels-roofline.png"]
    assert "gelu forward, 8 x 32: gpt2c" in out and "Cost of a call" not in out


def test_training(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, found, pictures = measured(tmp_path, capsys, "train", "--steps", "3", "--sizes", "B2xT8", "--threads", "1")
    assert [path.name for path in pictures] == ["train-sides.png"]
    (result,) = found["results"]
    assert (result["tokens"], result["T"], result["in_turns"]) == (16, 8, True)
    ours, theirs = result["sides"][OURS], result["sides"]["torch"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-4) and len(ours["losses"]) == 3
    assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-4)
    for side in (ours, theirs):
        assert side["seconds"]["median"] > 0 and side["peak_bytes"] > side["peak_beyond_imports"] >= 0
        state = side["peak_beyond_imports"] - side["peak_beyond_state"]
        assert state == 16 * result["parameters"]
    assert "step 3: gpt2c loss" in out and "tiny, B2xT8" in out


def test_training_as_the_context_grows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    _, found, pictures = measured(tmp_path, capsys, "train", "--scaling", "length", "--threads", "1")
    assert [path.name for path in pictures] == ["train-length.png"]
    assert [(r["part"], r["T"], r["tokens"]) for r in found["results"]] == [("length", 8, 8), ("length", 16, 16)]


def test_account(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, found, pictures = measured(tmp_path, capsys, "account", "--threads", "1")
    assert [path.name for path in pictures] == ["account.png"]
    (result,) = found["results"]
    parts = result["parts"]
    # Every kernel of a step has its part, and every layer's two layernorms, the last one's and the backward's repeats.
    assert {"matmul, layers", "matmul, head", "attention_forward", "attention_backward", "adamw"} < set(parts)
    assert parts["layernorm_backward"]["calls"] == 2 * recipes.QUICK["n_layer"] + 1
    for name, part in parts.items():
        assert part["measured"] > 0 and (part["floor"] > 0 or name == account.REST)
    assert "together" in out


def test_what_grows_and_what_stays() -> None:
    jobs = {part: train.Train()._jobs(part, threads=2) for part in train.TITLES}
    assert [(job.config.batch_size, job.config.context) for job in jobs["length"]] == [
        (1, 64), (1, 256), (1, 1024), (1, 2048), (1, 4096),
    ]  # fmt: skip
    assert [job.threads for job in jobs["threads"]] == [1, 2] and {job.tokens for job in jobs["threads"]} == {256}
    assert [job.what for job in jobs["model"]] == list(recipes.MODELS) and {j.tokens for j in jobs["model"]} == {256}
    assert [job.what for job in jobs["sizes"]] == ["124m, B4xT64"]


@pytest.mark.parametrize("model", recipes.MODELS)
def test_a_jobs_parameters_are_the_models(model: str) -> None:
    n_layer, n_head, n_embd = recipes.MODELS[model]
    config = recipes.config_of("124m", "embedded", 3, quick=False)
    config = dataclasses.replace(config, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    job = recipes.Job(model, config, 2, 3)
    with torch.device("meta"):
        assert job.parameters == gpt2c.GPT2(job.model).num_parameters()
    assert job.parameters == pytest.approx(float(model.removesuffix("M")) * 1e6, rel=0.05)
    assert job.floor(FLOORS) == pytest.approx(job.flops / 1e9 + 28 * job.parameters / 2e9)


def test_what_memory_cannot_hold_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    found = Report({}, FLOORS)
    job = recipes.Job("tiny", recipes.config_of("124m", "embedded", 3, quick=True), 1, 3)
    assert train.compare(found, "sizes", job, (OURS, "torch"), FLOORS) is None
    assert found.results == [] and found.notes == ["tiny needs about 1 MB, and 0 MB are free: not measured"]


def test_sides_that_fit_one_at_a_time_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    job = recipes.Job("tiny", recipes.config_of("124m", "embedded", 3, quick=True), 1, 3)
    monkeypatch.setattr(machine, "available_bytes", lambda: int(1.5 * job.bytes))
    groups = []
    side = {"seconds": {"median": 1.0}}
    monkeypatch.setattr(train, "_train", lambda r, j, names: groups.append(names) or {n: side for n in names})
    result = train.compare(Report({}, FLOORS), "sizes", job, (OURS, "torch"), FLOORS)
    assert groups == [(OURS,), ("torch",)] and not result["in_turns"] and set(result["sides"]) == {OURS, "torch"}


def test_a_side_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class FakeSide:
        def __init__(self, name: str, config: object, threads: int) -> None:
            self.name, self.steps = name, 0

        def ready(self) -> None:
            pass

        def step(self, step: int) -> tuple[float, float]:
            if self.name == "torch" and step == 2:
                raise SideError("its process has ended")
            return 1.0, 0.5

        def memory(self) -> train.Memory:
            return train.Memory(3000, 1000)

        def validation_loss(self, batches: int) -> float:
            return 2.0

        def close(self) -> None:
            pass

    monkeypatch.setattr(train, "Side", FakeSide)
    found = Report({}, FLOORS)
    job = recipes.Job("tiny", recipes.config_of("124m", "embedded", 3, quick=True), 1, 3)
    sides = train._train(found, job, (OURS, "torch"))
    assert set(sides) == {OURS} and sides[OURS]["peak_beyond_imports"] == 2000
    assert found.notes == ["tiny: torch cannot go on: its process has ended"]


OUR_GENERATORS = ["gpt2c fp32", "gpt2c bf16", "gpt2c int8"]


def check_generation(found: dict) -> None:
    """Each result's numbers are finite and what they are said to be."""
    assert [(r["prompt"], r["batch"]) for r in found["results"]] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    for result in found["results"]:
        ours = result["sides"]["gpt2c fp32"]["token"]["median"]
        assert result["weights"] > 0 and 0 < result["bandwidth"] < math.inf
        for name, side in result["sides"].items():
            taken, first = side["token"], side["first"]
            assert taken["count"] == first["count"] == 2 and math.isfinite(taken["median"]) and first["median"] > 0
            assert side["bytes"] == result["weights"] * {"fp32": 4, "bf16": 2, "int8": 1}[name.split()[-1]]
            assert side["floor"] == pytest.approx(side["bytes"] / result["bandwidth"])
            assert side["prompt_tokens_per_s"] == pytest.approx(result["batch"] * result["prompt"] / first["median"])
            if taken["median"] > 0:  # it is a difference
                assert side["tokens_per_s"] == pytest.approx(result["batch"] / taken["median"])
                assert side["of_floor"] == pytest.approx(side["floor"] / taken["median"])
                assert ours <= 0 or side["ratio"] == pytest.approx(taken["median"] / ours)


def test_generation(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("ctranslate2")
    out, found, pictures = measured(tmp_path, capsys, "generate", "--threads", "1")
    assert [path.name for path in pictures] == ["generate-sides.png"]
    peers = ["transformers fp32", "ctranslate2 fp32", "ctranslate2 int8"]
    assert all(list(result["sides"]) == OUR_GENERATORS + peers for result in found["results"])
    check_generation(found)
    assert "Generation, tiny" in out and "left out" not in out


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        (("transformers", "ctranslate2"), {"transformers": "transformers", "ctranslate2": "ctranslate2"}),
        (("transformers",), {"transformers": "transformers", "ctranslate2": "transformers"}),
    ],
)
def test_generation_without_peers(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    missing: tuple[str, ...],
    told: dict[str, str],
) -> None:
    if missing == ("transformers",):
        pytest.importorskip("ctranslate2")
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    _, found, pictures = measured(tmp_path, capsys, "generate", "--threads", "1")
    assert len(pictures) == 1 and all(list(result["sides"]) == OUR_GENERATORS for result in found["results"])
    check_generation(found)
    assert {f"{peer} is left out: {name} is not installed" for peer, name in told.items()} <= set(found["notes"])


def test_a_generated_tokens_time_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def side(prompt: torch.Tensor, new: int) -> None:  # 2 s for the prompt, then 0.5 s a token
        now[0] += 2.0 * (prompt.shape[1] > 1) + 0.5 * (new - 1)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    assert generate._generations(side, torch.zeros(3, 4), new=5, pause=0.0) == (2.0, 4.0)
    prompt, matrices = torch.zeros(3, 4), [torch.zeros(10, 5)]
    times = {"gpt2c fp32": [0.5, 0.5], "other int8": [0.25, 0.25], "noisy fp32": [-0.1, 0.1]}
    result = generate._result(prompt, 5, matrices, [0.1, 0.1], {name: [2.0, 2.0] for name in times}, times)
    assert result["bandwidth"] == pytest.approx(2000)
    ours, other, noisy = result["sides"].values()
    assert (ours["tokens_per_s"], ours["prompt_tokens_per_s"], ours["of_floor"]) == pytest.approx((6.0, 6.0, 0.2))
    assert (other["tokens_per_s"], other["ratio"], other["of_floor"]) == pytest.approx((12.0, 0.5, 0.1))
    assert noisy["tokens_per_s"] is noisy["ratio"] is noisy["of_floor"] is None
    assert generate._unsteady([result]) == [
        "3 x 4 tokens of prompt: the machine was too unsteady to tell noisy fp32's time of a token"
    ]


def test_long_generations_get_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "ENOUGH", -1.0)
    asked, found, called = generate.Generate(quick=True, new_tokens=2), Report({}, FLOORS), []
    sides = {name: lambda prompt, new, name=name: called.append(name) for name in ("gpt2c fp32", "other fp32")}
    result = asked._compare(found, sides, [torch.zeros(2, 2)], torch.zeros(1, 3))
    assert result["sides"]["other fp32"]["token"]["count"] == generate.LEAST
    first, second = ([name] * 3 for name in sides)  # a warm-up and two generations
    assert called == first + second + second + first
    assert found.notes == ["1 x 3 tokens of prompt: 2 turns only, since they take long"]


@pytest.mark.parametrize("command", [Kernels, train.Train, generate.Generate, docs.Docs])
def test_help_explains_every_flag(capsys: pytest.CaptureFixture, command: type) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["bench", command.__name__.lower(), "--help"])
    assert not stop.value.code
    text = " ".join(capsys.readouterr().out.replace("│", " ").split()).partition("show this help message")[2]
    for field in dataclasses.fields(command):
        after = text.partition(f" --{field.name.replace('_', '-')} ")[2]
        assert "(default: " in after and len(after.partition("(default: ")[0]) > 30, field.name


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["kernels", "--only", "softmax"], "'softmax'"),
        (["kernels", "--threads", "0", "--quick"], "--threads is 0, expected at least 1"),
        (["train", "--sizes", "4x64", "--quick"], "--sizes has '4x64', expected batches like B4xT64"),
        (["train", "--steps", "1", "--quick"], "--steps is 1, expected at least 2"),
        (["train", "--data", "/nowhere.txt", "--quick", "--steps", "2"], "/nowhere.txt"),
        (["generate", "--new-tokens", "1", "--quick"], "--new-tokens is 1, expected at least 2"),
        (["generate", "--prompts", "8", "0", "--quick"], "--prompts is (8, 0), expected at least 1"),
        (["generate", "--prompts", "1000", "--quick"], "--new-tokens 32 exceed the model's context of 1024"),
        (["docs", "--out", "/nowhere"], "cannot read the page /nowhere/performance.md"),
        ([], "kernels, train"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: pytest.CaptureFixture, args: list[str], told: str) -> None:
    assert told in sentence(capsys, *args)


def test_docs_without_a_place(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / docs.PAGE).write_text("nothing\n")
    assert "has no place for kernels" in sentence(capsys, "docs", "--out", str(tmp_path))


def test_docs_are_written(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / docs.PAGE).write_text("<!-- bench train-small -->\n<!-- /bench -->\n")
    assert main(["bench", "docs", "--out", str(tmp_path), "--only", "train-small", "--quick"]) == 0
    page = (tmp_path / docs.PAGE).read_text()
    assert "`gpt2c bench train --recipe shakespeare" in page and "| tiny, B2xT16 | gpt2c |" in page
    assert (tmp_path / "images" / "bench-train-small" / "train-sides.png").stat().st_size > 5000
    # What is there is not measured again.
    (tmp_path / docs.PAGE).write_text("<!-- bench train-small -->\n<!-- /bench -->\n")
    json_file = tmp_path / "bench" / "train-small.json"
    json_file.write_text(json_file.read_text().replace("tiny, B2xT16", "as before"))
    arguments = ["--out", str(tmp_path), "--only", "train-small", "--quick", "--missing"]
    assert main(["bench", "docs", *arguments]) == 0
    assert "| as before | gpt2c |" in (tmp_path / docs.PAGE).read_text()


def test_ways_are_what_they_say() -> None:
    x = torch.randn(3, 4)
    (gradient,) = case.WAYS[BOTH](ops.gelu, [x])()
    (alone,) = case.WAYS["backward"](ops.gelu, [x])()
    given = x.clone().requires_grad_()
    ops.gelu(given).sum().backward()
    torch.testing.assert_close(gradient, given.grad)
    torch.testing.assert_close(alone, given.grad)
    assert not case.WAYS["forward"](ops.gelu, [given])().requires_grad
