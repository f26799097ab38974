"""Tables and report of a study say what its rows say."""

import shutil
import sys
from dataclasses import replace

from gftkit.study.reporting import study_summary, write_tables
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


def test_without_matplotlib_a_study_has_its_tables(done, monkeypatch, tmp_path):
    whole, outcome = done
    made = replace(whole, out=shutil.copytree(whole.out, tmp_path / "out"))
    for written in [made.out / "report.html", made.out / "table.md", *made.out.glob("*.png")]:
        written.unlink()
    assert study_summary(made, outcome.rows, {})["report"] == str(made.out / "report.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_tables(made, outcome.rows, {})
    assert {path.name for path in made.out.glob("*.*")} >= {"results.json", "table.md"}
    assert not [*made.out.glob("*.html"), *made.out.glob("*.png")]
    assert study_summary(made, outcome.rows, {})["report"] == str(made.out / "table.md")
