"""What a TPU chip can do, as its maker states it, and which chip a device of JAX is.

v5e, v5p and v6e: https://cloud.google.com/tpu/docs/v5e, /v5p and /v6e, whose "interchip
interconnect bandwidth" in Gbps is here in bytes. v4: the peak and the memory's bandwidth are those
of `jax.experimental.pallas.tpu.get_tpu_info`; its 32 GiB and six links of 50 GB/s (Jouppi et al.
2023, https://arxiv.org/abs/2304.01433) are from memory, unchecked.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Chip(NamedTuple):
  """Of one chip, all its cores together."""

  name: str
  flops: float  # bfloat16 products a second, two operations each
  hbm: int  # bytes
  hbm_bandwidth: float  # bytes a second
  ici_bandwidth: float  # bytes a second that all links together send


CHIPS = (
  Chip('v4', 275e12, 32 << 30, 1230e9, 300e9),
  Chip('v5e', 197e12, 16 << 30, 819e9, 200e9),
  Chip('v5p', 459e12, 95 << 30, 2765e9, 600e9),
  Chip('v6e', 918e12, 32 << 30, 1600e9, 400e9),
)

# As `jax.Device.device_kind` says it.
KINDS = {
  'TPU v4': 'v4',
  'TPU v5 lite': 'v5e',
  'TPU v5e': 'v5e',
  'TPU v5': 'v5p',
  'TPU v5p': 'v5p',
  'TPU v6 lite': 'v6e',
  'TPU v6e': 'v6e',
}


def of(device: Any) -> Chip | None:
  """The chip of a `jax.Device`; None for what is not listed, as a CPU is not."""
  name = KINDS.get(device.device_kind)
  return next((chip for chip in CHIPS if chip.name == name), None)
