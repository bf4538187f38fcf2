"""The search for depth, width and activation, and what becomes of students, on scripted trials.

Nothing is trained: students of an activation and a shape have the losses that a script says, and
finishing gives a certified network where it says so.
"""

import operator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from sklearn_ec._cluster.layerwise import ClusteredLayers
from sklearn_ec._core.records import Network, Students
from sklearn_ec._core.settings import DEFAULTS
from sklearn_ec._finish.finisher import Candidate
from sklearn_ec._search.ensemble import Clustered, Ensemble, best_of
from sklearn_ec._search.rounds import Round
from sklearn_ec._search.shapes import Search
from sklearn_ec._search.trial_trainer import TrialTrainer
from sklearn_ec._search.trials import Trial, with_verdict

TOL = 1e-20
N_PROBES, PROBE_STEPS = DEFAULTS.search.n_probes, DEFAULTS.search.probe_steps
PROBE = Round(PROBE_STEPS, asks_finisher=False)
BRIEF = [DEFAULTS.search.brief_steps] * len(DEFAULTS.search.brief_equations)


@pytest.fixture(autouse=True)
def no_clusters(monkeypatch):
    """Scripted students share nothing."""
    monkeypatch.setattr(Ensemble, "cluster", lambda *arguments: ClusteredLayers())


def make_network(widths):
    sizes = (1, *widths, 1)
    return Network(tuple(np.zeros((b, a + 1)) for a, b in zip(sizes[:-1], sizes[1:], strict=True)))


def make_students(widths, losses, held_out_loss=None):
    network, losses = make_network(widths), np.asarray(losses, dtype=float)
    return Students(
        layers=tuple(np.stack([layer] * len(losses)) for layer in network.layers),
        losses=losses,
        trained=np.ones(len(losses), dtype=bool),
        n_iter=PROBE_STEPS,
        best=network,
        best_held_out_loss=losses.min() if held_out_loss is None else held_out_loss,
        loss_curves=losses[:, None],
    )


class FakeFinisher:
    """Certifies students of some widths; denoised students have the widths of a list.

    ``refused`` maps activation and widths of students to the widths of the exact networks that
    finishing makes of them, which get no certificate.
    """

    prune = True
    settings = DEFAULTS
    error = 1.0  # of all finished networks: students do better

    def __init__(
        self,
        name="tanh",
        certified=(),
        events=None,
        n_equations=10**6,
        denoised=(),
        refused=None,
        is_conclusive=False,
        rounding_loss=0.0,
    ):
        self.name, self.certified = name, certified
        self.refused, self.is_conclusive = refused or {}, is_conclusive
        self.events = [] if events is None else events
        self.denoised = list(denoised)
        samples = SimpleNamespace(n_equations=n_equations, rounding_loss=rounding_loss)
        self.polisher = SimpleNamespace(samples=samples, solver="auto")

    def finish(self, network):
        self.events.append(("finish", self.name, network.widths))
        refused = self.refused.get((self.name, network.widths))
        if refused is not None:
            return self._candidate(make_network(refused), passed=False, fits_exactly=True)
        return self._candidate(network, network.widths in self.certified)

    @staticmethod
    def with_resolved_signs(hidden):
        return tuple(hidden)

    @staticmethod
    def narrowed(network, widths):
        is_narrow = all(map(operator.le, network.widths, widths))
        return network if is_narrow else make_network(tuple(map(min, network.widths, widths)))

    def denoise(self, network):
        self.events.append(("denoise", self.name, network.widths))
        return self._candidate(make_network(self.denoised.pop(0)), passed=False)

    def _candidate(self, network, passed, fits_exactly=False):
        certificate = SimpleNamespace(
            function_certified=passed,
            is_exact=passed,
            is_conclusive=passed or self.is_conclusive,
            fits_exactly=passed or fits_exactly,
            rules_out_noise=passed or fits_exactly,
            error=self.error,
        )
        return Candidate(network, certificate)


class Script:
    """A search whose students of ``(activation, widths)``, or ``widths``, have given losses.

    Other students have a loss of 1. The best student has the loss, others multiples of it, except
    ``at_floor``, where all have the same loss. Each round leaves the share ``gain`` of it.
    """

    def __init__(
        self,
        losses,
        activations=("tanh",),
        certified=(),
        at_floor=False,
        n_students=20,
        n_equations=10**6,
        refused=None,
        rounding_loss=0.0,
        succeeds=False,
        gain=0.05,
    ):
        self.gain = gain
        self.losses, self.at_floor, self.events = losses, at_floor, []
        self.succeeds = succeeds
        finishers = {
            name: FakeFinisher(
                name,
                certified,
                self.events,
                n_equations,
                refused=refused,
                rounding_loss=rounding_loss,
            )
            for name in activations
        }
        trainer = TrialTrainer(
            finishers,
            self._train,
            lambda shape: 10 * sum(shape),
            lambda finisher, shape: False,
            n_students,
            300,
        )
        self.search = Search(trainer)

    def _train(self, finisher, widths, n_students, round):
        self.events.append(("train", finisher.name, widths, n_students, round))
        loss = self.losses.get((finisher.name, widths), self.losses.get(widths, 1.0))
        factors = np.ones(n_students) if self.at_floor else 10.0 ** np.arange(n_students)
        factors *= self.gain ** (round.asks_finisher * len(self.rounds))
        students = make_students(widths, loss * factors)
        n_iter = 0 if round.max_iter == 0 else PROBE_STEPS
        return Ensemble(replace(students, succeeded=self.succeeds, n_iter=n_iter), TOL)

    @property
    def probed(self):
        """Shapes, or activations and shapes, in the order in which they were probed."""
        probed = [e[1:3] for e in self.events if e[0] == "train" and not e[4].asks_finisher]
        return probed if len(self.search.finishers) > 1 else [widths for _, widths in probed]

    @property
    def trained_to_the_end(self):
        return [e[1:4] for e in self.events if e[0] == "train" and e[4] == Round()]

    @property
    def rounds(self):
        """Steps and students of all rounds."""
        return [(e[4].max_iter, e[3]) for e in self.events if e[0] == "train"]

    @property
    def finished(self):
        return [event[2] for event in self.events if event[0] == "finish"]


