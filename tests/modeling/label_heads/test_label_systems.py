"""What each system is, checked by what must hold of it."""

import copy
import math

from scnet_d2.modeling import LABEL_HEAD_REGISTRY, ImageFeatures, LabelContext
from scnet_d2.modeling.label_heads.c2ae import rank_loss
from scnet_d2.modeling.label_heads.graph import label_graph
from scnet_d2.modeling.label_heads.layers import sine_positions, spatial_mean, spatial_softmax
from scnet_d2.modeling.label_heads.ms_cma import clipped_cosine, fit_embedding
from scnet_d2.modeling.label_heads.rnn_attention import location_loss
from scnet_d2.modeling.label_heads.sequence import SequenceHead, label_sequences
from scnet_d2.modeling.label_heads.vac import map_distance

import pytest
import torch
from tiny_labeler import CHANNELS, LABELS, features, head, labeler, noise, pictures

SIZES = (24, 32), (16, 24)


def with_map(seen, change, name="res5"):
    """The features with one map changed."""
    return ImageFeatures(seen.maps | {name: change(seen.maps[name])}, seen.images, seen.backbone)


def context(labels, num_classes=3):
    made = LabelContext(num_classes=num_classes)
    made.fill([f"c{i}" for i in range(num_classes)], labels)
    return made


# ---- Layers -------------------------------------------------------------------------------------


def test_spatial_softmax_sums_to_one_over_the_image_and_is_zero_beside_it():
    valid = torch.tensor([[True, True, False]])
    attention = spatial_softmax(torch.tensor([[[0.0, math.log(3), 9.0]]]), valid)
    torch.testing.assert_close(attention, torch.tensor([[[0.25, 0.75, 0.0]]]))
    assert spatial_mean(torch.tensor([[[1.0, 2.0, 99.0]]]), valid).item() == 1.5


def test_sine_positions_tell_cells_apart_and_reach_over_the_image():
    valid = torch.zeros(1, 3, 5, dtype=torch.bool)
    valid[:, :2, :4] = True
    codes = sine_positions(valid, 8).view(3, 5, 8)
    assert len(codes[:2, :4].flatten(0, 1).unique(dim=0)) == 8
    last = codes[1, 3]  # both angles are a whole turn: sin 0, cos 1 at the shortest wave
    torch.testing.assert_close(
        last[[0, 2, 4, 6]], torch.tensor([0.0, 1.0, 0.0, 1.0]), atol=1e-5, rtol=0
    )


# ---- Pooling and attention ----------------------------------------------------------------------


def test_the_class_maps_of_average_pooling_average_to_the_logits():
    output = head("GlobalPool").eval()(features(*noise(*SIZES)))
    means = torch.stack([m.mean(dim=(1, 2)) for m in output.class_maps])
    torch.testing.assert_close(means, output.logits)


def test_csra_without_attention_is_average_pooling_with_rows_of_length_one():
    model, seen = head("CSRA", weight=0.0), features(*noise(*SIZES))
    rows = model.label_score.weight / model.label_score.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model(seen).logits, seen.pooled("res5") @ rows.T)


def test_csra_adds_the_softly_and_the_hard_weighted_scores():
    model = head("CSRA", num_heads=2, weight=0.5)
    scores = torch.tensor([[[0.0, math.log(3), 50.0]]])
    valid = torch.tensor([[True, True, False]])
    mean, soft = math.log(3) / 2, 0.75 * math.log(3)
    assert model._pool(scores, valid, 1).item() == pytest.approx(mean + 0.5 * soft)
    assert model._pool(scores, valid, 99).item() == pytest.approx(mean + 0.5 * math.log(3))
    with pytest.raises(ValueError, match=r"CSRA\.NUM_HEADS is 3; choose one of \[1, 2, 4, 6, 8\]"):
        head("CSRA", num_heads=3)


@pytest.mark.parametrize("name", ["CSRA", "MLGCN"])
def test_a_bias_can_be_added_that_starts_at_the_prior(name):
    plain, biased = (head(name, bias=bias, prior_prob=0.2) for bias in (False, True))
    biased.load_state_dict(plain.state_dict(), strict=False)
    seen = features(*noise(*SIZES))
    added = biased(seen).logits - plain(seen).logits
    torch.testing.assert_close(added, torch.full((2, 5), math.log(0.2 / 0.8)))


