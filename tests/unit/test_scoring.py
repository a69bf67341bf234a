"""The command `evaluate`: it scores what the parts score, writes what it compares, and says why it does not."""

from __future__ import annotations

import errno
import inspect
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from retrieval_utils import __main__ as cli
from retrieval_utils import scoring
from retrieval_utils.datasets import load_benchmark
from retrieval_utils.datasets.sfm import PairSet
from retrieval_utils.evaluation import GroundTruth, compare, evaluate
from retrieval_utils.extraction import extract_descriptors, precision
from retrieval_utils.neighbours import Neighbours
from retrieval_utils.networks import DescriptorNetwork, load_network, save_network
from retrieval_utils.protocol import state_sha256
from retrieval_utils.ranking import augment_database, cosine_scores, expand_queries
from retrieval_utils.result_files import compare_results, read_result, report_record, write_json
from retrieval_utils.scoring import fit_whitening, protocol_card, run_evaluation, score_benchmark
from retrieval_utils.whitening import LearnedWhitening, PCAWhitening, matching_pairs

SMALL = ("--benchmark", "cards", "--network", "resnet18-thin", "--weights", "none", "--image-size", "32")


@pytest.fixture(autouse=True)
def named(cards, cards_benchmark, monkeypatch):
    """The striped cards as a benchmark and as a training set, by any name."""
    monkeypatch.setattr(scoring, "load_benchmark", lambda name, root: replace(cards_benchmark, name=name))
    part_of = {"categories": slice(0, 24), "instances": slice(24, 48)}

    def load(name, part, root):
        chosen = part_of[part]
        return replace(cards, name=f"{name}/{part}", images=cards.images[chosen], labels=cards.labels[chosen])

    monkeypatch.setattr(scoring, "load_training_set", load)


@pytest.fixture(scope="module")
def network():
    return load_network("resnet18-thin")


def invoke(*words: str):
    return CliRunner().invoke(cli.app, ["evaluate", *map(str, words)])


def report_of(scores: np.ndarray, network, bench):
    report = evaluate(scores, bench.ground_truth, bench.setups)
    return replace(report, card=protocol_card(bench, network, 32, (1.0,), "float32"))


@pytest.fixture(scope="module")
def files(tmp_path_factory, network, cards_benchmark):
    """Two result files of drawn scores, the first with the positives lifted."""
    folder, rng = tmp_path_factory.mktemp("results"), np.random.default_rng(0)
    plain = rng.standard_normal((len(cards_benchmark.queries), len(cards_benchmark.images)))  # (Q, N)
    lifted = plain.copy()
    for row, labels in zip(lifted, cards_benchmark.ground_truth, strict=True):
        row[labels.easy] += 2
    for name, scores in (("a.json", lifted), ("b.json", plain)):
        write_json(folder / name, report_record(report_of(scores, network, cards_benchmark)))
    return folder / "a.json", folder / "b.json"


# Scoring.


@pytest.mark.parametrize("block", [50_000, 7])
def test_it_scores_what_the_parts_score_in_any_blocks(network, cards_benchmark, monkeypatch, block):
    monkeypatch.setattr(scoring, "BLOCK", block)
    report = score_benchmark(cards_benchmark, network, image_size=32, scales=(1.0, 0.5))
    describe = {"image_size": 32, "scales": (1.0, 0.5)}
    queries = extract_descriptors(network, cards_benchmark.queries, cards_benchmark.boxes, **describe)
    scores = cosine_scores(queries, extract_descriptors(network, cards_benchmark.images, **describe))
    expected = evaluate(scores, cards_benchmark.ground_truth, cards_benchmark.setups)
    for setup in expected:
        np.testing.assert_allclose(report[setup].ap, expected[setup].ap, atol=1e-6)
    assert report.card == protocol_card(cards_benchmark, network, 32, (1.0, 0.5), precision())
    assert (report.card.query_crop, report.card.whitening) == ("cropped to the box", "none")


