"""Networks that turn volumes into features: random weights, or a network on this machine. Nothing is fetched."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from latentsynth.errors import CheckpointError, DataError
from latentsynth.extractors.bundles import build_network, config_file, existing, last_tensor, load_script
from latentsynth.provenance import file_fingerprint, fingerprint

CHOICES = ("random", "random:SEED", "torchscript:PATH", "onnx:PATH", "bundle:PATH", "bundle:PATH:LAYER")
_TOGETHER = "Images in [-1, 1] are given as they are, all channels together."
_ALONE = "Images in [-1, 1] are given as they are, each channel alone; the features of the channels are joined."


class Extractor(ABC):
    """Turns volumes into features, on the CPU, without gradients, the same way every time.

    Attributes:
        name: What to call it in a report.
        fingerprint: Sixteen hexadecimal digits that change when the features could.
        preprocessing: One sentence on what happens to the images before the network.
        together: Images that are given to the network at once. More than one only where no feature depends on what
            else is in the batch, but for rounding.
    """

    together = 1

    name: str
    fingerprint: str
    preprocessing: str

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features of some images; they do not depend on what else is in the batch.

        Args:
            images: In [-1, 1], shape ``(B, C, I, J, K)``, on any device.

        Returns:
            Float32 on the CPU, shape ``(B, F)``.

        Raises:
            DataError: The network cannot take such images, or what it returns is no feature vector.
        """
        if images.ndim != 5:
            raise DataError(f"images have shape {tuple(images.shape)}, expected (B, C, I, J, K): add what is missing")
        found = torch.cat([self._features(image) for image in images.detach().cpu().float().split(self.together)])
        if found.ndim != 2 or len(found) != len(images):
            raise DataError(
                f"{self.name} gave {tuple(found.shape)} for {len(images)} images: one row for each is needed"
            )
        return found

    @abstractmethod
    def _features(self, image: Tensor) -> Tensor:
        """Features ``(B, F)`` of up to :attr:`together` images ``(B, C, I, J, K)``."""