@pytest.mark.parametrize("name", ["DecoupleNet", "MSCMA"])
def test_attention_maps_sum_to_one(name):
    for attention in head(name)(features(*noise(*SIZES))).class_maps:
        torch.testing.assert_close(attention.sum(dim=(1, 2)), torch.ones(5))


def test_srn_attention_sums_to_one_for_each_label():
    fine = torch.randn(2, CHANNELS["res4"], 4, 4)
    torch.testing.assert_close(head("SRN").attend(fine).sum(dim=(2, 3)), torch.ones(2, 5))


def test_srn_averages_the_image_with_the_relations_and_trains_none_through_another():
    model, seen = head("SRN", weight=0.25), features(*pictures())
    targets = torch.ones(len(LABELS), 5)
    output = model(seen, targets, targets)
    wanted = 0.25 * output.parts["image"] + 0.75 * output.parts["relation"]
    torch.testing.assert_close(output.logits, wanted)
    output.losses["loss_relation_label"].backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"relations"}


def test_srn_relations_tell_images_apart_before_training():
    output = head("SRN", dim=64, grid=14).predict(features(*pictures()))
    relation = output.parts["relation"]
    assert (relation[0] - relation[1]).abs().mean() > 0.05 * relation.std()


def test_delta_smooth_maximum_lies_between_mean_and_maximum_of_the_image():
    model = head("DELTA", sharpness=5.0)
    scores, valid = torch.tensor([[[0.0, 1.0, 9.0]]]), torch.tensor([[True, True, False]])
    wanted = math.log((1 + math.exp(5)) / 2) / 5
    assert model.smooth_maximum(scores, valid).item() == pytest.approx(wanted)


def test_delta_halves_the_losses_of_its_parts():
    model, ones = head("DELTA"), torch.ones(1, 5)
    output = model(features(*noise((8, 8))), ones, ones)
    whole = model.loss(output.parts["global"], ones, ones)
    torch.testing.assert_close(output.losses["loss_global_label"], whole / 2)


# ---- Transformers -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "depends"), [("MLDecoder", False), ("Query2Label", True)])
def test_only_query2label_depends_on_where_a_cell_is(name, depends):
    model, seen = head(name).eval(), features(*noise((24, 32)))
    order = torch.randperm(12)
    shuffled = with_map(seen, lambda x: x.flatten(2)[..., order].view_as(x))
    same = torch.allclose(model(seen).logits, model(shuffled).logits, atol=1e-5)
    assert same != depends


def test_ml_decoder_shares_a_query_among_the_labels_of_a_group():
    model = head("MLDecoder", num_queries=2).eval()  # of labels 0 to 2, and of 3 and 4
    seen = features(*noise((16, 16)))
    before = model(seen).logits
    model.queries[1].normal_()
    assert (model(seen).logits == before).tolist() == [[True, True, True, False, False]]
    assert not model.queries.requires_grad


def test_a_query_of_query2label_concerns_its_label_alone():
    model, seen = head("Query2Label").eval(), features(*noise((16, 16)))
    before = model(seen).logits
    with torch.no_grad():
        model.queries[2] += 1
    assert (model(seen).logits == before).tolist() == [[True, True, False, True, True]]


def test_c_tran_gives_up_to_three_quarters_of_the_labels_and_no_ignored_one():
    model, mask = head("CTran"), torch.ones(4000, 5)
    mask[:, 4] = 0
    known = model.draw_known(mask)
    assert not known[:, 4].any()
    counts = known.sum(dim=1)
    assert counts.max() == 3  # of 5, rounded down
    # 0 to 3 of 5 are drawn alike, and each of the 4 labels that may be given is as often
    assert counts.float().mean().item() == pytest.approx(1.5 * 4 / 5, abs=0.05)
    assert (known[:, :4].float().mean(dim=0) - 0.3).abs().max() < 0.03


def test_c_tran_learns_from_the_labels_that_were_not_given(monkeypatch):
    model, seen, targets = head("CTran").eval(), features(*pictures()), torch.ones(8, 5)
    known = torch.zeros(8, 5, dtype=torch.bool)
    monkeypatch.setattr(model, "draw_known", lambda mask: known)
    plain = model(seen, targets, torch.ones(8, 5)).logits
    torch.testing.assert_close(plain, model(seen).logits)
    known[:, :2] = True
    given = model(seen, targets, torch.ones(8, 5))
    assert not torch.allclose(given.logits, plain)
    wanted = model.loss(given.logits[:, 2:], targets[:, 2:], targets[:, 2:])
    torch.testing.assert_close(given.losses["loss_image_label"], wanted)
    given.losses["loss_image_label"].backward()
    assert (model.states.weight[0] == 0).all()
    assert (model.states.weight.grad[0] == 0).all()


