"""`calibrate measure`: flags, the choice of a back end, the progress bar, the closing words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from ..threads import THREAD_VARIABLES, set_threads
from .cases import SIZES, Case, cases

if TYPE_CHECKING:
    from .kernels import Kernels
    from .loop import Outcome
    from .table import TimingTable
    from .timers import Timer

PHASES = ("prefill", "decode")


def main(argv: Sequence[str] | None = None) -> int:
    """`calibrate measure` with the arguments after the verb; returns the exit status."""
    parser = argparse.ArgumentParser(prog="calibrate measure")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `calibrate measure`."""
    parser.description = "Time the kernels of LLM inference on this machine and write them as a timing table."
    parser.add_argument("--device", default="cuda:0", help="cuda:N or cpu (default: %(default)s)")
    parser.add_argument(
        "--size", choices=SIZES, default="standard", help="quick ≤ 2 min, standard ≤ 8 min on a GPU"
    )
    parser.add_argument(
        "--out", type=Path, help="timing table to write or resume (.parquet); with --phase a .json"
    )
    parser.add_argument(
        "--backend", choices=("auto", "numpy", "torch"), default="auto", help="on a CPU: which kernels"
    )
    parser.add_argument(
        "--dtype", choices=("bf16", "fp16", "fp32"), help="default: bf16 with torch, fp32 with NumPy"
    )
    parser.add_argument(
        "--threads", type=int, help="on a CPU: threads of the matrix products (default: all cores)"
    )
    parser.add_argument("--kernels", help="only these kernels, by commas (gemm,attention_prefill,...)")
    parser.add_argument("--budget-s", type=float, help="seconds of timing instead of the size's own")
    lab = parser.add_argument_group("whole steps of a model")
    lab.add_argument("--phase", choices=PHASES, help="time steps of --model instead of single kernels")
    lab.add_argument(
        "--model", help="model whose layers are built with random weights (catalogue name or config.json)"
    )
    lab.add_argument(
        "--layers",
        type=int,
        help="build only this many layers and scale to the model's (default: all, on a CPU 1)",
    )
    lab.add_argument(
        "--tokens",
        help="prompt lengths of --phase prefill, by commas (default: 128,512,2048,8192; on a CPU 16,64,256)",
    )
    lab.add_argument(
        "--batches", help="batches of --phase decode, by commas (default: 1,4,16,64,128,256; on a CPU 1,4,16)"
    )
    lab.add_argument("--context", type=int, help="prompt of --phase decode in tokens (default: 128)")


def run(args: argparse.Namespace) -> int:
    """Measure; exit code 0 when the table is complete or the time budget was kept."""
    if args.threads is not None:
        use_threads(args.threads, args.device)
    kernels, timer, dtype = back_end(args.device, args.backend, args.dtype)
    if args.phase:
        from .lab import run_lab

        return run_lab(args, kernels, timer, dtype)
    for flag in ("model", "layers", "tokens", "batches", "context"):
        if getattr(args, flag) is not None:
            raise ConfigError(f"--{flag}: only used with --phase prefill or --phase decode")
    if args.out is None:
        raise ConfigError("--out: missing, expected a file such as t.parquet")
    return _measure(args, kernels, timer, dtype)


def use_threads(n: int, device: str) -> None:
    """Limit the threads of the libraries about to be loaded. One thread is steadiest on a busy machine.

    Raises:
        ConfigError: not a CPU, fewer than one, or NumPy is loaded already and would not notice.
    """
    if device != "cpu" or n < 1:
        raise ConfigError(f"--threads: got {n} on {device}, expected 1 or more, with --device cpu")
    if "numpy" in sys.modules:
        names = ", ".join(THREAD_VARIABLES)
        raise ConfigError(f"--threads: NumPy is loaded already; set {names} in the environment instead")
    set_threads(n)