def test_the_first_certified_network_ends_the_search():
    script = Script({(8,): 1e-12}, certified=[(8,)])
    trial = script.search.run()
    assert (trial.activation, trial.widths, trial.certified) == ("tanh", (8,), True)
    assert script.events == [
        ("train", "tanh", (8,), N_PROBES, PROBE),
        ("finish", "tanh", (8,)),
    ]


def test_one_layer_more_comes_before_twice_the_width():
    script = Script({(8,): 1e-4, (4, 4): 1e-5, (16,): 1e-10}, certified=[(16,)])
    assert script.search.run().widths == (16,)
    assert script.probed == [(8,), (4, 4), (16,)]


def test_goes_on_from_the_best_shape_as_long_as_the_loss_halves():
    losses = {(8,): 1.0, (4, 4): 0.9, (16,): 0.4, (8, 8): 0.3, (32,): 0.25}
    script = Script(losses)
    trial = script.search.run()
    assert script.probed == [(8,), (4, 4), (16,), (8, 8), (32,)]
    assert not script.finished  # losses above 1e-3 are not worth it
    # 0.4 is within a factor of 2 of the lowest, with a layer or neurons less.
    assert trial.widths == (16,)


def test_the_last_trial_is_trained_to_the_end():
    script = Script({(8,): 0.1, (4, 4): 0.09, (16,): 0.09})
    trial = script.search.run()
    assert script.events[-1] == ("train", "tanh", (8,), 20, Round())
    assert len(trial.ensemble.students) == N_PROBES + 20 * (len(BRIEF) + 1)
    assert trial.report()["n_students"] == len(trial.ensemble.students)


@pytest.mark.parametrize(("n_students", "n_probes"), [(3, 3), (1, 1), (8, 5)])
def test_few_students_are_probes_and_trained_to_the_end(n_students, n_probes):
    script = Script({}, n_students=n_students)
    script.search.run()
    assert script.events[0] == ("train", "tanh", (8,), n_probes, PROBE)
    assert script.events[-1] == ("train", "tanh", (8,), n_students, Round())


def test_no_shape_is_probed_twice_none_too_deep_or_too_large():
    """The loss falls with every layer and neuron, for ever."""
    losses = {(w,) * d: 0.01**d / w**2 for d in range(1, 5) for w in range(1, 1000)}
    script = Script(losses, n_equations=10**9)
    script.search.run()
    assert len(set(script.probed)) == len(script.probed) < 20
    assert max(map(len, script.probed)) == 3
    assert max(10 * sum(shape) for shape in script.probed) <= 5000


@pytest.mark.parametrize(
    ("n_equations", "probed"),
    [(160, [(8,), (4, 4), (16,)]), (159, [(8,), (4, 4)]), (79, [(4,), (2, 2)]), (1, [(1,)])],
)
def test_students_hold_no_more_parameters_than_there_are_equations(n_equations, probed):
    script = Script({}, n_equations=n_equations)
    assert script.search.run().widths == probed[0]
    assert script.probed == probed


def test_a_trial_that_stands_out_is_finished_at_once():
    losses = {(8,): 1e-4, (4, 4): 0.9e-5, (16,): 1e-9}
    script = Script(losses, certified=[(4, 4)])
    assert script.search.run().widths == (4, 4)
    assert script.probed == [(8,), (4, 4)]
    script = Script(losses | {(4, 4): 1.1e-5}, certified=[(4, 4)])
    assert script.search.run().widths == (4, 4)
    assert script.probed == [(8,), (4, 4), (16,)]


def test_promising_trials_are_finished_best_first_and_once():
    losses = {("relu", (4, 4)): 3e-4, ("g", (4, 4)): 2e-4, ("tanh", (4, 4)): 4e-4}
    script = Script(losses, ("relu", "g", "tanh"))
    script.search.run()
    names = [event[1] for event in script.events if event[0] == "finish"]
    assert names == ["g", "relu", "tanh"]
    script = Script(losses | {("relu", (4, 4)): 1e-10}, ("relu", "g", "tanh"), [(4, 4)])
    assert script.search.run().activation == "relu"
    assert script.finished == [(4, 4)]


@pytest.mark.parametrize(("loss", "finished"), [(0.9e-9, [(8,)]), (1.1e-9, [])])
def test_shallow_probes_far_from_rounding_are_not_finished(loss, finished):
    """Those of networks of one hidden layer come nearer."""
    script = Script({(8,): loss})
    script.search.run()
    assert script.finished == finished


@pytest.mark.parametrize(("widths", "goes_on"), [((4, 4), True), ((5, 4), False)])
def test_deep_approximations_end_the_search(widths, goes_on):
    """They are wider than assumed, and keep more than half of the neurons of the students."""
    script = Script({(4, 4): 1e-10})
    finisher = script.search.finishers["tanh"]
    students = make_students((4, 4), [1e-10, 1e-9, 1e-8])
    finished = {0: finisher._candidate(make_network(widths), passed=False)}
    trial = Trial("tanh", (4, 4), finisher, Ensemble(students, TOL, finished=finished), 0.0)
    assert script.search._conclude(trial) is trial
    assert bool(script.rounds) == goes_on
    assert trial.ensemble.is_complete != goes_on


