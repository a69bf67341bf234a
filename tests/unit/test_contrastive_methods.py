from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from retrieval_utils import contrastive
from retrieval_utils.contrastive import PretrainingSettings, pretrain
from retrieval_utils.contrastive_base import COLLAPSED
from retrieval_utils.contrastive_methods import BYOL, DINO, METHODS, LeJEPA, MoCoV2, SwAV
from retrieval_utils.contrastive_views import SMALL_CROPS, TrainingCrops
from retrieval_utils.datasets import TrainingSet
from retrieval_utils.networks import load_network
from retrieval_utils.protocol import state_sha256

SETTINGS = PretrainingSettings(epochs=2, batch_size=8, image_size=32, device="cpu")
NEW = ["moco-v2", "byol", "swav", "barlow-twins", "dino", "lejepa"]
WITH_TEACHER = ["moco-v2", "byol", "dino"]


@pytest.fixture(scope="module")
def few(cards) -> TrainingSet:
    return TrainingSet("few", cards.images[::3], cards.labels[::3], cards.label_names, "few")


@pytest.fixture
def spied(monkeypatch):
    """The module of the last training, kept, with its student and teacher before and after every step."""
    kept = {"steps": []}
    fit = contrastive.fit

    def keep(module, *arguments, **options):
        kept["module"] = module
        step = module.optimizer_step

        def optimizer_step(*args, **kwargs):
            before = [p.clone() for p in module.teacher.parameters()]
            step(*args, **kwargs)
            student = [p.detach().clone() for p in module.network.parameters()]
            kept["steps"].append((before, student, [p.clone() for p in module.teacher.parameters()]))

        if hasattr(module, "teacher"):
            module.optimizer_step = optimizer_step
        return fit(module, *arguments, **options)

    monkeypatch.setattr(contrastive, "fit", keep)
    return kept


@pytest.mark.parametrize("method", NEW)
def test_a_method_trains_watches_the_rank_and_repeats_itself(few, method, spied):
    settings = replace(SETTINGS, method=method)
    first, again, start = (load_network("resnet18-thin") for _ in range(3))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*collapsed.*")
        history = pretrain(first, few, settings)
    assert set(history) == {"spread", "loss", "rank"} and all(len(values) == 2 for values in history.values())
    assert torch.isfinite(torch.tensor(history["loss"])).all()
    assert 1 <= history["rank"][-1] <= 15
    assert min(history["spread"]) > COLLAPSED
    assert not torch.equal(first.trunk.conv1.weight, start.trunk.conv1.weight)
    assert not first.training and isinstance(first.head, nn.Identity)
    module = spied["module"]
    trained = {name.partition(".")[0] for name, p in module.named_parameters() if p.grad is not None}
    assert {"network", "head"} <= trained and not {"teacher", "teacher_head"} & trained
    assert {name.partition(".")[0] for name, p in module.named_parameters() if not p.requires_grad} <= {
        "teacher", "teacher_head", "head"
    }  # fmt: skip
    published = module.teacher if method == "dino" else module.network
    assert state_sha256(first) == state_sha256(published)
    assert pretrain(again, few, settings) == history
    assert state_sha256(first) == state_sha256(again)


def test_moco_trains_without_a_projection_head(few, spied):
    network = load_network("resnet18-thin")
    history = pretrain(network, few, replace(SETTINGS, method="moco-v2", projection_dim=0))
    assert torch.isfinite(torch.tensor(history["loss"])).all() and len(spied["steps"]) == 4


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_the_teacher_is_the_moving_average_of_the_student(few, method, spied):
    pretrain(load_network("resnet18-thin"), few, replace(SETTINGS, method=method, momentum=0.6))
    assert len(spied["steps"]) == 4
    for step, (before, student, after) in enumerate(spied["steps"]):
        m = 1 - 0.4 * (1 + torch.cos(torch.tensor(torch.pi * step / 3))).item() / 2  # from 0.6 up to 1
        for old, new, moved in zip(before, student, after, strict=True):
            torch.testing.assert_close(moved, m * old + (1 - m) * new, atol=1e-6, rtol=1e-5)
    first, last = spied["steps"][0], spied["steps"][-1]
    assert not torch.equal(first[0][0], first[2][0]) and torch.equal(last[0][0], last[2][0])


def test_a_short_training_has_a_teacher_that_forgets_its_start(few):
    network = load_network("resnet18-thin")
    assert BYOL(network, SETTINGS, 5000, few).first_momentum == 0.99
    assert BYOL(network, SETTINGS, 100, few).first_momentum == pytest.approx(0.9)
    assert BYOL(network, SETTINGS, 5, few).first_momentum == 0
    assert BYOL(network, replace(SETTINGS, momentum=0.5), 5, few).first_momentum == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_each_method_gets_the_crops_it_needs(few, method):
    settings = replace(SETTINGS, method=method)
    item, label = TrainingCrops(few.images, few.labels, METHODS[method].views(settings), 48)[5, 0]
    small = [(SMALL_CROPS, 3, 16, 16)] if method in ("swav", "dino", "lejepa") else []
    assert [tuple(crops.shape) for crops in item] == [(2, 3, 32, 32), *small]
    assert label == few.labels[5]


