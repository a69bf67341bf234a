"""A training killed at any moment ends, once resumed, in the weights of one that nobody interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from retrieval_utils import autoret, lrml, records, resume
from retrieval_utils.contrastive import PretrainingSettings, pretrain
from retrieval_utils.contrastive_methods import METHODS
from retrieval_utils.distributed import planned
from retrieval_utils.finetuning import FinetuningSettings, finetune
from retrieval_utils.networks import load_network
from retrieval_utils.protocol import state_sha256
from retrieval_utils.records import Run
from retrieval_utils.recurrent_network import PatchSettings, load_autoret
from retrieval_utils.resume import random_states, seconds_spent, set_random_states
from retrieval_utils.training import BatchWatch, SaveEveryEpoch

SETTINGS = FinetuningSettings(
    head_dim=8, epochs=3, batches=2, instances=3, images_per_instance=2, image_size=32, device="cpu"
)

# Forks a child for every training, so that what takes seconds is imported once; each child writes a byte a batch, and
# is killed a random moment after a random one of them. The process that forks has never computed a gradient itself.
KILLER = """
import os, pathlib, random, signal, sys, time
import numpy as np, torch
torch.set_num_threads(1)
from retrieval_utils.contrastive import PretrainingSettings, pretrain
from retrieval_utils.datasets import TrainingSet
from retrieval_utils.finetuning import FinetuningSettings, finetune
from retrieval_utils.networks import load_network, save_network
from retrieval_utils.training import BatchWatch
import lightly.transforms.simclr_transform

folder = pathlib.Path(sys.argv[1])
paths = tuple(sorted(folder.glob("*.png")))
images = TrainingSet("noise", paths, np.array([int(path.stem[0]) for path in paths]), tuple("abcdef"), "noise-1")
small = dict(epochs=3, image_size=32, device="cpu")
trainings = {
    "simclr": (pretrain, PretrainingSettings(batch_size=8, **small)),
    "smooth-ap": (finetune, FinetuningSettings(head_dim=8, batches=3, instances=4, images_per_instance=2, **small)),
}

def start(name, checkpoint, output):
    beats, beat = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ends = BatchWatch.on_train_batch_end
            BatchWatch.on_train_batch_end = lambda *all: (os.write(beat, b"."), ends(*all))
            procedure, settings = trainings[name]
            network = load_network("resnet18-thin")
            procedure(network, images, settings, checkpoint)
            save_network(network, output)
        finally:
            os._exit(0 if output.exists() else 1)
    os.close(beat)
    return child, beats

draw = random.Random(0)
killed = set()
for name in trainings:
    child, beats = start(name, None, folder / f"{name}-unbroken.safetensors")
    assert os.waitpid(child, 0)[1] == 0
    for trial in range(5):
        checkpoint = folder / f"{name}-{trial}.checkpoint"
        child, beats = start(name, checkpoint, folder / f"{name}-{trial}.killed.safetensors")
        batch = draw.randrange(9)
        for _ in range(batch):
            assert os.read(beats, 1) == b"."
        time.sleep(draw.uniform(0, 0.1))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it was done before it was killed"
        killed.add((name, checkpoint.exists()))
        os.close(beats)
        child, beats = start(name, checkpoint, folder / f"{name}-{trial}.safetensors")
        assert os.waitpid(child, 0)[1] == 0
        os.close(beats)
