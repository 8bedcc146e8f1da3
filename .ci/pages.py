"""Every page that the programs write, in headless Chromium at three widths: nothing overlaps, nothing is cut off, ticks
of rounds are whole, text is legible, and nothing is asked of the network. Takes the folder of the screenshots and the
pages, each as NAME=ADDRESS; a page whose name begins with `fed-` is a dashboard to which the events below are fed."""
import json
import pathlib
import sys
import time

from browser import CONTRAST, browser, errors, resize, screenshot
from selenium.webdriver.common.by import By

HERE = pathlib.Path(__file__).parent
RECORDER = (HERE / "recorder.js").read_text()
LAYOUT = (HERE / "layout.js").read_text()
NOW = time.time()


def worker(index, round):
    return {"ip": f"2001:db8:85a3::8a2e:370:{index:04x}", "round": round, "num_samples": 60000 + index, "loss": 1.2345,
            "compute_factor": 0.0123, "last_update_ts": NOW - 40 * index, "bytes": 5432100}


def record(round):
    return {"round": round, "started_ts": NOW - 900, "finished_ts": NOW - 800, "duration_s": 1.5 + round % 7, "participants": 1000,
            "num_samples": 60000000, "train_loss": 2 / round, "test_accuracy": 1 - 0.9 / round ** 0.3, "test_loss": 2.3 / round ** 0.5,
            "bytes_up": 123456789, "bytes_down": 9876543210, "bits_per_param": 1.79, "reused": 0, "bytes_saved": 0}


def status(workers, rounds, **more):
    return {"global_round": rounds, "num_pending_rounds": 1, "pending_updates": 1, "min_clients": 2, "workers": workers,
            "model": "mlp", "num_parameters": 99985, "dataset": "digits", "strategy": "fedavg",
            "last_evaluation": {"round": rounds, "accuracy": 0.9722, "loss": 0.1123, "samples": 360}, "rejected_updates": {},
            "reused_updates": 0, "bytes_saved": 0, "uptime_s": 98765.0, "finished": False, "version": "0.1.0",
            "num_workers": len(workers), "now_ts": NOW} | more


LONG = "a-worker-whose-name-somebody-made-of-its-rack-its-slot-and-its-serial-number-0123456789"
TWO = {"edge1": worker(0, 12), "edge2": worker(4, 11)}
MISSING = {"needed": 2, "accepted": 1, "since_ts": NOW - 200, "reason": "The round closes with the second update.",
           "missing": [{"worker": "edge2", "last_seen_ts": NOW - 190}]}
# The events of the pages that are fed: a status, and the finished rounds.
FED = {
    "fed-many": (status({f"{LONG}-{i}": worker(i, 1234567 - i % 5) for i in range(200)}, 1234567, num_workers=100000,
                        min_clients=1000, pending_updates=567,
                        rejected_updates={"stale_round": 123456, "norm_too_large": 98765, "checksum_mismatch": 4321}),
                 [record(i) for i in range(1, 1001)]),
    "fed-waiting": (status(TWO, 12, waiting=MISSING), [record(i) for i in range(1, 13)]),
    "fed-waiting-for-many": (status({f"{LONG}-{i}": worker(i, 3) for i in range(9)}, 3, min_clients=300, pending_updates=9, waiting={
        "needed": 300, "accepted": 9, "since_ts": NOW - 100000, "reason": "Too few of the workers that were asked have answered.",
        "missing": [{"worker": f"{LONG}-{i}", "last_seen_ts": NOW - 60 * i if i % 2 else 0} for i in range(9, 300)]}), [record(1), record(2), record(3)]),
    "fed-short-wait": (status(TWO, 12, waiting=MISSING | {"since_ts": NOW + 3000}), [record(1)]),
    "fed-finished": (status(TWO, 12, finished=True, waiting=MISSING), [record(1)]),
}
WAITING = {
    "fed-waiting": ["Waiting 3 min for 1 more of 2 updates.", "The round closes with the second update.",
                    "Missing: edge2 (last heard of 3 min ago).", "Handed in: edge1."],
    "fed-waiting-for-many": ["Waiting 27 h 46 min for 291 more of 300 updates.", "never heard of", "and 286 more.", "and 4 more."],
}

