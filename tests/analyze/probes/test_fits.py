"""Probes against closed forms, float64 autograd and the conditions of optimality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import optimize, sparse

from sparse_pipeline.analyze.probes.dense import class_weights, train_probes
from sparse_pipeline.analyze.probes.few import fit_few
from sparse_pipeline.analyze.probes.l1 import fit_l1
from sparse_pipeline.analyze.probes.labels import Labels
from sparse_pipeline.analyze.probes.scores import auc, best_threshold, f1, score
from sparse_pipeline.analyze.probes.splits import ProbeSplit, split_groups


def noisy(seed: int = 0, n: int = 400) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.2
    return truth, np.round(truth + rng.standard_normal(n), 1)


# Scores


def test_scores_by_hand() -> None:
    truth = np.array([1, 1, 1, 0, 0, 0, 0, 0], bool)
    result = score(truth, np.array([3.0, 2.0, -1.0, 2.5, -2, -3, -4, -5]), 0.0)
    # two of three found, one false alarm among five
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == pytest.approx(2 / 3)
    assert result.f1 == pytest.approx(2 / 3)
    assert result.balanced_accuracy == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert (result.positives, result.negatives) == (3, 5)


def test_mcc_is_the_correlation_of_truth_and_prediction() -> None:
    truth, scores = noisy()
    expected = np.corrcoef(truth, scores > 0.5)[0, 1]
    assert score(truth, scores, 0.5).mcc == pytest.approx(expected)
    assert score(truth, scores, 100.0).mcc == 0.0


def test_auc_counts_pairs() -> None:
    truth, scores = noisy(1, 120)
    difference = scores[truth][:, None] - scores[~truth]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    assert auc(truth, scores) == pytest.approx(expected)
    assert auc(np.ones(5, bool), np.arange(5.0)) == 0.5


def test_best_threshold_is_the_best_of_all() -> None:
    truth, scores = noisy(2)
    values = np.unique(scores)
    every = np.concatenate([[values[0] - 1], (values[:-1] + values[1:]) / 2, [values[-1] + 1]])
    best = max(f1(truth, scores, cut) for cut in every)
    assert f1(truth, scores, best_threshold(truth, scores)) == pytest.approx(best)
    assert best_threshold(np.zeros(3, bool), np.arange(3.0)) == 0.0
    floor = 1.05
    best = max(f1(truth, scores, cut) for cut in every if cut >= floor)
    assert best_threshold(truth, scores, floor) >= floor
    assert f1(truth, scores, best_threshold(truth, scores, floor)) == pytest.approx(best)
    assert best_threshold(truth, scores, 99.0) == 99.0


# Fits


def test_class_weights_balance_both_classes() -> None:
    values = np.array([[1, 0], [0, 1], [0, -1], [0, 1]], np.int8)
    weights = class_weights(values, ("a", "b"))
    assert weights[:, 0].tolist() == pytest.approx([3 / 4, 1 / 4, 1 / 4, 1 / 4])
    assert weights[:, 1].tolist() == pytest.approx([1 / 3, 1 / 6, 0, 1 / 6])
    with pytest.raises(ValueError, match="'a' has 0 positive and 2 negative"):
        class_weights(np.zeros((2, 1), np.int8), ("a",))


@pytest.mark.parametrize("separable", [False, True])
def test_few_latents_minimise_the_balanced_loss(separable: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3)) * [1, 10, 0.1]
    truth = x[:, 0] + (0 if separable else 1) * rng.standard_normal(300) > 1
    weight, bias = fit_few(x, truth, l2=1.0)
    theta = torch.tensor([*weight, bias], dtype=torch.float64, requires_grad=True)
    n, positives = len(truth), truth.sum()
    logits = torch.from_numpy(x) @ theta[:3] + theta[3]
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.from_numpy(truth).double(), reduction="none"
    )
    balance = torch.from_numpy(np.where(truth, n / (2 * positives), n / (2 * (n - positives))))
    ((balance * each).sum() + 0.5 * theta[:3].square().sum()).backward()
    assert theta.grad is not None
    assert theta.grad.abs().max() < 1e-4
    with pytest.raises(ValueError, match="both classes"):
        fit_few(x, np.zeros(300, bool))


def test_l1_meets_the_conditions_of_optimality() -> None:
    """The gradient of the loss is −l1·sign(w) where w ≠ 0 and at most l1 in size where w = 0."""
    rng = np.random.default_rng(0)
    codes = sparse.random_array((1500, 40), density=0.25, rng=rng, format="csr", dtype=np.float32)
    dense = codes.toarray().astype(np.float64)
    noise = rng.standard_normal(1500)
    values = np.stack([dense[:, 1] - dense[:, 2] + 0.3 * noise > 0.4, dense[:, 5] > 0.5], 1).astype(np.int8)
    values[rng.random(1500) < 0.1, 1] = -1
    l1 = 0.005
    weight, bias, gaps = fit_l1(codes, values, ("a", "b"), l1=l1)
    assert gaps.max() <= 1e-9
    assert (weight == 0).sum() > 20  # mostly exact zeros
    for i in range(2):
        known = values[:, i] >= 0
        truth = values[known, i] == 1
        logits = dense[known] @ weight[i] + bias[i]
        balance = np.where(truth, (~truth).sum() / truth.sum(), 1.0) / known.sum()
        gradient = dense[known].T @ (balance * (1 / (1 + np.exp(-logits)) - truth))
        active = weight[i] != 0
        np.testing.assert_allclose(gradient[active], -l1 * np.sign(weight[i][active]), atol=1e-7)
        assert np.abs(gradient[~active]).max() <= l1 + 1e-7
    assert weight[0].argmax() == 1
    assert weight[0].argmin() == 2
    assert weight[1].argmax() == 5


def test_l1_ranks_as_an_independent_solver() -> None:
    """SciPy's L-BFGS-B on w = w⁺ − w⁻ with both parts ≥ 0: the same minimum, weights and order of the ranking."""
    rng = np.random.default_rng(3)
    n, f, l1 = 1200, 30, 0.004
    dense = np.where(rng.random((n, f)) < 0.2, rng.exponential(1.0, (n, f)), 0.0)
    truth = dense[:, :12] @ np.linspace(1.5, 0.4, 12) + 0.5 * rng.standard_normal(n) > 2.2
    values = truth.astype(np.int8)[:, None]
    cost = np.where(truth, (~truth).sum() / truth.sum(), 1.0) / n

    def objective(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w, b = point[:f] - point[f : 2 * f], point[-1]
        logits = dense @ w + b
        pull = cost * (1 / (1 + np.exp(-logits)) - truth)
        slope = dense.T @ pull
        loss = (cost * (np.logaddexp(0, logits) - truth * logits)).sum() + l1 * point[:-1].sum()
        return float(loss), np.concatenate([slope + l1, l1 - slope, [pull.sum()]])

    found = optimize.minimize(
        objective, np.zeros(2 * f + 1), jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * f) + [(None, None)],
        options={"maxiter": 20_000, "maxfun": 40_000, "ftol": 1e-15, "gtol": 1e-10, "maxcor": 50},
    )  # fmt: skip
    expected = found.x[:f] - found.x[f : 2 * f]
    weight, bias, gaps = fit_l1(sparse.csr_array(dense), values, ("a",), l1=l1)
    ours = np.concatenate([weight[0].clip(0), (-weight[0]).clip(0), bias])
    assert objective(ours)[0] == pytest.approx(found.fun, rel=1e-8)
    assert found.fun >= objective(ours)[0] * (1 - 1e-9 - gaps[0])  # the gap bounds what any solver can gain
    np.testing.assert_allclose(weight[0], expected, atol=1e-4)
    ranked = np.argsort(-weight[0])[:10]
    assert ranked.tolist() == np.argsort(-expected)[:10].tolist()
    assert np.diff(weight[0][ranked]).max() < 0  # ten positive weights, none equal


