"""Where each data set comes from: addresses, published hashes and counts, and what becomes of the files.

Photos of Oxford and Paris are kept once, below the name of the original set: the revisited sets share them.
"""

from __future__ import annotations

from dataclasses import dataclass

from retrieval_utils.datasets import grocery_store


@dataclass(frozen=True)
class Remote:
    """A file on a public server. size: bytes, or about as many: it only serves to tell whether the disk has room.

    sha256, md5: as published, hex; without either, the hash of the first download is kept and expected from then on.
    name: of the file here, else as the address ends.
    """

    url: str
    size: int
    sha256: str = ""
    md5: str = ""
    name: str = ""

    @property
    def file(self) -> str:
        return self.name or self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Piece:
    """A file or folder below the data root, and the plain file or the archives it is made of.

    flat: "" keeps the folders as packed; a suffix keeps the files that end in it, all in one folder. strip: leave out
    the one folder that an archive has at its top. also: other places where a copy serves as well. content: hash of what
    is unpacked, where the host packs the archive anew at will, so that no hash of the archive would hold.
    """

    target: str
    remotes: tuple[Remote, ...]
    archived: bool = True
    flat: str = ""
    strip: bool = False
    also: tuple[str, ...] = ()
    content: str = ""

    @property
    def places(self) -> tuple[str, ...]:
        return (self.target, *self.also)


@dataclass(frozen=True)
class Counts:
    """Published numbers of database images and queries."""

    images: int
    queries: int


COUNTS = {
    "oxford5k": Counts(5063, 55),
    "paris6k": Counts(6392, 55),
    "roxford5k": Counts(4993, 70),
    "rparis6k": Counts(6322, 70),
}
# Of Grocery Store: photos a list, and `verification.content_hash` of the last commit of its repository, of 2023-09-08.
SPLITS = {"train": 2640, "val": 296, "test": 2485}
CONTENT = "43584b0af84db4d18b20f7352f12c4dcc53cea229a62168e0267b04a778a64d9"
DISTRACTORS = 1_001_001  # of R1M, as its list has them; the paper says one million

# Of the 6,412 photos of Paris these 20 are named corrupt by their publisher; the protocols leave them out.
CORRUPT_PARIS = frozenset(
    "paris_" + name
    for name in """
    louvre_000136 louvre_000146 moulinrouge_000422 museedorsay_001059 notredame_000188 pantheon_000284 pantheon_000960
    pantheon_000974 pompidou_000195 pompidou_000196 pompidou_000201 pompidou_000467 pompidou_000640 sacrecoeur_000299
    sacrecoeur_000330 sacrecoeur_000353 triomphe_000662 triomphe_000833 triomphe_000863 triomphe_000867
    """.split()
)

BLURRED = "face-blurred: its archives were replaced in 2022, so older numbers are of other photos"

_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_CMP = "http://cmp.felk.cvut.cz"
_R1M = "http://ptak.felk.cvut.cz/revisitop/revisitop1m"

_PHOTOS = {
    "oxford5k": Piece(
        "oxford5k/jpg",
        (Remote(f"{_VGG}/oxbuildings/oxbuild_images-v1.tgz", 1_938_238_004, md5="8f0017cc5d671f35011d6968269fbf47"),),
        flat=".jpg",
        also=("roxford5k/jpg",),
    ),
    "paris6k": Piece(
        "paris6k/jpg",
        (
            Remote(f"{_VGG}/parisbuildings/paris_1-v1.tgz", 1_269_538_001),
            Remote(f"{_VGG}/parisbuildings/paris_2-v1.tgz", 1_200_000_000),
        ),
        flat=".jpg",
        also=("rparis6k/jpg",),
    ),
}
_LABELS = {
    "oxford5k": Remote(f"{_VGG}/oxbuildings/gt_files_170407.tgz", 300_000, md5="06c4dee0ad954f6ee122c82390548537"),
    "paris6k": Remote(f"{_VGG}/parisbuildings/paris_120310.tgz", 300_000),
}
_TRAINING_PHOTOS = Piece(
    "retrieval-SfM-120k/ims",
    (Remote(f"{_CMP}/cnnimageretrieval/data/train/ims/ims.tar.gz", 37_700_000_000),),
    also=("retrieval-SfM-30k/ims",),
)


def _plain_file(target: str, url: str, size: int, sha256: str = "") -> Piece:
    return Piece(target, (Remote(url, size, sha256),), archived=False)


def _revisited(name: str, size: int, sha256: str) -> tuple[Piece, ...]:
    file = f"{name}/gnd_{name}.pkl"
    return _PHOTOS[name[1:]], _plain_file(file, f"{_CMP}/revisitop/data/datasets/{file}", size, sha256)


def _sfm(name: str, size: int) -> tuple[Piece, ...]:
    files = (f"{name}.pkl", f"{name}-whiten.pkl")
    lists = (_plain_file(f"{name}/{f}", f"{_CMP}/cnnimageretrieval/data/train/dbs/{f}", size) for f in files)
    return (*lists, _TRAINING_PHOTOS)


def _original(name: str) -> tuple[Piece, ...]:
    return _PHOTOS[name], Piece(f"{name}/gt_files", (_LABELS[name],), flat=".txt")


PIECES: dict[str, tuple[Piece, ...]] = {
    "grocery-store": (
        Piece(
            grocery_store.FOLDER,
            (Remote(grocery_store.URL, 124_000_000, name=f"{grocery_store.FOLDER}.zip"),),
            strip=True,
            content=CONTENT,
        ),
    ),
    "oxford5k": _original("oxford5k"),
    "paris6k": _original("paris6k"),
    "roxford5k": _revisited("roxford5k", 149_871, "ba7967754bd2d7d2210a5799f9c45ad5835e269a80ef9d3eba44caa35816c471"),
    "rparis6k": _revisited("rparis6k", 276_508, "d2e729a5293dda7dda8a15c8383424a42e4964a2c4cfea2f32fa85d11d2df499"),
    "r1m": (
        _plain_file("revisitop1m/revisitop1m.txt", f"{_R1M}/revisitop1m.txt", 50_000_000),
        Piece(
            "revisitop1m/jpg",
            tuple(Remote(f"{_R1M}/jpg/revisitop1m.{i}.tar.gz", 4_000_000_000) for i in range(1, 101)),
        ),
    ),
    "retrieval-sfm-30k": _sfm("retrieval-SfM-30k", 10_000_000),
    "retrieval-sfm-120k": _sfm("retrieval-SfM-120k", 30_000_000),
}
