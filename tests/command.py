"""Commands as a test gives them."""

from segscse.cli import run


def refused(capsys, *arguments, code=2):
    """Run a command that must fail with one line on standard error; return the line."""
    assert run([str(argument) for argument in arguments]) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("segscse: ")
    return lines[0]