def test_the_card_has_the_networks_own_mean_and_std(cards_benchmark):
    other = load_network("resnet18-thin")
    other.use_settings(other.settings | {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)})
    card = protocol_card(cards_benchmark, other, 32, (1.0,), "float32")
    assert (card.mean, card.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_whitening_is_fitted_on_the_training_set_and_named_on_the_card(network, cards, cards_benchmark):
    report = run_evaluation("grocery-store", "resnet18-thin", "none", image_size=32, whitening="pca", whitening_dim=8)
    everything = extract_descriptors(network, cards.images, image_size=32)
    whitening = PCAWhitening.fit(everything, dim=8)
    queries = extract_descriptors(network, cards_benchmark.queries, cards_benchmark.boxes, image_size=32)
    database = extract_descriptors(network, cards_benchmark.images, image_size=32)
    scores = cosine_scores(whitening(queries), whitening(database))
    expected = evaluate(scores, cards_benchmark.ground_truth)
    assert report["medium"].mean_ap == pytest.approx(expected["medium"].mean_ap, abs=1e-3)
    assert report.card.whitening == str(whitening)
    assert report.card.whitening_fitted_on == "grocery-store/categories and grocery-store/instances"


def test_the_card_has_the_precision_of_the_extraction(network, cards_benchmark):
    half = score_benchmark(cards_benchmark, network, image_size=32, device="cpu", autocast=True).card
    full = score_benchmark(cards_benchmark, network, image_size=32, device="cpu").card
    assert half.differences(full) == ["precision: bfloat16 against float32"]


def test_photos_without_instances_are_told_before_the_work(cards, monkeypatch, tmp_path):
    shutil.copy(cards.images[0], tmp_path / "a.png")
    monkeypatch.setattr(scoring, "load_benchmark", load_benchmark)
    monkeypatch.setattr(scoring, "load_network", None)
    result = invoke("--benchmark", "image-folder", "--data-root", tmp_path, *SMALL[2:])
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and f"nothing to score in '{tmp_path}'" in line and "one folder for each insta" in line


@pytest.mark.parametrize(("benchmark", "asked"), [("image-folder", None), ("cards", "photos")])
def test_a_training_set_is_not_looked_for_nor_drawn_among_ones_own_photos(monkeypatch, benchmark, asked):
    roots, load = [], scoring.load_training_set
    monkeypatch.setattr(
        scoring, "load_training_set", lambda name, part, root: roots.append(root) or load(name, part, root)
    )
    settings = {"image_size": 32, "whitening": "pca", "whitening_dim": 8, "whiten_on": "toy-landmarks"}
    run_evaluation(benchmark, "resnet18-thin", "none", root="photos", **settings)
    assert roots == [asked, asked]


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [
        ("toy-landmarks", "toy-landmarks"),
        ("grocery-store-validation", "grocery-store"),
        ("roxford5k", "retrieval-sfm-120k"),
        ("rparis6k+r1m", "retrieval-sfm-120k"),
    ],
)
def test_a_benchmark_is_whitened_on_its_own_training_set_or_on_sfm(benchmark, name):
    assert scoring._own_training_set(benchmark) == name


@pytest.mark.parametrize(
    ("name", "dim", "sentence"),
    [
        ("cards", 8, "no training set 'cards' to whiten on; choose one of toy-landmarks"),
        ("grocery-store", 48, "on 48 images of grocery-store keeps 1 to 47 of 256 dimensions, not 48"),
        ("grocery-store", 0, "keeps 1 to 47 of 256 dimensions, not 0"),
    ],
)
def test_whitening_that_cannot_be_is_refused_before_the_work(network, monkeypatch, name, dim, sentence):
    monkeypatch.setattr(scoring, "extract_descriptors", None)
    with pytest.raises(ValueError, match=sentence):
        fit_whitening(network, name, "pca", dim)


def small_network(folder, dim: int = 16):
    """A file of weights with a head, so that few pairs are enough for a learned whitening."""
    network = load_network("resnet18-thin")
    network.add_head(torch.randn(dim, network.dim, generator=torch.Generator().manual_seed(0)), torch.zeros(dim))
    save_network(network, folder / "small.safetensors")
    return network.eval(), folder / "small.safetensors"


def test_learned_whitening_takes_the_pairs_of_instances_and_never_those_of_categories(cards, cards_benchmark, tmp_path):
    network, file = small_network(tmp_path)
    report = run_evaluation("toy-landmarks", "resnet18-thin", str(file), image_size=32, whitening="learned")
    describe = {"image_size": 32}
    training, labels = extract_descriptors(network, cards.images[24:], **describe), torch.from_numpy(cards.labels[24:])
    lw = LearnedWhitening.fit(training, matching_pairs(labels))
    queries = extract_descriptors(network, cards_benchmark.queries, cards_benchmark.boxes, **describe)
    database = extract_descriptors(network, cards_benchmark.images, **describe)
    expected = evaluate(cosine_scores(lw(queries), lw(database)), cards_benchmark.ground_truth)
    assert report["medium"].mean_ap == pytest.approx(expected["medium"].mean_ap, abs=1e-3)
    assert report.card.whitening == "learned (Lw) to 16 dimensions, power 0.5"
    assert report.card.whitening_fitted_on == "toy-landmarks/instances"


