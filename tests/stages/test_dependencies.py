"""Which code decides a stage's result, and which change of it is one."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from micronet import params
from micronet.errors import MicronetError
from stages import dependencies
from tests.support.configs import demo
from tests.support.models import TINY
from tests.support.pipeline import STAGES, write_params
from tests.support.places import ROOT
from tests.support.thinning import thinned

CODE = textwrap.dedent(
    '''
    """What it is."""

    from typing import TYPE_CHECKING

    if TYPE_CHECKING:
        from torch import Tensor


    class Doubler:
        """Says."""

        factor = 2  # why two

        def times(self, x: "Tensor") -> "Tensor":
            """Tells."""
            return self.factor * x
    '''
)
# Every kind of syntax that a version of Python has changed the tree of, or may.
PECULIAR = textwrap.dedent(
    r"""
    @decorated
    class A(object, metaclass=type):
        x: int = 1

        def f(self, x, /, *a, k=1, **r) -> "int":
            return f"a" "b" f"{x!r:>{k}}c" "d" f"{x:}{x=}{{}} {x:%H:%M{k}s} {'q'}\N{BULLET}" + f"" + f"{x:a{k}b{k:c}}é"

        async def g(self):
            match x:
                case {"a": 1, **rest} | [*_, None]:
                    pass
                case A(x=-1.5e300):
                    return lambda *, q: {**q, None: ...}
            try:
                pass
            except* ValueError as e:
                raise e from None
            print(b"\xff", 1j, 10**30, u"x", "\U0001fae8", x[1:, ...])
            with a as b, c:
                global z
            return [await y async for y in x if not y], (z := 3)
    """
)


def recipe(teacher: dict, student: dict) -> params.Params:
    """The demo recipe with other networks."""
    return params.parse(demo(("teacher.model", teacher), ("student.model", student)))


# --- digests ---


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# why two", "# why"),
        ("What it is", "What it was"),
        ("Says", "Tells"),
        ('        """Tells."""\n', ""),
        ("\n\n\n", "\n\n"),
        ("self.factor * x", "(self.factor\n                * x)"),
        ("import Tensor", "import Tensor, nn"),
    ],
    ids=["comment", "module's docstring", "docstring", "no docstring", "lines", "layout", "imports for type checkers"],
)
def test_what_computes_nothing_changes_no_digest(old, new):
    assert old in CODE
    assert dependencies.digest(CODE.replace(old, new)) == dependencies.digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("factor = 2", "factor = 3"),
        ("factor = 2", "factor = 2.0"),
        ("factor = 2", "factor = '2'"),
        ("factor = 2", "factor = None"),
        ("factor = 2", "factor = []"),
        ("factor = 2", "factor = f'{2}'"),
        ("return ", ""),
        ("* x", "+ x"),
        ("times", "once"),
        ("self.factor * x", "x * self.factor"),
        ("if TYPE_CHECKING:", "if not TYPE_CHECKING:"),
    ],
)
def test_what_computes_something_else_changes_the_digest(old, new):
    assert old in CODE
    assert dependencies.digest(CODE.replace(old, new)) != dependencies.digest(CODE)


def test_what_stands_in_an_f_string_counts_and_how_it_is_cut_does_not():
    whole = dependencies.digest('x = f"{a:>{b}} of {c!r}."')
    assert dependencies.digest('x = f"{a:>{b}}" " o" f"f {c!r}" "." f""') == whole
    for other in ('f"{a:<{b}} of {c!r}."', 'f"{a:>{b}} of {c!s}."', 'f"{a:>{b}} of {c!r}"', '"{a:>{b}} of {c!r}."'):
        assert dependencies.digest(f"x = {other}") != whole


def test_a_digest_is_the_same_in_every_version_of_python():
    # what 3.11.7, 3.12.1 and 3.13.0 give
    assert dependencies.digest(PECULIAR) == "11933fe059a6b298"


# --- imports ---


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A repository of few files; `stages/work.py` runs."""
    files = {
        "stages/work.py": "from shared import go\nimport library.far.away\n",
        "stages/shared.py": "def go():\n    from library import near\n    from said import say\n",
        "stages/said.py": "import library.shown\n",
        "library/__init__.py": "",
        "library/near.py": (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import library.typed\n"
            "else:\n    import library.other\n"
        ),
        "library/typed.py": "",
        "library/other.py": "import os, stages_are_no_package\n",
        "library/shown.py": "",
        "library/unused.py": "",
        "library/far/__init__.py": "from library.far import door\n",
        "library/far/away.py": "import library.near\n",
        "library/far/door.py": "",
    }
    for name, code in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    return tmp_path


