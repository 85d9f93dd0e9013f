"""What heads know of the training set: from it alone, saved with the weights, and checked."""

from scnet_d2.checkpoint import SCNetCheckpointer
from scnet_d2.config import ConfigError
from scnet_d2.engine.trainer import fill_label_contexts
from scnet_d2.modeling import LabelContext
from scnet_d2.modeling.label_heads.word_vectors import read_word_vectors

import pytest
import torch
from conftest import load_config
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.data.datasets.pascal_voc import CLASS_NAMES
from tiny_labeler import LABELS, NAMES, head, labeler


@pytest.fixture
def training_set():
    """Two images that are trained on and one that is not."""
    labels = {"heads_train": [[0, 1], [1]], "heads_test": [[2, 3]]}
    for name, sets in labels.items():
        DatasetCatalog.register(
            name, lambda sets=sets: [{"image_labels": x, "ignored_labels": []} for x in sets]
        )
        MetadataCatalog.get(name).thing_classes = NAMES
    yield
    for name in labels:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(*opts):
    opts = ("DATASETS.TRAIN", ("heads_train",), "DATASETS.TEST", ("heads_test",), *opts)
    return load_config("VOC-MultiLabel/compared/csra.yaml", *opts)


def test_it_counts_labels_and_pairs_of_the_training_set_alone(training_set):
    model = labeler("VAC", fill=False)
    fill_label_contexts(model, config())
    context = model.head.context
    assert context.num_images == 2
    assert context.counts.tolist() == [1, 2, 0, 0, 0]
    assert context.cooccurrence[:2, :2].tolist() == [[0, 1], [1, 0]]
    assert context.cooccurrence.sum() == 2
    assert context.conditional()[:3, :2].tolist() == [[0, 1], [0.5, 0], [0, 0]]
    assert model.head.context.class_names == NAMES


def test_heads_without_needs_and_other_models_read_no_data():
    fill_label_contexts(labeler("CSRA"), config("DATASETS.TRAIN", ("absent",)))
    fill_label_contexts(torch.nn.Linear(1, 1), config("DATASETS.TRAIN", ("absent",)))


@pytest.mark.parametrize("name", ["MLGCN", "MSCMA"])
def test_it_is_saved_with_the_weights(name, tmp_path):
    trained, loaded = labeler(name), labeler(name, fill=False)
    SCNetCheckpointer(trained, str(tmp_path), class_names=NAMES).save("w")
    checkpointer = SCNetCheckpointer(loaded, require_all=True, class_names=NAMES)
    checkpointer.load(str(tmp_path / "w.pth"))
    state = loaded.state_dict()
    for key, value in trained.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert state["head.context.counts"].tolist() == [3, 3, 2, 1, 5]
    assert ("head.embedding" in state) == (name == "MSCMA")


def test_weights_of_another_class_order_are_refused():
    state = labeler("MLGCN").state_dict()
    other = labeler("MLGCN", fill=False)
    other.head.context = LabelContext(num_classes=5, class_names=NAMES[::-1], word_dim=384)
    with pytest.raises(
        ValueError, match="class 0 is another one in the weights and 'person' in the"
    ):
        other.load_state_dict(state)


def test_a_training_set_of_another_class_order_is_refused():
    with pytest.raises(ValueError, match="class 1 is 'car' in the training set and 'dog' in the"):
        head("VAC", fill=False).fill_context(["cat", "car", "dog", "bus", "person"], LABELS)


def test_another_number_of_names_than_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"CLASS_NAMES is 5, \S+ is 4"):
        LabelContext(num_classes=4, class_names=NAMES)


def test_without_names_in_the_config_those_of_the_training_set_are_taken():
    context = LabelContext(num_classes=2)
    context.fill(["a", "b"], [[0]])
    with pytest.raises(ValueError, match="class 0 is 'b' in the training set and 'a' in the"):
        context.fill(["b", "a"], [[0]])


# ---- Word vectors -------------------------------------------------------------------------------


def word_file(tmp_path, text="dining 1 2\ntable 3 4\ntraffic_light 5 6\ndog 7 8\n"):
    (tmp_path / "words.txt").write_text(text)
    return str(tmp_path / "words.txt")


def test_a_name_is_looked_up_as_a_whole_or_word_by_word(tmp_path):
    names = ["Dining Table", "traffic light", "dog"]
    found = read_word_vectors(word_file(tmp_path), names, 2)
    assert found.tolist() == [[2, 3], [5, 6], [7, 8]]


def test_a_class_without_a_vector_and_another_length_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"class 'dog house': .* has no vector of 'house'"):
        read_word_vectors(word_file(tmp_path), ["dog house"], 2)
    with pytest.raises(ConfigError, match=r"WORD_DIM is 300; set it to 2"):
        read_word_vectors(word_file(tmp_path), ["dog"], 300)


def test_the_shipped_vectors_cover_voc_and_coco_and_tell_what_is_alike():
    coco = [category["name"] for category in COCO_CATEGORIES if category["isthing"]]
    vectors = read_word_vectors("", [*CLASS_NAMES, *coco], 384)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(100), rtol=0.02, atol=0)
    vector = dict(zip([*CLASS_NAMES, *coco], vectors))
    assert torch.equal(vector["diningtable"], vector["dining table"])
    assert vector["sheep"] @ vector["cow"] > vector["sheep"] @ vector["bus"]
