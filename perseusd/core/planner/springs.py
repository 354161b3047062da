"""A step of the interior point method as how far a network of springs moves (interior.py)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perseusd.core.planner import sparse
from perseusd.core.planner.network import Network

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Arcs:
    """The network's edges, then arcs to what follows nothing and from what nothing follows.

    tail, head: (arcs,) nodes; n stands for what is outside.
    """

    def __init__(self, network: Network) -> None:
        n, edges = len(network), len(network.lag)
        sources = np.flatnonzero(np.diff(network.into_first) == 0)
        lasts = np.flatnonzero(np.diff(network.from_first) == 0)
        outside = np.full(n, n)
        self.tail = np.concatenate([network.tail, outside[: len(sources)], lasts])
        self.head = np.concatenate([network.head, sources, outside[: len(lasts)]])
        self.n, self.edges, self.inner = n, edges, edges + len(sources)
        self.sources, self.lasts = sources, lasts

    def into(self, values: Floats) -> Floats:
        """(n,) sums of (arcs,) values over what enters each node."""
        return _sums(self.head, values, self.n)

    def out_of(self, values: Floats) -> Floats:
        """(n,) sums of (arcs,) values over what leaves each node."""
        return _sums(self.tail, values, self.n)

    def at_head(self, values: Floats) -> Floats:
        """(arcs,) of (n,) values; 0 outside."""
        found: Floats = np.append(values, 0.0)[self.head]
        return found

    def at_tail(self, values: Floats) -> Floats:
        """(arcs,) of (n,) values; 0 outside."""
        found: Floats = np.append(values, 0.0)[self.tail]
        return found

    def at_sources(self, values: Floats) -> Floats:
        """(n,) of (arcs,) values that come from outside, 0 elsewhere."""
        found = np.zeros(self.n)
        found[self.sources] = values[self.edges : self.inner]
        return found

    def at_lasts(self, values: Floats) -> Floats:
        """(n,) of (arcs,) values that go outside, 0 elsewhere."""
        found = np.zeros(self.n)
        found[self.lasts] = values[self.inner :]
        return found


@dataclass(frozen=True)
class Move:
    """ds (n,), dr and df (arcs,), dφ (n,)."""

    start: Floats
    slack: Floats
    flow: Floats
    price: Floats


class Springs:
    """A step's linear system for one point: what is joined to what, and how stiffly."""

    def __init__(self, network: Network, arcs: Arcs) -> None:
        self._network, self._arcs = network, arcs
        found = sparse.columns(network.from_first, network.from_edge, network.head)
        self._pattern = sparse.pattern_of(found, len(network))
        self._value = np.empty(len(found) - len(network))
        self._pivot = np.empty(len(network))

    def set(self, stiff: Floats, flex: Floats) -> None:
        """stiff: (arcs,) f/r.  flex: (n,) −dx/dφ."""
        network, arcs = self._network, self._arcs
        self._stiff, self._flex, self._joint = stiff, flex, arcs.out_of(stiff)
        self._weak = 1.0 / (1.0 + flex * self._joint)
        sparse.factorise(
            self._pattern,
            network.into_first,
            network.into_edge,
            network.from_first,
            network.from_edge,
            network.tail,
            network.head,
            stiff,
            flex,
            self._weak,
            arcs.at_sources(stiff) + arcs.at_lasts(stiff) * self._weak,
            self._value,
            self._pivot,
        )

    def move(self, free: Floats, force: Floats, missing: Floats, excess: Floats) -> Move:
        """The move at which dx = free − flex · dφ and df = force − stiff · (dr − missing).

        free: (n,).  force, missing: (arcs,).  excess: (n,) what flows in beyond what flows out.
        """
        arcs, stiff = self._arcs, self._stiff
        leaving = arcs.out_of(force)
        push = self._weak * (free - self._flex * leaving)  # of each joint, starts held
        start = arcs.into(force + stiff * arcs.at_tail(push)) - leaving - self._joint * push
        start += excess
        sparse.solve(self._pattern, self._value, self._pivot, start)
        end = self._weak * (start + self._flex * arcs.out_of(stiff * arcs.at_head(start))) + push
        stretch = arcs.at_head(start) - arcs.at_tail(end)
        flow = force - stiff * stretch
        return Move(start, stretch + missing, flow, arcs.out_of(flow))


def _sums(node: Ints, values: Floats, n: int) -> Floats:
    found: Floats = np.bincount(node, weights=values, minlength=n + 1)[:n].astype(
        np.float64, copy=False
    )
    return found
