"""Distances to decision boundaries against closed forms; the oracles' numbers are those of the DB3KD card (O1, O3, O5, O10, O11, O14, O15)."""

import math

import pytest
import torch

from common.boundary import bisect, boundary_distances, nearest_of_class, soft_labels


class Counted:
    """A label function that counts calls and queries."""

    def __init__(self, f):
        self.f, self.calls, self.queries = f, 0, 0

    def __call__(self, x):
        self.calls += 1
        self.queries += len(x)
        return self.f(x)


def centroids(c):
    return lambda x: torch.cdist(x, c).argmin(1)


def points(*rows):
    return torch.tensor(rows, dtype=torch.double)


def measure(label, x, bank, K, m=8, tolerance=1e-6):
    label = Counted(label)
    s, classes = label(x), label(bank)
    label.queries = label.calls = 0
    index, distance = nearest_of_class(x, s, bank, classes, K, m)
    d, asked = boundary_distances(x, s, bank, index, distance, label, tolerance)
    assert asked.sum() == label.queries  # every query is some pair's
    return d, asked, distance, label


def half_space(x):
    return (x @ points([3], [4])[:, 0] - 10 > 0).long()


def test_half_space():
    x = points([0, 0])
    for end, value in (([4, 0], 10 / 3), ([0, 5], 2.5)):
        d, _, _, _ = measure(half_space, x, points(end), 2)
        assert d[0, 1].item() == pytest.approx(value, rel=1e-5)
    d, asked, rays, _ = measure(half_space, x, points([4, 0], [0, 5]), 2)
    assert d[0, 1].item() == pytest.approx(2.5, rel=1e-5) and rays[0, 1, 0] == 4 and d[0, 0] == math.inf and asked[0, 0] == 0


def test_centroids_of_a_simplex_are_equally_far():
    c = torch.eye(10, dtype=torch.double)
    d, _, _, _ = measure(centroids(c), c[:1], c, 10)
    assert d[0, 1:].tolist() == pytest.approx([1 / math.sqrt(2)] * 9, rel=1e-5)
    t = soft_labels(d, torch.tensor([0]), "none")
    assert t[0, :2].tolist() == pytest.approx([12.7279, 1.41421], abs=1e-4)
    assert (t / 20).softmax(1)[0, :2].tolist() == pytest.approx([0.163620, 0.0929312], abs=1e-6)


def test_a_ray_through_another_class_counts_for_its_own_end():
    """Centroids 0, 1, 2 on a line: class 2 begins at 1.5; a ray to 3 is class 2 and not 1."""
    d, _, _, _ = measure(centroids(points([0], [1], [2])), points([0]), points([1], [3]), 3)
    assert d[0, 1:].tolist() == pytest.approx([0.5, 1.5], rel=1e-5)
    t = soft_labels(d, torch.tensor([0]), "none")
    assert t[0].tolist() == pytest.approx([2.66667, 2, 0.666667], abs=1e-4)
    assert (t / 20).softmax(1)[0].tolist() == pytest.approx([0.348183, 0.336768, 0.315049], abs=1e-5)


def test_slab():
    slab = lambda x: ((x[:, 0] >= 1) & (x[:, 0] <= 1.2)).long()  # noqa: E731
    d, _, _, _ = measure(slab, points([0]), points([1.1]), 2)
    assert d[0, 1].item() == pytest.approx(1, rel=1e-5)
    d, _, _, _ = measure(slab, points([0]), points([5]), 2)  # 5 is not of the class: no ray
    assert d[0, 1] == math.inf
    both = lambda x: ((x[:, 0] >= 1) & (x[:, 0] <= 1.2) | (x[:, 0] >= 3)).long()  # noqa: E731
    d, _, _, _ = measure(both, points([0]), points([5]), 2)
    assert d[0, 1].item() == pytest.approx(3, rel=1e-5)  # one crossing of the ray, here not the first: bisection sees no more


def test_what_cannot_be_reached_is_infinite_and_gives_finite_labels():
    label = centroids(points([0], [1]))
    d, asked, _, _ = measure(label, points([0]), points([0], [0.1]), 3)  # the image itself, and one of its own class
    assert (d == math.inf).all() and asked.sum() == 0
    assert torch.equal(soft_labels(d, torch.tensor([0])), torch.zeros(1, 3))


