"""Public pretrained weights by name: address, licence, key mapping, normalisation; and a reader that runs no code."""

from __future__ import annotations

import difflib
import hashlib
import pickle
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from retrieval_utils.datasets.archives import disk_trouble
from retrieval_utils.datasets.download import download
from retrieval_utils.transforms import MEAN, STD

FACEBOOK = "https://dl.fbaipublicfiles.com"
LIGHTLY = "https://lightly-ssl-checkpoints.s3.amazonaws.com"


@dataclass(frozen=True)
class Checkpoint:
    """A public file of weights.

    prefix: what the trunk's keys begin with in the file. digest: "md5:" or "sha256:" and the first digits of the hash,
    where its authors print one (MoCo v2) or public code that loads the file checks one (VICReg, Barlow Twins); for the
    others, the sha256 of the first download is recorded and held to. mean, std: of the RGB values in [0, 1] that the
    network was trained on. epochs: of pretraining on ImageNet.
    """

    source: str
    url: str
    licence: str
    prefix: str = ""
    digest: str = ""
    epochs: int = 0
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    architecture: str = "resnet50"


CHECKPOINTS = {
    "moco-v2": Checkpoint(
        "Chen et al. 2020, arXiv 2003.04297",
        f"{FACEBOOK}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "CC BY-NC 4.0",  # so its README; the LICENSE file beside it has said MIT, and the stricter one is taken here
        prefix="module.encoder_q.",
        digest="md5:a04e12f8",
        epochs=800,
    ),
    "simclr": Checkpoint(  # the TensorFlow weights of the authors, converted
        "Chen et al. 2020, arXiv 2002.05709",
        "https://huggingface.co/lightly-ai/simclrv1-imagenet1k-resnet50-1x/resolve/main/resnet50-1x.pth",
        "Apache-2.0",
        epochs=1000,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    ),
    "byol": Checkpoint(  # trained again by Lightly: the weights of the authors come as a pickle of JAX arrays
        "Grill et al. 2020, arXiv 2006.07733",
        f"{LIGHTLY}/imagenet_resnet50_byol_2024-02-14_16-10-09/pretrain/version_0/checkpoints/epoch%3D99-step%3D500400.ckpt",
        "MIT",
        prefix="backbone.",
        epochs=100,
    ),
    "swav": Checkpoint(
        "Caron et al. 2020, arXiv 2006.09882",
        f"{FACEBOOK}/deepcluster/swav_800ep_pretrain.pth.tar",
        "CC BY-NC 4.0",
        prefix="module.",
        epochs=800,
    ),
    "barlow-twins": Checkpoint(
        "Zbontar et al. 2021, arXiv 2103.03230",
        f"{FACEBOOK}/barlowtwins/ep1000_bs2048_lrw0.2_lrb0.0048_lambd0.0051/resnet50.pth",
        "MIT",  # since July 2021; before, CC BY-NC 4.0
        digest="sha256:cf015f40cc",
        epochs=1000,
    ),
    "vicreg": Checkpoint(
        "Bardes et al. 2022, arXiv 2105.04906",
        f"{FACEBOOK}/vicreg/resnet50.pth",
        "MIT",
        digest="sha256:c843e7652491ff2f712734619fd74d85e5e92ac902615665ad3fd50dc6ada591",
        epochs=1000,
    ),
    "dino": Checkpoint(
        "Caron et al. 2021, arXiv 2104.14294",
        f"{FACEBOOK}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        "Apache-2.0",
        epochs=800,
    ),
}

# Short names of networks whose weights timm hosts, all Apache-2.0: weights="pretrained" loads them.
TIMM_NAMES = {
    "dino-vits16": "timm/vit_small_patch16_224.dino",
    "dino-vits8": "timm/vit_small_patch8_224.dino",
    "dino-vitb16": "timm/vit_base_patch16_224.dino",
    "dino-vitb8": "timm/vit_base_patch8_224.dino",
    "dinov2-vits14": "timm/vit_small_patch14_dinov2.lvd142m",
    "dinov2-vitb14": "timm/vit_base_patch14_dinov2.lvd142m",
    "dinov2-vitl14": "timm/vit_large_patch14_dinov2.lvd142m",
    "dinov2-vits14-reg": "timm/vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2-vitb14-reg": "timm/vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov2-vitl14-reg": "timm/vit_large_patch14_reg4_dinov2.lvd142m",
}

