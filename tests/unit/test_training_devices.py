"""Two processes that share a batch give the loss and the gradients of one that has it whole."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from retrieval_utils.distributed import PlannedBatches, check_processes
from retrieval_utils.finetuning import BalancedBatches, FinetuningSettings, finetune
from retrieval_utils.networks import load_network
from retrieval_utils.training import SeededBatches, ShuffledBatches

SETTINGS = FinetuningSettings(head_dim=8, epochs=1, batches=1, instances=4, image_size=32, device="cpu")

# A network without batch normalisation in one pass, and one with it, frozen, in chunks; the learning rate is 0, so that
# both batches of both epochs meet the same weights.
BOTH = """
import sys
import numpy as np, pytorch_lightning as pl, torch
torch.set_num_threads(1)
from torch import nn
from torch.utils.data import DataLoader, Dataset
from retrieval_utils.finetuning import BalancedBatches, FinetuningSettings, _FineTuning
from retrieval_utils.losses import QuantizedAPLoss, SmoothAPLoss
from retrieval_utils.networks import load_network
from retrieval_utils.training import fit

processes, output = int(sys.argv[1]), sys.argv[2]

class Images(Dataset):
    pixels = torch.randn(24, 1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    def __len__(self): return 24
    def __getitem__(self, index): return self.pixels[index], index % 6

class Keep(pl.Callback):
    def __init__(self): self.gradients = []
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.gradients.append([parameter.grad.clone() for parameter in module.network.parameters()])

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 8, 5, 3), nn.Linear(8, 16)
    def forward(self, images):
        return nn.functional.normalize(self.head(self.convolution(images).relu().mean((2, 3))))

found = {}
for name, chunk, criterion in (
    ("smooth-ap", 0, SmoothAPLoss(0.05)), ("smooth-ap", 4, SmoothAPLoss(0.05)), ("quantized-ap", 4, QuantizedAPLoss(10))
):
    pl.seed_everything(0, verbose=False)
    settings = FinetuningSettings(loss=name, chunk=chunk, epochs=2, batches=2, learning_rate=0.0, weight_decay=0.0)
    module = _FineTuning(load_network("resnet18-thin") if chunk else Plain(), criterion, settings)
    loader = DataLoader(Images(), batch_sampler=BalancedBatches(np.arange(24) % 6, 4, 3, 2))
    keep = Keep()
    history = fit(module, loader, 2, name, "cpu", "32-true", devices=processes, callbacks=[keep])
    found[f"{name}-{chunk}"] = {"loss": history["loss"], "gradients": keep.gradients}
if module.global_rank == 0:
    torch.save(found, output)
"""


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path, project):
    script = tmp_path / "both.py"
    script.write_text(BOTH)
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node"]
    for processes in (1, 2):
        start = [*torchrun, str(processes)] if processes > 1 else []
        command = [sys.executable, *start, str(script), str(processes), str(tmp_path / f"{processes}.pt")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
    one, two = (torch.load(tmp_path / f"{processes}.pt", weights_only=True) for processes in (1, 2))
    assert one.keys() == two.keys() == {"smooth-ap-0", "smooth-ap-4", "quantized-ap-4"}
    for name, whole in one.items():
        assert two[name]["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert len(two[name]["gradients"]) == len(whole["gradients"]) == 4  # two batches in each of two epochs
        for shared, expected in zip(two[name]["gradients"], whole["gradients"], strict=True):
            assert [gradient.shape for gradient in shared] == [gradient.shape for gradient in expected]
            mine, wanted = (torch.cat([g.flatten() for g in gradients]) for gradients in (shared, expected))
            assert wanted.abs().max() > 1e-3
            assert (mine - wanted).norm() < 1e-5 * wanted.norm()


def balanced(epoch: int = 0) -> BalancedBatches:
    sampler = BalancedBatches(np.arange(24) % 6, 4, 2, batches=3, seed=5)
    sampler.set_epoch(epoch)
    return sampler


@pytest.mark.parametrize("epoch", [0, 3])
def test_ranks_have_disjoint_parts_of_the_same_batch(epoch):
    parts = [PlannedBatches(balanced(), rank, 4) for rank in range(4)]
    for part in parts:
        part.set_epoch(epoch)
    for whole, *shares in zip(balanced(epoch), *parts, strict=True):
        assert sum(shares, []) == whole
        assert {len(share) for share in shares} == {2}


def test_shuffled_batches_are_the_same_on_every_rank_whatever_it_drew_before():
    def shares(rank: int) -> list[list]:
        torch.manual_seed(rank)  # the ranks' own streams are not in step
        sampler = PlannedBatches(SeededBatches(ShuffledBatches(12, 4, seed=7), seed=7), rank, 2)
        drawn = list(sampler)
        assert sampler.drawn == list(SeededBatches(ShuffledBatches(12, 4, seed=7), seed=7))
        sampler.set_epoch(1)
        assert list(sampler) != drawn
        return drawn

    first, second = shares(0), shares(1)
    assert sorted(index for batch in first + second for index, _ in batch) == list(range(12))


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="A batch of 8 images cannot be shared by 3 processes; take a multiple"):
        list(PlannedBatches(balanced(), 0, 3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"devices": 2, "nodes": 3}, "6 processes, and there are 1: .* `torchrun --nnodes 3 --nproc-per-node 2`"),
        ({"devices": 0}, "0 devices on 1 nodes cannot train"),
    ],
)
def test_devices_without_processes_are_refused(cards, monkeypatch, change, message):
    for name in ("WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match=message):
        finetune(load_network("resnet18-thin"), cards, replace(SETTINGS, **change))


def test_batch_normalisation_that_would_see_a_part_of_the_batch_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    network = load_network("resnet18-thin")
    with pytest.raises(ValueError, match="'trunk.bn1' would see a part of the batch on each of 2 CPUs; set chunk"):
        check_processes(2, 1, network, on_card=False)
    check_processes(2, 1, network, on_card=True)
