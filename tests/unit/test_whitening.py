"""Whitening against its definition: what comes out has the covariance it should have."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from retrieval_utils import whitening as module
from retrieval_utils.whitening import LearnedWhitening, PCAWhitening, matching_pairs


def correlated(n=400, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + 3


def projected(whitening, x):
    """What `apply` gives before it normalises."""
    return (x.double() - whitening.mean.double()) @ whitening.projection.double().T


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("dim", [None, 4])
def test_variance_is_divided_by_its_power(power, dim):
    x = correlated()
    whitening = PCAWhitening.fit(x, dim=dim, power=power)
    covariance = projected(whitening, x).T.cov()
    variances = torch.linalg.eigvalsh(x.T.cov()).flip(0)[: dim or 6]
    torch.testing.assert_close(covariance, torch.diag(variances ** (1 - 2 * power)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whitening.variances, torch.linalg.eigvalsh(x.T.cov()).flip(0).float())


def test_by_pencil():
    # Variances 4 and 1 along the axes x and y about the mean (1, 1).
    a, b = math.sqrt(6), math.sqrt(1.5)
    x = torch.tensor([[1 + a, 1], [1 - a, 1], [1, 1 + b], [1, 1 - b]])
    whitening = PCAWhitening.fit(x)
    torch.testing.assert_close(whitening.variances, torch.tensor([4.0, 1.0]))
    torch.testing.assert_close(whitening.projection.abs(), torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
    # (2, 1) from the mean becomes (1, 1): half a right angle to both axes.
    torch.testing.assert_close(whitening(torch.tensor([[3.0, 2.0]])).abs(), torch.full((1, 2), math.sqrt(0.5)))


def test_rotation_alone_keeps_centred_cosines():
    x = correlated()
    centred = normalize(x - x.mean(dim=0), dim=1)
    out = PCAWhitening.fit(x, power=0)(x).double()
    torch.testing.assert_close(out @ out.T, centred @ centred.T, rtol=0, atol=1e-5)


def test_full_whitening_undoes_any_linear_mixing():
    x = correlated()
    mixed = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64) - 7
    out, out_mixed = PCAWhitening.fit(x)(x), PCAWhitening.fit(mixed)(mixed)
    torch.testing.assert_close(out @ out.T, out_mixed @ out_mixed.T, rtol=0, atol=1e-3)


def test_output_is_normalised_float32():
    x = correlated()
    out = PCAWhitening.fit(x, dim=3).apply(x[:7])
    assert (out.shape, out.dtype) == ((7, 3), torch.float32)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(7))


def test_chunks_do_not_change_the_result(monkeypatch):
    x = correlated()
    expected = PCAWhitening.fit(x)(x)
    monkeypatch.setattr(module, "CHUNK", 37)
    torch.testing.assert_close((PCAWhitening.fit(x)(x) * expected).sum(dim=1), torch.ones(400))


def test_a_dead_dimension_adds_no_noise():
    x = correlated()
    dead = torch.cat([x, torch.zeros(400, 2, dtype=torch.float64)], dim=1)
    out = PCAWhitening.fit(dead)(dead)
    assert torch.isfinite(out).all()
    torch.testing.assert_close(out.norm(dim=1), torch.ones(400))
    expected = PCAWhitening.fit(x)(x)
    torch.testing.assert_close(out @ out.T, expected @ expected.T, rtol=0, atol=1e-3)


def test_saved_and_read_back(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    x = correlated()
    whitening = PCAWhitening.fit(x, dim=4, power=0.25)
    safetensors.save_file(whitening.state_dict(), tmp_path / "whitening.safetensors")
    again = PCAWhitening.from_state_dict(safetensors.load_file(tmp_path / "whitening.safetensors"))
    torch.testing.assert_close(again(x), whitening(x), rtol=0, atol=0)
    assert again.describe() == whitening.describe()


def test_describe():
    x = correlated()
    whitening = PCAWhitening.fit(x, dim=4, power=0.25)
    variances = torch.linalg.eigvalsh(x.T.cov()).flip(0)
    kept = (variances[:4].sum() / variances.sum()).item()
    assert whitening.describe() == {
        "method": "pca",
        "dim": 4,
        "input_dim": 6,
        "power": 0.25,
        "samples": 400,
        "variance_kept": pytest.approx(kept, abs=1e-4),
    }
    assert str(whitening) == "PCA to 4 dimensions, power 0.25"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: PCAWhitening.fit(x[:6]), "more than 6 descriptors, got 6"),
        (lambda x: PCAWhitening.fit(x[:3], dim=4), "more than 4 descriptors, got 3"),
        (lambda x: PCAWhitening.fit(x, dim=7), "1 to 6 dimensions, got dim=7"),
        (lambda x: PCAWhitening.fit(x, dim=0), "dim=0"),
        (lambda x: PCAWhitening.fit(x, power=5), "got 5"),
        (lambda x: PCAWhitening.fit(x[0]), r"\(N, D\)"),
        (lambda x: PCAWhitening.fit(torch.where(torch.arange(6) == 5, math.nan, x)), "Descriptor 0 holds nan"),
        (lambda x: PCAWhitening.fit(x[:1].expand(50, 6)), "all equal"),
        (lambda x: PCAWhitening.fit(x)(x[:, :5]), "fitted on 6 dimensions, the descriptors have 5"),
        (lambda x: PCAWhitening.fit(x)(x * math.inf), "Descriptor 0 holds nan or inf"),
        (lambda x: PCAWhitening.from_state_dict({"mean": x[0]}), "power, projection, samples, variances"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(correlated())


# Learned whitening: views (V each) of I instances, with noise that is strong along some directions.


def views(instances=60, each=4, dim=6, seed=0):
    """Descriptors (I * V, D) and labels (I * V,): an instance, plus noise that is no rounder than the instances are."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(instances, dim, generator=generator, dtype=torch.float64)
    noise = torch.randn(instances * each, dim, generator=generator, dtype=torch.float64)
    mixing = torch.diag(torch.logspace(-1, 0.5, dim, dtype=torch.float64))
    return centres.repeat_interleave(each, dim=0) + noise @ mixing + 2, torch.arange(instances).repeat_interleave(each)


