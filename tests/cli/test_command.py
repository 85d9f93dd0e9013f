"""The command `scnet`: help, arguments, completion, errors, names of models and configs."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from scnet_command import arguments, user_errors
from scnet_d2 import model_zoo
from scnet_d2.config import ConfigError
from scnet_d2.modeling import LabelHead
from scnet_d2.tagging.inputs import IMAGE_SUFFIXES
from scnet_d2.tagging.local_engine import MAX_PIXELS

import pytest
import torch
from conftest import CONFIGS, REPO, load_config, scnet
from detectron2.engine import default_argument_parser
from detectron2.layers import ShapeSpec

COMMANDS = [(name,) for name in arguments.COMMANDS]
COMMANDS += [("models", name) for name in ("list", "show", "package")]


def test_help_of_every_command_and_the_models_come_before_anything_slow_is_imported():
    code = f"""if True:
        import contextlib, sys
        from scnet_command import main
        for command in [[], *{COMMANDS!r}]:
            with contextlib.suppress(SystemExit):
                main([*command, "--help"])
        main(["models"])
        main(["models", "show", "scnet_lite_voc"])
        slow = sys.modules.keys() & {{"torch", "numpy", "cv2", "detectron2", "scnet_d2"}}
        assert not slow, slow"""
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_shows_an_example_that_parses_and_the_exit_status(command, capsys, monkeypatch):
    assert scnet(*command, "--help") == 0
    printed = capsys.readouterr().out
    assert "exit status:\n  0  " in printed
    assert max(map(len, printed.splitlines())) <= 100
    examples = re.findall(r"^  scnet (.*(?:(?<=\\)\n.*)*)", printed, flags=re.MULTILINE)
    assert examples
    for example in examples:
        words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {example}"], text=True)
        args = arguments.get_parser().parse_args(words.splitlines())
        assert find_spec(args.module)


def test_help_states_what_the_code_takes(capsys):
    scnet("tag", "--help")
    printed = capsys.readouterr().out
    assert set(re.findall(r"\.\w+(?=[ ,])", printed.partition("from a folder are")[2])) >= (
        IMAGE_SUFFIXES
    )
    assert f"{MAX_PIXELS:,}" in printed


def test_unknown_options_are_named_by_their_own_command(capsys):
    assert scnet("scores", "a.npz", "--no-such-option") == 2
    assert "scnet scores: error: unrecognized arguments: --no-such" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "demo --input photos --model m --output o",
            "--input; images stand without an option",
        ),
        ("demo photos --conf 0.5 --output o", "least score of a label is --threshold"),
        ("app --model m --port 99999", "argument --port: 99999 is not from 1 to 65535"),
        ("demo photos --modle m --output o", "--modle m; did you mean --model?"),
        (
            "demo photos --confidence-threshold 0.5 --output o",
            "least score of a label is --threshold",
        ),
        ("train --eval-only --config-file c", "--eval-only; evaluate with scnet eval"),
        ("demo photos --output o --webcam", "unrecognized arguments: --webcam\n"),
        (
            "export --model m --format onnx --output o A.B 1",
            "A.B 1; config keys stand after",
        ),
    ],
)
def test_an_option_of_another_name_is_given_its_name_here(command, message, tmp_path, capsys):
    command = command.replace("--output o", f"--output {tmp_path / 'o'}")
    assert scnet(*command.split()) == 2
    assert message in capsys.readouterr().err


def test_options_that_set_a_key_come_before_those_of_opts():
    parse = arguments.get_parser().parse_args
    args = parse(["train", "--config-file", "c", "--output", "o", "--device", "cpu", "A", "1"])
    assert args.opts == ["OUTPUT_DIR", "o", "MODEL.DEVICE", "cpu", "A", "1"]
    args = parse(["tag", "x", "--output", "o", "--thresholds", "t.json", "--opts", "A", "1"])
    assert args.opts == ["TEST.LABEL_THRESHOLDS", "t.json", "A", "1"]


def test_train_net_takes_what_detectron2s_programs_take():
    command = ["--config-file", "c", "--num-gpus", "2", "--resume", "--eval-only", "A", "1"]
    ours = vars(arguments.train_net_parser().parse_args(command))
    detectron2s = vars(default_argument_parser().parse_args(command))
    detectron2s.pop("dist_url")  # a fixed port of one machine; ours is a free one
    assert {key: ours[key] for key in detectron2s} == detectron2s


def test_bash_completes_options_of_a_sub_command(capsys):
    assert scnet("--print-completion", "bash") == 0
    script = capsys.readouterr().out
    script += "COMP_WORDS=(scnet tag --thr); COMP_CWORD=2; _shtab_scnet; echo ${COMPREPLY[@]}"
    completed = subprocess.check_output(["bash", "-c", script], text=True)
    assert completed.split() == ["--threshold", "--thresholds"]


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fail", "sentence"),
    [
        (lambda: model_zoo.get_config("VOC/scnet_R_50"), "config file 'VOC/scnet_R_50': it does "),
        (lambda: model_zoo.model_folder("x"), "no model 'x' comes with scnet_d2"),  # a KeyError
        (Path("nowhere/at.all").read_text, "No such file or directory: 'nowhere/"),
    ],
)
def test_an_error_of_the_users_is_one_sentence(fail, sentence, capsys):
    with pytest.raises(SystemExit) as end, user_errors("scnet"):
        fail()
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("scnet: error: ")
    assert sentence in line
    with pytest.raises((ConfigError, KeyError, OSError)), user_errors("scnet", show_traceback=True):
        fail()


@pytest.mark.parametrize("bug", [lambda: torch.ones(2, 3) @ torch.ones(2, 3), lambda: int("x")])
def test_a_bug_keeps_its_traceback(bug):
    with pytest.raises((RuntimeError, ValueError)), user_errors("scnet"):
        bug()


def test_a_method_that_a_head_lacks_is_a_bug():
    head = LabelHead(input_shape={"res5": ShapeSpec(channels=4)}, num_classes=2)
    with pytest.raises(NotImplementedError), user_errors("scnet"):
        head.predict(None)


def test_an_interrupted_program_says_so(capsys):
    with pytest.raises(SystemExit) as end, user_errors("scnet"):
        raise KeyboardInterrupt
    assert end.value.code == 130
    assert capsys.readouterr().err == "\nscnet: interrupted\n"


# ---- models and configs -------------------------------------------------------------------------


def test_models_lists_all_models_and_configs_and_shows_a_card(capsys):
    assert scnet("models") == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert [line.split()[0] for line in first.splitlines()[1:]] == model_zoo.list_models()
    parts = ("Base-", "Backbone-")
    shipped = [x for x in CONFIGS.rglob("*.yaml") if not x.name.startswith(parts)]
    names = sorted(x.relative_to(CONFIGS).as_posix().removesuffix(".yaml") for x in shipped)
    assert [line.strip() for line in second.splitlines()[1:]] == names
    assert scnet("models", "show", "scnet_lite_voc") == 0
    card = model_zoo.model_folder("scnet_lite_voc") / "README.md"
    assert capsys.readouterr().out == card.read_text()
    assert scnet("models", "show", card.parent) == 0
    assert capsys.readouterr().out == card.read_text()
    assert scnet("models", "show", "nowhere") == 2
    assert "no model card of 'nowhere': give the folder" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "configs/"])
@pytest.mark.parametrize("ending", ["", ".yaml"])
def test_a_config_of_the_package_is_had_by_name_from_any_folder(
    prefix, ending, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    cfg = model_zoo.get_config(f"{prefix}VOC-MultiLabel/scnet_R_50_FPN{ending}")
    expected = load_config("VOC-MultiLabel/scnet_R_50_FPN.yaml", "MODEL.DEVICE", "cuda")
    expected.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS
    assert cfg == expected
    assert cfg.MODEL.WEIGHTS.endswith("MSRA/R-50.pkl")


def test_a_lazy_config_of_the_package_is_had_by_name():
    lazy = model_zoo.get_config("COCO-MultiLabel/scnet_X_101_32x8d_FPN_paper.py")
    assert lazy.train.max_iter == 90000


def test_a_config_that_is_not_there_is_named_with_the_nearest_ones():
    with pytest.raises(ConfigError, match=r"did you mean .*VOC-MultiLabel/scnet_R_50_FPN"):
        model_zoo.get_config("VOC-MultiLabel/scnet_R_50_FNP")
