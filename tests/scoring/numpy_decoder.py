"""The decoder a second time, in float64 NumPy, one document at a time: what scores must be."""

import numpy as np


def log_probabilities(config, params, ids):
    """[T, V] log-probabilities after each of the T ids."""
    p = _float64(params)
    x = p["embedding"][np.asarray(ids)]
    for layer in range(config.num_layers):
        w = {name: values[layer] for name, values in p["layers"]["group_0"].items()}
        x = x + _attention(config, w, _norm(x, w["attention_norm"], config.norm_eps))
        h = _norm(x, w["mlp_norm"], config.norm_eps)
        gate = h @ w["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"])) @ w["down"]
    x = _norm(x, p["final_norm"], config.norm_eps)
    logits = x @ p.get("output", p["embedding"]).T
    logits -= logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def document_nll(config, params, tokens, bos_id, context, overlap):
    """NLL sum of a document; each target is predicted in the first window that has it."""
    ids = [bos_id, *map(int, tokens)]
    total, start, target = 0.0, 0, 1
    while target < len(ids):
        window = ids[start : start + context]
        log_p = log_probabilities(config, params, window)
        while target < len(ids) and target <= start + len(window):
            total -= log_p[target - 1 - start, ids[target]]
            target += 1
        start = target - max(overlap, 1)
    return total


def _float64(tree):
    if isinstance(tree, dict):
        return {name: _float64(value) for name, value in tree.items()}
    return np.asarray(tree, np.float64)


def _norm(x, scale, eps):
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * scale


def _attention(config, w, x):
    T, d = len(x), config.resolved_head_dim
    q = _rotate(config, (x @ w["query"]).reshape(T, config.num_heads, d))
    k = _rotate(config, (x @ w["key"]).reshape(T, config.num_kv_heads, d))
    v = (x @ w["value"]).reshape(T, config.num_kv_heads, d)
    heads = []
    for head in range(config.num_heads):
        kv = head // (config.num_heads // config.num_kv_heads)
        scores = q[:, head] @ k[:, kv].T / np.sqrt(d)
        scores[np.triu_indices(T, 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(weights / weights.sum(axis=-1, keepdims=True) @ v[:, kv])
    return np.concatenate(heads, axis=-1) @ w["attention_out"]


def _rotate(config, x):
    T, _, d = x.shape
    angles = np.arange(T)[:, None] * config.rope_theta ** (-np.arange(d // 2) / (d // 2))
    turn = np.exp(1j * angles)[:, None]
    turned = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn
    return np.concatenate([turned.real, turned.imag], axis=-1)
