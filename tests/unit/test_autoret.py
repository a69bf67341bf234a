"""AutoRet's pairs, network and training: counted, drawn small, and against what the loss by pencil says."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from retrieval_utils import distributed, training
from retrieval_utils.autoret import (
    ARMS,
    KNOWN,
    LOSSES,
    AutoRetSettings,
    PairBatches,
    PairImages,
    augmentation,
    departures,
    train_autoret,
)
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.link_pairs import LinkPairs
from retrieval_utils.losses import AutoEmbedderLoss
from retrieval_utils.networks import load_network, load_weights, save_network
from retrieval_utils.profiles import PROFILES
from retrieval_utils.recurrent_network import MIN_PATCH, PatchSettings, SpatialPooling, image_patches, load_autoret

SMALL = PatchSettings(width=8, patch_dim=16, hidden=8, dim=12)
QUICK = AutoRetSettings(network=SMALL, epochs=2, batch_size=16, image_size=32, learning_rate=3e-3)


# Pairs


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 1])
def test_half_of_the_pairs_can_be_linked_in_every_batch_and_every_image_is_first_once(fraction):
    source = LinkPairs(np.repeat(np.arange(10), 20), fraction)
    for epoch in range(3):
        pairs = source.draw(epoch)
        assert (pairs.can_link.reshape(-1, 8).sum(axis=1) == 4).all()
        assert sorted(pairs.first) == list(range(200))
        assert (pairs.first != pairs.second)[~pairs.can_link].all()


def test_the_measured_rate_of_false_cannot_links_is_that_of_chance():
    labels = np.repeat(np.arange(10), 100)
    source = LinkPairs(labels)
    measured = np.mean([source.false_cannot_link(source.draw(epoch)) for epoch in range(40)])  # of 20,000 pairs
    assert measured == pytest.approx(99 / 999, abs=0.008)


def test_the_rate_is_counted_as_by_hand():
    source = LinkPairs(np.array([0, 0, 1, 1, 2]))
    pairs = source.draw(0)
    apart = [(a, b) for a, b, can in zip(pairs.first, pairs.second, pairs.can_link, strict=True) if not can]
    assert source.false_cannot_link(pairs) == sum(source.labels[a] == source.labels[b] for a, b in apart) / len(apart)
    assert math.isnan(LinkPairs(np.arange(4), can_link=1.0).false_cannot_link(LinkPairs(np.arange(4), 0, 1.0).draw(0)))


@pytest.mark.parametrize("fraction", [0.25, 0.5])
def test_labels_of_a_part_lower_the_rate_by_the_square_of_the_part(fraction):
    source = LinkPairs(np.repeat(np.arange(5), 100), fraction)
    measured = np.mean([source.false_cannot_link(source.draw(epoch)) for epoch in range(40)])  # of 10,000 pairs
    chance = 99 / 499 * (1 - fraction**2)
    assert measured == pytest.approx(chance / (chance + 400 / 499), abs=0.012)


def test_all_labels_leave_no_false_link_and_none_leave_only_augmentations():
    labels = np.repeat(np.arange(6), 10)
    pairs, alone = LinkPairs(labels, 1.0).draw(0), LinkPairs(labels, 0.0).draw(0)
    assert (labels[pairs.first] == labels[pairs.second]).tolist() == pairs.can_link.tolist()
    assert (pairs.first != pairs.second).all()
    assert ((alone.first == alone.second) == alone.can_link).all()


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 1])
def test_so_many_labels_are_known_and_no_others_are_used(fraction):
    labels = np.repeat(np.arange(10), 20)
    source = LinkPairs(labels, fraction)
    assert source.known.sum() == round(200 * fraction)
    pairs = source.draw(0)
    mixed = pairs.can_link & (pairs.first != pairs.second)
    assert source.known[pairs.first[mixed]].all() and source.known[pairs.second[mixed]].all()
    assert (labels[pairs.first] == labels[pairs.second])[mixed].all()
    assert mixed.any() == (fraction > 0)


def test_pairs_depend_on_seed_and_epoch_alone():
    labels = np.arange(50) % 7
    draws = [LinkPairs(labels, 0.5, seed=seed).draw(epoch).second.tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert LinkPairs(labels, 0.5).draw(0).second.tolist() == draws[0]
    assert draws[0] != draws[1] and draws[0] != draws[2]


def test_pairs_refuse_bad_input():
    for fraction in (-0.1, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"fraction of labels lies in \[0, 1\]"):
            LinkPairs(np.arange(4), fraction)
    with pytest.raises(ValueError, match="share of can-link pairs"):
        LinkPairs(np.arange(4), can_link=2)
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        LinkPairs(np.arange(1))
    with pytest.raises(ValueError, match="one label"):
        LinkPairs(np.zeros(5), 1.0)


# Network


def test_patches_by_hand():
    image = torch.arange(32 * 48.0).view(1, 1, 32, 48)
    halves = image_patches(image, PatchSettings(grid=2, overlap=0, whole=False))  # (1, 4, 1, 16, 24)
    corners = ((0, 0), (0, 24), (16, 0), (16, 24))
    for patch, (top, left) in zip(halves[0], corners, strict=True):
        assert patch.equal(image[0, :, top : top + 16, left : left + 24])
    overlapping = image_patches(image, PatchSettings(grid=3, overlap=0.5, whole=False))
    assert overlapping.shape == (1, 9, 1, 16, 24) and overlapping[0, 1].equal(image[0, :, :16, 12:36])
    snake = image_patches(image, PatchSettings(grid=2, overlap=0, whole=False, snake=True))
    assert snake.equal(halves[:, [0, 1, 3, 2]])


def test_the_whole_image_comes_last_or_alone():
    image = torch.rand(1, 3, 32, 32)
    with_whole = image_patches(image, PatchSettings(grid=2, overlap=0))
    small = torch.nn.functional.interpolate(image, (16, 16), mode="bilinear", antialias=True)
    assert with_whole.shape[1] == 5 and with_whole[:, 4].equal(small)
    assert image_patches(image, PatchSettings(grid=1)).equal(image[:, None])


@pytest.mark.parametrize("settings", [SMALL, replace(SMALL, grid=1), replace(SMALL, fusion="mean", grid=3)])
def test_the_same_weights_take_every_resolution(settings):
    network = load_autoret(settings=settings)
    with torch.inference_mode():
        for height, width in ((64, 64), (96, 96), (160, 160), (96, 72), (2 * MIN_PATCH + 17, 200)):
            descriptors = network(torch.rand(2, 3, height, width))
            assert descriptors.shape == (2, 12)
            assert torch.allclose(descriptors.norm(dim=1), torch.ones(2))
    assert network.pooling(torch.rand(1, 32, 1, 1)).shape == network.pooling(torch.rand(1, 32, 9, 5)).shape == (1, 16)


def test_the_spatial_pyramid_is_made_of_maxima_over_cells():
    pooling = SpatialPooling(8, replace(SMALL, patch_dim=4)).eval()
    pooling.atrous, pooling.mix = torch.nn.ModuleList([torch.nn.Identity()]), torch.nn.Identity()
    pooling.project = torch.nn.Identity()
    x = torch.rand(1, 4, 6, 8)
    cells = [x[:, :, a : a + 3, b : b + 4].amax(dim=(2, 3)) for a in (0, 3) for b in (0, 4)]
    slow = torch.cat([x.amax(dim=(2, 3)), torch.stack(cells, dim=2).flatten(1)], dim=1)
    assert pooling(x).equal(slow)


def test_the_recurrent_layer_sees_order_and_the_mean_does_not():
    patches = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0))
    for fusion, moves in (("lstm", True), ("mean", False)):
        fuse = load_autoret(settings=replace(SMALL, fusion=fusion)).fusion
        assert torch.allclose(fuse(patches), fuse(patches[:, [1, 0, 2, 3, 4]]), atol=1e-6) is not moves
        assert fuse(patches).shape == (1, 16)


def test_both_directions_of_the_recurrent_layer_have_seen_every_patch():
    fuse = load_autoret(settings=SMALL).fusion
    patches = torch.randn(1, 4, 16, requires_grad=True)
    for half in fuse(patches).split(8, dim=1):
        (gradient,) = torch.autograd.grad(half.sum(), patches, retain_graph=True)
        assert gradient.abs().sum(dim=2).min() > 0


def test_a_network_is_kept_in_a_file_with_its_architecture(tmp_path):
    network = load_autoret(seed=3, settings=replace(SMALL, grid=3, fusion="mean"))
    network.centre += 0.5
    save_network(network, tmp_path / "net.safetensors")
    again = load_network("autoret", tmp_path / "net.safetensors")
    images = torch.rand(2, 3, 48, 40)
    assert again.patching == network.patching and not again.training
    assert again(images).equal(network(images))
    with pytest.raises(ValueError, match="does not fit autoret"):
        load_weights(load_autoret(settings=SMALL), tmp_path / "net.safetensors")


def test_loading_refuses_what_is_no_autoret(tmp_path):
    save_network(load_network("resnet18-thin"), tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="holds no AutoRet network"):
        load_network("autoret", tmp_path / "net.safetensors")
    with pytest.raises(FileNotFoundError, match="no weights 'nowhere.safetensors' of AutoRet"):
        load_network("autoret", "nowhere.safetensors")


def test_a_seed_gives_the_weights_and_another_gives_others():
    drawn = torch.get_rng_state()
    first, same, other = (load_network("autoret", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(first[key].equal(same[key]) for key in first)
    assert not first["embed.weight"].equal(other["embed.weight"])
    assert torch.get_rng_state().equal(drawn)


def test_other_backbones_fit():
    network = load_autoret(settings=replace(SMALL, backbone="resnet18-thin"))
    assert network(torch.rand(1, 3, 64, 64)).shape == (1, 12)


def test_the_network_refuses_bad_input():
    with pytest.raises(ValueError, match="20 x 40 pixels is too small for 3 x 3 patches of at least 8 pixels"):
        load_autoret(settings=replace(SMALL, grid=3, overlap=0))(torch.rand(1, 3, 40, 20))
    bad = {"backbone": "vgg", "fusion": "sum", "overlap": 1.0, "grid": 0, "pyramid": 0}
    for name, value in bad.items():
        with pytest.raises(ValueError, match=str(value)):
            PatchSettings(**{name: value})


# Training


def test_what_is_known_of_the_papers_is_the_default():
    settings = AutoRetSettings()
    assert (settings.alpha, settings.leak, settings.can_link) == (100.0, 0.0, 0.5) and departures(settings) == {}
    assert departures(replace(settings, alpha=10)) == {"alpha": (100.0, 10)}
    assert set(KNOWN) <= set(asdict(settings))


def test_every_arm_differs_in_one_thing():
    base = QUICK
    for name, change in ARMS.items():
        a, b = asdict(base), asdict(change(base))
        a, b = a | a.pop("network"), b | b.pop("network")
        assert sum(a[key] != b[key] for key in a) == (name != "autoret"), name


def test_an_augmentation_is_normalised_of_one_size_and_never_twice_the_same():
    image = (torch.rand(3, 60, 40) * 255).byte()
    views = [augmentation(QUICK)(image) for _ in range(3)]
    assert all(view.shape == (3, 32, 32) and view.dtype == torch.float32 for view in views)
    assert not views[0].equal(views[1]) and -3 < views[0].min() < views[0].max() < 3
    off = dict(rotation=0, shear=0, brightness=0, contrast=0, flip=0, noise=0, min_scale=1.0)
    square = (torch.rand(3, 32, 32) * 255).byte()
    still = augmentation(replace(QUICK, **off))
    assert torch.allclose(still(square), still(square), atol=1e-5)


def test_items_are_the_pairs_of_the_epoch(cards):
    source = LinkPairs(cards.labels, 0.5, seed=3)
    data = PairImages(cards, source, replace(QUICK, augment_other=False))
    batches = PairBatches(source, 8)
    batches.set_epoch(2)
    drawn = source.draw(2)
    pairs = sum(batches, [])
    assert [len(batch) for batch in batches] == [8] * (len(cards.images) // 8)
    assert pairs == list(zip(drawn.first, drawn.second, drawn.can_link, strict=True))[: len(pairs)]
    for a, b, linked in pairs:
        (first, second), can_link, label = data[(a, b, linked), 7]
        assert first.equal(data.view(a)) and can_link == linked
        assert second.equal(data.view(b)) == (a != b)
        assert second.equal(data[(a, b, linked), 7][0][1])  # the seed decides
        assert label == (cards.labels[a] if source.known[a] else -1 - a)


def test_training_pulls_apart_what_cannot_be_linked_and_centres(cards):
    network = load_autoret(settings=SMALL)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    history = train_autoret(network, cards, replace(QUICK, alpha=1.0, epochs=4))
    assert history["loss"][-1] < history["loss"][0] and history["far"][-1] > history["far"][0]
    assert history["far"][-1] > history["near"][-1]
    assert not network.training and not before["embed.weight"].equal(network.embed.weight)
    source = LinkPairs(cards.labels)
    data = PairImages(cards, source, QUICK)
    with torch.inference_mode():
        embeddings = network.pooled(torch.stack([data.view(index) for index in range(len(data))]))
    assert torch.allclose(embeddings.mean(dim=0), network.centre, atol=1e-4)
    assert history["false_cannot_link"][0] == pytest.approx(source.false_cannot_link(source.draw(0)))


@pytest.mark.parametrize("fraction", [0, 0.1, 0.25, 0.5, 1])
def test_it_trains_with_no_labels_some_and_all(cards, fraction):
    network, settings = load_autoret(settings=SMALL), replace(QUICK, epochs=1, label_fraction=fraction)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    history = train_autoret(network, cards, settings)
    assert all(len(values) == 1 and math.isfinite(values[0]) for values in history.values())
    source = LinkPairs(cards.labels, fraction, seed=settings.seed)
    lies = history["false_cannot_link"][0]
    assert lies == pytest.approx(source.false_cannot_link(source.draw(0))) and (lies == 0 or fraction < 1)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {"embed.weight", "fusion.lstm.weight_hh_l0", "centre"} <= moved
    descriptors = extract_descriptors(network, cards.images[:4], image_size=32)
    assert torch.allclose(descriptors.norm(dim=1), torch.ones(4))


def test_training_is_repeatable_and_other_seeds_are_others(cards):
    def trained(seed):
        network = load_autoret(settings=SMALL)
        return train_autoret(network, cards, replace(QUICK, epochs=1, seed=seed)), network.embed.weight.detach()

    (history, weights), (again, same), (_, other) = trained(0), trained(0), trained(1)
    assert history == again and weights.equal(same) and not weights.equal(other)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("view", [0, 1])
def test_both_losses_name_the_file_whose_descriptor_is_nan(cards, monkeypatch, loss, view):
    network, loaders = load_autoret(settings=SMALL), []
    pooled, row = network.pooled, view * 16 + 5
    rows = torch.arange(32)[:, None]
    monkeypatch.setattr(network, "pooled", lambda images: torch.where(rows == row, torch.nan, pooled(images)))
    monkeypatch.setattr(training, "planned", lambda *of: loaders.append(distributed.planned(*of)) or loaders[0])
    with pytest.raises(ValueError, match="gives a descriptor that is nan or infinite") as caught:
        train_autoret(network, cards, replace(QUICK, loss=loss, label_fraction=1.0))
    pair, _ = loaders[0].batch_sampler.drawn[0][5]
    assert pair[0] != pair[1]
    assert f"the image '{cards.images[pair[view]]}' gives" in str(caught.value)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_image_of_a_pair_that_is_nan_is_named_whatever_batch_normalisation_makes_of_it(cards, monkeypatch, loss):
    whole = PairImages.__getitem__

    def broken(self, item):
        images, *rest = whole(self, item)
        images[1, 0, 2, 3] = torch.nan if item[0][1] == 7 else images[1, 0, 2, 3]
        return images, *rest

    monkeypatch.setattr(PairImages, "__getitem__", broken)
    with pytest.raises(ValueError, match=re.escape(f"the image '{cards.images[7]}' is nan; replace the file")):
        train_autoret(load_autoret(settings=SMALL), cards, replace(QUICK, loss=loss, batch_size=48))


def test_the_pairs_of_an_epoch_are_drawn_once_for_the_batches_and_once_for_the_log(cards, monkeypatch):
    whole, drawn = LinkPairs.draw, []
    monkeypatch.setattr(LinkPairs, "draw", lambda self, epoch: drawn.append(epoch) or whole(self, epoch))
    train_autoret(load_autoret(settings=SMALL), cards, QUICK)
    assert drawn.count(1) == 2 and len(drawn) <= 5  # of two epochs, with the first once more to plan the workers


def test_beyond_alpha_nothing_moves_and_a_leak_helps(cards):
    """All distances are above alpha: every can-link pair is stuck and every cannot-link pair is done."""
    start = load_autoret(settings=replace(SMALL, dim=8))
    with torch.no_grad():
        start.embed.weight *= 1e6
    for leak, moves in ((0.0, False), (0.1, True)):
        network = load_autoret(settings=replace(SMALL, dim=8))
        network.load_state_dict(start.state_dict())
        settings = replace(QUICK, network=network.patching, alpha=1e-3, leak=leak, epochs=1, augment_other=True)
        history = train_autoret(network, cards, settings)
        assert history["stuck"] == [1.0]
        assert network.embed.weight.equal(start.embed.weight) is not moves


def test_nt_xent_learns_from_the_same_images(cards):
    network = load_autoret(settings=SMALL)
    history = train_autoret(network, cards, replace(QUICK, loss="nt-xent", label_fraction=1.0, epochs=4))
    assert set(history) == {"loss"} and history["loss"][-1] < history["loss"][0]


def test_descriptors_are_those_of_the_centred_embedding(cards):
    network = load_autoret(settings=SMALL)
    network.centre += 0.3
    descriptors = extract_descriptors(network, cards.images[:4], image_size=48)
    assert descriptors.shape == (4, 12)
    images = torch.rand(2, 3, 48, 48)
    slow = network.pooled(images) - 0.3
    assert torch.allclose(network(images), slow / slow.norm(dim=1, keepdim=True), atol=1e-6)


def test_a_shift_of_all_embeddings_is_nothing_to_the_loss_and_everything_to_the_cosine():
    embeddings, link = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2 == 0
    near, far = (AutoEmbedderLoss(3.0)(*(embeddings + shift), link) for shift in (0, 100))
    assert torch.allclose(near, far, atol=1e-3)
    cosines = torch.nn.functional.cosine_similarity(*(embeddings + 100))
    assert cosines.min() > 0.99 > torch.nn.functional.cosine_similarity(*embeddings).max()


def test_settings_refuse_bad_input(cards):
    for alpha in (0, -1, math.nan):
        with pytest.raises(ValueError, match="alpha of cannot-link pairs must be positive"):
            AutoRetSettings(alpha=alpha)
    for fraction in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"fraction of labels lies in \[0, 1\]"):
            AutoRetSettings(label_fraction=fraction)
    with pytest.raises(ValueError, match="no loss 'triplet' for AutoRet"):
        AutoRetSettings(loss="triplet")
    with pytest.raises(ValueError, match="7 is no even number"):
        AutoRetSettings(batch_size=7)
    with pytest.raises(ValueError, match="larger than cards, which has 48 images"):
        train_autoret(load_autoret(settings=SMALL), cards, AutoRetSettings())


def test_profiles_depart_from_what_is_known_in_their_budget_alone():
    for profile in PROFILES.values():
        assert departures(profile.autoret).keys() <= {"batch_size", "epochs", "learning_rate"}, profile.name
