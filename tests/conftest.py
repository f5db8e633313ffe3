"""The `backend` fixture: an op test runs once for every build of the kernels that can run here.

And `service` and `url`, the server of the tests of gpt2c serve.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `import gpt2c` does, but here torch comes first

# ruff: noqa: E402, since the line above comes first

import emulation
import on_gpu
import pytest
import remote
import torch

from gpt2c import _native

if TYPE_CHECKING:
    from gpt2c.serve.service import Service

THREADS = 2
NEON = "cpu-neon-qemu"
EMULATED = "cuda-emulated"
EMULATED_SM75 = "cuda-emulated-sm75"
GPU = "cuda"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backends",
        choices=("here", "neon", "sanitized", "gpu"),
        default="here",
        help="here: every ISA of this machine, and CUDA's kernels on the emulator, and on a GPU where there is one; "
        "neon: NEON under qemu, which with the cross compiler must be installed; "
        "sanitized: kernels built with AddressSanitizer and UndefinedBehaviorSanitizer; gpu: the GPU alone",
    )


def pytest_configure(config: pytest.Config) -> None:
    # nohup ignores SIGHUP, a script's `&` SIGINT, and processes inherit that; a run that is told to ignore it goes on.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--backends") == "gpu" and on_gpu.gpu_problem():
        raise pytest.UsageError(f"--backends gpu: no GPU to run on: {on_gpu.gpu_problem()}")
    if config.getoption("--backends") == "neon" and not remote.can_emulate_neon():
        raise pytest.UsageError("--backends neon: qemu-user or g++-aarch64-linux-gnu is missing")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" not in metafunc.fixturenames:
        return
    isas = _native.available_isas()
    gpu = [GPU] * (not on_gpu.gpu_problem())
    emulated = [EMULATED, EMULATED_SM75] * bool(emulation.cuda_headers())
    sets = {
        "here": [f"cpu-{isa}" for isa in isas] + emulated + gpu,
        "neon": [NEON],
        "sanitized": [f"sanitized-{isa}" for isa in isas],
        "gpu": gpu,
    }
    names = sets[metafunc.config.getoption("--backends")]
    metafunc.parametrize("backend", names, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if _exists(item)]


def _exists(item: pytest.Item) -> bool:
    """Whether the test's backend has the kernels, for its dtype; on sm_75 ones of its own: attention's in 16 bits."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    backend, dtype = params.get("backend"), params.get("dtype")
    if backend == EMULATED_SM75:
        return item.path.stem == "test_attention" and dtype in (torch.bfloat16, torch.float16)
    if item.path.stem == "test_decode" and (backend or "").startswith("cuda"):
        return False
    return backend is None or dtype != torch.float16 or backend.startswith("cuda")


@pytest.fixture(scope="session")
def servers() -> Iterator[dict[str, remote.Remote]]:
    """The kernel servers that have been started, by backend."""
    started: dict[str, remote.Remote] = {}
    yield started
    for server in started.values():
        server.close()


@pytest.fixture
def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, servers: dict[str, remote.Remote]
) -> Iterator[str]:
    """The name of the backend that this test's ops run on; only this test's."""
    name: str = request.param
    if name.startswith("cpu-") and name != NEON:
        _native.set_isa(name.removeprefix("cpu-"))
    elif name == GPU:
        on_gpu.OnGpu("cuda", _native.call).patch(monkeypatch)
    else:
        if name in servers and servers[name].process.poll() is not None:  # a sanitizer's finding ends its server
            servers.pop(name).close()
        if name not in servers:
            servers[name] = start_server(name)
        servers[name].patch(monkeypatch)
    yield name
    _native.set_isa("")


@pytest.fixture(scope="module")
def service() -> Service:
    from serving import make_service  # needs the extra `serve`, which the tests that ask for it look for first

    torch.set_num_threads(1)
    return make_service()


@pytest.fixture(scope="module")
def url(service: Service) -> Iterator[str]:
    """The address of the running server of the module's `service`."""
    from serving import serving

    with serving(service) as url:
        yield url


def start_server(name: str) -> remote.Remote:
    if name == EMULATED:
        return emulation.emulated()
    if name == EMULATED_SM75:
        return emulation.emulated(f"shuffled:{emulation.SEED},sm=75")
    return remote.neon() if name == NEON else remote.sanitized(name.removeprefix("sanitized-"))


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    torch.manual_seed(0)
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)
    torch.set_deterministic_debug_mode("default")


def pytest_report_header(config: pytest.Config) -> str:
    cuda = "CUDA on the emulator" if emulation.cuda_headers() else "no CUDA (its headers are missing)"
    gpu = f"no GPU ({on_gpu.gpu_problem()})" if on_gpu.gpu_problem() else f"GPU {torch.cuda.get_device_name()}"
    return f"gpt2c: torch {torch.__version__}, ISAs {', '.join(_native.available_isas())}, {cuda}, {gpu}"
