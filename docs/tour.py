# %% [markdown]
# # A tour in Python
#
# New patients by the models that come with the package, then the whole road on phantoms: a cohort, a training, volumes, and whether they
# show their masks. Some minutes on one CPU core, without data or network. Nobody's scans are in it: masks and volumes are made here.
#
# `docs/tour.py` is the source; `make tour` runs it and writes the notebook `docs/tour.ipynb`.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import latentsynth
from latentsynth import LatentDiffusion

here = Path("runs/tour")  # everything is written below

# %% [markdown]
# ## New masks
#
# A model of masks makes label maps that nobody has drawn: here a hippocampus with its anterior (1) and posterior (2) part, voxels of 1 mm. A
# seed is a mask.

# %%
from latentsynth.masks import Wanted
from latentsynth.masks.learnt import load_mask_maker

maker = load_mask_maker("hippocampus-masks")
masks = maker.make([0, 1, 2], Wanted())
for mask in masks:
    print(
        mask.name, mask.values.shape, f"anterior {mask.volume_ml([1]):.2f} ml, posterior {mask.volume_ml([2]):.2f} ml"
    )

# %% [markdown]
# ## Volumes for them
#
# `model(mask, seed)` gives one nibabel image per channel on the mask's own grid. `mask` is a file, or an array with its affine.

# %%
model = LatentDiffusion.from_pretrained("hippocampus")
volumes = [[model((mask.values, mask.affine), seed=seed)[0].get_fdata() for seed in (0, 1)] for mask in masks]


def show(rows: list[list[np.ndarray]], titles: list[str], outlines: list[np.ndarray]) -> None:
    """A row of slices per mask, through the slice that holds most of it."""
    figure, axes = plt.subplots(
        len(rows), len(titles), figsize=(1.9 * len(titles), 1.9 * len(rows)), dpi=60, squeeze=False
    )
    for line, images, labels in zip(axes, rows, outlines, strict=True):
        k = int((labels > 0).sum((0, 1)).argmax())
        for axis, image, title in zip(line, images, titles, strict=True):
            axis.imshow(image[:, :, k].T, cmap="gray", origin="lower")
            if title == titles[0]:
                axis.contour(labels[:, :, k].T, levels=np.unique(labels)[1:] - 0.5, colors="tab:orange", linewidths=0.8)
            axis.set_title(title, fontsize=8)
            axis.axis("off")
    figure.tight_layout()
    plt.show()


show([[one, one, two] for one, two in volumes], ["mask", "seed 0", "seed 1"], [mask.values for mask in masks])

# %% [markdown]
# Two seeds of a mask differ outside of what the mask says, and the same seed gives the same volume, in any batch and on any day:

# %%
again = model((masks[0].values, masks[0].affine), seed=0)[0].get_fdata()
print("same seed, largest difference:", np.abs(again - volumes[0][0]).max())
one, two = volumes[0]
print(f"seeds 0 and 1, correlation: {np.corrcoef(one.ravel(), two.ravel())[0, 1]:.2f}")

# %% [markdown]
# ## For a training loop of your own
#
# A torch dataset of MONAI's dictionaries, whose patients are made when a loader asks for them.

# %%
from torch.utils.data import DataLoader

new = latentsynth.SampledPatients("hippocampus", 4, mask_model="hippocampus-masks", steps=8)
batch = next(iter(DataLoader(new, batch_size=4)))
print({key: value if key == "name" else tuple(value.shape) for key, value in batch.items()})

# %% [markdown]
# ## A training
#
# Patients for it: phantoms, one channel in Hounsfield units, with liver (1), kidney (2) and lesions (3). `prepare` checks every file and splits
# by patient; your own folder of scans takes its place.

# %%
from latentsynth.data.intake.prepare import prepare
from latentsynth.phantom.cohort import write_cohort