# ---- Graphs -------------------------------------------------------------------------------------


def test_the_graph_of_labels_is_that_of_ml_gcn():
    # c0 comes 4 times, twice with c1; c1 twice; c2 once, with c0. So P(c0|c1) = P(c0|c2) = 1,
    # P(c1|c0) = 0.5, P(c2|c0) = 0.25: c0 listens to c1 and c2, and c1 to c0.
    made = context([[0, 1], [0, 1], [0, 2], [0]])
    graph = label_graph(made, threshold=0.4, neighbours=0.2)
    before = torch.tensor([[1.0, 0.125, 0.125], [0.25, 1.0, 0.0], [0.0, 0.0, 1.0]])
    degree = before.sum(dim=0)  # of the matrix before it is transposed
    torch.testing.assert_close(graph, before / (degree[:, None] * degree).sqrt())


def test_without_neighbours_ml_gcn_is_a_linear_classifier_of_each_word():
    model = head("MLGCN", neighbours=0.0)
    torch.testing.assert_close(label_graph(model.context, 0.4, 0.0), torch.eye(5))
    seen = features(*noise((16, 16)))
    before = model(seen).logits
    torch.testing.assert_close(model(with_map(seen, lambda x: 3 * x)).logits, 3 * before)
    model.context.word_vectors[0] += 1
    changed = (model(seen).logits - before).abs() > 1e-6
    assert changed.tolist() == [[True, False, False, False, False]]


def test_wsl_gcn_starts_from_its_classifier_pooled_over_highest_and_lowest_cells():
    model, seen = head("WSLGCN", share=0.5, low_weight=0.2), features(*noise((16, 16)))
    output = model(seen)
    tokens, _ = seen.tokens("res5")
    scores = model.label_score(tokens)[0].sort(dim=0).values  # (4, C)
    wanted = scores[2:].mean(dim=0) + 0.2 * scores[:2].mean(dim=0)
    torch.testing.assert_close(output.logits[0], wanted)
    output.logits.sum().backward()
    assert model.label_score.weight.grad is None  # the graph network does not change it


def test_kssnet_starts_without_a_change_of_the_stages_and_learns_one():
    model, inputs = labeler("KSSNet"), [{"image": noise((16, 16))[0][:3], "image_labels": [1]}]
    x = torch.randn(1, CHANNELS["res3"], 4, 4)
    assert torch.equal(model.head.change_stage("res3", x), x)
    assert model.head.change_stage("res2", torch.randn(1, CHANNELS["res2"], 8, 8)).shape[1] == 8
    sum(model(inputs).values()).backward()
    assert all(model.head.lateral[name].weight.grad.abs().sum() > 0 for name in model.head.stages)


def test_a_copy_of_kssnet_changes_the_stages_of_its_own_backbone():
    model, inputs = labeler("KSSNet").eval(), [{"image": noise((16, 16))[0][:3]}]
    other = copy.deepcopy(model)
    torch.nn.init.ones_(other.head.lateral["res2"].weight)
    a, b = (m(inputs)[0]["image_scores"] for m in (model, other))
    assert not torch.allclose(a, b)


def test_kssnet_names_the_stages_that_the_backbone_must_give():
    shapes = {"res4": head("CSRA").input_shape["res4"], "res5": head("CSRA").input_shape["res5"]}
    made = LabelContext(num_classes=5, word_dim=8)
    with pytest.raises(ValueError, match=r"add \['res2', 'res3'\] to its OUT_FEATURES"):
        LABEL_HEAD_REGISTRY.get("KSSNet")(input_shape=shapes, num_classes=5, context=made)


def test_kssnet_graph_is_symmetric_and_a_label_listens_to_itself():
    graph = head("KSSNet").graph()
    torch.testing.assert_close(graph, graph.T)
    assert (graph.diagonal() >= graph.amax(dim=1) - 1e-6).all()


def test_fitted_embeddings_have_the_cosines_of_the_graph():
    graph = torch.tensor([[0.0, 0.8, 0.1], [0.8, 0.0, 0.3], [0.1, 0.3, 0.0]])
    vectors = fit_embedding(graph, 8)
    torch.testing.assert_close(vectors @ vectors.T, graph + torch.eye(3), atol=1e-3, rtol=0)
    assert torch.equal(vectors, fit_embedding(graph, 8))


