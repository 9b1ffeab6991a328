"""`wardrop audit` prints the log that the controller writes."""

from typer.testing import CliRunner

from wardrop.commands.audit import app
from wardrop.control import AuditLog, Record


def test_audit_prints_events_with_reasons(tmp_path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")
    log.write(Record(1.0, "change", "kappa", 10.0, 20.0, "regime saturated"))
    log.write(Record(9.0, "rolled_back", "kappa", 20.0, 10.0, "e2e_mean_s went from 2 to 4"))
    result = CliRunner().invoke(app, [str(log.path), "--event", "rolled_back"])
    assert result.exit_code == 0
    assert "kappa: 20.0 → 10.0" in result.output
    assert "regime saturated" not in result.output


def test_damaged_audit_log_is_an_error_with_its_line(tmp_path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_text('nonsense\n{"at_s": 1}\n')
    result = CliRunner().invoke(app, [str(path)])
    assert result.exit_code == 2


def test_a_path_that_is_no_log_says_what_is_expected(tmp_path) -> None:
    for path in (tmp_path / "nope", tmp_path):
        result = CliRunner().invoke(app, [str(path)])
        assert result.exit_code == 2
        assert str(path) in result.output
        assert "expected an audit log" in result.output