FEED = """
window.EventSource = class extends EventTarget {
  constructor() {
    super();
    setTimeout(() => {
      this.dispatchEvent(new Event("open"));
      this.dispatchEvent(new MessageEvent("status", { data: JSON.stringify(fed.status) }));
    });
  }
};
window.fetch = async () => ({ ok: true, json: async () => fed.history });
"""


def opened(driver, name, url, width):
    resize(driver, width, 900)
    script = RECORDER
    if name in FED:
        fed_status, history = FED[name]
        script += f"const fed = {json.dumps({'status': fed_status, 'history': history})};" + FEED
    added = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
    driver.get(url)
    driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
    if name in FED:
        wait(lambda: driver.find_element(By.TAG_NAME, "html").get_attribute("data-round"))
    driver.execute_script("document.querySelectorAll('details').forEach((node) => { node.open = true; })")
    # Lets resize observers run, and their changes be laid out.
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(() => requestAnimationFrame(arguments[0])))")


def wait(condition, seconds=30):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"nothing happened in {seconds} s"
        time.sleep(0.1)


def check(driver, name, url, width, scheme):
    found = driver.execute_script(LAYOUT)
    found += [f"contrast: {text}" for text in driver.execute_script(CONTRAST)]
    found += [f"console: {entry['message']}" for entry in errors(driver)]
    if url.startswith("file:"):
        asked = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        found += [f"loads {address}" for address in asked]
        if not driver.find_elements(By.CSS_SELECTOR, ".uplot canvas"):
            found.append("there is no chart")
    box = driver.find_elements(By.ID, "waiting")
    if box:
        text = box[0].text
        for part in WAITING.get(name, []):
            if part not in text:
                found.append(f"the wait is not told: {part!r} is not in {text!r}")
        # A master without workers rightly tells of its wait once a slow machine has taken a minute to come here.
        if name not in WAITING and name != "empty" and text:
            found.append(f"a wait is told: {text!r}")
    elif name in WAITING:
        found.append("the dashboard has no place for what a round waits for")
    return [f"{name}, {width} px, {scheme}: {text}" for text in found]


def check_resized(driver, name):
    """Charts follow the window when it becomes narrow and wide again."""
    found = []
    for width in (390, 1000):
        resize(driver, width, 900)
        time.sleep(0.3)
        found += [f"{name}, resized to {width} px: {text}" for text in driver.execute_script(LAYOUT)]
    return found


def check_without_scripts(driver, name, url):
    resize(driver, 390, 900)
    driver.get(url)
    for summary in driver.find_elements(By.TAG_NAME, "summary"):
        summary.click()
    found = []
    if not driver.find_elements(By.CSS_SELECTOR, "noscript p") or "tables" not in driver.find_element(By.TAG_NAME, "noscript").text:
        found.append("nothing says where the numbers are")
    rows = driver.find_elements(By.CSS_SELECTOR, "details tbody tr")
    if not rows or not rows[0].text:
        found.append("no round is in a table")
    return [f"{name} without scripts: {text}" for text in found]


def main(out, pages):
    wrong = []
    for width, scheme in ((390, "light"), (1000, "light"), (1600, "light"), (1000, "dark")):
        driver = browser(width, 900, scheme)
        try:
            for name, url in pages:
                opened(driver, name, url, width)
                wrong += check(driver, name, url, width, scheme)
                screenshot(driver, width, f"{out}/page-{name}-{width}-{scheme}.png")
                if width == 1600:
                    wrong += check_resized(driver, name)
        finally:
            driver.quit()
    driver = browser(390, 900, scripts=False)
    try:
        for name, url in pages:
            if url.startswith("file:"):
                wrong += check_without_scripts(driver, name, url)
    finally:
        driver.quit()
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"pages: {len(pages)} of them are whole at 390, 1000 and 1600 pixels; screenshots in {out}")


main(sys.argv[1], [page.split("=", 1) for page in sys.argv[2:]])
