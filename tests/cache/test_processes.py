"""Several processes and threads: one build per key, nobody sees half an entry, a kill leaves no trouble."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from steps import steps

import flextrace.cache.building as building_module
import flextrace.cache.store as store_module
from flextrace.cache import CacheError, Entry, Store, key_of

KEY, OTHER = key_of("the kernel"), key_of("another")

# Arguments: cache folder, key, log, seconds. Says "ready", waits for a line, builds, says the entry's folder.
PROCESS = """
import os, sys, time
from pathlib import Path
from flextrace.cache import Store, key_of
cache, key, log = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
seconds = float(sys.argv[4])
def build(folder):
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\\n")
    (folder / "kernel.cpp").write_text("source")
    time.sleep(seconds)
    (folder / "kernel.so").write_bytes(b"code" * 10_000)
    return {"mod": "alibi"}
print("ready", flush=True)
sys.stdin.readline()
entry = Store(cache).get_or_build(key, build, required=["kernel.cpp", "kernel.so"])
assert (entry.folder / "kernel.so").read_bytes() == b"code" * 10_000
print(entry.folder, flush=True)
"""


def start(cache: Store, key: str, log: Path, seconds: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(cache.folder), key, str(log), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def go(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def build(folder: Path) -> dict[str, Any]:
    (folder / "kernel.cpp").write_text("source")
    (folder / "kernel.so").write_bytes(b"code" * 10_000)
    return {}


def building(cache: Store) -> list[Path]:
    return list(cache.folder.glob("building/*"))


def test_eight_processes_build_once(cache: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(cache, KEY, log, 0.2) for _ in range(8)]
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        go(process)
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip() == str(cache.folder / "kernels" / KEY[:2] / KEY) and err == ""
    assert len(log.read_text().split()) == 1
    assert building(cache) == [] and cache.verify() == {}


@pytest.fixture
def killed(cache: Store, tmp_path: Path) -> Path:
    """What a process that was killed in the middle of building KEY left in building/."""
    process = start(cache, KEY, tmp_path / "log", 600)
    go(process)
    until(lambda: list(cache.folder.glob("building/*/kernel.cpp")))
    process.kill()
    process.communicate(timeout=60)
    (left,) = building(cache)
    return left


def test_after_a_kill_the_same_key_builds_at_once(cache: Store, killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is still held would be waited for, ten looks a second."""
    looks = 0

    def look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", look)
    assert (cache.get_or_build(KEY, build).folder / "kernel.so").stat().st_size == 40_000
    assert looks == 0
    assert building(cache) == [] and cache.verify() == {}


def test_after_a_kill_another_key_sweeps(cache: Store, killed: Path) -> None:
    cache.get_or_build(OTHER, build)
    assert building(cache) == []


def test_after_a_kill_prune_sweeps(cache: Store, killed: Path) -> None:
    assert cache.prune(10**9) == 0
    assert building(cache) == []


def test_what_a_live_process_builds_is_never_swept(cache: Store, tmp_path: Path) -> None:
    process = start(cache, KEY, tmp_path / "log", 1.0)
    go(process)
    until(lambda: list(cache.folder.glob("building/*/kernel.cpp")))
    (live,) = building(cache)
    os.utime(live, (0, 0))  # its age does not matter
    cache.get_or_build(OTHER, build)
    assert cache.clear() == 1
    assert building(cache) == [live] and (live / "kernel.cpp").exists()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert cache.get(KEY) is not None


def test_waiting_too_long_names_the_lock_file(cache: Store, tmp_path: Path) -> None:
    process = start(cache, KEY, tmp_path / "log", 600)
    go(process)
    until(lambda: list(cache.folder.glob("building/*/kernel.cpp")))
    lock = cache.folder / "locks" / f"{KEY}.lock"
    try:
        with pytest.raises(CacheError) as caught:
            Store(cache.folder, lock_timeout=0.05).get_or_build(KEY, build)
    finally:
        process.kill()
        process.communicate(timeout=60)
    message = str(caught.value)
    assert message.startswith(f"waited 0.05 s for another process that builds the same kernel and holds {lock}. ")
    assert f"end that process (`lsof '{lock}'` names it), or set FLEXTRACE_CACHE_DIR to another folder" in message


def run_threads(work: Callable[[int], None], count: int) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_build_once(cache: Store) -> None:
    runs: list[int] = []
    found: list[Entry] = []

    def slow(folder: Path) -> dict[str, Any]:
        runs.append(1)
        time.sleep(0.1)
        return build(folder)

    run_threads(lambda _: found.append(cache.get_or_build(KEY, slow)), 8)
    assert len(runs) == 1 and len(found) == 8


