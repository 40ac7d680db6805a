"""What several test files share: one thread, and the sample of CIFAR-10, prepared once a session."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from micronet import params
from tests.support import release

gc.disable()  # nothing becomes garbage while tests are collected, and the search for it takes a second
os.environ.pop("COLUMNS", None)  # a shell or a test runner that says how wide it is would break lines of output


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """On tensors as small as a test's a second thread gains nothing, and beside other work it costs ten times."""
    import torch  # not above: the process that shares the tests out has no use for what takes seconds to load

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_data(tmp_path_factory: pytest.TempPathFactory) -> params.Data:
    """The sample, prepared with seed 0: 800 training, 200 validation, 500 test images."""
    from micronet.data.store import prepare

    root = tmp_path_factory.mktemp("data")
    config = params.Data(source="sample", folder=str(root / "sample"), validation_size=200)
    prepare(config, root / "manifest.json")
    return config


@pytest.fixture(scope="session")
def sample_manifest(sample_data: params.Data) -> Path:
    """The manifest that belongs to `sample_data`."""
    return Path(sample_data.folder).parent / "manifest.json"


# A file is a worker's: it makes its own fixtures, and the longest ones begin first, so that nobody waits at the end.
LONGEST_FIRST = (
    "stages/test_pipeline.py",
    "stages/test_stages.py",
    "packed/test_reference.py",
    "tools/test_verify.py",
    "tools/test_record.py",
    "training/test_ranks.py",
)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported stays: without this every search for garbage walks through all of torch. Rare searches do."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not release.is_here():
        said = "tests marked release have not run: params.yaml or metrics/ are not those that release/cache holds"
        terminalreporter.write_line(said)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    of_the_release = [item for item in items if item.get_closest_marker("release")]
    if of_the_release and not release.is_here():
        items[:] = [item for item in items if item not in of_the_release]
        config.hook.pytest_deselected(items=of_the_release)

    def place(item: pytest.Item) -> int:
        names = (place for place, name in enumerate(LONGEST_FIRST) if item.path.as_posix().endswith(name))
        return next(names, len(LONGEST_FIRST))

    items.sort(key=place)