def test_silent_rows_are_joined_without_changing_the_fit() -> None:
    """On sparse codes, SciPy's BFGS over all rows finds the same weights."""
    rng = np.random.default_rng(0)
    x = np.where(rng.random((2000, 3)) < 0.05, rng.exponential(1.0, (2000, 3)), 0.0)
    truth = (x[:, 0] + 0.3 * rng.standard_normal(2000) > 0.4) | (rng.random(2000) < 0.02)
    balance = np.where(truth, 1000 / truth.sum(), 1000 / (~truth).sum())

    def objective(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = x @ point[:3] + point[3]
        pull = balance * (1 / (1 + np.exp(-logits)) - truth)
        loss = (balance * (np.logaddexp(0, logits) - truth * logits)).sum() + 0.5 * (point[:3] ** 2).sum()
        return float(loss), np.append(x.T @ pull + point[:3], pull.sum())

    expected = optimize.minimize(objective, np.zeros(4), jac=True, method="BFGS", options={"gtol": 1e-6}).x
    for start in (None, np.array([5.0, -3.0, 2.0, 1.0])):
        weight, bias = fit_few(x, truth, start=start)
        np.testing.assert_allclose([*weight, bias], expected, atol=1e-4)


def test_dense_probes_are_scipys_optimum() -> None:
    x, labels, _ = planted_labels(600, 16)
    everything = np.arange(len(x))
    probes = train_probes(x, labels, ProbeSplit(everything, everything, everything), l2=1e-2, tolerance=1e-7)
    raw = x.double().numpy()
    mean, std = raw.mean(0), raw.std(0)
    rows = (raw - mean) / std
    for i in range(2):
        truth = labels.values[:, i] == 1
        cost = np.where(truth, (~truth).sum() / truth.sum(), 1.0) / len(truth)

        def objective(point: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logits = rows @ point[:-1] + point[-1]
            pull = cost * (1 / (1 + np.exp(-logits)) - truth)  # noqa: B023 called in this turn of the loop only
            loss = (cost * (np.logaddexp(0, logits) - truth * logits)).sum() + 5e-3 * (point[:-1] ** 2).sum()  # noqa: B023
            return float(loss), np.append(rows.T @ pull + 1e-2 * point[:-1], pull.sum())

        best = optimize.minimize(objective, np.zeros(17), jac=True, method="BFGS", options={"gtol": 1e-9})
        ours = np.append(probes.weight[i] * std, probes.bias[i] + probes.weight[i].astype(float) @ mean)
        assert objective(ours)[0] == pytest.approx(best.fun, rel=1e-6)
        np.testing.assert_allclose(ours, best.x, atol=5e-3)


def planted_labels(n: int = 3000, d: int = 24) -> tuple[torch.Tensor, Labels, NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    directions = np.linalg.qr(rng.standard_normal((d, d)))[0][:2]
    on = rng.random((n, 2)) < [0.3, 0.05]
    offset = np.zeros(d)
    offset[0] = 100.0  # one massive dimension, as residual streams have
    x = on @ directions * 2.0 + offset + 0.4 * rng.standard_normal((n, d))
    return torch.from_numpy(x.astype(np.float32)), Labels(("often", "rare"), on.astype(np.int8)), directions


def test_dense_probes_find_planted_directions() -> None:
    x, labels, directions = planted_labels()
    split = split_groups(np.arange(len(x)), 0)
    probes = train_probes(x, labels, split)
    cosines = (probes.directions * directions).sum(1)
    assert (cosines > 0.9).all()
    assert [s.auc > 0.98 for s in probes.scores] == [True, True]
    # The scores are those of the test rows and nothing else
    held_out = x[torch.from_numpy(split.test)]
    again = score(labels.values[split.test, 0] == 1, probes.predict(held_out)[:, 0], probes.threshold[0])
    assert again == probes.scores[0]
    assert np.array_equal(probes.positive(held_out), probes.predict(held_out) > probes.threshold)


def test_dense_probe_minimises_its_loss() -> None:
    x, labels, _ = planted_labels(800)
    everything = np.arange(len(x))
    probes = train_probes(x, labels, ProbeSplit(everything, everything, everything), l2=1e-2)
    mean, std = x.double().mean(0), x.double().std(0, correction=0)
    for i in range(2):
        # the same point on the standardised scale, where the penalty is defined
        w = (torch.from_numpy(probes.weight[i]).double() * std).requires_grad_()
        b = torch.tensor(float(probes.bias[i] + probes.weight[i].astype(float) @ mean.numpy()), requires_grad=True)
        truth = torch.from_numpy(labels.values[:, i]).double()
        weights = torch.from_numpy(class_weights(labels.values, labels.names)[:, i]).double()
        each = torch.nn.functional.binary_cross_entropy_with_logits(
            ((x.double() - mean) / std) @ w + b, truth, reduction="none"
        )
        ((weights * each).sum() + 0.5 * 1e-2 * w.square().sum()).backward()
        assert w.grad is not None
        assert w.grad.abs().max() < 1e-4


def test_tuned_thresholds_and_unknown_rows() -> None:
    x, labels, _ = planted_labels()
    split = split_groups(np.arange(len(x)), 0)
    tuned = train_probes(x, labels, split)
    rare = tuned.predict(x[torch.from_numpy(split.test)])[:, 1]
    truth = labels.values[split.test, 1] == 1
    assert tuned.scores[1].f1 > f1(truth, rare, 0.0)  # class weights make 0 far too generous for a rare label
    # Rows of unknown label change nothing, wherever they lie
    padded = Labels(labels.names, np.concatenate([labels.values, np.full((500, 2), -1, np.int8)]))
    stretched = torch.cat([x, torch.zeros(500, x.shape[1])])
    extra = np.arange(len(x), len(x) + 500)
    wider = ProbeSplit(split.train, np.append(split.validation, extra[:200]), np.append(split.test, extra[200:]))
    again = train_probes(stretched, padded, wider)
    assert again.scores == tuned.scores
