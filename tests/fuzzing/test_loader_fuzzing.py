"""Mutated annotation files load or are refused with a DatasetError; the program fuzz_loaders."""

import subprocess
import sys

from scnet_d2.data import labels

import annotation_fuzzing
import fuzz_loaders
import pytest
from conftest import REPO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FUZZ = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
generators = st.randoms(use_true_random=False)


@pytest.fixture(scope="module", params=annotation_fuzzing.TARGETS)
def target(request, tmp_path_factory):
    return annotation_fuzzing.TARGETS[request.param](tmp_path_factory.mktemp(request.param))


@FUZZ
@given(rng=generators, steps=st.sampled_from([1, 1, 1, 2, 4]))
def test_mutated_file_loads_with_every_label_or_is_refused(target, rng, steps):
    data = target.valid
    for _ in range(steps):
        data = target.mutate(data, rng)
    target.load(data)  # raises for any other exception, and for records that are not valid


# Of the first seeds: UTF-8, with a byte order mark, UTF-16 (which XML may be), cut off in the
# middle; of the lists: two that end alike, blank lines, states, an id twice, two ids, a comment.
LOADED = {
    annotation_fuzzing.CocoJson: [True, True, False, False],
    annotation_fuzzing.VocXml: [True, True, True, False],
    annotation_fuzzing.VocList: [True, True, True, True, False, False, False, False],
}


def test_valid_seeds_load_and_broken_ones_are_refused(target):
    assert target.load(target.valid)
    outcomes = [target.load(data) for data in target.seeds()]
    expected = LOADED[type(target)]
    assert outcomes[: len(expected)] == expected


def test_lost_label_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(labels, "image_labels", lambda objects, policy: ([0], []))
    with pytest.raises(AssertionError):
        annotation_fuzzing.CocoJson(tmp_path).load(annotation_fuzzing.CocoJson.valid)


@pytest.fixture
def fuzz(tmp_path):
    """Runs 300 files; returns the exit code, what was printed, and the output folder.

    In a process of its own: the program forks, which must not be done among a test run's threads.
    """
    pytest.importorskip("atheris", reason="needs pip install 'scnet_d2[fuzz]'")

    def run(target, fault="pass"):
        arguments = [target, "--runs", "300", "--seed", "7", "--output", str(tmp_path / "out")]
        program = (
            "import sys; sys.path.insert(0, 'tests/fuzzing'); import fuzz_loaders\n"
            f"from scnet_d2.data import coco\n{fault}\nsys.exit(fuzz_loaders.main({arguments}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=REPO, text=True, timeout=100, check=False,
            stdout=subprocess.PIPE,
        )  # fmt: skip
        return done.returncode, done.stdout, tmp_path / "out"

    return run


def test_fuzzing_prints_cases_coverage_and_findings(fuzz):
    code, printed, folder = fuzz("voc")
    assert code == 0
    assert "300 files in" in printed
    assert "DONE" in printed
    assert list((folder / "corpus").iterdir())


def test_finding_is_kept_with_its_traceback(fuzz):
    code, printed, folder = fuzz("coco", fault="coco._corners = lambda box: 1 / 0")
    assert code == 1
    (file,) = folder.glob("ZeroDivisionError-coco-*.json")
    assert f"finding: {file}" in printed
    assert "_annotation" in file.with_suffix(".log").read_text()


def test_files_of_a_data_sets_root_are_seeds(tmp_path):
    (tmp_path / "VOC2012/Annotations").mkdir(parents=True)
    (tmp_path / "VOC2012/Annotations/1.xml").write_bytes(b"<annotation/>")
    (tmp_path / "coco/annotations").mkdir(parents=True)
    whole = annotation_fuzzing.COCO_TEXT.replace('"images": [', '"images": [{"id": 1}, ')
    (tmp_path / "coco/annotations/instances_val2017.json").write_text(whole)
    assert list(fuzz_loaders.root_files(tmp_path, "voc")) == [b"<annotation/>"]
    (part,) = fuzz_loaders.root_files(tmp_path, "coco")
    assert annotation_fuzzing.CocoJson(tmp_path).load(part)  # without the image of id 1 alone


def test_absent_atheris_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr(fuzz_loaders, "atheris", None)
    with pytest.raises(ImportError, match=r"pip install 'scnet_d2\[fuzz\]'"):
        fuzz_loaders.main(["coco"])
