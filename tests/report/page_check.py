"""Drives a page of `sw-report html` in headless Chromium; prints what is wrong and exits with 1.

usage: page_check.py PAGE.html CHECK... [--screenshots FOLDER]
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from browser import Page, find_chromium  # noqa: E402

failures = []


def expect(condition, message):
    if not condition:
        failures.append(message)


def column(page, label):
    """The numbers of the first table's column, in the order shown."""
    return page.run(
        "(() => { const table = document.querySelector('.scroll:not(.short) table');"
        "const at = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === %s);"
        "return [...table.tBodies[0].rows].map(r => parseFloat(r.cells[at].firstChild.textContent))"
        ".filter(Number.isFinite); })()" % json.dumps(label))


def rows(page):
    return page.run("document.querySelector('.scroll:not(.short) table').tBodies[0].rows.length")


def visible_tip(page):
    return page.run("document.getElementById('tip').hidden ? '' : document.getElementById('tip').textContent")


def check_structure(page):
    expect(page.run("document.querySelectorAll('h1').length") == 1, "not one h1")
    expect(page.run("(() => { const ids = [...document.querySelectorAll('[id]')].map(e => e.id);"
                    "return new Set(ids).size === ids.length; })()"), "an id occurs twice")
    expect(page.run("[...document.querySelectorAll('svg.chart, canvas')].every(e => e.getAttribute('aria-label')"
                    " && e.getAttribute('role') === 'img' && e.tabIndex === 0)"), "a figure without name or focus")
    expect(page.run("[...document.querySelectorAll('select, input')].every(e => e.closest('label') || e.ariaLabel)"),
           "a control without a label")
    expect(page.run("[...document.querySelectorAll('button')].every(e => e.textContent.trim())"), "a button without text")
    expect(page.run("document.querySelectorAll('.finding').length") > 0, "no findings")
    expect(page.run("document.querySelectorAll('figure svg.chart').length") > 0, "no charts")
    expect(not page.run("[...document.querySelectorAll('svg.chart [d], svg.chart [transform]')]"
                        ".some(e => /NaN|undefined/.test(e.outerHTML))"), "NaN in a chart")


def check_sort(page):
    button = "[...document.querySelectorAll('.scroll:not(.short) th button')].find(b => b.textContent === 'Mass recall')"
    page.run(button + ".click()")
    down = column(page, "Mass recall")
    expect(len(down) > 3 and down == sorted(down, reverse=True), f"not sorted downwards: {down}")
    expect(page.run(button + ".parentElement.getAttribute('aria-sort')") == "descending", "aria-sort is not set")
    page.run(button + ".focus()")
    page.key("Enter", 13)
    up = column(page, "Mass recall")
    expect(up == sorted(up) and len(up) == len(down), f"the keyboard does not sort upwards: {up}")


def check_filter(page):
    everything = rows(page)
    page.run("(() => { const i = document.querySelector('input[type=search]'); i.value = 'sink_window 20%';"
             "i.dispatchEvent(new Event('input')); })()")
    some = rows(page)
    expect(0 < some < everything, f"{some} of {everything} rows after the filter")
    expect(page.run("[...document.querySelector('.scroll:not(.short) table').tBodies[0].rows]"
                    ".every(r => r.textContent.includes('sink_window') && r.textContent.includes('20%'))"), "wrong rows")
    page.run("(() => { const i = document.querySelector('input[type=search]'); i.value = 'no such row';"
             "i.dispatchEvent(new Event('input')); })()")
    expect(rows(page) == 0, "rows for words that no row has")
    page.run("(() => { const i = document.querySelector('input[type=search]'); i.value = '';"
             "i.dispatchEvent(new Event('input')); })()")
    expect(rows(page) == everything, "the rows do not come back")


