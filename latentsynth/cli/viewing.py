"""Commands that open a page on this machine: ``view`` and ``studio``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from latentsynth.cli.options import LOOK_AROUND, app, one_of, say

if TYPE_CHECKING:
    from latentsynth.viewer.server import LocalServer


@app.command(rich_help_panel=LOOK_AROUND)
def view(
    paths: Annotated[
        list[Path],
        typer.Argument(help="NIfTI files, manifests, folders of either; memorization.json for nearest training cases"),
    ],
    browser: Annotated[bool, typer.Option(help="Open the page in the browser of this machine")] = True,
) -> None:
    """Look at volumes in a browser: linked slices and 3D, masks, real beside synthetic. Nothing leaves this machine."""
    from latentsynth.viewer.collection import entries
    from latentsynth.viewer.server import Viewer

    viewer = Viewer(entries(paths))
    say(f"{viewer.address}\nCtrl-C ends it")
    _serve(viewer, browser)


@app.command(rich_help_panel=LOOK_AROUND)
def animate(
    paths: Annotated[list[Path], typer.Argument(help="NIfTI files, manifests, folders of either, run folders")],
    out: Annotated[Path, typer.Option(help="Picture to write, .gif or .webp")],
    over: Annotated[
        str, typer.Option(help="slices: a walk through volumes side by side; cases: one volume after another")
    ] = "slices",
    count: Annotated[int, typer.Option(help="Volumes, the first ones", min=1)] = 3,
) -> None:
    """Write a moving picture of volumes, with the outlines of their masks."""
    from latentsynth.viewer.collection import entries
    from latentsynth.viewer.moving import moving_picture

    one_of("--over", over, ("slices", "cases"))
    say(f"picture: {moving_picture(out, entries(paths)[:count], over)}")  # type: ignore[arg-type]


@app.command(rich_help_panel=LOOK_AROUND)
def studio(
    checkpoint: Annotated[Path, typer.Argument(help="Latent diffusion model: run, checkpoint, or one of the package")],
    out: Annotated[Path, typer.Option(help="Folder for masks and volumes; nothing is written outside")] = Path(
        "studio"
    ),
    masks: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Model of masks, for new ones [default: that of the package, for a model of the package]"),
    ] = None,
    host: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Manifest of scans that lesions may be painted into"),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of --host")] = "val",
    browser: Annotated[bool, typer.Option(help="Open the page in the browser of this machine")] = True,
) -> None:
    """Draw masks and paint them, in a browser: ellipsoids, files or new masks; several seeds side by side. Nothing leaves this machine."""
    from latentsynth.data.manifest import SPLITS, Manifest
    from latentsynth.masks.learnt import load_mask_maker
    from latentsynth.models import packaged
    from latentsynth.parallel import start
    from latentsynth.studio.server import Studio
    from latentsynth.synthesizers import LatentDiffusion

    one_of("--split", split, SPLITS)
    model = LatentDiffusion.from_pretrained(checkpoint)
    masks = masks or packaged(f"{checkpoint}-masks")
    maker = None if masks is None else load_mask_maker(masks)
    hosts = () if host is None else Manifest.load(host).select(split)  # type: ignore[arg-type]
    accelerator = start()
    server = Studio(model.to(accelerator.device), out, accelerator, maker, hosts)
    say(f"{server.address}\nmasks and volumes go to {out}; Ctrl-C ends it")
    _serve(server, browser)


def _serve(server: LocalServer, browser: bool) -> None:
    """Until it is interrupted."""
    import webbrowser

    if browser:
        webbrowser.open(server.address)
    try:
        server.serve_forever()
    finally:
        server.server_close()