@pytest.mark.parametrize(
    ("shape", "widths", "error", "verdict"),
    [
        ((4, 4), (10, 7), 1e-6, "approximation"),
        ((4, 4), (10, 6), 1e-6, "right shape"),  # half of the neurons of a student
        ((4, 4), (10, 7), 1e-4, "neither"),  # it may be that of a wider or deeper network
        ((4,), (12,), 1e-6, "neither"),  # a deeper one may be exact
        ((4,), (4,), 1e-6, "right shape"),
    ],
)
def test_no_shape_is_probed_after_a_deep_approximation(shape, widths, error, verdict):
    """Where no small network made the table, other shapes do about as well."""
    script = Script({shape: 1e-9})
    finisher = script.search.finishers["tanh"]
    finisher.error = error
    students = make_students(tuple(4 * w for w in shape), [1e-9, 1e-8, 1e-7])
    attempt = finisher._candidate(make_network(widths), passed=False)
    trial = Trial("tanh", shape, finisher, Ensemble(students, TOL, attempt=attempt), 0.0)
    script.search.trials.append(trial)
    assert (script.search._approximated is trial) == (verdict == "approximation")
    assert trial.has_right_shape == (verdict == "right shape")
    if verdict == "approximation":
        assert script.search._climb(shape) is None
        assert len(script.probed) == 1


def test_targets_that_no_network_made_are_approximated_at_once(monkeypatch):
    script = Script({(8,): 1e-4})
    approximated = []
    monkeypatch.setattr(Ensemble, "approximate", lambda self, f: approximated.append(f.name))
    trial = script.search.run_approximately()
    assert (trial.widths, approximated) == ((8,), ["tanh"])
    assert script.probed == [(8,)]


def test_nothing_is_finished_without_pruning():
    script = Script({(8,): 1e-12, (4, 4): 1e-12}, certified=[(8,)])
    script.search.finishers["tanh"].prune = False
    assert not script.search.run().certified
    assert not script.finished


@pytest.mark.parametrize("deeper", [1e-4, 0.6e-4])
def test_the_noise_floor_ends_the_search(deeper):
    script = Script({(8,): 1e-4, (4, 4): deeper}, at_floor=True)
    trial = script.search.run()
    assert script.probed == [(8,), (4, 4)]
    assert (trial.widths, len(trial.ensemble.students)) == ((8,), N_PROBES)
    assert not script.finished


def test_a_floor_that_another_shape_undercuts_is_none():
    script = Script({(8,): 1e-4, (4, 4): 1e-5}, at_floor=True)
    assert script.search.run().widths == (4, 4)
    assert script.probed == [(8,), (4, 4), (16,), (4, 4, 4)]


def test_the_best_activation_is_finished_first():
    losses = {("g", (8,)): 8e-10, ("tanh", (8,)): 2e-10}
    script = Script(losses, ("relu", "g", "tanh"), certified=[(8,)])
    assert script.search.run().activation == "tanh"
    assert script.probed == [("relu", (8,)), ("g", (8,)), ("tanh", (8,))]
    assert script.finished == [(8,)]


def test_an_activation_that_looks_exact_is_finished_before_others_are_probed():
    losses = {("g", (8,)): 1e-12, ("tanh", (8,)): 1e-14}
    script = Script(losses, ("relu", "g", "tanh"), certified=[(8,)])
    assert script.search.run().activation == "g"
    assert script.probed == [("relu", (8,)), ("g", (8,))]
    assert script.finished == [(8,)]


def test_one_that_only_looks_exact_does_not_end_the_race():
    losses = {("g", (8,)): 1e-12, ("tanh", (8,)): 1e-14}
    script = Script(losses, ("g", "tanh"), certified=[])
    script.search._probe((8,))
    assert script.probed == [("g", (8,)), ("tanh", (8,))]
    assert script.finished == [(8,), (8,)]


def test_the_best_activations_go_on_after_two_shapes():
    losses = {("a", (4, 4)): 0.10, ("b", (8,)): 0.21, ("c", (16,)): 0.01, ("d", (8,)): 0.3}
    script = Script(losses, ("d", "c", "b", "a", "e"))
    assert script.search.run().activation == "a"
    assert script.probed[:10] == [(name, shape) for shape in [(8,), (4, 4)] for name in "dcbae"]
    further = [[name for name, widths in script.probed[10:] if widths == (16,)]]
    further.append([name for name, widths in script.probed[10:] if widths == (4, 4, 4)])
    assert further == [["a", "b", "d"]] * 2


def test_scores_are_held_out_losses_unless_the_data_look_exact():
    def trial(loss, held_out_loss, rounding_loss=0.0):
        finisher = FakeFinisher(rounding_loss=rounding_loss)
        ensemble = Ensemble(make_students((8,), [loss, 1.0], held_out_loss), TOL)
        return Trial("relu", (8,), finisher, ensemble, 1.0)

    assert trial(1e-4, 1e-2).score == 1e-2
    assert trial(1e-15, 1e-4).score == 1e-15
    assert trial(np.nan, 1e-2).score == 1e-2
    assert trial(1e-7, 1e-2, rounding_loss=1e-6).score == 1e-7
    assert trial(1e-5, 1e-2, rounding_loss=1e-6).score == 1e-2


def test_probes_at_the_rounding_of_the_targets_are_finished_at_once():
    losses = {(8,): 1e-6}
    script = Script(losses, certified=[(8,)])
    script.search.run()
    assert script.probed == [(8,), (4, 4), (16,)]
    script = Script(losses, certified=[(8,)], rounding_loss=2e-6)
    assert script.search.run().certified
    assert script.probed == [(8,)]


def test_reports_list_what_was_tried():
    script = Script({(8,): 1e-4, (4, 4): 1e-21}, certified=[(4, 4)])
    trial = script.search.run()
    reports = [trial.report() for trial in script.search.trials]
    assert [(r["depth"], r["width"], r["certified"]) for r in reports] == [
        (1, 8, False),
        (2, 4, True),
    ]
    report = reports[-1]
    assert report == trial.report()
    assert report["activation"] == "tanh"
    assert report["n_students"] == N_PROBES
    assert_allclose(report["converged"], 2 / N_PROBES)  # losses of 1e-21, 1e-20, 1e-19, ...
    assert report["loss"] == report["held_out_loss"] == 1e-21
    assert 0 <= report["seconds"] < 1


