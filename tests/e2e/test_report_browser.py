"""The report in a real browser: it opens alone, lists, filters, searches, compares, and obeys keys."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.e2e.browser import Opened, chromium
from tests.unit.report.fake_run import fake_run
from tests.unit.report.pages import Page as Written
from tests.unit.trajectory_records import refined
from trd_ray.report import write_report
from trd_ray.trajectory_log import write_trajectories

EVIL = "</script><img src=x onerror=\"document.title='evil'\"><b>1+1</b>"


def with_tokenizer(folder):
    """A checkpoint whose tokenizer says the characters that the fake runs' ids were made of."""
    hf = folder.checkpoint(1) / "hf"
    hf.mkdir(parents=True)
    vocabulary = {c: ord(c) % 50 for c in "0123456789+-=#\n"} | {"<end>": ord("$") % 50}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(hf)
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    trd = with_tokenizer(fake_run(root / "trd", num_steps=12, per_step=40))
    return [trd, fake_run(root / "opd", num_steps=12, per_step=40, refines=False)]


@pytest.fixture
def opened(browser, folders):
    report = Opened(browser, write_report(folders[0].path))
    yield report
    report.require_quiet()
    report.page.close()


def selected(report: Opened) -> str:
    return report.page.inner_text("#list [aria-selected=true]")


def test_it_opens_filters_and_searches(opened, folders):
    page, kinds = opened.page, Written(folders[0].report.read_text()).kinds()
    assert opened.num_shown == kinds.total() == 480
    for kind, count in kinds.items():
        page.click(f"#kinds button:has-text('{kind}')")
        assert opened.num_shown == count
        page.wait_for_selector(f".badge:text-is('{kind}')")
        assert page.inner_text(".badge") == kind
    page.click("#kinds button:has-text('all')")
    page.select_option("#reason", "rejected: refine_truncated")
    assert opened.num_shown == kinds["rejected"] > 0
    page.select_option("#reason", "")
    page.fill("#step-to", "3")
    page.press("#step-to", "Tab")
    assert opened.num_shown == 120
    page.fill("#step-to", "12")
    page.press("#step-to", "Tab")
    opened.wait_until_searchable()
    problem = page.inner_text(".problem")
    page.fill("#search", problem)
    assert 0 < opened.num_shown < 480
    page.fill("#search", "no such text")
    assert opened.num_shown == 0
    page.wait_for_selector("#detail .empty")
    assert "No trajectory passes" in page.inner_text("#detail")
    page.fill("#search", "")
    assert opened.num_shown == 480
    # 480 rows are in the list, but only those in view exist.
    assert page.locator(".item").count() < 60


def test_it_sorts_by_divergence(opened):
    page = opened.page
    page.select_option("#sort", label="most divergent (mean)")
    titles = page.locator(".item .heat").evaluate_all("items => items.map((item) => item.title)")
    means = [float(title.split(" ")[2]) for title in titles[:8]]
    assert len(means) == 8 and means == sorted(means, reverse=True)


def test_it_shows_both_texts_with_prefix_changes_and_first_wrong_step(opened):
    page = opened.page
    page.click("#kinds button:has-text('wrong to right')")
    page.wait_for_selector(".badge:text-is('wrong to right')")
    assert page.locator(".side-head").all_inner_texts()[0].startswith("rollout y_o wrong")
    assert page.locator(".side-head").all_inner_texts()[1].startswith("refinement y_r right")
    assert page.locator(".first-wrong .flag").count() == 1
    assert page.locator("del").count() + page.locator("ins").count() > 2
    note = page.inner_text(".prefix-note")
    num = int(note.split(": ")[1].split(" ")[0])
    common = "".join(page.locator("[data-side='0'] .common").all_inner_texts())
    # The tokens of this run are characters; a line end is a token without a place of its own here.
    breaks = page.locator("[data-side='0'] .common").count()
    assert len(common) <= num <= len(common) + breaks
    assert "policy version" in page.inner_text(".trajectory header")


def test_it_colours_tokens_by_what_was_recorded(opened):
    page = opened.page
    page.click("#kinds button:has-text('wrong to right')")
    page.wait_for_selector(".badge:text-is('wrong to right')")
    page.click("#colouring button:has-text('Divergence')")
    page.wait_for_selector("[data-side='1'] .token")
    assert page.locator("[data-side='1'] .token.h9").count() >= 1, "one token is where the teacher disagrees"
    assert page.locator("[data-side='0'] .token").count() == 0, "nothing was trained along the rollout"
    page.locator("[data-side='1'] .token").first.hover()
    tip = page.inner_text("#tip")
    assert "divergence" in tip and "nats" in tip and "student before the step" in tip
    page.click("#colouring button:has-text('surprise')")
    page.wait_for_selector("[data-side='0'] .token")
    assert page.locator("[data-side='0'] .token").count() > 5
    assert "Largest at" in page.inner_text(".along")


