"""Which modules travel: what a function refers to or imports, of the user's own project only; and how the other side imports them."""

import importlib
import os
import subprocess
import sys
import textwrap
import types

import pytest
import sparkgap
from sparkgap import PlanError, imports, modules, package_data
from sparkgap.modules import Needs, checked, with_function, with_script
from sparkgap_protos import codec, places
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server import sources


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project(**files)` writes modules, dots as two underscores, into a folder on sys.path and gives it; all is forgotten afterwards."""
    before = set(sys.modules)

    def write(files):
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return tmp_path

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(
            getattr(sys.modules[name], "__file__", "") or getattr(sys.modules[name], "__path__", "")
        ):
            del sys.modules[name]


def names(value, chosen=None):
    needs = Needs()
    codec.pack(value, "value", note=needs)
    return [module.name for module in with_function(checked(chosen), needs, "value").modules]


def by_value(source, **variables):
    """The function `main` of a script: its code travels by value."""
    scope = {"__name__": "__main__", **variables}
    exec(textwrap.dedent(source), scope)  # cloudpickle takes what claims to be from __main__ by value
    return scope["main"]


class TestImports:
    @pytest.mark.parametrize(
        ("source", "package", "found"),
        [
            ("import a, b.c as d", "", {"a", "b.c"}),
            ("from a import b, c", "", {"a", "a.b", "a.c"}),
            ("from a import *", "", {"a"}),
            ("from . import a", "p.q", {"p.q", "p.q.a"}),
            ("from ..r import a", "p.q", {"p.r", "p.r.a"}),
            ("from ...r import a", "p.q", set()),
            ("from . import a", "", set()),
            ("def f():\n    try:\n        import a\n    except ImportError:\n        import b", "", {"a", "b"}),
        ],
    )
    def test_a_file_and_its_bytecode_import_the_same(self, source, package, found):
        assert imports.in_source(source.encode(), package) == found
        assert imports.in_code(compile(source, "f.py", "exec"), package) == found

    def test_what_only_type_checkers_import_does_not_count(self):
        source = b"if TYPE_CHECKING:\n    import a\nelse:\n    import b\nif typing.TYPE_CHECKING:\n    import c\n"
        assert imports.in_source(source, "") == {"b"}

    def test_a_file_that_is_no_python_imports_nothing(self):
        assert imports.in_source(b"import a\nthis is no python", "") == frozenset()


class TestWithAFunction:
    def test_the_modules_of_what_it_refers_to_and_all_that_these_import(self, project):
        project(
            {
                "helper.py": "import deep.inner\ndef f(): pass",
                "deep/__init__.py": "",
                "deep/inner.py": "from . import sibling\nimport numpy, json, pyspark",
                "deep/sibling.py": "def g():\n    from spread.part import h",
                "deep/unused.py": "",
                "spread/part.py": "h = 1",  # no __init__.py
                "unused.py": "",
            }
        )
        helper = importlib.import_module("helper")
        wanted = ["deep", "deep.inner", "deep.sibling", "helper", "spread.part"]
        assert names(helper.f) == wanted
        assert names(by_value("def main(): return helper.f()", helper=helper)) == wanted
        assert names(by_value("def main():\n    import helper")) == wanted
        assert (
            names(by_value("def main():\n    def inner():\n        from helper import f\n    return inner")) == wanted
        )

    def test_the_classes_of_arguments(self, project):
        project({"settings.py": "class Settings: pass\nclass Color:\n    pass\nDEFAULT = Settings()"})
        settings = importlib.import_module("settings")
        for argument in (settings.Settings(), [{"key": settings.DEFAULT}], settings.Settings, settings):
            assert names((print, (argument,), {})) == ["settings"]

    def test_nothing_where_nothing_of_the_project_is_needed(self):
        import numpy as np

        assert names((textwrap.dedent, np.zeros(3), np.mean)) == []

    def test_what_is_installed_stays(self, project, tmp_path):
        project(
            {
                "site-packages/installed.py": "def f(): pass",
                "target/also.py": "def f(): pass",
                "target/also-1.dist-info/x": "",
            }
        )
        for folder, name in (("site-packages", "installed"), ("target", "also")):
            sys.path.insert(0, str(tmp_path / folder))
            try:
                assert names(importlib.import_module(name).f) == []
            finally:
                sys.path.remove(str(tmp_path / folder))

    def test_a_package_with_a_compiled_module_stays_as_a_whole(self, project):
        suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
        project(
            {
                "fast/__init__.py": "def f():\n    from . import loop",
                f"fast/loop{suffix}": "",
                "helper.py": "import fast",
            }
        )
        assert names(by_value("def main():\n    import helper")) == ["helper"]

    def test_a_module_made_by_hand_stays(self, monkeypatch):
        module = types.ModuleType("made_by_hand")
        monkeypatch.setitem(sys.modules, "made_by_hand", module)
        assert names(by_value("def main(): return made", made=module)) == []

    def test_modules_that_import_each_other(self, project):
        project({"one.py": "import two", "two.py": "import one"})
        assert names(by_value("def main():\n    import one")) == ["one", "two"]

    def test_more_than_the_limit_is_refused_and_the_largest_is_named(self, project):
        project({"small.py": "import large", "large.py": "TEXT = '''" + "x" * (16 << 20) + "'''"})
        with pytest.raises(
            PlanError, match=r"value needs have 167772\d\d bytes, 16777216 may travel .*largest is large "
        ):
            names(by_value("def main():\n    import small"))


class TestChosen:
    def test_none_at_all(self, project):
        project({"helper.py": "def f(): pass"})
        assert names(importlib.import_module("helper").f, []) == []

    def test_a_package_travels_whole_and_a_module_with_its_packages(self, project):
        project(
            {
                "p/__init__.py": "import other",
                "p/a.py": "",
                "p/q/__init__.py": "",
                "p/q/b.py": "",
                "p/not-one.py": "",
                "other.py": "",
            }
        )
        assert names(print, ["p"]) == ["p", "p.a", "p.q", "p.q.b"]
        assert names(print, ["p.q.b"]) == ["p", "p.q", "p.q.b"]
        assert names(print, [importlib.import_module("other"), "p.a"]) == ["other", "p", "p.a"]

    @pytest.mark.parametrize("name", ["there_is_none", "math", "sys", "there.is.none"])
    def test_one_without_source_is_refused(self, name):
        with pytest.raises(PlanError, match=f"modules has '{name}', of which there is no Python source here"):
            names(print, [name])

    @pytest.mark.parametrize("given", ["helper", 1, {"helper"}, [1], ["a/b"], ["../b"], [""]])
    def test_what_is_no_list_of_modules_is_refused(self, given):
        with pytest.raises(PlanError, match="modules has"):
            checked(given)


class TestDataBesideModules:
    """``Path(__file__).parent / "conf.json"`` in a package."""

    @pytest.fixture
    def luggage(self, project):
        """`luggage(files)` is what travels with a function that imports `pkg.net`."""

        def pack(files, chosen=None):
            project({"pkg/__init__.py": "", "pkg/net.py": "def f(): pass", **files})
            needs = Needs()
            codec.pack(by_value("def main():\n    import pkg.net"), "main", note=needs)
            return with_function(checked(chosen), needs, "main")

        return pack

    def test_files_in_the_same_folder_and_in_folders_without_python_travel_with_their_package(self, luggage):
        packed = luggage(
            {"pkg/conf.json": "{}", "pkg/data/labels.txt": "a", "pkg/data/deep/x.bin": "b", "conf.json": "stays"}
        )
        assert [(file.path, file.data) for file in packed.files] == [
            ("pkg/conf.json", b"{}"), ("pkg/data/deep/x.bin", b"b"), ("pkg/data/labels.txt", b"a"),
        ]  # fmt: skip
        assert [module.name for module in packed.modules] == ["pkg", "pkg.net"]

    def test_so_they_do_with_a_package_that_is_named_and_not_where_no_modules_travel(self, luggage):
        assert [file.path for file in luggage({"pkg/conf.json": "{}"}, ["pkg"]).files] == ["pkg/conf.json"]
        assert luggage({}, []).files == []

    def test_a_rank_finds_them_beside_its_module(self, luggage, tmp_path, monkeypatch):
        read = "import pathlib\ndef f(): return (pathlib.Path(__file__).parent / 'conf.json').read_text()"
        packed = luggage({"pkg/net.py": read, "pkg/conf.json": "travelled"})
        monkeypatch.setattr(sys, "path", list(sys.path))
        sources.install(packed.modules, tmp_path / "private", packed.files)
        net = importlib.import_module("pkg.net")
        assert net.__file__.startswith(str(tmp_path / "private"))
        assert net.f() == "travelled"

    def test_another_content_is_another_model(self, luggage):
        digests = set()
        for text in ("1", "2", "1"):
            packed = luggage({"pkg/conf.json": text})
            payload = pb.Payload(modules=packed.modules, files=packed.files)
            payload.MergeFrom(codec.pack(None, "value"))
            digests.add(codec.digest(payload))
        assert len(digests) == 2

    def test_what_is_no_data_stays(self, luggage, tmp_path):
        stays = (
            ".env", ".git/config", "__pycache__/net.pyc", "old.pyc", "net.pyi", "try.ipynb", "env/pyvenv.cfg", "env/x", "other/code.py",
            "other/conf.json", "other/data/x", "unused.py",
        )  # fmt: skip
        files = {f"pkg/{name}": "" for name in stays}
        (tmp_path / "outside").mkdir()
        (tmp_path / "pkg").mkdir()
        (tmp_path / "pkg" / "link").symlink_to(tmp_path / "outside")
        os.mkfifo(tmp_path / "pkg" / "pipe")
        assert [file.path for file in luggage({**files, "pkg/conf.json": ""}).files] == ["pkg/conf.json"]

    def test_a_package_with_many_or_large_files_keeps_them_all(self, luggage, tmp_path):
        (tmp_path / "pkg" / "data").mkdir(parents=True)
        for number in range(package_data.MAX_FILES):
            (tmp_path / "pkg" / "data" / f"{number}.png").touch()
        assert len(luggage({}).files) == package_data.MAX_FILES
        assert luggage({"pkg/conf.json": ""}).files == []

    def test_a_large_file_among_them_keeps_them_all(self, luggage, tmp_path):
        (tmp_path / "pkg").mkdir()
        with open(tmp_path / "pkg" / "weights.pt", "wb") as file:
            file.truncate(package_data.MAX_BYTES - 2)
        assert [file.path for file in luggage({"pkg/conf.json": "{}"}).files] == ["pkg/conf.json", "pkg/weights.pt"]
        assert luggage({"pkg/conf.json": "{ }"}).files == []

    def test_they_make_room_for_what_was_asked_for(self, luggage, tmp_path, monkeypatch):
        monkeypatch.setattr(modules, "_MAX_BYTES", 1000)
        files = {"pkg/data.json": "x" * 600, "given": "y" * 600}
        assert [file.path for file in luggage(files, [tmp_path / "given"]).files] == ["given"]
        assert [file.path for file in luggage(files).files] == ["pkg/data.json"]

    def test_a_folder_that_is_given_goes_whole_and_once(self, luggage, tmp_path):
        packed = luggage({"pkg/conf.json": "{}", "pkg/try.ipynb": "1"}, [tmp_path / "pkg"])
        assert [file.path for file in packed.files] == [
            "pkg/__init__.py",
            "pkg/conf.json",
            "pkg/net.py",
            "pkg/try.ipynb",
        ]

    def test_a_million_entries_are_not_looked_at(self, luggage, tmp_path, monkeypatch):
        looked_at = []
        monkeypatch.setattr(package_data, "_MAX_LOOKED_AT", 10)
        monkeypatch.setattr(package_data, "_data", lambda entry, name: looked_at.append(name))
        (tmp_path / "pkg").mkdir()
        for number in range(50):
            (tmp_path / "pkg" / f".{number}").touch()
        assert luggage({}).files == []
        assert len(looked_at) <= 11


class TestAdviceOnAMissingFile:
    @pytest.fixture
    def advice(self, tmp_path, monkeypatch):
        """What is said of a path that is opened where these modules have been put."""
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv(places.FOLDER, "")
        sources.install([pb.SourceModule(name="pkg", package=True), pb.SourceModule(name="helper")], tmp_path)

        def opened(path):
            try:
                open(path).close()
            except OSError as error:
                return sources.advice_on(error)
            raise AssertionError(f"there is a file {path}")

        return opened

    def test_beside_a_module_of_a_package_the_folder_is_to_be_given(self, advice, tmp_path):
        assert "modules=[pathlib.Path('path/to/pkg')]" in advice(tmp_path / "pkg" / "weights.pt")
        assert "modules=[pathlib.Path('path/to/pkg')]" in advice(tmp_path / "pkg" / "data" / ".." / "x" / "y")

    def test_beside_another_module_the_file_is(self, advice, tmp_path):
        assert "modules=[pathlib.Path('path/to/conf.json')]" in advice(tmp_path / "conf.json")
        assert "modules=[pathlib.Path('path/to/conf')]" in advice(tmp_path / "conf" / "base.yaml")

    def test_a_relative_path_is_looked_for_elsewhere(self, advice):
        assert "modules=[pathlib.Path('nowhere/x.json')] and is found as sparkgap.files() / 'x.json'" in advice(
            "nowhere/x.json"
        )

    def test_nothing_is_said_of_other_files_and_errors(self, advice, tmp_path):
        assert advice("/nowhere/at/all") == ""
        assert advice(tmp_path) == ""  # a folder
        assert sources.advice_on(FileNotFoundError("by hand")) == ""
        assert sources.advice_on(ValueError("x")) == ""


class TestWithAScript:
    def test_what_lies_beside_it_goes_before_what_this_process_imports(self, project, tmp_path):
        project(
            {
                "helper.py": "",
                "elsewhere.py": "",
                "scripts/helper.py": "import more",
                "scripts/more.py": "",
                "scripts/no.py": "",
            }
        )
        script = tmp_path / "scripts" / "train.py"

        def packed(chosen, source):
            return with_script(checked(chosen), script, source).modules

        modules = packed(None, b"import helper, elsewhere, random, torch")
        assert [(module.name, module.source) for module in modules] == [
            ("elsewhere", b""),
            ("helper", b"import more"),
            ("more", b""),
        ]
        assert packed([], b"import helper") == []
        assert [module.name for module in packed(["no"], b"import helper")] == ["no"]


class TestTheDigest:
    def digest(self, *modules):
        payload = codec.pack(1, "value")
        payload.modules.extend(modules)
        return codec.digest(payload)

    def test_it_is_another_for_other_sources_names_and_kinds(self):
        def module(name="a", source=b"x", package=False):
            return pb.SourceModule(name=name, source=source, package=package)

        modules = [module(), module(source=b"y"), module(name="b"), module(package=True)]
        assert len({self.digest(), self.digest(module(), module("b")), *map(self.digest, modules)}) == 6
        assert self.digest() == codec.digest(codec.pack(1, "value"))

    def test_it_is_another_for_other_contents_and_paths_of_files(self):
        def with_files(*files):
            payload = codec.pack(1, "value")
            payload.files.extend(pb.SourceFile(path=path, data=data) for path, data in files)
            return codec.digest(payload)

        as_module = self.digest(pb.SourceModule(name="a", source=b"x"))
        as_files = [
            with_files(("a", b"x")),
            with_files(("a", b"y")),
            with_files(("b", b"x")),
            with_files(("a", b""), ("x", b"")),
        ]
        assert len({self.digest(), as_module, *as_files}) == 6

    def test_the_pickle_is_the_same_with_and_without_a_note(self):
        value = ({"a": [1, 2]}, TestChosen, by_value("def main(): return 1"))
        assert codec.apart(value, "value", note=Needs())[1] == codec.apart(value, "value")[1]


INSTALL = """
import sys, types
from pathlib import Path
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server import sources

sys.modules["helper"] = types.ModuleType("helper")  # as inherited from the nursery
sys.modules["helper.old"] = types.ModuleType("helper.old")
modules = [
    pb.SourceModule(name="helper", source=b"from . import inner\\ndef f():\\n    return inner.value", package=True),
    pb.SourceModule(name="helper.inner", source="# coding: latin-1\\nvalue = 'é'\\ndef fail():\\n    1 / 0".encode("latin-1")),
    pb.SourceModule(name="spread.part", source=b"import helper\\nvalue = helper.f() * 2"),
]
sources.install(modules, Path(sys.argv[1]))
import spread.part, inspect, traceback
assert spread.part.value == "éé"
assert "helper.old" not in sys.modules
assert "return inner.value" in inspect.getsource(spread.part.helper.f)
try:
    spread.part.helper.inner.fail()
except ZeroDivisionError:
    assert "    1 / 0\\n" in traceback.format_exc()
"""


class TestInstall:
    def test_they_are_imported_before_others_and_show_their_lines(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", INSTALL, str(tmp_path / "new")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def test_nothing_lies_there_without_modules_but_the_folder_is_known(self, tmp_path, monkeypatch):
        monkeypatch.setenv(places.FOLDER, "")  # so that it is as before after this test
        before = list(sys.path)
        sources.install([], tmp_path / "none")
        assert sys.path == before
        assert sparkgap.files() == tmp_path / "none"
        assert not (tmp_path / "none").exists()

    @pytest.mark.parametrize("name", ["", "../escape", "a..b", "/etc/passwd", "a.b/c"])
    def test_a_name_that_is_none_is_refused(self, tmp_path, name):
        with pytest.raises(ValueError, match="is no name of a module"):
            sources.install([pb.SourceModule(name=name, source=b"")], tmp_path)
        assert not list(tmp_path.iterdir())


INSTALL_FILES = """
import os, random, sys, types
from pathlib import Path
from sparkgap_protos.v1 import plan_pb2 as pb
from sparkgap_server import sources
import sparkgap

for name in ("helper", "helper.old", "package", "conf"):
    sys.modules[name] = types.ModuleType(name)  # as inherited from the nursery
main = sys.modules["__main__"]
files = {
    "helper.py": b"value = 1", "package/__init__.py": b"value = 2", "conf/base.yaml": b"deep", "a/b/c/d": b"", "os.py": b"", "__main__.py": b"",
}
folder = Path(sys.argv[1])
sources.install([], folder, [pb.SourceFile(path=path, data=data) for path, data in files.items()])
assert sparkgap.files() == folder and sys.path[0] == str(folder)
assert {str(each.relative_to(folder)): each.read_bytes() for each in folder.rglob("*") if each.is_file()} == files
assert {each.stat().st_mode & 0o777 for each in folder.rglob("*") if each.is_file()} == {0o600}
assert {each.stat().st_mode & 0o777 for each in [folder, *folder.rglob("*")] if each.is_dir()} == {0o700}
import helper, package
assert (helper.value, package.value) == (1, 2)
assert "helper.old" not in sys.modules
assert "conf" in sys.modules  # no module is in the folder of that name
assert sys.modules["os"] is os and sys.modules["__main__"] is main  # Python looks for them in no folder
"""


class TestInstallFiles:
    def test_they_are_theirs_alone_and_go_before_what_is_installed(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "import os; os.umask(0)" + INSTALL_FILES, str(tmp_path / "new")],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize(
        "path", ["", "/etc/passwd", "..", "../escape", "a/../../escape", "a//b", "a/", "./a", "a/.", "a\0b"]
    )
    def test_a_path_that_leads_elsewhere_is_refused_before_anything_is_written(self, tmp_path, path):
        folder = tmp_path / "private"
        with pytest.raises(ValueError, match="is no path inside a folder"):
            sources.install([], folder, [pb.SourceFile(path="fine"), pb.SourceFile(path=path, data=b"x")])
        assert not list(tmp_path.iterdir())