def test_a_set_of_pairs_is_whitened_on_its_own_pairs(cards, tmp_path, monkeypatch):
    network, _ = small_network(tmp_path)
    queries, positives = np.arange(0, 40), np.arange(1, 41)
    pairs = PairSet(cards.name, cards.images, cards.labels, cards.label_names, "", queries, positives)
    monkeypatch.setattr(scoring, "load_training_set", lambda name, part, root: replace(pairs, name=f"{name}/{part}"))
    found, words = fit_whitening(network, "retrieval-sfm-30k", "learned", 8, image_size=32)
    everything = extract_descriptors(network, cards.images, image_size=32)
    expected = LearnedWhitening.fit(everything, torch.from_numpy(np.stack([queries, positives], 1)), 8)
    torch.testing.assert_close(found(everything), expected(everything))
    assert (found.pairs, words) == (40, "retrieval-sfm-30k/whitening")


def test_too_few_pairs_are_told_before_the_work(network, monkeypatch):
    monkeypatch.setattr(scoring, "extract_descriptors", None)
    with pytest.raises(ValueError, match="of 256 dimensions needs as many pairs .* grocery-store has 60: take .* pca"):
        fit_whitening(network, "grocery-store", "learned", 8)


def test_neighbours_come_after_the_whitening_and_are_named_on_the_card(network, cards_benchmark):
    settings = {"image_size": 32, "whitening": "pca", "whitening_dim": 8}
    chosen = Neighbours("alpha", "average", 3)
    report = run_evaluation("grocery-store", "resnet18-thin", "none", neighbours=chosen, **settings)
    whitening, _ = fit_whitening(network, "grocery-store", "pca", 8, image_size=32)
    queries = extract_descriptors(network, cards_benchmark.queries, cards_benchmark.boxes, image_size=32)
    database = extract_descriptors(network, cards_benchmark.images, image_size=32)
    database = augment_database(whitening(database), 3)
    scores = cosine_scores(expand_queries(whitening(queries), database, 3, 3.0), database)
    expected = evaluate(scores, cards_benchmark.ground_truth)
    assert report["hard"].mean_ap == pytest.approx(expected["hard"].mean_ap, abs=1e-3)
    assert report.card.query_expansion == "alpha, exponent 3, 3 neighbours"
    assert report.card.database_augmentation == "average, exponent 0, 3 neighbours"
    assert report.card.reranking == "none"
    assert "  neighbours query expansion: alpha, exponent 3, 3 neighbours; database augmentation:" in str(report)


# Result files.


def test_a_result_file_gives_the_report_back(tmp_path, network, cards_benchmark):
    labels = [replace(cards_benchmark.ground_truth[0], easy=[]), *cards_benchmark.ground_truth[1:]]
    bench = replace(cards_benchmark, ground_truth=tuple(labels))
    scores = np.random.default_rng(1).standard_normal((len(bench.queries), len(bench.images)))
    report = report_of(scores, network, bench)
    write_json(tmp_path / "result.json", report_record(report))
    read = read_result(tmp_path / "result.json")
    assert str(read) == str(report) and list(read) == ["easy", "medium", "hard"]
    assert read["easy"].counted == len(labels) - 1
    for setup in report:
        np.testing.assert_array_equal(read[setup].ap, report[setup].ap)
        assert (read[setup].precision_at, read[setup].recall_at) == (
            report[setup].precision_at,
            report[setup].recall_at,
        )


def test_comparable_results_are_compared_query_by_query(files):
    a, b = files
    text, gain = compare_results(a, b), compare(read_result(a), read_result(b), "medium")
    assert f"A - B {gain.mean_difference:+.3f} (95 % interval {gain.low:+.3f} to {gain.high:+.3f})" in text
    assert f"A is better on {gain.wins} queries, B on {gain.losses}, equal on {gain.ties}" in text
    assert gain.wins > gain.losses
    for part in ("easy: mAP", "hard: mAP", "protocol of both", "network A  resnet18-thin + gem", "scales 1;"):
        assert part in text


