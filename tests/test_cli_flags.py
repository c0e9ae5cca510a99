"""Phase one of the command line, in this process: flags, YAML, presets and names to checked values."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from lightning_ft.cli.help import GROUPS, fit_help
from lightning_ft.cli.options import field_docs, options_of
from lightning_ft.cli.resolve import Request, check_torch_names, parse, resolve
from lightning_ft.cli.values import MismatchError, coerce
from lightning_ft.cli.yamlfile import presets, read_config
from lightning_ft.config import TrainingConfig
from lightning_ft.errors import UsageError
from lightning_ft.registry import registry
from lightning_ft.run.trainer_words import DECIDED

if TYPE_CHECKING:
    from pathlib import Path

BASE = ("base", "--data", "rows.jsonl")


def request_of(*argv: str, stage: str = "fit") -> Request:
    return resolve(parse(argv), stage=stage)


def error_of(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        check_torch_names(request_of(*argv))
    return str(caught.value)


def write(folder: Path, text: str, name: str = "c.yaml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (BASE, {"model": "base", "data": ["rows.jsonl"]}),
        (("--model=base", "--data", "a", "b"), {"model": "base", "data": ["a", "b"]}),
        (("base", "--data", "[a,b]"), {"model": "base", "data": ["a", "b"]}),
        (("base", "--data", "a,b", "--data", "c"), {"model": "base", "data": ["a,b", "c"]}),
        ((*BASE, "--learning_rate", "2e-4"), {"learning_rate": 2e-4}),
        ((*BASE, "--split", "0.5,0.25,0.25"), {"split": [0.5, 0.25, 0.25]}),
        ((*BASE, "--on-error", "skip"), {"on_error": "skip"}),
        ((*BASE, "--gradient_checkpointing"), {"gradient_checkpointing": True}),
        ((*BASE, "--gradient_checkpointing", "4"), {"gradient_checkpointing": 4}),
        (("--gradient_checkpointing", "base", "--data", "d"), {"gradient_checkpointing": True, "model": "base"}),
        ((*BASE, "--preflight", "false", "--seed", "3"), {"preflight": False, "seed": 3}),
        ((*BASE, "--devices", "2"), {"devices": 2}),
        ((*BASE, "--devices", "auto"), {"devices": "auto"}),
        ((*BASE, "--max_steps", "none"), {"max_steps": None}),
        ((*BASE, "--method", "FULL"), {"method": {"name": "full"}}),
        ((*BASE, "--task", "messages"), {"task": {"name": "messages"}}),
        ((*BASE, "--metrics", "loss,perplexity"), {"metrics": ["loss", "perplexity"]}),
        ((*BASE, "--trainer.max_epochs", "2"), {"epochs": 2.0}),
        ((*BASE, "--trainer.precision", "bf16-mixed"), {"precision": "bf16"}),
        ((*BASE, "--trainer.gradient_clip_val", "0.5", "--max_grad_norm", "0.5"), {"max_grad_norm": 0.5}),
        ((*BASE, "--trainer.max_steps", "-1"), {"max_steps": None}),
        ((*BASE, "--columns.prompt", "q", "--columns", "{answer: a}"), {"columns": {"prompt": "q", "answer": "a"}}),
        ((*BASE, "--columns.prompt", "3"), {"columns": {"prompt": "3"}}),
        ((*BASE, "--trainer.val_check_interval", "50"), {"eval_every": 50}),
    ],
)
def test_flags_become_typed_options(argv: tuple[str, ...], expected: dict[str, object]) -> None:
    values = request_of(*argv).values
    assert {key: values[key] for key in expected} == expected
    assert [type(values[key]) for key in expected] == [type(value) for value in expected.values()]


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ((*BASE, "--epoch", "3"), "Expected a flag of `lightning-ft fit --help`, got '--epoch'. Did you mean '--epochs'?"),
        (
            (*BASE, "--learn", "3"),
            "Expected a flag of `lightning-ft fit --help`, got '--learn'. Did you mean '--learning_rate'?",
        ),
        ((*BASE, "--epochs", "three"), "Expected --epochs to be a number; got 'three'."),
        ((*BASE, "--batch_size", "2.5"), "Expected --batch_size to be a whole number or none; got '2.5'."),
        ((*BASE, "--packing", "of"), "Expected --packing to be one of auto, on, off; got 'of'."),
        ((*BASE, "--epochs"), "Expected a value after --epochs; got nothing."),
        ((*BASE, "--epochs", "-1"), "Expected --epochs to be above 0; got -1.0."),
        (
            (*BASE, "--seed.x", "1"),
            "Expected a flag of `lightning-ft fit --help`, got '--seed.x': --seed has no options of its own.",
        ),
        (("a", "b", "--data", "c"), "Expected one model, got 'a' and 'b'; several files follow --data."),
        (("a", "--model", "b", "--data", "c"), "Expected one model, got 'a' and 'b'; give it once."),
        (
            (*BASE, "--trainer.a.b", "c", "--trainer.a.b.d.f", "e"),
            "Expected --trainer.a.b.d.f below a mapping; got 'c' as the value of 'b'.",
        ),
        (
            (*BASE, "--trainer.a.b", "c", "--trainer.a.b.d", "e"),
            "Expected --trainer.a.b.d below a mapping; got 'c' as the value of 'b'.",
        ),
        (
            ("--data", "a"),
            "Expected --model, got nothing; type `lightning-ft fit --model PATH_OR_HUB_ID --data FILE`.",
        ),
        (("base",), "Expected --data, got nothing; type `lightning-ft fit --model PATH_OR_HUB_ID --data FILE`."),
        (
            (*BASE, "--epochs", "4", "--trainer.max_epochs", "3"),
            "Expected --trainer.max_epochs and --epochs to agree, for they mean the same; got '3' and '4'.",
        ),
        (
            (*BASE, "--trainer.val_check_interval", "0.5"),
            "Expected --trainer.val_check_interval to be a number of steps (--eval_every); got '0.5'.",
        ),
        (
            (*BASE, "--method.rnk", "3", "--method", "full"),
            "Expected --method.rnk to be an option of method full (none); got 'rnk'.",
        ),
        (
            (*BASE, "--task.system", "x"),
            "Expected --task.system with the task that it belongs to, as --task NAME; got task auto, which has no 'system'.",
        ),
        ((*BASE, "--optimizer.lr", "1"), "Expected --optimizer.lr by its everyday name, --learning_rate."),
        ((*BASE, "--optimizer", "SGD", "--optimizer.momentum", "x"), "Expected --optimizer.momentum to be a number; got 'x'."),
        (
            (*BASE, "--config", "./no.yaml"),
            "Expected --config to name a preset or a YAML file; got './no.yaml': No such file or directory.",
        ),
    ],
)
def test_wrong_flags_are_one_sentence(argv: tuple[str, ...], sentence: str) -> None:
    assert error_of(*argv) == sentence


def test_unknown_names_list_what_is_there() -> None:
    names = ", ".join(entry.name for entry in registry().methods.values())
    assert error_of(*BASE, "--method", "ful") == (
        f"Expected --method to be one of {names}; got 'ful'. Did you mean 'full'? "
        "`lightning-ft plugins list` shows which plugin brings which."
    )
    assert "got 'losss'. Did you mean 'loss'?" in error_of(*BASE, "--metrics", "losss")
    assert "got 'AdanW'. Did you mean 'AdamW'?" in error_of(*BASE, "--optimizer", "AdanW")
    assert "quick_test" in error_of(*BASE, "--config", "quick_tst")
    assert error_of(*BASE, "--config", "quick_tst").endswith("got 'quick_tst'. Did you mean 'quick_test'?")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "epochs: 3\nepoch: 4\n",
            "{f}:2: expected one of the options of `lightning-ft fit --help`; got 'epoch'. Did you mean 'epochs'?",
        ),
        ("\nepochs: three\n", "{f}:2: expected epochs to be a number; got 'three'."),
        ("max_steps: true\n", "{f}:1: expected max_steps to be a whole number or none; got 'True' (true or false)."),
        ("name: 3\n", "{f}:1: expected name to be text or none; got '3' (a number)."),
        ("epochs: 3\n\nepochs: 4\n", "{f}:3: expected each key once; 'epochs' also stands in line 1."),
        (
            "method:\n  name: full\n  rank: 3\n",
            "{f}:3: expected method.rank to be an option of method full (none); got 'rank'.",
        ),
        (
            "method: [full]\n",
            "{f}:1: expected method to be a name or a mapping, as {{name: ..., option: ...}}; got 'full' (a list).",
        ),
        ("# a list\n- epochs\n", "{f}:2: expected a mapping, as `epochs: 3`; got a list."),
        ("epochs: [3\n", "{f}:2: expected YAML; expected ',' or ']', but got '<stream end>'."),
        ("x: !!python/object/apply:os.system ['true']\n", None),
        ("on: 3\n", "{f}:1: expected a key to be text; got 'on', quote it."),
        ("epochs: 2\ntrainer: {{max_epochs: 3}}\n", None),
        (
            "revision: abc\ntrust_remote_code: true\n",
            "{f}:2: expected trust_remote_code to be false in a config file; to run the model repository's code, "
            "type --trust_remote_code.",
        ),
    ],
)
def test_wrong_files_name_file_and_line(tmp_path: Path, text: str, sentence: str | None) -> None:
    path = write(tmp_path, text.format())
    found = error_of(*BASE, "--config", path)
    assert found.startswith(f"{path}:")
    if sentence is not None:
        assert found == sentence.format(f=path)


def test_yaml_traps_are_read_as_meant(tmp_path: Path) -> None:
    path = write(
        tmp_path, "packing: on\nlearning_rate: 2e-4\nepochs: 1\nmetrics: loss\noptimizer: {name: sgd, momentum: 0.5}\n"
    )
    request = request_of(*BASE, "--config", path)
    check_torch_names(request)
    assert request.values["packing"] == "on"
    assert request.values["learning_rate"] == 2e-4
    assert isinstance(request.values["epochs"], float)
    assert request.values["metrics"] == ["loss"]
    assert request.values["optimizer"] == {"name": "SGD", "momentum": 0.5}


def test_later_files_win_and_flags_win_over_files(tmp_path: Path) -> None:
    first = write(tmp_path, "epochs: 1\nseed: 1\nmax_steps: 10\n", "first.yaml")
    second = write(tmp_path, "seed: 2\ntrainer: {max_steps: 20}\n", "second.yaml")
    request = request_of(*BASE, "--config", first, "--config", second, "--epochs", "9")
    assert [request.values[name] for name in ("epochs", "seed", "max_steps")] == [9.0, 2, 20]
    assert request.given == {"model", "data", "epochs", "seed", "max_steps"}


def test_options_of_another_class_do_not_carry_over(tmp_path: Path) -> None:
    path = write(tmp_path, "optimizer: {name: SGD, momentum: 0.5}\n")
    same = request_of(*BASE, "--config", path, "--optimizer.nesterov", "true")
    check_torch_names(same)
    assert same.values["optimizer"] == {"name": "SGD", "momentum": 0.5, "nesterov": True}
    other = request_of(*BASE, "--config", path, "--optimizer", "AdamW")
    check_torch_names(other)
    assert other.values["optimizer"] == {"name": "AdamW"}


def test_options_without_a_name_are_those_of_the_usual_class(tmp_path: Path) -> None:
    """So they stay when it is named later, and go when another one is."""
    path = write(tmp_path, "optimizer: {betas: [0.8, 0.9]}\n")
    for name, kept in (("adamw", {"betas": (0.8, 0.9)}), ("SGD", {})):
        request = request_of(*BASE, "--config", path, "--optimizer", name)
        check_torch_names(request)
        found = dict(request.values["optimizer"])
        assert found.pop("name").lower() == name.lower()
        assert {key: tuple(value) for key, value in found.items()} == kept


@pytest.mark.parametrize(
    ("flags", "text", "key", "path"),
    [
        (("--trainer.callbacks.class_path", "os.system"), "", "trainer.callbacks.class_path", "os.system"),
        (("--trainer.logger", "subprocess.Popen"), "", "trainer.logger", "subprocess.Popen"),
        (("--trainer.profiler=antigravity.fly",), "", "trainer.profiler", "antigravity.fly"),
        (("--trainer.callbacks", "[{class_path: os.system}]"), "", "trainer.callbacks.class_path", "os.system"),
        ((), "trainer: {callbacks: [{class_path: this.s}]}", "trainer.callbacks.class_path", "this.s"),
        ((), "trainer: {plugins: [antigravity.fly]}", "trainer.plugins", "antigravity.fly"),
        ((), "method: {class_path: antigravity.fly}", "method.class_path", "antigravity.fly"),
        ((), "trainer: {logger: {class_path: lightning_evil.X}}", "trainer.logger.class_path", "lightning_evil.X"),
    ],
)
def test_foreign_class_paths_are_refused(tmp_path: Path, flags: tuple[str, ...], text: str, key: str, path: str) -> None:
    import sys

    config = ("--config", write(tmp_path, text)) if text else ()
    found = error_of(*BASE, *config, *flags)
    assert found.startswith("Expected a class of lightning_ft, torch.optim, lightning")
    assert f"got '{path}' at '{key}', which a config may not import" in found
    assert not {"antigravity", "this"} & set(sys.modules)


def test_trusted_class_paths_and_dotted_file_names_pass() -> None:
    request = request_of(
        *BASE, "--trainer.callbacks.class_path", "lightning.pytorch.callbacks.Timer", "--trainer.default_root_dir", "os.d"
    )
    assert request.trainer == {"callbacks": {"class_path": "lightning.pytorch.callbacks.Timer"}, "default_root_dir": "os.d"}


def test_remote_code_in_a_file_is_confirmed_by_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path, "trust_remote_code: true\nrevision: abc\n")
    assert request_of(*BASE, "--config", path, "--trust_remote_code").values["trust_remote_code"] is True


def run_folder(folder: Path, text: str) -> str:
    """A run folder as somebody else may have written it."""
    write(folder, "{}", "run.json")
    write(folder, f"model: base\ndata: [rows.jsonl]\n{text}\n", "config.yaml")
    (folder / "checkpoints" / "last").mkdir(parents=True)
    return str(folder)


@pytest.mark.parametrize("below", ["", "/checkpoints", "/checkpoints/last"])
@pytest.mark.parametrize(("stage", "flag"), [("fit", "--resume"), ("test", "--model"), ("predict", "--model")])
def test_foreign_class_paths_in_the_config_of_a_run_are_refused(tmp_path: Path, stage: str, flag: str, below: str) -> None:
    import sys

    folder = run_folder(tmp_path, "trainer: {callbacks: [{class_path: antigravity.fly}]}")
    with pytest.raises(UsageError, match=r"got 'antigravity\.fly' at 'trainer\.callbacks\.class_path', which a config may not"):
        request_of(flag, f"{folder}{below}", stage=stage)
    assert "antigravity" not in sys.modules


def test_a_resumed_run_gives_everything_but_the_trust_in_remote_code(tmp_path: Path) -> None:
    folder = run_folder(tmp_path, "revision: abc\ntrust_remote_code: true\nepochs: 7\nresume: elsewhere")
    with pytest.raises(UsageError, match=r"config\.yaml:4: expected trust_remote_code to be false .*type --trust_remote_code"):
        request_of("--resume", folder)
    found = request_of("--resume", folder, "--trust_remote_code").config()
    assert (found.model, found.data, found.epochs, found.resume) == ("base", ["rows.jsonl"], 7.0, folder)
    assert found.trust_remote_code is True
    for stage in ("validate", "test"):
        assert request_of("--model", folder, stage=stage).config().trust_remote_code is False


def test_the_config_of_a_run_runs_it_again(tmp_path: Path) -> None:
    import yaml

    first = request_of(*BASE, "--method", "full", "--optimizer", "AdamW", "--epochs", "2", "--packing", "on")
    check_torch_names(first)
    path = write(tmp_path, yaml.safe_dump(first.config().as_dict(), sort_keys=False))
    again = request_of("--config", path)
    check_torch_names(again)
    before, after = first.config().as_dict(), again.config().as_dict()
    assert {k: v for k, v in after.items() if v != before[k]} == {}


def test_every_option_has_a_docstring_and_one_place_in_the_help() -> None:
    names = [f.name for f in dataclasses.fields(TrainingConfig)]
    grouped = [name for group in GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(names)
    assert sorted(field_docs(TrainingConfig)) == sorted(names)
    text = fit_help("fit", Request({}, frozenset()), registry())
    for name, option in options_of(TrainingConfig).items():
        assert f"--{name}" in text
        assert " ".join(option.help.split()[:4]) in " ".join(text.split())


def test_help_shows_the_options_of_the_chosen_class() -> None:
    request = Request({}, frozenset())
    request.classes["optimizer"] = registry().optimizers["sgd"]
    text = fit_help("fit", request, registry(), everything=True)
    assert "--optimizer.momentum" in text
    assert "--optimizer.lr" not in text
    assert "--trainer.limit_val_batches" in text
    assert not [name for name in DECIDED if f"--trainer.{name} " in text], "they would be refused"


def test_the_presets_of_the_core_are_valid() -> None:
    assert "quick_test" in presets()
    for name in presets():
        assert request_of(*BASE, "--config", name).config().data == ["rows.jsonl"]


def test_a_config_of_many_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UsageError, match="expected at most 20000 values"):
        read_config(write(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize("deep", ["[" * 3000, "[" * 3000 + "]" * 3000, "{a: " * 3000 + "1" + "}" * 3000, "[" * 60 + "]" * 60])
def test_a_deep_config_is_refused(tmp_path: Path, deep: str) -> None:
    with pytest.raises(UsageError, match=r"c\.yaml: expected .*nested at most 50 deep; got more"):
        read_config(write(tmp_path, f"trainer: {deep}"))
    with pytest.raises(MismatchError):
        coerce("[" * 3000 + "]" * 3000, dict, text=True)


@pytest.mark.parametrize(
    ("value", "annotation", "text", "expected"),
    [
        ("3", int | str, True, 3),
        ("3x", int | str, True, "3x"),
        (["a", "b"], list[str] | str, True, ["a", "b"]),
        ("a", list[str] | str, True, "a"),
        ("[1, 2]", tuple[int, int], True, (1, 2)),
        ("{a: 1e-3}", dict[str, float], True, {"a": "1e-3"}),
        (3, float, False, 3.0),
        ("null", str | None, True, None),
        ("null", str, True, "null"),
    ],
)
def test_values_by_annotation(value: object, annotation: object, text: bool, expected: object) -> None:
    assert coerce(value, annotation, text=text) == expected


@pytest.mark.parametrize(
    ("value", "annotation", "text"),
    [
        (True, int, False),
        (True, float, False),
        ("x", bool, True),
        ([1], int, False),
        ("[1]", tuple[int, int], True),
        (3.5, int, False),
    ],
)
def test_values_that_do_not_fit(value: object, annotation: object, text: bool) -> None:
    with pytest.raises(MismatchError):
        coerce(value, annotation, text=text)
