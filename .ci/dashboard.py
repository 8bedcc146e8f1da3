"""The dashboard in headless Chromium: it moves by itself, is complete without scripts, light, and accessible."""
import sys
import time

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

url, out = sys.argv[1], sys.argv[2]


def browser(width, height, scheme="light", scripts=True):
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},{height}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if not scripts:
        options.add_experimental_option("prefs", {"profile.managed_default_content_settings.javascript": 2})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    driver.get(url)
    return driver


def text(driver, field):
    return driver.find_element(By.CSS_SELECTOR, f'[data-field="{field}"]').text


def wait(what, condition, seconds=60):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"{what} did not happen in {seconds} s"
        time.sleep(0.2)


def number(shown):
    return int(shown.replace(",", ""))


# Relative luminance and contrast as WCAG 2 defines them, of every visible text against its ground.
CONTRAST = """
const parse = (c) => c.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b].map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; })
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const ground = (node) => { for (; node; node = node.parentElement) { const c = parse(getComputedStyle(node).backgroundColor);
  if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
const bad = [];
for (const node of document.querySelectorAll("body *")) {
  const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !node.getClientRects().length) continue;
  const [a, b] = [luminance(parse(getComputedStyle(node).color)), luminance(ground(node))].sort((x, y) => y - x);
  if ((a + .05) / (b + .05) < 4.5) bad.push(node.outerHTML.slice(0, 90) + " " + ((a + .05) / (b + .05)).toFixed(2));
}
return bad;
"""

weights = {}
for name, width, height, scheme in (("desktop-light", 1280, 1000, "light"), ("desktop-dark", 1280, 1000, "dark"),
                                    ("phone-light", 390, 844, "light"), ("phone-dark", 390, 844, "dark")):
    driver = browser(width, height, scheme)
    try:
        wait("the live mark", lambda: driver.find_element(By.ID, "live").text == "Live")
        first = number(text(driver, "round"))
        wait("a new round on the page", lambda: number(text(driver, "round")) >= first + 3)
        wait("the charts", lambda: len(driver.find_elements(By.CSS_SELECTOR, ".plot canvas")) == 4)
        wait("an accuracy", lambda: text(driver, "accuracy").endswith("%"))
        assert len(driver.find_elements(By.CSS_SELECTOR, "#workers tr")) == 3
        assert driver.find_element(By.ID, "curl").text == f"curl -OJ {url}global"
        assert driver.title.startswith("Round ") and driver.find_element(By.TAG_NAME, "html").get_attribute("lang") == "en"
        for plot in driver.find_elements(By.CSS_SELECTOR, ".plot"):
            assert plot.get_attribute("role") == "img" and plot.get_attribute("aria-label")
        assert all(image.get_attribute("alt") is not None for image in driver.find_elements(By.TAG_NAME, "img"))
        assert not (bad := driver.execute_script(CONTRAST)), bad
        overflow = driver.execute_script("return document.documentElement.scrollWidth") - width
        assert overflow <= 0, f"{name}: the page is {overflow} pixels too wide"

        # The keyboard reaches everything that can be used, and one can see where it is.
        reached = []
        for _ in range(12):
            ActionChains(driver).send_keys(Keys.TAB).perform()
            node = driver.switch_to.active_element
            if node.tag_name == "body":
                break  # past the last one
            reached.append(node.text or node.get_attribute("aria-labelledby") or "")
            assert driver.execute_script("return getComputedStyle(arguments[0]).outlineStyle", node) != "none", reached
        for expected in ("Skip to the figures", "Download round", "Copy", "Status"):
            assert any(expected in label for label in reached), (expected, reached)

        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors, errors
        weights[name] = driver.execute_script(
            "return performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))"
            ".filter((e) => !/events|history/.test(e.name)).reduce((sum, e) => sum + e.encodedBodySize, 0)")
        driver.execute_script("document.activeElement.blur()")
        full = driver.execute_script("return document.documentElement.scrollHeight")
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                               {"width": width, "height": full, "deviceScaleFactor": 1, "mobile": False})
        time.sleep(0.5)
        driver.save_screenshot(f"{out}/dashboard-{name}.png")
    finally:
        driver.quit()

weight = max(weights.values())
assert weight <= 300_000, weights

driver = browser(1280, 1000, scripts=False)
try:
    assert number(text(driver, "round")) > 0 and text(driver, "accuracy").endswith("%")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#workers tr")) == 3
    assert len(driver.find_elements(By.CSS_SELECTOR, "#rounds tr")) >= 5
    driver.save_screenshot(f"{out}/dashboard-without-scripts.png")
finally:
    driver.quit()
print(f"dashboard: moves by itself, {weight / 1000:.0f} kB in all, contrast and keyboard are fine; screenshots in {out}")