def test_results_under_other_protocols_are_not_compared_and_every_reason_is_a_line(files, tmp_path):
    record = json.loads(files[0].read_text())
    card = read_result(files[0]).card
    other = replace(card, scales=(1.0, 0.5), benchmark_hash="ef" * 32, whitening_fitted_on="the test images")
    write_json(tmp_path / "c.json", record | {"card": other.to_dict(), "card_hash": other.hash})
    result = invoke("--compare", files[0], tmp_path / "c.json")
    first, *reasons = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and result.stdout == ""
    assert first == f"'{files[0]}' and '{tmp_path / 'c.json'}' are not comparable:"
    assert reasons == [
        "  benchmark hash: cards-test against efefefefefef",
        "  scales: [1.0] against [1.0, 0.5]",
        "  whitening fitted on: nothing against the test images",
    ]


def test_other_queries_under_the_same_card_are_not_compared(files, tmp_path, network, cards_benchmark):
    truth = (GroundTruth(easy=[0], hard=[1]), *cards_benchmark.ground_truth[1:])
    scores = np.random.default_rng(1).standard_normal((len(truth), len(cards_benchmark.images)))
    write_json(
        tmp_path / "d.json", report_record(report_of(scores, network, replace(cards_benchmark, ground_truth=truth)))
    )
    with pytest.raises(ValueError, match="do not score the same queries in set-up 'easy': 8 queries with 16 positives"):
        compare_results(files[0], tmp_path / "d.json")


def test_results_without_a_common_setup_are_not_compared(files, tmp_path):
    for name, setup in (("e.json", "easy"), ("h.json", "hard")):
        record = json.loads(files[0].read_text())
        write_json(tmp_path / name, record | {"setups": {setup: record["setups"][setup]}})
    with pytest.raises(ValueError, match="has the set-ups easy and .* hard: none in common"):
        compare_results(tmp_path / "e.json", tmp_path / "h.json")


def set_in(record: dict, *keys_and_value):
    *keys, last, value = keys_and_value
    for key in keys:
        record = record[key]
    record[last] = value


@pytest.mark.parametrize(
    "change",
    [
        ("setups", "medium", "ap", 0, 1.5),
        ("setups", "medium", "ap", 0, None),
        ("setups", "medium", "ap", 0, float("nan")),
        ("setups", "medium", "ap", 0, "0.5"),
        ("setups", "medium", "ap", [0.5]),
        ("setups", "medium", "ap", {}),
        ("setups", "medium", "positives", 0, 0),
        ("setups", "medium", "positives", 0, 2.5),
        ("setups", "medium", "mean_ap", 0.99),
        ("setups", "medium", "precision_at", None),
        ("setups", "medium", {}),
        ("setups", {}),
        ("setups", []),
        ("card", {}),
        ("card", "queries", 7),
        ("card", "scales", None),
        ("card", "average_precision", "another"),
        ("card", "colour", "red"),
    ],
)
def test_a_file_that_is_no_whole_result_is_refused(files, tmp_path, change):
    record = json.loads(files[0].read_text())
    set_in(record, *change)
    (tmp_path / "bad.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="bad.json' is no whole result file"):
        read_result(tmp_path / "bad.json")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe\x00", b"\x80\x04K\x01.", b"[" * 100_000]
)
def test_a_file_that_is_no_json_of_ours_is_refused(tmp_path, files, content):
    (tmp_path / "bad.json").write_bytes(content)
    result = invoke("--compare", files[0], tmp_path / "bad.json")
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and "is no whole result file; write one with `evaluate --output`" in line


def test_half_a_file_an_altered_card_and_no_file_are_refused(files, tmp_path):
    text = files[0].read_text()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="half.json' is no whole result file"):
        read_result(tmp_path / "half.json")
    (tmp_path / "altered.json").write_text(text.replace('"image_size": 32', '"image_size": 64'))
    with pytest.raises(ValueError, match="altered.json' does not have the hash"):
        read_result(tmp_path / "altered.json")
    with pytest.raises(FileNotFoundError, match="no result file .*none.json'; write one with `evaluate --output"):
        read_result(tmp_path / "none.json")


# The command.


