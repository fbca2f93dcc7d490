"""Build backend of test_environment.py's stand-in project: puts `rnn/` in a wheel and a line in `builds`."""

import time
import zipfile
from pathlib import Path
from typing import Any


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel of pure Python with these files (path -> text) into the folder; return its file name."""
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    wheel = f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return wheel


def prepare_metadata_for_build_wheel(folder: str, _settings: dict[str, Any] | None = None) -> str:
    """As PEP 517 says; without it pip would build each wheel twice."""
    info = Path(folder, "stand_in-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stand_in\nVersion: 1.0\n")
    return info.name


def build_wheel(folder: str, settings: dict[str, Any] | None = None, _info: str | None = None) -> str:
    """As PEP 517 says. Fails if rnn/__init__.py does not compile, as a kernel would."""
    source = Path("rnn/__init__.py").read_text()
    compile(source, "rnn/__init__.py", "exec")
    with open("builds", "a") as log:
        print(settings, file=log)
    if "slow" in source:
        time.sleep(600)
    return write_wheel(Path(folder), "stand_in", "1.0", {"rnn/__init__.py": source})