print(sorted(killed))
"""


@pytest.fixture
def noise(tmp_path):
    """24 images of 6 instances, of noise, in a folder of their own."""
    from PIL import Image

    for instance in range(6):
        for view in range(4):
            pixels = np.random.default_rng([instance, view]).integers(0, 256, (36, 36, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{instance}_{view}.png")
    return tmp_path


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_killed_at_ten_random_moments_and_resumed_it_ends_in_the_same_bytes(noise, project):
    environment = {**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLER, str(noise)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for name in ("simclr", "smooth-ap"):
        expected = (noise / f"{name}-unbroken.safetensors").read_bytes()
        for trial in range(5):
            assert (noise / f"{name}-{trial}.safetensors").read_bytes() == expected
    assert ", True" in done.stdout  # some were killed with a checkpoint to go on from


class Killed(BaseException):
    pass


def stop_at(monkeypatch, batch: int) -> None:
    """The next training ends, as if killed, after `batch` batches; the one after it is left alone."""
    ends, seen = BatchWatch.on_train_batch_end, [0]

    def count(*everything):
        seen[0] += 1
        if seen[0] == batch:
            raise Killed
        ends(*everything)

    monkeypatch.setattr(BatchWatch, "on_train_batch_end", count)


@pytest.fixture
def broken(cards, tmp_path, monkeypatch) -> Path:
    """The checkpoint of a fine-tuning that was killed in its second epoch."""
    path = tmp_path / "tuned.checkpoint"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 3)
        finetune(load_network("resnet18-thin"), cards, SETTINGS, path)
    return path


@pytest.mark.parametrize("change", [{"chunk": 4}, {"validation_fraction": 0.5}])
def test_what_chunks_and_validation_keep_is_resumed_too(cards, tmp_path, monkeypatch, change):
    settings = replace(SETTINGS, **change)
    whole, resumed, path = load_network("resnet18-thin"), load_network("resnet18-thin"), tmp_path / "a.checkpoint"
    history = finetune(whole, cards, settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5)
        finetune(load_network("resnet18-thin"), cards, settings, path)
    assert finetune(resumed, cards, settings, path) == history
    assert state_sha256(resumed) == state_sha256(whole)


def check_resumed(cards, path, monkeypatch, load, procedure, settings, batches):
    """Two epochs of `batches` batches, stopped before the last one, end as if nobody had interrupted them."""
    whole, resumed = load(), load()
    history = procedure(whole, cards, settings)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 2 * batches - 1)
        procedure(load(), cards, settings, path)
    assert path.exists()
    trained = []
    with monkeypatch.context() as patch:
        ends = BatchWatch.on_train_batch_end
        patch.setattr(BatchWatch, "on_train_batch_end", lambda *all: (trained.append(1), ends(*all)))
        assert procedure(resumed, cards, settings, path) == history
    assert len(trained) == batches  # the epoch that was broken off, and it alone
    assert state_sha256(resumed) == state_sha256(whole)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_pretraining_resumes_bit_for_bit(cards, tmp_path, monkeypatch, method):
    settings = PretrainingSettings(method=method, epochs=2, batch_size=16, image_size=32, device="cpu")
    load = partial(load_network, "resnet18-thin")
    check_resumed(cards, tmp_path / "a.checkpoint", monkeypatch, load, pretrain, settings, 3)


@pytest.mark.parametrize(
    "change",
    [{"loss": "lrml"}, {"loss": "lifted-structure"}, {"loss": "ap"}, {"frozen": False, "mine_every": 2}],
    ids=str,
)
def test_learning_to_rank_resumes_bit_for_bit(cards, tmp_path, monkeypatch, change):
    """The epoch that was broken off is mined again by the network as it was at its start."""
    small = {"head_dim": 8, "image_size": 32, "learning_rate": 2e-3, "device": "cpu"}
    settings = lrml.LRMLSettings(epochs=2, batches=2, mine_every=1, tuples=4, pool=30, **small)
    load = partial(load_network, "resnet18-thin")
    settings, path = replace(settings, **change), tmp_path / "a.checkpoint"
    check_resumed(cards, path, monkeypatch, load, lrml.learn_to_rank, settings, 2)


@pytest.mark.parametrize(("loss", "fraction"), [("pair-regression", 0.5), ("nt-xent", 0.0)])
def test_autoret_resumes_bit_for_bit(cards, tmp_path, monkeypatch, loss, fraction):
    settings = autoret.AutoRetSettings(
        network=PatchSettings(width=8, patch_dim=16, hidden=8, dim=12),
        **dict(loss=loss, label_fraction=fraction, epochs=2, batch_size=16, image_size=32, device="cpu"),
    )
    load = partial(load_autoret, settings=settings.network)
    check_resumed(cards, tmp_path / "a.checkpoint", monkeypatch, load, autoret.train_autoret, settings, 3)


def test_a_training_killed_between_its_end_and_the_saving_of_the_network_is_not_repeated(cards, tmp_path, monkeypatch):
    path, done, again = tmp_path / "a.checkpoint", load_network("resnet18-thin"), load_network("resnet18-thin")
    history = finetune(done, cards, SETTINGS, path)
    monkeypatch.setattr(BatchWatch, "on_train_batch_end", lambda *_: pytest.fail("it trained again"))
    assert finetune(again, cards, SETTINGS, path) == history
    assert state_sha256(again) == state_sha256(done)


def test_a_truncated_or_altered_checkpoint_is_refused(cards, broken):
    whole = broken.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], b"", whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]):
        broken.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"tuned.checkpoint' is truncated or none of a training; delete it"):
            finetune(load_network("resnet18-thin"), cards, SETTINGS, broken)
    torch.save({"state_dict": {}}, broken)
    with pytest.raises(ValueError, match="none of a training"):
        seconds_spent(broken)


def test_a_checkpoint_that_holds_code_is_refused_and_does_not_run_it(cards, broken, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"conditions": Evil()}, broken)
    with pytest.raises(ValueError, match="none of a training"):
        finetune(load_network("resnet18-thin"), cards, SETTINGS, broken)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("network", "change", "message"),
    [
        ("resnet18", {}, 'network {"name": "resnet18-thin", "pooling": "gem"}, now {"name": "resnet18", "pooling"'),
        ("resnet18-thin", {"learning_rate": 0.5}, r"\(learning_rate 0.001, now 0.5\): delete it to train from the st"),
        ("resnet18-thin", {"seed": 1, "loss": "quantized-ap"}, 'loss "smooth-ap", now "quantized-ap"; seed 0, now 1'),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_by_name(cards, broken, network, change, message):
    with pytest.raises(ValueError, match=message):
        finetune(load_network(network), cards, replace(SETTINGS, **change), broken)
    assert broken.exists()


def test_other_weights_data_code_and_procedures_are_refused(cards, broken, monkeypatch):
    with pytest.raises(ValueError, match="weights at the start [0-9a-f]{12}, now [0-9a-f]{12}"):
        finetune(load_network("resnet18-thin", seed=1), cards, SETTINGS, broken)
    with pytest.raises(ValueError, match=r"data cards-1, now cards-2"):
        finetune(load_network("resnet18-thin"), replace(cards, fingerprint="cards-2"), SETTINGS, broken)
    with pytest.raises(ValueError, match="kind of training FinetuningSettings, now PretrainingSettings"):
        pretrain(load_network("resnet18-thin"), cards, PretrainingSettings(batch_size=8, device="cpu"), broken)
    monkeypatch.setattr(resume, "code_sha256", lambda: "f" * 64)
    with pytest.raises(ValueError, match=r"\(code [0-9a-f]{12}, now ffffffffffff\)"):
        finetune(load_network("resnet18-thin"), cards, SETTINGS, broken)


def test_a_kill_while_the_checkpoint_is_written_leaves_the_one_before(cards, broken, monkeypatch):
    before = broken.read_bytes()

    def half(state, path):
        path.write_bytes(b"half")
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(torch, "save", half)
        finetune(load_network("resnet18-thin"), cards, SETTINGS, broken)
    assert broken.read_bytes() == before


def test_a_run_goes_on_where_it_was_killed_counts_all_minutes_and_cleans_up(cards, tmp_path, monkeypatch):
    run = Run.open(tmp_path, "tiny")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        stop_at(patch, 5)
        run.train("tuned", load_network("resnet18-thin"), finetune, cards, SETTINGS)
    checkpoint = run.folder / "networks" / "tuned.checkpoint"
    spent = seconds_spent(checkpoint)
    assert spent > 0
    with monkeypatch.context() as patch:  # a whole day, so that it can be told from the machine's own speed
        patch.setattr(records, "seconds_spent", lambda path: spent + 86400)
        trained = run.train("tuned", load_network("resnet18-thin"), finetune, cards, SETTINGS)
    assert not trained.reused and trained.minutes > 1440
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["tuned.json", "tuned.safetensors"]
    assert len(json.loads((checkpoint.parent / "tuned.json").read_text())["history"]["loss"]) == 3
    assert run.train("tuned", load_network("resnet18-thin"), finetune, cards, SETTINGS).reused


def test_every_random_stream_goes_on_where_it_was():
    import random

    def draws():
        return random.random(), np.random.rand(), np.random.randn(), float(torch.rand(1)), np.random.randint(9, size=3)

    np.random.randn()  # leaves a second normal number waiting
    states = random_states()
    expected = draws()
    set_random_states(states)
    assert str(draws()) == str(expected)


def test_workers_get_the_batches_of_the_resumed_epoch():
    """They draw when the epoch's iterator is made, before Lightning says which epoch it is."""

    class Epochs:
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

        def __len__(self):
            return 1

        def __iter__(self):
            yield [self.epoch]

    data = TensorDataset(torch.arange(5.0)[:, None])
    loader = planned(DataLoader(data, batch_sampler=Epochs()))
    BatchWatch("a", loader).on_load_checkpoint(None, None, {"epoch": 2})
    assert next(iter(loader))[0].item() == 3


def test_the_checkpoint_of_other_processes_is_refused(broken):
    class Trainer:
        world_size, global_rank = 2, 0

    callback = SaveEveryEpoch(resume.SavedTraining(broken, {}))
    callback.on_load_checkpoint(None, None, {"random": [random_states()]})
    with pytest.raises(ValueError, match="is of 1 processes, not 2: delete it"):
        callback.on_fit_start(Trainer(), None)
