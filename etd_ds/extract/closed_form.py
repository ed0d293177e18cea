"""Least-squares answers: affine maps, LayerNorms and low-rank attention heads that come nearest to given activations.

Legend of shape suffixes here: T tokens, F features, G targets, H hidden, E teacher head size, D student head size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-2
"""Penalty on weights, in mean variances of a feature: it keeps directions that the sample hardly has out of the fit."""


class Affine(NamedTuple):
    """y ≈ x Wᵀ + b, in `nn.Linear`'s layout."""

    weight_GF: Tensor
    bias_G: Tensor


def affine(x_TF: Tensor, y_TG: Tensor, *, ridge: float = RIDGE) -> Affine:
    """Ridge regression of `y_TG` on `x_TF` with a free intercept: argmin |xWᵀ + b − y|² / T + λ|W|².

    λ is `ridge` times what the features' variances are on average, so it depends neither on their scale nor on T.
    Solved in fp64; the answer has the features' dtype.
    """
    x_F, y_G = x_TF.mean(0), y_TG.mean(0)
    centred_TF = x_TF - x_F
    gram_FF = (centred_TF.T @ centred_TF).double()
    moment_FG = (centred_TF.T @ (y_TG - y_G)).double()
    # a feature that never changes explains nothing: with the tiny term its weight is 0 rather than undefined
    tiny = torch.finfo(torch.float64).tiny
    gram_FF.diagonal().add_(ridge * gram_FF.diagonal().mean() + tiny)
    weight_GF = torch.linalg.solve(gram_FF, moment_FG).T
    bias_G = y_G.double() - weight_GF @ x_F.double()
    return Affine(weight_GF.to(x_TF.dtype), bias_G.to(x_TF.dtype))


def layer_norm(x_TH: Tensor, y_TH: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
    """Scale and shift (γ, β), each (H,), with which LayerNorm(x) comes nearest to y in every dimension."""
    z_TH = F.layer_norm(x_TH, x_TH.shape[-1:], eps=eps)
    z_H, y_H = z_TH.mean(0), y_TH.mean(0)
    centred_TH = z_TH - z_H
    variance_H = centred_TH.square().sum(0).clamp_min(torch.finfo(x_TH.dtype).tiny)
    scale_H = (centred_TH * (y_TH - y_H)).sum(0) / variance_H
    return scale_H, y_H - scale_H * z_H


def low_rank_scores(q_TE: Tensor, k_TE: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Two bases (E, D), D = `rank`: (q A)(k B)ᵀ is the nearest to q kᵀ, over all pairs of tokens, of that rank.

    With C_q = qᵀq, C_k = kᵀk and the SVD C_q^½ C_k^½ = U S Vᵀ: A = C_q^-½ U_D S_D^½ and B = C_k^-½ V_D S_D^½, by the
    theorem of Eckart and Young.
    """
    (q_half_EE, q_back_EE), (k_half_EE, k_back_EE) = _root(q_TE), _root(k_TE)
    left_EE, values_E, right_EE = torch.linalg.svd(q_half_EE @ k_half_EE)
    root_D = values_E[:rank].sqrt()
    a_ED, b_ED = q_back_EE @ left_EE[:, :rank] * root_D, k_back_EE @ right_EE[:rank].T * root_D
    return a_ED.to(q_TE.dtype), b_ED.to(k_TE.dtype)


def low_rank_output(v_TE: Tensor, output_HE: Tensor, rank: int) -> Tensor:
    """A basis (E, D), D = `rank`: from v's components in it, v's output v outputᵀ can be told with the least error."""
    half_EE, back_EE = _root(v_TE - v_TE.mean(0))
    left_EE, _, _ = torch.linalg.svd(half_EE @ output_HE.double().T, full_matrices=False)
    basis_ED: Tensor = back_EE @ left_EE[:, :rank]
    return basis_ED.to(v_TE.dtype)


def _root(x_TE: Tensor) -> tuple[Tensor, Tensor]:
    """C^½ and C^-½ of the mean second moment C = xᵀx / T, both (E, E) fp64."""
    moment_EE = (x_TE.T @ x_TE).double() / len(x_TE)
    values_E, vectors_EE = torch.linalg.eigh(moment_EE)
    # directions that the sample has not are made harmless, not infinite
    root_E = values_E.clamp_min(1e-10 * values_E.max().clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
    return vectors_EE * root_E @ vectors_EE.T, vectors_EE / root_E @ vectors_EE.T
