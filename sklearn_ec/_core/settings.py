"""Every tuning constant of the method, with its unit and the measurement behind it.

One frozen record for each step. :class:`Settings` holds them all and is passed to what computes,
so that ``replace(settings, prune=replace(settings.prune, polish_steps=60))`` changes one of them.
They are part of the keys under which results are stored. *Relative loss* means the mean squared
error in units of the targets' variance; *steps* are steps of Levenberg.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Preparation:
    """Standardized coordinates, and the rows that are kept out of training."""

    held_out_share: float = 0.1  # of the rows
    max_held_out: int = 1000  # rows
    # Where the leverage of a row is further from the mean than this share of the way to one,
    # hardly another row tells as much about some direction, such as a pixel that is lit in few
    # images. These rows are never held out.
    high_leverage: float = 0.2
    # Largest entry of a column of X in units of its scale. A pixel that is lit in one row of
    # thousands is many standard deviations away from its mean: there every random neuron would be
    # saturated.
    max_deviation: float = 6.0
    # Targets whose rounding is a larger relative loss, such as labels, say nothing about a network.
    max_rounding_loss: float = 1e-3


@dataclass(frozen=True)
class Blocks:
    """How passes over the rows are cut, so that temporary arrays stay near the caches."""

    # Blocks of the Gram matrix narrower than this many columns cost more overhead than symmetry
    # saves.
    min_gram_columns: int = 64
    elements_on_cpu: int = 3_000_000  # of the largest temporary array
    elements_on_cuda: int = 128_000_000
    min_rows: int = 256
    # Activations of all rows up to so many are kept within a step, larger ones computed again.
    kept_elements: int = 1_000_000


@dataclass(frozen=True)
class Damping:
    """The damping of Levenberg steps, and when rounding ends a descent."""

    start: float = 1e-2
    floor: float = 1e-16
    ceiling: float = 1e8
    # The gain ratio compares the decrease with what the quadratic model promised (Nocedal and
    # Wright, 2006, Section 4.1). Other thresholds and factors were not measured.
    bold_gain: float = 0.5
    timid_gain: float = 0.25
    decrease: float = 3.0  # factor after a bold step
    increase: float = 4.0  # factor after a timid or a rejected step
    max_retries: int = 4
    # A step is rejected where the second-order correction is longer than this share of it: there
    # the expansion along the step has broken down (Transtrum and Sethna, 2012: 0.75 / 2).
    max_correction: float = 0.375
    # Below this relative loss a rejected step, or one with less than the second number as its
    # damping that does not halve the loss, means that rounding stops the descent.
    rounding_loss: float = 1e-24
    rounding_damping: float = 1e-10


@dataclass(frozen=True)
class ConjugateGradients:
    """Solves of matrix-free steps."""

    # A solve ends once the residual, as the preconditioner measures it, is below this share of the
    # gradient, or after so many iterations. Of 65 tanh neurons, 64 of them those of a 784-64-10
    # network, 14 steps on 28,203 MNIST images come from 1e-5 to 7e-8 in 210 s with 0.3.
    relative_residual: float = 0.03
    max_iterations: int = 100
    # Nor does it end before so many iterations added less than a share of what the step is to gain
    # by its quadratic model: of 64 ReLU neurons of such a network, a solve was over after one.
    tail: int = 5
    tail_share: float = 0.01
    # Steps that the blocks of the preconditioner serve; a divisor of the steps of an epoch, so that
    # a training that is continued between two epochs goes on as if it had not been interrupted.
    block_steps: int = 10
    # Rows for each feature that a neuron reads, from which these blocks are taken; None for all.
    # Where few rows tell about some directions, all are needed: a solve for those 65 neurons takes
    # 10 products to 93 % of what it can gain with the blocks of 28,203 rows, 300 with those of
    # 12,560 at equal distances; eight steps come to 7e-11 in 81 s.
    block_rows: int | None = None
    # Whether the preconditioner is made of one matrix for the features that all neurons of a layer
    # read, and one for the neurons; else each neuron has a block of its own.
    shares_features: bool = False
    block_rcond: float = 1e-15  # least damping of a block, relative to its largest diagonal element
    # How far correlations of neurons are drawn towards zero: what they say of whole blocks holds
    # about. With the coarse space, 0.02 takes up to half as many products as 0.1 with Gaussian
    # inputs, and more on MNIST with little damping; 0.3 takes half as many again with the former.
    correlation_shrinkage: float = 0.1
    # The coarse space is used where it has so many parameters at most: factors of more take longer
    # than the products that they spare. So many rows for each of them tell its equations, whose
    # damping is at least a share of the largest diagonal element: they lose what is below it.
    max_coarse: int = 2500
    coarse_rows: int = 4
    coarse_rcond: float = 1e-13
    # Products lose less than JᵀJ itself: less damping, and a lower relative loss, before rounding
    # counts.
    damping_floor: float = 1e-24
    single_damping_floor: float = 1e-24
    rounding_loss: float = 1e-26
    # Factor after a timid or a rejected step, which costs a solve. With 4, 33 ReLU neurons with
    # skip terms, 32 of them of a 784-32-1 network, come from 4e-7 to 5e-12 in 70 s, and crawl; to
    # 5e-26 in 110 s with 10.
    damping_increase: float = 10.0
    # The damping of the first step is the loss squared, and at least this share of the loss. For
    # those 65 neurons, steps are first accepted at 0.1.
    least_share: float = 0.03
    typical_products: int = 20  # with JᵀJ in a step, for the prediction of its cost


@dataclass(frozen=True)
class WellPosedSolves(ConjugateGradients):
    """Solves of polishes where inputs vary in all directions.

    MNIST takes less damping: with this much, eight ``g`` neurons on 10,000 images were not found in
    students after their warm-up.
    """

    # From 6e-6, the 32 tanh neurons of a 784-32-1 network come to 3e-11 in six steps with 0.3, in
    # 19 s; to 6e-18 in 24 s with 0.1, to 7e-24 in 29 s with 0.03. Few products are cheap next to
    # the rest of a step.
    relative_residual: float = 0.1
    block_rows: int | None = 16
    # Eight steps of 33 ReLU neurons, 32 of them of a 784-32-1 network, come from 1e-5 to 1e-7 with
    # it, to 1e-6 with the loss itself.
    least_share: float = 1e-4
    # Of polishes that end unless they go ahead fast: neurons are missing there, or to spare. Five
    # steps of 48 tanh neurons, 27 of them of that network, come from 2e-4 to 1.3e-5 in 122 s with
    # 100, to 1.6e-5 in 43 s with 10.
    hasty_iterations: int = 60
    # Products in single precision are no longer positive definite with too little damping, and
    # solves break down after a product or two: 33 ReLU neurons, 32 of them of a 784-32-1 network,
    # came from 5e-8 to 3e-14 in 41 s without a floor; to 4e-25 in 31 s with it.
    single_damping_floor: float = 2e-9


@dataclass(frozen=True)
class EvenSolves(WellPosedSolves):
    """Solves of polishes where inputs vary about as much in all directions.

    On the digits, 16 tanh neurons are found in 61 s with blocks of single neurons, in 96 s with
    this.
    """

    # From 1.5e-4, 32 ReLU neurons of a 784-32-1 network come to 5e-29 in seven steps and 96
    # products, in 37 s; with blocks of single neurons and the coarse space to 2e-18 in nine steps
    # and 716 products, in 172 s (84,000 rows, one thread beside another program).
    shares_features: bool = True
    block_rows: int | None = 64
    # Of 44 ``g`` neurons, 32 of them of that network, a step from 5e-7 takes 24 products with the
    # coarse space, 75 without; below 1e-6 single precision would be lost in its equations.
    coarse_rcond: float = 1e-6
    single_damping_floor: float = 1e-24


@dataclass(frozen=True)
class WarmUp:
    """Adam in single precision, before Levenberg."""

    minibatch: int = 256  # rows, at least
    # Of all rows, in a minibatch. Of 32 ReLU neurons on 784 inputs, a student of 48 holds 27 after
    # 12,000 steps of 500 of 500,000 rows, at a loss of 1e-4.
    minibatch_share: float = 1e-3
    learning_rate: float = 1e-2  # at the start; a cosine down to a hundredth
    # A step changes all weights of a neuron by about the rate, its pre-activation by that times the
    # number of inputs. Where there are more than this, over the rate, both the rate and the time go
    # by their inverse. Of students of 128 neurons on 59,000 MNIST images of 784-64-10 networks,
    # after 100,000 steps, those of ReLU and tanh stand at 2e-4 with 1e-2, at 1e-6 and 2e-7 with
    # 2e-3, and hold 63 and 64 of the 64 neurons.
    rate_per_inputs: float = 1.4
    least_rate_share: float = 0.01
    steps_per_epoch: int = 100  # of Adam: callbacks and history of skorch then cost nothing
    # A start of so many steps, about two seconds, raises the share of students that Levenberg
    # brings to zero: with it, 18 of 20 (4 neurons of g, rho 4).
    steps: int = 1000
    large_steps: int = 12_000  # of students for which dense Levenberg steps cost too much
    # Students of more parameters take more steps, by a power of their number, as Levenberg steps
    # cost more, and are asked by their clusters before. Of ReLU students 10-20-20-1, the best of
    # ten came to 2e-2 with 1,000 steps and to 2e-6 with 16,000, in 14 s; the clusters held the
    # first layer of the network, 10-10-10-1. Of students 32-32-1, with 4,000 steps, in 5 s, those
    # of ReLU held all eight neurons, those of ``g`` six; 30 Levenberg steps take 28 s. The best
    # student, pruned, gives the network of any of seven activations after 2,700 steps, in 9 s.
    few_parameters: int = 400
    most_steps: int = 16_000  # of students that are not large
    power: float = 1.0  # with one hidden layer
    deep_power: float = 3.0


@dataclass(frozen=True)
class Stages(WarmUp):
    """The warm-up of a large student whose inputs vary in all directions.

    It is trained along few of them with the usual rates, then in all of them as said here, and so
    on. On one thread, beside another program, students of 48 neurons on 784 inputs come to hold all
    32 of ReLU in 69 s, 27 of ``g`` in 70 s and 27 of tanh in 109 s; in all directions from the
    start, 12,000 steps leave 5e-2 with tanh, and none of its neurons.
    """

    # After 12,000 steps of 1200 of 300,000 rows, those 48 stand at 2.8e-2 with the usual rate, at
    # 5.8e-3 with 3e-3.
    minibatch_share: float = 4e-3
    learning_rate: float = 1e-3
    steps: int = 3000
    # As a share of the neurons, and steps along them: of 128 ReLU neurons, students of 192 hold 78
    # after 10,000 steps, 99 after 24,000, along directions of much the same student.
    directions: float = 0.67
    steps_along: int = 24_000
    # A student that learns no more anew gets so many new neurons, as a share of its width, which
    # learn its residual; then all are trained at so much of the rate.
    growth: float = 0.33
    further_rate: float = 0.3
    progress: float = 0.6  # they end where a stage leaves more than this share of the loss ...
    enough: float = 3e-7  # ... or less than this relative loss: then steps of Levenberg do better
    # Rows for each neuron that tell which ones make a compact network at the end.
    compact_rows: int = 100


@dataclass(frozen=True)
class Training:
    """Levenberg on all students, and when it ends."""

    steps_per_epoch: int = 10  # of Levenberg
    # Training has stalled when no student improved on the held-out rows for so many epochs, by the
    # second number.
    patience_epochs: int = 5
    least_improvement: float = 0.01
    converged_share: float = 0.6  # of the students: stragglers cost most of the time
    # Students are trained together as long as one epoch takes so many floating-point operations at
    # most; at least so many at a time. Large students gain nothing from it.
    batch_flops_on_cpu: float = 1e12
    batch_flops_on_cuda: float = 3e13
    min_batch: int = 4
    # Clusters are asked for the network after so many epochs, then after more by a factor each
    # time; the best student is pruned after so many at the earliest, but at once where it is large:
    # such epochs cost more than pruning.
    first_question_epoch: int = 1
    question_factor: int = 3
    large_question_factor: int = 2
    first_pruning_epoch: int = 3
    # Networks of more inputs have no skip terms: with many inputs it is the linear map that tells
    # the neurons apart which are active nearly everywhere, and skip terms would absorb it.
    max_skip_inputs: int = 100
    # Floating-point operations of a step up to which the normal equations are formed. Solves
    # without them are quicker in one hidden layer, whose neurons the preconditioner couples: with
    # 1e11, MLPRegressors of 16 neurons on the digits take 61 s instead of 29; with 1e10 in depth,
    # ReLU 10-20-20-1 takes 58 s instead of 43.
    dense_flops: float = 1e10
    deep_dense_flops: float = 1e11
    free_memory_share: float = 0.8  # of a device's free memory, that training may take

    def most_dense_flops(self, n_hidden_layers: int) -> float:
        """Operations of a step up to which the normal equations are formed."""
        return self.dense_flops if n_hidden_layers == 1 else self.deep_dense_flops


@dataclass(frozen=True)
class Compacting:
    """The few neurons of a large student that do nearly as well."""

    # They may have this many times its loss, or a relative loss that is as good as rounding next to
    # those of short training.
    factor: float = 3.0
    floor: float = 1e-16
    ridge: float = 1e-10  # on the Gram matrix of the normalized features, for repeated neurons


@dataclass(frozen=True)
class Polish:
    """Levenberg on a single network."""

    start_damping: float = 1e-3
    window: int = 20  # steps after which progress is judged
    large_window: int = 5  # of large networks, whose steps take seconds
    # With the right neurons, and inputs that vary in all directions, a window of so many steps
    # leaves no more than this share of the loss: 784-32-1 ReLU comes from 5e-5 to 8e-8 in four
    # steps, and without one of its neurons from 7e-5 to 2e-5 in five.
    hasty_window: int = 2
    hasty_progress: float = 0.4
    # Products in single precision, three times as fast, as long as a window leaves less than this
    # share of the loss.
    single_progress: float = 0.3
    # A step of a large network that promises to take away less than this share of the loss is the
    # last one before its progress is judged: it is at a minimum, as far as its solves can tell.
    least_promise: float = 1e-3
    progress: float = 0.99  # a polish has stalled when a window leaves more of the loss
    # Large networks below the first relative loss have the right neurons. What is left may be
    # spread over directions that few rows tell about, where cheap steps crawl: on 10,000 MNIST
    # images, eight ``g`` neurons stand at 7e-26, and come to 4e-29 with two nearly exact ones.
    # Others do not stall, and those would hold them up: 8 tanh neurons come to 1e-26 with cheap
    # ones. So the steps change when a window above the second relative loss leaves more than the
    # given share of it. With 0.5, 24 and 32 tanh neurons on the digits took no less time: exact
    # steps come while there are still neurons to spare.
    final_loss: float = 1e-12
    finished_loss: float = 1e-20
    final_progress: float = 0.8
    # Exact steps have dense equations up to so many floating-point operations, else nearly exact
    # solves. 93 tanh neurons, 24 of them of an MLPRegressor on the digits (1e11 operations), took
    # 113 s with the former, more than 190 s with the latter. Of the eight on MNIST (6e11), a dense
    # step takes 14 s and gets nowhere.
    final_dense_flops: float = 3e11
    final_residual: float = 0.01
    max_final_iterations: int = 1000
    # Parameters up to which there are such solves. Of a 784-64-10 network of tanh neurons, on
    # 13,900 MNIST images at 4e-13, five steps were not over after ten minutes.
    most_nearly_exact: int = 10_000
    max_refinements: int = 10  # Gauss-Newton steps without damping
    # Large students lose weight in directions of less variance than this, apart from rows of high
    # leverage.
    shrinkage: float = 1e-3
    even_variance: float = 0.1  # least one of inputs that vary about as much in all directions
    covariance_rows: int = 32  # for each input, at least, that tell which directions these are


@dataclass(frozen=True)
class Prune:
    """Removal of neurons on data without noise, and what leads out of a corner."""

    polish_steps: int = 300  # of a network that has lost its spare neurons
    # After a removal. In fits of 89 networks of one layer and 12 deep ones that pruning gave, no
    # removal that stood took more; others went on for hundreds of steps, minutes where steps are
    # long, and most where no network made the data.
    removal_steps: int = 100
    # Of all removals together: those fits took 20 for each neuron of the student at most, and up to
    # 350 from students of few neurons.
    path_steps: int = 200
    path_steps_per_neuron: int = 20
    large_progress: float = 0.97
    # Of these, a removal is tried where it costs at most this many times the loss, before a polish.
    large_factor: float = 1000.0
    # An exact network owes nothing to its spare neurons: one whose removal raises the relative loss
    # by more than this is none, and its removal is not tried where steps take long. Elsewhere it
    # is: without such removals in corners, two of three ReLU networks 6-5-4-3-1 take 8 times as
    # long.
    spare_cost: float = 1e-4
    cap_factor: float = 10.0  # a removal stands up to this factor above the lowest loss so far
    cap_floor: float = 1e-24  # relative losses below this are rounding, equally good
    # Neurons are clearly to spare where their removal raises the loss, before a polish, by no more
    # than this many times what it is; or by the second number, unless the network is exact. Of 38
    # neurons of layer 2 of a 27-25-25-1 network (loss 1e-9), the 13 to spare raise it by 1e-8 each
    # at most, the cheapest of the network by 1e-5.
    cheap_factor: float = 100.0
    cheap_cost: float = 1e-6
    # Of networks near zero whose steps or certificates take long. Where neurons could cost no more
    # than the loss, 24 tanh neurons of an MLPRegressor on the digits took 81 s, with 13 to spare at
    # 3e-15; 39 s with this.
    large_cheap_cost: float = 1e-8
    # Large networks lose the neurons that cost this share of the loss together before they are
    # polished, and others where the polished loss is no higher than before: with a limit above,
    # neurons went that had just learned two thirds of a residual.
    spare_share: float = 0.25
    # Above this relative loss removals may cost a share of that, or students lose whole layers: of
    # ReLU networks 6-5-4-3-1, the slowest took 73 s without, 38 s with it. Everywhere, ``g``
    # networks 6-5-4-3-1 took up to 338 s instead of 53.
    far_loss: float = 1e-4
    far_share: float = 0.2
    # The polish to the end, where no neuron is clearly to spare, is given up where a window leaves
    # more than this share of the loss: with spare neurons it crawls, without it takes a few steps.
    final_progress: float = 0.05
    # The same for large networks, whose windows are short. Of 33 ReLU neurons, 32 of a 784-32-1
    # network, one that looked cheap went after such a polish had left 0.23; it was none to spare.
    large_final_progress: float = 0.8
    # Large ones are asked for spare neurons again once this share of the loss is left. Of 33 ReLU
    # neurons, one of them to spare, at 1e-7, its removal costs 4 times the loss at 2e-9, half of it
    # at 1e-11, after 35 s; polished on, they took 200 s to 5e-30.
    large_part: float = 1e-5
    # Out of a corner: the last network of the path with more than this many times the neurons is
    # polished, and pruned again if that leaves this share of the loss.
    retrace_width: float = 2.0
    retrace_share: float = 0.1
    single_tries: int = 3  # single removals tried before a width is accepted as the smallest
    # Least weight of a row for a neuron that reads what is removed, as a share of its mean weight.
    # Five ReLU neurons, one of which only kept another off, and three above them: its removal
    # costs 6e-5 with this, 2e-3 where all rows count alike, and those of others 1e-3 and 3e-3.
    least_row_weight: float = 1e-2
    exact_loss: float = 1e-18  # a pruned network below this relative loss is in no corner
    # Variances below which settling takes weight away from a large network, one attempt after the
    # other, and the largest share of the loss that it may leave after so many steps.
    settling: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    settling_steps: int = 300
    settling_progress: float = 0.5


@dataclass(frozen=True)
class Imitators:
    """Neurons that imitate one neuron together, and the one that takes their place."""

    max_angle: float = 0.03  # between parallel outgoing weight vectors, in radians
    # A set imitates another neuron where the strongest of it leaves more than this share of the
    # variance of their joint contribution. Copies and traces of the right neuron are left to
    # pruning, which needs less time: for networks of 8 tanh neurons on MNIST, 160 s less.
    max_unexplained: float = 0.01
    # The joint neuron is fitted from so many starts, the strongest neurons, until one leaves no
    # more. A fit ends when a window leaves more than half of the error, or a relative loss of this.
    n_starts: int = 3
    fit_steps: int = 60
    fit_progress: float = 0.5
    fit_loss: float = 1e-5
    # Neurons are copies up to this angle between incoming vectors, in radians, where one for all of
    # them does not raise the loss by more than the factor. Of 38 tanh neurons, 32 of them those of
    # a 784-32-1 network, at 9e-8, the six others are copies (cosines of 0.998). Without them the
    # loss is 64 times that; then ten steps come to 7e-24 in 30 s, before six to 5e-10 in a minute.
    copy_angle: float = 0.25
    # Neurons that imitate a nearly linear one cost this many times the loss together, at most,
    # once there are skip terms: with 1, six of 20 stay.
    linear_factor: float = 10.0
    # Share of the rows in which a neuron for a linear map is off, so that its kink may move.
    kink_share: float = 2e-3
    copy_factor: float = 100.0


@dataclass(frozen=True)
class WrongKinks:
    """Kinks of large networks that lie on the wrong side of a few rows."""

    # Rows stand out with this many times the mean loss, where they have this share of the loss
    # together. Of a 784-64-10 network at 1e-8, on 59,000 MNIST images, 36 do, with 80 %. With three
    # times, 607 do, and what they alone determine is lost without them.
    factor: float = 100.0
    least_share: float = 0.3
    # Neurons that explain this share of the residual of a row cross it. Of those 36, the ten of the
    # largest residuals have one, for which it is 0.91 to 1.00, and it is the right one.
    least_explained: float = 0.9
    damping: float = 1e-10  # of a neuron's changes, relative to the mean over the features
    rcond: float = 1e-8  # of the moves of one neuron in several rows
    progress: float = 0.3  # the largest share of the loss that a window or a round may leave


@dataclass(frozen=True)
class Noise:
    """The smallest network that fits noisy data about as well."""

    # Polishing goes on while a window leaves less than this share of the loss. Networks of the
    # right neurons get to the minimum within a few dozen steps; those with spare neurons fit the
    # noise better and better for thousands.
    polish_steps: int = 200
    progress: float = 0.999
    path_steps: float = math.inf  # of all removals together
    final_progress: float = 0.99999  # of the network that is chosen
    floor: float = 1e-24  # relative losses below this are rounding, equally good
    # The better half of students at a noise floor have losses within this factor of each other:
    # 1.23 at most in 17 noisy tables, 1.34 at least in tables that no small network made.
    floor_spread: float = 1.25
    # Their last steps left more than this share of the loss: approximations still get better.
    floor_progress: float = 0.5
    # Their errors on held-out rows are this many times those on training rows, at most, once these
    # are corrected for the number of parameters.
    max_optimism: float = 1.5
    # Students at one floor, and denoised ones of the same widths. As many are denoised where
    # neither noise nor an exact network ended their descent: five took half of the time of a fit to
    # tables that no small network made.
    n_agreeing: int = 3
    # Students that have stopped are at a noise floor where the neurons of several together leave
    # more than this share of the loss of the best one, on rows left out: 1.0 at least in 30 noisy
    # tables, 0.8 at most in 15 that no small network made.
    pooling_gain: float = 0.9


@dataclass(frozen=True)
class Approximation(Noise):
    """A small network for a table that none made: what it takes to fit it fairly well.

    The best students take a few steps together; the neurons of the best of those become one
    network, which is reduced to somewhat more than those of a student, polished and pruned.
    """

    n_students: int = 10
    first_steps: int = 30
    n_pooled: int = 5  # fewer where there are fewer rows for each neuron than this
    rows_per_neuron: int = 2
    max_growth: float = 1.5
    equations: float = 2.5  # per parameter, at least
    polish_steps: int = 100
    path_steps: float = 200
    progress: float = 0.98


@dataclass(frozen=True)
class Finish:
    """From a student to a candidate."""

    # Steps before the first removal, when steps are most expensive and do least.
    first_polish_steps: int = 20
    # Equations per parameter, on which networks are pruned where there are more.
    equations: float = 6.0
    large_equations: float = 3.0
    # Of large networks where few rows tell about some directions. With three, 64 tanh neurons on
    # MNIST came to 2e-14 on those rows, and stood at 1e-9 on all of them.
    weak_equations: float = 12.0
    # Large networks are pruned once their relative loss is below this, and not polished before:
    # steps cost less afterwards. While training goes on, large students above it are left alone.
    first_polish_loss: float = 1e-6
    # A large network of clusters is polished if its loss is at most this many times that of the
    # best student: where neurons are missing, polishing does not help. Of 64 neurons on MNIST, all
    # right within a cosine distance of 2e-3, the loss is up to 15 times that, and 100 times it
    # where one of them is missing.
    large_factor: float = 30.0
    better_share: float = 0.1  # of that loss, which is far enough
    # After a warm-up, large students below this loss are polished: without their spare neurons, 32
    # of 48 on 784 inputs, they come from 5e-5 to 8e-8 in four steps; 16 ``g`` neurons on MNIST, 8
    # of them of a network, from 2e-4 to 8e-7 in seven, and the network is found.
    large_polish_loss: float = 2e-3
    # Skip terms, in which neurons turn, go once this share of the loss is left: they slow steps.
    turning_share: float = 1e-3
    # Deep networks above this relative loss end with the signs that fit best, whatever that costs.
    hopeless_loss: float = 1e-10
    worthwhile_loss: float = 1e-2  # students above this relative loss are not worth finishing
    # Nor are those of which none is below this one on held-out rows: they fit the rows whatever
    # these are, and pruning them takes minutes.
    overfitted_loss: float = 0.1
    # Small students of one hidden layer show a network where one is below this relative loss on
    # held-out rows. After 30 steps, those of 89 networks (``rough``) whose pruning gave the network
    # were below 1e-8; those of 15 tables that no small network made, above 5e-6.
    network_loss: float = 1e-6
    refinement_loss: float = 1e-18  # below this, a network is refined to the last digit
    max_finished: int = 3  # students that are finished once training is over
    max_denoised: int = 5  # students at a noise floor, until some agree on the widths
    # Students of exact data get below this relative loss, or near their tolerance, on held-out
    # rows, too.
    max_held_out_loss: float = 1e-6


@dataclass(frozen=True)
class WeakDirections:
    """The weakest directions of large networks, by inverse iteration."""

    n_directions: int = 3
    rows_per_feature: int = 16  # for the incoming vectors of single neurons
    # Rounds, until one lowers the smallest singular value by less than the second number.
    max_rounds: int = 8
    accuracy: float = 0.05
    relative_residual: float = 1e-2  # of the solves by conjugate gradients
    max_iterations: int = 300
    damping: float = 1e-17
    least_value: float = 1e-7  # singular values below this one are not resolved
    # Products are in single precision, unless the weakest direction turns out to change the squared
    # outputs by less than this share of what its weights could; rounding does so by about 1e-7.
    least_single_share: float = 1e-4
    # Random targets that leverages are estimated from, and the residual of their solves: with 1e-2,
    # kinks pass that no row checks, since what explains these targets is a weak direction.
    probes_per_output: int = 8
    probe_residual: float = 1e-6
    max_probe_iterations: int = 1000


@dataclass(frozen=True)
class Verdict:
    """What a certificate demands."""

    # Relative root mean squared error that counts as rounding, in units of the rounding of exact
    # targets ...
    rounding_factor: float = 1000.0
    # ... and of the imitated rounding of coarser ones, which the true one is at most 1.4 times.
    imitation_factor: float = 1.5
    # That of decimals is known up to chance: in 324 networks the true one was at most this times
    # it, and more by at most ``chance / sqrt(n_samples)`` where rows are few.
    step_factor: float = 1.15
    chance: float = 2.0
    certainty: float = 4.0  # error along one singular direction, in units of the imitated one
    # Share of the variance of residuals that may depend smoothly on the inputs. The rounding of
    # float32 networks of a few neurons does so, up to a share of 0.33 in 576 of them (300 to 3000
    # rows).
    max_structure: float = 0.4
    # What no change of the weights explains, in units of the rounding of the outputs, unless it
    # does not depend on the inputs: 0.5 at most in 60 exact networks of random teachers, 55 and 84
    # where one neuron stands for two at a distance of about 1e-6.
    max_unexplained: float = 10.0
    min_equations_per_parameter: float = 2.0
    max_weight_error: float = 1e-3  # relative to a neuron's length
    max_rounded_weight_error: float = 3e-2  # where targets are rounded more coarsely than float64
    min_isolation: float = 10.0
    # With the typical error, a quarter of the one that is assumed, it is four times as large, twice
    # what the Newton-Kantorovich condition asks. A spare neuron has at most half of it.
    min_rounded_isolation: float = 1.0
    n_weak_directions: int = 10
    # Least redundancy of the rows of networks with kinks. Where targets are rounded, other kinks
    # need to meet the targets only about.
    min_redundancy: float = 1e-3
    min_rounded_redundancy: float = 0.1
    min_bend: float = 1e-9  # deviation of an activation from an affine function, per its spread
    min_angle: float = 1e-6  # between a neuron and the opposite of another one, in radians
    # Networks of more parameters are judged by their single neurons before their whole Jacobian.
    max_dense_parameters: int = 1000
    # Above so many, the Jacobian is not factorized: its weakest directions are looked for, on so
    # many equations per parameter.
    max_factorized_parameters: int = 8000
    equations: float = 4.0
    weak_directions: WeakDirections = field(default_factory=WeakDirections)


@dataclass(frozen=True)
class Clustering:
    """Which neurons are compared, and which clusters are kept."""

    min_voters: int = 3  # converged students; with fewer the better half of all students votes
    # Neurons above the first layer take part where the neurons kept below explain their
    # pre-activations up to this share of their standard deviation.
    max_unexplained: float = 0.05
    # Least ratio of the heights of the next and the last merge of a cluster of the local cut; and
    # where few rows tell about some directions: a neuron to spare is soon removed, one that is
    # missing costs a warm-up. Of three students on MNIST, the 64 tanh neurons of a network last for
    # 2.5 and more, with a loss of 8e-6 as one network; without the first of these, 1e-3.
    min_persistence: float = 3.0
    weak_min_persistence: float = 2.0
    # Neurons of two networks agree up to this angle, in radians. Kinks of ReLU neurons may lie
    # anywhere between two rows in students that hold several copies.
    agreement_angle: float = 1e-2


@dataclass(frozen=True)
class Search:
    """Shapes and activations that are probed, and how students are grouped."""

    # First assumed width of one, two, ... hidden layers, as many as are tried at most; halved while
    # students would hold more parameters than equations.
    start_widths: tuple[int, ...] = (8, 4, 4)
    max_student_parameters: int = 5000
    n_probes: int = 5  # students of a probe
    probe_steps: int = 30
    # Where more activations than finalists are in question, so many students of each race first. Of
    # the networks of the suite ``activations``, the right one came first for 26 of 26 of one layer
    # and 16 of 16 of two (ReLU and leaky ReLU count as one); with no warm-up, or 300 steps, for 13.
    n_race: int = 3
    race_steps: int = 20
    race_warm_up: int = 100
    # Rounds of students of few steps, on so many equations per parameter of a student; then there
    # is one to the end, on all rows. After 30 steps students are where they stay: with 100, the
    # best of 10 ReLU students of three hidden layers end at the same losses of 2e-3 to 4e-3.
    brief_steps: int = 30
    brief_equations: tuple[float, ...] = (3.0, 6.0, 12.0)
    # Students of more parameters, in one hidden layer and in several, are asked for the network
    # after a warm-up alone. Deep ones of 530 to 740 took 9 to 47 s without, 16 to 84 s with it: it
    # takes as long as 30 steps of theirs, and finds no more than the lowest layer.
    warm_up_first: tuple[int, int] = (400, 1000)
    # Students that grow from a corner have this share of its neurons in addition, at least so many
    # in each layer.
    growth: float = 0.25
    min_growth: int = 2
    aimed_growth: float = 0.4  # that share, of large students whose new neurons are aimed
    # Below the first loss they take more steps, on so many equations per parameter, and so many of
    # the best are pruned then; deep ones keep lower layers of it first, with fresh ones above. Of
    # ten logistic students 6-5-4-3-1, the last layer fresh, one was the network after 30 steps, the
    # seventh by its loss; after 200 the second was, in 3 s each. It was so on corners between 8e-12
    # and 2e-6; those of ReLU at 7e-3 had no layer right.
    expansion_loss: float = 1e-5
    expansion_steps: int = 200
    expansion_equations: float = 6.0
    n_expanded_finished: int = 5
    # Corners are narrowed to the assumed widths and so many neurons more before students grow from
    # them. Of 12 corners of a logistic network of 8 neurons, with 8 to 15, growing led to the
    # network from 11 with it, in 8 to 25 s; from 6 without, all by way of one of 9 neurons.
    n_spare: int = 1
    n_brief: int = 3  # students where there is no network to be found
    improvement: float = 0.5  # the search moves on where this share of the held-out loss is left
    # A probe is pruned at once where its loss is below this share of those of other shapes ...
    stands_out: float = 0.1
    # ... or below this, unless noise keeps it there. Five students of 30 networks (``sizes``) came
    # to 8e-12 or less with one hidden layer, others to 6e-10 at best on networks of two; those of
    # one layer above it are not pruned before the end.
    promising_loss: float = 1e-9
    exact_loss: float = 1e-10  # training losses below this are those of exact data
    n_finalists: int = 3  # activations after the first two shapes, and probes pruned per round
    # Students trained together. CPU seconds of fits with up to 20 students in groups of 5, 10 and
    # 20, 15 teachers each: activation g 175, 146, 151; tanh 64, 89, 115. All teachers were
    # recovered each time.
    group_size: int = 10
    # Each warm-up from shared neurons has this share of the learning rate of the one before: their
    # noise hides weak neurons. Three such students come from 2.5e-3 to 7e-4, 1.4e-4, 4.6e-5; at one
    # rate they stand at 4e-4.
    cooling: float = 0.5
    # Large students of one hidden layer: how many are warmed up, and how many grow from a corner.
    # The best of three of 48 ReLU neurons, on 784 inputs, holds 31 of the 32 of the network; what
    # it lacks, students of the residual find. Where neurons can be aimed, one grows in stages.
    n_large: int = 3
    n_large_grown: int = 2


@dataclass(frozen=True)
class Reporting:
    """How often a fit tells that it goes on, in seconds. No result depends on it."""

    beat: float = 1.0  # between two reports of a computation to the fit
    line: float = 3.0  # between two lines of ``verbose``
    silence: float = 2.0  # without an epoch, after which callbacks are told


@dataclass(frozen=True)
class Settings:
    """The settings of all steps."""

    preparation: Preparation = field(default_factory=Preparation)
    blocks: Blocks = field(default_factory=Blocks)
    damping: Damping = field(default_factory=Damping)
    conjugate_gradients: ConjugateGradients = field(default_factory=ConjugateGradients)
    well_posed_solves: WellPosedSolves = field(default_factory=WellPosedSolves)
    even_solves: EvenSolves = field(default_factory=EvenSolves)
    warm_up: WarmUp = field(default_factory=WarmUp)
    stages: Stages = field(default_factory=Stages)
    training: Training = field(default_factory=Training)
    compacting: Compacting = field(default_factory=Compacting)
    polish: Polish = field(default_factory=Polish)
    prune: Prune = field(default_factory=Prune)
    imitators: Imitators = field(default_factory=Imitators)
    wrong_kinks: WrongKinks = field(default_factory=WrongKinks)
    noise: Noise = field(default_factory=Noise)
    approximation: Approximation = field(default_factory=Approximation)
    finish: Finish = field(default_factory=Finish)
    verdict: Verdict = field(default_factory=Verdict)
    cluster: Clustering = field(default_factory=Clustering)
    search: Search = field(default_factory=Search)
    reporting: Reporting = field(default_factory=Reporting)


DEFAULTS = Settings()
