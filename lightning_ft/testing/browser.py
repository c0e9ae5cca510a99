"""What a page looks like in a real browser: overlaps, clipped text, contrast and complaints, at any width, light and dark.

Needs Chromium with its driver, and selenium; `found()` says whether they are there.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
CONTRAST = 4.5
"""Least ratio between text and what is behind it (WCAG 2.2, 1.4.3)."""
LOOK = r"""
const problems = [], width = window.innerWidth, seen = [];
const say = (what, node) => problems.push(what + ': ' + (node.textContent || '').trim().slice(0, 60));
const inside = (a, b) => a.left >= b.left - 1.5 && a.right <= b.right + 1.5 &&
  a.top >= b.top - 1.5 && a.bottom <= b.bottom + 1.5;
const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
  Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
const box = node => { const r = document.createRange(); r.selectNodeContents(node); return r.getBoundingClientRect(); };
const shown = rect => rect.width > 0 && rect.height > 0;

const whole = document.documentElement.scrollWidth;
if (whole > width) problems.push('the page is ' + whole + ' wide');

for (const svg of document.querySelectorAll('svg')) {
  const outer = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')].filter(t => t.textContent.trim());
  const boxes = texts.map(t => t.getBoundingClientRect());
  texts.forEach((text, i) => {
    if (!inside(boxes[i], outer)) say('clipped in a chart', text);
    for (let j = 0; j < i; j++) {
      if (overlap(boxes[i], boxes[j])) say('overlaps "' + texts[j].textContent + '" in a chart', text);
    }
  });
}
for (const cell of document.querySelectorAll('td, th')) {
  const outer = cell.getBoundingClientRect(), inner = box(cell);
  if (shown(outer) && shown(inner) && !inside(inner, outer)) say('leaves its cell', cell);
}
for (const row of document.querySelectorAll('tr')) {
  const boxes = [...row.children].map(cell => cell.getBoundingClientRect());
  for (let i = 1; i < boxes.length; i++) if (overlap(boxes[i - 1], boxes[i])) say('cells overlap', row);
}
for (const node of document.querySelectorAll('.scroll')) {
  if (!node.querySelector('.heat') && node.scrollWidth > node.clientWidth + 1) say('out of sight until it is scrolled', node);
}
for (const node of document.querySelectorAll('h1, h2, h3, p, figcaption, summary, pre, li')) {
  const inner = box(node);
  if (shown(inner) && !node.closest('.scroll') && (inner.left < -1 || inner.right > width + 1)) say('beyond the page', node);
}
for (const node of document.querySelectorAll('body *')) {
  const style = getComputedStyle(node);
  if (node.closest('svg') || !shown(node.getBoundingClientRect())) continue;
  if (['hidden', 'clip'].includes(style.overflowX) && node.scrollWidth > node.clientWidth + 1) say('clipped', node);
}

const colour = text => {
  const numbers = (text.match(/-?[\d.]+(e-?\d+)?/g) || []).map(Number);
  if (text === 'transparent' || text === 'none') return [0, 0, 0, 0];
  const scale = text.startsWith('color(') ? 255 : 1;
  return [numbers[0] * scale, numbers[1] * scale, numbers[2] * scale, numbers.length > 3 ? numbers[3] : 1];
};
const over = (top, below) => below.map((c, i) => i < 3 ? top[i] * top[3] + c * (1 - top[3]) : 1);
const behind = node => {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.push(colour(getComputedStyle(at).backgroundColor));
  let ground = matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18, 1] : [255, 255, 255, 1];
  for (const layer of layers.reverse()) if (layer[3] > 0) ground = over(layer, ground);
  const svg = node.closest('svg');
  if (svg) {
    const place = node.getBoundingClientRect(), x = (place.left + place.right) / 2, y = (place.top + place.bottom) / 2;
    for (const shape of svg.querySelectorAll('rect')) {
      const at = shape.getBoundingClientRect(), style = getComputedStyle(shape);
      const before = shape.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING;
      if (before && x > at.left && x < at.right && y > at.top && y < at.bottom) {
        const fill = colour(style.fill);
        fill[3] *= Number(style.fillOpacity) * Number(style.opacity);
        ground = over(fill, ground);
      }
    }
  }
  return ground;
};
const light = c => {
  const [r, g, b] = c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || ['TITLE', 'STYLE', 'title'].includes(node.tagName)) continue;
  if (!shown(node.getBoundingClientRect())) continue;
  const ground = behind(node), style = getComputedStyle(node);
  const ink = over(colour(node.closest('svg') ? style.fill : style.color), ground);
  const [high, low] = [light(ink), light(ground)].sort((a, b) => b - a);
  const ratio = (high + 0.05) / (low + 0.05);
  seen.push(ratio);
  if (ratio < arguments[0]) say('contrast ' + ratio.toFixed(2), node);
}
return {problems: problems, texts: seen.length, lowest: Math.min(...seen)};
"""


@dataclass(frozen=True)
class Look:
    """What was seen of a page."""

    problems: tuple[str, ...]
    """Each with the text that it is about; complaints of the browser's console, too."""
    texts: int
    """Pieces of text whose contrast was measured."""
    lowest: float
    """The lowest contrast."""


def found() -> bool:
    """Whether there is a browser that can be driven."""
    parts = (any(map(shutil.which, BROWSERS)), shutil.which(DRIVER), importlib.util.find_spec("selenium"))
    return all(parts)


class Browser:
    """A browser without a window; see `browser`."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, page: Path | str, *, width: int, dark: bool = False) -> None:
        """Show a page, a file or an address, in a window that is so wide."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._driver.get(page if isinstance(page, str) else page.resolve().as_uri())

    def look(self) -> Look:
        """What is wrong with the page that is open."""
        seen = self._driver.execute_script(LOOK, CONTRAST)
        said = [f"console: {entry['level']} {entry['message']}" for entry in self._driver.get_log("browser")]
        return Look(tuple(seen["problems"] + said), seen["texts"], seen["lowest"])

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page that is open."""
        return self._driver.execute_script(f"return {expression}")

    def until(self, expression: str, seconds: float = 60) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutException: selenium's, when it is not in time.
        """
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self._driver, seconds, poll_frequency=0.05).until(lambda _: self.read(expression))

    def click(self, selector: str) -> None:
        """Click what a CSS selector finds first."""
        self._driver.find_element("css selector", selector).click()

    def press(self, keys: str) -> None:
        """Type keys into what has the focus, which a page may just be putting elsewhere."""
        from selenium.webdriver import ActionChains

        ActionChains(self._driver).send_keys(keys).perform()

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        shot = self._driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A browser while the block runs."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = next(path for name in BROWSERS if (path := shutil.which(name)))
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which(DRIVER)))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
