"""Descriptors on disk, one small file an image, so that a killed extraction goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from retrieval_utils.datasets.archives import disk_trouble
from retrieval_utils.transforms import INTERPOLATION, RESIZE_RULE

VERSION = 2  # to be raised when the same network and settings would give other descriptors than before


class DescriptorCache:
    """Descriptors (D,) float32 of one network under one set of settings, found by the content of the image and its box.

    folder: shared by all networks and settings; each of them has its own folder in it, named by `fingerprint`.
    An entry holds its own sha256: one that is cut or changed is as good as none. Nothing in an entry can run code.
    """

    def __init__(self, folder: str | Path, network: torch.nn.Module, settings: Mapping[str, object]):
        self.dim = network.dim
        self.folder = Path(folder).expanduser() / fingerprint(network, settings)[:32]
        with disk_trouble(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, image: str | Path, box: Sequence[float] | None) -> str:
        """Hex sha256 over the bytes of the image and the box. Raises FileNotFoundError, or ValueError if unreadable."""
        try:
            with open(image, "rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        except FileNotFoundError:
            raise FileNotFoundError(f"There is no image '{image}'; check the path or get the data set again.") from None
        except OSError as error:
            raise ValueError(f"The image '{image}' cannot be read ({error.strerror}); check the file.") from None
        digest.update(json.dumps(None if box is None else [float(side) for side in box]).encode())
        return digest.hexdigest()

    def get(self, key: str) -> torch.Tensor | None:
        """The descriptor (D,) float32, or None if there is none or its file is damaged."""
        try:
            with safe_open(self._path(key), framework="pt") as file:
                descriptor, expected = file.get_tensor("descriptor"), (file.metadata() or {}).get("sha256")
        except (OSError, SafetensorError):
            return None
        sound = descriptor.shape == (self.dim,) and descriptor.dtype == torch.float32
        return descriptor if sound and _sha256(descriptor) == expected else None

    def put(self, key: str, descriptor: torch.Tensor) -> None:
        """Writes a descriptor (D,) float32, under its final name only when whole. Raises ValueError (disk)."""
        descriptor = descriptor.detach().float().cpu().contiguous()
        path = self._path(key)
        part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")  # several runs share a cache
        with disk_trouble(path, leftovers=(part,)):
            path.parent.mkdir(exist_ok=True)
            part.write_bytes(save({"descriptor": descriptor}, metadata={"sha256": _sha256(descriptor)}))
            part.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:]}.safetensors"


def fingerprint(network: torch.nn.Module, settings: Mapping[str, object]) -> str:
    """Hex sha256 over the layers and weights of a network and all that decides what it makes of an image."""
    rule = {"version": VERSION, "resize": RESIZE_RULE, "interpolation": INTERPOLATION.name, **settings}
    digest = hashlib.sha256(json.dumps(rule, sort_keys=True).encode())
    digest.update(repr(network).encode())  # pooling, strides: what the weights do not show
    for name, value in network.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _sha256(descriptor: torch.Tensor) -> str:
    return hashlib.sha256(descriptor.numpy().tobytes()).hexdigest()
