"""The pages in a real browser, at the width of a phone and of a desk: they load nothing, fit, and do what they say."""

import pytest
from browser import WIDTHS, assert_harmless, running_browser, show
from safetensors.torch import save_file
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from weights import HOSTILE, weight

from lowrank_ldu.analysis import (
    CompareOptions,
    SurveyOptions,
    analyze_checkpoint,
    compare_checkpoints,
    examine_claims,
    write_claims,
    write_comparison,
    write_report,
)

# Processes of their own, by the dozen.
pytestmark = pytest.mark.longer

ATTACKS = (
    HOSTILE,
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload="document.title=\'owned\'">',
    "model.layers.0.'\"></a><script>document.title='owned'</script>.weight",
    "model.layers.0.$x_{1}^{2}$.weight",
    "a" * 300,
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with running_browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    state = {name: weight(9, 8, seed=number) for number, name in enumerate(ATTACKS)}
    for layer in range(30):
        state[f"model.layers.{layer}.up.weight"] = weight(12, 10, seed=layer)
        state[f"model.layers.{layer}.down.weight"] = weight(10, 12, seed=layer)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_file(state, path)
    return analyze_checkpoint(path, SurveyOptions(ranks=(2, 4), threads=1))


@pytest.fixture(scope="module")
def report(analysis, tmp_path_factory):
    folder = tmp_path_factory.mktemp("browsed")
    write_report(analysis, folder)
    return folder / "report.html"


@pytest.fixture(params=WIDTHS)
def opened(request, browser, report):
    show(browser, report, *WIDTHS[request.param])
    yield browser
    assert_harmless(browser, report)
    assert browser.title == "LDU of model.safetensors"


def shown_names(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('#table-of-matrices tbody tr')]"
        ".filter((row) => row.offsetParent).map((row) => row.cells[0].textContent)"
    )


def test_overview_is_seen_first(opened):
    top, bottom, height = opened.execute_script(
        "const box = document.querySelector('svg').getBoundingClientRect();return [box.top, box.bottom, innerHeight]"
    )
    assert 0 < top < height / 2
    assert bottom - top > 200
    assert opened.execute_script("return document.querySelector('svg, table, ul, dl, h2').closest('.first') !== null")


def test_hostile_names_are_text(opened):
    names = shown_names(opened)
    for name in ATTACKS:
        assert name.replace("\x1b", "\\x1b") in names
    assert opened.find_elements(By.CSS_SELECTOR, "img, script:not(body > script), [onerror], [onload]") == []


def test_sorting(opened, analysis):
    button = opened.find_element(By.XPATH, "//table[@id='table-of-matrices']//button[.='partial error']")
    errors = {
        tensor.name: matrix.at("ldu", 4, "partial").diagnostics.frobenius_error for tensor, matrix in analysis.matrices
    }
    ascending = [name.replace("\x1b", "\\x1b") for name in sorted(errors, key=errors.get)]
    button.send_keys(Keys.ENTER)
    assert shown_names(opened) == ascending
    button.send_keys(Keys.SPACE)
    assert shown_names(opened) == ascending[::-1]
    assert button.find_element(By.XPATH, "..").get_attribute("aria-sort") == "descending"


def test_filter(opened):
    field = opened.find_element(By.CSS_SELECTOR, ".filter input")
    count = opened.find_element(By.CSS_SELECTOR, ".filter output")
    assert count.text == "66 of 66"
    field.send_keys("UP layers.1")
    assert shown_names(opened) == [f"model.layers.{layer}.up.weight" for layer in (1, *range(10, 20))]
    assert count.text == "11 of 66"
    field.send_keys("no such name")
    assert shown_names(opened) == []
    assert count.text == "0 of 66"
    field.clear()
    field.send_keys("<script>")
    assert count.text == "2 of 66"


def visible_view(browser):
    return browser.execute_script(
        "return [...document.querySelectorAll('.view')].filter((it) => it.offsetParent).map((it) => it.id)"
    )


@pytest.mark.parametrize("start", ["#table-of-matrices tbody tr:nth-child(9) a", ".heat tbody tr td:nth-child(4) a"])
def test_a_matrix_opens_and_going_back_returns_to_the_place(opened, report, start):
    link = opened.find_element(By.CSS_SELECTOR, start)
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", link)
    before = opened.execute_script("return scrollY")
    assert before > 0
    assert visible_view(opened) == []
    wanted = link.get_attribute("href").partition("#")[2]
    link.send_keys(Keys.ENTER)
    assert visible_view(opened) == [wanted]
    view = opened.find_element(By.ID, wanted)
    assert view.find_element(By.TAG_NAME, "h2").is_displayed()
    assert len(view.find_elements(By.CSS_SELECTOR, "svg.chart")) == 2
    assert not opened.find_element(By.ID, "top").is_displayed()
    assert_harmless(opened, report)
    opened.back()
    assert visible_view(opened) == []
    assert opened.find_element(By.ID, "top").is_displayed()
    assert opened.execute_script("return scrollY") == pytest.approx(before, abs=2)
    opened.forward()
    assert visible_view(opened) == [wanted]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_matrix_has_an_address_and_neighbors(browser, report, width):
    show(browser, report, *WIDTHS[width], "#matrix-5")
    assert visible_view(browser) == ["matrix-5"]
    browser.find_element(By.CSS_SELECTOR, "#matrix-5 a[href='#matrix-6']").click()
    assert visible_view(browser) == ["matrix-6"]
    browser.find_element(By.CSS_SELECTOR, "#matrix-6 a[href='#matrices']").click()
    assert visible_view(browser) == []
    assert_harmless(browser, report)


def test_views_need_no_scripts(browser, report):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, report, *WIDTHS["phone"], "#matrix-5")
        assert browser.find_element(By.ID, "matrix-5").is_displayed()
        assert not browser.find_element(By.ID, "top").is_displayed()
        browser.find_element(By.CSS_SELECTOR, "#matrix-5 a[href='#matrices']").click()
        assert browser.find_element(By.ID, "top").is_displayed()
        assert not browser.find_element(By.CSS_SELECTOR, ".filter").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_claims(browser, checkpoint, options, tmp_path, width):
    analysis = analyze_checkpoint(checkpoint, options)
    write_claims(examine_claims(analysis), analysis, tmp_path)
    show(browser, tmp_path / "claims.html", *WIDTHS[width])
    assert browser.find_element(By.TAG_NAME, "h1").is_displayed()
    assert_harmless(browser, tmp_path / "claims.html")


@pytest.mark.parametrize("width", WIDTHS)
def test_page_of_a_comparison(browser, checkpoints, tmp_path, width):
    write_comparison(compare_checkpoints(*checkpoints, CompareOptions(ranks=(3, 8), threads=1)), tmp_path)
    show(browser, tmp_path / "compare.html", *WIDTHS[width])
    assert browser.find_element(By.TAG_NAME, "h1").is_displayed()
    assert visible_view(browser) == []
    browser.find_element(By.CSS_SELECTOR, "#table-of-matrices a[href='#matrix-2']").click()
    assert visible_view(browser) == ["matrix-2"]
    assert not browser.find_element(By.ID, "top").is_displayed()
    assert_harmless(browser, tmp_path / "compare.html")