write_cohort(here / "cohort", 30, seed=0, shape=(32, 32, 32), spacing_mm=(6.0, 6.0, 6.0), channels=1)
report = prepare(here / "cohort", here / "manifest.json", fractions=(0.6, 0.2, 0.2))

# %% [markdown]
# The settings are those of a YAML file, as dictionaries. These runs take some minutes and are far too short to be good; `latentsynth plan` writes
# settings for a cohort and a machine.

# %%
from latentsynth.config import AutoencoderRun, LdmRun, SegmenterRun

grid = {"shape": [32, 32, 32], "spacing_mm": [6.0, 6.0, 6.0], "windows": [{"kind": "fixed", "low": -160, "high": 240}]}
framing, cache, manifest = {"lesion_labels": [3]}, str(here / "cache"), str(here / "manifest.json")
data = {"manifest": manifest, "grid": grid, "framing": framing, "cache": cache}
judged = {
    "train": [{"manifest": manifest}],
    "validation": {"manifest": manifest},
    "grid": grid,
    "framing": framing,
    "cache": cache,
}
schedule = {"batch": 8, "lr": 2e-3, "lr_warmup_images": 80, "ema_halflife_images": 160}

# %%
autoencoder = {"latent_channels": 8, "trunk": {"width": 32, "res_blocks": 1}}
loss = {"lesion_weight": 4.0}
denoiser = {"channels": [32, 64], "attention": [False, True], "res_blocks": 1, "head_channels": 32}
unet = {"channels": [8, 16, 32], "res_units": 1}

runs = [
    AutoencoderRun(
        run=here / "autoencoder", data=data, autoencoder=autoencoder, loss=loss, train={**schedule, "images": 1600}
    ),
    LdmRun(run=here / "ldm", autoencoder=here / "autoencoder", denoiser=denoiser, train={**schedule, "images": 5000}),
    SegmenterRun(run=here / "segmenter", data=judged, network=unet, train={**schedule, "lr": 1e-2, "images": 1000}),
]
for run in runs:
    print(run.run.name, {score: round(value, 2) for score, value in latentsynth.train(run).items()})

# %% [markdown]
# ## Volumes as a cohort
#
# What `latentsynth sample` does: NIfTI files in the layout of nnU-Net, with a manifest, made for the masks of patients whom nothing was
# trained on.

# %%
from latentsynth.data.exchange.requests import requests
from latentsynth.parallel import start

accelerator = start()
trained = latentsynth.load_synthesizer(here / "ldm")
asked = requests(here / "manifest.json", "test")
made = latentsynth.synthesize(trained, asked, here / "samples", accelerator, per_mask=2)
print(len(made.cases), "volumes for", len(asked), "masks")

# %%
import nibabel as nib

labels = [nib.load(request.mask).get_fdata() for request in asked[:3]]
images = [nib.load(case.images[0]).get_fdata() for case in made.cases]
show(
    [[first, first, second] for first, second in zip(images[:6:2], images[1:6:2], strict=True)],
    ["mask", "seed 0", "seed 1"],
    labels,
)

# %% [markdown]
# ## Are they what was asked for?
#
# A segmenter that knows real patients alone looks for the masks; its score on the patients themselves stands beside it. Every measurement is a
# result with tables, pictures and plain sentences, on the screen and as files.

# %%
from rich.console import Console

from latentsynth.evaluation.cohorts import Cohort
from latentsynth.evaluation.obedience.evaluate import evaluate_obedience

real = Cohort.load("real", here / "manifest.json", ("test",), annotated=True)
samples = Cohort.load("samples", here / "samples" / "manifest.json")
result = evaluate_obedience(here / "segmenter", [samples], [real], here / "obedience", accelerator)
result.tables[0].show(Console(width=100))

# %% [markdown]
# Further: [measure volumes](how-to/measure.md), [find copies and share](how-to/share.md), [train GANs](how-to/gans.md),
# [your own data](how-to/new-data.md).
