"""How much memory this process may still take, and how fast its CPU is with half precision."""

from __future__ import annotations

from pathlib import Path

UNLIMITED = 1 << 60  # cgroup v1 writes a number near 2**63 for no limit


def available_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes free on the machine or in the tightest cgroup around us, whichever is less."""
    for line in (proc / "meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
            break
    else:
        raise OSError(f"{proc}/meminfo does not say how much memory is available")
    return min([free, *_cgroup_headroom(proc, cgroup)])


def _cgroup_headroom(proc: Path, cgroup: Path) -> list[int]:
    """Limit minus use of every cgroup around this process that has a limit (versions 1 and 2)."""
    headroom = []
    membership = (proc / "self" / "cgroup").read_text().splitlines()
    for line in membership:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroup, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = cgroup / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        group = root / path.strip("/")
        for folder in [group, *group.parents]:  # inside a container only the root itself may exist
            limit, use = (_number(folder / name) for name in names)
            if limit is not None and use is not None and limit < UNLIMITED:
                headroom.append(max(0, limit - use + _reclaimable(folder)))
            if folder == root:
                break
    return headroom


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _reclaimable(folder: Path) -> int:
    """Bytes of cached files that the kernel gives up before it refuses memory."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)


def cpu_has_native(dtype: str, proc: Path = Path("/proc")) -> bool:
    """Whether the CPU multiplies matrices of `dtype` in hardware, without conversion."""
    wanted = {
        "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
        "float16": {"avx512_fp16", "amx_fp16", "fphp"},
    }
    if dtype not in wanted:
        return True
    for line in (proc / "cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return bool(wanted[dtype] & set(line.split()))
    return False