def test_matching_pairs():
    assert matching_pairs(torch.tensor([7, 3, 7, 7, 5])).tolist() == [[0, 2], [0, 3], [2, 3]]
    assert matching_pairs(torch.tensor([1, 2, 3])).shape == (0, 2)


def slow_learned(x, pairs, power):
    """The projection by its definition, sum by sum, with matrix powers from an SVD."""
    n, d = x.shape
    inner, total, mean = torch.zeros(d, d).double(), torch.zeros(d, d).double(), sum(x) / n
    for i, j in pairs.tolist():
        inner += torch.outer(x[i] - x[j], x[i] - x[j]) / len(pairs)
    for row in x:
        total += torch.outer(row - mean, row - mean) / (n - 1)
    u, s, _ = torch.linalg.svd(inner)
    shrink = u @ torch.diag(s**-power) @ u.T
    u, s, _ = torch.linalg.svd(shrink @ total @ shrink)
    return u.T @ shrink, s


@pytest.mark.parametrize("power", [0.0, 0.25, 0.5])
@pytest.mark.parametrize("dim", [None, 3])
def test_learned_equals_the_slow_twin(power, dim, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 37)
    x, labels = views()
    pairs = matching_pairs(labels)
    whitening = LearnedWhitening.fit(x, pairs, dim=dim, power=power)
    projection, variances = slow_learned(x, pairs, power)
    signs = (projection[:dim] * whitening.projection).sum(dim=1).sign()[:, None]  # an axis has no direction
    torch.testing.assert_close(whitening.projection, (signs * projection[:dim]).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(whitening.variances, variances.float())
    torch.testing.assert_close(whitening(x), normalize((x - x.mean(0)) @ (signs * projection[:dim]).T, dim=1).float())


def test_learned_makes_within_pair_differences_round_and_orders_the_axes():
    x, labels = views()
    pairs = matching_pairs(labels)
    whitening = LearnedWhitening.fit(x, pairs)
    out = projected(whitening, x)
    difference = out[pairs[:, 0]] - out[pairs[:, 1]]
    torch.testing.assert_close(difference.T @ difference / len(pairs), torch.eye(6).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(out.T.cov(), torch.diag(whitening.variances.double()), rtol=1e-4, atol=1e-3)
    assert (whitening.variances.diff() <= 0).all()


def test_learned_with_power_0_is_pca_with_power_0():
    x, labels = views()
    learned, pca = LearnedWhitening.fit(x, matching_pairs(labels), dim=4, power=0), PCAWhitening.fit(x, 4, power=0)
    torch.testing.assert_close((learned(x) @ learned(x).T), pca(x) @ pca(x).T, rtol=0, atol=1e-5)


def test_learned_undoes_any_linear_mixing():
    x, labels = views()
    mixed = x @ torch.randn(6, 6, generator=torch.Generator().manual_seed(9), dtype=torch.float64) - 7
    out, out_mixed = (LearnedWhitening.fit(y, matching_pairs(labels))(y) for y in (x, mixed))
    torch.testing.assert_close(out @ out.T, out_mixed @ out_mixed.T, rtol=0, atol=1e-3)


def test_learned_brings_views_of_unseen_instances_together():
    x, labels = views()
    held_out, instance = views(instances=40, seed=5)

    def precision_at_1(y):
        scores = (y @ y.T).fill_diagonal_(-2)
        return (instance[scores.argmax(dim=1)] == instance).float().mean()

    learned, pca = LearnedWhitening.fit(x, matching_pairs(labels)), PCAWhitening.fit(x)
    assert precision_at_1(learned(held_out)) > precision_at_1(pca(held_out)) + 0.1


def test_learned_saved_and_read_back(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    x, labels = views()
    whitening = LearnedWhitening.fit(x, matching_pairs(labels), dim=4, power=0.25)
    safetensors.save_file(whitening.state_dict(), tmp_path / "whitening.safetensors")
    again = LearnedWhitening.from_state_dict(safetensors.load_file(tmp_path / "whitening.safetensors"))
    torch.testing.assert_close(again(x), whitening(x), rtol=0, atol=0)
    card = {"method": "learned", "dim": 4, "input_dim": 6, "power": 0.25, "samples": 240, "pairs": 360}
    assert again.describe() == whitening.describe() == card
    assert str(whitening) == "learned (Lw) to 4 dimensions, power 0.25"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, p: LearnedWhitening.fit(x, p[:5]), "at least 6 matching pairs, got 5: give more pairs"),
        (lambda x, p: LearnedWhitening.fit(x, p.float()), r"int64 \(P, 2\), got \(360, 2\) torch.float32"),
        (lambda x, p: LearnedWhitening.fit(x, p[:, 0]), r"int64 \(P, 2\), got \(360,\)"),
        (lambda x, p: LearnedWhitening.fit(x[:200], p), "200 descriptors, rows 0 to 199, but a pair names row 200"),
        (lambda x, p: LearnedWhitening.fit(x, p - 1), "names row -1"),
        (lambda x, p: LearnedWhitening.fit(x, p[:, :1].expand(-1, 2)), "every pair are equal"),
        (lambda x, p: LearnedWhitening.fit(x, p, dim=7), "1 to 6 dimensions, got dim=7"),
        (lambda x, p: LearnedWhitening.fit(x, p, power=2), "got 2"),
        (lambda x, p: LearnedWhitening.fit(x * math.nan, p), "Descriptor 0 holds nan"),
        (lambda x, p: LearnedWhitening.fit(x, p)(x[:, :5]), "fitted on 6 dimensions, the descriptors have 5"),
        (lambda x, p: LearnedWhitening.from_state_dict({"mean": x[0]}), "pairs, power, projection, samples, var"),
    ],
)
def test_bad_input_to_learned_whitening_is_named(call, message):
    x, labels = views()
    with pytest.raises(ValueError, match=message):
        call(x, matching_pairs(labels))
