"""The training loss: relative L2 error plus weighted relative energy error, the mean over samples."""

import torch
from jaxtyping import Float
from torch import Tensor

from operators import darcy_stencil
from training.batches import Batch
from training.config import LossSection


def relative_l2(
    predicted: Float[Tensor, "batch 1 y x"], reference: Float[Tensor, "batch 1 y x"]
) -> Float[Tensor, " batch"]:
    """``||p - p_ref|| / ||p_ref||`` per sample."""
    error, scale = (predicted - reference).flatten(1), reference.flatten(1)
    ratio: Tensor = torch.linalg.vector_norm(error, dim=1) / torch.linalg.vector_norm(scale, dim=1)
    return ratio


def relative_energy(
    predicted: Float[Tensor, "batch 1 y x"],
    reference: Float[Tensor, "batch 1 y x"],
    faces: darcy_stencil.Transmissibilities,
) -> Float[Tensor, " batch"]:
    """``||p - p_ref||_A / ||p_ref||_A`` per sample: the relative error of the flux."""
    norm = darcy_stencil.energy_norm
    return norm(faces, predicted - reference) / norm(faces, reference)


def loss(
    predicted: Float[Tensor, "batch 1 y x"],
    batch: Batch,
    spacing: tuple[float, float],
    scheme: str,
    weights: LossSection,
) -> Float[Tensor, ""]:
    """The weighted sum, averaged over the samples; both errors are ratios, so units and scales drop out."""
    predicted = predicted.float()
    errors = weights.relative_l2 * relative_l2(predicted, batch.pressure)
    if weights.energy > 0:
        faces = darcy_stencil.transmissibilities(batch.permeability, spacing, scheme)
        errors = errors + weights.energy * relative_energy(predicted, batch.pressure, faces)
    return errors.mean()
