#!/usr/bin/env python3
"""Reference implementation of Sketch&Walk selection, and the golden files of the tests.

    python3 make_goldens.py           write the golden files beside this script
    python3 make_goldens.py --check   assert the identities, and that the files are up to date

Only numpy is needed. Every function follows its formula literally; nothing here is fast.
Arithmetic is np.longdouble, so that the 12 digits written do not depend on the numpy build or
on the order of a sum. Every selection is checked to have no near-tie at its boundary: a
double-precision implementation must reproduce the sets exactly.

Inputs are not stored. They are generated from SplitMix64, see `make_input`.
Tags of a kept block: w window, s sink, k scored, f forced.
Score rows of walk=product are rescaled to sum 1; compare them up to a positive row factor.
"""
import json
import math
import os
import sys

import numpy as np

real = np.longdouble
HERE = os.path.dirname(os.path.abspath(__file__))
MASK64 = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
PARTS = {"w": "window", "s": "sink", "k": "scored", "f": "forced"}
CODE = {"w": 1, "s": 2, "k": 3, "f": 4}

RELEASE = dict(
    block=64, dense_layers=2, sketch="srht", sketch_dim=128, hadamard="unnormalized",
    temperature=100.0, causal_sketch=False, partial_mean=False, aggregation="per_head",
    sharpness=1.0, normalize_walk=True, walk="damped", damping=0.25, degree=3,
    budget="matched", tau=0, window_frac=0.05, sink_frac=0.025, kfrac=0.125,
    release_sink_bug=True, query_window=32, query_pool=0, key_pool=0, forced="sink_window",
    query_stride=1, split_heads=0.0)
PREPRINT = dict(
    RELEASE, hadamard="unbiased", temperature=1.0, aggregation="head_mean", sharpness=8.0,
    normalize_walk=False, walk="product")
TUNED = dict(
    RELEASE, sketch="exact", hadamard="unbiased", temperature=1.2, causal_sketch=True,
    partial_mean=True, key_pool=1, walk="none", forced="sink_block", query_window=16,
    query_stride=64)
PRESETS = {"release": RELEASE, "preprint": PREPRINT, "tuned": TUNED}


def resolve(options):
    opt = dict(PRESETS[options["preset"]])
    for name, value in options.items():
        assert name == "preset" or name in opt, name
        opt[name] = value
    return opt


# ---------------------------------------------------------------- random numbers and inputs

class SplitMix64:
    def __init__(self, state):
        self.state = state & MASK64

    def next(self):
        self.state = (self.state + GAMMA) & MASK64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK64
        return z ^ (z >> 31)

    def draw(self, count):
        """The next `count` outputs as an array."""
        with np.errstate(over="ignore"):
            z = np.uint64(self.state) + np.uint64(GAMMA) * np.arange(1, count + 1, dtype=np.uint64)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z = z ^ (z >> np.uint64(31))
        self.state = (self.state + GAMMA * count) & MASK64
        return z


def unit(u):
    """64 random bits to a double in [-1, 1)."""
    return (u >> np.uint64(40)).astype(np.float64) / 2.0**24 * 2.0 - 1.0


