"""Peak rates and memory of TPU chips, as published by Google, and the chip of a JAX device.

v5e, v5p and v6e: https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e; "interchip interconnect
bandwidth" in Gbps is converted to bytes. v4: peak and memory bandwidth are those of
`jax.experimental.pallas.tpu.get_tpu_info`; 32 GiB and six links of 50 GB/s (Jouppi et al. 2023,
https://arxiv.org/abs/2304.01433) have not been checked against the source.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Chip(NamedTuple):
  """Rates and memory of one chip, all of its cores together."""

  name: str
  flops: float  # bfloat16 FLOP/s, two for each multiplication
  hbm: int  # bytes
  hbm_bandwidth: float  # bytes per second
  ici_bandwidth: float  # bytes per second, sent over all links together


CHIPS = (
  Chip('v4', 275e12, 32 << 30, 1230e9, 300e9),
  Chip('v5e', 197e12, 16 << 30, 819e9, 200e9),
  Chip('v5p', 459e12, 95 << 30, 2765e9, 600e9),
  Chip('v6e', 918e12, 32 << 30, 1600e9, 400e9),
)

# Chip names by `jax.Device.device_kind`.
DEVICE_KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
}


def of(device: Any) -> Chip | None:
  """Look up the chip of a `jax.Device`; None for a CPU or any other unlisted device."""
  name = DEVICE_KINDS.get(device.device_kind)
  return next((chip for chip in CHIPS if chip.name == name), None)