def back_end(device: str, backend: str, dtype: str | None) -> tuple[Kernels, Timer, str]:
    """Kernels, timer and element type of a device.

    Raises:
        ConfigError: unknown device, no torch for a GPU, no such GPU, or a type that the back end lacks.
    """
    if device == "cpu" and (backend == "numpy" or (backend == "auto" and not _has_torch())):
        from .numpy_kernels import NumpyKernels
        from .timers import WallTimer

        if dtype not in (None, "fp32"):
            raise ConfigError(f"--dtype: got {dtype}, expected fp32: NumPy has no other kernels")
        return NumpyKernels(), WallTimer(), "fp32"
    if backend == "numpy":
        raise ConfigError(f"--backend: got numpy for {device}, expected torch on a GPU")
    if device != "cpu" and not device.startswith("cuda"):
        raise ConfigError(f"--device: got {device!r}, expected cuda:N or cpu")
    if not _has_torch():
        raise ConfigError(
            f"--device {device}: needs torch, which is not installed; pip install 'stepline[gpu]'"
        )
    from .torch_back_end import open_device

    return open_device(device, dtype or "bf16")


def _has_torch() -> bool:
    import importlib.util

    return importlib.util.find_spec("torch") is not None


def _measure(args: argparse.Namespace, kernels: Kernels, timer: Timer, dtype: str) -> int:
    from .grids import BUDGET_S, CASE_S, CPU_BUDGET_S, grid
    from .loop import run as run_loop
    from .table import TimingTable

    gpu = args.device != "cpu"
    extra = getattr(kernels, "gemm_dtypes", ())
    todo = only(cases(grid(args.size, gpu=gpu), dtype, extra) + collectives(kernels, dtype), args.kernels)
    budget = args.budget_s if args.budget_s is not None else (BUDGET_S if gpu else CPU_BUDGET_S)[args.size]
    table = TimingTable(args.out)
    with bar(len(todo)) as progress:
        outcome = run_loop(
            todo, kernels, timer, table, case_s=CASE_S[args.size], budget_s=budget, progress=progress
        )
    close(args.out, args.size, kernels, timer, table, outcome)
    return 0


def only(todo: list[Case], kernels: str | None) -> list[Case]:
    """The cases of the kernels named by commas; all without names."""
    from stepline.traces.errors import nearest

    from ..schema import TIMING_KERNELS

    if kernels is None:
        return todo
    names = [k.strip() for k in kernels.split(",") if k.strip()]
    for name in names:
        if name not in TIMING_KERNELS:
            raise ConfigError(f"--kernels: unknown kernel {name!r}{nearest(name, TIMING_KERNELS)}")
    return [case for case in todo if case.kernel in names]


def collectives(kernels: Kernels, dtype: str) -> list[Case]:
    """All-reduce cases for the GPUs of this machine: 2, 4 and 8 of them, 1 KiB to 256 MiB; none with a single GPU."""
    worlds = [w for w in (2, 4, 8) if w <= int(getattr(kernels, "n_gpus", 1))]
    sizes = [2**i for i in range(10, 29)]
    return [Case("all_reduce", dtype, world=w, message_bytes=b) for w in worlds for b in sizes]


def close(out: Path, size: str, kernels: Kernels, timer: Timer, table: TimingTable, outcome: Outcome) -> None:
    """Write the machine facts and say on stderr what was timed, kept, left and unsupported."""
    from .facts import host_facts, measured_peaks, write_facts, write_gpu

    frame = table.frame() if len(table) else None
    facts: dict[str, Any] = {"size": size, "gpu": kernels.gpu, **host_facts(), **kernels.facts()}
    facts |= {"rows": len(table), "left_for_lack_of_time": outcome.left, "unsupported": outcome.unsupported}
    facts["clocks_seen"] = getattr(timer, "clocks", [])
    facts["measured_peaks"] = measured_peaks(frame) if frame is not None else None
    path = write_facts(out, facts)
    if frame is not None:
        write_gpu(out, kernels.gpu, facts)
    say = f"{outcome.timed} timed, {outcome.kept} kept, {outcome.left} left for lack of time"
    print(f"{out}: {len(table)} rows ({say}); machine facts in {path}", file=sys.stderr)
    for reason, n in outcome.unsupported.items():
        print(f"  not supported here ({n} cases): {reason}", file=sys.stderr)
    if outcome.left:
        print("  run the same command again to time the rest", file=sys.stderr)


class _Bar:
    """A rich progress bar, or nothing where stderr is no terminal."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    def advance(self, label: str) -> None:
        """One case further."""
        self._progress.update(self._task, advance=1, description=label)


@contextmanager
def bar(total: int) -> Iterator[_Bar]:
    """A progress bar over `total` cases on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        yield _Bar(progress, progress.add_task("", total=total))
