"""The polish of a single network."""

import pytest
import torch

from builders import ALL_LARGE, planted, settings_with
from sklearn_ec._expand.polishing import Polisher
from sklearn_ec._solvers.jacobian import stacked


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({True: 0.2, False: 0.1}, [True]),
        ({True: 0.8, False: 0.5}, [True, False]),
        ({True: 0.8, False: 0.9}, [True, False, True]),
    ],
)
def test_large_networks_get_the_precision_that_does_better(monkeypatch, shares, expected):
    """Single products while they go ahead fast, and again where double ones are no better."""
    network, polisher, _ = planted("tanh")
    polisher = Polisher(
        polisher.samples, polisher.samples, "tanh", "cpu", False, settings=ALL_LARGE
    )
    used = []

    class Scripted:
        finished = torch.tensor([False])
        damping = torch.tensor([1e-3])
        losses = torch.tensor([1e-2], dtype=torch.float64)

        def __init__(self, layers, linear):
            self.layers, self.share = layers, shares[linear.in_single]
            used.append(linear.in_single)

        def run(self, n_steps):
            self.losses *= self.share
            return n_steps

    monkeypatch.setattr(polisher, "_levenberg", lambda layers, linear, *_: Scripted(layers, linear))
    polisher.polish(network, 30)
    assert used == expected


@pytest.mark.parametrize(("most", "is_huge"), [(16, False), (15, True)])
def test_huge_networks_get_no_nearly_exact_solves(most, is_huge):
    """Where dense equations take too long, too."""
    network, polisher, _ = planted("tanh")
    assert network.n_parameters == 16
    settings = settings_with(
        ALL_LARGE, polish={"final_dense_flops": 0.0, "most_nearly_exact": most}
    )
    polisher = Polisher(polisher.samples, polisher.samples, "tanh", "cpu", False, settings=settings)
    assert (polisher._exact(stacked(network, "cpu")) is None) == is_huge


class Crawling:
    """A descent in which each step leaves the same share of the loss."""

    finished = torch.tensor([False])
    damping = torch.tensor([1e-3])

    def __init__(self, layers, share, loss):
        self.layers, self.share = layers, share
        self.losses = torch.tensor([loss], dtype=torch.float64)
        self.n_steps = 0

    def run(self, n_steps):
        self.losses *= self.share**n_steps
        self.n_steps += n_steps
        return n_steps


@pytest.mark.parametrize(
    ("most", "variance", "share", "loss", "expected"),
    [
        (15, 0.0, 0.9, 9e-13, 5),
        (16, 0.0, 0.9, 9e-13, 30),  # there are better steps
        (15, 1.0, 0.9, 9e-13, 30),  # rows tell as much about all directions
        (15, 0.0, 0.7, 9e-13, 30),  # it goes ahead
        (15, 0.0, 0.9, 1e-10, 30),  # far from zero
    ],
)
def test_huge_networks_end_where_they_crawl_near_zero(
    monkeypatch, most, variance, share, loss, expected
):
    network, polisher, _ = planted("tanh")
    settings = settings_with(
        ALL_LARGE,
        polish={"most_nearly_exact": most, "final_loss": 1e-12, "finished_loss": 1.0},
    )
    polisher = Polisher(polisher.samples, polisher.samples, "tanh", "cpu", False, settings=settings)
    monkeypatch.setattr(Polisher, "least_variance", variance)
    descents = []

    def descent(layers, *_):
        descents.append(Crawling(layers, share, descents[-1].losses if descents else loss))
        return descents[-1]

    monkeypatch.setattr(polisher, "_levenberg", descent)
    polisher.polish(network, 30)
    assert sum(d.n_steps for d in descents) == expected


def test_a_polish_that_is_given_up_where_it_crawls_tries_no_double_products(monkeypatch):
    network, polisher, _ = planted("tanh")
    polisher = Polisher(
        polisher.samples, polisher.samples, "tanh", "cpu", False, settings=ALL_LARGE
    )
    used = []

    def descent(layers, linear, *_):
        used.append(linear.in_single)
        return Crawling(layers, 0.9, 1e-2)

    monkeypatch.setattr(polisher, "_levenberg", descent)
    polisher.polish(network, 30, progress=polisher.settings.polish.single_progress)
    assert used == [True]
