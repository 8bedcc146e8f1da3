"""The dashboard in headless Chromium: it updates by itself, is complete without scripts, light, and accessible."""
import sys
import time

from browser import CONTRAST, browser, errors, screenshot
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

url, out = sys.argv[1], sys.argv[2]


def opened(*arguments, **settings):
    driver = browser(*arguments, **settings)
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


weights = {}
for name, width, height, scheme in (("desktop-light", 1280, 1000, "light"), ("desktop-dark", 1280, 1000, "dark"),
                                    ("phone-light", 390, 844, "light"), ("phone-dark", 390, 844, "dark")):
    driver = opened(width, height, scheme)
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

        # The keyboard reaches every control, and the focus is visible.
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

        assert not (found := errors(driver)), found
        weights[name] = driver.execute_script(
            "return performance.getEntriesByType('navigation').concat(performance.getEntriesByType('resource'))"
            ".filter((e) => !/events|history/.test(e.name)).reduce((sum, e) => sum + e.encodedBodySize, 0)")
        driver.execute_script("document.activeElement.blur()")
        screenshot(driver, width, f"{out}/dashboard-{name}.png")
    finally:
        driver.quit()

weight = max(weights.values())
assert weight <= 300_000, weights

driver = opened(1280, 1000, scripts=False)
try:
    assert number(text(driver, "round")) > 0 and text(driver, "accuracy").endswith("%")
    assert len(driver.find_elements(By.CSS_SELECTOR, "#workers tr")) == 3
    assert len(driver.find_elements(By.CSS_SELECTOR, "#rounds tr")) >= 5
    driver.save_screenshot(f"{out}/dashboard-without-scripts.png")
finally:
    driver.quit()
print(f"dashboard: moves by itself, {weight / 1000:.0f} kB in all, contrast and keyboard are fine; screenshots in {out}")