def random_case(n=40, bank=60, K=4, dim=6):
    g = torch.Generator().manual_seed(0)
    c, x, b = (torch.rand(k, dim, generator=g, dtype=torch.double) for k in (K, n, bank))
    return centroids(c), x, b, K


def test_certificate_and_order_sd_bd():
    """What is reported is a hit, a little less is none, and no boundary is farther than the nearest image of the class."""
    label, x, b, K = random_case()
    index, rays = nearest_of_class(x, label(x), b, label(b), K, 8)
    d, _, _, _ = measure(label, x, b, K, tolerance=1e-4)
    assert (d <= rays[:, :, 0]).all()
    hits = 0
    for i, k in (d < math.inf).nonzero().tolist():
        ends = b[index[i, k][rays[i, k] < math.inf]]
        directions = (ends - x[i]) / (ends - x[i]).norm(dim=1, keepdim=True)
        hit = label(x[i] + d[i, k] * directions) == k
        less = label(x[i] + d[i, k] * (1 - 2e-4) * directions) == k
        hits += bool((hit & ~less).any())
    assert hits == (d < math.inf).sum()


def test_a_pairs_result_does_not_depend_on_its_batch():
    label, x, b, K = random_case()
    together, asked, _, _ = measure(label, x, b, K)
    alone = [measure(label, x[i : i + 1], b, K) for i in range(len(x))]
    assert torch.allclose(together, torch.cat([d for d, *_ in alone]), rtol=1e-12, atol=0) and torch.equal(
        asked, torch.cat([a for _, a, *_ in alone])
    )


def test_more_candidates_never_enlarge_and_scaling_scales():
    label, x, b, K = random_case()
    few, many = (measure(label, x, b, K, m=m)[0] for m in (2, 10))
    assert (many <= few + 1e-9).all()
    scaled = measure(lambda y: label(y / 3), 3 * x, 3 * b, K, m=2)[0]
    assert torch.allclose(scaled, 3 * few, rtol=1e-9)


def test_queries_of_a_bisection_and_calls_served_together():
    label, x, b, K = random_case(n=200)
    _, asked, rays, counted = measure(label, x, b, K, m=1, tolerance=1e-3)
    pairs = (rays[:, :, 0] < math.inf).sum()
    assert asked.max() == 10 and counted.queries == 10 * pairs and counted.calls == 10  # ceil(log2(1000))
    _, asked, _, counted = measure(label, x, b, K, m=8, tolerance=1e-3)
    assert counted.calls <= 8 * 11 and asked.max() <= 10 + 7 * 11


def test_bisect_brackets():
    low, high = torch.zeros(3), torch.ones(3)
    edge = torch.tensor([0.3, 0.999, 1e-4])
    u = bisect(lambda u: u, low, high, lambda u: u >= edge, 10)
    assert (u >= edge).all() and (u - edge <= 2**-10).all()


def test_random_candidates_are_shared_and_of_the_class():
    label, x, b, K = random_case()
    index, distance = nearest_of_class(x, label(x), b, label(b), K, 3, "random", torch.Generator().manual_seed(0))
    classes = label(b)
    for k in range(K):
        chosen = {tuple(sorted(row)) for row in index[:, k][label(x) != k].tolist()}
        assert len(chosen) == 1 and (classes[list(chosen.pop())] == k).all()
    assert (distance[label(x) != 0][:, 0].diff(dim=1) >= 0).all()


def test_soft_labels_worked_example_and_scale():
    d = torch.tensor([[math.inf, 1, 2, 4.0]])
    t = soft_labels(d, torch.tensor([0]), "none")
    assert t[0].tolist() == pytest.approx([1.75, 1, 0.5, 0.25])
    assert (t / 20).softmax(1)[0].tolist() == pytest.approx([0.261073, 0.251464, 0.245255, 0.242208], abs=1e-6)
    assert t.softmax(1)[0].tolist() == pytest.approx([0.504540, 0.238328, 0.144553, 0.112578], abs=1e-6)
    assert torch.allclose(soft_labels(d, torch.tensor([0])), soft_labels(7 * d, torch.tensor([0])))  # by the median
    tiny = soft_labels(torch.tensor([[math.inf, 1e-9, 1, 1.0]]), torch.tensor([0]))
    assert tiny.max() <= 1002 and torch.isfinite(tiny).all()