def test_the_report_of_the_trial_behind_the_network_has_the_verdict():
    script = Script({(8,): 1e-4, (4, 4): 1e-6}, ("tanh", "g"))
    script.search.run()
    reports = [trial.report() for trial in script.search.trials]
    assert not any(report["certified"] for report in reports)
    judged = with_verdict(reports, "g", (4, 4), certified=True)
    certified = [(r["activation"], r["depth"], r["width"]) for r in judged if r["certified"]]
    assert certified == [("g", 2, 4)]
    assert with_verdict(judged, "g", (4, 4), certified=False) == reports


@pytest.mark.parametrize("widths", [(5,), (5, 5)])
def test_given_widths_are_trained_briefly_and_to_the_end(widths):
    script = Script({widths: 1e-5})
    trial = script.search.run_given(widths)
    assert script.rounds == [*((n_steps, 20) for n_steps in BRIEF), (None, 20)]
    assert not script.probed
    assert len(trial.ensemble.students) == trial.report()["n_students"] == 20 * (len(BRIEF) + 1)
    assert trial.report()["width"] == 5


def test_rounds_end_where_most_students_converged():
    script = Script({(5,): 1e-5}, succeeds=True)
    script.search.run_given((5,))
    assert script.rounds == [(BRIEF[0], 20)]


def test_each_round_starts_from_what_the_students_before_share(monkeypatch):
    shared = [np.ones((2, 2)), np.ones((1, 3))]
    monkeypatch.setattr(Ensemble, "cluster", lambda *arguments: ClusteredLayers(collapsed=shared))
    script = Script({(5, 5, 5): 1e-5})
    script.search.run_given((5, 5, 5))
    first, *others = [event[4].start.shared for event in script.events if event[0] == "train"]
    assert first == ()
    for given in others:
        assert all(map(operator.is_, given, shared))


def test_students_grow_from_the_corner_that_pruning_ended_in():
    """As long as that lowers the loss by a factor of ten."""
    script = Script({(5,): 1e-5})
    finisher = script.search.finishers["tanh"]
    train = script.search.trainer.train

    def train_and_finish(*arguments):
        ensemble = train(*arguments)
        finisher.error = 1e-4 if len(script.rounds) == 1 else 1e-5
        ensemble.attempt = finisher._candidate(make_network((3,)), passed=False)
        return ensemble

    script.search.trainer.train = train_and_finish
    script.search.run_given((5,))
    starts = [e[4].start.network for e in script.events if e[0] == "train"]
    widths = [network and network.widths for network in starts]
    assert widths == [None, (3,), (3,), *([None] * len(BRIEF))]


@pytest.mark.parametrize(("error", "n_kept"), [(1e-4, 20), (1e-6, 20 + DEFAULTS.search.group_size)])
def test_students_that_grow_in_vain_are_not_kept(error, n_kept):
    """Close to each other, they would look like students at a noise floor."""
    script = Script({(5,): 1e-7}, gain=1.0)
    finisher = script.search.finishers["tanh"]
    trial = script.search.trainer.new_trial("tanh", (5,), 20, Round())
    finisher.error = 1e-4
    trial.ensemble.attempt = finisher._candidate(make_network((3,)), passed=False)
    train = script.search.trainer.train

    def train_and_finish(*arguments):
        ensemble = train(*arguments)
        finisher.error = error
        ensemble.attempt = finisher._candidate(make_network((3,)), passed=False)
        return ensemble

    script.search.trainer.train = train_and_finish
    script.search.trainer.grow(trial, 20)
    assert len(trial.ensemble.students) == n_kept
    assert trial.ensemble.best_candidate.certificate.error == error


def test_the_smallest_exact_network_is_the_best_candidate():
    """Whatever rounding makes of their errors; others are told by their error."""
    finisher = FakeFinisher()
    candidates = []
    for widths, error, fits_exactly in [((8,), 1e-16, True), ((5,), 2e-16, True), ((3,), 1, False)]:
        finisher.error = error
        candidates.append(finisher._candidate(make_network(widths), False, fits_exactly))
    wide, small, far = candidates
    assert best_of(wide, None, small, far) is small
    finisher.error = 0.5
    assert best_of(far, finisher._candidate(make_network((8,)), False)) is not far
    assert best_of(None) is None


@pytest.mark.parametrize(
    ("error", "widths", "fits_exactly"),
    [(0.2, (3,), False), (1e-2, (9,), False), (1e-2, (3,), True)],
)
def test_what_is_no_corner(error, widths, fits_exactly):
    """The network misses the data by much, is wider than the students, or is exact."""
    finisher = FakeFinisher()
    finisher.error = error
    candidate = finisher._candidate(make_network(widths), False, fits_exactly)
    ensemble = Ensemble(make_students((8,), [1e-5, 1e-3]), TOL, attempt=candidate)
    assert ensemble.corner(0.01) == (None, np.inf)


@pytest.mark.parametrize("reason", ["large", "adam", "not pruned", "few steps"])
def test_there_are_no_brief_rounds_where_they_cost_or_tell_too_little(reason):
    script = Script({(5,): 1e-5})
    finisher = script.search.finishers["tanh"]
    if reason == "large":
        script.search.trainer.n_parameters = lambda widths: 10_000
    elif reason == "few steps":
        script.search.trainer.max_iter = BRIEF[0]
    elif reason == "adam":
        finisher.polisher.solver = "adam"
    else:
        finisher.prune = False
    script.search.run_given((5,))
    warm_up = [(0, 10)] if reason == "large" else []
    assert script.rounds == [*warm_up, (None, 20)]