class RandomNetwork(Extractor):
    """A 3D convolutional network with fixed random weights (He et al. 2015, eq. 14), which needs no training data.

    Four convolutions of stride 2 (32, 64, 128, 256 maps) with leaky rectifiers, no normalisation. The features are the
    mean and the standard deviation of each map of the last three.

    Args:
        channels: Image channels C.
        seed: Seed of the weights; the global random state is neither used nor changed.
    """

    _WIDTHS = (32, 64, 128, 256)
    _SLOPE = 0.2
    _SMALLEST = 16

    def __init__(self, channels: int, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        digest = hashlib.sha256()
        self._weights: list[Tensor] = []
        before = channels
        for width in self._WIDTHS:
            weight = torch.randn((width, before, 3, 3, 3), generator=generator, dtype=torch.float32)
            weight *= (2 / (1 + self._SLOPE**2) / (27 * before)) ** 0.5
            self._weights.append(weight)
            digest.update(weight.numpy().tobytes())
            before = width
        self.name = f"random:{seed}"
        self.fingerprint = fingerprint(["random", digest.hexdigest()])
        self.preprocessing = _TOGETHER

    def _features(self, image: Tensor) -> Tensor:
        channels = self._weights[0].shape[1]
        if image.shape[1] != channels or min(image.shape[2:]) < self._SMALLEST:
            raise DataError(
                f"image has {image.shape[1]} channels and {tuple(image.shape[2:])} voxels, expected {channels} channels "
                f"and at least {self._SMALLEST} voxels per axis: make the network for this cohort, or use a larger grid"
            )
        levels = []
        for weight in self._weights:
            # Replicated rim: zeros would paint a grey frame around the black background.
            image = F.leaky_relu(F.conv3d(F.pad(image, (1,) * 6, mode="replicate"), weight, stride=2), self._SLOPE)
            levels.append(image.flatten(2))
        parts = [part for level in levels[1:] for part in (level.mean(2), level.std(2, correction=0))]
        return torch.cat(parts, dim=1)


class NetworkExtractor(Extractor):
    """A network in memory.

    Args:
        name: What to call it.
        fingerprint: Of its weights.
        network: Images ``(B, C, I, J, K)`` to features ``(B, F)``, each image for itself.
    """

    together = 8

    def __init__(self, name: str, fingerprint: str, network: Callable[[Tensor], Tensor]):
        self.name, self.fingerprint, self.preprocessing, self._network = name, fingerprint, _TOGETHER, network

    def _features(self, image: Tensor) -> Tensor:
        return self._network(image).float()


class _DiskNetwork(Extractor):
    """A network from a file. If it refuses an image of several channels, it gets each of them alone."""

    _alone: bool | None = None  # unknown until it has seen an image of several channels

    @abstractmethod
    def _run(self, image: Tensor) -> Any:
        """Whatever the network returns for ``(1, C, I, J, K)``."""

    def _features(self, image: Tensor) -> Tensor:
        ways = [False, True][: image.shape[1]] if self._alone is None else [self._alone]
        errors = []
        for alone in ways:
            try:
                outputs = [self._run(part) for part in (image.split(1, dim=1) if alone else [image])]
            except Exception as error:  # every runtime has errors of its own
                errors.append(error)
                continue
            if image.shape[1] > 1:
                self._alone, self.preprocessing = alone, _ALONE if alone else _TOGETHER
            return torch.cat([self._vector(output) for output in outputs], dim=1)
        reasons = "; each channel alone: ".join(" ".join(str(error).split()) for error in errors)
        raise DataError(
            f"{self.name} cannot take an image of shape {tuple(image.shape)} ({reasons}): "
            f"use a network for {image.shape[1]} channels, or for 1, and this number of voxels"
        ) from errors[-1]

    def _vector(self, output: Any) -> Tensor:
        tensor = last_tensor(output)
        if tensor is not None and tensor.ndim == 5:
            tensor = tensor.mean((2, 3, 4))
        if tensor is None or tensor.ndim != 2 or len(tensor) != 1:
            found = type(output).__name__ if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"
            raise DataError(
                f"{self.name} returns {found} for one image, expected features (1, F) or maps (1, F, I, J, K): "
                "export the network up to such a layer"
            )
        return tensor.float()


class TorchScriptNetwork(_DiskNetwork):
    """A TorchScript file (``torch.jit.save``).

    Args:
        path: The file.

    Raises:
        CheckpointError: It is missing, or not TorchScript.
    """

    def __init__(self, path: Path | str):
        path = existing(path)
        self._network = load_script(path)
        self.name, self.fingerprint, self.preprocessing = f"torchscript:{path.name}", file_fingerprint(path), _TOGETHER

    def _run(self, image: Tensor) -> Any:
        return self._network(image)


class OnnxNetwork(_DiskNetwork):
    """An ONNX file with one input, run by onnxruntime on the CPU.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is missing, not ONNX, or has several inputs.
        DataError: onnxruntime is not installed.
    """

    def __init__(self, path: Path | str):
        path = existing(path)
        try:
            import onnxruntime
        except ImportError as error:
            raise DataError(f"{path} needs onnxruntime, which is not installed: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what matters is raised
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no common base
            raise CheckpointError(f"{path} is not a readable ONNX file ({error}): export it again") from error
        inputs = [value.name for value in self._session.get_inputs()]
        if len(inputs) != 1:
            raise CheckpointError(f"{path} has inputs {inputs}, expected one image: export the network alone")
        beside = path.with_name(f"{path.name}.data")  # where exporters put weights that are too large for the file
        self._input = inputs[0]
        self.name, self.preprocessing = f"onnx:{path.name}", _TOGETHER
        self.fingerprint = file_fingerprint(path, *([beside] if beside.is_file() else []))

    def _run(self, image: Tensor) -> Any:
        return [torch.as_tensor(value) for value in self._session.run(None, {self._input: image.numpy()})]


class BundleNetwork(_DiskNetwork):
    """A MONAI bundle: ``models/model.ts`` if there, else ``network_def`` with the weights ``models/model.pt``.

    Args:
        path: The folder of the bundle.
        layer: Dotted name of the module whose output is wanted, for example ``"model.1"``; None takes that of the
            network. It needs ``network_def`` and ``models/model.pt``, as a TorchScript file cannot be looked into.

    Raises:
        CheckpointError: The folder is no bundle, is damaged, or would run code.
        DataError: The network has no such layer.
    """

    def __init__(self, path: Path | str, layer: str | None = None):
        folder = existing(path)
        scripted = folder / "models" / "model.ts"
        if scripted.is_file() and layer is None:
            files = [scripted]
            self._network = load_script(scripted)
        else:
            files = [folder / "models" / "model.pt", config_file(folder)]
            self._network = build_network(folder)
        self.name = f"bundle:{folder.name}" + (f":{layer}" if layer else "")
        self.fingerprint = fingerprint([file_fingerprint(*files), layer])
        self.preprocessing = _TOGETHER
        self._captured: list[Any] | None = None
        if layer is not None:
            modules = dict(self._network.named_modules())
            if not layer or layer not in modules:
                raise DataError(f"{self.name}: no layer {layer!r}: choose one of {', '.join(filter(None, modules))}")
            modules[layer].register_forward_hook(self._capture)
            self._captured = []

    def _capture(self, module: nn.Module, inputs: Any, output: Any) -> None:
        assert self._captured is not None
        self._captured.append(output)

    def _run(self, image: Tensor) -> Any:
        if self._captured is None:
            return self._network(image)
        self._captured.clear()
        self._network(image)
        if not self._captured:
            raise RuntimeError("the layer is not used in the forward pass")
        return self._captured.pop()


def extractor(spec: str, channels: int) -> Extractor:
    """The extractor that a word names.

    Args:
        spec: ``random``, ``random:SEED``, ``torchscript:PATH``, ``onnx:PATH``, ``bundle:PATH`` or
            ``bundle:PATH:LAYER``.
        channels: Image channels C of the cohort.

    Raises:
        DataError: Unknown word, or a seed that is not a whole number.
        CheckpointError: The file is missing or wrong.
    """
    kind, _, rest = spec.partition(":")
    match kind:
        case "random" if not rest or rest.isdecimal():
            return RandomNetwork(channels, int(rest or 0))
        case "torchscript" if rest:
            return TorchScriptNetwork(rest)
        case "onnx" if rest:
            return OnnxNetwork(rest)
        case "bundle" if rest:
            folder, _, layer = rest.rpartition(":")
            whole = not folder or Path(rest).is_dir()
            return BundleNetwork(rest) if whole else BundleNetwork(folder, layer)
    raise DataError(f"unknown extractor {spec!r}: choose one of {', '.join(CHOICES)}")
