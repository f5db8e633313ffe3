"""Checkpoints: what is saved comes back bit for bit, and what is damaged, foreign or unwritable is one sentence."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from gpt2c import checkpoint
from gpt2c.errors import UserError
from gpt2c.load import load_model
from gpt2c.model import GPT2
from gpt2c.optim import AdamW
from gpt2c.step import accumulate_gradients, make_optimizer, micro_batches
from gpt2c.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two threads have nothing to share in so small a model, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


def trained(folder: Path, steps: int = 2) -> tuple[GPT2, torch.optim.Optimizer]:
    """A tiny model and its optimizer after a few steps."""
    folder.mkdir(exist_ok=True)
    t = tiny.opened(tiny.config(folder, out=folder / "unused"))
    for step in range(1, steps + 1):
        accumulate_gradients(t.model, t.optimizer, micro_batches(t.dataset, step, t.config))
        t.optimizer.step(grad_scale=0.5)
    return t.model, t.optimizer


def record(step: int, val_loss: float | None = None) -> checkpoint.Record:
    return checkpoint.Record(step, "bytes", val_loss, 1.5, {"metrics.jsonl": 10})


def save(run: Path, model: GPT2, optimizer: torch.optim.Optimizer, record: checkpoint.Record) -> Path:
    return checkpoint.save(run, model.save_pretrained, model, optimizer, record)


def restored(path: Path, folder: Path) -> tuple[GPT2, torch.optim.Optimizer]:
    model = GPT2.from_pretrained(path)
    optimizer = make_optimizer(model, tiny.config(folder))
    checkpoint.restore(path, model, optimizer)
    return model, optimizer


def same_state(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> bool:
    """Whether two optimizers hold the same values; torch's own makes a tensor of a step that is a number."""
    left, right = ({(i, k): torch.as_tensor(v) for i, s in o.state_dict()["state"].items() for k, v in s.items()}
                   for o in (a, b))  # fmt: skip
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key].to(left[key].dtype)) for key in left)


def test_everything_comes_back_bit_for_bit(tmp_path: Path) -> None:
    model, optimizer = trained(tmp_path)
    path = save(tmp_path / "run", model, optimizer, record(2))
    other_model, other_optimizer = restored(path, tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other_model.parameters(), strict=True))
    assert same_state(optimizer, other_optimizer)
    assert any(state["exp_avg"].abs().max() > 0 for state in optimizer.state.values())


def test_master_weights_come_back_bit_for_bit(tmp_path: Path) -> None:
    def steps(model: GPT2, optimizer: AdamW, count: int) -> None:
        for i in range(count):
            idx = torch.arange(16 * i, 16 * i + 16).view(1, 16)
            model(idx, idx)[1].backward()
            optimizer.step()
            optimizer.zero_grad()

    def masters_of(model: GPT2) -> AdamW:
        return AdamW(model.parameters(), lr=1e-4, master_weights=True)

    model = trained(tmp_path, steps=0)[0].bfloat16()
    optimizer = masters_of(model)
    steps(model, optimizer, 2)
    path = save(tmp_path / "run", model, optimizer, record(2))
    other_model = GPT2.from_pretrained(path).train()
    other_optimizer = masters_of(other_model)
    checkpoint.restore(path, other_model, other_optimizer)
    assert same_state(optimizer, other_optimizer)
    for pair in ((model, optimizer), (other_model, other_optimizer)):
        steps(*pair, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other_model.parameters(), strict=True))
    assert same_state(optimizer, other_optimizer)
    with pytest.raises(UserError, match="training.safetensors is damaged: AdamW: .* has a master, expected none"):
        checkpoint.restore(path, other_model, AdamW(other_model.parameters()))


def test_state_that_is_numbers_comes_back(tmp_path: Path) -> None:
    model, optimizer = trained(tmp_path)
    for state in optimizer.state.values():
        state["step"] = int(state["step"])
    path = save(tmp_path / "run", model, optimizer, record(2))
    assert checkpoint.read_record(path).optimizer["step.wte.weight"] == 2
    assert same_state(optimizer, restored(path, tmp_path)[1])


def test_the_files_and_that_none_is_a_pickle(tmp_path: Path) -> None:
    path = save(tmp_path / "run", *trained(tmp_path), record(7, 2.5))
    assert path == tmp_path / "run" / "checkpoints" / "step_000007"
    assert sorted(tiny.files(path)) == ["config.json", "model.safetensors", "training.json", "training.safetensors"]
    assert json.loads((path / "training.json").read_text())["val_loss"] == 2.5
    assert checkpoint.read_record(path).step == 7
    assert "exp_avg.h.0.attn.c_attn.weight" in load_file(path / "training.safetensors")
    modes = {file.stat().st_mode for file in path.iterdir()}
    assert len(modes) == 1, "all files of a checkpoint must be as readable as the others"


# Which checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Five checkpoints; the best is the second."""
    model, optimizer = trained(tmp_path)
    for step, loss in ((8, 3.0), (9, 2.0), (10, None), (11, 2.5), (100, None)):
        save(tmp_path / "run", model, optimizer, record(step, loss))
    return tmp_path / "run"


def steps_of(run: Path) -> list[int]:
    return [checkpoint.read_record(path).step for path in checkpoint.list_all(run)]


def test_latest_and_best(run: Path) -> None:
    assert steps_of(run) == [8, 9, 10, 11, 100]
    assert checkpoint.latest(run).name == "step_000100"
    assert checkpoint.best(run).name == "step_000009"
    assert checkpoint.resolve(str(run)) == str(checkpoint.best(run))
    assert checkpoint.resolve("gpt2") == "gpt2"