@pytest.mark.parametrize(
    ("words", "reasons"),
    [
        (["--scales", "1,0.5"], ["scales: [1.0] against [1.0, 0.5]"]),
        (["--image-size", "24"], ["image size: 32 against 24"]),
        (["--query-expansion", "average"], ["query expansion: none against average, exponent 0, 10 neighbours"]),
        (
            ["--query-expansion", "alpha", "--neighbours", "2"],
            ["query expansion: none against alpha, exponent 3, 2 neighbours"],
        ),
        (
            ["--database-augmentation", "alpha"],
            ["database augmentation: none against alpha, exponent 3, 10 neighbours"],
        ),
        (["--rerank"], ["reranking: none against SuperGlobal, top 400, 9 neighbours, beta 0.15"]),
        (
            ["--whitening", "pca", "--whitening-dim", "8", "--whiten-on", "toy-landmarks"],
            [
                "whitening: none against PCA to 8 dimensions, power 0.5",
                "whitening fitted on: nothing against toy-landmarks/categories and toy-landmarks/instances",
            ],
        ),
        (
            ["--whitening", "learned", "--whiten-on", "grocery-store"],
            [
                "whitening: none against learned (Lw) to 16 dimensions, power 0.5",
                "whitening fitted on: nothing against grocery-store/instances",
            ],
        ),
    ],
)
def test_every_option_that_a_number_depends_on_is_named_by_compare(tmp_path, words, reasons):
    _, file = small_network(tmp_path)
    plain, other = tmp_path / "plain.json", tmp_path / "other.json"
    assert invoke(*SMALL, "--weights", file, "--output", plain).exit_code == 0
    done = invoke(*SMALL, "--weights", file, *words, "--output", other)
    assert done.exit_code == 0, done.output
    result = invoke("--compare", plain, other)
    assert result.exit_code == 1 and result.stderr.splitlines()[1:] == [f"  {reason}" for reason in reasons]


def test_with_a_cache_nothing_is_described_twice_and_the_number_stays(tmp_path, monkeypatch):
    words = [*SMALL, "--device", "cpu", "--scales", "1,0.5", "--output"]
    plain = invoke(*words, tmp_path / "plain.json")
    first = invoke(*words, tmp_path / "first.json", "--cache", tmp_path / "cache")
    monkeypatch.setattr(DescriptorNetwork, "forward", None)
    again = invoke(*words, tmp_path / "again.json", "--cache", tmp_path / "cache")
    assert [result.exit_code for result in (plain, first, again)] == [0, 0, 0], again.output
    texts = [(tmp_path / f"{name}.json").read_text() for name in ("first", "again")]
    assert texts[0] == texts[1]
    assert read_result(tmp_path / "plain.json").card == read_result(tmp_path / "again.json").card


def test_the_command_prints_table_and_card_and_writes_what_it_compares(tmp_path, network):
    save_network(load_network("resnet18-thin", seed=1), tmp_path / "other.safetensors")
    one = invoke(*SMALL, "--output", tmp_path / "new/one.json")
    two = invoke(*SMALL, "--weights", tmp_path / "other.safetensors", "--output", tmp_path / "two.json")
    assert (one.exit_code, two.exit_code) == (0, 0), one.output + two.output
    lines = one.stdout.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["set-up", "easy", "medium", "hard", "protocol"]
    assert lines[-1] == f"written to {tmp_path / 'new/one.json'}"
    assert one.stdout.startswith(str(read_result(tmp_path / "new/one.json")))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["one.json"]
    compared = invoke("--compare", tmp_path / "new/one.json", tmp_path / "two.json")
    assert compared.exit_code == 0 and "medium: mAP" in compared.stdout and "network B" in compared.stdout
    assert read_result(tmp_path / "new/one.json").card.checkpoint == state_sha256(network)


