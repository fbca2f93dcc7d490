"""The wheel as a user gets it: in an environment that holds what it declares and no more, so no Halide."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent

# Prints what `import rnn` brought in, then trains a little on the compiled kernels.
PROGRAM = """
import json, sys
import rnn
imported = sorted(sys.modules)
import numpy as np
x = np.random.default_rng(1).standard_normal((7, 4, 3), dtype=np.float32)
for make in (rnn.RNN, rnn.LSTM, rnn.GRU):
    layer = make(3, 5, output_size=2, seed=1)
    with rnn.backend.using("halide"):
        run = layer.forward(x)
        gradients = layer.bptt(run, np.ones_like(run.output))
    with rnn.backend.using("numpy"):
        expected = layer.forward(x)
        expected_gradients = layer.bptt(expected, np.ones_like(expected.output))
    np.testing.assert_allclose(run.output, expected.output, rtol=1e-4, atol=1e-5)
    for name, gradient in expected_gradients.weights.items():
        np.testing.assert_allclose(gradients.weights[name], gradient, rtol=1e-4, atol=1e-5, err_msg=name)

@rnn.cell
class Own:
    gates = "a"
    states = "h"

    def step(self, x, u, h):
        return rnn.cells.tanh(x.a * 2 + u.a(h))

try:
    Own(3, 5).forward(x)
except rnn.backend.BackendUnavailable as reason:
    own = str(reason)
jit = rnn.backend.available()["halide-jit"]
print(json.dumps({"imported": imported, "module": rnn.__file__, "halide-jit": jit, "own": own}))
"""


def command(*arguments: str | Path) -> str:
    """Standard output of a command, which has to succeed."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, f"{arguments}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree. From the build folder of `.venv`, so that no kernel has to be built again."""
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("needs the environment of `python3 tests`, whose kernels are built")
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-index", "--no-build-isolation", "--no-deps", "--config-settings=build-dir=build/venv")
    command(sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", folder, ".")
    (path,) = folder.glob("halide_rnn-*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def needed(requirements: list[str], found: set[str]) -> set[str]:
    """The names of the distributions that these requirements bring in, all the way down, without extras."""
    for requirement in map(Requirement, requirements):
        holds = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if holds and requirement.name not in found:
            found.add(requirement.name)
            needed(importlib.metadata.requires(requirement.name) or [], found)
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, metadata: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and, linked from ours to need no network, what it declares."""
    environment = tmp_path_factory.mktemp("clean environment")
    command(sys.executable, "-m", "venv", "--without-pip", environment)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in needed(metadata.get_all("Requires-Dist", []), set()):
        distribution = importlib.metadata.distribution(name)
        tops = {path.parts[0] for path in distribution.files or [] if path.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    command(sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", packages, wheel)
    return environment


@pytest.fixture(scope="module")
def extension(installed: Path) -> Path:
    (path,) = installed.glob(f"lib/python*/site-packages/rnn/_kernels{sysconfig.get_config_var('EXT_SUFFIX')}")
    return path


def test_declares_numpy_safetensors_and_the_command_line(metadata: Message) -> None:
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    declared = {r.name for r in requirements if r.marker is None}
    assert {"numpy", "safetensors"} <= declared <= {"numpy", "safetensors", "click", "rich"}
    assert set(metadata.get_all("Provides-Extra", [])) >= {"bench", "dev", "jit"}


def test_holds_the_package_and_the_licence_and_nothing_of_the_build(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"rnn"}
    assert "rnn/py.typed" in names
    assert {"rnn/baselines/__init__.py", "rnn/halide_gen/forward.py"} <= set(names), "other cells are compiled from it"
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if name.endswith((".a", ".o", ".s", ".stmt", ".cpp", ".h"))]
    assert not [name for name in names if "__pycache__" in name]
    assert len([name for name in names if name.endswith(".so")]) == 1


def test_runs_without_halide(installed: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    printed = json.loads(command(installed / "bin" / "python", "-I", program))
    assert printed["module"].startswith(str(installed))
    assert printed["halide-jit"] != "ready"
    assert "pip install halide-rnn[jit]" in printed["own"]
    roots = {name.split(".")[0] for name in printed["imported"]}
    assert not roots & {"halide", "click", "rich", "matplotlib", "skimage", "av", "scipy"}


def test_command_starts(installed: Path) -> None:
    shown = command(installed / "bin" / "python", "-I", "-m", "rnn", "--help")
    assert "train" in shown


def test_extension_links_neither_halide_nor_blas(extension: Path) -> None:
    libraries = {line.split()[0] for line in command("ldd", extension).splitlines()}
    usual = (
        "linux-vdso",
        "libc.",
        "libm.",
        "libdl.",
        "libpthread.",
        "libgcc_s.",
        "libstdc++.",
        "/lib64/ld-linux",
    )
    assert [name for name in libraries if not name.startswith(usual)] == []


def test_extension_exports_its_entry_alone(extension: Path) -> None:
    assert shutil.which("nm"), "binutils come with the compiler"
    symbols = command("nm", "-D", "--defined-only", extension).splitlines()
    assert [line.split()[-1] for line in symbols] == ["PyInit__kernels"]