def check_hover(page):
    page.hover("svg.chart circle.mark")
    expect("95% interval" in visible_tip(page), f"no text at a point: '{visible_tip(page)}'")
    page.key("Escape", 27)
    expect(visible_tip(page) == "", "Escape does not hide it")
    page.run("document.querySelector('svg.chart').focus()")
    page.key("ArrowRight", 39)
    first = visible_tip(page)
    page.key("ArrowRight", 39)
    expect(first and visible_tip(page) and first != visible_tip(page), "the arrow keys do not step through the points")
    page.run("document.querySelector('svg.chart').blur()")
    lines = "document.querySelector('figure .legend').parentElement.querySelectorAll('circle.mark').length"
    before = page.run(lines)
    page.run("document.querySelector('figure .legend button').click()")
    expect(page.run(lines) < before, "the legend does not hide a method")
    page.run("document.querySelector('figure .legend button').click()")


def check_maps(page):
    expect(page.run("[...document.querySelectorAll('h4')].some(h => h.textContent === 'Mass recall by layer and head')"),
           "no heat map")
    page.hover("svg.chart rect.mark")
    expect(visible_tip(page) != "", "no text at a field of the map")
    expect(page.run("document.querySelectorAll('canvas').length") > 0, "no selections")
    page.hover("canvas")
    expect("query block" in visible_tip(page), f"no text at a selection: '{visible_tip(page)}'")


def check_theme(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    light = page.run(paper)
    page.prefer("dark")
    dark = page.run(paper)
    expect(light != dark, "the system's dark theme changes nothing")
    choose = ("(() => { const t = document.getElementById('theme'); t.value = '%s';"
              "t.dispatchEvent(new Event('change')); })()")
    page.run(choose % "light")
    expect(page.run(paper) == light, "Light does not win over the system")
    page.prefer("light")
    page.run(choose % "dark")
    expect(page.run(paper) == dark, "Dark does not win over the system")
    page.run(choose % "")
    expect(page.run(paper) == light, "Automatic does not return")


def check_narrow(page):
    for width in (320, 390, 768):
        page.resize(width, 800)
        page.wait_for("[...document.querySelectorAll('svg.chart')].every(s => s.viewBox.baseVal.width <= innerWidth)")
        wide = page.run("document.documentElement.scrollWidth")
        expect(wide <= width, f"{wide} pixels wide in a window of {width}")
    page.resize(1280, 900)
    page.wait_for("[...document.querySelectorAll('svg.chart')].some(s => s.viewBox.baseVal.width > 400)")


def check_print(page):
    page.prefer("dark")
    pdf = page.call("Page.printToPDF", printBackground=True)["data"]
    expect(len(pdf) > 20000, "the print is empty")
    page.call("Emulation.setEmulatedMedia", media="print")
    expect(page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", "paper is not white")
    expect(page.run("getComputedStyle(document.querySelector('nav')).display") == "none", "links on paper")
    page.call("Emulation.setEmulatedMedia", media="")


def check_safe(page):
    """For reports whose texts try to be markup: they show, and nothing of them runs."""
    expect(page.run("window.broken === undefined"), "a text of a report ran as script")
    expect(page.run("document.querySelectorAll('main img, main script, main iframe').length") == 0,
           "a text of a report became markup")
    expect(page.run("document.body.textContent.includes('<img src=x onerror=')"), "the text is not shown")


def check_quick(page):
    """Interactive within a second, the first paint included: of processor time, since the machines of
    tests are shared."""
    ready = page.run("document.documentElement.dataset.ready")
    print(f"ready after {ready} ms, painted after {page.load_seconds:.2f} s and "
          f"{page.load_processor_seconds:.2f} s of the main thread")
    expect(page.load_processor_seconds < 1, f"{page.load_processor_seconds} s of the main thread to load")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page")
    parser.add_argument("checks", nargs="+")
    parser.add_argument("--screenshots")
    options = parser.parse_args()
    if not find_chromium():
        print("no chromium")
        return 2
    with Page(pathlib.Path(options.page).resolve().as_uri()) as page:
        for name in options.checks:
            globals()["check_" + name](page)
        failures.extend("console: " + error for error in page.errors)
        if options.screenshots:
            for scheme in ("light", "dark"):
                page.prefer(scheme)
                for width in (1280, 390):
                    page.resize(width, 900)
                    page.screenshot(f"{options.screenshots}/{scheme}-{width}.png")
    for failure in failures:
        print("failed:", failure)
    return 1 if failures else 0


sys.exit(main())