def test_a_script_depends_on_what_it_imports_directly_or_not_and_on_the_packages_around_it(house):
    found = dependencies.digests("stages/work.py", without={"stages/said.py"}, root=house)
    assert list(found) == [
        "library/__init__.py",
        "library/far/__init__.py",
        "library/far/away.py",
        "library/far/door.py",
        "library/near.py",
        "library/other.py",
        "stages/shared.py",
        "stages/work.py",
    ]
    assert found["library/near.py"] == dependencies.digest((house / "library/near.py").read_text())


def test_what_only_shows_something_is_no_dependency_nor_is_what_it_alone_imports(house):
    shown = {"stages/said.py", "library/shown.py"}
    assert shown <= set(dependencies.digests("stages/work.py", without=(), root=house))
    assert not shown & set(dependencies.digests("stages/work.py", without={"stages/said.py"}, root=house))


def test_more_than_one_file_may_be_what_is_asked_for(house):
    found = dependencies.digests("library/unused.py", "library/typed.py", root=house)
    assert list(found) == ["library/typed.py", "library/unused.py"]


def test_a_file_that_is_no_python_is_named_with_its_line(house):
    (house / "library/far/door.py").write_text("x = 1\ny = = 2\n")
    with pytest.raises(MicronetError, match=r"^library/far/door\.py: line 2: is no Python: invalid syntax$"):
        dependencies.digests("stages/work.py", root=house)


# --- the stages ---


def test_a_stage_depends_on_its_script_the_modules_it_shares_and_the_library_that_these_use():
    found = dependencies.stage_digests("prune", params.load(ROOT / "params.yaml"))
    assert {"stages/prune.py", "stages/taught.py", "stages/trainer.py", "stages/job.py"} <= set(found)
    assert {"micronet/compress/pruning.py", "micronet/training/loop.py", "micronet/params.py"} <= set(found)
    assert {"micronet/__init__.py", "micronet/training/__init__.py", "models/__init__.py"} <= set(found)
    assert not {"micronet/compress/quantization.py", "stages/quantize.py", "stages/code_digests.py"} & set(found)


@pytest.mark.parametrize("stage", thinned(STAGES, 3))
def test_what_only_shows_progress_is_no_dependency_of_a_stage(stage):
    found = dependencies.stage_digests(stage, params.load(ROOT / "params.yaml"))
    assert not dependencies.PRESENTATION & set(found)


def test_what_decides_nothing_exists():
    assert [name for name in dependencies.PRESENTATION if not (ROOT / name).is_file()] == []


def test_preparing_data_needs_no_architecture():
    found = dependencies.stage_digests("prepare_data", params.load(ROOT / "params.yaml"))
    assert [name for name in found if name.startswith("models/")] == []


def test_the_architectures_that_count_are_those_that_the_stage_builds(monkeypatch):
    chosen = recipe({"name": "densenet_nano"}, TINY)
    seen: dict[str, tuple] = {}
    monkeypatch.setattr(dependencies, "digests", lambda *starts: seen.update({starts[0]: starts[1:]}))
    for stage in STAGES:
        dependencies.stage_digests(stage, chosen)
    both = ("models/densenet.py", "models/resnet.py")
    assert seen == {f"stages/{stage}.py": both for stage in STAGES} | {
        "stages/prepare_data.py": (),
        "stages/train_teacher.py": ("models/densenet.py",),
        "stages/train_student.py": ("models/resnet.py",),
    }


def test_an_architecture_that_two_networks_share_counts_once():
    assert dependencies.families({"name": "densenet_nano"}, {"name": "densenet121"}) == ["models/densenet.py"]


# --- the script ---


def code_digests(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "stages/code_digests.py")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def test_the_script_writes_a_small_file_a_stage(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "recipes/demo.yaml").read_text())
    assert code_digests(tmp_path).returncode == 0
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")} == {
        f"code/{stage}.json" for stage in STAGES
    }
    text = (tmp_path / "code/score.json").read_text()
    expected = dependencies.stage_digests("score", params.load(ROOT / "recipes/demo.yaml"))
    assert json.loads(text) == expected and list(expected) == sorted(expected)
    assert text.count("\n") == len(expected) + 2, "a file a line"


def test_faulty_params_are_named_before_a_file_is_touched(tmp_path):
    write_params(tmp_path, demo(("student.model.name", "alexnet")))
    done = code_digests(tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("params.yaml: student.model.") and "alexnet" in done.stderr
    assert not (tmp_path / "code").exists()
