"""Commands that make masks: ``masks`` and ``balance``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from latentsynth.cli.options import MAKE, MOST, SPLITS, app, between, expression, one_of, say

Set = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="KEY=VALUE of the method's settings, for example deform.elastic_mm=6; repeatable"),
]
Inside = Annotated[
    Optional[list[int]],  # noqa: UP045
    typer.Option(help="Label value of the organ that lesions stay in; repeatable [default: the field of view]"),
]
Lesions = Annotated[
    Optional[list[int]],  # noqa: UP045
    typer.Option(help="Label value that counts as lesion; repeatable [default: every label but --inside]"),
]


@app.command(rich_help_panel=MAKE)
def masks(
    out: Annotated[Path, typer.Option(help="Output folder")],
    checkpoint: Annotated[Optional[Path], typer.Argument(help="Run of `train masks`; or give --real")] = None,  # noqa: UP045
    real: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Manifest of real masks, to make new ones from without training"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --real")] = "train",
    method: Annotated[
        str, typer.Option(help="With --real: deform (change them) or procedural (rough ellipsoids)")
    ] = "deform",
    n: Annotated[int, typer.Option("--n", help="How many masks", min=1, max=MOST)] = 100,
    volume_ml: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="LOW:HIGH, volume of the lesions together [default: whatever comes]"),
    ] = None,
    lesions: Annotated[Optional[str], typer.Option(help="LOW:HIGH, connected lesions per mask")] = None,  # noqa: UP045
    lesion_label: Lesions = None,
    inside: Inside = None,
    into: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Manifest of subjects whose anatomy (labels) the lesions are put into"),
    ] = None,
    into_split: Annotated[str, typer.Option(help="Split of --into")] = "train",
    settings: Set = None,
    seed: Annotated[int, typer.Option(help="First seed")] = 0,
    batch: Annotated[int, typer.Option(help="Masks made together", min=1)] = 8,
) -> None:
    """Make new masks: with a trained model, from real ones, or by rule. A second run continues the first.

    `latentsynth sample RUN --masks OUT/manifest.json --split train` paints them.
    """
    for name, value in (("--split", split), ("--into-split", into_split)):
        one_of(name, value, SPLITS)
    one_of("--method", method, ("deform", "procedural"))
    if (checkpoint is None) == (real is None):
        raise typer.BadParameter("give CHECKPOINT, a run of `train masks`, or --real, a manifest of real masks")
    volume, count = between("--volume-ml", volume_ml), between("--lesions", lesions, whole=True)
    from latentsynth import strict
    from latentsynth.config import MaskSetConfig
    from latentsynth.data.manifest import Manifest
    from latentsynth.errors import DataError
    from latentsynth.masks import MaskMaker, Wanted, make_masks
    from latentsynth.masks.build import annotated, build_maker, lesion_values
    from latentsynth.masks.build import into as put_into
    from latentsynth.masks.learnt import load_mask_maker

    config = strict.changed(MaskSetConfig, {"method": method, "inside": inside or ()}, settings or [])
    hosts, subjects = [], None
    if into is not None:
        subjects = Manifest.load(into)
        hosts = annotated(subjects.select(into_split), subjects.labels)  # type: ignore[arg-type]
    maker: MaskMaker
    if real is not None:
        manifest = Manifest.load(real)
        if subjects is not None and subjects.labels != manifest.labels:
            raise DataError(
                f"--real has labels {dict(zip(manifest.labels.names, manifest.labels.values, strict=True))}, --into "
                f"{dict(zip(subjects.labels.names, subjects.labels.values, strict=True))}: relabel one of them"
            )
        cases = manifest.select(split)  # type: ignore[arg-type]
        maker = build_maker(config, cases, manifest.labels, lesion_values(manifest, lesion_label, config.inside), hosts)
    else:
        assert checkpoint is not None
        maker = load_mask_maker(checkpoint)
        if subjects is not None:
            maker = put_into(
                maker, hosts, subjects.labels, lesion_values(subjects, lesion_label, config.inside), config
            )
    wanted = Wanted(volume, None if count is None else (int(count[0]), int(count[1])))
    made = make_masks(maker, n, out, wanted, seed, batch)
    say(
        f"{len(made.cases)} masks: {out / 'manifest.json'}\nrejected: {out / 'rejected.csv'}\npicture: {out / 'contact_sheet.png'}"
    )


@app.command(rich_help_panel=MAKE)
def balance(
    manifest: Annotated[Path, typer.Argument(help="Manifest of real annotated cases")],
    by: Annotated[str, typer.Option(help="lesion_volume, location, label or site")],
    out: Annotated[Path, typer.Option(help="Output folder")],
    split: Annotated[str, typer.Option(help="train, val or test")] = "train",
    bins: Annotated[int, typer.Option(help="Kinds of lesion volume", min=2)] = 4,
    target: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Cases of each kind [default: as many as of the most frequent]", min=1),
    ] = None,
    site: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With --by site: regular expression whose first group, in the case id, is the site"),
    ] = None,
    method: Annotated[str, typer.Option(help="deform or procedural")] = "deform",
    lesion_label: Lesions = None,
    inside: Inside = None,
    settings: Set = None,
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Run of a generator that paints the masks; without it, masks alone are made"),
    ] = None,
    seed: Annotated[int, typer.Option(help="First seed")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what is missing, and stop")] = False,
) -> None:
    """Balance a cohort: plan which rare cases are missing, make their masks, and paint them."""
    one_of("--split", split, SPLITS)
    one_of("--by", by, ("lesion_volume", "location", "label", "site"))
    one_of("--method", method, ("deform", "procedural"))
    from rich.console import Console

    from latentsynth import outputs, strict
    from latentsynth.config import MaskSetConfig
    from latentsynth.data.exchange.requests import requests
    from latentsynth.data.manifest import Manifest
    from latentsynth.masks.build import lesion_values
    from latentsynth.parallel import start
    from latentsynth.sharing.balance import balance as fill_up
    from latentsynth.sharing.balance import plan
    from latentsynth.synthesis import synthesize
    from latentsynth.synthesizers import load_synthesizer

    expression("--site", site)
    config = strict.changed(MaskSetConfig, {"method": method, "inside": inside or ()}, settings or [])
    cohort = Manifest.load(manifest)
    lesions = lesion_values(cohort, lesion_label, config.inside)
    planned = plan(cohort, by, lesions, bins, target, site, split)  # type: ignore[arg-type]
    for name, count in planned.missing.items():
        say(f"{name}: {len(planned.real[name])} real, {count} missing")
    if dry_run:
        return
    outputs.claim(out, "balanced cohort")
    made, result = fill_up(planned, cohort.labels, lesions, config, out / "masks", seed)
    result.show(Console())
    say(f"{len(made.cases)} masks: {out / 'masks' / 'manifest.json'}")
    if checkpoint is not None:
        model = load_synthesizer(checkpoint)
        painted = synthesize(
            model, requests(out / "masks" / "manifest.json", "train"), out / "samples", start(), seed=seed, fit="scale"
        )
        say(
            f"{len(painted.cases)} volumes: {out / 'samples' / 'manifest.json'}\npicture: {out / 'samples' / 'contact_sheet.png'}"
        )
