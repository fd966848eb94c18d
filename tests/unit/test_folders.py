"""Which files of a folder travel and under which names, and what is refused; the modules outside it that come along."""

import importlib
import os
from pathlib import Path

import pytest
from sparkgap import PlanError, folders, modules
from sparkgap.modules import Needs, checked, with_folder, with_function, with_script
from sparkgap.scripts import script
from sparkgap_protos.v1 import plan_pb2 as pb


@pytest.fixture
def tree(tmp_path):
    """`tree(name, ...)` writes files with their own names as contents into a folder, `tree(**{name: text})` others; gives the folder."""

    def write(*names, **texts):
        for name, text in {**dict(zip(names, names, strict=True)), **texts}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def luggage(*chosen):
    return with_function(checked(list(chosen)), Needs(), "main")


def files(packed):
    return {file.path: file.data.decode() for file in packed.files}


def names(packed):
    return [module.name for module in packed.modules]


class TestWhatTravels:
    def test_a_folder_travels_under_its_own_name_and_a_file_too(self, tree):
        root = tree("conf/base.yaml", "conf/deep/er/x", "deeper/labels.txt")
        packed = luggage(root / "conf", root / "deeper" / "labels.txt")
        assert files(packed) == {
            "conf/base.yaml": "conf/base.yaml",
            "conf/deep/er/x": "conf/deep/er/x",
            "labels.txt": "deeper/labels.txt",
        }
        assert packed.modules == []

    def test_what_is_none_of_the_projects_own_stays(self, tree):
        stays = (
            "p/.git/config",
            "p/.hidden/x",
            "p/a/__pycache__/x.pyc",
            "p/old.pyc",
            "p/env/pyvenv.cfg",
            "p/env/bin/x",
        )
        root = tree("p/a/x", "p/.dotfile", "p/environment/x", *stays)
        os.mkfifo(root / "p" / "pipe")  # to open one is to wait for ever
        assert set(files(luggage(root / "p"))) == {"p/a/x", "p/.dotfile", "p/environment/x"}

    def test_a_folder_named_by_itself_travels_even_if_it_is_hidden(self, tree):
        assert set(files(luggage(tree(".streamlit/config.toml") / ".streamlit"))) == {".streamlit/config.toml"}

    def test_the_current_folder_has_a_name_too(self, tree, monkeypatch):
        monkeypatch.chdir(tree("conf/deep/x") / "conf")
        assert set(files(luggage(Path()))) == {"conf/deep/x"}
        monkeypatch.chdir("deep")
        assert set(files(luggage(Path("..")))) == {"conf/deep/x"}

    def test_a_path_is_meant_from_the_folder_where_it_was_given(self, tree, monkeypatch):
        monkeypatch.chdir(tree("conf/x", "else/y"))
        chosen = checked([Path("conf")])
        monkeypatch.chdir("else")
        assert set(files(with_function(chosen, Needs(), "main"))) == {"conf/x"}

    def test_links_inside_a_folder_are_followed_and_broken_ones_stay(self, tree):
        root = tree("p/real/x", "p/y")
        (root / "p" / "folder").symlink_to("real")
        (root / "p" / "file").symlink_to(root / "p" / "y")
        (root / "p" / "lock").symlink_to("user@host:1")
        (root / "p" / "self").symlink_to("self")
        (root / "link").symlink_to("p")
        texts = {"real/x": "p/real/x", "y": "p/y", "folder/x": "p/real/x", "file": "p/y"}
        assert files(luggage(root / "p")) == {f"p/{name}": text for name, text in texts.items()}
        assert files(luggage(root / "link")) == {f"link/{name}": text for name, text in texts.items()}

    @pytest.mark.parametrize("target", ["outside", "outside/secret", "p-beside"])
    def test_a_link_out_of_the_folder_is_refused(self, tree, target):
        root = tree("p/x", "outside/secret", "p-beside/x")
        (root / "p" / "link").symlink_to(root / target)
        with pytest.raises(PlanError, match=rf"p/link is a link out of .*/p, to .*/{target}, where the workers have"):
            luggage(root / "p")

    def test_a_hidden_link_out_of_the_folder_stays_like_a_hidden_folder(self, tree):
        root = tree("p/x", "outside/secret")
        (root / "p" / ".venv").symlink_to(root / "outside")
        assert set(files(luggage(root / "p"))) == {"p/x"}

    @pytest.mark.timeout(20)
    def test_folders_that_contain_each_other_are_refused(self, tree):
        root = tree("p/a/x", "p/b/x")
        (root / "p" / "a" / "b").symlink_to("../b")
        (root / "p" / "b" / "a").symlink_to("../a")
        with pytest.raises(PlanError, match=r"p/a/b/a leads back to .*/p/a, a folder that it lies in"):
            luggage(root / "p")

    def test_what_is_not_there_is_named(self, tree):
        root = tree("conf/.git/x")
        with pytest.raises(PlanError, match=r"modules has the path .*/nothing: there is no such file or folder"):
            luggage(root / "nothing")
        with pytest.raises(PlanError, match=r"modules has the folder .*/conf, in which there is no file that could"):
            luggage(root / "conf")

    def test_a_name_that_no_message_can_hold_is_refused(self, tmp_path):
        try:
            Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
        except OSError:
            pytest.skip("this filesystem has no such names")
        with pytest.raises(PlanError, match=r"\\udcff' is no UTF-8: rename the file"):
            luggage(tmp_path)