PREFIXES = tuple(dict.fromkeys([entry.prefix for entry in CHECKPOINTS.values() if entry.prefix] + ["encoder_q.", ""]))
HEADS = ("fc.", "head.", "projection_head.", "prototypes.")  # beside the trunk; descriptors do without them
TORCH_SUFFIXES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".torch")


def get_checkpoint(name: str) -> Path:
    """The file of a name in CHECKPOINTS, downloaded once to torch's hub folder ($TORCH_HOME/hub/checkpoints).

    Raises ValueError (network, disk, or a file that is not the one published or first seen), FileNotFoundError.
    """
    entry = CHECKPOINTS[name]
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{name}-{entry.url.rsplit('/', 1)[-1].replace('%3D', '-')}"
    record = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        download(entry.url, path)
    found = file_sha256(path)
    if record.is_file():
        if (first := record.read_text().strip()) != found:
            raise ValueError(
                f"The weights '{path}' have sha256 {found}, but {first} when they were loaded first; "
                f"delete both that file and '{record.name}', and get them again."
            )
        return path
    if entry.digest:
        kind, _, expected = entry.digest.partition(":")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, kind).hexdigest()
        if not digest.startswith(expected):
            path.unlink()
            raise ValueError(
                f"{entry.url} has {kind} {digest}, expected {expected}...; it was deleted: get it again, and if the "
                "hash stays, the file there has changed."
            )
    with disk_trouble(record, leftovers=(record,)):
        record.write_text(f"{found}\n")
    return path


def read_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a torch checkpoint by key, on the CPU; of what wraps them, "state_dict" is opened.

    Only tensors and plain containers are read: a file that holds anything else is refused, nothing in it runs.
    Raises FileNotFoundError, or ValueError for a file that is truncated or refused.
    """
    path = Path(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch lets through whatever pickle, zipfile and its own reader raise
        with path.open("rb") as file:
            whole_zip = zipfile.is_zipfile(path) or file.read(2) != b"PK"
        if isinstance(error, pickle.UnpicklingError) and whole_zip and "nsupported" in str(error):
            raise ValueError(
                f"The checkpoint '{path.name}' holds more than tensors, which could run code, so it was not loaded; "
                "get its weights as safetensors, or save its state_dict alone."
            ) from None
        raise ValueError(
            f"The checkpoint '{path.name}' is not a whole torch checkpoint ({type(error).__name__}); get it again."
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, Mapping) else {}
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {key: value for key, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"The checkpoint '{path.name}' holds no tensors under their keys; give one with a state_dict.")
    return tensors


def read_safetensors(path: str | Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ValueError for one that is truncated."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
            return tensors, file.metadata() or {}
    except SafetensorError as error:
        message = (
            f"The checkpoint '{Path(path).name}' is not a whole safetensors file ({error}); train or get it again."
        )
        raise ValueError(message) from None


def trunk_state(
    state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], prefix: str | None = None
) -> dict[str, torch.Tensor]:
    """`state` under the keys of `own`, the trunk's: the prefix cut, the heads left out.

    prefix: None is the first of PREFIXES under which there is a first layer. Counts of batches, which older
    checkpoints lack and descriptors do without, are taken from `own`.
    """
    if prefix is None:
        prefix = next((prefix for prefix in PREFIXES if f"{prefix}conv1.weight" in state), "")
    cut = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    counts = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    return counts | {key: value for key, value in cut.items() if not key.startswith(HEADS)}


def check_fit(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], file: str, network: str) -> None:
    """Raises ValueError, with all that is missing, unknown or misshapen, unless `state` has the keys of `own`."""
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if missing or foreign or shapes:
        raise ValueError(
            f"The checkpoint '{file}' does not fit {network}: {len(missing)} keys missing{_grouped(missing)}, "
            f"{len(foreign)} unknown{_grouped(foreign)}, {len(shapes)} of another shape{_grouped(shapes)}."
        )


def _grouped(keys: Sequence[str]) -> str:
    """ " (conv1.weight, layer4.2: 6)": every key, those that begin with the same two parts as one with their count."""
    groups = defaultdict(list)
    for key in keys:
        groups[".".join(key.split(".")[:2])].append(key)
    names = [f"{name}: {len(group)}" if len(group) > 1 else group[0] for name, group in groups.items()]
    return f" ({', '.join(names)})" if names else ""


def near(name: str, names: Iterable[str]) -> str:
    """ " Did you mean 'x'?", or nothing if no name is near."""
    found = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{found[0]}'?" if found else ""


def file_sha256(path: str | Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