@pytest.mark.parametrize("gain", [0.05, 0.5])
def test_rounds_end_where_more_rows_do_not_help(gain):
    script = Script({(5,): 1e-5}, gain=gain)
    script.search.run_given((5,))
    rounds = [*((steps, 20) for steps in BRIEF), (None, 20)]
    assert script.rounds == (rounds if gain < DEFAULTS.search.stands_out else rounds[:2])


@pytest.mark.parametrize("certified", [[(5, 5)], []])
def test_activations_of_given_widths_race(certified):
    losses = {("relu", (5, 5)): 1e-5, ("g", (5, 5)): 1e-4, ("tanh", (5, 5)): 1e-6}
    script = Script(losses, ("relu", "g", "tanh"), certified)
    trial = script.search.run_given((5, 5))
    assert trial.activation == "tanh"
    assert {widths for _, widths in script.probed} == {(5, 5)}
    assert script.trained_to_the_end == ([] if certified else [("tanh", (5, 5), 20)])
    assert len(script.finished) == (1 if certified else 3)


@pytest.mark.parametrize(("n_students", "n_brief"), [(20, 3), (2, 2)])
def test_targets_without_a_network_get_a_few_brief_students(n_students, n_brief):
    script = Script({}, ("relu", "tanh"), n_students=n_students)
    trial = script.search.run_briefly((5,))
    assert script.events == [("train", "relu", (5,), n_brief, PROBE)]
    assert script.search.trials == [trial]
    trial.ensemble.complete(trial.finisher)
    assert len(script.events) == 1  # nothing is pruned


# Exact networks that get no certificate

PAIR_LOSSES = {("relu", (8,)): 1e-12, ("leaky_relu", (8,)): 1e-4}
PAIR = ("tanh", "relu", "leaky_relu")


def test_paired_neurons_are_trained_where_an_exact_network_is_refused():
    """Twelve ReLU neurons may be six leaky ones, which the probes did not show."""
    script = Script(PAIR_LOSSES, PAIR, refused={("relu", (8,)): (12,)})
    script.search.run()
    assert script.events[:4] == [
        ("train", "tanh", (8,), N_PROBES, PROBE),
        ("train", "relu", (8,), N_PROBES, PROBE),
        ("train", "leaky_relu", (8,), N_PROBES, PROBE),
        ("finish", "relu", (8,)),
    ]
    assert script.events[4] == ("finish", "leaky_relu", (8,))
    assert script.events[5][:3] == ("train", "leaky_relu", (8,))
    assert script.trained_to_the_end.count(("leaky_relu", (8,), 20)) == 1


def test_the_certificate_of_paired_neurons_ends_the_search():
    script = Script(PAIR_LOSSES, PAIR, refused={("relu", (8,)): (12,)})
    train = script.search.trainer.train

    def train_and_certify(finisher, widths, n_students, round):
        ensemble = train(finisher, widths, n_students, round)
        if finisher.name == "leaky_relu" and round.asks_finisher:
            ensemble.certified[0] = finisher._candidate(make_network((6,)), passed=True)
        return ensemble

    script.search.trainer.train = train_and_certify
    trial = script.search.run()
    assert (trial.activation, trial.certified) == ("leaky_relu", True)
    assert list(trial.ensemble.certified) == [N_PROBES]  # the first one behind the probes
    assert {widths for _, widths in script.probed} == {(8,)}


@pytest.mark.parametrize(
    ("activations", "certified", "refused"),
    [
        (PAIR, [(8,)], {}),  # certified
        (PAIR, [], {}),  # not exact
        (("tanh", "relu"), [], {("relu", (8,)): (12,)}),  # leaky ReLU is not in question
        (("relu",), [], {("relu", (8,)): (12,)}),
    ],
)
def test_paired_neurons_are_not_trained_elsewhere(activations, certified, refused):
    script = Script(PAIR_LOSSES, activations, certified, refused=refused)
    script.search.run()
    assert "leaky_relu" not in [name for name, *_ in script.trained_to_the_end]


@pytest.mark.parametrize(("width", "best"), [(6, "leaky_relu"), (14, "relu")])
def test_the_smallest_exact_network_is_the_most_parsimonious(width, best):
    """Leaky ReLU neurons in pairs make ReLU neurons: these are more, and are not trained on."""
    refused = {("relu", (8,)): (12,), ("leaky_relu", (8,)): (width,)}
    script = Script(PAIR_LOSSES, PAIR, refused=refused)
    trial = script.search.run_given((8,))
    assert trial.activation == best
    sizes = {t.activation: t.exact_size for t in script.search.trials}
    assert sizes["leaky_relu"] == make_network((width,)).n_parameters
    assert sizes["relu"] == make_network((12,)).n_parameters
    trained = {name for name, *_ in script.trained_to_the_end}
    assert ("leaky_relu" in trained) == (best == "leaky_relu")


RACE = ("tanh", "relu", "softplus", "gelu", "g")


def rounds_of(script, shape):
    """Activation and number of students of each training of a shape, races first."""
    trained = [e for e in script.events if e[0] == "train" and e[2] == shape]
    return [(e[1], e[3]) for e in trained if e[4].is_race], [
        (e[1], e[3]) for e in trained if not (e[4].is_race or e[4].asks_finisher)
    ]


def test_many_activations_race_and_the_best_are_probed():
    losses = dict(zip([(name, (8,)) for name in RACE], [3e-7, 1e-4, 2e-7, 1e-3, 4e-7], strict=True))
    script = Script(losses, RACE)
    script.search.run_given((8,))
    raced, probed = rounds_of(script, (8,))
    assert raced == [(name, DEFAULTS.search.n_race) for name in RACE]
    assert probed == [("softplus", N_PROBES), ("tanh", N_PROBES), ("g", N_PROBES)]
    report = [(t.activation, len(t.ensemble.students), t.is_race) for t in script.search.trials]
    assert ("relu", DEFAULTS.search.n_race, True) in report
    assert len(report) == len(RACE)  # a probe takes the place of its race