class TestLimits:
    def test_the_largest_of_files_and_modules_is_named(self, tree, monkeypatch):
        monkeypatch.setattr(modules, "_MAX_BYTES", 100)
        root = tree(**{"conf/small": "x" * 30, "conf/large": "x" * 70})
        assert len(files(luggage(root / "conf"))) == 2
        (root / "conf" / "more").write_text("x")
        with pytest.raises(
            PlanError,
            match=r"main needs have 101 bytes, 100 may travel .* is conf/large with 70 bytes: .* put data where",
        ):
            luggage(root / "conf")

    def test_modules_count_with_the_files(self, tree, monkeypatch):
        monkeypatch.setattr(modules, "_MAX_BYTES", 100)
        monkeypatch.syspath_prepend(tree(**{"conf/x": "x" * 60, "limited_module.py": "#" * 60}))
        with pytest.raises(PlanError, match=r"main needs have 120 bytes, 100 may travel"):
            luggage("limited_module", tree() / "conf")

    def test_a_large_file_is_not_read_to_find_out(self, tree):
        root = tree("conf/__main__.py")
        with open(root / "conf" / "huge.py", "wb") as file:
            file.truncate(1 << 40)
        with pytest.raises(PlanError, match=r"the largest is conf/huge\.py with 1099511627776 bytes"):
            luggage(root / "conf")
        with pytest.raises(PlanError, match=r"the largest is huge\.py with 1099511627776 bytes"):
            script(root / "conf", (), {}, checked(None))

    def test_too_many_files_are_refused_with_the_folder_that_has_them(self, tree, monkeypatch):
        monkeypatch.setattr(folders, "_MAX_FILES", 5)
        root = tree("p/__main__.py", *(f"p/data/{number}" for number in range(4)))
        assert len(files(with_folder(checked(None), root / "p"))) == 5
        tree("p/x")
        with pytest.raises(
            PlanError, match=r"more than 5 files would travel with .*/p, 4 of the first 6 from .*/p/data"
        ):
            with_folder(checked(None), root / "p")


