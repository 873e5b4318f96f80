"""Does a synthetic set copy the training set? Each measure is a function of feature matrices, nearest distances inside.

None of the raw measures is calibrated: a perfect generator scores 0.38 to 0.85 in authenticity, depending on the
dimension alone. Read each beside the same measure of real patients who pose as a generator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.vq import kmeans2, vq
from scipy.stats import beta, hypergeom, mannwhitneyu

from latentsynth.errors import DataError
from latentsynth.metrics.neighbours import nearest

Search = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # (queries, reference, k)
FIRST_ASKED = 4  # neighbours that are asked for at first


def reproduced(
    train: np.ndarray, calibration: np.ndarray, samples: np.ndarray, level: float = 0.05, search: Search = nearest
) -> np.ndarray:
    """How likely each training row has a sample nearer than calibration rows come to training rows.

    The threshold is the ``level`` quantile of the distances from training rows to their nearest calibration row. A
    minimum over more rows is shorter, so samples are drawn down to the number of calibration rows. The share of draws
    with a sample below the threshold is hypergeometric, so nothing needs to be drawn.

    Args:
        train: Features, shape ``(T, F)``.
        calibration: Of held-out patients, ``(n, F)``.
        samples: Of synthetic cases, ``(N, F)``.
        level: Share of training rows that independent samples would reach.
        search: Nearest neighbours by the distance to use.

    Returns:
        Probability per training row, shape ``(T,)``; its mean is the fraction of the training set that is reproduced,
        and ``level`` or little more for samples that know nothing of it.
    """
    threshold = np.quantile(search(train, calibration, 1)[0][:, 0], level)
    k, below, rows = 0, np.zeros(len(train), dtype=int), np.arange(len(train))
    while len(rows) and k < len(samples):  # more neighbours only of rows whose neighbours so far are all below
        k = min(max(2 * k, FIRST_ASKED), len(samples))
        below[rows] = (search(train[rows], samples, k)[0] < threshold).sum(1)
        rows = rows[below[rows] == k]
    drawn = min(len(calibration), len(samples))
    return np.asarray(hypergeom.sf(0, len(samples), below, drawn))


def copy_rate(flagged: np.ndarray, patients: Sequence[str], level: float = 0.95) -> tuple[float, float, float]:
    """Share of a set that is flagged, with an exact interval over patients (Clopper and Pearson 1934).

    Patients (or the masks that samples were made from) are the unit: each gives the share of its cases that is flagged,
    and the rate is the mean of these. With n patients whose shares add up to x, the ends are quantiles of
    ``Beta(x, n - x + 1)`` and ``Beta(x + 1, n - x)``, also where x is no whole number: a sum of shares is less spread
    than one of flags (Hoeffding 1956), so the interval covers at least its level however alike the cases of a patient
    are. Without any flag it reaches from 0 to ``1 - ((1 - level) / 2)^(1 / n)``.

    Args:
        flagged: Which cases are flagged, or how likely each is, from 0 to 1, shape ``(N,)``.
        patients: Whose each is, N.
        level: Coverage.

    Returns:
        Rate, low, high.

    Raises:
        DataError: No case, or not one patient for each.
    """
    if not len(flagged) or len(flagged) != len(patients):
        raise DataError(
            f"{len(patients)} patients for {len(flagged)} cases, expected one for each and at least one case"
        )
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    n = len(names)
    x = float((np.bincount(index, flagged) / np.bincount(index)).sum())
    low = float(beta.ppf((1 - level) / 2, x, n - x + 1)) if x > 0 else 0.0
    high = float(beta.ppf((1 + level) / 2, x + 1, n - x)) if x < n else 1.0
    return x / n, low, high


@dataclass(frozen=True)
class PublishedRule:
    """The rule of Dar et al. (2024, 2025), faithful to their code.

    Attributes:
        threshold: Correlation above which a pair counts as a copy.
        memorised: Share of training rows with a sample above it.
        copies: Share of samples with a training row above it.
    """

    threshold: float
    memorised: float
    copies: float


def published(train: np.ndarray, validation: np.ndarray, samples: np.ndarray) -> PublishedRule:
    """Copies and memorised rows by the published rule, for comparison with the literature alone.

    The threshold is the 95th percentile of the correlations of training rows with their nearest validation row. It is
    not calibrated: a minimum over more samples than validation rows is shorter without any copying.

    Args:
        train: Features, shape ``(T, F)``.
        validation: ``(V, F)``.
        samples: ``(N, F)``.

    Raises:
        DataError: Fewer than two features, which have no correlation.
    """
    if train.shape[1] < 2:
        raise DataError("rows of one feature have no correlation: use another extractor")
    # Of standardised rows, half the squared distance is 1 minus the correlation.
    t, v, s = (_standardised(x) for x in (train, validation, samples))
    from_train = _correlation(nearest(t, v)[0])
    threshold = float(np.percentile(from_train, 95))
    memorised = _correlation(nearest(t, s)[0]) > threshold
    copied = _correlation(nearest(s, t)[0]) > threshold
    return PublishedRule(threshold, float(memorised.mean()), float(copied.mean()))


def published_null(
    train: np.ndarray, validation: int, samples: int, rng: np.random.Generator, repeats: int = 20
) -> PublishedRule:
    """What :func:`published` says of samples that are independent of the training set, by simulation.

    All three sets are drawn from a Gaussian with the mean and covariance of the training rows. Where rows have more
    features than there are rows, that covariance has too few directions, and the null comes out too low.

    Args:
        train: Features, shape ``(T, F)``.
        validation: Number of validation rows.
        samples: Number of samples.
        rng: Source of the draws.
        repeats: Simulations that are averaged.
    """
    middle = train.mean(0)
    # Drawn through the centred rows: their products have the covariance of the rows, without forming it.
    root = (train - middle) / np.sqrt(len(train) - 1)
    found = []
    for _ in range(repeats):
        sets = [rng.standard_normal((rows, len(train))) @ root + middle for rows in (len(train), validation, samples)]
        found.append(published(*sets))
    means = (float(np.mean([getattr(one, name) for one in found])) for name in ("threshold", "memorised", "copies"))
    return PublishedRule(*means)


def nearer_to_training(train: np.ndarray, heldout: np.ndarray) -> float:
    """Do training patients lie nearer to a synthetic set than held-out patients do? A p-value of the whole set.

    Where the set knows nothing of which patients were trained on, all ways of naming them are alike, so that the one-sided
    rank test of Mann and Whitney (1947) is an exact permutation test over patients, however alike the samples are. A few copies
    among many training patients move ranks little; they are found one by one.

    Args:
        train: Distance of each training patient to the nearest sample, one case each, shape ``(T,)``.
        heldout: Of each held-out patient, ``(n,)``.

    Raises:
        DataError: Nobody on one of the sides.
    """
    if not len(train) or not len(heldout):
        raise DataError(
            f"{len(train)} training and {len(heldout)} held-out patients cannot be compared: give one of each at least"
        )
    return float(mannwhitneyu(train, heldout, alternative="less").pvalue)


def nearest_ratio(distances: np.ndarray) -> np.ndarray:
    """Nearest over second-nearest distance to the training set (Yoon et al. 2023), shape ``(N,)``.

    Near 0 where a sample lies beside one training row alone, near 1 where none stands out. Two equal training rows hide
    each other, so count one row per patient.

    Args:
        distances: To the nearest training rows, ascending, shape ``(N, 2)`` or more columns.
    """
    first, second = distances[:, 0], distances[:, 1]
    return np.where(second > 0, first / np.where(second > 0, second, 1), 1.0)


def authentic(
    train: np.ndarray, samples: np.ndarray, search: Search = nearest, own: np.ndarray | None = None
) -> np.ndarray:
    """Which samples are authentic (Alaa et al. 2022, section 4): boolean, shape ``(N,)``.

    A sample is not authentic if it lies nearer to its nearest training row than any other training row does. The
    mean depends on the dimension, not only on copying; only the gap to real patients means something.

    Args:
        train: Features, shape ``(T, F)``.
        samples: ``(N, F)``.
        search: Nearest neighbours by the distance to use.
        own: Distance of each training row to the nearest other one, ``(T,)``, if it is known.
    """
    between = search(train, train, 2)[0][:, 1] if own is None else own
    distance, row = search(samples, train, 1)
    return np.asarray(distance[:, 0] > between[row[:, 0]])


def data_copying(
    train: np.ndarray,
    test: np.ndarray,
    samples: np.ndarray,
    rng: np.random.Generator,
    cells: int = 3,
    least: int = 8,
    search: Search = nearest,
) -> float:
    """Data-copying statistic C_T (Meehan et al. 2020, section 4): far below 0 copies, far above 0 under-fits.

    Space is cut into cells by k-means of the training rows. In each cell the z-scored Mann-Whitney U compares the
    distances of samples and of test rows to the cell's training rows; cells are averaged by their share of test rows.

    Args:
        train: Features, shape ``(T, F)``.
        test: Of held-out patients, ``(n, F)``.
        samples: ``(N, F)``.
        rng: Source of the k-means start.
        cells: Number of cells; 1 looks at the whole space.
        least: Test rows and samples that a cell must hold to be counted.
        search: Nearest neighbours by the distance to use.

    Returns:
        A z-score; not a number where no cell holds enough rows.
    """
    homes = [np.zeros(len(x), dtype=int) for x in (train, test, samples)]
    if cells > 1:
        with warnings.catch_warnings():  # fewer distinct rows than cells leave a cell empty, which is not counted below
            warnings.simplefilter("ignore")
            centres, _ = kmeans2(train.astype(np.float64), cells, minit="++", rng=rng, missing="warn")
        homes = [vq(x.astype(np.float64), centres)[0] for x in (train, test, samples)]
    scores, weights = [], []
    for cell in range(cells):
        t, p, q = (x[home == cell] for x, home in zip((train, test, samples), homes, strict=True))
        if len(t) and min(len(p), len(q)) >= least:
            scores.append(_z(search(q, t, 1)[0][:, 0], search(p, t, 1)[0][:, 0]))
            weights.append(len(p))
    return float(np.average(scores, weights=weights)) if scores else float("nan")


def _z(first: np.ndarray, second: np.ndarray) -> float:
    """Z-scored Mann-Whitney U: below 0 if the first values tend to be smaller; ties count half."""
    m, n = len(first), len(second)
    u = mannwhitneyu(first, second, method="asymptotic").statistic
    return float((u - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))


def _standardised(x: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1; constant rows become 0."""
    centred = x.astype(np.float64) - x.mean(1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1)


def _correlation(distances: np.ndarray) -> np.ndarray:
    return 1 - distances[:, 0] ** 2 / 2