def make_input(input_seed, layer, tensor, heads, tokens, dim, offset_scale, noise_scale):
    """Tensor 0 q, 1 k, 2 v of a layer: an offset per 16 tokens plus noise, float32."""
    rng = SplitMix64(input_seed + 1000003 * (layer + 1) + 101 * tensor)
    groups = (tokens + 15) // 16
    o = unit(rng.draw(heads * groups * dim)).reshape(heads, groups, dim) * offset_scale
    e = unit(rng.draw(heads * tokens * dim)).reshape(heads, tokens, dim) * noise_scale
    x = o[:, np.arange(tokens) // 16, :] + e
    return x.astype(np.float32).astype(real)


def case_input(case, layer, tokens):
    s = case["shape"]
    args = (tokens, s["head_dim"], case["offset_scale"], case["noise_scale"])
    heads = (s["num_heads"], s["num_kv_heads"], s["num_kv_heads"])
    return [make_input(case["input_seed"], layer, t, heads[t], *args) for t in range(3)]


# ---------------------------------------------------------------- 1. sketch

def signs_and_permutation(seed, layer, dim):
    rng = SplitMix64(seed + GAMMA * (layer + 1))
    signs = [-1 if rng.next() >> 63 else 1 for _ in range(dim)]
    perm = list(range(dim))
    for i in range(dim - 1, 0, -1):
        k = rng.next() % (i + 1)
        perm[i], perm[k] = perm[k], perm[i]
    return signs, perm


def next_power_of_two(d):
    p = 1
    while p < d:
        p *= 2
    return p


def hadamard(dim):
    return np.array([[(-1) ** bin(i & j).count("1") for j in range(dim)] for i in range(dim)], real)


def sketch(x, layer, seed, opt):
    """y = scale * (H (s * x))[idx[:r]] of the vectors in the last axis."""
    dp = next_power_of_two(x.shape[-1])
    r = opt["sketch_dim"]
    if r <= 0 or r > dp:
        r = dp
    signs, perm = signs_and_permutation(seed, layer, dp)
    padded = np.zeros(x.shape[:-1] + (dp,), real)
    padded[..., :x.shape[-1]] = x
    y = (padded * np.array(signs, real)) @ hadamard(dp)
    scale = np.sqrt(real(r) / dp) if opt["hadamard"] == "unnormalized" else np.sqrt(real(1) / r)
    return scale * y[..., perm[:r]]


def logits(q, k, layer, seed, opt):
    """Scores of vectors q [nq, d] against k [nk, d], before the temperature."""
    dp = real(next_power_of_two(q.shape[-1]))
    if opt["sketch"] == "exact":
        scale = np.sqrt(dp) if opt["hadamard"] == "unnormalized" else 1 / np.sqrt(dp)
        return scale * (q @ k.T)
    yq, yk = sketch(q, layer, seed, opt), sketch(k, layer, seed, opt)
    return yq @ yk.T / np.sqrt(real(yq.shape[-1]))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def pool(x, size, partial_mean):
    """Means of `size` consecutive tokens of x [heads, n, d]; a short tail divides by `size` too,
    by the tokens present with partial_mean."""
    heads, n, d = x.shape
    out = np.zeros((heads, -(-n // size), d), real)
    for u in range(out.shape[1]):
        part = x[:, u * size:(u + 1) * size]
        out[:, u] = part.sum(axis=1) / (part.shape[1] if partial_mean else size)
    return out


def split_heads(q, k, opt):
    """For each block row the heads whose queries are pooled in two parts, with (mean, share) of
    both: the parts lie on either side of the mean along the direction of spread, estimated by one
    step of power iteration from the farthest query."""
    heads, n, d = q.shape
    B, group = opt["block"], heads // k.shape[0]
    kbar = pool(k, B, True)
    rows = []
    for i in range(-(-n // B)):
        gains, parts = [], []
        for h in range(heads):
            x = q[h, i * B:(i + 1) * B]
            mean = x.mean(axis=0)
            c = x - mean
            distance = (c * c).sum(axis=1)
            far = c[int(np.argmax(distance))]
            v = c.T @ (c @ far)
            side = c @ v
            closest = np.abs(side).min() / np.abs(side).max()
            assert len(x) == 1 or closest > 3e-6, "a near tie: %g of %d" % (closest, len(x))
            first = side > 0
            p = real(first.sum()) / len(x)
            if first.all() or not first.any():
                gains.append(real(0))
                parts.append([(mean, 1)])
                continue
            m1, m0 = x[first].mean(axis=0), x[~first].mean(axis=0)
            seen = kbar[h // group][:i + 1] if opt["causal_sketch"] else kbar[h // group]
            gains.append(p * (1 - p) * np.var(seen @ (m1 - m0)))
            parts.append([(m1, p), (m0, 1 - p)])
        order = sorted(range(heads), key=lambda h: (-gains[h], h))
        take = order[:int(opt["split_heads"] * heads)]
        rows.append({h: parts[h] for h in take})
    return rows


def transition(q, k, layer, seed, opt):
    """Block transition matrix A (release) or W (preprint)."""
    n, B = q.shape[1], opt["block"]
    b = -(-n // B)
    q_pool, k_pool = opt["query_pool"] or B, opt["key_pool"] or B
    qbar = pool(q, q_pool, opt["partial_mean"])
    kbar = pool(k, k_pool, opt["partial_mean"])
    if opt["aggregation"] == "head_mean":
        qbar, kbar = qbar.mean(axis=0, keepdims=True), kbar.mean(axis=0, keepdims=True)
    heads = qbar.shape[0]
    group = heads // kbar.shape[0]
    q_block = np.arange(qbar.shape[1]) * q_pool // B
    k_block = np.arange(kbar.shape[1]) * k_pool // B
    A = np.zeros((b, b), real)
    chosen = split_heads(q, k, opt) if int(opt["split_heads"] * heads) else None
    for h in range(heads):
        if chosen is not None:
            assert opt["sketch"] == "exact" and q_pool == B
            for i in range(b):
                for vector, share in chosen[i].get(h, [(qbar[h, i], 1)]):
                    x = logits(vector[None], kbar[h // group], layer, seed, opt)[0]
                    x = x / real(opt["temperature"])
                    p = softmax(np.where(k_block > i, -np.inf, x) if opt["causal_sketch"] else x)
                    for j in range(b):
                        A[i, j] += share * p[k_block == j].sum()
            continue
        x = logits(qbar[h], kbar[h // group], layer, seed, opt) / real(opt["temperature"])
        if opt["causal_sketch"]:
            x = np.where(k_block[None, :] > q_block[:, None], -np.inf, x)
        P = softmax(x)
        for i in range(b):
            for j in range(b):
                A[i, j] += P[q_block == i][:, k_block == j].sum() / (q_block == i).sum()
    A = (A / heads) ** real(opt["sharpness"])
    if opt["normalize_walk"]:
        A = A / A.sum(axis=1, keepdims=True)
    return A


# ---------------------------------------------------------------- 2. walk

def normalised(row):
    return row / row.sum() if row.sum() > 0 else row


def walk(A, previous, opt):
    """Score matrix of the layer, which is also the walk state of the next sparse layer."""
    if opt["walk"] == "none":
        return A
    if opt["walk"] == "damped":
        if opt["damping"] == 0 or opt["degree"] == 0:
            return A
        beta = real(opt["damping"])
        S = A if previous is None else previous
        for _ in range(opt["degree"]):
            S = (1 - beta) * A + beta * (S @ A)
        return S
    R = A if previous is None else previous @ A
    R = np.tril(R)
    return np.array([normalised(row) for row in R])


# ---------------------------------------------------------------- 3. selection

class Selection:
    """Row sets of one layer: rows[g][i] = {block: tag}, and the token-level window and sink."""

    def __init__(self, rows, token_window=0, token_sink=0):
        self.rows, self.token_window, self.token_sink = rows, token_window, token_sink


near_ties = []  # selections that rounding could change; must stay empty


def check_gap(lower, upper):
    if abs(upper - lower) <= 1e-9 * max(abs(upper), abs(lower)) and upper != lower:
        near_ties.append((float(lower), float(upper)))


def matched_counts(density, c):
    """(m, window, sink) of a row with c candidates."""
    m = min(max(math.floor(density * (c - 0.5) + 1), 1), c)
    if m < 3:
        return m, 1, m - 1
    return m, max(1, math.floor(m / 4 + 0.5)), max(1, math.floor(m / 8 + 0.5))


def fill_row(scores, c, m, window, sink):
    """Window, sink, then the best of the rest up to m blocks; ties to the more recent block."""
    kept = {}
    for j in range(max(0, c - window), c):
        kept[j] = "w"
    for j in range(min(sink, c)):
        kept.setdefault(j, "s")
    rest = [j for j in range(c) if j not in kept]
    rest.sort(key=lambda j: (-scores[j], -j))
    take = max(0, m - len(kept))
    if 0 < take < len(rest):
        check_gap(scores[rest[take]], scores[rest[take - 1]])
    for j in rest[:take]:
        kept[j] = "k"
    return kept


def release_lengths(n, opt):
    """Token counts (w, k0, token-level sink)."""
    w = max(1, int(opt["window_frac"] * n))
    k0 = max(1, int(opt["sink_frac"] * n))
    return w, k0, (w if opt["release_sink_bug"] else k0)


def above_quantile(scores, c, window, sink, opt):
    """Causal blocks that score above the quantile of those outside window and sink."""
    candidates = [scores[j] for j in range(c) if j >= sink and j <= c - 1 - window]
    if not candidates:
        return []
    threshold = np.quantile(np.array(candidates), 1 - opt["kfrac"])
    for j in range(c):
        check_gap(scores[j], threshold)
    return [j for j in range(c) if scores[j] > threshold]


def select_row(scores, i, b, n, opt, density, decode=False):
    """Row i of a selection over b blocks, as {block: tag}."""
    c, B = i + 1, opt["block"]
    assert not np.isnan(scores[:c]).any()
    if opt["budget"] == "matched":
        m, window, sink = matched_counts(density, c)
        if opt["forced"] != "sink_window":
            window, sink = 1, int(opt["forced"] == "sink_block" and m >= 2)
        return fill_row(scores, c, m, window, sink)
    if opt["budget"] == "fixed":
        tau = opt["tau"] or max(1, math.floor(density * b + 0.5))
        m = min(tau, c)
        return fill_row(scores, c, m, 1, 1 if m >= 2 and not decode else 0)
    w, k0, _ = release_lengths(n, opt)
    window, sink = -(-w // B), -(-k0 // B)
    kept = {i: "w"}
    if decode:
        for j in range(max(0, c - window), c):
            kept[j] = "w"
        for j in range(min(sink, c)):
            kept.setdefault(j, "s")
    for j in above_quantile(scores, c, window, sink, opt):
        kept.setdefault(j, "k")
    if not decode and i >= b - 4:
        for j in range(c):
            kept.setdefault(j, "f")
    return kept


def dense_row(i):
    return {j: "f" for j in range(i + 1)}


def prefill_layer(q, k, layer, previous, opt, density, seed):
    """(score, Selection, A) of one layer; score and A are None in a dense layer."""
    n, B = q.shape[1], opt["block"]
    b = -(-n // B)
    if layer < opt["dense_layers"]:
        return None, Selection([[dense_row(i) for i in range(b)]]), None
    A = transition(q, k, layer, seed, opt)
    score = walk(A, previous, opt)
    rows = [select_row(score[i], i, b, n, opt, density) for i in range(b)]
    sel = Selection([rows])
    if opt["budget"] == "release":
        w, _, token_sink = release_lengths(n, opt)
        sel = Selection([rows], w, token_sink)
    return score, sel, A


# ---------------------------------------------------------------- 4. attention, pairs, metrics

def visible_tags(n, B, row_set, token_window, token_sink):
    """[n, n] codes of the visible (query, key) pairs, 0 where a pair is not visible.
    A kept block's tag goes before the token-level window, that before the token-level sink."""
    t = np.arange(n)
    query, key = t[:, None], t[None, :]
    tag = np.zeros((n, n), int)
    tag[np.broadcast_to(key < token_sink, (n, n))] = CODE["s"]
    tag[query - token_window < key] = CODE["w"]
    for i, row in enumerate(row_set):
        for j, part in row.items():
            tag[i * B:(i + 1) * B, j * B:(j + 1) * B] = CODE[part]
    tag[key > query] = 0
    return tag


def count_parts(tags, total_name, total):
    out = {name: int((tags == CODE[p]).sum()) for p, name in PARTS.items()}
    out[total_name] = int(total)
    return out


def pair_counts(n, B, sel):
    """Kept pairs by part and causal pairs, summed over the row sets."""
    tags = np.stack([visible_tags(n, B, rows, sel.token_window, sel.token_sink) for rows in sel.rows])
    return count_parts(tags, "causal", len(sel.rows) * n * (n + 1) // 2)


def attention(q, k, v, visible):
    """One head: (probabilities [n, n], log-sum-exp [n], output [n, d]) over the visible keys."""
    x = np.where(visible, q @ k.T / np.sqrt(real(q.shape[1])), -np.inf)
    top = x.max(axis=1, keepdims=True)
    e = np.exp(x - top)
    total = e.sum(axis=1, keepdims=True)
    return e / total, (top + np.log(total))[:, 0], e / total @ v


def block_masses(probabilities, B):
    """Mean over the queries of block i of the probability on the keys of block j."""
    n = probabilities.shape[-1]
    b = -(-n // B)
    M = np.zeros((b, b), real)
    for i in range(b):
        for j in range(b):
            M[i, j] = probabilities[i * B:(i + 1) * B, j * B:(j + 1) * B].sum(axis=1).mean()
    return M


def best_blocks(mass_row, i, m):
    """The diagonal and the m-1 best others by mass."""
    return fill_row(mass_row, i + 1, m, 1, 0)


def evaluate(q, k, v, B, sel, spans, decode):
    """All metrics of a selection. Prefill: per query block. Decode: the last query only, its row
    set holds the one row of the current block."""
    H, n, d = q.shape
    Hkv, groups = k.shape[0], len(sel.rows)
    b = -(-n // B)
    units = [(n - 1, n, b - 1)] if decode else [(i * B, min((i + 1) * B, n), i) for i in range(b)]
    tags = []
    for rows in sel.rows:
        full = [{} for _ in range(b - 1)] + rows if decode else rows
        tags.append(visible_tags(n, B, full, sel.token_window, sel.token_sink))
    causal = np.tril(np.ones((n, n), bool))
    group_of = [h * groups // H for h in range(H)]
    dense = [attention(q[h], k[h * Hkv // H], v[h * Hkv // H], causal) for h in range(H)]
    out = dict(mass_recall=[], oracle_gap=[], output_error=[], cosine=[])
    sparse_out = []
    for h in range(H):
        # A decode row set says nothing of the earlier queries: let them see themselves.
        visible = (tags[group_of[h]] > 0) | np.eye(n, dtype=bool)
        P, o_dense = dense[h][0], dense[h][2]
        o = attention(q[h], k[h * Hkv // H], v[h * Hkv // H], visible)[2]
        sparse_out.append(o)
        out["mass_recall"].append([(P * visible)[lo:hi].sum(axis=1).mean() for lo, hi, _ in units])
        out["output_error"].append([np.sqrt(((o - o_dense)[lo:hi] ** 2).sum() / (o_dense[lo:hi] ** 2).sum())
                                    for lo, hi, _ in units])
        out["cosine"].append([(o * o_dense)[lo:hi].sum()
                              / np.sqrt((o[lo:hi] ** 2).sum() * (o_dense[lo:hi] ** 2).sum())
                              for lo, hi, _ in units])
    # Oracle of a row set: as many blocks as the selection touches, by mass over the set's heads.
    touched = [[[j for j in range(i + 1) if (t[lo:hi, j * B:(j + 1) * B] > 0).any()] for lo, hi, i in units]
               for t in tags]
    oracle = [[] for _ in range(groups)]
    gap = np.zeros((H, len(units)), real)
    for g in range(groups):
        members = [h for h in range(H) if group_of[h] == g]
        for x, (lo, hi, i) in enumerate(units):
            mass = np.array([[dense[h][0][lo:hi, j * B:(j + 1) * B].sum(axis=1).mean() for j in range(b)]
                             for h in members])
            best = sorted(best_blocks(mass.sum(axis=0), i, len(touched[g][x])))
            oracle[g].append(best)
            for y, h in enumerate(members):
                gap[h, x] = mass[y, best].sum() - out["mass_recall"][h][x]
    gap[abs(gap) < 1e-15] = 0
    out["oracle_gap"] = gap.tolist()
    out["oracle_gap_set"] = [[np.mean([gap[h, x] for h in range(H) if group_of[h] == g])
                              for x in range(len(units))] for g in range(groups)]
    assert all(value >= -1e-15 for row in out["oracle_gap_set"] for value in row)
    out["oracle_rows"] = oracle
    out["touched_rows"] = touched
    out["topk_recall"] = [[len(set(s) & set(o)) / len(s) for s, o in zip(touched[g], oracle[g])]
                          for g in range(groups)]
    answer = []
    for first, end in spans:
        blocks = list(range(first // B, (end - 1) // B + 1))
        kept = [[j in touched[g][-1] for j in blocks] for g in range(groups)]
        answer.append(dict(span=[first, end], blocks=blocks,
                           all_kept=sum(all(x) for x in kept) / groups,
                           block_share=sum(map(sum, kept)) / (groups * len(blocks))))
    out["answer"] = answer
    out["answer_recall"] = sum(a["all_kept"] for a in answer) / len(answer)
    if decode:
        last = np.stack([t[-1] for t in tags])
        out["tokens"] = count_parts(last, "context", groups * n)
        per_kv = [[g for g in range(groups) if any(group_of[h] == g for h in range(H) if h * Hkv // H == kv)]
                  for kv in range(Hkv)]
        out["kv_tokens_read"] = [int((last[gs] > 0).any(axis=0).sum()) for gs in per_kv]
        out["density_decode"] = sum(out["kv_tokens_read"]) / (Hkv * n)
    else:
        out["pairs"] = pair_counts(n, B, sel)
    return out, dense, sparse_out


# ---------------------------------------------------------------- 5. decode

class ReleaseDecode:
    """Decode state of one sparse layer, release preset."""

    def __init__(self, q, A, layer, seed, opt):
        self.window = q[:, -opt["query_window"]:]
        self.A, self.layer, self.seed, self.opt = A, layer, seed, opt

    def step(self, q_all, k_all):
        """q_all, k_all [heads, n, d] end with the new token. Returns the score row."""
        opt, n = self.opt, q_all.shape[1]
        B = opt["block"]
        c, step = (n - 1) // B, (n - 1) % B
        if (n - 1) % opt["query_stride"] == 0:
            self.window = np.concatenate([self.window, q_all[:, -1:]], axis=1)[:, -opt["query_window"]:]
        k_pool = opt["key_pool"] or B
        kbar = pool(k_all, k_pool, opt["partial_mean"])
        k_block = np.arange(kbar.shape[1]) * k_pool // B
        group = q_all.shape[0] // k_all.shape[0]
        a = np.zeros(c + 1, real)
        for h in range(q_all.shape[0]):
            P = softmax(logits(self.window[h], kbar[h // group], self.layer, self.seed, opt)
                        / real(opt["temperature"]))
            for j in range(c + 1):
                a[j] += P[:, k_block == j].sum()
        a = a / a.sum()

        A = self.A
        if A.shape[0] == c:
            A = np.vstack([np.hstack([A, np.zeros((c, 1), real)]), a])
        alpha = real(1) / (step + 1)
        A = A.copy()
        A[c, :] = (1 - alpha) * A[c, :] + alpha * a
        A[c, :] = A[c, :] / A[c, :].sum()
        A[:, c] = (1 - alpha) * A[:, c] + alpha * a
        self.A = A = A / A.sum(axis=1, keepdims=True)

        state = a
        if opt["walk"] == "damped" and opt["damping"] != 0:
            beta = real(opt["damping"])
            for _ in range(opt["degree"]):
                state = (1 - beta) * a + beta * (state @ A)
        return state


class PreprintDecode:
    """Decode state of one sparse layer, preprint preset: head-averaged block sums and logits."""

    def __init__(self, q, k, layer, seed, opt):
        B = opt["block"]
        self.layer, self.seed, self.opt = layer, seed, opt
        self.n = q.shape[1]
        self.q_sum = pool(q, B, False).mean(axis=0) * B
        self.k_sum = pool(k, B, False).mean(axis=0) * B
        q_bar, k_bar = self.means()
        self.L = logits(q_bar, k_bar, layer, seed, opt)

    def means(self):
        B, b = self.opt["block"], self.q_sum.shape[0]
        count = np.full((b, 1), B, real)
        if self.opt["partial_mean"]:
            count[-1] = self.n - (b - 1) * B
        return self.q_sum / count, self.k_sum / count

    def step(self, q_all, k_all, r_previous):
        """r_previous: row c of R of the sparse layer before, or None. Returns row c of R."""
        opt = self.opt
        self.n += 1
        c = (self.n - 1) // opt["block"]
        if self.q_sum.shape[0] == c:
            zero = np.zeros((1, q_all.shape[2]), real)
            self.q_sum, self.k_sum = np.vstack([self.q_sum, zero]), np.vstack([self.k_sum, zero])
            self.L = np.pad(self.L, ((0, 1), (0, 1)))
        self.q_sum[c] += q_all[:, -1].mean(axis=0)
        self.k_sum[c] += k_all[:, -1].mean(axis=0)
        q_bar, k_bar = self.means()
        self.L[c, :] = logits(q_bar[c:c + 1], k_bar, self.layer, self.seed, opt)[0]
        self.L[:, c] = logits(q_bar, k_bar[c:c + 1], self.layer, self.seed, opt)[:, 0]
        x = self.L / real(opt["temperature"])
        if opt["causal_sketch"]:
            x = np.where(np.triu(np.ones((c + 1, c + 1), bool), 1), -np.inf, x)
        W = softmax(x) ** real(opt["sharpness"])
        if opt["normalize_walk"]:
            W = W / W.sum(axis=1, keepdims=True)
        if opt["walk"] == "none":
            return W[c]
        return normalised(W[c] if r_previous is None else r_previous @ W)


# ---------------------------------------------------------------- baselines

def baseline_row(policy, mass_row, i, opt, density):
    """mass_row: summed dense mass of the row set's heads (oracle only)."""
    c = i + 1
    m, window, sink = matched_counts(density, c)
    if policy == "sink_window":
        return fill_row(np.zeros(c), c, m, m - sink, sink)
    if opt["forced"]:
        return fill_row(mass_row, c, m, window, sink)
    return best_blocks(mass_row, i, m)


def baseline_groups(policy, opt, H, Hkv):
    if policy == "sink_window":
        return 1
    return {"layer": 1, "kv_head": Hkv, "head": H}[opt["granularity"]]


def baseline_layer(policy, q, k, layer, opt, density, decode):
    """rows[g] of a layer; in decode, one row per set for the last query."""
    H, n, _ = q.shape
    Hkv, B = k.shape[0], opt["block"]
    b = -(-n // B)
    which = [b - 1] if decode else list(range(b))
    groups = 1 if layer < opt["dense_layers"] else baseline_groups(policy, opt, H, Hkv)
    if layer < opt["dense_layers"]:
        return Selection([[dense_row(i) for i in which]])
    causal = np.tril(np.ones((n, n), bool))
    P = [attention(q[h], k[h * Hkv // H], k[h * Hkv // H], causal)[0] for h in range(H)]
    rows = []
    for g in range(groups):
        members = [h for h in range(H) if h * groups // H == g]
        if decode:
            mass = {b - 1: np.array([sum(P[h][-1, j * B:(j + 1) * B].sum() for h in members) for j in range(b)])}
        else:
            M = sum(block_masses(P[h], B) for h in members)
            mass = {i: M[i] for i in range(b)}
        rows.append([baseline_row(policy, mass[i], i, opt, density) for i in which])
    return Selection(rows)


# ---------------------------------------------------------------- cases

def make_case(name, shape, first_layer, layers, density, options, index, **fields):
    H, Hkv, d, n, B = shape
    if B != 64:
        options = dict(options, block=B)
    case = dict(name=name,
                shape=dict(num_heads=H, num_kv_heads=Hkv, head_dim=d, tokens=n, block=B),
                first_layer=first_layer, layers=layers, seed=0 if index % 2 else 12345,
                input_seed=7000 + index, offset_scale=1.0, noise_scale=1.0,
                options=options, density=density)
    case.update(fields)
    return case


def rel(**options):
    return dict(preset="release", **options)


def pre(**options):
    return dict(preset="preprint", **options)


def tuned(**options):
    return dict(preset="tuned", **options)


# name, (H, Hkv, d, n, B), first layer, layers, density, options, input scales where not 1
PREFILL = [
    ("release_default", (6, 2, 64, 256, 16), 2, 3, 0.2, rel()),
    ("preprint_default", (6, 2, 64, 256, 16), 2, 3, 0.2, pre()),
    ("release_ragged", (3, 1, 64, 203, 16), 2, 2, 0.2, rel()),
    ("preprint_ragged", (3, 1, 64, 203, 16), 2, 2, 0.2, pre()),
    ("release_ragged_partial_mean", (3, 1, 64, 203, 16), 2, 2, 0.35, rel(partial_mean=True)),
    ("preprint_ragged_partial_mean", (3, 1, 64, 203, 16), 2, 2, 0.35, pre(partial_mean=True)),
    ("release_one_block", (2, 1, 64, 13, 16), 2, 2, 0.2, rel()),
    ("preprint_one_block", (2, 1, 64, 16, 16), 2, 2, 0.2, pre()),
    ("release_two_blocks", (2, 1, 64, 17, 16), 2, 2, 0.5, rel()),
    ("release_block64", (4, 2, 128, 830, 64), 2, 2, 0.2, rel()),
    ("preprint_block64", (4, 2, 128, 830, 64), 2, 2, 0.2, pre()),
    ("release_block64_one_block", (2, 1, 64, 50, 64), 0, 3, 0.2, rel()),
    ("release_group1", (2, 2, 64, 192, 16), 2, 2, 0.35, rel()),
    ("release_group7", (7, 1, 64, 192, 16), 2, 2, 0.35, rel()),
    ("preprint_group7", (14, 2, 64, 192, 16), 2, 2, 0.35, pre()),
    ("release_group8", (8, 1, 128, 176, 16), 2, 2, 0.35, rel()),
    ("release_dim80", (3, 1, 80, 192, 16), 2, 2, 0.35, rel()),
    ("preprint_dim80", (2, 2, 80, 192, 16), 2, 2, 0.35, pre()),
    ("release_dim80_exact", (3, 1, 80, 192, 16), 2, 2, 0.35, rel(sketch="exact")),
    ("release_sketch_dim32", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(sketch_dim=32)),
    ("preprint_sketch_dim24", (3, 1, 128, 192, 16), 2, 2, 0.35, pre(sketch_dim=24)),
    ("release_sketch_dim100_dim80", (2, 1, 80, 192, 16), 2, 2, 0.35, rel(sketch_dim=100)),
    ("release_sketch_dim0", (2, 1, 64, 128, 16), 2, 1, 0.35, rel(sketch_dim=0)),
    ("release_exact", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(sketch="exact")),
    ("preprint_exact", (3, 1, 64, 192, 16), 2, 2, 0.35, pre(sketch="exact")),
    ("release_unbiased", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(hadamard="unbiased", temperature=1.0)),
    ("preprint_unnormalized", (3, 1, 64, 192, 16), 2, 2, 0.35, pre(hadamard="unnormalized", temperature=100.0)),
    ("release_causal_sketch", (3, 1, 64, 203, 16), 2, 2, 0.35, rel(causal_sketch=True)),
    ("preprint_causal_sketch", (3, 1, 64, 203, 16), 2, 2, 0.35, pre(causal_sketch=True)),
    ("preprint_causal_normalized", (3, 1, 64, 203, 16), 2, 2, 0.35, pre(causal_sketch=True, normalize_walk=True)),
    ("preprint_normalize_walk", (3, 1, 64, 192, 16), 2, 3, 0.35, pre(normalize_walk=True)),
    ("release_no_normalize_sharp2", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(normalize_walk=False, sharpness=2.0)),
    ("release_sharp8", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(sharpness=8.0)),
    ("release_head_mean", (6, 2, 64, 192, 16), 2, 2, 0.35, rel(aggregation="head_mean")),
    ("preprint_per_head", (6, 2, 64, 192, 16), 2, 2, 0.35, pre(aggregation="per_head")),
    ("release_walk_product", (3, 1, 64, 192, 16), 2, 3, 0.35, rel(walk="product")),
    ("preprint_walk_damped", (3, 1, 64, 192, 16), 2, 3, 0.35, pre(walk="damped", normalize_walk=True)),
    ("release_walk_none", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(walk="none")),
    ("preprint_walk_none", (3, 1, 64, 192, 16), 2, 2, 0.35, pre(walk="none")),
    ("release_damping0", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(damping=0.0)),
    ("release_degree0", (3, 1, 64, 192, 16), 2, 2, 0.35, rel(degree=0)),
    ("release_degree1", (3, 1, 64, 192, 16), 2, 3, 0.35, rel(degree=1, damping=0.5)),
    ("release_first_layer5", (3, 1, 64, 192, 16), 5, 2, 0.35, rel()),
    ("preprint_first_layer5", (3, 1, 64, 192, 16), 5, 2, 0.35, pre()),
    ("release_layers_from0", (3, 1, 64, 192, 16), 0, 4, 0.35, rel()),
    ("preprint_layers_from0", (3, 1, 64, 192, 16), 0, 4, 0.35, pre()),
    ("release_dense_layers0", (3, 1, 64, 128, 16), 0, 2, 0.35, rel(dense_layers=0)),
    ("release_dense_layers1", (3, 1, 64, 128, 16), 0, 2, 0.35, rel(dense_layers=1)),
    ("release_density005", (2, 1, 64, 320, 8), 2, 1, 0.05, rel()),
    ("release_density05", (2, 1, 64, 192, 16), 2, 1, 0.5, rel()),
    ("release_density1", (2, 1, 64, 100, 16), 2, 1, 1.0, rel()),
    ("preprint_density005", (2, 1, 64, 320, 8), 2, 1, 0.05, pre()),
    ("preprint_density05", (2, 1, 64, 192, 16), 2, 2, 0.5, pre()),
    ("preprint_density1", (2, 1, 64, 100, 16), 2, 2, 1.0, pre()),
    ("preprint_fixed_tau1", (2, 1, 64, 120, 8), 2, 1, 0.2, pre(budget="fixed", tau=1)),
    ("preprint_fixed_tau2", (2, 1, 64, 120, 8), 2, 1, 0.2, pre(budget="fixed", tau=2)),
    ("preprint_fixed_tau5", (2, 1, 64, 120, 8), 2, 2, 0.2, pre(budget="fixed", tau=5)),
    ("preprint_fixed_tau0", (2, 1, 64, 120, 8), 2, 1, 0.3, pre(budget="fixed")),
    ("release_fixed_tau5", (2, 1, 64, 120, 8), 2, 1, 0.2, rel(budget="fixed", tau=5)),
    ("release_budget_bug", (3, 1, 64, 405, 8), 1, 2, 0.2, rel(budget="release")),
    ("release_budget_nobug", (3, 1, 64, 405, 8), 1, 2, 0.2, rel(budget="release", release_sink_bug=False)),
    ("release_budget_short", (2, 1, 64, 50, 16), 2, 1, 0.2, rel(budget="release")),
    ("release_budget_fracs", (2, 1, 64, 240, 8), 2, 1, 0.2,
     rel(budget="release", window_frac=0.2, sink_frac=0.15, kfrac=0.25, release_sink_bug=False)),
    ("preprint_budget_release", (2, 1, 64, 240, 8), 2, 2, 0.2, pre(budget="release")),
    ("release_key_pool1", (3, 1, 64, 150, 16), 2, 2, 0.35, rel(key_pool=1, query_pool=16)),
    ("release_key_pool4", (3, 1, 64, 150, 16), 2, 2, 0.35, rel(key_pool=4)),
    ("release_pools4", (3, 1, 64, 150, 16), 2, 2, 0.35, rel(key_pool=4, query_pool=4)),
    ("release_pools4_partial_causal", (3, 1, 64, 150, 16), 2, 2, 0.35,
     rel(key_pool=4, query_pool=4, partial_mean=True, causal_sketch=True)),
    ("preprint_pools4", (3, 1, 64, 150, 16), 2, 2, 0.35, pre(key_pool=4, query_pool=4)),
    ("release_natural_scale_key_pool1", (3, 1, 64, 150, 16), 2, 1, 0.35,
     rel(hadamard="unbiased", temperature=1.0, key_pool=1, causal_sketch=True, walk="none")),
    ("release_block64_key_pool16", (2, 1, 64, 700, 64), 2, 1, 0.35, rel(key_pool=16)),
    ("release_ties", (2, 1, 64, 128, 8), 2, 1, 0.3, rel(walk="none"), 0.0, 0.0),
    ("preprint_ties", (2, 1, 64, 128, 8), 2, 1, 0.3, pre(walk="none"), 0.0, 0.0),
    ("tuned_default", (6, 2, 64, 256, 16), 2, 2, 0.2, tuned()),
    ("tuned_ragged", (3, 1, 64, 203, 16), 2, 2, 0.35, tuned()),
    ("tuned_block64", (4, 2, 128, 830, 64), 2, 1, 0.2, tuned()),
    ("tuned_one_block", (2, 1, 64, 13, 16), 2, 1, 0.2, tuned()),
    ("tuned_density005", (2, 1, 64, 320, 8), 2, 1, 0.05, tuned()),
    ("tuned_walk_damped", (3, 1, 64, 192, 16), 2, 2, 0.35, tuned(walk="damped")),
    ("tuned_query_pool4", (3, 1, 64, 192, 16), 2, 1, 0.35, tuned(query_pool=4)),
    ("tuned_sink_window", (3, 1, 64, 192, 16), 2, 1, 0.35, tuned(forced="sink_window")),
    ("release_forced_diagonal", (3, 1, 64, 192, 16), 2, 1, 0.35, rel(forced="diagonal")),
    ("release_forced_sink_block", (3, 1, 64, 192, 16), 2, 1, 0.35, rel(forced="sink_block")),
    ("tuned_split_half", (6, 2, 64, 256, 16), 2, 2, 0.2, tuned(split_heads=0.5)),
    ("tuned_split_all_ragged", (3, 1, 64, 203, 16), 2, 1, 0.35, tuned(split_heads=1)),
    ("tuned_split_third_key_pool4", (3, 1, 64, 192, 16), 2, 1, 0.35,
     tuned(split_heads=0.34, key_pool=4, partial_mean=False)),
]

# as above, with the prefill length as n, then the number of decode steps
DECODE = [
    ("release_cross_block", (3, 1, 64, 125, 16), 2, 2, 0.3, rel(), 6),
    ("release_from_boundary", (3, 3, 64, 128, 16), 2, 1, 0.3, rel(), 3),
    ("release_window5", (3, 1, 64, 93, 8), 2, 1, 0.3, rel(query_window=5), 6),
    ("release_short_prefill", (3, 1, 64, 14, 8), 2, 1, 0.5, rel(), 5),
    ("release_partial_mean_dim80", (2, 1, 80, 125, 16), 2, 1, 0.3, rel(partial_mean=True), 5),
    ("release_walk_none", (3, 1, 64, 125, 16), 2, 1, 0.3, rel(walk="none"), 5),
    ("release_exact_sketch", (3, 1, 64, 125, 16), 2, 1, 0.3, rel(sketch="exact"), 5),
    ("release_key_pool4", (3, 1, 64, 125, 16), 2, 1, 0.3, rel(key_pool=4), 5),
    ("release_layers_from0", (3, 1, 64, 125, 16), 1, 3, 0.3, rel(), 5),
    ("release_block64", (2, 1, 128, 638, 64), 2, 1, 0.3, rel(), 4),
    ("release_fixed_tau4", (3, 1, 64, 125, 16), 2, 1, 0.3, rel(budget="fixed", tau=4), 5),
    ("release_budget_bug", (3, 1, 64, 398, 8), 2, 1, 0.3, rel(budget="release"), 6),
    ("release_budget_nobug", (3, 1, 64, 398, 8), 2, 1, 0.3, rel(budget="release", release_sink_bug=False), 6),
    ("preprint_cross_block", (3, 1, 64, 125, 16), 2, 3, 0.3, pre(), 6),
    ("preprint_group1", (2, 2, 64, 128, 16), 2, 2, 0.3, pre(), 4),
    ("preprint_partial_mean", (3, 1, 64, 93, 8), 2, 2, 0.3, pre(partial_mean=True), 6),
    ("preprint_causal_normalized", (3, 1, 64, 93, 8), 2, 3, 0.3, pre(causal_sketch=True, normalize_walk=True), 6),
    ("preprint_layers_from0", (3, 1, 64, 125, 16), 0, 4, 0.3, pre(), 5),
    ("preprint_walk_none", (3, 1, 64, 125, 16), 2, 2, 0.3, pre(walk="none"), 5),
    ("preprint_fixed_tau4", (3, 1, 64, 125, 16), 2, 2, 0.3, pre(budget="fixed", tau=4), 5),
    ("preprint_budget_release", (3, 1, 64, 238, 8), 2, 2, 0.3, pre(budget="release"), 5),
    ("release_stride3", (3, 1, 64, 125, 16), 2, 1, 0.3, rel(query_stride=3), 6),
    ("tuned_default", (3, 1, 64, 125, 16), 2, 2, 0.3, tuned(), 6),
    ("tuned_stride4_window3", (6, 2, 64, 93, 8), 2, 1, 0.3, tuned(query_stride=4, query_window=3), 12),
    ("tuned_walk_damped", (3, 1, 64, 125, 16), 2, 1, 0.3, tuned(walk="damped", query_stride=2), 5),
]


def blocks_and_parts(row):
    blocks = sorted(row)
    return blocks, "".join(row[j] for j in blocks)


def run_prefill(case):
    opt, s = resolve(case["options"]), case["shape"]
    state, expected = None, []
    for layer in range(case["first_layer"], case["first_layer"] + case["layers"]):
        q, k, _ = case_input(case, layer, s["tokens"])
        score, sel, _ = prefill_layer(q, k, layer, state, opt, case["density"], case["seed"])
        state = state if score is None else score
        pairs = [blocks_and_parts(row) for row in sel.rows[0]]
        expected.append(dict(layer=layer, score=None if score is None else score.tolist(),
                             rows=[p[0] for p in pairs], parts=[p[1] for p in pairs],
                             token_window=sel.token_window, token_sink=sel.token_sink,
                             pairs=pair_counts(s["tokens"], s["block"], sel)))
    return dict(case, expected=expected)


def run_decode(case):
    opt, s = resolve(case["options"]), case["shape"]
    n0, steps, B = s["tokens"], case["steps"], s["block"]
    numbers = range(case["first_layer"], case["first_layer"] + case["layers"])
    inputs = {layer: case_input(case, layer, n0 + steps) for layer in numbers}
    caches, state = {}, None
    for layer in numbers:
        q, k = inputs[layer][0][:, :n0], inputs[layer][1][:, :n0]
        score, _, A = prefill_layer(q, k, layer, state, opt, case["density"], case["seed"])
        state = state if score is None else score
        if score is not None:
            caches[layer] = (PreprintDecode(q, k, layer, case["seed"], opt) if opt["preset"] == "preprint"
                             else ReleaseDecode(q, A, layer, case["seed"], opt))
    expected = []
    for n in range(n0 + 1, n0 + steps + 1):
        c = (n - 1) // B
        r, layers = None, []
        for layer in numbers:
            q, k = inputs[layer][0][:, :n], inputs[layer][1][:, :n]
            score, a_row, token_sink, row = None, None, 0, dense_row(c)
            if layer in caches:
                if opt["preset"] != "preprint":
                    score = caches[layer].step(q, k)
                    a_row = caches[layer].A[c].tolist()
                else:
                    score = r = caches[layer].step(q, k, r)
                row = select_row(score, c, c + 1, n, opt, case["density"], decode=True)
                if opt["budget"] == "release":
                    token_sink = release_lengths(n, opt)[2]
            tags = visible_tags(n, B, [{}] * c + [row], 0, token_sink)[-1]
            blocks, parts = blocks_and_parts(row)
            layers.append(dict(layer=layer, score=None if score is None else score.tolist(), kept=blocks,
                               parts=parts, token_window=0, token_sink=token_sink, a_row=a_row,
                               tokens=count_parts(tags, "context", n)))
        expected.append(dict(n=n, layers=layers))
    return dict(case, expected=expected)


def prefill_cases():
    out = []
    for index, (name, shape, first, layers, density, options, *scales) in enumerate(PREFILL):
        fields = dict(offset_scale=scales[0], noise_scale=scales[1]) if scales else {}
        if name.startswith("release_budget_") and name.endswith("bug"):
            fields = dict(input_seed=7777, seed=12345)  # the two differ in the option only
        out.append(make_case(name, shape, first, layers, density, options, index, **fields))
    return out


def decode_cases():
    return [make_case(name, shape, first, layers, density, options, 200 + index, steps=steps)
            for index, (name, shape, first, layers, density, options, steps) in enumerate(DECODE)]


# name, (H, Hkv, d, n, B), groups, token window, token sink, spans, decode, kind of selection
METRICS = [
    ("tiny_shared", (2, 1, 64, 38, 8), 1, 0, 0, [[9, 12]], False, "random"),
    ("ragged_shared", (4, 2, 64, 150, 16), 1, 0, 0, [[20, 40], [66, 70]], False, "random"),
    ("per_kv_head", (6, 2, 64, 144, 16), 2, 0, 0, [[35, 45], [100, 101]], False, "random"),
    ("per_head", (4, 2, 64, 144, 16), 4, 0, 0, [[16, 48], [70, 72]], False, "random"),
    ("token_level", (3, 1, 64, 150, 16), 1, 21, 9, [[3, 6], [40, 60]], False, "random"),
    ("dense", (2, 1, 64, 70, 16), 1, 0, 0, [[3, 6]], False, "dense"),
    ("diagonal_only", (2, 2, 64, 70, 16), 1, 0, 0, [[3, 6]], False, "diagonal"),
    ("decode_shared", (6, 2, 64, 150, 16), 1, 0, 0, [[20, 40], [66, 70]], True, "random"),
    ("decode_per_kv_head", (6, 2, 64, 161, 16), 2, 0, 0, [[35, 45], [100, 101]], True, "random"),
    ("decode_per_head", (4, 2, 64, 144, 16), 4, 0, 0, [[16, 48], [70, 72]], True, "random"),
    ("decode_token_sink", (3, 1, 64, 150, 16), 1, 0, 37, [[3, 6], [40, 60]], True, "random"),
    ("decode_dense", (2, 1, 64, 70, 16), 1, 0, 0, [[3, 6]], True, "dense"),
]


def given_row(i, kind, rng):
    """A selection row to evaluate: no policy, only variety."""
    if kind == "dense":
        return dense_row(i)
    row = {}
    if kind == "random":
        for j in range(i):
            u = rng.next() % 8
            if u < 3:
                row[j] = "s" if j == 0 else "wkf"[u]
    row[i] = "w"
    return row


def run_metrics():
    cases = []
    for index, (name, shape, groups, tw, ts, spans, decode, kind) in enumerate(METRICS):
        H, Hkv, d, n, B = shape
        case = dict(name=name, shape=dict(num_heads=H, num_kv_heads=Hkv, head_dim=d, tokens=n, block=B),
                    layer=0, input_seed=9000 + index, offset_scale=1.0, noise_scale=1.0, decode=decode)
        q, k, v = case_input(case, 0, n)
        b = -(-n // B)
        rng = SplitMix64(index)
        which = [b - 1] if decode else range(b)
        rows = [[given_row(i, kind, rng) for i in which] for _ in range(groups)]
        sel = Selection(rows, tw, ts)
        values, dense, sparse = evaluate(q, k, v, B, sel, spans, decode)
        pairs = [[blocks_and_parts(row) for row in row_set] for row_set in rows]
        case["selection"] = dict(groups=groups, rows=[[p[0] for p in x] for x in pairs],
                                 parts=[[p[1] for p in x] for x in pairs], token_window=tw, token_sink=ts)
        case["spans"] = spans
        if name == "tiny_shared":
            values["block_mass"] = [block_masses(x[0], B).tolist() for x in dense]
        if decode:
            values = {key: [x[0] for x in value] if key in PER_BLOCK else value for key, value in values.items()}
            values["lse"] = [x[1][-1] for x in dense]
            samples = [n - 1]
        else:
            values["lse"] = [x[1].tolist() for x in dense]
            samples = sorted({0, B - 1, B, n // 2, n - 1})
        values["outputs"] = [dict(head=h, token=t, dense=dense[h][2][t, :4].tolist(), sparse=sparse[h][t, :4].tolist())
                             for h in sorted({0, H - 1}) for t in samples]
        cases.append(dict(case, expected=values))
    return cases


PER_BLOCK = ("mass_recall", "oracle_gap", "oracle_gap_set", "output_error", "cosine", "topk_recall",
             "oracle_rows", "touched_rows")


def run_rng():
    seeds = [0, 1, 12345, 0xDEADBEEFCAFEF00D, MASK64]
    streams = []
    for seed in seeds:
        rng = SplitMix64(seed)
        outputs = [rng.next() for _ in range(8)]
        streams.append(dict(seed="0x%016x" % seed, outputs=["0x%016x" % u for u in outputs],
                            unit=unit(np.array(outputs, np.uint64)).tolist()))
    srht = []
    for seed in (0, 12345):
        for layer in (0, 1, 7):
            for dim in (64, 128):
                signs, perm = signs_and_permutation(seed, layer, dim)
                srht.append(dict(seed=seed, layer=layer, dim=dim, signs=signs, perm=perm))
    inputs = []
    for layer, tensor, heads, tokens, dim in ((0, 0, 2, 20, 64), (3, 1, 1, 33, 80), (3, 2, 2, 16, 64)):
        x = make_input(4242, layer, tensor, heads, tokens, dim, 1.0, 0.5)
        at = [[0, 0, 0], [0, 0, dim - 1], [0, 15, 1], [0, tokens - 1, 2], [heads - 1, tokens - 1, dim - 1]]
        inputs.append(dict(input_seed=4242, layer=layer, tensor=tensor, heads=heads, tokens=tokens, dim=dim,
                           offset_scale=1.0, noise_scale=0.5, at=at, values=[x[h, t, j] for h, t, j in at]))
    return dict(splitmix64=streams, srht=srht, inputs=inputs)


def run_baselines():
    cases, index = [], 0
    for shape in ((6, 2, 64, 203, 16), (4, 1, 64, 128, 8)):
        for density in (0.1, 0.3, 1.0):
            variants = [("sink_window", {})]
            if density < 1:
                variants += [("oracle", dict(granularity=g, forced=f))
                             for g in ("layer", "kv_head", "head") for f in (False, True)]
            for policy, extra in variants:
                H, Hkv, d, n, B = shape
                opt = dict(block=B, dense_layers=2, granularity="layer", forced=False)
                opt.update(extra)
                label = "_".join([policy] + ([extra["granularity"], "forced" if extra["forced"] else "free"] if extra else [])
                                 + ["h%d" % H, "rho%g" % density])
                case = dict(name=label, policy=policy,
                            shape=dict(num_heads=H, num_kv_heads=Hkv, head_dim=d, tokens=n, block=B),
                            first_layer=1, layers=2, input_seed=8000 + index, offset_scale=1.0, noise_scale=1.0,
                            options=dict(extra, block=B), density=density)
                index += 1
                expected = []
                for layer in (1, 2):
                    q, k, _ = case_input(case, layer, n)
                    entry = dict(layer=layer)
                    for decode in (False, True):
                        sel = baseline_layer(policy, q, k, layer, opt, density, decode)
                        pairs = [[blocks_and_parts(row) for row in row_set] for row_set in sel.rows]
                        if decode:
                            entry["decode"] = dict(groups=len(sel.rows), kept=[x[0][0] for x in pairs],
                                                   parts=[x[0][1] for x in pairs])
                        else:
                            entry["prefill"] = dict(groups=len(sel.rows), rows=[[p[0] for p in x] for x in pairs],
                                                    parts=[[p[1] for p in x] for x in pairs],
                                                    pairs=pair_counts(n, B, sel))
                    expected.append(entry)
                cases.append(dict(case, expected=expected))
    return cases


# ---------------------------------------------------------------- files

def rounded(x):
    """12 significant digits, plain Python types."""
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value) for value in x]
    if isinstance(x, (float, np.floating)):
        value = float("%.12g" % x)
        assert math.isfinite(value)
        return value
    return x


def dump_cases(cases):
    lines = [json.dumps(rounded(case), separators=(",", ":"), allow_nan=False) for case in cases]
    return '{"cases":[\n' + ",\n".join(lines) + "\n]}\n"


def dump_rng(sections):
    parts = []
    for name, items in sections.items():
        lines = [json.dumps(rounded(item), separators=(",", ":")) for item in items]
        parts.append('"%s":[\n%s\n]' % (name, ",\n".join(lines)))
    return "{" + ",\n".join(parts) + "}\n"


FILES = {
    "rng.json": lambda: dump_rng(run_rng()),
    "sketchwalk_prefill.json": lambda: dump_cases([run_prefill(case) for case in prefill_cases()]),
    "sketchwalk_decode.json": lambda: dump_cases([run_decode(case) for case in decode_cases()]),
    "metrics.json": lambda: dump_cases(run_metrics()),
    "baselines.json": lambda: dump_cases(run_baselines()),
}


def generate(name):
    near_ties.clear()
    text = FILES[name]()
    assert not near_ties, (name, near_ties)
    return text


# ---------------------------------------------------------------- self check

def close(a, b, tolerance=1e-13):
    a, b = np.asarray(a, real), np.asarray(b, real)
    return a.shape == b.shape and np.all(np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b)))


def scores_of(case, **changes):
    case = dict(case, options=dict(case["options"], **changes))
    return [layer["score"] for layer in run_prefill(case)["expected"]], case


def check_identities():
    for preset in ("release", "preprint"):
        base = make_case("check", (3, 1, 64, 150, 16), 2, 2, 0.2, dict(preset=preset), 900)
        wide = make_case("check", (2, 1, 80, 150, 16), 2, 2, 0.2, dict(preset=preset), 901)

        # y_q . y_k = d' (q . k) at r = d', so r = d' is the exact sketch, whatever the seed.
        for case in (base, wide):
            full, exact = scores_of(case, sketch_dim=0)[0], scores_of(case, sketch="exact")[0]
            assert close(full, exact)
            assert close(full, scores_of(dict(case, seed=99), sketch_dim=0)[0])
            assert not close(full, scores_of(case, sketch_dim=32)[0], 1e-6)

        # Pools of the block size are the default.
        assert close(scores_of(base)[0], scores_of(base, query_pool=16, key_pool=16)[0])

        # Density 1 keeps every causal block, and sparse attention is then dense attention.
        for row in run_prefill(dict(base, density=1.0))["expected"][-1]["rows"]:
            assert row == list(range(len(row)))
        case = dict(base, density=1.0)
        opt = resolve(case["options"])
        q, k, v = case_input(case, 2, 150)
        _, sel, _ = prefill_layer(q, k, 2, None, opt, 1.0, 0)
        values = evaluate(q, k, v, 16, sel, [[0, 1]], False)[0]
        assert np.max(values["output_error"]) < 1e-15 and close(values["mass_recall"], np.ones((3, 10)))

        # The order of the blocks in a row changes nothing.
        _, sel, _ = prefill_layer(q, k, 2, None, opt, 0.3, 0)
        turned = Selection([[dict(reversed(list(row.items()))) for row in sel.rows[0]]])
        assert np.array_equal(visible_tags(150, 16, sel.rows[0], 0, 0), visible_tags(150, 16, turned.rows[0], 0, 0))

        # One block is dense.
        short = make_case("check", (3, 1, 64, 11, 16), 2, 2, 0.2, dict(preset=preset), 902)
        assert all(layer["rows"] == [[0]] for layer in run_prefill(short)["expected"])

        # Appending one token in decode equals the last row of a longer prefill: sketch-only, one
        # query in the window, partial_mean, causal, the token being the first of its block.
        options = dict(preset=preset, walk="none", query_window=1, causal_sketch=True, partial_mean=True)
        case = make_case("check", (3, 1, 64, 128, 16), 2, 2, 0.2, options, 903, steps=1)
        step = run_decode(case)["expected"][0]["layers"]
        longer = dict(case, shape=dict(case["shape"], tokens=129))
        for a, c in zip(step, run_prefill(longer)["expected"]):
            assert close(a["score"], c["score"][-1]) and a["kept"] == c["rows"][-1]

    # preset=tuned: every option named gives the same; with keys of the first block alone equal
    # scores, the row of the last query is its softmax over keys, summed in blocks.
    base = make_case("check", (3, 1, 64, 150, 16), 2, 2, 0.2, tuned(), 905)
    named = dict(base, options=dict(TUNED, preset="release", block=16))
    assert run_prefill(base)["expected"] == run_prefill(named)["expected"]
    q, k, _ = case_input(dict(base, options=tuned(block=16)), 2, 144)
    opt = resolve(tuned(block=16, query_pool=1, temperature=1.0))
    A = transition(q, k, 2, 0, opt)
    causal = np.arange(144)[None, :] // 16 <= np.arange(144)[:, None] // 16
    M = sum(block_masses(attention(q[h], k[0], k[0], causal)[0], 16) for h in range(3)) / 3
    assert close(A, M)

    # damping 0 == degree 0 == sketch-only.
    base = make_case("check", (3, 1, 64, 150, 16), 2, 2, 0.2, rel(), 904)
    none = scores_of(base, walk="none")[0]
    assert close(none, scores_of(base, damping=0.0)[0]) and close(none, scores_of(base, degree=0)[0])
    assert not close(none, scores_of(base)[0], 1e-6)

    # Damped scores stay row-stochastic; causal_sketch keeps them lower triangular.
    assert close(np.sum(scores_of(base)[0], axis=-1), np.ones((2, 10)))
    assert all(np.array_equal(x, np.tril(x)) for x in np.array(scores_of(base, causal_sketch=True)[0]))

    # Every preprint decode step equals the last row of the prefill of as many tokens.
    case = make_case("check", (3, 1, 64, 125, 16), 2, 3, 0.3, pre(), 905, steps=5)
    for step in run_decode(case)["expected"]:
        longer = dict(case, shape=dict(case["shape"], tokens=step["n"]))
        opt, state = resolve(case["options"]), None
        for a in step["layers"]:
            q, k, _ = case_input(case, a["layer"], 130)
            state, sel, _ = prefill_layer(q[:, :step["n"]], k[:, :step["n"]], a["layer"], state, opt, 0.3, case["seed"])
            assert close(a["score"], state[-1]) and a["kept"] == sorted(sel.rows[0][-1])

    # The matched budget realises the density over all rows to within rounding.
    for density in (0.05, 0.1, 0.2, 0.37, 0.5, 0.9):
        b = 400
        kept = sum(matched_counts(density, c)[0] - 0.5 for c in range(1, b + 1))
        assert abs(kept / (b * b / 2) - density) < 0.003, (density, kept / (b * b / 2))

    # The vectorised generator is the scalar one.
    rng = SplitMix64(5)
    assert [rng.next() for _ in range(50)] == [int(u) for u in SplitMix64(5).draw(50)]
    # Published outputs of SplitMix64, seed 1234567.
    rng = SplitMix64(1234567)
    assert [rng.next() for _ in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def main():
    if "--check" in sys.argv[1:]:
        check_identities()
        for name in FILES:
            with open(os.path.join(HERE, name)) as f:
                assert f.read() == generate(name), name + " is out of date"
        print("identities hold, golden files are up to date")
        return
    for name in FILES:
        text = generate(name)
        with open(os.path.join(HERE, name), "w") as f:
            f.write(text)
        print("%8d bytes  %s" % (len(text), name))


if __name__ == "__main__":
    main()