def test_the_queue_fits_the_set_and_keeps_the_latest_keys(few):
    network = load_network("resnet18-thin")
    assert MoCoV2(network, SETTINGS, 10, few).criterion.memory_bank.size == (16, 128)
    big = replace(few, images=few.images * 10, labels=few.labels.repeat(10))
    assert MoCoV2(network, replace(SETTINGS, projection_dim=0), 10, big).criterion.memory_bank.size == (80, 256)
    module = MoCoV2(network, replace(SETTINGS, queue_size=10), 10, few)
    pooled, views = torch.randn(8, 256, requires_grad=True), torch.randn(4, 2, 3, 32, 32)
    loss, queries = module.loss_of(pooled, [views])
    assert loss.isfinite() and queries.shape == (8, 128)
    assert int(module.criterion.memory_bank.bank_ptr) == 8


def test_keys_come_back_in_the_order_of_the_views(few):
    module = MoCoV2(load_network("resnet18-thin"), replace(SETTINGS, projection_dim=0), 10, few).eval()
    views = torch.randn(4, 2, 3, 32, 32)
    expected = torch.cat([module.teacher.pooled(views[:, number]) for number in range(2)])  # (8, D)
    torch.testing.assert_close(module.teach(views), expected, atol=1e-5, rtol=1e-4)


def test_the_queue_outlives_a_checkpoint(few):
    saved, loaded = (MoCoV2(load_network("resnet18-thin"), SETTINGS, 10, few) for _ in range(2))
    saved.criterion.memory_bank.bank_ptr += 8
    checkpoint = {}
    saved.on_save_checkpoint(checkpoint)
    loaded.on_load_checkpoint(checkpoint)
    assert torch.equal(loaded.criterion.memory_bank.bank, saved.criterion.memory_bank.bank)
    assert int(loaded.criterion.memory_bank.bank_ptr) == 8


def test_prototypes_are_directions_and_stay_as_drawn_at_first(few, spied):
    network = load_network("resnet18-thin")
    pretrain(network, few, replace(SETTINGS, method="swav", epochs=1, learning_rate=0.0))
    module = spied["module"]
    module.prototypes.normalize()
    weight = module.prototypes.heads[0].weight
    assert weight.shape == (8, 128)  # as many as images in a batch
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(8))
    module = SwAV(network, SETTINGS, 100, few)
    assert module.prototypes.n_steps_frozen_prototypes == 10
    module.loss_of(torch.randn(8, 256), [torch.randn(4, 2, 3, 32, 32), torch.randn(4, 1, 3, 16, 16)])[0].backward()
    assert module.prototypes.heads[0].weight.grad is None
    assert module.head.layers[0].weight.grad is not None


def test_the_last_layer_of_dino_stays_as_drawn_at_first_and_the_centre_follows_the_teacher(few):
    module = DINO(load_network("resnet18-thin"), SETTINGS, 100, few)
    crops = [torch.randn(4, 2, 3, 32, 32), torch.randn(4, 1, 3, 16, 16)]
    taught = module.teach(crops[0])  # (8, K)
    module.loss_of(torch.randn(8, 256), crops)[0].backward()
    torch.testing.assert_close(module.criterion.center[0], 0.1 * taught.mean(0, keepdim=True), atol=1e-5, rtol=1e-3)
    assert module.head.last_layer.weight_v.grad is not None
    module.on_after_backward()
    assert module.head.last_layer.weight_v.grad is None and module.head.layers[0].weight.grad is not None


def test_lejepa_is_smaller_where_crops_agree(few):
    module = LeJEPA(load_network("resnet18-thin"), SETTINGS, 10, few)
    module.head = nn.Identity()
    random = torch.randn(8, 256)
    module.network.pooled = lambda images: random[:4]
    agreed, _ = module.loss_of(random[:4].repeat(2, 1), [None, torch.zeros(4, 1, 3, 16, 16)])
    apart, _ = module.loss_of(random, [None, torch.zeros(4, 1, 3, 16, 16)])
    assert agreed < apart


def test_collapse_is_named_once(few):
    network = load_network("resnet18-thin")
    for layer in network.modules():  # a dead network: one descriptor for all images, and no gradient to leave it by
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
    settings = replace(SETTINGS, method="byol", epochs=2, learning_rate=0.0)
    with pytest.warns(UserWarning, match=r"byol has collapsed: in epoch 1 the spread .* is 0.*momentum") as all_:
        pretrain(network, few, settings)
    assert sum("collapsed" in str(warning.message) for warning in all_) == 1


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_healthy_network_is_not_called_collapsed(few, method, recwarn):
    pretrain(load_network("resnet18-thin"), few, replace(SETTINGS, method=method, epochs=1))
    assert not [warning for warning in recwarn if "collapsed" in str(warning.message)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "mocov2"},
            r"no pretraining method 'mocov2' \(did you mean 'moco-v2'\?\); choose one of simclr, moco",
        ),
        ({"method": "byol", "batch_size": 17}, "A batch of 17 is larger than few, which has 16 images"),
        ({"method": "moco-v2", "queue_size": 17}, "A queue of 17 keys does not fit few: with more than its 16 images"),
        ({"method": "moco-v2", "queue_size": -1}, "A queue of -1 keys does not fit few"),
        ({"method": "byol", "momentum": 1.5}, r"momentum of a teacher lies in \[0, 1\], got 1.5; 0.99 is usual"),
    ],
)
def test_what_cannot_work_says_why(few, change, message):
    with pytest.raises(ValueError, match=message):
        pretrain(load_network("resnet18-thin"), few, replace(SETTINGS, **change))