def test_every_option_reaches_the_work(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr(scoring, "run_evaluation", lambda *args, **kwargs: called.append((args, kwargs)))
    words = ["--benchmark", "roxford5k", "--network", "resnet50", "--weights", "w", "--pooling", "mac"]
    words += ["--image-size", "512", "--scales", "1, .7071,0.5", "--whitening", "learned", "--whitening-dim", "128"]
    words += ["--whiten-on", "set", "--query-expansion", "alpha", "--database-augmentation", "average"]
    words += ["--neighbours", "7", "--rerank", "--device", "cuda:1", "--cache", "descriptors"]
    assert invoke(*words, "--data-root", "root", "--output", "file").exit_code == 0
    ((args, kwargs),) = called
    named = dict(zip(inspect.signature(run_evaluation).parameters, args, strict=False)) | kwargs
    assert named == {
        "benchmark": "roxford5k",
        "network": "resnet50",
        "weights": "w",
        "pooling": "mac",
        "image_size": 512,
        "scales": (1.0, 0.7071, 0.5),
        "whitening": "learned",
        "whitening_dim": 128,
        "whiten_on": "set",
        "neighbours": Neighbours("alpha", "average", 7, rerank=True),
        "root": "root",
        "output": Path("file"),
        "device": "cuda:1",
        "cache": Path("descriptors"),
        "progress": False,
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name a --benchmark and a --network, or two result files to --compare."),
        (["--benchmark", "cards"], "Name a --benchmark and a --network, or two result files to --compare."),
        ([*SMALL, "--scales", "1;0.5"], "--scales takes positive numbers, as in 1,0.7071,0.5; '1;0.5' is not that."),
        ([*SMALL, "--scales", "1,0"], "--scales takes positive numbers, as in 1,0.7071,0.5; '1,0' is not that."),
        ([*SMALL, "--scales", ""], "--scales takes positive numbers, as in 1,0.7071,0.5; '' is not that."),
        ([*SMALL, "--image-size", "0"], "The image size is a number of pixels, such as 1024; 0 is not."),
        ([*SMALL, "--network", "resnet5"], "There is no network 'resnet5'"),
        ([*SMALL, "--weights", "nowhere.pth"], "nowhere.pth"),
        ([*SMALL, "--pooling", "best"], "best"),
        ([*SMALL, "--output", "."], "The output '.' is a folder; name a file in it, such as 'result.json'."),
        ([*SMALL, "--whitening", "8"], "There is no whitening '8'; choose one of none, pca, learned."),
        ([*SMALL, "--whitening", "pca", "--whiten-on", "x"], "There is no training set 'x' to whiten on"),
        ([*SMALL, "--whitening", "learned", "--whiten-on", "roxford5k"], "no training set 'roxford5k' to whiten on"),
        ([*SMALL, "--whitening-dim", "8"], "Nothing is whitened: give --whitening pca or learned too."),
        ([*SMALL, "--whiten-on", "toy-landmarks"], "Nothing is whitened: give --whitening pca or learned too."),
        ([*SMALL, "--query-expansion", "best"], "no query expansion 'best'; choose one of none, average, alpha."),
        ([*SMALL, "--database-augmentation", "x"], "no database augmentation 'x'; choose one of none, average, alpha."),
        ([*SMALL, "--neighbours", "3"], "name a --query-expansion too, such as alpha."),
        (
            [*SMALL, "--query-expansion", "alpha", "--neighbours", "0"],
            "takes 1 neighbour or more, such as 10; 0 is not.",
        ),
        ([*SMALL, "--device", "abacus"], "'abacus' is not a device; give auto, cpu, cuda or cuda:N."),
        ([*SMALL, "--device", "cuda:99"], "There is no device 'cuda:99': torch sees"),
        ([*SMALL, "--cache", "/dev/null/x"], "cannot be written"),
        (["--compare", "x.json", "y.json"], "There is no result file 'x.json'"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_1(monkeypatch, tmp_path, words, sentence):
    monkeypatch.chdir(tmp_path)
    result = invoke(*words)
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and sentence in line and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_a_corrupt_photo_in_the_middle_is_one_line_and_no_number(cards_benchmark, monkeypatch, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 nothing more")
    images = (*cards_benchmark.images[:20], broken, *cards_benchmark.images[21:])
    monkeypatch.setattr(scoring, "load_benchmark", lambda name, root: replace(cards_benchmark, images=images))
    result = invoke(*SMALL, "--output", tmp_path / "result.json")
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and f"The image '{broken}' cannot be read" in line and result.stdout == ""
    assert not (tmp_path / "result.json").exists()


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_result(monkeypatch, tmp_path):
    def full(path, value):
        path.with_name(f"{path.name}.part").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(scoring, "write_json", full)
    result = invoke(*SMALL, "--output", tmp_path / "result.json")
    (line,) = result.stderr.strip().splitlines()
    assert result.exit_code == 1 and line.startswith(f"The disk is full, '{tmp_path / 'result.json'}' was not made")
    assert list(tmp_path.iterdir()) == []


def test_a_benchmark_by_a_wrong_name_lists_those_there_are(monkeypatch):
    monkeypatch.setattr(scoring, "load_benchmark", load_benchmark)
    result = invoke(*SMALL)
    assert result.exit_code == 1 and "There is no benchmark 'cards'; choose one of toy-landmarks" in result.stderr
