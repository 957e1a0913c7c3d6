"""What the command line says of arguments, paths and ends that no verb is for."""

import os
import signal

from command import refused
from tiny import dataset, trained  # noqa: F401, fixtures

from segscse.cli import run

# The fixtures come by import, so every test that takes one looks like a redefinition.
# ruff: noqa: F811


class TestUsage:
    def test_an_unknown_verb(self, capsys):
        assert "trian" in refused(capsys, "trian")

    def test_a_name_that_no_file_can_have(self, tmp_path, capsys):
        for arguments in (["check", "x" * 300], ["predict", "x" * 300, "a.nii.gz", "--out", str(tmp_path / "o")]):
            line = refused(capsys, *arguments)
            assert "cannot be used (File name too long)" in line

    def test_links_in_a_circle(self, trained, dataset, tmp_path, capsys):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        scan, model = dataset / "imagesTr" / "case_0.nii.gz", trained.folder
        line = refused(capsys, "predict", model, scan, "--out", tmp_path / "loop" / "x", "--device", "cpu")
        assert "loop" in line
        assert "internal error" not in line

    def test_a_tilde_after_a_sign_is_the_home_folder(self, dataset, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path)
        (tmp_path / "home").mkdir()
        assert run(["plan", str(dataset), "--out=~/plan.json"]) == 0
        assert [path.name for path in tmp_path.iterdir()] == ["home"]
        assert (tmp_path / "home" / "plan.json").is_file()

    def test_labels_named_twice_or_beyond_64_bits(self, tmp_path, capsys):
        folders = ["--pred", tmp_path, "--ref", tmp_path, "--out", tmp_path / "o"]
        assert "--names names a label twice" in refused(capsys, "evaluate", *folders, "--names", "1=a,1=b")
        assert "below 2**63, got '9223372036854775808'" in refused(
            capsys, "evaluate", *folders, "--labels", "1,9223372036854775808"
        )

    def test_nobody_to_say_it_to(self, dataset, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.stdout", None)
        assert run(["plan", str(dataset), "--out", str(tmp_path / "plan.json")]) == 0

    def test_a_missing_argument(self, capsys):
        assert "dataset" in refused(capsys, "plan").lower()

    def test_an_unknown_flag(self, dataset, capsys):
        assert "--nonsense" in refused(capsys, "check", dataset, "--nonsense", "1")

    def test_debug_adds_the_traceback_and_keeps_the_exit_code(self, tmp_path, capsys):
        assert run(["check", str(tmp_path / "none"), "--debug"]) == 2
        assert "Traceback" in capsys.readouterr().err

    def test_a_defect_of_ours_is_exit_code_1_and_one_line(self, dataset, tmp_path, capsys, monkeypatch):
        def broken(*arguments, **options):
            raise ZeroDivisionError("division by zero")

        monkeypatch.setattr("segscse.data.examine.examine_dataset", broken)
        line = refused(capsys, "check", dataset, code=1)
        assert "internal error: ZeroDivisionError: division by zero (see --debug)" in line

    def test_memory_that_runs_out_is_named(self, dataset, capsys, monkeypatch):
        monkeypatch.setattr("segscse.data.examine.examine_dataset", lambda *_, **__: bytearray(2**62))
        line = refused(capsys, "check", dataset)
        assert line.startswith("segscse: memory ran out (MemoryError). Free memory or do less at once")

    def test_ctrl_c_outside_of_training_is_130(self, dataset, capsys, monkeypatch):
        def interrupted(*arguments, **options):
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr("segscse.data.examine.examine_dataset", interrupted)
        assert refused(capsys, "check", dataset, code=130) == "segscse: stopped"

    def test_the_demonstration_refuses_a_bad_budget_in_one_line(self, tmp_path, capsys):
        assert "duration" in refused(capsys, "demo", "--out", tmp_path / "demo", "--budget", "soon")
        assert not (tmp_path / "demo").exists()

    def test_an_unknown_public_data_set_isrefused(self, tmp_path, capsys):
        assert "liverr" in refused(capsys, "fetch", "liverr", "--out", tmp_path / "data")