def test_a_race_that_looks_exact_ends_with_its_network():
    script = Script({("tanh", (8,)): 1e-12}, RACE, certified=[(8,)])
    assert script.search.run().activation == "tanh"
    assert rounds_of(script, (8,)) == ([("tanh", DEFAULTS.search.n_race)], [])


def test_shapes_that_lose_the_race_are_not_probed():
    """All activations are far from the data with one layer, one of them is not with two."""
    losses = {(8,): 1e-4, (4, 4): 1e-5, ("softplus", (4, 4)): 1e-8}
    script = Script(losses, RACE, certified=[(4, 4)])
    assert script.search.run().activation == "softplus"
    raced, probed = rounds_of(script, (8,))
    assert (len(raced), probed) == (len(RACE), [])
    raced, probed = rounds_of(script, (4, 4))
    assert (len(raced), probed[0]) == (len(RACE), ("softplus", N_PROBES))


def test_the_best_shape_is_probed_before_the_search_moves_on():
    script = Script({(8,): 1e-4, (4, 4): 9e-5}, RACE)
    script.search.run()
    assert len(rounds_of(script, (4, 4))[1]) == DEFAULTS.search.n_finalists
    assert not rounds_of(script, (8,))[1]


# What becomes of students once training is over


def complete(losses, certified=(), denoised=(), prune=True, widths=(8,), is_conclusive=False):
    finisher = FakeFinisher(certified=certified, denoised=denoised, is_conclusive=is_conclusive)
    finisher.prune = prune
    ensemble = Ensemble(make_students(widths, losses), TOL)
    ensemble.complete(finisher)
    return ensemble, [event[0] for event in finisher.events]


def test_students_at_the_noise_floor_are_denoised():
    """Until three of them agree on the widths."""
    ensemble, events = complete([1e-4] * 6, denoised=[(2,), (3,), (3,), (3,), (2,)])
    assert events == ["denoise"] * 4
    assert list(ensemble.voters(3)) == [0, 1, 2, 3]
    assert [network.widths for network in ensemble.voters(3).values()] == [(2,), (3,), (3,), (3,)]
    assert ensemble.width_agreement(make_network((3,))) == (3, 4)
    assert ensemble.width_agreement(make_network((4,))) == (0, 4)


def test_denoised_students_that_disagree_may_be_no_noise():
    sizes = [(2,), (3,), (2,), (3,), (4,)]
    assert complete([1e-4] * 5, denoised=sizes)[1] == ["denoise"] * 5 + ["finish"] * 3
    ensemble, events = complete([1e-4] * 5, certified=[(8,)], denoised=sizes)
    assert events == ["denoise"] * 5 + ["finish"]
    assert list(ensemble.certified) == [0]
    assert list(ensemble.voters(3)) == [0, 1, 2]


def test_students_above_the_noise_floor_are_finished_before_they_are_denoised():
    ensemble, events = complete([1e-4, 1e-5, 1e-6, 0.1], denoised=[(2,), (3,), (2,)])
    assert events == ["finish"] * 3 + ["denoise"] * 3
    assert list(ensemble.finished) == [2, 1, 0]
    assert list(ensemble.denoised) == [2, 1, 0]


def test_exact_students_are_never_denoised():
    assert complete([1e-21, 1e-5, 1e-4])[1] == ["finish"] * 3


@pytest.mark.parametrize(("held_out_loss", "is_exact"), [(0.9e-6, True), (1.1e-6, False)])
def test_students_that_are_exact_on_the_training_rows_alone_are_denoised(held_out_loss, is_exact):
    finisher = FakeFinisher(denoised=[(2,)] * 3)
    ensemble = Ensemble(make_students((8,), [1e-21, 1e-5, 1e-4], held_out_loss), TOL)
    ensemble.complete(finisher)
    expected = ["finish"] * 3 + ["denoise"] * (0 if is_exact else 3)
    assert [event[0] for event in finisher.events] == expected


@pytest.mark.parametrize(("held_out_loss", "n_finished"), [(0.09, 3), (0.11, 0)])
def test_students_that_explain_no_held_out_rows_are_not_finished(held_out_loss, n_finished):
    finisher = FakeFinisher(denoised=[(2,)] * 3)
    ensemble = Ensemble(make_students((8,), [1e-3, 1e-5, 1e-4], held_out_loss), TOL)
    ensemble.complete(finisher)
    expected = ["finish"] * n_finished + ["denoise"] * 3
    assert [event[0] for event in finisher.events] == expected


def test_students_that_stop_at_the_rounding_of_the_targets_are_no_noise():
    students = make_students((8,), [1e-8] * 6)
    for rounding_loss, expected in ((1e-7, ["finish"] * 3), (1e-9, ["denoise"] * 3)):
        finisher = FakeFinisher(denoised=[(2,)] * 3, rounding_loss=rounding_loss)
        Ensemble(students, max(TOL, rounding_loss)).complete(finisher)
        assert [event[0] for event in finisher.events] == expected


@pytest.mark.parametrize("certified", [[(8,)], []])
def test_the_first_conclusive_network_ends_the_finishing(certified):
    """No further students are pruned to confirm it; none is finished again."""
    losses = [1e-4, 1e-5, 1e-21, 1e-4, 1e-3]
    ensemble, events = complete(losses, certified, is_conclusive=True)
    assert events == ["finish"]
    kept = ensemble.certified if certified else ensemble.finished
    assert list(ensemble.conclusive_networks) == list(kept) == [2]
    assert ensemble.width_agreement(make_network((8,))) == (1, 1)
    ensemble.is_complete = False
    finisher = FakeFinisher()
    ensemble.complete(finisher)
    assert not finisher.events