def test_prune_keeps_the_latest_and_the_best(run: Path) -> None:
    (run / "checkpoints" / ".step_000101.tmp").mkdir()
    checkpoint.prune(run, keep=2)
    assert steps_of(run) == [9, 11, 100]
    assert len(list((run / "checkpoints").iterdir())) == 3, "what a killed save left must go, too"
    checkpoint.prune(run, keep=1)
    assert steps_of(run) == [9, 100]


def test_a_million_steps_come_after_all_with_six_digits(tmp_path: Path) -> None:
    for step in (1_000_000, 999_999, 2):
        (tmp_path / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    assert [path.name for path in checkpoint.list_all(tmp_path)] == ["step_000002", "step_999999", "step_1000000"]


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None and checkpoint.best(tmp_path) is None
    checkpoint.prune(tmp_path, keep=1)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(UserError, match="has no checkpoint yet"):
        checkpoint.resolve(str(tmp_path))


def test_what_a_killed_save_left_is_no_checkpoint_and_no_obstacle(run: Path, tmp_path: Path) -> None:
    left = run / "checkpoints" / ".step_000200.tmp"
    shutil.copytree(checkpoint.latest(run), left)
    assert steps_of(run)[-1] == 100
    save(run, *trained(tmp_path / "again"), record(200))
    assert steps_of(run)[-1] == 200 and not left.exists()


# Writing that fails


@pytest.mark.parametrize("step_that_fails", ["save_tensors", "fsync", "rename"])
def test_a_full_disk_leaves_nothing_behind(run: Path, monkeypatch: pytest.MonkeyPatch, step_that_fails: str) -> None:
    model, optimizer = trained(run.parent / "again")
    before = tiny.files(run)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os if step_that_fails == "rename" else checkpoint, step_that_fails, full)
    with pytest.raises(UserError, match="cannot write .*step_000300: No space left on device; make room or choose"):
        save(run, model, optimizer, record(300))
    assert tiny.files(run) == before
    assert not (run / "checkpoints" / ".step_000300.tmp").exists()


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write .*step_000001: Not a directory"):
        save(tmp_path / "file" / "run", *trained(tmp_path), record(1))


# Checkpoints that cannot be resumed from


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tiny.config(tmp_path_factory.mktemp("finished"))).run.folder


@pytest.fixture(scope="module")
def wider(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a wider model."""
    return train(tiny.config(tmp_path_factory.mktemp("wider"), n_embd=64)).checkpoint


@pytest.fixture
def resumable(finished: Path, tmp_path: Path) -> Path:
    """The latest checkpoint of a finished run in tmp_path/run."""
    shutil.copytree(finished, tmp_path / "run")
    return checkpoint.latest(tmp_path / "run")


def hashed_anew(path: Path) -> None:
    """Make the record fit the files, as if they had been written like that."""
    contents = json.loads((path / "training.json").read_text())
    contents["sha256"] = {name: checkpoint.sha256(path / name) for name in contents["sha256"]}
    del contents[checkpoint.DIGEST]
    contents[checkpoint.DIGEST] = checkpoint._digest(contents)
    (path / "training.json").write_text(json.dumps(contents))


def resume_error(tmp_path: Path) -> str:
    before = tiny.files(tmp_path / "run")
    with pytest.raises(UserError) as error:
        train(tiny.config(tmp_path, steps=12), resume=True)
    assert tiny.files(tmp_path / "run") == before, "a refused resume must not change anything"
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "config.json", "training.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign", "missing"])
def test_damaged_files_are_named(resumable: Path, tmp_path: Path, name: str, damage: str) -> None:
    file = resumable / name
    if damage == "missing":
        file.unlink()
    else:
        whole = file.read_bytes()
        foreign = b"\x80\x04K\x01." * 99  # a pickle
        file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "foreign": foreign}[damage])
    assert str(resumable) in (message := resume_error(tmp_path))
    assert name in message


def test_another_configuration(resumable: Path, wider: Path, tmp_path: Path) -> None:
    shutil.rmtree(resumable)
    shutil.copytree(wider, resumable)
    message = resume_error(tmp_path)
    assert "n_embd=64" in message and "n_embd=32" in message


def test_training_state_of_another_model(resumable: Path, wider: Path, tmp_path: Path) -> None:
    shutil.copyfile(wider / "training.safetensors", resumable / "training.safetensors")
    hashed_anew(resumable)
    assert "does not belong to the model" in resume_error(tmp_path)


def test_training_state_that_lacks_something(resumable: Path, tmp_path: Path) -> None:
    tensors = load_file(resumable / "training.safetensors")
    del tensors["exp_avg.wte.weight"]
    save_file(tensors, resumable / "training.safetensors")
    hashed_anew(resumable)
    assert "lacks the state of wte.weight" in resume_error(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "config.json", "training.json"])
def test_one_flipped_byte_is_refused_and_the_one_before_offered(resumable: Path, tmp_path: Path, name: str) -> None:
    file = resumable / name
    contents = bytearray(file.read_bytes())
    position = contents.index(b"0", len(contents) // 2) if name.endswith(".json") else len(contents) - 5
    contents[position] ^= 1
    file.write_bytes(contents)
    message = resume_error(tmp_path)
    assert f"{name} is damaged" in message
    assert "remove the folder step_000008 to go on from step_000006, the one before it" in message
    shutil.rmtree(resumable)
    assert train(tiny.config(tmp_path, steps=12), resume=True).step == 12


def test_a_damaged_checkpoint_is_not_sampled_from(resumable: Path) -> None:
    weights = resumable / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    with pytest.raises(UserError, match="model.safetensors is damaged: its SHA-256 is"):
        load_model(str(resumable))


def test_a_damaged_record_of_the_run(resumable: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "run.json").write_text("{}")
    assert "run.json is damaged" in resume_error(tmp_path)
