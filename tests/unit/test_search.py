"""A folder of photos, searched: what is described when, what is left out, what the page shows, what is refused."""

from __future__ import annotations

import base64
import errno
import io
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from retrieval_utils import __main__ as cli
from retrieval_utils import search
from retrieval_utils.extraction import extract_descriptors
from retrieval_utils.index import Index
from retrieval_utils.networks import load_network
from retrieval_utils.search import Hit, find_photos, index_photos, search_photos
from retrieval_utils.search_page import thumbnail, write_page

SIZE = {"image_size": 48}
NAMES = ["a/red.jpg", "a/rose.JPG", "b & <i>c</i>/green.png", "blue.png", "black.webp"]


def photo(path: Path, seed: int, size=(60, 48), **save) -> Path:
    """Four coloured blocks, a little noise."""
    random = np.random.default_rng(seed)
    blocks = np.kron(random.integers(0, 256, (2, 2, 3)), np.ones((size[1] // 2, size[0] // 2, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((blocks + random.normal(0, 5, blocks.shape)).clip(0, 255).astype(np.uint8)).save(path, **save)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    for seed, name in enumerate(NAMES):
        photo(tmp_path / "photos" / name, seed)
    (tmp_path / "photos/notes.txt").write_text("no photo")
    photo(tmp_path / "photos/.thumbnails/red.jpg", 0)
    photo(tmp_path / "photos/a/._red.jpg", 0)
    return tmp_path / "photos"


@pytest.fixture(scope="module")
def network():
    return load_network("resnet18-thin")


@pytest.fixture
def described(monkeypatch) -> list[str]:
    """Names of the photos that were described, in order."""
    names: list[str] = []

    def extract(network, images, *args, **kwargs):
        done = extract_descriptors(network, images, *args, **kwargs)
        names.extend(Path(image).name for image in images)
        return done

    monkeypatch.setattr(search, "extract_descriptors", extract)
    return names


def test_photos_are_found_by_suffix_without_the_hidden_ones(folder):
    assert find_photos(folder) == sorted(NAMES)


def test_the_index_holds_what_extraction_gives(folder, network, tmp_path):
    photos = index_photos(folder, network, tmp_path / "index", **SIZE)
    assert (photos.names, photos.unreadable, photos.described) == (tuple(sorted(NAMES)), (), 5)
    expected = extract_descriptors(network, [folder / name for name in photos.names], **SIZE)
    torch.testing.assert_close(photos.index.descriptors(), expected)


def test_only_new_and_changed_photos_are_described_again(folder, network, tmp_path, described):
    index_photos(folder, network, tmp_path / "index", **SIZE)
    described.clear()
    again = index_photos(folder, network, tmp_path / "index", **SIZE)
    assert (described, again.described, len(again.names)) == ([], 0, 5)

    photo(folder / "new.jpg", 9)
    photo(folder / "blue.png", 10)
    os.utime(folder / "blue.png", ns=(1, 1))  # a change that the clock might not show
    (folder / "black.webp").unlink()
    changed = index_photos(folder, network, tmp_path / "index", **SIZE)
    assert sorted(described) == ["blue.png", "new.jpg"] and changed.described == 2
    assert changed.names == tuple(sorted({*NAMES, "new.jpg"} - {"black.webp"}))
    expected = extract_descriptors(network, [folder / name for name in changed.names], **SIZE)
    torch.testing.assert_close(changed.index.descriptors(), expected)
    assert sorted(path.suffix for path in (tmp_path / "index").iterdir()) == [".faiss", ".json", ".json"]


def test_a_killed_run_goes_on_where_it_was(folder, network, tmp_path, monkeypatch, described):
    monkeypatch.setattr(search, "CHUNK", 2)
    monkeypatch.setattr(search, "SAVE_EVERY", 0)
    whole = search._describe

    def killed(network, folder, keys, image_size):
        if len(described) == 4:
            raise KeyboardInterrupt
        return whole(network, folder, keys, image_size)

    monkeypatch.setattr(search, "_describe", killed)
    with pytest.raises(KeyboardInterrupt):
        index_photos(folder, network, tmp_path / "index", **SIZE)
    monkeypatch.setattr(search, "_describe", whole)
    photos = index_photos(folder, network, tmp_path / "index", **SIZE)
    assert photos.described == 1 and sorted(described) == sorted(Path(name).name for name in NAMES)
    expected = extract_descriptors(network, [folder / name for name in photos.names], **SIZE)
    torch.testing.assert_close(photos.index.descriptors(), expected)


def test_photos_that_cannot_be_read_are_named_and_the_others_indexed(folder, network, tmp_path, monkeypatch):
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("no photo")
    cut = photo(folder / "cut.jpg", 3)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (folder / "link.jpg").symlink_to(folder / "nowhere.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    photo(folder / "huge.png", 4, size=(200, 100))
    for _ in range(2):  # again from the index
        photos = index_photos(folder, network, tmp_path / "index", **SIZE)
        assert photos.unreadable == ("cut.jpg", "empty.jpg", "huge.png", "link.jpg", "text.png")
        assert photos.names == tuple(sorted(NAMES))


def test_an_error_that_is_not_the_photos_is_not_hidden(folder, network, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("the device is gone")

    monkeypatch.setattr(search, "extract_descriptors", broken)
    with pytest.raises(ValueError, match="the device is gone"):
        index_photos(folder, network, tmp_path / "index", **SIZE)


def test_the_most_similar_come_first_and_the_query_is_left_out(folder, network, tmp_path):
    copy = folder / "copy of red.png"
    Image.open(folder / "a/red.jpg").save(copy)
    photos = index_photos(folder, network, tmp_path / "index", **SIZE)
    hits = search_photos(photos, network, folder / "a/red.jpg", k=3, **SIZE)
    assert len(hits) == 3 and hits[0].name == "copy of red.png" and hits[0].score == pytest.approx(1, abs=1e-3)
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert "a/red.jpg" not in [hit.name for hit in search_photos(photos, network, folder / "a/red.jpg", k=50, **SIZE)]
    # From elsewhere, the photo itself is an answer like any other.
    elsewhere = tmp_path / "query.jpg"
    elsewhere.write_bytes((folder / "a/red.jpg").read_bytes())
    assert {hit.name for hit in search_photos(photos, network, elsewhere, k=2, **SIZE)} == {"a/red.jpg", copy.name}


def test_the_box_is_what_is_searched_with(folder, network, tmp_path):
    both = Image.new("RGB", (120, 48))
    for place, name in enumerate(("a/red.jpg", "blue.png")):
        both.paste(Image.open(folder / name), (60 * place, 0))
    both.save(tmp_path / "both.png")
    photos = index_photos(folder, network, tmp_path / "index", **SIZE)
    for box, name in (((0, 0, 60, 48), "a/red.jpg"), ((60, 0, 120, 48), "blue.png")):
        (hit,) = search_photos(photos, network, tmp_path / "both.png", box, k=1, **SIZE)
        assert hit.name == name and hit.score > 0.999


class Page(HTMLParser):
    """The images of a page with their alt texts, its links, its text; a tag that nobody wrote fails."""

    KNOWN = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "ol", "ul", "li", "figure", "img"}
    KNOWN |= {"figcaption", "br", "a", "details", "summary"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag in self.KNOWN, tag
        if tag == "img":
            self.images.append(dict(attrs))
        if tag == "a":
            self.links.append(dict(attrs)["href"])

    def handle_data(self, data):
        self.text += data


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,"))))


def test_the_page_is_self_contained_escaped_and_described(folder, tmp_path):
    query = photo(tmp_path / 'my "old" <b>house.png', 1)
    hits = [Hit("b & <i>c</i>/green.png", 0.91234), Hit("blue.png", 0.5)]
    page = write_page(tmp_path / "page.html", folder, query, (4, 5, 30, 40), hits, ["resnet & co"], ["<s>bad</s>.jpg"])
    text = page.read_text()
    read = Page(text)
    assert [image["alt"] for image in read.images] == [
        'Query: my "old" <b>house.png, the part in the box 4, 5, 30, 40',
        "Result 1: b & <i>c</i>/green.png, score 0.912",
        "Result 2: blue.png, score 0.500",
    ]
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in read.images)
    for shown in ("2 photos found", "b & <i>c</i>/green.png", "score 0.912", "resnet & co", "1 photo was left out"):
        assert shown in read.text, shown
    assert "<s>bad</s>.jpg" in read.text
    assert re.findall(r'(?:src|href)="(?!data:|file:)', text) == [] and "http" not in text
    assert read.links[1] == (folder / "blue.png").as_uri()
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there file names are Unicode")
def test_a_name_that_is_no_text_stops_nothing(folder, network, tmp_path):
    photo(folder / "plain.png", 7).rename(folder / os.fsdecode(b"caf\xe9.png"))
    (folder / os.fsdecode(b"b\xe9.jpg")).touch()
    for _ in range(2):
        photos = index_photos(folder, network, tmp_path / "index", **SIZE)
        assert len(photos.names) == 6 and photos.unreadable == ("b?.jpg",)
    hits = search_photos(photos, network, folder / "blue.png", **SIZE)
    page = write_page(tmp_path / "page.html", folder, folder / os.fsdecode(b"caf\xe9.png"), None, hits)
    assert "caf?.png" in Page(page.read_text()).text and "caf%E9.png" in page.read_text()


def test_the_box_is_drawn_in_the_query_and_only_there(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (600, 300), "grey").save(path)
    plain, boxed = decoded(thumbnail(path, 300)), decoded(thumbnail(path, 300, (100, 50, 500, 250)))
    assert plain.size == boxed.size == (300, 150)

    def yellow(at):
        red, green, blue = boxed.getpixel(at)
        return red > 180 and green > 150 and blue < 90

    assert yellow((51, 75)) and yellow((150, 26)) and yellow((249, 75)) and yellow((150, 124))
    assert not yellow((150, 75)) and not yellow((40, 75))
    assert max(high - low for low, high in plain.getextrema()) < 10


def test_a_phone_photo_stands_upright_and_keeps_its_notes_to_itself(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "where I live"  # turn by 90 degrees; a description
    Image.new("RGB", (80, 40)).save(tmp_path / "phone.jpg", exif=exif)
    small = decoded(thumbnail(tmp_path / "phone.jpg", 40))
    assert small.size == (20, 40) and not small.getexif()


def test_a_phone_photo_is_searched_with_the_box_that_a_viewer_shows(folder, network, tmp_path):
    """Stored on its side, so that the box fits in the upright photo alone."""
    with Image.open(folder / "blue.png") as photo:
        sideways, exif = photo.convert("RGB").transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned back by 90 degrees
    sideways.save(tmp_path / "phone.png", exif=exif)
    assert sideways.width < sideways.height
    photos, box = index_photos(folder, network, tmp_path / "index", 48), (1, 0, sideways.height - 1, sideways.width)
    upright = search_photos(photos, network, folder / "blue.png", box, 3, 48)
    phone = search_photos(photos, network, tmp_path / "phone.png", box, 4, 48)
    assert [hit for hit in phone if hit.name != "blue.png"] == upright
    small = decoded(thumbnail(tmp_path / "phone.png", 40, box))
    assert small.size[0] > small.size[1]


def run(*words):
    return CliRunner().invoke(cli.app, ["search", *map(str, words)])


THIN = ("--network", "resnet18-thin", "--weights", "none", "--image-size", "48")


def test_the_command_writes_a_page_and_says_where(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folder / "empty.jpg").touch()
    words = ("--images", folder, "--query", folder / "blue.png", "--box", "0,0,40,48", "--k", "2", *THIN)
    first, second = run(*words), run(*words)
    assert first.exit_code == second.exit_code == 0, first.output
    assert "5 photos, 5 of them described now" in first.stdout and "5 photos, 0 of them" in second.stdout
    assert "left out, not readable: 1 (empty.jpg)" in first.stdout
    page = Path(first.stdout.split("page: ")[1].strip())
    assert page.is_relative_to("runs/search") and len(Page(page.read_text()).images) == 3
    assert run(*words, "--index-dir", "mine").exit_code == 0 and (tmp_path / "mine/blue.html").is_file()


@pytest.mark.parametrize("writes", range(4), ids=["photos", "index", "manifest", "page"])
def test_a_full_disk_is_one_sentence_and_leaves_no_part(folder, tmp_path, monkeypatch, writes):
    monkeypatch.chdir(tmp_path)
    left, write = [writes], Path.write_bytes

    def full(path, content):
        left[0] -= 1
        write(path, content if left[0] >= 0 else content[: len(content) // 2])
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    result = run("--images", folder, "--query", folder / "blue.png", *THIN, "--index-dir", "mine")
    *_, line = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and re.match("The disk is full, 'mine.*' was not made; free some space", line), line
    assert list(tmp_path.rglob("*.part")) == list(tmp_path.rglob("*.html")) == [] and "Traceback" not in result.stderr


def test_a_place_that_cannot_be_written_is_one_sentence(folder, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("--images", folder, "--query", folder / "blue.png", *THIN, "--index-dir", tmp_path / "file/index")
    *_, line = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and "cannot be written" in line and line.endswith("choose another folder.")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--images", "nowhere"], "There is no folder 'nowhere'; name the one that holds your photos."),
        (["--images", "nothing"], "There are no photos in 'nothing': none of its files ends in .jpg"),
        (["--images", "broken"], "None of the 1 photos in 'broken' can be read; the first is 'a.jpg'."),
        (["--query", "nowhere.jpg"], "There is no image 'nowhere.jpg'"),
        (["--query", "photos/notes.txt"], "The image 'photos/notes.txt' cannot be read"),
        (["--box", "60,0,61,10"], "does not lie inside 'blue.png', which is 60 x 48 pixels"),
        (["--box", "0,0,61,50"], "does not lie inside 'blue.png', which is 60 x 48 pixels"),
        (["--box", "30,0,20,40"], "with x1 < x2 and y1 < y2"),
        (["--box", "1,2,3"], "--box takes x1,y1,x2,y2, as in --box 10,20,200,180; '1,2,3' is not that."),
        (["--box", "a,b,c,d"], "'a,b,c,d' is not that."),
        (["--box", "nan,0,20,20"], "does not lie inside"),
        (["--k", "0"], "A search needs k >= 1, got k=0."),
        (["--network", "resnet7"], "There is no network 'resnet7'"),
        (["--weights", "lost.safetensors"], "There are no weights 'lost.safetensors'"),
        (
            ["--index-dir", "foreign"],
            "was built for another network, not for resnet18-thin + gem at 48 px, upright, weights",
        ),
        (["--index-dir", "damaged"], "The manifest 'damaged/index.json' cannot be read"),
    ],
)
def test_what_a_user_can_mend_is_one_sentence(folder, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    for name in ("nothing", "broken", "damaged"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken/a.jpg").touch()
    (tmp_path / "damaged/index.json").write_text("{")
    Index.build(torch.eye(256), network="another network").save(tmp_path / "foreign")
    options = dict(zip(THIN[::2], THIN[1::2], strict=True)) | {"--images": "photos", "--query": "photos/blue.png"}
    options |= dict(zip(words[::2], words[1::2], strict=True))
    result = run(*(word for pair in options.items() for word in pair))
    assert result.exit_code == 1, result.output
    *_, line = result.stderr.strip().splitlines()
    assert sentence in line and "Traceback" not in result.stderr
    assert list(tmp_path.rglob("*.html")) == [] and list(tmp_path.rglob("*.part")) == []


def test_a_damaged_list_of_photos_is_refused(folder, network, tmp_path):
    index_photos(folder, network, tmp_path / "index", **SIZE)
    (file,) = (tmp_path / "index").glob("photos-*.json")
    file.write_text(file.read_text().replace("red", "fed"))
    with pytest.raises(ValueError, match="list of photos in .* is damaged; delete the folder"):
        index_photos(folder, network, tmp_path / "index", **SIZE)
