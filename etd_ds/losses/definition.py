"""The losses as the papers write them: padded tensors, n × n matrices, autograd. The fast forms are held to these."""

from __future__ import annotations

import torch
from torch import Tensor


def score_mse(
    q_s_BSND: Tensor, k_s_BSND: Tensor, q_t_BSNE: Tensor, k_t_BSNE: Tensor, mask_BS: Tensor, *, compat: bool = False
) -> Tensor:
    """MSE of the pre-softmax scores QKᵀ/√d, mean over heads and pairs [ETD Eq. 4, TinyBERT Eq. 7].

    Pairs are valid query × valid key; `compat` zeroes masked keys only and divides by all entries.
    """
    difference_BNSS = _scores(q_s_BSND, k_s_BSND) - _scores(q_t_BSNE, k_t_BSNE)
    keys_BNSS = mask_BS[:, None, None, :]
    if compat:
        return (difference_BNSS * keys_BNSS).square().mean()
    valid_BNSS = (mask_BS[:, None, :, None] * keys_BNSS).expand_as(difference_BNSS)
    return difference_BNSS.square().mul(valid_BNSS).sum() / valid_BNSS.sum()


def hidden_mse(projected_BSH: Tensor, h_t_BSH: Tensor, mask_BS: Tensor, *, compat: bool = False) -> Tensor:
    """MSE of hidden states, H_S·W + b against H_T [ETD Eq. 4]: mean over valid tokens, or over all with `compat`."""
    square_BSH = (projected_BSH - h_t_BSH).square()
    if compat:
        return square_BSH.mean()
    valid_BSH = mask_BS[:, :, None].expand_as(square_BSH)
    return square_BSH.mul(valid_BSH).sum() / valid_BSH.sum()


def relation_kl(q_s_BSND: Tensor, k_s_BSND: Tensor, q_t_BSNE: Tensor, k_t_BSNE: Tensor, mask_BS: Tensor) -> Tensor:
    """KL(softmax A_T ‖ softmax A_S) over valid keys, mean over heads and valid queries [MiniLM Eq. 6].

    With values for queries and keys alike it is the value relation [MiniLM Eq. 7, 8].
    """
    closed_BNSS = (mask_BS == 0)[:, None, None, :]
    log_t_BNSS = _scores(q_t_BSNE, k_t_BSNE).masked_fill(closed_BNSS, -torch.inf).log_softmax(-1)
    log_s_BNSS = _scores(q_s_BSND, k_s_BSND).masked_fill(closed_BNSS, -torch.inf).log_softmax(-1)
    summand_BNSS = log_t_BNSS.exp() * (log_t_BNSS - log_s_BNSS).masked_fill(closed_BNSS, 0.0)
    rows_BNS = summand_BNSS.sum(-1)
    valid_BNS = mask_BS[:, None, :].expand_as(rows_BNS)
    return rows_BNS.mul(valid_BNS).sum() / valid_BNS.sum()


def _scores(q_BSND: Tensor, k_BSND: Tensor) -> Tensor:
    q_BNSD, k_BNSD = q_BSND.transpose(1, 2), k_BSND.transpose(1, 2)
    scores_BNSS: Tensor = q_BNSD @ k_BNSD.mT / q_BSND.shape[-1] ** 0.5
    return scores_BNSS
