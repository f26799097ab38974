"""Tables and report of a study say what its rows say."""

from gftkit.study.reporting import write_tables
from gftkit.study.statistics import differences


def test_tables_and_report_say_what_the_rows_say(done, with_pictures, tmp_path):
    made, outcome = done
    write_tables(made, outcome.rows, {})
    text = (made.out / "table.md").read_text()
    (found,) = (
        one
        for one in differences([row for of in outcome.rows.values() for row in of], "plain")
        if one.metric == "energy" and one.method == "exponential"
    )
    assert found.over.count == 2
    assert f"{found.over.mean:+.3g} [{found.over.low:.3g}, {found.over.high:.3g}]" in text
    report = (made.out / "report.html").read_text()
    assert "energy minus that of plain, independent" in report
    assert report.count("data:image/png;base64,") == 3
    assert {path.name for path in made.out.glob("*.png")} == {"sizes.png", "differences.png", "curves.png"}
    assert "http" not in report.replace("http-equiv", "")  # self-contained
