"""What the patients of the built-in cohort are drawn with: organs, lesions, and how CT and MR show them.

Shapes are implicit functions of coordinates that run from -1 to 1 across the grid and are bent by smooth random
fields. Every function draws from the generator it is given, so the order of the calls is part of the patient.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from latentsynth.errors import DataError

Array = np.ndarray

LABELS = {"background": 0, "liver": 1, "kidney": 2, "lesion": 3}
DIAMETERS_MM = (3.0, 30.0)  # of balls as large as the lesions of patients that have many
_TOUCHING = 0.25  # of them, those that are laid beside another
_CORNERS = np.ones((3, 3, 3), bool)  # a voxel and its 26 neighbours
MIN_LESION_VOXELS = 30  # drawn; islands that come off the first are dropped

# Tissue: CT in Hounsfield units (portal venous phase), MR signal with 1 as the brightest (fat-bright T2-like).
# fmt: off
_TISSUES = {
    "air": (-1000.0, 0.0), "skin": (30.0, 0.40), "fat": (-100.0, 0.68),
    "muscle": (58.0, 0.20), "bone": (420.0, 0.32), "marrow": (210.0, 0.46),
    "disc": (85.0, 0.28), "canal": (25.0, 0.92), "lung": (-820.0, 0.05),
    "heart": (115.0, 0.30), "vessel": (155.0, 0.08), "liver": (112.0, 0.32),
    "liver vessel": (170.0, 0.14), "gallbladder": (12.0, 0.95), "cortex": (165.0, 0.58),
    "medulla": (120.0, 0.72), "spleen": (118.0, 0.52), "stomach": (28.0, 0.80),
    "gas": (-950.0, 0.02), "bowel": (55.0, 0.42), "stool": (25.0, 0.62),
}
# fmt: on
_CODE = {name: code for code, name in enumerate(_TISSUES)}
_LESION_HU = (78.0, 108.0)  # below the liver, in every patient
_LESION_MR = (0.26, 0.44)  # above the liver, in every patient


def _smooth(rng: np.random.Generator, shape: tuple[int, ...], knots: int) -> Array:
    """Smooth Gaussian field of variance 1, shape ``(I, J, K)``; features are about ``1 / knots`` of the grid."""
    field = rng.standard_normal((knots,) * 3)
    for n in shape:  # each turn spreads the first axis over n voxels and moves it to the back
        basis = np.exp(-0.5 * ((np.linspace(0, knots - 1, n)[:, None] - np.arange(knots)) / 0.7) ** 2)
        basis /= np.linalg.norm(basis, axis=1, keepdims=True)
        field = np.tensordot(field, basis, axes=(0, 1))
    return field


def _ball(at: tuple[Array, ...], centre: tuple[float | Array, ...], radii: tuple[float | Array, ...]) -> Array:
    """Radius in units of an ellipsoid, below 1 inside; two numbers make a cylinder along the body."""
    return np.asarray(sum(((x - c) / r) ** 2 for x, c, r in zip(at, centre, radii, strict=False))) ** 0.5


def _largest(mask: Array) -> Array:
    """The largest connected part of a mask."""
    parts, _ = ndimage.label(mask)
    return np.asarray(parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]))


def _part_at(mask: Array, voxel: Array) -> Array:
    """The connected part of a mask that holds a voxel of it."""
    parts, _ = ndimage.label(mask)
    return np.asarray(parts == parts[tuple(voxel)])


def body(rng: np.random.Generator, shape: tuple[int, int, int]) -> tuple[Array, Array]:
    """Tissue codes and labels (without lesions) of a patient, both uint8 with shape ``(I, J, K)``."""
    u = rng.uniform

    def near(*values: float, by: float = 0.04) -> tuple[float, ...]:
        return tuple(value + u(-by, by) for value in values)

    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    right, front, head = (x + 0.03 * _smooth(rng, shape, 4) + 0.015 * _smooth(rng, shape, 8) for x in axes)
    width, depth, power = u(0.88, 0.97), u(0.7, 0.86), u(2.1, 2.6)
    radius = ((np.abs(right) / width) ** power + (np.abs(front) / depth) ** power) ** (1 / power)
    fat = u(0.04, 0.17) * np.exp(0.2 * _smooth(rng, shape, 4)) * (1 - u(0.1, 0.4) * front)
    muscle = u(0.06, 0.09)
    inner = 1 - 0.025 - fat - muscle  # radius of the belly's inside
    at = x, y, z = right / (width * inner), front / (depth * inner), head  # organs live in the belly's coordinates
    inside = radius / inner

    tissue = np.zeros(shape, np.uint8)

    def paint(where: Array, name: str) -> None:
        tissue[where] = _CODE[name]

    paint(radius < 1, "skin")
    paint(radius < 0.975, "fat")
    paint((radius < 0.975 - fat) & (inside > 1), "muscle")
    ribs = np.cos(2 * np.pi * (u(2.2, 2.8) * (z + 0.35 * y) + u(0, 1))) > 0.45
    paint(ribs & (radius < 0.965 - fat) & (inside > 1.01) & (np.abs(x) > 0.22) & (z + 0.3 * np.abs(y) > -0.25), "bone")

    loops = _smooth(rng, shape, 13) + 0.35 * _smooth(rng, shape, 5)
    belly = (inside < 0.94) & (y > -0.4 + 0.2 * z) & (z < u(0.0, 0.3))
    paint(belly & (loops > -0.3), "bowel")
    paint(belly & (loops > 0.5), "stool")
    paint(belly & (loops > 1.6) & (y > 0.1), "gas")

    stomach = _ball(at, near(-0.38, 0.4, 0.3, by=0.07), near(0.34, 0.34, 0.42, by=0.06))
    paint((stomach < 1) & (inside < 0.96), "bowel")
    paint((stomach < 0.84) & (inside < 0.93), "stomach")
    paint((stomach < 0.84) & (inside < 0.93) & (y > u(0.4, 0.65)), "gas")
    paint((_ball(at, near(-0.7, -0.2, 0.35), near(0.25, 0.42, 0.45, by=0.07)) < 1) & (inside < 0.96), "spleen")

    # Liver: right and left lobe melted together, cut by the slanting lower surface and the belly wall.
    lobes = (
        _ball(at, near(0.5, 0.05, 0.22, by=0.06), near(0.58, 0.82, 0.66, by=0.07)),
        _ball(at, near(0.0, 0.5, 0.42, by=0.06), near(0.5, 0.38, 0.36, by=0.07)),
    )
    edge = -0.12 * np.log(sum(np.exp(-lobe / 0.12) for lobe in lobes)) + 0.035 * _smooth(rng, shape, 9)
    slant = z > u(-0.62, -0.3) + u(0.35, 0.7) * np.maximum(0.6 - x, 0) + 0.25 * np.maximum(-y, 0)
    liver = (edge < u(0.9, 1.02)) & (inside < 0.96) & slant
    paint(liver, "liver")
    for _ in range(2):  # where two smooth fields are both near zero lie winding tubes
        tube = np.hypot(_smooth(rng, shape, 7), _smooth(rng, shape, 7))
        paint(liver & (tube < 0.3) & (edge < 0.85), "liver vessel")
    bladder = _ball(at, near(0.32, 0.5, -0.2, by=0.06), near(0.13, 0.17, 0.24)) < 1
    paint(bladder & (inside < 0.95), "gallbladder")

    top = u(0.62, 0.9) - 0.5 * ((np.abs(x) - 0.42) ** 2 + (y - 0.05) ** 2) - np.where(x > 0, 0, 0.12)
    lung = (z > top) & (inside < 0.97)
    paint(lung, "lung")
    paint(lung & (_smooth(rng, shape, 22) > 1.7), "vessel")
    paint(_ball(at, near(-0.12, 0.35, 1.15), near(0.42, 0.42, 0.5)) < 1, "heart")

    for side in (-1, 1):  # the right kidney lies lower, under the liver
        middle, (cy, cz) = u(0.48, 0.56), near(-0.46, -0.2 if side > 0 else -0.08, by=0.05)
        axis = side * (middle - 0.15 * (z - cz))  # the upper poles lean towards the spine
        radii = near(0.23, 0.24, 0.44, by=0.03)
        kidney = _ball(at, (axis, cy, cz), radii)
        hilum = _ball(at, (axis - side * 0.2, cy + 0.04, cz), (0.14, 0.11, 0.22))
        paint(kidney < 1.18, "fat")  # a capsule of fat, which also keeps kidney and liver apart
        solid = (kidney < 1) & (hilum > 1) & (inside < 0.98)
        paint(solid, "cortex")
        paint(solid & (kidney < 0.68), "medulla")

    # Spine: vertebrae with a shell, discs between them, canal, processes; muscles beside it.
    back = u(-0.72, -0.64)
    column = _ball(at, (0.0, back), (0.2, 0.19))
    level = np.cos(2 * np.pi * (u(2.2, 2.7) * z + u(0, 1)))
    for side in (-1, 1):
        paint(_ball(at, (side * 0.3, -1.06), (0.25, 0.22)) < 1, "muscle")
        paint(_ball(at, (side * 0.3, back + 0.03), (0.13 - 0.04 * z, 0.15 - 0.05 * z)) < 1, "muscle")
    paint((column < 1) & (level > 0.8), "disc")
    paint((column < 1) & (level <= 0.8), "bone")
    paint((column < 0.75) & (level <= 0.6), "marrow")
    arch = _ball(at, (0.0, back - 0.29), (0.14, 0.15))
    spine = (np.abs(x) < 0.05) & (y > back - 0.66) & (y < back - 0.3) & (level < 0.5)
    wings = (np.abs(x) < 0.4) & (np.abs(y - back + 0.24) < 0.05) & (level < -0.2)
    paint((arch < 1) | spine | wings, "bone")
    paint(arch < 0.62, "canal")
    paint(_ball(at, near(-0.08, back + 0.29, by=0.02), (0.085, 0.085)) < 1, "vessel")
    paint(_ball(at, near(0.14, back + 0.3, by=0.02), (0.1, 0.08)) < 1, "vessel")

    labels = np.zeros(shape, np.uint8)
    labels[(tissue == _CODE["cortex"]) | (tissue == _CODE["medulla"])] = LABELS["kidney"]
    liver = (tissue == _CODE["liver"]) | (tissue == _CODE["liver vessel"])
    labels[_largest(liver)] = LABELS["liver"]
    return tissue, labels


def lesions(rng: np.random.Generator, liver: Array, spacing_mm: tuple[float, float, float]) -> tuple[Array, Array]:
    """One to three lesions inside a liver, the first of 2 to 60 ml.

    Args:
        rng: Source of randomness.
        liver: Shape ``(I, J, K)``, bool.
        spacing_mm: Millimetres per voxel along each axis.

    Returns:
        The number of the lesion at each voxel from 1, 0 outside, uint8, shape ``(I, J, K)``, never on the liver's
        outermost layer of voxels; and where each voxel lies in its lesion, from 0 in the middle to 1 at the surface.
    """
    room = ndimage.binary_erosion(liver)
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lesion, ring = np.zeros(liver.shape, np.uint8), np.zeros(liver.shape)
    for number in range(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2]))):
        millilitres = np.exp(rng.uniform(np.log(2.0), np.log(60.0)) if number == 0 else rng.uniform(np.log(1.5), 2.5))
        inside_mm = ndimage.distance_transform_edt(room, sampling=spacing_mm)
        wanted = int(np.clip(millilitres / voxel_ml, MIN_LESION_VOXELS, max(MIN_LESION_VOXELS, 0.2 * room.sum())))
        if number > 0 and room.sum() < 3 * wanted:
            break  # little liver is left around the earlier ones
        size_mm = _radius_mm(wanted * voxel_ml)
        roomy = np.argwhere(inside_mm >= min(0.6 * size_mm, 0.9 * inside_mm.max()))
        new = _blob(rng, room, roomy[rng.integers(len(roomy))], wanted, spacing_mm)
        lesion[new], ring[new] = number + 1, _ring(new, spacing_mm)
        room &= ~ndimage.binary_dilation(new, iterations=2)  # the next one is a lesion of its own
    return lesion, ring


def many_lesions(
    rng: np.random.Generator, liver: Array, spacing_mm: tuple[float, float, float], count: tuple[int, int]
) -> tuple[Array, Array]:
    """As many lesions as drawn from a range, as large as balls of 3 to 30 mm (log-uniform), every fourth beside another.

    A lesion has one voxel at least, however coarse the grid. Those that touch another are one connected piece with it;
    all others are apart, corners included.

    Args:
        rng: Source of randomness.
        liver: Shape ``(I, J, K)``, bool.
        spacing_mm: Millimetres per voxel along each axis.
        count: Fewest and most lesions.

    Returns:
        As :func:`lesions`.

    Raises:
        DataError: The liver has no room for so many.
    """
    (bounds,) = ndimage.find_objects(liver.astype(np.uint8))  # all that follows is done there alone, which is quicker
    room = ndimage.binary_erosion(liver[bounds])
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    lesion, ring = np.zeros(room.shape, np.uint8), np.zeros(room.shape)
    lowest, highest = np.log(DIAMETERS_MM)
    wanted_mm = np.exp(rng.uniform(lowest, highest, size=int(rng.integers(count[0], count[1] + 1))))
    for number, mm in enumerate(sorted(wanted_mm, reverse=True), start=1):  # small ones fit between large ones
        wanted = max(1, round(np.pi / 6 * mm**3 / 1000 / voxel_ml))
        free = room & ~ndimage.binary_dilation(lesion, _CORNERS)
        place = free
        if number > 1 and rng.random() < _TOUCHING:
            one = lesion == rng.integers(1, number)
            beside = room & (lesion == 0) & ~ndimage.binary_dilation((lesion > 0) & ~one, _CORNERS)
            touching = beside & ndimage.binary_dilation(one, _CORNERS)
            free, place = (beside, touching) if touching.any() else (free, free)
        if not place.any():
            raise DataError(
                f"lesion {number} of {len(wanted_mm)} finds no room in a liver of {liver.sum()} voxels: ask for fewer, or for a larger size"
            )
        inside_mm = ndimage.distance_transform_edt(free, sampling=spacing_mm) * place
        roomy = np.argwhere(inside_mm >= min(_radius_mm(wanted * voxel_ml), inside_mm.max()))
        centre = roomy[rng.integers(len(roomy))]
        reach = np.ceil(1 + 2.5 * _radius_mm(wanted * voxel_ml) / np.array(spacing_mm)).astype(int)
        start = np.maximum(centre - reach, 0)
        box = tuple(slice(low, high) for low, high in zip(start, centre + reach + 1, strict=True))
        new = np.zeros(room.shape, bool)
        here = free[box]
        new[box] = _blob(rng, here, centre - start, min(wanted, int(here.sum())), spacing_mm, True)
        lesion[new], ring[new] = number, _ring(new, spacing_mm)
    whole = np.zeros(liver.shape, np.uint8), np.zeros(liver.shape)
    whole[0][bounds], whole[1][bounds] = lesion, ring
    return whole


def _radius_mm(millilitres: float) -> float:
    """Radius of a ball."""
    return float((millilitres * 1000 * 3 / (4 * np.pi)) ** (1 / 3))


def _blob(
    rng: np.random.Generator,
    room: Array,
    centre: Array,
    wanted: int,
    spacing_mm: tuple[float, float, float],
    hold_centre: bool = False,
) -> Array:
    """A rough ellipsoid around a voxel, of so many voxels of the room, less islands that come off it.

    Roughness may leave the voxel itself outside, unless it is held.
    """
    size_mm = _radius_mm(wanted * float(np.prod(spacing_mm)) / 1000)
    grid_mm = max(n * mm for n, mm in zip(room.shape, spacing_mm, strict=True))
    offsets_mm = [
        (np.arange(n) - c).reshape([-1 if a == axis else 1 for a in range(3)]) * mm
        for axis, (n, c, mm) in enumerate(zip(room.shape, centre, spacing_mm, strict=True))
    ]
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] * np.exp(rng.uniform(-0.3, 0.3, (3, 1)))
    radius_mm = np.sqrt(sum(sum(t * o for t, o in zip(row, offsets_mm, strict=True)) ** 2 for row in turn))
    for octave, rough in enumerate((0.22, 0.16, 0.1)):  # lobes, bumps, fringe
        knots = int(np.clip(2**octave * grid_mm / size_mm, 4, 40))
        radius_mm += rough * size_mm * _smooth(rng, room.shape, knots)
    if hold_centre:
        radius_mm[tuple(centre)] = -np.inf
    limit_mm = np.partition(radius_mm[room], wanted - 1)[wanted - 1]  # so many voxels, whatever the roughness
    parts = room & (radius_mm <= limit_mm)
    part = _part_at(parts, centre) if hold_centre else _largest(parts)
    # Filling must not leave the room, which is hollow where gallbladder or kidney press into the liver.
    return np.asarray(ndimage.binary_fill_holes(part)) & room


def _ring(lesion: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """Where each voxel of a lesion lies in it, from 0 in the middle to 1 at the surface, shape ``(voxels,)``."""
    depth_mm = ndimage.distance_transform_edt(lesion, sampling=spacing_mm)
    return np.asarray(1 - (depth_mm / depth_mm.max())[lesion])


def _signal(
    rng: np.random.Generator, tissue: Array, lesion: Array, ring: Array, values: Array, steps: tuple[float, ...]
) -> Array:
    """Noiseless signal with partial volume; ``steps`` are lesion minus liver, extra in the core, extra in the rim."""
    signal = values[tissue]
    step, core, rim = steps
    inside = step + np.where(ring < 0.45, core, 0.0) + np.where(ring > 0.85, rim, 0.0)
    signal[lesion] = (values[_CODE["liver"]] + inside)[lesion]
    texture = _smooth(rng, tissue.shape, 16) + 0.7 * _smooth(rng, tissue.shape, 30)
    soft = np.isin(tissue, [_CODE[name] for name in ("air", "gas", "lung")], invert=True)
    signal = signal + np.where(soft, texture, 0) * 0.02 * (values[_CODE["liver"]] + abs(step))
    return np.asarray(ndimage.gaussian_filter(signal, 0.5))  # half a voxel: the scanner's blur and partial volume


def ct(rng: np.random.Generator, tissue: Array, lesion: Array, ring: Array) -> Array:
    """CT in Hounsfield units, shape ``(I, J, K)``."""
    values = np.array([ct for ct, _ in _TISSUES.values()])
    values += np.where(values > -200, rng.uniform(-10, 10, len(values)), 0)
    step = rng.uniform(*_LESION_HU)
    core = -rng.uniform(0, 25) * (rng.random() < 0.5)  # half the patients have dead, nearly watery cores
    signal = _signal(rng, tissue, lesion, ring, values, (-step, core, rng.uniform(0, 12)))
    noise = ndimage.gaussian_filter(rng.standard_normal(tissue.shape), 0.6)  # grains as reconstruction makes them
    return np.asarray(np.maximum(signal + rng.uniform(6, 14) * noise / noise.std(), -1024))


def mr(rng: np.random.Generator, tissue: Array, lesion: Array, ring: Array) -> Array:
    """MR in arbitrary units from 0, shape ``(I, J, K)``; the scale differs between patients, as between scanners."""
    values = np.array([mr for _, mr in _TISSUES.values()]) * np.exp(rng.uniform(-0.1, 0.1, len(_TISSUES)))
    steps = (rng.uniform(*_LESION_MR), rng.uniform(0, 0.2), rng.uniform(-0.08, 0.0))
    signal = _signal(rng, tissue, lesion, ring, values, steps)
    signal *= np.exp(rng.uniform(0.15, 0.25) * _smooth(rng, tissue.shape, 3))  # coil sensitivity
    sigma = rng.uniform(0.015, 0.035)
    noisy = np.hypot(signal + sigma * rng.standard_normal(tissue.shape), sigma * rng.standard_normal(tissue.shape))
    return np.asarray(noisy * np.exp(rng.uniform(np.log(200), np.log(2000))))