def test_it_obeys_keys(opened):
    page, keys = opened.page, opened.page.keyboard
    opened.wait_until_searchable()
    first = selected(opened)
    keys.press("j")
    assert selected(opened) != first
    assert page.evaluate("document.activeElement.id") == "list"
    assert page.get_attribute("#list", "aria-activedescendant") == "row-1"
    keys.press("ArrowDown")
    keys.press("k")
    keys.press("ArrowUp")
    assert selected(opened) == first
    keys.press("End")
    assert page.get_attribute("#list", "aria-activedescendant") == "row-479"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus cannot be seen"
    keys.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    keys.type("jk?")
    assert page.input_value("#search") == "jk?"
    page.fill("#search", "")
    keys.press("Escape")
    keys.press("?")
    assert page.locator("#help").is_visible() and "next, previous trajectory" in page.inner_text("#help")
    keys.press("Escape")
    assert not page.locator("#help").is_visible()
    keys.press("1")
    assert page.get_attribute("#kinds button:nth-child(2)", "aria-pressed") == "true"
    keys.press("0")
    keys.press("c")
    assert page.get_attribute("#colouring [data-colouring=divergence]", "aria-pressed") == "true"


def test_it_is_light_or_dark(browser, folders, tmp_path):
    path = write_report(folders[0].path)
    colours = {}
    for dark in (False, True):
        report = Opened(browser, path, dark=dark)
        background = "getComputedStyle(document.body).backgroundColor"
        colours[dark] = report.page.evaluate(background)
        report.show_viewer()
        shot = tmp_path / f"dark_{dark}.png"
        report.page.screenshot(path=shot)
        assert shot.stat().st_size > 20_000
        report.page.click("#theme")
        assert report.page.evaluate(background) != colours[dark]
        report.page.keyboard.press("t")
        assert report.page.evaluate(background) == colours[dark]
        report.require_quiet()
        report.page.close()
    assert colours[False] != colours[True]


def test_it_compares_runs(browser, folders, tmp_path):
    report = Opened(browser, write_report([f.path for f in folders], tmp_path / "both.html"))
    page = report.page
    assert page.locator(".runs li").count() == 2
    assert report.num_shown == 480 and page.locator(".run-name").inner_text() == "trd"
    page.keyboard.press("r")
    page.wait_for_selector(".run-name:text-is('opd')")
    assert page.locator("#kinds button").count() == 3, "all, right, wrong"
    page.select_option("#beside", label="trd")
    page.wait_for_selector(".run-name:text-is('trd')")
    problems = page.locator(".problem").all_inner_texts()
    assert len(problems) == 2 and problems[0] == problems[1], "not the same problem"
    assert page.locator(".run-name").all_inner_texts() == ["opd", "trd"]
    report.show_viewer()
    page.screenshot(path=tmp_path / "both.png")
    page.keyboard.press("b")
    page.wait_for_selector(".run-name:text-is('trd')", state="detached")
    report.require_quiet()
    page.close()


def test_what_a_model_says_is_text(browser, tmp_path):
    folder = fake_run(tmp_path / "run", num_steps=1, evals=False)
    said = refined(EVIL, EVIL + "\n" + EVIL)
    problem = dataclasses.replace(said.prompt.problem, problem=EVIL, prompt_id=EVIL, reference=EVIL)
    said = dataclasses.replace(said, prompt=dataclasses.replace(said.prompt, problem=problem))
    write_trajectories(folder.trajectories, [said], learner_step=1)
    report = Opened(browser, write_report(folder.path))
    assert report.page.inner_text(".problem") == EVIL
    assert report.page.locator("[data-side='0'] code").inner_text() == EVIL
    assert report.page.locator("img").count() == report.page.locator("#detail b b").count() == 0
    assert "evil" not in report.page.title()
    report.require_quiet()
    report.page.close()


def test_twenty_thousand_trajectories(browser, tmp_path, record_property):
    """Prints how long it takes: nothing is asserted of time, machines differ and are shared."""
    folder = fake_run(tmp_path / "run", num_steps=313, per_step=64)
    start = time.perf_counter()
    path = write_report(folder.path)
    made_s = time.perf_counter() - start
    report = Opened(browser, path)
    # 63 of the 64 of each step; 20,000 are the most.
    assert report.num_shown == 313 * 63
    assert "19,719 of 20,032 trajectories" in report.page.inner_text(".notice")
    report.wait_until_searchable()
    times = {
        "made_s": round(made_s, 2), "page_mb": round(path.stat().st_size / 1e6, 2),
        "opened_ms": round(report.millis("viewer-shown")),
        "searchable_ms": round(report.millis("viewer-searchable")),
    }  # fmt: skip
    report.page.keyboard.press("1")
    times["kind_ms"] = round(report.filter_ms, 1)
    report.page.keyboard.press("0")
    report.page.fill("#search", "12+7")
    times["search_ms"] = round(report.filter_ms, 1)
    report.page.fill("#search", "")
    report.page.select_option("#sort", label="most divergent (mean)")
    times["sort_ms"] = round(report.filter_ms, 1)
    print(f"20,000 trajectories: {json.dumps(times)}")
    record_property("times", times)
    report.require_quiet()
    report.page.close()
