"""Threads of the cpu kernel: a call ends when its jobs are done, whoever else has the processors, or at a signal."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from calls import attention_call, attention_spec

import flextrace as flex
from flextrace import stages
from flextrace.kernels import AttentionCall, backend_for, toolchain
from flextrace.kernels.cpu.generate import kernel_text
from flextrace.kernels.cpu.launch import Kernel, load

HERE = Path(__file__).parent
CPU = {"BACKEND": "cpu"}


def compiler() -> toolchain.Compiler:
    found = toolchain.find_compiler()
    assert found is not None
    return found


def normal(*shape: int) -> mx.array:
    array = mx.random.normal(shape, key=mx.random.key(sum(shape)))
    mx.eval(array)
    return array


# ---- threads ---------------------------------------------------------------------------------------------------------


def check_threads(tmp_path: Path, *flags: str) -> None:
    """threads_check.cpp gives 0, or the line of its check that fails."""
    command = [compiler().path, "-std=c++17", "-O1", "-g", "-pthread", *flags, "threads_check.cpp"]
    subprocess.run([*command, "-o", str(tmp_path / "check")], cwd=HERE, check=True)
    done = subprocess.run([str(tmp_path / "check")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_call_needs_no_thread_that_never_runs_and_a_late_one_touches_nothing(tmp_path: Path) -> None:
    check_threads(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
def test_threads_under_sanitizers(tmp_path: Path, sanitizer: str) -> None:
    check_threads(tmp_path, f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")


COUNTED = """\
#include <pthread.h>
extern "C" __attribute__((visibility("default"))) int threads_asked = 0;
template <class... Arguments>
static int count_and_create(Arguments... arguments) {
  threads_asked++;
  return pthread_create(arguments...);
}
#define pthread_create count_and_create
"""


@pytest.fixture(scope="module")
def threads_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., int]:
    """How many threads a call of the plain kernel starts, given q, k, v and how many it may use."""
    folder = tmp_path_factory.mktemp("counted")
    text = kernel_text(attention_spec())
    assert text.count("#include <pthread.h>\n") == 1
    (folder / "kernel.cpp").write_text(text.replace("#include <pthread.h>\n", COUNTED), encoding="ascii")
    compiler().build(folder / "kernel.cpp", folder / "kernel.so")
    kernel = Kernel(load(folder / "kernel.so", "flextrace_attention"))
    asked = ctypes.c_int.in_dll(ctypes.CDLL(str(folder / "kernel.so")), "threads_asked")

    def threads(q: mx.array, kv: mx.array, most: int = 8) -> int:
        asked.value = 0
        kernel.run(attention_call(q, kv, kv, 0.125, threads=most))
        return asked.value

    return threads


def test_small_calls_start_no_threads(threads_of: Callable[..., int]) -> None:
    assert threads_of(normal(1, 8, 1, 64), normal(1, 8, 1024, 64)) == 0, "one row over 1,024 keys"
    assert threads_of(normal(1, 8, 64, 64), normal(1, 8, 64, 64)) == 0
    assert threads_of(normal(1, 8, 512, 64), normal(1, 8, 512, 64)) == 7
    assert threads_of(normal(1, 8, 512, 64), normal(1, 8, 512, 64), 2) == 1
    assert threads_of(normal(1, 8, 1, 64), normal(1, 8, 16384, 64)) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_end_on_their_own() -> None:
    def running() -> int:
        return len(os.listdir("/proc/self/task"))

    q = normal(1, 4, 512, 32)
    before = running()
    for _ in range(20):
        flex.flex_attention(q, q, q, kernel_options={**CPU, "NUM_THREADS": 4})
    for _ in range(60000):
        if running() <= before:
            return
        time.sleep(0.001)
    pytest.fail(f"{running() - before} threads are still there")


def test_bits_do_not_depend_on_threads_beside_other_work() -> None:
    """Busy processes on every processor: some threads come late, some in the middle of the call."""
    q, k, v = normal(1, 3, 300, 32), normal(1, 3, 700, 32), normal(1, 3, 700, 40)
    alone = np.array(flex.flex_attention(q, k, v, kernel_options={**CPU, "NUM_THREADS": 1}))
    spin = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    busy = [subprocess.Popen(spin, stdout=subprocess.PIPE) for _ in range(os.cpu_count() or 1)]
    try:
        for process in busy:
            assert process.stdout is not None and process.stdout.readline()
        for threads in (2, 3, 16, 5, 8) * 2:
            out = flex.flex_attention(q, k, v, kernel_options={**CPU, "NUM_THREADS": threads})
            np.testing.assert_array_equal(np.array(out), alone)
    finally:
        for process in busy:
            process.kill()
            process.wait()
            process.stdout.close()  # type: ignore[union-attr]


# ---- signals ---------------------------------------------------------------------------------------------------------

signals = pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timer signals")


@pytest.fixture
def after() -> Iterator[Callable[[float, Callable[[int, Any], None]], None]]:
    """after(seconds, handler): signals come from then on, as often."""
    old = signal.getsignal(signal.SIGALRM)

    def start(seconds: float, handler: Callable[[int, Any], None]) -> None:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


class Third:
    """A handler that raises at its third call: signals that wait for the end of a kernel are one call."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, number: int, frame: Any) -> None:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt


