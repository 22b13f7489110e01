"""Reference implementations of the methods, in NumPy float64 and plain loops.

Written directly from the equations: one tensor at a time, one row at a time, with no code shared
with the package. The groups and rows of a tensor are lists of index tuples, so this file does not
depend on how the package chooses axes.
"""

import itertools

import numpy as np

TINY = 1e-8


def groups_and_rows(shape, rows, layers):
    """A list of groups, each a list of rows, each a list of index tuples of `shape`."""
    groups = {}
    for index in itertools.product(*map(range, shape)):
        layer = tuple(index[axis] for axis in layers)
        row = tuple(index[axis] for axis in rows)
        groups.setdefault(layer, {}).setdefault(row, []).append(index)
    return [list(rows.values()) for rows in groups.values()]


def norm_units(shape, rows, layers, norm):
    """The index sets that share one norm: rows for "mars", whole groups for "l2"."""
    groups = groups_and_rows(shape, rows, layers)
    if norm == "l2":
        return [[list(itertools.chain(*group))] for group in groups]
    return groups


def size(d, indices, norm):
    if norm == "mars":
        return sum(abs(d[index]) for index in indices)
    return np.sqrt(sum(d[index] ** 2 for index in indices))


def sizes_of_anchor(anchors, layouts, norm):
    """`U` of every group: name to a list. `layouts` gives the row and layer axes of each name."""
    kernels = [name for name, (rows, _) in layouts.items() if rows]
    order = 1 if norm == "mars" else 2
    numbers = [abs(x) ** order for name in kernels for x in np.ravel(anchors[name])]
    mean = sum(numbers) / len(numbers)
    found = {}
    for name, (rows, layers) in layouts.items():
        units = norm_units(np.shape(anchors[name]), rows, layers, norm)
        if rows:
            sizes = [[size(anchors[name], row, norm) for row in unit] for unit in units]
            found[name] = [sum(x) / len(x) for x in sizes]
        else:
            found[name] = [(len(row) * mean) ** (1 / order) for (row,) in units]
    return found


class Adam:
    """Adam on one number, in units of `unit`."""

    def __init__(self, unit=1.0, learning_rate=1e-2, b1=0.9, b2=0.999, eps=1e-8):
        self.learning_rate, self.b1, self.b2, self.eps = learning_rate, b1, b2, eps
        self.unit = unit
        self.m = self.v = 0.0
        self.t = 0

    def step(self, gradient):
        self.t += 1
        gradient = self.unit * gradient
        self.m = self.b1 * self.m + (1 - self.b1) * gradient
        self.v = self.b2 * self.v + (1 - self.b2) * gradient**2
        m = self.m / (1 - self.b1**self.t)
        v = self.v / (1 - self.b2**self.t)
        return self.unit * self.learning_rate * m / (np.sqrt(v) + self.eps)


def project(d, units, radii, norm):
    """`min(1, r / n) * d`, group by group and row by row."""
    projected = np.array(d)
    for unit, radius in zip(units, radii, strict=True):
        for row in unit:
            ratio = min(1.0, radius / (size(d, row, norm) + TINY))
            for index in row:
                projected[index] = ratio * d[index]
    return projected


class SPD:
    """SPD on one tensor. `step` takes the gradient and the base optimizer's update."""

    def __init__(self, anchor, groups, strength=1.0):
        self.anchor, self.groups, self.strength = np.array(anchor), groups, strength
        self.acted = 0

    def step(self, params, gradient, update):
        d, candidate = params - self.anchor, params + update
        after = np.array(candidate)
        for group in self.groups:
            if sum(gradient[index] * d[index] for index in group) > 0:
                far = size(candidate - self.anchor, group, "l2")
                q = min(max((far - size(d, group, "l2")) / far, 0.0), 1.0)
                self.acted += q > 0
                for index in group:
                    away = candidate[index] - self.anchor[index]
                    after[index] = candidate[index] - self.strength * q * away
        return after


def add_decay(params, anchor, gradient, weight, importance):
    """The gradient plus the pull towards the anchor."""
    pulled = np.array(gradient)
    for index in itertools.product(*map(range, pulled.shape)):
        distance = params[index] - anchor[index]
        pulled[index] = gradient[index] + weight * importance[index] * distance
    return pulled


def interpolate(params, anchor, alpha):
    mixed = np.array(params)
    for index in itertools.product(*map(range, mixed.shape)):
        mixed[index] = (1 - alpha) * anchor[index] + alpha * params[index]
    return mixed


def largest(d, unit, norm):
    return max(size(d, row, norm) for row in unit)


def clip(radius, largest):
    return min(max(radius, TINY), largest)


class FTP:
    """FTP on one tensor. `step` takes the gradient and the base optimizer's update."""

    def __init__(self, anchor, units, norm="mars", k=1.0, scales=None):
        self.anchor, self.units, self.norm = np.array(anchor), units, norm
        self.k = k
        self.adams = [Adam(scale) for scale in scales or [1.0 for _ in units]]
        self.radii = [TINY * adam.unit for adam in self.adams]
        self.c = np.zeros_like(self.anchor)
        self.t = 0

    def step(self, params, gradient, update):
        self.t += 1
        c = params + update - self.anchor
        for i, unit in enumerate(self.units):
            h = 0.0
            for row in unit:
                n = size(self.c, row, self.norm) + TINY
                h += sum(gradient[index] * self.c[index] for index in row) / n
            if h > 0:
                h = self.k * h
            move = self.adams[i].step(h if self.t > 1 else 0.0)
            if self.t > 1:
                self.radii[i] = clip(self.radii[i] - move, largest(c, unit, self.norm) + TINY)
        self.c = c
        return self.anchor + project(c, self.units, self.radii, self.norm)


class TPGM:
    """TPGM on one tensor. `step` takes the update, and the gradient of the held-out loss."""

    def __init__(self, anchor, units, norm="mars", steps=1, every=1, scales=None):
        self.anchor, self.units, self.norm = np.array(anchor), units, norm
        self.steps, self.every = steps, every
        self.radii = []
        self.adams = [Adam(scale) for scale in scales or [1.0 for _ in units]]
        self.t = 0

    def step(self, params, update, held_out_gradient):
        d = params + update - self.anchor
        if self.t == 0:
            self.radii = [min(size(d, row, self.norm) for row in unit) / 2 for unit in self.units]
        if self.t % self.every == 0:
            for i in range(self.steps):
                self.radius_step(d, held_out_gradient, i)
        self.t += 1
        self.clip(d)
        return self.anchor + project(d, self.units, self.radii, self.norm)

    def clip(self, d):
        pairs = zip(self.radii, self.units, strict=True)
        self.radii = [clip(radius, largest(d, unit, self.norm)) for radius, unit in pairs]

    def radius_step(self, d, held_out_gradient, i):
        self.clip(d)
        projected = project(d, self.units, self.radii, self.norm)
        g = held_out_gradient(self.anchor + projected, i)
        for j, unit in enumerate(self.units):
            slope = 0.0
            for row in unit:
                n = size(d, row, self.norm) + TINY
                if self.radii[j] <= n:  # inside the ball the projection is constant in r
                    slope += sum(g[index] * d[index] for index in row) / n
            self.radii[j] -= self.adams[j].step(slope)
