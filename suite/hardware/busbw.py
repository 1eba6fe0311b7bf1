"""Published bus bandwidths of all-reduces by size, and what they say of a level's links beside its latency.

Bus bandwidth is what nccl-tests calls it: 2 (n-1)/n of the payload over the time, the rate of a ring's links.
"""

from __future__ import annotations

from suite.links import InSwitch

Points = tuple[tuple[float, float], ...]

#: (payload, bytes/s): A100 SXM, 8 GPUs, rings; hw_micro.csv hw-0040 to hw-0059
A100_ALL_REDUCE: Points = (
    (2**15, 1.31e9),
    (2**16, 2.45e9),
    (2**17, 4.43e9),
    (2**18, 7.47e9),
    (2**19, 11.41e9),
    (2**20, 18.0e9),
    (2**21, 36.18e9),
    (2**22, 72.33e9),
    (2**23, 109.93e9),
    (2**24, 106.16e9),
    (2**25, 138.49e9),
    (2**26, 171.54e9),
    (2**27, 176.92e9),
    (2**28, 194.07e9),
    (2**29, 222.72e9),
    (2**30, 229.04e9),
    (2**31, 231.41e9),
    (2**32, 233.88e9),
    (2**33, 234.61e9),
    (2**34, 234.89e9),
)

#: H200 SXM, 8 GPUs, added up in the switch from 2 MiB on; hw-0020 to hw-0039. 40 us of the small ones are the host's
H200_ALL_REDUCE: Points = (
    (2**15, 1.44e9),
    (2**16, 2.93e9),
    (2**17, 5.73e9),
    (2**18, 11.74e9),
    (2**19, 23.94e9),
    (2**20, 39.93e9),
    (2**21, 64.53e9),
    (2**22, 107.16e9),
    (2**23, 155.53e9),
    (2**24, 219.89e9),
    (2**25, 275.84e9),
    (2**26, 346.51e9),
    (2**27, 401.93e9),
    (2**28, 436.15e9),
    (2**29, 450.29e9),
    (2**30, 463.58e9),
    (2**31, 469.17e9),
    (2**32, 473.1e9),
    (2**33, 477.45e9),
    (2**34, 482.26e9),
)


def ring_shares(points: Points, ranks: int, bytes_per_second: float, latency_s: float) -> Points:
    """Bus bandwidths of all-reduces over so many ranks, as (bytes of one step, share of the bandwidth).

    A ring has 2 (n-1) steps, each of the latency and an n-th of the payload S: t = 2 (n-1) (latency + S/n / (share B)).
    ValueError where the latency alone is longer than a measured step.
    """
    shares = []
    for payload, bus in points:
        step = payload / ranks
        shares.append((step, step / (step / bus - latency_s) / bytes_per_second))
    if any(share <= 0 for _, share in shares):
        raise ValueError(f"latency_s: {latency_s} is longer than a measured step")
    return tuple(shares)


def in_switch(
    points: Points, ranks: int, bytes_per_second: float, latency_s: float, from_ranks: int, above: float
) -> InSwitch:
    """Those of all-reduces that a switch adds up, from payloads of `above` on: t = 2 latency + S / (share rate).

    Each rank sends its payload up once and gets it back once, however many there are: the time does not depend on n,
    as 5 to 8 ranks show within 5 % (hw-0082 to hw-0088).
    """
    shares = []
    for payload, bus in points:
        if payload >= above:
            seconds = 2 * (ranks - 1) / ranks * payload / bus
            shares.append((payload, payload / (seconds - 2 * latency_s) / bytes_per_second))
    return InSwitch(from_ranks, tuple(shares))


def scaled(points: Points, factor: float, above: float = 0.0) -> Points:
    """Bandwidths, or shares, times a factor; those of sizes from `above` on."""
    return tuple((size, value * factor if size >= above else value) for size, value in points)
