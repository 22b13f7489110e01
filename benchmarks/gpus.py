"""GPUs to compile for, as XLA describes them. None of them has to be present."""

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

# Equal for both, from the files named below.
BOTH = """
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
"""
DEVICES = {
    # github.com/openxla/xla, xla/backends/gpu/target_config/specs/h100_sxm.txtpb, at commit
    # 0774019d97e7, without the rates of its arithmetic units.
    "h100": """
  shared_memory_per_core: 233472
  core_count: 132
  fpus_per_core: 128
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
""",
    # The file a100_sxm_80.txtpb in the same folder, at commit 4336d12e0706.
    "a100": """
  shared_memory_per_core: 167936
  core_count: 108
  fpus_per_core: 64
  memory_bandwidth: 2039040000000
  l2_cache_size: 41943040
  clock_rate_ghz: 1.41
  device_memory_size: 85100068864
  shared_memory_per_block_optin: 166912
  cuda_compute_capability { major: 8 }
""",
}
# CUDA and cuDNN as in `runtime_version` and `dnn_version` of the first file.
VERSIONS = """
platform_name: "CUDA"
runtime_version { major: 12 minor: 8 patch: 0 }
dnn_version_info { major: 9 minor: 10 patch: 0 }
"""


def sharding_on(gpu: str) -> NamedSharding:
    """All of an array on one GPU of that name."""
    config = f"gpu_device_info {{{BOTH}{DEVICES[gpu]}}}{VERSIONS}"
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name=gpu, target_config=config, topology="1x1x1"
    )
    mesh = jax.sharding.Mesh(topology.devices[:1], ("gpu",))
    return NamedSharding(mesh, P())
