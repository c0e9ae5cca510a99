"""Folders that are whole or not there, manifests, the state tree, and which checkpoint a resume finds."""

import errno
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lightning_ft import atomic
from lightning_ft.builtin import Full
from lightning_ft.checkpoint import checkpoints, load_trained, newest, path_of, step_of
from lightning_ft.errors import TrainingError, UsageError
from lightning_ft.run.checkpoint_io import FolderCheckpoint
from lightning_ft.run.state import TENSORS, TREE, load_state, save_state
from lightning_ft.testing.models import FAMILIES, Family, tiny_model

OLD, NEW = {"a": "old a", "sub/b": "old b"}, {"a": "new a", "sub/c": "new c"}


def fill(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def write(target: Path, files: dict[str, str]) -> None:
    with atomic.whole_folder(target) as folder:
        fill(folder, files)


def content(target: Path) -> dict[str, str]:
    found = (p for p in target.rglob("*") if p.is_file() and p.name != atomic.MANIFEST)
    return {str(p.relative_to(target)): p.read_text() for p in found}


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"abc" * 100_000)
    assert atomic.sha256(tmp_path / "x.bin") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "x" / "target"
    for files in (OLD, NEW):
        write(target, files)
        assert content(target) == files
        assert atomic.broken(target) is None
    assert [p.name for p in target.parent.iterdir()] == ["target"]


def test_it_is_replaced_where_the_system_cannot_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_swap", lambda one, other: False)
    test_a_folder_is_replaced_as_a_whole(tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_ft import atomic

place, swap = Path(sys.argv[1]), sys.argv[2] == "swap"
events = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "os.scandir")
state = {"count": 0, "at": None}

def hook(event, args):
    if state["at"] is None or event not in events or not any(str(a).startswith(str(place)) for a in args[:2]):
        return
    state["count"] += 1
    if state["count"] == state["at"]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
if not swap:
    atomic._swap = lambda one, other: False
for exists in (False, True):
    at = 0
    while True:
        at += 1
        target = place / f"{exists}_{at}" / "target"
        if exists:
            with atomic.whole_folder(target) as folder:
                (folder / "a").write_text("old a")
        child = os.fork()
        if not child:
            state["at"] = at
            with atomic.whole_folder(target) as folder:
                (folder / "a").write_text("new a")
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            break
    print(at)