def test_clipped_cosine_attends_to_what_is_like_the_label_or_to_all():
    labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    tokens = torch.tensor([[[2.0, 0.0], [3.0, 4.0], [9.0, 0.0]]])  # cosines 1, 0.6, -
    attention = clipped_cosine(labels, tokens, torch.tensor([[True, True, False]]))
    wanted = torch.tensor([[[1 / 1.6, 0.6 / 1.6, 0.0], [0.5, 0.5, 0.0]]])
    torch.testing.assert_close(attention, wanted, atol=1e-5, rtol=0)


# ---- Views --------------------------------------------------------------------------------------


def test_the_flip_loss_is_zero_for_images_that_are_their_own_mirror_image():
    model = head("VAC", small=0.75)  # both widths are of whole cells
    half = noise((24, 16))[0]
    ones = torch.ones(1, 5)
    mirror = model(features(torch.cat([half, half.flip(-1)], dim=-1)), ones, ones).losses
    assert mirror["loss_flip"].item() == pytest.approx(0, abs=1e-9)
    other = model(features(noise((24, 32), seed=1)[0]), ones, ones).losses
    assert other["loss_scale"] > 0


def test_maps_are_compared_at_a_common_size():
    a, b = torch.full((5, 3, 4), 2.0), torch.full((5, 2, 3), 5.0)
    assert map_distance([a, a], [b, a]).item() == pytest.approx(9 / 2)


def test_the_classifier_is_a_constant_in_the_maps():
    model, seen = head("VAC"), features(*noise((16, 16)))
    seen.maps["res5"].requires_grad_()
    model.maps(seen)[0].sum().backward()
    assert model.label_score.weight.grad is None
    assert seen.maps["res5"].grad.abs().sum() > 0


def test_vac_weighs_labels_by_how_rare_they_are():
    model, mask = head("VAC", flip_weight=0.0, scale_weight=0.0), torch.ones(1, 5)
    torch.nn.init.zeros_(model.label_score.weight)
    torch.nn.init.zeros_(model.label_score.bias)
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0]])
    share = torch.tensor([3, 3, 2, 1, 5]) / 8  # of the training set
    weight = torch.where(targets > 0, 1 - share, share).exp().sum()
    losses = model(features(*noise((16, 16))), targets, mask).losses
    assert losses["loss_image_label"].item() == pytest.approx(math.log(2) * weight.item(), rel=1e-5)


# ---- Sequences ----------------------------------------------------------------------------------


def test_labels_come_in_the_order_of_their_frequency():
    targets = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    sequences = label_sequences(targets, torch.tensor([2.0, 5.0, 3.0]))
    assert sequences.tolist() == [[1, 2, 0, 3], [2, 3, -100, -100], [3, -100, -100, -100]]


class Scripted(SequenceHead):
    """Gives the same probabilities in each step; 2 labels and the end."""

    def __init__(self, steps, **kwargs):
        shape = head("CSRA").input_shape
        super().__init__(max_steps=5, input_shape=shape, num_classes=2, **kwargs)
        self.steps = torch.tensor(steps).log()
        self.context.fill(["a", "b"], [[0, 1], [0]])

    def start(self, features):
        return 0

    def step(self, previous, state):
        return self.steps[state].expand(len(previous), -1), state + 1


def scripted(*steps):
    return Scripted(steps, context=LabelContext(num_classes=2))


def test_a_sequence_takes_each_label_once_and_keeps_its_highest_probability():
    # first b; then without it a, 0.6 / 0.8; then the end: what comes later does not count
    model = scripted([0.1, 0.7, 0.2], [0.6, 0.2, 0.2], [0.2, 0.2, 0.6], [0.99, 0.005, 0.005])
    scores = model(features(*noise((8, 8)))).logits.sigmoid()
    torch.testing.assert_close(scores, torch.tensor([[0.75, 0.7]]))


def test_the_loss_of_a_sequence_is_the_mean_cross_entropy_of_its_steps():
    model = scripted([0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.25, 0.25, 0.5])
    targets = torch.tensor([[1.0, 1.0], [1.0, 0.0]])  # a, b, end; a, end
    losses = model(features(*noise((8, 8), (8, 8))), targets, torch.ones(2, 2)).losses
    wanted = -sum(map(math.log, (0.5, 0.1, 0.5, 0.5, 0.8))) / 5
    assert losses["loss_label_sequence"].item() == pytest.approx(wanted)


