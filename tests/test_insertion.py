"""Lesions painted into real scans: the rest of the scan stays as it was, and the model sees nothing of what it replaces."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import WINDOW, lesion_mask, tiny_domain, tiny_model, turned, write_mask
from scipy import ndimage
from tiny_runs import ldm_config

from latentsynth.conditioning import ContextConditioner, MaskConditioner
from latentsynth.config import LdmRun, load
from latentsynth.data import nifti
from latentsynth.data.cache.cutting import MIDDLE, Cut, distance_to
from latentsynth.data.exchange.hosts import Blend, Host, paired
from latentsynth.data.exchange.requests import Request, place, requests_of
from latentsynth.data.manifest import Manifest
from latentsynth.errors import ConfigError, DataError
from latentsynth.files import read_json
from latentsynth.provenance import LEDGER, Ledger
from latentsynth.synthesis import synthesize
from latentsynth.synthesizers import LatentDiffusion
from latentsynth.synthesizers.rules import RuleBased
from latentsynth.training.recipes.encode import encoded_cohort
from latentsynth.training.recipes.ldm import DenoiserLoss, build_conditioner, initial, train_ldm, widen
from latentsynth.types import Case, Condition, Conditioning, Domain

SPACING, SHAPE = (1.5, 1.0, 3.0), (24, 30, 14)


def rules(mean: float = 0.8, deviation: float = 0.05) -> RuleBased:
    return RuleBased(tiny_domain(), np.full((3, 1), mean), np.full((3, 1), deviation))


def scan(folder: Path, name: str, seed: int, dtype: type = np.int16) -> Case:
    """A noisy scan on a turned, anisotropic grid, in a unit of its own."""
    rng = np.random.default_rng(seed)
    voxels = rng.uniform(-90, 250, SHAPE)
    path = folder / f"{name}.nii.gz"
    nifti.write(path, (np.rint(voxels) if dtype == np.int16 else voxels).astype(dtype), turned(SPACING, 20))
    return Case(name, name, (path,), None)


def mask(folder: Path, name: str = "new", radius_mm: float = 6.0, **facts: object) -> Request:
    affine = turned(SPACING, 20)
    return write_mask(folder / f"{name}.nii.gz", lesion_mask(affine, SHAPE, radius_mm), affine, **facts)


def two_channels() -> Domain:
    domain = tiny_domain()
    grid = replace(domain.grid, windows=domain.grid.windows * 2)
    return replace(domain, grid=grid, channels=("CT", "PET"), limits=domain.limits * 2)


def moved(affine: np.ndarray, shift_mm: float) -> np.ndarray:
    other = affine.copy()
    other[0, 3] += shift_mm
    return other


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_the_scan_is_the_hosts_own_outside_the_margin(tmp_path: Path, dtype: type) -> None:
    host, request = scan(tmp_path, "host", 0, dtype), mask(tmp_path)
    made = synthesize(rules(), [request], tmp_path / "out", Accelerator(cpu=True), hosts=[host], margin_mm=4.0)
    before, affine = nifti.read(host.images[0])
    after, written = nifti.read(made.cases[0].images[0])
    np.testing.assert_allclose(written, affine, atol=1e-5)
    assert after.dtype == before.dtype
    lesion = nifti.read_labels(request.mask)[0] > 0  # type: ignore[arg-type]
    away = distance_to(lesion, SPACING)
    assert np.array_equal(after[away >= 4.0], before[away >= 4.0])
    assert (after[lesion] != before[lesion]).mean() > 0.95
    inner = distance_to(~lesion, SPACING) > 3.0
    assert abs(after[inner].mean() - (-100 + 400 * 0.9)) < 15  # 0.8 in [-1, 1] of the window -100 to 300
    facts = read_json(tmp_path / "out" / "sidecars" / f"{made.cases[0].case_id}.json")
    assert facts["host"] == "host"
    assert "host" in facts["parents"]
    assert made.cases[0].parents == (*request.parents, "host")


def test_around_the_lesion_the_scan_keeps_its_own_texture(tmp_path: Path) -> None:
    """A model that blurs all it shows, and would have the surroundings 40 units brighter."""
    domain, request = tiny_domain(), mask(tmp_path)
    host = Host.read(scan(tmp_path, "host", 0, np.float32), domain)
    placed = place(request, domain)
    shown = ndimage.gaussian_filter(host.context(placed.frame), (0, 2, 2, 2))
    (same,) = host.painted(shown, shown, placed, Blend(2.0, 6.0))
    (brighter,) = host.painted(shown + 0.2, shown, placed, Blend(2.0, 6.0))
    before = host.native[0][0]
    lesion = placed.values > 0
    away = distance_to(lesion, SPACING)
    around = (away > 0) & (away < 6.0)
    np.testing.assert_allclose(same[~lesion], before[~lesion], atol=1e-3)
    assert same[lesion].std() < 0.7 * before[lesion].std()  # within it, what was generated
    free = around & (before < WINDOW[1] - 40)  # not held back by the window's end
    expected = 40 * np.clip((6.0 - away[free]) / 4.0, 0, 1)
    inner = expected > 5  # the spline of the grid's edge is felt by none of these
    np.testing.assert_allclose((brighter - before)[free][inner], expected[inner], atol=2)


@pytest.mark.parametrize("darkest", [True, False])
@pytest.mark.parametrize(
    ("dtype", "offset"), [(np.uint8, 0), (np.uint16, 0), (np.uint16, 1024), (np.uint32, 0), (np.int16, 0)]
)
def test_what_is_painted_does_not_depend_on_how_the_scan_is_stored(
    tmp_path: Path, dtype: type, offset: int, darkest: bool
) -> None:
    """The window goes below what an unsigned scan can hold, and above what eight bits can."""
    domain, request = tiny_domain(), mask(tmp_path)
    whole = np.random.default_rng(0).integers(0, 200, SHAPE) + offset
    image = np.full((1, *domain.grid.shape), -1 if darkest else 1, np.float32)

    def painted(stored: type) -> np.ndarray:
        path = tmp_path / f"{np.dtype(stored).name}.nii.gz"
        nib.save(nib.Nifti1Image(whole.astype(stored), turned(SPACING, 20)), path)
        host = Host.read(Case("host", "host", (path,), None), domain)
        (made,) = host.painted(
            image, host.context(place(request, domain).frame), place(request, domain), Blend(0.0, 4.0)
        )
        nifti.write(tmp_path / "made.nii.gz", made, turned(SPACING, 20))
        return nifti.read(tmp_path / "made.nii.gz")[0]

    made = painted(dtype)
    assert made.dtype.kind in "iu"
    np.testing.assert_array_equal(made, np.rint(painted(np.float64)))
    assert made.min() == WINDOW[0] if darkest else made.max() == max(WINDOW[1], whole.max())
    away = distance_to(nifti.read_labels(request.mask)[0] > 0, SPACING) >= 4.0  # type: ignore[arg-type]
    assert np.array_equal(made[away], whole[away])


def test_a_scaled_scan_is_painted_in_its_own_units(tmp_path: Path) -> None:
    """Stored whole numbers times a slope: outside the margin every voxel reads as it did."""
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    image = nib.Nifti1Image(np.random.default_rng(0).uniform(-90, 250, SHAPE), turned(SPACING, 20), header)
    nib.save(image, tmp_path / "host.nii.gz")
    host, request = Case("host", "host", (tmp_path / "host.nii.gz",), None), mask(tmp_path)
    assert nib.load(host.images[0]).dataobj.slope not in (0, 1)
    made = synthesize(rules(), [request], tmp_path / "out", Accelerator(cpu=True), hosts=[host], margin_mm=4.0)
    before, after = nifti.read(host.images[0])[0], nifti.read(made.cases[0].images[0])[0]
    away = distance_to(nifti.read_labels(request.mask)[0] > 0, SPACING) >= 4.0  # type: ignore[arg-type]
    assert np.array_equal(after[away], before[away])
    assert (WINDOW[0] <= after).all()
    assert (after <= WINDOW[1]).all()


class Unchanged(RuleBased):
    """Gives the scan back as it was."""

    def _painted(self, image: np.ndarray, mask: np.ndarray, seed: int) -> np.ndarray:
        return image


def test_where_the_models_grid_ends_the_scan_goes_on(tmp_path: Path) -> None:
    """A lesion that nearly fills the grid: its margin lies beyond, where nothing was generated."""
    shape, affine = (40, 60, 20), turned(SPACING, 20)
    request = write_mask(tmp_path / "new.nii.gz", lesion_mask(affine, shape, 14.5), affine)
    ramp = np.broadcast_to(np.linspace(40, 60, shape[0], dtype=np.float32)[:, None, None], shape)
    nifti.write(tmp_path / "ramp.nii.gz", np.ascontiguousarray(ramp), affine)
    host = Case("host", "host", (tmp_path / "ramp.nii.gz",), None)
    model = Unchanged(tiny_domain(), np.ones((1, 1)), np.ones((1, 1)))
    made = synthesize(
        model, [request], tmp_path / "out", Accelerator(cpu=True), fit="scale", hosts=[host], margin_mm=8.0
    )
    assert np.abs(nifti.read(made.cases[0].images[0])[0] - ramp).max() < 5


def test_lesions_of_the_scan_must_keep_their_label(tmp_path: Path) -> None:
    host, request = scan(tmp_path, "host", 0), mask(tmp_path)
    own = lesion_mask(turned(SPACING, 20), SHAPE, 4.0)
    own = np.roll(own, 5, axis=0)
    nifti.write(tmp_path / "own.nii.gz", own, turned(SPACING, 20))
    host = replace(host, mask=tmp_path / "own.nii.gz")
    with pytest.raises(DataError, match="lesion voxels of host host would stay in the scan"):
        synthesize(rules(), [request], tmp_path / "out", Accelerator(cpu=True), hosts=[host], margin_mm=2.0)
    both = write_mask(
        tmp_path / "both.nii.gz", np.maximum(nifti.read_labels(request.mask)[0], own), turned(SPACING, 20)
    )  # type: ignore[arg-type]
    assert synthesize(rules(), [both], tmp_path / "out", Accelerator(cpu=True), hosts=[host], margin_mm=2.0).cases


def test_volumes_in_other_scans_are_not_taken_for_done(tmp_path: Path) -> None:
    request, out = mask(tmp_path), tmp_path / "out"
    synthesize(rules(), [request], out, Accelerator(cpu=True), hosts=[scan(tmp_path, "one", 0)])
    with pytest.raises(DataError, match="made with other hosts"):
        synthesize(rules(), [request], out, Accelerator(cpu=True), hosts=[scan(tmp_path, "two", 1)])


def test_whoever_the_mask_maker_has_seen_is_seen_by_the_volumes(tmp_path: Path) -> None:
    host, request = scan(tmp_path, "host", 0), mask(tmp_path)
    taught = [Case("taught", "taught", (), None)]
    request = replace(request, ledger=Ledger.of(taught))
    synthesize(rules(), [request], tmp_path / "out", Accelerator(cpu=True), hosts=[host])
    ledger = Ledger.load(tmp_path / "out" / LEDGER)
    assert [case.case_id for case in ledger.seen([*taught, host])[0]] == ["taught", "host"]


def test_another_seed_is_another_lesion_in_the_same_scan(tmp_path: Path) -> None:
    host, request = scan(tmp_path, "host", 0), mask(tmp_path)
    made = synthesize(rules(), [request], tmp_path / "out", Accelerator(cpu=True), per_mask=2, hosts=[host])
    first, second = (nifti.read(case.images[0])[0].astype(float) for case in made.cases)
    changed = first != second
    lesion = nifti.read_labels(request.mask)[0] > 0  # type: ignore[arg-type]
    assert changed[lesion].mean() > 0.8
    assert not changed[distance_to(lesion, SPACING) >= 6.0].any()


def test_masks_find_the_host_that_they_were_made_in(tmp_path: Path) -> None:
    hosts = [scan(tmp_path, name, n) for n, name in enumerate("ab")]
    requests = [Request("one", None, ("b",)), Request("two", None, ("a", "c")), Request("three", None, ("b", "a"))]
    assert [case.case_id for case in paired(requests, hosts)] == ["b", "a", "b"]
    assert [case.case_id for case in paired(requests, hosts[:1])] == ["a", "a", "a"]
    with pytest.raises(DataError, match="belongs to 0 of the 2 hosts"):
        paired([Request("four", None, ("c",))], hosts)
    with pytest.raises(DataError, match="belongs to 2 of the 3 hosts"):
        paired([Request("five", None, ("a",))], [*hosts, hosts[0]])


def test_what_cannot_be_painted_into_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    host, request = scan(tmp_path, "host", 0), mask(tmp_path)
    out = tmp_path / "out"
    accelerator = Accelerator(cpu=True)
    with pytest.raises(DataError, match=r"cannot paint into a scan: train one with conditioner.context=true"):
        synthesize(tiny_model(), [request], out, accelerator, hosts=[host])
    other = turned((2.0, 2.0, 2.0), 0)
    elsewhere = write_mask(tmp_path / "elsewhere.nii.gz", lesion_mask(other, (20, 20, 20), 6.0), other)
    with pytest.raises(DataError, match="does not lie on the grid of host host"):
        synthesize(rules(), [elsewhere], out, accelerator, hosts=[host])
    with pytest.raises(DataError, match="host host has 2 channels, the model makes 1"):
        synthesize(rules(), [request], out, accelerator, hosts=[replace(host, images=host.images * 2)])
    two = RuleBased(two_channels(), np.full((3, 2), 0.8), np.full((3, 2), 0.05))
    voxels, affine = nifti.read(host.images[0])
    for name, channel, where, words in (
        ("coarse", voxels[::2, ::2, ::2], affine @ np.diag([2, 2, 2, 1]), r"shape \(12, 15, 7\) beside \(24, 30, 14\)"),
        ("away", voxels, moved(affine, 5000), "corners 5e.03 mm away"),
        ("lost", voxels, np.eye(4), "corners"),
    ):
        nifti.write(tmp_path / f"{name}.nii.gz", channel, where)
        apart = replace(host, images=(*host.images, tmp_path / f"{name}.nii.gz"))
        with pytest.raises(
            DataError, match=rf"{name}\.nii\.gz does not lie on the grid of host\.nii\.gz \({words}.*resample"
        ):
            synthesize(two, [request], out, accelerator, hosts=[apart])
    with pytest.raises(DataError, match="painted into scans"):
        synthesize(rules(), [request], out, accelerator)
    with pytest.raises(ConfigError, match="means nothing to lesions by rule"):
        rules().settings(steps=3)
    assert not list(out.glob("imagesTr/*"))


def test_what_is_cut_out_is_the_lesion_and_its_margin() -> None:
    lesions = np.zeros((12, 12, 12), np.uint8)
    lesions[5:7, 5:7, 5:7] = 2
    lesions[0, 0, 0] = 1  # no lesion
    image = np.ones((2, 12, 12, 12), np.float32)
    cut = Cut((2,), 2.0, (1.0, 2.0, 3.0))(image, lesions)
    gone = np.argwhere(cut[0] == MIDDLE)
    assert gone.min(0).tolist() == [3, 4, 5]  # two voxels of 1 mm, one of 2 mm, none of 3 mm
    assert gone.max(0).tolist() == [8, 7, 6]
    assert (image == 1).all()
    assert np.array_equal(Cut((2,), 2.0, (1.0, 1.0, 1.0))(image, None), image)
    assert np.array_equal(Cut((3,), 2.0, (1.0, 1.0, 1.0))(image, lesions), image)


def test_a_decoy_is_a_cut_of_tissue_that_touches_no_lesion() -> None:
    rng = np.random.default_rng(0)
    lesions = np.zeros((24, 24, 24), np.uint8)
    lesions[3:8, 4:9, 3:8] = 2
    image = np.full((2, 24, 24, 24), -1, np.float32)
    image[1, :, :, :18] = rng.uniform(-0.5, 1, (24, 24, 18))  # air beyond
    cut = Cut((2,), 2.0, (1.0, 1.0, 1.0), decoys=True)
    places = [cut.decoy(image, lesions, np.random.default_rng(n)) for n in range(8)]
    assert len({found.tobytes() for found in places if found is not None}) > 4
    for found in places:
        assert found is not None
        assert found.any()
        assert distance_to(lesions == 2, (1, 1, 1))[found].min() > 4.0  # both margins
        assert (image[1] > -0.95)[found].mean() >= 0.8
    assert places[0] is not None
    hidden = cut.out_of(image, places[0])
    assert (hidden[:, places[0]] == MIDDLE).all()
    assert np.array_equal(hidden[:, lesions == 2], image[:, lesions == 2])
    assert cut.decoy(np.full_like(image, -1), lesions, rng) is None  # air alone
    assert cut.decoy(image, np.full_like(lesions, 2), rng) is None  # lesion alone
    assert cut.decoy(image, np.zeros_like(lesions), rng) is None  # nothing whose shape to take


def context_model(decoys: float = 0.0) -> LatentDiffusion:
    plain = tiny_model()
    conditioner = ContextConditioner(
        3, plain.autoencoder.factors, 1, plain.autoencoder.latent_channels, 2.0, decoys
    ).eval()
    denoiser = plain.denoiser
    widen(denoiser, conditioner.channels)
    with torch.no_grad():
        torch.manual_seed(3)
        denoiser.network.conv_in.conv.weight[:, -5:] = 0.2 * torch.randn_like(
            denoiser.network.conv_in.conv.weight[:, -5:]
        )
    return LatentDiffusion(plain.domain, plain.autoencoder, conditioner, denoiser, plain.sampling)


def test_a_widened_denoiser_is_at_first_the_one_it_was() -> None:
    plain = tiny_model()
    conditioner = ContextConditioner(3, plain.autoencoder.factors, 1, plain.autoencoder.latent_channels, 2.0)
    mask = torch.nn.functional.one_hot(torch.randint(0, 3, (2, 16, 16, 16)), 3).movedim(-1, 1).float()
    x, host = torch.randn(2, 2, 4, 4, 4, 4)
    narrow = plain.conditioner(Condition(mask))
    before = plain.denoiser(x, torch.tensor(0.4), narrow)
    widen(plain.denoiser, conditioner.channels)
    wide = conditioner(Condition(mask), host)
    assert torch.equal(conditioner.cell_fractions(wide), plain.conditioner.cell_fractions(narrow))
    torch.testing.assert_close(plain.denoiser(x, torch.tensor(0.4), wide), before)


def test_the_model_sees_the_scan_but_not_what_it_replaces() -> None:
    model = context_model()
    index = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    index[:, 6:10, 6:10, 6:10] = 1
    mask = torch.nn.functional.one_hot(index, 3).movedim(-1, 1).float()
    scan_ = torch.rand(1, 1, 16, 16, 16) * 2 - 1

    def made(context: torch.Tensor | None) -> torch.Tensor:
        return model.generate(Condition(mask, context), [5]).image

    inside, outside = scan_.clone(), scan_.clone()
    inside[:, :, 6:10, 6:10, 6:10] = 1.0
    outside[:, :, :3] = 1.0
    assert torch.equal(made(scan_), made(inside))
    assert not torch.allclose(made(scan_), made(outside), atol=1e-3)
    assert not torch.allclose(made(scan_), made(None), atol=1e-3)
    with pytest.raises(DataError, match="cannot paint into a scan"):
        tiny_model().generate(Condition(mask, scan_), [5])


def test_a_removed_lesion_leaves_a_healthy_counterpart_paired_with_its_scan(tmp_path: Path) -> None:
    model, request = context_model(0.25), mask(tmp_path)
    host = replace(scan(tmp_path, "host", 0, np.float32), mask=request.mask)
    plain = scan(tmp_path, "plain", 0, np.float32)
    brighter = nifti.read(plain.images[0])[0].copy()
    lesion = nifti.read_labels(host.mask)[0] > 0  # type: ignore[arg-type]
    brighter[lesion] = 250
    nifti.write(tmp_path / "other.nii.gz", brighter, turned(SPACING, 20))
    other = Case("other", "other", (tmp_path / "other.nii.gz",), request.mask)

    def removed(case: Case, out: str) -> np.ndarray:
        wanted = requests_of([case])
        made = synthesize(model, wanted, tmp_path / out, Accelerator(cpu=True), hosts=[case], remove=True, steps=3)
        (one,) = made.cases
        assert not nifti.read_labels(one.mask)[0].any()  # type: ignore[arg-type]
        assert one.parents == (case.patient_id,)
        return nifti.read(one.images[0])[0]

    healthy, before = removed(host, "out"), nifti.read(host.images[0])[0]
    away = distance_to(lesion, SPACING)
    assert np.array_equal(healthy[away >= model.blend().end_mm], before[away >= model.blend().end_mm])
    assert (healthy[lesion] != before[lesion]).mean() > 0.9
    assert (
        np.abs(removed(other, "again") - healthy)[lesion].mean() < 3
    )  # it saw none of the lesion but what splines spread
    header, row = (tmp_path / "out" / "pairs.csv").read_text(encoding="utf-8").split()
    facts = dict(zip(header.split(","), row.split(","), strict=True))
    assert facts["scan_file"] == str(host.images[0])
    assert facts["mask_file"] == str(host.mask)
    assert np.array_equal(nifti.read(tmp_path / "out" / facts["healthy_file"])[0], healthy)
    for unable, case in ((context_model(0.0), host), (tiny_model(), host)):
        with pytest.raises(DataError):
            synthesize(unable, [request], tmp_path / "no", Accelerator(cpu=True), hosts=[case], remove=True, steps=3)


def test_a_share_of_cases_trains_on_a_cut_of_healthy_tissue(workplace: Path, trained_ldm: Path) -> None:
    config = load(
        LdmRun, ldm_config(workplace, "unused", "ae", init_from=str(trained_ldm)), ["conditioner.context=true"]
    )
    model = tiny_model()
    conditioner = ContextConditioner(3, model.autoencoder.factors, 2, model.autoencoder.latent_channels, 2.0, 0.25)
    loss = DenoiserLoss(config, model.autoencoder, conditioner, model.domain)
    rows = 400
    mean = torch.zeros(rows, 4, 4, 4, 4)
    mask = torch.zeros(rows, 3, 16, 16, 16)
    mask[:, 0] = 1
    batch = {
        "mean": mean, "deviation": mean, "mask": mask, "position": torch.arange(rows),
        "host_mean": mean + 1, "decoy_mean": mean + 2,
    }  # fmt: skip

    class Seen(torch.nn.Module):
        def forward(self, x_t: torch.Tensor, t: torch.Tensor, given: Conditioning) -> torch.Tensor:
            host = given.spatial[:, -5:-1].mean(dim=(1, 2, 3, 4))
            self.hosts = host[given.spatial[:, -1].mean(dim=(1, 2, 3)) > 0]
            return x_t

    network = Seen()
    loss({"denoiser": network}, batch, {})
    shares = [(network.hosts == host).float().mean() for host in network.hosts.unique()]
    assert len(shares) == 2
    assert abs(min(shares) - 0.25) < 0.06


def test_the_blend_covers_all_that_the_model_could_not_see() -> None:
    """What is generated stands alone as far as the scan was cut; the scan takes over across more than a cell."""
    model = context_model()
    cut = 2.0
    cell = 4 * max(model.grid.spacing_mm)
    blend = model.blend()
    assert blend.share(np.array([0.0, cut])).tolist() == [1, 1]
    assert blend.share(np.array([blend.end_mm, blend.end_mm + 1])).tolist() == [0, 0]
    assert blend.end_mm > cut + cell
    assert model.blend(cut + cell) == Blend(cut, cut + cell)
    with pytest.raises(ConfigError, match=rf"margin {cut + cell - 0.5:g} mm is too narrow.* at least {cut + cell:g}"):
        model.blend(cut + cell - 0.5)
    assert rules().blend(0.5) == Blend(0.0, 0.5)  # sees the whole scan


def test_what_the_cut_hides_weighs_more_than_what_is_copied(workplace: Path, trained_ldm: Path) -> None:
    """With a denoiser that is wrong in one cell: how much the loss rises says what the cell weighs."""
    file = ldm_config(workplace, "unused", "ae", init_from=str(trained_ldm))
    config = load(LdmRun, file, ["conditioner.context=true", "conditioner.cut_weight=3", "diffusion.lesion_weight=1"])
    model = context_model()
    conditioner = ContextConditioner(3, (4, 4, 4), 1, 4, 2.0)
    loss = DenoiserLoss(config, model.autoencoder, conditioner, model.domain)
    mean = torch.randn(2, 4, 4, 4, 4)
    host = mean.clone()
    host[:, :, 1, 2, 3] += 1
    mask = torch.zeros(2, 3, 16, 16, 16)
    mask[:, 0] = 1
    batch = {"mean": mean, "host_mean": host, "mask": mask, "deviation": torch.zeros_like(mean)}

    class Right(torch.nn.Module):
        """Knows the answer, but for one cell."""

        def __init__(self, cell: tuple[int, int, int]):
            super().__init__()
            self.cell = cell

        def forward(self, x_t: torch.Tensor, t: torch.Tensor, given: object) -> torch.Tensor:
            out = model.autoencoder.whiten(mean).clone()
            out[(slice(None), slice(None), *self.cell)] += 1
            return out

    def losses(cell: tuple[int, int, int], seen: bool) -> torch.Tensor:
        keep = torch.tensor([True, True])
        rows = torch.tensor([1, 2]), torch.full((2,), 0.5), keep, torch.full((2,), seen)
        return loss.losses({"denoiser": Right(cell)}, batch, *rows)

    torch.testing.assert_close(losses((1, 2, 3), True), 3 * losses((0, 0, 0), True))
    torch.testing.assert_close(losses((1, 2, 3), False), losses((0, 0, 0), False))  # nothing to copy from


def test_a_model_learns_to_look_at_the_scan_starting_from_one_that_does_not(workplace: Path, trained_ldm: Path) -> None:
    file = ldm_config(workplace, "ldm-context", "ae", init_from=str(trained_ldm))
    config = load(LdmRun, file, ["train.images=8", "conditioner.context=true"])
    train_ldm(config)
    model = LatentDiffusion.from_pretrained(config.run)
    assert model.takes_context
    assert isinstance(model.conditioner, ContextConditioner)
    cohort = encoded_cohort(config.autoencoder, config.data, config.conditioner)
    item = cohort.training.item(0)
    volume = cohort.training.volumes.volume(0)
    cut = Cut(tuple(model.domain.lesion_indices), config.conditioner.cut_margin_mm, model.grid.spacing_mm)
    bare = torch.from_numpy(cut(volume.image, volume.mask))[None]
    expected = model.autoencoder.moments(bare.repeat(2, 1, 1, 1, 1)).mean[0]
    torch.testing.assert_close(item["host_mean"], expected, atol=1e-4, rtol=1e-4)
    assert not torch.equal(item["host_mean"], item["mean"])

    plain = encoded_cohort(config.autoencoder, config.data)
    assert "host_mean" not in plain.training.item(0)  # another cache
    loss = DenoiserLoss(config, model.autoencoder, model.conditioner, model.domain)
    batch = {key: value[None] for key, value in item.items()}
    t, keep = torch.tensor([0.5]), torch.tensor([True])
    seen, unseen = (
        loss.losses({"denoiser": model.denoiser}, batch, torch.tensor([1]), t, keep, torch.tensor([host]))
        for host in (True, False)
    )
    assert not torch.equal(seen, unseen)


def test_only_more_conditioning_can_be_learnt(workplace: Path, trained_ldm: Path) -> None:
    config = load(
        LdmRun, ldm_config(workplace, "unused", "ae", init_from=str(trained_ldm)), ["conditioner.context=true"]
    )
    conditioner = build_conditioner(config.conditioner, 4, (4, 4, 4), 4)
    denoiser, ledger = initial(config, 4, conditioner.channels)
    assert denoiser.config["spatial_channels"] == conditioner.channels
    assert ledger.patients
    assert not MaskConditioner(4, (4, 4, 4)).takes_context
    manifest = Manifest.load(workplace / "manifest.json")
    assert len(ledger.seen(manifest.select("train"))[0]) == len(manifest.select("train"))
