"""The mapping from features to generated factors, written out: standardise, clamp, MLP with GELU, bound, add c0."""

import math

import torch


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def standardised(feature, mean, std, clamp):
    return [max(-clamp, min(clamp, (f - m) / s)) for f, m, s in zip(feature, mean, std, strict=True)]


def affine(weight, bias, x):
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def generated(net, z, centres, bound):
    """One example: [c0 + b tanh(g / b)] per generated factor; `net` is the mapping net's state dict of numbers.

    A head per target: g is the next slice of one linear head. Shared: g_t = H (trunk(z) * e_t).
    """
    hidden = [gelu(h) for h in affine(net["trunk.weight"].tolist(), net["trunk.bias"].tolist(), z)]
    head, bias = net["head.weight"].tolist(), net["head.bias"].tolist()
    made, start = [], 0
    for number, centre in enumerate(centres):
        flat = centre.flatten().tolist()
        if "embedding" in net:
            scaled = [h * e for h, e in zip(hidden, net["embedding"][number].tolist(), strict=True)]
            g = affine(head, bias, scaled)[: len(flat)]
        else:
            g = affine(head, bias, hidden)[start : start + len(flat)]
            start += len(flat)
        g = [bound * math.tanh(v / bound) for v in g] if bound else g
        made.append(torch.tensor([c + v for c, v in zip(flat, g, strict=True)], dtype=torch.float64).view(centre.shape))
    return made


def between_class_share(features, labels):
    """Per feature: variance of the class means (weighted by class size) over the whole; 0 if it is constant."""
    shares = []
    for column in range(features.shape[1]):
        values = features[:, column].tolist()
        mean = sum(values) / len(values)
        total = sum((v - mean) ** 2 for v in values)
        between = 0.0
        for label in set(labels.tolist()):
            own = [v for v, y in zip(values, labels.tolist(), strict=True) if y == label]
            between += len(own) * (sum(own) / len(own) - mean) ** 2
        shares.append(between / total if total > 1e-12 else 0.0)
    return shares