"""
"""Writes a folder again and again, killed before its first, second ... operation on the file system."""


@pytest.mark.parametrize("swap", [True, False])
def test_a_kill_at_any_operation_leaves_the_old_folder_or_the_new(tmp_path: Path, swap: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "swap" if swap else "rename"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    operations = [int(line) for line in done.stdout.split()]
    assert min(operations) > 8
    outcomes: dict[bool, set[str]] = {False: set(), True: set()}
    for exists, last in zip((False, True), operations, strict=True):
        for at in range(1, last + 1):
            place = tmp_path / f"{exists}_{at}"
            if not swap:
                atomic.clear_leftovers(place)
            target = place / "target"
            if not target.exists():
                outcomes[exists].add("none")
                continue
            assert atomic.broken(target) is None
            outcomes[exists].add((target / "a").read_text())
            atomic.clear_leftovers(place)
            assert [p.name for p in place.iterdir()] == ["target"]
    assert outcomes == {False: {"none", "new a"}, True: {"old a", "new a"}}


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_at_any_stage_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    target = tmp_path / "target"
    if exists:
        write(target, OLD)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise full

    for place, name in (
        (atomic, "sync"),
        (atomic, "sha256"),
        (atomic, "_write_manifest"),
        (Path, "mkdir"),
        (Path, "write_text"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, fail)
            with pytest.raises(TrainingError, match=r"No space left.*untouched"):
                write(target, NEW)
        assert content(target) == (OLD if exists else {})
        assert not list(tmp_path.glob(".tmp*"))
    if exists:
        assert atomic.broken(target) is None


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("mine"), PermissionError(errno.EACCES, "no")])
def test_other_failures_are_passed_on(tmp_path: Path, error: BaseException) -> None:
    write(tmp_path / "target", OLD)

    def interrupted() -> None:
        with atomic.whole_folder(tmp_path / "target") as folder:
            fill(folder, NEW)
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert content(tmp_path / "target") == OLD
    assert not list(tmp_path.glob(".tmp*"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped byte": (flip, "sub/b has another hash"),
    "truncated": (lambda path: os.truncate(path, 2), "sub/b has 2 bytes, expected 5"),
    "deleted": (lambda path: path.unlink(), "sub/b is missing"),
    "no manifest": (lambda path: (path.parent.parent / atomic.MANIFEST).unlink(), "manifest.json is missing"),
    "half a manifest": (lambda path: os.truncate(path.parent.parent / atomic.MANIFEST, 20), "manifest.json is unreadable"),
    "another manifest": (lambda path: (path.parent.parent / atomic.MANIFEST).write_text("[]"), "manifest.json is unreadable"),
    "foreign manifest": (lambda path: (path.parent.parent / atomic.MANIFEST).write_text('{"files": [1]}'), "unreadable"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    write(tmp_path / "target", OLD)
    hurt, reason = DAMAGES[damage]
    hurt(tmp_path / "target" / "sub" / "b")
    assert reason in str(atomic.broken(tmp_path / "target"))


def test_text_is_written_whole_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.write_json(tmp_path / "x.json", {"a": 1})

    def full(path: Path) -> None:
        raise OSError("full")

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(OSError, match="full"):
        atomic.write_json(tmp_path / "x.json", {"a": 2})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_a_lock_lets_one_process_in(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom lightning_ft.atomic import one_at_a_time\n"
        "place = Path(sys.argv[1])\n"
        "for _ in range(50):\n"
        "    with one_at_a_time(place / 'lock'):\n"
        "        (place / 'count').write_text(str(int((place / 'count').read_text()) + 1))\n"
    )
    (tmp_path / "count").write_text("0")
    several = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait(60) for process in several] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "150"


# ---- the state tree -------------------------------------------------------------------------------------------------

TENSOR = st.builds(
    lambda shape, dtype, seed: torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(9).to(dtype),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]),
    st.integers(0, 9),
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | TENSOR
KEY = st.text(max_size=4) | st.integers(-5, 5) | st.sampled_from(["$tensor", "$dict", "$tuple", "a.b", "a"])
FEW: Any = {"max_size": 3}
TREES = st.recursive(
    LEAF,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(KEY, inner, max_size=3)
    ),
    max_leaves=12,
)


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        assert torch.equal(one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for a, b in zip(one.values(), other.values(), strict=True):
            assert_same(a, b)
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert one == other


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(KEY, TREES, max_size=4))
def test_state_comes_back_bit_for_bit(tmp_path: Path, state: dict[Any, Any]) -> None:
    save_state(state, tmp_path)
    assert_same(load_state(tmp_path), state)


def test_names_that_look_alike_and_shared_memory_are_kept_apart(tmp_path: Path) -> None:
    x = torch.arange(4.0)
    state = {"a": {"b": x}, "a.b": x + 1, 1: x * 2, "1": x * 3, "again": x, "view": x[:2], "nan": torch.tensor(float("nan"))}
    save_state(state, tmp_path)
    assert_same(load_state(tmp_path), state)


def test_state_of_a_real_optimizer_comes_back(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_state({"optimizer": optimizer.state_dict()}, tmp_path)
    assert_same(load_state(tmp_path)["optimizer"], optimizer.state_dict())
    assert {p.name for p in tmp_path.iterdir()} == {TENSORS, TREE}


def test_what_is_no_plain_value_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.a\.1 is a set"):
        save_state({"a": [0, {1}]}, tmp_path)


# ---- checkpoints ----------------------------------------------------------------------------------------------------


def run_with(tmp_path: Path, *steps: int) -> Path:
    def write_model(folder: Path, gathered: Any) -> None:
        assert gathered is None
        (folder / "model.txt").write_text("model")

    io = FolderCheckpoint(cast("Any", write_model))
    for step in steps:
        io.save_checkpoint({"step": step}, path_of(tmp_path, step))
    return tmp_path


def test_the_newest_whole_checkpoint_is_found_and_broken_ones_are_said(tmp_path: Path) -> None:
    run = run_with(tmp_path, 9, 10, 100)
    (run / "checkpoints" / ".tmp-checkpoint-step-200-1").mkdir()
    (run / "checkpoints" / "checkpoint-step-x").mkdir()
    assert [step_of(p) for p in checkpoints(run)] == [100, 10, 9]
    said: list[str] = []
    assert newest(run) == path_of(run, 100)
    flip(path_of(run, 100) / "model.txt")
    (path_of(run, 10) / TREE).unlink()
    assert newest(run, say=said.append) == path_of(run, 9)
    assert [line.split(";")[0] for line in said] == [
        "checkpoint-step-100 is broken (model.txt has another hash than when it was written)",
        "checkpoint-step-10 is broken (trainer_state.json is missing)",
    ]
    os.truncate(path_of(run, 9) / atomic.MANIFEST, 3)
    assert newest(run) is None
    assert newest(tmp_path / "nothing") is None


def test_a_broken_checkpoint_is_not_loaded(tmp_path: Path) -> None:
    run = run_with(tmp_path, 1)
    io = FolderCheckpoint(cast("Any", None))
    assert io.load_checkpoint(path_of(run, 1)) == {"step": 1, "folder": path_of(run, 1)}
    flip(path_of(run, 1) / TENSORS)
    with pytest.raises(UsageError, match=f"Expected a whole checkpoint in .*{TENSORS} has another hash"):
        io.load_checkpoint(path_of(run, 1))
    io.remove_checkpoint(path_of(run, 1))
    io.remove_checkpoint(path_of(run, 1))
    assert not list((run / "checkpoints").iterdir())


def test_a_folder_of_another_name_is_no_checkpoint() -> None:
    with pytest.raises(UsageError, match="checkpoint-step-<n>, got 'checkpoint-7'"):
        step_of(Path("checkpoints/checkpoint-7"))


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_are_put_back_bit_for_bit(tmp_path: Path, family: Family) -> None:
    trained, other = tiny_model(family, 1), tiny_model(family, 2)
    trained.save_pretrained(tmp_path)
    load_trained(Full().attach(other, 1), Full(), tmp_path)
    for (name, p), (again, q) in zip(trained.named_parameters(), other.named_parameters(), strict=True):
        assert name == again
        assert torch.equal(p, q)


def test_parameters_of_another_method_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not those of method full"):
        Full().load_trainable_state(model, {"lm_head.weight": model.get_parameter("lm_head.weight")})


class OwnConfig(LlamaConfig):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    model_type = "a_repositorys_own"


class OwnModel(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # as above
    """A class that transformers' Auto classes do not know."""

    config_class = OwnConfig


def test_a_model_of_a_repositorys_own_code_is_put_back(tmp_path: Path) -> None:
    size: dict[str, Any] = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    size["num_attention_heads"] = 2
    trained, other = OwnModel(OwnConfig(**size)), OwnModel(OwnConfig(**size))
    trained.save_pretrained(tmp_path)
    load_trained(Full().attach(other, 1), Full(), tmp_path)
    assert all(torch.equal(p, q) for p, q in zip(trained.parameters(), other.parameters(), strict=True))
