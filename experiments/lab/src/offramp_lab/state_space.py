"""Mamba-2's layer over whole sequences, for training on a processor: the same as transformers', but faster.

What it computes is "Transformers are SSMs" (arXiv 2405.21060), section 6: within a chunk by products of all
pairs of its tokens, between chunks by their states. transformers' path without kernels repeats what all heads
share for each head, and reorders it for each product; here it is multiplied once for all heads, as it lies.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def made_fast(model: Any) -> Any:
    """The model; a Mamba-2 of one group computes this way from now on, where it is given no cache or mask."""
    if model.config.model_type == "mamba2" and model.config.n_groups == 1:
        for layer in model.backbone.layers:
            layer.mixer.forward = functools.partial(_mixed, layer.mixer, layer.mixer.forward)
    return model


def _mixed(
    mixer: Any, own: Any, hidden: Tensor, cache: Any = None, attention_mask: Tensor | None = None, **more: Any
) -> Tensor:
    """What a layer adds [batch, tokens, hidden] to states [batch, tokens, hidden]."""
    if cache is not None or attention_mask is not None:
        found: Tensor = own(hidden, cache=cache, attention_mask=attention_mask, **more)
        return found
    inner, state = mixer.intermediate_size, mixer.ssm_state_size
    gate, mixed, step = mixer.in_proj(hidden).split([inner, mixer.conv_dim, mixer.num_heads], dim=-1)
    mixed = mixer.act(_convolved(mixed, mixer.conv1d.weight, mixer.conv1d.bias))
    values, written, read = mixed.split([inner, state, state], dim=-1)
    values = values.reshape(*values.shape[:-1], mixer.num_heads, mixer.head_dim)
    step = F.softplus(step + mixer.dt_bias).clamp(*mixer.time_step_limit)
    decay = -mixer.A_log.exp() * step
    scanned = scan(values * step[..., None], decay, written, read, mixer.chunk_size)
    scanned = scanned + mixer.D[:, None] * values
    projected: Tensor = mixer.out_proj(mixer.norm(scanned.flatten(-2), gate))
    return projected


def _convolved(channels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of every channel by itself its last tokens, weighed: [batch, tokens, channels].

    weight: [channels, 1, tokens looked at].
    """
    looked_at, tokens = weight.shape[-1], channels.shape[1]
    padded = F.pad(channels, (0, 0, looked_at - 1, 0))
    found = padded[:, :tokens] * weight[:, 0, 0]
    for place in range(1, looked_at):
        found = torch.addcmul(found, padded[:, place : place + tokens], weight[:, 0, place])
    return found if bias is None else found + bias


def scan(values: Tensor, decay: Tensor, written: Tensor, read: Tensor, chunk: int) -> Tensor:
    """y_t = C_t . S_t with S_t = exp(a_t) S_(t-1) + x_t B_t, for every head: [batch, tokens, heads, size].

    values: x [batch, tokens, heads, size]. decay: a [batch, tokens, heads], not above 0. written, read: B and
    C [batch, tokens, state], the same for all heads. chunk: tokens that are computed at once.
    """
    batch, tokens, heads, size = values.shape
    if more := -tokens % chunk:
        values, decay = F.pad(values, (0, 0, 0, 0, 0, more)), F.pad(decay, (0, 0, 0, more))
        written, read = F.pad(written, (0, 0, 0, more)), F.pad(read, (0, 0, 0, more))
    chunked = (batch, -1, chunk)
    # b c h l p, b c h l, b c l n, b c l n: batch, chunks, heads, tokens of a chunk, size of a head, state.
    values = values.reshape(*chunked, heads, size).transpose(2, 3)
    until = decay.reshape(*chunked, heads).transpose(2, 3).cumsum(-1)
    written, read = (one.reshape(*chunked, one.shape[-1]) for one in (written, read))

    apart = until[..., :, None] - until[..., None, :]
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=values.device).triu(1)
    kept = apart.masked_fill(later, -torch.inf).exp()
    within = ((read @ written.mT)[:, :, None] * kept) @ values

    left = values * (until[..., -1:] - until).exp()[..., None]
    left = left.transpose(-1, -2).flatten(2, 3) @ written  # b c (h p) n
    lasting = until[..., -1].exp().repeat_interleave(size, -1)[..., None]  # b c (h p) 1
    states = [torch.zeros_like(left[:, 0])]
    for decayed, added in zip(lasting.unbind(1)[:-1], left.unbind(1)[:-1], strict=True):
        states.append(torch.addcmul(added, states[-1], decayed))
    before = (read @ torch.stack(states, 1).mT).reshape(*chunked, heads, size)  # b c l h p
    before = before * until.exp().transpose(2, 3)[..., None]
    return (within.transpose(2, 3) + before).flatten(1, 2)[:, :tokens]