def long_call(heads: int = 16) -> AttentionCall:
    """Some seconds of work, in jobs of some milliseconds."""
    q, k = normal(1, heads, 8192, 64), normal(1, 1, 8192, 64)
    return attention_call(q, k, k, 0.125, threads=2)


def plain_kernel() -> Kernel:
    backend: Any = backend_for("cpu")
    return backend.load(attention_spec())  # type: ignore[no-any-return]


@pytest.mark.parametrize("rows", [1, 40])
def test_an_assignment_while_a_kernel_runs_changes_nothing_that_it_reads(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As another thread may assign, once Python's lock is free: the memory that it had belongs to the call."""
    q, k, table = normal(1, 1, rows, 16), normal(1, 1, 300, 16), normal(300)

    @flex.score_mod
    def biased(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + table[kv_idx]

    wanted = np.array(flex.flex_attention(q, k, k, biased, kernel_options=CPU))
    call = attention_call(q, k, k, 0.25, biased.bind())
    backend: Any = backend_for("cpu")
    kernel = backend.load(backend.spec(call))
    entry = kernel.entry

    def assign_before(params: bytes, arrays: tuple[Any, ...]) -> int:
        for array in (q, k, table):
            array[...] = mx.full(array.shape, 7.0)
        mx.eval(q, k, table)
        return int(entry(params, arrays))

    monkeypatch.setattr(kernel, "entry", assign_before)
    np.testing.assert_array_equal(np.array(kernel.run(call).out), wanted)


@signals
def test_a_long_call_is_interrupted_between_two_jobs(after: Any) -> None:
    call, kernel, counts = long_call(), plain_kernel(), np.zeros(4, np.int64)
    after(0.02, Third())
    with pytest.raises(KeyboardInterrupt):
        kernel.run(call, counts)
    groups = 16 * 8192 // 12
    tiles_per_group = 8192 // 512
    assert 0 < counts.sum() < groups * tiles_per_group / 2
    q = call.q[:, :2, :100]
    del call
    gc.collect()
    k = normal(1, 2, 90, 64)
    out = flex.flex_attention(q, k, k, kernel_options=CPU)
    expected = mx.fast.scaled_dot_product_attention(q, k, k, scale=0.125)
    np.testing.assert_allclose(np.array(out), np.array(expected), atol=2e-5)


@signals
def test_a_stage_is_interrupted_between_two_jobs(after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXTRACE_NUM_THREADS", "1")
    a = normal(1, 1, 3000, 3000)
    stages.matmul(a[..., :8, :], a, backend="cpu")
    after(0.02, Third())
    with pytest.raises(KeyboardInterrupt):
        stages.matmul(a, a, backend="cpu")


@signals
def test_a_handler_may_call_the_kernel_and_the_interrupted_call_goes_on(after: Any) -> None:
    small = normal(1, 1, 5, 8)
    inner: list[np.ndarray] = []

    def handler(number: int, frame: Any) -> None:
        inner.append(np.array(flex.flex_attention(small, small, small, kernel_options=CPU)))

    call, kernel = long_call(heads=2), plain_kernel()
    expected = np.array(flex.flex_attention(small, small, small, kernel_options=CPU))
    after(0.05, handler)
    out = np.array(kernel.run(call).out)
    assert len(inner) > 1
    np.testing.assert_array_equal(inner, [expected] * len(inner))
    few = attention_call(call.q[:, 1:, 5000:5010], call.k, call.v, 0.125)
    mx.eval(few.q)
    np.testing.assert_array_equal(np.array(kernel.run(few).out), out[:, 1:, 5000:5010])


@signals
def test_a_call_of_another_thread_goes_on_while_the_main_thread_is_interrupted(after: Any) -> None:
    q, outs = normal(1, 4, 2048, 64), []
    expected = np.array(flex.flex_attention(q, q, q, kernel_options=CPU))

    def call() -> None:
        for _ in range(4):
            outs.append(np.array(flex.flex_attention(q, q, q, kernel_options=CPU)))
        done.set()

    done = threading.Event()
    threading.Thread(target=call).start()
    after(0.02, Third())
    with pytest.raises(KeyboardInterrupt):
        threading.Event().wait(60)
    done.wait()
    np.testing.assert_array_equal(outs, [expected] * 4)