class TestTogether:
    @pytest.fixture
    def project(self, tree, monkeypatch):
        root = tree(
            **{
                "folders_helper.py": "",
                "folders_package/__init__.py": "import folders_helper",
                "folders_package/conf": "c",
            }
        )
        monkeypatch.syspath_prepend(root)
        importlib.invalidate_caches()
        return root

    def packed(self, chosen):
        needs = Needs()
        needs.names = {"folders_package"}
        return with_function(checked(chosen), needs, "main")

    def test_paths_alone_leave_the_search_for_modules_on_and_names_replace_it(self, project, tree):
        conf = tree("conf/x") / "conf"
        found = ["folders_helper", "folders_package"]
        assert names(self.packed(None)) == names(self.packed([conf])) == found
        assert names(self.packed(["folders_helper", conf])) == ["folders_helper"]
        assert names(self.packed([])) == []
        assert list(files(self.packed(["folders_helper", conf]))) == ["conf/x"]

    def test_a_module_that_travels_as_a_file_does_not_travel_twice(self, project):
        packed = self.packed([project / "folders_package"])
        assert names(packed) == ["folders_helper"]
        assert set(files(packed)) == {"folders_package/__init__.py", "folders_package/conf"}

    def test_two_of_one_name_are_refused_if_they_differ(self, project, tree):
        tree(**{"other/folders_helper.py": "else", "same/x": "1", "a/same/x": "1", "b/same/x": "2", "c/same": ""})
        both = files(self.packed([project / "same", project / "a" / "same"]))
        assert both == {"same/x": "1", "folders_package/conf": "c"}
        with pytest.raises(PlanError, match="different contents would travel with main as same/x: rename one"):
            self.packed([project / "same", project / "b" / "same"])
        with pytest.raises(PlanError, match=r"different contents would travel with main as folders_helper\.py"):
            self.packed([project / "other" / "folders_helper.py"])
        with pytest.raises(PlanError, match="same would travel with main as a file and as the folder of same/x"):
            self.packed([project / "same", project / "c" / "same"])

    def test_a_file_with_the_name_of_the_script_is_refused(self, tree):
        root = tree(**{"train.py": "1", "other/train.py": "2"})
        assert files(with_script(checked([root / "train.py"]), root / "train.py", b"1")) == {}
        with pytest.raises(PlanError, match=r"would travel with train\.py as train\.py"):
            with_script(checked([root / "other" / "train.py"]), root / "train.py", b"1")

    @pytest.mark.parametrize("given", [Path("conf"), "conf/", [b"conf"], ["conf/base.yaml"]])
    def test_a_path_has_to_be_a_path_in_a_list(self, given):
        with pytest.raises(PlanError, match="modules has"):
            checked(given)


class TestAFolderAsAScript:
    def test_it_is_packed_whole_with_the_modules_outside_it(self, tree, monkeypatch):
        root = tree(
            **{
                "project/__main__.py": "import inside",
                "project/inside.py": "import folders_outside",
                "project/models/by_computed_name.py": "from . import sibling\nimport folders_also",
                "project/models/sibling.py": "",
                "project/conf.yaml": "a: 1",
                "lib/folders_outside.py": "import folders_deep",
                "lib/folders_deep.py": "",
                "lib/folders_also.py": "",
                "lib/folders_unused.py": "",
                "lib/inside.py": "hidden by the one in the folder",
            }
        )
        monkeypatch.syspath_prepend(root / "lib")
        importlib.invalidate_caches()
        packed = script(root / "project", ("--epochs", 3), {}, checked(None))
        assert (packed.name, packed.source, list(packed.arguments)) == ("project", b"", ["--epochs", "3"])
        assert set(files(packed)) == {
            "__main__.py", "inside.py", "models/by_computed_name.py", "models/sibling.py", "conf.yaml",
        }  # fmt: skip
        assert names(packed) == ["folders_also", "folders_deep", "folders_outside"]
        assert names(script(root / "project", (), {}, checked([]))) == []
        tree(**{"more/x.py": "import folders_unused"})  # travels as it is
        with_path = script(root / "project", (), {}, checked([root / "more"]))
        assert set(files(with_path)) == {*files(packed), "more/x.py"}
        assert names(with_path) == names(packed)

    def test_its_name_is_the_folders_own(self, tree, monkeypatch):
        monkeypatch.chdir(tree("project/__main__.py") / "project")
        assert script(Path(), (), {}, checked(None)).name == "project"
        assert script(Path("../project/"), (), {}, checked(None)) == pb.Script(
            name="project", files=[pb.SourceFile(path="__main__.py", data=b"project/__main__.py")]
        )

    def test_without_a_main_it_is_refused(self, tree):
        with pytest.raises(
            PlanError, match=r"the folder .*/project has no __main__\.py, .*run as by `python .*/project`"
        ):
            script(tree("project/train.py") / "project", (), {}, checked(None))


def test_a_script_gets_no_text_of_a_dataframe_as_its_argument(tree):
    from pyspark.sql.connect.dataframe import DataFrame

    root = tree("train.py")
    with pytest.raises(
        PlanError,
        match=r"argument 1 of the script is a pyspark\.sql\.connect\.dataframe\.DataFrame, of which .* Write it to",
    ):
        script(root / "train.py", ("--data", object.__new__(DataFrame)), {}, checked(None))
    assert list(script(root / "train.py", ("--lr", 0.1, root), {}, checked(None)).arguments) == [
        "--lr",
        "0.1",
        str(root),
    ]