def test_students_as_good_as_each_other_are_no_noise_beside_a_conclusive_network():
    """Those of a warm-up alone often are."""
    finisher = FakeFinisher()
    network = make_network((3,))
    candidate = FakeFinisher(is_conclusive=True)._candidate(network, passed=False)
    ensemble = Ensemble(make_students((8,), [1e-4] * 6), TOL, clustered=Clustered([], candidate))
    ensemble.complete(finisher)
    assert not finisher.events


@pytest.mark.parametrize(
    ("losses", "voters"),
    [
        ([1e-4, 1e-5, 1e-21, 1e-4, 1e-3], [0, 1, 2]),  # the better half
        ([1e-21, 1e-22, 1e-4, 1e-21, 1e-3, 1e-3, 1e-3, 1e-3], [0, 1, 3]),  # the converged ones
        ([1e-3] * 7 + [1e-2], [0, 1, 2, 3]),
        ([1e-5], [0]),
    ],
)
def test_voters_are_students_as_trained_but_the_one_that_gave_the_network(losses, voters):
    """The pruned one votes even where it is not in the better half."""
    ensemble = Ensemble(make_students((8,), losses), TOL)
    assert list(ensemble.voters(3)) == voters
    finisher = FakeFinisher(certified=[(8,)])
    last = len(losses) - 1
    ensemble.certified[last] = finisher._candidate(make_network((3,)), passed=True)
    with_network = ensemble.voters(3)
    assert list(with_network) == sorted({*voters, last})
    widths = {student: network.widths for student, network in with_network.items()}
    assert widths.pop(last) == (3,)
    assert set(widths.values()) <= {(8,)}


def test_nothing_is_pruned_where_it_is_not_wanted():
    ensemble, events = complete([1e-4] * 5, prune=False)
    assert not events
    assert list(ensemble.voters(3)) == [0, 1, 2]


def test_joined_students_keep_their_certificates():
    finisher = FakeFinisher(certified=[(8,)])
    first = Ensemble(make_students((8,), [1.0, 1e-5]), TOL)
    first.seek(finisher)
    second = Ensemble(make_students((8,), [1e-6, 1.0]), TOL)
    second.seek(finisher)
    both = first.joined(second)
    assert list(both.certified) == [1, 2]
    assert both.students.losses.tolist() == [1.0, 1e-5, 1e-6, 1.0]


def test_joined_students_keep_the_networks_that_were_refused():
    ensembles = [Ensemble(make_students((8,), losses), TOL) for losses in ([1, 1e-5], [1e-6, 1])]
    for ensemble, widths in zip(ensembles, [(3,), (4,)], strict=True):
        ensemble.seek(FakeFinisher(refused={("tanh", (8,)): widths}))
    both = ensembles[0].joined(ensembles[1])
    widths = {student: c.network.widths for student, c in both.finished.items()}
    assert widths == {1: (3,), 2: (4,)}
    assert not both.certified
    assert not both.conclusive_networks


def finish_probe(shape, error):
    """Finish a probe that pruning leaves at an error, and at its own widths."""
    script = Script({shape: 1e-7 if len(shape) > 1 else 1e-10}, n_students=20)
    script.search.finishers["tanh"].error = error
    trial = script.search.trainer.new_trial("tanh", shape, N_PROBES, PROBE)
    script.search._finish(trial)
    return script, trial


@pytest.mark.parametrize(("assumed", "is_right"), [(8, True), (7, False)])
def test_shallow_networks_wider_than_assumed_may_stand_for_deep_ones(assumed, is_right):
    script, trial = finish_probe((8,), 1e-6)
    trial.widths = (assumed,)
    assert trial.has_right_shape == is_right


def test_a_probe_that_nearly_fits_is_trained_to_the_end_at_once():
    """Before larger shapes are probed."""
    script, _ = finish_probe((4, 4), 1e-6)
    kinds = [event[4] for event in script.events if event[0] == "train"]
    assert kinds[0] == PROBE
    are_random = [k.start.network is None and not k.start.collapsed for k in kinds[1:]]
    assert are_random == [False, False, *([True] * len(BRIEF)), True]
    assert [k.max_iter for k in kinds[3:]] == [*BRIEF, None]


def test_deep_students_keep_as_many_layers_of_a_corner_as_possible_first():
    script, trial = finish_probe((4, 4, 4), 1e-6)
    corner = trial.ensemble.best_candidate.network
    *expanded, grown = script.search.trainer._growths(trial, corner, 1e-7)
    assert [len(round.start.collapsed) for round in expanded] == [2, 1]
    for round in expanded:
        for kept, layer in zip(round.start.collapsed, corner.layers, strict=False):
            assert kept is layer
    assert grown.start.network is corner
    (far,) = script.search.trainer._growths(trial, corner, 1e-3)
    assert far.start.network is corner


@pytest.mark.parametrize(("widths", "grows"), [((4, 4), True), ((4, 3), False), ((4, 5), False)])
def test_students_expand_above_an_exact_network_that_is_refused_and_too_wide(widths, grows):
    """The lower layers of it are right; the last may hold a neuron that is a linear function.

    It is no wider than the students, which have four neurons in each layer here.
    """
    script, trial = finish_probe((4, 4), 1e-6)
    finisher = script.search.finishers["tanh"]
    finisher.error, trial.widths = 1e-16, (4, 3)
    refused = finisher._candidate(make_network(widths), passed=False, fits_exactly=True)
    trial.ensemble.attempt = refused
    network, loss = trial.start_of_growth
    if not grows:
        assert (network, loss) == (None, np.inf)
        return
    assert (network, loss) == (refused.network, 0.0)
    (expanded,) = script.search.trainer._growths(trial, network, loss)
    assert [len(layer) for layer in expanded.start.collapsed] == [4]