def test_readers_never_see_half_an_entry_while_it_is_damaged_removed_and_rebuilt(cache: Store) -> None:
    stop = time.monotonic() + 1.0

    def work(number: int) -> None:
        store = Store(cache.folder)
        while time.monotonic() < stop:
            if number == 0:
                try:
                    os.truncate(cache.folder / "kernels" / KEY[:2] / KEY / "kernel.so", 7)
                except FileNotFoundError:
                    continue
                time.sleep(0.002)
            elif number == 1:
                cache.remove(KEY)
                time.sleep(0.003)
            else:
                entry = store.get_or_build(KEY, build, ["kernel.so"])
                assert entry.manifest["files"]["kernel.so"]["bytes"] == 40_000

    run_threads(work, 6)
    cache.get_or_build(KEY, build)
    assert cache.verify() == {} and building(cache) == []


def test_a_builder_may_build_another_key(cache: Store) -> None:
    def outer(folder: Path) -> dict[str, Any]:
        inner = cache.get_or_build(OTHER, build)
        return {"made_from": inner.key, **build(folder)}

    assert cache.get_or_build(KEY, outer).manifest["made_from"] == OTHER
    assert building(cache) == [] and len(cache.entries()) == 2


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")  # forking then is the point
def test_a_fork_in_the_middle_of_a_build(cache: Store) -> None:
    inside, finish = threading.Event(), threading.Event()

    def slow(folder: Path) -> dict[str, Any]:
        inside.set()
        finish.wait(30)
        return build(folder)

    thread = threading.Thread(target=lambda: cache.get_or_build(KEY, slow))
    thread.start()
    inside.wait(30)
    pid = os.fork()
    if pid == 0:  # the child: another key at once, this key when the parent has built it
        code = 1
        try:
            cache.get_or_build(OTHER, build)
            code = 0 if "made_by" not in cache.get_or_build(KEY, lambda _: {"made_by": "child"}).manifest else 2
        finally:
            os._exit(code)
    until(lambda: cache.get(OTHER))
    finish.set()
    thread.join()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert building(cache) == []


def test_a_hit_takes_few_steps(cache: Store) -> None:
    def big(folder: Path) -> dict[str, Any]:
        (folder / "kernel.so").write_bytes(bytes(100_000))
        return {}

    cache.get_or_build(KEY, big)
    first = steps(lambda: cache.get_or_build(KEY, big))
    assert steps(lambda: cache.get_or_build(KEY, big)) <= first < 600


def test_a_hit_takes_no_lock_and_writes_nothing(cache: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get_or_build(KEY, build)
    monkeypatch.setattr(building_module, "locked", None)
    monkeypatch.setattr(store_module, "locked", None)
    opened: list[int] = []
    real = os.open

    def noted(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        opened.append(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", noted)
    cache.get_or_build(KEY, build)
    assert opened == [0, 0, 0, 0]  # the folder, its manifest, two files
    assert list((cache.folder / "locks").iterdir()) == []


def locks(cache: Store) -> list[Path]:
    return list((cache.folder / "locks").iterdir())


def test_a_lock_file_goes_with_its_lock(cache: Store) -> None:
    def seen(folder: Path) -> dict[str, Any]:
        assert [path.name for path in locks(cache)] == [f"{KEY}.lock"]
        return build(folder)

    cache.get_or_build(KEY, seen)
    assert locks(cache) == []


def test_lock_files_of_dead_processes_go_with_clear_and_those_of_live_ones_stay(cache: Store, tmp_path: Path) -> None:
    cache.get_or_build(OTHER, build)
    for number in range(5):
        (cache.folder / "locks" / f"{key_of(str(number))}.lock").touch(mode=0o600)
    process = start(cache, KEY, tmp_path / "log", 1.0)
    go(process)
    until(lambda: list(cache.folder.glob("building/*/kernel.cpp")))
    assert cache.clear() == 1
    assert [path.name for path in locks(cache)] == [f"{KEY}.lock"]
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert locks(cache) == []


def test_a_lock_whose_file_goes_away_is_still_had_by_one(cache: Store) -> None:
    building_module.make_folders(cache.folder)
    inside, most, taken = 0, 0, 0

    def take(number: int) -> None:
        nonlocal inside, most, taken
        for _ in range(40):
            with building_module.locked(cache.folder, KEY, 30.0):
                inside += 1
                most = max(most, inside)
                time.sleep(0.0002)
                taken += 1
                inside -= 1

    poll, building_module.POLL_SECONDS = building_module.POLL_SECONDS, 0.0001
    try:
        run_threads(take, 6)
    finally:
        building_module.POLL_SECONDS = poll
    assert most == 1 and taken == 240 and locks(cache) == []