def test_an_ignored_label_is_no_choice_in_a_sequence():
    model = scripted([0.5, 0.3, 0.2], [0.1, 0.1, 0.8])
    mask = torch.tensor([[1.0, 0.0]])
    losses = model(features(*noise((8, 8))), torch.tensor([[1.0, 1.0]]), mask).losses
    wanted = -(math.log(0.5 / 0.7) + math.log(0.8 / 0.9)) / 2  # a, end
    assert losses["loss_label_sequence"].item() == pytest.approx(wanted)


def test_cnn_rnn_starts_from_nearly_even_scores():
    """Label vectors of length 1: those of a plain embedding are as long as sqrt(dimension)."""
    model = head("CNNRNN", embedding_dim=256)
    images = features(*[30 * x for x in noise((8, 8), (8, 8))])
    loss = model(images, torch.tensor([[1.0] * 5] * 2), torch.ones(2, 5)).losses
    assert loss["loss_label_sequence"] < 2 * math.log(6)


# ---- Crops and spaces ---------------------------------------------------------------------------


def test_a_crop_of_everything_is_the_image_and_of_its_left_half_that_half():
    model, seen = head("RNNAttention", crop=4), features(*noise((32, 32), (16, 32)))
    feature = seen.maps["res5"]  # of 4 x 4 cells; the second image has 2 x 4 of them
    whole = model._cut(feature, torch.tensor([[1.0, 1.0, 0.0, 0.0]] * 2), seen)
    torch.testing.assert_close(whole[0], feature[0])
    rows = feature[1, :, 0], feature[1, :, 1]
    torch.testing.assert_close(whole[1, :, 1], 0.75 * rows[0] + 0.25 * rows[1])
    torch.testing.assert_close(whole[1, :, 2], 0.25 * rows[0] + 0.75 * rows[1])
    left = model._cut(feature, torch.tensor([[0.5, 1.0, -0.5, 0.0]] * 2), seen)
    columns = feature[0, :, :, 0], feature[0, :, :, 1]
    torch.testing.assert_close(left[0, :, :, 1], 0.75 * columns[0] + 0.25 * columns[1])


def test_places_cost_what_is_large_far_or_tiny():
    anchors = torch.tensor([[0.5, -0.5]])
    fine = torch.tensor([[[0.5, 0.1, 0.5, -0.5]]])
    assert location_loss(fine, anchors).item() == 0
    bad = torch.tensor([[[0.7, -0.1, 0.1, -0.5]]])
    wanted = 0.2**2 + 0.01 * 0.4**2 / 2 + 0.1 * 0.2
    assert location_loss(bad, anchors).item() == pytest.approx(wanted)


def test_projection_averages_present_and_absent_labels_apart():
    model = head("CRL", margin=0.2)
    cosine = torch.tensor([[0.5, 0.9, 0.6, 0.1, -1.0]])
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[1.0, 0.0, 1.0, 1.0, 0.0]])
    assert model.projection_loss(cosine, targets, mask).item() == pytest.approx(0.5 + 0.4 / 2)
    none = model.projection_loss(cosine, targets, torch.zeros(1, 5))
    assert none.item() == 0


def test_crl_adds_the_scaled_cosine_to_the_classifier():
    output = head("CRL")(features(*noise(*SIZES)))
    wanted = output.parts["image"] + 10 * output.parts["cosine"]
    torch.testing.assert_close(output.logits, wanted)


def test_ranking_compares_present_with_absent_labels_of_an_image():
    scores = torch.tensor([[0.9, 0.2, 0.4, 0.7], [0.5, 0.5, 0.5, 0.5]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    wanted = (math.exp(-5 * 0.7) + math.exp(-5 * 0.5)) / 2
    assert rank_loss(scores, targets, mask).item() == pytest.approx(wanted / 2)


def test_the_correlation_loss_of_c2ae_is_zero_for_equal_vectors_without_correlation():
    model = head("C2AE")  # 4 numbers
    x = 2 * torch.eye(4)  # whose products, averaged over 4 images, are the identity
    assert model._correlation(x, x).item() == pytest.approx(0)
    # 1 between the vectors, and the products of a batch count a tenth of the running ones
    moved = x + torch.tensor([1.0, 0.0, 0.0, 0.0])
    products = 0.9 * torch.eye(4) + 0.1 * moved.T @ moved / 4
    wanted = 1 + 0.5 * (products - torch.eye(4)).square().sum().item()
    assert model._correlation(x, moved).item() == pytest.approx(wanted)