@pytest.mark.parametrize("widths", [(3,), (7,)])
def test_students_grow_from_a_corner_with_one_neuron_to_spare(widths):
    """Near zero; far from it, or where they are large, from the corner itself."""
    script, trial = finish_probe((8,), 1e-6)
    trial.widths, corner, trainer = (4,), make_network(widths), script.search.trainer
    (near,) = trainer._growths(trial, corner, 1e-7)
    assert near.start.network.widths == (min(*widths, 4 + DEFAULTS.search.n_spare),)
    assert near.max_iter == DEFAULTS.search.expansion_steps
    (far,) = trainer._growths(trial, corner, 1e-3)
    trainer.are_large = lambda finisher, shape: True
    (large,) = trainer._growths(trial, corner, 1e-7)
    assert far.start.network is corner
    assert large.start.network is corner
    assert (far.max_iter, large.max_iter) == (BRIEF[0], 0)


@pytest.mark.parametrize("first", [0, -1])
def test_several_students_that_grow_from_a_corner_are_finished(first):
    script, trial = finish_probe((4, 4), 1e-6)
    corner = trial.ensemble.best_candidate.network
    round = list(script.search.trainer._growths(trial, corner, 1e-7))[first]
    script.events.clear()
    script.search.trainer._grow_once(trial, round, 20, enough=0.0)
    finished = [event for event in script.events if event[0] == "finish"]
    assert len(finished) == DEFAULTS.search.n_expanded_finished


@pytest.mark.parametrize(("activation", "best"), [("gelu", "relu"), ("tanh", "tanh")])
def test_relu_students_grow_from_sharp_neurons_that_nearly_fit(activation, best):
    script = Script({(activation, (4, 4)): 1e-7}, (activation, "relu"))
    script.search.finishers[activation].error = 1e-6  # of the network that pruning leaves
    train = script.search.trainer.train

    def train_and_certify(finisher, widths, n_students, round):
        ensemble = train(finisher, widths, n_students, round)
        if finisher.name == "relu" and round.start.network is not None:
            ensemble.certified[0] = finisher._candidate(make_network((4, 3)), passed=True)
        return ensemble

    script.search.trainer.train = train_and_certify
    trial = script.search.run_given((4, 4))
    assert (trial.activation, trial.certified) == (best, best == "relu")
    assert bool(script.trained_to_the_end) == (best == "tanh")


def test_warm_ups_go_on_as_long_as_students_share_more(monkeypatch):
    counts = iter([3, 5, 5])
    monkeypatch.setattr(
        Ensemble,
        "cluster",
        lambda *arguments: ClusteredLayers(collapsed=[np.ones((next(counts, 0), 2))]),
    )
    script = Script({(9, 9): 1e-5})
    script.search.trainer.n_parameters = lambda widths: 1001
    script.search.run_given((9, 9))
    rounds = [event[4] for event in script.events if event[0] == "train"]
    assert [r.max_iter for r in rounds[:4]] == [0, 0, 0, BRIEF[0]]
    assert [sum(map(len, r.start.shared)) for r in rounds[:4]] == [0, 3, 5, 5]


def test_large_shallow_students_are_few_and_grow_without_steps(monkeypatch):
    """They are warmed up in rounds, at falling rates; what they lack is learned in a warm-up."""
    counts = iter([3, 5, 5])
    monkeypatch.setattr(
        Ensemble, "seek_in_clusters", lambda *arguments: [np.ones((next(counts, 0), 2))]
    )
    script = Script({(9,): 1e-5})
    script.search.trainer.n_parameters = lambda widths: 10_000
    script.search.trainer.are_large = lambda finisher, shape: True
    polisher = script.search.finishers["tanh"].polisher
    polisher.has_weak_inputs, polisher.trains_along_few = True, lambda width: False
    trial = script.search.run_given((9,))
    settings = DEFAULTS.search
    rounds = [event[4] for event in script.events if event[0] == "train"]
    assert script.rounds == [*[(0, settings.n_large)] * 3, (None, 20)]
    assert [r.start.rate for r in rounds] == [1.0, settings.cooling, settings.cooling**2, 1.0]
    growth = script.search.trainer.growth(trial, make_network((4,)))
    assert growth == replace(Round(0), start=growth.start)
    assert script.search.trainer.n_students_of("tanh", (9,), growth) == settings.n_large_grown
    polisher.trains_along_few = lambda width: True
    assert script.search.trainer.n_students_of("tanh", (9,), growth) == 1


@pytest.mark.parametrize(("second", "agree"), [((3,), True), ((4,), False)])
def test_two_exact_networks_of_the_same_widths_end_the_training(second, agree):
    """The rows leave the rest open: further students would be refused as these were."""
    script = Script({(5,): 1e-8})
    finisher = script.search.finishers["tanh"]
    ensemble = Ensemble(make_students((5,), [1e-8, 1e-7, 1e-6]), TOL)
    for student, widths in enumerate([(3,), second]):
        candidate = finisher._candidate(make_network(widths), passed=False, fits_exactly=True)
        ensemble.finished[student] = candidate
    assert ensemble.agree_exactly == agree
    trial = Trial("tanh", (5,), finisher, ensemble, 0.0)
    assert trial.exact_size
    script.search.trainer.train_to_the_end(trial)
    assert bool(script.rounds) != agree


@pytest.mark.parametrize(("widths", "agree"), [((3,), True), ((4,), False)])
def test_clusters_and_a_student_agree_as_two_students_do(widths, agree):
    made = [
        FakeFinisher()._candidate(make_network(w), passed=False, fits_exactly=True)
        for w in ((3,), widths)
    ]
    students = make_students((5,), [1e-8, 1e-7, 1e-6])
    ensemble = Ensemble(students, TOL, clustered=Clustered([], made[0]), finished={0: made[1]})
    assert ensemble.agree_exactly == agree
